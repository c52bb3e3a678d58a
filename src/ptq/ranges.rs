//! Sparsity-based calibration: steps from the extremes, then a line search for the least error.
//!
//! In: weights, or what a tensor held over the calibration frames. Out: one quantizer per channel or tensor,
//! with the error that its step leaves and the error that the plain max-min step would have left.
//!
//! The objective is the sum of `|x - fake(x)|^p` over all elements. An element that is exactly zero quantizes to
//! exactly zero and adds nothing, so the nine tenths of a bird's-eye-view map that are empty have no say;
//! with entropy calibration they have the most.

use serde::{Deserialize, Serialize};

use super::quantizer::{Levels, Quantizer};

/// The line search for a step: `steps` candidates from `alpha s0` to `beta s0`, `s0` the max-min step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Smallest candidate, as a share of the max-min step.
    pub alpha: f32,
    /// Largest candidate, as a share of the max-min step.
    pub beta: f32,
    /// How many candidates.
    pub steps: usize,
    /// Exponent of the error.
    pub p: f64,
}

impl Search {
    /// The candidates. The max-min step itself is always the first, so that a search never ends worse.
    pub fn candidates(&self, s0: f32) -> impl Iterator<Item = f32> {
        let (alpha, beta, last) = (self.alpha, self.beta, self.steps.saturating_sub(1).max(1));
        std::iter::once(s0).chain(
            (0..self.steps).map(move |i| s0 * (alpha + (beta - alpha) * i as f32 / last as f32)),
        )
    }

    /// What is wrong with the values, if anything.
    pub fn problem(&self) -> Option<String> {
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            Some(format!("alpha is {}; it must be above 0", self.alpha))
        } else if !(self.beta > self.alpha && self.beta <= 1e12) {
            Some(format!(
                "beta is {}; it must be above alpha ({}), and at most 1e12",
                self.beta, self.alpha
            ))
        } else if !(2..=100_000).contains(&self.steps) {
            Some(format!("steps is {}; 2 to 100000", self.steps))
        } else if !(self.p > 0.0 && self.p <= 16.0) {
            Some(format!("p is {}; above 0, at most 16", self.p))
        } else {
            None
        }
    }
}

/// A chosen quantizer beside the max-min one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    pub max_min: Quantizer,
    pub chosen: Quantizer,
    /// Sum of `|x - fake(x)|^p` with the max-min step.
    pub error_max_min: f64,
    /// The same with the chosen step.
    pub error_chosen: f64,
}

impl Choice {
    /// Chosen step as a share of the max-min step: below 1 the range is clipped.
    pub fn ratio(&self) -> f32 {
        self.chosen.scale / self.max_min.scale
    }
}

fn search(max_min: Quantizer, search: &Search, error: impl Fn(&Quantizer) -> f64) -> Choice {
    let mut best: Option<(Quantizer, f64)> = None;
    let mut error_max_min = 0.0;
    for (i, scale) in search.candidates(max_min.scale).enumerate() {
        if scale < f32::MIN_POSITIVE {
            continue;
        }
        let candidate = max_min.with_scale(scale);
        let e = error(&candidate);
        if i == 0 {
            error_max_min = e;
        }
        if best.is_none_or(|(_, least)| e < least) {
            best = Some((candidate, e));
        }
    }
    let (chosen, error_chosen) = best.unwrap_or((max_min, error_max_min));
    Choice {
        max_min,
        chosen,
        error_max_min,
        error_chosen,
    }
}

/// Step for a channel whose weights are all zero: any will do for them; this one is small enough for its bias,
/// which is stored in steps of (input step x weight step).
const STEP_OF_ZEROS: f32 = 1.0 / (1 << 20) as f32;

/// `|d|^p`, without the general power where it can be helped.
fn power(d: f64, p: f64) -> f64 {
    if p == 2.0 { d * d } else { d.abs().powf(p) }
}

/// The step for one output channel's weights.
pub fn weight_channel(weights: &[f32], levels: Levels, options: &Search) -> Choice {
    let extreme = weights.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    let s0 = extreme / levels.max as f32;
    let max_min = Quantizer {
        scale: if s0 >= f32::MIN_POSITIVE {
            s0
        } else {
            STEP_OF_ZEROS
        },
        zero_point: 0,
        levels,
    };
    if s0 < f32::MIN_POSITIVE {
        return Choice {
            max_min,
            chosen: max_min,
            error_max_min: 0.0,
            error_chosen: 0.0,
        };
    }
    search(max_min, options, |q| {
        weights
            .iter()
            .map(|&w| power(f64::from(w) - f64::from(q.fake(w)), options.p))
            .sum()
    })
}

/// First pass over a tensor: its extremes. Values that are not finite are counted, not used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Extremes {
    pub min: f32,
    pub max: f32,
    /// Elements seen.
    pub count: u64,
    /// Elements that are exactly zero.
    pub zeros: u64,
    /// Elements that are NaN or infinite.
    pub not_finite: u64,
}

