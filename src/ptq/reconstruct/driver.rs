//! Runs the blocks: all windows, along the float and the quantized path, from block to block.

use std::collections::HashMap;

use burn_tensor::backend::Backend;
use burn_tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::super::export::Quantization;
use super::super::network::{Convolve, Network, Value, Values};
use super::super::progress::{Progress, Stage, Step};
use super::super::quantizer::Quantizer;
use super::super::recipe::BiasType;
use super::super::report::null_is_nan;
use super::super::weights::LayerWeights;
use super::super::{PtqError, go_on};
use super::checkpoint::{BlockState, Checkpoint};
use super::positives::Positives;
use super::program::{Done, Program};
use super::rounding::values;
use super::schedule::Schedule;
use super::steps::fake;
use super::tuner::Tuner;
use super::{Device, Grad, Inner, Reconstruction};
use crate::detector::description::{Head, HeatmapScale};
use crate::onnx::Model;

/// Windows that run through the network at once where no gradient is wanted.
pub(super) const CHUNK: usize = 8;

/// What is reconstructed.
pub struct Subject<'a> {
    /// The prepared float graph.
    pub graph: &'a Model,
    /// Its input.
    pub input: &'a str,
    /// Its outputs, by head.
    pub heads: Vec<(Head, String)>,
    pub scale: HeatmapScale,
    /// How the target stores biases.
    pub bias: BiasType,
    /// Windows of the input, `[windows, channels, y, x]`.
    pub windows: ndarray::Array4<f32>,
    /// Cells of the heads' maps, at each side, whose context is cut off.
    pub margin: usize,
}

/// What a block gained. Errors are means over the judged windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Indices of its layers in the plan.
    pub layers: Vec<usize>,
    /// Squared error of its output, rounded to the nearest with the steps of the grid search, as share of the
    /// output's energy.
    #[serde(deserialize_with = "null_is_nan")]
    pub error_before: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub error_after: f64,
    /// Task-guided loss, the same way; absent where it was off or no window held a positive.
    pub tgpl_before: Option<f64>,
    pub tgpl_after: Option<f64>,
    /// Share of the weights, per layer, that are not rounded to the nearest.
    pub flipped: Vec<f64>,
    /// Share of the roundings, per layer, that had decided by themselves.
    pub converged: Vec<f64>,
    /// Whether the learned result was better and was taken.
    pub taken: bool,
    pub iterations: usize,
    pub seconds: f64,
}

/// Whether values pass through quantizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Float,
    Quantized,
}

/// Tunes all blocks. Returns what each gained; the quantization changes in place.
pub fn reconstruct(
    subject: Subject<'_>,
    quantization: &mut Quantization,
    settings: &Reconstruction,
    checkpoint: &Checkpoint,
    progress: &mut dyn Progress,
) -> Result<Vec<Outcome>, PtqError> {
    let device = Device::default();
    let program = Program::new(subject.graph, &quantization.plan, settings.block)?;
    let inner = network::<Inner>(subject.graph, &device)?;
    let grad = network::<Grad>(subject.graph, &device)?;
    let fit = windows_that_fit(&subject, &program, &inner, quantization, settings, progress)?;
    let windows = subject
        .windows
        .slice(ndarray::s![..fit, .., .., ..])
        .to_owned();
    let mut driver = Driver::new(&subject, windows, &program, &inner, quantization, settings)?;
    let outputs = driver.outputs(progress)?;
    let heads = subject.heads.clone();
    let positives = Positives::find(
        heads,
        subject.scale,
        outputs,
        &settings.positives,
        subject.margin,
    )
    .map_err(|problem| subject.graph.graph_error(problem))?;
    let [channels, rows, columns] = [1, 2, 3].map(|i| subject.windows.shape()[i]);
    let costs = multiplications(&inner, subject.input, [channels, rows, columns])?;
    let schedule = Schedule::new(settings, &program, &costs);
    if (schedule.iterations, schedule.every) != (settings.iterations, settings.tgpl.every) {
        tracing::warn!(
            "{} steps a block with a task-guided gradient every {}, so that they stay within {:.1e} multiplications",
            schedule.iterations,
            schedule.every,
            settings.multiplications
        );
    }
    let mut tuner = Tuner {
        schedule,
        grad,
        positives,
        float_weights: program_weights(subject.graph, &driver)?,
        settled: vec![false; driver.quantization.plan.groups.len()],
    };
    let glue = program.glue(&driver.done);
    driver.advance(&glue, progress)?;
    let total = program.blocks.len();
    let mut outcomes = Vec::with_capacity(total);
    for (index, block) in program.blocks.iter().enumerate() {
        go_on(progress)?;
        let targets = driver.run(&block.nodes, Path::Float, progress)?;
        let state = match checkpoint.load(index) {
            Some(state) => state,
            None => {
                let name = &driver.quantization.plan.layers[block.layers[0]].name;
                let label = format!("block {} of {total}, {name}", index + 1);
                let mut tell = |iteration: usize, error: f64| {
                    let iterations = schedule.iterations;
                    let part = (index as f64 + iteration as f64 / iterations as f64) / total as f64;
                    progress.step(&Step {
                        layer: name,
                        block: index + 1,
                        blocks: total,
                        iteration,
                        iterations,
                        error,
                    });
                    progress.update(
                        Stage::Reconstruct,
                        Stage::Reconstruct.overall(part),
                        &format!(
                            "{label}: step {iteration} of {iterations}, error {error:.3} of nearest"
                        ),
                    );
                    go_on(progress)
                };
                let state = tuner.tune(&driver, index, &targets, &mut tell)?;
                checkpoint.save(index, &state)?;
                state
            }
        };
        driver.apply(&state)?;
        tuner.settle(&driver, block);
        driver.keep(targets, Path::Float);
        let quantized = driver.run(&block.nodes, Path::Quantized, progress)?;
        driver.keep(quantized, Path::Quantized);
        driver.finish(&block.nodes);
        let glue = program.glue(&driver.done);
        driver.advance(&glue, progress)?;
        outcomes.push(state.outcome);
    }
    Ok(outcomes)
}

