//! `centerpoint_ptq quantize`: turn a float model into an INT8 one from the frames of a bag.
//!
//! Exit codes: 0 the model is written and passed the gate, 4 the same, but some of the clouds were lost, 3 it is written
//! but the gate refused it (the report says why), 130 cancelled by SIGINT or SIGTERM with nothing written, 1 any other
//! failure with nothing written, 2 wrong arguments.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::input::{InputArgs, InputError, Intake};
use super::numbers::{THREADS, within};
use super::output::check_empty_folder;
use super::sweeps::{SweepArgs, Sweeps};
use super::{Ended, signals, terminal};
use crate::calibration::Policy;
use crate::calibration::buffer::{CALIBRATION_TOPIC, HELD_OUT_TOPIC};
use crate::cloud::frames::InputOptions;
use crate::cloud::summary::InputSummary;
use crate::detector::ModelDescription;
use crate::ptq::frames::{Role, Sample};
use crate::ptq::progress::{Progress, Silent, Stage, Step};
use crate::ptq::recipe::{FrameSettings, Recipe, Target};
use crate::ptq::report::Report;
use crate::ptq::{PtqError, Source, Told, quantize_from};

#[derive(clap::Args)]
pub struct Args {
    /// Description of the float model (model.yaml) or the folder that holds it
    #[arg(long)]
    model: PathBuf,
    /// rosbag2 folder, .mcap or .db3 file with the calibration frames
    #[arg(long)]
    bag: PathBuf,
    /// Calibration buffer of a node: check the model on the frames held out of it, what the node sees, and calibrate with
    /// all frames of --bag
    #[arg(long, value_name = "BAG")]
    check_buffer: Option<PathBuf>,
    /// Calibration recipe; by default the quick one
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Runtime that the INT8 model is for
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    /// Folder to write; must not exist
    #[arg(long)]
    out: PathBuf,
    /// Use at most this many frames, spread over the bag, instead of the recipe's number
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_frames: Option<u32>,
    /// Threads, instead of the recipe's number; 0 means one per core
    #[arg(long, value_parser = within(THREADS))]
    threads: Option<usize>,
    /// End in an error rather than take more memory than this, megabytes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    max_memory_mb: Option<u64>,
    /// Process that started this one: end where it is gone, with nothing written
    #[arg(long, value_name = "PID", hide = true)]
    parent: Option<i32>,
    /// How to tell the progress
    #[arg(long, value_enum, default_value_t = ProgressKind::Bar)]
    progress: ProgressKind,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    sweeps: SweepArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ProgressKind {
    /// A bar on standard error, the summary on standard output
    Bar,
    /// One JSON object a line on standard output
    Json,
    /// Only the summary
    None,
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    let stop = watch_signals()?;
    let too_much = match args.max_memory_mb {
        Some(megabytes) => Some(limit_memory(megabytes, stop.clone())?),
        None => None,
    };
    if let Some(parent) = args.parent {
        watch_parent(parent, stop.clone())?;
    }
    let kind = args.progress;
    let mut result = work(&args, stop.clone());
    // Wherever the signal was noticed, that is why.
    if result.as_ref().is_err_and(|error| !is_cancelled(error)) && stop.load(Ordering::Relaxed) {
        result = Err(PtqError::Cancelled.into());
    }
    if result.is_err()
        && let Some(reason) = too_much.as_ref().and_then(|reason| reason.get())
    {
        result = Err(anyhow::anyhow!("{reason}; nothing was written"));
    }
    match result {
        Ok((report, input)) => {
            let verdict = &report.check.verdict;
            // The model is there; a standard output that is not is no reason to fail.
            let _ = match kind {
                ProgressKind::Json => {
                    let out = args.out.display().to_string();
                    let event =
                        json!({"event": "done", "out": out, "verdict": verdict, "input": input});
                    terminal::print_json_line(&event)
                }
                _ => {
                    // What was judged and what was not is the last word.
                    let (summary, judged) = (report.summary(), verdict.text());
                    terminal::print(&format!(
                        "{summary}\n{judged}wrote {}\n",
                        args.out.display()
                    ))
                }
            };
            Ok(match verdict.accepted {
                true => input.ended(),
                false => Ended::Refused,
            })
        }
        Err(error) => {
            let message = terminal::causes(&error);
            if kind == ProgressKind::Json {
                let event = json!({"event": "error", "message": message});
                let _ = terminal::print_json_line(&event);
            }
            if !is_cancelled(&error) {
                return Err(error);
            }
            terminal::note(&message);
            Ok(Ended::Cancelled)
        }
    }
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<PtqError>(), Some(PtqError::Cancelled))
}