impl Extremes {
    pub fn add(&mut self, values: &[f32]) {
        for chunk in values.chunks(4096) {
            let (mut lo, mut hi, mut zeros, mut odd) = (0.0f32, 0.0f32, 0u64, 0u64);
            for &v in chunk {
                let finite = v.is_finite();
                let used = if finite { v } else { 0.0 };
                lo = lo.min(used);
                hi = hi.max(used);
                zeros += u64::from(v == 0.0);
                odd += u64::from(!finite);
            }
            // Both start at zero: zero has to be representable anyhow.
            self.min = self.min.min(lo);
            self.max = self.max.max(hi);
            self.zeros += zeros;
            self.not_finite += odd;
        }
        self.count += values.len() as u64;
    }

    pub fn merge(&mut self, other: &Extremes) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.zeros += other.zeros;
        self.not_finite += other.not_finite;
    }
}

/// How activations are mapped to integers on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationType {
    /// `uint8`, the zero point where the range needs it (0 for tensors that are never negative).
    Uint8,
    /// `int8`, zero point 0.
    Int8Symmetric,
}

impl ActivationType {
    /// The max-min quantizer for a range. A tensor that was zero throughout gets step 1.
    pub fn max_min(self, extremes: &Extremes, bits: u32) -> Quantizer {
        let (min, max) = (extremes.min.min(0.0), extremes.max.max(0.0));
        let (scale, zero_point, levels) = match self {
            ActivationType::Uint8 => {
                let levels = Levels::unsigned(bits);
                let scale = (f64::from(max) - f64::from(min)) / f64::from(levels.max);
                let zero = if scale > 0.0 {
                    (-f64::from(min) / scale).round_ties_even()
                } else {
                    0.0
                };
                (scale as f32, zero as i32, levels)
            }
            ActivationType::Int8Symmetric => {
                let levels = Levels::signed(bits);
                (max.max(-min) / levels.max as f32, 0, levels)
            }
        };
        Quantizer {
            scale: if scale >= f32::MIN_POSITIVE {
                scale
            } else {
                1.0
            },
            zero_point: zero_point.clamp(levels.min, levels.max),
            levels,
        }
    }
}

/// Second pass over a tensor: equal bins over its extremes, each with count, sum and sum of squares.
///
/// With the moments the squared error of a quantizer is exact for every bin whose elements all land on one
/// level; only bins that straddle a boundary are approximated (as if all lay at the bin's mean).
/// Exact zeros are not stored: they add no error.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    low: f32,
    inverse_width: f32,
    bins: Vec<Bin>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bin {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Histogram {
    /// An empty histogram over the range found by the first pass.
    pub fn new(extremes: &Extremes, bins: usize) -> Self {
        let bins = bins.max(1);
        let width = (f64::from(extremes.max) - f64::from(extremes.min)) / bins as f64;
        Histogram {
            low: extremes.min,
            inverse_width: if width > 0.0 {
                (1.0 / width).min(f64::from(f32::MAX)) as f32
            } else {
                0.0
            },
            bins: vec![Bin::default(); bins],
        }
    }

    pub fn add(&mut self, values: &[f32]) {
        let last = self.bins.len() - 1;
        for &v in values {
            if v != 0.0 && v.is_finite() {
                // A cast of a negative float to usize is 0.
                let index = (((v - self.low) * self.inverse_width) as usize).min(last);
                let bin = &mut self.bins[index];
                let v = f64::from(v);
                bin.count += 1.0;
                bin.sum += v;
                bin.squares += v * v;
            }
        }
    }

    /// Elements stored, that is those that are not exactly zero.
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|b| b.count).sum::<f64>() as u64
    }

    /// Sum of `|x - fake(x)|^p` over the elements.
    pub fn error(&self, quantizer: &Quantizer, p: f64) -> f64 {
        self.bins
            .iter()
            .filter(|b| b.count > 0.0)
            .map(|b| {
                let mean = b.sum / b.count;
                let q = f64::from(quantizer.fake(mean as f32));
                if p == 2.0 {
                    (b.squares - 2.0 * q * b.sum + b.count * q * q).max(0.0)
                } else {
                    b.count * power(mean - q, p)
                }
            })
            .sum()
    }

    /// Sum of `|x|^p`, the error of a quantizer that maps everything to zero: a yardstick for [`Self::error`].
    pub fn energy(&self, p: f64) -> f64 {
        self.bins
            .iter()
            .filter(|b| b.count > 0.0)
            .map(|b| {
                if p == 2.0 {
                    b.squares
                } else {
                    b.count * power(b.sum / b.count, p)
                }
            })
            .sum()
    }
}

