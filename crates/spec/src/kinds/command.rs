//! `command`: a process of the user's own, with declared inputs, outputs and environment.

use super::training::config;
use super::{ArtifactKind, Config, Functions, Invalid, Kind};

config! {
    /// Runs `cmd` in its attempt directory, inputs at `$IN_<name>`, outputs to be written at
    /// `$OUT_<name>`, metrics to be appended to `$METRICS` as JSON lines: `{"step": 3, "loss": 0.5}`
    /// for a step's, `{"accuracy": 0.8}` for the summary's. In the recipe `cmd`, `out`, `env` and
    /// `secrets` may stand beside `in`.
    pub struct Command {
        /// Program and arguments; no shell unless it is `["sh", "-c", ".."]`.
        pub cmd: Vec<String> = Vec::new(),
        /// Names of the outputs.
        pub out: Vec<String> = Vec::new(),
        /// Environment variables that the process sees; their values enter the key.
        pub env: Vec<String> = Vec::new(),
        /// Environment variables that the process sees and needs, such as tokens; their names enter the
        /// key, their values are in no key and no record.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub secrets: Vec<String> = Vec::new(),
    }
}

impl Config for Command {
    fn finish(&mut self) -> Result<(), Invalid> {
        if self.cmd.is_empty() {
            return Err(Invalid::missing(
                "cmd",
                "say what to run: `cmd = [\"sh\", \"-c\", \"..\"]`",
            ));
        }
        if self.out.is_empty() {
            return Err(Invalid::missing(
                "out",
                "name what the command writes: `out = [\"data\"]`",
            ));
        }
        for (i, name) in self.out.iter().enumerate() {
            if !crate::recipe::is_name(name) {
                return Err(Invalid {
                    field: format!("out[{i}]"),
                    message: format!("'{name}' is not a name"),
                    help: "use letters, digits, '_' and '-'".to_owned(),
                    code: crate::codes::NAME,
                });
            }
            if self.out[..i].contains(name) {
                return Err(Invalid {
                    field: format!("out[{i}]"),
                    message: format!("output '{name}' is declared twice"),
                    help: "remove one".to_owned(),
                    code: crate::codes::DUPLICATE,
                });
            }
        }
        let lists = [("env", &self.env), ("secrets", &self.secrets)];
        let asked = lists.iter().flat_map(|(list, names)| {
            let names = names.iter().enumerate();
            names.map(move |(i, name)| (format!("{list}[{i}]"), name))
        });
        for (field, name) in asked {
            let prefixed = name.starts_with("IN_") || name.starts_with("OUT_") || name == "METRICS";
            if name.is_empty() || name.contains(['=', '\0']) || prefixed {
                return Err(Invalid {
                    field,
                    message: format!("'{name}' is not a variable that a command may ask for"),
                    help: "name an environment variable; METRICS and those that begin with IN_ and OUT_ are set by the runner".to_owned(),
                    code: crate::codes::NAME,
                });
            }
        }
        if let Some(i) = self.secrets.iter().position(|n| self.env.contains(n)) {
            return Err(Invalid {
                field: format!("secrets[{i}]"),
                message: format!("'{}' stands in `env` and in `secrets`", self.secrets[i]),
                help: "keep it in `secrets` if its value is for nobody else to see".to_owned(),
                code: crate::codes::CONFLICT,
            });
        }
        for list in [&mut self.env, &mut self.secrets] {
            list.sort();
            list.dedup();
        }
        Ok(())
    }

    fn outputs(&self) -> Vec<String> {
        self.out.clone()
    }
}

pub const KIND: Kind = Kind {
    name: "command",
    version: 1,
    doc: "a process of your own",
    inputs: &[],
    outputs: &[],
    open_inputs: true,
    trainer: false,
    accelerated: false,
    checkpoints: false,
    config: Functions::of::<Command>(),
};

/// The kind of what a command writes: it is not looked into before something reads it.
pub const OUTPUT: ArtifactKind = ArtifactKind::Files;
