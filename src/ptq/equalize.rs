//! Equalization: channels of one tensor are brought to like ranges before anything is quantized.
//!
//! Activations have one step per tensor, so its largest channel sets the step for all; a channel a tenth as large is left
//! with a tenth of the levels, which at 4 bits is one or two. Behind a Relu the channels can be scaled at will: what one
//! convolution gives is divided by `s` per channel, and the weights of the next that read the channel are multiplied by it.
//! The function of the network stays (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
//! Correction", ICCV 2019). Weights have a step per output channel, so the division costs nothing and the multiplication
//! moves the spread into the rows of the next weights. How much of it is moved is `alpha` (as in Xiao et al.,
//! "SmoothQuant", ICML 2023): `s = a^alpha / w^(1 - alpha)`, with `a` the largest activation of the channel and `w` its
//! largest weight, relative to the largest of the same output channel.
//!
//! In: a prepared graph, and the largest value of each channel over some frames. Out: another graph of the same function.
//! Not part of the LiDAR-PTQ paper.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::counts::Count;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{Links, Model, OnnxError};

/// Settings of the equalization, a section of the recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equalization {
    /// Share of the activations' spread that moves into the weights, 0 to 1.
    pub alpha: f64,
    /// Largest factor of a channel, and the inverse of the least.
    pub limit: f64,
    /// Calibration frames that the ranges are taken from.
    pub frames: usize,
}

impl Equalization {
    /// What is wrong with the values, if anything: the key and the problem.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Some(("equalization.alpha", format!("{}; 0 to 1", self.alpha)));
        }
        if !(self.limit >= 1.0 && self.limit <= 1e4) {
            return Some(("equalization.limit", format!("{}; 1 to 10000", self.limit)));
        }
        None
    }

    pub(super) fn counts(&self) -> [Count; 1] {
        [("equalization.frames", self.frames, 1..=100_000)]
    }
}

/// A convolution whose output channels may be scaled, because only convolutions read them.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Index of its node.
    node: usize,
    /// What to observe: its output, behind a Relu that only it feeds. `[1, channels, y, x]`
    pub tensor: String,
    /// Per output channel the first of those that must keep one factor (a depth-to-space makes one of them).
    class: Vec<usize>,
    uses: Vec<Use>,
}

/// A convolution that reads channels of a source.
#[derive(Debug, Clone, PartialEq)]
struct Use {
    node: usize,
    weight: String,
    /// Axis of its weights that runs over input channels.
    axis: usize,
    /// The input channel where the source's begin.
    first: usize,
    /// Per input channel from there a channel of the source.
    channels: Vec<usize>,
}

/// All convolutions of a graph whose outputs may be scaled.
pub fn sources(model: &Model) -> Vec<Source> {
    let links = model.links();
    let walk = Walk {
        model,
        links: &links,
        outputs: model.output_names(),
    };
    let nodes = model.graph().node.iter().enumerate();
    nodes
        .filter_map(|(index, node)| walk.source(index, node))
        .collect()
}

/// The graph with its sources scaled, and the factor of every source's channels. `largest` is the largest magnitude of
/// each channel of each source's tensor.
pub fn equalize(
    model: &Model,
    sources: &[Source],
    largest: &[Vec<f32>],
    settings: &Equalization,
) -> Result<(Model, Vec<Vec<f32>>), OnnxError> {
    let factors = factors(model, sources, largest, settings)?;
    let mut out = model.clone();
    for (source, factors) in sources.iter().zip(&factors) {
        let node = &model.graph().node[source.node];
        let axis = usize::from(node.is("ConvTranspose"));
        let divided: Vec<f32> = factors.iter().map(|s| 1.0 / s).collect();
        scale(&mut out, &node.input[1], axis, 0, &divided)?;
        if let Some(bias) = node.input.get(2).filter(|b| !b.is_empty()) {
            scale(&mut out, bias, 0, 0, &divided)?;
        }
        for used in &source.uses {
            let of_inputs: Vec<f32> = used.channels.iter().map(|&c| factors[c]).collect();
            scale(&mut out, &used.weight, used.axis, used.first, &of_inputs)?;
        }
    }
    Ok((out, factors))
}

