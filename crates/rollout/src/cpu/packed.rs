//! Weights packed for the CPU's widest registers, once for each of their values.
//!
//! A matrix is packed when a product first asks for it and again when it has been changed. That
//! takes its memory a second time, and makes the products of a few rows nearly as fast as those of
//! many.

use std::collections::HashMap;

use kernels::cpu::Lines;
use kernels::cpu::gemm::Panels;
use kernels::cpu::simd::Cell;
use tch::Tensor;

use super::ops::elements;
use super::pool::Pool;

/// Packed matrices by the address of their elements.
#[derive(Default)]
pub struct Packed(HashMap<usize, Entry>);

struct Entry {
    /// The tensor's counter of changes when it was packed.
    version: u64,
    size: [usize; 2],
    lines: Lines,
}

impl Packed {
    /// Packs `weight` (`[n, k]`, contiguous, of `E`'s kind, alive as long as this) unless it is
    /// packed as it is; false where the kernel does not run.
    pub fn ensure<E: Cell>(&mut self, pool: &mut Pool, weight: &Tensor) -> bool {
        let size = [weight.size()[0] as usize, weight.size()[1] as usize];
        if !Panels::<E>::fit(size[1]) {
            return false;
        }
        let version = torch::storage::version(weight);
        let entry = self.0.entry(weight.data_ptr() as usize).or_insert(Entry {
            version: version.wrapping_sub(1),
            size,
            lines: Lines::EMPTY,
        });
        if (entry.version, entry.size) != (version, size) {
            entry.lines.fit(Panels::<E>::size(size));
            let mut team = |count: usize, work: &(dyn Fn(usize) + Sync)| pool.run(count, work);
            Panels::pack(
                &mut team,
                elements::<E>(weight),
                size,
                entry.lines.get_mut(),
            );
            (entry.version, entry.size) = (version, size);
        }
        true
    }

    /// What [`ensure`](Self::ensure) packed.
    ///
    /// # Panics
    /// If it did not.
    pub fn get<E: Cell>(&self, weight: &Tensor) -> Panels<'_, E> {
        let entry = &self.0[&(weight.data_ptr() as usize)];
        Panels::packed(entry.lines.get(), entry.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::{Matrix, Scratch, linear};
    use half::bf16;
    use kernels::cpu::gemm::{Product, multiply};
    use tch::{Device, Kind};

    fn wave(size: &[i64], step: f64, kind: Kind) -> Tensor {
        let n: i64 = size.iter().product();
        let x = (Tensor::arange(n, (Kind::Double, Device::Cpu)) * step).sin();
        x.reshape(size).to_kind(kind)
    }

    /// `x w^T + b` by the packed kernel, on so many threads.
    fn packed<E: Cell>(
        packed: &mut Packed,
        threads: usize,
        x: &[E],
        w: &Tensor,
        b: &[E],
    ) -> Vec<E> {
        let mut pool = Pool::new(threads);
        assert!(packed.ensure::<E>(&mut pool, w), "a kernel");
        let rows = x.len() / w.size()[1] as usize;
        let mut y = vec![E::default(); rows * w.size()[0] as usize];
        let mut team = |count: usize, work: &(dyn Fn(usize) + Sync)| pool.run(count, work);
        let product = Product {
            panels: packed.get(w),
            bias: Some(b),
            y: &mut y,
        };
        multiply(&mut team, x, &mut [product]);
        y
    }

    fn check<E: Cell + PartialEq + std::fmt::Debug>(kind: Kind, same_bits: bool) {
        for (n, k) in [(1, 2), (7, 4), (50, 34), (96, 64), (131, 100), (70, 600)] {
            if !Panels::<E>::fit(k) {
                return; // another machine
            }
            let (rows, mut cache) = (300, Packed::default());
            let x = wave(&[rows as i64, k as i64], 0.37, kind);
            let w = wave(&[n as i64, k as i64], 0.71, kind);
            let b = wave(&[n as i64], 1.3, kind);
            let (x, b) = (elements::<E>(&x), elements::<E>(&b));
            let all = packed(&mut cache, 2, x, &w, b);
            let matrix = Matrix {
                w: elements::<E>(&w),
                bias: Some(b),
                n,
                k,
            };
            let mut plain = vec![E::default(); rows * n];
            let mut scratch = Scratch::default();
            linear(&mut Pool::new(1), &mut scratch, matrix, x, &mut plain);
            for (got, want) in all.iter().zip(&plain) {
                let (got, want) = (got.to_f32(), want.to_f32());
                match same_bits {
                    true => assert_eq!(got, want),
                    false => assert!((got - want).abs() < 1e-2 * want.abs().max(1.0)),
                }
            }
            for some in [1, 2, 15, 24, 25, 64, 130, 257] {
                for from in [0, 1, rows - some] {
                    let x = &x[from * k..(from + some) * k];
                    let y = packed(&mut cache, 1 + some % 3, x, &w, b);
                    assert_eq!(
                        y,
                        all[from * n..(from + some) * n],
                        "{some} rows from {from}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_have_the_same_bits_in_any_company_and_by_any_kernel() {
        check::<f32>(Kind::Float, true);
        check::<bf16>(Kind::BFloat16, false);
    }

    #[test]
    fn a_changed_weight_is_packed_again() {
        if !Panels::<f32>::fit(4) {
            return;
        }
        let mut cache = Packed::default();
        let w = wave(&[3, 4], 0.3, Kind::Float);
        let x = [1.0, 2.0, 3.0, 4.0];
        let before = packed(&mut cache, 1, &x, &w, &[0.0; 3]);
        let _ = w.shallow_clone().g_mul_scalar_(2.0);
        let after = packed(&mut cache, 1, &x, &w, &[0.0; 3]);
        assert!(before.iter().zip(&after).all(|(b, a)| *a == 2.0 * b));
    }
}
