//! `Calibrate` as an action: feedback, cancelling, a result.
//!
//! It lives in an executable of its own, since a calibration may be wanted on another machine than the detector's. It works
//! in one of two ways:
//!
//! - beside the node it drives the node's services and follows its status;
//! - with `work_here`, on any machine of the graph, it makes the model itself from a recording and sends the files to
//!   the node, which checks and loads them. The two machines share no disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use r2r::centerpoint_ptq_msgs::action::Calibrate;
use r2r::centerpoint_ptq_msgs::msg::{CalibrationStatus, ModelFile};
use r2r::centerpoint_ptq_msgs::srv::{LoadModel, StartCalibration};
use r2r::indexmap::IndexMap;
use r2r::std_srvs::srv::Trigger;
use r2r::{Client, Parameter, QosProfile, WrappedServiceTypeSupport};
use tokio::sync::{mpsc, watch};

use super::goals::{self, Cancel, Goal};
use super::{NodeError, Spinner, async_runtime, beside, create_node, entity, lock, logging};
use super::{messages, parameters, publish_rosout, publisher, subscribe, until_end};
use crate::calibration::ModelStore;
use crate::calibration::buffer::CALIBRATION_TOPIC;
use crate::files;
use crate::node::calibrator::{self, Input, Job, JobError, Progress};
use crate::node::reach::ReachError;
use crate::node::settings::{Settings, SettingsError, Value, ros_home};
use crate::node::status::Outcome;
use crate::onnx::limit;
use crate::ptq::recipe::Recipe;

/// How long the node may take to say whether it does what it is asked to.
const ANSWER: Duration = Duration::from_secs(15);
/// How long it may take to check, load and warm up a model.
const LOAD: Duration = Duration::from_secs(180);
/// Silence of the node's services after which it counts as gone.
const GONE: Duration = Duration::from_secs(10);
/// Goals may take so long to end when the server does.
const LAST_RESULTS: Duration = Duration::from_secs(3);
/// Parameters of this executable alone.
const OWN: [&str; 2] = ["node", "work_here"];

