//! The node's parameters: names, defaults, checks.
//!
//! ROS hands parameters over as loosely typed values; here they become [`Settings`], or an error
//! that names the parameter. A few may change while the node runs, the others are read at start.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::reach::Reach;
use super::shadow::ShadowSettings;
use crate::calibration::selection::Choice;
use crate::calibration::store::Limits;
use crate::calibration::{ModelStore, Policy};
use crate::cloud::frames::InputOptions;
use crate::detector::{ModelDescription, Provider, RuntimeOptions};
use crate::onnx::limit;
use crate::ptq::recipe::Target;

/// The value that leaves a number to the node.
const AUTOMATIC: f64 = -1.0;

/// A parameter value as ROS types it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Bool(bool),
    Integer(i64),
    Double(f64),
    Text(String),
    /// An array of doubles or of integers.
    Numbers(Vec<f64>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(flag) => flag.fmt(f),
            Value::Integer(n) => n.fmt(f),
            // As ROS wants to have it: with a point.
            Value::Double(x) => write!(f, "{x:?}"),
            Value::Text(text) => text.fmt(f),
            Value::Numbers(numbers) => write!(f, "{numbers:?}"),
        }
    }
}

impl Value {
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Bool(_) => "bool",
            Value::Integer(_) => "integer",
            Value::Double(_) => "double",
            Value::Text(_) => "string",
            Value::Numbers(_) => "array of numbers",
        }
    }
}

/// Why a parameter was refused.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SettingsError {
    #[error("unknown parameter '{name}'{}", hint(.name))]
    Unknown { name: String },
    #[error("parameter '{name}' must be of type {expected}, not {actual}")]
    WrongType {
        name: String,
        expected: &'static str,
        actual: &'static str,
    },
    #[error("parameter '{name}': {reason}")]
    BadValue { name: String, reason: String },
    #[error("parameter '{name}' is read at start only; set it in the parameter file and restart")]
    ReadOnly { name: String },
}

/// How far the driver's quality of service reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reliability {
    BestEffort,
    Reliable,
}

/// Everything the node reads from its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub model_path: String,
    pub model_max_mb: usize,
    pub model_store: String,
    pub store_max_models: usize,
    pub store_max_mb: usize,
    pub store_resume: bool,
    pub store_allow_unjudged: bool,
    pub recipe_path: String,
    /// Folders, separated by ':'.
    pub request_folders: String,
    pub target: Target,
    pub input_reliability: Reliability,
    pub input_model_frame: String,
    pub input_fixed_frame: String,
    pub input_sensor_pose: Option<[f64; 6]>,
    pub runtime_threads: usize,
    pub runtime_provider: Provider,
    pub calibration_max_frames: usize,
    pub calibration_min_frames: usize,
    pub calibration_min_period_s: f64,
    pub calibration_choice: Choice,
    pub calibration_per_place: usize,
    pub calibration_gap_s: f64,
    pub calibration_max_mb: usize,
    pub calibration_max_age_s: f64,
    pub calibration_buffer_path: String,
    pub calibration_threads: usize,
    pub calibration_nice: i32,
    pub calibration_max_memory_mb: usize,
    pub shadow_every: usize,
    pub shadow_budget: f64,
    pub shadow_window: usize,
    pub shadow_min_f1: f64,
    pub publish_markers: bool,
    /// `None`: as the clouds' period has it.
    pub publish_marker_lifetime_s: Option<f64>,
    pub diagnostics_max_processing_ms: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model_path: String::new(),
            model_max_mb: limit::DEFAULT_MB as usize,
            model_store: String::new(),
            store_max_models: 20,
            store_max_mb: 1000,
            store_resume: true,
            store_allow_unjudged: false,
            recipe_path: String::new(),
            request_folders: String::new(),
            target: Target::Cpu,
            input_reliability: Reliability::BestEffort,
            input_model_frame: String::new(),
            input_fixed_frame: "odom".into(),
            input_sensor_pose: None,
            runtime_threads: 0,
            runtime_provider: Provider::Cpu,
            calibration_max_frames: 64,
            calibration_min_frames: 16,
            calibration_min_period_s: 0.5,
            calibration_choice: Choice::Diverse,
            calibration_per_place: 4,
            calibration_gap_s: 2.0,
            calibration_max_mb: 1000,
            calibration_max_age_s: 0.0,
            calibration_buffer_path: String::new(),
            calibration_threads: 1,
            calibration_nice: 10,
            calibration_max_memory_mb: 4000,
            shadow_every: 0,
            shadow_budget: 0.1,
            shadow_window: 20,
            shadow_min_f1: 0.8,
            publish_markers: true,
            publish_marker_lifetime_s: None,
            diagnostics_max_processing_ms: 100.0,
        }
    }
}

