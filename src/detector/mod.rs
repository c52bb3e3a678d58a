//! From points to boxes: model description, ONNX Runtime, decoding, suppression.
//!
//! ```no_run
//! use centerpoint_ptq::cloud::Points;
//! use centerpoint_ptq::detector::{Detector, ModelDescription, RuntimeOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = ModelDescription::load("models/demo/model.yaml".as_ref())?;
//! let mut detector = Detector::load(&model, &RuntimeOptions::default())?;
//! let inference = detector.detect(&Points::default())?;
//! for detection in &inference.detections {
//!     println!("{} {:.2}", model.classes[detection.class], detection.score);
//! }
//! # Ok(())
//! # }
//! ```

pub mod decode;
pub mod description;
pub mod files;
mod input;
pub mod kernels;
pub mod nms;
mod plausibility;
pub mod runtime;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::{Array3, Array4, ArrayView2, ArrayView4, Axis};
use ort::session::{Session, SessionOutputs};
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use decode::{HeadMaps, HeadViews};
pub use description::{Head, ModelDescription, ModelError, Precision, TensorName};
pub use files::{FileRecord, ModelFiles};
pub use runtime::{Provider, RuntimeError, RuntimeOptions};

use crate::cloud::Points;
use crate::cloud::condition::{Condition, ConditionKind};
use crate::files::{hash_into, hex};
use crate::geometry::Detection;
use crate::onnx::outline::{Ending, Outline};
use crate::onnx::{OnnxError, limit};
use crate::pillars::{Pillarizer, scatter};
use description::{DimScale, HeatmapScale};
use files::Part;
use plausibility::Logits;

/// Why a model was refused or a frame not processed.
#[derive(Debug, thiserror::Error)]
pub enum DetectorError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    #[error("cannot read the ONNX file {} that `{key}.file` names: {reason}", path.display())]
    File {
        key: &'static str,
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("{} changed while the model was loaded; load it again", path.display())]
    Changed { path: PathBuf },
    #[error("ONNX Runtime's profile {} cannot be read: {message}", file.display())]
    Profile { file: PathBuf, message: String },
    #[error("{}: no {kind} `{wanted}` (`{key}`); the graph has {}", path.display(), present.join(", "))]
    NoTensor {
        path: PathBuf,
        key: String,
        kind: &'static str,
        wanted: TensorName,
        present: Vec<String>,
    },
    #[error(transparent)]
    Shape(Box<ShapeMismatch>),
    #[error("{} failed: {message}", path.display())]
    Run { path: PathBuf, message: String },
    #[error(
        "the model's {tensor} holds NaN, an infinity or a size beyond all bounds ({}); \
         no boxes can be trusted from this frame",
        path.display()
    )]
    NonFinite { path: PathBuf, tensor: String },
    #[error("{}: `{key}` {problem}", path.display())]
    Contradiction {
        /// The ONNX file that the description contradicts.
        path: PathBuf,
        /// The description's key.
        key: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    #[error(
        "the description says `head.heatmap: sigmoid`, but the heatmap holds values from {least:.3} to {most:.3} ({}): \
         these are no probabilities. If they are logits, it is `head.heatmap: logit`",
        path.display()
    )]
    NoProbabilities {
        path: PathBuf,
        least: f32,
        most: f32,
    },
    #[error("the backbone reads [1, {}, {}, {}], got {got:?}", expected[0], expected[1], expected[2])]
    Input {
        expected: [usize; 3],
        got: Vec<usize>,
    },
}

/// A tensor that is not what the description makes it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind} `{tensor}` is {found}, expected {expected}; {advice}", path.display())]
pub struct ShapeMismatch {
    pub path: PathBuf,
    /// Input or output of the graph.
    pub kind: &'static str,
    pub tensor: String,
    pub expected: String,
    pub found: String,
    /// What to look at.
    pub advice: String,
}

/// Milliseconds of each stage of one frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Sorting points into pillars.
    pub pillars_ms: f64,
    /// Encoder and scatter.
    pub encoder_ms: f64,
    /// Backbone, neck and head.
    pub backbone_ms: f64,
    /// Boxes and suppression.
    pub decode_ms: f64,
    pub total_ms: f64,
}

