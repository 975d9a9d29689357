//! What crosses ranks inside a segment: which of a microbatch's rows this rank computes, and how it
//! meets the others'.
//!
//! All ranks of a context-parallel and a tensor-parallel group are given the same microbatch. The
//! former deal its rows among themselves ([`cp`](crate::cp)), the latter all compute what was dealt
//! to their place, with parts of the matrices ([`tp`](crate::tp)).

use std::rc::Rc;

use model::{Attend, Decoder, Ops, Split};
use tch::{Kind, Tensor};

use crate::cp::{self, Across};
use crate::crossing::{Crossing, Fault};
use crate::tp::TensorSplit;
use crate::{Collective, Error, Microbatch, Routes, Solo};

/// The ranks that share a microbatch.
pub struct Inside {
    fault: Fault,
    context: Crossing,
    split: TensorSplit,
}

impl Inside {
    /// No one.
    pub fn solo() -> Self {
        Self::new(Rc::new(Solo), Rc::new(Solo), false, 0)
    }

    /// `cp` shares the rows, `tp` the matrices and, with sequence parallelism, the rows between
    /// them; `vocabulary` is the model's.
    pub fn new(
        cp: Rc<dyn Collective>,
        tp: Rc<dyn Collective>,
        sp: bool,
        vocabulary: usize,
    ) -> Self {
        let fault = Fault::default();
        Self {
            context: Crossing::new(cp, &fault),
            split: TensorSplit::new(tp, sp, vocabulary, &fault),
            fault,
        }
    }

    /// How the ranks meet inside a segment, where its rows are given elsewhere.
    pub fn split(&self) -> &dyn Split {
        &self.split
    }

    /// Fails if a collective did since the last check.
    pub fn check(&self) -> Result<(), Error> {
        self.fault.check()
    }

    /// Which rows of a microbatch are this rank's.
    fn rows(&self, batch: &Microbatch) -> Rows {
        let all = batch.tokens.size()[0];
        let parts = match self.context.size() {
            1 => None,
            ranks => Some(cp::deal(&batch.layout, ranks)),
        };
        let most = parts.as_ref().map_or(all, |parts| {
            parts.iter().map(|p| p.len() as i64).max().unwrap_or(0)
        });
        let mine = parts.as_ref().map(|parts| &parts[self.context.rank()]);
        let rows = self.pad(most);
        let keep = match (&batch.keep, mine) {
            (None, None) => Keep {
                rows: None,
                count: all,
                padded: rows,
                own: None,
            },
            (None, Some(mine)) => Keep {
                rows: None,
                count: mine.len() as i64,
                padded: rows,
                own: Some(index(mine.iter().map(|&row| row as i64), batch)),
            },
            (Some(keep), None) => self.keep(keep.shallow_clone(), None),
            (Some(keep), Some(mine)) => {
                let mut places = vec![-1; all as usize];
                for (place, &row) in mine.iter().enumerate() {
                    places[row] = place as i64;
                }
                let kept: Vec<i64> = Vec::try_from(keep).expect("row numbers are i64");
                let own = kept.iter().enumerate();
                let own = own.filter(|(_, row)| places[**row as usize] >= 0);
                let (own, rows): (Vec<i64>, Vec<i64>) = own
                    .map(|(at, &row)| (at as i64, places[row as usize]))
                    .unzip();
                self.keep(index(rows, batch), Some(index(own, batch)))
            }
        };
        Rows { parts, rows, keep }
    }

    fn keep(&self, rows: Tensor, own: Option<Tensor>) -> Keep {
        let count = rows.size()[0];
        let padded = self.pad(count);
        let rows = match padded - count {
            0 => rows,
            more => Tensor::cat(
                &[&rows, &rows.new_zeros([more], (Kind::Int64, rows.device()))],
                0,
            ),
        };
        Keep {
            rows: Some(rows),
            count,
            padded,
            own,
        }
    }

    fn pad(&self, rows: i64) -> i64 {
        (rows as usize).next_multiple_of(self.split.multiple()) as i64
    }

    /// What segments need to know of a microbatch.
    pub(crate) fn scene(
        &self,
        decoder: &Decoder,
        ops: &dyn Ops,
        batch: &Microbatch,
        kind: Kind,
    ) -> Result<Scene<'_>, Error> {
        let device = batch.tokens.device();
        let Rows { parts, rows, keep } = self.rows(batch);
        let mut positions = batch.layout.positions();
        let (mine, attend): (_, Box<dyn Attend>) = match &parts {
            None => (None, ops.packed(&batch.layout, rows as usize, device)?),
            Some(parts) => {
                let mine = &parts[self.context.rank()];
                positions = mine.iter().map(|&row| positions[row]).collect();
                let ranks = self.context.clone();
                let across = Across::new(&batch.layout, parts, rows as usize, ranks, device)?;
                let mine = index(mine.iter().map(|&row| row as i64), batch);
                (Some(mine), Box::new(across))
            }
        };
        positions.resize(rows as usize, 0);
        let (cos, sin) = decoder.rope(&Tensor::from_slice(&positions).to_device(device), kind);
        let tokens = &batch.tokens;
        let ids = match &mine {
            None => tokens.shallow_clone(),
            Some(mine) => tokens.index_select(0, mine),
        };
        let ids = match rows - ids.size()[0] {
            0 => ids,
            more => ids.constant_pad_nd([0, more]),
        };
        let routes = |mine: Option<&Tensor>, count: i64| {
            let routes = batch.routes.as_ref()?;
            let mine = mine.map_or_else(|| routes.share(), |mine| routes.select(mine));
            Some(mine.pad(count))
        };
        let all = routes(mine.as_ref(), rows);
        let kept = match (&batch.keep, &keep.own) {
            (None, _) => routes(mine.as_ref(), rows),
            (Some(kept), None) => routes(Some(kept), keep.padded),
            (Some(kept), Some(own)) => routes(Some(&kept.index_select(0, own)), keep.padded),
        };
        Ok(Scene {
            split: &self.split,
            cos,
            sin,
            attend,
            routes: all,
            kept,
            ids,
            rows,
            keep,
        })
    }

    pub(crate) fn boundary(&self, batch: &Microbatch) -> Boundary {
        let rows = self.rows(batch);
        Boundary {
            all: self.split.rows(rows.rows),
            kept: self.split.rows(rows.keep.padded),
            finished: rows.keep.count,
        }
    }

    /// Which of the microbatch's kept rows end up on this rank (i64, ascending); `None` is all.
    pub fn own(&self, batch: &Microbatch) -> Option<Tensor> {
        self.rows(batch).keep.own
    }
}

