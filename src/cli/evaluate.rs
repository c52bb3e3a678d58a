//! `centerpoint_ptq evaluate`: score a model against ground truth, or two models against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use serde::Serialize;

use super::columns::{number as cell, table};
use super::detect::RuntimeArgs;
use super::input::{Intake, SensorPose, Strictness, insert_unique, load_model, parse_pose};
use super::numbers::{FRAMES, within};
use super::output::{check_file, write_whole};
use super::{Ended, terminal};
use crate::cloud::Points;
use crate::cloud::condition::Condition;
use crate::cloud::frames::{Frame, InputOptions};
use crate::cloud::summary::InputSummary;
use crate::detector::{Detector, DetectorError, ModelDescription, decode};
use crate::eval::boxes::BoxesFile;
use crate::eval::stamps::{Pairing, TOLERANCE_NS};
use crate::eval::truth::{ClassMap, Labels};
use crate::eval::{
    Agreement, AgreementCell, AgreementOptions, Bands, Difference, DifferenceOptions, EvalOptions,
    Evaluation, FrameResult, Scores, agreement, bootstrap_difference, evaluate,
};
use crate::geometry::{Detection, pose_from_xyz_rpy};
use crate::ptq::check::{Verdict, judge};
use crate::ptq::recipe::{Gate, Recipe};

#[derive(clap::Args)]
pub struct Args {
    /// Model description (model.yaml) or the folder that holds it; needs --bag
    #[arg(
        long,
        value_name = "YAML",
        requires = "bag",
        conflicts_with = "detections"
    )]
    model: Option<PathBuf>,
    /// A second model, to compare with the first; it sees the same frames
    #[arg(long, value_name = "YAML", requires = "model")]
    model2: Option<PathBuf>,
    /// Detections to score instead of a model's: a file of `detect`. Its score threshold cuts the
    /// tail of the precision-recall curve, which --model does not
    #[arg(long, value_name = "JSON", required_unless_present = "model")]
    detections: Option<PathBuf>,
    /// Detections of a second model, to compare with the first
    #[arg(long, value_name = "JSON", requires = "detections")]
    detections2: Option<PathBuf>,
    /// Classes of the detections, where some of them were never found
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        requires = "detections"
    )]
    classes: Vec<String>,
    /// Score from which a model's detections enter the precision-recall curve, whatever its
    /// description says; the agreement of two models keeps to their descriptions
    #[arg(long, value_name = "SCORE", default_value_t = 0.05, value_parser = within::<f32>(0.0..=1.0))]
    score_threshold: f32,

    /// rosbag2 folder, .mcap or .db3 file. With --detections it only serves to count the LiDAR
    /// points on objects where the labels do not say
    #[arg(long, value_name = "PATH")]
    bag: Option<PathBuf>,
    /// Topic of the clouds; may be left out where the bag has only one
    #[arg(long)]
    topic: Option<String>,
    /// Pose of the sensor in the model's frame, instead of /tf: "x y z roll pitch yaw" in metres
    /// and radians
    #[arg(long, value_name = "POSE", value_parser = parse_pose, allow_hyphen_values = true)]
    sensor_pose: Option<SensorPose>,
    /// Frame of the detections, with --detections and --bag
    #[arg(long, value_name = "FRAME", default_value = "base_link")]
    model_frame: String,
    /// Look at the first frames only
    #[arg(long, value_name = "N", value_parser = within(FRAMES))]
    limit: Option<usize>,
    #[command(flatten)]
    strictness: Strictness,
    #[command(flatten)]
    runtime: RuntimeArgs,

    /// Ground truth in the model's frame: labels.json, a folder with one, a nuScenes key frame, or
    /// a KITTI object folder. Without it, two models are only compared with each other
    #[arg(long, value_name = "PATH")]
    truth: Option<PathBuf>,
    /// Where the labels' frame sits in the model's: "x y z roll pitch yaw" in metres and radians
    #[arg(long, value_name = "POSE", value_parser = parse_pose, allow_hyphen_values = true)]
    truth_pose: Option<SensorPose>,
    /// What labels mean to the model: VEHICLE=CAR,LARGE_VEHICLE=ignore. Labels named like a class
    /// need no rule; detections on others are false
    #[arg(long, value_name = "RULES", default_value = "")]
    class_map: String,

    /// Leave out everything at or beyond this range, metres
    #[arg(long, value_name = "M", value_parser = within::<f32>(0.0..=1e6))]
    max_range: Option<f32>,
    /// Azimuth interval that is labelled: from,to in degrees counter-clockwise from +x
    #[arg(long, value_name = "DEG,DEG", value_parser = parse_sector, allow_hyphen_values = true)]
    sector: Option<(f32, f32)>,
    /// Ignore truths with fewer LiDAR points than this
    #[arg(long, value_name = "N", default_value_t = 5)]
    min_points: u32,
    /// Inner edges of the distance bands, metres
    #[arg(long, value_name = "M,M", value_delimiter = ',', default_values_t = [30.0, 50.0])]
    bands: Vec<f32>,
    /// Resamples of the bootstrap for the difference of two models
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = within::<usize>(0..=1_000_000))]
    resamples: usize,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Frames that the bootstrap draws as one run; neighbouring sweeps are not independent
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(FRAMES))]
    block: usize,

    /// Hold the agreement of two models against the gate of this recipe; exit code 3 where it refuses the second one
    #[arg(long, value_name = "RECIPE")]
    gate: Option<PathBuf>,

    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Write the JSON to this file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Detections of one model on a recording.
