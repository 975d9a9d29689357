//! What a recording holds, and how it is written. A process has one recorder, so this is one test after the other.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use trace::{Category, Mark, Recording};

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn recorded(work: impl FnOnce()) -> Recording {
    trace::start(Device::Cpu).expect("a CPU needs nothing");
    work();
    trace::stop().expect("was started")
}

fn written(recording: &Recording, rank: usize) -> Value {
    let mut out = Vec::new();
    recording
        .write(&mut out, rank, &[("stage", "s\"ft".into())])
        .expect("memory");
    serde_json::from_slice(&out).expect("JSON")
}

/// The complete events, by name.
fn slices(trace: &Value) -> Vec<&Value> {
    let events = trace["traceEvents"].as_array().expect("events").iter();
    events.filter(|e| e["ph"] == "X").collect()
}

fn named<'a>(trace: &'a Value, name: &str) -> Vec<&'a Value> {
    let all = slices(trace);
    all.into_iter().filter(|e| e["name"] == name).collect()
}

/// Begin and end in nanoseconds.
fn times(event: &Value) -> (i64, i64) {
    let nanoseconds =
        |field: &str| (event[field].as_f64().expect("a number") * 1000.0).round() as i64;
    let ts = nanoseconds("ts");
    (ts, ts + nanoseconds("dur"))
}

fn within(inner: &Value, outer: &Value) -> bool {
    let (a, b) = (times(inner), times(outer));
    inner["tid"] == outer["tid"] && b.0 <= a.0 && a.1 <= b.1
}

#[test]
fn nothing_is_recorded_unless_started() {
    let _alone = alone();
    assert!(!trace::on());
    drop(trace::phase("forward").with("rows", 3usize));
    let never = trace::span_named(Category::Kernel, || panic!("the name is not made"));
    drop(never);
    assert!(trace::stop().is_none());
    // what began before a recording, and what ends after it, are not of it
    let before = trace::phase("before");
    let mut after = None;
    let recording = recorded(|| {
        drop(before);
        after = Some(trace::phase("after"));
    });
    drop(after);
    assert!(recording.is_empty() && !trace::on());
    assert!(trace::stop().is_none(), "it was taken");
}

#[test]
fn spans_lie_within_one_another_and_operators_within_them() {
    let _alone = alone();
    let x = Tensor::randn([256, 256], (Kind::Float, Device::Cpu));
    let recording = recorded(|| {
        let _step = trace::span_named(Category::Step, || format!("step {}", 7));
        let forward = trace::phase("forward")
            .with("tokens", 42usize)
            .with("why", "\"because\"");
        let y = {
            let _kernel = trace::kernel("twice");
            x.matmul(&x)
        };
        drop(forward);
        let _backward = trace::phase("backward");
        assert!(
            y.linear(&x, None::<&Tensor>)
                .sum(Kind::Float)
                .double_value(&[])
                .is_finite()
        );
    });
    let trace = written(&recording, 3);
    assert_eq!(trace["otherData"]["stage"], "s\"ft");
    assert_eq!(trace["otherData"]["slices"], recording.len());
    let one = |name: &str| match named(&trace, name)[..] {
        [slice] => slice,
        ref other => panic!("{} slices '{name}'", other.len()),
    };
    let (step, forward, kernel) = (one("step 7"), one("forward"), one("twice"));
    assert!(within(forward, step) && within(kernel, forward));
    assert!(within(one("aten::matmul"), kernel));
    assert!(within(one("aten::linear"), one("backward")));
    assert!(named(&trace, "aten::addmm").is_empty() && named(&trace, "aten::mm").is_empty());
    assert_eq!(
        (
            &forward["args"]["tokens"],
            &forward["args"]["why"],
            &forward["cat"]
        ),
        (&42.into(), &"\"because\"".into(), &"phase".into())
    );
    assert_eq!(one("aten::matmul")["cat"], "operator");
    assert!(
        slices(&trace)
            .iter()
            .all(|e| e["pid"] == 3 && e["tid"] == step["tid"])
    );
}

#[test]
fn laps_follow_one_another_to_the_nanosecond() {
    let _alone = alone();
    let mut seconds = 0.0;
    let recording = recorded(|| {
        let start = Mark::now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let middle = Mark::now();
        trace::lap(Category::Phase, "data", &start, &middle);
        trace::lap(Category::Phase, "train", &middle, &Mark::now());
        seconds = middle.since(&start);
    });
    let trace = written(&recording, 0);
    let (data, train) = (
        times(named(&trace, "data")[0]),
        times(named(&trace, "train")[0]),
    );
    assert_eq!(data.1, train.0);
    assert!(
        ((data.1 - data.0) as f64 - seconds * 1e9).abs() < 2.0,
        "{data:?} {seconds}"
    );
}

#[test]
fn what_crosses_gets_lanes_and_threads_their_names() {
    let _alone = alone();
    let recording = recorded(|| {
        let one = trace::Beside::new(Category::Collective, "all_gather").with("bytes", 8usize);
        let wait = || std::thread::sleep(std::time::Duration::from_millis(1));
        wait();
        let two = trace::Beside::new(Category::Collective, "reduce_scatter");
        wait();
        drop(one);
        wait();
        drop(two);
        wait();
        drop(trace::Beside::new(Category::Collective, "send"));
        let other = std::thread::Builder::new().name("other".into());
        let other = other.spawn(|| drop(trace::phase("there")));
        other.expect("a thread").join().expect("ends");
    });
    let trace = written(&recording, 2);
    let thread = |name: &str| {
        let tid = &named(&trace, name)[0]["tid"];
        let events = trace["traceEvents"].as_array().expect("events");
        let is = |e: &&Value| e["name"] == "thread_name" && e["tid"] == *tid;
        events.iter().find(is).expect("a name")["args"]["name"].clone()
    };
    assert_eq!(thread("all_gather"), "collectives");
    assert_eq!(thread("reduce_scatter"), "collectives (2)");
    assert_eq!(
        thread("send"),
        "collectives",
        "the first lane is free again"
    );
    assert_eq!(thread("there"), "other");
    assert!(
        named(&trace, "there")[0]["tid"].as_u64() > Some(2000),
        "numbers of rank 2"
    );
}
