//! Parameters that lie in shards: gathered whole, one segment at a time, while the segment runs.
//!
//! One flat all-gather per unit brings the shards of a segment in compute kind; the next segment's
//! is under way meanwhile. Whole parameters live in one storage per unit that is given back after
//! use and filled again before backward, so graphs that saved them stay valid (this is what FSDP2
//! does: <https://pytorch.org/docs/stable/distributed.fsdp.fully_shard.html>). Where a rank stores
//! its parameters whole, nothing is copied.

mod units;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use model::Segment;
use tch::{Device, Kind, Tensor};

use crate::engine::Parameters;
use crate::{Error, Pending};

pub use units::{Part, Unit, Units};

/// A rank's shards in compute kind, and what is gathered of them.
pub struct Sharded {
    units: Rc<Units>,
    kind: Kind,
    /// Give whole parameters back after each use; else after the update.
    reshard: bool,
    slots: Vec<Slot>,
    /// Units in the order in which a forward needs them, by step.
    order: Vec<Vec<usize>>,
    last: Cell<usize>,
}

/// One unit.
enum Slot {
    /// Stored whole: one tensor per part.
    Whole(Vec<Tensor>),
    /// Stored in shards.
    Parts(RefCell<Gathered>),
}

struct Gathered {
    /// This rank's shards, padded.
    flat: Tensor,
    /// Memory of the whole parameters; without any while nobody uses them.
    buffer: Tensor,
    /// The whole parameters, views of that memory whose version counters a refill does not move.
    whole: Vec<Tensor>,
    full: bool,
    users: usize,
    pending: Option<(Pending, Tensor)>,
}

impl Sharded {
    /// The shards that `make` gives, one contiguous tensor per part, of `kind` on `device`. Where
    /// the rank stores a parameter whole its tensor is taken over, not copied. `head` names the LM
    /// matrix if this rank has it; `reshard` gives whole parameters back after each use, else they
    /// stay until [`Sharded::updated`].
    ///
    /// # Errors
    /// Those of `make`; libtorch's, out of memory for one.
    pub fn new<E: From<Error>>(
        units: Rc<Units>,
        segments: &[Segment],
        head: Option<&str>,
        (kind, device): (Kind, Device),
        reshard: bool,
        make: &mut dyn FnMut(&Part) -> Result<Tensor, E>,
    ) -> Result<Sharded, E> {
        let _no_grad = tch::no_grad_guard();
        let mut slots = Vec::with_capacity(units.units.len());
        for unit in &units.units {
            slots.push(Slot::new(unit, (kind, device), make)?);
        }
        let mut order: Vec<Vec<usize>> = Vec::new();
        for segment in segments {
            let here = units.of_names(segment.params.iter().map(String::as_str));
            if !here.is_empty() {
                order.push(here);
            }
        }
        order.extend(head.map(|name| units.of_names([name])));
        Ok(Sharded {
            units,
            kind,
            reshard,
            slots,
            order,
            last: Cell::new(0),
        })
    }

    /// The units.
    pub fn units(&self) -> &Rc<Units> {
        &self.units
    }

    /// Name and shard of every parameter of this rank, in the units' order. Where the rank stores
    /// a parameter whole, its shard is what the engine computes with.
    pub fn shards(&self) -> Vec<(String, Tensor)> {
        let mut out = Vec::new();
        for (unit, slot) in self.units.units.iter().zip(&self.slots) {
            for (i, part) in unit.parts.iter().enumerate() {
                let shard = match slot {
                    Slot::Whole(parts) => parts[i].shallow_clone(),
                    Slot::Parts(gathered) => part.shard_of(&gathered.borrow().flat),
                };
                out.push((part.name.clone(), shard));
            }
        }
        out
    }

    /// One whole parameter, such as the LM matrix, with the unit that it belongs to; until
    /// [`Sharded::release_one`].
    ///
    /// # Errors
    /// A collective that failed.
    pub fn gather_one(&self, name: &str) -> Result<Tensor, Error> {
        let (unit, part) = self.units.find(name).ok_or_else(|| Error::Unknown {
            name: name.to_owned(),
        })?;
        let parts = self.gather_unit(unit)?;
        self.prefetch(&[unit], true)?;
        Ok(parts[part].shallow_clone())
    }

    /// The parameter of [`Sharded::gather_one`] is no longer needed.
    pub fn release_one(&self, name: &str) {
        if let Some((unit, _)) = self.units.find(name) {
            self.release_unit(unit);
        }
    }

    /// The shards have changed: what was gathered of them is forgotten.
    ///
    /// # Errors
    /// A gather under way that failed.
    pub fn updated(&self) -> Result<(), Error> {
        for slot in &self.slots {
            let Slot::Parts(gathered) = slot else {
                continue;
            };
            let mut gathered = gathered.borrow_mut();
            if let Some((pending, _)) = gathered.pending.take() {
                pending.wait()?;
                gathered.full = true;
            }
            gathered.users = 0;
            gathered.empty()?;
        }
        self.last.set(0);
        Ok(())
    }

    fn gather_unit(&self, index: usize) -> Result<Vec<Tensor>, Error> {
        let gathered = match &self.slots[index] {
            Slot::Whole(parts) => return Ok(parts.iter().map(Tensor::shallow_clone).collect()),
            Slot::Parts(gathered) => gathered,
        };
        let mut gathered = gathered.borrow_mut();
        gathered.users += 1;
        if !gathered.full {
            let unit = &self.units.units[index];
            gathered.start(unit)?;
            gathered.finish(unit)?;
        }
        Ok(gathered.whole.iter().map(Tensor::shallow_clone).collect())
    }

