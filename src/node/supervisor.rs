//! The calibration from request to swap, and what there is to say about it.
//!
//! ```text
//! calibrate ─► write the buffer ─► quantize (own process) ─► store ─► load, warm up ─► swap
//!                                                               └► refused: the report is kept
//! start ─► the model that ran last, from the store, if it is whole and fits ─► load ─► swap
//! ```
//!
//! One calibration at a time. Detection goes on all the while, and whatever fails leaves the
//! running engine as it was. The store remembers what runs, so that the next start finds it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::calibrator::{self, Job, JobError, Progress, Verdict};
use super::engine::{Engine, EngineError, LoadError, ModelInfo};
use super::pipeline::{Active, Fallback, Pipeline, SwapError};
use super::settings::Settings;
use crate::calibration::store::{Pick, Selection, StoreError, Version, float_files};
use crate::calibration::{BufferError, ModelStore};
use crate::detector::{ModelDescription, Precision, RuntimeOptions};

/// Files and settings a calibration needs.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The `centerpoint_ptq` executable.
    pub executable: PathBuf,
    /// The model that the node was started with, and the file that describes it.
    pub base: ModelDescription,
    pub model: PathBuf,
    pub store: ModelStore,
    /// The node's name, under which the store remembers what it runs.
    pub node: String,
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

/// What the node found in the store when it started.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Start {
    /// The stored model that it started with.
    pub model: Option<String>,
    /// Why it did not start with the one that ran last.
    pub problems: Vec<String>,
}

/// What the node does besides detecting.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work {
    pub calibrating: Option<Calibrating>,
    pub last: Option<Last>,
    /// Absent until the store was looked at.
    pub start: Option<Start>,
    /// What the store could not keep, since the last time that it could.
    pub store_problem: Option<String>,
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
    pub start: Option<Start>,
    pub store_problem: Option<String>,
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
            fallback: active.fallback.as_ref().map(|f| f.reason.clone()),
            start: work.start.clone(),
            store_problem: work.store_problem.clone(),
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
        "the buffer holds {have} frames, {held_out} of them to check with, and a calibration needs {need} \
         (calibration.min_frames), a quarter of them to check with; one is taken every {period} s at the most, and few of \
         one place (calibration.choice){}", and_problem(.problem)
    )]
    TooFewFrames {
        have: usize,
        held_out: usize,
        need: usize,
        period: f64,
        problem: Option<String>,
    },
    #[error(
        "the node runs the INT8 model '{id}' it was started with; only a float model can be quantized"
    )]
    NotFloat { id: String },
    #[error("the node is shutting down")]
    Stopping,
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error("the stored INT8 model cannot run: {0}")]
    Stored(String),
}

fn and_problem(problem: &Option<String>) -> String {
    match problem {
        Some(problem) => format!("; {problem}"),
        None => String::new(),
    }
}

