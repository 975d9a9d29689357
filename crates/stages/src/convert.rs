//! Weights from elsewhere, every tensor checked against its family, as a directory of our own.

use model::convert::{Conversion, Converted, Origin};
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
    let converted = model::convert::convert(origin, stage.output("model")?, conversion)?;
    Ok(Done::Finished(sizes(&converted)))
}

/// Parameters of the architecture; tensors in the files, and their bytes.
pub fn sizes(converted: &Converted) -> Metrics {
    Metrics::from([
        ("parameters".into(), converted.config.param_count() as f64),
        ("tensors".into(), converted.tensors as f64),
        ("bytes".into(), converted.bytes as f64),
    ])
}
