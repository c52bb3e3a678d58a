//! Convolutions as matrix products against burn's own on the same backend (`burn-flex`), forward and with both
//! gradients: how many times as fast, by turns in one run.
//!
//! ```text
//! cargo bench --bench convolution
//! ```

use std::time::Instant;

use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_tensor::module::conv2d;
use burn_tensor::ops::ConvOptions;
use burn_tensor::{Tensor, TensorData};
use centerpoint_ptq::ptq::network::convolution::convolution;

type B = Autodiff<Flex>;

/// Windows of 64 pillars, four a step: inputs, outputs, rows and columns, stride. Of the demo model, then of full size.
const LAYERS: [(usize, usize, usize, usize); 7] = [
    (32, 32, 64, 2),
    (32, 32, 32, 1),
    (64, 64, 16, 1),
    (144, 48, 32, 1),
    (64, 64, 64, 1),
    (256, 256, 16, 1),
    (384, 64, 64, 1),
];
const FRAMES: usize = 4;
const TURNS: usize = 15;

fn random(dims: [usize; 4]) -> Tensor<B, 4> {
    let count = dims.iter().product();
    let data: Vec<f32> = (0..count)
        .map(|i: usize| (i.wrapping_mul(7919) % 1009) as f32 / 1009.0 - 0.5)
        .collect();
    Tensor::from_data(TensorData::new(data, dims), &Default::default())
}

fn seconds(run: impl FnOnce() -> Tensor<B, 4>, gradients: bool) -> f64 {
    let start = Instant::now();
    let y = run();
    if gradients {
        std::hint::black_box(y.sum().backward());
    } else {
        std::hint::black_box(y);
    }
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    println!("convolution 3x3, {FRAMES} windows      forward           with gradients");
    for (inputs, outputs, size, stride) in LAYERS {
        let x = random([FRAMES, inputs, size, size]).require_grad();
        let weight = random([outputs, inputs, 3, 3]).require_grad();
        let mut line =
            format!("{inputs:>4} to {outputs:>3}, {size:>2} x {size:>2}, stride {stride}");
        for gradients in [false, true] {
            let (mut ours, mut burns) = (Vec::new(), Vec::new());
            for _ in 0..TURNS {
                let (x, weight) = (x.clone(), weight.clone());
                let (x2, weight2) = (x.clone(), weight.clone());
                let options = ConvOptions::new([stride; 2], [1, 1], [1, 1], 1);
                burns.push(seconds(move || conv2d(x, weight, None, options), gradients));
                let run = move || convolution(x2, weight2, None, [stride; 2], [1, 1]);
                ours.push(seconds(run, gradients));
            }
            let (ours, burns) = (median(ours), median(burns));
            line += &format!("   {:>6.2} ms, {:>4.1} x", ours * 1e3, burns / ours);
        }
        println!("{line}");
    }
}
