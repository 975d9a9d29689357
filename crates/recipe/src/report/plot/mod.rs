//! Plots as SVG text: lines over steps and histograms. Colours come from the page's style. What is
//! under the pointer is read by `:hover` alone, so the page needs no script.

mod histogram;
mod lines;
mod scale;

pub use histogram::histogram;
pub use lines::lines;

use std::fmt::Write;

use super::html::escape;
use scale::{HEIGHT, WIDTH};

/// Colours that the style has for runs.
pub const COLOURS: usize = 6;

/// A plot with its title and the values that matter most, each in its run's colour.
fn figure(title: &str, values: &[(usize, String)], inner: &str) -> String {
    let title = escape(title);
    let mut shown = String::new();
    for (colour, value) in values {
        let _ = write!(shown, " <b class=\"c{}\">{value}</b>", colour % COLOURS);
    }
    format!(
        "<figure class=\"plot\"><figcaption><span>{title}</span><span>{shown}</span></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">{inner}</svg>\
         </figure>\n"
    )
}