/// What each node of a network gives for one map of zeros, `[channels, rows, columns]`; `see` is told its index.
fn probe(
    network: &Network<Inner>,
    input: &str,
    [channels, rows, columns]: [usize; 3],
    mut see: impl FnMut(usize, &Values<Inner>),
) -> Result<(), PtqError> {
    let mut values = Values::default();
    let map: Tensor<Inner, 4> = Tensor::zeros([1, channels, rows, columns], &Device::default());
    values.insert(input.to_owned(), map.into());
    for index in 0..network.nodes().len() {
        network.step(index, &mut values)?;
        see(index, &values);
    }
    Ok(())
}

/// Rows and columns of the map that tells a network's stride: enough for strides of 32.
const PROBE: usize = 64;

/// The largest ratio between the input's rows and those of any tensor of the network. `shape` is the input's
/// channels, rows and columns.
pub fn total_stride(graph: &Model, input: &str, shape: [usize; 3]) -> Result<usize, PtqError> {
    let network = network::<Inner>(graph, &Device::default())?;
    let [channels, rows, columns] = shape;
    let small = [channels, rows.min(PROBE), columns.min(PROBE)];
    let stride_of = |shape: [usize; 3]| {
        let mut stride = 1;
        let result = probe(&network, input, shape, |index, values| {
            for output in &network.nodes()[index].outputs {
                if let Some(map) = values.get(output).and_then(Value::rank4) {
                    stride = stride.max(shape[1] / map.dims()[2].max(1));
                }
            }
        });
        result.map(|()| stride)
    };
    // A whole map takes gigabytes in a large network; a graph with sizes written into it takes no other.
    stride_of(small).or_else(|_| stride_of(shape))
}

/// Multiplications of each node for one map.
fn multiplications(
    network: &Network<Inner>,
    input: &str,
    shape: [usize; 3],
) -> Result<Vec<f64>, PtqError> {
    let elements = |dims: Vec<usize>| dims.into_iter().product::<usize>() as f64;
    let mut found = vec![0.0; network.nodes().len()];
    probe(network, input, shape, |index, values| {
        let node = &network.nodes()[index];
        let dims = |name: Option<&String>| {
            let name = name?;
            let value = values.get(name).or_else(|| network.constant(name))?;
            Some(value.dims())
        };
        let (given, weight, result) = (
            dims(node.inputs.first()),
            dims(node.inputs.get(1)),
            dims(node.outputs.first()),
        );
        if let (Some(given), Some(weight), Some(result)) = (given, weight, result) {
            // Every pixel takes all weights once, of the output or, of a transposed convolution, the input.
            let pixels = |dims: &[usize]| elements(dims.get(2..).unwrap_or(&[]).to_vec());
            found[index] = match node.op.as_str() {
                "Conv" => elements(weight) * pixels(&result),
                "ConvTranspose" => elements(weight) * pixels(&given),
                "MatMul" | "Gemm" => elements(result) * given.last().copied().unwrap_or(1) as f64,
                _ => 0.0,
            };
        }
    })?;
    Ok(found)
}