/// One parameter: how it is called, what it means, how it is read and written.
pub struct Spec {
    pub name: &'static str,
    pub description: &'static str,
    /// May change while the node runs.
    pub live: bool,
    get: fn(&Settings) -> Value,
    set: fn(&mut Settings, &Value) -> Result<(), Refused>,
}

/// A refusal that does not know the parameter's name yet.
enum Refused {
    Type(&'static str),
    Value(String),
}

/// All parameters, in the order of the documentation.
pub const SPECS: &[Spec] = &[
    Spec {
        name: "model_path",
        description: "Float model: a model.yaml or the folder that holds one",
        live: false,
        get: |s| Value::Text(s.model_path.clone()),
        set: |s, v| put(&mut s.model_path, text(v)),
    },
    Spec {
        name: "model_max_mb",
        description: "Size of a model at the most, all its files together, megabytes; a larger one is not read",
        live: false,
        get: |s| Value::Integer(s.model_max_mb as i64),
        set: |s, v| put(&mut s.model_max_mb, count(v, 1, 10_000_000)),
    },
    Spec {
        name: "model_store",
        description: "Folder where INT8 models and their reports are kept; empty: below ROS_HOME",
        live: false,
        get: |s| Value::Text(s.model_store.clone()),
        set: |s, v| put(&mut s.model_store, text(v)),
    },
    Spec {
        name: "store.max_models",
        description: "Models the store holds at the most; the oldest that no node needs leaves first",
        live: false,
        get: |s| Value::Integer(s.store_max_models as i64),
        set: |s, v| put(&mut s.store_max_models, count(v, 2, 100_000)),
    },
    Spec {
        name: "store.max_mb",
        description: "Size of the store at the most, megabytes",
        live: false,
        get: |s| Value::Integer(s.store_max_mb as i64),
        set: |s, v| put(&mut s.store_max_mb, count(v, 1, 10_000_000)),
    },
    Spec {
        name: "store.resume",
        description: "Whether to start with the INT8 model that ran last",
        live: false,
        get: |s| Value::Bool(s.store_resume),
        set: |s, v| put(&mut s.store_resume, flag(v)),
    },
    Spec {
        name: "store.allow_unjudged",
        description: "Whether a model that another made runs though this node's own frames cannot judge it",
        // Not for whoever reaches the parameter services to say.
        live: false,
        get: |s| Value::Bool(s.store_allow_unjudged),
        set: |s, v| put(&mut s.store_allow_unjudged, flag(v)),
    },
    Spec {
        name: "recipe_path",
        description: "Quantization recipe (YAML); empty: the built-in one",
        live: false,
        get: |s| Value::Text(s.recipe_path.clone()),
        set: |s, v| put(&mut s.recipe_path, text(v)),
    },
    Spec {
        name: "request_folders",
        description: "Folders, separated by ':', below which callers of the services may name recipes, recordings and models \
                      to read, and have the buffer saved; besides those of recipe_path and of saved buffers",
        live: false,
        get: |s| Value::Text(s.request_folders.clone()),
        set: |s, v| put(&mut s.request_folders, folders(v)),
    },
    Spec {
        name: "target",
        description: "What the INT8 model is made for: cpu or tensorrt",
        live: false,
        get: |s| Value::Text(s.target.to_string()),
        set: |s, v| put(&mut s.target, target(v)),
    },
    Spec {
        name: "input.reliability",
        description: "Reliability of the point cloud subscription: best_effort or reliable",
        live: false,
        get: |s| {
            Value::Text(
                match s.input_reliability {
                    Reliability::BestEffort => "best_effort",
                    Reliability::Reliable => "reliable",
                }
                .into(),
            )
        },
        set: |s, v| put(&mut s.input_reliability, reliability(v)),
    },
    Spec {
        name: "input.model_frame",
        description: "Frame the model looks from; empty: what the model's description says",
        live: false,
        get: |s| Value::Text(s.input_model_frame.clone()),
        set: |s, v| put(&mut s.input_model_frame, text(v)),
    },
    Spec {
        name: "input.fixed_frame",
        description: "Frame that stands still on the ground, to join sweeps; empty: odom or map, whichever /tf has",
        live: false,
        get: |s| Value::Text(s.input_fixed_frame.clone()),
        set: |s, v| put(&mut s.input_fixed_frame, text(v)),
    },
    Spec {
        name: "input.sensor_pose",
        description: "Sensor in the model frame, 'x y z roll pitch yaw' (m, rad) or an array of these, instead of /tf; empty: /tf",
        live: false,
        get: |s| {
            Value::Text(match s.input_sensor_pose {
                Some(pose) => pose.map(|x| x.to_string()).join(" "),
                None => String::new(),
            })
        },
        set: |s, v| put(&mut s.input_sensor_pose, sensor_pose(v)),
    },
    Spec {
        name: "runtime.threads",
        description: "Inference threads; 0: the engine's choice",
        live: false,
        get: |s| Value::Integer(s.runtime_threads as i64),
        set: |s, v| put(&mut s.runtime_threads, count(v, 0, 256)),
    },
    Spec {
        name: "runtime.provider",
        description: "ONNX Runtime execution provider",
        live: false,
        get: |s| Value::Text(s.runtime_provider.to_string()),
        set: |s, v| put(&mut s.runtime_provider, provider(v)),
    },
    Spec {
        name: "calibration.max_frames",
        description: "Frames the calibration buffer holds at the most",
        live: true,
        get: |s| Value::Integer(s.calibration_max_frames as i64),
        set: |s, v| put(&mut s.calibration_max_frames, count(v, 4, 10_000)),
    },
    Spec {
        name: "calibration.min_frames",
        description: "Frames a calibration needs at the least",
        live: true,
        get: |s| Value::Integer(s.calibration_min_frames as i64),
        set: |s, v| put(&mut s.calibration_min_frames, count(v, 1, 10_000)),
    },
    Spec {
        name: "calibration.min_period_s",
        description: "Seconds between two buffered frames at the least",
        live: true,
        get: |s| Value::Double(s.calibration_min_period_s),
        set: |s, v| put(&mut s.calibration_min_period_s, number(v, 0.0, 3600.0)),
    },
    Spec {
        name: "calibration.choice",
        description: "Which frames stay where more come than fit: diverse, newest or random",
        live: true,
        get: |s| Value::Text(s.calibration_choice.to_string()),
        set: |s, v| put(&mut s.calibration_choice, choice(v)),
    },
    Spec {
        name: "calibration.per_place",
        description: "Frames of one place (2 m) at the most, where the choice is diverse",
        live: true,
        get: |s| Value::Integer(s.calibration_per_place as i64),
        set: |s, v| put(&mut s.calibration_per_place, count(v, 1, 10_000)),
    },
    Spec {
        name: "calibration.gap_s",
        description: "Seconds between a frame to calibrate with and one to check with at the least",
        live: true,
        get: |s| Value::Double(s.calibration_gap_s),
        set: |s, v| put(&mut s.calibration_gap_s, number(v, 0.0, 3600.0)),
    },
    Spec {
        name: "calibration.max_mb",
        description: "Size of the buffer at the most, megabytes",
        live: true,
        get: |s| Value::Integer(s.calibration_max_mb as i64),
        set: |s, v| put(&mut s.calibration_max_mb, count(v, 1, 10_000_000)),
    },
    Spec {
        name: "calibration.max_age_s",
        description: "Seconds after which a frame leaves the buffer, by the clouds' stamps; 0: never",
        live: true,
        get: |s| Value::Double(s.calibration_max_age_s),
        set: |s, v| put(&mut s.calibration_max_age_s, number(v, 0.0, 1e9)),
    },
    Spec {
        name: "calibration.buffer_path",
        description: "Folder of the buffer, a rosbag2 that survives restarts; empty: below ROS_HOME",
        live: false,
        get: |s| Value::Text(s.calibration_buffer_path.clone()),
        set: |s, v| put(&mut s.calibration_buffer_path, text(v)),
    },
    Spec {
        name: "calibration.threads",
        description: "Threads of the quantization process; 0: all",
        live: true,
        get: |s| Value::Integer(s.calibration_threads as i64),
        set: |s, v| put(&mut s.calibration_threads, count(v, 0, 256)),
    },
    Spec {
        name: "calibration.nice",
        description: "Niceness of the quantization process, 0 to 19",
        live: true,
        get: |s| Value::Integer(i64::from(s.calibration_nice)),
        set: |s, v| put(&mut s.calibration_nice, count(v, 0, 19).map(|n| n as i32)),
    },
    Spec {
        name: "calibration.max_memory_mb",
        description: "Memory of the quantization process at the most, megabytes; 0: no limit",
        live: true,
        get: |s| Value::Integer(s.calibration_max_memory_mb as i64),
        set: |s, v| put(&mut s.calibration_max_memory_mb, count(v, 0, 100_000_000)),
    },
    Spec {
        name: "shadow.every",
        description: "Every so many INT8 frames the float model sees the frame, too; 0: never",
        live: false,
        get: |s| Value::Integer(s.shadow_every as i64),
        set: |s, v| put(&mut s.shadow_every, count(v, 0, 1_000_000)),
    },
    Spec {
        name: "shadow.budget",
        description: "Share of one core's time that this may take, 0 to 1",
        live: false,
        get: |s| Value::Double(s.shadow_budget),
        set: |s, v| put(&mut s.shadow_budget, number(v, 0.0, 1.0)),
    },
    Spec {
        name: "shadow.window",
        description: "Frames of that kind that are judged together",
        live: false,
        get: |s| Value::Integer(s.shadow_window as i64),
        set: |s, v| put(&mut s.shadow_window, count(v, 1, 10_000)),
    },
    Spec {
        name: "shadow.min_f1",
        description: "F1 of INT8's boxes against float's below which INT8 is given up",
        live: false,
        get: |s| Value::Double(s.shadow_min_f1),
        set: |s, v| put(&mut s.shadow_min_f1, number(v, 0.0, 1.0)),
    },
    Spec {
        name: "publish.markers",
        description: "Whether to publish markers for RViz and Foxglove",
        live: true,
        get: |s| Value::Bool(s.publish_markers),
        set: |s, v| put(&mut s.publish_markers, flag(v)),
    },
    Spec {
        name: "publish.marker_lifetime_s",
        description: "Seconds until a marker leaves if no newer cloud replaces it; 0: never; -1: half a second more than the \
                      time between clouds",
        live: true,
        get: |s| Value::Double(s.publish_marker_lifetime_s.unwrap_or(AUTOMATIC)),
        set: |s, v| put(&mut s.publish_marker_lifetime_s, lifetime(v)),
    },
    Spec {
        name: "diagnostics.max_processing_ms",
        description: "Processing time above which diagnostics warn, milliseconds",
        live: true,
        get: |s| Value::Double(s.diagnostics_max_processing_ms),
        set: |s, v| put(&mut s.diagnostics_max_processing_ms, number(v, 0.0, 1e6)),
    },
];

impl Settings {
    /// The value of one parameter, `None` when there is no such parameter.
    pub fn get(&self, name: &str) -> Option<Value> {
        spec(name).map(|spec| (spec.get)(self))
    }

