//! What differs between two versions of a source: files, and rows of those whose rows were kept.

use runner::content::{Content, File};
use serde::Serialize;

/// Rows that are named; of more, how many.
const NAMED: usize = 5;
/// Rows between the first and the last difference that are aligned; more are told by number only.
const ALIGNED: usize = 3000;

/// How a file of a source changed.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    Added,
    Removed,
    /// Its bytes differ; its rows were not kept.
    Bytes,
    /// Numbers of rows, from 1, in the version that has them.
    Rows {
        changed: Vec<usize>,
        removed: Vec<usize>,
        added: Vec<usize>,
    },
}

/// The files that differ, by path.
pub fn changes(before: &Content, now: &Content) -> Vec<(String, Change)> {
    let of = |all: &'_ Content, path: &str| all.files.iter().position(|f| f.path == path);
    let mut out = Vec::new();
    for old in &before.files {
        match of(now, &old.path).map(|at| &now.files[at]) {
            None => out.push((old.path.clone(), Change::Removed)),
            Some(new) if new.blob != old.blob => out.push((old.path.clone(), changed(old, new))),
            Some(_) => {}
        }
    }
    let new = now.files.iter().filter(|f| of(before, &f.path).is_none());
    out.extend(new.map(|f| (f.path.clone(), Change::Added)));
    out
}

fn changed(old: &File, new: &File) -> Change {
    let (Some(a), Some(b)) = (old.rows(), new.rows()) else {
        return Change::Bytes;
    };
    let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (a_rest, b_rest) = (&a[same..], &b[same..]);
    let tail = a_rest.iter().rev().zip(b_rest.iter().rev());
    let end = tail.take_while(|(x, y)| x == y).count();
    let (a_mid, b_mid) = (&a_rest[..a_rest.len() - end], &b_rest[..b_rest.len() - end]);
    let (gone, come) = match a_mid.len().max(b_mid.len()) <= ALIGNED {
        true => unaligned(a_mid, b_mid),
        false => ((0..a_mid.len()).collect(), (0..b_mid.len()).collect()),
    };
    let number = |at: &usize| same + at + 1;
    // as many rows gone as come at one place: the rows of that place were changed
    if gone == come {
        let changed = gone.iter().map(number).collect();
        let (removed, added) = (Vec::new(), Vec::new());
        return Change::Rows {
            changed,
            removed,
            added,
        };
    }
    Change::Rows {
        changed: Vec::new(),
        removed: gone.iter().map(number).collect(),
        added: come.iter().map(number).collect(),
    }
}

/// Places of what has no partner in a longest common subsequence.
fn unaligned(a: &[&str], b: &[&str]) -> (Vec<usize>, Vec<usize>) {
    let width = b.len() + 1;
    let mut longest = vec![0u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = match a[i] == b[j] {
                true => longest[(i + 1) * width + j + 1] + 1,
                false => longest[(i + 1) * width + j].max(longest[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j, mut gone, mut come) = (0, 0, Vec::new(), Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == b.len()
            || (i < a.len() && longest[(i + 1) * width + j] >= longest[i * width + j + 1])
        {
            gone.push(i);
            i += 1;
        } else {
            come.push(j);
            j += 1;
        }
    }
    (gone, come)
}

impl Change {
    /// `row 3 changed`, `rows 5, 9 added`.
    pub fn words(&self) -> String {
        match self {
            Self::Added => "the file is new".to_owned(),
            Self::Removed => "the file is gone".to_owned(),
            Self::Bytes => "its bytes differ".to_owned(),
            Self::Rows {
                changed,
                removed,
                added,
            } => {
                let kinds = [(changed, "changed"), (removed, "removed"), (added, "added")];
                let told = kinds.iter().filter(|(rows, _)| !rows.is_empty());
                let told: Vec<_> = told
                    .map(|(rows, what)| format!("{} {what}", named(rows)))
                    .collect();
                match told.is_empty() {
                    true => "its rows are equal, the bytes between them differ".to_owned(),
                    false => told.join(", "),
                }
            }
        }
    }
}

fn named(rows: &[usize]) -> String {
    let first: Vec<_> = rows.iter().take(NAMED).map(usize::to_string).collect();
    let more = match rows.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let word = if rows.len() == 1 { "row" } else { "rows" };
    format!("{word} {}{more}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> Content {
        let file = File::of(
            "data.jsonl".into(),
            text.len() as u64,
            text.to_owned(),
            text.as_bytes(),
        );
        Content {
            version: 1,
            source: "chat".into(),
            files: vec![file],
        }
    }

    fn words(a: &str, b: &str) -> String {
        changes(&content(a), &content(b))
            .iter()
            .map(|(_, c)| c.words())
            .collect()
    }

    #[test]
    fn rows_are_named_as_they_stand_in_their_file() {
        assert_eq!(words("a\nb\nc\n", "a\nB\nc\n"), "row 2 changed");
        assert_eq!(words("a\nb\nc\nd\n", "a\nB\nc\nD\n"), "rows 2, 4 changed");
        assert_eq!(words("a\nb\nc\n", "a\nb\nx\ny\nc\n"), "rows 3, 4 added");
        assert_eq!(words("a\nb\nc\n", "b\nc\n"), "row 1 removed");
        assert_eq!(
            words("a\nb\nc\nd\n", "x\na\nb\nd\n"),
            "row 3 removed, row 1 added"
        );
        assert_eq!(
            words("a\nb", "a\nb\n"),
            "its rows are equal, the bytes between them differ"
        );
        assert_eq!(words("a\n", "a\n"), "");
        let many: String = (0..9).map(|i| format!("{i}\n")).collect();
        assert_eq!(words("", &many), "rows 1, 2, 3, 4, 5 and 4 more added");
    }
}
