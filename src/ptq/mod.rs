//! Post-training quantization after LiDAR-PTQ: from a float model and frames to an INT8 model and a report.
//!
//! ```text
//! frames ─► frames (spool, held-out split)
//! model  ─► plan (fold, rewrite, layers, groups)
//!              ├─► equalize    channels of like ranges, where the recipe wants it
//!              ├─► calibrate   weights: steps per channel, integers
//!              │               observe + ranges: extremes, histograms, steps per tensor
//!              ├─► sensitivity   what each layer costs alone; the worst get higher precision
//!              ├─► reconstruct   other integers and steps: adaptive rounding, task-guided loss
//!              │      (on network, a differentiable copy of the graph)
//!              ├─► export    QDQ model
//!              └─► check     kernels, latency, agreement, verdict ─► report
//! ```
//!
//! The first stage of the method is sparsity-based calibration: steps from the extremes, then a grid search, the
//! weights first. Activations are observed in the float graph whose weights are already the quantized ones, because
//! those are the values the deployed network will see; activations themselves are not quantized while observing.

mod calibrate;
pub mod check;
mod counts;
pub mod equalize;
pub mod export;
pub mod frames;
pub mod network;
pub mod observe;
pub mod plan;
pub mod progress;
pub mod quantizer;
pub mod ranges;
pub mod recipe;
pub mod reconstruct;
pub mod report;
pub mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::{Array4, Axis, s};
use sha2::{Digest, Sha256};

use crate::cloud::summary::InputSummary;
use crate::cloud::{Point, Points};
use crate::detector::description::{Head, Precision, TensorName};
use crate::detector::kernels::{Convolution, Kernels};
use crate::detector::runtime::{self, RuntimeOptions};
use crate::detector::{Detector, ModelDescription, ModelFiles};
use crate::files::hex;
use crate::onnx::{Model, OnnxError};

use calibrate::{Calibrated, Calibrator};
use equalize::Equalization;
use export::Quantization;
use frames::{Role, Sample, Spool};
use observe::Observer;
use plan::Plan;
use progress::{Progress, Stage, Within, WithoutReconstruction};
use recipe::{Recipe, Target};
use reconstruct::sensitivity::{self, Promoted};
use reconstruct::{Checkpoint, Reconstruction, crops, positives};
use report::Report;

/// Why there is no INT8 model. (A model that the gate refuses is there; see [`check::Verdict`].)
#[derive(Debug, thiserror::Error)]
pub enum PtqError {
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    #[error(transparent)]
    Model(#[from] crate::detector::description::ModelError),
    #[error(transparent)]
    Detector(#[from] crate::detector::DetectorError),
    #[error(transparent)]
    Runtime(#[from] crate::detector::runtime::RuntimeError),
    #[error("the model {name} is {precision} already; quantization starts from a float model")]
    NotFloat { name: String, precision: Precision },
    #[error(
        "{} is another file than when the quantization began; start it again, and leave the model alone meanwhile",
        path.display()
    )]
    FloatChanged { path: PathBuf },
    #[error(transparent)]
    Recipe(#[from] recipe::RecipeError),
    /// The frames were read, and whoever gave them says that they are not to be used.
    #[error("{0}")]
    Input(String),
    #[error("frame {index} cannot be read: {source}")]
    Frame {
        index: usize,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "too few frames: {calibration} to calibrate and {held_out} held out ({empty} empty ones left out); \
         the recipe wants at least {min_calibration} and {min_held_out}"
    )]
    TooFewFrames {
        calibration: usize,
        held_out: usize,
        empty: usize,
        min_calibration: usize,
        min_held_out: usize,
    },
    #[error("all {count} frames are empty: no point lies in a pillar of the model's grid")]
    OnlyEmptyFrames { count: usize },
    #[error("tensor {tensor} held {count} values that are not finite on the calibration frames")]
    NotFinite { tensor: String, count: u64 },
    #[error("ONNX Runtime failed on {graph}: {message}")]
    Run { graph: String, message: String },
    #[error(
        "{} is {from}, and the float32 copy of it that quantization starts from gives other values: its {head} \
         differs by {:.1} %. Export the model in float32",
        file.display(), difference * 100.0
    )]
    Copy {
        file: PathBuf,
        from: String,
        head: Head,
        /// Largest difference, as a share of the largest value.
        difference: f32,
    },
    #[error("{} exists already; choose another folder, or remove it", path.display())]
    OutputExists { path: PathBuf },
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot keep the frames on disk: {0}")]
    Spool(#[from] std::io::Error),
    #[error("cannot start {threads} threads: {message}")]
    Threads { threads: usize, message: String },
    #[error("cancelled; nothing was written")]
    Cancelled,
}

