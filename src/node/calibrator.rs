//! Runs quantizations, and comparisons of two models, as child processes and watches over them.
//!
//! `centerpoint_ptq quantize --progress json` says how far it is in JSON lines on its standard
//! output. It lives in a process of its own so that neither its memory nor a crash of it can take
//! the detector along; it runs at low priority, in a process group of its own (a Ctrl-C meant for
//! the node is the node's to handle), within its bounds of threads and memory, and dies with the future that
//! waits for it; where the node is killed, it ends by itself.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::watch;

use super::settings::Settings;
use crate::calibration::buffer::HELD_OUT_TOPIC;
use crate::cloud::summary::InputSummary;
use crate::onnx::limit;
use crate::ptq::check::Verdict;
use crate::ptq::recipe::Target;

/// Longest line taken from the child; what is longer is cut.
const MAX_LINE: usize = 64 * 1024;
/// Exit code of a quantization whose model was written but not accepted.
const REFUSED: i32 = 3;
/// Exit code of one whose model was written and accepted, while some of the recording was lost.
const WITH_LOSSES: i32 = 4;
/// Silence of the child after which the log says so: it is waited for, however long it takes, and may be cancelled.
const SILENT: Duration = Duration::from_secs(300);
/// What a comparison of two models may take; a judged model waits for it, and so does who asked.
const COMPARISON: Duration = Duration::from_secs(1800);
/// What the child's last words may take once it has ended: another process may hold its output open.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Lines of the child's standard error that an error message carries.
const STDERR_LINES: usize = 12;

/// Which clouds of a bag are read, and how they come into the model's frame, where that is not for the child to find out.
#[derive(Debug, Clone, Default)]
pub struct Input {
    pub topic: Option<String>,
    /// x, y, z in metres, roll, pitch, yaw in radians.
    pub sensor_pose: Option<[f64; 6]>,
    pub model_frame: Option<String>,
    pub fixed_frame: Option<String>,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Job {
    /// The `centerpoint_ptq` executable.
    pub executable: PathBuf,
    /// Description of the float model.
    pub model: PathBuf,
    /// The frames, as a rosbag2.
    pub bag: PathBuf,
    pub input: Input,
    /// Use frames that have fewer sweeps than the model wants, since the network sees no others.
    pub allow_few_sweeps: bool,
    /// Snapshot of the node's buffer to check the model on, instead of on frames of `bag`.
    pub check_buffer: Option<PathBuf>,
    /// `None` for the built-in recipe.
    pub recipe: Option<PathBuf>,
    pub target: Target,
    /// Folder to write the INT8 model to; must not exist.
    pub out: PathBuf,
    /// 0: as many as there are.
    pub threads: usize,
    pub nice: i32,
    /// Megabytes; 0: no limit.
    pub max_memory_mb: usize,
}

/// How far the child is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub stage: String,
    /// Done of the whole job, 0 to 1.
    pub fraction: f64,
    #[serde(default)]
    pub eta_s: Option<f64>,
    #[serde(default)]
    pub detail: String,
}

/// Why a quantization gave no model.
#[derive(Debug, Error)]
pub enum JobError {
    #[error("cannot start {}: {source}", .executable.display())]
    Start {
        executable: PathBuf,
        source: std::io::Error,
    },
    #[error("the quantization was cancelled")]
    Cancelled,
    #[error("the quantization failed: {message}")]
    Failed { message: String },
    #[error("the quantization process ended without a result ({status}){}", last_words(.stderr))]
    Ended { status: String, stderr: Vec<String> },
    #[error("lost contact with the quantization process: {source}")]
    Contact {
        #[from]
        source: std::io::Error,
    },
}

fn last_words(stderr: &[String]) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!("; it said last: {}", stderr.join(" | "))
    }
}

/// One line of the child's standard output.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Progress(Progress),
    Done {
        verdict: Verdict,
        /// What came of the clouds.
        #[serde(default)]
        input: InputSummary,
    },
    Error {
        message: String,
    },
}

impl Input {
    /// A recording, with the sensor where the node has it.
    pub fn recording(settings: &Settings, topic: Option<String>) -> Self {
        Self {
            topic,
            sensor_pose: settings.input_sensor_pose,
            fixed_frame: non_empty(&settings.input_fixed_frame),
            ..Self::buffer(settings)
        }
    }

