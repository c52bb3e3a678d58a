//! Calibration recipes: every number of the method by name, in YAML; see `calibration/*.yaml`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::counts::{self, Count};
use super::equalize::Equalization;
use super::ranges::{ActivationType, Search};
use super::reconstruct::Reconstruction;
use super::reconstruct::sensitivity::SensitivitySettings;
use crate::eval::AgreementOptions;
use crate::text::{is_showable, shown};
use crate::yaml;

/// The `format` this version reads.
pub const FORMAT: u32 = 1;

/// All settings of one quantization. Unknown keys are refused, so that a typo cannot pass as a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of this schema, [`FORMAT`].
    pub format: u32,
    pub name: String,
    pub frames: FrameSettings,
    /// Brings the channels of a tensor to like ranges first; not done without this section.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equalization: Option<Equalization>,
    pub weights: WeightSettings,
    pub activations: ActivationSettings,
    /// Least bits, of weights and input, of the layers that read the network's input: the usual exception in studies of
    /// few bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_bits: Option<u32>,
    /// Adaptive rounding and the task-guided loss; without this section ranges are all there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconstruction: Option<Reconstruction>,
    /// Which layers cost most, and which of them get higher precision; needs the section above. Not measured without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<SensitivitySettings>,
    pub keep_float: KeepFloat,
    /// Settings of single layers; of several that match, the last wins.
    #[serde(default)]
    pub layers: Vec<LayerOverride>,
    pub targets: Targets,
    pub gate: Gate,
    pub check: CheckSettings,
    /// Threads for inference and statistics; 0 means one per core.
    #[serde(default)]
    pub threads: usize,
}

/// Which frames calibrate and which are held out for the check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameSettings {
    /// At most this many frames are used in all.
    pub max: usize,
    /// Frames are split in blocks of this many consecutive ones, because neighbours look alike.
    pub block: usize,
    /// Every so many blocks the last is held out and never used to calibrate.
    pub hold_out_every: usize,
    /// Fewer calibration frames than this are an error.
    pub min_calibration: usize,
    /// Fewer held-out frames than this are an error.
    pub min_held_out: usize,
}

impl FrameSettings {
    /// Whether the frame at this position is held out.
    pub fn held_out(&self, index: usize) -> bool {
        index / self.block % self.hold_out_every == self.hold_out_every - 1
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightSettings {
    /// 2 to 8; below 8 the integers still are stored as `int8`.
    pub bits: u32,
    pub search: Search,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationSettings {
    /// 2 to 8; below 8 the range is enforced by a Clip node, and the layer runs in float.
    pub bits: u32,
    pub search: Search,
    /// Bins of the histogram that the search reads.
    pub bins: usize,
}

/// Parts that stay in float.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepFloat {
    /// The last convolution of each head.
    pub head_outputs: bool,
}

/// Settings of the layers whose name matches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerOverride {
    /// Name of a convolution node in the ONNX file; `*` stands for any run of characters.
    pub name: String,
    /// Keep the layer in float, or quantize it though [`KeepFloat`] says otherwise.
    #[serde(default)]
    pub keep_float: Option<bool>,
    #[serde(default)]
    pub weight_bits: Option<u32>,
    /// Bits of the layer's input.
    #[serde(default)]
    pub activation_bits: Option<u32>,
}

/// Number formats per target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    pub cpu: TargetSettings,
    pub tensorrt: TargetSettings,
}

/// Number formats that a runtime has integer kernels for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSettings {
    pub activations: ActivationType,
    pub bias: BiasType,
    pub reduce_range: ReduceRange,
    /// Quantize transposed convolutions that cannot become 1x1 convolutions.
    pub conv_transpose: bool,
}

/// How a convolution's bias is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasType {
    /// `int32` in steps of input step times weight step, behind a DequantizeLinear.
    Int32,
    Float,
}

/// Weights of 7 bits, for CPUs whose 8-bit multiplication adds pairs in 16 bits and saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceRange {
    /// Where this machine is an x86 without VNNI instructions.
    Auto,
    Always,
    Never,
}

impl ReduceRange {
    /// Whether weights are to lose a bit on this machine.
    pub fn applies(self) -> bool {
        match self {
            ReduceRange::Auto => !has_exact_u8s8(),
            ReduceRange::Always => true,
            ReduceRange::Never => false,
        }
    }
}