    /// Sets one parameter; on an error nothing changes.
    pub fn set(&mut self, name: &str, value: &Value) -> Result<(), SettingsError> {
        let spec = spec(name).ok_or_else(|| SettingsError::Unknown { name: name.into() })?;
        (spec.set)(self, value).map_err(|refused| match refused {
            Refused::Type(expected) => SettingsError::WrongType {
                name: name.into(),
                expected,
                actual: value.type_name(),
            },
            Refused::Value(reason) => SettingsError::BadValue {
                name: name.into(),
                reason,
            },
        })
    }

    /// As [`Settings::set`], for a node that already runs.
    pub fn set_live(&mut self, name: &str, value: &Value) -> Result<(), SettingsError> {
        let mut changed = self.clone();
        changed.set(name, value)?;
        if changed != *self && spec(name).is_some_and(|spec| !spec.live) {
            return Err(SettingsError::ReadOnly { name: name.into() });
        }
        *self = changed;
        Ok(())
    }

    /// Checks what no single parameter can be checked for. `Err` names the parameter.
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.model_path.is_empty() {
            return Err(SettingsError::BadValue {
                name: "model_path".into(),
                reason: "is not set; give the model.yaml of a float model, for example \
                         --ros-args -p model_path:=/path/to/model.yaml"
                    .into(),
            });
        }
        if self.calibration_min_frames > self.calibration_max_frames {
            return Err(SettingsError::BadValue {
                name: "calibration.min_frames".into(),
                reason: format!(
                    "{} is more than calibration.max_frames ({}), so a calibration could never start",
                    self.calibration_min_frames, self.calibration_max_frames
                ),
            });
        }
        Ok(())
    }

