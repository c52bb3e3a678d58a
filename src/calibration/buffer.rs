//! The frames at hand for a calibration, as the network sees them: sweeps joined, in the model's frame.
//!
//! ```text
//! buffer/
//!   frames/    a rosbag2: one MCAP file per frame, and metadata.yaml
//!   snapshot/  the frames of the last calibration: the same files, by other names
//!   lock       held by the node that fills the buffer
//! ```
//!
//! A frame is written once, when it is taken, and removed with its file; memory holds what frames are compared by. So a
//! restart, a kill or a power cut loses no frame that was taken, and a damaged file costs one frame. All of it happens on
//! a thread of its own: the inference thread hands over a reference and never waits.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use thiserror::Error;

use super::selection::{Decision, Entry, Policy, Selector, Signature};
use crate::bag::msg::{Header, Message, PointCloud2, Text};
use crate::bag::{self, BagError, Part, PartTopic, Reader, Stamp, WriteError, Writer};
use crate::cloud;
use crate::cloud::frames::Frame;
use crate::files;
use crate::geometry::Detection;
use crate::ptq::frames::Role;

/// Topic of the frames that calibrate.
pub const CALIBRATION_TOPIC: &str = "/centerpoint/calibration/pointcloud";
/// Topic of the frames that check a calibration.
pub const HELD_OUT_TOPIC: &str = "/centerpoint/held_out/pointcloud";
/// What a frame was chosen by, as JSON beside it.
const ABOUT_TOPIC: &str = "/centerpoint/calibration/about";
/// Frames that may wait for the thread; it is some milliseconds behind at the most.
const QUEUE: usize = 2;
/// Frames kept in memory for whoever needs a few at once.
const RECENT: usize = 3;
const FRAMES: &str = "frames";
const SNAPSHOT: &str = "snapshot";
/// Begin of the names of folders that are being made.
const SAVING: &str = ".saving";

fn topic(role: Role) -> &'static str {
    match role {
        Role::Calibration => CALIBRATION_TOPIC,
        Role::HeldOut => HELD_OUT_TOPIC,
    }
}

/// What is wrong with the buffer's files.
#[derive(Debug, Error)]
pub enum BufferError {
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot write a calibration frame: {0}")]
    Write(#[from] WriteError),
    #[error("a calibration frame is left out: {0}")]
    Read(#[from] BagError),
    #[error("a calibration frame is left out: {}: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the calibration buffer {} is used by another process; give this node a folder of its own \
         (calibration.buffer_path)",
        .path.display()
    )]
    Busy { path: PathBuf },
    #[error("the calibration buffer is closed")]
    Closed,
    #[error("the calibration buffer holds no frames")]
    Empty,
    #[error("{} is there already; name a folder to make", .path.display())]
    Exists { path: PathBuf },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BufferError + use<> {
    let path = path.to_owned();
    move |source| BufferError::Io {
        action,
        path,
        source,
    }
}

/// What is in the buffer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fill {
    pub calibration: usize,
    pub held_out: usize,
    pub bytes: u64,
    /// Frames that have fewer sweeps than the model wants, of both roles.
    pub few_sweeps: usize,
    /// See [`Selector::diversity`].
    pub diversity: Option<f32>,
    /// Objects detected in the frames, by class.
    pub objects: Vec<u32>,
    /// Frames offered, and those of them that were taken, since the start.
    pub offered: u64,
    pub taken: u64,
    /// What last went wrong, until something goes right again.
    pub problem: Option<String>,
    /// Whether the frames of an earlier run are still being read.
    pub loading: bool,
}

impl Fill {
    pub fn frames(&self) -> usize {
        self.calibration + self.held_out
    }
}

/// The frames of one moment, which stay as they are while the buffer goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// A rosbag2 folder; it is replaced by the next snapshot.
    pub bag: PathBuf,
    pub calibration: usize,
    pub held_out: usize,
    /// Of both, those that have fewer sweeps than the model wants.
    pub few_sweeps: usize,
}

struct Offer {
    frame: Arc<Frame>,
    detections: Vec<Detection>,
    classes: usize,
}

enum Request {
    Offer(Box<Offer>),
    /// To the folder of the last calibration, or to a new one.
    Snapshot(Option<PathBuf>, mpsc::Sender<Result<Snapshot, BufferError>>),
    Policy(Policy),
    Settle(mpsc::Sender<()>),
}

