//! The uniform quantizer: `q = clamp(round(x / scale) + zero_point, min, max)`, `x' = (q - zero_point) scale`.
//!
//! Arithmetic is the one ONNX defines for QuantizeLinear and DequantizeLinear (f32, ties to even), so integers
//! computed here are those the runtime computes.

use serde::{Deserialize, Serialize};

/// The integers that a quantizer may give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    pub min: i32,
    pub max: i32,
}

impl Levels {
    /// `-(2^(bits-1) - 1) ..= 2^(bits-1) - 1`: weights; as many levels below zero as above.
    pub fn symmetric(bits: u32) -> Self {
        let max = (1 << (bits - 1)) - 1;
        Levels { min: -max, max }
    }

    /// `-2^(bits-1) ..= 2^(bits-1) - 1`: signed activations.
    pub fn signed(bits: u32) -> Self {
        let half = 1 << (bits - 1);
        Levels {
            min: -half,
            max: half - 1,
        }
    }

    /// `0 ..= 2^bits - 1`: unsigned activations.
    pub fn unsigned(bits: u32) -> Self {
        Levels {
            min: 0,
            max: (1 << bits) - 1,
        }
    }
}

/// Step, offset and range of one tensor or one channel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantizer {
    /// Width of a level; positive.
    pub scale: f32,
    /// The integer that stands for zero.
    pub zero_point: i32,
    pub levels: Levels,
}

impl Quantizer {
    /// The integer for a value. NaN gives the zero point.
    pub fn quantize(&self, x: f32) -> i32 {
        // A float-to-integer cast saturates, so infinities end at the range's ends.
        ((x / self.scale).round_ties_even() as i32)
            .saturating_add(self.zero_point)
            .clamp(self.levels.min, self.levels.max)
    }

    /// The value that an integer stands for.
    pub fn dequantize(&self, q: i32) -> f32 {
        (q - self.zero_point) as f32 * self.scale
    }

    /// The value after a round trip through the integers.
    pub fn fake(&self, x: f32) -> f32 {
        self.dequantize(self.quantize(x))
    }

    /// Smallest and largest value that can be represented.
    pub fn range(&self) -> (f32, f32) {
        (
            self.dequantize(self.levels.min),
            self.dequantize(self.levels.max),
        )
    }

    /// The same quantizer with another step.
    #[must_use]
    pub fn with_scale(self, scale: f32) -> Self {
        Quantizer { scale, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_are_those_of_the_integer_types() {
        assert_eq!(
            Levels::symmetric(8),
            Levels {
                min: -127,
                max: 127
            }
        );
        assert_eq!(Levels::symmetric(7), Levels { min: -63, max: 63 });
        assert_eq!(Levels::symmetric(4), Levels { min: -7, max: 7 });
        assert_eq!(
            Levels::signed(8),
            Levels {
                min: -128,
                max: 127
            }
        );
        assert_eq!(Levels::unsigned(8), Levels { min: 0, max: 255 });
    }

    #[test]
    fn ties_go_to_the_even_integer() {
        let q = Quantizer {
            scale: 1.0,
            zero_point: 0,
            levels: Levels::signed(8),
        };
        assert_eq!([0.5, 1.5, 2.5, -0.5].map(|x| q.quantize(x)), [0, 2, 2, 0]);
        assert_eq!(q.quantize(f32::NAN), 0);
        assert_eq!(q.quantize(f32::INFINITY), 127);
        assert_eq!(q.quantize(f32::NEG_INFINITY), -128);
    }

    fn quantizers() -> impl Strategy<Value = Quantizer> {
        (1e-6f32..10.0, 0i32..=255, any::<bool>()).prop_map(|(scale, zero, unsigned)| Quantizer {
            scale,
            zero_point: if unsigned { zero } else { 0 },
            levels: if unsigned {
                Levels::unsigned(8)
            } else {
                Levels::symmetric(8)
            },
        })
    }

    proptest! {
        #[test]
        fn zero_is_always_exact(q in quantizers()) {
            prop_assert_eq!(q.fake(0.0), 0.0);
        }

        #[test]
        fn quantizing_twice_changes_nothing(q in quantizers(), x in -3000f32..3000.0) {
            let once = q.fake(x);
            prop_assert_eq!(q.fake(once), once);
        }

        #[test]
        fn inside_the_range_the_error_is_at_most_half_a_step(q in quantizers(), t in 0f32..1.0) {
            let (lo, hi) = q.range();
            let x = lo + (hi - lo) * t;
            prop_assert!((q.fake(x) - x).abs() <= q.scale * 0.5001 + x.abs() * 1e-6);
        }

        #[test]
        fn outside_the_range_the_nearest_end_is_taken(q in quantizers(), x in -1e9f32..1e9) {
            let (lo, hi) = q.range();
            let end = x.clamp(lo, hi);
            prop_assert!((q.fake(x) - end).abs() <= q.scale * 0.5001 + end.abs() * 1e-6);
        }

        #[test]
        fn order_is_kept(q in quantizers(), a in -100f32..100.0, b in -100f32..100.0) {
            let (a, b) = (a.min(b), a.max(b));
            prop_assert!(q.quantize(a) <= q.quantize(b));
        }
    }
}
