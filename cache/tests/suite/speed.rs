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
        for i in 0..stages {
            let (_, record) = store.current(&key(i)).unwrap().unwrap();
            assert!(
                store
                    .artifact_intact(&record.outputs["out"])
                    .unwrap()
                    .is_yes()
            );
        }
        began.elapsed()
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
