//! Environments: names and options, splits, rewards, turns, mixtures, generated rows.

use crate::file;
use data::dataset::{Dataset, Row, open};
use data::env::{Addition, ENVIRONMENTS, Environment, Split, Step, Task, Turn, build, check};
use data::order::Order;
use data::synth;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

fn addition(options: Value) -> Arc<dyn Environment> {
    build(&options, None).unwrap()
}

fn rows(text: &str) -> Option<Arc<Dataset>> {
    // The map stays valid after its file is removed.
    let (_dir, path) = file("rows.jsonl", text);
    Some(Arc::new(open(&[path]).unwrap()))
}

fn reward(step: &Step, name: &str) -> f64 {
    let found: Vec<f64> = (step.rewards.iter())
        .filter(|(n, _)| n == name)
        .map(|(_, r)| *r)
        .collect();
    assert_eq!(found.len(), 1, "{step:?}");
    found[0]
}

fn correct(environment: &dyn Environment, task: &Task, completion: &str) -> bool {
    let step = environment.step(task, &[], completion).unwrap();
    assert!(step.done && step.observation.is_empty());
    reward(&step, "correct") == 1.0
}

#[test]
fn addition_grades_exactly() {
    let environment = addition(json!("addition"));
    for index in 0..200 {
        let task = environment.task(Split::Train, index, 7).unwrap();
        assert_eq!(task, environment.task(Split::Train, index, 7).unwrap());
        let text = task.messages[0].text();
        let sum: i64 = text
            .trim_end_matches('=')
            .split('+')
            .map(|n| n.parse::<i64>().unwrap())
            .sum();
        assert!(text.len() <= 6 && task.messages.len() == 1);
        assert!(correct(&*environment, &task, &format!(" {sum}\n")));
        assert!(!correct(&*environment, &task, &(sum + 1).to_string()));
        assert!(!correct(&*environment, &task, &format!("0{sum}")));
        assert!(!correct(&*environment, &task, ""));
    }
    let other = |seed, index| environment.task(Split::Train, index, seed).unwrap().id;
    assert_ne!((other(1, 0), other(1, 1)), (other(2, 0), other(2, 1)));
}

#[test]
fn held_out_problems_are_never_trained_on() {
    let environment = addition(json!("addition"));
    let ids = |split, seed| -> HashSet<String> {
        (0..3000)
            .map(|i| environment.task(split, i, seed).unwrap().id)
            .collect()
    };
    let (train, test) = (ids(Split::Train, 1), ids(Split::Test, 2));
    assert!(train.is_disjoint(&test));
    // Nor with the operands the other way round.
    let turned: HashSet<String> = (test.iter())
        .map(|id| {
            let (a, b) = id.split_once('+').unwrap();
            format!("{b}+{a}")
        })
        .collect();
    assert!(train.is_disjoint(&turned));
    // About a tenth of the 10,000 problems.
    assert!((700..1300).contains(&test.len()), "{}", test.len());
    let all = addition(json!({"name": "addition", "held_out": 0}));
    assert!(
        all.task(Split::Test, 0, 0)
            .unwrap_err()
            .to_string()
            .contains("held_out = 0")
    );
}

