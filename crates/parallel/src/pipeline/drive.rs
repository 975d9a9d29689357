//! Doing what a schedule says.

use std::collections::HashMap;

use tch::Tensor;

use super::{Event, Pass, Place};
use crate::{Collective, Error, Pending};

/// What a stage computes.
pub trait Chunks {
    /// Its errors, those of transfers among them.
    type Error: From<Error>;

    /// Room for the boundary before `chunk` (forward: hidden states; backward: their gradient) of a
    /// microbatch, in the kind that it travels in. Both ends know its shape from the batch plan.
    fn boundary(&self, chunk: usize, microbatch: usize) -> Tensor;

    /// A microbatch through a chunk, from its input boundary; the first chunk has none and reads
    /// tokens. Returns the output boundary; the last chunk has none.
    fn forward(
        &mut self,
        chunk: usize,
        microbatch: usize,
        input: Option<Tensor>,
    ) -> Result<Option<Tensor>, Self::Error>;

    /// The way back, from the gradient of the output boundary (none for the last chunk) to that of
    /// the input boundary (none for the first).
    fn backward(
        &mut self,
        chunk: usize,
        microbatch: usize,
        d_output: Option<Tensor>,
    ) -> Result<Option<Tensor>, Self::Error>;
}

/// Runs a stage's events in order; `group` is the pipeline's. A boundary without rows does not
/// travel. What is sent travels beside the next computation.
///
/// # Errors
/// Those of `chunks`, and a transfer that failed.
pub fn drive<C: Chunks>(
    events: &[Event],
    group: &dyn Collective,
    chunks: &mut C,
) -> Result<(), C::Error> {
    // what is computed or received and not yet read or sent, by its reader
    let mut waiting: HashMap<Place, Tensor> = HashMap::new();
    let mut sending: Option<Pending> = None;
    for event in events {
        match *event {
            Event::Run(place) => {
                let Place {
                    pass,
                    chunk,
                    microbatch,
                } = place;
                let input = waiting.remove(&place);
                let output = match pass {
                    Pass::Forward => chunks.forward(chunk, microbatch, input)?,
                    Pass::Backward => chunks.backward(chunk, microbatch, input)?,
                };
                if let Some(output) = output {
                    waiting.insert(reader(place), output);
                }
            }
            Event::Send(place, to) => {
                if let Some(tensor) = waiting.remove(&place)
                    && tensor.numel() > 0
                {
                    // one at a time: what is on its way is kept in memory
                    if let Some(before) = sending.take() {
                        before.wait()?;
                    }
                    sending = Some(group.send_start(&tensor.contiguous(), to, phase(place))?);
                }
            }
            Event::Receive(place, from) => {
                // a gradient has the shape of the boundary after the chunk that reads it
                let boundary = match place.pass {
                    Pass::Forward => place.chunk,
                    Pass::Backward => place.chunk + 1,
                };
                let mut tensor = chunks.boundary(boundary, place.microbatch);
                if tensor.numel() > 0 {
                    group.recv(&mut tensor, from, phase(place))?;
                }
                waiting.insert(place, tensor);
            }
        }
    }
    if let Some(last) = sending {
        last.wait()?;
    }
    Ok(())
}

/// The computation that reads what `place` gives; chunks that give nothing are not asked.
fn reader(place: Place) -> Place {
    let chunk = match place.pass {
        Pass::Forward => place.chunk + 1,
        Pass::Backward => place.chunk - 1,
    };
    Place { chunk, ..place }
}

fn phase(place: Place) -> &'static str {
    match place.pass {
        Pass::Forward => "pipeline boundary",
        Pass::Backward => "pipeline gradient",
    }
}
