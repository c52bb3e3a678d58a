//! What a quantization did and found, for programs (`report.json`) and people (`report.html`, `report.txt`).

mod html;
mod svg;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::Told;
use super::check::{Checked, Evidence, judge};
use super::frames::{FrameRecord, Role};
use super::plan::{Changes, FloatLayer};
use super::quantizer::Quantizer;
use super::ranges::Extremes;
use super::recipe::{Recipe, Target};
use super::reconstruct::Outcome;
use super::reconstruct::sensitivity::{Promoted, Promotion, Sensitivity};
use crate::cloud::condition::{ConditionKind, Conditions};
use crate::cloud::summary::InputSummary;
use crate::detector::{ModelDescription, Precision};
use crate::eval::AgreementCell;
use crate::files::{self, Links};

pub(crate) use html::date;

pub use crate::detector::FileRecord;

/// The `format` that this version writes and reads.
pub const FORMAT: u32 = 1;

/// The report's files in the folder of the INT8 model.
pub const JSON_FILE: &str = "report.json";
/// Bytes of a `report.json` that are read at most; one of a thousand frames and layers has less than a megabyte.
const MOST_BYTES: u64 = 64 << 20;
pub const TEXT_FILE: &str = "report.txt";
pub const PAGE_FILE: &str = "report.html";

/// Everything about one quantization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this schema, [`FORMAT`].
    pub format: u32,
    pub model: String,
    pub target: Target,
    pub tool: Tool,
    pub float_files: Vec<FileRecord>,
    pub int8_files: Vec<FileRecord>,
    pub recipe: Recipe,
    /// Weights have one bit less than the recipe says, see [`super::recipe::ReduceRange`].
    pub reduced_range: bool,
    pub changes: Changes,
    /// Tensors whose channels were brought to like ranges; empty where the recipe did not want it.
    #[serde(default)]
    pub equalized: Vec<Equalized>,
    pub frames: Frames,
    /// How well the frames were read; older reports do not say.
    #[serde(default)]
    pub input: Input,
    pub layers: Vec<LayerReport>,
    pub tensors: Vec<TensorReport>,
    /// What each layer costs when it alone is quantized, worst first; empty where it was not measured.
    #[serde(default)]
    pub sensitivity: Vec<Sensitivity>,
    /// The layers that got higher precision for it.
    #[serde(default)]
    pub promoted: Vec<Promoted>,
    /// What each block gained by reconstruction, in network order; empty without.
    #[serde(default)]
    pub reconstruction: Vec<Outcome>,
    pub float_layers: Vec<FloatLayer>,
    pub check: Checked,
    pub cost: Cost,
}

/// A tensor whose channels were scaled, see [`super::equalize`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Equalized {
    pub tensor: String,
    /// Least and largest factor that a channel was divided by.
    pub least: f32,
    pub most: f32,
}

/// What made the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    pub version: String,
    pub onnx_runtime: String,
    pub machine: String,
    /// Whether this CPU multiplies 8-bit integers without saturating on the way.
    pub exact_u8s8: bool,
    /// Seconds since the epoch.
    pub created: u64,
}

/// Frames used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frames {
    pub calibration: usize,
    pub held_out: usize,
    /// Frames without any point, left out.
    pub empty: usize,
    /// One hash over all frames used and their roles.
    pub sha256: String,
    pub list: Vec<FrameRecord>,
}

/// What came of the recording that the frames are from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Input {
    /// Sweeps that the model was trained with; 0: not known.
    pub sweeps_wanted: usize,
    /// Frames used, by the sweeps in them.
    pub sweeps: BTreeMap<usize, usize>,
    /// Frames left out because they have fewer sweeps than that, by the sweeps in them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<usize, usize>,
    #[serde(flatten)]
    pub read: InputSummary,
}

