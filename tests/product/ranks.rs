//! Two ranks over Gloo against one, through the real binaries.

use product_tests::Project;

/// Edits that make `stage` plain gradient descent on `ranks` ranks, in small microbatches.
fn project(ranks: u32) -> Project {
    let p = Project::of("pipeline");
    // The curves are compared, so nothing may hide the gradients' scale.
    p.edit(
        "recipe.toml",
        "lr = 3e-3,",
        "lr = 0.05, optimizer = \"sgd\", grad_clip = 0.0,",
    );
    p.edit(
        "recipe.toml",
        "lr = 1e-3, max_length",
        "lr = 0.05, optimizer = \"sgd\", grad_clip = 0.0, max_length",
    );
    p.edit(
        "recipe.toml",
        "resources = { threads = 1 }",
        &format!("resources = {{ threads = 1, ranks = {ranks}, microbatch_tokens = 64 }}"),
    );
    p
}

fn curve(p: &Project, stage: &str, metric: &str) -> Vec<f64> {
    let lines = p.metrics(stage);
    lines
        .iter()
        .filter_map(|l| l["metrics"][metric].as_f64())
        .collect()
}

#[test]
fn two_ranks_follow_one_rank() {
    let args = [
        "run",
        "recipe.toml",
        "-S",
        "steps=20",
        "-S",
        "batch=7",
        "dpo",
    ];
    let (one, two) = (project(1), project(2));
    one.recipe(&args).expect(0);
    two.recipe(&args).expect(0);
    for stage in ["sft", "dpo"] {
        for (metric, limit) in [("train/loss", 1e-5), ("train/grad_norm", 1e-4)] {
            let (a, b) = (curve(&one, stage, metric), curve(&two, stage, metric));
            assert_eq!(a.len(), 20, "{stage} {metric}: one value a step");
            assert_eq!(a.len(), b.len());
            for (step, (a, b)) in a.iter().zip(&b).enumerate() {
                let apart = (a - b).abs() / a.abs().max(1e-3);
                assert!(
                    apart < limit,
                    "{stage} {metric} at step {step}: {a} and {b}"
                );
            }
        }
    }
}