/// Whether this CPU multiplies `uint8` by `int8` without saturating on the way. True off x86, where
/// ONNX Runtime's kernels widen first.
pub fn has_exact_u8s8() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        true
    }
}

/// What the INT8 model is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// ONNX Runtime's CPU provider: `uint8` activations, `int8` weights.
    Cpu,
    /// TensorRT: `int8` symmetric throughout.
    #[value(name = "tensorrt")]
    TensorRt,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Target::Cpu => "cpu",
            Target::TensorRt => "tensorrt",
        })
    }
}

/// When an INT8 model may replace the float one: bounds on the agreement of their boxes on held-out frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// How boxes are paired.
    #[serde(default)]
    pub pairing: AgreementOptions,
    /// A class is judged only if one of the two models found at least this many of it.
    pub min_boxes: usize,
    /// Classes without which there is no verdict: too few boxes of one of them refuse the model.
    #[serde(default, skip_serializing_if = "MustJudge::is_nothing")]
    pub must_judge: MustJudge,
    /// With fewer boxes of all classes than this nothing can be said, and the model is refused.
    pub min_boxes_total: usize,
    /// Least F1 of the boxes, per judged class.
    pub min_f1: f64,
    /// Largest share of float's boxes that INT8 may miss, per judged class.
    #[serde(default = "no_bound")]
    pub max_missed: f64,
    /// Largest share of INT8's boxes that float does not have, per judged class.
    #[serde(default = "no_bound")]
    pub max_extra: f64,
    /// Largest mean distance of paired centres on the ground, metres, per judged class.
    pub max_centre_error: f64,
    /// Largest mean difference of paired headings, radians, per judged class.
    pub max_yaw_error: f64,
    /// Largest mean difference of paired sizes, metres, per judged class.
    pub max_size_error: f64,
    /// What holds for the boxes of a class in one distance band; bands are not judged without this section.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bands: Option<Bounds>,
}

fn no_bound() -> f64 {
    1.0
}

/// Classes that the gate must be able to judge: `all`, or a list of names, in any case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "MustJudgeText", into = "MustJudgeText")]
pub enum MustJudge {
    All,
    Named(Vec<String>),
}

impl Default for MustJudge {
    fn default() -> Self {
        MustJudge::Named(Vec::new())
    }
}

impl MustJudge {
    pub fn is_nothing(&self) -> bool {
        matches!(self, MustJudge::Named(names) if names.is_empty())
    }

    /// Whether a class must be judged.
    pub fn wants(&self, class: &str) -> bool {
        match self {
            MustJudge::All => true,
            MustJudge::Named(names) => names.iter().any(|name| name.eq_ignore_ascii_case(class)),
        }
    }
}

/// [`MustJudge`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum MustJudgeText {
    Word(String),
    Names(Vec<String>),
}

impl TryFrom<MustJudgeText> for MustJudge {
    type Error = String;

    fn try_from(text: MustJudgeText) -> Result<Self, Self::Error> {
        match text {
            MustJudgeText::Names(names) => Ok(MustJudge::Named(names)),
            MustJudgeText::Word(word) if word == "all" => Ok(MustJudge::All),
            MustJudgeText::Word(word) => Err(format!(
                "`must_judge: {word}`: give a list of classes, as [{word}], or `all`"
            )),
        }
    }
}

impl From<MustJudge> for MustJudgeText {
    fn from(wanted: MustJudge) -> Self {
        match wanted {
            MustJudge::All => MustJudgeText::Word("all".into()),
            MustJudge::Named(names) => MustJudgeText::Names(names),
        }
    }
}

/// What some boxes of two models have to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Fewer boxes than this are not judged.
    pub min_boxes: usize,
    pub min_f1: f64,
    #[serde(default = "no_bound")]
    pub max_missed: f64,
    #[serde(default = "no_bound")]
    pub max_extra: f64,
    pub max_centre_error: f64,
    pub max_yaw_error: f64,
    pub max_size_error: f64,
}

impl Gate {
    /// What holds for a whole class.
    pub fn class(&self) -> Bounds {
        Bounds {
            min_boxes: self.min_boxes,
            min_f1: self.min_f1,
            max_missed: self.max_missed,
            max_extra: self.max_extra,
            max_centre_error: self.max_centre_error,
            max_yaw_error: self.max_yaw_error,
            max_size_error: self.max_size_error,
        }
    }

