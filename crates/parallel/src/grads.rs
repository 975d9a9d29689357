//! Gradient buffers by Hugging Face name, whole or in shards.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::sharded::{Part, Unit, Units};
use crate::{Collective, Error, Pending};

/// The door through which gradients leave the engine.
pub trait Gradients {
    /// Adds a gradient of the parameter `name`, as large as what [`Parameters::gather`] gave. May
    /// come several times per parameter and microbatch (a tied embedding has two uses).
    ///
    /// [`Parameters::gather`]: crate::Parameters::gather
    fn add(&mut self, name: &str, grad: Tensor) -> Result<(), Error>;
    /// One walk back has passed the segment (or the head) with these parameters. Every rank of the
    /// group that shards them calls this, in the same order, even where nothing was added.
    fn done(&mut self, names: &[String]) -> Result<(), Error>;
    /// Memory is about to be needed: what is under way and holds some is waited for.
    ///
    /// # Errors
    /// A collective that failed.
    fn settle(&mut self) -> Result<(), Error>;
}

/// Elements per all-reduce: few calls, and a bounded copy.
const BUCKET: i64 = 8 << 20;
/// Elements whose norm is taken at a time.
const PIECE: i64 = 1 << 20;

/// Gradients of the shards that a rank stores, accumulated in fp32 (fp64 when computing in fp64)
/// whatever the compute kind. Where parameters are sharded, a segment's gradients are reduced and
/// scattered as soon as it is [`done`](Gradients::done); one such reduction goes on beside the
/// next segment's backward.
pub struct Grads {
    kind: Kind,
    device: Device,
    units: Rc<Units>,
    sums: Vec<Sum>,
    under_way: Option<UnderWay>,
}

/// What was accumulated for one unit.
enum Sum {
    /// Whole, by part; `None` before the first gradient.
    Whole(Vec<Option<Tensor>>),
    Shards {
        /// Whole gradients by part of the segment that is being walked back.
        arriving: Vec<Option<Tensor>>,
        /// This rank's shards, padded; `None` before the first reduction.
        flat: Option<Tensor>,
    },
}

/// A reduction beside the caller's work.
struct UnderWay {
    unit: usize,
    pending: Pending,
    out: Tensor,
    /// Kept until the reduction has read it.
    _input: Tensor,
}

impl Grads {
    /// Empty buffers for whole parameters of these names and shapes. `kind` is the accumulation
    /// kind.
    pub fn new(
        parameters: impl IntoIterator<Item = (String, Vec<i64>)>,
        kind: Kind,
        device: Device,
    ) -> Grads {
        Grads::of(Rc::new(Units::whole(parameters)), kind, device)
    }

    /// Empty buffers for a rank's units.
    pub fn of(units: Rc<Units>, kind: Kind, device: Device) -> Grads {
        let sums = units.units.iter().map(Sum::new).collect();
        Grads {
            kind,
            device,
            units,
            sums,
            under_way: None,
        }
    }

    /// Forgets what was accumulated.
    pub fn clear(&mut self) {
        self.sums = self.units.units.iter().map(Sum::new).collect();
        self.under_way = None;
    }

    /// Moves everything out, leaving no parameters.
    pub fn take(&mut self) -> Grads {
        let empty = Rc::new(Units::whole([]));
        std::mem::replace(self, Grads::of(empty, self.kind, self.device))
    }