    /// The recipe, where one is named.
    pub fn recipe_file(&self) -> Option<PathBuf> {
        Some(PathBuf::from(&self.recipe_path)).filter(|path| !path.as_os_str().is_empty())
    }

    /// Where files may lie that callers name: in `own` folders, beside the recipe, and where the parameter says.
    pub fn reach(&self, own: impl IntoIterator<Item = PathBuf>) -> Reach {
        let beside_recipe = self.recipe_file().and_then(|recipe| {
            let folder = recipe.parent()?;
            Some(match folder.as_os_str().is_empty() {
                true => PathBuf::from("."),
                false => folder.to_owned(),
            })
        });
        let named = self.request_folders.split(':').filter(|f| !f.is_empty());
        let named = named.map(PathBuf::from);
        Reach::new(own.into_iter().chain(beside_recipe).chain(named))
    }

    /// The model description file that `model_path` names: itself, or `model.yaml` in the folder.
    pub fn model_file(&self) -> PathBuf {
        let path = PathBuf::from(&self.model_path);
        if path.is_dir() {
            path.join("model.yaml")
        } else {
            path
        }
    }

    /// Where INT8 models are kept. `ros_home` serves when the parameter is empty.
    pub fn store_folder(&self, ros_home: &Path) -> PathBuf {
        or_below(&self.model_store, ros_home, "models")
    }