/// Why a calibration ended without a new engine. Never reaches the caller, who has gone by then,
/// but the status.
#[derive(Debug, Error)]
enum Failure {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error(transparent)]
    Job(JobError),
    #[error("the model store: {0}")]
    Store(#[from] StoreError),
    #[error("the new model does not load: {0}")]
    Load(#[from] LoadError),
    #[error("the new model does not run: {0}")]
    WarmUp(#[from] EngineError),
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error("a task of the calibration ended by a panic: {0}")]
    Panic(#[from] tokio::task::JoinError),
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
    /// Held while the engine is exchanged and the store told, so that both end in the same order.
    exchange: tokio::sync::Mutex<()>,
    stopping: AtomicBool,
}

impl Supervisor {
    pub fn new(
        pipeline: Arc<Pipeline>,
        settings: Arc<Mutex<Settings>>,
        runtime: RuntimeOptions,
        paths: Paths,
    ) -> Arc<Self> {
        match paths.store.clean() {
            Ok(0) => {}
            Ok(count) => {
                tracing::info!("removed {count} unfinished models of nodes that were killed")
            }
            Err(error) => tracing::warn!("{error}"),
        }
        Arc::new(Self {
            pipeline,
            settings,
            runtime,
            paths,
            work: watch::Sender::new(Work::default()),
            running: Mutex::default(),
            exchange: tokio::sync::Mutex::default(),
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
        let fill = self.pipeline.buffer().fill();
        let count = fill.frames();
        let need = settings.calibration_min_frames;
        if count < need || fill.held_out < need / 4 {
            return Err(Refusal::TooFewFrames {
                have: count,
                held_out: fill.held_out,
                need,
                period: settings.calibration_min_period_s,
                problem: fill.problem,
            });
        }
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
        let task = tokio::spawn(self.clone().calibration(settings, count, cancelled));
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

    /// Goes to the float model, or back to the last good INT8 one, from the store if need be.
    pub async fn select(&self, precision: Precision) -> Result<Active, Refusal> {
        let _turn = self.exchange.lock().await;
        let selected = self.pipeline.select(precision).await;
        let active = match selected {
            Err(missing @ SwapError::Missing(Precision::Int8, _)) => {
                match self.stored_int8().await.map_err(Refusal::Stored)? {
                    Some(version) => self
                        .install_stored(&version)
                        .await
                        .map_err(|failure| Refusal::Stored(failure.to_string()))?,
                    None => return Err(missing.into()),
                }
            }
            selected => selected?,
        };
        self.remember(&active.model).await;
        Ok(active)
    }

    /// Makes the model that ran last the running one, if the store has it, it is whole, and it fits.
    ///
    /// What speaks against it is said in the status; the float model runs then.
    pub async fn resume(&self) {
        let _turn = self.exchange.lock().await;
        let picked = self.ask_store(|store, node, float| store.pick(node, float));
        let mut start = Start::default();
        match picked.await {
            Ok(pick) => {
                start.problems = said(&pick);
                if let Some(version) = &pick.version {
                    match self.install_stored(version).await {
                        Ok(active) => {
                            tracing::info!("INT8 model {} runs, as before", version.id);
                            self.remember(&active.model).await;
                            start.model = Some(version.id.clone());
                        }
                        Err(failure) => start.problems.push(format!("{}: {failure}", version.id)),
                    }
                }
            }
            Err(problem) => start.problems.push(problem),
        }
        if !start.problems.is_empty() {
            let what = start.model.as_deref().unwrap_or("the float model");
            let problems = start.problems.join("; ");
            tracing::warn!("the model that ran last cannot run, {what} does: {problems}");
        }
        self.work.send_modify(|work| work.start = Some(start));
    }

    /// Tells the store of models that the pipeline gives up by itself, as long as it lives.
    pub async fn watch_fallbacks(self: Arc<Self>) {
        let mut active = self.pipeline.active();
        let mut told = None;
        loop {
            let fallback = active.borrow_and_update().fallback.clone();
            if fallback != told
                && let Some(Fallback { model, reason }) = &fallback
                && let Some(id) = self.paths.store.id_of(&model.path)
            {
                let reason = reason.clone();
                self.tell_store(move |store, node| store.give_up(node, &id, &reason))
                    .await;
            }
            told = fallback;
            if active.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks the store something on a thread that may wait.
    async fn ask_store<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ModelStore, &str, &[crate::ptq::report::FileRecord]) -> Result<T, StoreError>
        + Send
        + 'static,
    ) -> Result<T, String> {
        let Paths {
            store, node, base, ..
        } = self.paths.clone();
        let task = tokio::task::spawn_blocking(move || {
            let float = float_files(&base)?;
            read(&store, &node, &float)
        });
        match task.await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        }
    }

    /// The stored INT8 model that ran last, whether the node ran float since or not.
    async fn stored_int8(&self) -> Result<Option<Version>, String> {
        let found = self
            .ask_store(|store, node, float| Ok(store.last_good(&store.selection(node)?, float)));
        let pick = found.await?;
        match (&pick.version, said(&pick)) {
            (None, problems) if !problems.is_empty() => Err(problems.join("; ")),
            _ => Ok(pick.version),
        }
    }

    async fn install_stored(&self, version: &Version) -> Result<Active, Failure> {
        let engine = self.load(version.description()).await?;
        Ok(self.pipeline.install(engine).await?)
    }

    /// Notes in the store what runs, for the next start. A store that cannot be written stops nothing.
    async fn remember(&self, model: &ModelInfo) {
        match (self.paths.store.id_of(&model.path), model.precision) {
            (Some(id), Precision::Int8) => {
                self.tell_store(move |store, node| store.run(node, &id))
                    .await;
            }
            (_, Precision::Float) => {
                self.tell_store(|store, node| store.run_float(node)).await;
            }
            // Started with an INT8 model that is not the store's.
            (None, Precision::Int8) => {}
        }
    }

    /// Has the store note something, on a thread that may wait: for the disk, and for others that change the store.
    async fn tell_store(
        &self,
        tell: impl FnOnce(&ModelStore, &str) -> Result<Selection, StoreError> + Send + 'static,
    ) {
        let Paths { store, node, .. } = self.paths.clone();
        let told = tokio::task::spawn_blocking(move || tell(&store, &node).map(drop)).await;
        // A panic has been reported by then.
        self.note_store(told.unwrap_or(Ok(())));
    }

    fn note_store(&self, done: Result<(), StoreError>) {
        let problem = done.err().map(|error| error.to_string());
        if let Some(problem) = &problem {
            tracing::warn!("the next start will not know what runs now: {problem}");
        }
        self.work.send_if_modified(|work| {
            std::mem::replace(&mut work.store_problem, problem.clone()) != problem
        });
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
        count: usize,
        cancel: watch::Receiver<bool>,
    ) {
        let begin = Instant::now();
        tracing::info!("calibration from {count} frames starts");
        let result = self.attempt(&settings, cancel).await;
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
        cancel: watch::Receiver<bool>,
    ) -> Result<Finished, Failure> {
        let store = self.paths.store.clone();
        let incoming = tokio::task::spawn_blocking(move || store.incoming()).await??;
        let pipeline = self.pipeline.clone();
        let snapshot = tokio::task::spawn_blocking(move || pipeline.buffer().snapshot());
        let bag = snapshot.await??.bag;
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
            max_memory_mb: settings.calibration_max_memory_mb,
        };
        let verdict = self.quantize(&job, cancel.clone()).await?;
        if *cancel.borrow() {
            return Err(Failure::Cancelled);
        }
        self.stage("store");
        let Paths { store, node, .. } = self.paths.clone();
        let made = job.out.clone();
        let add = move || store.add(&made, Some(&node));
        let version = tokio::task::spawn_blocking(add).await??;
        let finished = |outcome| Finished {
            outcome,
            reasons: verdict.reasons.clone(),
            model: version.description(),
        };
        if !verdict.accepted {
            return Ok(finished(Outcome::Refused));
        }
        self.stage("load");
        let engine = self.load(version.description()).await?;
        if *cancel.borrow() {
            return Err(Failure::Cancelled);
        }
        self.stage("swap");
        let _turn = self.exchange.lock().await;
        let active = self.pipeline.install(engine).await?;
        self.remember(&active.model).await;
        Ok(finished(Outcome::Swapped))
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

    /// Loads an engine and runs it on the last frames, away from the live threads.
    async fn load(&self, model: PathBuf) -> Result<Engine, Failure> {
        let frames = self.pipeline.buffer().recent();
        let options = self.runtime.clone();
        let base = self.paths.base.clone();
        tokio::task::spawn_blocking(move || {
            let mut description = ModelDescription::load(&model).map_err(LoadError::from)?;
            // Thresholds are the node's, also those that were changed since the model was made.
            description.post = base.post;
            let mut engine = Engine::open(description, &model, &options)?;
            for frame in &frames {
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

/// What spoke against the models that were not picked.
fn said(pick: &Pick) -> Vec<String> {
    let skipped = pick.skipped.iter();
    skipped
        .map(|(id, unfit)| format!("{id}: {unfit}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::store::Limits;
    use std::path::Path;

    /// A supervisor over a float engine that detects nothing, with a shell script as the
    /// quantization, after `frames` clouds.
    async fn supervisor(folder: &Path, frames: i64, script: &str) -> Arc<Supervisor> {
        use crate::node::pipeline::tests::{engine, start_with, test_cloud};
        use std::os::unix::fs::PermissionsExt;

        let executable = folder.join("quantizer");
        std::fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&executable, PermissionsExt::from_mode(0o755)).unwrap();
        let float = engine("float", Precision::Float, |_| Ok(Vec::new()));
        let (pipeline, mut outputs) = start_with(float, &folder.join("buffer"));
        for stamp in 1..=frames {
            pipeline.push_cloud(test_cloud(stamp, "base_link", 2));
            outputs.recv().await.unwrap();
            pipeline.buffer().settle();
        }
        let settings = Settings {
            calibration_min_frames: 3,
            ..Default::default()
        };
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/model.yaml");
        let paths = Paths {
            executable,
            base: ModelDescription::load(&model).unwrap(),
            model,
            store: ModelStore::new(folder.join("store"), Limits::NONE),
            node: "/centerpoint".into(),
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

    /// A quantization that writes a report and a description that is none.
    fn done(folder: &Path, accepted: bool, reason: &str) -> String {
        let mut report = crate::ptq::report::tests::sample();
        report.model = "demo".into();
        report.check.verdict.accepted = accepted;
        let file = folder.join("made.json");
        std::fs::write(&file, serde_json::to_string(&report).unwrap()).unwrap();
        format!(
            "{OUT}mkdir $out; echo x >$out/model.yaml; cp '{}' $out/report.json; echo '{{\"event\":\"done\",\
             \"out\":\"o\",\"verdict\":{{\"accepted\":{accepted},\"reasons\":[\"{reason}\"]}}}}'",
            file.display()
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
        let left = std::fs::read_dir(folder.path().join("store/incoming"));
        assert_eq!(left.unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_refused_model_is_kept_with_its_report_and_float_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let script = done(folder.path(), false, "lost cars");
        let supervisor = supervisor(folder.path(), 4, &script).await;
        supervisor.calibrate().unwrap();
        let last = finished(&supervisor).await;
        assert_eq!(last.outcome, Outcome::Refused);
        assert_eq!(last.reasons, ["lost cars"]);
        let kept = &supervisor.paths.store.list().unwrap().versions[0];
        assert_eq!(last.model.unwrap(), kept.description());
        assert_eq!(last.report.unwrap(), kept.report());
        assert!(!kept.accepted && kept.description().is_file());
        assert_eq!(supervisor.status().precision, Precision::Float);
    }

    #[tokio::test]
    async fn a_model_that_does_not_load_leaves_float_running_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 4, &done(folder.path(), true, "")).await;
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

    /// Puts the demo model, called INT8, into a supervisor's store.
    fn stored(supervisor: &Supervisor) -> Version {
        let Paths { store, base, .. } = &supervisor.paths;
        let incoming = store.incoming().unwrap();
        let made = incoming.path().join("model");
        std::fs::create_dir(&made).unwrap();
        for file in [base.encoder_path(), base.backbone_path()] {
            std::fs::copy(&file, made.join(file.file_name().unwrap())).unwrap();
        }
        let mut description = base.clone();
        description.precision = Precision::Int8;
        description.post.score_thresholds = vec![0.9; description.classes.len()];
        description.save(&made.join("model.yaml")).unwrap();
        let mut report = crate::ptq::report::tests::sample();
        report.model = "demo".into();
        report.float_files = float_files(base).unwrap();
        report.check.verdict.accepted = true;
        report.reduced_range = true;
        let text = serde_json::to_string(&report).unwrap();
        std::fs::write(made.join("report.json"), text).unwrap();
        store.add(&made, None).unwrap()
    }

    /// A supervisor whose float engine has the demo model's classes.
    async fn demo(folder: &Path) -> Arc<Supervisor> {
        use crate::node::pipeline::tests::{engine_of, start};
        let mut demo = supervisor(folder, 0, "exit 1").await;
        let classes = demo.paths.base.classes.clone();
        let float = engine_of("float", Precision::Float, classes, |_| Ok(Vec::new()));
        Arc::get_mut(&mut demo).unwrap().pipeline = Arc::new(start(float).0);
        demo
    }

    #[tokio::test]
    async fn a_node_starts_with_the_model_that_ran_last_unless_float_did() {
        let folder = tempfile::tempdir().unwrap();
        let first = demo(folder.path()).await;
        let version = stored(&first);
        first.resume().await;
        // Nobody chose it yet.
        assert_eq!(first.status().precision, Precision::Float);
        first.paths.store.run("/centerpoint", &version.id).unwrap();

        let second = demo(folder.path()).await;
        second.resume().await;
        let status = second.status();
        assert_eq!(status.precision, Precision::Int8);
        assert_eq!(status.start.unwrap().model, Some(version.id.clone()));
        second.select(Precision::Float).await.unwrap();

        let third = demo(folder.path()).await;
        third.resume().await;
        assert_eq!(third.status().precision, Precision::Float);
        // It is not loaded, but there.
        third.select(Precision::Int8).await.unwrap();
        assert_eq!(third.status().model_path, version.description());
        let selection = third.paths.store.selection("/centerpoint").unwrap();
        assert_eq!(selection.runs, Some(version.id));
    }

    #[tokio::test]
    async fn a_damaged_model_leaves_float_running_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let node = demo(folder.path()).await;
        let version = stored(&node);
        node.paths.store.run("/centerpoint", &version.id).unwrap();
        let file = version.folder.join(&node.paths.base.backbone.file);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[1000] ^= 1;
        std::fs::write(&file, bytes).unwrap();

        node.resume().await;
        let status = node.status();
        assert_eq!(status.precision, Precision::Float);
        let problem = &status.start.unwrap().problems[0];
        assert!(
            problem.contains(&version.id) && problem.contains("pts_backbone"),
            "{problem}"
        );
        let refusal = node.select(Precision::Int8).await.unwrap_err();
        assert!(refusal.to_string().contains("pts_backbone"), "{refusal}");
    }

    #[tokio::test]
    async fn a_model_that_fails_while_it_runs_is_not_started_again() {
        use crate::node::pipeline::tests::{engine_of, test_cloud};
        let folder = tempfile::tempdir().unwrap();
        let node = demo(folder.path()).await;
        let version = stored(&node);
        node.paths.store.run("/centerpoint", &version.id).unwrap();
        let watcher = tokio::spawn(node.clone().watch_fallbacks());
        let classes = node.paths.base.classes.clone();
        let mut failing = engine_of("bad", Precision::Int8, classes, |_| Err("broken".into()));
        let mut info = (*failing.info).clone();
        info.path = version.description();
        failing.info = Arc::new(info);
        node.pipeline.install(failing).await.unwrap();
        node.pipeline.push_cloud(test_cloud(1, "base_link", 2));
        let store = &node.paths.store;
        let given_up = async {
            loop {
                let selection = store.selection("/centerpoint").unwrap();
                if let Some(reason) = selection.given_up.get(&version.id) {
                    return (reason.clone(), selection.runs);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(20);
        let (reason, runs) = tokio::time::timeout(limit, given_up).await.unwrap();
        assert!(reason.contains("broken") && runs.is_none(), "{reason}");
        watcher.abort();
    }
}
