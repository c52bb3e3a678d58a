//! How far a quantization is, and whether to go on.

use serde::Serialize;

/// The parts of a quantization, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Frames are read from their source.
    Frames,
    /// Steps of the weights.
    Weights,
    /// Extremes of the activations.
    Ranges,
    /// Histograms of the activations, the search for their steps, and windows for what follows.
    Search,
    /// What each layer costs alone is measured, and the worst get higher precision.
    Sensitivity,
    /// Roundings and steps are learned, block by block.
    Reconstruct,
    /// The model is written.
    Export,
    /// The written model is compared with the float one.
    Check,
}

impl Stage {
    /// Where the stage lies in the whole, as shares of the usual time of a quantization with reconstruction.
    fn span(self) -> (f64, f64) {
        match self {
            Stage::Frames => (0.0, 0.02),
            Stage::Weights => (0.02, 0.03),
            Stage::Ranges => (0.03, 0.07),
            Stage::Search => (0.07, 0.12),
            Stage::Sensitivity => (0.12, 0.2),
            Stage::Reconstruct => (0.2, 0.95),
            Stage::Export => (0.95, 0.96),
            Stage::Check => (0.96, 1.0),
        }
    }

    /// Share of the whole that is done when `part` of this stage is.
    pub fn overall(self, part: f64) -> f64 {
        let (from, to) = self.span();
        from + (to - from) * part.clamp(0.0, 1.0)
    }

    /// The name in progress events.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Frames => "frames",
            Stage::Weights => "weights",
            Stage::Ranges => "ranges",
            Stage::Search => "search",
            Stage::Sensitivity => "sensitivity",
            Stage::Reconstruct => "reconstruct",
            Stage::Export => "export",
            Stage::Check => "check",
        }
    }
}

/// One step of the reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Step<'a> {
    /// Name of the first layer of the block.
    pub layer: &'a str,
    /// Counted from 1.
    pub block: usize,
    pub blocks: usize,
    /// Steps done.
    pub iteration: usize,
    pub iterations: usize,
    /// Squared error of the block's output, as share of what rounding to the nearest gives; smoothed.
    pub error: f64,
}

/// Told how far the work is; asked whether to stop. Between two questions lies at most one frame's work.
pub trait Progress: Send {
    /// `fraction` is the share of the whole, 0 to 1, and never falls.
    fn update(&mut self, stage: Stage, fraction: f64, detail: &str);

    /// Told of each step of the reconstruction, before [`Progress::update`] is.
    fn step(&mut self, _step: &Step<'_>) {}

    /// True makes the quantization end with [`super::PtqError::Cancelled`], with nothing written.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Progress of a quantization without reconstruction: its time is spread over the other stages.
pub(super) struct WithoutReconstruction<'a>(pub &'a mut dyn Progress);

impl Progress for WithoutReconstruction<'_> {
    fn update(&mut self, stage: Stage, fraction: f64, detail: &str) {
        let (from, to) = (Stage::Sensitivity.span().0, Stage::Reconstruct.span().1);
        let gone = if fraction >= to { to - from } else { 0.0 };
        self.0
            .update(stage, (fraction - gone) / (1.0 - (to - from)), detail);
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// Progress of work that is repeated within another stage.
pub(super) struct Within<'a>(pub &'a mut dyn Progress, pub Stage);

impl Progress for Within<'_> {
    fn update(&mut self, _stage: Stage, _fraction: f64, detail: &str) {
        self.0.update(self.1, self.1.overall(1.0), detail);
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// Says nothing and never stops.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn update(&mut self, _stage: Stage, _fraction: f64, _detail: &str) {}
}
