//! What there is to say about the node: what runs, the calibration under way, the last one.

use std::path::PathBuf;

use serde::Serialize;

use super::pipeline::Active;
use super::troubles::Trouble;
use crate::calibration::ModelStore;
use crate::detector::Precision;
use crate::ptq::check::Verdict;

/// How the last calibration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The INT8 model runs.
    Swapped,
    /// An INT8 model was made, but does not agree well enough with float.
    Refused,
    Failed,
    Cancelled,
}

/// The last calibration, for the status.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Last {
    /// As [`Work::calibration`].
    pub calibration: u32,
    pub outcome: Outcome,
    /// Why it was refused or failed.
    pub reasons: Vec<String>,
    /// What the verdict rests on, in words: which classes were judged, which were not, and what else there is to know.
    pub notes: Vec<String>,
    /// Where a model was made.
    pub verdict: Option<Verdict>,
    /// Frames it was made from; absent where it did not come to read them.
    pub frames: Option<usize>,
    pub seconds: f64,
    /// The INT8 model in the store, where one was made.
    pub stored_id: Option<String>,
    /// Description of the INT8 model, where one was made.
    pub model: Option<PathBuf>,
    pub report: Option<PathBuf>,
}

impl Last {
    /// All that is to be told of it, a line each.
    pub fn told(&self) -> Vec<String> {
        self.reasons.iter().chain(&self.notes).cloned().collect()
    }
}

/// How the model that was loaded on request stands to what this node saw itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    /// The model in the store.
    pub stored_id: String,
    /// Whether this node's frames judged it: those that the buffer held out, or where the node made it, those that it was
    /// made from.
    pub judged: bool,
    /// Frames that the node's buffer held out and that it was judged on.
    pub frames: usize,
    /// What that gave, or why it was not judged.
    pub text: String,
    pub verdict: Option<Verdict>,
}

/// A calibration under way, for the status.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Calibrating {
    /// `buffer`, `start`, a stage of the quantization, `load`, or `swap`.
    pub stage: String,
    /// Of the quantization, 0 to 1.
    pub fraction: f64,
    pub eta_s: Option<f64>,
    pub detail: String,
    /// The recording that it is made from; absent: the node's buffer.
    pub bag: Option<PathBuf>,
    /// Absent where they are not counted yet.
    pub frames: Option<usize>,
    /// Those of the buffer's frames that have fewer sweeps than the model wants.
    pub few_sweeps: Option<usize>,
    /// Process of the quantization, while it runs.
    pub pid: Option<u32>,
}

/// What the node found in the store when it started.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Start {
    /// The stored model that it started with.
    pub model: Option<String>,
    /// Why it did not start with the one that ran last.
    pub problems: Vec<String>,
}

/// What the node does besides detecting.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    /// Number of the calibration under way, or of the last one, counted from the node's start; 0: there was none.
    pub calibration: u32,
    pub calibrating: Option<Calibrating>,
    pub last: Option<Last>,
    /// Absent until the store was looked at.
    pub start: Option<Start>,
    /// What the store could not keep, since the last time that it could.
    pub store_problem: Option<String>,
    /// Of the model that was loaded last; absent where another one runs.
    pub judgement: Option<Judgement>,
}

/// The latched status: one flat JSON object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// `idle` or `calibrating`.
    pub state: &'static str,
    pub calibration: u32,
    pub stage: Option<String>,
    pub fraction: Option<f64>,
    pub eta_s: Option<f64>,
    pub detail: Option<String>,
    pub bag: Option<PathBuf>,
    pub frames: Option<usize>,
    pub few_sweeps: Option<usize>,
    pub pid: Option<u32>,
    pub model_id: String,
    /// The running model in the store, where it came from there.
    pub stored_id: Option<String>,
    pub model_path: PathBuf,
    pub precision: Precision,
    /// The INT8 model that `~/use_int8` would change to.
    pub int8_model_id: Option<String>,
    /// Why the node left INT8 by itself.
    pub fallback: Option<String>,
    pub start: Option<Start>,
    pub store_problem: Option<String>,
    /// What this node's own frames said of the model that runs, where it was loaded on request.
    pub judgement: Option<Judgement>,
    pub last: Option<Last>,
    /// What is wrong now.
    pub conditions: Vec<Trouble>,
}

impl Status {
    pub fn new(work: &Work, active: &Active, store: &ModelStore, conditions: Vec<Trouble>) -> Self {
        let now = work.calibrating.as_ref();
        let stored_id = store.id_of(&active.model.path);
        let judgement = work.judgement.clone();
        Self {
            state: if now.is_some() { "calibrating" } else { "idle" },
            calibration: work.calibration,
            stage: now.map(|c| c.stage.clone()),
            fraction: now.map(|c| c.fraction),
            eta_s: now.and_then(|c| c.eta_s),
            detail: now.map(|c| c.detail.clone()).filter(|d| !d.is_empty()),
            bag: now.and_then(|c| c.bag.clone()),
            frames: now.and_then(|c| c.frames),
            few_sweeps: now.and_then(|c| c.few_sweeps),
            pid: now.and_then(|c| c.pid),
            judgement: judgement.filter(|j| stored_id.as_ref() == Some(&j.stored_id)),
            stored_id,
            model_id: active.model.id.clone(),
            model_path: active.model.path.clone(),
            precision: active.model.precision,
            int8_model_id: active.int8.as_ref().map(|model| model.id.clone()),
            fallback: active.fallback.as_ref().map(|f| f.reason.clone()),
            start: work.start.clone(),
            store_problem: work.store_problem.clone(),
            last: work.last.clone(),
            conditions,
        }
    }

    pub fn to_json(&self) -> String {
        // Plain strings and numbers always serialize.
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }
}
