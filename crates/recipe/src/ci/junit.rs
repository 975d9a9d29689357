//! JUnit XML, as Jenkins' schema (`junit-10.xsd` of its xunit plugin), GitHub's and GitLab's readers take it.

use std::fmt::Write;

use super::{Case, Verdict, cases};
use crate::past::Run;

/// The report of a run that has a record.
pub fn text(run: &Run) -> String {
    let suites: Vec<Vec<Case>> = run.stages.iter().map(|stage| cases(run, stage)).collect();
    let mut out = head(
        run.record["recipe"].as_str().unwrap_or_default(),
        suites.iter().flatten(),
        run.record["seconds"].as_f64().unwrap_or(0.0),
    );
    let started = run.record["started"].as_str().unwrap_or_default();
    // without a zone and fractions: the form that all readers take; it is UTC
    let started = started.split('.').next().unwrap_or_default();
    for (stage, cases) in run.stages.iter().zip(&suites) {
        let _ = writeln!(
            out,
            "  <testsuite name=\"{}\" {} time=\"{:.3}\" timestamp=\"{}\">\n    <properties>",
            escape(&stage.stage),
            Count::of(cases.iter()).attributes(true),
            stage.seconds,
            escape(started),
        );
        let mut property = |name: &str, value: &str| {
            let (name, value) = (escape(name), escape(value));
            let _ = writeln!(out, "      <property name=\"{name}\" value=\"{value}\"/>");
        };
        property("run", &run.id);
        property("kind", &stage.kind);
        property("state", &stage.status);
        if let Some(key) = &stage.key {
            property("key", key);
        }
        for (output, digest) in &stage.outputs {
            property(&format!("output.{output}"), digest);
        }
        for (metric, value) in &stage.metrics {
            property(&format!("metric.{metric}"), &value.to_string());
        }
        out.push_str("    </properties>\n");
        let recipe = run.record["recipe"].as_str().unwrap_or_default();
        let class = format!("{recipe}.{}", stage.stage);
        for case in cases {
            write_case(&mut out, &class, case);
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

/// The report of a run that came to no outcome: one error.
pub fn unfinished(recipe: &str, kind: &str, message: &str) -> String {
    let case = Case {
        name: "run".to_owned(),
        verdict: Verdict::Error(kind.to_owned(), message.to_owned()),
        text: String::new(),
        seconds: 0.0,
    };
    let cases = [case];
    let mut out = head(recipe, cases.iter(), 0.0);
    let attributes = Count::of(cases.iter()).attributes(true);
    let name = escape(recipe);
    let _ = writeln!(out, "  <testsuite name=\"{name}\" {attributes}>");
    write_case(&mut out, recipe, &cases[0]);
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

fn head<'a>(name: &str, cases: impl Iterator<Item = &'a Case>, seconds: f64) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{}\" {} time=\"{seconds:.3}\">\n",
        escape(name),
        Count::of(cases).attributes(false),
    )
}

/// How many cases came to what.
#[derive(Default)]
struct Count {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
}

impl Count {
    fn of<'a>(cases: impl Iterator<Item = &'a Case>) -> Count {
        let mut count = Count::default();
        for case in cases {
            count.tests += 1;
            match case.verdict {
                Verdict::Passed => {}
                Verdict::Failed(_) => count.failures += 1,
                Verdict::Error(..) => count.errors += 1,
                Verdict::Skipped(_) => count.skipped += 1,
            }
        }
        count
    }

    /// `skipped` is known of suites only.
    fn attributes(&self, suite: bool) -> String {
        let mut out = format!(
            "tests=\"{}\" failures=\"{}\" errors=\"{}\"",
            self.tests, self.failures, self.errors
        );
        if suite {
            let _ = write!(out, " skipped=\"{}\"", self.skipped);
        }
        out
    }
}

fn write_case(out: &mut String, class: &str, case: &Case) {
    let _ = writeln!(
        out,
        "    <testcase name=\"{}\" classname=\"{}\" time=\"{:.3}\">",
        escape(&case.name),
        escape(class),
        case.seconds
    );
    let first_line = |text: &str| escape(text.lines().next().unwrap_or_default());
    let _ = match &case.verdict {
        Verdict::Passed => Ok(()),
        Verdict::Failed(text) => writeln!(
            out,
            "      <failure type=\"assertion\" message=\"{}\">{}</failure>",
            first_line(text),
            escape(text)
        ),
        Verdict::Error(kind, text) => writeln!(
            out,
            "      <error type=\"{}\" message=\"{}\">{}</error>",
            escape(kind),
            first_line(text),
            escape(text)
        ),
        Verdict::Skipped(why) => writeln!(out, "      <skipped message=\"{}\"/>", escape(why)),
    };
    if !case.text.is_empty() {
        let _ = writeln!(out, "      <system-out>{}</system-out>", escape(&case.text));
    }
    out.push_str("    </testcase>\n");
}

/// Text as it stands in XML, also in an attribute. Characters that XML 1.0 cannot carry, such as the
/// escapes of coloured logs, become U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(c),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_xml_cannot_carry_is_replaced() {
        assert_eq!(
            escape("a<b & \"c\"\x1b[31m\n"),
            "a&lt;b &amp; &quot;c&quot;\u{fffd}[31m\n"
        );
    }
}
