//! `recipe graph`: the DAG as Graphviz, Mermaid or JSON.

use crate::args::{GraphArgs, GraphFormat};
use crate::fail::Fail;
use crate::{output, project};
use serde_json::json;
use spec::{PartOf, Plan, Reference, Selection, Until};
use std::fmt::Write as _;

pub fn run(args: GraphArgs) -> Result<u8, Fail> {
    let plan = Plan::new(project::load(&args.recipe)?, &Selection::default())?;
    let text = match args.format {
        GraphFormat::Dot => dot(&plan),
        GraphFormat::Mermaid => mermaid(&plan),
        GraphFormat::Json => format!("{:#}", json(&plan)),
    };
    output::line(text.trim_end());
    Ok(0)
}

/// From, to, and the label: `output -> input`, or the input alone where a source feeds it.
fn edges(plan: &Plan) -> Vec<(String, String, String)> {
    let mut edges = Vec::new();
    for planned in &plan.order {
        if let Some(PartOf {
            stage,
            until: Until::Best(by),
        }) = &planned.stage.part_of
        {
            edges.push((stage.clone(), planned.stage.name.clone(), by.to_string()));
        }
        for (input, references) in &planned.stage.inputs {
            for reference in references {
                let label = |output: &String| match output == input {
                    true => input.clone(),
                    false => format!("{output} -> {input}"),
                };
                let to = &planned.stage.name;
                match reference {
                    Reference::Stage { stage, output } => {
                        edges.push((stage.clone(), to.clone(), label(output)));
                    }
                    Reference::Source(name) => {
                        edges.push((format!("source.{name}"), to.clone(), input.clone()));
                    }
                    Reference::Choice(choice) => {
                        for cell in &choice.candidates {
                            let one_of = format!("one of: {}", label(&choice.output));
                            edges.push((cell.stage.clone(), to.clone(), one_of));
                            if cell.judge != cell.stage {
                                edges.push((cell.judge.clone(), to.clone(), choice.metric.clone()));
                            }
                        }
                    }
                }
            }
        }
    }
    edges
}

fn dot(plan: &Plan) -> String {
    let mut out = format!(
        "digraph \"{}\" {{\n  rankdir = LR;\n  node [shape = box];\n",
        plan.recipe.name
    );
    for name in plan.recipe.sources.keys() {
        let _ = writeln!(out, "  \"source.{name}\" [shape = ellipse];");
    }
    for planned in &plan.order {
        let (name, kind) = (&planned.stage.name, planned.stage.kind.name);
        let _ = writeln!(out, "  \"{name}\" [label = \"{name}\\n{kind}\"];");
    }
    for (from, to, label) in edges(plan) {
        let _ = writeln!(out, "  \"{from}\" -> \"{to}\" [label = \"{label}\"];");
    }
    out + "}"
}

fn mermaid(plan: &Plan) -> String {
    // Mermaid's ids cannot hold every name, so nodes are numbered and labelled.
    let sources: Vec<String> = plan
        .recipe
        .sources
        .keys()
        .map(|n| format!("source.{n}"))
        .collect();
    let stages: Vec<&str> = plan.order.iter().map(|p| p.stage.name.as_str()).collect();
    let id = |name: &str| match stages.iter().position(|s| *s == name) {
        Some(i) => format!("s{i}"),
        None => format!("d{}", sources.iter().position(|s| s == name).unwrap_or(0)),
    };
    let mut out = "graph LR\n".to_owned();
    for name in &sources {
        let _ = writeln!(out, "  {}([\"{name}\"])", id(name));
    }
    for planned in &plan.order {
        let (name, kind) = (&planned.stage.name, planned.stage.kind.name);
        let _ = writeln!(out, "  {}[\"{name}<br/>{kind}\"]", id(name));
    }
    for (from, to, label) in edges(plan) {
        let _ = writeln!(out, "  {} -->|\"{label}\"| {}", id(&from), id(&to));
    }
    out
}

fn json(plan: &Plan) -> serde_json::Value {
    let stages: Vec<_> = plan
        .order
        .iter()
        .map(|p| json!({ "stage": p.stage.name, "kind": p.stage.kind.name, "outputs": p.stage.outputs.iter().map(|o| &o.name).collect::<Vec<_>>() }))
        .collect();
    let sources: Vec<_> = plan
        .recipe
        .sources
        .iter()
        .map(|(name, s)| json!({ "source": name, "from": s.from.to_string() }))
        .collect();
    let edges: Vec<_> = plan
        .order
        .iter()
        .flat_map(|p| {
            p.stage
                .inputs
                .iter()
                .map(move |(input, refs)| (p, input, refs))
        })
        .flat_map(|(p, input, refs)| {
            refs.iter()
                .map(move |r| json!({ "from": r.to_string(), "to": p.stage.name, "input": input }))
        })
        .collect();
    json!({ "version": 1, "recipe": plan.recipe.name, "sources": sources, "stages": stages, "edges": edges })
}
