//! Runs the blocks: forward passes over all windows, and the optimiser.

use std::collections::HashMap;
use std::time::Instant;

use burn_tensor::backend::Backend;
use burn_tensor::{Bool, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::super::export::Quantization;
use super::super::network::{Network, Value, Values};
use super::super::progress::{Progress, Stage};
use super::super::quantizer::Quantizer;
use super::super::report::null_is_nan;
use super::super::{PtqError, go_on};
use super::checkpoint::{BlockState, Checkpoint};
use super::positives::Positives;
use super::program::{Block, Done, Program, Tail};
use super::rounding::{Rounding, values};
use super::steps::{LearnedStep, fake};
use super::{Device, Grad, Inner, Reconstruction};
use crate::detector::description::{Head, HeatmapScale};
use crate::onnx::Model;

/// Windows that run through the network at once where no gradient is wanted.
const CHUNK: usize = 8;

/// What is reconstructed.
pub struct Subject<'a> {
    /// The prepared float graph.
    pub graph: &'a Model,
    /// Its input.
    pub input: &'a str,
    /// Its outputs, by head.
    pub heads: Vec<(Head, String)>,
    pub scale: HeatmapScale,
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
    let fit = windows_that_fit(&subject, &program, &inner, quantization, settings)?;
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
    let mut tuner = Tuner {
        grad,
        positives,
        float_weights: program_weights(subject.graph, &driver)?,
        settled: vec![false; driver.quantization.plan.groups.len()],
    };
    let glue = program.glue(&driver.done);
    driver.advance(&glue)?;
    let total = program.blocks.len();
    let mut outcomes = Vec::with_capacity(total);
    for (index, block) in program.blocks.iter().enumerate() {
        go_on(progress)?;
        let targets = driver.run(&block.nodes, Path::Float)?;
        let state = match checkpoint.load(index) {
            Some(state) => state,
            None => {
                let name = &driver.quantization.plan.layers[block.layers[0]].name;
                let label = format!("block {} of {total}, {name}", index + 1);
                let mut tell = |part: f64, detail: &str| {
                    let part = (index as f64 + part) / total as f64;
                    let detail = format!("{label}: {detail}");
                    progress.update(
                        Stage::Reconstruct,
                        Stage::Reconstruct.overall(part),
                        &detail,
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
        let quantized = driver.run(&block.nodes, Path::Quantized)?;
        driver.keep(quantized, Path::Quantized);
        driver.finish(&block.nodes);
        let glue = program.glue(&driver.done);
        driver.advance(&glue)?;
        outcomes.push(state.outcome);
    }
    Ok(outcomes)
}

/// The largest ratio between the input's rows and those of any tensor of the network. `shape` is the input's
/// channels, rows and columns.
pub fn total_stride(graph: &Model, input: &str, shape: [usize; 3]) -> Result<usize, PtqError> {
    let [channels, rows, columns] = shape;
    let device = Device::default();
    let network = network::<Inner>(graph, &device)?;
    let mut values = Values::default();
    let map: Tensor<Inner, 4> = Tensor::zeros([1, channels, rows, columns], &device);
    values.insert(input.to_owned(), map.into());
    let mut stride = 1;
    for index in 0..network.nodes().len() {
        network.step(index, &mut values)?;
        for output in &network.nodes()[index].outputs {
            if let Some(map) = values.get(output).and_then(Value::rank4) {
                stride = stride.max(rows / map.dims()[2].max(1));
            }
        }
    }
    Ok(stride)
}

/// The network, its nodes being those of the graph.
fn network<B: Backend<Device = Device>>(
    graph: &Model,
    device: &Device,
) -> Result<Network<B>, PtqError> {
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
) -> Result<usize, PtqError> {
    let one = subject
        .windows
        .slice(ndarray::s![..1, .., .., ..])
        .to_owned();
    let mut driver = Driver::new(subject, one, program, network, quantization, settings)?;
    driver.advance(&program.glue(&driver.done))?;
    let mut peak = driver.bytes();
    for block in &program.blocks {
        for path in [Path::Float, Path::Quantized] {
            let values = driver.run(&block.nodes, path)?;
            driver.keep(values, path);
        }
        // Before what is no longer needed goes.
        peak = peak.max(driver.bytes());
        driver.finish(&block.nodes);
        driver.advance(&program.glue(&driver.done))?;
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

/// All windows on their way through the network, along both paths.
struct Driver<'a> {
    graph: &'a Model,
    program: &'a Program,
    network: &'a Network<Inner>,
    quantization: &'a mut Quantization,
    settings: &'a Reconstruction,
    device: Device,
    windows: usize,
    done: Done,
    /// Tensors that somebody still has to read, before their quantizers: `[windows, channels, y, x]`.
    float: Maps,
    quantized: Maps,
}

type Maps = HashMap<String, Tensor<Inner, 4>>;

impl<'a> Driver<'a> {
    fn new(
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
            device,
            windows: n,
            done: program.start(),
            float: start.clone(),
            quantized: start,
        })
    }

    fn bytes(&self) -> usize {
        let size = |t: &Tensor<Inner, 4>| t.dims().iter().product::<usize>() * 4;
        self.float
            .values()
            .chain(self.quantized.values())
            .map(size)
            .sum()
    }

    /// The float network's outputs for all windows.
    fn outputs(&self, progress: &dyn Progress) -> Result<Maps, PtqError> {
        let names = self.network.outputs();
        let mut parts: HashMap<String, Vec<Tensor<Inner, 4>>> = HashMap::new();
        for start in (0..self.windows).step_by(CHUNK) {
            go_on(progress)?;
            let end = (start + CHUNK).min(self.windows);
            let mut values = Values::default();
            for (name, map) in &self.float {
                values.insert(name.clone(), map.clone().slice([start..end]).into());
            }
            self.network.run(&mut values)?;
            for name in names {
                parts
                    .entry(name.clone())
                    .or_default()
                    .push(self.rank4(&values, name)?);
            }
        }
        Ok(parts
            .into_iter()
            .map(|(name, parts)| (name, Tensor::cat(parts, 0)))
            .collect())
    }

    fn rank4<B: Backend>(&self, values: &Values<B>, name: &str) -> Result<Tensor<B, 4>, PtqError> {
        values.get(name).and_then(Value::rank4).ok_or_else(|| {
            let problem = "is not a map of rank 4, which the reconstruction needs";
            self.graph.tensor_error(name, problem).into()
        })
    }

    /// Runs nodes for all windows; gives what later nodes or the loss read.
    fn run(&self, nodes: &[usize], path: Path) -> Result<Maps, PtqError> {
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
        let weights = match path {
            Path::Float => HashMap::new(),
            Path::Quantized => self.quantized_weights(nodes),
        };
        let mut parts: HashMap<String, Vec<Tensor<Inner, 4>>> = HashMap::new();
        for start in (0..self.windows).step_by(CHUNK) {
            let end = (start + CHUNK).min(self.windows);
            let mut raw = Values::default();
            for name in &sources {
                let map = maps
                    .get(name)
                    .ok_or_else(|| self.graph.tensor_error(name, "is not there yet"))?;
                raw.insert(name.clone(), map.clone().slice([start..end]).into());
            }
            match path {
                Path::Float => self.execute(self.network, nodes, &mut raw, &weights, None)?,
                Path::Quantized => {
                    let mut read =
                        |group: usize, _: &str, x| fake(x, &self.quantization.activations[group]);
                    self.execute(self.network, nodes, &mut raw, &weights, Some(&mut read))?;
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

    /// Runs nodes on `raw`, values before their quantizers. `read` fake-quantizes what a node reads (group, name,
    /// value); nodes that only move values pass them on as they are.
    fn execute<B: Backend>(
        &self,
        network: &Network<B>,
        nodes: &[usize],
        raw: &mut Values<B>,
        weights: &HashMap<usize, Tensor<B, 4>>,
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
            if let Some(weight) = weights.get(&node)
                && let Some(name) = network.nodes()[node].inputs.get(1)
            {
                seen.insert(name.clone(), weight.clone().into());
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

    /// What the integers of the layers among `nodes` stand for.
    fn quantized_weights(&self, nodes: &[usize]) -> HashMap<usize, Tensor<Inner, 4>> {
        let names: HashMap<String, usize> = nodes
            .iter()
            .map(|&n| (self.network.nodes()[n].name.clone(), n))
            .collect();
        let plan = &self.quantization.plan;
        plan.layers
            .iter()
            .zip(&self.quantization.weights)
            .filter_map(|(layer, weights)| {
                let node = *names.get(&layer.name)?;
                let dims: [usize; 4] = weights.dims.as_slice().try_into().ok()?;
                let data = TensorData::new(weights.dequantized(), dims);
                Some((node, Tensor::from_data(data, &self.device)))
            })
            .collect()
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
    fn advance(&mut self, nodes: &[usize]) -> Result<(), PtqError> {
        for path in [Path::Float, Path::Quantized] {
            let maps = self.run(nodes, path)?;
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
    fn judged(&self) -> Vec<usize> {
        let count = self.settings.crops.judged.min(self.windows);
        (0..count).map(|i| i * self.windows / count).collect()
    }
}

/// Fake quantization of what a node reads: group, name, value.
type Read<'a, B> = &'a mut dyn FnMut(usize, &str, Tensor<B, 4>) -> Tensor<B, 4>;

fn pick(map: &Tensor<Inner, 4>, windows: &[usize], device: &Device) -> Tensor<Inner, 4> {
    let index: Vec<i64> = windows.iter().map(|&w| w as i64).collect();
    let index: Tensor<Inner, 1, Int> =
        Tensor::from_data(TensorData::new(index, [windows.len()]), device);
    map.clone().select(0, index)
}

fn scalar(tensor: Tensor<Inner, 1>) -> f64 {
    f64::from(values(&tensor).first().copied().unwrap_or(f32::NAN))
}

/// Local and task-guided error, means over windows.
#[derive(Debug, Clone, Copy)]
struct Errors {
    local: f64,
    task: Option<f64>,
}

/// The optimiser of one block after the other.
struct Tuner {
    grad: Network<Grad>,
    positives: Positives,
    /// Per layer of the plan.
    float_weights: Vec<Vec<f32>>,
    /// Groups whose step an earlier block has learned.
    settled: Vec<bool>,
}

impl Tuner {
    /// The groups whose steps belong to a block: those that its layers read, unless an earlier block had them.
    fn own_groups(&self, driver: &Driver<'_>, block: &Block) -> Vec<usize> {
        let mut groups = Vec::new();
        for &layer in &block.layers {
            let input = &driver.quantization.plan.layers[layer].input;
            if let Some(group) = driver.program.group(input)
                && !self.settled[group]
                && !groups.contains(&group)
            {
                groups.push(group);
            }
        }
        groups
    }

    fn settle(&mut self, driver: &Driver<'_>, block: &Block) {
        for group in self.own_groups(driver, block) {
            self.settled[group] = true;
        }
    }

    /// Errors of a block with given weights and steps.
    fn errors(
        &self,
        driver: &Driver<'_>,
        block: &Block,
        tail: &Tail,
        target: &Tensor<Inner, 4>,
        weights: &HashMap<usize, Tensor<Inner, 4>>,
        steps: &[Quantizer],
    ) -> Result<Errors, PtqError> {
        let settings = driver.settings;
        let judged = driver.judged();
        let (mut local, mut task, mut tasks) = (0.0, 0.0, 0.0);
        for windows in judged.chunks(CHUNK) {
            let share = windows.len() as f64 / judged.len() as f64;
            let mut raw = Values::default();
            for name in driver.program.sources(&block.nodes) {
                raw.insert(
                    name.clone(),
                    pick(&driver.quantized[&name], windows, &driver.device).into(),
                );
            }
            let mut read = |group: usize, _: &str, x| fake(x, &steps[group]);
            driver.execute(
                driver.network,
                &block.nodes,
                &mut raw,
                weights,
                Some(&mut read),
            )?;
            let output = driver.rank4(&raw, &block.output)?;
            let wanted = pick(target, windows, &driver.device);
            local += share * scalar((output - wanted).square().mean());
            if settings.tgpl.weight > 0.0 {
                let maps = self.heads(driver, driver.network, block, tail, windows, raw, |t| t)?;
                let same = |t| t;
                let loss = self.positives.loss::<Inner>(
                    windows,
                    &maps,
                    &settings.tgpl,
                    same,
                    &driver.device,
                );
                if let Some(loss) = loss {
                    task += share * scalar(loss);
                    tasks += share;
                }
            }
        }
        Ok(Errors {
            local,
            task: (tasks > 0.0).then(|| task / tasks),
        })
    }

    /// Pushes a block's output, found in `raw`, through the float layers that remain.
    #[allow(clippy::too_many_arguments)]
    fn heads<B: Backend>(
        &self,
        driver: &Driver<'_>,
        network: &Network<B>,
        block: &Block,
        tail: &Tail,
        windows: &[usize],
        raw: Values<B>,
        lift: impl Fn(Tensor<Inner, 4>) -> Tensor<B, 4>,
    ) -> Result<HashMap<String, Tensor<B, 4>>, PtqError> {
        let mut values = Values::default();
        for name in driver.program.sources(&tail.nodes) {
            let value = match raw.get(&name).filter(|_| block_gives(driver, block, &name)) {
                Some(value) => value.clone(),
                None => {
                    let map = driver
                        .quantized
                        .get(&name)
                        .ok_or_else(|| driver.graph.tensor_error(&name, "is not there yet"))?;
                    lift(pick(map, windows, &driver.device)).into()
                }
            };
            values.insert(name, value);
        }
        // A block may end in an output of the graph.
        if let Some(value) = raw.get(&block.output) {
            values.insert(block.output.clone(), value.clone());
        }
        driver.execute(network, &tail.nodes, &mut values, &HashMap::new(), None)?;
        tail.outputs
            .iter()
            .map(|name| Ok((name.clone(), driver.rank4(&values, name)?)))
            .collect()
    }

    /// Learns a block. `targets` are the float network's values for the block's nodes.
    fn tune(
        &self,
        driver: &Driver<'_>,
        index: usize,
        targets: &Maps,
        tell: &mut dyn FnMut(f64, &str) -> Result<(), PtqError>,
    ) -> Result<BlockState, PtqError> {
        let started = Instant::now();
        let (settings, device) = (driver.settings, &driver.device);
        let block = &driver.program.blocks[index];
        let quantization = &*driver.quantization;
        let tail = driver.program.tail(block, &driver.done);
        let target = targets
            .get(&block.output)
            .ok_or_else(|| driver.graph.tensor_error(&block.output, "nobody reads it"))?;
        let nearest = driver.quantized_weights(&block.nodes);
        let steps = quantization.activations.clone();
        let before = self.errors(driver, block, &tail, target, &nearest, &steps)?;
        let energy = scalar(target.clone().square().mean()).max(f64::MIN_POSITIVE);
        // What is exact already, or never used, has nothing to learn from.
        let local_unit = before.local.max(energy * 1e-12);
        let task_unit = before.task.filter(|t| *t > 1e-12);

        let mut layers: Vec<(usize, usize, Rounding)> = Vec::new();
        for &layer in &block.layers {
            let node = driver
                .network
                .nodes()
                .iter()
                .position(|n| n.name == quantization.plan.layers[layer].name)
                .ok_or_else(|| driver.graph.graph_error("a layer is gone"))?;
            let rounding = Rounding::new(
                &self.float_weights[layer],
                &quantization.weights[layer],
                settings.rate,
                device,
            )
            .map_err(|problem| {
                driver
                    .graph
                    .tensor_error(&quantization.plan.layers[layer].weight, problem)
            })?;
            layers.push((layer, node, rounding));
        }
        let mut learned: HashMap<usize, LearnedStep> = HashMap::new();
        if settings.activation_rate > 0.0 {
            for group in self.own_groups(driver, block) {
                learned.insert(
                    group,
                    LearnedStep::new(steps[group], settings.activation_rate, device),
                );
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        rng.set_stream(index as u64);
        let mut smooth: Option<f64> = None;
        for iteration in 0..settings.iterations {
            let part = iteration as f64 / settings.iterations as f64;
            let batch = settings.batch.min(driver.windows);
            let windows = index::sample(&mut rng, driver.windows, batch).into_vec();
            let tracked: Vec<Tensor<Grad, 4>> =
                layers.iter().map(|(_, _, r)| r.tracked()).collect();
            let tracked_steps: HashMap<usize, Tensor<Grad, 1>> =
                learned.iter().map(|(g, s)| (*g, s.tracked())).collect();
            let weights: HashMap<usize, Tensor<Grad, 4>> = layers
                .iter()
                .zip(&tracked)
                .map(|((_, node, rounding), v)| (*node, rounding.soft(v)))
                .collect();
            let mut raw = Values::default();
            let mut float: HashMap<String, Tensor<Grad, 4>> = HashMap::new();
            for name in driver.program.sources(&block.nodes) {
                let maps = [&driver.quantized[&name], &driver.float[&name]];
                let [q, f] = maps.map(|m| Tensor::from_inner(pick(m, &windows, device)));
                raw.insert(name.clone(), q.into());
                float.insert(name, f);
            }
            let mut read = |group: usize, name: &str, x: Tensor<Grad, 4>| {
                let quantized = match (learned.get(&group), tracked_steps.get(&group)) {
                    (Some(step), Some(change)) => step.fake(x.clone(), change),
                    _ => fake(x.clone(), &steps[group]),
                };
                if settings.drop > 0.0 {
                    let mask = coins(&mut rng, x.dims(), settings.drop, device);
                    quantized.mask_where(mask, float.get(name).cloned().unwrap_or(x))
                } else {
                    quantized
                }
            };
            driver.execute(
                &self.grad,
                &block.nodes,
                &mut raw,
                &weights,
                Some(&mut read),
            )?;
            let output = driver.rank4(&raw, &block.output)?;
            let wanted = Tensor::from_inner(pick(target, &windows, device));
            let local = (output - wanted).square().mean() / local_unit as f32;
            let shown = scalar(local.clone().inner());
            let mut loss = local;
            if part >= settings.warm_up {
                let way = (part - settings.warm_up) / (1.0 - settings.warm_up);
                let beta = settings.beta[0] + (settings.beta[1] - settings.beta[0]) * way;
                for v in &tracked {
                    loss = loss + Rounding::penalty(v, beta) * settings.regularizer as f32;
                }
            }
            if let Some(unit) = task_unit.filter(|_| iteration % settings.tgpl.every == 0) {
                let maps = self.heads(
                    driver,
                    &self.grad,
                    block,
                    &tail,
                    &windows,
                    raw,
                    Tensor::from_inner,
                )?;
                let task = self.positives.loss::<Grad>(
                    &windows,
                    &maps,
                    &settings.tgpl,
                    Tensor::from_inner,
                    device,
                );
                if let Some(task) = task {
                    let weight = settings.tgpl.weight * settings.tgpl.every as f64 / unit;
                    loss = loss + task * weight as f32;
                }
            }
            let gradients = loss.backward();
            for ((_, _, rounding), v) in layers.iter_mut().zip(&tracked) {
                if let Some(gradient) = v.grad(&gradients) {
                    rounding.step(gradient);
                }
            }
            for (group, step) in &mut learned {
                if let Some(gradient) = tracked_steps[group].grad(&gradients) {
                    step.step(gradient);
                }
            }
            let error = smooth.map_or(shown, |s| 0.9 * s + 0.1 * shown);
            smooth = Some(error);
            tell(
                part,
                &format!(
                    "step {} of {}, error {error:.3} of nearest",
                    iteration + 1,
                    settings.iterations
                ),
            )?;
        }

        let mut candidate = quantization.weights.clone();
        for (layer, _, rounding) in &layers {
            candidate[*layer].integers = rounding.integers();
        }
        let mut candidate_steps = steps.clone();
        for (group, step) in &learned {
            candidate_steps[*group] = step.quantizer();
        }
        let hard: HashMap<usize, Tensor<Inner, 4>> = layers
            .iter()
            .map(|(layer, node, _)| {
                let weights = &candidate[*layer];
                let dims = nearest[node].dims();
                (
                    *node,
                    Tensor::from_data(TensorData::new(weights.dequantized(), dims), device),
                )
            })
            .collect();
        let found = self.errors(driver, block, &tail, target, &hard, &candidate_steps)?;
        let objective = |e: Errors| {
            let task = e
                .task
                .zip(task_unit)
                .map_or(0.0, |(t, unit)| settings.tgpl.weight * t / unit);
            e.local / local_unit + task
        };
        let taken = objective(found) < objective(before);
        let (result, errors) = if taken {
            (candidate, found)
        } else {
            (quantization.weights.clone(), before)
        };
        let flipped = block
            .layers
            .iter()
            .map(|&l| {
                let pairs = result[l]
                    .integers
                    .iter()
                    .zip(&quantization.weights[l].integers);
                pairs.filter(|(a, b)| a != b).count() as f64
                    / result[l].integers.len().max(1) as f64
            })
            .collect();
        Ok(BlockState {
            integers: block
                .layers
                .iter()
                .map(|&l| (l, result[l].integers.clone()))
                .collect(),
            steps: if taken {
                learned.keys().map(|&g| (g, candidate_steps[g])).collect()
            } else {
                Vec::new()
            },
            outcome: Outcome {
                layers: block.layers.clone(),
                error_before: before.local / energy,
                error_after: errors.local / energy,
                tgpl_before: before.task,
                tgpl_after: errors.task,
                flipped,
                converged: layers.iter().map(|(_, _, r)| r.converged()).collect(),
                taken,
                iterations: settings.iterations,
                seconds: started.elapsed().as_secs_f64(),
            },
        })
    }
}

fn block_gives(driver: &Driver<'_>, block: &Block, name: &str) -> bool {
    block
        .nodes
        .iter()
        .any(|&n| driver.program.gives(n).iter().any(|g| g == name))
}

/// True with the probability `share`, for every element.
fn coins(
    rng: &mut ChaCha8Rng,
    dims: [usize; 4],
    share: f64,
    device: &Device,
) -> Tensor<Grad, 4, Bool> {
    let mut bytes = vec![0u8; dims.iter().product()];
    rng.fill_bytes(&mut bytes);
    let bound = (share * 256.0).round() as u16;
    let mask: Vec<bool> = bytes.into_iter().map(|b| u16::from(b) < bound).collect();
    Tensor::from_data(TensorData::new(mask, dims), device)
}