type Samples = Box<dyn Iterator<Item = Result<Sample, InputError>>>;

/// At most about `max` frames of a bag, spread over it.
///
/// In the bag of a node's calibration buffer, the frames that check the calibration have a topic of their own.
fn samples(
    intake: &Intake,
    bag: &Path,
    input: &InputOptions,
    max: usize,
    sweeps: &Sweeps,
) -> Result<Samples, InputError> {
    let reader = intake.reader(bag)?;
    let has = |name: &str| reader.topics().iter().any(|topic| topic.name == name);
    let roles = [
        (CALIBRATION_TOPIC, Role::Calibration),
        (HELD_OUT_TOPIC, Role::HeldOut),
    ];
    if input.topic.is_some() || !roles.iter().any(|(topic, _)| has(topic)) {
        let frames = intake.open(bag, input)?;
        // A bag that does not say how much it holds is read from its start.
        let stride = frames.len_hint().map_or(1, |n| (n / max).max(1));
        let frames = frames.complete(sweeps).every(stride);
        return Ok(Box::new(frames.map(|frame| frame.map(Sample::from))));
    }
    let mut all: Samples = Box::new(std::iter::empty());
    let of_role = |name: &str| roles.iter().any(|(topic, _)| *topic == name);
    let topics = reader.topics().iter().filter(|t| of_role(&t.name));
    let total = topics.filter_map(|t| t.count).fold(0, u64::saturating_add);
    let stride = (total as usize).div_ceil(max.max(1)).max(1);
    for (topic, role) in roles.into_iter().filter(|(topic, _)| has(topic)) {
        let input = InputOptions {
            topic: Some(topic.into()),
            ..input.clone()
        };
        let frames = intake.open(bag, &input)?.complete(sweeps).every(stride);
        all =
            Box::new(all.chain(
                frames.map(move |frame| frame.map(|frame| in_role(Sample::from(frame), role))),
            ));
    }
    Ok(all)
}

/// Frames of one bag to calibrate with, and those held out of a node's buffer to check with.
///
/// The bag may be of the same drive, or the buffer itself: none of its frames that the buffer holds out calibrates, nor
/// does a neighbour of them. How many were left out for that is counted.
fn samples_and_check(
    args: &Args,
    model: &ModelDescription,
    frames: &FrameSettings,
    intake: &Intake,
    left_out: Rc<Cell<usize>>,
) -> Result<(Samples, Vec<Sweeps>), InputError> {
    let input = args.input.options(model);
    let sweeps = Sweeps::new(args.sweeps, model, &args.bag);
    let Some(buffer) = &args.check_buffer else {
        let all = samples(intake, &args.bag, &input, frames.max, &sweeps)?;
        return Ok((all, vec![sweeps]));
    };
    let sweeps_to_check = Sweeps::new(args.sweeps, model, buffer);
    let held_out = (frames.max / frames.hold_out_every).max(frames.min_held_out);
    let held_out_topic = args.input.buffered(model, HELD_OUT_TOPIC);
    // Read once for the stamps alone; what is lost is told when the frames are read to be used.
    let once = intake.silent();
    let mut stamps = Vec::new();
    for frame in once.open(buffer, &held_out_topic)? {
        stamps.push(frame?.stamp);
    }
    let stride = stamps.len().div_ceil(held_out).max(1);
    let check = intake
        .open(buffer, &held_out_topic)?
        .complete(&sweeps_to_check)
        .every(stride)
        .map(|frame| frame.map(|frame| in_role(Sample::from(frame), Role::HeldOut)));

    let to_calibrate = frames.max.saturating_sub(held_out).max(1);
    let gap = Policy::default().gap_s;
    let neighbour = move |sample: &Sample| {
        sample.role == Some(Role::HeldOut)
            || stamps
                .iter()
                .any(|stamp| sample.stamp.seconds_since(*stamp).abs() < gap)
    };
    let calibration = samples(intake, &args.bag, &input, to_calibrate, &sweeps)?
        .filter(move |sample| {
            let leave = sample.as_ref().is_ok_and(&neighbour);
            left_out.set(left_out.get() + usize::from(leave));
            !leave
        })
        .take(to_calibrate)
        .map(|sample| sample.map(|sample| in_role(sample, Role::Calibration)));
    let all: Samples = Box::new(calibration.chain(check));
    Ok((all, vec![sweeps, sweeps_to_check]))
}

