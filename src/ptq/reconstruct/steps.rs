//! Fake quantization of activations, and steps that are learned (LSQ, Esser et al., ICLR 2020).

use burn_tensor::{Tensor, backend::Backend};

use super::super::quantizer::Quantizer;
use super::adam::Adam;
use super::{Device, Grad, Inner};

/// `x` after a round trip through the integers; ties to even, as [`Quantizer::fake`].
pub fn fake<B: Backend>(x: Tensor<B, 4>, quantizer: &Quantizer) -> Tensor<B, 4> {
    let zero = quantizer.zero_point as f32;
    let (min, max) = (
        quantizer.levels.min as f32 - zero,
        quantizer.levels.max as f32 - zero,
    );
    (x / quantizer.scale).round().clamp(min, max) * quantizer.scale
}

/// The step of one group of tensors while it is being learned, as `start exp(change)`: a rate means the same for
/// a step of any size, and no step becomes negative.
#[derive(Debug, Clone)]
pub struct LearnedStep {
    start: Quantizer,
    change: Tensor<Inner, 1>,
    adam: Adam<Inner, 1>,
}

impl LearnedStep {
    pub fn new(start: Quantizer, rate: f64, device: &Device) -> Self {
        LearnedStep {
            start,
            change: Tensor::zeros([1], device),
            adam: Adam::new(rate),
        }
    }

    /// The change as something to take the gradient of.
    pub fn tracked(&self) -> Tensor<Grad, 1> {
        Tensor::from_inner(self.change.clone()).require_grad()
    }

    /// Fake quantization with gradients: rounding passes them as if it were not there, clipping stops them.
    pub fn fake(&self, x: Tensor<Grad, 4>, tracked: &Tensor<Grad, 1>) -> Tensor<Grad, 4> {
        let scale = (tracked.clone().exp() * self.start.scale).reshape([1, 1, 1, 1]);
        let zero = self.start.zero_point as f32;
        let (min, max) = (
            self.start.levels.min as f32 - zero,
            self.start.levels.max as f32 - zero,
        );
        let level = x / scale.clone();
        let jump = (level.clone().round() - level.clone()).detach();
        (level + jump).clamp(min, max) * scale
    }

    /// One optimiser step.
    pub fn step(&mut self, gradient: Tensor<Inner, 1>) {
        self.change = self.adam.step(self.change.clone(), gradient);
    }

    /// The quantizer that it has come to.
    pub fn quantizer(&self) -> Quantizer {
        let change: f32 = self.change.to_data().iter::<f32>().next().unwrap_or(0.0);
        let scale = self.start.scale * change.exp();
        if scale.is_finite() && scale >= f32::MIN_POSITIVE {
            self.start.with_scale(scale)
        } else {
            self.start
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rounding::values;
    use super::*;
    use crate::ptq::quantizer::Levels;
    use burn_tensor::TensorData;
    use proptest::prelude::*;

    fn tensor(x: &[f32]) -> Tensor<Inner, 4> {
        let dims = [1, 1, 1, x.len()];
        Tensor::from_data(TensorData::new(x.to_vec(), dims), &Default::default())
    }

    proptest! {
        #[test]
        fn fake_quantization_is_the_quantizers_own(
            x in prop::collection::vec(-20f32..20.0, 1..50),
            scale in 0.01f32..0.5,
            zero_point in 0i32..200,
        ) {
            let q = Quantizer { scale, zero_point, levels: Levels::unsigned(8) };
            let step = LearnedStep::new(q, 0.1, &Default::default());
            let with_gradient = step.fake(Tensor::from_inner(tensor(&x)), &step.tracked());
            let plain = values(&fake(tensor(&x), &q));
            for ((x, plain), learned) in x.iter().zip(&plain).zip(values(&with_gradient.inner())) {
                prop_assert!((q.fake(*x) - plain).abs() < 1e-5);
                prop_assert!((q.fake(*x) - learned).abs() <= 1e-5 * (1.0 + x.abs()));
            }
        }
    }

    #[test]
    fn the_gradient_of_the_step_is_lsqs() {
        // In range: round(u) - u per unit of step; clipped: the end level. In the logarithm, times the step.
        let q = Quantizer {
            scale: 0.5,
            zero_point: 0,
            levels: Levels::unsigned(4),
        };
        let step = LearnedStep::new(q, 0.1, &Default::default());
        for (x, expected) in [
            (1.1f32, (2.0 - 2.2) * 0.5),
            (100.0, 15.0 * 0.5),
            (-3.0, 0.0),
        ] {
            let tracked = step.tracked();
            let y = step.fake(Tensor::from_inner(tensor(&[x])), &tracked);
            let gradients = y.sum().backward();
            let got = values(&tracked.grad(&gradients).unwrap())[0];
            assert!((got - expected).abs() < 1e-4, "{x}: {got} for {expected}");
        }
    }
}