impl Input {
    pub(super) fn new(
        sweeps_wanted: usize,
        frames: &[FrameRecord],
        told: Told,
        conditions: &Conditions,
    ) -> Self {
        let mut sweeps = BTreeMap::new();
        for count in frames.iter().filter_map(|frame| frame.sweeps) {
            *sweeps.entry(count).or_default() += 1;
        }
        Input {
            sweeps_wanted,
            sweeps,
            left_out: told.left_out,
            read: told.summary.unwrap_or_else(|| InputSummary {
                frames: conditions.frames(),
                conditions: conditions.counts(),
                ..InputSummary::default()
            }),
        }
    }

    /// That some of the frames used have fewer sweeps than the model was trained with, in words; `None` where none has.
    pub(super) fn few_sweeps(&self, frames: &[FrameRecord]) -> Option<String> {
        let wanted = self.sweeps_wanted;
        let few = |role: Role| {
            let of_role = frames.iter().filter(|frame| frame.role == role);
            let few = of_role
                .clone()
                .filter(|f| f.sweeps.is_some_and(|n| n < wanted));
            (few.count(), of_role.count())
        };
        let told = |(few, all): (usize, usize), what: &str| match few {
            0 => None,
            few => Some(format!(
                "{what} {few} of {all} frames with {}",
                few_sweeps_of(frames, wanted)
            )),
        };
        let parts = [
            told(few(Role::Calibration), "calibrated on"),
            told(few(Role::HeldOut), "checked on"),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            return None;
        }
        let why = self.read.conditions.iter().find(|c| {
            matches!(
                c.kind,
                ConditionKind::NoEgoMotion | ConditionKind::FewSweeps
            )
        });
        let why = why.map_or(String::new(), |c| format!(" ({})", c.text));
        Some(format!(
            "{}, where the model wants {wanted} sweeps{why}",
            parts.join(", ")
        ))
    }

    /// What there is to say of the recording, a line each; none where all is well.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let wanted = self.sweeps_wanted;
        let few: usize = self.sweeps.range(..wanted).map(|(_, frames)| frames).sum();
        if few > 0 {
            lines.push(format!(
                "sweeps in the frames used, where the model wants {wanted}: {}",
                by_sweeps(&self.sweeps)
            ));
        }
        if !self.left_out.is_empty() {
            lines.push(format!(
                "left out, since they have fewer sweeps than the {wanted} that the model wants: {}",
                by_sweeps(&self.left_out)
            ));
        }
        lines.extend(self.read.lines());
        lines
    }
}

/// `single sweeps`, or how many there are.
fn few_sweeps_of(frames: &[FrameRecord], wanted: usize) -> String {
    let few = frames
        .iter()
        .filter_map(|f| f.sweeps)
        .filter(|n| *n < wanted);
    match few.max() {
        None | Some(..=1) => "single sweeps".into(),
        Some(most) => format!("at most {most} sweeps"),
    }
}

/// Counts of frames by their sweeps, in words: `24 frames of 2 sweeps, 8 of 1`.
pub fn by_sweeps(counts: &BTreeMap<usize, usize>) -> String {
    let each = counts
        .iter()
        .rev()
        .enumerate()
        .map(|(i, (sweeps, frames))| {
            let s = |n: usize| if n == 1 { "" } else { "s" };
            match i {
                0 => format!(
                    "{frames} frame{} of {sweeps} sweep{}",
                    s(*frames),
                    s(*sweeps)
                ),
                _ => format!("{frames} of {sweeps}"),
            }
        });
    each.collect::<Vec<_>>().join(", ")
}

/// Weights of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    pub name: String,
    pub op: String,
    pub shape: Vec<usize>,
    pub axis: usize,
    pub bits: u32,
    /// Multiplications per frame.
    pub multiplications: u64,
    /// Whether the runtime ran it as an integer kernel.
    pub integer_kernel: bool,
    /// Squared error of the weights (or the recipe's power), max-min and after the grid search, as shares of the
    /// weights' energy.
    #[serde(deserialize_with = "null_is_nan")]
    pub error_max_min: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub error_chosen: f64,
    /// Chosen step by max-min step: least, mean and largest over the channels.
    pub clip: [f32; 3],
    pub scales: Vec<f32>,
}