/// Runs the action server until SIGINT or SIGTERM.
pub fn run() -> Result<(), NodeError> {
    let mut node = create_node("centerpoint_calibration")?;
    let rosout = logging::install(node.logger());
    let (settings, own) = {
        let given = lock(&node.params);
        let settings = parameters::read_some(&given, &OWN)?;
        limit::set_mb(settings.model_max_mb as u64);
        (
            settings,
            Own::read(&given, &node.namespace().unwrap_or_default())?,
        )
    };
    if own.work_here {
        settings.check()?;
        if let Err(error) = Recipe::load_or_default(settings.recipe_file().as_deref()) {
            tracing::error!(
                "parameter 'recipe_path': {error}; goals without a recipe of their own will fail"
            );
        }
    }
    let runtime = async_runtime()?;
    let _inside = runtime.enter();

    let detector = Detector::connect(&mut node, &own.node)?;
    let requests = goals::create(&mut node)?;
    let many = QosProfile::default().keep_last(1000).transient_local();
    let log = publisher(&mut node, "/rosout", many)?;
    let clock = node.get_ros_clock();
    let server = Arc::new(Server {
        detector,
        worker: match own.work_here {
            true => Some(Worker::new(
                settings,
                node.fully_qualified_name().unwrap_or_default(),
            )?),
            false => None,
        },
    });
    let (end, ending) = watch::channel(false);
    let mut tasks = [
        tokio::spawn(requests.serve(ending.clone(), move |goal, cancels| {
            let (server, ending) = (server.clone(), ending.clone());
            async move { server.attend(goal, cancels, ending).await }
        })),
        tokio::spawn(publish_rosout(rosout, clock, log)),
    ];
    let spinner = Spinner::start(node).map_err(|source| NodeError::Start {
        what: "the ROS thread",
        source,
    })?;
    let place = match own.work_here {
        true => "here, for",
        false => "in",
    };
    tracing::info!("ready; calibrations run {place} {}", own.node);
    let ended = runtime.block_on(until_end(|| None, &spinner, &tasks));
    // Every goal gets its result before the server goes.
    end.send_replace(true);
    let served = &mut tasks[0];
    if !served.is_finished()
        && runtime
            .block_on(async { tokio::time::timeout(LAST_RESULTS, served).await })
            .is_err()
    {
        tracing::warn!("goals are left without a result");
    }
    for task in &tasks {
        task.abort();
    }
    spinner.stop();
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

/// The parameters that only this executable has.
struct Own {
    /// Full name of the detector.
    node: String,
    work_here: bool,
}

impl Own {
    /// A name without a leading slash is one in the own `namespace`, as ROS takes relative names.
    fn read(given: &IndexMap<String, Parameter>, namespace: &str) -> Result<Self, SettingsError> {
        let absolute = |name: &str| match name.strip_prefix('/') {
            Some(name) => format!("/{}", name.trim_end_matches('/')),
            None => format!(
                "{}/{}",
                namespace.trim_end_matches('/'),
                name.trim_end_matches('/')
            ),
        };
        let mut own = Self {
            node: absolute("centerpoint"),
            work_here: false,
        };
        for (name, parameter) in given {
            let wrong = |expected| SettingsError::BadValue {
                name: name.clone(),
                reason: format!("must be a {expected}"),
            };
            match (name.as_str(), parameters::value(&parameter.value)) {
                ("node", Some(Value::Text(text))) if !text.trim_matches('/').is_empty() => {
                    own.node = absolute(&text);
                }
                ("node", _) => {
                    return Err(wrong(
                        "name of a node, as centerpoint or /front/centerpoint",
                    ));
                }
                ("work_here", Some(Value::Bool(flag))) => own.work_here = flag,
                ("work_here", _) => return Err(wrong("bool")),
                _ => {}
            }
        }
        Ok(own)
    }
}

/// What came of a goal.
type Ended = Calibrate::Result;

fn ended(outcome: Outcome, reason: impl Into<String>) -> Ended {
    Ended {
        outcome: messages::outcome(outcome),
        reasons: vec![reason.into()],
        ..Ended::default()
    }
}

struct Server {
    detector: Detector,
    /// Present where calibrations run here.
    worker: Option<Worker>,
}

impl Server {
    async fn attend(
        &self,
        goal: Goal,
        cancels: mpsc::Receiver<Cancel>,
        ending: watch::Receiver<bool>,
    ) {
        let begin = Instant::now();
        let mut result = match &self.worker {
            Some(worker) => worker.work(&goal, cancels, &self.detector, ending).await,
            None => self.detector.work(&goal, cancels, ending).await,
        };
        if result.seconds == 0.0 {
            result.seconds = begin.elapsed().as_secs_f64();
        }
        let reasons = result.reasons.join("; ");
        tracing::info!("calibration ended: outcome {}, {reasons}", result.outcome);
        goal.finish(
            result.outcome == messages::outcome(Outcome::Swapped),
            result,
        );
    }
}

/// The node that detects, seen from here.
struct Detector {
    name: String,
    start: Client<StartCalibration::Service>,
    cancel: Client<Trigger::Service>,
    load: Client<LoadModel::Service>,
    status: watch::Receiver<Option<CalibrationStatus>>,
}

impl Detector {
    fn connect(node: &mut r2r::Node, name: &str) -> Result<Self, NodeError> {
        let mut messages = subscribe::<CalibrationStatus>(
            node,
            &format!("{name}/calibration_status"),
            QosProfile::default().keep_last(1).transient_local(),
        )?;
        let (sender, status) = watch::channel(None);
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                sender.send_replace(Some(message));
            }
        });
        Ok(Self {
            name: name.to_owned(),
            start: client(node, name, "start_calibration")?,
            cancel: client(node, name, "cancel_calibration")?,
            load: client(node, name, "load_model")?,
            status,
        })
    }

    /// Has the node calibrate, and follows it to the end.
    async fn work(
        &self,
        goal: &Goal,
        mut cancels: mpsc::Receiver<Cancel>,
        ending: watch::Receiver<bool>,
    ) -> Ended {
        let wanted = goal.wanted.clone();
        let request = StartCalibration::Request {
            recipe: wanted.recipe,
            bag: wanted.bag,
            topic: wanted.topic,
            target: wanted.target,
        };
        let started = match self.ask(&self.start, &request, ANSWER).await {
            Ok(response) if response.success => response.calibration,
            Ok(response) => return ended(Outcome::Failed, response.message),
            Err(problem) => return ended(Outcome::Failed, problem),
        };
        let mut status = self.status.clone();
        let mut pulse = tokio::time::interval(GONE / 4);
        let mut seen = Instant::now();
        loop {
            let now = status.borrow_and_update().clone();
            if let Some(now) = now {
                if now.last_calibration == started {
                    return of_status(now);
                }
                if now.calibration == started {
                    seen = Instant::now();
                    if now.state == CalibrationStatus::CALIBRATING as u8 {
                        goal.feed_back(now.stage, now.fraction, now.eta_s, now.detail);
                    }
                } else if seen.elapsed() > GONE {
                    let reason =
                        format!("{} was restarted, or runs another calibration", self.name);
                    return ended(Outcome::Failed, reason);
                }
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() {
                    return ended(Outcome::Failed, "the status is gone");
                },
                Some(request) = cancels.recv() => {
                    match self.ask(&self.cancel, &Trigger::Request::default(), ANSWER).await {
                        Ok(response) if response.success => request.accept(),
                        // It has ended; what came of it is the result.
                        _ => request.reject(),
                    }
                }
                () = raised(ending.clone()) => {
                    let reason = format!("the action server was shut down; {} goes on calibrating", self.name);
                    return ended(Outcome::Failed, reason);
                }
                _ = pulse.tick() => {
                    if self.is_there(&self.cancel, GONE).await {
                        continue;
                    }
                    return ended(Outcome::Failed, format!("{} is gone", self.name));
                }
            }
        }
    }

    async fn is_there<S: WrappedServiceTypeSupport + 'static>(
        &self,
        client: &Client<S>,
        patience: Duration,
    ) -> bool {
        match r2r::Node::is_available(client) {
            Ok(available) => matches!(tokio::time::timeout(patience, available).await, Ok(Ok(()))),
            Err(_) => false,
        }
    }

    /// Calls a service of the node.
    async fn ask<S: WrappedServiceTypeSupport + 'static>(
        &self,
        client: &Client<S>,
        request: &S::Request,
        patience: Duration,
    ) -> Result<S::Response, String> {
        if !self.is_there(client, GONE).await {
            return Err(format!("there is no node {} on the graph", self.name));
        }
        let asked = client.request(request).map_err(|error| error.to_string())?;
        match tokio::time::timeout(patience, asked).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "{} gave no answer within {} s",
                self.name,
                patience.as_secs()
            )),
        }
    }
}