/// What came of one cloud.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inference {
    /// By falling score.
    pub detections: Vec<Detection>,
    pub timing: Timing,
    /// Pillars that the encoder saw.
    pub pillars: usize,
    /// Pillars lost to `max_pillars`.
    pub dropped_pillars: usize,
    /// What makes these boxes worse than they could be; those of the cloud itself are with its frame.
    pub conditions: Vec<Condition>,
}

/// A loaded model. Buffers are kept between frames.
pub struct Detector {
    model: ModelDescription,
    pillarizer: Pillarizer,
    encoder: Graph,
    backbone: Graph,
    /// `[1, channels, grid y, grid x]`.
    spatial: Array4<f32>,
    logits: Logits,
    bytes: u64,
    id: String,
    files: Vec<FileRecord>,
}

impl fmt::Debug for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detector")
            .field("model", &self.model.name)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A session with the tensors that the description names.
struct Graph {
    path: PathBuf,
    session: Session,
    input: String,
    /// In the order in which they were asked for.
    outputs: Vec<String>,
}

impl Graph {
    /// Opens the file and finds its tensors.
    fn open(
        part: &Part,
        input: &TensorName,
        outputs: &[(String, TensorName)],
        options: &RuntimeOptions,
    ) -> Result<Self, DetectorError> {
        let (key, path) = (part.key, part.path.clone());
        let mut options = options.clone();
        if let Some(prefix) = &mut options.profile_to {
            prefix.as_mut_os_string().push(format!("_{key}"));
        }
        // From the bytes that were hashed, so that what runs is what the id says, except when the
        // graph keeps its weights in a file beside it, which only loading by path finds.
        let session = match part.outline.external() {
            [] => runtime::session_from_bytes(&part.bytes, &path.display().to_string(), &options),
            _ => runtime::session_from_file(&path, &options),
        };
        let session = session.map_err(|error| runtime::explain(error, &part.outline))?;
        let input = find(
            &path,
            format!("{key}.input"),
            "input",
            input,
            session.inputs(),
        )?;
        let outputs = outputs
            .iter()
            .map(|(key, name)| find(&path, key.clone(), "output", name, session.outputs()))
            .collect::<Result<Vec<_>, _>>()?;
        if session.inputs().len() != 1 {
            let names: Vec<&str> = session.inputs().iter().map(|i| i.name()).collect();
            return Err(DetectorError::Shape(Box::new(ShapeMismatch {
                path,
                kind: "input",
                tensor: names.join(", "),
                expected: "a single tensor".into(),
                found: format!("{} tensors", names.len()),
                advice: "this is not the two_part layout".into(),
            })));
        }
        Ok(Graph {
            path,
            session,
            input,
            outputs,
        })
    }

    /// Declared shape of an input or output; dynamic axes are -1. `None` where it is no tensor.
    fn declared(&self, kind: &'static str, name: &str) -> Option<Vec<i64>> {
        let outlets = match kind {
            "input" => self.session.inputs(),
            _ => self.session.outputs(),
        };
        let outlet = outlets.iter().find(|o| o.name() == name)?;
        match outlet.dtype() {
            ValueType::Tensor { shape, .. } => Some(shape.to_vec()),
            _ => None,
        }
    }

    /// Refuses a declared shape that the wanted one contradicts; -1 in either fits anything.
    fn expect(
        &self,
        kind: &'static str,
        name: &str,
        wanted: &[i64],
        advice: &str,
    ) -> Result<(), DetectorError> {
        let declared = self.declared(kind, name);
        let fits = declared.as_ref().is_some_and(|found| {
            found.len() == wanted.len()
                && found
                    .iter()
                    .zip(wanted)
                    .all(|(f, w)| *f == *w || *f < 0 || *w < 0)
        });
        if fits {
            return Ok(());
        }
        Err(self.shape_error(
            kind,
            name,
            axes(wanted),
            declared.map_or("no tensor".into(), |d| axes(&d)),
            advice,
        ))
    }

    fn shape_error(
        &self,
        kind: &'static str,
        name: &str,
        expected: String,
        found: String,
        advice: &str,
    ) -> DetectorError {
        DetectorError::Shape(Box::new(ShapeMismatch {
            path: self.path.clone(),
            kind,
            tensor: name.into(),
            expected,
            found,
            advice: advice.into(),
        }))
    }

    fn run_error(path: &Path, error: impl fmt::Display) -> DetectorError {
        DetectorError::Run {
            path: path.to_path_buf(),
            message: error.to_string(),
        }
    }

