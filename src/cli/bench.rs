//! `centerpoint_ptq bench`: measure a model's latency on this machine, or compare two models.

use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;

use super::detect::RuntimeArgs;
use super::input::{FrameArgs, load_model};
use super::numbers::within;
use super::output::{check_file, write_whole};
use super::{Ended, terminal};
use crate::cloud::Points;
use crate::cloud::summary::InputSummary;
use crate::detector::{Detector, Timing, runtime};

#[derive(clap::Args)]
pub struct Args {
    /// Model description; give it twice to compare, the reference (float) first
    #[arg(long, required = true, num_args = 1)]
    model: Vec<PathBuf>,
    #[command(flatten)]
    frames: FrameArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Times that each frame is measured
    #[arg(long, default_value_t = 5, value_parser = within::<usize>(1..=100_000))]
    repeat: usize,
    /// Runs before the measurement, not counted
    #[arg(long, default_value_t = 5, value_parser = within::<usize>(0..=100_000))]
    warmup: usize,
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Frames kept in memory unless `--limit` says otherwise.
const DEFAULT_FRAMES: usize = 20;

const STAGES: [&str; 5] = ["pillars", "encoder", "backbone", "decode", "total"];

fn stages(t: &Timing) -> [f64; 5] {
    [
        t.pillars_ms,
        t.encoder_ms,
        t.backbone_ms,
        t.decode_ms,
        t.total_ms,
    ]
}

/// Milliseconds of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
    mean: f64,
}

impl Percentiles {
    /// Nearest-rank percentiles of at least one value.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let rank = |p: f64| {
            let rank = (p * values.len() as f64).ceil() as usize;
            values[rank.clamp(1, values.len()) - 1]
        };
        Percentiles {
            p50: rank(0.50),
            p90: rank(0.90),
            p99: rank(0.99),
            max: rank(1.0),
            mean: values.iter().sum::<f64>() / values.len() as f64,
        }
    }
}

#[derive(Serialize)]
struct Figures {
    model: String,
    precision: String,
    id: String,
    bytes: u64,
    pillars: f64,
    detections: f64,
    milliseconds: std::collections::BTreeMap<&'static str, Percentiles>,
}

#[derive(Serialize)]
struct Report {
    onnxruntime: String,
    provider: String,
    threads: usize,
    frames: usize,
    runs: usize,
    models: Vec<Figures>,
    #[serde(skip_serializing_if = "InputSummary::is_clean")]
    input: InputSummary,
    /// Median of the first model over that of the second; above 1 the second is faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<std::collections::BTreeMap<&'static str, f64>>,
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    if args.model.len() > 2 {
        bail!("--model can be given twice at the most");
    }
    if let Some(path) = &args.json {
        check_file(path)?;
    }
    let options = args.runtime.options();
    let mut detectors = Vec::new();
    for path in &args.model {
        let model = load_model(path)?;
        detectors.push(Detector::load(&model, &options)?);
    }
    // Two models that read different inputs could not be compared on the same frames.
    let input = |d: &Detector| {
        let model = d.description();
        (model.frame.clone(), model.points.sweeps)
    };
    if let [first, second] = detectors.as_slice()
        && input(first) != input(second)
    {
        bail!("the models differ in `frame` or `points.sweeps`; measure them one at a time");
    }
    let mut frame_args = args.frames.clone();
    frame_args.limit.get_or_insert(DEFAULT_FRAMES);
    let (intake, frames) = frame_args.open(detectors[0].description())?;
    let mut clouds: Vec<Points> = Vec::new();
    for frame in frames {
        let frame = frame?;
        // One run that is not counted: frames that a network fails on are not measured.
        let runs = detectors.iter_mut().map(|d| d.detect(&frame.points));
        match runs.collect::<Result<Vec<_>, _>>() {
            Ok(found) => {
                for inference in &found {
                    intake.detected(&inference.conditions);
                }
                clouds.push(frame.points);
            }
            Err(error) => intake.failed(frame.stamp, &error)?,
        }
    }
    let input = intake.finish()?;
    let Some(first) = clouds.first() else {
        bail!("no cloud in {}", args.frames.bag.display());
    };