fn client<S: WrappedServiceTypeSupport + 'static>(
    node: &mut r2r::Node,
    of: &str,
    service: &str,
) -> Result<Client<S>, NodeError> {
    let name = format!("{of}/{service}");
    node.create_client::<S>(&name, QosProfile::services_default())
        .map_err(|source| entity(format!("the client of {name}"), source))
}

fn of_status(status: CalibrationStatus) -> Ended {
    Ended {
        outcome: status.last_outcome,
        reasons: status.last_reasons,
        frames: status.last_frames,
        seconds: status.last_seconds,
        stored_id: status.last_stored_id,
        model_path: status.last_model_path,
        report: status.last_report,
    }
}

/// Makes models on this machine.
struct Worker {
    settings: Settings,
    executable: PathBuf,
    store: ModelStore,
    name: String,
    /// Held while a calibration runs: one at a time.
    busy: tokio::sync::Mutex<()>,
}

impl Worker {
    fn new(settings: Settings, name: String) -> Result<Self, NodeError> {
        Ok(Self {
            executable: beside("centerpoint_ptq")?,
            store: settings.model_store(&ros_home()),
            settings,
            name,
            busy: tokio::sync::Mutex::default(),
        })
    }

    async fn work(
        &self,
        goal: &Goal,
        mut cancels: mpsc::Receiver<Cancel>,
        detector: &Detector,
        ending: watch::Receiver<bool>,
    ) -> Ended {
        let Ok(_turn) = self.busy.try_lock() else {
            return ended(Outcome::Failed, "a calibration is already running here");
        };
        let (cancel, cancelled) = watch::channel(false);
        let work = self.make_and_send(goal, detector, cancelled);
        let mut work = std::pin::pin!(work);
        let mut granted = false;
        loop {
            tokio::select! {
                result = &mut work => return result.unwrap_or_else(|failure| failure),
                Some(request) = cancels.recv(), if !granted => {
                    cancel.send_replace(true);
                    request.accept();
                    granted = true;
                }
                () = raised(ending.clone()) => {
                    return ended(Outcome::Cancelled, "the action server was shut down");
                }
            }
        }
    }