    fn run(
        &mut self,
        shape: &[usize],
        values: &[f32],
    ) -> Result<SessionOutputs<'_>, DetectorError> {
        let path = &self.path;
        let input = TensorRef::from_array_view((shape.to_vec(), values))
            .map_err(|e| Self::run_error(path, e))?;
        self.session
            .run(ort::inputs![self.input.as_str() => input])
            .map_err(|e| Self::run_error(path, e))
    }
}

fn axes(shape: &[i64]) -> String {
    let axes: Vec<String> = shape
        .iter()
        .map(|n| if *n < 0 { "?".into() } else { n.to_string() })
        .collect();
    format!("[{}]", axes.join(", "))
}

fn find(
    path: &Path,
    key: String,
    kind: &'static str,
    wanted: &TensorName,
    outlets: &[Outlet],
) -> Result<String, DetectorError> {
    let found = match wanted {
        TensorName::Index(index) => outlets.get(*index),
        TensorName::Name(name) => outlets.iter().find(|o| o.name() == name),
    };
    let Some(found) = found else {
        return Err(DetectorError::NoTensor {
            path: path.to_path_buf(),
            key,
            kind,
            wanted: wanted.clone(),
            present: outlets
                .iter()
                .enumerate()
                .map(|(i, o)| format!("{i}: {}", o.name()))
                .collect(),
        });
    };
    match found.dtype() {
        ValueType::Tensor {
            ty: TensorElementType::Float32,
            ..
        } => Ok(found.name().to_string()),
        other => Err(DetectorError::Contradiction {
            path: path.to_path_buf(),
            key,
            problem: format!(
                "names {}, an {kind} of type {other}; inputs and outputs are read and written as float32. Export \
                 the graph again, or convert it so that these stay float32 (in onnxconverter-common: \
                 `keep_io_types=True`)",
                found.name()
            ),
        }),
    }
}

impl Detector {
    /// Loads a model, checks it against its description, and runs it once on an empty cloud and
    /// once on a few pillars.
    pub fn load(model: &ModelDescription, options: &RuntimeOptions) -> Result<Self, DetectorError> {
        let parts = Part::both(model)?;
        let (id, bytes) = identity(model, &parts)?;
        let beside = weights_beside(&parts);
        let mut files: Vec<FileRecord> = parts
            .iter()
            .map(|part| FileRecord::of_bytes(&part.path, &part.bytes))
            .collect();
        files.extend(FileRecord::of_all(&beside)?);
        let [encoder_part, backbone_part] = parts;
        check_precision(model, &backbone_part)?;
        let encoder = Graph::open(
            &encoder_part,
            &model.encoder.input,
            &[("encoder.output".into(), model.encoder.output.clone())],
            options,
        )?;
        let heads: Vec<(String, TensorName)> = model
            .backbone
            .outputs
            .iter()
            .map(|(head, name)| (format!("backbone.outputs.{head}"), name.clone()))
            .collect();
        let backbone = Graph::open(&backbone_part, &model.backbone.input, &heads, options)?;
        // The graphs were read once. What lies beside them ONNX Runtime reads by itself.
        for (path, before) in beside.iter().zip(&files[2..]) {
            if FileRecord::of(path)? != *before {
                return Err(DetectorError::Changed { path: path.clone() });
            }
        }
        check_outputs(model, &backbone, &backbone_part.outline)?;
        let [gx, gy] = model.grid_size();
        let mut detector = Detector {
            model: model.clone(),
            pillarizer: Pillarizer::new(model),
            encoder,
            backbone,
            spatial: Array4::zeros((1, 0, gy, gx)),
            logits: Logits::default(),
            bytes,
            id,
            files,
        };
        detector.check_declared_shapes()?;
        let channels = detector.probe_encoder()?;
        detector.shorten_batches()?;
        detector.spatial = Array4::zeros((1, channels, gy, gx));
        detector.run_backbone(|_, _| ())?;
        Ok(detector)
    }