fn factors(
    model: &Model,
    sources: &[Source],
    largest: &[Vec<f32>],
    settings: &Equalization,
) -> Result<Vec<Vec<f32>>, OnnxError> {
    // Logarithms of the factors, NaN for channels that say nothing.
    let mut logarithms: Vec<Vec<f64>> = Vec::with_capacity(sources.len());
    for (source, largest) in sources.iter().zip(largest) {
        let count = source.class.len();
        let (mut activations, mut weights) = (vec![0.0f64; count], vec![0.0f64; count]);
        for (channel, &a) in largest.iter().enumerate() {
            let class = source.class[channel];
            activations[class] = activations[class].max(f64::from(a));
        }
        for used in &source.uses {
            let shares = shares(model, used)?;
            for (&channel, share) in used.channels.iter().zip(&shares[used.first..]) {
                let class = source.class[channel];
                weights[class] = weights[class].max(*share);
            }
        }
        let of_class = |class: usize| {
            let (a, w) = (activations[class], weights[class]);
            if a > 0.0 && w > 0.0 {
                settings.alpha * a.ln() - (1.0 - settings.alpha) * w.ln()
            } else {
                f64::NAN
            }
        };
        logarithms.push(source.class.iter().map(|&c| of_class(c)).collect());
    }
    // Tensors that are joined have one step: their factors are compared with each other.
    let joined = joined(sources);
    let mut means: HashMap<usize, (f64, usize)> = HashMap::new();
    for (group, found) in joined.iter().zip(&logarithms) {
        let (sum, count) = means.entry(*group).or_default();
        for l in found.iter().filter(|l| l.is_finite()) {
            *sum += l;
            *count += 1;
        }
    }
    let limit = settings.limit.ln();
    let factors = joined.iter().zip(logarithms).map(|(group, found)| {
        let (sum, count) = means[group];
        let mean = sum / count.max(1) as f64;
        let factor = |l: f64| {
            if l.is_finite() {
                (l - mean).clamp(-limit, limit).exp() as f32
            } else {
                1.0
            }
        };
        found.into_iter().map(factor).collect()
    });
    Ok(factors.collect())
}

/// Per input channel of a use its largest weight, relative to the largest weight of the same output channel.
fn shares(model: &Model, used: &Use) -> Result<Vec<f64>, OnnxError> {
    let weight = model.initializer_f32(&used.weight)?;
    let place = |i: usize, axis: usize| {
        let stride: usize = weight.dims[axis + 1..].iter().product();
        i / stride % weight.dims[axis]
    };
    let mut rows = vec![0.0f64; weight.dims[1 - used.axis]];
    for (i, w) in weight.data.iter().enumerate() {
        let row = &mut rows[place(i, 1 - used.axis)];
        *row = row.max(f64::from(w.abs()));
    }
    let mut shares = vec![0.0f64; weight.dims[used.axis]];
    for (i, w) in weight.data.iter().enumerate() {
        let row = rows[place(i, 1 - used.axis)];
        if row > 0.0 {
            let share = &mut shares[place(i, used.axis)];
            *share = share.max(f64::from(w.abs()) / row);
        }
    }
    Ok(shares)
}

/// A number per source, the same for those that a convolution reads together.
fn joined(sources: &[Source]) -> Vec<usize> {
    let mut group: Vec<usize> = (0..sources.len()).collect();
    for a in 0..sources.len() {
        for b in 0..a {
            let together = sources[a]
                .uses
                .iter()
                .any(|u| sources[b].uses.iter().any(|v| u.node == v.node));
            if together && group[a] != group[b] {
                let (from, to) = (group[a], group[b]);
                group
                    .iter_mut()
                    .filter(|g| **g == from)
                    .for_each(|g| *g = to);
            }
        }
    }
    group
}

/// Multiplies slices of a constant along an axis, from the slice `first` on.
fn scale(
    model: &mut Model,
    name: &str,
    axis: usize,
    first: usize,
    factors: &[f32],
) -> Result<(), OnnxError> {
    let mut tensor = model.initializer_f32(name)?;
    let stride: usize = tensor.dims[axis + 1..].iter().product();
    for (i, v) in tensor.data.iter_mut().enumerate() {
        let slice = i / stride % tensor.dims[axis];
        if let Some(factor) = slice.checked_sub(first).and_then(|s| factors.get(s)) {
            *v *= factor;
        }
    }
    model.set_initializer(TensorProto::f32(name, &tensor.dims, &tensor.data));
    Ok(())
}

