//! What a run would cost, from what its stages took before, and `--max-cost`, which refuses to start
//! one that would cost more.
//!
//! | a stage that would run | is priced at |
//! |---|---|
//! | has run before | what that took; in proportion where only `steps` differ, or a checkpoint is there to go on from |
//! | has not, and has a `timeout` | at most the timeout, for every attempt that `retry` allows, on all cores and its GPUs |
//! | else | nothing is known, so it is not started under `--max-cost` |
//!
//! Stages whose key is not known yet are counted as if they ran. Times are those of stages, one after
//! the other.

use std::fmt;
use std::str::FromStr;

use cache::Cost;
use runner::{Resolved, State, Why};
use spec::Plan;

use crate::fail::Fail;
use crate::format::{duration, table};
use crate::spending;

/// What is limited or paid for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// Wall-clock time.
    Time,
    Cpu,
    Gpu,
}

impl Measure {
    fn seconds(self, cost: &Cost) -> f64 {
        match self {
            Self::Time => cost.seconds,
            Self::Cpu => cost.cpu_seconds,
            Self::Gpu => cost.gpu_seconds,
        }
    }

    /// A measure and its unit in seconds: `gpuh`, `cpumin`, `h`.
    fn parse(unit: &str) -> Option<(Measure, f64)> {
        let (measure, time) = match unit.get(..3) {
            Some("gpu") => (Self::Gpu, &unit[3..]),
            Some("cpu") => (Self::Cpu, &unit[3..]),
            _ => (Self::Time, unit),
        };
        let scale = match time {
            "s" => 1.0,
            "min" | "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return None,
        };
        Some((measure, scale))
    }
}

/// `2gpuh`, `90min`, `1.5cpuh` or `20USD`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    text: String,
    amount: Amount,
}

#[derive(Clone, Debug, PartialEq)]
enum Amount {
    Seconds(Measure, f64),
    Money(String, f64),
}

/// `2.10USD/gpuh`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    currency: String,
    per_second: f64,
    measure: Measure,
}

const LIMIT: &str = "write it like 2gpuh, 90min, 1.5cpuh or, with --rate, 20USD";
const RATE: &str = "write it like 2.10USD/gpuh";

/// A number and the unit behind it.
fn quantity(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let amount = text[..end].parse::<f64>().ok()?;
    Some((amount, text[end..].trim()))
}

/// Capital letters, as ISO 4217 has them.
fn is_currency(text: &str) -> bool {
    text.len() == 3 && text.bytes().all(|b| b.is_ascii_uppercase())
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        let (amount, unit) = quantity(text).ok_or(LIMIT)?;
        let amount = match Measure::parse(unit) {
            Some((measure, scale)) => Amount::Seconds(measure, amount * scale),
            None if is_currency(unit) => Amount::Money(unit.to_owned(), amount),
            None => return Err(LIMIT.to_owned()),
        };
        let text = text.to_owned();
        Ok(Limit { text, amount })
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let (price, unit) = text.split_once('/').ok_or(RATE)?;
        let (price, currency) = quantity(price).ok_or(RATE)?;
        let (measure, scale) = Measure::parse(unit).ok_or(RATE)?;
        if !is_currency(currency) {
            return Err(RATE.to_owned());
        }
        Ok(Rate {
            currency: currency.to_owned(),
            per_second: price / scale,
            measure,
        })
    }
}

/// What a stage that would run is expected to cost.
pub struct Price {
    pub stage: String,
    /// None where nothing is known.
    pub cost: Option<Cost>,
    /// How that is known.
    basis: String,
}

/// What the stages of a plan that would run are expected to cost.
pub struct Estimate(pub Vec<Price>);

impl Estimate {
    /// From a resolved plan. `gpus`: whether accelerated stages would take GPUs.
    pub fn of(plan: &Plan, stages: &[Resolved], gpus: bool) -> Estimate {
        let ahead = plan.order.iter().zip(stages);
        let ahead = ahead.filter(|(_, s)| matches!(s.state, State::Run(_) | State::Undecided(_)));
        Estimate(
            ahead
                .map(|(planned, resolved)| price(&planned.stage, resolved, gpus))
                .collect(),
        )
    }

    /// The sum of what is known.
    pub fn known(&self) -> Cost {
        let mut all = Cost::default();
        self.0
            .iter()
            .filter_map(|p| p.cost)
            .for_each(|cost| all += cost);
        all
    }

