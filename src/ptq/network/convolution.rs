//! Convolutions as matrix products, with gradients.
//!
//! Most of a reconstruction's time goes into convolutions of small maps. Here a map is laid out as rows of cells, the
//! channels of a cell side by side, with its border of zeros. The cells under one row of the kernel are then one run of
//! memory, so the map *is* the matrix that `im2col` would write, with rows that overlap; a convolution is one matrix
//! product ([`gemm`]) per row of the kernel, and nothing is copied nine times. The gradient with respect to the map is a
//! convolution of the same kind, the one with respect to the weights the product of the transposed matrix with the
//! output's gradient.
//!
//! Maps are `[frames, channels, y, x]`, weights `[outputs, inputs, y, x]`. Sums are taken in an order that does not
//! depend on the number of threads.

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::{Flex, FlexDevice, FlexTensor};
use burn_tensor::backend::Backend;
use burn_tensor::ops::FloatTensor;
use burn_tensor::{Tensor, TensorData, TensorPrimitive};
use rayon::prelude::*;

/// A backend that the networks run on.
pub trait Convolve: Backend<Device = FlexDevice> {
    /// A convolution with a bias.
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: Shape,
    ) -> FloatTensor<Self>;
}

/// `x` convolved with `weight`, plus `bias`: no groups, no dilation, zeros around the map. The kernel must fit into
/// the map and its border, and the shapes must suit each other.
pub fn convolution<B: Convolve>(
    x: Tensor<B, 4>,
    weight: Tensor<B, 4>,
    bias: Option<Tensor<B, 1>>,
    stride: [usize; 2],
    pads: [usize; 2],
) -> Tensor<B, 4> {
    let [frames, inputs, rows, columns] = x.dims();
    let [outputs, _, kernel_rows, kernel_columns] = weight.dims();
    let shape = Shape {
        frames,
        inputs,
        outputs,
        size: [rows, columns],
        kernel: [kernel_rows, kernel_columns],
        stride,
        pads,
    };
    let bias = bias.unwrap_or_else(|| Tensor::zeros([outputs], &x.device()));
    let [x, weight] = [x, weight].map(|t| t.into_primitive().tensor());
    let y = B::convolve(x, weight, bias.into_primitive().tensor(), shape);
    Tensor::from_primitive(TensorPrimitive::Float(y))
}

/// Sizes of a convolution. Pairs are rows, columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    frames: usize,
    inputs: usize,
    outputs: usize,
    /// Of the map that is convolved.
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    /// Zeros at either side.
    pads: [usize; 2],
}

impl Shape {
    /// Rows and columns of the map with its border.
    fn padded(&self) -> [usize; 2] {
        [0, 1].map(|i| self.size[i] + 2 * self.pads[i])
    }

    /// Rows and columns of the output.
    fn out(&self) -> [usize; 2] {
        let padded = self.padded();
        [0, 1].map(|i| (padded[i] - self.kernel[i]) / self.stride[i] + 1)
    }

    /// Which outputs one product computes. With stride 1 all of them: the output is given the padded map's columns, those
    /// beyond its own being waste, so that neighbours in memory are neighbours on the map. Otherwise a row.
    fn products(&self) -> Products {
        let [rows, columns] = self.out();
        if self.stride == [1, 1] {
            let width = self.padded()[1];
            Products {
                count: 1,
                // The last row ends with the last output.
                cells: (rows - 1) * width + columns,
                width,
            }
        } else {
            Products {
                count: rows,
                cells: columns,
                width: columns,
            }
        }
    }

    /// The convolution that gives the gradient with respect to the map, of the output's gradient (stride 1 only), or
    /// `None` where it is none: where the border is wider than the kernel reaches.
    fn backwards(&self) -> Option<Shape> {
        let reach = [0, 1].map(|i| (self.kernel[i] - 1).checked_sub(self.pads[i]));
        match (self.stride, reach) {
            ([1, 1], [Some(rows), Some(columns)]) => Some(Shape {
                inputs: self.outputs,
                outputs: self.inputs,
                size: self.out(),
                pads: [rows, columns],
                ..*self
            }),
            _ => None,
        }
    }
}

/// How a convolution is cut into products.
struct Products {
    count: usize,
    /// Outputs of each, a cell apart.
    cells: usize,
    /// Cells between the starts of two rows of the output.
    width: usize,
}

