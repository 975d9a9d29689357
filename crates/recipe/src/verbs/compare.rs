//! `recipe compare A B`: what differs between two runs, and what follows from it.

use crate::args::CompareArgs;
use crate::compare::{Comparison, as_text};
use crate::fail::Fail;
use crate::past::{Reader, Run};
use crate::{output, project};

pub fn run(args: CompareArgs) -> Result<u8, Fail> {
    let reader = Reader::new(project::open_store(&args.store)?);
    let read = |word: &str| Run::read(reader.store(), word);
    let comparison = Comparison::new(&reader, &read(&args.a)?, &read(&args.b)?)?;
    if args.json {
        output::json(&comparison.as_json());
    } else {
        output::line(as_text(&comparison));
    }
    Ok(0)
}