struct Shared {
    fill: Fill,
    recent: VecDeque<Arc<Frame>>,
    /// Stamp of the frame that was offered last and not too early.
    last: Option<Stamp>,
    policy: Policy,
}

impl Shared {
    fn is_due(&self, stamp: Stamp) -> bool {
        self.policy.max_frames > 0 && Selector::may_follow(&self.policy, stamp, self.last)
    }
}

/// The buffer and its thread, which ends with it.
pub struct CalibrationBuffer {
    folder: PathBuf,
    shared: Arc<Mutex<Shared>>,
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl CalibrationBuffer {
    /// Opens the buffer of a folder, which is made; the frames of an earlier run are read on the buffer's thread. What is
    /// wrong with the folder shows in [`Fill::problem`]: a node detects without a buffer, too.
    pub fn open(folder: &Path, policy: Policy) -> std::io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared {
            fill: Fill {
                loading: true,
                ..Fill::default()
            },
            recent: VecDeque::new(),
            last: None,
            policy,
        }));
        let (requests, incoming) = mpsc::sync_channel(QUEUE);
        let worker = Worker {
            folder: folder.to_owned(),
            shared: shared.clone(),
            selector: Selector::new(policy, Vec::new()),
            lock: None,
        };
        let thread = std::thread::Builder::new()
            .name("buffer".into())
            .spawn(move || worker.run(&incoming))?;
        Ok(Self {
            folder: folder.to_owned(),
            shared,
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    /// Hands over a frame and what was detected in it by a model with so many classes. Never waits: a frame that comes
    /// while the thread is busy is left out.
    pub fn offer(&self, frame: &Arc<Frame>, detections: &[Detection], classes: usize) {
        {
            let mut shared = lock(&self.shared);
            shared.recent.truncate(RECENT - 1);
            shared.recent.push_front(frame.clone());
            if !shared.is_due(frame.stamp) {
                return;
            }
            shared.last = Some(frame.stamp);
            shared.fill.offered += 1;
        }
        let offer = Offer {
            frame: frame.clone(),
            detections: detections.to_vec(),
            classes,
        };
        if let Some(requests) = &self.requests
            && let Err(TrySendError::Full(_)) = requests.try_send(Request::Offer(Box::new(offer)))
        {
            tracing::debug!("the calibration buffer is busy; a frame is left out");
        }
    }

    /// Whether a frame of this stamp is not too early to be taken; one that is need not be looked at.
    pub fn is_due(&self, stamp: Stamp) -> bool {
        lock(&self.shared).is_due(stamp)
    }

    pub fn fill(&self) -> Fill {
        lock(&self.shared).fill.clone()
    }

    pub fn policy(&self) -> Policy {
        lock(&self.shared).policy
    }

    /// Takes effect soon: frames too many leave.
    pub fn set_policy(&self, policy: Policy) {
        let mut shared = lock(&self.shared);
        if shared.policy != policy {
            shared.policy = policy;
            drop(shared);
            self.request(Request::Policy(policy));
        }
    }

    /// The last frames that were offered, the newest first, whether they were taken or not.
    pub fn recent(&self) -> Vec<Arc<Frame>> {
        lock(&self.shared).recent.iter().cloned().collect()
    }

    /// Keeps the frames of this moment as a bag, until the next call. Waits for the disk.
    pub fn snapshot(&self) -> Result<Snapshot, BufferError> {
        self.snapshot_to(None)
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn snapshot_to(&self, folder: Option<PathBuf>) -> Result<Snapshot, BufferError> {
        let (reply, answer) = mpsc::channel();
        self.request(Request::Snapshot(folder, reply));
        answer.recv().unwrap_or(Err(BufferError::Closed))
    }

    /// Writes the frames of this moment to a bag of their own, a folder that is made. Waits for the disk.
    ///
    /// The folder appears with everything in it. On the buffer's disk it takes no room while the buffer has the same
    /// frames: they are the same files by second names.
    pub fn save(&self, folder: &Path) -> Result<Snapshot, BufferError> {
        if folder.exists() {
            let path = folder.to_owned();
            return Err(BufferError::Exists { path });
        }
        let parent = folder.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(io("make", parent))?;
        let temporary = |place: &Path| {
            let mut builder = tempfile::Builder::new();
            let made = builder.prefix(SAVING).tempdir_in(place);
            made.map_err(io("make a folder in", place))
        };
        // The thread makes the buffer's folder, and clears it of what others left.
        self.settle();
        let own = temporary(&self.folder)?;
        let saved = self.snapshot_to(Some(own.path().join(FRAMES)))?;
        if saved.calibration + saved.held_out == 0 {
            return Err(BufferError::Empty);
        }
        match fs::rename(&saved.bag, folder) {
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                let beside = temporary(parent)?;
                let copy = beside.path().join(FRAMES);
                copy_files(&saved.bag, &copy)?;
                fs::rename(&copy, folder)
            }
            renamed => renamed,
        }
        .map_err(io("make", folder))?;
        let bag = folder.to_owned();
        Ok(Snapshot { bag, ..saved })
    }

    /// Waits until everything that was asked so far is done.
    pub fn settle(&self) {
        let (reply, answer) = mpsc::channel();
        self.request(Request::Settle(reply));
        // No answer: there is no thread that could be behind.
        let _ = answer.recv();
    }

    fn request(&self, request: Request) {
        if let Some(requests) = &self.requests {
            // The thread ends only with this value; where it panicked, nobody waits for an answer for ever.
            let _ = requests.send(request);
        }
    }
}

impl Drop for CalibrationBuffer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the calibration buffer ended by a panic");
        }
    }
}

