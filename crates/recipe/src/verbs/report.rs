//! `recipe report RUN.. --html FILE`: what happened, on a page.

use crate::args::ReportArgs;
use crate::fail::Fail;
use crate::past::{Reader, Run};
use crate::{output, project, report};

pub fn run(args: ReportArgs) -> Result<u8, Fail> {
    let reader = Reader::new(project::open_store(&args.store)?);
    let read = |word: &String| Run::read(reader.store(), word);
    let runs = args.runs.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let page = report::page(&reader, &runs, "")?;
    std::fs::write(&args.html, page).map_err(|e| Fail::io("write", &args.html, &e))?;
    output::line(format!("wrote {}", args.html.display()));
    Ok(0)
}
