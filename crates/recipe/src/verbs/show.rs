//! `recipe show RUN`: a run's record, or a stage's metrics as JSON lines.

use crate::args::ShowArgs;
use crate::fail::Fail;
use crate::format::{duration, number, table};
use crate::past::{Reader, Run};
use crate::progress::stage::key_metrics;
use crate::verbs::runs::{state, text};
use crate::{output, profiling, project, spending};
use serde_json::{Value, json};
use spec::diagnostic::suggestion;
use std::collections::BTreeMap;

pub fn run(args: ShowArgs) -> Result<u8, Fail> {
    let reader = Reader::new(project::open_store(&args.store)?);
    let run = Run::read(reader.store(), &args.run)?;
    if args.ci.wanted() {
        args.ci.write(&run)?;
        return Ok(0);
    }
    if let Some(name) = &args.metrics {
        let Some(stage) = run.stage(name) else {
            let known = run.stages.iter().map(|s| s.stage.as_str());
            return Err(Fail::not_stored(
                format!("run '{}' has no stage '{name}'", run.id),
                suggestion(name, known),
            ));
        };
        // a reused stage has the steps of the run that computed it
        let (id, stage) = reader.computed_in(&run, stage)?;
        let lines = reader.store().get_run(&id, "metrics.jsonl")?;
        metrics(&lines.unwrap_or_default(), &stage);
        return Ok(0);
    }
    let Run { id, mut record, .. } = run;
    let traces = profiling::traces(reader.store(), &id)?;
    let stages = record["stages"].as_array().cloned().unwrap_or_default();
    if args.json {
        if !traces.is_empty() {
            record["traces"] = json!(traces);
        }
        output::json(&record);
        return Ok(0);
    }
    output::line(format!(
        "run      {id}\nrecipe   {} ({})\nstarted  {}\nstate    {}, {}\n{}\n",
        text(&record, "recipe"),
        text(&record, "file"),
        text(&record, "started"),
        state(&record),
        record["seconds"].as_f64().map(duration).unwrap_or_default(),
        spending::text(&record),
    ));
    let mut rows = vec![
        ["stage", "kind", "state", "time", "cost", "metrics", "key"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for stage in &stages {
        rows.push(vec![
            text(stage, "stage"),
            text(stage, "kind"),
            text(stage, "status").replace('_', " "),
            stage["seconds"].as_f64().map(duration).unwrap_or_default(),
            spending::of_stage(stage),
            key_metrics(&numbers(&stage["metrics"])),
            text(stage, "key").get(..12).unwrap_or("-").to_owned(),
        ]);
    }
    output::line(table(&rows));
    if let Some(verdicts) = verdicts(&stages) {
        output::line(format!("\n{verdicts}"));
    }
    if !traces.is_empty() {
        output::line(format!("\n{}", profiling::listed(&traces)));
    }
    for stage in stages.iter().filter(|s| s["error"].is_object()) {
        let error = &stage["error"];
        output::line(format!(
            "\n{}: {}",
            text(stage, "stage"),
            text(error, "message")
        ));
    }
    Ok(0)
}

/// What the assertions came to, if there are any.
fn verdicts(stages: &[Value]) -> Option<String> {
    let mut rows = vec![
        ["stage", "asserted", "verdict", "value", "margin"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for stage in stages {
        for verdict in stage["verdicts"].as_array().into_iter().flatten() {
            let shown = |field: &str| verdict[field].as_f64().map_or("-".to_owned(), number);
            rows.push(vec![
                text(stage, "stage"),
                text(verdict, "asked"),
                text(verdict, "verdict").replace('_', " "),
                shown("value"),
                shown("margin"),
            ]);
        }
    }
    (rows.len() > 1).then(|| table(&rows))
}

fn numbers(metrics: &Value) -> BTreeMap<String, f64> {
    serde_json::from_value(metrics.clone()).unwrap_or_default()
}

/// The lines of one stage, as they were recorded.
fn metrics(lines: &[u8], stage: &str) {
    for line in String::from_utf8_lossy(lines).lines() {
        // a line cut short by a crash is not JSON and is passed over
        let matches = serde_json::from_str::<Value>(line).is_ok_and(|v| v["stage"] == stage);
        if matches {
            output::line(line);
        }
    }
}