fn in_role(sample: Sample, role: Role) -> Sample {
    Sample {
        role: Some(role),
        ..sample
    }
}

fn work(args: &Args, stop: Arc<AtomicBool>) -> anyhow::Result<(Report, InputSummary)> {
    let mut recipe = Recipe::load_or_default(args.recipe.as_deref())?;
    if let Some(max) = args.max_frames {
        recipe.frames.max = max as usize;
    }
    if let Some(threads) = args.threads {
        recipe.threads = threads;
    }
    let out = &args.out;
    check_empty_folder(out)?;
    let model = ModelDescription::load(&args.model)?;
    recipe.suits(&model.classes)?;
    let intake = Intake::new(args.input.strictness).stopped_by(stop.clone());
    let left_out = Rc::default();
    let (frames, sweeps) =
        samples_and_check(args, &model, &recipe.frames, &intake, Rc::clone(&left_out))?;
    let mut bar;
    let mut lines;
    let mut silent = Stoppable(stop.clone());
    let progress: &mut dyn Progress = match args.progress {
        ProgressKind::Bar if std::io::stderr().is_terminal() => {
            bar = Bar::new(stop)?;
            &mut bar
        }
        ProgressKind::Json => {
            lines = JsonLines {
                stop,
                start: Instant::now(),
                last: None,
                step: None,
                block: 0,
            };
            &mut lines
        }
        _ => &mut silent,
    };
    let told = || {
        let mut told = Told {
            summary: Some(intake.summary()),
            ..Told::default()
        };
        for of_bag in &sweeps {
            let check = of_bag.check();
            check.map_err(|error| PtqError::Input(error.to_string()))?;
            for (sweeps, frames) in of_bag.left_out() {
                *told.left_out.entry(sweeps).or_default() += frames;
            }
        }
        Ok(told)
    };
    let source = Source { frames, told };
    let made = quantize_from(&model, source, &recipe, args.target, out, progress);
    // Where no frame came out, the reason is a better one than that there are too few.
    let used = match &made {
        Ok(_) | Err(PtqError::TooFewFrames { .. }) => intake.finish()?,
        Err(_) => InputSummary::default(),
    };
    let report = made.map_err(|error| {
        if !matches!(error, PtqError::TooFewFrames { .. }) {
            return error.into();
        }
        let mut reasons: Vec<String> = sweeps.iter().filter_map(Sweeps::told).collect();
        if let count @ 1.. = left_out.get() {
            reasons.push(format!(
                "{count} frames were left out, since they are frames that the buffer holds out, or within {} s of one",
                Policy::default().gap_s
            ));
        }
        match reasons.is_empty() {
            true => error.into(),
            false => anyhow::Error::new(error).context(reasons.join("; ")),
        }
    })?;
    Ok((report, used))
}

/// Raises the flag once the process holds more memory than this, and ends it where that does not help soon. The value
/// that comes back says what happened, once it has.
///
/// A limit of the system's would be stricter, but libraries that get no memory do not all fail: some wait for ever.
fn limit_memory(megabytes: u64, stop: Arc<AtomicBool>) -> anyhow::Result<Arc<OnceLock<String>>> {
    const PERIOD: Duration = Duration::from_millis(20);
    /// Periods until the process is ended.
    const PATIENCE: u32 = 250;
    let limit = megabytes.saturating_mul(1_000_000);
    resident().context("cannot watch the memory: /proc/self/statm cannot be read")?;
    let reason = Arc::new(OnceLock::new());
    let told = reason.clone();
    std::thread::Builder::new()
        .name("memory".into())
        .spawn(move || {
            let mut periods = 0;
            loop {
                std::thread::sleep(PERIOD);
                let now = resident().unwrap_or(0);
                if now > limit && told.get().is_none() {
                    let _ = told.set(format!(
                        "it needs more than {megabytes} MB of memory, the most that it may take"
                    ));
                    stop.store(true, Ordering::Relaxed);
                }
                periods += u32::from(told.get().is_some());
                if periods > PATIENCE || now > limit.saturating_mul(5) / 4 {
                    let message = told.get().map_or("too much memory", String::as_str);
                    let event = json!({"event": "error", "message": message});
                    // Held until the end: this is the last word.
                    let mut last = std::io::stdout().lock();
                    let _ = writeln!(last, "{event}").and_then(|()| last.flush());
                    terminal::error(message);
                    end_at_once(1);
                }
            }
        })?;
    Ok(reason)
}