    fn problem(&self) -> Option<(&'static str, String)> {
        let of_bands = |bounds: Bounds| {
            let (key, problem) = bounds.problem()?;
            let keys = [
                ("gate.min_f1", "gate.bands.min_f1"),
                ("gate.max_missed", "gate.bands.max_missed"),
                ("gate.max_extra", "gate.bands.max_extra"),
                ("gate.max_centre_error", "gate.bands.max_centre_error"),
                ("gate.max_yaw_error", "gate.bands.max_yaw_error"),
                ("gate.max_size_error", "gate.bands.max_size_error"),
            ];
            let named = keys.into_iter().find(|(class, _)| *class == key);
            Some((named.map_or(key, |(_, band)| band), problem))
        };
        if let Some(problem) = self.pairing.problem() {
            return Some(("gate.pairing", problem));
        }
        let class = self.class().problem();
        class.or_else(|| self.bands.and_then(of_bands))
    }
}

impl Bounds {
    /// The first key that holds nonsense.
    fn problem(&self) -> Option<(&'static str, String)> {
        for (key, value) in [
            ("gate.min_f1", self.min_f1),
            ("gate.max_missed", self.max_missed),
            ("gate.max_extra", self.max_extra),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Some((key, format!("{value}; 0 to 1")));
            }
        }
        for (key, value) in [
            ("gate.max_centre_error", self.max_centre_error),
            ("gate.max_yaw_error", self.max_yaw_error),
            ("gate.max_size_error", self.max_size_error),
        ] {
            if value.is_nan() || value <= 0.0 {
                return Some((key, format!("{value}; must be above 0")));
            }
        }
        None
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckSettings {
    /// Runs before latency counts.
    pub warm_up: usize,
    /// Timed runs of each model, float and INT8 by turns.
    pub latency_runs: usize,
}

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("cannot read the recipe {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not a recipe: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{}: `{key}`: {problem}", path.display())]
    Invalid {
        path: PathBuf,
        key: &'static str,
        problem: String,
    },
    #[error(
        "`gate.must_judge` names {}, which the model cannot find; its classes are {}",
        names.join(", "),
        classes.join(", ")
    )]
    UnknownClasses {
        names: Vec<String>,
        classes: Vec<String>,
    },
}

/// The recipe that is used where none is named.
pub const BUILT_IN: &str = include_str!("../../calibration/quick.yaml");

impl Recipe {
    /// Reads and checks a recipe.
    pub fn load(path: &Path) -> Result<Self, RecipeError> {
        match yaml::read(path) {
            Ok(text) => Self::parse(&text, path),
            Err(yaml::ReadError::Io(source)) => Err(RecipeError::Read {
                path: path.to_owned(),
                source,
            }),
            Err(yaml::ReadError::NoText) => Err(RecipeError::Parse {
                path: path.to_owned(),
                message: "it is no text; a recipe is a YAML file, as in calibration/".into(),
            }),
        }
    }

    /// The recipe at a path, or [the built-in one](BUILT_IN).
    pub fn load_or_default(path: Option<&Path>) -> Result<Self, RecipeError> {
        match path {
            Some(path) => Self::load(path),
            None => Self::parse(BUILT_IN, Path::new("the built-in recipe")),
        }
    }

