//! From clouds to detections on two threads, always on the newest data.
//!
//! ```text
//! ROS ─► clouds (1 slot) ─► assembly thread ─► frames (1 slot) ─► inference thread ─► outputs
//!        /tf ──────────────────▲                    engine swaps ──▲       └─► calibration buffer
//! ```
//!
//! Assembly (decode, transform, join sweeps) sees every cloud it can, so that the sweeps it joins
//! stay close in time even where inference is slower than the sensor. A cloud that finds its slot
//! taken displaces the older one, which counts as dropped. Engines change between two frames: the
//! new one arrives loaded and warm, the exchange itself is a move.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use super::engine::{Engine, EngineError, LoadError, ModelInfo, Object};
use super::latency::{Latency, Summary};
use super::latest::{Latest, Taken};
use super::shadow::{self, Check, ShadowSettings, ShadowState};
use super::throttle::Throttle;
use super::troubles::{Part, Symptom, Trouble, Troubles};
use super::waiting;
use crate::bag::Stamp;
use crate::bag::msg::{Header, PointCloud2, TfMessage};
use crate::calibration::CalibrationBuffer;
use crate::cloud::Points;
use crate::cloud::condition::Condition;
use crate::cloud::frames::{Frame, FrameAssembler, FrameError};
use crate::detector::{Inference, Precision, Timing};
use crate::text::{printable, shown};

/// How long a cloud waits for the transforms of its stamp, which travel on another topic.
const TRANSFORM_PATIENCE: Duration = Duration::from_millis(200);
/// After this many waits in vain the transforms count as gone, and only one cloud in
/// [`TRANSFORM_RETRY`] still waits.
const TRANSFORM_TRIES: u32 = 5;
const TRANSFORM_RETRY: Duration = Duration::from_secs(2);
/// Longest words for why a cloud was dropped, in characters.
const LONGEST_PROBLEM: usize = 1000;
/// How often the threads look up from an empty slot.
const IDLE: Duration = Duration::from_millis(200);
/// Samples in the latency windows: a minute at 10 Hz.
const WINDOW: usize = 600;
/// An inference that takes this long counts as one that may never end.
const STUCK: Duration = Duration::from_secs(10);
/// A warning that recurs with every frame is said this often.
const WARN_PERIOD: Duration = Duration::from_secs(5);

/// Why a cloud gave no output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Drop {
    /// A newer cloud came before this one's turn.
    Superseded,
    /// The cloud could not be read: missing fields, wrong sizes.
    BadCloud,
    /// The cloud holds no finite point.
    EmptyCloud,
    /// `/tf` does not lead from the cloud to the model's frame.
    NoTransform,
    /// The engine failed, and so did the float engine where there is one to fall back to.
    EngineError,
}

impl Drop {
    pub const ALL: [Drop; 5] = [
        Drop::Superseded,
        Drop::BadCloud,
        Drop::EmptyCloud,
        Drop::NoTransform,
        Drop::EngineError,
    ];

    /// What a cloud dropped for this reason tells of; being superseded is no trouble.
    fn symptom(self, problem: &str) -> Option<(Part, Symptom<'_>)> {
        // The log hears of each kind of problem again and again.
        match self {
            Drop::Superseded => None,
            Drop::BadCloud | Drop::EmptyCloud | Drop::NoTransform => {
                let symptom = Symptom::warn(self.name(), problem);
                Some((Part::Input, symptom.logged()))
            }
            Drop::EngineError => {
                let symptom = Symptom::error(self.name(), problem);
                Some((Part::Detection, symptom.logged()))
            }
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Drop::Superseded => "superseded",
            Drop::BadCloud => "bad_cloud",
            Drop::EmptyCloud => "empty_cloud",
            Drop::NoTransform => "no_transform",
            Drop::EngineError => "engine_error",
        }
    }
}

/// What happened so far. `received` is the sum of `published`, `dropped` and what is under way.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Counters {
    pub received: u64,
    pub published: u64,
    /// Clouds without an output, by reason.
    pub dropped: BTreeMap<Drop, u64>,
    /// Outputs made by INT8 engines.
    pub published_int8: u64,
    /// Pillars that did not fit the model, over all frames.
    pub dropped_pillars: u64,
}

impl Counters {
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.dropped.get(&reason).copied().unwrap_or(0)
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// Counters and latencies at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Statistics {
    #[serde(flatten)]
    pub counters: Counters,
    /// Work on a frame: assembly and inference, without waiting.
    pub processing: Option<Summary>,
    /// Inference alone, by precision of the engine.
    pub inference_float: Option<Summary>,
    pub inference_int8: Option<Summary>,
    /// What handing a frame to the calibration buffer takes of the inference thread.
    pub buffer: Option<Summary>,
    /// Seconds since a cloud last arrived.
    pub last_cloud_s: Option<f64>,
    /// What was wrong with the last cloud dropped for another reason than being superseded.
    pub last_problem: Option<String>,
    /// What is wrong now.
    pub troubles: Vec<Trouble>,
    /// The float model's check of the INT8 one, where there is one.
    pub shadow: Option<ShadowState>,
}

/// The detections of one cloud.
#[derive(Debug, Clone)]
pub struct Output {
    /// Header of the cloud, as it came.
    pub header: Header,
    /// In the cloud's frame.
    pub objects: Vec<Object>,
    pub model: Arc<ModelInfo>,
    pub points: usize,
    pub pillars: usize,
    pub timing: Timing,
    /// Work on this frame: assembly and inference, without waiting.
    pub processing_ms: f32,
    /// When the node received the cloud.
    pub arrived: Instant,
}

impl Output {
    pub fn class_name(&self, class: usize) -> &str {
        self.model.classes.get(class).map_or("UNKNOWN", |name| name)
    }
}

/// Which engines there are and which one runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Active {
    pub model: Arc<ModelInfo>,
    /// The last good INT8 model, running or not.
    pub int8: Option<Arc<ModelInfo>>,
    /// The INT8 model that the node left by itself; cleared by the next good swap.
    pub fallback: Option<Fallback>,
}