/// Ends the process while other threads work. `std::process::exit` would take ONNX Runtime down under those that run a
/// network, which then fail in ways of their own, or crash.
fn end_at_once(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions; what it leaves behind is what a SIGKILL would.
    unsafe { libc::_exit(code) }
}

/// Bytes of memory that this process holds.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Raises the flag once `parent` is not the parent any more, and ends the process where that does not.
fn watch_parent(parent: i32, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    const PERIOD: Duration = Duration::from_millis(250);
    const PATIENCE: Duration = Duration::from_secs(10);
    let alive = move || rustix::process::getppid().is_some_and(|id| id.as_raw_pid() == parent);
    std::thread::Builder::new()
        .name("parent".into())
        .spawn(move || {
            while alive() {
                std::thread::sleep(PERIOD);
            }
            stop.store(true, Ordering::Relaxed);
            std::thread::sleep(PATIENCE);
            end_at_once(Ended::Cancelled.code().into());
        })?;
    Ok(())
}

/// A flag that SIGINT and SIGTERM set. A second signal ends the process the hard way, which leaves at most a hidden
/// `.partial` folder.
fn watch_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    signals::watch(move || {
        if flag.swap(true, Ordering::Relaxed) {
            end_at_once(Ended::Cancelled.code().into());
        }
    })?;
    Ok(stop)
}

struct Stoppable(Arc<AtomicBool>);

impl Progress for Stoppable {
    fn update(&mut self, stage: Stage, fraction: f64, detail: &str) {
        Silent.update(stage, fraction, detail);
    }
    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Bar {
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
}

impl Bar {
    fn new(stop: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let bar = terminal::bar(ProgressBar::new(1000));
        bar.set_style(ProgressStyle::with_template(
            "{prefix:>8} [{bar:40}] {percent:>3} % {elapsed} gone, {eta} to go  {msg}",
        )?);
        Ok(Bar { stop, bar })
    }
}

impl Progress for Bar {
    fn update(&mut self, stage: Stage, fraction: f64, detail: &str) {
        self.bar.set_prefix(stage.name());
        self.bar.set_message(detail.to_owned());
        self.bar.set_position((fraction * 1000.0) as u64);
    }
    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

struct JsonLines {
    stop: Arc<AtomicBool>,
    start: Instant,
    /// Stage and block and time of the last line.
    last: Option<(Stage, usize, Instant)>,
    /// Where the reconstruction is, for the next line.
    step: Option<serde_json::Value>,
    block: usize,
}

impl Progress for JsonLines {
    fn step(&mut self, step: &Step<'_>) {
        self.step = serde_json::to_value(step).ok();
        self.block = step.block;
    }
    fn update(&mut self, stage: Stage, fraction: f64, detail: &str) {
        let now = Instant::now();
        // Ten lines a second are enough for anyone, but each stage and block says that it started.
        if fraction < 1.0
            && self.last.is_some_and(|(s, b, t)| {
                (s, b) == (stage, self.block) && (now - t).as_secs_f64() < 0.1
            })
        {
            return;
        }
        self.last = Some((stage, self.block, now));
        let elapsed = self.start.elapsed().as_secs_f64();
        let eta = (fraction > 0.02)
            .then(|| (elapsed / fraction * (1.0 - fraction) * 10.0).round() / 10.0);
        let mut event = json!({
            "event": "progress",
            "stage": stage.name(),
            "fraction": (fraction * 1e4).round() / 1e4,
            "eta_s": eta,
            "detail": detail,
        });
        if let Some(step) = self.step.take() {
            event["step"] = step;
        }
        let mut out = std::io::stdout();
        if writeln!(out, "{event}").and_then(|()| out.flush()).is_err() {
            // Whoever wanted the model has gone away.
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