    /// Parses the text of a recipe; `path` only names it in messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, RecipeError> {
        let recipe: Recipe =
            yaml::parse(text, path, FORMAT).map_err(|message| RecipeError::Parse {
                path: path.to_owned(),
                message,
            })?;
        match recipe.problem() {
            None => Ok(recipe),
            Some((key, problem)) => Err(RecipeError::Invalid {
                path: path.to_owned(),
                key,
                problem,
            }),
        }
    }

    /// All whole numbers, so that none is without a range: what they ask for has to fit into time and memory.
    fn counts(&self) -> Vec<Count> {
        let (f, most) = (&self.frames, 100_000);
        let mut counts = vec![
            ("frames.max", f.max, 1..=most),
            ("frames.block", f.block, 1..=most),
            // With 1 nothing would calibrate.
            ("frames.hold_out_every", f.hold_out_every, 2..=most),
            ("frames.min_calibration", f.min_calibration, 1..=most),
            ("frames.min_held_out", f.min_held_out, 1..=most),
            ("activations.bins", self.activations.bins, 256..=1 << 20),
            ("layers", self.layers.len(), 0..=10_000),
            ("check.warm_up", self.check.warm_up, 0..=most),
            ("check.latency_runs", self.check.latency_runs, 1..=most),
            ("threads", self.threads, 0..=1024),
        ];
        counts.extend(self.equalization.iter().flat_map(Equalization::counts));
        counts.extend(self.reconstruction.iter().flat_map(Reconstruction::counts));
        counts.extend(
            self.sensitivity
                .iter()
                .flat_map(SensitivitySettings::counts),
        );
        counts
    }

    /// Whether the recipe is one for a model with these classes: those that it names must be there.
    pub fn suits(&self, classes: &[String]) -> Result<(), RecipeError> {
        let MustJudge::Named(names) = &self.gate.must_judge else {
            return Ok(());
        };
        let unknown =
            |name: &&String| !classes.iter().any(|class| class.eq_ignore_ascii_case(name));
        let names: Vec<String> = names.iter().filter(unknown).cloned().collect();
        match names.is_empty() {
            true => Ok(()),
            false => Err(RecipeError::UnknownClasses {
                names,
                classes: classes.to_vec(),
            }),
        }
    }

    /// The number formats of a target.
    pub fn target(&self, target: Target) -> &TargetSettings {
        match target {
            Target::Cpu => &self.targets.cpu,
            Target::TensorRt => &self.targets.tensorrt,
        }
    }

    fn problem(&self) -> Option<(&'static str, String)> {
        if self.format != FORMAT {
            return Some((
                "format",
                format!("{}; this version reads {FORMAT}", self.format),
            ));
        }
        self.problem_of_names()
            .or_else(|| self.problem_of_numbers())
    }

    /// Names go into reports, statuses and terminals.
    fn problem_of_names(&self) -> Option<(&'static str, String)> {
        let judged = match &self.gate.must_judge {
            MustJudge::All => &[][..],
            MustJudge::Named(names) => names,
        };
        let judged = judged.iter().map(|class| ("gate.must_judge", class));
        let patterns = self.layers.iter().map(|layer| ("layers", &layer.name));
        std::iter::once(("name", &self.name))
            .chain(judged)
            .chain(patterns)
            .find(|(_, name)| !is_showable(name))
            .map(|(key, name)| {
                let name = shown(name);
                let problem =
                    format!("\"{name}\"; control characters and more than 255 bytes are no name");
                (key, problem)
            })
    }

    fn problem_of_numbers(&self) -> Option<(&'static str, String)> {
        let bits = |key, bits: u32| {
            (!(2..=8).contains(&bits)).then(|| (key, format!("{bits} bits; 2 to 8")))
        };
        if let Some(found) = self.counts().into_iter().find_map(counts::outside) {
            return Some(found);
        }
        let f = &self.frames;
        if f.min_calibration.saturating_add(f.min_held_out) > f.max {
            return Some((
                "frames.max",
                format!(
                    "{} frames can never be {} to calibrate and {} held out",
                    f.max, f.min_calibration, f.min_held_out
                ),
            ));
        }
        let searches = [
            ("weights.search", &self.weights.search),
            ("activations.search", &self.activations.search),
        ];
        for (key, search) in searches {
            if let Some(problem) = search.problem() {
                return Some((key, problem));
            }
        }
        let overrides = self.layers.iter().flat_map(|l| {
            [l.weight_bits, l.activation_bits]
                .into_iter()
                .flatten()
                .filter_map(|b| bits("layers", b))
        });
        if let Some(found) = bits("weights.bits", self.weights.bits)
            .or_else(|| bits("activations.bits", self.activations.bits))
            .or_else(|| self.input_bits.and_then(|b| bits("input_bits", b)))
            .or_else(|| overrides.into_iter().next())
        {
            return Some(found);
        }
        if let Some(found) = self.equalization.as_ref().and_then(Equalization::problem) {
            return Some(found);
        }
        if let Some(found) = self
            .reconstruction
            .as_ref()
            .and_then(Reconstruction::problem)
        {
            return Some(found);
        }
        if let Some(sensitivity) = &self.sensitivity {
            if self.reconstruction.is_none() {
                return Some((
                    "sensitivity",
                    "needs the section `reconstruction`, whose windows and loss it measures with"
                        .into(),
                ));
            }
            if let Some(found) = sensitivity.problem() {
                return Some(found);
            }
        }
        if let Some(found) = self.gate.problem() {
            return Some(found);
        }
        None
    }
}

