//! Which layers cost most at their bit widths, as measured at the heads.
//!
//! In: the same as for the reconstruction. Out: per layer, what the network loses when this layer alone is quantized
//! and all others are float. The measure is the Task-guided Global Positive Loss, since an error in a layer's output
//! says little about what becomes of it.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::super::export::Quantization;
use super::super::network::Values;
use super::super::progress::{Progress, Stage};
use super::super::recipe::LayerOverride;
use super::super::{PtqError, go_on};
use super::driver::{CHUNK, Driver, Maps, Parameters, scalar};
use super::positives::Positives;
use super::program::Program;
use super::steps::fake;
use super::{Device, Inner, Reconstruction, Subject};
use crate::ptq::counts::Count;

/// Settings of the measurement and of what follows from it, a section of the recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SensitivitySettings {
    /// Windows it is measured on, spread over those of the reconstruction.
    pub windows: usize,
    /// At most this many layers, the worst first, get higher precision: 8 bits where they have fewer, else float.
    pub keep: usize,
    /// Layers stay in float only as long as they do no more than this share of the multiplications.
    pub max_float_share: f64,
    /// Layers stay in float only as long as they add no more bytes than this to the file.
    pub max_float_bytes: u64,
}

impl SensitivitySettings {
    /// What is wrong with the values, if anything.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if !(0.0..=1.0).contains(&self.max_float_share) {
            let problem = format!("{}; 0 to 1", self.max_float_share);
            return Some(("sensitivity.max_float_share", problem));
        }
        None
    }

    pub(in crate::ptq) fn counts(&self) -> [Count; 2] {
        [
            ("sensitivity.windows", self.windows, 1..=1_000_000),
            ("sensitivity.keep", self.keep, 0..=100_000),
        ]
    }
}

/// What quantizing one layer alone costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    pub layer: String,
    pub weight_bits: u32,
    pub activation_bits: u32,
    /// Squared error of the layer's output as share of its energy.
    pub local: f64,
    /// Task-guided loss at the heads; absent where no window held a positive.
    pub task: Option<f64>,
    /// Weights, for the size of the file.
    pub weights: usize,
}

impl Sensitivity {
    /// Worst first: by the loss at the heads.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let of = |s: &Self| s.task.unwrap_or(s.local);
        of(other).total_cmp(&of(self))
    }
}

/// Measures every layer of the plan, worst first.
pub fn measure(
    subject: &Subject<'_>,
    quantization: &mut Quantization,
    settings: &SensitivitySettings,
    reconstruction: &Reconstruction,
    progress: &mut dyn Progress,
) -> Result<Vec<Sensitivity>, PtqError> {
    let device = Device::default();
    let graph = subject.graph;
    let program = Program::new(graph, &quantization.plan, 1)?;
    let network = super::driver::network::<Inner>(graph, &device)?;
    let all = subject.windows.shape()[0];
    let count = settings.windows.min(all);
    let chosen: Vec<usize> = (0..count).map(|i| i * all / count).collect();
    let windows = subject.windows.select(ndarray::Axis(0), &chosen);
    let driver = Driver::new(
        subject,
        windows,
        &program,
        &network,
        quantization,
        reconstruction,
    )?;
    let outputs = driver.outputs(progress)?;
    let positives = Positives::find(
        subject.heads.clone(),
        subject.scale,
        outputs,
        &reconstruction.positives,
        subject.margin,
    )
    .map_err(|problem| graph.graph_error(problem))?;
    let quantization = &*driver.quantization;
    let nodes: Vec<usize> = (0..network.nodes().len()).collect();
    let parameters = driver.parameters(&nodes, &quantization.weights, &quantization.activations)?;

    let layers = &quantization.plan.layers;
    let mut sums = vec![Sums::default(); layers.len()];
    for start in (0..count).step_by(CHUNK) {
        let windows_here: Vec<usize> = (start..(start + CHUNK).min(count)).collect();
        let share = windows_here.len() as f64 / count as f64;
        let input = driver.float[subject.input].clone();
        let input = input.narrow(0, start, windows_here.len());
        let mut float = Values::default();
        float.insert(subject.input.to_owned(), input.into());
        network.run(&mut float)?;
        for (index, (layer, sums)) in layers.iter().zip(&mut sums).enumerate() {
            go_on(progress)?;
            let Some(node) = network.nodes().iter().position(|n| n.name == layer.name) else {
                continue;
            };
            let mut values = float.clone();
            let mut read = |group: usize, _: &str, x| fake(x, &quantization.activations[group]);
            driver.execute(&network, &[node], &mut values, &parameters, Some(&mut read))?;
            let after = downstream(&program, node, network.nodes().len());
            driver.execute(&network, &after, &mut values, &Parameters::new(), None)?;
            let wanted = driver.rank4(&float, &layer.output)?;
            let got = driver.rank4(&values, &layer.output)?;
            sums.energy += scalar(wanted.clone().square().sum());
            sums.error += scalar((got - wanted).square().sum());
            let maps: Maps = subject
                .heads
                .iter()
                .map(|(_, name)| Ok((name.clone(), driver.rank4(&values, name)?)))
                .collect::<Result<_, PtqError>>()?;
            let same = |t| t;
            let tgpl = &reconstruction.tgpl;
            if let Some(loss) = positives.loss::<Inner>(&windows_here, &maps, tgpl, same, &device) {
                sums.task += share * scalar(loss);
                sums.tasks += share;
            }
            let part = share * (index + 1) as f64 / layers.len() as f64;
            let part = start as f64 / count as f64 + part;
            // Recalibrating what is promoted takes about as long again.
            let whole = Stage::Sensitivity.overall(0.5 * part);
            let detail = format!("{} alone, windows from {start} of {count}", layer.name);
            progress.update(Stage::Sensitivity, whole, &detail);
        }
    }
    let mut found: Vec<Sensitivity> = layers
        .iter()
        .zip(&quantization.weights)
        .zip(&sums)
        .map(|((layer, weights), sums)| Sensitivity {
            layer: layer.name.clone(),
            weight_bits: layer.weight_bits,
            activation_bits: program
                .group(&layer.input)
                .map_or(8, |g| quantization.plan.groups[g].bits),
            local: sums.error / sums.energy.max(f64::MIN_POSITIVE),
            task: (sums.tasks > 0.0).then(|| sums.task / sums.tasks),
            weights: weights.integers.len(),
        })
        .collect();
    found.sort_by(Sensitivity::order);
    Ok(found)
}