/// Follows channels from a convolution to those that read them.
struct Walk<'a> {
    model: &'a Model,
    links: &'a Links,
    outputs: Vec<String>,
}

impl Walk<'_> {
    fn source(&self, index: usize, node: &NodeProto) -> Option<Source> {
        let transposed = node.is("ConvTranspose");
        if !(node.is("Conv") || transposed) || node.int("group", 1) != 1 {
            return None;
        }
        let (weight, output) = (node.input.get(1)?, node.output.first()?);
        let bias = node.input.get(2).filter(|b| !b.is_empty());
        if !self.own(weight) || !bias.into_iter().all(|b| self.own(b)) {
            return None;
        }
        let dims = self.model.initializer_f32(weight).ok()?.dims;
        let channels = *dims.get(usize::from(transposed))?;
        let mut source = Source {
            node: index,
            tensor: output.clone(),
            class: (0..channels).collect(),
            uses: Vec::new(),
        };
        if let Some(&[reader]) = self.links.consumers.get(output).map(Vec::as_slice) {
            let reader = &self.model.graph().node[reader];
            if reader.is("Relu") && !self.outputs.contains(output) {
                source.tensor.clone_from(reader.output.first()?);
            }
        }
        self.follow(output, 0, (0..channels).collect(), &mut source)?;
        (!source.uses.is_empty()).then_some(source)
    }

    /// Whether a constant belongs to one node only.
    fn own(&self, name: &str) -> bool {
        self.model.initializer(name).is_some()
            && self.links.consumers.get(name).is_some_and(|c| c.len() == 1)
    }

    /// Adds all convolutions that read `tensor`, in which the channels of the source begin at `first`. `None` where
    /// something else reads it that a factor would not pass through.
    fn follow(
        &self,
        tensor: &str,
        first: usize,
        channels: Vec<usize>,
        source: &mut Source,
    ) -> Option<()> {
        if self.outputs.iter().any(|o| o == tensor) {
            return None;
        }
        for &index in self.links.consumers.get(tensor)? {
            let node = &self.model.graph().node[index];
            let data = node.input.first()? == tensor;
            match node.op_type() {
                "Relu" | "LeakyRelu" | "MaxPool" | "AveragePool" | "Identity" if data => {
                    self.follow(node.output.first()?, first, channels.clone(), source)?;
                }
                "Concat" if node.int("axis", 0) == 1 => {
                    let mut before = 0;
                    for input in &node.input {
                        if input == tensor {
                            let output = node.output.first()?;
                            self.follow(output, before + first, channels.clone(), source)?;
                        }
                        before += self.channels(input)?;
                    }
                }
                "DepthToSpace"
                    if data && first == 0 && self.channels(tensor)? == channels.len() =>
                {
                    let taps = usize::try_from(node.int("blocksize", 1)).ok()?.pow(2);
                    let count = channels.len() / taps;
                    let side_by_side = node.string("mode") == b"CRD";
                    let made: Vec<usize> = (0..count)
                        .map(|c| channels[if side_by_side { c * taps } else { c }])
                        .collect();
                    for (i, &channel) in channels.iter().enumerate() {
                        let place = if side_by_side { i / taps } else { i % count };
                        join(&mut source.class, channel, made[place]);
                    }
                    self.follow(node.output.first()?, 0, made, source)?;
                }
                "Conv" | "ConvTranspose" if data && node.int("group", 1) == 1 => {
                    let weight = node.input.get(1).filter(|w| self.own(w))?;
                    source.uses.push(Use {
                        node: index,
                        weight: weight.clone(),
                        axis: usize::from(node.is("Conv")),
                        first,
                        channels: channels.clone(),
                    });
                }
                _ => return None,
            }
        }
        Some(())
    }

    /// Channels of a tensor, if the graph tells.
    fn channels(&self, tensor: &str) -> Option<usize> {
        let Some(&index) = self.links.producer.get(tensor) else {
            return usize::try_from(self.model.value_shape(tensor)?.get(1).copied()??).ok();
        };
        let node = &self.model.graph().node[index];
        let weight = |axis: usize| {
            let dims = self.model.initializer_f32(node.input.get(1)?).ok()?.dims;
            dims.get(axis).copied()
        };
        match node.op_type() {
            "Conv" => weight(0),
            "ConvTranspose" => Some(weight(1)? * usize::try_from(node.int("group", 1)).ok()?),
            "Relu" | "LeakyRelu" | "MaxPool" | "AveragePool" | "Identity" | "Clip" => {
                self.channels(node.input.first()?)
            }
            "Concat" if node.int("axis", 0) == 1 => {
                node.input.iter().map(|i| self.channels(i)).sum()
            }
            "DepthToSpace" => {
                let block = usize::try_from(node.int("blocksize", 1)).ok()?;
                Some(self.channels(node.input.first()?)? / block.pow(2).max(1))
            }
            _ => None,
        }
    }
}

