//! The node on the ROS graph; with the player, the only place that touches r2r.
//!
//! r2r as it is, and what follows from it here: `spin_once` needs the node for itself, so all
//! entities are made first and the node then moves into a thread of its own; a subscription
//! queues about eleven messages and drops the newest when full, so the receiving task drains it
//! at once into a slot of one; `spin_once` may return early without end, so the thread then rests
//! for a millisecond.

pub mod action;
mod diagnostics;
mod goals;
mod logging;
mod markers;
mod messages;
mod parameters;
mod services;
mod silence;

use std::any::Any;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use r2r::centerpoint_ptq_msgs::msg::CalibrationStatus;
use r2r::{Clock, Publisher, QosProfile};
use r2r::{diagnostic_msgs, rcl_interfaces, sensor_msgs, std_msgs, tf2_msgs};
use r2r::{vision_msgs, visualization_msgs};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::engine::LoadError;
use super::settings::{Reliability, Settings, SettingsError, ros_home};
use super::status::Work;
use super::supervisor::Paths;
use super::troubles::{Part, Symptom};
use super::usage::{Asked, Program};
use super::{Engine, Output, Pipeline, Supervisor};
use crate::bag::Stamp;
use crate::calibration::CalibrationBuffer;
use crate::calibration::buffer::Fill;
use crate::cloud::frames::FrameAssembler;
use crate::detector::{ModelDescription, Precision, RuntimeOptions};
use crate::onnx::limit;
use crate::ptq::recipe::Recipe;
use crate::ptq::report::Report;
use diagnostics::Diagnostics;
use services::Services;

/// Longest wait for traffic in one turn of the spin thread; also what a shutdown waits for it.
const SPIN_TIMEOUT: Duration = Duration::from_millis(20);
/// Outputs that may wait for publication.
const OUTPUT_QUEUE: usize = 8;
/// Between two status messages at the least.
const STATUS_PERIOD: Duration = Duration::from_millis(100);
/// Between two status messages at the most while something is wrong.
const STATUS_REFRESH: Duration = Duration::from_secs(5);
/// Between two looks at a file that is wrong.
const RECIPE_PERIOD: Duration = Duration::from_secs(5);
/// Tells the program that it was started anew, and why.
const LOG_PROBLEM: &str = "CENTERPOINT_PTQ_LOG_PROBLEM";
/// A clean end takes no longer than this, whatever is under way.
const SHUTDOWN: Duration = Duration::from_millis(1500);