    /// The store that the node keeps its models in.
    pub fn model_store(&self, ros_home: &Path) -> ModelStore {
        let limits = Limits {
            models: self.store_max_models,
            bytes: (self.store_max_mb as u64).saturating_mul(1_000_000),
        };
        ModelStore::new(self.store_folder(ros_home), limits)
    }

    /// The float model's check of the INT8 one.
    pub fn shadow(&self) -> ShadowSettings {
        ShadowSettings {
            every: self.shadow_every,
            budget: self.shadow_budget,
            window: self.shadow_window,
            min_f1: self.shadow_min_f1,
        }
    }

    /// How the inference runs.
    pub fn runtime_options(&self) -> RuntimeOptions {
        RuntimeOptions {
            threads: self.runtime_threads,
            provider: self.runtime_provider,
            ..Default::default()
        }
    }

    /// Where clouds are placed, and how many of them are joined, for a model.
    pub fn input_options(&self, model: &ModelDescription) -> InputOptions {
        let named = |frame: &str| Some(frame.to_owned()).filter(|frame| !frame.is_empty());
        let of_model = model.input_options();
        InputOptions {
            model_frame: named(&self.input_model_frame).or(of_model.model_frame),
            sensor_pose: self.input_sensor_pose,
            fixed_frame: named(&self.input_fixed_frame),
            ..of_model
        }
    }

    /// Which frames the calibration buffer keeps, for a model that wants so many sweeps.
    pub fn buffer_policy(&self, sweeps: usize) -> Policy {
        Policy {
            choice: self.calibration_choice,
            max_frames: self.calibration_max_frames,
            max_bytes: (self.calibration_max_mb as u64).saturating_mul(1_000_000),
            min_period_s: self.calibration_min_period_s,
            per_place: self.calibration_per_place,
            gap_s: self.calibration_gap_s,
            max_age_s: self.calibration_max_age_s,
            sweeps,
        }
    }

    /// Where the calibration buffer is written; when the parameter is empty, below `ros_home`, in
    /// a folder of the node's own.
    pub fn buffer_folder(&self, ros_home: &Path, node: &str) -> PathBuf {
        let name = format!("calibration_buffer/{}", folder_of(node));
        or_below(&self.calibration_buffer_path, ros_home, &name)
    }

    /// Where copies of the buffer go when nobody says where: below `ros_home`.
    pub fn recordings_folder(&self, ros_home: &Path, node: &str) -> PathBuf {
        or_below("", ros_home, &format!("recordings/{}", folder_of(node)))
    }
}

/// `ROS_HOME`, as ROS has it.
pub fn ros_home() -> PathBuf {
    std::env::var_os("ROS_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ros")))
        .unwrap_or_else(|| PathBuf::from(".ros"))
}

/// A node's name as the name of a folder.
fn folder_of(node: &str) -> String {
    node.trim_matches('/').replace('/', ".")
}

fn or_below(given: &str, ros_home: &Path, name: &str) -> PathBuf {
    if given.is_empty() {
        ros_home.join("centerpoint_ptq").join(name)
    } else {
        PathBuf::from(given)
    }
}

fn spec(name: &str) -> Option<&'static Spec> {
    SPECS.iter().find(|spec| spec.name == name)
}

/// Names the parameter that was likely meant: same last part, or few letters different.
fn hint(name: &str) -> String {
    let last = |n: &str| n.rsplit('.').next().unwrap_or(n).to_owned();
    SPECS
        .iter()
        .map(|spec| {
            let distance = if last(spec.name) == last(name) {
                0
            } else {
                edit_distance(spec.name, name)
            };
            (distance, spec.name)
        })
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, near)| format!("; did you mean '{near}'?"))
        .unwrap_or_default()
}