/// Ends the work where it was asked to end.
pub(crate) fn go_on(progress: &dyn Progress) -> Result<(), PtqError> {
    if progress.cancelled() {
        Err(PtqError::Cancelled)
    } else {
        Ok(())
    }
}

/// Frames, and what there is to say of them once the last one was read.
pub struct Source<I, R> {
    pub frames: I,
    /// Called once, when no more frames are wanted. [`PtqError::Input`] refuses them.
    pub told: R,
}

/// What [`Source::told`] says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// What came of the recording; where this is not known, the conditions of the frames used are summed up.
    pub summary: Option<InputSummary>,
    /// Frames that were left out because they have fewer sweeps than the model wants, by their sweeps.
    pub left_out: BTreeMap<usize, usize>,
}

/// Makes an INT8 model of `model` from `frames` and writes it as the folder `out`: the ONNX files, `model.yaml`,
/// `report.json`, `report.txt` and `report.html`.
///
/// Frames are used in order, at most as many as the recipe allows; spread them over the recording before. Empty ones
/// are skipped. They are spooled to an unnamed file on the disk of `out`. The folder appears at once and complete, or,
/// after an error or a cancellation, not at all.
///
/// The report's verdict says whether the model passed the recipe's gate; a refused model is written, too.
pub fn quantize<F, E>(
    model: &ModelDescription,
    frames: impl Iterator<Item = Result<F, E>>,
    recipe: &Recipe,
    target: Target,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<Report, PtqError>
where
    F: Into<Sample>,
    E: std::error::Error + Send + Sync + 'static,
{
    let told = || Ok(Told::default());
    quantize_from(
        model,
        Source { frames, told },
        recipe,
        target,
        out,
        progress,
    )
}

/// [`quantize`] with frames whose source has something to say about them.
pub fn quantize_from<F, E>(
    model: &ModelDescription,
    source: Source<impl Iterator<Item = Result<F, E>>, impl FnOnce() -> Result<Told, PtqError>>,
    recipe: &Recipe,
    target: Target,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<Report, PtqError>
where
    F: Into<Sample>,
    E: std::error::Error + Send + Sync + 'static,
{
    let mut checkpoint = Checkpoint::none();
    let result = run(
        model,
        source,
        recipe,
        target,
        out,
        progress,
        &mut checkpoint,
    );
    // After any other error, finished blocks wait for the next try.
    if matches!(result, Ok(_) | Err(PtqError::Cancelled)) {
        checkpoint.remove();
    }
    result
}

/// [`quantize`], which then decides what becomes of `checkpoint`.
fn run<F, E>(
    model: &ModelDescription,
    source: Source<impl Iterator<Item = Result<F, E>>, impl FnOnce() -> Result<Told, PtqError>>,
    recipe: &Recipe,
    target: Target,
    out: &Path,
    progress: &mut dyn Progress,
    checkpoint: &mut Checkpoint,
) -> Result<Report, PtqError>
where
    F: Into<Sample>,
    E: std::error::Error + Send + Sync + 'static,
{
    let mut stretched;
    let progress: &mut dyn Progress = if recipe.reconstruction.is_some() {
        progress
    } else {
        stretched = WithoutReconstruction(progress);
        &mut stretched
    };
    let start = Instant::now();
    let mut clock = Clock::default();
    if model.precision != Precision::Float {
        return Err(PtqError::NotFloat {
            name: model.name.clone(),
            precision: model.precision,
        });
    }
    recipe.suits(&model.classes)?;
    // No folder takes the place of a link, and that would show only at the end.
    let out = &match out.is_symlink() {
        true => out.canonicalize().map_err(|source| PtqError::Io {
            action: "write",
            path: out.to_owned(),
            source,
        })?,
        false => out.to_owned(),
    };
    let work = Workplace::new(out)?;
    let settings = recipe.target(target);

    // Everything that can be wrong with the model is found before a frame is read.
    let runtime_options = RuntimeOptions {
        threads: recipe.threads,
        lean: true,
        ..Default::default()
    };
    let mut detector = Detector::load(model, &runtime_options)?;
    let prepared = plan::prepare(Model::load(model.backbone_path())?)?;
    let graph = &prepared.model;
    let plan = Plan::new(graph, recipe, settings)?;
    if recipe.reconstruction.is_some() {
        network::supported(graph)?;
    }
    let input = match &model.backbone.input {
        TensorName::Name(name) => name.clone(),
        TensorName::Index(index) => graph
            .input_names()
            .get(*index)
            .cloned()
            .ok_or_else(|| graph.graph_error(format!("it has no input {index}")))?,
    };
    if !prepared.changes.widened.is_empty() {
        let from = &prepared.changes.widened;
        compare_copy(graph, from, &input, &mut detector, &runtime_options)?;
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(recipe.threads)
        .build()
        .map_err(|e| PtqError::Threads {
            threads: recipe.threads,
            message: e.to_string(),
        })?;

    let (mut spool, empty, told) = spool_frames(source, recipe, &work, progress)?;
    let input_read = report::Input::new(
        model.points.sweeps,
        spool.records(),
        told,
        spool.conditions(),
    );
    clock.lap("frames");

    let mut equalized = Vec::new();
    let mut equal = None;
    if let Some(wish) = &recipe.equalization {
        let (model, found) = equalized_graph(
            graph,
            &input,
            &mut detector,
            &mut spool,
            &runtime_options,
            wish,
            progress,
        )?;
        (equal, equalized) = (Some(model), found);
        clock.lap("equalize");
    }
    let graph = equal.as_ref().unwrap_or(graph);

    let reduced_range = settings.reduce_range.applies();
    let mut calibrator = Calibrator {
        detector: &mut detector,
        spool: &mut spool,
        pool: &pool,
        graph,
        input: &input,
        options: &runtime_options,
        recipe,
        target: settings,
    };
    let mut calibrated = calibrator.calibrate(plan, &mut clock, progress)?;
    let mut sensitivity = Vec::new();
    let mut promoted = Vec::new();
    let mut outcomes = Vec::new();
    if let Some(reconstruction) = &recipe.reconstruction {
        let stride = reconstruct::total_stride(graph, &input, calibrator.detector.input_shape())?;
        let windows = windows(
            calibrator.detector,
            calibrator.spool,
            reconstruction,
            stride,
            progress,
        )?;
        let subject = reconstruct::Subject {
            graph,
            input: &input,
            heads: heads(model, graph)?,
            scale: model.head.heatmap,
            bias: settings.bias,
            margin: windows.margin.div_ceil(model.grid.downsample),
            windows: windows.maps,
        };
        if let Some(wish) = &recipe.sensitivity {
            sensitivity = pool.install(|| {
                let quantization = &mut calibrated.quantization;
                sensitivity::measure(&subject, quantization, wish, reconstruction, progress)
            })?;
            promoted = calibrated.promote(&sensitivity, wish);
            clock.lap("sensitivity");
            if !promoted.is_empty() {
                let mut wider = recipe.clone();
                wider
                    .layers
                    .extend(promoted.iter().map(Promoted::as_override));
                let plan = Plan::new(graph, &wider, settings)?;
                let mut again = Calibrator {
                    recipe: &wider,
                    ..calibrator
                };
                let mut hidden = Within(progress, Stage::Sensitivity);
                calibrated = again.calibrate(plan, &mut clock, &mut hidden)?;
            }
        }
        *checkpoint = work.checkpoint(out, &key(model, recipe, target, &spool)?)?;
        outcomes = pool.install(|| {
            let quantization = &mut calibrated.quantization;
            reconstruct::reconstruct(subject, quantization, reconstruction, checkpoint, progress)
        })?;
        clock.lap("reconstruct");
    }
    let Calibrated {
        mut quantization,
        extremes,
        multiplications,
        histograms,
        choices,
    } = calibrated;

    // Export.
    go_on(progress)?;
    progress.update(
        Stage::Export,
        Stage::Export.overall(0.0),
        "writing the INT8 model",
    );
    let widened = match settings.bias {
        recipe::BiasType::Int32 => quantization.fit_biases(graph)?,
        recipe::BiasType::Float => Vec::new(),
    };
    for layer in widened {
        tracing::warn!("{layer}: weight steps widened so that its bias fits int32");
    }
    let mut int8_graph = export::qdq(graph, &quantization, settings)?;
    let float = ModelFiles::of(model)?;
    let float_files = report::FileRecord::of_all(&float.paths())?;
    let float_backbone = report::FileRecord::of_all(&float.backbone)?;
    let weight_levels = quantization
        .weights
        .iter()
        .flat_map(|w| &w.channels)
        .map(|c| c.chosen.levels.max)
        .max();
    for (key, value) in [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("target", target.to_string()),
        ("recipe", recipe.name.clone()),
        (
            "recipe_json",
            serde_json::to_string(recipe).unwrap_or_default(),
        ),
        (
            "float_sha256",
            report::FileRecord::joint_sha256(&float_backbone),
        ),
        (
            "calibration_frames",
            spool.count(Role::Calibration).to_string(),
        ),
        ("held_out_frames", spool.count(Role::HeldOut).to_string()),
        ("frames_sha256", spool.hash()),
        ("weight_levels", weight_levels.unwrap_or(127).to_string()),
        ("reduced_range", reduced_range.to_string()),
        ("onnx_runtime", runtime::init()?.version().to_owned()),
    ] {
        int8_graph.set_metadata(&format!("centerpoint_ptq.{key}"), value);
    }
    let int8_graph_file = work.path(&model.backbone.file);
    int8_graph.save(&int8_graph_file)?;
    let int8 = write_description(model, &work)?;
    same_float(model, detector.files())?;
    clock.lap("export");

    // Check, on what was written.
    let names = quantization.plan.layers.iter().map(|l| &l.name);
    let names = names.chain(quantization.plan.float_layers.iter().map(|l| &l.name));
    let layers: Vec<Convolution> = names
        .zip(&multiplications)
        .map(|(name, &multiplications)| {
            let node = graph
                .graph()
                .node
                .iter()
                .find(|n| n.name.as_ref() == Some(name));
            Convolution {
                name: name.clone(),
                output: node
                    .and_then(|n| n.output.first().cloned())
                    .unwrap_or_default(),
                multiplications,
            }
        })
        .collect();
    let float_loaded = detector.files().to_vec();
    drop(detector);
    let subject = check::Subject {
        float: model,
        int8: &int8,
        layers: &layers,
        settings: &recipe.check,
        gate: &recipe.gate,
        threads: recipe.threads,
        scratch: work.folder.path(),
    };
    let mut checked = check::check(subject, &mut spool, progress)?;
    // The check read it once more.
    same_float(model, &float_loaded)?;
    let few = input_read.few_sweeps(spool.records());
    checked.verdict.remarks.splice(0..0, few);
    // Scores go along with the model; the graph itself stays as it was measured.
    if let Some(f1) = checked.agreement.total.f1 {
        int8_graph.set_metadata("centerpoint_ptq.agreement_f1", format!("{f1:.4}"));
    }
    int8_graph.set_metadata(
        "centerpoint_ptq.accepted",
        checked.verdict.accepted.to_string(),
    );
    int8_graph.save(&int8_graph_file)?;
    clock.lap("check");

    let report = Report {
        format: report::FORMAT,
        model: model.name.clone(),
        target,
        tool: report::Tool {
            version: env!("CARGO_PKG_VERSION").into(),
            onnx_runtime: runtime::init()?.version().into(),
            machine: machine(),
            exact_u8s8: recipe::has_exact_u8s8(),
            created: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        },
        float_files,
        int8_files: report::FileRecord::all_of(&int8)?,
        recipe: recipe.clone(),
        reduced_range,
        changes: prepared.changes.clone(),
        equalized,
        frames: report::Frames {
            calibration: spool.count(Role::Calibration),
            held_out: spool.count(Role::HeldOut),
            empty,
            sha256: spool.hash(),
            list: spool.records().to_vec(),
        },
        input: input_read,
        layers: layer_reports(
            graph,
            &quantization,
            &multiplications,
            &checked.kernels,
            recipe,
        )?,
        tensors: quantization
            .plan
            .groups
            .iter()
            .zip(&extremes)
            .zip(&histograms)
            .zip(&choices)
            .zip(&quantization.activations)
            .map(|((((group, seen), histogram), choice), quantizer)| {
                let energy = histogram
                    .energy(recipe.activations.search.p)
                    .max(f64::MIN_POSITIVE);
                report::TensorReport {
                    tensors: group.tensors.clone(),
                    bits: group.bits,
                    seen: *seen,
                    max_min: choice.max_min,
                    chosen: choice.chosen,
                    learned: (*quantizer != choice.chosen).then_some(*quantizer),
                    clip: choice.ratio(),
                    error_max_min: choice.error_max_min / energy,
                    error_chosen: choice.error_chosen / energy,
                }
            })
            .collect(),
        sensitivity,
        promoted,
        reconstruction: outcomes,
        float_layers: quantization.plan.float_layers.clone(),
        check: checked,
        cost: report::Cost {
            seconds: start.elapsed().as_secs_f64(),
            stages: clock.laps,
            peak_memory: peak_memory(),
        },
    };
    let json = serde_json::to_string_pretty(&report).map_err(|e| PtqError::Io {
        action: "write the report of",
        path: out.to_owned(),
        source: e.into(),
    })?;
    work.write(report::JSON_FILE, json.as_bytes())?;
    work.write(report::TEXT_FILE, report.summary().as_bytes())?;
    work.write(report::PAGE_FILE, report.page().as_bytes())?;
    go_on(progress)?;
    work.finish(out)?;
    progress.update(Stage::Check, 1.0, &report.check.verdict.headline());
    Ok(report)
}

/// Refuses a float32 copy whose maps are not those of the graph that it was made of.
fn compare_copy(
    graph: &Model,
    from: &[String],
    input: &str,
    detector: &mut Detector,
    options: &RuntimeOptions,
) -> Result<(), PtqError> {
    // Of a map's largest value. Halves are exact to a thousandth per operator, bfloat16 to a hundredth.
    let allowed = match from.iter().any(|t| t == "bfloat16") {
        true => 0.1,
        false => 0.02,
    };
    let heads = heads(detector.description(), graph)?;
    let names: Vec<String> = heads.iter().map(|(_, name)| name.clone()).collect();
    let spatial = detector.spatial_features(&anything(detector.description()))?;
    let expected = detector.heads(&spatial)?;
    let mut copy = Observer::new(graph, input, &names, options)?;
    let differences: Vec<f32> = copy.run(&spatial, |views| {
        let maps = std::iter::zip(expected.iter(), views);
        maps.map(|((_, map), view)| {
            let largest = map.iter().fold(1e-3f32, |most, v| most.max(v.abs()));
            let pairs = std::iter::zip(map, view.values);
            pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
        })
        .collect()
    })?;
    for ((head, _), difference) in heads.into_iter().zip(differences) {
        if difference.is_nan() || difference > allowed {
            return Err(PtqError::Copy {
                file: graph.file().to_owned(),
                from: from.join(" and "),
                head,
                difference,
            });
        }
    }
    tracing::info!(
        "{} is {}; quantization starts from a float32 copy of it",
        graph.file().display(),
        from.join(" and ")
    );
    Ok(())
}

/// A cloud with points in many pillars of a grid, the same each time.
fn anything(model: &ModelDescription) -> Points {
    let grid = &model.grid;
    // Steps by irrational shares fill the range evenly and never repeat.
    let at = |i: usize, step: f32, axis: usize| {
        let share = (i as f32 * step).fract();
        grid.min[axis] + share * (grid.max[axis] - grid.min[axis])
    };
    let point = |i: usize| Point {
        x: at(i, 0.618_034, 0),
        y: at(i, 0.414_214, 1),
        z: at(i, 0.732_051, 2),
        ..Point::default()
    };
    Points((0..5000).map(point).collect())
}

/// The graph with channels of like ranges over the first calibration frames, and what was scaled.
fn equalized_graph(
    graph: &Model,
    input: &str,
    detector: &mut Detector,
    spool: &mut Spool,
    options: &RuntimeOptions,
    wish: &Equalization,
    progress: &mut dyn Progress,
) -> Result<(Model, Vec<report::Equalized>), PtqError> {
    let sources = equalize::sources(graph);
    let names: Vec<String> = sources.iter().map(|s| s.tensor.clone()).collect();
    let mut largest: Vec<Vec<f32>> = vec![Vec::new(); sources.len()];
    let mut observer = Observer::new(graph, input, &names, options)?;
    progress.update(
        Stage::Weights,
        Stage::Weights.overall(0.0),
        "ranges of the channels",
    );
    spool.for_each(Role::Calibration, |index, sample| {
        go_on(progress)?;
        if index >= wish.frames {
            return Ok(());
        }
        let spatial = detector.spatial_features(&sample.points)?;
        observer.run(&spatial, |views| {
            for (largest, view) in largest.iter_mut().zip(views) {
                let channels = view.shape.get(1).map_or(1, |&c| c.max(1) as usize);
                largest.resize(channels, 0.0);
                let area = (view.values.len() / channels).max(1);
                for (most, plane) in largest.iter_mut().zip(view.values.chunks(area)) {
                    *most = plane.iter().fold(*most, |m, v| m.max(v.abs()));
                }
            }
        })
    })?;
    let (model, factors) = equalize::equalize(graph, &sources, &largest, wish)?;
    let found = names
        .into_iter()
        .zip(factors)
        .map(|(tensor, factors)| report::Equalized {
            tensor,
            least: factors.iter().copied().fold(f32::MAX, f32::min),
            most: factors.iter().copied().fold(0.0, f32::max),
        })
        .collect();
    Ok((model, found))
}

/// Parts of the calibration frames' maps, see [`reconstruct::crops`].
struct Windows {
    /// `[windows, channels, y, x]`
    maps: Array4<f32>,
    /// Cells of the maps, at each side, whose context is cut off.
    margin: usize,
}

/// Cuts windows out of the maps of the calibration frames.
fn windows(
    detector: &mut Detector,
    spool: &mut Spool,
    settings: &Reconstruction,
    stride: usize,
    progress: &mut dyn Progress,
) -> Result<Windows, PtqError> {
    let [channels, rows, columns] = detector.input_shape();
    let whole = settings.crops.size == 0 || settings.crops.size >= rows.min(columns);
    let (size, margin) = if whole {
        ([rows, columns], 0)
    } else {
        let size = settings.crops.size.next_multiple_of(stride);
        ([size.min(rows), size.min(columns)], settings.crops.margin)
    };
    let window = crops::Window {
        size: size[0].max(size[1]),
        align: stride,
        margin,
    };
    let scale = detector.description().head.heatmap;
    let cell = detector.description().grid.downsample;
    let mut data: Vec<f32> = Vec::new();
    let mut count = 0;
    let total = spool.count(Role::Calibration);
    spool.for_each(Role::Calibration, |index, sample| {
        go_on(progress)?;
        if count >= settings.crops.max {
            return Ok(());
        }
        let spatial = detector.spatial_features(&sample.points)?;
        let corners = if whole {
            vec![[0, 0]]
        } else {
            let maps = detector.heads(&spatial)?;
            let (_, _, map_rows, map_columns) = maps.heatmap.dim();
            let scores: Vec<f32> = maps.heatmap.iter().map(|&v| scale.probability(v)).collect();
            let threshold = settings.positives.threshold;
            let peaks = positives::peaks(&scores, [map_rows, map_columns], threshold, 0);
            let centre = |i: usize| i * cell + cell / 2;
            let cells: Vec<crops::Corner> = peaks
                .iter()
                .map(|p| [centre(p / map_columns), centre(p % map_columns)])
                .collect();
            let mut occupied = vec![false; rows * columns];
            for plane in spatial.index_axis(Axis(0), 0).axis_iter(Axis(0)) {
                for (occupied, &v) in occupied.iter_mut().zip(plane) {
                    *occupied |= v != 0.0;
                }
            }
            crops::choose(
                [rows, columns],
                &occupied,
                &cells,
                window,
                settings.crops.per_frame,
            )
        };
        for [y, x] in corners {
            if count < settings.crops.max {
                data.extend(spatial.slice(s![0, .., y..y + size[0], x..x + size[1]]));
                count += 1;
            }
        }
        let detail = format!("windows, frame {} of {total}", index + 1);
        // Before whatever uses them, so that the share of the whole does not fall.
        progress.update(Stage::Search, Stage::Search.overall(1.0), &detail);
        Ok::<_, PtqError>(())
    })?;
    if count == 0 {
        return Err(PtqError::OnlyEmptyFrames { count: total });
    }
    let maps = Array4::from_shape_vec((count, channels, size[0], size[1]), data)
        .expect("every window has the same shape");
    Ok(Windows { maps, margin })
}

/// The graph output of each head.
fn heads(model: &ModelDescription, graph: &Model) -> Result<Vec<(Head, String)>, OnnxError> {
    let outputs = graph.output_names();
    model
        .backbone
        .outputs
        .iter()
        .map(|(head, tensor)| {
            let name = match tensor {
                TensorName::Name(name) => Some(name),
                TensorName::Index(index) => outputs.get(*index),
            };
            name.filter(|n| outputs.contains(n))
                .map(|n| (head, n.clone()))
                .ok_or_else(|| graph.graph_error(format!("it has no output {tensor} for {head}")))
        })
        .collect()
}

/// A hash over all that the reconstruction depends on: finished blocks of another run are of use only if it is the same.
fn key(
    model: &ModelDescription,
    recipe: &Recipe,
    target: Target,
    spool: &Spool,
) -> Result<String, PtqError> {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update(part);
        hash.update([0]);
    };
    add(env!("CARGO_PKG_VERSION"));
    add(&format!("{recipe:?}"));
    add(&target.to_string());
    // The recipe may leave it to the machine.
    add(&recipe.target(target).reduce_range.applies().to_string());
    add(runtime::init()?.version());
    add(&spool.hash());
    add(&model.behaviour().to_string());
    for file in report::FileRecord::all_of(model)? {
        add(&file.sha256);
    }
    Ok(hex(&hash.finalize()))
}

/// Copies the frames to disk and splits them.
fn spool_frames<F, E>(
    source: Source<impl Iterator<Item = Result<F, E>>, impl FnOnce() -> Result<Told, PtqError>>,
    recipe: &Recipe,
    work: &Workplace,
    progress: &mut dyn Progress,
) -> Result<(Spool, usize, Told), PtqError>
where
    F: Into<Sample>,
    E: std::error::Error + Send + Sync + 'static,
{
    let settings = &recipe.frames;
    let mut spool = Spool::new(&work.parent)?;
    let mut empty = 0;
    let Source { frames, told } = source;
    for (index, frame) in frames.enumerate() {
        go_on(progress)?;
        let sample: Sample = frame
            .map_err(|e| PtqError::Frame {
                index,
                source: Box::new(e),
            })?
            .into();
        if sample.points.0.is_empty() {
            empty += 1;
            continue;
        }
        let used = spool.records().len();
        let by_recipe = match settings.held_out(used) {
            true => Role::HeldOut,
            false => Role::Calibration,
        };
        let role = sample.role.unwrap_or(by_recipe);
        spool.push(&sample, role)?;
        let part = (used + 1) as f64 / settings.max as f64;
        progress.update(
            Stage::Frames,
            Stage::Frames.overall(part),
            &format!("frame {}", used + 1),
        );
        if used + 1 == settings.max {
            break;
        }
    }
    let told = told()?;
    let (calibration, held_out) = (spool.count(Role::Calibration), spool.count(Role::HeldOut));
    if calibration + held_out == 0 && empty > 0 {
        return Err(PtqError::OnlyEmptyFrames { count: empty });
    }
    if calibration < settings.min_calibration || held_out < settings.min_held_out {
        return Err(PtqError::TooFewFrames {
            calibration,
            held_out,
            empty,
            min_calibration: settings.min_calibration,
            min_held_out: settings.min_held_out,
        });
    }
    Ok((spool, empty, told))
}

fn layer_reports(
    graph: &Model,
    quantization: &Quantization,
    multiplications: &[u64],
    kernels: &Kernels,
    recipe: &Recipe,
) -> Result<Vec<report::LayerReport>, PtqError> {
    let p = recipe.weights.search.p;
    quantization
        .plan
        .layers
        .iter()
        .zip(&quantization.weights)
        .zip(multiplications)
        .map(|((layer, weights), &multiplications)| {
            let float = graph.initializer_f32(&layer.weight)?.data;
            let energy: f64 = float.iter().map(|&w| f64::from(w).abs().powf(p)).sum();
            let energy = energy.max(f64::MIN_POSITIVE);
            let ratios: Vec<f32> = weights.channels.iter().map(ranges::Choice::ratio).collect();
            let mean = ratios.iter().sum::<f32>() / ratios.len().max(1) as f32;
            let levels = weights
                .channels
                .first()
                .map_or(127, |c| c.chosen.levels.max);
            Ok(report::LayerReport {
                name: layer.name.clone(),
                op: layer.op.clone(),
                shape: weights.dims.clone(),
                axis: layer.axis,
                bits: 33 - (levels as u32).leading_zeros(),
                multiplications,
                integer_kernel: kernels.integer_layers.contains(&layer.name),
                error_max_min: weights
                    .channels
                    .iter()
                    .map(|c| c.error_max_min)
                    .sum::<f64>()
                    / energy,
                error_chosen: weights.channels.iter().map(|c| c.error_chosen).sum::<f64>() / energy,
                clip: [
                    ratios.iter().copied().fold(f32::INFINITY, f32::min),
                    mean,
                    ratios.iter().copied().fold(0.0, f32::max),
                ],
                scales: weights.scales(),
            })
        })
        .collect()
}

/// The folder under a temporary name; dropped unfinished, it goes. One left by a process that was killed goes when
/// the next quantization starts in the same place: its lock is free then.
struct Workplace {
    parent: PathBuf,
    folder: tempfile::TempDir,
    /// Held as long as the folder is in use.
    _lock: std::fs::File,
}

/// The file that a quantization holds locked in its unfinished folder.
const LOCK: &str = "centerpoint_ptq.lock";

/// Removes unfinished folders in `parent` that nobody holds any more.
fn sweep(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with('.') && name.ends_with(".partial")) {
            continue;
        }
        // Without a lock file it is not ours, or only just being made.
        let Ok(lock) = std::fs::File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            match std::fs::remove_dir_all(entry.path()) {
                Ok(()) => tracing::info!("removed {name}, left by a quantization that was killed"),
                Err(e) => tracing::warn!("cannot remove {name}: {e}"),
            }
        }
    }
}