/// An INT8 model that failed while it ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Fallback {
    pub model: Arc<ModelInfo>,
    pub reason: String,
}

/// Why an engine was not exchanged.
#[derive(Debug, Error, PartialEq)]
pub enum SwapError {
    #[error("there is no {0} model to change to{1}")]
    Missing(Precision, String),
    #[error("'{id}' is a {actual} model where a {expected} one belongs")]
    Precision {
        id: String,
        expected: Precision,
        actual: Precision,
    },
    #[error("the classes of '{id}' differ from those of the float model")]
    Classes { id: String },
    #[error("the node is shutting down")]
    Stopping,
}

/// The engine that left and the state after it; dropping it here keeps that off the inference thread.
pub struct Swapped {
    pub active: Active,
    pub retired: Option<Engine>,
}

enum Command {
    Install(Box<Engine>, oneshot::Sender<Result<Swapped, SwapError>>),
    Select(Precision, oneshot::Sender<Result<Swapped, SwapError>>),
    /// To float, and the INT8 model is no more.
    Discard(oneshot::Sender<Result<Swapped, SwapError>>),
    /// The model disagrees with float; if it still runs, it does no longer.
    GiveUp(Arc<ModelInfo>, String),
}

struct Arrived {
    cloud: PointCloud2,
    /// By the node's clock, as ROS has it.
    received: Stamp,
    at: Instant,
}

struct Assembled {
    header: Header,
    frame: Arc<Frame>,
    arrived: Instant,
    assembly_ms: f32,
}

struct Ledger {
    counters: Counters,
    processing: Latency,
    float: Latency,
    int8: Latency,
    buffer: Latency,
    last_cloud: Option<Instant>,
    last_problem: Option<String>,
    throttle: Throttle,
    troubles: Troubles,
    /// Since when the inference thread is at its present frame.
    inferring: Option<Instant>,
}

struct Shared {
    clouds: Latest<Arrived>,
    frames: Latest<Assembled>,
    transforms: Mutex<waiting::Transforms>,
    /// `None` once nobody is there to obey.
    commands: Mutex<Option<VecDeque<Command>>>,
    ledger: Mutex<Ledger>,
    buffer: CalibrationBuffer,
    /// Set where the float model checks the INT8 one.
    shadow: OnceLock<shadow::Offers>,
    shadow_state: Mutex<Option<ShadowState>>,
    active: watch::Sender<Active>,
    /// Grows when something begins to be wrong, or ends.
    trouble: watch::Sender<u64>,
    stopping: AtomicBool,
}

