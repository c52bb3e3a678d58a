//! Learns the roundings and steps of one block.

use std::collections::HashMap;
use std::time::Instant;

use burn_tensor::{Bool, Tensor, TensorData};
use rand::{Rng, SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;

use super::super::PtqError;
use super::super::network::{Convolve, Network, Values};
use super::super::quantizer::Quantizer;
use super::checkpoint::BlockState;
use super::driver::{CHUNK, Driver, Maps, Outcome, Parameter, Parameters, pick, scalar};
use super::positives::Positives;
use super::program::{Block, Tail};
use super::rounding::Rounding;
use super::schedule::Schedule;
use super::steps::{LearnedStep, fake};
use super::{Device, Grad, Inner};

/// Local and task-guided error, means over windows.
#[derive(Debug, Clone, Copy)]
struct Errors {
    local: f64,
    task: Option<f64>,
}

/// The optimiser of one block after the other.
pub(super) struct Tuner {
    pub schedule: Schedule,
    pub grad: Network<Grad>,
    pub positives: Positives,
    /// Per layer of the plan.
    pub float_weights: Vec<Vec<f32>>,
    /// Groups whose step an earlier block has learned.
    pub settled: Vec<bool>,
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

    pub fn settle(&mut self, driver: &Driver<'_>, block: &Block) {
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
        parameters: &Parameters<Inner>,
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
                parameters,
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
    pub fn heads<B: Convolve>(
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
        driver.execute(network, &tail.nodes, &mut values, &Parameters::new(), None)?;
        tail.outputs
            .iter()
            .map(|name| Ok((name.clone(), driver.rank4(&values, name)?)))
            .collect()
    }

    /// Learns a block. `targets` are the float network's values for the block's nodes. `tell` is told the steps done
    /// and the local error as share of rounding to the nearest, smoothed.
    pub fn tune(
        &self,
        driver: &Driver<'_>,
        index: usize,
        targets: &Maps,
        tell: &mut dyn FnMut(usize, f64) -> Result<(), PtqError>,
    ) -> Result<BlockState, PtqError> {
        let started = Instant::now();
        let (settings, device) = (driver.settings, &driver.device);
        let Schedule { iterations, every } = self.schedule;
        let block = &driver.program.blocks[index];
        let quantization = &*driver.quantization;
        let tail = driver.program.tail(block, &driver.done);
        let target = targets
            .get(&block.output)
            .ok_or_else(|| driver.graph.tensor_error(&block.output, "nobody reads it"))?;
        let steps = quantization.activations.clone();
        let nearest = driver.parameters(&block.nodes, &quantization.weights, &steps)?;
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
        for iteration in 0..iterations {
            let part = iteration as f64 / iterations as f64;
            let batch = settings.batch.min(driver.windows);
            let windows = index::sample(&mut rng, driver.windows, batch).into_vec();
            let tracked: Vec<Tensor<Grad, 4>> =
                layers.iter().map(|(_, _, r)| r.tracked()).collect();
            let tracked_steps: HashMap<usize, Tensor<Grad, 1>> =
                learned.iter().map(|(g, s)| (*g, s.tracked())).collect();
            let parameters: Parameters<Grad> = layers
                .iter()
                .zip(&tracked)
                .map(|((_, node, rounding), v)| {
                    let bias = nearest.get(node).and_then(|p| p.bias.clone());
                    let bias = bias.map(Tensor::from_inner);
                    let weight = rounding.soft(v);
                    (*node, Parameter { weight, bias })
                })
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
                &parameters,
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
            if let Some(unit) = task_unit.filter(|_| iteration % every == 0) {
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
                    let weight = settings.tgpl.weight * every as f64 / unit;
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
            tell(iteration + 1, error)?;
        }

        let mut candidate = quantization.weights.clone();
        for (layer, _, rounding) in &layers {
            candidate[*layer].integers = rounding.integers();
        }
        let mut candidate_steps = steps.clone();
        for (group, step) in &learned {
            candidate_steps[*group] = step.quantizer();
        }
        let hard = driver.parameters(&block.nodes, &candidate, &candidate_steps)?;
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
                iterations,
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
