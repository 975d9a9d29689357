//! A directory that Hugging Face loads, with a model card that says how the model was made.
//!
//! The card holds what is content: key, digests of what went in, metrics. The recipe's name and
//! the run are provenance: they are added where [`PROVENANCE`] stands when the artifact is taken
//! out of the store, so that two recipes which share its bits each tell their own story.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use model::convert::{Conversion, Format, Origin};
use serde_json::Value;
use spec::kinds::export::{Export, ExportFormat};

use crate::failure::{Failure, Result, at};
use crate::report::Metrics;
use crate::stage::{Done, Stage, store_dtype};

/// The line of the card that whoever takes it out of the store replaces.
pub const PROVENANCE: &str = "<!-- recipe: provenance -->";

pub fn run(stage: &Stage) -> Result<Done> {
    if !stage.gang.leads() {
        return Ok(Done::Finished(Metrics::new()));
    }
    let with: Export = stage.with()?;
    let dir = stage.output("model")?;
    let conversion = Conversion {
        dtype: store_dtype(with.dtype),
        max_shard_bytes: with.max_shard_bytes,
        format: match with.format {
            ExportFormat::Safetensors => Format::Safetensors,
            ExportFormat::Dcp => Format::Dcp,
        },
    };
    let origin = Origin::of(stage.input("model")?);
    let converted = model::convert::convert(origin, dir, conversion)?;
    let reports = stage
        .inputs("report")
        .into_iter()
        .map(read_report)
        .collect::<Result<Vec<Value>>>()?;
    let path = dir.join("README.md");
    fs::write(&path, card(stage, &with, &converted.config, &reports)).map_err(at(&path))?;
    Ok(Done::Finished(crate::convert::sizes(&converted)))
}

fn read_report(dir: &Path) -> Result<Value> {
    let path = if dir.is_dir() {
        dir.join("report.json")
    } else {
        dir.to_path_buf()
    };
    let text = fs::read(&path).map_err(at(&path))?;
    serde_json::from_slice(&text).map_err(|e| {
        Failure::data(
            format!("{}: {e}", path.display()),
            "give the report of an `evaluate` stage",
        )
    })
}

fn card(stage: &Stage, with: &Export, config: &arch::ModelConfig, reports: &[Value]) -> String {
    let title = if with.title.is_empty() {
        "Model card"
    } else {
        &with.title
    };
    let mut out = String::new();
    let library = match with.format {
        ExportFormat::Safetensors => "transformers",
        ExportFormat::Dcp => "pytorch",
    };
    // writing to a String does not fail
    let _ = writeln!(
        out,
        "---\nlibrary_name: {library}\npipeline_tag: text-generation\n---\n"
    );
    let _ = writeln!(out, "# {title}\n\n{PROVENANCE}\n");
    let _ = writeln!(
        out,
        "A `{}` decoder of {} parameters ({} layers, width {}, vocabulary {}).\n",
        config.family.model_type,
        config.param_count(),
        config.layers,
        config.hidden_size,
        config.vocab_size,
    );
    if with.format == ExportFormat::Dcp {
        let _ = writeln!(
            out,
            "The weights are a distributed checkpoint of PyTorch, by their Hugging Face names: \
             `torch.distributed.checkpoint.load(model.state_dict(), checkpoint_id=DIR)`.\n"
        );
    }
    for report in reports {
        let _ = writeln!(
            out,
            "## Evaluation\n\n| metric | value | 95% interval |\n|---|---|---|"
        );
        for (name, value) in report["metrics"].as_object().into_iter().flatten() {
            let number = |value: &Value| value.as_f64().map_or("-".into(), |v| format!("{v:.4}"));
            let interval = &report["intervals"][name];
            let _ = writeln!(
                out,
                "| {name} | {} | {} to {} |",
                number(value),
                number(&interval[0]),
                number(&interval[1])
            );
        }
        let _ = writeln!(out);
    }
    let _ = writeln!(out, "## How it was made\n\n| what | digest |\n|---|---|");
    let _ = writeln!(out, "| key of this export | `{}` |", stage.job.key);
    for (name, inputs) in &stage.job.inputs {
        for input in inputs {
            let _ = writeln!(out, "| {name} | `{}` |", input.digest);
        }
    }
    out
}