/// Gives two channels and all that go with them one class.
fn join(class: &mut [usize], a: usize, b: usize) {
    let (from, to) = (class[a].max(class[b]), class[a].min(class[b]));
    class
        .iter_mut()
        .filter(|c| **c == from)
        .for_each(|c| *c = to);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::runtime::RuntimeOptions;
    use crate::onnx::tests::{model, value};
    use crate::ptq::observe::Observer;
    use ndarray::Array4;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const SETTINGS: Equalization = Equalization {
        alpha: 0.5,
        limit: 32.0,
        frames: 4,
    };

    /// Two branches, one through a depth-to-space, that a convolution reads together; `a` is read twice.
    fn graph(mode: &str) -> Model {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut weight = |name: &str, dims: &[usize]| {
            // Channels of very different size.
            let row: usize = dims[1..].iter().product();
            let data: Vec<f32> = (0..dims.iter().product::<usize>())
                .map(|i| rng.random_range(-1.0..1.0) * (1.0 + (i / row) as f32 * 4.0))
                .collect();
            TensorProto::f32(name, dims, &data)
        };
        let constants = vec![
            weight("wa", &[3, 2, 3, 3]),
            weight("ba", &[3]),
            weight("wb", &[8, 3, 1, 1]),
            weight("bb", &[8]),
            weight("wc", &[4, 3, 3, 3]),
            weight("wd", &[2, 6, 3, 3]),
        ];
        let conv = |name: &str, inputs: &[&str], out: &str, kernel: i64, stride: i64| {
            NodeProto::new("Conv", name, inputs, &[out])
                .with_ints("kernel_shape", &[kernel; 2])
                .with_ints("pads", &[kernel / 2; 4])
                .with_ints("strides", &[stride; 2])
        };
        model(
            17,
            vec![
                conv("a", &["x", "wa", "ba"], "ya", 3, 1),
                NodeProto::new("Relu", "ra", &["ya"], &["a"]),
                conv("b", &["a", "wb", "bb"], "yb", 1, 2),
                NodeProto::new("DepthToSpace", "space", &["yb"], &["sb"])
                    .with_int("blocksize", 2)
                    .with_string("mode", mode),
                NodeProto::new("Relu", "rb", &["sb"], &["b"]),
                conv("c", &["a", "wc"], "yc", 3, 1),
                NodeProto::new("Relu", "rc", &["yc"], &["c"]),
                NodeProto::new("Concat", "cat", &["b", "c"], &["bc"]).with_int("axis", 1),
                conv("d", &["bc", "wd"], "y", 3, 1),
            ],
            constants,
            vec![value("x", &[1, 2, 4, 4])],
            vec![value("y", &[1, 2, 4, 4])],
        )
    }

    fn input(seed: u64) -> Array4<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Array4::from_shape_simple_fn((1, 2, 4, 4), || rng.random_range(-1.0..1.0))
    }

    fn run(model: &Model, tensors: &[String], x: &Array4<f32>) -> Vec<Vec<f32>> {
        let options = RuntimeOptions::default();
        let mut observer = Observer::new(model, "x", tensors, &options).unwrap();
        let copy = |views: &[crate::ptq::observe::View<'_>]| -> Vec<Vec<f32>> {
            views.iter().map(|v| v.values.to_vec()).collect()
        };
        observer.run(x, copy).unwrap()
    }

    fn largest(model: &Model, sources: &[Source], x: &Array4<f32>) -> Vec<Vec<f32>> {
        let names: Vec<String> = sources.iter().map(|s| s.tensor.clone()).collect();
        let maxima = |values: Vec<f32>, channels: usize| -> Vec<f32> {
            let area = values.len() / channels;
            let largest = |c: &[f32]| c.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            values.chunks(area).map(largest).collect()
        };
        let values = run(model, &names, x);
        let found = values.into_iter().zip(sources);
        found.map(|(v, s)| maxima(v, s.class.len())).collect()
    }

    #[test]
    fn the_function_stays_and_the_channels_come_to_like_ranges() {
        for mode in ["DCR", "CRD"] {
            let before = graph(mode);
            let sources = sources(&before);
            let names: Vec<&str> = sources.iter().map(|s| s.tensor.as_str()).collect();
            assert_eq!(names, ["a", "yb", "c"]);
            let x = input(1);
            let maxima = largest(&before, &sources, &x);
            let (after, factors) = equalize(&before, &sources, &maxima, &SETTINGS).unwrap();
            after.validate().unwrap();
            // What a depth-to-space makes one channel of keeps one factor.
            let class = |i: usize| if mode == "DCR" { i % 2 } else { i / 4 };
            for (i, factor) in factors[1].iter().enumerate() {
                let first = factors[1]
                    .iter()
                    .enumerate()
                    .find(|(j, _)| class(*j) == class(i));
                assert_eq!(Some(factor), first.map(|(_, f)| f));
            }
            for seed in 1..4 {
                let y = |model: &Model| run(model, &["y".to_owned()], &input(seed)).remove(0);
                let (wanted, got) = (y(&before), y(&after));
                let scale = wanted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let apart = wanted.iter().zip(&got).map(|(a, b)| (a - b).abs());
                assert!(apart.fold(0.0, f32::max) < 1e-5 * scale, "{mode}");
            }
            let spread = |maxima: &[f32]| {
                let positive = || maxima.iter().filter(|m| **m > 0.0);
                positive().fold(0.0f32, |m, v| m.max(*v))
                    / positive().fold(f32::MAX, |m, v| m.min(*v))
            };
            let now = largest(&after, &sources, &x);
            assert!(spread(&now[0]) < spread(&maxima[0]), "{now:?} {maxima:?}");
        }
    }

    #[test]
    fn with_alpha_one_and_no_limit_all_channels_have_one_range() {
        let before = graph("DCR");
        let sources = sources(&before);
        let x = input(1);
        let settings = Equalization {
            alpha: 1.0,
            limit: 1e4,
            ..SETTINGS
        };
        let maxima = largest(&before, &sources, &x);
        let (after, _) = equalize(&before, &sources, &maxima, &settings).unwrap();
        let now = largest(&after, &sources, &x);
        // `b` and `c` are joined, so they have one range between them.
        let joined: Vec<f32> = now[2].iter().copied().filter(|m| *m > 0.0).collect();
        for m in &joined {
            assert!((m / joined[0] - 1.0).abs() < 1e-4, "{now:?}");
        }
        assert!((now[1].iter().fold(0.0f32, |a, b| a.max(*b)) / joined[0] - 1.0).abs() < 0.5);
    }

    #[test]
    fn what_an_output_or_another_operator_reads_is_left_alone() {
        let mut with_output = graph("DCR");
        with_output
            .graph_mut()
            .output
            .push(value("c", &[1, 4, 4, 4]));
        let names = |model: &Model| -> Vec<String> {
            sources(model).into_iter().map(|s| s.tensor).collect()
        };
        assert_eq!(names(&with_output), ["a", "yb"]);
        let mut with_sigmoid = graph("DCR");
        let node = NodeProto::new("Sigmoid", "s", &["a"], &["unused"]);
        with_sigmoid.graph_mut().node.push(node);
        with_sigmoid
            .graph_mut()
            .output
            .push(value("unused", &[1, 3, 4, 4]));
        assert_eq!(names(&with_sigmoid), ["yb", "c"]);
    }
}