// Plain counts and queues, valid after any single operation.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread's side.
struct Worker {
    folder: PathBuf,
    shared: Arc<Mutex<Shared>>,
    selector: Selector,
    /// Keeps other processes from the folder; absent where it could not be had.
    lock: Option<File>,
}

impl Worker {
    fn run(mut self, requests: &mpsc::Receiver<Request>) {
        let opened = self.open();
        self.note(opened);
        lock(&self.shared).fill.loading = false;
        while let Ok(request) = requests.recv() {
            match request {
                Request::Offer(offer) => {
                    let done = self.offer(&offer);
                    self.note(done);
                }
                Request::Policy(policy) => {
                    let gone = self.selector.set_policy(policy);
                    let done = self.discard(&gone);
                    self.note(done);
                }
                Request::Snapshot(folder, reply) => {
                    let made = match folder {
                        Some(folder) => self.second_names(folder),
                        None => self.snapshot(),
                    };
                    // Who asked may have gone.
                    let _ = reply.send(made);
                }
                Request::Settle(reply) => {
                    let _ = reply.send(());
                }
            }
        }
    }

    /// Says what went wrong, and what is in the buffer now.
    fn note(&self, done: Result<(), BufferError>) {
        let problem = done.err().map(|error| error.to_string());
        let count = |role| self.selector.count(role);
        let mut shared = lock(&self.shared);
        if let Some(problem) = &problem
            && shared.fill.problem.as_ref() != Some(problem)
        {
            tracing::warn!("{problem}");
        }
        shared.fill = Fill {
            calibration: count(Role::Calibration),
            held_out: count(Role::HeldOut),
            bytes: self.selector.bytes(),
            few_sweeps: self.selector.few_sweeps(),
            diversity: self.selector.diversity(),
            objects: self.selector.objects(),
            problem,
            ..shared.fill
        };
    }

    fn frames(&self) -> PathBuf {
        self.folder.join(FRAMES)
    }

    fn file(&self, number: u64) -> PathBuf {
        self.frames().join(format!("{number:08}.mcap"))
    }