/// The two threads and their slots. Dropping it stops them.
pub struct Pipeline {
    shared: Arc<Shared>,
    base: Arc<ModelInfo>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pipeline {
    /// Starts both threads on `engine`. Outputs come in the order of their clouds.
    ///
    /// A cloud in another frame than the model's waits for tf: taking it as lying in the model's
    /// frame would give wrong boxes without a word.
    pub fn start(
        engine: Engine,
        mut assembler: FrameAssembler,
        buffer: CalibrationBuffer,
        outputs: mpsc::Sender<Output>,
    ) -> std::io::Result<Self> {
        assembler.expect_tf();
        let base = engine.info.clone();
        let engines = Engines::new(engine);
        let shared = Arc::new(Shared {
            clouds: Latest::default(),
            frames: Latest::default(),
            transforms: Mutex::default(),
            commands: Mutex::new(Some(VecDeque::new())),
            ledger: Mutex::new(Ledger {
                counters: Counters::default(),
                processing: Latency::new(WINDOW),
                float: Latency::new(WINDOW),
                int8: Latency::new(WINDOW),
                buffer: Latency::new(WINDOW),
                last_cloud: None,
                last_problem: None,
                throttle: Throttle::new(WARN_PERIOD),
                troubles: Troubles::default(),
                inferring: None,
            }),
            buffer,
            shadow: OnceLock::new(),
            shadow_state: Mutex::default(),
            active: watch::Sender::new(engines.active()),
            trouble: watch::Sender::new(0),
            stopping: AtomicBool::new(false),
        });
        let pipeline = Self {
            shared: shared.clone(),
            base,
            threads: Mutex::default(),
        };
        pipeline.spawn("assembly", {
            let shared = shared.clone();
            move || shared.assemble(assembler)
        })?;
        pipeline.spawn("inference", move || shared.infer(engines, outputs))?;
        Ok(pipeline)
    }

    /// Has the float model check the INT8 one from here on. `load` loads it once the first frame is due.
    pub fn start_shadow(
        &self,
        settings: ShadowSettings,
        load: impl FnMut() -> Result<Engine, LoadError> + Send + 'static,
    ) -> std::io::Result<()> {
        let (offers, seen) = shadow::Offers::new(settings);
        if self.shared.shadow.set(offers).is_err() {
            return Ok(());
        }
        *lock(&self.shared.shadow_state) = Some(ShadowState::default());
        let shared = self.shared.clone();
        self.spawn("shadow", move || {
            Check::new(settings).run(
                &seen,
                load,
                || shared.stopping.load(Ordering::Relaxed),
                |state| *lock(&shared.shadow_state) = Some(state),
                |model, reason| {
                    if let Some(commands) = &mut *lock(&shared.commands) {
                        commands.push_back(Command::GiveUp(model, reason));
                    }
                    shared.frames.nudge();
                },
            );
        })
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(body)?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Hands in a cloud that came at its own stamp; see [`push_received`](Self::push_received).
    pub fn push_cloud(&self, cloud: PointCloud2) {
        let received = cloud.header.stamp;
        self.push_received(cloud, received);
    }

    /// Hands in a cloud that came at `received`, by the clock that stamps the transforms; never waits.
    pub fn push_received(&self, cloud: PointCloud2, received: Stamp) {
        let at = Instant::now();
        {
            let mut ledger = self.shared.ledger();
            ledger.counters.received += 1;
            ledger.last_cloud = Some(at);
        }
        if self
            .shared
            .clouds
            .put(Arrived {
                cloud,
                received,
                at,
            })
            .is_some()
        {
            self.shared.drop_cloud(Drop::Superseded, None);
        }
    }

    /// Counts clouds that were thrown away before they came here, for a newer one.
    pub fn count_superseded(&self, clouds: u64) {
        let mut ledger = self.shared.ledger();
        ledger.counters.received += clouds;
        *ledger.counters.dropped.entry(Drop::Superseded).or_default() += clouds;
    }

    /// Hands in transforms of `/tf` or `/tf_static`; never waits.
    pub fn push_transforms(&self, transforms: TfMessage, is_static: bool) {
        lock(&self.shared.transforms).push(transforms, is_static);
    }

    /// Makes a loaded, warm INT8 engine the running one, between two frames.
    pub async fn install(&self, engine: Engine) -> Result<Active, SwapError> {
        let (sender, reply) = oneshot::channel();
        self.command(Command::Install(Box::new(engine), sender), reply)
            .await
    }

    /// Changes to the engine of the given precision, between two frames.
    pub async fn select(&self, precision: Precision) -> Result<Active, SwapError> {
        let (sender, reply) = oneshot::channel();
        self.command(Command::Select(precision, sender), reply)
            .await
    }

    /// Changes to float, between two frames, and drops the INT8 engine: there is none to go back to then.
    pub async fn discard(&self) -> Result<Active, SwapError> {
        let (sender, reply) = oneshot::channel();
        self.command(Command::Discard(sender), reply).await
    }

    async fn command(
        &self,
        command: Command,
        reply: oneshot::Receiver<Result<Swapped, SwapError>>,
    ) -> Result<Active, SwapError> {
        match &mut *lock(&self.shared.commands) {
            Some(commands) => commands.push_back(command),
            None => return Err(SwapError::Stopping),
        }
        self.shared.frames.nudge();
        let swapped = reply.await.map_err(|_| SwapError::Stopping)??;
        // Tearing an engine down takes a while: not on this worker either.
        tokio::task::spawn_blocking(move || drop(swapped.retired));
        Ok(swapped.active)
    }

    /// The model that the node was started with.
    pub fn base(&self) -> &Arc<ModelInfo> {
        &self.base
    }

    /// Which engine runs, and every change of it.
    pub fn active(&self) -> watch::Receiver<Active> {
        self.shared.active.subscribe()
    }

    /// Says that something is wrong from now on and how it shows, or, without a symptom, that it is no more.
    pub fn set_trouble(&self, part: Part, kind: &'static str, symptom: Option<Symptom>) {
        let now = Instant::now();
        self.shared.note(|troubles| match symptom {
            Some(symptom) => troubles.set(part, symptom, now),
            None => troubles.clear(part, kind, now),
        });
    }

    /// What is wrong now.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.shared.ledger().troubles.list(Instant::now())
    }

    /// Changes whenever something begins to be wrong, shows otherwise, or ends.
    pub fn trouble_changes(&self) -> watch::Receiver<u64> {
        self.shared.trouble.subscribe()
    }

    pub fn statistics(&self) -> Statistics {
        let ledger = self.shared.ledger();
        Statistics {
            counters: ledger.counters.clone(),
            processing: ledger.processing.summary(),
            inference_float: ledger.float.summary(),
            inference_int8: ledger.int8.summary(),
            buffer: ledger.buffer.summary(),
            last_cloud_s: ledger.last_cloud.map(|at| at.elapsed().as_secs_f64()),
            last_problem: ledger.last_problem.clone(),
            troubles: ledger.troubles.list(Instant::now()),
            shadow: lock(&self.shared.shadow_state).clone(),
        }
    }

    /// The frames for a calibration.
    pub fn buffer(&self) -> &CalibrationBuffer {
        &self.shared.buffer
    }

    /// Whether both threads run. They end early only by a panic, which is a bug.
    pub fn is_alive(&self) -> bool {
        lock(&self.threads)
            .iter()
            .all(|thread| !thread.is_finished())
    }

    /// Ends both threads; `false` when they did not end in time (an inference may take that long).
    pub fn stop(&self, timeout: Duration) -> bool {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.clouds.close();
        self.shared.frames.close();
        let deadline = Instant::now() + timeout;
        let mut threads = lock(&self.threads);
        while threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a pipeline thread ended by a panic");
            }
        }
        true
    }
}

impl std::ops::Drop for Pipeline {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(1));
    }
}