/// The network, its nodes being those of the graph.
pub(super) fn network<B: Convolve>(graph: &Model, device: &Device) -> Result<Network<B>, PtqError> {
    let network = Network::new(graph, device)?;
    let same = network.nodes().len() == graph.graph().node.len()
        && network
            .nodes()
            .iter()
            .zip(&graph.graph().node)
            .all(|(a, b)| a.name == b.label());
    if !same {
        return Err(graph
            .graph_error("its nodes are not in topological order")
            .into());
    }
    Ok(network)
}

/// How many windows may be kept at once: one is sent through all blocks to see what it takes.
fn windows_that_fit(
    subject: &Subject<'_>,
    program: &Program,
    network: &Network<Inner>,
    quantization: &mut Quantization,
    settings: &Reconstruction,
    progress: &dyn Progress,
) -> Result<usize, PtqError> {
    let one = subject
        .windows
        .slice(ndarray::s![..1, .., .., ..])
        .to_owned();
    let mut driver = Driver::new(subject, one, program, network, quantization, settings)?;
    driver.advance(&program.glue(&driver.done), progress)?;
    let mut peak = driver.bytes();
    for block in &program.blocks {
        for path in [Path::Float, Path::Quantized] {
            let values = driver.run(&block.nodes, path, progress)?;
            driver.keep(values, path);
        }
        // Before what is no longer needed goes.
        peak = peak.max(driver.bytes());
        driver.finish(&block.nodes);
        driver.advance(&program.glue(&driver.done), progress)?;
        peak = peak.max(driver.bytes());
    }
    // The float heads stay all the time.
    let heads: usize = subject
        .heads
        .iter()
        .filter_map(|(_, name)| driver.float.get(name))
        .map(|t| t.dims().iter().product::<usize>() * 4)
        .sum();
    let fit = settings.crops.memory_mb * 1_000_000 / (peak + heads).max(1);
    let all = subject.windows.shape()[0];
    if fit < all {
        tracing::warn!(
            "{fit} of {all} windows are used: {} kB each, and crops.memory_mb is {}",
            (peak + heads) / 1000,
            settings.crops.memory_mb
        );
    }
    Ok(fit.clamp(1, all))
}

/// Float weights of every layer, as the graph holds them.
fn program_weights(graph: &Model, driver: &Driver<'_>) -> Result<Vec<Vec<f32>>, PtqError> {
    let layers = &driver.quantization.plan.layers;
    layers
        .iter()
        .map(|l| Ok(graph.initializer_f32(&l.weight)?.data))
        .collect()
}

/// What a layer computes with instead of its float weights and, where the target rounds it, its bias.
#[derive(Debug, Clone)]
pub(super) struct Parameter<B: Backend> {
    pub weight: Tensor<B, 4>,
    pub bias: Option<Tensor<B, 1>>,
}

/// Parameters by node.
pub(super) type Parameters<B> = HashMap<usize, Parameter<B>>;

/// All windows on their way through the network, along both paths.
pub(super) struct Driver<'a> {
    pub graph: &'a Model,
    pub program: &'a Program,
    pub network: &'a Network<Inner>,
    pub quantization: &'a mut Quantization,
    pub settings: &'a Reconstruction,
    pub bias: BiasType,
    pub device: Device,
    pub windows: usize,
    pub done: Done,
    /// Tensors that somebody still has to read, before their quantizers: `[windows, channels, y, x]`.
    pub float: Maps,
    pub quantized: Maps,
}

pub(super) type Maps = HashMap<String, Tensor<Inner, 4>>;

impl<'a> Driver<'a> {
    pub(super) fn new(
        subject: &Subject<'a>,
        windows: ndarray::Array4<f32>,
        program: &'a Program,
        network: &'a Network<Inner>,
        quantization: &'a mut Quantization,
        settings: &'a Reconstruction,
    ) -> Result<Self, PtqError> {
        let device = Device::default();
        let (n, c, h, w) = windows.dim();
        let data: Vec<f32> = windows.into_iter().collect();
        let input = Tensor::from_data(TensorData::new(data, [n, c, h, w]), &device);
        let start: Maps = HashMap::from([(subject.input.to_owned(), input)]);
        Ok(Driver {
            graph: subject.graph,
            program,
            network,
            quantization,
            settings,
            bias: subject.bias,
            device,
            windows: n,
            done: program.start(),
            float: start.clone(),
            quantized: start,
        })
    }

    /// Memory that the maps take, the largest twice: it is put together from parts.
    fn bytes(&self) -> usize {
        let size = |t: &Tensor<Inner, 4>| t.dims().iter().product::<usize>() * 4;
        let maps = || self.float.values().chain(self.quantized.values()).map(size);
        maps().sum::<usize>() + maps().max().unwrap_or(0)
    }