    /// Accumulated gradients of this rank's shards by name, in name order; parameters that got
    /// none are left out.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor)> {
        let mut all: Vec<(&str, Tensor)> = self
            .units
            .parts()
            .filter_map(|part| Some((part.name.as_str(), self.get(&part.name)?)))
            .collect();
        all.sort_by_key(|(name, _)| *name);
        all.into_iter()
    }

    /// The gradient of one parameter's shard, if it got any; shares the accumulated storage.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let (unit, index) = self.units.find(name)?;
        match &self.sums[unit] {
            Sum::Whole(parts) => parts[index].as_ref().map(Tensor::shallow_clone),
            Sum::Shards { flat, .. } => {
                let part = &self.units.units[unit].parts[index];
                flat.as_ref().map(|flat| part.shard_of(flat))
            }
        }
    }

    /// Sums what is still apart: over ranks that replicate the shards, over those along `tp` that
    /// have parts of one sum, over the ends of the pipeline for a tied embedding. Afterwards every
    /// parameter has a gradient (zeros where no rank had one) and copies hold the same bits.
    ///
    /// # Errors
    /// A collective that failed.
    pub fn reduce(&mut self) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        self.settle()?;
        let options = (self.kind, self.device);
        for (unit, sum) in self.units.units.iter().zip(&mut self.sums) {
            match sum {
                Sum::Whole(parts) => {
                    for (part, sum) in unit.parts.iter().zip(parts) {
                        sum.get_or_insert_with(|| Tensor::zeros(&part.local, options));
                    }
                }
                Sum::Shards { flat, .. } => {
                    flat.get_or_insert_with(|| Tensor::zeros([unit.flat], options));
                }
            }
        }
        let units = self.units.clone();
        if units.replicate.size() > 1 {
            let mut all: Vec<&mut Tensor> = Vec::new();
            for sum in &mut self.sums {
                match sum {
                    Sum::Whole(parts) => all.extend(parts.iter_mut().flatten()),
                    Sum::Shards { flat, .. } => all.extend(flat.as_mut()),
                }
            }
            reduce_buckets(&mut all, &*units.replicate)?;
        }
        self.reduce_copies(&units)
    }

    /// Sums over the groups that single parameters name, each group's parameters together.
    fn reduce_copies(&mut self, units: &Units) -> Result<(), Error> {
        let most = units.parts().map(|part| part.sums.len()).max();
        for turn in 0..most.unwrap_or(0) {
            let mut left: Vec<&Part> = units
                .parts()
                .filter(|part| part.sums.len() > turn)
                .collect();
            while let Some(first) = left.first() {
                let group = first.sums[turn].clone();
                let (here, rest): (Vec<&Part>, Vec<&Part>) = left
                    .into_iter()
                    .partition(|part| Rc::ptr_eq(&part.sums[turn], &group));
                left = rest;
                let mut shards: Vec<Tensor> = here
                    .iter()
                    .filter_map(|part| self.get(&part.name))
                    .collect();
                let mut shards: Vec<&mut Tensor> = shards.iter_mut().collect();
                reduce_buckets(&mut shards, &*group)?;
            }
        }
        Ok(())
    }

    /// Square root of the sum of squares over all parameters of the mesh, fp64, each counted once.
    /// Identical on all ranks; NaN or infinite when any element is.
    ///
    /// # Errors
    /// A collective that failed.
    pub fn norm(&self) -> Result<f64, Error> {
        let _no_grad = tch::no_grad_guard();
        let owned = self.units.parts().filter(|part| part.owner);
        // in pieces: a norm in fp64 makes a copy of what it looks at
        let norms: Vec<Tensor> = owned
            .filter_map(|part| self.get(&part.name))
            .flat_map(|g| g.flatten(0, -1).split(PIECE, 0))
            .map(|piece| piece.norm_scalaropt_dtype(2.0, Kind::Double))
            .collect();
        let mut squares = if norms.is_empty() {
            Tensor::zeros([1], (Kind::Double, self.device))
        } else {
            let all = Tensor::stack(&norms, 0);
            (&all * &all).sum(Kind::Double).view([1])
        };
        self.units
            .world
            .all_reduce_sum(&mut squares, "gradient norm")?;
        Ok(squares.sqrt().double_value(&[0]))
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f64) {
        let _no_grad = tch::no_grad_guard();
        let scale = |sum: &mut Tensor| {
            let _ = sum.g_mul_scalar_(factor);
        };
        for sum in &mut self.sums {
            match sum {
                Sum::Whole(parts) => parts.iter_mut().flatten().for_each(scale),
                Sum::Shards { flat, .. } => flat.iter_mut().for_each(scale),
            }
        }
    }

    /// Bytes that the accumulated gradients take, padding included.
    pub fn bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.numel() * t.kind().elt_size_in_bytes();
        let of = |sum: &Sum| -> usize {
            match sum {
                Sum::Whole(parts) => parts.iter().flatten().map(bytes).sum(),
                Sum::Shards { flat, .. } => flat.iter().map(bytes).sum(),
            }
        };
        self.sums.iter().map(of).sum()
    }

    /// Reduces and scatters what has arrived for a sharded unit, on every rank whether anything
    /// arrived there or not.
    fn scatter(&mut self, index: usize) -> Result<(), Error> {
        let unit = &self.units.units[index];
        let Sum::Shards { arriving, .. } = &mut self.sums[index] else {
            return Ok(());
        };
        let input = unit.pack(arriving, self.kind, self.device);
        arriving.iter_mut().for_each(|part| *part = None);
        let mut out = Tensor::empty([unit.flat], (self.kind, self.device));
        let group = unit.group.clone();
        // the one before has had this segment's backward to finish in
        self.settle()?;
        let pending = group.reduce_scatter_start(&mut out, &input, "gradient reduction")?;
        self.under_way = Some(UnderWay {
            unit: index,
            pending,
            out,
            _input: input,
        });
        Ok(())
    }
}

impl Sum {
    fn new(unit: &Unit) -> Sum {
        let none = unit.parts.iter().map(|_| None).collect();
        if unit.is_whole() {
            Sum::Whole(none)
        } else {
            Sum::Shards {
                arriving: none,
                flat: None,
            }
        }
    }
}