/// A group of tensors with one quantizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    pub tensors: Vec<String>,
    pub bits: u32,
    /// Extremes and zeros over the calibration frames.
    pub seen: Extremes,
    pub max_min: Quantizer,
    /// After the grid search.
    pub chosen: Quantizer,
    /// After reconstruction, where it learned this step.
    pub learned: Option<Quantizer>,
    /// Chosen step by max-min step.
    pub clip: f32,
    /// Error over the calibration frames, max-min and after the grid search, as shares of the tensor's energy.
    #[serde(deserialize_with = "null_is_nan")]
    pub error_max_min: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub error_chosen: f64,
}

impl TensorReport {
    /// The first of the group stands for all.
    pub fn name(&self) -> &str {
        self.tensors.first().map_or("", String::as_str)
    }
}

/// What it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub seconds: f64,
    /// Seconds per stage, in order.
    pub stages: Vec<(String, f64)>,
    /// Largest resident memory of this process, bytes; absent where the system does not say.
    pub peak_memory: Option<u64>,
}

/// A report that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("cannot read the report {}: {reason}", path.display())]
    Read {
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("{} is not a report of a quantization: {reason}", path.display())]
    Parse {
        path: PathBuf,
        reason: serde_json::Error,
    },
    #[error("{} has format {found}; this version reads {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error(
        "the model in {} is not as it was made: {problem}; copy it anew, or make it again",
        folder.display()
    )]
    Files { folder: PathBuf, problem: String },
}