    async fn make_and_send(
        &self,
        goal: &Goal,
        detector: &Detector,
        cancelled: watch::Receiver<bool>,
    ) -> Result<Ended, Ended> {
        let failed = |reason: String| ended(Outcome::Failed, reason);
        let wanted = goal.wanted.clone();
        if wanted.bag.is_empty() {
            let reason = "name a bag: calibrations that run here have no buffer of live frames";
            return Err(failed(reason.into()));
        }
        let mut settings = self.settings.clone();
        let reach = settings.reach([]);
        let (recipe, bag) = (wanted.recipe.clone(), wanted.bag.clone());
        let found = blocking(move || {
            let named = Some(recipe).filter(|recipe| !recipe.is_empty());
            let recipe = named.map(|recipe| reach.existing("recipe", Path::new(&recipe)));
            Ok::<_, ReachError>((recipe.transpose()?, reach.existing("bag", Path::new(&bag))?))
        });
        let (recipe, bag) = found.await.map_err(failed)?;
        if let Some(recipe) = recipe {
            settings.recipe_path = recipe.to_string_lossy().into_owned();
        }
        if !wanted.target.is_empty() {
            let set = settings.set("target", &Value::Text(wanted.target.clone()));
            set.map_err(|error| failed(error.to_string()))?;
        }
        let store = self.store.clone();
        let incoming = blocking(move || {
            store.clean()?;
            store.incoming()
        });
        let incoming = incoming.await.map_err(failed)?;
        let topic = Some(wanted.topic.clone()).filter(|topic| !topic.is_empty());
        let input = Input::recording(&settings, topic);
        let out = incoming.path().join("model");
        let mut job = Job::new(
            &settings,
            self.executable.clone(),
            settings.model_file(),
            (bag, input),
            out.clone(),
        );
        // What a node's buffer holds is what its network sees, whether that lacks sweeps or not.
        let bag = job.bag.clone();
        job.allow_few_sweeps = blocking(move || Ok::<_, std::convert::Infallible>(is_buffer(&bag)))
            .await
            .unwrap_or(false);
        let progress = |now: Progress| {
            let eta = now.eta_s.map_or(f32::NAN, |eta| eta as f32);
            goal.feed_back(now.stage, now.fraction as f32, eta, now.detail);
        };
        let verdict = calibrator::run(&job, cancelled.clone(), |_| (), progress).await;
        let verdict = verdict.map_err(|error| match error {
            JobError::Cancelled => ended(Outcome::Cancelled, "cancelled"),
            error => failed(error.to_string()),
        })?;
        let (store, name) = (self.store.clone(), self.name.clone());
        let version = blocking(move || store.add(&out, Some(&name)));
        let version = version.await.map_err(failed)?;
        // Also of a model that is accepted: which classes were judged, and which were not.
        let notes = verdict.notes();
        let mut result = Ended {
            outcome: messages::outcome(Outcome::Refused),
            reasons: verdict.reasons.into_iter().chain(notes).collect(),
            frames: (version.calibration_frames + version.held_out_frames) as u32,
            stored_id: version.id.clone(),
            model_path: version.description().display().to_string(),
            report: version.report().display().to_string(),
            ..Ended::default()
        };
        if !verdict.accepted {
            return Ok(result);
        }
        if *cancelled.borrow() {
            return Err(ended(Outcome::Cancelled, "cancelled"));
        }
        let eta = f32::NAN;
        goal.feed_back("load".into(), 1.0, eta, detector.name.clone());
        let folder = version.folder.clone();
        let names: Vec<String> = version.files.iter().map(|f| f.file.clone()).collect();
        let files = blocking(move || read_files(&folder, names)).await;
        let request = LoadModel::Request {
            model: String::new(),
            files: files.map_err(failed)?,
        };
        let loaded = detector.ask(&detector.load, &request, LOAD).await;
        if let Ok(response) = &loaded
            && response.success
        {
            // What the node's own frames said of it.
            result.reasons.push(response.message.clone());
        }
        let (outcome, reason) = match loaded {
            Ok(response) if response.success => (Outcome::Swapped, response.message),
            Ok(response) => (Outcome::Failed, response.message),
            Err(problem) => (Outcome::Failed, problem),
        };
        result.outcome = messages::outcome(outcome);
        if outcome == Outcome::Failed {
            result
                .reasons
                .push(format!("the model was made, but not loaded: {reason}"));
        }
        Ok(result)
    }
}