/// Levenshtein distance by dynamic programming over one row.
pub(super) fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn put<T>(field: &mut T, value: Result<T, Refused>) -> Result<(), Refused> {
    *field = value?;
    Ok(())
}

fn text(value: &Value) -> Result<String, Refused> {
    match value {
        Value::Text(text) => Ok(text.trim().to_owned()),
        _ => Err(Refused::Type("string")),
    }
}

/// A list of folders; one that is no absolute path would depend on where the node was started.
fn folders(value: &Value) -> Result<String, Refused> {
    let text = text(value)?;
    let relative = |folder: &&str| !folder.is_empty() && !Path::new(folder).is_absolute();
    match text.split(':').find(relative) {
        Some(folder) => Err(Refused::Value(format!(
            "'{folder}' is no absolute path; give folders as '/data/bags:/data/recipes'"
        ))),
        None => Ok(text),
    }
}

fn flag(value: &Value) -> Result<bool, Refused> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        _ => Err(Refused::Type("bool")),
    }
}

fn count(value: &Value, min: i64, max: i64) -> Result<usize, Refused> {
    match value {
        Value::Integer(n) if (min..=max).contains(n) => Ok(*n as usize),
        Value::Integer(n) => Err(Refused::Value(format!(
            "{n} is not between {min} and {max}"
        ))),
        _ => Err(Refused::Type("integer")),
    }
}

fn number(value: &Value, min: f64, max: f64) -> Result<f64, Refused> {
    match value {
        Value::Double(x) if (min..=max).contains(x) => Ok(*x),
        Value::Double(x) => Err(Refused::Value(format!(
            "{x} is not between {min} and {max}"
        ))),
        _ => Err(Refused::Type("double")),
    }
}

fn lifetime(value: &Value) -> Result<Option<f64>, Refused> {
    match value {
        Value::Double(x) if *x == AUTOMATIC => Ok(None),
        Value::Double(x) if (0.0..=3600.0).contains(x) => Ok(Some(*x)),
        Value::Double(x) => Err(Refused::Value(format!(
            "{x} is neither between 0 and 3600 nor -1"
        ))),
        _ => Err(Refused::Type("double")),
    }
}

fn reliability(value: &Value) -> Result<Reliability, Refused> {
    match text(value)?.as_str() {
        "best_effort" => Ok(Reliability::BestEffort),
        "reliable" => Ok(Reliability::Reliable),
        other => Err(Refused::Value(format!(
            "'{other}' is neither best_effort nor reliable"
        ))),
    }
}

fn choice(value: &Value) -> Result<Choice, Refused> {
    text(value)?.parse().map_err(Refused::Value)
}

fn provider(value: &Value) -> Result<Provider, Refused> {
    text(value)?.parse().map_err(Refused::Value)
}

fn target(value: &Value) -> Result<Target, Refused> {
    let text = text(value)?;
    <Target as clap::ValueEnum>::from_str(&text, false)
        .map_err(|_| Refused::Value(format!("'{text}' is neither cpu nor tensorrt")))
}

