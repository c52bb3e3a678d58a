//! What a model is, in one YAML file: which ONNX files, tensors, grid, features, head conventions
//! and post-processing. Nothing about a model is hard-coded elsewhere.
//!
//! [`ModelDescription::load`] checks everything that can be checked without opening the ONNX files;
//! [`Detector::load`](super::Detector::load) checks the rest against the graphs.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::text::{is_showable, shown};
use crate::{files, yaml};

/// The `format` that this crate writes and reads.
pub const FORMAT: u32 = 1;
/// Classes that a model may tell apart; Objects365 has the most of all data sets in use.
const MOST_CLASSES: usize = 400;
/// Pillars of a grid: 400 m at 0.1 m, along x and y. Each takes the channels' room in every map.
const MOST_CELLS: usize = 1 << 24;

/// The description's name in a model's folder.
const FILE: &str = "model.yaml";
/// What to do about a model without one.
const ADVICE: &str = "a model is described by a model.yaml, see docs/model.md";

/// Metres that the ground may lie below the grid.
const MOST_BELOW_GRID: f32 = 10.0;

/// A model and everything needed to run it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelDescription {
    /// Version of this schema, [`FORMAT`].
    pub format: u32,
    pub name: String,
    #[serde(default)]
    pub precision: Precision,
    pub layout: Layout,
    /// Class names in the order of the heatmap's channels.
    pub classes: Vec<String>,
    /// Frame that the model expects its points in and gives its boxes in.
    #[serde(default = "default_frame")]
    pub frame: String,
    pub encoder: Encoder,
    pub backbone: Backbone,
    pub points: PointInput,
    pub grid: GridSpec,
    pub head: HeadConventions,
    pub post: PostProcessing,
    /// Folder that file names are relative to; the description's own.
    #[serde(skip)]
    pub folder: PathBuf,
}

fn default_frame() -> String {
    "base_link".into()
}

/// Number format of the weights and activations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    Float,
    /// Explicit `QuantizeLinear`/`DequantizeLinear` nodes with 8-bit integers.
    Int8,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Float => "float",
            Precision::Int8 => "int8",
        })
    }
}

/// How the network is cut into ONNX files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Pillar encoder, scatter on the host, then backbone with neck and head: Autoware's layout.
    TwoPart,
}

/// A tensor of a graph, by name or by position among the graph's inputs or outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TensorName {
    Index(usize),
    Name(String),
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorName::Index(index) => write!(f, "{index}"),
            TensorName::Name(name) => f.write_str(name),
        }
    }
}

/// The pillar encoder: `[pillars, points, features]` to `[pillars, 1, channels]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// ONNX file, by its name in the description's folder.
    pub file: PathBuf,
    pub input: TensorName,
    pub output: TensorName,
}

/// Backbone, neck and head: `[1, channels, grid y, grid x]` to the head maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backbone {
    /// ONNX file, by its name in the description's folder.
    pub file: PathBuf,
    pub input: TensorName,
    pub outputs: HeadOutputs,
}

/// Where each head map is found among the backbone's outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadOutputs {
    pub heatmap: TensorName,
    pub reg: TensorName,
    pub height: TensorName,
    pub dim: TensorName,
    pub rot: TensorName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vel: Option<TensorName>,
}

impl HeadOutputs {
    /// Head names with the tensor that each is read from, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (Head, &TensorName)> {
        [
            (Head::Heatmap, Some(&self.heatmap)),
            (Head::Reg, Some(&self.reg)),
            (Head::Height, Some(&self.height)),
            (Head::Dim, Some(&self.dim)),
            (Head::Rot, Some(&self.rot)),
            (Head::Vel, self.vel.as_ref()),
        ]
        .into_iter()
        .filter_map(|(head, tensor)| tensor.map(|t| (head, t)))
    }
}

/// One of the head's maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// Class evidence, one channel per class.
    Heatmap,
    /// Offset of the centre in the cell, in cells: x, y.
    Reg,
    /// Height of the geometric centre, metres.
    Height,
    /// Size, in the order and scale that [`HeadConventions`] states.
    Dim,
    /// Sine and cosine of the heading.
    Rot,
    /// Velocity over ground, m/s.
    Vel,
}

impl Head {
    /// Channels of this map for a model of `classes` classes.
    pub fn channels(self, classes: usize) -> usize {
        match self {
            Head::Heatmap => classes,
            Head::Height => 1,
            Head::Reg | Head::Rot | Head::Vel => 2,
            Head::Dim => 3,
        }
    }