    /// The node's own buffer: points in the model's frame.
    pub fn buffer(settings: &Settings) -> Self {
        Self {
            model_frame: non_empty(&settings.input_model_frame),
            ..Self::default()
        }
    }
}

fn non_empty(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

impl Job {
    /// As the node's parameters say.
    pub fn new(
        settings: &Settings,
        executable: PathBuf,
        model: PathBuf,
        (bag, input): (PathBuf, Input),
        out: PathBuf,
    ) -> Self {
        Self {
            executable,
            model,
            bag,
            input,
            allow_few_sweeps: false,
            check_buffer: None,
            recipe: settings.recipe_file(),
            target: settings.target,
            out,
            threads: settings.calibration_threads,
            nice: settings.calibration_nice,
            max_memory_mb: settings.calibration_max_memory_mb,
        }
    }

    fn command(&self) -> Command {
        let mut command = polite(&self.executable, self.nice);
        command.arg("quantize");
        command.arg("--model").arg(&self.model);
        command.arg("--bag").arg(&self.bag);
        if let Some(buffer) = &self.check_buffer {
            command.arg("--check-buffer").arg(buffer);
        }
        if let Some(recipe) = &self.recipe {
            command.arg("--recipe").arg(recipe);
        }
        let input = &self.input;
        let pose = input
            .sensor_pose
            .map(|pose| pose.map(|x| x.to_string()).join(" "));
        for (option, value) in [
            ("--topic", &input.topic),
            ("--sensor-pose", &pose),
            ("--model-frame", &input.model_frame),
            ("--fixed-frame", &input.fixed_frame),
        ] {
            if let Some(value) = value {
                // One word, so that a value may begin with a dash.
                command.arg(format!("{option}={value}"));
            }
        }
        if self.allow_few_sweeps {
            command.arg("--allow-few-sweeps");
        }
        command.arg("--target").arg(self.target.to_string());
        command.arg("--out").arg(&self.out);
        command.args(["--progress", "json"]);
        bound_models(&mut command);
        // Killed, the node cannot end the child; the child sees it go.
        command.args(["--parent", &std::process::id().to_string()]);
        if self.max_memory_mb > 0 {
            command.args(["--max-memory-mb", &self.max_memory_mb.to_string()]);
        }
        if self.threads > 0 {
            command.arg("--threads").arg(self.threads.to_string());
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

/// Has the child read what this process reads, and no larger models.
fn bound_models(command: &mut Command) {
    let most = limit::bytes() / 1_000_000;
    command.args(["--max-model-mb", &most.to_string()]);
}

/// A program that runs at this niceness, or at the node's own where that is higher and may not be lowered.
fn polite(executable: &Path, nice: i32) -> Command {
    let own = own_niceness();
    // The system's `nice` counts from the niceness of who calls it.
    let step = nice - own;
    if step == 0 {
        return Command::new(executable);
    }
    if step < 0 && !may_lower_niceness(nice) {
        tracing::info!(
            "what runs for a calibration runs at niceness {own}, as the node does, and not at {nice} (calibration.nice): only a \
             privileged process may lower it"
        );
        return Command::new(executable);
    }
    // `nice` replaces itself by the program, so the process id is the program's.
    let mut command = Command::new("nice");
    command.arg("-n").arg(step.to_string()).arg(executable);
    command
}

/// The niceness that a child of this process starts with.
fn own_niceness() -> i32 {
    // Without an own process id it is that of the calling thread, which may be of a lower priority.
    let process = rustix::process::getpid();
    rustix::process::getpriority_process(Some(process)).unwrap_or(0)
}

/// Whether this process may go down to `nice`: tried on a thread of its own, since it cannot be asked.
fn may_lower_niceness(nice: i32) -> bool {
    let tried = std::thread::spawn(move || {
        let thread = rustix::thread::gettid();
        rustix::process::setpriority_process(Some(thread), nice).is_ok()
    });
    tried.join().unwrap_or(false)
}

/// A model to hold against the float one on frames of the node's buffer.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The `centerpoint_ptq` executable.
    pub executable: PathBuf,
    /// Descriptions of the two.
    pub float: PathBuf,
    pub int8: PathBuf,
    /// The buffer's frames, as a rosbag2.
    pub buffer: PathBuf,
    /// Its gate decides.
    pub recipe: PathBuf,
    /// 0: as many as there are.
    pub threads: usize,
    pub nice: i32,
}

impl Comparison {
    /// What the gate says of the INT8 model. Dropping the future ends the work.
    pub async fn run(&self) -> Result<Verdict, JobError> {
        #[derive(Deserialize)]
        struct Said {
            verdict: Verdict,
        }
        let mut command = polite(&self.executable, self.nice);
        command.arg("evaluate").arg("--model").arg(&self.float);
        command.arg("--model2").arg(&self.int8);
        command.arg("--bag").arg(&self.buffer);
        command.args(["--topic", HELD_OUT_TOPIC]);
        // The buffer's points are in the model's frame.
        command.arg("--sensor-pose=0 0 0 0 0 0");
        command.arg("--gate").arg(&self.recipe).arg("--json");
        bound_models(&mut command);
        if self.threads > 0 {
            command.arg("--threads").arg(self.threads.to_string());
        }
        command
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        // Dropped, it ends the child.
        let output = tokio::time::timeout(COMPARISON, command.output());
        let Ok(output) = output.await else {
            let message = format!(
                "the comparison has not ended after {} min",
                COMPARISON.as_secs() / 60
            );
            return Err(JobError::Failed { message });
        };
        let output = output.map_err(|source| JobError::Start {
            executable: self.executable.clone(),
            source,
        })?;
        match serde_json::from_slice::<Said>(&output.stdout) {
            Ok(Said { verdict }) => Ok(verdict),
            Err(_) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let lines: Vec<_> = said.lines().map(str::to_owned).collect();
                Err(JobError::Ended {
                    status: describe(output.status),
                    stderr: lines[lines.len().saturating_sub(STDERR_LINES)..].to_vec(),
                })
            }
        }
    }
}

/// Runs the job to its end. `cancel` turning true kills the child; so does dropping the future.
///
/// `started` is called with the child's process id, `progress` with every report.
pub async fn run(
    job: &Job,
    mut cancel: watch::Receiver<bool>,
    started: impl FnOnce(u32),
    mut progress: impl FnMut(Progress),
) -> Result<Verdict, JobError> {
    let start = |source| JobError::Start {
        executable: job.executable.clone(),
        source,
    };
    if !job.executable.is_file() {
        return Err(start(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "no such file; it must lie beside the node's executable",
        )));
    }
    let mut child = job.command().spawn().map_err(start)?;
    if let Some(id) = child.id() {
        started(id);
    }
    let no_pipe = || std::io::Error::other("the child has no output pipe");
    let stdout = child.stdout.take().ok_or_else(no_pipe)?;
    let stderr = child.stderr.take().ok_or_else(no_pipe)?;

    let errors = tokio::spawn(last_lines(stderr));
    let mut lines = Lines::new(stdout);
    let mut verdict = None;
    let mut failure = None;
    let mut heard = Instant::now();
    let mut pulse = tokio::time::interval_at(tokio::time::Instant::now() + SILENT, SILENT);
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            _ = pulse.tick() => {
                if heard.elapsed() >= SILENT {
                    tracing::warn!(
                        "the quantization (process {:?}) has said nothing for {} min; it goes on until it is cancelled",
                        child.id(),
                        heard.elapsed().as_secs() / 60
                    );
                }
                continue;
            }
            () = cancelled(&mut cancel) => {
                child.kill().await?;
                return Err(JobError::Cancelled);
            }
        };
        let Some(line) = line else { break };
        heard = Instant::now();
        match serde_json::from_str(&line) {
            Ok(Line::Progress(report)) => progress(report),
            Ok(Line::Done {
                verdict: given,
                input,
            }) => {
                for remark in input.lines() {
                    tracing::warn!("the calibration's frames: {remark}");
                }
                verdict = Some(given);
            }
            Ok(Line::Error { message }) => failure = Some(message),
            Err(error) => tracing::debug!("quantization said '{line}' ({error})"),
        }
    }
    let status = tokio::select! {
        status = child.wait() => status?,
        () = cancelled(&mut cancel) => {
            child.kill().await?;
            return Err(JobError::Cancelled);
        }
    };
    match (verdict, failure) {
        (_, Some(message)) => Err(JobError::Failed { message }),
        (Some(verdict), None) if status.success() => Ok(verdict),
        (Some(verdict), None) if verdict.accepted && status.code() == Some(WITH_LOSSES) => {
            Ok(verdict)
        }
        (Some(verdict), None) if !verdict.accepted && status.code() == Some(REFUSED) => Ok(verdict),
        _ => Err(JobError::Ended {
            status: describe(status),
            stderr: match tokio::time::timeout(LAST_WORDS, errors).await {
                Ok(said) => said.unwrap_or_default(),
                Err(_) => Vec::new(),
            },
        }),
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed by signal 9, perhaps for lack of memory".into(),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown status".into(),
    }
}