    /// Refuses what would cost more than a limit, or may.
    pub fn within(&self, limits: &[Limit], rates: &[Rate]) -> Result<(), Fail> {
        let refuse = |why: String| {
            Err(Fail::Other {
                code: spec::codes::COST,
                exit: 2,
                message: format!("not started: {why}\n{self}"),
                help: "--yes starts it all the same; `recipe plan` says why each stage would run"
                    .to_owned(),
            })
        };
        let known = self.known();
        for limit in limits {
            let (cost, most, shown) = match &limit.amount {
                Amount::Seconds(measure, most) => {
                    let seconds = measure.seconds(&known);
                    let what = match measure {
                        Measure::Time => duration(seconds),
                        Measure::Cpu => spending::hours(seconds, "CPU"),
                        Measure::Gpu => spending::hours(seconds, "GPU"),
                    };
                    (seconds, *most, what)
                }
                Amount::Money(currency, most) => {
                    let mut of_it = rates.iter().filter(|r| r.currency == *currency).peekable();
                    if of_it.peek().is_none() {
                        return Err(Fail::usage(
                            format!("--max-cost {}: nothing costs {currency}", limit.text),
                            format!("say what does, such as --rate 2.10{currency}/gpuh"),
                        ));
                    }
                    let cost = of_it
                        .map(|r| r.per_second * r.measure.seconds(&known))
                        .sum();
                    (cost, *most, format!("{cost:.2} {currency}"))
                }
            };
            if cost > most {
                let limit = &limit.text;
                return refuse(format!("it would cost {shown}, --max-cost is {limit}"));
            }
        }
        match self.0.iter().find(|p| p.cost.is_none()) {
            Some(price) => refuse(format!(
                "what stage '{}' costs is not known, so it may be more than --max-cost",
                price.stage
            )),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |p: &Price| {
            let cost = p.cost.as_ref().map_or("?".to_owned(), spending::cost);
            vec![format!("  {}", p.stage), cost, p.basis.clone()]
        };
        let rows: Vec<Vec<String>> = self.0.iter().map(row).collect();
        f.write_str(&table(&rows))
    }
}

fn price(stage: &spec::Stage, resolved: &Resolved, gpus: bool) -> Price {
    let (cost, basis) = match resolved.past.as_ref().and_then(|p| p.cost) {
        Some(past) => {
            let (part, why) = part(resolved);
            (Some(scaled(past, part)), format!("as last time{why}"))
        }
        None => match stage.placement.timeout {
            Some(timeout) => {
                let attempts = f64::from(stage.placement.retry.max) + 1.0;
                let seconds = timeout.as_secs_f64() * attempts;
                let ranks = f64::from(stage.placement.resources.ranks);
                let accelerated = gpus && stage.kind.accelerated;
                let cost = Cost {
                    seconds,
                    cpu_seconds: seconds * runner::machine::cores() as f64,
                    gpu_seconds: if accelerated { seconds * ranks } else { 0.0 },
                    ..Cost::default()
                };
                (Some(cost), "at most, by its timeout".to_owned())
            }
            None => (None, "has not run, and has no timeout".to_owned()),
        },
    };
    Price {
        stage: stage.name.clone(),
        cost,
        basis,
    }
}

/// Which part of its last computation a stage would take, and why.
fn part(resolved: &Resolved) -> (f64, String) {
    let steps = |value: &serde_json::Value| value.as_f64().filter(|n| *n > 0.0);
    let mut part = 1.0;
    let mut why = String::new();
    if let State::Run(Why::Changed { fields }) = &resolved.state
        && let Some(field) = fields.iter().find(|f| f.field == "with.steps")
        && let (Some(before), Some(now)) = (
            field.before.as_ref().and_then(steps),
            field.now.as_ref().and_then(steps),
        )
    {
        part = now / before;
        why = format!(", for {now} steps instead of {before}");
    }
    let with = resolved.preimage.as_ref().map(|p| &p.with);
    let all = with.and_then(|with| steps(&with["until"]).or_else(|| steps(&with["steps"])));
    let done = resolved.goes_on.as_ref().map(|from| from.step);
    if let (Some(done), Some(all)) = (done, all)
        && (done as f64) < all
    {
        part *= 1.0 - done as f64 / all;
        why += &format!(", from step {done} of {all}");
    }
    (part, why)
}

fn scaled(cost: Cost, by: f64) -> Cost {
    Cost {
        seconds: cost.seconds * by,
        gpu_seconds: cost.gpu_seconds * by,
        cpu_seconds: cost.cpu_seconds * by,
        cpu_joules: cost.cpu_joules.map(|j| j * by),
        gpu_joules: cost.gpu_joules.map(|j| j * by),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(costs: &[Option<Cost>]) -> Estimate {
        let price = |(i, cost): (usize, &Option<Cost>)| Price {
            stage: format!("s{i}"),
            cost: *cost,
            basis: String::new(),
        };
        Estimate(costs.iter().enumerate().map(price).collect())
    }

    fn allowed(estimate: &Estimate, limit: &str, rates: &[&str]) -> bool {
        let rates: Vec<Rate> = rates.iter().map(|r| r.parse().unwrap()).collect();
        estimate.within(&[limit.parse().unwrap()], &rates).is_ok()
    }

    #[test]
    fn limits_are_of_time_cores_gpus_and_money() {
        let hours = |time: f64, cpu: f64, gpu: f64| Cost {
            seconds: 3600.0 * time,
            cpu_seconds: 3600.0 * cpu,
            gpu_seconds: 3600.0 * gpu,
            ..Cost::default()
        };
        let two = estimate(&[Some(hours(1.0, 4.0, 2.0)), Some(hours(0.5, 1.0, 0.0))]);
        for (limit, ok) in [
            ("90min", true),
            ("89min", false),
            ("5cpuh", true),
            ("4.9cpuh", false),
            ("120gpumin", true),
            ("1.9gpuh", false),
            ("1d", true),
        ] {
            assert_eq!(allowed(&two, limit, &[]), ok, "{limit}");
        }
        // 2 GPU hours at 3 and 5 CPU hours at 0.1
        let rates = ["3USD/gpuh", "0.1USD/cpuh", "9EUR/gpuh"];
        assert!(allowed(&two, "6.5USD", &rates));
        assert!(!allowed(&two, "6.4USD", &rates));
        assert!(!allowed(&two, "100CHF", &rates));
        // one that is not known may cost anything
        assert!(!allowed(
            &estimate(&[Some(hours(0.0, 0.0, 0.0)), None]),
            "1d",
            &[]
        ));
        assert!(allowed(&estimate(&[]), "0s", &[]));
    }

    #[test]
    fn other_words_are_refused() {
        for text in [
            "", "2", "h", "2hours", "2usd", "-1h", "1e3h", "2gpu", "2gpuhh", "1.2.3h",
        ] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
        for text in ["2USD", "2USD/", "USD/gpuh", "2/gpuh", "2USD/GPUh"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