/// Reads a number that JSON has no way to write, and that therefore stands there as `null`.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Report {
    /// Holds the files of the INT8 model in a folder against what they were when they were made. It belongs before
    /// everything else that reads them.
    pub fn check_files(&self, folder: &Path) -> Result<(), ReportError> {
        let fail = |problem: String| ReportError::Files {
            folder: folder.to_owned(),
            problem,
        };
        if self.int8_files.is_empty() {
            return Err(fail(format!("{JSON_FILE} names none of them")));
        }
        FileRecord::check_all(&self.int8_files, folder, Links::Follow).map_err(fail)
    }

    /// The same for a model that is run from where it was made or copied to: a float model has no such report, nor has one
    /// that another tool quantized.
    pub fn check_beside(model: &ModelDescription) -> Result<(), ReportError> {
        let path = model.folder.join(JSON_FILE);
        match model.precision {
            Precision::Int8 if std::fs::symlink_metadata(&path).is_ok() => {
                Self::load(&path)?.check_files(&model.folder)
            }
            _ => Ok(()),
        }
    }

    /// Reads a `report.json`, named itself or by the folder that holds it.
    pub fn load(path: &Path) -> Result<Self, ReportError> {
        let path = if path.is_dir() {
            path.join(JSON_FILE)
        } else {
            path.to_owned()
        };
        let read = files::read_bounded(&path, MOST_BYTES).map_err(Error::from);
        let text = read
            .and_then(|bytes| {
                String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::InvalidData, e))
            })
            .map_err(|reason| ReportError::Read {
                path: path.clone(),
                reason,
            })?;
        Self::parse(&text, &path)
    }

    /// Parses the text of a report; `path` only names it in messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ReportError> {
        /// What reports of all formats have.
        #[derive(Deserialize)]
        struct AnyFormat {
            format: u32,
        }
        let fail = |reason| ReportError::Parse {
            path: path.to_owned(),
            reason,
        };
        // Before all else: what is missing or unknown in another format would be a misleading complaint.
        let AnyFormat { format } = serde_json::from_str(text).map_err(fail)?;
        if format != FORMAT {
            return Err(ReportError::Format {
                path: path.to_owned(),
                found: format,
            });
        }
        let mut report: Self = serde_json::from_str(text).map_err(fail)?;
        let verdict = &mut report.check.verdict;
        if verdict.judged.is_empty() && verdict.not_judged.is_empty() {
            // An older report: what its verdict rests on follows from the rest.
            let again = judge(&report.check.agreement, &report.recipe.gate);
            (verdict.judged, verdict.not_judged) = (again.judged, again.not_judged);
            verdict.remarks.extend(again.remarks);
        }
        Ok(report)
    }

    /// A page for a browser that needs nothing but itself.
    pub fn page(&self) -> String {
        html::page(self)
    }

    /// A page of text.
    pub fn summary(&self) -> String {
        let mut s = String::new();
        self.write_summary(&mut s)
            .expect("writing to a String cannot fail");
        s
    }

    fn write_summary(&self, s: &mut String) -> std::fmt::Result {
        let Checked {
            kernels,
            latency,
            agreement,
            verdict,
        } = &self.check;
        let megabytes =
            |files: &[FileRecord]| files.iter().map(|f| f.bytes).sum::<u64>() as f64 / 1e6;
        writeln!(
            s,
            "{}: INT8 for {}, recipe {}, {}",
            self.model,
            self.target,
            self.recipe.name,
            verdict.word()
        )?;
        for reason in &verdict.reasons {
            writeln!(s, "  - {reason}")?;
        }
        for remark in &verdict.remarks {
            writeln!(s, "  ! {remark}")?;
        }
        let counted = |evidence: &mut dyn Iterator<Item = &Evidence>, needed: bool| {
            let each = evidence.map(|e| {
                let needed = match needed {
                    true => format!(", {} needed", e.needed),
                    false => String::new(),
                };
                format!(
                    "{e} ({} of float, {} of INT8{needed})",
                    e.float_boxes, e.int8_boxes
                )
            });
            each.collect::<Vec<_>>().join(", ")
        };
        for (what, text) in [
            (
                "judged      ",
                counted(&mut verdict.judged_classes(), false),
            ),
            (
                "NOT JUDGED  ",
                counted(&mut verdict.unjudged_classes(), true),
            ),
            ("nor in bands", counted(&mut verdict.unjudged_bands(), true)),
        ] {
            if !text.is_empty() {
                writeln!(s, "{what} {text}")?;
            }
        }
        writeln!(
            s,
            "frames      {} calibration, {} held out, {} empty",
            self.frames.calibration, self.frames.held_out, self.frames.empty
        )?;
        for line in self.input.lines() {
            writeln!(s, "            {line}")?;
        }
        writeln!(
            s,
            "size        {:.2} MB float, {:.2} MB INT8",
            megabytes(&self.float_files),
            megabytes(&self.int8_files)
        )?;
        write!(
            s,
            "kernels     {} of {} convolutions ran on integers",
            kernels.integer_convolutions,
            kernels.integer_convolutions + kernels.float_convolutions
        )?;
        match kernels.integer_multiplications {
            Some(share) => writeln!(s, ", {:.1} % of the multiplications", share * 100.0)?,
            None => writeln!(s)?,
        }
        if self.target != Target::Cpu {
            writeln!(
                s,
                "            (on the CPU; kernels and latency of {} are not measured here)",
                self.target
            )?;
        }
        writeln!(
            s,
            "backbone    {:.1} ms float, {:.1} ms INT8 (median of {}, by turns): {:.2} times as fast",
            latency.float_backbone.median,
            latency.int8_backbone.median,
            latency.runs,
            latency.backbone_speedup
        )?;
        if !kernels.integer_layers.is_empty() || self.target == Target::Cpu {
            for layer in self.layers.iter().filter(|l| !l.integer_kernel) {
                writeln!(s, "            {} did not run on integers", layer.name)?;
            }
        }
        writeln!(s, "agreement of INT8 with float on held-out frames:")?;
        writeln!(
            s,
            "  {:<14} {:<7} {:>8} {:>7} {:>6} {:>7} {:>9} {:>8} {:>8}",
            "class", "band", "matched", "missed", "extra", "F1", "centre m", "size m", "yaw rad"
        )?;
        let line = |s: &mut String, class: &str, cell: &AgreementCell| {
            let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.3}"));
            writeln!(
                s,
                "  {class:<14} {:<7} {:>8} {:>7} {:>6} {:>7} {:>9} {:>8} {:>8}",
                cell.band,
                cell.matched,
                cell.missed,
                cell.extra,
                number(cell.f1),
                number(cell.centre.map(|c| c.mean)),
                number(cell.size.map(|c| c.mean)),
                number(cell.yaw.map(|c| c.mean)),
            )
        };
        for class in &agreement.classes {
            for cell in std::iter::once(&class.all).chain(&class.bands) {
                if cell.matched + cell.missed + cell.extra > 0 {
                    line(s, &class.class, cell)?;
                }
            }
        }
        line(s, "all", &agreement.total)?;
        writeln!(s, "activations (error as share of the energy):")?;
        writeln!(
            s,
            "  {:>9} {:>9} {:>6} {:>10} {:>10}  tensor",
            "max", "clip at", "ratio", "max-min", "grid"
        )?;
        for t in &self.tensors {
            writeln!(
                s,
                "  {:>9.3} {:>9.3} {:>6.2} {:>10.2e} {:>10.2e}  {}{}",
                t.seen.max,
                t.chosen.range().1,
                t.clip,
                t.error_max_min,
                t.error_chosen,
                t.name(),
                match t.tensors.len() {
                    0 | 1 => String::new(),
                    n => format!(" and {} that share it", n - 1),
                }
            )?;
        }
        writeln!(s, "weights (error as share of the energy):")?;
        writeln!(
            s,
            "  {:>5} {:>6} {:>10} {:>10}  layer",
            "bits", "ratio", "max-min", "grid"
        )?;
        for l in &self.layers {
            writeln!(
                s,
                "  {:>5} {:>6.2} {:>10.2e} {:>10.2e}  {}",
                l.bits, l.clip[1], l.error_max_min, l.error_chosen, l.name
            )?;
        }
        if !self.sensitivity.is_empty() {
            writeln!(
                s,
                "sensitivity (one layer quantized, the others float; worst first):\n  {:>9} {:>9} {:>8}  layer",
                "at heads", "own", "bits"
            )?;
        }
        for l in &self.sensitivity {
            let promoted = self.promoted.iter().find(|p| p.layer == l.layer);
            writeln!(
                s,
                "  {:>9} {:>9.2e} {:>8}  {}{}",
                l.task.map_or("-".into(), |t| format!("{t:.2e}")),
                l.local,
                format!("w{} a{}", l.weight_bits, l.activation_bits),
                l.layer,
                match promoted.map(|p| p.to) {
                    None => "",
                    Some(Promotion::EightBits) => " (8 bits instead)",
                    Some(Promotion::Float) => " (float instead)",
                }
            )?;
        }
        if !self.reconstruction.is_empty() {
            writeln!(
                s,
                "reconstruction (error of the block's output as share of its energy, task-guided loss at positives; \
                 rounded to the nearest, then learned):"
            )?;
            writeln!(
                s,
                "  {:>9} {:>9} {:>9} {:>9} {:>7} {:>7}  block",
                "nearest", "learned", "nearest", "learned", "flipped", "decided"
            )?;
        }
        for o in &self.reconstruction {
            let task = |t: Option<f64>| t.map_or("-".into(), |t| format!("{t:.2e}"));
            let mean = |v: &[f64]| 100.0 * v.iter().sum::<f64>() / v.len().max(1) as f64;
            let names = o.layers.iter().filter_map(|&l| self.layers.get(l));
            let names: Vec<&str> = names.map(|l| l.name.as_str()).collect();
            writeln!(
                s,
                "  {:>9.2e} {:>9.2e} {:>9} {:>9} {:>6.1}% {:>6.1}%  {}{}",
                o.error_before,
                o.error_after,
                task(o.tgpl_before),
                task(o.tgpl_after),
                mean(&o.flipped),
                mean(&o.converged),
                names.join(", "),
                if o.taken { "" } else { " (nearest kept)" },
            )?;
        }
        for f in &self.float_layers {
            writeln!(s, "  float {}: {}", f.name, f.reason)?;
        }
        write!(s, "took {:.1} s", self.cost.seconds)?;
        if let Some(bytes) = self.cost.peak_memory {
            write!(s, ", at most {:.0} MB of memory", bytes as f64 / 1e6)?;
        }
        writeln!(
            s,
            "; ONNX Runtime {}, {}",
            self.tool.onnx_runtime, self.tool.machine
        )
    }
}