// The data behind the locks is plain counts and queues, valid after any single operation.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Changes what is wrong, and tells who waits for that.
    fn note(&self, change: impl FnOnce(&mut Troubles)) {
        let changes = {
            let troubles = &mut self.ledger().troubles;
            change(troubles);
            troubles.changes()
        };
        self.trouble
            .send_if_modified(|told| std::mem::replace(told, changes) != changes);
    }

    /// Counts a cloud without output; a `problem` is also said, now and then.
    fn drop_cloud(&self, reason: Drop, problem: Option<String>) {
        let now = Instant::now();
        // It goes into diagnostics every second.
        let problem = problem.map(|problem| printable(&problem, LONGEST_PROBLEM));
        {
            let mut ledger = self.ledger();
            *ledger.counters.dropped.entry(reason).or_default() += 1;
            let Some(problem) = &problem else { return };
            match ledger.throttle.allow(reason.name(), now) {
                Some(0) => tracing::warn!("dropped: {problem}"),
                Some(held) => tracing::warn!("dropped: {problem} ({held} more like it)"),
                None => {}
            }
            ledger.last_problem = Some(problem.clone());
        }
        let text = problem.unwrap_or_default();
        if let Some((part, symptom)) = reason.symptom(&text) {
            self.note(|troubles| troubles.saw(part, [symptom], now));
        }
    }

    /// Notes a cloud that was used, with what was wrong with it.
    fn saw(&self, part: Part, conditions: &[Condition]) {
        let symptoms = conditions
            .iter()
            .map(|condition| Symptom::warn(condition.kind.name(), &condition.text));
        self.note(|troubles| troubles.saw(part, symptoms, Instant::now()));
    }

    fn assemble(&self, mut assembler: FrameAssembler) {
        let mut waits = Waits::default();
        loop {
            match self.clouds.take(IDLE) {
                Taken::Value(arrived) => self.assemble_one(&mut assembler, &mut waits, arrived),
                Taken::Nothing => self.feed_transforms(&mut assembler),
                Taken::Closed => return,
            }
            self.look_up();
        }
    }

    /// Ends troubles that are over, and sees whether the inference still comes to an end.
    fn look_up(&self) {
        let now = Instant::now();
        let inferring = self.ledger().inferring;
        let stuck = inferring.filter(|begin| now.duration_since(*begin) >= STUCK);
        let text = format!(
            "the inference of one cloud has not ended for more than {} s, and nothing is detected meanwhile",
            STUCK.as_secs()
        );
        self.note(|troubles| {
            troubles.expire(now);
            match stuck {
                Some(_) => troubles.set(Part::Detection, Symptom::error("stuck", &text), now),
                None => troubles.clear(Part::Detection, "stuck", now),
            }
        });
    }

    fn feed_transforms(&self, assembler: &mut FrameAssembler) {
        let waiting = lock(&self.transforms).take();
        for (transforms, is_static) in waiting {
            assembler.push_tf(&transforms, is_static);
        }
    }

    fn assemble_one(&self, assembler: &mut FrameAssembler, waits: &mut Waits, arrived: Arrived) {
        let patience = arrived.at + TRANSFORM_PATIENCE;
        let header = arrived.cloud.header.clone();
        self.feed_transforms(assembler);
        if assembler.awaits_tf(&header, arrived.received) {
            if waits.may_wait() {
                while assembler.awaits_tf(&header, arrived.received)
                    && Instant::now() < patience
                    && !self.stopping.load(Ordering::Relaxed)
                {
                    std::thread::sleep(Duration::from_millis(2));
                    self.feed_transforms(assembler);
                }
                waits.ended(!assembler.awaits_tf(&header, arrived.received));
            }
        } else {
            waits.ended(true);
        }
        let begin = Instant::now();
        match assembler.push_received(&arrived.cloud, arrived.received) {
            Ok(frame) if frame.points.is_empty() => {
                let problem = format!(
                    "cloud of frame \"{}\" at {}: no finite point in it",
                    shown(&header.frame_id),
                    header.stamp
                );
                self.drop_cloud(Drop::EmptyCloud, Some(problem));
            }
            Ok(frame) => {
                self.saw(Part::Input, &frame.conditions);
                let assembled = Assembled {
                    header,
                    frame: Arc::new(frame),
                    arrived: arrived.at,
                    assembly_ms: ms(begin.elapsed()),
                };
                if self.frames.put(assembled).is_some() {
                    self.drop_cloud(Drop::Superseded, None);
                }
            }
            Err(error) => {
                let (reason, problem) = match &error {
                    FrameError::Tf { .. } => (
                        Drop::NoTransform,
                        format!("{error}; publish tf, or set input.sensor_pose"),
                    ),
                    _ => (Drop::BadCloud, error.to_string()),
                };
                self.drop_cloud(reason, Some(problem));
            }
        }
    }

    fn next_command(&self) -> Option<Command> {
        lock(&self.commands).as_mut()?.pop_front()
    }

    fn infer(&self, mut engines: Engines, outputs: mpsc::Sender<Output>) {
        // Whatever ends this thread, who waits for an exchange learns that none will come.
        let _end = OnDrop(|| *lock(&self.commands) = None);
        loop {
            // Taken one by one: the lock is not held while a command runs.
            while let Some(command) = self.next_command() {
                self.obey(&mut engines, command);
            }
            match self.frames.take(IDLE) {
                Taken::Value(assembled) => {
                    self.ledger().inferring = Some(Instant::now());
                    let output = self.infer_one(&mut engines, assembled);
                    self.ledger().inferring = None;
                    if let Some(output) = output
                        && outputs.blocking_send(output).is_err()
                    {
                        return;
                    }
                }
                Taken::Nothing => {}
                Taken::Closed => return,
            }
        }
    }

    fn obey(&self, engines: &mut Engines, command: Command) {
        let (result, reply) = match command {
            Command::Install(engine, reply) => (engines.install(*engine), reply),
            Command::Select(precision, reply) => (engines.select(precision).map(|()| None), reply),
            Command::Discard(reply) => (Ok(engines.discard()), reply),
            Command::GiveUp(model, reason) => {
                if engines.running().info == model {
                    self.fall_back(engines, reason);
                }
                return;
            }
        };
        let result = result.map(|retired| {
            let active = engines.active();
            self.active.send_replace(active.clone());
            Swapped { active, retired }
        });
        // The asker may have gone; the change stands and shows in the status.
        drop(reply.send(result));
    }

    /// Gives up the running INT8 engine; `false` where none runs.
    fn fall_back(&self, engines: &mut Engines, reason: String) -> bool {
        let Some(retired) = engines.fall_back(reason.clone()) else {
            return false;
        };
        tracing::error!("INT8 is given up, back to float: {reason}");
        self.active.send_replace(engines.active());
        // Tearing an engine down takes a while, and the cloud waits. Where there is no thread to be had, it waits longer.
        let elsewhere = std::thread::Builder::new().name("retired".into());
        if let Err(error) = elsewhere.spawn(move || drop(retired)) {
            tracing::debug!("no thread to drop the engine on: {error}");
        }
        true
    }

    fn infer_one(&self, engines: &mut Engines, assembled: Assembled) -> Option<Output> {
        let begin = Instant::now();
        let points = &assembled.frame.points;
        let mut result = engines.detect(points);
        if let Err(error) = &result
            && self.fall_back(engines, error.to_string())
        {
            result = engines.detect(points);
        }
        let inference = match result {
            Ok(inference) => inference,
            Err(error) => {
                self.drop_cloud(Drop::EngineError, Some(error.to_string()));
                return None;
            }
        };
        let inference_ms = ms(begin.elapsed());
        let processing_ms = assembled.assembly_ms + inference_ms;
        let model = engines.running().info.clone();
        self.account(&model, &inference, inference_ms, processing_ms);
        self.saw(Part::Detection, &inference.conditions);
        if let (Some(shadow), Precision::Int8) = (self.shadow.get(), model.precision) {
            shadow.offer(&assembled.frame, &inference.detections, &model);
        }
        let classes = model.classes.len();
        let begin = Instant::now();
        self.buffer
            .offer(&assembled.frame, &inference.detections, classes);
        self.ledger().buffer.add(ms(begin.elapsed()));
        Some(Output {
            header: assembled.header,
            objects: inference
                .detections
                .iter()
                .map(|d| Object::place(d, &assembled.frame.model_from_cloud))
                .collect(),
            model,
            points: points.len(),
            pillars: inference.pillars,
            timing: inference.timing,
            processing_ms,
            arrived: assembled.arrived,
        })
    }

    fn account(
        &self,
        model: &ModelInfo,
        inference: &Inference,
        inference_ms: f32,
        processing_ms: f32,
    ) {
        let mut ledger = self.ledger();
        ledger.counters.published += 1;
        ledger.counters.dropped_pillars += inference.dropped_pillars as u64;
        ledger.processing.add(processing_ms);
        match model.precision {
            Precision::Float => ledger.float.add(inference_ms),
            Precision::Int8 => {
                ledger.counters.published_int8 += 1;
                ledger.int8.add(inference_ms);
            }
        }
    }
}