#[derive(Debug, Clone, Default)]
struct Sums {
    error: f64,
    energy: f64,
    task: f64,
    tasks: f64,
}

/// The nodes that a node's output reaches, in order.
fn downstream(program: &Program, node: usize, count: usize) -> Vec<usize> {
    let mut reached: HashSet<&String> = program.gives(node).iter().collect();
    let mut found = Vec::new();
    for after in node + 1..count {
        if program.reads(after).iter().any(|r| reached.contains(r)) {
            reached.extend(program.gives(after));
            found.push(after);
        }
    }
    found
}

/// The layers that get higher precision, out of a ranking: the worst that the budget allows.
///
/// `multiplications` is per layer name, `total` that of the whole network.
pub fn promoted(
    ranking: &[Sensitivity],
    settings: &SensitivitySettings,
    multiplications: impl Fn(&str) -> u64,
    total: u64,
) -> Vec<Promoted> {
    let (mut float, mut bytes) = (0, 0);
    let mut chosen = Vec::new();
    for layer in ranking {
        if chosen.len() == settings.keep {
            break;
        }
        if layer.weight_bits < 8 || layer.activation_bits < 8 {
            chosen.push(Promoted::new(layer, Promotion::EightBits));
            continue;
        }
        // A weight takes four bytes instead of one.
        let more = 3 * layer.weights as u64;
        let work = multiplications(&layer.layer);
        let fits = (float + work) as f64 <= settings.max_float_share * total as f64
            && bytes + more <= settings.max_float_bytes;
        if fits {
            float += work;
            bytes += more;
            chosen.push(Promoted::new(layer, Promotion::Float));
        }
    }
    chosen
}

/// A layer that gets higher precision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    pub layer: String,
    pub to: Promotion,
}

impl Promoted {
    fn new(layer: &Sensitivity, to: Promotion) -> Self {
        Promoted {
            layer: layer.layer.clone(),
            to,
        }
    }

    /// The same as a setting of the recipe.
    pub fn as_override(&self) -> LayerOverride {
        let bits = (self.to == Promotion::EightBits).then_some(8);
        LayerOverride {
            name: self.layer.clone(),
            keep_float: (self.to == Promotion::Float).then_some(true),
            weight_bits: bits,
            activation_bits: bits,
        }
    }
}

/// What a sensitive layer becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promotion {
    EightBits,
    Float,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, bits: u32, weights: usize) -> Sensitivity {
        Sensitivity {
            layer: name.into(),
            weight_bits: bits,
            activation_bits: 8,
            local: 0.0,
            task: None,
            weights,
        }
    }

    #[test]
    fn the_worst_layers_are_promoted_as_far_as_the_budget_goes() {
        let settings = SensitivitySettings {
            windows: 1,
            keep: 3,
            max_float_share: 0.2,
            max_float_bytes: 400,
        };
        let ranking = [
            layer("huge", 8, 1000),
            layer("slow", 8, 10),
            layer("four", 4, 5000),
            layer("small", 8, 100),
            layer("next", 8, 20),
            layer("last", 8, 10),
        ];
        let work = |name: &str| if name == "slow" { 50 } else { 5 };
        let promoted_to = |to, settings: &SensitivitySettings| -> Vec<String> {
            let mut promoted = promoted(&ranking, settings, work, 100);
            promoted.retain(|p| p.to == to);
            promoted.into_iter().map(|p| p.layer).collect()
        };
        assert_eq!(promoted_to(Promotion::EightBits, &settings), ["four"]);
        assert_eq!(promoted_to(Promotion::Float, &settings), ["small", "next"]);
        let none = SensitivitySettings {
            keep: 0,
            ..settings
        };
        assert!(promoted_to(Promotion::Float, &none).is_empty());
    }

    #[test]
    fn the_ranking_goes_by_what_the_heads_lose() {
        let mut a = layer("a", 8, 1);
        let mut b = layer("b", 8, 1);
        (a.local, a.task) = (0.9, Some(0.1));
        (b.local, b.task) = (0.1, Some(0.9));
        let mut ranking = [a, b];
        ranking.sort_by(Sensitivity::order);
        assert_eq!(ranking[0].layer, "b");
    }
}