/// A map as rows of padded cells, the channels side by side.
fn cells_of(map: &[f32], channels: usize, size: [usize; 2], pads: [usize; 2]) -> Vec<f32> {
    let [rows, columns] = size;
    let width = columns + 2 * pads[1];
    let mut cells = vec![0.0; (rows + 2 * pads[0]) * width * channels];
    // A row at a time, so that what is written stays in the cache.
    for y in 0..rows {
        let start = ((y + pads[0]) * width + pads[1]) * channels;
        let line = &mut cells[start..start + columns * channels];
        for channel in 0..channels {
            let row = &map[(channel * rows + y) * columns..][..columns];
            for (cell, &v) in line.chunks_exact_mut(channels).zip(row) {
                cell[channel] = v;
            }
        }
    }
    cells
}

/// The reverse for an output: cells with `width` of them a row, to `[channels, y, x]`, plus a bias per channel.
fn map_of(cells: &[f32], width: usize, size: [usize; 2], bias: &[f32], map: &mut [f32]) {
    let (channels, [rows, columns]) = (bias.len(), size);
    for y in 0..rows {
        let line = &cells[y * width * channels..];
        for (channel, bias) in bias.iter().enumerate() {
            let row = &mut map[(channel * rows + y) * columns..][..columns];
            for (v, cell) in row.iter_mut().zip(line.chunks_exact(channels)) {
                *v = cell[channel] + bias;
            }
        }
    }
}

/// Calls `visit` with each weight's place in `[outputs, inputs, y, x]`, its tap (`y`, then `x`), input and output.
fn each_weight(shape: &Shape, mut visit: impl FnMut(usize, usize, usize, usize)) {
    let taps = shape.kernel[0] * shape.kernel[1];
    let mut place = 0;
    for output in 0..shape.outputs {
        for input in 0..shape.inputs {
            for tap in 0..taps {
                visit(place, tap, input, output);
                place += 1;
            }
        }
    }
}

/// `[outputs, inputs, y, x]` to `[y, x, inputs, outputs]`.
fn by_tap(weight: &[f32], shape: &Shape) -> Vec<f32> {
    let mut sorted = vec![0.0; weight.len()];
    each_weight(shape, |place, tap, input, output| {
        sorted[(tap * shape.inputs + input) * shape.outputs + output] = weight[place];
    });
    sorted
}

/// The weights of [`Shape::backwards`]: turned by half a turn, inputs and outputs exchanged.
fn turned(weight: &[f32], shape: &Shape) -> Vec<f32> {
    let taps = shape.kernel[0] * shape.kernel[1];
    let mut sorted = vec![0.0; weight.len()];
    each_weight(shape, |place, tap, input, output| {
        sorted[(input * shape.outputs + output) * taps + taps - 1 - tap] = weight[place];
    });
    sorted
}

/// A matrix in memory: where its first element lies, and the distances of neighbours.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    row_step: usize,
    column_step: usize,
}

impl<'a> Matrix<'a> {
    fn new(data: &'a [f32], row_step: usize, column_step: usize) -> Self {
        Matrix {
            data,
            row_step,
            column_step,
        }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row_step + (columns - 1) * self.column_step < self.data.len()
    }
}

