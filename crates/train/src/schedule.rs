//! Learning-rate schedules: a pure function of the step.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Falls linearly.
    Linear,
    /// Falls along half a cosine.
    Cosine,
    /// Warm-up, stable, decay: stays at the peak, then falls linearly over the last steps.
    Wsd,
}

/// A learning-rate schedule over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Peak learning rate.
    pub lr: f64,
    /// What happens after warm-up.
    pub shape: Shape,
    /// Steps in which the rate rises linearly to the peak.
    pub warmup: u64,
    /// Steps in all.
    pub steps: u64,
    /// Share of the steps after warm-up in which [`Shape::Wsd`] falls.
    pub decay: f64,
    /// What the rate falls to at the end, as a share of the peak.
    pub final_lr: f64,
}

impl Schedule {
    /// Learning rate of step `step`, counted from 0. The first warm-up step has `lr / warmup`, not
    /// zero, and the last step a rate above zero, so that no step is spent on nothing.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        let left = match self.shape {
            Shape::Constant => return self.lr,
            Shape::Linear => 1.0 - done,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Shape::Wsd if self.decay > 0.0 => ((1.0 - done) / self.decay).min(1.0),
            Shape::Wsd => 1.0,
        };
        self.lr * (self.final_lr + (1.0 - self.final_lr) * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape) -> Schedule {
        Schedule {
            lr: 2.0,
            shape,
            warmup: 4,
            steps: 104,
            decay: 0.2,
            final_lr: 0.0,
        }
    }

    #[test]
    fn warms_up_then_follows_the_shape() {
        for shape in [Shape::Constant, Shape::Linear, Shape::Cosine, Shape::Wsd] {
            let s = schedule(shape);
            let rises: Vec<f64> = (0..5).map(|i| s.at(i)).collect();
            assert_eq!(rises, [0.5, 1.0, 1.5, 2.0, 2.0], "{shape:?}");
            assert!(s.at(103) > 0.0 && s.at(103) <= 2.0);
        }
        assert_eq!(schedule(Shape::Constant).at(103), 2.0);
        assert_eq!(schedule(Shape::Linear).at(54), 1.0);
        assert!((schedule(Shape::Cosine).at(54) - 1.0).abs() < 1e-12);
        assert_eq!(schedule(Shape::Wsd).at(83), 2.0);
        assert!((schedule(Shape::Wsd).at(94) - 1.0).abs() < 1e-12);
        assert_eq!(schedule(Shape::Linear).at(1000), 0.0);
    }
}
