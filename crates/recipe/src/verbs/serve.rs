//! `recipe serve`: the runs of a store as pages on this machine, live while they go on.

use crate::args::ServeArgs;
use crate::fail::Fail;
use crate::serve::Server;
use crate::{output, project};

pub fn run(args: ServeArgs) -> Result<u8, Fail> {
    let store = project::open_store(&args.store)?;
    let server = Server::bind(store, args.port)?;
    output::line(format!(
        "http://127.0.0.1:{}/ shows the runs; Ctrl-C ends it",
        server.port()
    ));
    server.run();
    Ok(0)
}