    /// The key in the description.
    pub fn name(self) -> &'static str {
        match self {
            Head::Heatmap => "heatmap",
            Head::Reg => "reg",
            Head::Height => "height",
            Head::Dim => "dim",
            Head::Rot => "rot",
            Head::Vel => "vel",
        }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which values of a point the model reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointInput {
    /// Values of a point, in the encoder's order.
    pub features: Vec<PointFeature>,
    /// Factor on the sensor's intensity before the encoder sees it.
    #[serde(default = "one")]
    pub intensity_scale: f32,
    /// Largest intensity in the training data, before [`intensity_scale`](Self::intensity_scale): a sensor whose
    /// intensities are of another scale is told by it. Not looked at without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intensity_max: Option<f32>,
    /// Sweeps joined into one cloud; the newest counts.
    #[serde(default = "one_sweep")]
    pub sweeps: usize,
    /// Seconds between sweeps that the model was trained with.
    #[serde(default = "tenth")]
    pub sweep_period: f32,
}

fn one() -> f32 {
    1.0
}
fn one_sweep() -> usize {
    1
}
fn tenth() -> f32 {
    0.1
}

/// One value of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointFeature {
    X,
    Y,
    Z,
    Intensity,
    Ring,
    /// Age of the point's sweep, seconds, positive.
    TimeLag,
}

/// Values added to each point of a pillar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decoration {
    /// Offset from the mean of the points kept in the pillar: x, y, z.
    ClusterXyz,
    /// Offset from the pillar's centre: x, y.
    CentreXy,
    /// Offset from the pillar's centre: x, y, z.
    CentreXyz,
}

impl Decoration {
    /// Values that this adds to a point.
    pub fn width(self) -> usize {
        match self {
            Decoration::CentreXy => 2,
            Decoration::ClusterXyz | Decoration::CentreXyz => 3,
        }
    }
}

/// The bird's-eye-view grid of pillars.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridSpec {
    /// Lower bounds x, y, z in metres; a point on one belongs to the grid.
    pub min: [f32; 3],
    /// Upper bounds x, y, z in metres; a point on one does not.
    pub max: [f32; 3],
    /// Extent of a pillar along x and y in metres.
    pub pillar: [f32; 2],
    /// Pillars beyond this many, in order of their first point, are dropped.
    pub max_pillars: usize,
    /// Points of a pillar beyond this many, in input order, are dropped.
    pub max_points: usize,
    #[serde(default)]
    pub decorations: Vec<Decoration>,
    /// Pillars per cell of the head maps, along each axis.
    pub downsample: usize,
    /// Height of the ground in the model's frame, metres: a cloud whose ground lies elsewhere is told by it. Not
    /// looked at without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ground: Option<f32>,
}

/// How the head's maps are to be read. Families of exporters differ in every one of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConventions {
    pub heatmap: HeatmapScale,
    pub dim_scale: DimScale,
    pub dim_order: DimOrder,
    pub rot_order: RotOrder,
    pub yaw: YawConvention,
    #[serde(default)]
    pub velocity_frame: VelocityFrame,
}

/// What the heatmap holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeatmapScale {
    /// Raw logits; the sigmoid is applied here.
    Logit,
    /// Probabilities; the graph has applied the sigmoid.
    Sigmoid,
}

impl HeatmapScale {
    /// The probability that a value of the heatmap stands for.
    pub fn probability(self, value: f32) -> f32 {
        match self {
            HeatmapScale::Logit => 1.0 / (1.0 + (-value).exp()),
            HeatmapScale::Sigmoid => value,
        }
    }
}

/// What `dim` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DimScale {
    /// Natural logarithm of metres.
    Log,
    /// Metres.
    Linear,
}

/// Order of `dim`'s channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DimOrder {
    /// Width, length, height: det3d, mmdet3d before 1.0, Autoware.
    Wlh,
    /// Length, width, height: mmdet3d from 1.0, OpenPCDet.
    Lwh,
}

/// Order of `rot`'s channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotOrder {
    SinCos,
    /// OpenPCDet.
    CosSin,
}

/// From the network's angle theta = atan2(sin, cos) to the heading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YawConvention {
    /// yaw = -theta - pi/2: det3d, mmdet3d before 1.0, Autoware.
    Legacy,
    /// yaw = theta: mmdet3d from 1.0, OpenPCDet.
    Direct,
}

/// Axes of `vel`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VelocityFrame {
    /// Along the model frame's x and y.
    #[default]
    Ego,
    /// Along and across the object's own heading.
    Object,
}

