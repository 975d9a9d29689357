//! `[track.*]`: where a run's metrics go besides its record. Placement: no part of any key. Secrets
//! come from the environment, never from here.

use crate::kinds::Invalid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The trackers that a recipe asks for. Paths are relative to the recipe's folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Track {
    /// JSON lines in one file for all runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<JsonLines>,
    /// Event files for TensorBoard, a folder for each run and stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensorboard: Option<TensorBoard>,
    /// Offline runs of Weights & Biases, one for each stage, for `wandb sync`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wandb: Option<Wandb>,
    /// Runs on an MLflow tracking server, one for each stage below one for the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<Mlflow>,
}

/// `[track.jsonl]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonLines {
    /// The file that lines are added to.
    pub path: PathBuf,
}

impl Default for JsonLines {
    fn default() -> Self {
        Self {
            path: "metrics.jsonl".into(),
        }
    }
}

/// `[track.tensorboard]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TensorBoard {
    /// What `tensorboard --logdir` is given.
    pub dir: PathBuf,
}

impl Default for TensorBoard {
    fn default() -> Self {
        Self {
            dir: "tensorboard".into(),
        }
    }
}

/// `[track.wandb]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Wandb {
    /// The project; left out, the recipe's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The user or team; left out, whoever syncs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    pub tags: Vec<String>,
    /// The folder that `wandb/` is made in, and that `wandb sync` runs in.
    pub dir: PathBuf,
}

/// `[track.mlflow]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mlflow {
    /// The tracking server, http:// or https://; left out, the environment's MLFLOW_TRACKING_URI.
    #[schemars(regex(pattern = "^https?://[^/@]+(/.*)?$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The experiment; left out, the recipe's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
}

impl Track {
    /// Refuses what no tracker can use.
    pub fn check(&self) -> Result<(), Invalid> {
        let uri = self
            .mlflow
            .as_ref()
            .and_then(|mlflow| mlflow.uri.as_deref());
        uri.map_or(Ok(()), |uri| {
            check_uri(uri).map_err(|(message, help)| Invalid {
                code: crate::codes::RANGE,
                field: "mlflow.uri".to_owned(),
                message: format!("'mlflow.uri' {message}"),
                help: help.to_owned(),
            })
        })
    }
}

/// Refuses a tracking server's address that is none, or that holds a secret: what is wrong, and what
/// to do about it.
pub fn check_uri(uri: &str) -> Result<(), (String, &'static str)> {
    let rest = uri
        .strip_prefix("http://")
        .or_else(|| uri.strip_prefix("https://"));
    let Some(rest) = rest.filter(|rest| !rest.is_empty() && !rest.starts_with('/')) else {
        let help = "write the address of a tracking server, such as http://127.0.0.1:5000";
        return Err((format!("is '{uri}', which is no such address"), help));
    };
    if rest
        .split('/')
        .next()
        .is_some_and(|host| host.contains('@'))
    {
        let help = "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and \
                    MLFLOW_TRACKING_PASSWORD, in the environment";
        return Err(("holds a user name or a password".to_owned(), help));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hold_no_secrets() {
        assert!(check_uri("http://127.0.0.1:5000").is_ok());
        assert!(check_uri("https://host/mlflow/at@home").is_ok());
        for bad in [
            "",
            "http://",
            "file:///tmp/x",
            "sqlite:///x",
            "https://me:secret@host/x",
        ] {
            let (message, _) = check_uri(bad).expect_err(bad);
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
