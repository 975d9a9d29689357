//! Gradient buffers by Hugging Face name.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::{Collective, Error};

/// The door through which gradients leave the engine. One process keeps them whole ([`Grads`]);
/// a sharded mesh may reduce and scatter each as it comes.
pub trait Gradients {
    /// Adds a gradient of the whole parameter `name`. May come several times per parameter and
    /// microbatch (a tied embedding has two uses).
    fn add(&mut self, name: &str, grad: Tensor) -> Result<(), Error>;
}

/// Elements per all-reduce: few calls, and a bounded copy.
const BUCKET: i64 = 8 << 20;

/// Whole gradients, accumulated in fp32 (fp64 when computing in fp64) whatever the compute kind.
pub struct Grads {
    kind: Kind,
    device: Device,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    shape: Vec<i64>,
    sum: Option<Tensor>,
}

impl Grads {
    /// Empty buffers for parameters of these names and shapes. `kind` is the accumulation kind.
    pub fn new(
        parameters: impl IntoIterator<Item = (String, Vec<i64>)>,
        kind: Kind,
        device: Device,
    ) -> Grads {
        let entries = parameters
            .into_iter()
            .map(|(name, shape)| (name, Entry { shape, sum: None }))
            .collect();
        Grads {
            kind,
            device,
            entries,
        }
    }

    /// Forgets what was accumulated.
    pub fn clear(&mut self) {
        for entry in self.entries.values_mut() {
            entry.sum = None;
        }
    }

    /// Moves everything out, leaving no parameters.
    pub fn take(&mut self) -> Grads {
        Grads {
            kind: self.kind,
            device: self.device,
            entries: std::mem::take(&mut self.entries),
        }
    }

    /// Accumulated gradients by name, in name order; parameters that got none are left out.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries
            .iter()
            .filter_map(|(name, e)| Some((name.as_str(), e.sum.as_ref()?)))
    }

    /// The gradient of one parameter, if it got any.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.get(name)?.sum.as_ref()
    }

    /// Sums over ranks. Afterwards every parameter has a gradient (zeros where no rank had one)
    /// and all ranks hold the same bits.
    pub fn reduce(&mut self, collective: &dyn Collective) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        for entry in self.entries.values_mut() {
            if entry.sum.is_none() {
                entry.sum = Some(Tensor::zeros(&entry.shape, (self.kind, self.device)));
            }
        }
        if collective.size() == 1 {
            return Ok(());
        }
        let mut sums: Vec<&mut Tensor> = self
            .entries
            .values_mut()
            .filter_map(|e| e.sum.as_mut())
            .collect();
        let mut rest = sums.as_mut_slice();
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

    /// Square root of the sum of squares over all parameters, fp64. Identical on ranks that hold
    /// identical gradients; NaN or infinite when any element is.
    pub fn norm(&self) -> f64 {
        let _no_grad = tch::no_grad_guard();
        let norms: Vec<Tensor> = self
            .iter()
            .map(|(_, g)| g.norm_scalaropt_dtype(2.0, Kind::Double))
            .collect();
        if norms.is_empty() {
            return 0.0;
        }
        let all = Tensor::stack(&norms, 0);
        (&all * &all).sum(Kind::Double).sqrt().double_value(&[])
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f64) {
        let _no_grad = tch::no_grad_guard();
        for sum in self.entries.values_mut().filter_map(|e| e.sum.as_mut()) {
            let _ = sum.g_mul_scalar_(factor);
        }
    }
}

impl Gradients for Grads {
    fn add(&mut self, name: &str, grad: Tensor) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        let entry = self.entries.get_mut(name).ok_or_else(|| Error::Unknown {
            name: name.to_owned(),
        })?;
        if grad.size() != entry.shape {
            return Err(Error::Shape {
                name: name.to_owned(),
                got: grad.size(),
                want: entry.shape.clone(),
            });
        }
        match &mut entry.sum {
            // in place: a bf16 gradient is widened inside the addition
            Some(sum) => {
                let _ = sum.g_add_(&grad);
            }
            // the first one is taken over, not copied
            none => *none = Some(grad.to_kind(self.kind).contiguous()),
        }
        Ok(())
    }
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
        assert_eq!(Vec::<f32>::try_from(sum).expect("numbers"), [258.0; 3]);
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
        assert_eq!(grads.norm(), 0.0);
        grads
            .add("a", Tensor::full([2, 2], 2.0, (Kind::Double, Device::Cpu)))
            .expect("fits");
        grads
            .add("b", Tensor::full([3], 3.0, (Kind::Double, Device::Cpu)))
            .expect("fits");
        assert!((grads.norm() - 43f64.sqrt()).abs() < 1e-12);
        grads.scale(0.5);
        assert!((grads.norm() - 43f64.sqrt() / 2.0).abs() < 1e-12);
        let bad = Tensor::from_slice(&[0.0, f64::NAN, 0.0]);
        grads.add("b", bad).expect("fits");
        assert!(grads.norm().is_nan());
        grads.clear();
        grads.reduce(&crate::Solo).expect("alone");
        assert_eq!(grads.norm(), 0.0);
        assert_eq!(grads.iter().count(), 2, "zeros where nothing came");
    }
}
