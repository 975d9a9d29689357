//! Asking costs next to nothing.

use std::time::{Duration, Instant};

use cache::Store;

use super::common::*;

#[test]
fn asking_for_what_is_there_is_quick() {
    let place = local();
    let stages = 200;
    {
        let store = place.store();
        for i in 0..stages {
            run(&store, i, place.folder.path()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(40));
        store.flush().unwrap();
    }
    let ask = |stages: usize| {
        let began = Instant::now();
        let store = Store::open_local(&place.root()).unwrap();
        let view = store.view("test", stages);
        let keys: Vec<_> = (0..stages).map(key).collect();
        let found = view.current(&keys).unwrap();
        let artifacts: Vec<_> = found
            .iter()
            .map(|brief| brief.as_ref().unwrap().outputs["out"])
            .collect();
        assert!(view.intact(&artifacts).unwrap().iter().all(|i| i.is_yes()));
        let took = began.elapsed();
        view.save();
        took
    };
    let best = |stages| (0..20).map(|_| ask(stages)).min().unwrap();
    let (ten, all) = (best(10), best(stages));
    println!("no-op of 10 stages {ten:?}, of {stages} {all:?}");
    assert!(ten < Duration::from_millis(5), "10 stages took {ten:?}");
    assert!(
        all < Duration::from_millis(40),
        "{stages} stages took {all:?}"
    );
}
