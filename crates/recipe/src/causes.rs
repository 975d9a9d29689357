//! Why stages are not decided yet: the way up to what will run.

use runner::{Resolved, State};
use serde_json::{Value, json};
use spec::{Plan, Recipe};

/// Names shown of a long way; the middle is left out.
const SHOWN: usize = 6;

/// A way from a stage up to one that will run, or that cannot be decided without a source.
pub struct Cause<'a> {
    /// Stages from the one asked about to the cause.
    pub path: Vec<&'a str>,
    /// What is so about the last of them.
    pub what: String,
}

impl Cause<'_> {
    /// `grpo <- sft: with.lr 0.001 -> 0.002`.
    pub fn text(&self) -> String {
        let n = self.path.len();
        let shown = if n > SHOWN {
            let (first, last) = (&self.path[..SHOWN / 2], &self.path[n - SHOWN / 2..]);
            let middle = format!("({} more)", n - SHOWN);
            [first, &[middle.as_str()], last].concat().join(" <- ")
        } else {
            self.path.join(" <- ")
        };
        format!("{shown}: {}", self.what)
    }

    pub fn json(&self) -> Value {
        json!({ "path": self.path, "what": self.what })
    }
}

/// All causes of a stage, the nearest first; one way to each.
pub fn of<'a>(plan: &Plan, stages: &'a [Resolved], stage: usize) -> Vec<Cause<'a>> {
    // where each stage was met from, breadth first: the ways are the shortest
    let mut from: Vec<Option<usize>> = vec![None; stages.len()];
    let mut queue = std::collections::VecDeque::from([stage]);
    let mut causes = Vec::new();
    while let Some(i) = queue.pop_front() {
        if let Some(what) = own(&stages[i]) {
            let mut path = vec![stages[i].stage.as_str()];
            let mut at = i;
            while let Some(below) = from[at] {
                path.push(&stages[below].stage);
                at = below;
            }
            path.reverse();
            causes.push(Cause { path, what });
        }
        if !matches!(stages[i].state, State::Undecided(_)) {
            continue;
        }
        for up in &plan.order[i].upstream {
            let open = !matches!(stages[*up].state, State::Reuse(_) | State::Out);
            if open && *up != stage && from[*up].is_none() {
                from[*up] = Some(i);
                queue.push_back(*up);
            }
        }
    }
    causes
}

/// The first cause of every undecided stage, in plan order, without its own name: `<- sft: ..`.
pub fn first_of_each(plan: &Plan, stages: &[Resolved]) -> Vec<Option<String>> {
    // each stage is after what it reads, so the way from there is known
    let mut ways: Vec<Option<(usize, Option<usize>)>> = Vec::with_capacity(stages.len());
    for (i, stage) in stages.iter().enumerate() {
        let way = match own(stage) {
            Some(_) => Some((i, None)),
            None => plan.order[i]
                .upstream
                .iter()
                .find_map(|up| ways[*up].map(|(root, _)| (root, Some(*up)))),
        };
        ways.push(way);
    }
    let text = |i: usize| {
        let (root, up) = ways[i]?;
        let mut path = Vec::new();
        let mut at = up;
        while let Some(above) = at {
            path.push(stages[above].stage.as_str());
            // a way of thousands is not told whole
            if path.len() > SHOWN && above != root {
                path.truncate(SHOWN - 1);
                path.push("..");
                path.push(&stages[root].stage);
                break;
            }
            at = ways[above].and_then(|(_, up)| up);
        }
        let what = own(&stages[root])?;
        Some(match path.is_empty() {
            true => what,
            false => format!("<- {}: {what}", path.join(" <- ")),
        })
    };
    let undecided = |i: &usize| matches!(stages[*i].state, State::Undecided(_));
    (0..stages.len())
        .map(|i| Some(i).filter(undecided).and_then(text))
        .collect()
}

/// What about a stage keeps those below it from being decided, if it is not what is above.
fn own(stage: &Resolved) -> Option<String> {
    match &stage.state {
        State::Run(why) => Some(why.to_string()),
        State::Missing => Some("not selected, and not in the store".to_owned()),
        State::Undecided(waits) => {
            let source = waits.iter().find(|w| w.starts_with("source."))?;
            Some(format!("{source} is not fetched yet"))
        }
        State::Reuse(_) | State::Out => None,
    }
}

/// What a stage says that is no part of its key.
pub fn ignored(recipe: &Recipe, stage: &str) -> Vec<&'static str> {
    let keys = spec::UNKEYED.into_iter();
    keys.filter(|key| recipe.says(stage, key)).collect()
}