    for detector in &mut detectors {
        for _ in 0..args.warmup {
            detector.detect(first)?;
        }
    }
    let mut timings: Vec<Vec<Timing>> = vec![Vec::new(); detectors.len()];
    let mut totals = vec![(0usize, 0usize); detectors.len()];
    let mut runs = 0;
    for _ in 0..args.repeat {
        for cloud in &clouds {
            // Interleaved, and in turns first, so that a change of the machine's load or clock
            // meets both models alike.
            for turn in 0..detectors.len() {
                let i = (turn + runs) % detectors.len();
                let inference = detectors[i].detect(cloud)?;
                timings[i].push(inference.timing);
                totals[i].0 += inference.pillars;
                totals[i].1 += inference.detections.len();
            }
            runs += 1;
        }
    }

    let models: Vec<Figures> = detectors
        .iter()
        .zip(&timings)
        .zip(&totals)
        .map(|((detector, timings), (pillars, detections))| Figures {
            model: detector.description().name.clone(),
            precision: detector.description().precision.to_string(),
            id: detector.id().to_string(),
            bytes: detector.model_bytes(),
            pillars: *pillars as f64 / runs as f64,
            detections: *detections as f64 / runs as f64,
            milliseconds: STAGES
                .into_iter()
                .enumerate()
                .map(|(i, stage)| {
                    let values = timings.iter().map(|t| stages(t)[i]).collect();
                    (stage, Percentiles::of(values))
                })
                .collect(),
        })
        .collect();
    let speedup = match models.as_slice() {
        [first, second] => Some(
            STAGES
                .into_iter()
                .map(|stage| {
                    let ratio = first.milliseconds[stage].p50 / second.milliseconds[stage].p50;
                    (stage, ratio)
                })
                .collect(),
        ),
        _ => None,
    };
    let runtime = runtime::init()?;
    let report = Report {
        onnxruntime: runtime.version().to_string(),
        provider: options.provider.to_string(),
        threads: options.threads,
        frames: clouds.len(),
        runs,
        models,
        input,
        speedup,
    };
    terminal::print(&text(&report))?;
    if let Some(path) = &args.json {
        write_whole(path, |file| {
            Ok(serde_json::to_writer_pretty(file, &report)?)
        })?;
    }
    Ok(report.input.ended())
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "ONNX Runtime {}, {}, {} threads, {} frames, {} runs of each model, milliseconds\n",
        report.onnxruntime,
        report.provider,
        match report.threads {
            0 => "all".to_string(),
            n => n.to_string(),
        },
        report.frames,
        report.runs
    );
    for figures in &report.models {
        text += &format!(
            "\n{} ({}, {}, {:.2} MB): {:.0} pillars, {:.1} boxes a frame\n",
            figures.model,
            figures.precision,
            figures.id,
            figures.bytes as f64 / 1e6,
            figures.pillars,
            figures.detections
        );
        text += &format!(
            "  {:<10}{:>9}{:>9}{:>9}{:>9}{:>9}\n",
            "stage", "p50", "p90", "p99", "max", "mean"
        );
        for stage in STAGES {
            let p = figures.milliseconds[stage];
            text += &format!(
                "  {stage:<10}{:>9.2}{:>9.2}{:>9.2}{:>9.2}{:>9.2}\n",
                p.p50, p.p90, p.p99, p.max, p.mean
            );
        }
    }
    if let Some(speedup) = &report.speedup {
        let ratios: Vec<String> = STAGES
            .iter()
            .map(|stage| format!("{stage} {:.2}", speedup[stage]))
            .collect();
        text += &format!(
            "\nmedian of {} / median of {}: {}\n",
            report.models[0].precision,
            report.models[1].precision,
            ratios.join(", ")
        );
    }
    for line in report.input.lines() {
        text += &format!("\n{line}");
    }
    if !report.input.is_clean() {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let p = Percentiles::of((1..=100).rev().map(f64::from).collect());
        assert_eq!((p.p50, p.p90, p.p99, p.max), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(p.mean, 50.5);
        let single = Percentiles::of(vec![7.0]);
        assert_eq!((single.p50, single.p99, single.max), (7.0, 7.0, 7.0));
    }
}
