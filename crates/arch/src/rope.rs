//! Rotary position embedding: base frequencies and the scalings that change them.
//!
//! Formulas follow `transformers` 5 (`modeling_rope_utils.py`), in single precision as there, so
//! that angles at large positions agree.

use crate::error::Error;
use crate::reader::Reader;
use serde_json::Value;

/// Rotary embedding of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Size of a head; every pair of its elements is rotated.
    pub head_dim: usize,
    /// What stretches the base frequencies.
    pub scaling: Scaling,
}

/// How the base frequencies are changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all. Also `dynamic`, which only differs beyond `max_position_embeddings`.
    None,
    /// Every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear { factor: f64 },
    /// Llama 3.1: long wavelengths divided by `factor`, middle ones blended.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071), with its scale of cosines and sines.
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
        original_max_positions: usize,
        truncate: bool,
    },
}

const KNOWN: &str = "known: default, linear, dynamic, llama3, yarn";

impl Rope {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
    /// `default_theta` holds where neither is.
    pub(crate) fn read(
        r: &Reader,
        head_dim: usize,
        max_positions: usize,
        default_theta: f64,
    ) -> Result<Self, Error> {
        // As transformers 5 does, a `rope_scaling` that is there wins over `rope_parameters`.
        let table = match r.object("rope_scaling")?.filter(|t| !t.is_empty()) {
            Some(t) => Some(t),
            None => r.object("rope_parameters")?,
        };
        let top_theta = r.positive("rope_theta")?;
        let theta = match &table {
            Some(t) => t.positive("rope_theta")?.or(top_theta),
            None => top_theta,
        }
        .unwrap_or(default_theta);
        let partial = "partial_rotary_factor";
        for reader in [Some(r), table.as_ref()].into_iter().flatten() {
            if reader.number(partial)?.unwrap_or(1.0) != 1.0 {
                return Err(reader.unsupported(partial, "only 1.0 is"));
            }
        }
        let scaling = match &table {
            Some(t) => Scaling::read(r, t, max_positions)?,
            None => Scaling::None,
        };
        Ok(Self {
            theta,
            head_dim,
            scaling,
        })
    }

    /// Radians per position of each rotated pair: `head_dim / 2` values.
    pub fn inv_freq(&self) -> Vec<f32> {
        let dim = self.head_dim;
        let exponent = |i: usize| (2 * i) as f32 / dim as f32;
        // A double power rounded once is within an ulp of torch's single one.
        let power = |i: usize| self.theta.powf(f64::from(exponent(i))) as f32;
        let base = |i: usize| 1.0 / power(i);
        let pairs = 0..dim / 2;
        match &self.scaling {
            Scaling::None => pairs.map(base).collect(),
            Scaling::Linear { factor } => pairs.map(|i| base(i) / *factor as f32).collect(),
            Scaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let (factor, low, high) = (
                    *factor as f32,
                    *low_freq_factor as f32,
                    *high_freq_factor as f32,
                );
                let old = *original_max_positions as f32;
                pairs
                    .map(|i| {
                        let freq = base(i);
                        let wavelength = 2.0 * std::f32::consts::PI / freq;
                        if wavelength > old / low {
                            freq / factor
                        } else if wavelength < old / high {
                            freq
                        } else {
                            let smooth = (old / wavelength - low) / (high - low);
                            (1.0 - smooth) * freq / factor + smooth * freq
                        }
                    })
                    .collect()
            }
            Scaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_positions,
                truncate,
                ..
            } => {
                let correction = |rotations: f64| {
                    let old = *original_max_positions as f64;
                    dim as f64 * (old / (rotations * 2.0 * std::f64::consts::PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                pairs
                    .map(|i| {
                        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                        let keep = 1.0 - ramp;
                        let stretched = 1.0 / (*factor as f32 * power(i));
                        stretched * (1.0 - keep) + base(i) * keep
                    })
                    .collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            Scaling::Yarn {
                attention_factor, ..
            } => *attention_factor,
            _ => 1.0,
        }
    }
}

impl Scaling {
    fn read(top: &Reader, t: &Reader, max_positions: usize) -> Result<Self, Error> {
        let key = if t.has("rope_type") {
            "rope_type"
        } else {
            "type"
        };
        let original = || -> Result<usize, Error> {
            // As transformers: the top-level key wins, then the table's, then the model's maximum.
            match top.size("original_max_position_embeddings")? {
                Some(n) => Ok(n),
                None => Ok(t
                    .size("original_max_position_embeddings")?
                    .unwrap_or(max_positions)),
            }
        };
        match t.text(key)? {
            None | Some("default" | "dynamic") => {
                if t.value("full_attention").is_some() || t.value("sliding_attention").is_some() {
                    return Err(top.unsupported(
                        "rope_parameters",
                        "parameters per layer type are not; give one set for all layers",
                    ));
                }
                Ok(Self::None)
            }
            Some("linear") => Ok(Self::Linear {
                factor: t.need_positive("factor")?,
            }),
            Some("llama3") => {
                let (low, high) = (
                    t.need_positive("low_freq_factor")?,
                    t.need_positive("high_freq_factor")?,
                );
                if high <= low {
                    return Err(t.wrong(
                        "high_freq_factor",
                        &Value::from(high),
                        &format!("above low_freq_factor ({low})"),
                    ));
                }
                Ok(Self::Llama3 {
                    factor: t.need_positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_positions: original()?,
                })
            }
            Some("yarn") => {
                let old = original()?;
                let factor = t
                    .positive("factor")?
                    .unwrap_or(max_positions as f64 / old as f64);
                let scale = |mscale: f64| {
                    if factor <= 1.0 {
                        1.0
                    } else {
                        0.1 * mscale * factor.ln() + 1.0
                    }
                };
                let nonzero = |k: &str| -> Result<Option<f64>, Error> {
                    Ok(t.number(k)?.filter(|x| *x != 0.0))
                };
                let attention_factor = match t.number("attention_factor")? {
                    Some(x) => x,
                    None => match (nonzero("mscale")?, nonzero("mscale_all_dim")?) {
                        (Some(a), Some(b)) => scale(a) / scale(b),
                        _ => scale(1.0),
                    },
                };
                Ok(Self::Yarn {
                    factor,
                    beta_fast: nonzero("beta_fast")?.unwrap_or(32.0),
                    beta_slow: nonzero("beta_slow")?.unwrap_or(1.0),
                    attention_factor,
                    original_max_positions: old,
                    truncate: t.flag("truncate")?.unwrap_or(true),
                })
            }
            Some(_) => Err(t.unsupported(key, KNOWN)),
        }
    }
}
