//! What a run would do, asked lazily: a key needs its inputs' digests, which are known where upstream is reused.
//!
//! A result's record is enough to go on to the stages below it. Its artifacts are looked at only where something needs
//! them: at the ends of the DAG, and where a stage below has to run. So a deleted intermediate whose consumers all have
//! results costs nothing, and one that is needed re-runs its producer.

use std::fmt;
use std::sync::Arc;

use cache::{Brief, Key};
use serde::Serialize;
use spec::plan::Part;
use spec::{Difference, Plan, Preimage};

use crate::error::Error;
use crate::going_on::{GoesOn, Origin};
use crate::history::{self, Past};
use crate::options::Options;
use crate::session::{Found, Keyed, Made, Session};

/// What a run does with a stage.
#[derive(Debug, Clone)]
pub enum State {
    /// The store has its result.
    Reuse(Box<Found>),
    Run(Why),
    /// Its key depends on outputs or sources that are not known yet (their references).
    Undecided(Vec<String>),
    /// The selection does not let it run, and what needs it cannot do without.
    Missing,
    /// Not part of the plan.
    Out,
}

/// Why a stage runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Why {
    /// No earlier result of this stage is known.
    New,
    /// It differs from its last result in these fields.
    Changed {
        fields: Vec<Difference>,
    },
    /// It had a result under this very key, which is gone or does not verify.
    Gone,
    Forced,
    /// The result is there, but an artifact that is needed is not.
    Repair {
        what: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::New => f.write_str("no result yet"),
            Why::Changed { fields } if fields.is_empty() => f.write_str("no result yet"),
            Why::Changed { fields } => {
                write!(f, "{}", fields[0])?;
                if fields.len() > 1 {
                    write!(f, " and {} more", fields.len() - 1)?;
                }
                Ok(())
            }
            Why::Gone => f.write_str("its result is gone"),
            Why::Forced => f.write_str("forced"),
            Why::Repair { what } => f.write_str(what),
        }
    }
}

/// A stage as resolved.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub stage: String,
    pub state: State,
    /// Known unless the state is undecided or out.
    pub key: Option<Key>,
    pub preimage: Option<Preimage>,
    /// What earlier runs say of this stage.
    pub past: Option<Past>,
    /// The checkpoint that a run would go on from.
    pub goes_on: Option<GoesOn>,
}

/// Resolves every stage of a plan, in plan order. Starts nothing, fetches nothing, writes no lock.
pub fn resolve(plan: &Plan, options: &Options) -> Result<Vec<Resolved>, Error> {
    let session = Session::open(plan, options)?;
    let decisions = decide_all(&session)?;
    session.view.save();
    let past = history::of(&session.store, &plan.recipe.name, plan.order.len());
    let mut stages = Vec::with_capacity(plan.order.len());
    let made: Vec<Option<Arc<Brief>>> = decisions.iter().map(made_by).collect();
    for (i, (planned, decision)) in plan.order.iter().zip(decisions).enumerate() {
        let past = past.get(&planned.stage.name).cloned();
        let mut state = decision.state;
        let mut goes_on = None;
        if let (State::Run(why), Some(keyed)) = (&mut state, &decision.keyed) {
            if *why == Why::New {
                *why = explain(&session, keyed, past.as_ref())?;
            }
            if *why != Why::Forced {
                let kin = session.kin(i, &made);
                let found = Origin::of(&session.store, &planned.stage, keyed, &kin, None)?;
                goes_on = found.map(|found| found.goes_on());
            }
        }
        stages.push(Resolved {
            stage: planned.stage.name.clone(),
            state,
            key: decision.keyed.as_ref().map(|k| k.key),
            preimage: decision.keyed.map(|k| k.preimage()),
            past,
            goes_on,
        });
    }
    Ok(stages)
}

/// The result that a stage is known to have.
fn made_by(decision: &Decision) -> Option<Arc<Brief>> {
    match &decision.state {
        State::Reuse(found) => Some(found.brief.clone()),
        _ => None,
    }
}

/// What is decided about a stage.
#[derive(Debug, Clone)]
pub struct Decision {
    pub state: State,
    pub keyed: Option<Keyed>,
}

/// Decides every stage as far as upstream results allow: in waves, so that the store is asked for many at once.
pub fn decide_all(session: &Session) -> Result<Vec<Decision>, Error> {
    let order = &session.plan.order;
    let mut decisions: Vec<Option<Decision>> = vec![None; order.len()];
    let mut made: Vec<Option<Arc<Brief>>> = vec![None; order.len()];
    let mut missing: Vec<usize> = order.iter().map(|s| s.upstream.len()).collect();
    let mut wave: Vec<usize> = (0..order.len()).filter(|i| missing[*i] == 0).collect();
    while !wave.is_empty() {
        let mut next = Vec::new();
        for (i, decision) in wave.iter().zip(decide(session, &wave, &made)?) {
            made[*i] = made_by(&decision);
            decisions[*i] = Some(decision);
            for d in &order[*i].downstream {
                missing[*d] -= 1;
                if missing[*d] == 0 {
                    next.push(*d);
                }
            }
        }
        wave = next;
    }
    // the plan has no cycle, so each was in a wave
    let mut decisions: Vec<Decision> = decisions.into_iter().flatten().collect();
    look_at_artifacts(session, &mut decisions, &mut made)?;
    Ok(decisions)
}