    fn check_declared_shapes(&self) -> Result<(), DetectorError> {
        let (model, encoder, backbone) = (&self.model, &self.encoder, &self.backbone);
        let features = model.feature_count();
        encoder.expect(
            "input",
            &encoder.input,
            &[-1, model.grid.max_points as i64, features as i64],
            &format!(
                "the description's point features and decorations make {features} values, \
                 `grid.max_points` is {}",
                model.grid.max_points
            ),
        )?;
        let pillars = encoder.declared("input", &encoder.input);
        if let Some(fixed) = pillars.and_then(|shape| shape.first().copied())
            && fixed >= 0
        {
            return Err(encoder.shape_error(
                "input",
                &encoder.input,
                "a dynamic number of pillars".into(),
                format!("fixed to {fixed}"),
                "export the encoder with a dynamic first axis",
            ));
        }
        let [gx, gy] = model.grid_size();
        backbone.expect(
            "input",
            &backbone.input,
            &[1, -1, gy as i64, gx as i64],
            &format!("`grid` makes {gx} x {gy} pillars; check grid.min, grid.max, grid.pillar"),
        )
    }

    /// Runs the encoder on a few made-up pillars; returns its channels.
    fn probe_encoder(&mut self) -> Result<usize, DetectorError> {
        const PILLARS: usize = 3;
        let (found, _) = self.encode_probe(PILLARS, self.model.grid.max_points, 1)?;
        let name = &self.encoder.outputs[0];
        match found.as_slice() {
            [n, 1, c] | [n, c] if *n == PILLARS as i64 && *c > 0 => {
                let channels = *c;
                let backbone = self.backbone.declared("input", &self.backbone.input);
                match backbone.as_deref() {
                    Some([_, wanted, _, _]) if *wanted >= 0 && *wanted != channels => {
                        Err(self.backbone.shape_error(
                            "input",
                            &self.backbone.input,
                            format!("{channels} channels, as the encoder gives"),
                            format!("{wanted} channels"),
                            "encoder and backbone are of different models",
                        ))
                    }
                    _ => Ok(channels as usize),
                }
            }
            _ => Err(self.encoder.shape_error(
                "output",
                name,
                format!("[{PILLARS}, 1, channels] for {PILLARS} pillars"),
                axes(&found),
                "check `encoder.output`",
            )),
        }
    }