/// Whether a bag is a copy of a node's calibration buffer.
fn is_buffer(bag: &Path) -> bool {
    crate::bag::Reader::open(bag).is_ok_and(|bag| {
        bag.topics()
            .iter()
            .any(|topic| topic.name == CALIBRATION_TOPIC)
    })
}

async fn raised(mut flag: watch::Receiver<bool>) {
    // Who could raise it is gone only when this runtime ends.
    drop(flag.wait_for(|raised| *raised).await);
}

fn read_files(folder: &Path, names: Vec<String>) -> std::io::Result<Vec<ModelFile>> {
    let read = |name: String| {
        let file = files::open_no_link(&folder.join(&name), limit::bytes())?;
        let data = files::read_open(file, limit::bytes())?;
        Ok(ModelFile { name, data })
    };
    names.into_iter().map(read).collect()
}

/// Runs what waits for the disk where it may.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(node: &str, namespace: &str) -> Result<String, String> {
        let value = r2r::ParameterValue::String(node.into());
        let given = IndexMap::from([("node".to_owned(), Parameter::new(value))]);
        let own = Own::read(&given, namespace).map_err(|error| error.to_string())?;
        Ok(own.node)
    }

    #[test]
    fn the_detector_is_named_as_ros_names_nodes() {
        assert_eq!(named("centerpoint", "/").unwrap(), "/centerpoint");
        assert_eq!(
            named("centerpoint", "/front").unwrap(),
            "/front/centerpoint"
        );
        assert_eq!(
            named("/rear/centerpoint/", "/front").unwrap(),
            "/rear/centerpoint"
        );
        for none in ["", "/"] {
            let error = named(none, "/front").unwrap_err();
            assert!(
                error.contains("'node'") && error.contains("/front/centerpoint"),
                "{error}"
            );
        }
        let by_itself = Own::read(&IndexMap::new(), "/front").unwrap();
        assert_eq!(by_itself.node, "/front/centerpoint");
    }
}
