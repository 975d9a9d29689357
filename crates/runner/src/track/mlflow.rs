//! `[track.mlflow]`: an MLflow tracking server's REST API. One run for the run, and one below it for
//! each stage: its configuration as parameters, its steps and its summary as metrics.
//!
//! `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, say who
//! asks; they are in no record.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};
use spec::track::{Track, check_uri};

use super::http::{Authorization, Http};
use super::{About, Failure, Record, Tracker, What, succeeded};

/// What one `log-batch` may hold.
const METRICS: usize = 1000;
const PARAMS: usize = 100;
/// Characters of a parameter's value; older servers take no more.
const VALUE: usize = 500;

struct Mlflow {
    http: Http,
    /// `http://host:5000/api/2.0/mlflow`
    base: String,
    experiment: String,
    about: Arc<About>,
    /// The server's ids: of the experiment, of the run's run, of stages' runs.
    experiment_id: Option<String>,
    parent: Option<String>,
    stages: HashMap<String, String>,
    /// Stages whose parameters the server has.
    described: HashSet<String>,
}

pub fn start(track: &Track, about: &Arc<About>) -> Option<Result<Box<dyn Tracker>, String>> {
    let settings = track.mlflow.as_ref()?;
    let begin = || -> Result<Box<dyn Tracker>, String> {
        let uri = settings
            .uri
            .clone()
            .or_else(|| variable("MLFLOW_TRACKING_URI"));
        let uri = uri.ok_or("neither 'uri' nor MLFLOW_TRACKING_URI says where the server is")?;
        check_uri(&uri).map_err(|(what, help)| format!("its address {what}: {help}"))?;
        Ok(Box::new(Mlflow {
            http: Http::new(authorization())?,
            base: format!("{}/api/2.0/mlflow", uri.trim_end_matches('/')),
            experiment: settings
                .experiment
                .clone()
                .unwrap_or_else(|| about.recipe.clone()),
            about: Arc::clone(about),
            experiment_id: None,
            parent: None,
            stages: HashMap::new(),
            described: HashSet::new(),
        }))
    };
    Some(begin())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn authorization() -> Option<Authorization> {
    if let Some(token) = variable("MLFLOW_TRACKING_TOKEN") {
        return Some(Authorization::Token(token));
    }
    let user = variable("MLFLOW_TRACKING_USERNAME")?;
    let password = variable("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
    Some(Authorization::Basic { user, password })
}

impl Tracker for Mlflow {
    fn send(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        let parent = self.parent(self.about.time)?;
        // all that a batch has of a stage goes in few requests
        let mut metrics: HashMap<&str, Vec<Value>> = HashMap::new();
        for record in records {
            let stage = record.stage.as_str();
            match &record.what {
                What::Started { key } => self.begin(stage, key, record.time, &parent)?,
                What::Step {
                    step,
                    metrics: values,
                }
                | What::Finished {
                    step,
                    metrics: values,
                    ..
                } => {
                    let milliseconds = (record.time * 1e3) as u64;
                    let values = values.iter().map(|(name, value)| {
                        json!({
                            "key": metric_name(name), "value": number(*value),
                            "timestamp": milliseconds, "step": step,
                        })
                    });
                    metrics.entry(stage).or_default().extend(values);
                }
                What::RunFinished { .. } => {}
            }
        }
        for (stage, all) in metrics {
            let Some(run) = self.stages.get(stage) else {
                continue;
            };
            for part in all.chunks(METRICS) {
                self.post("runs/log-batch", &json!({ "run_id": run, "metrics": part }))?;
            }
        }
        for record in records {
            match &record.what {
                What::Finished { status, .. } => {
                    if let Some(run) = self.stages.get(&record.stage) {
                        self.end(run, succeeded(*status), record.time)?;
                    }
                }
                What::RunFinished { exit_code } => {
                    self.end(&parent, *exit_code == 0, record.time)?
                }
                What::Started { .. } | What::Step { .. } => {}
            }
        }
        Ok(())
    }
}

impl Mlflow {
    fn post(&self, call: &str, body: &Value) -> Result<Value, Failure> {
        self.http
            .post(&format!("{}/{call}", self.base), body)?
            .accepted()
    }

    /// The run's own run, made when it is first asked for.
    fn parent(&mut self, time: f64) -> Result<String, Failure> {
        if let Some(id) = &self.parent {
            return Ok(id.clone());
        }
        let about = Arc::clone(&self.about);
        let name = format!("{} {}", about.recipe, about.run);
        let tags = [("recipe.run", about.run.as_str())];
        let id = self.create(&name, time, &tags)?;
        Ok(self.parent.insert(id).clone())
    }

    /// Makes the run of a stage and gives it its parameters, each once however often this is tried.
    fn begin(&mut self, stage: &str, key: &str, time: f64, parent: &str) -> Result<(), Failure> {
        let about = Arc::clone(&self.about);
        if !self.stages.contains_key(stage) {
            let tags = [
                ("mlflow.parentRunId", parent),
                ("recipe.run", &about.run),
                ("recipe.stage", stage),
                ("recipe.kind", about.kind(stage)),
                ("recipe.key", key),
            ];
            let run = self.create(stage, time, &tags)?;
            self.stages.insert(stage.to_owned(), run);
        }
        if self.described.contains(stage) {
            return Ok(());
        }
        let run = &self.stages[stage];
        let params: Vec<Value> = about.settings(stage).into_iter().map(param).collect();
        let sent = params.chunks(PARAMS).try_for_each(|part| {
            let body = json!({ "run_id": run, "params": part });
            self.post("runs/log-batch", &body).map(drop)
        });
        // what is refused once is refused always: metrics are not held up by it
        if !matches!(sent, Err(Failure::Later(_))) {
            self.described.insert(stage.to_owned());
        }
        sent
    }

    fn create(&mut self, name: &str, time: f64, tags: &[(&str, &str)]) -> Result<String, Failure> {
        let experiment = self.experiment_id()?;
        let tag = |(key, value): &(&str, &str)| json!({ "key": key, "value": value });
        let tags: Vec<Value> = tags.iter().map(tag).collect();
        let made = self.post(
            "runs/create",
            &json!({
                "experiment_id": experiment, "run_name": name, "tags": tags,
                "start_time": (time * 1e3) as u64,
            }),
        )?;
        text(&made["run"]["info"]["run_id"])
    }

    fn end(&self, run: &str, success: bool, time: f64) -> Result<(), Failure> {
        let status = if success { "FINISHED" } else { "FAILED" };
        let body = json!({ "run_id": run, "status": status, "end_time": (time * 1e3) as u64 });
        self.post("runs/update", &body).map(drop)
    }

    /// The experiment of this name, made where there is none.
    fn experiment_id(&mut self) -> Result<String, Failure> {
        if let Some(id) = &self.experiment_id {
            return Ok(id.clone());
        }
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("experiment_name", &self.experiment)
            .finish();
        let url = format!("{}/experiments/get-by-name?{query}", self.base);
        let found = self.http.get(&url)?;
        let missing = found.status == 404 && found.body["error_code"] == "RESOURCE_DOES_NOT_EXIST";
        let id = match missing {
            true => {
                let made = self.post("experiments/create", &json!({ "name": self.experiment }));
                match made {
                    Ok(made) => text(&made["experiment_id"])?,
                    // another run made it just now
                    Err(Failure::Never(why)) => return Err(Failure::Later(why)),
                    Err(later) => return Err(later),
                }
            }
            false => text(&found.accepted()?["experiment"]["experiment_id"])?,
        };
        Ok(self.experiment_id.insert(id).clone())
    }
}

fn text(value: &Value) -> Result<String, Failure> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| Failure::Never("the server's answer is not MLflow's".to_owned()))
}

/// A metric's name in the characters that MLflow takes.
fn metric_name(name: &str) -> String {
    let known = |c: char| c.is_alphanumeric() || "_-. /:".contains(c);
    name.replace('@', "_at_")
        .chars()
        .map(|c| if known(c) { c } else { '_' })
        .collect()
}

/// A number as protobuf's JSON has it.
fn number(value: f64) -> Value {
    match value {
        v if v.is_nan() => json!("NaN"),
        v if v.is_infinite() => json!(if v > 0.0 { "Infinity" } else { "-Infinity" }),
        v => json!(v),
    }
}

fn param((name, value): (String, Value)) -> Value {
    let value = match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let value: String = value.chars().take(VALUE).collect();
    // `environment[0].name` is no name there
    let name = name.replace('[', ".").replace(']', "");
    json!({ "key": metric_name(&name), "value": value })
}