/// Why the node did not start, or ended by itself.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error("ROS 2 does not start: {0}")]
    Init(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("parameter 'model_path': {0}")]
    Model(#[from] LoadError),
    #[error("cannot create {what}: {source}")]
    Entity { what: String, source: r2r::Error },
    #[error("cannot start {what}: {source}")]
    Start {
        what: &'static str,
        source: std::io::Error,
    },
    #[error("{0} ended by itself; this is a bug, please report the lines before this one")]
    Died(&'static str),
}

/// Starts this program anew with another folder for its log file where ROS 2 cannot write the wanted one: its logging
/// would end the process.
fn need_a_log_folder() -> Result<(), NodeError> {
    const VARIABLE: &str = "ROS_LOG_DIR";
    let can_be_written = |folder: &Path| {
        let tried = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
        tried.map(drop)
    };
    let folder = match std::env::var_os(VARIABLE) {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => ros_home().join("log"),
    };
    let Err(problem) = can_be_written(&folder) else {
        return Ok(());
    };
    let no_log = |source| NodeError::Start {
        what: "without a folder for log files, which ROS_LOG_DIR names",
        source,
    };
    let other = std::env::temp_dir().join("ros_log");
    if other == folder {
        return Err(no_log(problem));
    }
    can_be_written(&other).map_err(no_log)?;
    let problem = format!(
        "the log goes to {}, since {} cannot be written: {problem}",
        other.display(),
        folder.display()
    );
    eprintln!("{problem}");
    let own = std::env::current_exe().map_err(no_log)?;
    let arguments = std::env::args_os().skip(1);
    Err(no_log(
        Command::new(own)
            .args(arguments)
            .env(VARIABLE, other)
            .env(LOG_PROBLEM, problem)
            .exec(),
    ))
}

/// A context and a node from the process arguments. What r2r panics about becomes an error.
pub fn create_node(name: &str) -> Result<r2r::Node, NodeError> {
    need_a_log_folder()?;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let created = catch_unwind(AssertUnwindSafe(|| {
        r2r::Context::create().and_then(|context| r2r::Node::create(context, name, ""))
    }));
    std::panic::set_hook(hook);
    match created {
        Ok(Ok(node)) => Ok(node),
        Ok(Err(error)) => Err(NodeError::Init(error.to_string())),
        Err(panic) => Err(NodeError::Init(panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown cause")
        .to_owned()
}

/// The thread that owns the node and feeds its streams.
pub struct Spinner {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Spinner {
    pub fn start(node: r2r::Node) -> std::io::Result<Self> {
        Self::start_with(node, |_| ())
    }

    /// `look` may ask the node for something in each turn, at least every 20 ms, and must not take long.
    pub fn start_with(
        mut node: r2r::Node,
        mut look: impl FnMut(&r2r::Node) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("ros".into()).spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    node.spin_once(SPIN_TIMEOUT);
                    look(&node);
                    if begin.elapsed() < Duration::from_micros(200) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        })?;
        Ok(Self { stop, thread })
    }

    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Takes the node off the graph.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            tracing::error!("the ROS thread ended by a panic");
        }
    }
}

/// The whole of a ROS program: answers what needs no ROS, or runs it.
pub fn main(program: &Program, run: fn() -> Result<(), NodeError>) -> ExitCode {
    match program.asked(std::env::args().skip(1)) {
        Asked::Text(text) => {
            // Who asked may have stopped reading.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Asked::Run { unknown } => {
            for argument in unknown {
                let name = program.name;
                eprintln!(
                    "{name}: '{argument}' means nothing here and is ignored; see {name} --help"
                );
            }
        }
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", program.name);
            ExitCode::FAILURE
        }
    }
}