    /// Encodes made-up pillars of `points` points in `rows` rows: output shape and values.
    fn encode_probe(
        &mut self,
        pillars: usize,
        rows: usize,
        points: usize,
    ) -> Result<(Vec<i64>, Vec<f32>), DetectorError> {
        let width = self.model.feature_count();
        let values: Vec<f32> = (0..pillars * rows * width)
            .map(|i| {
                let (pillar, row, feature) = (i / (rows * width), i / width % rows, i % width);
                match row < points {
                    true => ((pillar * 31 + row * 17 + feature * 7) % 23) as f32 / 11.0 - 1.0,
                    false => 0.0,
                }
            })
            .collect();
        let name = self.encoder.outputs[0].clone();
        let path = self.encoder.path.clone();
        let outputs = self.encoder.run(&[pillars, rows, width], &values)?;
        let (shape, values) = outputs[name.as_str()]
            .try_extract_tensor::<f32>()
            .map_err(|e| Graph::run_error(&path, e))?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(DetectorError::NonFinite { path, tensor: name });
        }
        Ok((shape.to_vec(), values.to_vec()))
    }

    /// Lets the pillarizer leave out rows of zeros where that changes nothing: the graph must take
    /// any number of points, and a pillar must come out the same with fewer rows of zeros.
    fn shorten_batches(&mut self) -> Result<(), DetectorError> {
        let declared = self.encoder.declared("input", &self.encoder.input);
        if declared.is_none_or(|shape| shape.get(1) != Some(&-1)) {
            return Ok(());
        }
        let most = self.model.grid.max_points;
        let rows: Vec<usize> = [4, 8, 16].into_iter().filter(|r| *r < most).collect();
        for rows in &rows {
            for points in [1, rows - 1] {
                let (_, short) = self.encode_probe(16, *rows, points)?;
                let (_, long) = self.encode_probe(16, most, points)?;
                let same = short.len() == long.len()
                    && std::iter::zip(&short, &long)
                        .all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(b.abs()).max(1.0));
                if !same {
                    tracing::debug!(
                        "{}: the number of padding rows matters to this encoder",
                        self.encoder.path.display()
                    );
                    return Ok(());
                }
            }
        }
        self.pillarizer.set_batch_rows(&rows);
        Ok(())
    }

    /// Boxes in a cloud that lies in the model's frame. An empty cloud is a cloud.
    pub fn detect(&mut self, points: &Points) -> Result<Inference, DetectorError> {
        let start = Instant::now();
        self.pillarizer.build(points);
        let pillars_done = Instant::now();
        self.encode()?;
        let encoder_done = Instant::now();
        let mut logits = self.logits;
        let pillars = self.pillarizer.len();
        let (detections, mut conditions, backbone_done) = self.run_backbone(|maps, model| {
            let done = Instant::now();
            let (detections, figures) = decode::decode_with_figures(maps, model);
            let mut conditions = figures.conditions(model);
            if pillars > 0 {
                conditions.extend(logits.watch(&maps.heatmap, model));
            }
            (detections, conditions, done)
        })?;
        self.logits = logits;
        conditions.extend(self.dropped());
        conditions.sort_by_key(|condition| condition.kind);
        let end = Instant::now();
        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        Ok(Inference {
            detections,
            timing: Timing {
                pillars_ms: ms(start, pillars_done),
                encoder_ms: ms(pillars_done, encoder_done),
                backbone_ms: ms(encoder_done, backbone_done),
                decode_ms: ms(backbone_done, end),
                total_ms: ms(start, end),
            },
            pillars,
            dropped_pillars: self.pillarizer.dropped_pillars(),
            conditions,
        })
    }

    /// What is odd about the cloud that was seen last and these head maps of it, as [`detect`](Self::detect)
    /// tells it.
    pub fn conditions(&mut self, maps: &HeadMaps) -> Vec<Condition> {
        let (_, figures) = decode::decode_with_figures(&maps.view(), &self.model);
        let mut conditions = figures.conditions(&self.model);
        if !self.pillarizer.is_empty() {
            let heatmap = &maps.view().heatmap;
            conditions.extend(self.logits.watch(heatmap, &self.model));
        }
        conditions.extend(self.dropped());
        conditions.sort_by_key(|condition| condition.kind);
        conditions
    }

    /// What to say of pillars that did not fit.
    fn dropped(&self) -> Option<Condition> {
        let (kept, dropped) = (self.pillarizer.len(), self.pillarizer.dropped_pillars());
        let all = kept + dropped;
        (dropped > 0).then(|| {
            Condition::new(
                ConditionKind::DroppedPillars,
                format!(
                    "{dropped} of {all} pillars were left out, those that come last in the cloud, because \
                     `grid.max_pillars` is {kept}; nothing is detected there: raise it, or send fewer points"
                ),
            )
        })
    }

    /// Begins anew with what is watched over several frames.
    pub(crate) fn forget_frames(&mut self) {
        self.logits.restart();
    }

    /// Channels, rows and columns of what the backbone reads.
    pub fn input_shape(&self) -> [usize; 3] {
        let (_, channels, rows, columns) = self.spatial.dim();
        [channels, rows, columns]
    }

    /// What the backbone reads for a cloud: `[1, channels, grid y, grid x]`.
    pub fn spatial_features(&mut self, points: &Points) -> Result<Array4<f32>, DetectorError> {
        self.pillarizer.build(points);
        self.encode()?;
        Ok(self.spatial.clone())
    }

    /// The raw head maps for spatial features of the shape that
    /// [`spatial_features`](Self::spatial_features) gives.
    pub fn heads(&mut self, spatial: &Array4<f32>) -> Result<HeadMaps, DetectorError> {
        if spatial.dim() != self.spatial.dim() {
            let (_, c, y, x) = self.spatial.dim();
            return Err(DetectorError::Input {
                expected: [c, y, x],
                got: spatial.shape().to_vec(),
            });
        }
        self.spatial.assign(spatial);
        self.run_backbone(|maps, _| maps.to_owned())
    }

    /// Boxes from head maps of this model.
    pub fn decode(&self, maps: &HeadMaps) -> Vec<Detection> {
        decode::decode(&maps.view(), &self.model)
    }

    /// Encodes the pillarizer's pillars into the spatial map.
    fn encode(&mut self) -> Result<(), DetectorError> {
        self.spatial.fill(0.0);
        let channels = self.spatial.dim().1;
        let path = &self.encoder.path.clone();
        let name = &self.encoder.outputs[0].clone();
        for batch in self.pillarizer.batches() {
            let values = batch
                .features
                .as_slice()
                .expect("a batch is in standard layout");
            let outputs = self.encoder.run(batch.features.shape(), values)?;
            let (_, encoded) = outputs[name.as_str()]
                .try_extract_tensor::<f32>()
                .map_err(|e| Graph::run_error(path, e))?;
            if encoded.iter().any(|v| !v.is_finite()) {
                return Err(DetectorError::NonFinite {
                    path: path.clone(),
                    tensor: name.clone(),
                });
            }
            let encoded = ArrayView2::from_shape((batch.cells.len(), channels), encoded)
                .map_err(|e| Graph::run_error(path, e))?;
            let map = self.spatial.index_axis_mut(Axis(0), 0);
            scatter(encoded, batch.cells, map);
        }
        Ok(())
    }

    /// Runs the backbone on the spatial map and hands its checked maps to `use_maps`.
    fn run_backbone<T>(
        &mut self,
        use_maps: impl FnOnce(&HeadViews<'_>, &ModelDescription) -> T,
    ) -> Result<T, DetectorError> {
        let shape = self.spatial.shape().to_vec();
        let values = self
            .spatial
            .as_slice()
            .expect("the spatial map is in standard layout");
        let path = self.backbone.path.clone();
        let names = self.backbone.outputs.clone();
        let model = &self.model;
        let outputs = self.backbone.run(&shape, values)?;
        let view = |head: Head, name: &str| head_view(&path, &outputs, model, head, name);
        let maps = HeadViews {
            heatmap: view(Head::Heatmap, &names[0])?,
            reg: view(Head::Reg, &names[1])?,
            height: view(Head::Height, &names[2])?,
            dim: view(Head::Dim, &names[3])?,
            rot: view(Head::Rot, &names[4])?,
            vel: match names.get(5) {
                Some(name) => Some(view(Head::Vel, name)?),
                None => None,
            },
        };
        if let Some(head) = maps.non_finite(model) {
            return Err(DetectorError::NonFinite {
                path,
                tensor: head.to_string(),
            });
        }
        if model.head.heatmap == HeatmapScale::Sigmoid {
            let [least, most] = plausibility::extremes(&maps.heatmap);
            if !plausibility::is_bounded([least, most]) {
                return Err(DetectorError::NoProbabilities { path, least, most });
            }
        }
        Ok(use_maps(&maps, model))
    }

    pub fn description(&self) -> &ModelDescription {
        &self.model
    }

    /// The encoder's input for the last cloud, with the cell of each pillar: for comparisons.
    pub fn pillars(&self) -> (Array3<f32>, &[u32]) {
        (self.pillarizer.features(), self.pillarizer.cells())
    }

    /// Size of the ONNX files and of those that hold their weights.
    pub fn model_bytes(&self) -> u64 {
        self.bytes
    }

    /// Which network this is, read in which way: the first 12 hexadecimal digits of a SHA-256 over both graphs, all
    /// weights, wherever they lie, and [what the description says of them](ModelDescription::behaviour).
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The files that it was loaded from, as they were then: both graphs, then what holds their weights.
    pub fn files(&self) -> &[FileRecord] {
        &self.files
    }
}

