//! `recipe logs RUN STAGE`: what the stage's processes printed.

use crate::args::LogsArgs;
use crate::fail::Fail;
use crate::past::{Reader, Run};
use crate::verbs::runs::find;
use crate::{output, project};
use spec::diagnostic::suggestion;

pub fn run(args: LogsArgs) -> Result<u8, Fail> {
    let reader = Reader::new(project::open_store(&args.store)?);
    let store = reader.store();
    let id = find(store, &args.run)?;
    let (id, stage) = match Run::read(store, &id) {
        // a reused stage has the log of the run that computed it
        Ok(run) => match run.stage(&args.stage) {
            Some(stage) => reader.computed_in(&run, stage)?,
            None => (id, args.stage),
        },
        // a run that died early has logs without a record
        Err(_) => (id, args.stage),
    };
    // logs/<stage>-<attempt>.log
    let mut logs: Vec<(String, u32, String)> = store
        .list_run_files(&id)?
        .into_iter()
        .filter_map(|file| {
            let stem = file.strip_prefix("logs/")?.strip_suffix(".log")?;
            let (stage, attempt) = stem.rsplit_once('-')?;
            Some((stage.to_owned(), attempt.parse().ok()?, file.clone()))
        })
        .collect();
    logs.sort();
    let of_stage: Vec<_> = logs.iter().filter(|(of, ..)| *of == stage).collect();
    let chosen = match args.attempt {
        Some(n) => of_stage.iter().find(|(_, attempt, _)| *attempt == n),
        None => of_stage.last(),
    };
    let Some((_, _, file)) = chosen else {
        let help = if of_stage.is_empty() {
            suggestion(&stage, logs.iter().map(|(s, ..)| s.as_str()))
        } else {
            let attempts: Vec<String> = of_stage.iter().map(|(_, n, _)| n.to_string()).collect();
            format!("its attempts: {}", attempts.join(", "))
        };
        return Err(Fail::not_stored(
            format!("run '{id}' has no such log of stage '{stage}'"),
            help,
        ));
    };
    output::bytes(&store.get_run(&id, file)?.unwrap_or_default());
    Ok(0)
}