fn index(rows: impl IntoIterator<Item = i64>, batch: &Microbatch) -> Tensor {
    let rows: Vec<i64> = rows.into_iter().collect();
    Tensor::from_slice(&rows).to_device(batch.tokens.device())
}

/// Rows that a rank has between segments.
pub(crate) struct Boundary {
    /// Up to the last attention.
    pub all: i64,
    /// After it.
    pub kept: i64,
    /// At the end, where all of this rank's kept rows are whole.
    pub finished: i64,
}

/// A rank's rows of a microbatch.
struct Rows {
    /// Where ranks share the rows: each rank's.
    parts: Option<Vec<Vec<usize>>>,
    /// Rows here, padding included; alike on all ranks.
    rows: i64,
    keep: Keep,
}

/// Which rows go on after the last attention.
struct Keep {
    /// Rows here, padding at the end; `None` is all.
    rows: Option<Tensor>,
    /// Of these not padding.
    count: i64,
    /// With padding.
    padded: i64,
    /// Which of the microbatch's kept rows they are; `None` is all.
    own: Option<Tensor>,
}

/// What all segments of one microbatch share on this rank.
pub(crate) struct Scene<'a> {
    split: &'a TensorSplit,
    pub cos: Tensor,
    pub sin: Tensor,
    pub attend: Box<dyn Attend>,
    /// What is known of the rows, and of the kept ones, for routers.
    pub routes: Option<Routes>,
    pub kept: Option<Routes>,
    /// Token ids of this rank's rows.
    pub ids: Tensor,
    rows: i64,
    keep: Keep,
}

impl Scene<'_> {
    pub fn split(&self) -> &dyn Split {
        self.split
    }

    /// The kept rows, after the last attention.
    pub fn choose(&self, x: Tensor) -> Tensor {
        match &self.keep.rows {
            None => x,
            Some(rows) => {
                let all = self.split.whole(x, "kept rows");
                all.index_select(0, &self.split.block(rows))
            }
        }
    }

    /// The gradient of what [`Scene::choose`] took; several rows may come from one.
    pub fn choose_back(&self, d: Tensor) -> Tensor {
        match &self.keep.rows {
            None => d,
            Some(rows) => {
                let (count, kind) = (self.keep.count, d.kind());
                let d = self.split.whole(d, "gradient of kept rows");
                let rows = rows.narrow(0, 0, count);
                let d = sum_rows(&d.narrow(0, 0, count), &rows, self.rows).to_kind(kind);
                self.split.block(&d)
            }
        }
    }

    /// All of this rank's kept rows, from what the last segment gave.
    pub fn finish(&self, x: Tensor) -> Tensor {
        let x = self.split.whole(x, "final rows");
        match x.size()[0] == self.keep.count {
            true => x,
            false => x.narrow(0, 0, self.keep.count),
        }
    }

    /// The gradient of the last segment's result from this rank's part of that of the kept rows.
    pub fn finish_back(&self, d: Tensor) -> Tensor {
        let d = match self.keep.padded - self.keep.count {
            0 => d,
            more => d.constant_pad_nd([0, 0, 0, more]),
        };
        self.split.join(d, "gradient of final rows")
    }

    /// The gradient of this rank's part of the embedding, in accumulation kind. A look-up's
    /// gradient is summed there, because a frequent token would lose its small terms in bf16.
    pub fn embedding_back(&self, d: Tensor, vocabulary: usize) -> Tensor {
        let d = self.split.whole(d, "gradient of embedded rows");
        let rows = self.split.part(vocabulary).len() as i64;
        match self.split.local_ids(&self.ids) {
            None => sum_rows(&d, &self.ids, rows),
            // one more row for the ids of other ranks
            Some(ids) => sum_rows(&d, &ids, rows + 1).narrow(0, 0, rows),
        }
    }
}

/// `[n, d] -> [rows, d]`: sums the rows of `x` that go to the same place. Unlike `index_add`, this
/// adds in a fixed order on every device.
fn sum_rows(x: &Tensor, places: &Tensor, rows: i64) -> Tensor {
    tch::no_grad(|| Tensor::embedding_dense_backward(&widen(x), places, rows, -1, false))
}

/// fp32, or fp64 if it is.
fn widen(x: &Tensor) -> Tensor {
    if x.kind() == Kind::Double {
        x.shallow_clone()
    } else {
        x.to_kind(Kind::Float)
    }
}