    /// The float network's outputs for all windows.
    pub(super) fn outputs(&self, progress: &dyn Progress) -> Result<Maps, PtqError> {
        let nodes: Vec<usize> = (0..self.network.nodes().len()).collect();
        self.run(&nodes, Path::Float, progress)
    }

    pub(super) fn rank4<B: Backend>(
        &self,
        values: &Values<B>,
        name: &str,
    ) -> Result<Tensor<B, 4>, PtqError> {
        values.get(name).and_then(Value::rank4).ok_or_else(|| {
            let problem = "is not a map of rank 4, which the reconstruction needs";
            self.graph.tensor_error(name, problem).into()
        })
    }

    /// Runs nodes for all windows; gives what later nodes or the loss read.
    fn run(&self, nodes: &[usize], path: Path, progress: &dyn Progress) -> Result<Maps, PtqError> {
        let sources = self.program.sources(nodes);
        let maps = match path {
            Path::Float => &self.float,
            Path::Quantized => &self.quantized,
        };
        let after: Done = (0..self.done.len())
            .map(|n| self.done[n] || nodes.contains(&n))
            .collect();
        let wanted: Vec<&String> = nodes
            .iter()
            .flat_map(|&n| self.program.gives(n))
            .filter(|t| self.program.needed(t, &after) || self.network.outputs().contains(t))
            .collect();
        let parameters = match path {
            Path::Float => Parameters::new(),
            Path::Quantized => {
                let q = &*self.quantization;
                self.parameters(nodes, &q.weights, &q.activations)?
            }
        };
        let mut parts: HashMap<String, Vec<Tensor<Inner, 4>>> = HashMap::new();
        for start in (0..self.windows).step_by(CHUNK) {
            go_on(progress)?;
            let end = (start + CHUNK).min(self.windows);
            let mut raw = Values::default();
            for name in &sources {
                let map = maps
                    .get(name)
                    .ok_or_else(|| self.graph.tensor_error(name, "is not there yet"))?;
                raw.insert(
                    name.clone(),
                    map.clone().narrow(0, start, end - start).into(),
                );
            }
            match path {
                Path::Float => self.execute(self.network, nodes, &mut raw, &parameters, None)?,
                Path::Quantized => {
                    let mut read =
                        |group: usize, _: &str, x| fake(x, &self.quantization.activations[group]);
                    self.execute(self.network, nodes, &mut raw, &parameters, Some(&mut read))?;
                }
            }
            for name in &wanted {
                parts
                    .entry((*name).clone())
                    .or_default()
                    .push(self.rank4(&raw, name)?);
            }
        }
        Ok(parts
            .into_iter()
            .map(|(name, parts)| (name, Tensor::cat(parts, 0)))
            .collect())
    }

    /// Runs nodes on `raw`, values before their quantizers, with `parameters` instead of the float ones. `read`
    /// fake-quantizes what a node reads (group, name, value); nodes that only move values pass them on as they are.
    pub(super) fn execute<B: Convolve>(
        &self,
        network: &Network<B>,
        nodes: &[usize],
        raw: &mut Values<B>,
        parameters: &Parameters<B>,
        mut read: Option<Read<'_, B>>,
    ) -> Result<(), PtqError> {
        let mut known: HashMap<&str, Value<B>> = HashMap::new();
        for &node in nodes {
            let mut seen = Values::default();
            for name in self.program.reads(node) {
                let value = raw
                    .get(name)
                    .ok_or_else(|| self.graph.tensor_error(name, "is not there yet"))?;
                let group = self
                    .program
                    .group(name)
                    .filter(|_| !self.program.moves(node));
                let value = match (&mut read, group) {
                    (Some(read), Some(group)) => match known.get(name.as_str()) {
                        Some(value) => value.clone(),
                        None => {
                            let value: Value<B> = read(group, name, self.rank4(raw, name)?).into();
                            known.insert(name, value.clone());
                            value
                        }
                    },
                    _ => value.clone(),
                };
                seen.insert(name.clone(), value);
            }
            if let Some(Parameter { weight, bias }) = parameters.get(&node) {
                let inputs = &network.nodes()[node].inputs;
                if let Some(name) = inputs.get(1) {
                    seen.insert(name.clone(), weight.clone().into());
                }
                if let (Some(name), Some(bias)) = (inputs.get(2), bias) {
                    seen.insert(name.clone(), bias.clone().into());
                }
            }
            network.step(node, &mut seen)?;
            for name in self.program.gives(node) {
                if let Some(value) = seen.remove(name) {
                    raw.insert(name.clone(), value);
                }
            }
        }
        Ok(())
    }