impl Workplace {
    fn new(out: &Path) -> Result<Self, PtqError> {
        let taken = match std::fs::read_dir(out) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => out.exists(),
        };
        if taken {
            return Err(PtqError::OutputExists {
                path: out.to_owned(),
            });
        }
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        std::fs::create_dir_all(&parent).map_err(|source| PtqError::Io {
            action: "create the folder",
            path: parent.clone(),
            source,
        })?;
        sweep(&parent);
        let name = out
            .file_name()
            .map_or("model".into(), |n| n.to_string_lossy());
        let folder = tempfile::Builder::new()
            .prefix(&format!(".{name}-"))
            .suffix(".partial")
            .tempdir_in(&parent)
            .map_err(|source| PtqError::Io {
                action: "write in",
                path: parent.clone(),
                source,
            })?;
        let path = folder.path().join(LOCK);
        let fail = |source| PtqError::Io {
            action: "lock",
            path: path.clone(),
            source,
        };
        let lock = std::fs::File::create(&path).map_err(fail)?;
        lock.lock().map_err(fail)?;
        Ok(Workplace {
            parent,
            folder,
            _lock: lock,
        })
    }

    /// Where a file of the float model goes: all files lie flat in the folder.
    fn path(&self, file: &Path) -> PathBuf {
        self.folder
            .path()
            .join(file.file_name().unwrap_or(file.as_os_str()))
    }

    /// Where finished blocks are kept until the model is: `.<name>.resume` beside it.
    fn checkpoint(&self, out: &Path, key: &str) -> Result<Checkpoint, PtqError> {
        let name = out
            .file_name()
            .map_or("model".into(), |n| n.to_string_lossy());
        let folder = self.parent.join(format!(".{name}.resume"));
        Checkpoint::open(&folder, key).map_err(|source| PtqError::Io {
            action: "keep finished blocks in",
            path: folder,
            source,
        })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PtqError> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).map_err(|source| PtqError::Io {
            action: "write",
            path,
            source,
        })
    }

    fn finish(self, out: &Path) -> Result<(), PtqError> {
        let fail = |action: &'static str, source| PtqError::Io {
            action,
            path: out.to_owned(),
            source,
        };
        // Temporary folders are private; a model is for everyone who may read the place it lies in.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let open = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(self.folder.path(), open).map_err(|e| fail("open up", e))?;
        }
        std::fs::remove_file(self.folder.path().join(LOCK)).map_err(|e| fail("unlock", e))?;
        // On disk before it gets its name, so that a power cut cannot leave a named but empty model.
        let entries = std::fs::read_dir(self.folder.path()).map_err(|e| fail("list", e))?;
        for entry in entries {
            let entry = entry.map_err(|e| fail("list", e))?;
            std::fs::File::open(entry.path())
                .and_then(|f| f.sync_all())
                .map_err(|e| fail("sync", e))?;
        }
        std::fs::rename(self.folder.path(), out).map_err(|e| fail("name", e))?;
        // It has another name now; there is nothing left to remove.
        let _ = self.folder.keep();
        Ok(())
    }
}