/// Runs the node until SIGINT or SIGTERM.
pub fn run() -> Result<(), NodeError> {
    let mut node = create_node("centerpoint_node")?;
    let rosout = logging::install(node.logger());
    let settings = parameters::read(&lock(&node.params))?;

    limit::set_mb(settings.model_max_mb as u64);
    let model_file = settings.model_file();
    let runtime_options = settings.runtime_options();
    let description = ModelDescription::load(&model_file).map_err(LoadError::from)?;
    // What was said of an INT8 model when it was made is said of these files only.
    Report::check_beside(&description).map_err(LoadError::from)?;
    let engine = Engine::open(description.clone(), &model_file, &runtime_options)?;
    tracing::info!(
        "model '{}' ({}, {} bytes) from {}",
        engine.info.id,
        engine.info.precision,
        engine.info.bytes,
        model_file.display()
    );
    let input = settings.input_options(&description);
    let ros_home = ros_home();
    let name = node.fully_qualified_name().unwrap_or_default();
    let paths = Paths {
        executable: beside("centerpoint_ptq")?,
        base: description,
        model: model_file,
        store: settings.model_store(&ros_home),
        node: name.clone(),
        recordings: settings.recordings_folder(&ros_home, &name),
    };
    let resume = settings.store_resume;
    let reach = Arc::new(settings.reach([paths.recordings.clone()]));
    let shadow = settings.shadow();
    let buffer = CalibrationBuffer::open(
        &settings.buffer_folder(&ros_home, &name),
        settings.buffer_policy(paths.base.points.sweeps),
    )
    .map_err(|source| NodeError::Start {
        what: "the calibration buffer",
        source,
    })?;

    let runtime = async_runtime()?;
    let _inside = runtime.enter();

    let provider = settings.runtime_provider.to_string();
    let reliability = settings.input_reliability;
    let recipe = settings.recipe_file();
    let settings = Arc::new(Mutex::new(settings));
    let topics = Topics::create(&mut node, reliability)?;
    let services = Services::create(&mut node)?;
    let (parameter_services, _changes) = node
        .make_derived_parameter_handler(Arc::new(Mutex::new(parameters::Live(settings.clone()))))
        .map_err(|source| entity("the parameter services", source))?;
    let clock = node.get_ros_clock();

    let (sender, outputs) = mpsc::channel(OUTPUT_QUEUE);
    let pipeline = Pipeline::start(engine, FrameAssembler::new(input), buffer, sender)
        .map(Arc::new)
        .map_err(|source| NodeError::Start {
            what: "the pipeline",
            source,
        })?;
    if let Ok(problem) = std::env::var(LOG_PROBLEM) {
        let symptom = Symptom::warn("log_folder", &problem);
        pipeline.set_trouble(Part::Detection, "log_folder", Some(symptom));
    }
    check_recipe(&pipeline, recipe.as_deref());
    if shadow.every > 0 && pipeline.base().precision == Precision::Float {
        let (float, model, options) = (
            pipeline.base().files.clone(),
            paths.model.clone(),
            RuntimeOptions {
                threads: 1,
                ..runtime_options.clone()
            },
        );
        pipeline
            .start_shadow(shadow, move || Engine::load_again(&model, &options, &float))
            .map_err(|source| NodeError::Start {
                what: "the shadow check",
                source,
            })?;
    }
    let supervisor = Supervisor::new(pipeline.clone(), settings.clone(), runtime_options, paths);

    let Topics {
        clouds,
        tf,
        tf_static,
        publishers,
    } = topics;
    let node_tasks = [
        tokio::spawn(parameter_services),
        tokio::spawn(receive_clouds(clouds, pipeline.clone(), clock.clone())),
        tokio::spawn(receive_transforms(tf, false, pipeline.clone())),
        tokio::spawn(receive_transforms(tf_static, true, pipeline.clone())),
        tokio::spawn(publish_outputs(
            outputs,
            publishers.clone(),
            clock.clone(),
            settings.clone(),
        )),
        tokio::spawn(publish_status(
            supervisor.clone(),
            pipeline.clone(),
            publishers.status.clone(),
            publishers.calibration_status.clone(),
            clock.clone(),
        )),
        tokio::spawn(publish_diagnostics(
            Diagnostics::new(&name, provider),
            supervisor.clone(),
            pipeline.clone(),
            settings,
            clock.clone(),
            publishers.diagnostics.clone(),
        )),
        tokio::spawn(publish_rosout(rosout, clock, publishers.rosout.clone())),
        tokio::spawn(services.serve(supervisor.clone(), reach)),
        tokio::spawn(supervisor.clone().watch_fallbacks()),
        tokio::spawn(watch_recipe(pipeline.clone(), recipe)),
    ];
    let mut watch = silence::Watch::new(
        pipeline.clone(),
        silence::remapped(silence::TOPIC, &name, std::env::args()),
        reliability,
    );
    let spinner = Spinner::start_with(node, move |node| watch.look(node)).map_err(|source| {
        NodeError::Start {
            what: "the ROS thread",
            source,
        }
    })?;
    if resume {
        let supervisor = supervisor.clone();
        tokio::spawn(async move { supervisor.resume().await });
    }
    tracing::info!("ready, waiting for clouds");

    let died = || (!pipeline.is_alive()).then_some("a thread of the pipeline");
    let ended = runtime.block_on(until_end(died, &spinner, &node_tasks));
    tracing::info!("shutting down");
    let deadline = Instant::now() + SHUTDOWN;
    let left = || deadline.saturating_duration_since(Instant::now());
    runtime.block_on(supervisor.shut_down(left() / 2));
    if !pipeline.stop(left()) {
        tracing::warn!("an inference is still running at the end");
    }
    for task in &node_tasks {
        task.abort();
    }
    spinner.stop();
    runtime.shutdown_timeout(left().max(Duration::from_millis(100)));
    ended
}

fn async_runtime() -> Result<tokio::runtime::Runtime, NodeError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("centerpoint")
        .enable_all()
        .build()
        .map_err(|source| NodeError::Start {
            what: "the asynchronous runtime",
            source,
        })
}

