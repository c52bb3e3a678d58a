//! Adaptive rounding (AdaRound, Nagel et al., ICML 2020): each weight is rounded up or down as the layer's output
//! needs it, not to whichever level is nearer.
//!
//! While it is being learned, a weight is `s clamp(floor(w / s) + h(V), min, max)` with
//! `h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1)`; at the end `h` becomes 1 where `V >= 0` and 0 elsewhere.

use burn_tensor::activation::sigmoid;
use burn_tensor::{Tensor, TensorData};

use super::super::weights::LayerWeights;
use super::adam::Adam;
use super::{Device, Grad, Inner};

/// The sigmoid is stretched beyond 0 and 1, so that `h` gets there at a finite `V`.
const STRETCH: f32 = 1.2;
const SHIFT: f32 = -0.1;
/// Nearer than this to 0 or 1, a variable counts as converged.
const CONVERGED: f32 = 0.05;

/// The rounding variables of one layer.
#[derive(Debug, Clone)]
pub struct Rounding {
    /// `floor(w / s)`, shaped as the weights.
    floor: Tensor<Inner, 4>,
    /// `s` per output channel, shaped so that it spreads over the weights.
    scale: Tensor<Inner, 4>,
    min: f32,
    max: f32,
    variable: Tensor<Inner, 4>,
    adam: Adam<Inner, 4>,
}

impl Rounding {
    /// Starts where `h` is the fractional part, so that the soft weights are the float ones (those within the range).
    ///
    /// `float` are the float weights in the order of `layer`. An error says what is wrong with the layer.
    pub fn new(
        float: &[f32],
        layer: &LayerWeights,
        rate: f64,
        device: &Device,
    ) -> Result<Self, String> {
        let dims: [usize; 4] = layer
            .dims
            .as_slice()
            .try_into()
            .map_err(|_| format!("has weights of shape {:?}, not of rank 4", layer.dims))?;
        let levels = match layer.channels.first() {
            Some(channel) => channel.chosen.levels,
            None => return Err("has no output channels".into()),
        };
        let scales = layer.scales();
        let mut floor = Vec::with_capacity(float.len());
        let mut variable = Vec::with_capacity(float.len());
        for (i, &w) in float.iter().enumerate() {
            let level = w / scales[layer.channel(i)];
            let down = level.floor();
            floor.push(down);
            // The inverse of h. The ends keep it finite.
            let h = (level - down).clamp(0.001, 0.999);
            variable.push(-(STRETCH / (h - SHIFT) - 1.0).ln());
        }
        let mut spread = [1; 4];
        spread[layer.axis] = dims[layer.axis];
        Ok(Rounding {
            floor: Tensor::from_data(TensorData::new(floor, dims), device),
            scale: Tensor::from_data(TensorData::new(scales, spread), device),
            min: levels.min as f32,
            max: levels.max as f32,
            variable: Tensor::from_data(TensorData::new(variable, dims), device),
            adam: Adam::new(rate),
        })
    }

    /// The variables as something to take the gradient of.
    pub fn tracked(&self) -> Tensor<Grad, 4> {
        Tensor::from_inner(self.variable.clone()).require_grad()
    }

    /// The weights that tracked variables stand for.
    pub fn soft(&self, tracked: &Tensor<Grad, 4>) -> Tensor<Grad, 4> {
        let level = Tensor::from_inner(self.floor.clone()) + h(tracked);
        level.clamp(self.min, self.max) * Tensor::from_inner(self.scale.clone())
    }

    /// Mean of `1 - |2h - 1|^beta`: 0 where every `h` is 0 or 1.
    pub fn penalty(tracked: &Tensor<Grad, 4>, beta: f64) -> Tensor<Grad, 1> {
        let distance = (h(tracked) * 2.0 - 1.0).abs();
        (distance.powf_scalar(beta as f32) * -1.0 + 1.0).mean()
    }

    /// One optimiser step.
    pub fn step(&mut self, gradient: Tensor<Inner, 4>) {
        self.variable = self.adam.step(self.variable.clone(), gradient);
    }

    /// The integers that the variables have come to, row-major as the weights.
    pub fn integers(&self) -> Vec<i8> {
        let floor = values(&self.floor);
        let variable = values(&self.variable);
        floor
            .iter()
            .zip(&variable)
            .map(|(&down, &v)| {
                let up = f32::from(u8::from(v >= 0.0));
                (down + up).clamp(self.min, self.max) as i8
            })
            .collect()
    }

    /// Share of the variables that have all but decided.
    pub fn converged(&self) -> f64 {
        let variable = values(&self.variable);
        let decided = variable.iter().filter(|&&v| {
            let h = (STRETCH / (1.0 + (-v).exp()) + SHIFT).clamp(0.0, 1.0);
            h.min(1.0 - h) <= CONVERGED
        });
        decided.count() as f64 / variable.len().max(1) as f64
    }
}

fn h(variable: &Tensor<Grad, 4>) -> Tensor<Grad, 4> {
    (sigmoid(variable.clone()) * STRETCH + SHIFT).clamp(0.0, 1.0)
}

/// A tensor's values, row-major.
pub(super) fn values<const D: usize>(tensor: &Tensor<Inner, D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}