/// `out (+)= a b`, with `out` of `rows` by `columns`, row by row without gaps.
fn product(
    out: &mut [f32],
    add: bool,
    [rows, inner, columns]: [usize; 3],
    a: Matrix<'_>,
    b: Matrix<'_>,
    threads: gemm::Parallelism,
) {
    assert!(
        a.holds(rows, inner) && b.holds(inner, columns) && rows * columns <= out.len(),
        "matrices of {rows} x {inner} and {inner} x {columns} do not fit their data"
    );
    // SAFETY: the assertion keeps every element that is read or written inside its slice; `out` is borrowed alone, and
    // its elements are distinct. Rows of `a` may overlap, but are only read.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            add,
            a.data.as_ptr(),
            a.column_step as isize,
            a.row_step as isize,
            b.data.as_ptr(),
            b.column_step as isize,
            b.row_step as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

/// One frame is split between threads within its products, several are shared out.
fn threads(frames: usize) -> gemm::Parallelism {
    if frames == 1 {
        gemm::Parallelism::Rayon(0)
    } else {
        gemm::Parallelism::None
    }
}

/// `[frames, outputs, y, x]`.
fn forward(x: &[f32], weight: &[f32], bias: &[f32], shape: &Shape) -> Vec<f32> {
    let Shape {
        inputs, outputs, ..
    } = *shape;
    let (taps, padded, out, products) = (
        by_tap(weight, shape),
        shape.padded(),
        shape.out(),
        shape.products(),
    );
    let [kernel_rows, kernel_columns] = shape.kernel;
    let (run, threads) = (kernel_columns * inputs, threads(shape.frames));
    let frame = |x: &[f32], y: &mut [f32]| {
        let cells = cells_of(x, inputs, shape.size, shape.pads);
        let mut sums = vec![0.0; products.count * products.cells * outputs];
        for (index, sums) in sums.chunks_mut(products.cells * outputs).enumerate() {
            for row in 0..kernel_rows {
                let first = (index * shape.stride[0] + row) * padded[1] * inputs;
                product(
                    sums,
                    row > 0,
                    [products.cells, run, outputs],
                    Matrix::new(&cells[first..], shape.stride[1] * inputs, 1),
                    Matrix::new(&taps[row * run * outputs..], outputs, 1),
                    threads,
                );
            }
        }
        map_of(&sums, products.width, out, bias, y);
    };
    let mut y = vec![0.0; shape.frames * outputs * out[0] * out[1]];
    y.par_chunks_mut(outputs * out[0] * out[1])
        .zip(x.par_chunks(inputs * shape.size[0] * shape.size[1]))
        .for_each(|(y, x)| frame(x, y));
    y
}

/// Gradient with respect to the weights, `[outputs, inputs, y, x]`, of the output's gradient.
fn weight_gradient(x: &[f32], gradient: &[f32], shape: &Shape) -> Vec<f32> {
    let Shape {
        inputs, outputs, ..
    } = *shape;
    let (padded, out, products) = (shape.padded(), shape.out(), shape.products());
    let [kernel_rows, kernel_columns] = shape.kernel;
    let (run, threads) = (kernel_columns * inputs, threads(shape.frames));
    let frame = |x: &[f32], gradient: &[f32]| {
        let cells = cells_of(x, inputs, shape.size, shape.pads);
        // With the padded map's width the columns beyond the output's own are zero: they add nothing.
        let narrow = cells_of(gradient, outputs, out, [0, 0]);
        let mut wide = vec![0.0; products.count * products.cells * outputs];
        for (wide, narrow) in wide
            .chunks_mut(products.width * outputs)
            .zip(narrow.chunks(out[1] * outputs))
        {
            wide[..narrow.len()].copy_from_slice(narrow);
        }
        let mut sums = vec![0.0; kernel_rows * run * outputs];
        for (index, wide) in wide.chunks(products.cells * outputs).enumerate() {
            for (row, sums) in sums.chunks_mut(run * outputs).enumerate() {
                let first = (index * shape.stride[0] + row) * padded[1] * inputs;
                product(
                    sums,
                    index > 0,
                    [run, products.cells, outputs],
                    Matrix::new(&cells[first..], 1, shape.stride[1] * inputs),
                    Matrix::new(wide, outputs, 1),
                    threads,
                );
            }
        }
        sums
    };
    let parts: Vec<Vec<f32>> = x
        .par_chunks(inputs * shape.size[0] * shape.size[1])
        .zip(gradient.par_chunks(outputs * out[0] * out[1]))
        .map(|(x, gradient)| frame(x, gradient))
        .collect();
    let mut parts = parts.into_iter();
    let mut sums = parts.next().unwrap_or_default();
    for part in parts {
        for (sum, v) in sums.iter_mut().zip(part) {
            *sum += v;
        }
    }
    let mut sorted = vec![0.0; sums.len()];
    each_weight(shape, |place, tap, input, output| {
        sorted[place] = sums[(tap * inputs + input) * outputs + output];
    });
    sorted
}

/// Gradient with respect to the map, of the output's gradient, where the stride is not 1: each tap of the kernel gives
/// its share to the cells that it read.
fn scattered_gradient(gradient: &[f32], weight: &[f32], shape: &Shape) -> Vec<f32> {
    let Shape {
        inputs, outputs, ..
    } = *shape;
    let (taps, padded, out) = (by_tap(weight, shape), shape.padded(), shape.out());
    let [kernel_rows, kernel_columns] = shape.kernel;
    let frame = |gradient: &[f32], dx: &mut [f32]| {
        let narrow = cells_of(gradient, outputs, out, [0, 0]);
        let mut cells = vec![0.0; padded[0] * padded[1] * inputs];
        let mut share = vec![0.0; out[0] * out[1] * inputs];
        for row in 0..kernel_rows {
            for column in 0..kernel_columns {
                let tap = row * kernel_columns + column;
                product(
                    &mut share,
                    false,
                    [out[0] * out[1], outputs, inputs],
                    Matrix::new(&narrow, outputs, 1),
                    Matrix::new(&taps[tap * inputs * outputs..], 1, outputs),
                    threads(shape.frames),
                );
                for (y, line) in share.chunks(out[1] * inputs).enumerate() {
                    let start = (y * shape.stride[0] + row) * padded[1] + column;
                    for (x, cell) in line.chunks(inputs).enumerate() {
                        let at = (start + x * shape.stride[1]) * inputs;
                        for (sum, v) in cells[at..at + inputs].iter_mut().zip(cell) {
                            *sum += v;
                        }
                    }
                }
            }
        }
        let first = (shape.pads[0] * padded[1] + shape.pads[1]) * inputs;
        map_of(
            &cells[first..],
            padded[1],
            shape.size,
            &vec![0.0; inputs],
            dx,
        );
    };
    let mut dx = vec![0.0; shape.frames * inputs * shape.size[0] * shape.size[1]];
    dx.par_chunks_mut(inputs * shape.size[0] * shape.size[1])
        .zip(gradient.par_chunks(outputs * out[0] * out[1]))
        .for_each(|(dx, gradient)| frame(gradient, dx));
    dx
}

/// Gradient with respect to the map, of the output's gradient.
fn map_gradient(gradient: &[f32], weight: &[f32], shape: &Shape) -> Vec<f32> {
    match shape.backwards() {
        Some(backwards) => {
            let bias = vec![0.0; shape.inputs];
            forward(gradient, &turned(weight, shape), &bias, &backwards)
        }
        None => scattered_gradient(gradient, weight, shape),
    }
}

fn tensor<const D: usize>(data: Vec<f32>, dims: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, dims))
}

