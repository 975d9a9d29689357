//! Weights from elsewhere, every tensor checked against its family, as a directory of our own.

use model::convert::{Conversion, Origin};
use spec::kinds::convert::Convert;

use crate::failure::Result;
use crate::report::Metrics;
use crate::stage::{Done, Stage, store_dtype};

pub fn run(stage: &Stage) -> Result<Done> {
    if !stage.gang.leads() {
        return Ok(Done::Finished(Metrics::new()));
    }
    let with: Convert = stage.with()?;
    let conversion = Conversion {
        dtype: store_dtype(with.dtype),
        ..Conversion::default()
    };
    let weights = stage.input("model")?;
    let origin = Origin {
        weights,
        config: stage.optional("config").unwrap_or(weights),
        prefix: with.prefix.as_deref(),
    };
    let config = model::convert::convert(origin, stage.output("model")?, conversion)?;
    let parameters = config.param_count() as f64;
    Ok(Done::Finished(Metrics::from([(
        "parameters".into(),
        parameters,
    )])))
}