    /// What the integers of the layers among `nodes` stand for, with these weights and activation steps.
    pub(super) fn parameters(
        &self,
        nodes: &[usize],
        weights: &[LayerWeights],
        steps: &[Quantizer],
    ) -> Result<Parameters<Inner>, PtqError> {
        let mut found = Parameters::new();
        for &node in nodes {
            let name = &self.network.nodes()[node].name;
            let layers = &self.quantization.plan.layers;
            let Some(index) = layers.iter().position(|l| &l.name == name) else {
                continue;
            };
            let (layer, weights) = (&layers[index], &weights[index]);
            let dims: [usize; 4] = weights.dims.as_slice().try_into().map_err(|_| {
                let problem = format!("has weights of shape {:?}, not of rank 4", weights.dims);
                self.graph.tensor_error(&layer.weight, problem)
            })?;
            let weight = TensorData::new(weights.dequantized(), dims);
            let bias = match (&layer.bias, self.bias, self.program.group(&layer.input)) {
                (Some(bias), BiasType::Int32, Some(group)) => {
                    let mut bias = self.graph.initializer_f32(bias)?.data;
                    for (b, scale) in bias.iter_mut().zip(weights.scales()) {
                        let step = scale * steps[group].scale;
                        *b = (*b / step).round_ties_even() * step;
                    }
                    let count = bias.len();
                    Some(Tensor::from_data(
                        TensorData::new(bias, [count]),
                        &self.device,
                    ))
                }
                _ => None,
            };
            let weight = Tensor::from_data(weight, &self.device);
            found.insert(node, Parameter { weight, bias });
        }
        Ok(found)
    }

    fn keep(&mut self, maps: Maps, path: Path) {
        match path {
            Path::Float => self.float.extend(maps),
            Path::Quantized => self.quantized.extend(maps),
        }
    }

    /// Nodes have been run along both paths; what nobody reads any more goes.
    fn finish(&mut self, nodes: &[usize]) {
        for &node in nodes {
            self.done[node] = true;
        }
        let (program, done) = (self.program, &self.done);
        let outputs = self.network.outputs();
        let stays = |name: &String| program.needed(name, done) || outputs.contains(name);
        self.float.retain(|name, _| stays(name));
        self.quantized.retain(|name, _| stays(name));
    }

    /// Runs nodes along both paths.
    fn advance(&mut self, nodes: &[usize], progress: &dyn Progress) -> Result<(), PtqError> {
        for path in [Path::Float, Path::Quantized] {
            let maps = self.run(nodes, path, progress)?;
            self.keep(maps, path);
        }
        self.finish(nodes);
        Ok(())
    }

    fn apply(&mut self, state: &BlockState) -> Result<(), PtqError> {
        let Quantization {
            weights,
            activations,
            ..
        } = &mut *self.quantization;
        for (layer, integers) in &state.integers {
            let weights = weights
                .get_mut(*layer)
                .filter(|w| w.integers.len() == integers.len());
            match weights {
                Some(weights) => weights.integers.clone_from(integers),
                None => {
                    return Err(self
                        .graph
                        .graph_error("the interrupted work is another model's")
                        .into());
                }
            }
        }
        for (group, quantizer) in &state.steps {
            match activations.get_mut(*group) {
                Some(place) => *place = *quantizer,
                None => {
                    return Err(self
                        .graph
                        .graph_error("the interrupted work is another model's")
                        .into());
                }
            }
        }
        Ok(())
    }

    /// Windows spread over all, to judge a block by.
    pub(super) fn judged(&self) -> Vec<usize> {
        let count = self.settings.crops.judged.min(self.windows);
        (0..count).map(|i| i * self.windows / count).collect()
    }
}

/// Fake quantization of what a node reads: group, name, value.
pub(super) type Read<'a, B> = &'a mut dyn FnMut(usize, &str, Tensor<B, 4>) -> Tensor<B, 4>;

pub(super) fn pick(map: &Tensor<Inner, 4>, windows: &[usize], device: &Device) -> Tensor<Inner, 4> {
    let index: Vec<i64> = windows.iter().map(|&w| w as i64).collect();
    let index: Tensor<Inner, 1, Int> =
        Tensor::from_data(TensorData::new(index, [windows.len()]), device);
    map.clone().select(0, index)
}

pub(super) fn scalar(tensor: Tensor<Inner, 1>) -> f64 {
    f64::from(values(&tensor).first().copied().unwrap_or(f32::NAN))
}

#[cfg(test)]
mod tests;
