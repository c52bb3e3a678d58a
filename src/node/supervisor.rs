//! The calibration from request to swap, and what there is to say about it.
//!
//! ```text
//! calibrate ─► write the buffer ─► quantize (own process) ─► verdict ─► load, warm up ─► swap
//!                                                               └► refused: the report is kept
//! ```
//!
//! One calibration at a time. Detection goes on all the while, and whatever fails leaves the
//! running engine as it was.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::calibrator::{self, Job, JobError, Progress, Verdict};
use super::engine::{Engine, EngineError, LoadError};
use super::pipeline::{Active, Pipeline, SwapError};
use super::settings::Settings;
use crate::calibration::{self, BufferError};
use crate::cloud::frames::Frame;
use crate::detector::{Precision, RuntimeOptions};

/// Frames that a new engine runs on before it takes over.
const WARM_UP_FRAMES: usize = 3;

/// Files and settings a calibration needs.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The `centerpoint_ptq` executable.
    pub executable: PathBuf,
    /// Description of the model that the node was started with.
    pub model: PathBuf,
    /// Name of that model, for the folders in the store.
    pub name: String,
    pub store: PathBuf,
    pub buffer: PathBuf,
}

/// How the last calibration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The INT8 model runs.
    Swapped,
    /// An INT8 model was made, but does not agree well enough with float.
    Refused,
    Failed,
    Cancelled,
}

/// The last calibration, for the status.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Last {
    pub outcome: Outcome,
    /// Why it was refused or failed.
    pub reasons: Vec<String>,
    /// Frames it was made from.
    pub frames: usize,
    pub seconds: f64,
    /// Description of the INT8 model, where one was made.
    pub model: Option<PathBuf>,
    pub report: Option<PathBuf>,
}

/// A calibration under way, for the status.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibrating {
    /// `buffer`, `start`, a stage of the quantization, `load`, or `swap`.
    pub stage: String,
    /// Of the quantization, 0 to 1.
    pub fraction: f64,
    pub eta_s: Option<f64>,
    pub detail: String,
    pub frames: usize,
    /// Process of the quantization, while it runs.
    pub pid: Option<u32>,
}

/// What the node does besides detecting.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    pub calibrating: Option<Calibrating>,
    pub last: Option<Last>,
}

/// The latched status: one flat JSON object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// `idle` or `calibrating`.
    pub state: &'static str,
    pub stage: Option<String>,
    pub fraction: Option<f64>,
    pub eta_s: Option<f64>,
    pub detail: Option<String>,
    pub frames: Option<usize>,
    pub pid: Option<u32>,
    pub model_id: String,
    pub model_path: PathBuf,
    pub precision: Precision,
    /// The INT8 model that `~/use_int8` would change to.
    pub int8_model_id: Option<String>,
    /// Why the node left INT8 by itself.
    pub fallback: Option<String>,
    pub last: Option<Last>,
}

impl Status {
    pub fn new(work: &Work, active: &Active) -> Self {
        let now = work.calibrating.as_ref();
        Self {
            state: if now.is_some() { "calibrating" } else { "idle" },
            stage: now.map(|c| c.stage.clone()),
            fraction: now.map(|c| c.fraction),
            eta_s: now.and_then(|c| c.eta_s),
            detail: now.map(|c| c.detail.clone()).filter(|d| !d.is_empty()),
            frames: now.map(|c| c.frames),
            pid: now.and_then(|c| c.pid),
            model_id: active.model.id.clone(),
            model_path: active.model.path.clone(),
            precision: active.model.precision,
            int8_model_id: active.int8.as_ref().map(|model| model.id.clone()),
            fallback: active.fallback.clone(),
            last: work.last.clone(),
        }
    }

    pub fn to_json(&self) -> String {
        // Plain strings and numbers always serialize.
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }
}

/// Why a request was not granted. These go to the caller word for word.
#[derive(Debug, Error, PartialEq)]
pub enum Refusal {
    #[error("a calibration is already running (stage '{stage}', {percent:.0} %)")]
    Running { stage: String, percent: f64 },
    #[error("no calibration is running")]
    NotRunning,
    #[error(
        "the buffer holds {have} frames and a calibration needs {need} (calibration.min_frames); \
         one is taken every {period} s at the most"
    )]
    TooFewFrames {
        have: usize,
        need: usize,
        period: f64,
    },
    #[error(
        "the node runs the INT8 model '{id}' it was started with; only a float model can be quantized"
    )]
    NotFloat { id: String },
    #[error("the node is shutting down")]
    Stopping,
    #[error(transparent)]
    Swap(#[from] SwapError),
}