/// Whether transforms are worth waiting for.
#[derive(Default)]
struct Waits {
    in_vain: u32,
    last: Option<Instant>,
}

impl Waits {
    fn may_wait(&self) -> bool {
        self.in_vain < TRANSFORM_TRIES || self.last.is_none_or(|l| l.elapsed() > TRANSFORM_RETRY)
    }

    fn ended(&mut self, well: bool) {
        if well {
            self.in_vain = 0;
        } else {
            self.in_vain += 1;
            self.last = Some(Instant::now());
        }
    }
}

/// Calls a function when it goes.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> std::ops::Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn ms(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e3
}

/// The engines of the inference thread. There is always one that runs.
struct Engines {
    /// The model the node was started with: float, or an INT8 model given as such.
    base: Engine,
    /// The last good INT8 model made from it.
    int8: Option<Engine>,
    int8_runs: bool,
    fallback: Option<Fallback>,
}

impl Engines {
    fn new(base: Engine) -> Self {
        Self {
            base,
            int8: None,
            int8_runs: false,
            fallback: None,
        }
    }

    fn running(&self) -> &Engine {
        match &self.int8 {
            Some(int8) if self.int8_runs => int8,
            _ => &self.base,
        }
    }

    fn detect(&mut self, points: &Points) -> Result<Inference, EngineError> {
        match &mut self.int8 {
            Some(int8) if self.int8_runs => int8.detect(points),
            _ => self.base.detect(points),
        }
    }

    fn active(&self) -> Active {
        Active {
            model: self.running().info.clone(),
            int8: self.int8.as_ref().map(|engine| engine.info.clone()),
            fallback: self.fallback.clone(),
        }
    }

    fn install(&mut self, engine: Engine) -> Result<Option<Engine>, SwapError> {
        if engine.info.precision != Precision::Int8 {
            return Err(SwapError::Precision {
                id: engine.info.id.clone(),
                expected: Precision::Int8,
                actual: engine.info.precision,
            });
        }
        if engine.info.classes != self.base.info.classes {
            return Err(SwapError::Classes {
                id: engine.info.id.clone(),
            });
        }
        self.int8_runs = true;
        self.fallback = None;
        Ok(self.int8.replace(engine))
    }

    fn select(&mut self, precision: Precision) -> Result<(), SwapError> {
        if precision == self.base.info.precision {
            self.int8_runs = false;
        } else if precision == Precision::Int8 && self.int8.is_some() {
            self.int8_runs = true;
        } else {
            let why = match &self.fallback {
                Some(last) => format!("; the last one was given up: {}", last.reason),
                None => String::new(),
            };
            return Err(SwapError::Missing(precision, why));
        }
        Ok(())
    }

    /// Goes to the model that the node was started with, for good.
    fn discard(&mut self) -> Option<Engine> {
        self.int8_runs = false;
        self.fallback = None;
        self.int8.take()
    }