    /// Takes the folder and reads what an earlier run left in it.
    fn open(&mut self) -> Result<(), BufferError> {
        let frames = self.frames();
        fs::create_dir_all(&frames).map_err(io("make", &frames))?;
        let path = self.folder.join("lock");
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(io("open", &path))?;
        match file.try_lock() {
            Ok(()) => self.lock = Some(file),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(BufferError::Busy {
                    path: self.folder.clone(),
                });
            }
            Err(fs::TryLockError::Error(error)) => return Err(io("lock", &path)(error)),
        }
        // What a killed process was making.
        let begun = fs::read_dir(&self.folder).map_err(io("read", &self.folder))?;
        for path in begun.filter_map(|entry| entry.ok().map(|e| e.path())) {
            if name(&path).starts_with(SAVING) {
                remove(&path)?;
            }
        }
        let mut entries = Vec::new();
        let mut left_out = None;
        let listed = fs::read_dir(&frames).map_err(io("read", &frames))?;
        for path in listed.filter_map(|entry| entry.ok().map(|e| e.path())) {
            if path.is_dir() {
                // What a killed process was writing.
                remove(&path)?;
            } else if path.extension().is_some_and(|ending| ending == "mcap") {
                match read(&path) {
                    Ok(entry) if self.file(entry.number) == path => entries.push(entry),
                    Ok(_) => tracing::warn!("{} was renamed; it is left out", path.display()),
                    Err(error) => {
                        // Out of the bag, but there for whoever wants to know.
                        let aside = path.with_extension("mcap.damaged");
                        fs::rename(&path, &aside).map_err(io("rename", &path))?;
                        tracing::warn!("{error}");
                        left_out = Some(error);
                    }
                }
            }
        }
        if !entries.is_empty() {
            tracing::info!("{} calibration frames of an earlier run", entries.len());
        }
        self.selector = Selector::new(self.selector.policy(), entries);
        let gone = self.selector.set_policy(self.selector.policy());
        self.discard(&gone)?;
        self.list()?;
        left_out.map_or(Ok(()), Err)
    }

    fn offer(&mut self, offer: &Offer) -> Result<(), BufferError> {
        if self.lock.is_none() {
            // The other process may have ended, the disk may be there again.
            self.open()?;
        }
        let frame = &offer.frame;
        let expired = self.selector.expired(frame.stamp);
        self.selector.remove(&expired);
        self.discard(&expired)?;
        let signature = Signature::new(frame, &offer.detections, offer.classes);
        let bytes = cloud::encoded_len(&frame.points, true) as u64;
        let Decision::Take { role, instead_of } = self.selector.decide(&signature, bytes) else {
            return Ok(());
        };
        let mut entry = Entry {
            number: self.selector.next_number(),
            role,
            bytes,
            signature,
        };
        let header = Header {
            stamp: frame.stamp,
            frame_id: frame.frame_id.clone(),
        };
        // With the field `time_lag`, which says to a reader how many sweeps there are, also where that is one.
        self.write(&mut entry, &cloud::encode(&frame.points, header, true))?;
        self.selector.take(entry, &instead_of);
        lock(&self.shared).fill.taken += 1;
        self.discard(&instead_of)?;
        self.list()
    }

    fn write(&self, entry: &mut Entry, cloud: &PointCloud2) -> Result<(), BufferError> {
        let path = self.file(entry.number);
        let failed = |reason: String| BufferError::Damaged {
            path: path.clone(),
            reason,
        };
        let about = serde_json::to_string(&entry).map_err(|error| failed(error.to_string()))?;
        let mut writer = Writer::create(&path.with_extension(""))?;
        let time = entry.signature.stamp.0;
        writer.write(ABOUT_TOPIC, time, &Text { data: about })?;
        writer.write(topic(entry.role), time, cloud)?;
        writer.finish_part()?;
        entry.bytes = fs::metadata(&path).map_err(io("read", &path))?.len();
        Ok(())
    }

    /// Removes the files of frames that left.
    fn discard(&self, numbers: &[u64]) -> Result<(), BufferError> {
        numbers.iter().try_for_each(|n| remove(&self.file(*n)))
    }

    /// Writes the list of the files, which makes them a bag.
    fn list(&self) -> Result<(), BufferError> {
        bag::write_metadata(&self.frames(), &self.parts())?;
        Ok(())
    }

    fn parts(&self) -> Vec<Part> {
        let mut entries: Vec<&Entry> = self.selector.entries().iter().collect();
        entries.sort_by_key(|e| e.signature.stamp);
        let part = |entry: &&Entry| Part {
            file: name(&self.file(entry.number)),
            start: entry.signature.stamp,
            end: entry.signature.stamp,
            topics: vec![
                PartTopic::of::<Text>(ABOUT_TOPIC, 1),
                PartTopic::of::<PointCloud2>(topic(entry.role), 1),
            ],
        };
        entries.iter().map(part).collect()
    }

    /// Replaces the frames of the last calibration by those of this moment.
    fn snapshot(&mut self) -> Result<Snapshot, BufferError> {
        let fresh = self.folder.join(format!("{SAVING}_snapshot"));
        remove(&fresh)?;
        let made = self.second_names(fresh.clone())?;
        let bag = self.folder.join(SNAPSHOT);
        remove(&bag)?;
        fs::rename(&fresh, &bag).map_err(io("rename", &fresh))?;
        Ok(Snapshot { bag, ..made })
    }

    /// The files get second names in a folder of their own, where they stay when the buffer removes the first ones.
    fn second_names(&mut self, folder: PathBuf) -> Result<Snapshot, BufferError> {
        if self.lock.is_none() {
            self.open()?;
        }
        fs::create_dir(&folder).map_err(io("make", &folder))?;
        for entry in self.selector.entries() {
            let path = self.file(entry.number);
            let second = folder.join(name(&path));
            // Not every file system has second names.
            fs::hard_link(&path, &second)
                .or_else(|_| fs::copy(&path, &second).map(drop))
                .map_err(io("keep a second name of", &path))?;
        }
        bag::write_metadata(&folder, &self.parts())?;
        Ok(Snapshot {
            bag: folder,
            calibration: self.selector.count(Role::Calibration),
            held_out: self.selector.count(Role::HeldOut),
            few_sweeps: self.selector.few_sweeps(),
        })
    }
}