/// Refuses a quantized graph that is called float.
fn check_precision(model: &ModelDescription, backbone: &Part) -> Result<(), DetectorError> {
    let quantized = backbone.outline.is_quantized();
    match (model.precision, quantized) {
        (Precision::Float, true) => Err(DetectorError::Contradiction {
            path: backbone.path.clone(),
            key: "precision".into(),
            problem: "is float, but the graph is quantized (QuantizeLinear nodes); it is `int8`"
                .into(),
        }),
        (Precision::Int8, false) => {
            let path = backbone.path.display();
            tracing::warn!(
                "{path}: the description says `precision: int8`, but nothing in the graph is quantized"
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Refuses outputs that two heads read, and conventions that the graph itself contradicts.
fn check_outputs(
    model: &ModelDescription,
    backbone: &Graph,
    outline: &Outline,
) -> Result<(), DetectorError> {
    let contradiction = |key: String, problem: String| DetectorError::Contradiction {
        path: backbone.path.clone(),
        key,
        problem,
    };
    let heads: Vec<Head> = model
        .backbone
        .outputs
        .iter()
        .map(|(head, _)| head)
        .collect();
    for (i, name) in backbone.outputs.iter().enumerate() {
        if let Some(first) = backbone.outputs[..i].iter().position(|other| other == name) {
            return Err(contradiction(
                format!("backbone.outputs.{}", heads[i]),
                format!(
                    "reads the tensor `{name}`, which `backbone.outputs.{}` reads already",
                    heads[first]
                ),
            ));
        }
    }
    let ending = |head: Head| {
        let at = heads.iter().position(|h| *h == head);
        at.map_or(Ending::Other, |i| outline.ending(&backbone.outputs[i]))
    };
    match (model.head.heatmap, ending(Head::Heatmap)) {
        (HeatmapScale::Logit, Ending::Probability) => Err(contradiction(
            "head.heatmap".into(),
            "is logit, but the graph applies the sigmoid itself, and a second one makes every score 0.5 or more; \
             it is `sigmoid`"
                .into(),
        )),
        (HeatmapScale::Sigmoid, Ending::Unbounded) => Err(contradiction(
            "head.heatmap".into(),
            "is sigmoid, but the graph's heatmap comes straight from a convolution, so it holds logits; it is `logit`"
                .into(),
        )),
        _ => match (model.head.dim_scale, ending(Head::Dim)) {
            (DimScale::Log, Ending::Exponential) => Err(contradiction(
                "head.dim_scale".into(),
                "is log, but the graph applies the exponential itself; it is `linear`".into(),
            )),
            _ => Ok(()),
        },
    }
}

/// The files that hold weights of the graphs, each once.
fn weights_beside(parts: &[Part]) -> Vec<PathBuf> {
    let mut beside: Vec<PathBuf> = Vec::new();
    for path in parts.iter().flat_map(|p| p.outline.files().split_off(1)) {
        if !beside.contains(&path) {
            beside.push(path);
        }
    }
    beside
}

/// Id and bytes of a model.
fn identity(model: &ModelDescription, parts: &[Part]) -> Result<(String, u64), DetectorError> {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    // Each ends where its length says, or two files could be one that was cut elsewhere.
    for part in parts {
        hash.update((part.bytes.len() as u64).to_le_bytes());
        hash.update(&part.bytes);
        bytes += part.bytes.len() as u64;
    }
    let mut weighed: Vec<PathBuf> = Vec::new();
    for part in parts {
        for path in part.outline.files().split_off(1) {
            let length = hash_into(&mut hash, limit::open(&path)?, limit::bytes())
                .map_err(|error| limit::refused(&path, error))?;
            hash.update(length.to_le_bytes());
            if !weighed.contains(&path) {
                bytes += length;
                weighed.push(path);
            }
        }
    }
    hash.update(model.behaviour().to_string());
    Ok((hex(&hash.finalize()[..6]), bytes))
}

/// One head map, if its shape is what the description makes it.
fn head_view<'a>(
    path: &Path,
    outputs: &'a SessionOutputs<'_>,
    model: &ModelDescription,
    head: Head,
    name: &str,
) -> Result<ArrayView4<'a, f32>, DetectorError> {
    let (shape, values) = outputs[name]
        .try_extract_tensor::<f32>()
        .map_err(|e| Graph::run_error(path, e))?;
    let [x, y] = model.map_size();
    let channels = head.channels(model.classes.len());
    let wanted = [1, channels as i64, y as i64, x as i64];
    if **shape != wanted {
        let wrong_channels = shape.len() == 4 && shape[1] != wanted[1];
        let advice = match (wrong_channels, head) {
            (true, Head::Heatmap) => format!(
                "`classes` lists {} names ({}), one per channel",
                model.classes.len(),
                model.classes.join(", ")
            ),
            (true, _) => format!("check that `backbone.outputs.{head}` names the right output"),
            (false, _) => format!(
                "the grid has {} x {} pillars and `grid.downsample` is {}",
                model.grid_size()[0],
                model.grid_size()[1],
                model.grid.downsample
            ),
        };
        return Err(DetectorError::Shape(Box::new(ShapeMismatch {
            path: path.to_path_buf(),
            kind: "output",
            tensor: name.into(),
            expected: axes(&wanted),
            found: axes(shape),
            advice,
        })));
    }
    ArrayView4::from_shape((1, channels, y, x), values).map_err(|e| Graph::run_error(path, e))
}