impl Convolve for Flex {
    fn convolve(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, shape: Shape) -> FlexTensor {
        let [x, weight, bias] = [x, weight, bias].map(|t| t.to_contiguous());
        let y = forward(x.storage(), weight.storage(), bias.storage(), &shape);
        let [rows, columns] = shape.out();
        tensor(y, [shape.frames, shape.outputs, rows, columns])
    }
}

#[derive(Debug)]
struct Gradient;

impl Backward<Flex, 3> for Gradient {
    type State = (FlexTensor, FlexTensor, Shape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight, shape) = ops.state;
        let [of_x, of_weight, of_bias] = ops.parents;
        if let Some(node) = of_x {
            let dx = map_gradient(gradient.storage(), weight.storage(), &shape);
            let [rows, columns] = shape.size;
            let dx = tensor(dx, [shape.frames, shape.inputs, rows, columns]);
            grads.register::<Flex>(node.id, dx);
        }
        if let Some(node) = of_weight {
            let dw = weight_gradient(x.storage(), gradient.storage(), &shape);
            let [rows, columns] = shape.kernel;
            let dw = tensor(dw, [shape.outputs, shape.inputs, rows, columns]);
            grads.register::<Flex>(node.id, dw);
        }
        if let Some(node) = of_bias {
            let mut sums = vec![0.0; shape.outputs];
            let [rows, columns] = shape.out();
            for (i, plane) in gradient.storage::<f32>().chunks(rows * columns).enumerate() {
                sums[i % shape.outputs] += plane.iter().sum::<f32>();
            }
            grads.register::<Flex>(node.id, tensor(sums, [shape.outputs]));
        }
    }
}

