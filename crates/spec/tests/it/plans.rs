//! Order and selections.

use crate::{RECIPE, load};
use spec::plan::Part;
use spec::{Plan, Selection, codes};

fn parts(selection: Selection) -> Vec<(String, Part)> {
    let plan = Plan::new(load(RECIPE), &selection).unwrap();
    plan.order
        .iter()
        .map(|s| (s.stage.name.clone(), s.part))
        .collect()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

fn is(parts: &[(String, Part)], wanted: [Part; 4]) {
    let found: Vec<Part> = parts.iter().map(|(_, p)| *p).collect();
    assert_eq!(found, wanted, "of {parts:?}");
}

#[test]
fn stages_come_after_what_they_read() {
    let reordered = {
        let at = RECIPE.find("[stage.convert]").unwrap();
        let end = RECIPE.find("[stage.sft]").unwrap();
        let convert = &RECIPE[at..end];
        RECIPE
            .replace(convert, "")
            .replace("[profile.ci]", &format!("{convert}\n[profile.ci]"))
    };
    let plan = Plan::new(load(&reordered), &Selection::default()).unwrap();
    let order: Vec<_> = plan.order.iter().map(|s| s.stage.name.as_str()).collect();
    assert_eq!(order, ["convert", "sft", "grpo", "eval"]);
    assert_eq!(plan.order[1].upstream, [0]);
    assert_eq!(plan.order[0].downstream, [1]);
}

#[test]
fn selections() {
    use Part::{Out, Reuse, Run};
    is(&parts(Selection::default()), [Run; 4]);
    is(
        &parts(Selection {
            targets: names(&["sft"]),
            ..Default::default()
        }),
        [Run, Run, Out, Out],
    );
    is(
        &parts(Selection {
            only: names(&["grpo"]),
            ..Default::default()
        }),
        [Reuse, Reuse, Run, Out],
    );
    is(
        &parts(Selection {
            from: names(&["grpo"]),
            ..Default::default()
        }),
        [Reuse, Reuse, Run, Run],
    );
    is(
        &parts(Selection {
            skip: names(&["sft"]),
            ..Default::default()
        }),
        [Run, Reuse, Run, Run],
    );
    let both = Selection {
        from: names(&["sft"]),
        targets: names(&["grpo"]),
        ..Default::default()
    };
    is(&parts(both), [Reuse, Run, Run, Out]);
}

#[test]
fn unknown_stages_are_named() {
    let error = Plan::new(
        load(RECIPE),
        &Selection {
            skip: names(&["stf"]),
            ..Default::default()
        },
    )
    .unwrap_err();
    assert_eq!(error.code, codes::SELECTION);
    assert!(error.help.contains("did you mean 'sft'"), "{}", error.help);
}

#[test]
fn long_chains_and_wide_fans_are_planned() {
    let mut text = "[recipe]\nname = \"many\"\nschema = 1\n[source.x]\npath = \"x\"\n".to_owned();
    let last = 3000;
    // written from the last to the first, so that the order is not the file's
    for i in (0..=last).rev() {
        let input = if i == 0 {
            "source.x".to_owned()
        } else {
            format!("s{}.out", i - 1)
        };
        text.push_str(&format!("[stage.s{i}]\nkind = \"command\"\nin.a = \"{input}\"\ncmd = [\"true\"]\nout = [\"out\"]\n"));
    }
    let plan = Plan::new(load(&text), &Selection::default()).unwrap();
    assert!(
        plan.order
            .iter()
            .enumerate()
            .all(|(i, s)| s.stage.name == format!("s{i}"))
    );
}