/// The step for an activation tensor.
pub fn activation(
    extremes: &Extremes,
    histogram: &Histogram,
    kind: ActivationType,
    bits: u32,
    options: &Search,
) -> Choice {
    search(kind.max_min(extremes, bits), options, |q| {
        histogram.error(q, options.p)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEARCH: Search = Search {
        alpha: 0.01,
        beta: 1.2,
        steps: 100,
        p: 2.0,
    };

    fn seen(values: &[f32], bins: usize) -> (Extremes, Histogram) {
        let mut extremes = Extremes::default();
        extremes.add(values);
        let mut histogram = Histogram::new(&extremes, bins);
        histogram.add(values);
        (extremes, histogram)
    }

    #[test]
    fn a_planted_weight_clip_is_found() {
        // Everything lies exactly on a grid of step 0.01 up to 1.27, but for one outlier at 2.0: keeping the
        // outlier costs rounding errors on 200000 weights, clipping it costs 0.73 squared once.
        let mut weights: Vec<f32> = (0..200_000)
            .map(|i| ((i % 255) - 127) as f32 * 0.01)
            .collect();
        weights.push(2.0);
        let exact = Search {
            alpha: 0.5,
            beta: 1.0,
            steps: 2001,
            p: 2.0,
        };
        let choice = weight_channel(&weights, Levels::symmetric(8), &exact);
        assert!((choice.chosen.scale - 0.01).abs() < 2e-5, "{choice:?}");
        assert!(choice.error_chosen < choice.error_max_min);
    }

    #[test]
    fn a_planted_activation_clip_is_found() {
        let mut values: Vec<f32> = (0..200_000).map(|i| (i % 256) as f32 * 0.02).collect();
        values.push(7.0);
        let (extremes, histogram) = seen(&values, 4096);
        let exact = Search {
            alpha: 0.4,
            beta: 1.0,
            steps: 2001,
            p: 2.0,
        };
        let choice = activation(&extremes, &histogram, ActivationType::Uint8, 8, &exact);
        assert!((choice.chosen.scale - 0.02).abs() < 5e-5, "{choice:?}");
        assert_eq!(choice.chosen.zero_point, 0);
    }

    #[test]
    fn zeros_have_no_say() {
        let values: Vec<f32> = (1..500)
            .map(|i| (i as f32 * 0.37).sin().abs() * 4.0)
            .collect();
        let mut sparse = vec![0.0; 50_000];
        sparse.extend(&values);
        let (e1, h1) = seen(&values, 2048);
        let (e2, h2) = seen(&sparse, 2048);
        let pick = |e, h| activation(e, h, ActivationType::Uint8, 8, &SEARCH);
        assert_eq!(pick(&e1, &h1), pick(&e2, &h2));
        assert_eq!(e2.zeros, 50_000);
        assert_eq!(h2.count(), values.len() as u64);
    }

    #[test]
    fn a_tensor_or_channel_of_zeros_gets_a_usable_step() {
        let (extremes, histogram) = seen(&[0.0; 16], 64);
        let choice = activation(&extremes, &histogram, ActivationType::Uint8, 8, &SEARCH);
        assert_eq!((choice.chosen.scale, choice.error_chosen), (1.0, 0.0));
        let channel = weight_channel(&[0.0; 9], Levels::symmetric(8), &SEARCH);
        assert!(channel.chosen.scale > 0.0 && channel.error_chosen == 0.0);
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_left_out() {
        let (extremes, histogram) = seen(&[1.0, f32::NAN, f32::INFINITY, 2.0], 16);
        assert_eq!(
            (extremes.not_finite, extremes.max, histogram.count()),
            (2, 2.0, 2)
        );
    }

    proptest! {
        #[test]
        fn a_search_never_ends_worse_than_max_min(
            values in prop::collection::vec(-50f32..50.0, 1..400),
            bits in prop::sample::select(vec![4u32, 8]),
            p in prop::sample::select(vec![1.0, 2.0, 2.4]),
        ) {
            let options = Search { p, ..SEARCH };
            let weights = weight_channel(&values, Levels::symmetric(bits), &options);
            prop_assert!(weights.error_chosen <= weights.error_max_min);
            let (extremes, histogram) = seen(&values, 2048);
            for kind in [ActivationType::Uint8, ActivationType::Int8Symmetric] {
                let choice = activation(&extremes, &histogram, kind, bits, &options);
                prop_assert!(choice.error_chosen <= choice.error_max_min);
            }
        }

        #[test]
        fn the_histogram_gives_the_true_squared_error_to_a_percent(
            values in prop::collection::vec(0f32..50.0, 50..400),
        ) {
            let (extremes, histogram) = seen(&values, 4096);
            let q = ActivationType::Uint8.max_min(&extremes, 8);
            let truth: f64 = values.iter().map(|&v| f64::from(v - q.fake(v)).powi(2)).sum();
            let told = histogram.error(&q, 2.0);
            // A bin is a sixteenth of a step, so few elements share a bin with a boundary.
            prop_assert!((told - truth).abs() <= 0.05 * truth + 1e-9, "{told} for {truth}");
        }

        #[test]
        fn the_max_min_range_covers_both_extremes(a in -100f32..100.0, b in -100f32..100.0) {
            let mut e = Extremes::default();
            e.add(&[a, b]);
            for kind in [ActivationType::Uint8, ActivationType::Int8Symmetric] {
                let q = kind.max_min(&e, 8);
                for x in [a, b] {
                    prop_assert!((q.fake(x) - x).abs() <= q.scale * 1.01 + 1e-6);
                }
            }
        }
    }
}
