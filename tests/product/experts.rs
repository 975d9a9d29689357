//! A mixture of experts through the binaries: balanced, replayed, resumed, exported.

use product_tests::{Project, kill, processes, wait_for};

#[test]
fn every_stage_takes_a_mixture_of_experts() {
    let project = Project::of("experts");
    project.recipe(&["run", "recipe.toml"]).expect(0);
    for stage in ["sft", "dpo", "grpo"] {
        let metrics = project.metrics(stage);
        let last = &metrics.last().expect("a step")["metrics"];
        let value = |name: &str| {
            let value = last[name].as_f64();
            value.unwrap_or_else(|| panic!("{stage} says no {name}: {last}"))
        };
        // two of four experts: 2 when even, at most 4
        let balance = value("train/aux_loss");
        assert!((1.5..4.0).contains(&balance), "{stage}: {balance}");
        let load = value("train/expert_load_max");
        assert!((1.0..=2.0).contains(&load), "{stage}: {load}");
        assert!(value("train/experts_idle") < 1.0);
    }
    // sampler and trainer agree, since the trainer sends tokens where the sampler did
    for line in project.metrics("grpo") {
        if let Some(error) = line["metrics"]["train/token_mult_prob_error"].as_f64() {
            assert!(error < 1.0001, "{line}");
        }
    }
    let to = project.path("exported").display().to_string();
    let get = ["get", "recipe.toml", "export.model", "--to", &to];
    project.recipe(&get).expect(0);
    let config = project.read("exported/config.json");
    assert!(config.contains("\"num_experts\": 4"), "{config}");
    assert!(config.contains("Qwen3MoeForCausalLM"), "{config}");
}

#[test]
fn a_killed_run_replays_to_the_same_bits() {
    let args = ["run", "recipe.toml", "grpo", "-S", "steps=60"];
    let outputs = |project: &Project| {
        let run = project.json(&args);
        let stages = run["stages"].as_array().expect("stages").iter();
        stages.map(|s| s["outputs"].to_string()).collect::<Vec<_>>()
    };
    let whole = Project::of("experts");
    let want = outputs(&whole);
    let project = Project::of("experts");
    let all = [&args[..], &["--events", "events.jsonl"]].concat();
    let mut child = project.start(&all);
    wait_for("a checkpoint of grpo", || {
        assert!(
            child.try_wait().expect("a child").is_none(),
            "it ended before"
        );
        let text = std::fs::read_to_string(project.path("events.jsonl")).unwrap_or_default();
        let mut events = text
            .lines()
            .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        events
            .any(|e| e["event"] == "checkpoint" && e["stage"] == "grpo")
            .then_some(())
    });
    kill(child.id() as i32);
    let _ = child.wait();
    let needle = project.path("").display().to_string();
    wait_for("end of all processes", || {
        processes(needle.trim_end_matches('/'))
            .is_empty()
            .then_some(())
    });
    assert_eq!(outputs(&project), want);
}

#[test]
fn what_only_experts_have_is_refused_without_them() {
    let project = Project::of("experts");
    project.edit("recipe.toml", "qwen3_moe", "qwen3");
    let ended = project.recipe(&["run", "recipe.toml", "base"]).expect(2);
    assert!(
        ended.stderr.contains("qwen3 has no experts"),
        "{}",
        ended.stderr
    );
    for size in [
        "with.experts = 4\n",
        "with.experts_per_token = 2\n",
        "with.expert_size = 24\n",
    ] {
        project.edit("recipe.toml", size, "");
    }
    let ended = project.recipe(&["run", "recipe.toml", "sft"]).expect(2);
    let says = "router_aux_loss_coef is 0.01, but this qwen3 has no experts";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
}