#[test]
fn addition_has_its_options() {
    let environment = addition(
        json!({"name": "addition", "digits": 3, "min_digits": 3, "operands": 3, "min_operands": 2, "ops": "+-*"}),
    );
    let mut seen = HashSet::new();
    for index in 0..200 {
        let task = environment.task(Split::Train, index, 1).unwrap();
        let text = task.messages[0].text();
        let numbers: Vec<&str> = text.trim_end_matches('=').split(['+', '-', '*']).collect();
        assert!(
            (2..=3).contains(&numbers.len()) && numbers.iter().all(|n| n.len() == 3),
            "{text}"
        );
        seen.extend(text.chars().filter(|c| "+-*".contains(*c)));
        // Products bind first.
        let value: i64 = text
            .trim_end_matches('=')
            .replace('-', "+-")
            .split('+')
            .map(|term| {
                let (sign, term) = term.strip_prefix('-').map_or((1, term), |t| (-1, t));
                sign * term
                    .split('*')
                    .map(|n| n.parse::<i64>().unwrap())
                    .product::<i64>()
            })
            .sum();
        assert!(
            correct(&*environment, &task, &value.to_string()),
            "{text}{value}"
        );
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn wrong_names_and_options_are_refused_with_the_nearest() {
    let data = || rows(r#"{"question": "a", "answer": "b"}"#);
    for (config, want) in [
        (
            json!("adition"),
            "there is no environment 'adition'; did you mean 'addition'?",
        ),
        (
            json!("zzzzzzzz"),
            "known: addition, exact_match, math, regex, two_turn",
        ),
        (
            json!(5),
            "an environment is a name or a table with a name, got 5",
        ),
        (json!({"digits": 2}), "an environment needs a name"),
        (json!({"name": 5}), "name must be a string, got 5"),
        (json!([]), "the list of environments is empty"),
        (
            json!({"name": "addition", "digit": 2}),
            "'addition' has no option 'digit'; did you mean 'digits'?",
        ),
        (
            json!({"name": "addition", "digits": 9}),
            "digits must be a whole number from 1 to 6, got 9",
        ),
        (
            json!({"name": "addition", "ops": "/"}),
            "ops must be some of + - *, got \"/\"",
        ),
        (
            json!({"name": "addition", "held_out": "a"}),
            "held_out must be a number from 0 to 0.9, got \"a\"",
        ),
        (
            json!({"name": "addition", "weight": -1}),
            "weight must be a number from 0 up, got -1",
        ),
        (
            json!({"name": "exact_match", "ignore_case": 1}),
            "ignore_case must be true or false, got 1",
        ),
        (
            json!({"name": "regex", "pattern": "("}),
            "pattern '(' is not valid: unclosed group",
        ),
        (
            json!({"name": "two_turn", "over": "two_turn"}),
            "cannot be built over itself",
        ),
        (
            json!({"name": "two_turn", "over": "addition", "digit": 2}),
            "'addition' has no option 'digit'",
        ),
        (
            json!(["addition", "addition"]),
            "two environments of the mixture are called 'addition'",
        ),
        (
            json!([{"name": "addition", "weight": 0}]),
            "must sum to more than 0",
        ),
    ] {
        let error = build(&config, data())
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(error.contains(want), "{config}: {error}");
        // What is wrong is found without data too.
        if config.as_array().is_none() {
            let error = check(&config)
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default();
            assert!(error.contains(want), "check of {config}: {error}");
        }
    }
    let error = build(&json!("math"), None).err().unwrap().to_string();
    assert!(
        error.contains("takes its tasks from data; give the stage a data input"),
        "{error}"
    );
}

#[test]
fn check_says_whether_data_is_needed() {
    assert!(!check(&json!("addition")).unwrap());
    assert!(check(&json!("math")).unwrap());
    assert!(check(&json!(["addition", "math"])).unwrap());
    assert!(!check(&json!("two_turn")).unwrap());
    assert!(check(&json!({"name": "two_turn", "over": "math"})).unwrap());
    assert!(ENVIRONMENTS.iter().all(|kind| !kind.about.is_empty()));
}

const GSM: &str = r#####"{"question": "2+2?", "answer": "2+2=4\n#### 4"}
{"question": "half?", "answer": "#### 0.5"}
{"question": "k?", "answer": "#### 1,000"}"#####;

#[test]
fn math_takes_rows_in_order_and_grades_values() {
    let environment = build(
        &json!({"name": "math", "system": "Think.", "instruction": "\nEnd with ####."}),
        rows(GSM),
    )
    .unwrap();
    assert_eq!(environment.len(Split::Test), Some(3));
    let task = environment.task(Split::Test, 1, 9).unwrap();
    let texts: Vec<String> = task
        .messages
        .iter()
        .map(|m| format!("{}: {}", m.role(), m.text()))
        .collect();
    assert_eq!(texts, ["system: Think.", "user: half?\nEnd with ####."]);
    assert!(correct(&*environment, &task, "so \\boxed{\\frac12}"));
    assert!(!correct(&*environment, &task, "so \\boxed{2}"));
    assert_eq!(
        environment.canonical(&task, "it is 1/2"),
        environment.canonical(&task, "#### 0.5")
    );
    // Train tasks: each row once an epoch, in the seeded order.
    let ids: Vec<String> = (0..6)
        .map(|i| environment.task(Split::Train, i, 5).unwrap().id)
        .collect();
    let want: Vec<String> = Order::new(3, 5)
        .take(0, 6)
        .iter()
        .map(|r| format!("row {}", r + 1))
        .collect();
    assert_eq!(ids, want);
}

#[test]
fn rows_without_question_or_answer_say_which_option_to_set() {
    let task =
        |config: Value, text: &str| build(&config, rows(text)).unwrap().task(Split::Test, 0, 0);
    let error = task(json!("math"), r#"{"q": "a", "a": "b"}"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(
            "rows.jsonl:1: no question in fields [q, a]; set the environment's option question"
        ),
        "{error}"
    );
    let error = task(json!("math"), r#"{"question": "a"}"#)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no reference answer"), "{error}");
    let named = json!({"name": "math", "question": "q", "answer": "a"});
    assert_eq!(
        task(named.clone(), r#"{"q": "a", "a": 5}"#).unwrap().state,
        json!({"answer": "5"})
    );
    assert!(
        task(named, r#"{"q": "a"}"#)
            .unwrap_err()
            .to_string()
            .contains("no field 'a' in [q]")
    );
    let chat = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "5"}]}"#;
    let task = task(json!("exact_match"), chat).unwrap();
    assert_eq!(
        (task.messages.len(), &task.state),
        (2, &json!({"answer": "5"}))
    );
}

#[test]
fn exact_match_and_regex_grade_text() {
    let data = || rows(r#"{"prompt": "Say hi", "answer": "Hi+"}"#);
    let exact = build(&json!("exact_match"), data()).unwrap();
    let task = exact.task(Split::Train, 0, 0).unwrap();
    assert!(correct(&*exact, &task, "Hi+ ") && !correct(&*exact, &task, "hi+"));
    let loose = build(&json!({"name": "exact_match", "ignore_case": true}), data()).unwrap();
    assert!(correct(&*loose, &task, "hi+"));
    let by_row = build(&json!("regex"), data()).unwrap();
    let task = by_row.task(Split::Train, 0, 0).unwrap();
    assert!(correct(&*by_row, &task, "oh Hiii there") && !correct(&*by_row, &task, "oh"));
    let full = build(&json!({"name": "regex", "full": true}), data()).unwrap();
    assert!(correct(&*full, &task, "Hiii") && !correct(&*full, &task, "oh Hiii"));
    let fixed = build(
        &json!({"name": "regex", "pattern": "^\\d+$"}),
        rows(r#"{"prompt": "n?"}"#),
    )
    .unwrap();
    let task = fixed.task(Split::Train, 0, 0).unwrap();
    assert!(correct(&*fixed, &task, "123") && !correct(&*fixed, &task, "12a"));
    let bad = build(&json!("regex"), rows(r#"{"prompt": "n?", "answer": "("}"#)).unwrap();
    assert!(
        bad.task(Split::Train, 0, 0)
            .unwrap_err()
            .to_string()
            .contains("rows.jsonl:1: ")
    );
}

#[test]
fn a_wrong_answer_may_be_corrected_once() {
    for (config, data) in [
        (
            json!({"name": "two_turn", "digits": 1, "feedback": "no", "penalty": 0.25}),
            None,
        ),
        (
            json!({"name": "two_turn", "feedback": "no", "penalty": 0.25}),
            rows(GSM),
        ),
    ] {
        let environment = build(&config, data).unwrap();
        assert_eq!(environment.max_turns(), 2);
        assert_eq!(environment.components(), ["correct", "retry"]);
        let task = environment.task(Split::Train, 0, 0).unwrap();
        assert_eq!(task.environment, "two_turn");
        let right = match &task.state["answer"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let step = environment.step(&task, &[], &right).unwrap();
        assert!(step.done && reward(&step, "correct") == 1.0 && reward(&step, "retry") == 0.0);
        let step = environment.step(&task, &[], "99").unwrap();
        assert!(!step.done && step.rewards.is_empty());
        assert_eq!(
            (step.observation[0].role(), step.observation[0].text()),
            ("user", "no".into())
        );
        let turns = [Turn {
            completion: "99".into(),
            observation: step.observation,
        }];
        let step = environment.step(&task, &turns, &right).unwrap();
        assert!(step.done && reward(&step, "correct") == 1.0 && reward(&step, "retry") == -0.25);
        let step = environment.step(&task, &turns, "98").unwrap();
        assert!(step.done && step.observation.is_empty() && reward(&step, "correct") == 0.0);
    }
}

#[test]
fn mixtures_keep_their_weights_and_skip_no_row() {
    let config = json!([
        {"name": "math", "weight": 3},
        {"name": "addition", "weight": 1, "digits": 1, "label": "easy"},
        {"name": "addition", "weight": 0.001, "label": "rare"},
    ]);
    let environment = build(&config, rows(GSM)).unwrap();
    let n = 2000;
    let mut counts: HashMap<String, u64> = HashMap::new();
    let mut math = Vec::new();
    for index in 0..n {
        let task = environment.task(Split::Train, index, 3).unwrap();
        *counts.entry(task.environment.clone()).or_default() += 1;
        if task.environment == "math" {
            math.push(task.id.clone());
            let answer = task.state["state"]["answer"].as_str().unwrap();
            assert!(correct(&*environment, &task, answer));
        } else {
            let answer = task.state["state"]["answer"].as_i64().unwrap();
            assert!(correct(&*environment, &task, &answer.to_string()));
        }
    }
    assert_eq!(counts.values().sum::<u64>(), n);
    assert_eq!(counts["rare"], 10);
    assert!(
        (1480..=1500).contains(&counts["math"]) && (490..=500).contains(&counts["easy"]),
        "{counts:?}"
    );
    // The rows come in their own order, none skipped, whatever is mixed in.
    let want: Vec<String> = Order::new(3, 3)
        .take(0, math.len())
        .iter()
        .map(|r| format!("row {}", r + 1))
        .collect();
    assert_eq!(math, want);
    let mut foreign = environment.task(Split::Train, 0, 3).unwrap();
    foreign.state = json!({"member": 9});
    assert!(
        environment
            .step(&foreign, &[], "1")
            .unwrap_err()
            .to_string()
            .contains("was not made by this environment")
    );
}

#[test]
fn tasks_survive_being_written_down() {
    let environment = addition(json!("two_turn"));
    let task = environment.task(Split::Test, 4, 1).unwrap();
    let text = serde_json::to_string(&task).unwrap();
    let back: Task = serde_json::from_str(&text).unwrap();
    assert_eq!(back, task);
    assert_eq!(
        environment.step(&back, &[], "0").unwrap(),
        environment.step(&task, &[], "0").unwrap()
    );
}

#[test]
fn generated_rows_have_their_share_of_wrong_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let how = synth::Rows {
        rows: 1500,
        split: Split::Train,
        noise: 1.0 / 3.0,
        seed: 4,
    };
    let of = Addition::new(2);
    synth::demonstrations(&of, &how, &path).unwrap();
    let first = std::fs::read(&path).unwrap();
    synth::demonstrations(&of, &how, &path).unwrap();
    assert_eq!(first, std::fs::read(&path).unwrap());
    let held_out: HashSet<String> = (0..2000)
        .map(|i| of.problem(Split::Test, i, 0).unwrap().text)
        .collect();
    let data = open(&[&path]).unwrap();
    let (mut wrong, mut seen) = (0, HashSet::new());
    for record in data.records() {
        let record = record.unwrap();
        assert!(matches!(
            record.parse().unwrap(),
            Row::PromptCompletion { .. }
        ));
        let field = |name: &str| record.value[name].as_str().unwrap().to_string();
        let (question, answer) = (field("question"), field("answer"));
        let problem = question.trim_end_matches('=').to_string();
        assert!(!held_out.contains(&problem));
        let sum: i64 = problem.split('+').map(|n| n.parse::<i64>().unwrap()).sum();
        if answer != sum.to_string() {
            wrong += 1;
            assert_eq!(answer.len(), sum.to_string().len(), "{question}{answer}");
            assert_eq!(answer.parse::<i64>().unwrap().to_string(), answer);
        }
        assert!(seen.insert(problem));
    }
    assert_eq!(data.len(), 1500);
    assert!((430..570).contains(&wrong), "{wrong}");
    let most = synth::Rows {
        rows: 2_000_000,
        ..how
    };
    assert!(
        synth::demonstrations(&Addition::new(1), &synth::Rows { rows: 200, ..most }, &path)
            .unwrap_err()
            .to_string()
            .contains("distinct problems")
    );
}

#[test]
fn committed_rows_are_what_the_example_writes() {
    let recipes = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/data");
    let of = Addition::new(2);
    let text = |name: &str| std::fs::read_to_string(recipes.join(name)).unwrap();
    let held_out: HashSet<String> = (0..20_000)
        .map(|i| of.problem(Split::Test, i, 0).unwrap().prompt())
        .collect();
    for (name, held) in [
        ("addition.jsonl", false),
        ("addition-preferences.jsonl", false),
        ("addition-preferences-heldout.jsonl", true),
    ] {
        let text = text(name);
        assert!(text.len() <= 200_000, "{name} has {} bytes", text.len());
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let question = row["question"].as_str().unwrap();
            assert_eq!(held_out.contains(question), held, "{name}: {question}");
            if let (Some(chosen), Some(rejected)) =
                (row["chosen"].as_str(), row["rejected"].as_str())
            {
                let sum: i64 = question
                    .trim_end_matches('=')
                    .split('+')
                    .map(|n| n.parse::<i64>().unwrap())
                    .sum();
                assert!(chosen == sum.to_string() && rejected != chosen);
            }
        }
    }
}
