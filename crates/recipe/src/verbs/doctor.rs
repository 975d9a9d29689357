//! `recipe doctor`: what this machine has, and what is missing for a run.

use crate::args::DoctorArgs;
use crate::fail::Fail;
use crate::{output, project};
use serde_json::{Value, json};

/// One thing that was looked at.
struct Finding {
    name: &'static str,
    /// Whether a run can do with it.
    ok: bool,
    text: String,
}

pub fn run(args: DoctorArgs) -> Result<u8, Fail> {
    let here =
        std::env::current_dir().map_err(|e| Fail::io("read", std::path::Path::new("."), &e))?;
    let url = project::store(&args.store, &here);
    let findings = [cores(), gpus(), worker(&url), store(&url), hub()];
    let ok = findings.iter().all(|f| f.ok);
    if args.json {
        let rows: Vec<Value> = findings
            .iter()
            .map(|f| json!({ "name": f.name, "ok": f.ok, "text": f.text }))
            .collect();
        output::json(&json!({ "version": 1, "ok": ok, "findings": rows }));
    } else {
        for finding in &findings {
            let mark = if finding.ok { "ok     " } else { "missing" };
            output::line(format!("{mark}  {:8}  {}", finding.name, finding.text));
        }
    }
    Ok(if ok { 0 } else { 4 })
}

fn cores() -> Finding {
    Finding {
        name: "cpu",
        ok: true,
        text: format!("{} cores for workers", runner::machine::cores()),
    }
}

fn gpus() -> Finding {
    let text = match runner::machine::gpus().len() {
        0 => "none; stages run on the CPU".to_owned(),
        n => format!("{n} found"),
    };
    Finding {
        name: "gpu",
        ok: true,
        text,
    }
}

fn worker(store: &str) -> Finding {
    let options = runner::Options::new(store);
    let found = runner::worker(&options).and_then(|path| Ok((runner::ask(&path)?, path)));
    match found {
        Ok((trainer, path)) => Finding {
            name: "worker",
            ok: true,
            text: format!("{}, libtorch {}", path.display(), trainer.libtorch),
        },
        Err(e) => Finding {
            name: "worker",
            ok: false,
            text: format!("{e}; {}", e.help().unwrap_or_default()),
        },
    }
}

fn store(url: &str) -> Finding {
    let local = std::path::Path::new(url);
    if !url.contains("://") && !local.exists() {
        return Finding {
            name: "store",
            ok: true,
            text: format!("{url}, made by the first run"),
        };
    }
    match cache::Store::open(url) {
        Ok(store) => Finding {
            name: "store",
            ok: true,
            text: store.url().to_owned(),
        },
        Err(e) => Finding {
            name: "store",
            ok: false,
            text: e.to_string(),
        },
    }
}

fn hub() -> Finding {
    let offline = std::env::var_os("HF_HUB_OFFLINE").is_some_and(|v| v == "1");
    let endpoint =
        std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".to_owned());
    let text = if offline {
        "offline, by HF_HUB_OFFLINE".to_owned()
    } else {
        endpoint
    };
    Finding {
        name: "hub",
        ok: true,
        text,
    }
}