/// Whether `name` matches `pattern`, in which `*` stands for any run of characters.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) use super::BUILT_IN as QUICK;
    const STANDARD: &str = include_str!("../../calibration/standard.yaml");
    const STUDIES: [&str; 3] = [
        include_str!("../../calibration/thorough.yaml"),
        include_str!("../../calibration/w4a8.yaml"),
        include_str!("../../calibration/w4a4.yaml"),
    ];

    pub(crate) fn quick() -> Recipe {
        Recipe::parse(QUICK, Path::new("quick.yaml")).unwrap()
    }

    #[test]
    fn the_shipped_recipes_survive_a_round_trip() {
        let shipped = [(QUICK, false), (STANDARD, true)]
            .into_iter()
            .chain(STUDIES.map(|text| (text, true)));
        for (text, reconstructs) in shipped {
            let recipe = Recipe::parse(text, Path::new("shipped.yaml")).unwrap();
            assert_eq!(recipe.reconstruction.is_some(), reconstructs);
            let text = serde_yaml::to_string(&recipe).unwrap();
            assert_eq!(
                Recipe::parse(&text, Path::new("again.yaml")).unwrap(),
                recipe
            );
        }
    }

    #[test]
    fn bad_settings_of_the_reconstruction_are_refused_by_name() {
        for (from, to, word) in [
            ("iterations: 500", "iterations: 0", "iterations"),
            ("rate: 0.1", "rate: -0.1", "rate"),
            ("beta: [20.0", "beta: [0.5", "beta"),
            ("beta: [20.0", "beta: [1.5", "beta"),
            (
                "gate:",
                "gate:\n  pairing: { bands: [50.0, 30.0] }",
                "rising",
            ),
            ("drop: 0.5", "drop: 1.0", "drop"),
            ("warm_up: 0.2", "warm_up: .nan", "warm_up"),
            ("margin: 8", "margin: 32", "margin"),
            ("threshold: 0.1", "threshold: 1.5", "threshold"),
            ("every: 5", "every: 0", "every"),
            (
                "multiplications: 5.0e+13",
                "multiplications: -1.0",
                "multiplications",
            ),
            ("regularizer:", "regulariser:", "regulariser"),
            ("windows: 16", "windows: 0", "sensitivity.windows"),
            (
                "max_float_share: 0.2",
                "max_float_share: 2",
                "max_float_share",
            ),
        ] {
            assert!(STANDARD.contains(from), "{from}");
            let text = STANDARD.replacen(from, to, 1);
            let error = Recipe::parse(&text, Path::new("r.yaml")).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn bad_settings_of_the_equalization_are_refused_by_name() {
        let [_, _, w4a4] = STUDIES;
        for (from, to, word) in [
            ("alpha: 0.5", "alpha: 1.5", "equalization.alpha"),
            ("limit: 32", "limit: 0.5", "equalization.limit"),
            ("frames: 16", "frames: 0", "equalization.frames"),
        ] {
            assert!(w4a4.contains(from), "{from}");
            let text = w4a4.replacen(from, to, 1);
            let error = Recipe::parse(&text, Path::new("r.yaml")).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_and_bad_values_are_refused_by_name() {
        for (from, to, word) in [
            ("bins:", "binz:", "binz"),
            ("alpha: 0.01", "alpha: 0", "alpha"),
            ("format: 1", "format: 7", "format"),
            ("hold_out_every: 4", "hold_out_every: 1", "hold_out_every"),
            ("min_held_out: ", "min_held_out: 99", "frames.max"),
            ("min_f1: 0.", "min_f1: 7.", "min_f1"),
        ] {
            assert!(QUICK.contains(from), "{from}");
            let error = Recipe::parse(&QUICK.replace(from, to), Path::new("r.yaml")).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    /// All numbers in a value, each by the keys that lead to it.
    fn numbers(value: &serde_yaml::Value, at: &str, found: &mut Vec<(String, bool)>) {
        match value {
            serde_yaml::Value::Mapping(map) => {
                for (key, value) in map {
                    let key = key.as_str().unwrap();
                    numbers(value, &format!("{at}.{key}"), found);
                }
            }
            serde_yaml::Value::Sequence(values) => {
                for (i, value) in values.iter().enumerate() {
                    numbers(value, &format!("{at}.{i}"), found);
                }
            }
            serde_yaml::Value::Number(number) => found.push((at.to_owned(), number.is_f64())),
            _ => {}
        }
    }

    fn with(text: &str, at: &str, new: serde_yaml::Value) -> Result<Recipe, RecipeError> {
        let mut recipe: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
        let mut place = &mut recipe;
        for key in at.split('.').skip(1) {
            place = match key.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[key],
            };
        }
        *place = new;
        let text = serde_yaml::to_string(&recipe).unwrap();
        Recipe::parse(&text, Path::new("r.yaml"))
    }

    #[test]
    fn every_number_has_a_range() {
        // Bounds on what was found, which cost nothing whatever they are; a seed may be any.
        let free = |at: &str| {
            let last = at.rsplit('.').next().unwrap_or(at);
            last.starts_with("min_boxes") || ["seed", "max_float_bytes"].contains(&last)
        };
        let mut tried = 0;
        for text in [QUICK, STANDARD, STUDIES[2]] {
            let mut found = Vec::new();
            numbers(&serde_yaml::from_str(text).unwrap(), "", &mut found);
            for (at, is_float) in found.iter().filter(|(at, _)| !free(at)) {
                let bad: Vec<serde_yaml::Value> = match is_float {
                    true => vec![f64::NAN.into(), (-1.0).into(), 1e300.into()],
                    false => vec![u64::MAX.into(), 1_000_000_000_000_u64.into(), (-1).into()],
                };
                // The gate's largest errors may be anything above 0, to switch them off.
                let open = at.contains("gate.") && at.contains("_error");
                for bad in bad.into_iter().take(if open { 2 } else { 3 }) {
                    let result = with(text, at, bad.clone());
                    assert!(result.is_err(), "{at}: {bad:?} is accepted");
                    tried += 1;
                }
            }
        }
        assert!(tried > 200, "{tried}");
        for distance in [".nan", "-1.0", "0.0", "1.0e+9"] {
            for key in ["distance", "class_distance: { CAR"] {
                let end = if key.contains('{') { " }" } else { "" };
                let pairing = format!("gate:\n  pairing: {{ {key}: {distance}{end} }}");
                let text = STANDARD.replacen("gate:", &pairing, 1);
                let error = Recipe::parse(&text, Path::new("r.yaml")).unwrap_err();
                assert!(error.to_string().contains("gate.pairing"), "{error}");
            }
        }
    }

    #[test]
    fn names_that_command_a_terminal_are_refused() {
        for at in [".name", ".gate.must_judge"] {
            let name = "quick\x1b[2J";
            let bad: serde_yaml::Value = match at {
                ".name" => name.into(),
                _ => vec![name].into(),
            };
            let error = with(STANDARD, at, bad).unwrap_err().to_string();
            assert!(
                !error.contains('\x1b') && error.contains(&at[1..]),
                "{error}"
            );
        }
    }

    #[test]
    fn classes_that_must_be_judged_are_a_list_or_all_and_known_to_the_model() {
        let with = |text: &str| {
            let text = QUICK.replacen("must_judge: []", &format!("must_judge: {text}"), 1);
            Recipe::parse(&text, Path::new("r.yaml"))
        };
        let classes = ["CAR", "BUS"].map(String::from);
        let cars = with("[car]").unwrap();
        assert!(cars.gate.must_judge.wants("CAR") && !cars.gate.must_judge.wants("BUS"));
        assert!(cars.suits(&classes).is_ok());
        let all = with("all").unwrap();
        assert!(all.gate.must_judge.wants("BUS") && all.suits(&classes).is_ok());
        let again = serde_yaml::to_string(&all).unwrap();
        assert_eq!(Recipe::parse(&again, Path::new("again.yaml")).unwrap(), all);

        let error = with("CAR").unwrap_err().to_string();
        assert!(error.contains("[CAR], or `all`"), "{error}");
        let error = with("[CAR, BIKE]").unwrap().suits(&classes).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("names BIKE,") && error.contains("CAR, BUS"),
            "{error}"
        );
    }

    #[test]
    fn whole_blocks_are_held_out() {
        let frames = FrameSettings {
            max: 64,
            block: 4,
            hold_out_every: 4,
            min_calibration: 1,
            min_held_out: 1,
        };
        let held: Vec<usize> = (0..32).filter(|&i| frames.held_out(i)).collect();
        assert_eq!(held, [12, 13, 14, 15, 28, 29, 30, 31]);
    }

    #[test]
    fn stars_match_any_run() {
        for (pattern, name, expected) in [
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*", "", true),
            ("*/Conv", "/blocks.0/Conv", true),
            ("/heads*1*", "/heads.1.0/x", true),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("ab*b", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