/// From head maps to the final list of boxes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostProcessing {
    /// A cell counts only if it is the maximum of its class in a square of this many cells;
    /// 3, or 0 for no such test (as Autoware).
    #[serde(default)]
    pub peak_kernel: usize,
    /// Least score per class, 0 to 1.
    pub score_thresholds: Vec<f32>,
    /// Least length of the (sin, cos) vector per class; 0 never drops.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub yaw_norm_thresholds: Vec<f32>,
    /// At most this many boxes come out, best first.
    #[serde(default = "default_max_detections")]
    pub max_detections: usize,
    /// Of two boxes of any class whose centres are closer than this, the better stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circle_nms: Option<CircleNms>,
    /// Of two boxes that overlap on the ground by more than this, the better stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iou_nms: Option<IouNms>,
}

fn default_max_detections() -> usize {
    500
}

/// Suppression by distance between centres.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircleNms {
    pub distance: f32,
    pub unit: DistanceUnit,
}

impl CircleNms {
    /// The squared distance below which two centres are the same object.
    pub fn squared_metres(&self) -> f32 {
        match self.unit {
            DistanceUnit::Metres => self.distance * self.distance,
            DistanceUnit::SquaredMetres => self.distance,
        }
    }
}

/// Unit of [`CircleNms::distance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistanceUnit {
    /// Autoware.
    Metres,
    /// det3d's and mmdet3d's `min_radius`.
    SquaredMetres,
}

/// Suppression by overlap of the footprints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IouNms {
    /// Intersection over union above which the worse box goes.
    pub threshold: f32,
    /// Pairs whose centres are farther apart than this, in metres, are not compared.
    pub search_distance: f32,
    /// Classes that boxes of another class neither suppress nor are suppressed by.
    /// Left out, it is `PEDESTRIAN`, as in Autoware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separate_classes: Option<Vec<String>>,
    /// Which better boxes count.
    #[serde(default)]
    pub suppressors: Suppressors,
}

/// Which better boxes can suppress a box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suppressors {
    /// Those that stay: the usual greedy suppression.
    #[default]
    Kept,
    /// All of them, also those that are themselves suppressed: Autoware.
    All,
}

/// Why a description was refused.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot {action} the model description {}: {reason}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("the folder {} holds no {FILE}, only: {found}. {}", folder.display(), capital(looks))]
    NoDescription {
        folder: PathBuf,
        found: String,
        looks: &'static str,
    },
    #[error("{} is not a model description: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{}: `{key}` {problem}", path.display())]
    Invalid {
        path: PathBuf,
        key: String,
        problem: String,
    },
}

/// A text as the beginning of a sentence.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

/// What a file is whose name ends so, if it is no description.
fn told_by_extension(extension: &std::ffi::OsStr) -> Option<&'static str> {
    Some(match extension.to_str()? {
        "onnx" => "it is an ONNX graph, which says nothing about grid, features and conventions",
        "data" | "bin" => "it holds the weights of a graph",
        "ort" => "it is a graph in ONNX Runtime's own form",
        "engine" | "plan" | "trt" => {
            "it is an engine of TensorRT; the ONNX files it was built from are needed"
        }
        "pth" | "pt" | "ckpt" | "pdparams" => {
            "it is a checkpoint of training, which has to be exported to ONNX first"
        }
        "py" => "it is a training configuration in Python",
        "mcap" | "db3" => "it is a bag",
        _ => return None,
    })
}

/// The refusal of a folder without a description: what is there, and what that looks like.
fn no_description(folder: &Path) -> ModelError {
    const MOST: usize = 12;
    let mut there: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    let any = |matches: &dyn Fn(&str) -> bool| there.iter().any(|name| matches(name));
    let ends = |end: &'static str| move |name: &str| name.ends_with(end);
    let autoware = any(&|name| name.starts_with("pts_") && name.ends_with(".onnx"))
        || any(&ends("_ml_package.param.yaml"));
    let looks = if autoware {
        "it looks like a model of Autoware, whose parameter files this program does not read: write the model.yaml from \
         them, docs/model.md shows how"
    } else if any(&ends(".onnx")) {
        "the graphs are there, their description is missing: write it after docs/model.md"
    } else if [".pth", ".pt", ".ckpt", ".pdparams"]
        .into_iter()
        .any(|end| any(&ends(end)))
    {
        "it looks like the checkpoints of OpenPCDet, det3d or mmdetection3d: export the network to two ONNX files \
         first, then write the model.yaml after docs/model.md"
    } else if [".engine", ".plan"].into_iter().any(|end| any(&ends(end))) {
        "engines of TensorRT cannot be read: the ONNX files they were built from are needed, and a model.yaml after \
         docs/model.md"
    } else if any(&ends(".mcap")) || any(&ends(".db3")) || any(&|name| name == "metadata.yaml") {
        "it looks like a bag"
    } else {
        ADVICE
    };
    let found = match there.len() {
        0 => "nothing".to_owned(),
        count if count > MOST => format!("{}, ... ({count} in all)", there[..MOST].join(", ")),
        _ => there.join(", "),
    };
    ModelError::NoDescription {
        folder: folder.to_owned(),
        found,
        looks,
    }
}

