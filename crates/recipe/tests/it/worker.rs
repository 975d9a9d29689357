//! A worker for tests: a shell script that keeps the contract of `JobSpec` and `Event`.

use crate::project::Project;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// `identity` says `sources`; `run` takes `with.steps` steps, waits `$STEP` seconds after each, and
/// writes a model that depends on the settings.
const SCRIPT: &str = r#"#!/bin/sh
if [ "$1" = identity ]; then
  echo '{"version": "0", "libtorch": "none", "sources": "@SOURCES@"}'
  exit
fi
job=$(tr -d '\n ' < "$3")
field() { printf %s "$job" | sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p"; }
steps=$(field steps)
out=$(printf %s "$job" | sed -n 's/.*"outputs":{"model":"\([^"]*\)".*/\1/p')
echo '{"event": "started", "version": 1, "device": "cpu", "numerics": {"device": "cpu"}}'
i=0
while [ $i -lt $steps ]; do
  i=$((i + 1))
  echo "{\"event\": \"progress\", \"step\": $i, \"total\": $steps}"
  echo "{\"event\": \"metrics\", \"step\": $i, \"metrics\": {\"train/loss\": $((steps - i + 1)).5, \"train/reward\": 0.$i, \"performance/tokens_per_sec\": 10$i}}"
  sleep ${STEP:-0}
done
printf %s "$(field lr) @SOURCES@" > "$out/weights"
echo '{"event": "finished", "metrics": {"train/loss": 1.5, "accuracy": 0.25}}'
"#;

/// Training and a stage that reads it; `[track]` tables go below.
pub const RECIPE: &str = r#"
[recipe]
name = "train"
schema = 1
[params]
lr = 1e-3
[source.base]
path = "base"
[source.chat]
path = "chat.jsonl"
[stage.sft]
kind = "sft"
in = { model = "source.base", data = "source.chat" }
with = { steps = 5, lr = "${params.lr}" }
[stage.dpo]
kind = "dpo"
in = { model = "sft.model", data = "source.chat" }
with = { steps = 3, lr = 1e-4 }
[stage.size]
kind = "command"
in.x = "dpo.model"
cmd = ["sh", "-c", "wc -c < $IN_x/weights > $OUT_out"]
out = ["out"]
"#;

pub fn project(more: &str) -> Project {
    let project = Project::new(&format!("{RECIPE}\n{more}"));
    std::fs::create_dir(project.path("base")).unwrap();
    project.write("base/config.json", "{}");
    let rows: String = (0..20)
        .map(|i| format!("{{\"text\": \"row {i}\"}}\n"))
        .collect();
    project.write("chat.jsonl", &rows);
    script(&project, "one");
    project
}

/// Makes the project's worker one that was built from these sources.
pub fn script(project: &Project, sources: &str) -> PathBuf {
    let path = project.path("worker");
    // a file of its own, so that no process runs the one that is written
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, SCRIPT.replace("@SOURCES@", sources)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