/// Resolves when the flag turns true; never, when its sender is gone before that.
async fn cancelled(cancel: &mut watch::Receiver<bool>) {
    if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The last lines of a stream, read to its end.
async fn last_lines(stream: impl AsyncRead + Unpin) -> Vec<String> {
    let mut last = VecDeque::new();
    let mut lines = Lines::new(stream);
    while let Ok(Some(line)) = lines.next().await {
        tracing::debug!("quantization: {line}");
        if last.len() == STDERR_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    last.into()
}

/// Lines of bounded length; bytes that are no UTF-8 are replaced.
struct Lines<R> {
    reader: BufReader<R>,
    /// Kept here so that a cancelled `next` loses nothing.
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(stream: R) -> Self {
        Self {
            reader: BufReader::new(stream),
            line: Vec::new(),
        }
    }

    async fn next(&mut self) -> std::io::Result<Option<String>> {
        let room = (MAX_LINE - self.line.len().min(MAX_LINE)) as u64;
        (&mut self.reader)
            .take(room)
            .read_until(b'\n', &mut self.line)
            .await?;
        if self.line.is_empty() {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        Ok(Some(line))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;
    use std::time::{Duration, Instant};

    /// A program `quantizer` in a folder that does as a shell script says, which may be another one later.
    pub(crate) fn quantizer(folder: &Path, script: &str) -> PathBuf {
        let program = folder.join("quantizer");
        let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run_beside.sh");
        std::fs::write(folder.join("quantizer.sh"), script).unwrap();
        if !program.exists() {
            std::os::unix::fs::symlink(runner, &program).unwrap();
        }
        program
    }

    /// A job whose program is a shell script.
    fn script(folder: &Path, body: &str) -> Job {
        Job {
            executable: quantizer(folder, body),
            model: "model.yaml".into(),
            bag: "bag".into(),
            check_buffer: Some("snapshot".into()),
            recipe: Some("recipe.yaml".into()),
            allow_few_sweeps: true,
            input: Input {
                topic: Some("/lidar".into()),
                sensor_pose: Some([-1.0, 0.0, 1.5, 0.0, 0.0, 0.0]),
                ..Input::default()
            },
            target: Target::Cpu,
            out: folder.join("out"),
            threads: 1,
            nice: 7,
            max_memory_mb: 900,
        }
    }

    async fn outcome(job: &Job) -> (Result<Verdict, JobError>, Vec<Progress>) {
        let (_keep, cancel) = watch::channel(false);
        let mut reports = Vec::new();
        let result = run(job, cancel, |_| (), |report| reports.push(report)).await;
        (result, reports)
    }

    #[tokio::test]
    async fn progress_and_verdict_come_through_and_noise_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let job = script(
            folder.path(),
            r#"echo '{"event":"progress","stage":"ranges","fraction":0.4,"eta_s":12.0,"detail":"x"}'
echo 'not json'
echo '{"event":"progress","stage":"check","fraction":0.9}'
printf '{"event":"done","out":"o","verdict":{"accepted":false,"reasons":["lost cars"]}}'
exit 3"#,
        );
        let (result, reports) = outcome(&job).await;
        let verdict = result.unwrap();
        assert!(!verdict.accepted);
        assert_eq!(verdict.reasons, ["lost cars"]);
        let stages: Vec<_> = reports.iter().map(|r| r.stage.as_str()).collect();
        assert_eq!(stages, ["ranges", "check"]);
        assert_eq!((reports[0].eta_s, reports[1].eta_s), (Some(12.0), None));
    }

    #[tokio::test]
    async fn a_model_from_clouds_of_which_some_were_lost_is_a_model() {
        let folder = tempfile::tempdir().unwrap();
        let job = script(
            folder.path(),
            r#"echo '{"event":"done","out":"o","verdict":{"accepted":true},"input":{"frames":30,"losses":[{"kind":"bad_cloud","count":2,"text":"no x"}]}}'
exit 4"#,
        );
        assert!(outcome(&job).await.0.unwrap().accepted);
    }

    #[tokio::test]
    async fn the_child_gets_its_arguments_and_its_low_priority() {
        let folder = tempfile::tempdir().unwrap();
        let job = script(
            folder.path(),
            r#"echo "{\"event\":\"error\",\"message\":\"$* nice $(nice)\"}""#,
        );
        // These tests may run at a niceness themselves.
        let own = own_niceness();
        let nice = match own <= job.nice || may_lower_niceness(job.nice) {
            true => job.nice,
            false => own,
        };
        let (result, _) = outcome(&job).await;
        let said = result.unwrap_err().to_string();
        let out = job.out.display();
        assert!(
            said.contains(&format!(
                "quantize --model model.yaml --bag bag --check-buffer snapshot --recipe recipe.yaml --topic=/lidar \
                 --sensor-pose=-1 0 1.5 0 0 0 --allow-few-sweeps --target cpu \
                 --out {out} --progress json --max-model-mb 1000 --parent {} --max-memory-mb 900 --threads 1 nice {nice}",
                std::process::id()
            )),
            "{said}"
        );
    }

    #[tokio::test]
    async fn a_child_that_dies_is_reported_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let (killed, _) =
            outcome(&script(folder.path(), "echo 'about to go' >&2; kill -9 $$")).await;
        let said = killed.unwrap_err().to_string();
        assert!(
            said.contains("signal 9") && said.contains("about to go"),
            "{said}"
        );

        let (left, _) = outcome(&script(folder.path(), "exit 3")).await;
        let said = left.unwrap_err().to_string();
        assert!(said.contains("exit code 3"), "{said}");
    }

    #[tokio::test]
    async fn a_verdict_followed_by_a_bad_exit_is_no_success() {
        let folder = tempfile::tempdir().unwrap();
        for (accepted, code) in [(true, 1), (true, 3), (false, 1), (false, 4)] {
            let verdict = format!(r#"{{"accepted":{accepted}}}"#);
            let body = format!(r#"echo '{{"event":"done","verdict":{verdict}}}'; exit {code}"#);
            let (result, _) = outcome(&script(folder.path(), &body)).await;
            assert!(matches!(result, Err(JobError::Ended { .. })), "{body}");
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut job = script(folder.path(), "");
        job.executable = folder.path().join("absent");
        let (result, _) = outcome(&job).await;
        assert!(result.unwrap_err().to_string().contains("absent"));
    }

    #[tokio::test]
    async fn cancelling_kills_the_child_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let job = script(folder.path(), "exec sleep 600");
        let (cancel, cancelled) = watch::channel(false);
        let (sender, started) = tokio::sync::oneshot::channel();
        let running = tokio::spawn(async move {
            run(&job, cancelled, |pid| sender.send(pid).unwrap(), |_| ()).await
        });
        let pid = started.await.unwrap();
        let begin = Instant::now();
        cancel.send(true).unwrap();
        assert!(matches!(running.await.unwrap(), Err(JobError::Cancelled)));
        assert!(begin.elapsed() < Duration::from_secs(60));
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn a_line_without_end_does_not_fill_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let job = script(
            folder.path(),
            r#"head -c 300000 /dev/zero | tr '\0' 'x'; echo
echo '{"event":"done","out":"o","verdict":{"accepted":true}}'"#,
        );
        let (result, _) = outcome(&job).await;
        assert!(result.unwrap().accepted);
    }
}