/// From below: who needs artifacts? A producer that must repair one leaves its consumers undecided, and then they
/// may need more of their inputs; so again, until nothing changes.
fn look_at_artifacts(
    session: &Session,
    decisions: &mut [Decision],
    made: &mut Made,
) -> Result<(), Error> {
    let order = &session.plan.order;
    let mut checked = vec![false; order.len()];
    loop {
        let mut needed = Vec::new();
        for i in (0..order.len()).rev() {
            let State::Reuse(found) = &decisions[i].state else {
                continue;
            };
            let mut below = order[i]
                .downstream
                .iter()
                .filter(|d| order[**d].part != Part::Out)
                .peekable();
            let runs = |d: &usize| !matches!(decisions[*d].state, State::Reuse(_));
            let read =
                below.peek().is_none() || below.any(|d| runs(d) && session.reads(*d, i, made));
            if read && !std::mem::replace(&mut checked[i], true) {
                needed.push((i, found.brief.clone()));
            }
        }
        let briefs: Vec<&Brief> = needed.iter().map(|(_, brief)| &**brief).collect();
        let looks = session.intact(&briefs)?;
        let mut first = order.len();
        for ((i, _), look) in needed.iter().zip(looks) {
            let Err(what) = look else { continue };
            decisions[*i].state = if order[*i].part == Part::Run {
                State::Run(Why::Repair { what })
            } else {
                State::Missing
            };
            made[*i] = None;
            first = first.min(*i);
        }
        if first == order.len() {
            return Ok(());
        }
        // What is made again may come out different, so every key made from it is open, whatever was decided.
        for i in first + 1..order.len() {
            let open = order[i].upstream.iter().any(|up| made[*up].is_none());
            if open && !matches!(decisions[i].state, State::Undecided(_) | State::Out) {
                decisions[i] = decide_one(session, i, made)?;
                made[i] = None;
            }
        }
    }
}

/// Decides one stage from what is known of its inputs. Does not look at artifacts.
pub fn decide_one(session: &Session, i: usize, made: &Made) -> Result<Decision, Error> {
    let mut decided = decide(session, &[i], made)?;
    Ok(decided.remove(0))
}

/// Decides stages whose inputs do not depend on one another, in their order.
fn decide(session: &Session, stages: &[usize], made: &Made) -> Result<Vec<Decision>, Error> {
    let part = |i: &usize| session.plan.order[*i].part;
    let wanted: Vec<usize> = stages
        .iter()
        .copied()
        .filter(|i| part(i) != Part::Out)
        .collect();
    let mut keys = session.keys(&wanted, made).into_iter();
    let mut decisions = Vec::with_capacity(stages.len());
    for i in stages {
        let keyed = match part(i) {
            Part::Out => None,
            _ => keys.next(),
        };
        let (state, keyed) = match keyed {
            None => (State::Out, None),
            Some(Err(unknown)) => (State::Undecided(unknown), None),
            Some(Ok(keyed)) if session.forced(*i) => (State::Run(Why::Forced), Some(keyed)),
            Some(Ok(keyed)) if part(i) == Part::Run => (State::Run(Why::New), Some(keyed)),
            Some(Ok(keyed)) => (State::Missing, Some(keyed)),
        };
        decisions.push(Decision { state, keyed });
    }
    let open: Vec<usize> = (0..decisions.len())
        .filter(|at| matches!(decisions[*at].state, State::Run(Why::New) | State::Missing))
        .collect();
    let keyed: Vec<&Keyed> = open
        .iter()
        .filter_map(|at| decisions[*at].keyed.as_ref())
        .collect();
    let found = session.find(&keyed)?;
    for (at, found) in open.into_iter().zip(found) {
        if let Some(found) = found {
            decisions[at].state = State::Reuse(Box::new(found));
        }
    }
    Ok(decisions)
}

/// Why a stage without a result has none: what changed since its last one.
pub fn explain(session: &Session, keyed: &Keyed, past: Option<&Past>) -> Result<Why, Error> {
    let Some(last) = past
        .and_then(|p| p.key.as_ref())
        .and_then(|k| k.parse::<Key>().ok())
    else {
        return Ok(Why::New);
    };
    if last == keyed.key {
        return Ok(Why::Gone);
    }
    let Some((_, record)) = session.store.current(&last)? else {
        return Ok(Why::New);
    };
    Ok(match Preimage::parse(&record.preimage) {
        Ok(earlier) => Why::Changed {
            fields: keyed.preimage().diff(&earlier),
        },
        Err(_) => Why::New,
    })
}
