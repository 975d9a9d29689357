//! The contract with the worker survives JSON, and refuses what it does not know.

use serde_json::json;
use spec::kinds::{self, Length, grpo, sft};
use spec::{Event, FailureClass, JobSpec, Trainer};
use std::collections::BTreeMap;

#[test]
fn events_are_tagged_lines() {
    let line = |event: &Event| serde_json::to_string(event).unwrap();
    let metrics = Event::Metrics {
        step: 3,
        metrics: BTreeMap::from([("train/loss".to_owned(), 0.5)]),
    };
    assert_eq!(
        line(&metrics),
        r#"{"event":"metrics","step":3,"metrics":{"train/loss":0.5}}"#
    );
    let failed = Event::Failed {
        class: FailureClass::Infra,
        code: "E1".to_owned(),
        message: "no".to_owned(),
        help: String::new(),
    };
    assert_eq!(
        line(&failed),
        r#"{"event":"failed","class":"infra","code":"E1","message":"no","help":""}"#
    );
    for event in [
        metrics,
        failed,
        Event::Stopped { step: 2 },
        Event::Progress { step: 1, total: 0 },
    ] {
        assert_eq!(serde_json::from_str::<Event>(&line(&event)).unwrap(), event);
    }
}

#[test]
fn a_job_survives_json() {
    let recipe = crate::load(crate::RECIPE);
    let stage = &recipe.stages["sft"];
    let job = JobSpec {
        version: spec::job::VERSION,
        kind: "sft".to_owned(),
        stage: "sft".to_owned(),
        key: "00".repeat(32),
        attempt: 1,
        with: stage.with.clone(),
        inputs: BTreeMap::new(),
        outputs: BTreeMap::from([("model".to_owned(), "/out/model".into())]),
        resources: stage.placement.resources.clone(),
        checkpoint: stage.placement.checkpoint,
        watch: Vec::new(),
        resume: None,
        store: "/store".to_owned(),
        device: "cpu".to_owned(),
        scratch: "/scratch".into(),
        profile: None,
        provenance: spec::job::Provenance::default(),
    };
    let text = serde_json::to_string(&job).unwrap();
    assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), job);
    assert!(serde_json::from_str::<JobSpec>(&text.replace("\"attempt\"", "\"atempt\"")).is_err());
}

#[test]
fn configurations_are_typed_again() {
    let recipe = crate::load(crate::RECIPE);
    let config: sft::Sft = kinds::from_value(&recipe.stages["sft"].with).unwrap();
    let training = config.training();
    assert_eq!(
        (training.length, training.lr, training.seed),
        (Length::Steps(300), 1e-3, 17)
    );
    // what is canonical stays so
    assert_eq!(
        serde_json::to_value(&config).unwrap(),
        recipe.stages["sft"].with
    );
    let config: grpo::Grpo = kinds::from_value(&recipe.stages["grpo"].with).unwrap();
    assert_eq!(config.environment.0[0].name, "addition");
    assert!(kinds::from_value::<sft::Sft>(&json!({ "lrr": 1 })).is_err());
    assert!(kinds::from_value::<sft::Sft>(&json!({ "steps": 1, "lr": -1.0 })).is_err());
}

#[test]
fn the_trainer_identity_reads_what_the_worker_prints() {
    let printed = r#"{"version":"0.1.0","libtorch":"2.11.0","sources":"ff"}"#;
    let trainer: Trainer = serde_json::from_str(printed).unwrap();
    assert_eq!(
        (trainer.libtorch.as_str(), trainer.sources.as_str()),
        ("2.11.0", "ff")
    );
}
