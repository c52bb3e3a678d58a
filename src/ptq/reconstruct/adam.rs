//! Adam (Kingma and Ba, 2015), with bias correction, for one tensor.

use burn_tensor::{Tensor, backend::Backend};

const MOMENTUM: f64 = 0.9;
const SQUARES: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The running moments of one tensor's gradient.
#[derive(Debug, Clone)]
pub struct Adam<B: Backend, const D: usize> {
    rate: f64,
    step: i32,
    moments: Option<[Tensor<B, D>; 2]>,
}

impl<B: Backend, const D: usize> Adam<B, D> {
    /// `rate`: about how much an element changes in one step.
    pub fn new(rate: f64) -> Self {
        Adam {
            rate,
            step: 0,
            moments: None,
        }
    }

    /// The tensor after one step against the gradient.
    pub fn step(&mut self, value: Tensor<B, D>, gradient: Tensor<B, D>) -> Tensor<B, D> {
        self.step += 1;
        let [mean, squares] = match self.moments.take() {
            Some(moments) => moments,
            None => [gradient.zeros_like(), gradient.zeros_like()],
        };
        let mean = mean * MOMENTUM + gradient.clone() * (1.0 - MOMENTUM);
        let squares = squares * SQUARES + gradient.square() * (1.0 - SQUARES);
        let unbiased = mean.clone() / (1.0 - MOMENTUM.powi(self.step));
        let spread = (squares.clone() / (1.0 - SQUARES.powi(self.step))).sqrt();
        self.moments = Some([mean, squares]);
        value - unbiased * self.rate / (spread + EPSILON)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Inner;
    use super::*;

    #[test]
    fn it_walks_to_the_least_of_a_valley_whose_slopes_differ_a_thousandfold() {
        let device = Default::default();
        let target = Tensor::<Inner, 1>::from_floats([3.0, -2.0], &device);
        let slope = Tensor::<Inner, 1>::from_floats([1000.0, 1.0], &device);
        let mut x = target.zeros_like();
        let mut adam = Adam::new(0.05);
        let mut first = None;
        for _ in 0..400 {
            let gradient = (x.clone() - target.clone()) * slope.clone();
            x = adam.step(x, gradient);
            first.get_or_insert(x.to_data().to_vec::<f32>().unwrap());
        }
        // The first step has the length of the rate, whatever the slope.
        for (x, sign) in first.unwrap().iter().zip([1.0, -1.0]) {
            assert!((x * sign - 0.05).abs() < 1e-4);
        }
        for (x, t) in x.to_data().to_vec::<f32>().unwrap().iter().zip([3.0, -2.0]) {
            assert!((x - t).abs() < 0.02, "{x} for {t}");
        }
    }
}
