//! `centerpoint_ptq select`: choose frames of a long recording to calibrate with, as a node chooses them from its traffic.
//!
//! What is written is a bag like a node's calibration buffer: `quantize` reads from it which frames calibrate and which check.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::detect::RuntimeArgs;
use super::input::FrameArgs;
use super::numbers::within;
use super::output::check_new_folder;
use super::sweeps::{SweepArgs, Sweeps};
use super::{Ended, terminal};
use crate::calibration::selection::Choice;
use crate::calibration::{CalibrationBuffer, Policy};
use crate::detector::{Detector, ModelDescription};

#[derive(clap::Args)]
pub struct Args {
    /// Description of the float model: what it detects is part of the choice
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    frames: FrameArgs,
    #[command(flatten)]
    sweeps: SweepArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// rosbag2 folder to write; must not exist
    #[arg(long)]
    out: PathBuf,
    /// Frames to choose, a quarter of them to check with
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(4..=10_000))]
    max_frames: u32,
    /// diverse, newest or random
    #[arg(long, default_value_t = Choice::Diverse)]
    choice: Choice,
    /// Seconds between two frames at the least
    #[arg(long, default_value_t = Policy::default().min_period_s, value_parser = within::<f64>(0.0..=3600.0))]
    min_period: f64,
    /// Seconds between a frame to calibrate with and one to check with at the least
    #[arg(long, default_value_t = Policy::default().gap_s, value_parser = within::<f64>(0.0..=3600.0))]
    gap: f64,
    /// Frames of one place (2 m) at the most, where the choice is diverse
    #[arg(long, default_value_t = Policy::default().per_place, value_parser = within::<usize>(1..=10_000))]
    per_place: usize,
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    let Args { out, .. } = &args;
    check_new_folder(out)?;
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let context = || format!("cannot write {}", out.display());
    let model = ModelDescription::load(&args.model)?;
    let policy = Policy {
        choice: args.choice,
        max_frames: args.max_frames as usize,
        max_bytes: u64::MAX,
        min_period_s: args.min_period,
        per_place: args.per_place,
        gap_s: args.gap,
        max_age_s: 0.0,
        sweeps: model.points.sweeps,
    };
    let mut detector = Detector::load(&model, &args.runtime.options())?;
    let (intake, frames) = args.frames.open(&model)?;
    std::fs::create_dir_all(&parent).with_context(context)?;
    let folder = tempfile::Builder::new()
        .prefix(".select-")
        .tempdir_in(&parent)
        .with_context(context)?;
    let buffer = CalibrationBuffer::open(folder.path(), policy).with_context(context)?;
    let bar = terminal::bar(indicatif::ProgressBar::new_spinner().with_style(
        indicatif::ProgressStyle::with_template("{pos} frames, {per_sec}")?,
    ));
    let sweeps = Sweeps::new(args.sweeps, &model, &args.frames.bag);
    let mut read = 0;
    for frame in sweeps.of(frames) {
        let frame = Arc::new(frame?);
        bar.inc(1);
        read += 1;
        if !buffer.is_due(frame.stamp) {
            continue;
        }
        let found = match detector.detect(&frame.points) {
            Ok(found) => found,
            Err(error) => {
                intake.failed(frame.stamp, &error)?;
                continue;
            }
        };
        intake.detected(&found.conditions);
        buffer.offer(&frame, &found.detections, model.classes.len());
        buffer.settle();
        if let Some(problem) = buffer.fill().problem {
            anyhow::bail!(problem);
        }
    }
    bar.finish_and_clear();
    let input = intake.finish()?;
    sweeps.check()?;
    let snapshot = buffer.snapshot()?;
    let fill = buffer.fill();
    ensure!(
        fill.frames() > 0,
        "{} holds no frame",
        args.frames.bag.display()
    );
    std::fs::rename(&snapshot.bag, out).with_context(context)?;
    let mut text = format!(
        "{}: {} frames to calibrate with and {} to check with, of {}; diversity {:.3}\n",
        out.display(),
        snapshot.calibration,
        snapshot.held_out,
        read + sweeps.left_out().values().sum::<usize>(),
        fill.diversity.unwrap_or(0.0)
    );
    if let Some(told) = sweeps.told() {
        text += &format!("  {told}\n");
    }
    if fill.few_sweeps > 0 {
        text += &format!(
            "  {} of the frames have fewer sweeps than the {} that the model wants\n",
            fill.few_sweeps, model.points.sweeps
        );
    }
    for (class, count) in model.classes.iter().zip(&fill.objects) {
        text += &format!("  {class:<12} {count:>6} detected\n");
    }
    for line in input.lines() {
        text += &format!("  {line}\n");
    }
    terminal::print(&text)?;
    Ok(input.ended())
}