    /// Gives up a failing INT8 engine and returns it; `None` when that is not the one that runs.
    fn fall_back(&mut self, reason: String) -> Option<Engine> {
        let engine = self.int8.take_if(|_| self.int8_runs)?;
        self.int8_runs = false;
        self.fallback = Some(Fallback {
            model: engine.info.clone(),
            reason,
        });
        Some(engine)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bag::Stamp;
    use crate::bag::msg::{Transform, TransformStamped};
    use crate::calibration::Policy;
    use crate::calibration::selection::Choice;
    use crate::cloud::condition::ConditionKind;
    use crate::cloud::frames::InputOptions;
    use crate::cloud::{self, Point};
    use crate::geometry::{Box3d, Detection};
    use crate::node::engine::Detect;
    use nalgebra::Vector3;
    use std::error::Error;
    use std::sync::atomic::AtomicU64;

    /// Longest wait for what must happen: it ends a hang, a busy machine needs little of it.
    const PATIENCE: Duration = Duration::from_secs(120);
    const MODEL_FRAME: &str = "base_link";

    type Detected = Result<Vec<Detection>, String>;
    type Script = fn(&Points) -> Detected;

    /// An engine that does as a closure says.
    struct Scripted<F>(F);

    impl<F> Detect for Scripted<F>
    where
        F: FnMut(&Points) -> Detected + Send,
    {
        fn detect(&mut self, points: &Points) -> Result<Inference, Box<dyn Error + Send + Sync>> {
            Ok(Inference {
                detections: (self.0)(points)?,
                ..Default::default()
            })
        }
    }

    pub(crate) fn engine(
        id: &str,
        precision: Precision,
        script: impl FnMut(&Points) -> Detected + Send + 'static,
    ) -> Engine {
        engine_of(id, precision, vec!["CAR".into(), "BUS".into()], script)
    }

    pub(crate) fn engine_of(
        id: &str,
        precision: Precision,
        classes: Vec<String>,
        script: impl FnMut(&Points) -> Detected + Send + 'static,
    ) -> Engine {
        let info = ModelInfo {
            id: id.into(),
            precision,
            path: id.into(),
            classes,
            bytes: 1,
            files: Vec::new(),
            kernels: None,
        };
        Engine::new(info, Box::new(Scripted(script)))
    }

    fn quiet(_: &Points) -> Detected {
        Ok(Vec::new())
    }

    fn one_box(x: f32) -> Vec<Detection> {
        vec![Detection {
            bbox: Box3d {
                center: Vector3::new(x, 0.0, 0.0),
                size: Vector3::new(4.0, 2.0, 1.5),
                yaw: 0.0,
            },
            class: 1,
            score: 0.5,
            velocity: None,
        }]
    }

    pub(crate) fn test_cloud(stamp: i64, frame_id: &str, points: usize) -> PointCloud2 {
        let points = Points(
            (0..points)
                .map(|i| Point {
                    x: i as f32,
                    ..Default::default()
                })
                .collect(),
        );
        let header = Header {
            stamp: Stamp(stamp),
            frame_id: frame_id.into(),
        };
        cloud::encode(&points, header, false)
    }

    pub(crate) fn start(engine: Engine) -> (Pipeline, mpsc::Receiver<Output>) {
        // In a folder that goes at once: whoever wants the frames on the disk names one.
        let folder = tempfile::tempdir().unwrap();
        start_with(engine, folder.path())
    }

    pub(crate) fn start_with(
        engine: Engine,
        folder: &std::path::Path,
    ) -> (Pipeline, mpsc::Receiver<Output>) {
        let policy = Policy {
            choice: Choice::Newest,
            max_frames: 16,
            min_period_s: 0.0,
            ..Default::default()
        };
        let options = InputOptions {
            model_frame: Some(MODEL_FRAME.into()),
            ..Default::default()
        };
        let (sender, outputs) = mpsc::channel(100);
        let pipeline = Pipeline::start(
            engine,
            FrameAssembler::new(options),
            CalibrationBuffer::open(folder, policy).unwrap(),
            sender,
        )
        .unwrap();
        (pipeline, outputs)
    }

    async fn next(outputs: &mut mpsc::Receiver<Output>) -> Output {
        tokio::time::timeout(PATIENCE, outputs.recv())
            .await
            .expect("an output in time")
            .expect("a running pipeline")
    }

    /// Waits until all clouds handed in have come to something.
    async fn settled(pipeline: &Pipeline) -> Counters {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counters = pipeline.statistics().counters;
            if counters.received == counters.published + counters.dropped_total() {
                return counters;
            }
            assert!(Instant::now() < deadline, "still under way: {counters:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn kinds(pipeline: &Pipeline) -> Vec<&'static str> {
        let troubles = pipeline.troubles();
        troubles.iter().map(|trouble| trouble.kind).collect()
    }

    #[tokio::test]
    async fn what_is_wrong_with_clouds_is_listed_while_it_lasts() {
        let (pipeline, mut outputs) = start(engine("f", Precision::Float, quiet));
        let mut changes = pipeline.trouble_changes();
        pipeline.push_cloud(test_cloud(1, MODEL_FRAME, 3));
        next(&mut outputs).await;
        assert_eq!(kinds(&pipeline), [] as [&str; 0]);
        pipeline.push_cloud(test_cloud(2, MODEL_FRAME, 0));
        settled(&pipeline).await;
        changes.changed().await.unwrap();
        assert_eq!(kinds(&pipeline), ["empty_cloud"]);
        let trouble = &pipeline.troubles()[0];
        assert_eq!((trouble.part, trouble.share), (Part::Input, Some(0.5)));
        assert!(trouble.text.contains("no finite point"), "{}", trouble.text);
        pipeline.set_trouble(
            Part::Calibration,
            "b",
            Some(Symptom::warn("b", "it is full")),
        );
        assert_eq!(kinds(&pipeline), ["empty_cloud", "b"]);
        pipeline.set_trouble(Part::Calibration, "b", None);
        assert_eq!(kinds(&pipeline), ["empty_cloud"]);
    }

    #[tokio::test]
    async fn pillars_that_do_not_fit_are_a_condition_of_the_detection() {
        struct Overfull;
        impl Detect for Overfull {
            fn detect(&mut self, _: &Points) -> Result<Inference, Box<dyn Error + Send + Sync>> {
                let kind = ConditionKind::DroppedPillars;
                Ok(Inference {
                    dropped_pillars: 7,
                    conditions: vec![Condition::new(kind, "7 pillars were left out")],
                    ..Default::default()
                })
            }
        }
        let info = (*engine("f", Precision::Float, quiet).info).clone();
        let (pipeline, mut outputs) = start(Engine::new(info, Box::new(Overfull)));
        pipeline.push_cloud(test_cloud(1, MODEL_FRAME, 3));
        next(&mut outputs).await;
        let trouble = &pipeline.troubles()[0];
        assert_eq!(
            (trouble.part, trouble.kind),
            (Part::Detection, "dropped_pillars")
        );
        assert!(trouble.text.contains("7 pillars"), "{}", trouble.text);
        assert_eq!(pipeline.statistics().counters.dropped_pillars, 7);
    }

    #[tokio::test]
    async fn every_cloud_that_is_waited_for_comes_out_once_with_its_own_header() {
        let (pipeline, mut outputs) = start(engine("f", Precision::Float, |_| Ok(one_box(7.0))));
        for stamp in 1..=20 {
            pipeline.push_cloud(test_cloud(stamp, MODEL_FRAME, 3));
            let output = next(&mut outputs).await;
            assert_eq!(output.header.stamp, Stamp(stamp));
            assert_eq!(output.header.frame_id, MODEL_FRAME);
            assert_eq!(output.points, 3);
            assert_eq!(output.class_name(output.objects[0].class), "BUS");
            assert_eq!(output.objects[0].pose.translation.x, 7.0);
            pipeline.buffer().settle();
        }
        let counters = settled(&pipeline).await;
        assert_eq!((counters.received, counters.published), (20, 20));
        let fill = pipeline.buffer().fill();
        // All at one moment: none can be held out, which the fourth run of four would be.
        assert_eq!((fill.calibration, fill.held_out), (12, 0));
    }

    #[tokio::test]
    async fn a_slow_engine_skips_to_the_newest_cloud_and_all_are_accounted_for() {
        let (pipeline, mut outputs) = start(engine("slow", Precision::Float, |_| {
            std::thread::sleep(Duration::from_millis(30));
            Ok(Vec::new())
        }));
        // By twos: however late this thread wakes up, one of them has to go.
        for stamp in 1..=50 {
            pipeline.push_cloud(test_cloud(stamp, MODEL_FRAME, 3));
            if stamp % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(6)).await;
            }
        }
        let counters = settled(&pipeline).await;
        let superseded = counters.dropped(Drop::Superseded);
        assert_eq!(counters.received, 50);
        assert_eq!(counters.published + superseded, 50);
        assert!(superseded > 0);
        // An answer is counted a moment before it is handed over.
        let mut stamps = Vec::new();
        for _ in 0..counters.published {
            stamps.push(next(&mut outputs).await.header.stamp.0);
        }
        assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
        assert_eq!(stamps.last(), Some(&50));
    }

