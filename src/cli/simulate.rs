//! `centerpoint_ptq simulate`: write a bag of labelled, simulated LiDAR sweeps.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use super::input::{SensorPose, parse_pose};
use super::numbers::{FRAMES, within};
use super::output::check_new_folder;
use super::{Ended, terminal};
use crate::bag::Stamp;
use crate::sim::{ObjectClass, Plan, SceneKind, Sensor, SimError, write_bag};

#[derive(clap::Args)]
pub struct Args {
    /// vlp16, vlp32, hdl32, hdl64, dual64, os32, os64, os128, pandar64, vls128, or mixed: another for each scene
    #[arg(long, default_value = "os64")]
    sensor: String,
    /// Sweeps to write
    #[arg(long, default_value_t = 100, value_parser = within(FRAMES))]
    frames: usize,
    /// The same seed gives the same bag
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// rosbag2 folder to write; must not exist
    #[arg(long)]
    out: PathBuf,
    /// Independent scenes the frames are spread over, 10 s apart [default: one for every 10 s]
    #[arg(long, value_parser = within(FRAMES))]
    scenes: Option<usize>,
    /// Only scenes of this kind [default: a mixture]
    #[arg(long, value_enum)]
    kind: Option<SceneKind>,
    /// Sweeps per second
    #[arg(long, default_value_t = 10.0, value_parser = within::<f64>(0.1..=1000.0))]
    rate: f64,
    /// Columns of one turn [default: the sensor's]
    #[arg(long, value_parser = within::<usize>(1..=100_000))]
    azimuth_steps: Option<usize>,
    /// Standard deviation of the range in metres [default: the sensor's]
    #[arg(long, value_parser = within::<f32>(0.0..=100.0))]
    noise: Option<f32>,
    /// Share of returns lost at random, 0 to 1 [default: the sensor's]
    #[arg(long, value_parser = within::<f32>(0.0..=1.0))]
    dropout: Option<f32>,
    /// Sensor in base_link: "x y z roll pitch yaw" in metres and radians [default: drawn per scene]
    #[arg(long, value_name = "POSE", value_parser = parse_pose, allow_hyphen_values = true)]
    sensor_pose: Option<SensorPose>,
    /// Threads to use [default: all]
    #[arg(long, value_parser = within::<usize>(1..=1024))]
    threads: Option<usize>,
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    check_new_folder(&args.out)?;
    let names = if args.sensor == "mixed" {
        Sensor::PRESETS.to_vec()
    } else {
        vec![args.sensor.as_str()]
    };
    let mut sensors = Vec::new();
    for name in names {
        let mut sensor = Sensor::preset(name)?;
        sensor.azimuth_steps = args.azimuth_steps.unwrap_or(sensor.azimuth_steps);
        sensor.range_noise = args.noise.unwrap_or(sensor.range_noise);
        sensor.dropout = args.dropout.unwrap_or(sensor.dropout);
        sensors.push(sensor);
    }
    let per_scene = (10.0 * args.rate).max(1.0) as usize;
    let plan = Plan {
        seed: args.seed,
        frames: args.frames,
        scenes: args
            .scenes
            .unwrap_or(args.frames.div_ceil(per_scene).max(1)),
        sensors,
        kind: args.kind,
        rate: args.rate,
        mount: args.sensor_pose.map(|pose| pose.0),
        // A date of no meaning: bags of one seed are equal to the byte.
        start: Stamp(1_700_000_000_000_000_000),
    };
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .context("cannot start the threads")?;
    }

    let stop = stop_on_ctrl_c()?;
    let bar = terminal::bar(indicatif::ProgressBar::new(plan.frames as u64).with_style(
        indicatif::ProgressStyle::with_template(
            "{bar:40} {pos}/{len} frames, {per_sec}, {eta} left",
        )?,
    ));
    let begin = std::time::Instant::now();
    let summary = write_bag(&args.out, &plan, |done| {
        bar.set_position(done as u64);
        !stop.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    let summary = match summary {
        Err(stopped @ SimError::Stopped) => {
            terminal::note(&stopped.to_string());
            return Ok(Ended::Cancelled);
        }
        summary => summary?,
    };

    let per_frame = |n: usize| n as f64 / summary.frames as f64;
    let seconds = begin.elapsed().as_secs_f64();
    let mut text = format!(
        "{}: {} frames of {} scenes, {:.0} points a frame, {:.1} s ({:.1} frames/s)\n",
        args.out.display(),
        summary.frames,
        summary.scenes,
        per_frame(summary.points),
        seconds,
        summary.frames as f64 / seconds
    );
    for (i, class) in ObjectClass::ALL.iter().enumerate() {
        text += &format!(
            "  {:<10} {:5.1} a frame, {:5.1} with points\n",
            class.label(),
            per_frame(summary.labelled[i]),
            per_frame(summary.seen[i])
        );
    }
    terminal::print(&text)?;
    Ok(Ended::Done)
}

/// A flag that Ctrl-C raises, so that an unfinished bag is removed before the program ends.
fn stop_on_ctrl_c() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot listen for Ctrl-C")?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            raised.store(true, Ordering::Relaxed);
        }
    });
    Ok(stop)
}
