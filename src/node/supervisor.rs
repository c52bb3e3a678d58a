//! What the node does on request: calibrations from request to swap, and which of its models runs.
//!
//! ```text
//! calibrate ─► the buffer, or a bag ─► quantize (own process) ─► store ─► load, warm up ─► swap
//!                                                               └► refused: the report is kept
//! start ─► the model that ran last, from the store, if it is whole and fits ─► load ─► swap
//! ```
//!
//! One calibration at a time. Detection goes on all the while, and whatever fails leaves the
//! running engine as it was. The store remembers what runs, so that the next start finds it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::calibrator::{self, Comparison, Input, Job, JobError, Progress};
use super::engine::{Engine, EngineError, LoadError, ModelInfo};
use super::pipeline::{Active, Fallback, Pipeline, SwapError};
use super::reach::ReachError;
use super::settings::Settings;
use super::status::{Calibrating, Judgement, Last, Outcome, Start, Status, Work};
use super::troubles::{Part, Symptom};
use crate::calibration::buffer::Snapshot;
use crate::calibration::store::{
    Admitted, FloatModel, Listing, Selection, StoreError, Terms, Unfit, Version,
};
use crate::calibration::{BufferError, ModelStore};
use crate::detector::{DetectorError, FileRecord, ModelDescription, Precision, RuntimeOptions};
use crate::files;
use crate::onnx::OnnxError;
use crate::ptq::check::Verdict;
use crate::ptq::recipe::{BUILT_IN, Recipe, RecipeError, Target};
use crate::text::{printable, without_values};

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
    /// Where the buffer is saved when nobody says where.
    pub recordings: PathBuf,
}

/// What to calibrate with. What is absent is as the node's parameters say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Order {
    pub recipe: Option<PathBuf>,
    /// A recording, instead of the node's buffer.
    pub bag: Option<PathBuf>,
    /// The recording's cloud topic, where it has several.
    pub topic: Option<String>,
    pub target: Option<Target>,
}

/// A recording to calibrate with.
#[derive(Debug)]
struct Recording {
    bag: PathBuf,
    topic: Option<String>,
    /// The buffer has frames enough to check the model on what this node sees; else some of the recording do.
    checked_on_buffer: bool,
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checked_on = match self.checked_on_buffer {
            true => "frames that the buffer holds out",
            false => "frames of its own, since the buffer holds too few",
        };
        write!(f, "{}, to be checked on {checked_on},", self.bag.display())
    }
}

/// A calibration that has been started.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// Counted from the node's start.
    pub number: u32,
    /// What it is made from, for people.
    pub source: String,
}

/// A model to run.
#[derive(Debug)]
pub enum Wanted {
    /// Id of one in the store or its first digits; or the path of a folder that `quantize` wrote.
    Named(String),
    /// The files of such a folder.
    Files(Vec<(String, Vec<u8>)>),
}

/// A model that was made the running one.
#[derive(Debug)]
pub struct Loaded {
    pub version: Version,
    pub active: Active,
    pub judgement: Judgement,
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
    #[error(transparent)]
    Reach(#[from] ReachError),
    #[error("the stored INT8 model cannot run: {0}")]
    Stored(String),
    #[error("{what} '{}' is no absolute path, and the node's working folder is anywhere", .path.display())]
    Relative { what: &'static str, path: PathBuf },
    #[error("'{0}' is no target; there are cpu and tensorrt")]
    Target(String),
    #[error("there is no bag {}", .0.display())]
    NoBag(PathBuf),
    #[error("{0}")]
    Recipe(String),
    #[error("the float model runs; there is nothing to roll back")]
    NothingToRollBack,
    #[error("'{id}' is not from the model store; restart the node with another model")]
    NotStored { id: String },
    #[error("the model is not in the store: {0}")]
    Import(String),
    #[error(
        "{id} disagrees with float on {frames} frames that the node's buffer holds out: {reasons}"
    )]
    Disagrees {
        id: String,
        frames: usize,
        reasons: String,
    },
    #[error("the model cannot be compared with float on the node's frames: {0}")]
    Judge(String),
    #[error(
        "{id} is {text}. It does not run unjudged: drive until the buffer holds out frames enough (calibration_state and \
         diagnostics tell), then load it again, or start the node with store.allow_unjudged"
    )]
    NotJudged { id: String, text: String },
    #[error(
        "the float model was changed on disk since the node was started ({what}), and what is quantized has to be what \
         runs: restart the node to run the new one, or put the old one back"
    )]
    FloatChanged { what: String },
    #[error("the model store: {0}")]
    Store(String),
    #[error("the buffer was not saved: {0}")]
    Save(String),
    #[error(
        "the buffer was not saved: {} would be in {}, which is the node's own; name a folder elsewhere",
        .path.display(), .own.display()
    )]
    Own { path: PathBuf, own: PathBuf },
}