impl ModelDescription {
    /// Reads and checks a description. A folder stands for the `model.yaml` in it.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let path = match path.is_dir() {
            true if path.join(FILE).exists() => path.join(FILE),
            true => return Err(no_description(path)),
            false => path.to_path_buf(),
        };
        if let Some(message) = path.extension().and_then(told_by_extension) {
            let beside = path.with_file_name(FILE);
            let hint = match beside.is_file() {
                true => format!("; the description is {}", beside.display()),
                false => format!("; {ADVICE}"),
            };
            // One that is not there is told so below.
            if path.exists() {
                return Err(ModelError::Parse {
                    path,
                    message: format!("{message}{hint}"),
                });
            }
        }
        match yaml::read(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(yaml::ReadError::Io(reason)) => Err(ModelError::Io {
                action: "read",
                path,
                reason,
            }),
            Err(yaml::ReadError::NoText) => Err(ModelError::Parse {
                path,
                message: format!("it is no text; {ADVICE}"),
            }),
        }
    }

    /// Parses the text of a description that lies at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let mut model: Self =
            yaml::parse(text, path, FORMAT).map_err(|message| ModelError::Parse {
                path: path.to_path_buf(),
                message,
            })?;
        model.folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        model
            .check()
            .map_err(|(key, problem)| ModelError::Invalid {
                path: path.to_path_buf(),
                key,
                problem,
            })?;
        Ok(model)
    }

    /// Writes the description, in one step: a reader sees the old file or the new one.
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        let write_error = |reason| ModelError::Io {
            action: "write",
            path: path.to_path_buf(),
            reason,
        };
        let text = serde_yaml::to_string(self).map_err(|e| ModelError::Parse {
            path: path.to_path_buf(),
            message: e.to_string(),
        })?;
        files::write_out(path, |file| file.write_all(text.as_bytes())).map_err(write_error)
    }

    /// Where the encoder's ONNX file lies.
    pub fn encoder_path(&self) -> PathBuf {
        self.folder.join(&self.encoder.file)
    }

    /// Where the backbone's ONNX file lies.
    pub fn backbone_path(&self) -> PathBuf {
        self.folder.join(&self.backbone.file)
    }

    /// Values per point that the encoder reads.
    pub fn feature_count(&self) -> usize {
        let decorations: usize = self.grid.decorations.iter().map(|d| d.width()).sum();
        self.points.features.len() + decorations
    }

    /// Pillars along x and y.
    pub fn grid_size(&self) -> [usize; 2] {
        let cells = |axis: usize| {
            ((self.grid.max[axis] - self.grid.min[axis]) / self.grid.pillar[axis]).round() as usize
        };
        [cells(0), cells(1)]
    }

    /// Cells of the head maps along x and y.
    pub fn map_size(&self) -> [usize; 2] {
        self.grid_size().map(|n| n / self.grid.downsample)
    }

    /// Whether each class is left alone by boxes of other classes in the IoU suppression.
    pub fn separate_classes(&self) -> Vec<bool> {
        let names: Vec<String> = match self.post.iou_nms.as_ref().map(|n| &n.separate_classes) {
            Some(Some(names)) => names.clone(),
            _ => vec!["PEDESTRIAN".into()],
        };
        self.classes
            .iter()
            .map(|class| names.iter().any(|n| n.eq_ignore_ascii_case(class)))
            .collect()
    }

    /// What decides which boxes the network finds in points, before suppression: all but names, places of files, the
    /// frame, and [`post`](Self::post), which is the user's to change. What only warns of odd input is not in it either.
    pub fn behaviour(&self) -> serde_json::Value {
        let mut plain = self.clone();
        // A path need not be text, and JSON is.
        plain.encoder.file = PathBuf::new();
        plain.backbone.file = PathBuf::new();
        let mut value = serde_json::to_value(plain).unwrap_or_default();
        let mut remove = |path: &[&str]| {
            let (last, parents) = path.split_last()?;
            let mut at = &mut value;
            for parent in parents {
                at = at.get_mut(parent)?;
            }
            at.as_object_mut()?.remove(*last)
        };
        for path in [
            ["format"].as_slice(),
            &["name"],
            &["precision"],
            &["frame"],
            &["encoder", "file"],
            &["backbone", "file"],
            &["points", "intensity_max"],
            &["grid", "ground"],
            &["post"],
        ] {
            remove(path);
        }
        value
    }

    /// Checks values against each other; the error is the key and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, problem: String| Err((key.to_string(), problem));
        if self.format != FORMAT {
            return fail(
                "format",
                format!("is {}, this version reads {FORMAT}", self.format),
            );
        }
        if self.name.trim().is_empty() {
            return fail("name", "is empty".into());
        }
        if self.frame.trim().is_empty() {
            return fail(
                "frame",
                "is empty; name the frame of the model's points, for example base_link".into(),
            );
        }
        if self.classes.is_empty() {
            return fail("classes", "is empty; name the heatmap's channels".into());
        }
        for (i, class) in self.classes.iter().enumerate() {
            if class.trim().is_empty() {
                return fail("classes", format!("has an empty name at place {i}"));
            }
            let same = |other: &String| other.eq_ignore_ascii_case(class);
            if self.classes[..i].iter().any(same) {
                return fail("classes", format!("names {class} twice"));
            }
        }
        if self.classes.len() > MOST_CLASSES {
            return fail(
                "classes",
                format!("names {}; {MOST_CLASSES} is the limit", self.classes.len()),
            );
        }
        // They go into messages, files and terminals.
        let names = [("name", &self.name), ("frame", &self.frame)];
        let classes = self.classes.iter().map(|class| ("classes", class));
        for (key, name) in names.into_iter().chain(classes) {
            if !is_showable(name) {
                return fail(
                    key,
                    format!(
                        "is \"{}\"; control characters and more than 255 bytes are no name",
                        shown(name)
                    ),
                );
            }
        }
        if self.points.features.is_empty() {
            return fail("points.features", "is empty".into());
        }
        for (i, feature) in self.points.features.iter().enumerate() {
            if self.points.features[..i].contains(feature) {
                return fail("points.features", format!("lists {feature:?} twice"));
            }
        }
        if !(self.points.intensity_scale.is_finite() && self.points.intensity_scale != 0.0) {
            return fail(
                "points.intensity_scale",
                format!(
                    "is {}; give a finite factor other than 0",
                    self.points.intensity_scale
                ),
            );
        }
        if let Some(max) = self.points.intensity_max {
            if !(max.is_finite() && max > 0.0) {
                return fail(
                    "points.intensity_max",
                    format!("is {max}; the largest intensity of the training data is above 0"),
                );
            }
            if !self.points.features.contains(&PointFeature::Intensity) {
                return fail(
                    "points.intensity_max",
                    "is given, but `points.features` does not list intensity".into(),
                );
            }
        }
        if self.points.sweeps == 0 {
            return fail("points.sweeps", "is 0; 1 is a single sweep".into());
        }
        let period = self.points.sweep_period;
        if !(period.is_finite() && period > 0.0) {
            return fail("points.sweep_period", format!("is {period} s"));
        }
        self.check_parts()?;
        self.check_grid()?;
        self.check_post()
    }

    fn check_parts(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, problem: String| Err((key.to_string(), problem));
        let (encoder, backbone) = (&self.encoder, &self.backbone);
        for (key, file) in [
            ("encoder.file", &encoder.file),
            ("backbone.file", &backbone.file),
        ] {
            if file.as_os_str().is_empty() {
                return fail(key, "is empty; name an ONNX file".into());
            }
            if !file.to_str().is_some_and(files::is_plain_name) {
                return fail(
                    key,
                    format!(
                        "is {}; it has to be the name of a file in the folder of the description. Where the file lies \
                         elsewhere, copy it there or put a link to it there",
                        file.display()
                    ),
                );
            }
        }
        if self.encoder_path() == self.backbone_path() {
            let file = backbone.file.display();
            return fail(
                "backbone.file",
                format!("is {file}, the encoder's file; the two_part layout has two"),
            );
        }
        // By position, inputs and outputs are counted apart.
        let named = |tensor: &TensorName, other: &TensorName| matches!((tensor, other), (TensorName::Name(a), TensorName::Name(b)) if a == b);
        if named(&encoder.output, &encoder.input) {
            let name = &encoder.output;
            return fail("encoder.output", format!("is {name}, which is the input"));
        }
        let heads: Vec<(Head, &TensorName)> = backbone.outputs.iter().collect();
        for (i, (head, tensor)) in heads.iter().enumerate() {
            let key = format!("backbone.outputs.{head}");
            if named(tensor, &backbone.input) {
                return fail(&key, format!("is {tensor}, which is the backbone's input"));
            }
            if let Some((other, _)) = heads[..i].iter().find(|(_, t)| t == tensor) {
                return fail(
                    &key,
                    format!("is {tensor}, which is what {other} is read from"),
                );
            }
        }
        Ok(())
    }

    fn check_grid(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, problem: String| Err((key.to_string(), problem));
        let grid = &self.grid;
        for (axis, name) in ["x", "y", "z"].into_iter().enumerate() {
            let (min, max) = (grid.min[axis], grid.max[axis]);
            if !(min.is_finite() && max.is_finite() && min < max) {
                return fail(
                    "grid",
                    format!("goes from {min} to {max} along {name}; min must be below max"),
                );
            }
        }
        for (axis, name) in ["x", "y"].into_iter().enumerate() {
            let pillar = grid.pillar[axis];
            if !(pillar.is_finite() && pillar > 0.0) {
                return fail("grid.pillar", format!("is {pillar} m along {name}"));
            }
            let cells = (grid.max[axis] - grid.min[axis]) / pillar;
            if (cells - cells.round()).abs() > 1e-3 * cells.max(1.0) {
                return fail(
                    "grid.pillar",
                    format!(
                        "of {pillar} m cuts the range along {name} into {cells} pieces; it must be a whole number"
                    ),
                );
            }
            if cells > 16384.0 {
                return fail(
                    "grid.pillar",
                    format!("of {pillar} m makes {cells} pillars along {name}; 16384 is the limit"),
                );
            }
        }
        let [gx, gy] = self.grid_size();
        if gx * gy > MOST_CELLS {
            return fail(
                "grid.pillar",
                format!("makes a grid of {gx} x {gy} pillars; {MOST_CELLS} of them is the limit"),
            );
        }
        if let Some(ground) = grid.ground {
            // Below the grid it may lie: some models have the ground cut off.
            let (min, max) = (grid.min[2], grid.max[2]);
            if !(ground < max && ground > min - MOST_BELOW_GRID) {
                return fail(
                    "grid.ground",
                    format!(
                        "is {ground} m, but the grid goes from {min} to {max} m along z; give the height of the \
                         ground in the model's frame"
                    ),
                );
            }
        }
        if grid.max_pillars == 0 || grid.max_points == 0 {
            return fail(
                "grid",
                "max_pillars and max_points must be at least 1".into(),
            );
        }
        if grid.max_pillars > 1 << 24 || grid.max_points > 1 << 16 {
            return fail(
                "grid",
                "max_pillars is above 16777216 or max_points above 65536".into(),
            );
        }
        for (i, decoration) in grid.decorations.iter().enumerate() {
            if grid.decorations[..i].contains(decoration) {
                return fail("grid.decorations", format!("lists {decoration:?} twice"));
            }
        }
        let [gx, gy] = self.grid_size();
        if grid.downsample == 0 || gx % grid.downsample != 0 || gy % grid.downsample != 0 {
            return fail(
                "grid.downsample",
                format!(
                    "is {}; it must divide the grid of {gx} x {gy} pillars",
                    grid.downsample
                ),
            );
        }
        Ok(())
    }

    fn check_post(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, problem: String| Err((key.to_string(), problem));
        let post = &self.post;
        let classes = self.classes.len();
        if post.peak_kernel != 0 && post.peak_kernel != 3 {
            return fail(
                "post.peak_kernel",
                format!("is {}; 3, or 0 for none", post.peak_kernel),
            );
        }
        if post.score_thresholds.len() != classes {
            return fail(
                "post.score_thresholds",
                format!(
                    "has {} values for {classes} classes",
                    post.score_thresholds.len()
                ),
            );
        }
        if let Some(t) = post
            .score_thresholds
            .iter()
            .find(|t| !(0.0..=1.0).contains(*t))
        {
            return fail("post.score_thresholds", format!("has {t}; 0 to 1"));
        }
        let norms = &post.yaw_norm_thresholds;
        if !norms.is_empty() && norms.len() != classes {
            return fail(
                "post.yaw_norm_thresholds",
                format!("has {} values for {classes} classes", norms.len()),
            );
        }
        if let Some(t) = norms.iter().find(|t| !(0.0..=1.0).contains(*t)) {
            return fail(
                "post.yaw_norm_thresholds",
                format!("has {t}; 0 to 1, the length of a vector of sine and cosine"),
            );
        }
        if post.max_detections == 0 {
            return fail("post.max_detections", "is 0".into());
        }
        if let Some(circle) = &post.circle_nms
            && !(circle.distance.is_finite() && circle.distance >= 0.0)
        {
            return fail(
                "post.circle_nms.distance",
                format!("is {}", circle.distance),
            );
        }
        if let Some(iou) = &post.iou_nms {
            if !(0.0..=1.0).contains(&iou.threshold) {
                return fail(
                    "post.iou_nms.threshold",
                    format!("is {}; 0 to 1", iou.threshold),
                );
            }
            if !(iou.search_distance.is_finite() && iou.search_distance >= 0.0) {
                return fail(
                    "post.iou_nms.search_distance",
                    format!("is {} m", iou.search_distance),
                );
            }
            let names = iou.separate_classes.as_deref().unwrap_or_default();
            for (i, name) in names.iter().enumerate() {
                if names[..i].iter().any(|n| n.eq_ignore_ascii_case(name)) {
                    return fail(
                        "post.iou_nms.separate_classes",
                        format!("names {name} twice"),
                    );
                }
                if !self.classes.iter().any(|c| c.eq_ignore_ascii_case(name)) {
                    return fail(
                        "post.iou_nms.separate_classes",
                        format!("names {name}, which is not among the classes"),
                    );
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = include_str!("../../tests/fixtures/tiny/model.yaml");

    fn parse(text: &str) -> Result<ModelDescription, ModelError> {
        ModelDescription::parse(text, Path::new("models/x/model.yaml"))
    }

    fn refusal(from: &str, to: &str) -> String {
        assert!(TINY.contains(from), "nothing to replace: {from}");
        parse(&TINY.replace(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn a_description_survives_saving_and_loading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.yaml");
        let model = parse(TINY).unwrap();
        model.save(&path).unwrap();
        let again = ModelDescription::load(folder.path()).unwrap();
        assert_eq!(again.folder, folder.path());
        assert_eq!(again.encoder_path(), folder.path().join("encoder.onnx"));
        let mut again = again;
        again.folder = model.folder.clone();
        assert_eq!(again, model);
    }

    #[test]
    fn sizes_follow_from_the_description() {
        let model = parse(TINY).unwrap();
        assert_eq!(model.feature_count(), 4 + 3 + 2);
        assert_eq!(model.grid_size(), [8, 8]);
        assert_eq!(model.map_size(), [4, 4]);
        assert_eq!(model.separate_classes(), [false, true]);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_wherever_it_stands() {
        for (from, to, key) in [
            ("name: tiny", "name: tiny\nnmae: x", "nmae"),
            (
                "  max_points: 4",
                "  max_points: 4\n  max_voxels: 9",
                "max_voxels",
            ),
            ("threshold: 0.1", "treshold: 0.1", "treshold"),
            ("vel: vel", "velo: vel", "velo"),
        ] {
            let message = refusal(from, to);
            assert!(message.contains(key), "{message}");
            assert!(message.contains("models/x/model.yaml"), "{message}");
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_refused_by_name() {
        for (from, to, key) in [
            ("reg: reg", "reg: reg, reg: rot", "reg"),
            ("name: tiny", "name: tiny\nname: other", "name"),
            (
                "downsample: 2",
                "downsample: 2\n  downsample: 4",
                "downsample",
            ),
        ] {
            let message = refusal(from, to);
            assert!(
                message.contains(key) && message.contains("duplicate"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_missing_key_and_an_unknown_choice_are_refused_by_name() {
        assert!(refusal("  downsample: 2\n", "").contains("downsample"));
        let message = refusal("dim_order: wlh", "dim_order: hwl");
        assert!(
            message.contains("hwl") && message.contains("lwh"),
            "{message}"
        );
    }

    #[test]
    fn values_that_contradict_each_other_are_refused_by_key() {
        for (from, to, key) in [
            ("name: tiny", "name: ''", "`name`"),
            ("layout:", "frame: ' '\nlayout:", "`frame`"),
            ("[CAR, PEDESTRIAN]", "[CAR, car]", "`classes`"),
            ("[CAR, PEDESTRIAN]", "[CAR, \"\\e[2J\"]", "\\u{1b}[2J"),
            ("[CAR, PEDESTRIAN]", "[CAR, '']", "`classes`"),
            (
                "file: backbone.onnx",
                "file: encoder.onnx",
                "`backbone.file`",
            ),
            (
                "file: encoder.onnx",
                "file: ../encoder.onnx",
                "`encoder.file`",
            ),
            (
                "file: encoder.onnx",
                "file: /m/encoder.onnx",
                "`encoder.file`",
            ),
            (
                "file: encoder.onnx",
                "file: a/encoder.onnx",
                "`encoder.file`",
            ),
            ("file: encoder.onnx", "file: ..", "`encoder.file`"),
            (
                "file: encoder.onnx",
                "file: \"a\\x1b[2J.onnx\"",
                "`encoder.file`",
            ),
            (
                "output: pillar_features",
                "output: input_features",
                "`encoder.output`",
            ),
            ("reg: reg", "reg: heatmap", "`backbone.outputs.reg`"),
            ("vel: vel", "vel: rot", "`backbone.outputs.vel`"),
            (
                "rot: rot",
                "rot: spatial_features",
                "`backbone.outputs.rot`",
            ),
            ("[CAR, PEDESTRIAN]", "[CAR, CAR]", "`classes`"),
            ("[CAR, PEDESTRIAN]", "[]", "`classes`"),
            ("[x, y, z, time_lag]", "[x, y, x]", "`points.features`"),
            ("[1.0, 1.0]", "[0.3, 1.0]", "`grid.pillar`"),
            ("[1.0, 1.0]", "[.nan, 1.0]", "`grid.pillar`"),
            ("[1.0, 1.0]", "[1.0e-9, 1.0]", "`grid.pillar`"),
            ("max: [4.0, 4.0", "max: [-5.0, 4.0", "`grid`"),
            ("max_points: 4", "max_points: 0", "`grid`"),
            (
                "[x, y, z, time_lag]",
                "[x, y, z, intensity], intensity_max: 0.0",
                "`points.intensity_max`",
            ),
            (
                "time_lag] }",
                "time_lag], intensity_max: 255.0 }",
                "`points.intensity_max`",
            ),
            (
                "downsample: 2",
                "downsample: 2\n  ground: 2.0",
                "`grid.ground`",
            ),
            (
                "downsample: 2",
                "downsample: 2\n  ground: .nan",
                "`grid.ground`",
            ),
            (
                "downsample: 2",
                "downsample: 2\n  ground: -1800.0",
                "`grid.ground`",
            ),
            ("downsample: 2", "downsample: 3", "`grid.downsample`"),
            ("downsample: 2", "downsample: 0", "`grid.downsample`"),
            ("peak_kernel: 3", "peak_kernel: 5", "`post.peak_kernel`"),
            ("[0.5, 0.5]", "[0.5]", "`post.score_thresholds`"),
            ("[0.5, 0.5]", "[0.5, 1.5]", "`post.score_thresholds`"),
            ("[0.3, 0.0]", "[0.3, -1.0]", "`post.yaw_norm_thresholds`"),
            ("[0.3, 0.0]", "[0.3, 30.0]", "`post.yaw_norm_thresholds`"),
            (
                "threshold: 0.1",
                "threshold: 0.1, separate_classes: [CAR, car]",
                "`post.iou_nms.separate_classes`",
            ),
            (
                "max_detections: 10",
                "max_detections: 0",
                "`post.max_detections`",
            ),
            (
                "distance: 0.5,",
                "distance: -1.0,",
                "`post.circle_nms.distance`",
            ),
            (
                "threshold: 0.1",
                "threshold: 2.0",
                "`post.iou_nms.threshold`",
            ),
            (
                "threshold: 0.1",
                "threshold: 0.1, separate_classes: [DOG]",
                "`post.iou_nms.separate_classes`",
            ),
        ] {
            let message = refusal(from, to);
            assert!(message.contains(key), "{key}: {message}");
        }
    }

    #[test]
    fn what_is_no_description_is_told_what_it_is_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| ModelDescription::load(path).unwrap_err().to_string();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let empty = refused(folder.path());
        assert!(empty.contains("no model.yaml, only: nothing"), "{empty}");
        write("metadata.yaml", b"");
        assert!(refused(folder.path()).contains("It looks like a bag"));
        write("epoch_80.pth", b"\x80\x02");
        let trained = refused(folder.path());
        assert!(trained.contains("OpenPCDet") && trained.contains("epoch_80.pth"));
        let graph = write("pts_backbone_neck_head_centerpoint.onnx", &[8, 8, 0xff]);
        let autoware = refused(folder.path());
        assert!(
            autoware.contains("It looks like a model of Autoware"),
            "{autoware}"
        );
        assert!(autoware.contains("pts_backbone_neck_head_centerpoint.onnx"));
        assert!(autoware.contains("docs/model.md"));

        let alone = refused(&graph);
        assert!(alone.contains("is an ONNX graph") && alone.contains("docs/model.md"));
        let description = write("model.yaml", TINY.as_bytes());
        let beside = refused(&graph);
        assert!(
            beside.contains(&description.display().to_string()),
            "{beside}"
        );
        assert!(refused(&write("model.toml", b"format = 1")).contains("TOML"));
        assert!(refused(&write("empty.yaml", b"\n")).contains("it is empty"));
        assert!(refused(&write("raw.yaml", &[0xff, 0xfe, 0])).contains("no text"));
        let old = TINY.replace("format: 1", "format: 0");
        let old = refused(&write("old.yaml", old.as_bytes()));
        assert!(
            old.contains("old.yaml") && old.contains("`format` is 0"),
            "{old}"
        );
        let parameters = b"/**:\n  ros__parameters:\n    model_params: { class_names: [CAR] }\n";
        assert!(refused(&write("a.param.yaml", parameters)).contains("ros__parameters"));
    }

    #[test]
    fn a_description_that_is_not_there_is_refused_by_path() {
        let error = ModelDescription::load(Path::new("/nowhere/model.yaml")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/model.yaml"));
    }
}