    #[tokio::test]
    async fn a_failing_int8_engine_loses_no_frame_and_is_given_up() {
        let failures: [(&str, Script); 2] = [
            ("out of order", |_| Err("out of order".into())),
            ("not finite", |_| Ok(one_box(f32::NAN))),
        ];
        for (reason, failure) in failures {
            let (pipeline, mut outputs) = start(engine("f", Precision::Float, quiet));
            let mut good = 2;
            let int8 = engine("i", Precision::Int8, move |points| {
                good -= 1;
                if good >= 0 {
                    quiet(points)
                } else {
                    failure(points)
                }
            });
            pipeline.install(int8).await.unwrap();
            let mut models = Vec::new();
            for stamp in 1..=4 {
                pipeline.push_cloud(test_cloud(stamp, MODEL_FRAME, 3));
                let output = next(&mut outputs).await;
                assert_eq!(output.header.stamp, Stamp(stamp));
                models.push(output.model.id.clone());
            }
            assert_eq!(models, ["i", "i", "f", "f"]);
            let active = pipeline.active().borrow().clone();
            assert!(active.fallback.unwrap().reason.contains(reason));
            assert_eq!(active.int8, None);
            let refused = pipeline.select(Precision::Int8).await.unwrap_err();
            assert!(refused.to_string().contains(reason), "{refused}");

            // A new engine wipes that away.
            let fresh = engine("i2", Precision::Int8, quiet);
            let active = pipeline.install(fresh).await.unwrap();
            assert_eq!((active.model.id.as_str(), active.fallback), ("i2", None));
        }
    }

    #[tokio::test]
    async fn a_failing_float_engine_costs_its_frames_only() {
        let calls = AtomicU64::new(0);
        let (pipeline, mut outputs) = start(engine("f", Precision::Float, move |_| {
            match calls.fetch_add(1, Ordering::Relaxed) {
                0 => Err("first one fails".into()),
                1 => Ok(vec![Detection {
                    class: 2,
                    ..one_box(0.0).remove(0)
                }]),
                _ => Ok(Vec::new()),
            }
        }));
        for stamp in 1..=3 {
            pipeline.push_cloud(test_cloud(stamp, MODEL_FRAME, 3));
            settled(&pipeline).await;
        }
        assert_eq!(next(&mut outputs).await.header.stamp, Stamp(3));
        let statistics = pipeline.statistics();
        assert_eq!(statistics.counters.dropped(Drop::EngineError), 2);
        assert!(statistics.last_problem.unwrap().contains("class 2"));
    }

    #[tokio::test]
    async fn clouds_of_no_use_are_counted_by_reason_and_the_next_goes_through() {
        let (pipeline, mut outputs) = start(engine("f", Precision::Float, quiet));
        let mut truncated = test_cloud(1, MODEL_FRAME, 3);
        truncated.data.truncate(30);
        let mut nameless = test_cloud(2, MODEL_FRAME, 3);
        nameless.fields[0].name = "range".into();
        let empty = test_cloud(3, MODEL_FRAME, 0);
        let elsewhere = test_cloud(4, "roof", 3);
        for cloud in [truncated, nameless, empty, elsewhere] {
            pipeline.push_cloud(cloud);
            settled(&pipeline).await;
        }
        pipeline.push_cloud(test_cloud(5, MODEL_FRAME, 3));
        assert_eq!(next(&mut outputs).await.header.stamp, Stamp(5));
        let statistics = pipeline.statistics();
        let counters = &statistics.counters;
        let dropped = [Drop::BadCloud, Drop::EmptyCloud, Drop::NoTransform]
            .map(|reason| counters.dropped(reason));
        assert_eq!(dropped, [2, 1, 1]);
        let problem = statistics.last_problem.unwrap();
        assert!(
            problem.contains("roof") && problem.contains("input.sensor_pose"),
            "{problem}"
        );
    }

    /// Where the frame `arm` is at a time.
    fn arm_at(ms: i64, x: f64) -> TfMessage {
        TfMessage {
            transforms: vec![TransformStamped {
                header: Header {
                    stamp: Stamp(ms * 1_000_000),
                    frame_id: MODEL_FRAME.into(),
                },
                child_frame_id: "arm".into(),
                transform: Transform {
                    translation: [x, 0.0, 0.0],
                    ..Default::default()
                },
            }],
        }
    }