/// A program that is installed beside this one.
fn beside(program: &str) -> Result<PathBuf, NodeError> {
    std::env::current_exe()
        .map(|this| this.with_file_name(program))
        .map_err(|source| NodeError::Start {
            what: "the search for centerpoint_ptq",
            source,
        })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entity(what: impl Into<String>, source: r2r::Error) -> NodeError {
    NodeError::Entity {
        what: what.into(),
        source,
    }
}

/// Waits for a signal, or for a thread or task that should not have ended. `died` names what else has.
async fn until_end(
    died: impl Fn() -> Option<&'static str>,
    spinner: &Spinner,
    tasks: &[tokio::task::JoinHandle<()>],
) -> Result<(), NodeError> {
    let listen = |kind| {
        signal(kind).map_err(|source| NodeError::Start {
            what: "the signal handler",
            source,
        })
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut pulse = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = pulse.tick() => {
                if let Some(part) = died() {
                    return Err(NodeError::Died(part));
                }
                if !spinner.is_alive() {
                    return Err(NodeError::Died("the ROS thread"));
                }
                if tasks.iter().any(|task| task.is_finished()) {
                    return Err(NodeError::Died("a task of the node"));
                }
            }
        }
    }
}

#[derive(Clone)]
struct Publishers {
    objects: Publisher<vision_msgs::msg::Detection3DArray>,
    markers: Publisher<visualization_msgs::msg::MarkerArray>,
    processing: Publisher<std_msgs::msg::Float64>,
    latency: Publisher<std_msgs::msg::Float64>,
    cycle: Publisher<std_msgs::msg::Float64>,
    status: Publisher<std_msgs::msg::String>,
    calibration_status: Publisher<CalibrationStatus>,
    diagnostics: Publisher<diagnostic_msgs::msg::DiagnosticArray>,
    rosout: Publisher<rcl_interfaces::msg::Log>,
}

struct Topics<C, T, S> {
    clouds: C,
    tf: T,
    tf_static: S,
    publishers: Publishers,
}

impl Topics<(), (), ()> {
    fn create(
        node: &mut r2r::Node,
        reliability: Reliability,
    ) -> Result<
        Topics<
            impl Stream<Item = sensor_msgs::msg::PointCloud2> + Unpin + use<>,
            impl Stream<Item = tf2_msgs::msg::TFMessage> + Unpin + use<>,
            impl Stream<Item = tf2_msgs::msg::TFMessage> + Unpin + use<>,
        >,
        NodeError,
    > {
        let newest = QosProfile::default().keep_last(1);
        let latched = newest.clone().transient_local();
        let input = match reliability {
            Reliability::BestEffort => newest.clone().best_effort(),
            Reliability::Reliable => newest.clone(),
        };
        let many = QosProfile::default().keep_last(100);
        let all_static = many.clone().transient_local();
        Ok(Topics {
            clouds: subscribe(node, silence::TOPIC, input)?,
            tf: subscribe(node, "/tf", many)?,
            tf_static: subscribe(node, "/tf_static", all_static)?,
            publishers: Publishers {
                objects: publisher(node, "~/output/objects", newest.clone())?,
                markers: publisher(node, "~/output/markers", newest.clone())?,
                processing: publisher(node, "~/debug/processing_time_ms", newest.clone())?,
                latency: publisher(node, "~/debug/pipeline_latency_ms", newest.clone())?,
                cycle: publisher(node, "~/debug/cyclic_time_ms", newest)?,
                status: publisher(node, "~/status", latched.clone())?,
                calibration_status: publisher(node, "~/calibration_status", latched.clone())?,
                diagnostics: publisher(node, "/diagnostics", QosProfile::default())?,
                rosout: publisher(node, "/rosout", latched.keep_last(1000))?,
            },
        })
    }
}

fn subscribe<M: r2r::WrappedTypesupport + 'static>(
    node: &mut r2r::Node,
    topic: &str,
    qos: QosProfile,
) -> Result<impl Stream<Item = M> + Unpin + use<M>, NodeError> {
    node.subscribe(topic, qos)
        .map_err(|source| entity(format!("the subscription to {topic}"), source))
}

