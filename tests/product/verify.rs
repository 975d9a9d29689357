//! `recipe verify` on a real trainer: computed again, killed and resumed, under other numerics.

use product_tests::Project;

#[test]
fn a_stage_computed_again_or_resumed_has_the_same_bits() {
    let project = Project::of("pipeline");
    project.recipe(&["run", "recipe.toml", "sft"]).expect(0);
    let found = project.json(&["verify", "recipe.toml", "sft", "--rerun", "--resume"]);
    let checks = found["checks"].as_array().expect("checks");
    assert_eq!(checks.len(), 2);
    for (check, how) in checks.iter().zip(["rerun", "resume"]) {
        assert_eq!((&check["how"], &check["same"]), (&how.into(), &true.into()));
        assert_eq!(check["reference"], "the result in the store");
        assert!(check["step"].is_null(), "{check}");
    }
    // bits are promised within equal numerics: under others it is held to another run here
    let threads = ["-S", "stage.sft.resources.threads=2"];
    let elsewhere = [
        "verify",
        "recipe.toml",
        "sft",
        "--rerun",
        threads[0],
        threads[1],
    ];
    let found = project.json(&elsewhere);
    let check = &found["checks"][0];
    assert_eq!(
        (&check["same"], &check["reference"]),
        (&true.into(), &"another run on this machine".into())
    );
    // the metrics of the steps are judged from the store, also those of before an interruption
    let stages = project.json(&["run", "recipe.toml", "sft"])["stages"].clone();
    let sft = stages
        .as_array()
        .expect("stages")
        .iter()
        .find(|s| s["stage"] == "sft");
    assert_eq!(sft.expect("sft")["status"], "reused");
}
