//! Faults on purpose, for tests: `RECIPE_FAULT=POINT:N` kills the runner at the Nth visit of a named point.
//!
//! `RECIPE_FAULT=POINT:N:ACTION` does something else there: `stop` sends the runner SIGSTOP; `gang`, at the points that
//! follow an attempt's processes, kills those. Without the variable a point costs the look at a flag. It is compiled into
//! every build, so that what is tested is what is shipped; a value that names no point is refused.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Error;

/// The variable's name.
pub const VARIABLE: &str = "RECIPE_FAULT";

/// Every point, in the order of a run.
pub const POINTS: [&str; 14] = [
    "recorded",
    "decided",
    "claimed",
    "provided",
    "launched",
    "worker-started",
    "worker-step",
    "worker-checkpoint",
    "worker-finished",
    "ended",
    "ingested",
    "published",
    "told",
    "saved",
];

/// What a visit of a point asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ask {
    Nothing,
    /// Kill the attempt's processes.
    KillGang,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Action {
    Kill,
    Stop,
    Gang,
}

struct Armed {
    point: &'static str,
    visit: u32,
    action: Action,
    visits: AtomicU32,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Reads the variable; call once, before the first point.
pub fn arm() -> Result<(), Error> {
    let Ok(text) = std::env::var(VARIABLE) else {
        ARMED.get_or_init(|| None);
        return Ok(());
    };
    let armed = parse(&text).ok_or_else(|| Error::Usage {
        message: format!("{VARIABLE} is '{text}', which names no fault"),
        help: Some(format!(
            "unset it; tests set POINT:N or POINT:N:ACTION, where POINT is one of {}",
            POINTS.join(", ")
        )),
    })?;
    ARMED.get_or_init(|| Some(armed));
    Ok(())
}

fn parse(text: &str) -> Option<Armed> {
    let mut parts = text.split(':');
    let name = parts.next()?;
    let point = POINTS.iter().find(|point| **point == name)?;
    let visit = parts.next()?.parse().ok().filter(|n| *n > 0)?;
    let action = match parts.next() {
        None => Action::Kill,
        Some("stop") => Action::Stop,
        Some("gang") if name.starts_with("worker-") || name == "launched" => Action::Gang,
        Some(_) => return None,
    };
    let armed = Armed {
        point,
        visit,
        action,
        visits: AtomicU32::new(0),
    };
    parts.next().is_none().then_some(armed)
}

/// A visit of a point.
pub fn at(point: &'static str) -> Ask {
    debug_assert!(POINTS.contains(&point));
    let Some(Some(armed)) = ARMED.get() else {
        return Ask::Nothing;
    };
    if armed.point != point || armed.visits.fetch_add(1, Ordering::SeqCst) + 1 != armed.visit {
        return Ask::Nothing;
    }
    let signal = match armed.action {
        Action::Gang => return Ask::KillGang,
        Action::Kill => libc::SIGKILL,
        Action::Stop => libc::SIGSTOP,
    };
    // SAFETY: plain raise(3). To this thread, which must not go on to the next line while another takes the signal.
    unsafe { libc::raise(signal) };
    Ask::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_exactly() {
        for point in POINTS {
            let armed = parse(&format!("{point}:2")).unwrap();
            assert_eq!(
                (armed.point, armed.visit, armed.action),
                (point, 2, Action::Kill)
            );
        }
        assert_eq!(parse("ended:1:stop").unwrap().action, Action::Stop);
        assert_eq!(parse("worker-step:1:gang").unwrap().action, Action::Gang);
        for bad in [
            "",
            "ended",
            "ended:0",
            "ended:x",
            "nowhere:1",
            "ended:1:gang",
            "ended:1:stop:2",
            "ended:1:",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