impl Gradients for Grads {
    fn add(&mut self, name: &str, grad: Tensor) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        let place = self.units.find(name);
        let (unit, index) = place.ok_or_else(|| Error::Unknown {
            name: name.to_owned(),
        })?;
        let part = &self.units.units[unit].parts[index];
        if grad.size() != part.local {
            return Err(Error::Shape {
                name: name.to_owned(),
                got: grad.size(),
                want: part.local.clone(),
            });
        }
        let (sum, kind) = match &mut self.sums[unit] {
            Sum::Whole(parts) => (&mut parts[index], self.kind),
            // widened when it is laid out for the reduction
            Sum::Shards { arriving, .. } => (&mut arriving[index], grad.kind()),
        };
        match sum {
            // in place: a bf16 gradient is widened inside the addition
            Some(sum) => {
                let _ = sum.g_add_(&grad);
            }
            // the first one is taken over, not copied
            none => *none = Some(grad.to_kind(kind).contiguous()),
        }
        Ok(())
    }

    fn done(&mut self, names: &[String]) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        for unit in self.units.of_names(names.iter().map(String::as_str)) {
            self.scatter(unit)?;
        }
        Ok(())
    }

    /// Adds what the reduction under way brings.
    fn settle(&mut self) -> Result<(), Error> {
        let Some(done) = self.under_way.take() else {
            return Ok(());
        };
        done.pending.wait()?;
        if let Sum::Shards { flat, .. } = &mut self.sums[done.unit] {
            match flat {
                Some(flat) => {
                    let _ = flat.g_add_(&done.out);
                }
                none => *none = Some(done.out),
            }
        }
        Ok(())
    }
}

fn reduce_buckets(tensors: &mut [&mut Tensor], collective: &dyn Collective) -> Result<(), Error> {
    let mut rest = tensors;
    while !rest.is_empty() {
        let mut elements = 0;
        let mut n = 0;
        while n < rest.len() && (n == 0 || elements + rest[n].numel() as i64 <= BUCKET) {
            elements += rest[n].numel() as i64;
            n += 1;
        }
        let (bucket, tail) = rest.split_at_mut(n);
        reduce_bucket(bucket, collective)?;
        rest = tail;
    }
    Ok(())
}

fn reduce_bucket(bucket: &mut [&mut Tensor], collective: &dyn Collective) -> Result<(), Error> {
    let phase = "gradient reduction";
    if let [one] = bucket {
        return collective.all_reduce_sum(one, phase);
    }
    let flat: Vec<Tensor> = bucket.iter().map(|t| t.view([-1])).collect();
    let mut flat = Tensor::cat(&flat, 0);
    collective.all_reduce_sum(&mut flat, phase)?;
    let mut at = 0;
    for tensor in bucket.iter_mut() {
        let n = tensor.numel() as i64;
        let shape = tensor.size();
        tensor.copy_(&flat.narrow(0, at, n).view(shape.as_slice()));
        at += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grads(kind: Kind) -> Grads {
        let shapes = [("a".to_owned(), vec![2, 2]), ("b".to_owned(), vec![3])];
        Grads::new(shapes, kind, Device::Cpu)
    }

    fn norm(grads: &Grads) -> f64 {
        grads.norm().expect("alone")
    }

    #[test]
    fn sums_in_accumulation_kind_and_knows_its_parameters() {
        let mut grads = grads(Kind::Float);
        // 256 + 1 is lost in bf16
        let tall = Tensor::full([3], 256.0, (Kind::BFloat16, Device::Cpu));
        let one = Tensor::ones([3], (Kind::BFloat16, Device::Cpu));
        for grad in [&tall, &one, &one] {
            grads.add("b", grad.shallow_clone()).expect("fits");
        }
        let sum = grads.get("b").expect("added");
        assert_eq!(Vec::<f32>::try_from(&sum).expect("numbers"), [258.0; 3]);
        assert!(grads.get("a").is_none());
        let wrong = grads
            .add("a", one.shallow_clone())
            .expect_err("misshaped")
            .to_string();
        assert_eq!(
            wrong,
            "gradient of 'a' has shape [3], its parameter has [2, 2]"
        );
        assert!(matches!(grads.add("c", one), Err(Error::Unknown { name }) if name == "c"));
    }

    #[test]
    fn norm_is_over_all_parameters_and_shows_what_is_not_finite() {
        let mut grads = grads(Kind::Double);
        assert_eq!(norm(&grads), 0.0);
        grads
            .add("a", Tensor::full([2, 2], 2.0, (Kind::Double, Device::Cpu)))
            .expect("fits");
        grads
            .add("b", Tensor::full([3], 3.0, (Kind::Double, Device::Cpu)))
            .expect("fits");
        assert!((norm(&grads) - 43f64.sqrt()).abs() < 1e-12);
        grads.scale(0.5);
        assert!((norm(&grads) - 43f64.sqrt() / 2.0).abs() < 1e-12);
        let bad = Tensor::from_slice(&[0.0, f64::NAN, 0.0]);
        grads.add("b", bad).expect("fits");
        assert!(norm(&grads).is_nan());
        grads.clear();
        grads.reduce().expect("alone");
        assert_eq!(norm(&grads), 0.0);
        assert_eq!(grads.iter().count(), 2, "zeros where nothing came");
    }
}