struct Run {
    model: String,
    /// By stamp: everything that average precision sees, and what the model reports as deployed.
    frames: BTreeMap<i64, Found>,
    /// What a file of detections says of its own input.
    input: Option<InputSummary>,
}

struct Found {
    scored: Vec<Detection>,
    deployed: Vec<Detection>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output {
    /// Frames with labels and detections of all models.
    frames: usize,
    /// Frames with detections that nobody labelled.
    unlabelled_frames: usize,
    /// Labelled stamps that no frame has.
    labels_without_frame: usize,
    /// How frames and labels did not go together.
    #[serde(skip)]
    pairing: Option<String>,
    /// Boxes per label that mean nothing to the model.
    unmapped_labels: BTreeMap<String, usize>,
    /// What came of the clouds, where any were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<InputSummary>,
    models: Vec<ModelOutput>,
    /// Headline AP of the second model minus the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    difference: Vec<Difference>,
    /// The first model is the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
    /// What the gate says of the second model.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
}

#[derive(Serialize)]
struct ModelOutput {
    model: String,
    /// What a file of detections says of the clouds that it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<InputSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation: Option<Evaluation>,
}

fn parse_sector(text: &str) -> Result<(f32, f32), String> {
    let number = |part: &str| match part.trim().parse::<f32>() {
        Ok(degrees) if degrees.is_finite() => Ok(degrees),
        _ => Err(format!("`{part}` is not a number")),
    };
    let (from, to) = text
        .split_once(',')
        .ok_or("two angles are needed, separated by a comma")?;
    Ok((number(from)?, number(to)?))
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    let recipe = match &args.gate {
        Some(recipe) => Some(Recipe::load(recipe)?),
        None => None,
    };
    if let Some(path) = &args.out {
        check_file(path)?;
    }
    if let (Some(recipe), Some(model)) = (&recipe, &args.model) {
        // Before the frames are read.
        recipe.suits(&ModelDescription::load(model)?.classes)?;
    }
    let (classes, runs, labels, input) = match &args.model {
        Some(first) => run_models(&args, first)?,
        None => read_detections(&args)?,
    };
    if let Some(recipe) = &recipe {
        recipe.suits(&classes)?;
    }
    let gate = recipe.as_ref().map(|recipe| &recipe.gate);
    let mut output = compare(&args, &classes, &runs, labels.as_ref(), gate)?;
    output.input = input;
    if let Some(path) = &args.out {
        write_whole(path, |file| {
            Ok(serde_json::to_writer_pretty(file, &output)?)
        })?;
    }
    match args.json {
        true => terminal::print_json(&output)?,
        false => terminal::print(&tables(&output))?,
    }
    if output.verdict.is_some_and(|verdict| !verdict.accepted) {
        return Ok(Ended::Refused);
    }
    Ok(output.input.map_or(Ended::Done, |input| input.ended()))
}

type Runs = (Vec<String>, Vec<Run>, Option<Labels>, Option<InputSummary>);

/// Runs one or two models over the bag.
fn run_models(args: &Args, first: &Path) -> anyhow::Result<Runs> {
    let paths = [Some(first), args.model2.as_deref()];
    let models: Vec<ModelDescription> = paths
        .into_iter()
        .flatten()
        .map(load_model)
        .collect::<anyhow::Result<_>>()?;
    let classes = models[0].classes.clone();
    for model in &models {
        ensure!(
            model.classes == classes,
            "the models have different classes: {} and {}",
            classes.join(", "),
            model.classes.join(", ")
        );
        ensure!(
            model.frame == models[0].frame && model.points.sweeps == models[0].points.sweeps,
            "the models want different input: {} sweeps in {} and {} sweeps in {}",
            models[0].points.sweeps,
            models[0].frame,
            model.points.sweeps,
            model.frame
        );
    }
    let mut labels = load_labels(args, &classes)?;
    let mut detectors = Vec::new();
    let mut runs = Vec::new();
    for model in &models {
        detectors.push(Detector::load(model, &args.runtime.options())?);
        runs.push(Run {
            model: format!("{} ({})", model.name, model.precision),
            frames: BTreeMap::new(),
            input: None,
        });
    }
    let input = each_frame(args, models[0].input_options(), |intake, frame| {
        let (stamp, points) = (frame.stamp.0, &frame.points);
        let mut found = Vec::new();
        for (model, detector) in models.iter().zip(&mut detectors) {
            match detect_both_ways(detector, model, args.score_threshold, points) {
                Ok((by_model, conditions)) => {
                    intake.detected(&conditions);
                    found.push(by_model);
                }
                Err(error) => return Ok(intake.failed(frame.stamp, &error)?),
            }
        }
        // A frame counts where all models have seen it.
        for (run, found) in runs.iter_mut().zip(found) {
            insert_unique(&mut run.frames, stamp, found)?;
        }
        if let Some(labels) = &mut labels {
            labels.count_points(stamp, TOLERANCE_NS, points);
        }
        Ok(())
    })?;
    Ok((classes, runs, labels, Some(input)))
}

/// One inference, decoded twice: with a low threshold for average precision, and as deployed. And what
/// was odd about it.
fn detect_both_ways(
    detector: &mut Detector,
    model: &ModelDescription,
    threshold: f32,
    points: &Points,
) -> Result<(Found, Vec<Condition>), DetectorError> {
    let spatial = detector.spatial_features(points)?;
    let maps = detector.heads(&spatial)?;
    let mut open = model.clone();
    for of_class in &mut open.post.score_thresholds {
        *of_class = of_class.min(threshold);
    }
    let found = Found {
        scored: decode::decode(&maps.view(), &open),
        deployed: detector.decode(&maps),
    };
    Ok((found, detector.conditions(&maps)))
}

/// Feeds the frames of the bag, put together as `wanted`, to `take`.
fn each_frame(
    args: &Args,
    wanted: InputOptions,
    mut take: impl FnMut(&Intake, &Frame) -> anyhow::Result<()>,
) -> anyhow::Result<InputSummary> {
    let bag = args.bag.as_deref().context("give --bag")?;
    let options = InputOptions {
        topic: args.topic.clone(),
        sensor_pose: args.sensor_pose.map(|pose| pose.0),
        ..wanted
    };
    let intake = Intake::new(args.strictness);
    let frames = intake.open(bag, &options)?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let total = frames.len_hint().map_or(0, |n| n.min(limit));
    let progress = terminal::bar(ProgressBar::new(total as u64));
    for frame in frames.take(limit) {
        take(&intake, &frame?)?;
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(intake.finish()?)
}

/// Reads one or two files of detections.
fn read_detections(args: &Args) -> anyhow::Result<Runs> {
    let paths: Vec<&PathBuf> = args.detections.iter().chain(&args.detections2).collect();
    let mut files = paths
        .iter()
        .map(|path| BoxesFile::load(path))
        .collect::<Result<Vec<_>, _>>()?;
    let classes: Vec<String> = if args.classes.is_empty() {
        let names: BTreeSet<&str> = files.iter().flat_map(BoxesFile::labels).collect();
        names.into_iter().map(String::from).collect()
    } else {
        args.classes.clone()
    };
    let mut labels = load_labels(args, &classes)?;
    let mut runs = Vec::new();
    for (file, path) in files.iter_mut().zip(paths) {
        if let Some(limit) = args.limit
            && let Some(end) = file.frames.keys().nth(limit).copied()
        {
            file.frames.split_off(&end);
        }
        let input = file.input.take().filter(|input| !input.is_clean());
        for line in input.iter().flat_map(InputSummary::lines) {
            terminal::warn(&format!("{}: {line}", path.display()));
        }
        let frames = file
            .with_classes(&classes)
            .with_context(|| format!("in {}", path.display()))?
            .into_iter()
            .map(|(stamp, detections)| {
                let found = Found {
                    deployed: detections.clone(),
                    scored: detections,
                };
                (stamp, found)
            })
            .collect();
        runs.push(Run {
            model: path.display().to_string(),
            frames,
            input,
        });
    }
    let mut input = None;
    if let (Some(labels), Some(_)) = (&mut labels, &args.bag) {
        let wanted = InputOptions {
            model_frame: Some(args.model_frame.clone()),
            ..InputOptions::default()
        };
        input = Some(each_frame(args, wanted, |_, frame| {
            labels.count_points(frame.stamp.0, TOLERANCE_NS, &frame.points);
            Ok(())
        })?);
    }
    Ok((classes, runs, labels, input))
}

fn load_labels(args: &Args, classes: &[String]) -> anyhow::Result<Option<Labels>> {
    let Some(path) = &args.truth else {
        return Ok(None);
    };
    let map = ClassMap::new(classes, &args.class_map)?;
    let mut labels = Labels::load(path, &map)?;
    if let Some(SensorPose([x, y, z, roll, pitch, yaw])) = args.truth_pose {
        labels.transform(&pose_from_xyz_rpy([x, y, z], [roll, pitch, yaw]));
    }
    Ok(Some(labels))
}

fn compare(
    args: &Args,
    classes: &[String],
    runs: &[Run],
    labels: Option<&Labels>,
    gate: Option<&Gate>,
) -> anyhow::Result<Output> {
    if labels.is_none() && runs.len() == 1 {
        bail!("nothing to compare with: give --truth or a second model");
    }
    let options = EvalOptions {
        bands: Bands::new(&args.bands),
        max_range: args.max_range,
        sector: args.sector,
        min_points: args.min_points,
        ..EvalOptions::default()
    };

    // Frames that all models have seen, with their labels.
    let shared: Vec<i64> = runs[0]
        .frames
        .keys()
        .copied()
        .filter(|stamp| runs.iter().all(|r| r.frames.contains_key(stamp)))
        .collect();
    ensure!(
        runs.iter().all(|r| r.frames.len() == shared.len()),
        "the models were run on different frames: {} in common of {}",
        shared.len(),
        runs.iter()
            .map(|r| r.frames.len().to_string())
            .collect::<Vec<_>>()
            .join(" and ")
    );
    let mut results: Vec<Vec<FrameResult>> = runs.iter().map(|_| Vec::new()).collect();
    let pairing = labels.map(|labels| {
        let labelled = labels.frames().map(|(stamp, _)| stamp);
        Pairing::new(shared.iter().copied(), labelled)
    });
    let problem = pairing
        .as_ref()
        .and_then(|pairing| pairing.problem("labels"));
    if let (Some(pairing), Some(truth)) = (&pairing, &args.truth) {
        ensure!(
            pairing.matched > 0,
            "{}: {}",
            truth.display(),
            problem.as_deref().unwrap_or("there are no frames")
        );
    }
    if let Some(labels) = labels {
        for stamp in &shared {
            let Some((_, truths)) = labels.nearest(*stamp, TOLERANCE_NS) else {
                continue;
            };
            for (run, result) in runs.iter().zip(&mut results) {
                result.push(FrameResult {
                    detections: run.frames[stamp].scored.clone(),
                    truths: truths.to_vec(),
                });
            }
        }
    }
    let frames = if labels.is_some() {
        results[0].len()
    } else {
        shared.len()
    };
    let difference = match (labels, &results[..]) {
        (Some(_), [a, b]) => bootstrap_difference(
            a,
            b,
            classes,
            &options,
            &DifferenceOptions {
                resamples: args.resamples,
                seed: args.seed,
                block: args.block,
                ..DifferenceOptions::default()
            },
        )?,
        _ => Vec::new(),
    };
    ensure!(
        gate.is_none() || runs.len() == 2,
        "--gate compares two models; name the second one, too"
    );
    let agreement = match runs {
        [a, b] => {
            let deployed = |run: &Run| -> Vec<Vec<Detection>> {
                shared
                    .iter()
                    .map(|stamp| run.frames[stamp].deployed.clone())
                    .collect()
            };
            let how = match gate {
                Some(gate) => gate.pairing.clone(),
                None => AgreementOptions {
                    bands: options.bands.clone(),
                    ..AgreementOptions::default()
                },
            };
            Some(agreement(&deployed(a), &deployed(b), classes, &how))
        }
        _ => None,
    };
    Ok(Output {
        frames,
        unlabelled_frames: pairing.as_ref().map_or(0, Pairing::idle_frames),
        labels_without_frame: pairing.as_ref().map_or(0, |pairing| pairing.idle_labels),
        pairing: problem,
        unmapped_labels: labels.map_or_else(BTreeMap::new, |l| {
            l.unmapped()
                .into_iter()
                .map(|(label, count)| (label.to_string(), count))
                .collect()
        }),
        input: None,
        models: runs
            .iter()
            .zip(&results)
            .map(|(run, result)| ModelOutput {
                model: run.model.clone(),
                input: run.input.clone(),
                evaluation: labels
                    .is_some()
                    .then(|| evaluate(result, classes, &options)),
            })
            .collect(),
        difference,
        verdict: gate.and_then(|gate| Some(judge(agreement.as_ref()?, gate))),
        agreement,
    })
}

fn strings<const N: usize>(entries: [&str; N]) -> Vec<String> {
    entries.map(str::to_string).to_vec()
}

fn tables(output: &Output) -> String {
    let mut text = String::new();
    for model in &output.models {
        if let Some(evaluation) = &model.evaluation {
            text += &format!("{}: {} frames\n", model.model, output.frames);
            text += &evaluation_table(evaluation);
            text.push('\n');
        }
    }
    if !output.difference.is_empty() {
        text += "AP at 2 m, second model minus first, with 95 % bootstrap interval over frames\n";
        let mut rows = vec![strings([
            "class",
            "first",
            "second",
            "difference",
            "from",
            "to",
        ])];
        rows.extend(output.difference.iter().map(|d| {
            let signed = |v: f64| format!("{v:+.4}");
            vec![
                d.class.clone(),
                cell(Some(d.ap_a)),
                cell(Some(d.ap_b)),
                signed(d.difference),
                signed(d.lower),
                signed(d.upper),
            ]
        }));
        text += &table(&rows);
        text.push('\n');
    }
    if let Some(agreement) = &output.agreement {
        text += &agreement_table(agreement);
    }
    if let Some(verdict) = &output.verdict {
        text += match verdict.accepted {
            true => "\nThe gate accepts the second model.\n",
            false => "\nThe gate refuses the second model.\n",
        };
        text += &verdict.text();
        text.push('\n');
    }
    if let Some(problem) = &output.pairing {
        text += &format!("{problem}\n");
    }
    for line in output.input.iter().flat_map(InputSummary::lines) {
        text += &format!("{line}\n");
    }
    if !output.unmapped_labels.is_empty() {
        let names: Vec<String> = output
            .unmapped_labels
            .iter()
            .map(|(label, count)| format!("{label} ({count})"))
            .collect();
        text += &format!(
            "labels that mean nothing to the model (see --class-map): {}\n",
            names.join(", ")
        );
    }
    text
}

fn evaluation_table(evaluation: &Evaluation) -> String {
    let options = &evaluation.options;
    let mut text = format!(
        "AP: {} at {} m; truths with fewer than {} points are ignored{}\n",
        evaluation.definitions.ap,
        options.headline,
        options.min_points,
        options
            .max_range
            .map_or(String::new(), |m| format!("; within {m} m"))
    );
    let mut header = strings(["class", "band", "truths", "AP"]);
    if let Some(class) = evaluation.classes.first() {
        header.extend(class.all.at.iter().map(|a| format!("AP@{}", a.distance)));
    }
    header.extend(strings([
        "AP nuSc.", "recall", "ATE m", "ASE", "AOE rad", "AVE m/s",
    ]));
    let mut rows = vec![header];
    let row = |class: &str, scores: &Scores| {
        let recall = scores
            .at
            .iter()
            .find(|a| a.distance == options.headline)
            .and_then(|a| a.recall);
        let mut row = vec![
            class.to_string(),
            scores.band.clone(),
            scores.truths.to_string(),
            cell(scores.ap),
        ];
        row.extend(scores.at.iter().map(|a| cell(a.ap)));
        row.extend([
            cell(scores.ap_nuscenes),
            cell(recall),
            cell(scores.errors.translation),
            cell(scores.errors.scale),
            cell(scores.errors.orientation),
            cell(scores.errors.velocity),
        ]);
        row
    };
    for class in &evaluation.classes {
        rows.push(row(&class.class, &class.all));
        let with_truths = class.bands.iter().filter(|b| b.truths > 0);
        rows.extend(with_truths.map(|b| row("", b)));
    }
    text += &table(&rows);
    text += &format!(
        "mean AP {}, mean nuScenes AP {}\n",
        cell(evaluation.mean_ap),
        cell(evaluation.mean_ap_nuscenes)
    );
    text
}

fn agreement_table(agreement: &Agreement) -> String {
    let mut text = format!(
        "Agreement of the second model with the first, at their own thresholds, {} frames\n",
        agreement.frames
    );
    let mut rows = vec![strings([
        "class", "band", "matched", "missed", "extra", "F1", "centre m", "p95", "size m",
        "yaw rad", "score",
    ])];
    let row = |class: &str, c: &AgreementCell| {
        vec![
            class.to_string(),
            c.band.clone(),
            c.matched.to_string(),
            c.missed.to_string(),
            c.extra.to_string(),
            cell(c.f1),
            cell(c.centre.map(|s| s.mean)),
            cell(c.centre.map(|s| s.p95)),
            cell(c.size.map(|s| s.mean)),
            cell(c.yaw.map(|s| s.mean)),
            cell(c.score.map(|s| s.mean)),
        ]
    };
    rows.push(row("total", &agreement.total));
    rows.extend(agreement.bands.iter().map(|c| row("", c)));
    for class in &agreement.classes {
        rows.push(row(&class.class, &class.all));
    }
    text += &table(&rows);
    if agreement.relabelled > 0 {
        text += &format!(
            "{} missed boxes were found under another class\n",
            agreement.relabelled
        );
    }
    text
}
