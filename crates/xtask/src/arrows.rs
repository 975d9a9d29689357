//! Who may import whom (crates/README.md draws it), held against the manifests.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::process::{Result, cargo, output};

/// crate -> the workspace crates it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("arch", &[]),
    ("cache", &[]),
    ("spec", &[]),
    ("data", &["arch"]),
    ("runner", &["spec", "cache", "arch", "data"]),
    ("recipe", &["runner", "spec", "cache", "arch", "data"]),
    ("torch", &[]),
    ("model", &["arch", "torch"]),
    ("trace", &["torch"]),
    ("kernels", &["model", "torch", "trace"]),
    ("emulate", &["kernels"]),
    ("parallel", &["model", "arch", "torch", "trace"]),
    (
        "train",
        &[
            "parallel", "model", "kernels", "data", "arch", "torch", "trace",
        ],
    ),
    (
        "rollout",
        &[
            "parallel", "model", "kernels", "data", "arch", "torch", "trace",
        ],
    ),
    (
        "stages",
        &[
            "train", "rollout", "parallel", "model", "kernels", "data", "spec", "cache", "arch",
            "torch", "trace",
        ],
    ),
    ("product-tests", &[]),
    ("xtask", &[]),
];

/// What must build and run without libtorch.
const TORCH_FREE: &[&str] = &["recipe", "runner", "spec", "cache", "arch", "data", "xtask"];

/// Checks the manifests of the workspace; an error lists every arrow that is not allowed.
pub fn check() -> Result<()> {
    let text = output(cargo().args(["metadata", "--format-version=1", "--locked"]))?;
    let metadata: Value =
        serde_json::from_str(&text).map_err(|e| format!("cargo metadata is not JSON: {e}"))?;
    let wrong = violations(&metadata)?;
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("the crates' arrows:\n  {}", wrong.join("\n  ")))
    }
}

fn violations(metadata: &Value) -> Result<Vec<String>> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let members: BTreeSet<String> = list(&metadata["workspace_members"])
        .iter()
        .map(text)
        .collect();
    let packages = list(&metadata["packages"]);
    let name_of = |id: &str| {
        packages
            .iter()
            .find(|p| p["id"] == id)
            .map(|p| text(&p["name"]))
            .unwrap_or_default()
    };
    let ours: BTreeSet<String> = members.iter().map(|id| name_of(id)).collect();
    let mut wrong = Vec::new();
    for package in packages
        .iter()
        .filter(|p| members.contains(&text(&p["id"])))
    {
        let name = text(&package["name"]);
        let Some((_, allowed)) = ARROWS.iter().find(|(n, _)| *n == name) else {
            wrong.push(format!(
                "crate '{name}' has no line in xtask's table of arrows"
            ));
            continue;
        };
        for dependency in list(&package["dependencies"]) {
            let to = text(&dependency["name"]);
            if dependency["kind"].is_null() && ours.contains(&to) && !allowed.contains(&to.as_str())
            {
                wrong.push(format!("{name} -> {to} is not allowed"));
            }
        }
    }
    // The closure of the runner's side must not reach libtorch, through whatever crate.
    for &start in TORCH_FREE {
        if reaches(metadata, start, "torch-sys") {
            wrong.push(format!("{start} reaches libtorch (torch-sys)"));
        }
    }
    Ok(wrong)
}

fn reaches(metadata: &Value, from: &str, to: &str) -> bool {
    let empty = Vec::new();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap_or(&empty);
    let named = |id: &str, name: &str| {
        metadata["packages"]
            .as_array()
            .is_some_and(|ps| ps.iter().any(|p| p["id"] == id && p["name"] == name))
    };
    let mut seen = BTreeSet::new();
    let mut todo: Vec<&str> = nodes
        .iter()
        .filter_map(|n| n["id"].as_str())
        .filter(|id| named(id, from))
        .collect();
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        if named(id, to) {
            return true;
        }
        let Some(node) = nodes.iter().find(|n| n["id"] == id) else {
            continue;
        };
        for dep in node["deps"].as_array().unwrap_or(&empty) {
            let normal = dep["dep_kinds"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|k| k["kind"].is_null()));
            if let (true, Some(id)) = (normal, dep["pkg"].as_str()) {
                todo.push(id);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(edge: (&str, &str)) -> Value {
        let package = |name: &str| {
            let deps = if name == edge.0 {
                serde_json::json!([{"name": edge.1, "kind": null}])
            } else {
                serde_json::json!([])
            };
            serde_json::json!({"id": name, "name": name, "dependencies": deps})
        };
        let node = |name: &str| {
            let deps = if name == edge.0 {
                serde_json::json!([{"pkg": edge.1, "dep_kinds": [{"kind": null}]}])
            } else {
                serde_json::json!([])
            };
            serde_json::json!({"id": name, "deps": deps})
        };
        let names = ["recipe", "spec", "model", "torch", "torch-sys"];
        serde_json::json!({
            "workspace_members": ["recipe", "spec", "model", "torch"],
            "packages": names.map(package),
            "resolve": {"nodes": names.map(node)},
        })
    }

    #[test]
    fn allowed_arrows_pass_and_others_are_named() {
        assert!(
            violations(&workspace(("recipe", "spec")))
                .unwrap()
                .is_empty()
        );
        let wrong = violations(&workspace(("spec", "model"))).unwrap();
        assert_eq!(wrong, ["spec -> model is not allowed"]);
    }

    #[test]
    fn libtorch_below_the_runner_is_found() {
        let wrong = violations(&workspace(("recipe", "torch-sys"))).unwrap();
        assert_eq!(wrong, ["recipe reaches libtorch (torch-sys)"]);
    }
}
