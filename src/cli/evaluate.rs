//! `centerpoint_ptq evaluate`: score a model against ground truth, or two models against each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::eval::boxes::{BoxesFile, BoxesFrame};
use crate::eval::truth::{ClassMap, Labels};
use crate::eval::{
    Agreement, AgreementCell, AgreementOptions, Bands, Difference, DifferenceOptions, EvalOptions,
    Evaluation, FrameResult, Scores, agreement, bootstrap_difference, evaluate,
};
use crate::geometry::{Detection, pose_from_xyz_rpy};

/// Frames of labels and detections belong together if their stamps are no farther apart.
const STAMP_TOLERANCE_NS: u64 = 1_000_000;

#[derive(clap::Args)]
pub struct Args {
    /// Detections to score: a file that `detect` or `evaluate --save` wrote
    #[arg(long, value_name = "JSON")]
    detections: Option<PathBuf>,
    /// Detections of a second model, to compare with the first
    #[arg(long, value_name = "JSON", requires = "detections")]
    detections2: Option<PathBuf>,

    /// Ground truth in the model's frame: labels.json, a folder with one, a nuScenes key frame, or
    /// a KITTI object folder. Without it, two models are only compared with each other
    #[arg(long, value_name = "PATH")]
    truth: Option<PathBuf>,
    /// Where the labels' frame sits in the model's: x,y,z,roll,pitch,yaw (metres, radians)
    #[arg(long, value_name = "POSE", value_parser = parse_pose, allow_hyphen_values = true)]
    truth_pose: Option<[f64; 6]>,
    /// What labels mean to the model: VEHICLE=CAR,LARGE_VEHICLE=ignore. Labels named like a class
    /// need no rule; detections on others are false
    #[arg(long, value_name = "RULES", default_value = "")]
    class_map: String,

    /// Leave out everything at or beyond this range, metres
    #[arg(long, value_name = "M")]
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

    /// Look at the first frames only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Resamples of the bootstrap for the difference of two models
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Frames that the bootstrap draws as one run; neighbouring sweeps are not independent
    #[arg(long, value_name = "N", default_value_t = 1)]
    block: usize,

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
    classes: Vec<String>,
    /// By stamp: everything that average precision sees, and what the model reports as deployed.
    frames: BTreeMap<i64, Found>,
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
    /// Boxes per label that mean nothing to the model.
    unmapped_labels: BTreeMap<String, usize>,
    models: Vec<ModelOutput>,
    /// Headline AP of the second model minus the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    difference: Vec<Difference>,
    /// The first model is the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
}

#[derive(Serialize)]
struct ModelOutput {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation: Option<Evaluation>,
}

fn parse_numbers(text: &str, count: usize) -> Result<Vec<f64>, String> {
    let numbers: Vec<f64> = text
        .split([',', ' '])
        .filter(|t| !t.is_empty())
        .map(|t| t.parse().map_err(|e| format!("`{t}`: {e}")))
        .collect::<Result<_, _>>()?;
    if numbers.len() != count || !numbers.iter().all(|n| n.is_finite()) {
        return Err(format!("expected {count} finite numbers"));
    }
    Ok(numbers)
}

fn parse_pose(text: &str) -> Result<[f64; 6], String> {
    let numbers = parse_numbers(text, 6)?;
    numbers
        .try_into()
        .map_err(|_| "expected 6 numbers".to_string())
}