/// Refuses to go on where the float model is another one by now: it is read more than once.
fn same_float(model: &ModelDescription, loaded: &[report::FileRecord]) -> Result<(), PtqError> {
    let now = report::FileRecord::all_of(model)?;
    match now.iter().zip(loaded).find(|(now, loaded)| now != loaded) {
        Some((file, _)) => Err(PtqError::FloatChanged {
            path: model.folder.join(&file.file),
        }),
        None => Ok(()),
    }
}

/// Copies the encoder and writes the description.
fn write_description(
    model: &ModelDescription,
    work: &Workplace,
) -> Result<ModelDescription, PtqError> {
    let from = model.encoder_path();
    let to = work.path(&model.encoder.file);
    let encoder = Model::load(&from)?;
    let bytes = std::fs::read(&from).map_err(|source| PtqError::Io {
        action: "read",
        path: from.clone(),
        source,
    })?;
    // Byte by byte, unless its tensors lie in files beside it.
    let alone = Model::decode(&bytes, &from).is_ok_and(|m| m == encoder);
    let bytes = if alone { bytes } else { encoder.encode() };
    std::fs::write(&to, bytes).map_err(|source| PtqError::Io {
        action: "write",
        path: to.clone(),
        source,
    })?;
    let mut int8 = model.clone();
    int8.name = format!("{}_int8", model.name);
    int8.precision = Precision::Int8;
    int8.folder = work.folder.path().to_owned();
    let file_name = |p: &Path| PathBuf::from(p.file_name().unwrap_or(p.as_os_str()));
    int8.encoder.file = file_name(&model.encoder.file);
    int8.backbone.file = file_name(&model.backbone.file);
    int8.save(&work.folder.path().join("model.yaml"))?;
    Ok(int8)
}

/// Seconds per stage.
struct Clock {
    last: Instant,
    laps: Vec<(String, f64)>,
}

impl Default for Clock {
    fn default() -> Self {
        Clock {
            last: Instant::now(),
            laps: Vec::new(),
        }
    }
}

impl Clock {
    fn lap(&mut self, stage: &str) {
        let now = Instant::now();
        self.laps
            .push((stage.to_owned(), (now - self.last).as_secs_f64()));
        self.last = now;
    }
}

/// Name of the processor, or of its architecture where the system does not say.
fn machine() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
        .map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!("{name}, {threads} threads")
}

/// Largest resident memory so far, bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