    #[tokio::test]
    async fn an_int8_model_that_goes_on_disagreeing_with_float_is_given_up() {
        let (pipeline, mut outputs) = start(engine("f", Precision::Float, |_| Ok(one_box(7.0))));
        let settings = ShadowSettings {
            every: 2,
            budget: 1.0,
            window: 3,
            min_f1: 0.5,
        };
        let float = || Ok(engine("f", Precision::Float, |_| Ok(one_box(7.0))));
        pipeline.start_shadow(settings, float).unwrap();
        let off = engine("i", Precision::Int8, |_| Ok(one_box(40.0)));
        pipeline.install(off).await.unwrap();
        let mut active = pipeline.active();
        let limit = Instant::now() + PATIENCE;
        for stamp in 1.. {
            pipeline.push_cloud(test_cloud(stamp, MODEL_FRAME, 3));
            next(&mut outputs).await;
            if active.has_changed().unwrap() && active.borrow_and_update().fallback.is_some() {
                break;
            }
            assert!(Instant::now() < limit);
        }
        let active = active.borrow().clone();
        let fallback = active.fallback.unwrap();
        assert!(fallback.reason.contains("F1 0.000"), "{}", fallback.reason);
        assert_eq!(
            (fallback.model.id.as_str(), active.model.id.as_str()),
            ("i", "f")
        );
        assert_eq!(pipeline.statistics().shadow.unwrap().problem, None);
        assert!(pipeline.stop(PATIENCE));
    }

    /// Whether clouds whose transforms come 40 ms after them come out. They must, unless this thread sleeps longer than a
    /// cloud waits.
    async fn late_transforms_do() -> bool {
        // First none is there at all, then one of long ago, as after a gap in a recording.
        let (pipeline, mut outputs) = start(engine("f", Precision::Float, quiet));
        for (ms, x) in [(1_000, 3.0), (1_100, 4.0), (60_000, 5.0)] {
            pipeline.push_cloud(test_cloud(ms * 1_000_000, "arm", 3));
            tokio::time::sleep(Duration::from_millis(40)).await;
            assert!(outputs.try_recv().is_err());
            pipeline.push_transforms(arm_at(ms, x), false);
            if settled(&pipeline).await.dropped(Drop::NoTransform) > 0 {
                return false;
            }
            assert_eq!(next(&mut outputs).await.header.frame_id, "arm");
            let newest = pipeline.buffer().recent().remove(0);
            assert_eq!(f64::from(newest.points.0[0].x), x);
        }
        settled(&pipeline).await.dropped_total() == 0
    }

    #[tokio::test]
    async fn a_cloud_waits_for_the_transform_of_its_stamp() {
        // A busy machine may be late once, and more than once; without the wait none would come out.
        for _ in 0..50 {
            if late_transforms_do().await {
                return;
            }
        }
        panic!("no cloud waits");
    }

    #[tokio::test]
    async fn clouds_whose_transforms_never_come_are_all_dropped() {
        let (pipeline, _outputs) = start(engine("f", Precision::Float, quiet));
        for stamp in 1..=12 {
            pipeline.push_cloud(test_cloud(stamp, "arm", 3));
            settled(&pipeline).await;
        }
        let counters = pipeline.statistics().counters;
        assert_eq!(counters.dropped(Drop::NoTransform), 12);
    }

    #[test]
    fn transforms_that_never_come_do_not_hold_up_every_cloud() {
        let mut waits = Waits::default();
        for _ in 0..TRANSFORM_TRIES {
            assert!(waits.may_wait());
            waits.ended(false);
        }
        // However long ago that is on a busy machine.
        waits.last = Some(Instant::now() + TRANSFORM_RETRY);
        assert!(!waits.may_wait());
        waits.last = Instant::now().checked_sub(2 * TRANSFORM_RETRY);
        assert!(waits.may_wait(), "now and then one tries");
        waits.ended(true);
        assert!(waits.may_wait());
    }

    #[tokio::test]
    async fn engines_change_between_frames_and_none_is_lost_or_repeated() {
        let (pipeline, mut outputs) = start(engine("f", Precision::Float, quiet));
        let mut stamps = Vec::new();
        let mut models = Vec::new();
        for stamp in 1..=60 {
            match stamp {
                20 => drop(
                    pipeline
                        .install(engine("i", Precision::Int8, quiet))
                        .await
                        .unwrap(),
                ),
                40 => drop(pipeline.select(Precision::Float).await.unwrap()),
                50 => drop(pipeline.select(Precision::Int8).await.unwrap()),
                _ => {}
            }
            pipeline.push_cloud(test_cloud(stamp, MODEL_FRAME, 3));
            let output = next(&mut outputs).await;
            stamps.push(output.header.stamp.0);
            models.push(output.model.id.clone());
        }
        assert_eq!(stamps, (1..=60).collect::<Vec<_>>());
        let expected: Vec<_> = (1..=60)
            .map(|s| {
                if (20..40).contains(&s) || s >= 50 {
                    "i"
                } else {
                    "f"
                }
            })
            .collect();
        assert_eq!(models, expected);
        assert_eq!(pipeline.statistics().counters.published_int8, 31);
    }

    #[tokio::test]
    async fn what_is_no_int8_model_of_the_same_classes_is_refused() {
        let (pipeline, _outputs) = start(engine("f", Precision::Float, quiet));
        let float = engine("other", Precision::Float, quiet);
        assert!(matches!(
            pipeline.install(float).await,
            Err(SwapError::Precision { .. })
        ));
        let mut info = (*engine("i", Precision::Int8, quiet).info).clone();
        info.classes.pop();
        let odd = Engine::new(info, Box::new(Scripted(quiet)));
        assert!(matches!(
            pipeline.install(odd).await,
            Err(SwapError::Classes { .. })
        ));
        assert!(matches!(
            pipeline.select(Precision::Int8).await,
            Err(SwapError::Missing(Precision::Int8, _))
        ));
        pipeline.select(Precision::Float).await.unwrap();
    }

    #[tokio::test]
    async fn a_stopped_pipeline_answers_that_it_stops() {
        let (pipeline, _outputs) = start(engine("f", Precision::Float, quiet));
        assert!(pipeline.is_alive());
        assert!(pipeline.stop(PATIENCE));
        let late = pipeline.install(engine("i", Precision::Int8, quiet));
        let answer = tokio::time::timeout(PATIENCE, late).await.unwrap();
        assert!(matches!(answer, Err(SwapError::Stopping)));
    }
}