impl Refusal {
    /// Callers hear which file and which key, but nothing that is in the file: who calls need not be who may read it.
    fn recipe(error: RecipeError) -> Self {
        Refusal::Recipe(printable(&without_values(&error.to_string()), 500))
    }
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
    #[error(
        "the new model is not of the float model that runs: {0}. If its files were changed on disk, restart the node to run \
         them, or put the old ones back"
    )]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Float(#[from] Refusal),
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
    version: Version,
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
    /// The float model as it was loaded: what it is on disk may be another one.
    float: FloatModel,
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
        let float = FloatModel::loaded(&paths.base, &pipeline.base().files);
        Arc::new(Self {
            pipeline,
            settings,
            runtime,
            paths,
            float,
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
        let active = self.pipeline.active();
        let troubles = self.pipeline.troubles();
        Status::new(
            &self.work.borrow(),
            &active.borrow(),
            &self.paths.store,
            troubles,
        )
    }

    /// Starts a calibration, from a recording or from what the buffer holds now.
    pub async fn calibrate(self: &Arc<Self>, order: Order) -> Result<Started, Refusal> {
        let mut settings = lock(&self.settings).clone();
        if let Some(recipe) = order.recipe {
            absolute("recipe", &recipe)?;
            settings.recipe_path = recipe.to_string_lossy().into_owned();
        }
        if let Some(target) = order.target {
            settings.target = target;
        }
        let bag = order.bag.clone();
        if let Some(bag) = &bag {
            absolute("bag", bag)?;
        }
        let recipe = settings.recipe_file();
        let classes = self.paths.base.classes.clone();
        let recipe = on_a_thread_that_may_wait(move || match bag {
            Some(bag) if !bag.exists() => Err(Refusal::NoBag(bag)),
            _ => Recipe::load_or_default(recipe.as_deref())
                .and_then(|recipe| recipe.suits(&classes).map(|()| recipe))
                .map_err(Refusal::recipe),
        })
        .await?;
        if self.pipeline.base().precision == Precision::Float {
            self.float_is_as_loaded().await?;
            // The INT8 model is smaller, but for graphs of few weights.
            let bytes = self.pipeline.base().bytes;
            let room = self.ask_store(move |store, _| store.has_room(bytes));
            room.await.map_err(Refusal::Store)?;
        }
        let held_out = self.pipeline.buffer().fill().held_out;
        let recording = order.bag.map(|bag| Recording {
            bag,
            topic: order.topic,
            checked_on_buffer: held_out >= recipe.frames.min_held_out,
        });
        self.start(settings, recording)
    }

    fn start(
        self: &Arc<Self>,
        settings: Settings,
        recording: Option<Recording>,
    ) -> Result<Started, Refusal> {
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
        let (frames, few_sweeps, source) = match &recording {
            Some(recording) => (None, None, recording.to_string()),
            None => {
                let (frames, few) = self.enough_frames(&settings)?;
                let lacking = match few {
                    0 => String::new(),
                    few => format!(
                        ", {few} of them with fewer sweeps than the {} that the model wants,",
                        self.paths.base.points.sweeps
                    ),
                };
                (Some(frames), Some(few), format!("{frames} frames{lacking}"))
            }
        };
        let (cancel, cancelled) = watch::channel(false);
        let mut number = 0;
        self.work.send_modify(|work| {
            work.calibration += 1;
            number = work.calibration;
            work.calibrating = Some(Calibrating {
                stage: "buffer".into(),
                bag: recording.as_ref().map(|recording| recording.bag.clone()),
                frames,
                few_sweeps,
                ..Calibrating::default()
            });
        });
        tracing::info!("calibration {number} from {source} starts");
        let task = tokio::spawn(
            self.clone()
                .calibration(number, settings, recording, cancelled),
        );
        *running = Some(Running { cancel, task });
        Ok(Started { number, source })
    }

    /// Refuses to work with a float model that is another one on disk than in memory: every tool reads it from there.
    async fn float_is_as_loaded(&self) -> Result<(), Refusal> {
        let (base, path) = (self.paths.base.clone(), self.paths.model.clone());
        let before = self.float.files.clone();
        on_a_thread_that_may_wait(move || {
            let changed = |what: String| Refusal::FloatChanged { what };
            let there = ModelDescription::load(&path).map_err(|e| changed(e.to_string()))?;
            if there != base {
                return Err(changed(format!("{} says something else", path.display())));
            }
            let files = FileRecord::all_of(&there).map_err(|e| changed(e.to_string()))?;
            match files.iter().zip(&before).find(|(now, then)| now != then) {
                Some((file, _)) => Err(changed(format!("{} is another file", file.file))),
                None if files.len() != before.len() => Err(changed("it has other files".into())),
                None => Ok(()),
            }
        })
        .await
    }

    /// How many frames the buffer holds, if that is enough, and how many of them lack sweeps that the model wants.
    fn enough_frames(&self, settings: &Settings) -> Result<(usize, usize), Refusal> {
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
        Ok((count, fill.few_sweeps))
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
        match selected {
            Err(missing @ SwapError::Missing(Precision::Int8, _)) => {
                let stored = self.stored_int8().await.map_err(Refusal::Stored)?;
                let Some((version, admitted)) = stored else {
                    return Err(missing.into());
                };
                let installed = self.install_stored(&version).await;
                let active = installed.map_err(|failure| Refusal::Stored(failure.to_string()))?;
                let judgement = self.known(&version, admitted);
                self.remember_as(&active.model, judgement, None).await;
                Ok(active)
            }
            selected => {
                let active = selected?;
                self.remember(&active.model).await;
                Ok(active)
            }
        }
    }

    /// Makes a model of the store, or one that comes to it with this request, the running one.
    ///
    /// It must be whole, made from the node's float model, and accepted by its gate; that it was given up before is no
    /// reason against it. One that another made is held against float on the frames that this node's buffer holds out,
    /// if those are enough for the recipe.
    pub async fn load_model(&self, wanted: Wanted) -> Result<Loaded, Refusal> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Refusal::Stopping);
        }
        if let Wanted::Named(name) = &wanted
            && name.contains('/')
        {
            absolute("model", Path::new(name))?;
        }
        let (version, is_new) = self
            .ask_store(move |store, _| {
                let before = store.list()?.versions;
                let version = match wanted {
                    Wanted::Named(name) if name.contains('/') => {
                        let path = Path::new(&name);
                        let folder = match path.is_file() {
                            true => path.parent().unwrap_or(path),
                            false => path,
                        };
                        store.import(folder)?
                    }
                    Wanted::Named(id) => store.find(&id)?,
                    Wanted::Files(files) => store.import_files(&files)?,
                };
                let is_new = before.iter().all(|known| known.id != version.id);
                Ok((version, is_new))
            })
            .await
            .map_err(Refusal::Import)?;
        match self.load_judged(&version).await {
            Ok((engine, judgement)) => {
                let _turn = self.exchange.lock().await;
                let active = self.pipeline.install(engine).await?;
                let grounds = judgement.frames > 0;
                let grounds = grounds.then(|| Admitted {
                    frames: judgement.frames,
                    text: judgement.text.clone(),
                });
                self.remember_as(&active.model, Some(judgement.clone()), grounds)
                    .await;
                Ok(Loaded {
                    version,
                    active,
                    judgement,
                })
            }
            Err(refusal) => {
                // What came with this request and does not run does not stay.
                if is_new {
                    let id = version.id.clone();
                    let removed = self.ask_store(move |store, _| store.remove(&id));
                    if let Err(problem) = removed.await {
                        tracing::warn!("{problem}");
                    }
                }
                Err(refusal)
            }
        }
    }

    /// Loads a model of the store that may run here, and says what the buffer's frames say of it.
    async fn load_judged(&self, version: &Version) -> Result<(Engine, Judgement), Refusal> {
        let engine = self.load_fit(version).await;
        let engine = engine.map_err(|why| Refusal::Stored(format!("{}: {why}", version.id)))?;
        let judgement = match version.is_made_by(&self.paths.node) {
            true => Judgement {
                stored_id: version.id.clone(),
                judged: true,
                frames: 0,
                text: format!("this node made it; {}", version.as_made()),
                verdict: None,
            },
            false => self.judge(version).await?,
        };
        let allowed = lock(&self.settings).store_allow_unjudged;
        match judgement {
            Judgement {
                judged: false,
                stored_id: id,
                text,
                ..
            } if !allowed => Err(Refusal::NotJudged { id, text }),
            judgement => Ok((engine, judgement)),
        }
    }

    /// Holds a stored model against float on the frames that the buffer holds out, if those are enough.
    async fn judge(&self, version: &Version) -> Result<Judgement, Refusal> {
        let not_judged = |why: String| unjudged(version, &why);
        let settings = lock(&self.settings).clone();
        let (pipeline, paths) = (self.pipeline.clone(), self.paths.clone());
        let (threads, nice) = (settings.calibration_threads, settings.calibration_nice);
        let stored = version.clone();
        self.float_is_as_loaded().await?;
        let prepared = on_a_thread_that_may_wait(move || {
            let recipe = Recipe::load_or_default(settings.recipe_file().as_deref())
                .map_err(Refusal::recipe)?;
            let suits = recipe.suits(&paths.base.classes);
            suits.map_err(|error| Refusal::Recipe(error.to_string()))?;
            let (held_out, wanted) = (
                pipeline.buffer().fill().held_out,
                recipe.frames.min_held_out,
            );
            if held_out < wanted {
                let why = format!("its buffer holds out {held_out} frames, {wanted} are needed");
                return Ok(Err(why));
            }
            let may_lack = recipe.gate.must_judge.is_nothing();
            let scratch = paths.store.incoming();
            let scratch = scratch.map_err(|error| Refusal::Store(error.to_string()))?;
            let place = |name: &str| scratch.path().join(name);
            let (buffer, int8) = (place("frames"), place("int8"));
            let saved = pipeline.buffer().save(&buffer);
            let held_out = saved
                .map_err(|error| Refusal::Save(error.to_string()))?
                .held_out;
            let int8 = with_thresholds(&stored, &paths.base, &int8)
                .map_err(|error| Refusal::Stored(error.to_string()))?;
            let recipe = match settings.recipe_file() {
                Some(path) => path,
                None => {
                    let path = place("recipe.yaml");
                    std::fs::write(&path, BUILT_IN)
                        .map_err(|error| Refusal::Recipe(error.to_string()))?;
                    path
                }
            };
            let comparison = Comparison {
                executable: paths.executable,
                float: paths.model,
                int8,
                buffer,
                recipe,
                threads,
                nice,
            };
            Ok(Ok((scratch, comparison, held_out, may_lack)))
        });
        let (_scratch, comparison, held_out, may_lack) = match prepared.await? {
            Ok(prepared) => prepared,
            Err(why) => return Ok(not_judged(why)),
        };
        let verdict = comparison.run().await;
        let verdict = verdict.map_err(|error| Refusal::Judge(error.to_string()))?;
        // It took a while, and read the float model from the disk.
        self.float_is_as_loaded().await?;
        if verdict.accepted {
            let notes = verdict.notes().into_iter().map(|note| format!("; {note}"));
            return Ok(Judgement {
                stored_id: version.id.clone(),
                judged: true,
                frames: held_out,
                text: format!(
                    "it agrees with float on {held_out} frames that the buffer holds out{}",
                    notes.collect::<String>()
                ),
                verdict: Some(verdict),
            });
        }
        let reasons = verdict.reasons.join("; ");
        // As few boxes say as little as few frames, unless the recipe insists.
        if may_lack && verdict.judged.is_empty() && !verdict.not_judged.is_empty() {
            return Ok(not_judged(reasons));
        }
        Err(Refusal::Disagrees {
            id: version.id.clone(),
            frames: held_out,
            reasons,
        })
    }

    /// Loads a model of the store, if it is one for this node.
    async fn load_fit(&self, version: &Version) -> Result<Engine, String> {
        let id = version.id.clone();
        let fit = self.ask_store(move |store, terms| {
            let fit = store.fit(&id, &Selection::default(), terms.float);
            Ok(fit.map_err(|why| why.to_string()))
        });
        let version = fit.await??;
        let engine = self.load(&version).await;
        engine.map_err(|failure| failure.to_string())
    }

    /// Gives up the running INT8 model: goes to the last good one before it, or to float. Returns what spoke against
    /// models that would have been next.
    pub async fn roll_back(&self) -> Result<(Active, Vec<String>), Refusal> {
        let _turn = self.exchange.lock().await;
        let running = self.pipeline.active().borrow().model.clone();
        if running.precision == Precision::Float {
            return Err(Refusal::NothingToRollBack);
        }
        let Some(id) = self.paths.store.id_of(&running.path) else {
            let id = running.id.clone();
            return Err(Refusal::NotStored { id });
        };
        let not_this = id.clone();
        let before = self.ask_store(move |store, terms| {
            let mut selection = store.selection(terms.node)?;
            selection.good.retain(|good| *good != not_this);
            Ok(store.last_good(&selection, terms))
        });
        // Float is always there, also where the store cannot be read.
        let (pick, mut problems) = match before.await {
            Ok(pick) => (pick.version.zip(Some(pick.admitted)), said(&pick.skipped)),
            Err(problem) => (None, vec![problem]),
        };
        let mut installed = None;
        if let Some((version, admitted)) = &pick {
            match self.install_stored(version).await {
                Ok(active) => installed = Some((active, self.known(version, admitted.clone()))),
                Err(failure) => problems.push(format!("{}: {failure}", version.id)),
            }
        }
        let (active, judgement) = match installed {
            Some(installed) => installed,
            None => (self.pipeline.discard().await?, None),
        };
        self.tell_store(move |store, node| store.give_up(node, &id, "rolled back on request"))
            .await;
        self.remember_as(&active.model, judgement, None).await;
        Ok((active, problems))
    }

    /// The models of the store, and what the node runs and gave up.
    pub async fn models(&self) -> Result<(Listing, Selection), Refusal> {
        let listed =
            self.ask_store(|store, terms| Ok((store.list()?, store.selection(terms.node)?)));
        listed.await.map_err(Refusal::Store)
    }

    /// Writes the buffer to a bag of its own.
    pub async fn save_buffer(&self, folder: Option<PathBuf>) -> Result<Snapshot, Refusal> {
        let folder = match folder {
            Some(folder) => {
                absolute("path", &folder)?;
                folder
            }
            None => {
                let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
                self.paths.recordings.join(now.replace(':', "-"))
            }
        };
        let pipeline = self.pipeline.clone();
        let store = self.paths.store.root().to_owned();
        on_a_thread_that_may_wait(move || {
            let fail = |path: &Path, error| Refusal::Save(format!("{}: {error}", path.display()));
            let place = files::real_place(&folder).map_err(|error| fail(&folder, error))?;
            for own in [pipeline.buffer().folder(), &store] {
                let real = files::real_place(own).map_err(|error| fail(own, error))?;
                if place.starts_with(&real) {
                    let (path, own) = (folder, own.to_owned());
                    return Err(Refusal::Own { path, own });
                }
            }
            let saved = pipeline.buffer().save(&place);
            saved.map_err(|error| Refusal::Save(error.to_string()))
        })
        .await
    }

    /// Makes the model that ran last the running one, if the store has it, it is whole, and it fits.
    ///
    /// What speaks against it is said in the status; the float model runs then.
    pub async fn resume(&self) {
        let _turn = self.exchange.lock().await;
        let picked = self.ask_store(|store, terms| {
            match store.clean() {
                Ok(0) => {}
                Ok(count) => {
                    tracing::info!("removed {count} unfinished models of nodes that were killed")
                }
                Err(error) => tracing::warn!("{error}"),
            }
            store.pick(terms)
        });
        let mut start = Start::default();
        match picked.await {
            Ok(pick) => {
                start.problems = said(&pick.skipped);
                if let Some(version) = &pick.version {
                    match self.install_stored(version).await {
                        Ok(active) => {
                            tracing::info!("INT8 model {} runs, as before", version.id);
                            let judgement = self.known(version, pick.admitted.clone());
                            self.remember_as(&active.model, judgement, None).await;
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
        read: impl FnOnce(&ModelStore, &Terms) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, String> {
        let Paths { store, node, .. } = self.paths.clone();
        let float = self.float.clone();
        let unjudged = lock(&self.settings).store_allow_unjudged;
        let task = tokio::task::spawn_blocking(move || {
            let terms = Terms {
                node: &node,
                float: &float,
                unjudged,
            };
            read(&store, &terms)
        });
        match task.await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        }
    }

    /// The stored INT8 model that ran last, whether the node ran float since or not, and on what grounds.
    async fn stored_int8(&self) -> Result<Option<(Version, Option<Admitted>)>, String> {
        let found = self
            .ask_store(|store, terms| Ok(store.last_good(&store.selection(terms.node)?, terms)));
        let pick = found.await?;
        match (&pick.version, said(&pick.skipped)) {
            (None, problems) if !problems.is_empty() => Err(problems.join("; ")),
            _ => Ok(pick.version.zip(Some(pick.admitted))),
        }
    }

    /// What is known of how a stored model stands to what this node saw; nothing where the node made it itself.
    fn known(&self, version: &Version, admitted: Option<Admitted>) -> Option<Judgement> {
        if version.is_made_by(&self.paths.node) {
            return None;
        }
        Some(match admitted {
            Some(Admitted { frames, text }) => Judgement {
                stored_id: version.id.clone(),
                judged: frames > 0,
                frames,
                text,
                verdict: None,
            },
            None => unjudged(version, "store.allow_unjudged lets it run all the same"),
        })
    }

    async fn install_stored(&self, version: &Version) -> Result<Active, Failure> {
        let engine = self.load(version).await?;
        Ok(self.pipeline.install(engine).await?)
    }

    /// Notes what runs, in the store for the next start. A store that cannot be written stops nothing.
    async fn remember(&self, model: &ModelInfo) {
        let stored_id = self.paths.store.id_of(&model.path);
        let known = self.work.borrow().judgement.clone();
        let known = known.filter(|judgement| stored_id.as_ref() == Some(&judgement.stored_id));
        self.remember_as(model, known, None).await;
    }

    /// The same, with what is known of how the model stands to what this node saw, and the grounds on which it runs.
    async fn remember_as(
        &self,
        model: &ModelInfo,
        judgement: Option<Judgement>,
        grounds: Option<Admitted>,
    ) {
        let unjudged = judgement.as_ref().filter(|judgement| !judgement.judged);
        let text =
            unjudged.map(|judgement| format!("{} is {}", judgement.stored_id, judgement.text));
        let symptom = text.as_deref().map(|text| Symptom::warn("unjudged", text));
        self.pipeline
            .set_trouble(Part::Detection, "unjudged", symptom);
        self.work.send_if_modified(|work| {
            let before = std::mem::replace(&mut work.judgement, judgement.clone());
            before != judgement
        });
        match (self.paths.store.id_of(&model.path), model.precision) {
            (Some(id), Precision::Int8) => {
                self.tell_store(move |store, node| store.run_admitted(node, &id, grounds))
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
            change(work.calibrating.get_or_insert_default());
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
        number: u32,
        settings: Settings,
        recording: Option<Recording>,
        cancel: watch::Receiver<bool>,
    ) {
        let begin = Instant::now();
        let result = self.attempt(&settings, recording, cancel).await;
        let seconds = begin.elapsed().as_secs_f64();
        let frames = self
            .work
            .borrow()
            .calibrating
            .as_ref()
            .and_then(|c| c.frames);
        let last = match result {
            Ok(Finished { outcome, version }) => Last {
                calibration: number,
                outcome,
                reasons: version.verdict.reasons.clone(),
                notes: version.verdict.notes(),
                verdict: Some(version.verdict.clone()),
                frames: Some(version.calibration_frames + version.held_out_frames),
                seconds,
                report: Some(version.report()),
                model: Some(version.description()),
                stored_id: Some(version.id),
            },
            Err(failure) => Last {
                calibration: number,
                outcome: match failure {
                    Failure::Cancelled => Outcome::Cancelled,
                    _ => Outcome::Failed,
                },
                reasons: vec![failure.to_string()],
                notes: Vec::new(),
                verdict: None,
                frames,
                seconds,
                stored_id: None,
                model: None,
                report: None,
            },
        };
        let reasons = last.told().join("; ");
        match last.outcome {
            Outcome::Swapped => {
                tracing::info!("INT8 model runs, made in {seconds:.1} s; {reasons}");
            }
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
        recording: Option<Recording>,
        cancel: watch::Receiver<bool>,
    ) -> Result<Finished, Failure> {
        let store = self.paths.store.clone();
        let incoming = tokio::task::spawn_blocking(move || store.incoming()).await??;
        let pipeline = self.pipeline.clone();
        let snapshot = async {
            let taken = tokio::task::spawn_blocking(move || pipeline.buffer().snapshot());
            Ok::<_, Failure>(taken.await??.bag)
        };
        let mut check_buffer = None;
        // What the buffer holds is what the network sees. A recording may lack sweeps where the live clouds do, too.
        let wanted = self.paths.base.points.sweeps;
        let live = self.pipeline.buffer().recent();
        let allow_few_sweeps = match &recording {
            Some(_) => live.first().is_some_and(|frame| frame.sweeps < wanted),
            None => true,
        };
        let source = match recording {
            Some(recording) => {
                if recording.checked_on_buffer {
                    check_buffer = Some(snapshot.await?);
                }
                let input = Input::recording(settings, recording.topic);
                (recording.bag, input)
            }
            None => (snapshot.await?, Input::buffer(settings)),
        };
        self.stage("start");
        let Paths {
            executable, model, ..
        } = self.paths.clone();
        let out = incoming.path().join("model");
        let mut job = Job::new(settings, executable, model, source, out);
        job.check_buffer = check_buffer;
        job.allow_few_sweeps = allow_few_sweeps;
        let verdict = self.quantize(&job, cancel.clone()).await?;
        if *cancel.borrow() {
            return Err(Failure::Cancelled);
        }
        self.stage("store");
        let Paths { store, node, .. } = self.paths.clone();
        let (made, float) = (job.out.clone(), self.float.clone());
        let add = move || {
            // What was quantized may be another one by now than when the calibration began.
            float.check_made(&made)?;
            Ok::<_, Failure>(store.add(&made, Some(&node))?)
        };
        let version = tokio::task::spawn_blocking(add).await??;
        if !verdict.accepted {
            let outcome = Outcome::Refused;
            return Ok(Finished { outcome, version });
        }
        self.stage("load");
        let engine = self.load(&version).await?;
        if *cancel.borrow() {
            return Err(Failure::Cancelled);
        }
        self.stage("swap");
        let _turn = self.exchange.lock().await;
        let active = self.pipeline.install(engine).await?;
        self.remember(&active.model).await;
        let outcome = Outcome::Swapped;
        Ok(Finished { outcome, version })
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

    /// Loads a stored model and runs it on the last frames, away from the live threads.
    async fn load(&self, version: &Version) -> Result<Engine, Failure> {
        let frames = self.pipeline.buffer().recent();
        let options = self.runtime.clone();
        let base = self.paths.base.clone();
        let version = version.clone();
        tokio::task::spawn_blocking(move || {
            let model = version.description();
            let mut description = ModelDescription::load(&model).map_err(LoadError::from)?;
            // Thresholds are the node's, also those that were changed since the model was made.
            description.post = base.post;
            let mut engine = Engine::open(description, &model, &options)?;
            version.verify_loaded(&engine.info.files)?;
            for frame in &frames {
                engine.detect(&frame.points)?;
            }
            Ok(engine)
        })
        .await?
    }
}

/// A judgement that is none, and why.
fn unjudged(version: &Version, why: &str) -> Judgement {
    Judgement {
        stored_id: version.id.clone(),
        judged: false,
        frames: 0,
        text: format!(
            "not judged on what this node saw: {why}; {}",
            version.as_made()
        ),
        verdict: None,
    }
}

/// A folder with a stored model as it would run here, with the node's thresholds; its other files by second names.
fn with_thresholds(
    version: &Version,
    base: &ModelDescription,
    folder: &Path,
) -> Result<PathBuf, LoadError> {
    let mut description = ModelDescription::load(&version.description())?;
    description.post = base.post.clone();
    let into = |source| OnnxError::Write {
        file: folder.to_owned(),
        source,
    };
    let link = || {
        std::fs::create_dir(folder)?;
        for record in version.model_files() {
            let (from, to) = (version.folder.join(&record.file), folder.join(&record.file));
            if std::fs::hard_link(&from, &to).is_err() {
                files::copy(&from, &to, record.bytes)?;
            }
        }
        Ok(())
    };
    link().map_err(|error| DetectorError::from(into(error)))?;
    let path = folder.join("model.yaml");
    description.save(&path)?;
    Ok(path)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn absolute(what: &'static str, path: &Path) -> Result<(), Refusal> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err(Refusal::Relative {
            what,
            path: path.to_owned(),
        }),
    }
}

/// Disks may be slow, and this runtime answers everybody.
pub(super) async fn on_a_thread_that_may_wait<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    // A panic has been reported by then.
    done.unwrap_or(Err(Refusal::Stopping))
}

/// What spoke against the models that were not picked.
fn said(skipped: &[(String, Unfit)]) -> Vec<String> {
    let skipped = skipped.iter();
    skipped
        .map(|(id, unfit)| format!("{id}: {unfit}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::Policy;
    use crate::calibration::store::Limits;
    use crate::node::calibrator::tests::quantizer;
    use std::path::Path;

    /// Longest wait for what must happen: it ends a hang, a busy machine needs little of it.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// A copy of the demo model that a test may change.
    fn demo_model(folder: &Path) -> PathBuf {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let copy = folder.join("float");
        if !copy.exists() {
            std::fs::create_dir(&copy).unwrap();
            for entry in std::fs::read_dir(demo).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
            }
        }
        copy.join("model.yaml")
    }

    /// A supervisor over a float engine that detects nothing, with a shell script as the
    /// quantization, after `frames` clouds.
    async fn supervisor(folder: &Path, frames: i64, script: &str) -> Arc<Supervisor> {
        let float =
            crate::node::pipeline::tests::engine("float", Precision::Float, |_| Ok(Vec::new()));
        supervisor_of(float, folder, frames, script).await
    }

    async fn supervisor_of(
        float: Engine,
        folder: &Path,
        frames: i64,
        script: &str,
    ) -> Arc<Supervisor> {
        use crate::node::pipeline::tests::{start_with, test_cloud};

        let executable = quantizer(folder, script);
        let model = demo_model(folder);
        let mut float = float;
        let mut info = (*float.info).clone();
        info.files = FileRecord::all_of(&ModelDescription::load(&model).unwrap()).unwrap();
        float.info = Arc::new(info);
        let (pipeline, mut outputs) = start_with(float, &folder.join("buffer"));
        for stamp in 1..=frames {
            pipeline.push_cloud(test_cloud(stamp * 1_000_000_000, "base_link", 2));
            outputs.recv().await.unwrap();
            pipeline.buffer().settle();
        }
        let settings = Settings {
            calibration_min_frames: 3,
            ..Default::default()
        };
        let paths = Paths {
            executable,
            base: ModelDescription::load(&model).unwrap(),
            model,
            store: ModelStore::new(folder.join("store"), Limits::NONE),
            node: "/centerpoint".into(),
            recordings: folder.join("recordings"),
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
        let done = tokio::time::timeout(PATIENCE, done);
        done.await.unwrap().unwrap().last.clone().unwrap()
    }

    /// What the child was given after `--out`.
    const OUT: &str = "while [ $# -gt 0 ]; do [ \"$1\" = --out ] && out=$2; shift; done\n";

    /// A quantization that writes a report and a description that is none.
    fn done(folder: &Path, accepted: bool, reason: &str) -> String {
        let mut report = crate::ptq::report::tests::sample();
        report.model = "demo".into();
        report.check.verdict.accepted = accepted;
        report.check.verdict.reasons = Vec::from_iter((!accepted).then(|| reason.to_owned()));
        let float = ModelDescription::load(&demo_model(folder)).unwrap();
        report.float_files = FileRecord::all_of(&float).unwrap();
        let graph = folder.join("made.onnx");
        std::fs::write(&graph, "x\n").unwrap();
        report.int8_files = vec![FileRecord::of(&graph).unwrap()];
        let file = folder.join("made.json");
        std::fs::write(&file, serde_json::to_string(&report).unwrap()).unwrap();
        format!(
            "{OUT}mkdir \"$out\"; echo x >\"$out/model.yaml\"; echo x >\"$out/made.onnx\"; cp '{}' \"$out/report.json\"; echo '{{\"event\":\"done\",\
             \"out\":\"o\",\"verdict\":{{\"accepted\":{accepted},\"reasons\":[\"{reason}\"]}}}}'",
            file.display()
        )
    }

    #[tokio::test]
    async fn too_few_frames_are_refused_with_the_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 2, "exit 1").await;
        let refusal = supervisor
            .calibrate(Order::default())
            .await
            .unwrap_err()
            .to_string();
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
        let started = supervisor.calibrate(Order::default()).await.unwrap();
        assert_eq!((started.number, started.source.as_str()), (1, "4 frames"));
        assert!(matches!(
            supervisor.calibrate(Order::default()).await,
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
        supervisor.calibrate(Order::default()).await.unwrap();
        let last = finished(&supervisor).await;
        assert_eq!(last.outcome, Outcome::Refused);
        assert_eq!(last.reasons, ["lost cars"]);
        let kept = &supervisor.paths.store.list().unwrap().versions[0];
        assert_eq!(last.model.unwrap(), kept.description());
        assert_eq!(last.report.unwrap(), kept.report());
        assert!(!kept.verdict.accepted && kept.description().is_file());
        assert_eq!(supervisor.status().precision, Precision::Float);
    }

    #[tokio::test]
    async fn a_model_that_does_not_load_leaves_float_running_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), 4, &done(folder.path(), true, "")).await;
        supervisor.calibrate(Order::default()).await.unwrap();
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
            supervisor.calibrate(Order::default()).await.unwrap();
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
        supervisor.calibrate(Order::default()).await.unwrap();
        let begin = Instant::now();
        supervisor.shut_down(PATIENCE).await;
        assert!(begin.elapsed() < PATIENCE / 2);
        assert_eq!(
            supervisor.calibrate(Order::default()).await,
            Err(Refusal::Stopping)
        );
    }

    /// A folder as `quantize` writes it: the demo model, called INT8. Each `variant` has another content.
    fn made(base: &ModelDescription, made: &Path, variant: f32) {
        std::fs::create_dir(made).unwrap();
        for file in [base.encoder_path(), base.backbone_path()] {
            std::fs::copy(&file, made.join(file.file_name().unwrap())).unwrap();
        }
        let mut description = base.clone();
        description.precision = Precision::Int8;
        description.post.score_thresholds = vec![variant; description.classes.len()];
        description.save(&made.join("model.yaml")).unwrap();
        let mut report = crate::ptq::report::tests::sample();
        report.model = "demo".into();
        report.float_files = FloatModel::of(base).unwrap().files;
        report.check.verdict.accepted = true;
        report.reduced_range = true;
        report.int8_files = FileRecord::all_of(&ModelDescription {
            folder: made.to_owned(),
            ..description
        })
        .unwrap();
        let text = serde_json::to_string(&report).unwrap();
        std::fs::write(made.join("report.json"), text).unwrap();
    }

    /// Such a folder in a supervisor's store, where the node made it itself.
    fn stored(supervisor: &Supervisor, variant: f32) -> Version {
        let Paths { store, base, .. } = &supervisor.paths;
        let incoming = store.incoming().unwrap();
        let folder = incoming.path().join("model");
        made(base, &folder, variant);
        store.add(&folder, Some("/centerpoint")).unwrap()
    }

    /// Has models run that the node's frames do not judge.
    fn allow_unjudged(node: &Supervisor) {
        lock(&node.settings).store_allow_unjudged = true;
    }

    /// A supervisor whose float engine has the demo model's classes.
    async fn demo(folder: &Path) -> Arc<Supervisor> {
        demo_with(folder, 0, "exit 1").await
    }

    async fn demo_with(folder: &Path, frames: i64, script: &str) -> Arc<Supervisor> {
        let model = ModelDescription::load("models/demo/model.yaml".as_ref()).unwrap();
        let float = crate::node::pipeline::tests::engine_of(
            "float",
            Precision::Float,
            model.classes,
            |_| Ok(Vec::new()),
        );
        supervisor_of(float, folder, frames, script).await
    }

    #[tokio::test]
    async fn a_node_starts_with_the_model_that_ran_last_unless_float_did() {
        let folder = tempfile::tempdir().unwrap();
        let first = demo(folder.path()).await;
        let version = stored(&first, 0.9);
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
        let version = stored(&node, 0.9);
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
        let version = stored(&node, 0.9);
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
        let (reason, runs) = tokio::time::timeout(PATIENCE, given_up).await.unwrap();
        assert!(reason.contains("broken") && runs.is_none(), "{reason}");
        watcher.abort();
    }

    async fn load(node: &Supervisor, name: &str) -> Result<Version, String> {
        let loaded = node.load_model(Wanted::Named(name.into())).await;
        loaded
            .map(|loaded| loaded.version)
            .map_err(|refusal| refusal.to_string())
    }

    #[tokio::test]
    async fn a_model_is_loaded_by_its_id_by_a_folder_or_by_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let node = demo(folder.path()).await;
        let there = stored(&node, 0.9);
        let digits = there.id.rsplit('-').next().unwrap();
        assert_eq!(load(&node, &digits[..6]).await.unwrap(), there);
        let status = node.status();
        assert_eq!(status.stored_id, Some(there.id.clone()));
        assert_eq!(status.precision, Precision::Int8);

        allow_unjudged(&node);
        let elsewhere = folder.path().join("elsewhere");
        made(&node.paths.base, &elsewhere, 0.8);
        let second = load(&node, elsewhere.to_str().unwrap()).await.unwrap();
        assert!(elsewhere.is_dir() && second.id != there.id);
        assert_eq!(node.status().stored_id, Some(second.id.clone()));

        let sent = folder.path().join("sent");
        made(&node.paths.base, &sent, 0.7);
        let files = std::fs::read_dir(&sent).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        });
        let files: Vec<_> = files.collect();
        let third = node
            .load_model(Wanted::Files(files.clone()))
            .await
            .unwrap()
            .version;
        assert_eq!(node.status().stored_id, Some(third.id.clone()));
        let selection = node.paths.store.selection("/centerpoint").unwrap();
        assert_eq!(selection.good, [third.id.clone(), second.id, there.id]);

        // Nothing outside of the store is written, whatever the files are called.
        let mut escaping = files;
        escaping[0].0 = "../../escaped".into();
        let refusal = node.load_model(Wanted::Files(escaping)).await.unwrap_err();
        assert!(refusal.to_string().contains("escaped"), "{refusal}");
        assert_eq!(node.status().stored_id, Some(third.id));
    }

    #[tokio::test]
    async fn what_cannot_be_loaded_is_refused_with_the_reason_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let node = demo(folder.path()).await;
        let empty = folder.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        for (name, part) in [
            ("demo-123456789abc", "has no model 'demo-123456789abc'"),
            ("models/demo", "no absolute path"),
            (empty.to_str().unwrap(), "no report.json"),
        ] {
            let refusal = load(&node, name).await.unwrap_err();
            assert!(refusal.contains(part), "{refusal}");
        }
        let refused = folder.path().join("refused");
        made(&node.paths.base, &refused, 0.9);
        let report = refused.join("report.json");
        let text = std::fs::read_to_string(&report).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["check"]["verdict"] =
            serde_json::json!({"accepted": false, "reasons": ["lost cars"]});
        std::fs::write(&report, value.to_string()).unwrap();
        let refusal = load(&node, refused.to_str().unwrap()).await.unwrap_err();
        assert!(refusal.contains("lost cars"), "{refusal}");
        // One bit of the weights, on the way here.
        let damaged = folder.path().join("damaged");
        made(&node.paths.base, &damaged, 0.8);
        let backbone = damaged.join(&node.paths.base.backbone.file);
        let mut bytes = std::fs::read(&backbone).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&backbone, bytes).unwrap();
        allow_unjudged(&node);
        let refusal = load(&node, damaged.to_str().unwrap()).await.unwrap_err();
        assert!(
            refusal.contains("pts_backbone") && refusal.contains("SHA-256"),
            "{refusal}"
        );
        assert!(node.paths.store.list().unwrap().versions.is_empty());
        let status = node.status();
        assert_eq!(
            (status.precision, status.stored_id),
            (Precision::Float, None)
        );
    }

    #[tokio::test]
    async fn a_model_from_elsewhere_is_judged_on_what_this_node_saw() {
        let folder = tempfile::tempdir().unwrap();
        let judge = |accepted: bool| {
            let asked = folder.path().join("asked");
            let verdict = serde_json::json!({"verdict": {
                "accepted": accepted,
                "reasons": ["lost cars"],
                "judged": [{"class": "CAR", "float_boxes": 30, "int8_boxes": 29, "needed": 20}],
                "not_judged": [{"class": "BUS", "float_boxes": 2, "int8_boxes": 1, "needed": 20}],
                "remarks": ["BUS looks bad"],
            }});
            let script = format!("echo \"$@\" >'{}'\necho '{verdict}'\n", asked.display());
            quantizer(folder.path(), &script);
        };
        let node = demo_with(folder.path(), 24, "exit 1").await;
        let recipe = folder.path().join("recipe.yaml");
        std::fs::write(
            &recipe,
            BUILT_IN.replace("min_held_out: 4", "min_held_out: 1"),
        )
        .unwrap();
        lock(&node.settings).recipe_path = recipe.display().to_string();
        let held_out = node.pipeline.buffer().fill().held_out;
        let elsewhere = folder.path().join("elsewhere");
        made(&node.paths.base, &elsewhere, 0.8);
        let name = || Wanted::Named(elsewhere.display().to_string());

        judge(false);
        let refusal = node.load_model(name()).await.unwrap_err().to_string();
        assert!(
            refusal.contains(&format!("on {held_out} frames")) && refusal.contains("lost cars"),
            "{refusal}"
        );
        assert_eq!(node.status().precision, Precision::Float);
        assert_eq!(
            node.paths.store.list().unwrap().versions,
            [],
            "it does not stay"
        );
        let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
        for part in [
            "evaluate --model ",
            "--model2 ",
            "--topic /centerpoint/held_out/pointcloud",
            "--gate ",
            "--json",
        ] {
            assert!(asked.contains(part), "{asked}");
        }
        judge(true);
        let loaded = node.load_model(name()).await.unwrap();
        assert_eq!(
            (loaded.judgement.frames, node.status().precision),
            (held_out, Precision::Int8)
        );
        let told = node.status().judgement.unwrap();
        assert_eq!(told, loaded.judgement);
        for part in [
            "agrees with float",
            "judged CAR (30 boxes)",
            "not judged for lack of boxes: BUS (2 of 20 needed)",
            "BUS looks bad",
        ] {
            assert!(told.text.contains(part), "{told:?}");
        }
        let incoming = folder.path().join("store/incoming");
        assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);

        // One that this node made was judged when it was made; a tool that cannot judge is no verdict.
        quantizer(folder.path(), "echo no such bag >&2; exit 1");
        let refusal = node.load_model(name()).await.unwrap_err().to_string();
        assert!(refusal.contains("no such bag"), "{refusal}");
        let own = folder.path().join("store/incoming/own");
        made(&node.paths.base, &own, 0.7);
        let own = node.paths.store.add(&own, Some("/centerpoint")).unwrap();
        let loaded = node.load_model(Wanted::Named(own.id)).await.unwrap();
        assert_eq!(loaded.judgement.frames, 0);
        assert!(
            loaded
                .judgement
                .text
                .starts_with("this node made it; where it was made: judged"),
            "{:?}",
            loaded.judgement
        );
        node.select(Precision::Float).await.unwrap();
        assert_eq!(node.status().judgement, None, "another model runs");
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_judged_here_does_not_run_unless_that_is_allowed_and_then_it_is_said()
     {
        let folder = tempfile::tempdir().unwrap();
        // No frames at all, and then frames without boxes enough.
        let node = demo_with(folder.path(), 0, "exit 1").await;
        let elsewhere = folder.path().join("elsewhere");
        made(&node.paths.base, &elsewhere, 0.8);
        let name = || Wanted::Named(elsewhere.display().to_string());
        let why = [
            "not judged on what this node saw: its buffer holds out 0 frames, 4 are needed",
            "where it was made: judged",
            "not judged for lack of boxes: NEVER_SEEN",
        ];
        let refusal = node.load_model(name()).await.unwrap_err().to_string();
        for part in why.iter().chain(&["drive until", "store.allow_unjudged"]) {
            assert!(refusal.contains(part), "{refusal}");
        }
        assert_eq!(node.status().precision, Precision::Float);
        assert!(node.paths.store.list().unwrap().versions.is_empty());

        allow_unjudged(&node);
        let loaded = node.load_model(name()).await.unwrap();
        let Judgement { judged, text, .. } = &loaded.judgement;
        assert!(!judged);
        for part in why {
            assert!(text.contains(part), "{text}");
        }
        let status = node.status();
        assert_eq!(status.judgement.as_ref(), Some(&loaded.judgement));
        let lasting = |status: &Status| {
            let conditions = status.conditions.iter();
            let unjudged = conditions.filter(|trouble| trouble.kind == "unjudged");
            unjudged.map(|trouble| trouble.text.clone()).next()
        };
        assert!(lasting(&status).unwrap().contains(&loaded.version.id));
        // The next start does not take it for judged, and says so where it runs.
        let next = demo_with(folder.path(), 0, "exit 1").await;
        next.resume().await;
        let status = next.status();
        assert_eq!(status.precision, Precision::Float);
        let problem = &status.start.unwrap().problems[0];
        assert!(problem.contains("not judged"), "{problem}");
        assert!(next.select(Precision::Int8).await.is_err());
        next.paths
            .store
            .run("/centerpoint", &loaded.version.id)
            .unwrap();
        allow_unjudged(&next);
        next.resume().await;
        let status = next.status();
        assert_eq!(status.stored_id, Some(loaded.version.id));
        assert!(lasting(&status).is_some() && !status.judgement.unwrap().judged);
        next.select(Precision::Float).await.unwrap();
        assert_eq!(lasting(&next.status()), None);

        let second = tempfile::tempdir().unwrap();
        let few = r#"{"accepted": false, "reasons": ["no class has boxes enough"], "judged": [], "not_judged":
            [{"class": "CAR", "float_boxes": 3, "int8_boxes": 3, "needed": 20}]}"#;
        let script = format!("echo '{{\"verdict\": {}}}'; exit 3", few.replace('\n', " "));
        let node = demo_with(second.path(), 24, &script).await;
        let recipe = second.path().join("recipe.yaml");
        let text = BUILT_IN.replace("min_held_out: 4", "min_held_out: 1");
        std::fs::write(&recipe, &text).unwrap();
        lock(&node.settings).recipe_path = recipe.display().to_string();
        let refusal = node.load_model(name()).await.unwrap_err();
        assert!(matches!(refusal, Refusal::NotJudged { .. }), "{refusal}");
        let refusal = refusal.to_string();
        assert!(refusal.contains("no class has boxes enough"), "{refusal}");
        // A recipe that insists is heard, also where unjudged models may run.
        allow_unjudged(&node);
        std::fs::write(
            &recipe,
            text.replacen("must_judge: []", "must_judge: [CAR]", 1),
        )
        .unwrap();
        let refusal = node.load_model(name()).await.unwrap_err();
        assert!(matches!(refusal, Refusal::Disagrees { .. }), "{refusal}");
    }

    #[tokio::test]
    async fn a_float_model_that_changed_on_disk_is_neither_quantized_nor_compared_with() {
        let folder = tempfile::tempdir().unwrap();
        let script = done(folder.path(), true, "");
        let node = supervisor(folder.path(), 4, &script).await;
        let backbone = node.paths.base.backbone_path();
        let description = node.paths.model.clone();
        for file in [&backbone, &description] {
            let before = std::fs::read(file).unwrap();
            let mut bytes = before.clone();
            match file == &backbone {
                true => bytes[1000] ^= 1,
                false => bytes.extend(b"\nframe: elsewhere\n"),
            }
            std::fs::write(file, bytes).unwrap();
            let refusal = node.calibrate(Order::default()).await.unwrap_err();
            assert!(matches!(refusal, Refusal::FloatChanged { .. }), "{refusal}");
            let refusal = refusal.to_string();
            for part in ["restart the node", "put the old one back"] {
                assert!(refusal.contains(part), "{refusal}");
            }
            std::fs::write(file, before).unwrap();
        }
        node.calibrate(Order::default()).await.unwrap();
        finished(&node).await;

        // It may change while the calibration reads it.
        let script = script.replace(OUT, &format!("{OUT}printf x >>'{}'\n", backbone.display()));
        quantizer(folder.path(), &script);
        let report = folder.path().join("made.json");
        let text = std::fs::read_to_string(&report).unwrap();
        let mut made: crate::ptq::report::Report = serde_json::from_str(&text).unwrap();
        made.float_files[1].sha256 = "00".repeat(32);
        std::fs::write(&report, serde_json::to_string(&made).unwrap()).unwrap();
        node.work.send_modify(|work| work.last = None);
        while node.cancel().is_ok() {
            tokio::task::yield_now().await;
        }
        let before = node.paths.store.list().unwrap().versions;
        node.calibrate(Order::default()).await.unwrap();
        let last = finished(&node).await;
        assert_eq!(last.outcome, Outcome::Failed);
        assert!(
            last.reasons[0].contains("another float model") && last.reasons[0].contains("restart"),
            "{:?}",
            last.reasons
        );
        assert_eq!(node.paths.store.list().unwrap().versions, before);
    }

    #[tokio::test]
    async fn a_model_that_was_judged_here_is_known_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let verdict = r#"{"verdict": {"accepted": true, "reasons": [], "judged":
            [{"class": "CAR", "float_boxes": 30, "int8_boxes": 29, "needed": 20}], "not_judged": []}}"#;
        let script = format!("echo '{}'", verdict.replace('\n', " "));
        let node = demo_with(folder.path(), 24, &script).await;
        let recipe = folder.path().join("recipe.yaml");
        let text = BUILT_IN.replace("min_held_out: 4", "min_held_out: 1");
        std::fs::write(&recipe, text).unwrap();
        lock(&node.settings).recipe_path = recipe.display().to_string();
        let elsewhere = folder.path().join("elsewhere");
        made(&node.paths.base, &elsewhere, 0.8);
        let wanted = Wanted::Named(elsewhere.display().to_string());
        let loaded = node.load_model(wanted).await.unwrap();
        assert!(loaded.judgement.judged);
        drop(node);

        let next = demo(folder.path()).await;
        next.resume().await;
        let status = next.status();
        assert_eq!(status.stored_id, Some(loaded.version.id));
        let judgement = status.judgement.unwrap();
        assert_eq!(
            (judgement.judged, judgement.frames, judgement.text),
            (true, loaded.judgement.frames, loaded.judgement.text)
        );
        assert_eq!(status.conditions, []);
    }

    #[tokio::test]
    async fn classes_that_the_model_cannot_find_are_refused_before_a_calibration_starts() {
        let folder = tempfile::tempdir().unwrap();
        let node = supervisor(folder.path(), 4, "exit 1").await;
        let recipe = folder.path().join("recipe.yaml");
        let text = BUILT_IN.replacen("must_judge: []", "must_judge: [TRAM]", 1);
        std::fs::write(&recipe, text).unwrap();
        let order = Order {
            recipe: Some(recipe),
            ..Order::default()
        };
        let refusal = node.calibrate(order).await.unwrap_err().to_string();
        assert!(
            refusal.contains("TRAM") && refusal.contains("CAR"),
            "{refusal}"
        );
    }

    #[tokio::test]
    async fn frames_that_lack_sweeps_are_used_where_the_traffic_has_no_others_and_that_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "echo \"$@\" >{}; {}",
            folder.path().join("arguments").display(),
            done(folder.path(), false, "lost cars")
        );
        let node = supervisor(folder.path(), 4, &script).await;
        // The demo model wants two, the traffic of these tests has no odometry.
        let policy = Policy {
            sweeps: 2,
            ..node.pipeline.buffer().policy()
        };
        node.pipeline.buffer().set_policy(policy);
        node.pipeline.buffer().settle();
        let started = node.calibrate(Order::default()).await.unwrap();
        assert_eq!(
            started.source,
            "4 frames, 4 of them with fewer sweeps than the 2 that the model wants,"
        );
        finished(&node).await;
        let said = std::fs::read_to_string(folder.path().join("arguments")).unwrap();
        assert!(said.contains("--allow-few-sweeps"), "{said}");
    }

    #[tokio::test]
    async fn rolling_back_goes_to_the_model_before_and_then_to_float() {
        let folder = tempfile::tempdir().unwrap();
        let node = demo(folder.path()).await;
        let nothing = node.roll_back().await.unwrap_err();
        assert_eq!(nothing, Refusal::NothingToRollBack);
        let versions = [0.9, 0.8, 0.7].map(|variant| stored(&node, variant));
        for version in &versions {
            load(&node, &version.id).await.unwrap();
        }
        // The second one cannot be gone back to any more.
        std::fs::remove_file(versions[1].folder.join("model.yaml")).unwrap();

        let (active, skipped) = node.roll_back().await.unwrap();
        assert_eq!(active.model.path, versions[0].description());
        assert!(skipped[0].contains(&versions[1].id), "{skipped:?}");
        let store = &node.paths.store;
        let selection = store.selection("/centerpoint").unwrap();
        assert_eq!(selection.runs, Some(versions[0].id.clone()));
        assert!(selection.given_up.contains_key(&versions[2].id));

        let (active, _) = node.roll_back().await.unwrap();
        assert_eq!(
            (active.model.precision, active.int8),
            (Precision::Float, None)
        );
        assert_eq!(store.selection("/centerpoint").unwrap().runs, None);
        // Neither comes back by itself, but both do on request.
        assert!(node.select(Precision::Int8).await.is_err());
        load(&node, &versions[2].id).await.unwrap();
        assert_eq!(node.status().stored_id, Some(versions[2].id.clone()));
        node.select(Precision::Float).await.unwrap();
        node.select(Precision::Int8).await.unwrap();
    }

    #[tokio::test]
    async fn a_calibration_from_a_recording_needs_no_frames_in_the_buffer() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "echo \"$@\" >'{}'; {}",
            folder.path().join("arguments").display(),
            done(folder.path(), false, "lost cars")
        );
        let node = supervisor(folder.path(), 0, &script).await;
        let bag = folder.path().join("drive");
        let recipe = folder.path().join("recipe.yaml");
        let order = Order {
            bag: Some(bag.clone()),
            topic: Some("/top".into()),
            recipe: Some(recipe.clone()),
            target: Some(Target::TensorRt),
        };
        let absent = node.calibrate(order.clone()).await;
        assert_eq!(absent, Err(Refusal::NoBag(bag.clone())));
        let relative = Order {
            bag: Some("drive".into()),
            ..Order::default()
        };
        let refusal = node.calibrate(relative).await.unwrap_err().to_string();
        assert!(refusal.contains("'drive' is no absolute path"), "{refusal}");

        std::fs::create_dir(&bag).unwrap();
        std::fs::write(&recipe, "no: recipe").unwrap();
        let refusal = node.calibrate(order.clone()).await.unwrap_err().to_string();
        assert!(refusal.contains("recipe.yaml"), "{refusal}");
        std::fs::copy("calibration/quick.yaml", &recipe).unwrap();
        let started = node.calibrate(order).await.unwrap();
        assert!(
            started
                .source
                .contains("drive, to be checked on frames of its own"),
            "{started:?}"
        );
        let last = finished(&node).await;
        assert_eq!((last.outcome, last.calibration), (Outcome::Refused, 1));
        assert!(last.frames.is_some_and(|frames| frames > 0));
        let said = std::fs::read_to_string(folder.path().join("arguments")).unwrap();
        for part in [
            &format!("--bag {}", bag.display()),
            &format!("--recipe {}", recipe.display()),
            "--topic=/top",
            "--fixed-frame=odom",
            "--target tensorrt",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!said.contains("--check-buffer"), "{said}");
    }

    #[tokio::test]
    async fn a_model_from_a_recording_is_checked_on_what_the_node_saw_itself() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "echo \"$@\" >'{}'; {}",
            folder.path().join("arguments").display(),
            done(folder.path(), false, "lost cars")
        );
        let node = supervisor(folder.path(), 24, &script).await;
        assert!(node.pipeline.buffer().fill().held_out >= 1);
        let recipe = folder.path().join("recipe.yaml");
        let quick = std::fs::read_to_string("calibration/quick.yaml").unwrap();
        std::fs::write(&recipe, quick.replace("min_held_out: 4", "min_held_out: 1")).unwrap();
        let order = Order {
            bag: Some(folder.path().to_owned()),
            recipe: Some(recipe),
            ..Order::default()
        };
        let started = node.calibrate(order).await.unwrap();
        assert!(
            started
                .source
                .contains("checked on frames that the buffer holds out"),
            "{started:?}"
        );
        finished(&node).await;
        let said = std::fs::read_to_string(folder.path().join("arguments")).unwrap();
        let snapshot = folder.path().join("buffer/snapshot");
        assert!(
            said.contains(&format!("--check-buffer {}", snapshot.display())),
            "{said}"
        );
    }

    #[tokio::test]
    async fn the_buffer_is_saved_where_asked_or_below_the_recordings() {
        let folder = tempfile::tempdir().unwrap();
        let node = supervisor(folder.path(), 4, "exit 1").await;
        let saved = node.save_buffer(None).await.unwrap();
        assert!(saved.bag.starts_with(folder.path().join("recordings")));
        assert!(saved.bag.join("metadata.yaml").is_file());
        let there = folder.path().join("mine");
        let saved = node.save_buffer(Some(there.clone())).await.unwrap();
        assert_eq!(
            (saved.bag, saved.calibration + saved.held_out),
            (there.clone(), 4)
        );
        let again = node.save_buffer(Some(there)).await.unwrap_err().to_string();
        assert!(again.contains("is there already"), "{again}");
        let relative = node.save_buffer(Some("mine".into())).await;
        assert!(matches!(relative, Err(Refusal::Relative { .. })));

        // What is the node's own stays its own, whatever leads there.
        std::fs::create_dir_all(folder.path().join("store/models")).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("store"), &link).unwrap();
        for own in [
            "buffer/mine",
            "buffer/frames/mine",
            "store/models/demo-123456789abc",
            "mine/../buffer/mine",
            "link/models/mine",
            "link",
        ] {
            let refused = node.save_buffer(Some(folder.path().join(own))).await;
            assert!(
                matches!(refused, Err(Refusal::Own { .. })),
                "{own}: {refused:?}"
            );
        }
        let nowhere = folder.path().join("absent/../buffer/mine");
        assert!(node.save_buffer(Some(nowhere)).await.is_err());
        let left = std::fs::read_dir(folder.path().join("store/models")).unwrap();
        assert_eq!(left.count(), 0);
    }
}
