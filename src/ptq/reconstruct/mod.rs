//! Reconstruction: weights rounded and activation steps set so that the network says at objects what it said in float.
//!
//! In: a prepared graph, its quantization after the grid search, and windows of calibration maps. Out: the same
//! quantization with other integers and steps, and what each block gained.
//!
//! Blocks are tuned in network order. A block's input is what the already quantized part gives; its target is what the
//! float network gives at the same place. The loss is the local squared error, the penalty that drives each rounding
//! to a decision ([`rounding`]), and the Task-guided Global Positive Loss ([`positives`]): the block's output is pushed
//! through the float layers that remain, with exact gradients. Both errors are taken relative to rounding to the
//! nearest, so that weights and rates mean the same for every block of every model.
//!
//! A block ends no worse than it began: where the learned integers and steps do not lower the objective on windows
//! spread over the calibration frames, the nearest ones stay.

mod adam;
mod checkpoint;
pub mod crops;
mod driver;
pub mod positives;
pub mod program;
mod rounding;
mod schedule;
pub mod sensitivity;
mod steps;
mod tuner;

use crate::ptq::counts::Count;
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_tensor::backend::BackendTypes;
use serde::{Deserialize, Serialize};

pub use checkpoint::Checkpoint;
pub use driver::{Outcome, Subject, reconstruct, total_stride};
pub use positives::{PositiveSettings, TgplSettings};

/// Where tensors without gradients live.
pub type Inner = Flex;
/// Where tensors with gradients live.
pub type Grad = Autodiff<Inner>;
pub(crate) type Device = <Inner as BackendTypes>::Device;

/// Settings of the reconstruction, a section of the recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconstruction {
    /// Steps per block.
    pub iterations: usize,
    /// Windows per step.
    pub batch: usize,
    /// At most this many convolutions are tuned together.
    pub block: usize,
    /// Adam's rate for the rounding variables.
    pub rate: f64,
    /// Adam's rate for the logarithm of the activation steps; 0 keeps the steps.
    pub activation_rate: f64,
    /// Weight of the penalty on undecided roundings, relative to the local error of rounding to the nearest.
    pub regularizer: f64,
    /// Exponent of the penalty, at its start and at the end.
    pub beta: [f64; 2],
    /// Share of the steps before the penalty sets in.
    pub warm_up: f64,
    /// Probability that an element of a layer's input is the float one (QDrop); 0 switches it off.
    pub drop: f64,
    /// Bound on the multiplications of all steps; 0 for none. Where a network is larger, the task-guided gradient is
    /// taken less often, then fewer steps are made.
    pub multiplications: f64,
    pub crops: CropSettings,
    pub positives: PositiveSettings,
    pub tgpl: TgplSettings,
    pub seed: u64,
}

/// Which windows of the maps are used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CropSettings {
    /// Rows and columns in pillars, rounded up to the network's stride; 0 takes whole maps.
    pub size: usize,
    /// Pillars at each side whose context is cut off: positives there do not count.
    pub margin: usize,
    /// At most this many a frame.
    pub per_frame: usize,
    /// At most this many in all.
    pub max: usize,
    /// This many decide whether a block's result is kept.
    pub judged: usize,
    /// Bound on what is kept between blocks, megabytes; fewer windows are used where it would not hold.
    pub memory_mb: usize,
}

impl Reconstruction {
    pub(super) fn counts(&self) -> [Count; 12] {
        let (crops, most) = (&self.crops, 1_000_000);
        [
            ("reconstruction.iterations", self.iterations, 1..=most),
            ("reconstruction.batch", self.batch, 1..=4096),
            ("reconstruction.block", self.block, 1..=1000),
            // No grid has more pillars at a side.
            ("reconstruction.crops.size", crops.size, 0..=16_384),
            ("reconstruction.crops.margin", crops.margin, 0..=8192),
            ("reconstruction.crops.per_frame", crops.per_frame, 1..=most),
            ("reconstruction.crops.max", crops.max, 1..=most),
            ("reconstruction.crops.judged", crops.judged, 1..=most),
            ("reconstruction.crops.memory_mb", crops.memory_mb, 1..=most),
            ("reconstruction.positives.max", self.positives.max, 1..=most),
            (
                "reconstruction.positives.radius",
                self.positives.radius,
                0..=1000,
            ),
            ("reconstruction.tgpl.every", self.tgpl.every, 1..=most),
        ]
    }

    /// What is wrong with the values, if anything: the key and the problem.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        // Rates above 1 never settle; weights are relative.
        let bounded = [
            ("reconstruction.activation_rate", self.activation_rate, 10.0),
            ("reconstruction.multiplications", self.multiplications, 1e21),
            ("reconstruction.regularizer", self.regularizer, 1e6),
            ("reconstruction.tgpl.weight", self.tgpl.weight, 1e6),
            ("reconstruction.tgpl.boxes", self.tgpl.boxes, 1e6),
            ("reconstruction.tgpl.velocity", self.tgpl.velocity, 1e6),
        ];
        for (key, value, most) in bounded {
            if !(0.0..=most).contains(&value) {
                return Some((key, format!("{value}; 0 to {most}")));
            }
        }
        if !(self.rate > 0.0 && self.rate <= 10.0) {
            return Some((
                "reconstruction.rate",
                format!("{}; above 0, at most 10", self.rate),
            ));
        }
        let shares = [
            ("reconstruction.warm_up", self.warm_up),
            ("reconstruction.drop", self.drop),
            (
                "reconstruction.positives.threshold",
                f64::from(self.positives.threshold),
            ),
        ];
        for (key, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return Some((key, format!("{value}; 0 or more, below 1")));
            }
        }
        if !self.beta.iter().all(|b| *b >= 1.0 && *b <= 100.0) {
            return Some(("reconstruction.beta", format!("{:?}; 1 to 100", self.beta)));
        }
        if self.beta[0] < self.beta[1] {
            // The penalty has to become stricter, not laxer.
            return Some((
                "reconstruction.beta",
                format!("{:?}; from start to end it may not rise", self.beta),
            ));
        }
        if self.crops.size > 0 && self.crops.size <= 2 * self.crops.margin {
            return Some((
                "reconstruction.crops.margin",
                format!(
                    "{} at each side leaves nothing of {}",
                    self.crops.margin, self.crops.size
                ),
            ));
        }
        None
    }
}