impl<C: CheckpointStrategy> Convolve for Autodiff<Flex, C> {
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: Shape,
    ) -> FloatTensor<Self> {
        let [map, taps] = [&x, &weight].map(|t| t.primitive.to_contiguous());
        let y = Flex::convolve(map.clone(), taps.clone(), bias.primitive, shape);
        let nodes = [x.node, weight.node, bias.node];
        match Gradient.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((map, taps, shape), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::reconstruct::{Grad, Inner};
    use super::*;
    use burn_tensor::module::conv2d;
    use burn_tensor::ops::ConvOptions;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random<const D: usize>(rng: &mut ChaCha8Rng, dims: [usize; D]) -> Tensor<Inner, D> {
        let data: Vec<f32> = (0..dims.iter().product::<usize>())
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        Tensor::from_data(TensorData::new(data, dims), &Default::default())
    }

    fn largest<const D: usize>(tensor: Tensor<Inner, D>) -> f32 {
        tensor.abs().max().into_scalar()
    }

    proptest! {
        #[test]
        fn convolution_and_its_gradients_are_burns(
            frames in 1usize..4,
            channels in (1usize..6, 1usize..6),
            size in (1usize..9, 1usize..9),
            kernel in (1usize..4, 1usize..4),
            stride in (1usize..4, 1usize..4),
            pads in (0usize..4, 0usize..4),
            seed: u64,
        ) {
            let (kernel, pads) = ([kernel.0, kernel.1], [pads.0, pads.1]);
            prop_assume!(size.0 + 2 * pads[0] >= kernel[0] && size.1 + 2 * pads[1] >= kernel[1]);
            let stride = [stride.0, stride.1];
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let given = (
                random(&mut rng, [frames, channels.0, size.0, size.1]),
                random(&mut rng, [channels.1, channels.0, kernel[0], kernel[1]]),
                random(&mut rng, [channels.1]),
            );
            let tracked = || {
                let lift = |t: &Tensor<Inner, 4>| Tensor::<Grad, 4>::from_inner(t.clone()).require_grad();
                let bias = Tensor::<Grad, 1>::from_inner(given.2.clone()).require_grad();
                (lift(&given.0), lift(&given.1), bias)
            };
            let (a, b) = (tracked(), tracked());
            let options = ConvOptions::new(stride, pads, [1, 1], 1);
            let wanted = conv2d(a.0.clone(), a.1.clone(), Some(a.2.clone()), options);
            let got = convolution(b.0.clone(), b.1.clone(), Some(b.2.clone()), stride, pads);
            prop_assert_eq!(wanted.dims(), got.dims());
            prop_assert!(largest((wanted.clone() - got.clone()).inner()) < 1e-4);
            let weighing = Tensor::from_inner(random(&mut rng, wanted.dims()));
            let (wanted, got) = ((wanted * weighing.clone()).sum().backward(), (got * weighing).sum().backward());
            let apart = [
                largest(a.0.grad(&wanted).unwrap() - b.0.grad(&got).unwrap()),
                largest(a.1.grad(&wanted).unwrap() - b.1.grad(&got).unwrap()),
                largest(a.2.grad(&wanted).unwrap() - b.2.grad(&got).unwrap()),
            ];
            prop_assert!(apart.iter().all(|d| *d < 1e-4), "{apart:?}");
        }
    }

    #[test]
    fn nothing_is_computed_for_what_is_not_tracked() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let x = Tensor::<Grad, 4>::from_inner(random(&mut rng, [2, 3, 4, 5])).require_grad();
        let weight = Tensor::<Grad, 4>::from_inner(random(&mut rng, [2, 3, 3, 3]));
        let y = convolution(x.clone(), weight.clone(), None, [1, 1], [1, 1]);
        let gradients = y.sum().backward();
        assert!(x.grad(&gradients).is_some() && weight.grad(&gradients).is_none());
    }

    #[test]
    fn the_result_is_the_same_with_any_number_of_threads() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let (x, weight) = (
            random(&mut rng, [3, 16, 40, 40]),
            random(&mut rng, [24, 16, 3, 3]),
        );
        let run = |threads: usize, frames: usize| {
            let x = x.clone().narrow(0, 0, frames);
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let weight = Tensor::<Grad, 4>::from_inner(weight.clone()).require_grad();
                let x = Tensor::<Grad, 4>::from_inner(x.clone()).require_grad();
                let y = convolution(x.clone(), weight.clone(), None, [1, 1], [1, 1]);
                let gradients = y.clone().powf_scalar(2.0).sum().backward();
                [
                    y.inner(),
                    x.grad(&gradients).unwrap(),
                    weight.grad(&gradients).unwrap(),
                ]
                .map(|t| t.to_data().to_vec::<f32>().unwrap())
            })
        };
        for frames in [1, 3] {
            assert_eq!(run(1, frames), run(2, frames));
        }
    }
}