/// Why a calibration ended without a new engine. Never reaches the caller, who has gone by then,
/// but the status.
#[derive(Debug, Error)]
enum Failure {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Buffer(BufferError),
    #[error(transparent)]
    Job(JobError),
    #[error("cannot {what} {}: {source}", .path.display())]
    Store {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the new model does not load: {0}")]
    Load(#[from] LoadError),
    #[error("the new model does not run: {0}")]
    WarmUp(#[from] EngineError),
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error("a task of the calibration ended by a panic: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

impl From<BufferError> for Failure {
    fn from(error: BufferError) -> Self {
        match error {
            BufferError::Cancelled => Failure::Cancelled,
            error => Failure::Buffer(error),
        }
    }
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Cancelled => Failure::Cancelled,
            error => Failure::Job(error),
        }
    }
}

/// What a calibration left behind.
struct Finished {
    outcome: Outcome,
    reasons: Vec<String>,
    model: PathBuf,
}

struct Running {
    cancel: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Starts, watches and ends calibrations. Its methods must be called inside a tokio runtime.
pub struct Supervisor {
    pipeline: Arc<Pipeline>,
    settings: Arc<Mutex<Settings>>,
    runtime: RuntimeOptions,
    paths: Paths,
    work: watch::Sender<Work>,
    running: Mutex<Option<Running>>,
    stopping: AtomicBool,
}

impl Supervisor {
    pub fn new(
        pipeline: Arc<Pipeline>,
        settings: Arc<Mutex<Settings>>,
        runtime: RuntimeOptions,
        paths: Paths,
    ) -> Arc<Self> {
        remove_leftovers(&paths.store);
        Arc::new(Self {
            pipeline,
            settings,
            runtime,
            paths,
            work: watch::Sender::new(Work::default()),
            running: Mutex::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Calibrations under way and done, and every change of that.
    pub fn work(&self) -> watch::Receiver<Work> {
        self.work.subscribe()
    }

    pub fn status(&self) -> Status {
        Status::new(&self.work.borrow(), &self.pipeline.active().borrow())
    }

    /// Starts a calibration from what the buffer holds now. Returns the number of frames.
    pub fn calibrate(self: &Arc<Self>) -> Result<usize, Refusal> {
        let mut running = lock(&self.running);
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Refusal::Stopping);
        }
        if running.as_ref().is_some_and(|r| !r.task.is_finished()) {
            let (stage, fraction) = match &self.work.borrow().calibrating {
                Some(now) => (now.stage.clone(), now.fraction),
                None => ("end".into(), 1.0),
            };
            return Err(Refusal::Running {
                stage,
                percent: fraction * 100.0,
            });
        }
        let base = self.pipeline.base();
        if base.precision != Precision::Float {
            return Err(Refusal::NotFloat {
                id: base.id.clone(),
            });
        }
        let settings = lock(&self.settings).clone();
        let frames = self.pipeline.buffer().snapshot();
        if frames.len() < settings.calibration_min_frames {
            return Err(Refusal::TooFewFrames {
                have: frames.len(),
                need: settings.calibration_min_frames,
                period: settings.calibration_min_period_s,
            });
        }
        let count = frames.len();
        let (cancel, cancelled) = watch::channel(false);
        self.report(|now| {
            *now = Calibrating {
                stage: "buffer".into(),
                fraction: 0.0,
                eta_s: None,
                detail: String::new(),
                frames: count,
                pid: None,
            };
        });
        let task = tokio::spawn(self.clone().calibration(settings, frames, cancelled));
        *running = Some(Running { cancel, task });
        Ok(count)
    }

    /// Ends the running calibration; the status says when it is over.
    pub fn cancel(&self) -> Result<(), Refusal> {
        match &*lock(&self.running) {
            Some(running) if !running.task.is_finished() => {
                running.cancel.send_replace(true);
                Ok(())
            }
            _ => Err(Refusal::NotRunning),
        }
    }

    /// Goes to the float model, or back to the last good INT8 one.
    pub async fn select(&self, precision: Precision) -> Result<Active, Refusal> {
        Ok(self.pipeline.select(precision).await?)
    }

    /// Ends what runs, kills the child, and takes no more requests.
    pub async fn shut_down(&self, timeout: Duration) {
        self.stopping.store(true, Ordering::Relaxed);
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.cancel.send_replace(true);
            let abort = running.task.abort_handle();
            if tokio::time::timeout(timeout, running.task).await.is_err() {
                // Dropping the task kills the child (kill_on_drop).
                abort.abort();
            }
        }
    }

    /// Changes the state of the running calibration.
    fn report(&self, change: impl FnOnce(&mut Calibrating)) {
        self.work.send_modify(|work| {
            change(work.calibrating.get_or_insert_with(|| Calibrating {
                stage: String::new(),
                fraction: 0.0,
                eta_s: None,
                detail: String::new(),
                frames: 0,
                pid: None,
            }))
        });
    }

    fn stage(&self, stage: &str) {
        self.report(|now| {
            now.stage = stage.into();
            now.detail.clear();
            now.eta_s = None;
        });
    }

    async fn calibration(
        self: Arc<Self>,
        settings: Settings,
        frames: Vec<Arc<Frame>>,
        cancel: watch::Receiver<bool>,
    ) {
        let begin = Instant::now();
        let count = frames.len();
        tracing::info!("calibration from {count} frames starts");
        let result = self.attempt(&settings, frames, cancel).await;
        let seconds = begin.elapsed().as_secs_f64();
        let last = match result {
            Ok(finished) => Last {
                outcome: finished.outcome,
                reasons: finished.reasons,
                frames: count,
                seconds,
                report: finished.model.parent().map(|f| f.join("report.json")),
                model: Some(finished.model),
            },
            Err(failure) => Last {
                outcome: match failure {
                    Failure::Cancelled => Outcome::Cancelled,
                    _ => Outcome::Failed,
                },
                reasons: vec![failure.to_string()],
                frames: count,
                seconds,
                model: None,
                report: None,
            },
        };
        let reasons = last.reasons.join("; ");
        match last.outcome {
            Outcome::Swapped => tracing::info!("INT8 model runs, made in {seconds:.1} s"),
            Outcome::Cancelled => tracing::info!("calibration cancelled"),
            Outcome::Refused => tracing::warn!("INT8 model refused, float goes on: {reasons}"),
            Outcome::Failed => tracing::error!("calibration failed, float goes on: {reasons}"),
        }
        self.work.send_modify(|work| {
            work.calibrating = None;
            work.last = Some(last);
        });
    }

    async fn attempt(
        &self,
        settings: &Settings,
        frames: Vec<Arc<Frame>>,
        cancel: watch::Receiver<bool>,
    ) -> Result<Finished, Failure> {
        let incoming = Incoming::new(&self.paths.store)?;
        let bag = self.write_buffer(frames.clone(), cancel.clone()).await?;
        self.stage("start");
        let job = Job {
            executable: self.paths.executable.clone(),
            model: self.paths.model.clone(),
            bag,
            recipe: (!settings.recipe_path.is_empty()).then(|| settings.recipe_path.clone().into()),
            target: settings.target.clone(),
            out: incoming.path().join("model"),
            threads: settings.calibration_threads,
            nice: settings.calibration_nice,
        };
        let verdict = self.quantize(&job, cancel.clone()).await?;
        if *cancel.borrow() {
            return Err(Failure::Cancelled);
        }
        if !verdict.accepted {
            let folder = incoming.keep(&job.out, &format!("{}-int8-refused", self.paths.name))?;
            return Ok(Finished {
                outcome: Outcome::Refused,
                reasons: verdict.reasons,
                model: folder.join("model.yaml"),
            });
        }
        let folder = incoming.keep(&job.out, &format!("{}-int8", self.paths.name))?;
        let model = folder.join("model.yaml");
        self.stage("load");
        let engine = self.load(model.clone(), frames).await?;
        if *cancel.borrow() {
            return Err(Failure::Cancelled);
        }
        self.stage("swap");
        self.pipeline.install(engine).await?;
        Ok(Finished {
            outcome: Outcome::Swapped,
            reasons: verdict.reasons,
            model,
        })
    }

    async fn write_buffer(
        &self,
        frames: Vec<Arc<Frame>>,
        mut cancel: watch::Receiver<bool>,
    ) -> Result<PathBuf, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let folder = self.paths.buffer.clone();
        let mut writing = tokio::task::spawn_blocking({
            let stop = stop.clone();
            move || calibration::write(&frames, &folder, &stop)
        });
        tokio::select! {
            written = &mut writing => return Ok(written??),
            cancelled = cancel.wait_for(|cancelled| *cancelled) => {
                if cancelled.is_ok() {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        Ok(writing.await??)
    }

    async fn quantize(&self, job: &Job, cancel: watch::Receiver<bool>) -> Result<Verdict, Failure> {
        let started = |pid| self.report(|now| now.pid = Some(pid));
        let progress = |report: Progress| {
            self.report(|now| {
                now.stage = report.stage;
                now.fraction = report.fraction.clamp(0.0, 1.0);
                now.eta_s = report.eta_s;
                now.detail = report.detail;
            });
        };
        let verdict = calibrator::run(job, cancel, started, progress).await;
        self.report(|now| now.pid = None);
        Ok(verdict?)
    }

    /// Loads the new engine and runs it on frames it will see again, away from the live threads.
    async fn load(&self, model: PathBuf, frames: Vec<Arc<Frame>>) -> Result<Engine, Failure> {
        let options = self.runtime.clone();
        tokio::task::spawn_blocking(move || {
            let mut engine = Engine::load(&model, &options)?;
            for frame in frames.iter().rev().take(WARM_UP_FRAMES) {
                engine.detect(&frame.points)?;
            }
            Ok(engine)
        })
        .await?
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prefix of the folders that models are made in; the node's process id follows.
const INCOMING: &str = ".incoming-";

/// A folder of the store that a model is made in; removed with this value.
struct Incoming {
    store: PathBuf,
    folder: tempfile::TempDir,
}

impl Incoming {
    fn new(store: &Path) -> Result<Self, Failure> {
        let folder = std::fs::create_dir_all(store)
            .and_then(|()| {
                let prefix = format!("{INCOMING}{}-", std::process::id());
                tempfile::Builder::new().prefix(&prefix).tempdir_in(store)
            })
            .map_err(|source| Failure::Store {
                what: "make a folder in the model store",
                path: store.to_owned(),
                source,
            })?;
        Ok(Self {
            store: store.to_owned(),
            folder,
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Moves a finished model into the store, under the first free number of `name`.
    fn keep(&self, made: &Path, name: &str) -> Result<PathBuf, Failure> {
        let mut number = 1;
        loop {
            let kept = self.store.join(format!("{name}-{number:04}"));
            // Making the folder claims the name; renaming replaces an empty folder in one step.
            let moved = match std::fs::create_dir(&kept) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    number += 1;
                    continue;
                }
                Err(error) => Err(error),
                Ok(()) => std::fs::rename(made, &kept),
            };
            return match moved {
                Ok(()) => Ok(kept),
                Err(source) => Err(Failure::Store {
                    what: "move the new model to",
                    path: kept,
                    source,
                }),
            };
        }
    }
}

/// Removes what nodes that were killed left in the store. Nodes may share one.
fn remove_leftovers(store: &Path) {
    let Ok(entries) = std::fs::read_dir(store) else {
        return; // No store yet.
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(INCOMING)
            .and_then(|n| n.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!("cannot remove {}: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_get_numbers_of_their_own_and_half_made_ones_go() {
        let store = tempfile::tempdir().unwrap();
        for expected in ["demo-int8-0001", "demo-int8-0002"] {
            let incoming = Incoming::new(store.path()).unwrap();
            let made = incoming.path().join("model");
            std::fs::create_dir(&made).unwrap();
            std::fs::write(made.join("model.yaml"), "x").unwrap();
            let kept = incoming.keep(&made, "demo-int8").unwrap();
            assert_eq!(kept, store.path().join(expected));
            assert!(kept.join("model.yaml").is_file());
        }
        let under_way = Incoming::new(store.path()).unwrap();
        // No process has this id: the largest that Linux gives is 2^22.
        let orphan = store.path().join(format!("{INCOMING}99999999-x"));
        std::fs::create_dir(orphan).unwrap();
        remove_leftovers(store.path());
        assert!(under_way.path().is_dir());
        drop(under_way);
        let mut left: Vec<_> = std::fs::read_dir(store.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["demo-int8-0001", "demo-int8-0002"]);
    }

    /// A supervisor over a float engine that detects nothing, with a shell script as the
    /// quantization, after `frames` clouds.
    async fn supervisor(folder: &Path, frames: i64, script: &str) -> Arc<Supervisor> {
        use crate::node::pipeline::tests::{engine, start, test_cloud};
        use std::os::unix::fs::PermissionsExt;

        let executable = folder.join("quantizer");
        std::fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&executable, PermissionsExt::from_mode(0o755)).unwrap();
        let float = engine("float", Precision::Float, |_| Ok(Vec::new()));
        let (pipeline, mut outputs) = start(float);
        for stamp in 1..=frames {
            pipeline.push_cloud(test_cloud(stamp, "base_link", 2));
            outputs.recv().await.unwrap();
        }
        let settings = Settings {
            calibration_min_frames: 3,
            ..Default::default()
        };
        let paths = Paths {
            executable,
            model: "model.yaml".into(),
            name: "demo".into(),
            store: folder.join("store"),
            buffer: folder.join("buffer"),
        };
        let settings = Arc::new(Mutex::new(settings));
        Supervisor::new(
            Arc::new(pipeline),
            settings,
            RuntimeOptions::default(),
            paths,
        )
    }

    async fn finished(supervisor: &Supervisor) -> Last {
        let mut work = supervisor.work();
        let done = work.wait_for(|work| work.calibrating.is_none() && work.last.is_some());
        let done = tokio::time::timeout(Duration::from_secs(20), done);
        done.await.unwrap().unwrap().last.clone().unwrap()
    }

    /// What the child was given after `--out`.
    const OUT: &str = "while [ $# -gt 0 ]; do [ \"$1\" = --out ] && out=$2; shift; done\n";

    fn done(accepted: bool, reason: &str) -> String {
        format!(
            "{OUT}mkdir $out; echo x >$out/model.yaml; echo '{{\"event\":\"done\",\"out\":\"o\",\
             \"verdict\":{{\"accepted\":{accepted},\"reasons\":[\"{reason}\"]}}}}'"
        )
    }

    #[tokio::test]
    async fn too_few_frames_are_refused_with_the_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 2, "exit 1").await;
        let refusal = supervisor.calibrate().unwrap_err().to_string();
        assert!(
            refusal.contains("holds 2 frames") && refusal.contains("needs 3"),
            "{refusal}"
        );
        assert_eq!(supervisor.status().state, "idle");
    }

    #[tokio::test]
    async fn a_second_calibration_is_refused_and_the_first_can_be_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 4, "exec sleep 600").await;
        assert_eq!(supervisor.calibrate(), Ok(4));
        assert!(matches!(
            supervisor.calibrate(),
            Err(Refusal::Running { .. })
        ));
        assert_eq!(supervisor.status().state, "calibrating");
        let mut work = supervisor.work();
        let started = work.wait_for(|w| w.calibrating.as_ref().is_some_and(|c| c.pid.is_some()));
        let pid = started
            .await
            .unwrap()
            .calibrating
            .clone()
            .unwrap()
            .pid
            .unwrap();
        supervisor.cancel().unwrap();
        assert_eq!(finished(&supervisor).await.outcome, Outcome::Cancelled);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(supervisor.cancel(), Err(Refusal::NotRunning));
        assert_eq!(
            std::fs::read_dir(folder.path().join("store"))
                .unwrap()
                .count(),
            0
        );
    }

    #[tokio::test]
    async fn a_refused_model_is_kept_with_its_report_and_float_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 4, &done(false, "lost cars")).await;
        supervisor.calibrate().unwrap();
        let last = finished(&supervisor).await;
        assert_eq!(last.outcome, Outcome::Refused);
        assert_eq!(last.reasons, ["lost cars"]);
        let kept = folder.path().join("store/demo-int8-refused-0001");
        assert_eq!(last.model.unwrap(), kept.join("model.yaml"));
        assert!(kept.join("model.yaml").is_file());
        assert_eq!(supervisor.status().precision, Precision::Float);
    }

    #[tokio::test]
    async fn a_model_that_does_not_load_leaves_float_running_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 4, &done(true, "")).await;
        supervisor.calibrate().unwrap();
        let last = finished(&supervisor).await;
        assert_eq!(last.outcome, Outcome::Failed);
        assert!(last.reasons[0].contains("model.yaml"), "{:?}", last.reasons);
        let json: serde_json::Value = serde_json::from_str(&supervisor.status().to_json()).unwrap();
        assert_eq!(json["state"], "idle");
        assert_eq!(json["precision"], "float");
        assert_eq!(json["last"]["outcome"], "failed");
    }

    #[tokio::test]
    async fn a_child_that_is_killed_is_a_failed_calibration_and_the_next_may_start() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 4, "kill -9 $$").await;
        for _ in 0..2 {
            supervisor.calibrate().unwrap();
            let last = finished(&supervisor).await;
            assert_eq!(last.outcome, Outcome::Failed);
            assert!(last.reasons[0].contains("signal 9"), "{:?}", last.reasons);
            // The task ends a moment after its last word.
            while supervisor.cancel().is_ok() {
                tokio::task::yield_now().await;
            }
            supervisor.work.send_modify(|work| work.last = None);
        }
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_child_and_refuses_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 4, "exec sleep 600").await;
        supervisor.calibrate().unwrap();
        let begin = Instant::now();
        supervisor.shut_down(Duration::from_secs(10)).await;
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(supervisor.calibrate(), Err(Refusal::Stopping));
    }
}