fn parse_sector(text: &str) -> Result<(f32, f32), String> {
    let numbers = parse_numbers(text, 2)?;
    Ok((numbers[0] as f32, numbers[1] as f32))
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let runs = load_runs(&args)?;
    let output = compare(&args, &runs)?;
    let json = serde_json::to_string_pretty(&output)?;
    if let Some(path) = &args.out {
        std::fs::write(path, &json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        println!("{json}");
    } else {
        print!("{}", tables(&output));
    }
    Ok(())
}

fn load_runs(args: &Args) -> anyhow::Result<Vec<Run>> {
    let files = args.detections.iter().chain(&args.detections2);
    let runs: Vec<Run> = files
        .map(|path| anyhow::Ok(run_of_file(BoxesFile::load(path)?, args.limit)))
        .collect::<Result<_, _>>()?;
    ensure!(!runs.is_empty(), "nothing to score: give --detections");
    Ok(runs)
}

fn run_of_file(file: BoxesFile, limit: Option<usize>) -> Run {
    let frames = file
        .frames
        .into_iter()
        .take(limit.unwrap_or(usize::MAX))
        .map(
            |BoxesFrame {
                 stamp, detections, ..
             }| {
                let found = Found {
                    deployed: detections.clone(),
                    scored: detections,
                };
                (stamp, found)
            },
        )
        .collect();
    Run {
        model: file.model,
        classes: file.classes,
        frames,
    }
}

fn load_labels(args: &Args, classes: &[String]) -> anyhow::Result<Option<Labels>> {
    let Some(path) = &args.truth else {
        return Ok(None);
    };
    let map = ClassMap::new(classes, &args.class_map)?;
    let mut labels = Labels::load(path, &map)?;
    if let Some([x, y, z, roll, pitch, yaw]) = args.truth_pose {
        labels.transform(&pose_from_xyz_rpy([x, y, z], [roll, pitch, yaw]));
    }
    Ok(Some(labels))
}

fn compare(args: &Args, runs: &[Run]) -> anyhow::Result<Output> {
    let classes = &runs[0].classes;
    for run in runs {
        ensure!(
            run.classes == *classes,
            "the models have different classes: {} and {}",
            classes.join(", "),
            run.classes.join(", ")
        );
    }
    let labels = load_labels(args, classes)?;
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
    let mut unlabelled = 0;
    if let Some(labels) = &labels {
        for stamp in &shared {
            let Some((_, truths)) = labels.nearest(*stamp, STAMP_TOLERANCE_NS) else {
                unlabelled += 1;
                continue;
            };
            for (run, result) in runs.iter().zip(&mut results) {
                result.push(FrameResult {
                    detections: run.frames[stamp].scored.clone(),
                    truths: truths.to_vec(),
                });
            }
        }
        ensure!(
            unlabelled < shared.len(),
            "none of the {} frames with detections has labels: the first is at {} ns, the labels \
             start at {} ns",
            shared.len(),
            shared.first().copied().unwrap_or_default(),
            labels.frames().next().map_or(0, |(stamp, _)| stamp)
        );
    }
    let frames = if labels.is_some() {
        results[0].len()
    } else {
        shared.len()
    };
    let difference = match (&labels, &results[..]) {
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
    let agreement = match runs {
        [a, b] => {
            let deployed = |run: &Run| -> Vec<Vec<Detection>> {
                shared
                    .iter()
                    .map(|stamp| run.frames[stamp].deployed.clone())
                    .collect()
            };
            let how = AgreementOptions {
                bands: options.bands.clone(),
                ..AgreementOptions::default()
            };
            Some(agreement(&deployed(a), &deployed(b), classes, &how))
        }
        _ => None,
    };
    Ok(Output {
        frames,
        unlabelled_frames: unlabelled,
        unmapped_labels: labels.as_ref().map_or_else(BTreeMap::new, |l| {
            l.unmapped()
                .into_iter()
                .map(|(label, count)| (label.to_string(), count))
                .collect()
        }),
        models: runs
            .iter()
            .zip(&results)
            .map(|(run, result)| ModelOutput {
                model: run.model.clone(),
                evaluation: labels
                    .is_some()
                    .then(|| evaluate(result, classes, &options)),
            })
            .collect(),
        difference,
        agreement,
    })
}

/// A number with three digits, or a dash.
fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |v| format!("{v:.3}"))
}

/// Columns of text: the first to the left, the others to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, entry) in row.iter().enumerate() {
            let width = widths[c];
            // Writing to a string cannot fail.
            let _ = match c {
                0 => write!(line, "{entry:<width$}"),
                _ => write!(line, "  {entry:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
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
        text.push('\n');
    }
    if output.unlabelled_frames > 0 {
        text += &format!("{} frames have no labels\n", output.unlabelled_frames);
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