/// Copies the files of a folder to a new one, to the disk.
fn copy_files(from: &Path, to: &Path) -> Result<(), BufferError> {
    fs::create_dir(to).map_err(io("make", to))?;
    for entry in fs::read_dir(from).map_err(io("read", from))? {
        let path = entry.map_err(io("read", from))?.path();
        let copy = to.join(name(&path));
        fs::copy(&path, &copy)
            .and_then(|_| files::sync(&copy))
            .map_err(io("copy", &path))?;
    }
    Ok(())
}

/// Reads what a frame was chosen by, and whether its file is whole.
fn read(path: &Path) -> Result<Entry, BufferError> {
    let damaged = |reason: String| BufferError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let mut entry = None;
    let mut clouds = 0;
    for message in Reader::open(path)?.messages(&[ABOUT_TOPIC, CALIBRATION_TOPIC, HELD_OUT_TOPIC]) {
        let message = message?;
        if &*message.topic == ABOUT_TOPIC {
            let text = Text::decode(&message.data).map_err(|error| damaged(error.to_string()))?;
            let found: Entry =
                serde_json::from_str(&text.data).map_err(|error| damaged(error.to_string()))?;
            entry = Some(found);
        } else {
            clouds += 1;
        }
    }
    match (entry, clouds) {
        (Some(mut entry), 1) => {
            entry.bytes = fs::metadata(path).map_err(io("read", path))?.len();
            Ok(entry)
        }
        _ => Err(damaged(
            "it holds no frame with what it was chosen by".into(),
        )),
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .map_or(String::new(), |name| name.to_string_lossy().into_owned())
}

fn remove(path: &Path) -> Result<(), BufferError> {
    files::remove(path).map_err(io("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::selection::Choice;
    use crate::cloud::frames::{FrameAssembler, Frames, InputOptions};
    use crate::cloud::{Point, Points};

    /// A frame at so many seconds, with its time in its points.
    fn frame(seconds: i64) -> Arc<Frame> {
        let points = Points(vec![
            Point {
                x: seconds as f32,
                intensity: 7.0,
                ring: 3,
                ..Default::default()
            },
            Point {
                y: -1.5,
                time_lag: 0.1,
                ..Default::default()
            },
        ]);
        let header = Header {
            stamp: Stamp(seconds * 1_000_000_000),
            frame_id: "base_link".into(),
        };
        let cloud: PointCloud2 = cloud::encode(&points, header, true);
        let frame = FrameAssembler::new(InputOptions::default()).push_cloud(&cloud);
        Arc::new(frame.unwrap())
    }

    fn open(folder: &Path, max_frames: usize) -> CalibrationBuffer {
        let policy = Policy {
            choice: Choice::Newest,
            max_frames,
            ..Default::default()
        };
        CalibrationBuffer::open(folder, policy).unwrap()
    }

    /// Offers frames, a second apart.
    fn fill(buffer: &CalibrationBuffer, seconds: impl IntoIterator<Item = i64>) -> Fill {
        for second in seconds {
            buffer.offer(&frame(second), &[], 2);
            buffer.settle();
        }
        buffer.fill()
    }

    fn seconds(bag: &Path, topic: &str) -> Vec<i64> {
        let options = InputOptions {
            topic: Some(topic.into()),
            model_frame: Some("base_link".into()),
            sweeps: 2,
            ..Default::default()
        };
        let read = Frames::open(bag, &options).unwrap().map(Result::unwrap);
        read.map(|read| {
            let written = frame(read.stamp.0 / 1_000_000_000);
            assert_eq!(read.points, written.points);
            read.stamp.0 / 1_000_000_000
        })
        .collect()
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn the_frames_of_a_moment_are_saved_where_one_wants_them() {
        let folder = tempfile::tempdir().unwrap();
        // Another disk, where there is one: second names do not reach that far.
        let other = tempfile::tempdir_in("/dev/shm").unwrap_or(tempfile::tempdir().unwrap());
        let buffer = open(&folder.path().join("buffer"), 16);
        let nothing = buffer.save(&folder.path().join("empty"));
        assert!(matches!(nothing, Err(BufferError::Empty)));
        let full = fill(&buffer, 0..20);
        for place in [folder.path(), other.path()] {
            let bag = place.join("deep/saved");
            let saved = buffer.save(&bag).unwrap();
            assert_eq!(
                (saved.calibration, saved.held_out),
                (full.calibration, full.held_out)
            );
            assert_eq!(saved.bag, bag);
            let again = buffer.save(&bag);
            assert!(matches!(again, Err(BufferError::Exists { .. })));
            assert_eq!(files(&place.join("deep")), 1, "nothing half-made is left");
        }
        // What the buffer does later does not change them, and a snapshot neither.
        fill(&buffer, 20..60);
        buffer.snapshot().unwrap();
        for place in [folder.path(), other.path()] {
            let saved = seconds(&place.join("deep/saved"), CALIBRATION_TOPIC);
            assert!(saved.len() == full.calibration && saved.iter().all(|s| *s < 20));
        }
        assert!(!folder.path().join("empty").exists());
    }

    #[test]
    fn the_buffer_is_a_bag_of_its_frames_by_role_all_the_while() {
        let folder = tempfile::tempdir().unwrap();
        let buffer = open(folder.path(), 16);
        let bag = folder.path().join(FRAMES);
        for until in [20, 60, 100] {
            let found = fill(&buffer, until - 20..until);
            assert_eq!(found.problem, None);
            let made = seconds(&bag, CALIBRATION_TOPIC);
            let held = seconds(&bag, HELD_OUT_TOPIC);
            assert_eq!(
                (made.len(), held.len()),
                (found.calibration, found.held_out)
            );
            assert!(
                held.len() >= 3
                    && held.iter().all(|h| {
                        made.iter()
                            .all(|m| (m - h).abs() as f64 >= buffer.policy().gap_s)
                    })
            );
            // One file each, and the list.
            assert_eq!(files(&bag), found.frames() + 1);
        }
        assert_eq!(buffer.recent()[0].stamp, Stamp(99_000_000_000));
    }

    #[test]
    fn how_many_sweeps_a_frame_has_is_known_after_a_restart_and_to_whoever_reads_the_bag() {
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy {
            sweeps: 2,
            choice: Choice::Newest,
            max_frames: 16,
            ..Default::default()
        };
        let single = |second: i64| {
            let mut frame = (*frame(second)).clone();
            frame.points.0.truncate(1);
            frame.sweeps = 1;
            Arc::new(frame)
        };
        let buffer = CalibrationBuffer::open(folder.path(), policy).unwrap();
        for second in 0..4 {
            buffer.offer(&single(second), &[], 2);
            buffer.settle();
        }
        assert_eq!((buffer.fill().frames(), buffer.fill().few_sweeps), (4, 4));
        let replaced = fill(&buffer, [4]);
        assert_eq!((replaced.frames(), replaced.few_sweeps), (4, 3));
        drop(buffer);
        let buffer = CalibrationBuffer::open(folder.path(), policy).unwrap();
        buffer.settle();
        assert_eq!(buffer.fill().few_sweeps, 3);
        assert_eq!(buffer.snapshot().unwrap().few_sweeps, 3);
        let options = InputOptions {
            topic: Some(CALIBRATION_TOPIC.into()),
            sweeps: 2,
            ..Default::default()
        };
        let frames = Frames::open(&folder.path().join(FRAMES), &options).unwrap();
        let sweeps: Vec<usize> = frames.map(|frame| frame.unwrap().sweeps).collect();
        assert_eq!(sweeps, [1, 1, 1, 2]);
    }

    #[test]
    fn a_restart_goes_on_with_the_frames_that_were_there() {
        let folder = tempfile::tempdir().unwrap();
        let before = fill(&open(folder.path(), 16), 0..40);
        // What a killed process leaves: a file under way, and an old list.
        let bag = folder.path().join(FRAMES);
        fs::create_dir(bag.join(".00000099.unfinished-x")).unwrap();
        let buffer = open(folder.path(), 16);
        buffer.settle();
        let after = buffer.fill();
        assert_eq!(
            (after.frames(), after.bytes),
            (before.frames(), before.bytes)
        );
        assert!(!after.loading && after.problem.is_none());
        assert_eq!(files(&bag), after.frames() + 1);
        let more = fill(&buffer, 50..60);
        assert!(more.taken >= 6 && more.frames() == 16);
    }

    #[test]
    fn a_damaged_file_costs_one_frame_and_is_kept_aside() {
        let folder = tempfile::tempdir().unwrap();
        let before = fill(&open(folder.path(), 16), 0..40).frames();
        let bag = folder.path().join(FRAMES);
        let some = |ending: &str| {
            let mut paths: Vec<PathBuf> = fs::read_dir(&bag)
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            paths.retain(|p| p.extension().is_some_and(|e| e == ending));
            paths.sort();
            paths
        };
        let cut = &some("mcap")[1];
        // Behind the file's first words, before its index.
        const DATA: usize = 200;
        let bytes = fs::read(cut).unwrap();
        fs::write(cut, &bytes[..DATA]).unwrap();
        let bent = &some("mcap")[4];
        let mut bytes = fs::read(bent).unwrap();
        bytes[DATA] ^= 0xff;
        fs::write(bent, bytes).unwrap();
        // One whose first text claims 4 GiB.
        let claims = &some("mcap")[6];
        let header = b"\x89MCAP0\r\n\x01\x08\0\0\0\0\0\0\0\xff\xff\xff\xff\0\0\0\0";
        fs::write(claims, header).unwrap();
        // One that would never end.
        let pipe = &some("mcap")[8];
        fs::remove_file(pipe).unwrap();
        let made = std::process::Command::new("mkfifo").arg(pipe).status();
        assert!(made.unwrap().success());

        let buffer = open(folder.path(), 16);
        buffer.settle();
        let found = buffer.fill();
        assert_eq!(found.frames(), before - 4);
        assert_eq!(some("damaged").len(), 4);
        assert_eq!(seconds(&bag, CALIBRATION_TOPIC).len(), found.calibration);
    }

    #[test]
    fn a_snapshot_stays_while_the_buffer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let buffer = open(folder.path(), 16);
        fill(&buffer, 0..40);
        let snapshot = buffer.snapshot().unwrap();
        let made = seconds(&snapshot.bag, CALIBRATION_TOPIC);
        assert_eq!(made.len(), snapshot.calibration);
        assert_eq!(
            seconds(&snapshot.bag, HELD_OUT_TOPIC).len(),
            snapshot.held_out
        );
        fill(&buffer, 1000..1040);
        assert_eq!(seconds(&snapshot.bag, CALIBRATION_TOPIC), made);
        let next = buffer.snapshot().unwrap();
        assert_eq!(next.bag, snapshot.bag);
        assert!(seconds(&next.bag, CALIBRATION_TOPIC)[0] >= 1000);
    }

    #[test]
    fn two_processes_do_not_fill_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), 16);
        fill(&first, 0..4);
        let second = open(folder.path(), 16);
        let refused = fill(&second, 10..12);
        assert_eq!(refused.frames(), 0);
        let problem = refused.problem.unwrap();
        assert!(problem.contains("calibration.buffer_path"), "{problem}");
        assert!(second.snapshot().is_err());
        // When the first one ends, the second goes on with its frames.
        drop(first);
        let found = fill(&second, 20..22);
        assert_eq!((found.frames(), found.problem), (6, None));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_and_used_when_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("buffer");
        // Permissions do not stop root; a file in the way stops everybody.
        fs::write(&path, "").unwrap();
        let buffer = open(&path, 16);
        let found = fill(&buffer, 0..2);
        assert_eq!(found.frames(), 0);
        assert!(found.problem.unwrap().contains("buffer"));
        fs::remove_file(&path).unwrap();
        let found = fill(&buffer, 10..12);
        assert_eq!((found.frames(), found.problem), (2, None));
    }

    #[test]
    fn a_smaller_limit_removes_files_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let buffer = open(folder.path(), 16);
        fill(&buffer, 0..40);
        buffer.set_policy(Policy {
            max_frames: 4,
            ..buffer.policy()
        });
        buffer.settle();
        assert_eq!(buffer.fill().frames(), 4);
        assert_eq!(files(&folder.path().join(FRAMES)), 5);
    }
}