    fn release_unit(&self, index: usize) {
        let Slot::Parts(gathered) = &self.slots[index] else {
            return;
        };
        let mut gathered = gathered.borrow_mut();
        gathered.users = gathered.users.saturating_sub(1);
        if gathered.users == 0 && self.reshard {
            // if memory could not be given back it would be used again, no more
            let _ = gathered.empty();
        }
    }

    /// Starts the gather that will most likely be wanted after these units: the next step's going
    /// forward, the one's before going back. All ranks guess alike.
    fn prefetch(&self, units: &[usize], head: bool) -> Result<(), Error> {
        let at = match self.order.iter().rposition(|step| step == units) {
            // a tied embedding is the first step and, as the LM matrix, the last
            Some(_) if !head => self.order.iter().position(|step| step == units),
            at => at,
        };
        let Some(at) = at else { return Ok(()) };
        let back = at < self.last.replace(at);
        let next = if back {
            at.checked_sub(1)
        } else {
            Some(at + 1)
        };
        let Some(next) = next.and_then(|next| self.order.get(next)) else {
            return Ok(());
        };
        for &unit in next {
            if let Slot::Parts(gathered) = &self.slots[unit] {
                gathered.borrow_mut().start(&self.units.units[unit])?;
            }
        }
        Ok(())
    }
}

impl Parameters for Sharded {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn gather(&self, segment: &Segment) -> Result<Vec<Tensor>, Error> {
        let _no_grad = tch::no_grad_guard();
        let units = self
            .units
            .of_names(segment.params.iter().map(String::as_str));
        let mut whole: Vec<(usize, Vec<Tensor>)> = Vec::with_capacity(units.len());
        for &unit in &units {
            whole.push((unit, self.gather_unit(unit)?));
        }
        self.prefetch(&units, false)?;
        let find = |name: &String| {
            let (unit, part) = self
                .units
                .find(name)
                .ok_or_else(|| Error::Unknown { name: name.clone() })?;
            let (_, parts) = whole
                .iter()
                .find(|(u, _)| *u == unit)
                .expect("its unit was gathered");
            Ok(parts[part].shallow_clone())
        };
        segment.params.iter().map(find).collect()
    }

    fn release(&self, segment: &Segment) {
        for unit in self
            .units
            .of_names(segment.params.iter().map(String::as_str))
        {
            self.release_unit(unit);
        }
    }
}

impl Slot {
    fn new<E: From<Error>>(
        unit: &Unit,
        options: (Kind, Device),
        make: &mut dyn FnMut(&Part) -> Result<Tensor, E>,
    ) -> Result<Slot, E> {
        if unit.is_whole() {
            let parts = unit.parts.iter().map(make);
            return Ok(Slot::Whole(parts.collect::<Result<_, _>>()?));
        }
        // zeros: the padding travels too
        let flat = Tensor::f_zeros([unit.flat], options).map_err(wrap)?;
        for part in &unit.parts {
            part.shard_of(&flat).copy_(&make(part)?);
        }
        let buffer = Tensor::f_empty([unit.buffer()], options).map_err(wrap)?;
        let alias = buffer.data();
        let whole = unit.parts.iter().map(|part| part.whole_of(&alias));
        let mut gathered = Gathered {
            flat,
            whole: whole.collect(),
            buffer,
            full: true,
            users: 0,
            pending: None,
        };
        gathered.empty()?;
        Ok(Slot::Parts(RefCell::new(gathered)))
    }
}

fn wrap(error: tch::TchError) -> Error {
    torch::Error::from(error).into()
}

impl Gathered {
    /// Starts the gather, unless it is under way or done.
    fn start(&mut self, unit: &Unit) -> Result<(), Error> {
        if self.full || self.pending.is_some() {
            return Ok(());
        }
        let size = unit.flat * unit.group.size() as i64;
        let mut out = if unit.parts.len() == 1 {
            // what arrives is the parameter already
            self.fill()?;
            self.buffer.shallow_clone()
        } else {
            Tensor::f_empty([size], (self.flat.kind(), self.flat.device())).map_err(wrap)?
        };
        let pending = unit
            .group
            .all_gather_start(&mut out, &self.flat, "parameter gather")?;
        self.pending = Some((pending, out));
        Ok(())
    }

    fn finish(&mut self, unit: &Unit) -> Result<(), Error> {
        let (pending, out) = self.pending.take().expect("a gather was started");
        pending.wait()?;
        if unit.parts.len() > 1 {
            self.fill()?;
            unit.unpack(&out, &self.buffer);
        }
        self.full = true;
        Ok(())
    }

    /// Memory for the whole parameters.
    fn fill(&mut self) -> Result<(), Error> {
        let bytes = self.buffer.numel() * self.buffer.kind().elt_size_in_bytes();
        Ok(torch::storage::resize(&self.buffer, bytes)?)
    }

    /// Gives that memory back.
    fn empty(&mut self) -> Result<(), Error> {
        if self.full {
            torch::storage::resize(&self.buffer, 0)?;
            self.full = false;
        }
        Ok(())
    }
}