fn sensor_pose(value: &Value) -> Result<Option<[f64; 6]>, Refused> {
    let numbers: Vec<f64> = match value {
        Value::Numbers(numbers) => numbers.clone(),
        Value::Text(text) => pose_text(text)
            .map(|word| match word.parse() {
                Ok(x) => Ok(x),
                Err(_) => Err(Refused::Value(format!("'{word}' is not a number"))),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(Refused::Type("string or array of six numbers")),
    };
    if let Some(x) = numbers.iter().find(|x| !x.is_finite()) {
        return Err(Refused::Value(format!("{x} is not finite")));
    }
    match <[f64; 6]>::try_from(numbers) {
        Ok(pose) => Ok(Some(pose)),
        Err(numbers) if numbers.is_empty() => Ok(None),
        Err(numbers) => Err(Refused::Value(format!(
            "needs six numbers, 'x y z roll pitch yaw' (m, rad), got {}",
            numbers.len()
        ))),
    }
}

/// The words of a pose: between spaces or commas, in brackets or not.
fn pose_text(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .or_else(|| text.strip_prefix('(').and_then(|t| t.strip_suffix(')')));
    let words = bare.unwrap_or(text);
    words
        .split(|c: char| c.is_whitespace() || c == ',')
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::calibrator::{Input, Job};

    fn text(value: &str) -> Value {
        Value::Text(value.into())
    }

    #[test]
    fn every_parameter_reads_back_its_default() {
        let defaults = Settings::default();
        let mut copy = Settings {
            model_path: "x".into(),
            ..Settings::default()
        };
        for spec in SPECS {
            let value = defaults.get(spec.name).unwrap();
            copy.set(spec.name, &value).unwrap();
        }
        assert_eq!(copy, defaults);
    }

    /// What the node makes of the settings, other than those of [`AS_THEY_ARE`].
    fn consumed(settings: &Settings) -> String {
        let home = Path::new("/home/.ros");
        let description = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/model.yaml");
        let description = ModelDescription::load(&description).unwrap();
        let job = Job::new(
            settings,
            "centerpoint_ptq".into(),
            settings.model_file(),
            ("bag".into(), Input::recording(settings, None)),
            "out".into(),
        );
        format!(
            "{job:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            settings.model_store(home),
            settings.buffer_folder(home, "/node"),
            settings.buffer_policy(description.points.sweeps),
            settings.shadow(),
            settings.runtime_options(),
            settings.input_options(&description),
            settings.reach([]),
        )
    }

    /// Those that the node reads as they are, and where a test holds what they do.
    const AS_THEY_ARE: [(&str, &str); 8] = [
        ("model_max_mb", "tests/ros/test_startup.py"),
        ("store.allow_unjudged", "tests/ros/test_requests.py"),
        ("store.resume", "tests/ros/test_parameters.py"),
        ("input.reliability", "tests/ros/test_silence.py"),
        ("calibration.min_frames", "tests/ros/test_calibration.py"),
        ("publish.markers", "tests/ros/test_detection.py"),
        ("publish.marker_lifetime_s", "tests/ros/test_parameters.py"),
        ("diagnostics.max_processing_ms", "tests/ros/test_startup.py"),
    ];

    #[test]
    fn every_parameter_has_an_effect() {
        let defaults = Settings {
            model_path: "/model.yaml".into(),
            ..Settings::default()
        };
        let before = consumed(&defaults);
        for spec in SPECS {
            let other = match defaults.get(spec.name).unwrap() {
                Value::Bool(flag) => Value::Bool(!flag),
                Value::Integer(n) => Value::Integer(n + 1),
                Value::Double(x) => Value::Double((x + 1.0) / 2.0),
                Value::Numbers(_) => unreachable!("no parameter reads back as an array"),
                Value::Text(_) => text(match spec.name {
                    "target" => "tensorrt",
                    "runtime.provider" => "cuda",
                    "input.reliability" => "reliable",
                    "input.sensor_pose" => "0 0 1 0 0 0",
                    "calibration.choice" => "newest",
                    _ => "/other",
                }),
            };
            let mut settings = defaults.clone();
            if let Err(refused) = settings.set(spec.name, &other) {
                panic!("{refused}");
            }
            assert_ne!(settings, defaults, "{} is not kept", spec.name);
            match AS_THEY_ARE.iter().find(|(name, _)| *name == spec.name) {
                Some((name, file)) => {
                    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
                    let tests = std::fs::read_to_string(file).unwrap();
                    assert!(tests.contains(name), "{name} has no test");
                }
                None => assert_ne!(consumed(&settings), before, "{} does nothing", spec.name),
            }
        }
    }

    #[test]
    fn a_wrong_type_is_refused_with_the_name_and_both_types() {
        let mut settings = Settings::default();
        let error = settings
            .set("calibration.max_frames", &text("many"))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "parameter 'calibration.max_frames' must be of type integer, not string"
        );
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn values_out_of_range_are_refused_and_change_nothing() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("calibration.max_frames", Value::Integer(0)),
            ("calibration.nice", Value::Integer(-5)),
            ("calibration.min_period_s", Value::Double(f64::NAN)),
            ("input.reliability", text("sometimes")),
            ("runtime.provider", text("abacus")),
            ("input.sensor_pose", text("1 2 3")),
            ("input.sensor_pose", text("1 2 3 0 0 inf")),
            ("target", text(" ")),
        ] {
            let error = settings.set(name, &value).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn a_misspelt_name_gets_the_likely_one() {
        let mut settings = Settings::default();
        let said = |e: SettingsError| e.to_string();
        assert!(said(settings.set("model_pth", &text("x")).unwrap_err()).contains("'model_path'"));
        assert!(
            said(settings.set("max_frames", &Value::Integer(3)).unwrap_err())
                .contains("'calibration.max_frames'")
        );
        assert_eq!(
            said(settings.set("quite_different", &text("x")).unwrap_err()),
            "unknown parameter 'quite_different'"
        );
    }

    #[test]
    fn a_running_node_takes_live_parameters_only() {
        let mut settings = Settings::default();
        settings
            .set_live("publish.markers", &Value::Bool(false))
            .unwrap();
        assert!(!settings.publish_markers);
        assert!(matches!(
            settings.set_live("model_path", &text("other")),
            Err(SettingsError::ReadOnly { .. })
        ));
        // A tool that writes a whole set back must not fail on what does not change.
        settings.set_live("target", &text("cpu")).unwrap();
    }

    #[test]
    fn a_pose_is_six_numbers_or_nothing() {
        let mut settings = Settings::default();
        settings
            .set("input.sensor_pose", &text("0 0 1.73 0 0.01 -0.5"))
            .unwrap();
        assert_eq!(
            settings.input_sensor_pose,
            Some([0.0, 0.0, 1.73, 0.0, 0.01, -0.5])
        );
        assert_eq!(
            settings.get("input.sensor_pose"),
            Some(text("0 0 1.73 0 0.01 -0.5"))
        );
        settings.set("input.sensor_pose", &text("")).unwrap();
        assert_eq!(settings.input_sensor_pose, None);
    }

    #[test]
    fn a_pose_may_be_an_array_or_have_brackets_and_commas() {
        let pose = Some([1.0, 0.0, 1.7, 0.0, 0.0, -0.5]);
        for value in [
            Value::Numbers(vec![1.0, 0.0, 1.7, 0.0, 0.0, -0.5]),
            text("[1.0, 0, 1.7, 0, 0, -0.5]"),
            text(" (1,0,1.7,0,0,-0.5) "),
            text("1 0 1.7, 0 0 -5e-1"),
        ] {
            let mut settings = Settings::default();
            settings.set("input.sensor_pose", &value).unwrap();
            assert_eq!(settings.input_sensor_pose, pose, "{value:?}");
            // What is the same is no change.
            settings.set_live("input.sensor_pose", &value).unwrap();
        }
        let mut settings = Settings::default();
        for value in [
            Value::Numbers(vec![1.0; 5]),
            Value::Numbers(vec![f64::NAN; 6]),
            text("[1 0 1.7 0 0 0"),
            text("1;0;1;0;0;0"),
            Value::Integer(3),
        ] {
            let error = settings.set("input.sensor_pose", &value).unwrap_err();
            assert!(error.to_string().contains("input.sensor_pose"), "{error}");
        }
        settings
            .set("input.sensor_pose", &Value::Numbers(Vec::new()))
            .unwrap();
        assert_eq!(settings.input_sensor_pose, None);
        let error = settings.set("target", &Value::Numbers(vec![1.0]));
        assert!(error.unwrap_err().to_string().contains("array of numbers"));
    }

    #[test]
    fn a_marker_lifetime_is_a_time_or_never_or_automatic() {
        let mut settings = Settings::default();
        let mut set = |x: f64| settings.set("publish.marker_lifetime_s", &Value::Double(x));
        for wrong in [-0.5, -2.0, f64::NAN, 4000.0] {
            assert!(set(wrong).is_err(), "{wrong}");
        }
        set(0.0).unwrap();
        assert_eq!(settings.publish_marker_lifetime_s, Some(0.0));
        settings
            .set("publish.marker_lifetime_s", &Value::Double(-1.0))
            .unwrap();
        assert_eq!(settings.publish_marker_lifetime_s, None);
    }

    #[test]
    fn nodes_share_a_store_but_not_a_buffer() {
        let mut settings = Settings::default();
        let home = Path::new("/home/.ros");
        let folder = |s: &Settings, node| s.buffer_folder(home, node);
        assert_eq!(
            folder(&settings, "/vehicle/front"),
            home.join("centerpoint_ptq/calibration_buffer/vehicle.front")
        );
        assert_ne!(folder(&settings, "/front"), folder(&settings, "/rear"));
        assert_eq!(
            settings.store_folder(home),
            home.join("centerpoint_ptq/models")
        );
        settings.calibration_buffer_path = "/data/buffer".into();
        assert_eq!(folder(&settings, "/front"), Path::new("/data/buffer"));
    }

    #[test]
    fn a_missing_model_and_an_unreachable_minimum_are_said() {
        let mut settings = Settings::default();
        assert!(
            settings
                .check()
                .unwrap_err()
                .to_string()
                .contains("model_path")
        );
        settings.model_path = "model.yaml".into();
        settings.check().unwrap();
        settings.calibration_min_frames = 65;
        assert!(
            settings
                .check()
                .unwrap_err()
                .to_string()
                .contains("max_frames (64)")
        );
    }
}