fn publisher<M: r2r::WrappedTypesupport>(
    node: &mut r2r::Node,
    topic: &str,
    qos: QosProfile,
) -> Result<Publisher<M>, NodeError> {
    node.create_publisher(topic, qos)
        .map_err(|source| entity(format!("the publisher of {topic}"), source))
}

/// Hands the newest cloud on; older ones that wait in r2r's queue only count.
async fn receive_clouds(
    mut clouds: impl Stream<Item = sensor_msgs::msg::PointCloud2> + Unpin,
    pipeline: Arc<Pipeline>,
    clock: Arc<Mutex<Clock>>,
) {
    while let Some(mut newest) = clouds.next().await {
        let mut superseded = 0;
        while let Some(Some(newer)) = clouds.next().now_or_never() {
            newest = newer;
            superseded += 1;
        }
        pipeline.count_superseded(superseded);
        let cloud = messages::cloud(newest);
        let received = now_on(&clock).unwrap_or(cloud.header.stamp);
        pipeline.push_received(cloud, received);
    }
}

async fn receive_transforms(
    mut transforms: impl Stream<Item = tf2_msgs::msg::TFMessage> + Unpin,
    is_static: bool,
    pipeline: Arc<Pipeline>,
) {
    while let Some(message) = transforms.next().await {
        pipeline.push_transforms(messages::transforms(message), is_static);
    }
}

/// A publisher is gone only while the node shuts down; anything else is worth a line.
fn publish<M: r2r::WrappedTypesupport + 'static>(publisher: &Publisher<M>, message: &M) {
    match publisher.publish(message) {
        Ok(()) | Err(r2r::Error::RCL_RET_PUBLISHER_INVALID) => {}
        Err(error) => tracing::debug!("a message was not published: {error}"),
    }
}

fn has_listeners<M: r2r::WrappedTypesupport + 'static>(publisher: &Publisher<M>) -> bool {
    publisher
        .get_inter_process_subscription_count()
        .is_ok_and(|count| count > 0)
}

async fn publish_outputs(
    mut outputs: mpsc::Receiver<Output>,
    publishers: Publishers,
    clock: Arc<Mutex<Clock>>,
    settings: Arc<Mutex<Settings>>,
) {
    let mut before: Option<Instant> = None;
    let mut lifetime = markers::Lifetime::default();
    let ms = |value: f64| std_msgs::msg::Float64 { data: value };
    while let Some(output) = outputs.recv().await {
        publish(&publishers.objects, &messages::detections(&output));
        let now = Instant::now();
        let (wanted, given) = {
            let settings = lock(&settings);
            (settings.publish_markers, settings.publish_marker_lifetime_s)
        };
        let stay = lifetime.of(now, given);
        if wanted && has_listeners(&publishers.markers) {
            publish(&publishers.markers, &markers::markers(&output, stay));
        }
        publish(&publishers.processing, &ms(output.processing_ms.into()));
        if let Some(time) = now_on(&clock) {
            let latency = time.seconds_since(output.header.stamp) * 1e3;
            publish(&publishers.latency, &ms(latency));
        }
        if let Some(before) = before {
            let cycle = (now - before).as_secs_f64() * 1e3;
            publish(&publishers.cycle, &ms(cycle));
        }
        before = Some(now);
    }
}

fn now_on(clock: &Mutex<Clock>) -> Option<Stamp> {
    let now = lock(clock).get_now().ok()?;
    i64::try_from(now.as_nanos()).ok().map(Stamp)
}

