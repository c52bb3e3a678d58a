//! Weights as integers, per output channel.

use super::quantizer::Levels;
use super::ranges::{Choice, Search, weight_channel};
use crate::onnx::Tensor;

/// The weights of one layer: what ranges and rounding decide, and what the export writes.
///
/// The integers are kept, not just the steps: a rounding other than to the nearest (adaptive rounding) only
/// has to replace them.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerWeights {
    pub dims: Vec<usize>,
    pub axis: usize,
    /// Per output channel: the max-min step, the chosen one, and their errors.
    pub channels: Vec<Choice>,
    /// Row-major, as the float weights.
    pub integers: Vec<i8>,
}

impl LayerWeights {
    /// Chooses a step per channel by grid search and rounds to the nearest.
    ///
    /// `axis` is the one that runs over output channels; `levels` must fit `i8`.
    pub fn calibrate(
        weight: &Tensor<f32>,
        axis: usize,
        levels: Levels,
        search: &Search,
    ) -> Result<Self, String> {
        if axis >= weight.dims.len() {
            return Err(format!(
                "weights of shape {:?} have no axis {axis}",
                weight.dims
            ));
        }
        if let Some(odd) = weight.data.iter().find(|w| !w.is_finite()) {
            return Err(format!("holds {odd}"));
        }
        let mut layer = LayerWeights {
            dims: weight.dims.clone(),
            axis,
            channels: Vec::new(),
            integers: Vec::new(),
        };
        let mut rows: Vec<Vec<f32>> = vec![Vec::new(); weight.dims[axis]];
        for (i, &w) in weight.data.iter().enumerate() {
            rows[layer.channel(i)].push(w);
        }
        layer.channels = rows
            .iter()
            .map(|row| weight_channel(row, levels, search))
            .collect();
        layer.integers = layer.nearest(&weight.data);
        Ok(layer)
    }

    /// Output channel of the element at a flat index.
    pub fn channel(&self, index: usize) -> usize {
        let inner: usize = self.dims[self.axis + 1..].iter().product();
        index / inner.max(1) % self.dims[self.axis]
    }

    /// Float weights rounded to the nearest integers at the chosen steps.
    fn nearest(&self, weights: &[f32]) -> Vec<i8> {
        weights
            .iter()
            .enumerate()
            .map(|(i, &w)| self.channels[self.channel(i)].chosen.quantize(w) as i8)
            .collect()
    }

    /// The values that the integers stand for.
    pub fn dequantized(&self) -> Vec<f32> {
        self.integers
            .iter()
            .enumerate()
            .map(|(i, &q)| {
                self.channels[self.channel(i)]
                    .chosen
                    .dequantize(i32::from(q))
            })
            .collect()
    }

    /// Step per output channel.
    pub fn scales(&self) -> Vec<f32> {
        self.channels.iter().map(|c| c.chosen.scale).collect()
    }

    /// Widens steps where a bias would not fit `int32` in steps of `input_scale` times the weight step.
    ///
    /// That happens only where weights are tiny against the bias, so what the weights lose is far below one
    /// step of the output. Channels that change are rounded to the nearest, the others keep their integers.
    /// Returns how many changed.
    pub fn fit_bias(&mut self, weights: &[f32], bias: &[f32], input_scale: f32) -> usize {
        // A factor of two below the limit leaves room for the sum of products.
        const LIMIT: f32 = (1u32 << 30) as f32;
        let mut changed = vec![false; self.channels.len()];
        for ((channel, &b), changed) in self.channels.iter_mut().zip(bias).zip(&mut changed) {
            let least = b.abs() / LIMIT / input_scale;
            if channel.chosen.scale < least {
                channel.chosen = channel.chosen.with_scale(least);
                *changed = true;
            }
        }
        let nearest = self.nearest(weights);
        for (i, q) in nearest.into_iter().enumerate() {
            if changed[self.channel(i)] {
                self.integers[i] = q;
            }
        }
        changed.into_iter().filter(|c| *c).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEARCH: Search = Search {
        alpha: 0.01,
        beta: 1.2,
        steps: 100,
        p: 2.0,
    };

    #[test]
    fn each_channel_gets_its_own_step_on_either_axis() {
        // Channel c holds values up to 10^c.
        let data = vec![0.5, 1.0, -5.0, 10.0, 50.0, -100.0];
        let by_row = Tensor {
            dims: vec![3, 2, 1, 1],
            data: data.clone(),
        };
        let rows = LayerWeights::calibrate(&by_row, 0, Levels::symmetric(8), &SEARCH).unwrap();
        let by_column = Tensor {
            dims: vec![2, 3, 1, 1],
            data: vec![0.5, -5.0, 50.0, 1.0, 10.0, -100.0],
        };
        let columns =
            LayerWeights::calibrate(&by_column, 1, Levels::symmetric(8), &SEARCH).unwrap();
        assert_eq!(rows.scales(), columns.scales());
        assert!(rows.scales()[2] > 50.0 * rows.scales()[0]);
        for (w, q) in data.iter().zip(rows.dequantized()) {
            assert!((w - q).abs() < 0.01 * w.abs().max(1.0), "{w} became {q}");
        }
    }

    #[test]
    fn a_bias_too_large_for_int32_widens_the_step() {
        let weight = Tensor {
            dims: vec![2, 1, 1, 1],
            data: vec![1e-9, 1.0],
        };
        let mut layer = LayerWeights::calibrate(&weight, 0, Levels::symmetric(8), &SEARCH).unwrap();
        assert_eq!(layer.fit_bias(&weight.data, &[100.0, 100.0], 0.01), 1);
        assert!(
            100.0 / (0.01 * f64::from(layer.scales()[0])) <= f64::from(i32::MAX / 2 + 1) * 1.001
        );
        assert_eq!(layer.integers[0], 0);
        // A channel whose bias fits keeps what was learned for it.
        layer.integers[1] -= 1;
        let learned = layer.integers[1];
        assert_eq!(layer.fit_bias(&weight.data, &[200.0, 100.0], 0.01), 1);
        assert_eq!(layer.integers[1], learned);
    }
}