/// Publishes the status at every change, the latest when changes come too fast, and now and then while something is wrong.
async fn publish_status(
    supervisor: Arc<Supervisor>,
    pipeline: Arc<Pipeline>,
    json: Publisher<std_msgs::msg::String>,
    typed: Publisher<CalibrationStatus>,
    clock: Arc<Mutex<Clock>>,
) {
    let mut work = supervisor.work();
    let mut active = pipeline.active();
    let mut troubles = pipeline.trouble_changes();
    loop {
        work.mark_unchanged();
        active.mark_unchanged();
        troubles.mark_unchanged();
        let status = supervisor.status();
        let data = status.to_json();
        publish(&json, &std_msgs::msg::String { data });
        let mut message = messages::calibration_status(&status);
        if let Some(now) = now_on(&clock) {
            message.stamp = messages::time(now);
        }
        publish(&typed, &message);
        tokio::time::sleep(STATUS_PERIOD).await;
        let gone = tokio::select! {
            changed = work.changed() => changed.is_err(),
            changed = active.changed() => changed.is_err(),
            changed = troubles.changed() => changed.is_err(),
            // Shares and durations change all the time.
            () = tokio::time::sleep(STATUS_REFRESH), if !status.conditions.is_empty() => false,
        };
        if gone {
            return;
        }
    }
}

async fn publish_diagnostics(
    diagnostics: Diagnostics,
    supervisor: Arc<Supervisor>,
    pipeline: Arc<Pipeline>,
    settings: Arc<Mutex<Settings>>,
    clock: Arc<Mutex<Clock>>,
    publisher: Publisher<diagnostic_msgs::msg::DiagnosticArray>,
) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let (work, active) = (supervisor.work(), pipeline.active());
    loop {
        second.tick().await;
        let settings = lock(&settings).clone();
        // Parameters may have changed.
        let sweeps = pipeline.buffer().policy().sweeps;
        pipeline.buffer().set_policy(settings.buffer_policy(sweeps));
        let fill = pipeline.buffer().fill();
        note_problems(&pipeline, &work.borrow(), &fill);
        let mut report = diagnostics.report(
            &pipeline.statistics(),
            &active.borrow(),
            &work.borrow(),
            &settings,
            &fill,
        );
        if let Some(now) = now_on(&clock) {
            report.header.stamp = messages::time(now);
        }
        publish(&publisher, &report);
    }
}

/// What the buffer and the store say is wrong.
fn note_problems(pipeline: &Pipeline, work: &Work, fill: &Fill) {
    let start = work.start.as_ref().map(|start| start.problems.join("; "));
    let problems = [
        ("buffer", "calibration buffer", fill.problem.clone()),
        ("store", "model store", work.store_problem.clone()),
        (
            "start",
            "the model that ran before the start cannot run",
            start.filter(|problems| !problems.is_empty()),
        ),
    ];
    for (kind, what, problem) in problems {
        let text = problem.map(|problem| format!("{what}: {problem}"));
        let symptom = text
            .as_deref()
            .map(|text| Symptom::warn(kind, text).logged());
        pipeline.set_trouble(Part::Calibration, kind, symptom);
    }
}

/// Reads the recipe as a calibration will, and notes what is wrong with it.
fn check_recipe(pipeline: &Pipeline, file: Option<&Path>) {
    let text = Recipe::load_or_default(file)
        .err()
        .map(|error| format!("parameter 'recipe_path': {error}; calibrations with it are refused"));
    let symptom = text.as_deref().map(|text| Symptom::error("recipe", text));
    pipeline.set_trouble(Part::Calibration, "recipe", symptom);
}

/// Looks at the recipe file again and again: it may be mended, or go.
async fn watch_recipe(pipeline: Arc<Pipeline>, file: Option<PathBuf>) {
    let mut period = tokio::time::interval(RECIPE_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let (pipeline, file) = (pipeline.clone(), file.clone());
        let check = move || check_recipe(&pipeline, file.as_deref());
        // A panic is told by then, and the next look may go better.
        drop(tokio::task::spawn_blocking(check).await);
    }
}

async fn publish_rosout(
    mut messages: mpsc::Receiver<rcl_interfaces::msg::Log>,
    clock: Arc<Mutex<Clock>>,
    publisher: Publisher<rcl_interfaces::msg::Log>,
) {
    while let Some(mut message) = messages.recv().await {
        if let Some(now) = now_on(&clock) {
            message.stamp = messages::time(now);
        }
        // Not through `publish`: a complaint about /rosout would go to /rosout.
        drop(publisher.publish(&message));
    }
}
