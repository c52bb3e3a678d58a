//! How subcommands read clouds from a bag: which ones, and what becomes of those that give no frame.
//!
//! Every subcommand goes through an [`Intake`], so that all of them go on past a bad cloud, count what
//! is lost, and say what makes their results worse than they could be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::ensure;

use super::numbers::{FRAMES, within};
use super::sweeps::Sweeps;
use super::{Ended, terminal};
use crate::bag::{BagError, Limits, Reader, Stamp};
use crate::cloud::condition::Condition;
use crate::cloud::frames::{Frame, FrameError, Frames, InputOptions, Loss};
use crate::cloud::summary::{InputSummary, InputTally};
use crate::detector::ModelDescription;
use crate::ptq::report::Report;

/// Reads the description of a model to run. One that is not what it was when it was quantized runs, and that is told: it
/// may have been changed on purpose.
pub fn load_model(path: &Path) -> anyhow::Result<ModelDescription> {
    let model = ModelDescription::load(path)?;
    if let Err(changed) = Report::check_beside(&model) {
        tracing::warn!("{changed}");
    }
    Ok(model)
}

/// Which clouds of a bag are read, and how they come into the model's frame.
#[derive(clap::Args, Clone, Default)]
pub struct InputArgs {
    /// Topic of the clouds; may be left out where the bag holds one only
    #[arg(long)]
    pub topic: Option<String>,
    /// Pose of the sensor in the model's frame, instead of /tf: "x y z roll pitch yaw" in metres
    /// and radians
    #[arg(long, value_name = "POSE", value_parser = parse_pose, allow_hyphen_values = true)]
    pub sensor_pose: Option<SensorPose>,
    /// Frame that the model looks from, instead of the one that its description names
    #[arg(long, value_name = "FRAME")]
    pub model_frame: Option<String>,
    /// Frame that does not move, to join sweeps; by default odom or map, whichever /tf has
    #[arg(long, value_name = "FRAME")]
    pub fixed_frame: Option<String>,
    #[command(flatten)]
    pub strictness: Strictness,
}

/// What to do about clouds that give no frame.
#[derive(clap::Args, Clone, Copy, Default)]
pub struct Strictness {
    /// Fail, with nothing written, where a cloud cannot be used or the bag is damaged, instead of
    /// going on without it
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub limits: BagLimits,
}

/// What a bag may make its reader spend, see [`Limits`].
#[derive(clap::Args, Clone, Copy, Default)]
pub struct BagLimits {
    /// Largest message that is read from a bag, unpacked [default: 256]
    #[arg(long, value_name = "MB", help_heading = BAG_LIMITS)]
    pub max_message_mb: Option<u64>,
    /// Largest chunk of an MCAP file that is read, unpacked [default: 512]
    #[arg(long, value_name = "MB", help_heading = BAG_LIMITS)]
    pub max_chunk_mb: Option<u64>,
    /// Largest file that a packed one of a bag may become on the disk [default: 65536]
    #[arg(long, value_name = "MB", help_heading = BAG_LIMITS)]
    pub max_unpacked_mb: Option<u64>,
    /// How many times its size a bag may unpack to in one pass, above 4 GB that any bag may (a packed file: above
    /// 256 MB) [default: 64]
    #[arg(long, value_name = "FACTOR", help_heading = BAG_LIMITS)]
    pub max_expansion: Option<u64>,
    /// Memory for the times and places of a bag's messages [default: 1024]
    #[arg(long, value_name = "MB", help_heading = BAG_LIMITS)]
    pub max_index_mb: Option<u64>,
    /// Most files of a bag [default: 20000]
    #[arg(long, value_name = "N", help_heading = BAG_LIMITS)]
    pub max_bag_files: Option<usize>,
    /// Most topics of a bag [default: 65536]
    #[arg(long, value_name = "N", help_heading = BAG_LIMITS)]
    pub max_bag_topics: Option<usize>,
    /// Follow links in a bag's folder that lead out of it
    #[arg(long, help_heading = BAG_LIMITS)]
    pub follow_links: bool,
}

const BAG_LIMITS: &str = "Limits to what a bag may cost its reader";

impl BagLimits {
    pub fn limits(&self) -> Limits {
        let default = Limits::default();
        let bytes = |mb: Option<u64>, default| mb.map_or(default, |mb| mb.saturating_mul(1 << 20));
        Limits {
            message_bytes: bytes(self.max_message_mb, default.message_bytes),
            chunk_bytes: bytes(self.max_chunk_mb, default.chunk_bytes),
            file_bytes: bytes(self.max_unpacked_mb, default.file_bytes),
            expansion: self.max_expansion.unwrap_or(default.expansion),
            index_bytes: bytes(self.max_index_mb, default.index_bytes),
            files: self.max_bag_files.unwrap_or(default.files),
            topics: self.max_bag_topics.unwrap_or(default.topics),
            follow_links: self.follow_links,
            stop: None,
        }
    }
}

impl InputArgs {
    /// How frames for this model are put together.
    pub fn options(&self, model: &ModelDescription) -> InputOptions {
        let of_model = model.input_options();
        InputOptions {
            topic: self.topic.clone(),
            model_frame: self.model_frame.clone().or(of_model.model_frame),
            sensor_pose: self.sensor_pose.map(|pose| pose.0),
            fixed_frame: self.fixed_frame.clone(),
            ..of_model
        }
    }

    /// How frames of a topic of a node's calibration buffer are read, which are in the model's frame.
    pub fn buffered(&self, model: &ModelDescription, topic: &str) -> InputOptions {
        let own = Self {
            topic: Some(topic.into()),
            model_frame: self.model_frame.clone(),
            ..Self::default()
        };
        own.options(model)
    }
}

/// Where clouds come from.
#[derive(clap::Args, Clone)]
pub struct FrameArgs {
    /// rosbag2 folder, .mcap or .db3 file
    #[arg(long)]
    pub bag: PathBuf,
    #[command(flatten)]
    pub input: InputArgs,
    /// Read at most this many frames
    #[arg(long, value_parser = within(FRAMES))]
    pub limit: Option<usize>,
}

impl FrameArgs {
    /// The frames, with `limit` applied.
    pub fn open(
        &self,
        model: &ModelDescription,
    ) -> Result<(Intake, std::iter::Take<Clouds>), InputError> {
        let intake = Intake::new(self.input.strictness);
        let clouds = intake.open(&self.bag, &self.input.options(model))?;
        Ok((intake, clouds.take(self.limit.unwrap_or(usize::MAX))))
    }
}

/// Why a subcommand does not go on with its clouds.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("cannot read clouds from {}: {source}", bag.display())]
    Open {
        bag: PathBuf,
        source: Box<FrameError>,
    },
    #[error("in {}: {text} (with --strict nothing may be lost)", bag.display())]
    Lost { bag: PathBuf, text: String },
    #[error("no cloud of {bags} could be used: {reason}")]
    Nothing { bags: String, reason: String },
}

/// What the clouds of one run of a subcommand came to. Clones are the same intake.
#[derive(Clone)]
pub struct Intake {
    strict: bool,
    limits: Limits,
    /// Tells nothing.
    silent: bool,
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    tally: InputTally,
    bags: Vec<PathBuf>,
    /// Conditions of the frame that was given out last. It is counted when it is done with: the
    /// network may have something to add, or fail on it.
    open: Option<Vec<Condition>>,
    /// Why the first cloud was lost.
    reason: Option<String>,
}

impl State {
    fn bag(&self) -> PathBuf {
        self.bags.last().cloned().unwrap_or_default()
    }
}

impl Intake {
    pub fn new(strictness: Strictness) -> Self {
        Intake {
            strict: strictness.strict,
            limits: strictness.limits.limits(),
            silent: false,
            state: Rc::default(),
        }
    }

    /// For clouds that are read once more later, when what is lost is told.
    pub fn silent(&self) -> Self {
        Intake {
            strict: false,
            limits: self.limits.clone(),
            silent: true,
            state: Rc::default(),
        }
    }

    /// Reading ends with an error when the flag is raised.
    pub fn stopped_by(mut self, stop: Arc<AtomicBool>) -> Self {
        self.limits.stop = Some(stop);
        self
    }

    /// The bag, without anything read from it that is counted.
    pub fn reader(&self, bag: &Path) -> Result<Reader, InputError> {
        Reader::open_with(bag, &self.limits).map_err(|source| InputError::Open {
            bag: bag.into(),
            source: Box::new(source.into()),
        })
    }

    fn warn(&self, text: &str) {
        if !self.silent {
            terminal::warn(text);
        }
    }

    /// The frames of a bag that can be used.
    pub fn open(&self, bag: &Path, options: &InputOptions) -> Result<Clouds, InputError> {
        let reader = self.reader(bag)?;
        let frames = Frames::from_reader(&reader, options).map_err(|source| InputError::Open {
            bag: bag.into(),
            source: Box::new(source),
        })?;
        let mut state = self.state.borrow_mut();
        if !state.bags.iter().any(|known| known == bag) {
            state.bags.push(bag.into());
        }
        drop(state);
        Ok(Clouds {
            frames,
            intake: self.clone(),
            bag: bag.into(),
            sweeps: None,
            stride: 1,
            read: 0,
            skipped: 0,
            failed: false,
        })
    }

    /// Adds a condition of the frame that was given out last.
    pub fn note(&self, condition: Condition) {
        if let Some(open) = &mut self.state.borrow_mut().open
            && open.iter().all(|known| known.kind != condition.kind)
        {
            open.push(condition);
        }
    }

    /// Adds what the network found worth telling of the frame that was given out last.
    pub fn detected(&self, conditions: &[Condition]) {
        conditions
            .iter()
            .cloned()
            .for_each(|condition| self.note(condition));
    }

    /// Takes note that the network failed on the frame that was given out last, which is an error
    /// where nothing may be lost.
    pub fn failed(&self, stamp: Stamp, error: &dyn std::error::Error) -> Result<(), InputError> {
        let mut state = self.state.borrow_mut();
        state.open = None;
        let bag = state.bag();
        let text = format!("cloud at {stamp}: {error}");
        self.lose(&mut state, &bag, Loss::NotDetected, text)
    }

    /// Counts the frame that was given out last.
    fn settle(&self, state: &mut State) {
        if let Some(conditions) = state.open.take() {
            for new in state.tally.frame(&conditions) {
                self.warn(&new.text);
            }
        }
    }

    fn lose(
        &self,
        state: &mut State,
        bag: &Path,
        loss: Loss,
        text: String,
    ) -> Result<(), InputError> {
        if self.strict {
            return Err(InputError::Lost {
                bag: bag.into(),
                text,
            });
        }
        if state.tally.loss(loss, &text) {
            self.warn(&format!("left out: {text}"));
        }
        state.reason.get_or_insert(text);
        Ok(())
    }

    /// What the input has come to so far.
    pub fn summary(&self) -> InputSummary {
        let mut state = self.state.borrow_mut();
        self.settle(&mut state);
        state.tally.summary()
    }

    /// Says what the input came to, which is an error where no frame at all came out.
    pub fn finish(&self) -> Result<InputSummary, InputError> {
        let summary = self.summary();
        let state = self.state.borrow();
        if summary.frames == 0 {
            let bags: Vec<String> = state.bags.iter().map(|b| b.display().to_string()).collect();
            return Err(InputError::Nothing {
                bags: bags.join(" and "),
                reason: (state.reason.clone()).unwrap_or_else(|| "it holds none".into()),
            });
        }
        for line in summary.short_lines() {
            self.warn(&line);
        }
        Ok(summary)
    }
}

impl InputSummary {
    /// How a subcommand ends whose result rests on this input.
    pub(super) fn ended(&self) -> Ended {
        match self.has_losses() {
            true => Ended::WithLosses,
            false => Ended::Done,
        }
    }
}

/// The frames of one bag that can be used; what cannot is the [`Intake`]'s.
pub struct Clouds {
    frames: Frames,
    intake: Intake,
    bag: PathBuf,
    /// Keeps frames back that lack sweeps.
    sweeps: Option<Sweeps>,
    stride: usize,
    /// Frames that came out of the bag, used or not.
    read: usize,
    skipped: usize,
    failed: bool,
}

impl Clouds {
    /// Only frames that do not lack sweeps, or are wanted all the same; they are counted there.
    pub(super) fn complete(self, sweeps: &Sweeps) -> Self {
        Clouds {
            sweeps: Some(sweeps.clone()),
            ..self
        }
    }

    /// Every n-th of them only, from the first on; the others are not counted.
    pub fn every(self, stride: usize) -> Self {
        Clouds {
            stride: stride.max(1),
            ..self
        }
    }

    /// Clouds in the bag, where it says so.
    pub fn len_hint(&self) -> Option<usize> {
        self.frames.len_hint()
    }

    /// Counts the clouds that were skipped at the start.
    fn count_skipped(&mut self, state: &mut State) -> Result<(), InputError> {
        let new = self.frames.skipped() - self.skipped;
        self.skipped += new;
        state.tally.skip(new as u64);
        match new {
            1.. if self.intake.strict => Err(InputError::Lost {
                bag: self.bag.clone(),
                text: format!(
                    "{new} clouds at the start were skipped, since tf does not reach back to them"
                ),
            }),
            _ => Ok(()),
        }
    }

    fn step(&mut self) -> Result<Option<Frame>, InputError> {
        let shared = Rc::clone(&self.intake.state);
        loop {
            let item = self.frames.next();
            let mut state = shared.borrow_mut();
            self.intake.settle(&mut state);
            self.count_skipped(&mut state)?;
            match item {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if self.sweeps.as_ref().is_some_and(|s| !s.admits(&frame)) {
                        continue;
                    }
                    self.read += 1;
                    if !(self.read - 1).is_multiple_of(self.stride) {
                        continue;
                    }
                    state.open = Some(frame.conditions.clone());
                    return Ok(Some(frame));
                }
                Some(Err(error)) => match error.loss() {
                    Some(loss) if !matches!(error, FrameError::Bag(BagError::Stopped(_))) => {
                        let text = error.to_string();
                        self.intake.lose(&mut state, &self.bag, loss, text)?;
                    }
                    _ => {
                        return Err(InputError::Open {
                            bag: self.bag.clone(),
                            source: Box::new(error),
                        });
                    }
                },
            }
        }
    }
}

impl Iterator for Clouds {
    type Item = Result<Frame, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.step().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

/// Puts what belongs to a frame under its stamp, where nothing is yet.
pub fn insert_unique<T>(map: &mut BTreeMap<i64, T>, stamp: i64, value: T) -> anyhow::Result<()> {
    ensure!(
        map.insert(stamp, value).is_none(),
        "two clouds of the topic have the same stamp, {stamp} ns, so their results cannot be told apart"
    );
    Ok(())
}

/// x, y, z, roll, pitch, yaw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SensorPose(pub [f64; 6]);

/// Reads six numbers separated by blanks or commas, in brackets or without: as on the command line
/// of tf2's static_transform_publisher, in YAML, or in Python.
pub fn parse_pose(text: &str) -> Result<SensorPose, String> {
    const FORM: &str = "six numbers are needed in one argument, \"x y z roll pitch yaw\"";
    let inside = text.trim();
    let inside = [('[', ']'), ('(', ')'), ('{', '}')]
        .into_iter()
        .find_map(|(open, close)| inside.strip_prefix(open)?.strip_suffix(close))
        .unwrap_or(inside);
    let numbers: Vec<f64> = inside
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';'))
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse()
                .ok()
                .filter(|n: &f64| n.is_finite())
                .ok_or_else(|| format!("`{part}` is not a number; {FORM}"))
        })
        .collect::<Result<_, _>>()?;
    <[f64; 6]>::try_from(numbers)
        .map(SensorPose)
        .map_err(|numbers| format!("{FORM}; got {}", numbers.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::Writer;
    use crate::bag::msg::{Header, PointCloud2};
    use crate::cloud::condition::ConditionKind;
    use crate::cloud::{Point, Points, encode};

    #[test]
    fn a_pose_is_six_finite_numbers_in_any_usual_form() {
        let pose = SensorPose([1.0, -2.5, 3.0, 0.0, 0.0, 0.1]);
        for text in [
            "1 -2.5,3  0 0 0.1",
            "1,-2.5,3,0,0,0.1",
            "[1.0, -2.5, 3.0, 0, 0, 0.1]",
            " (1, -2.5, 3, 0, 0, 0.1) ",
            "1;-2.5;3;0;0;1e-1",
        ] {
            assert_eq!(parse_pose(text), Ok(pose), "{text}");
        }
        assert!(parse_pose("1 2 3").unwrap_err().contains("got 3"));
        assert!(parse_pose("[1 2 3").unwrap_err().contains("`[1`"));
        assert!(parse_pose("1 2 3 0 0 up").unwrap_err().contains("`up`"));
        assert!(parse_pose("1 2 3 0 0 nan").is_err());
    }

    /// A bag of one cloud per entry, broken where it is `false`.
    fn bag(folder: &Path, clouds: &[bool]) -> PathBuf {
        let path = folder.join("bag");
        let mut writer = Writer::create(&path).unwrap();
        for (i, good) in clouds.iter().enumerate() {
            let stamp = Stamp(i as i64 * 100_000_000);
            let header = Header {
                stamp,
                frame_id: "base_link".into(),
            };
            let mut cloud: PointCloud2 = encode(&Points(vec![Point::default()]), header, false);
            if !good {
                cloud.data.clear();
            }
            writer.write("/points", stamp.0, &cloud).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    fn options() -> InputOptions {
        InputOptions {
            model_frame: Some("base_link".into()),
            ..InputOptions::default()
        }
    }

    #[test]
    fn a_bad_cloud_costs_itself_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = bag(folder.path(), &[true, false, true, false]);
        let intake = Intake::new(Strictness::default());
        let frames = intake.open(&path, &options()).unwrap();
        assert_eq!(frames.map(Result::unwrap).count(), 2);
        let summary = intake.finish().unwrap();
        assert_eq!((summary.frames, summary.losses[0].count), (2, 2));
        assert_eq!(summary.losses[0].kind, Loss::BadCloud);
        assert_eq!(summary.ended(), Ended::WithLosses);
    }

    #[test]
    fn where_nothing_may_be_lost_the_first_loss_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = bag(folder.path(), &[true, false, true]);
        let intake = Intake::new(Strictness {
            strict: true,
            ..Strictness::default()
        });
        let items: Vec<_> = intake.open(&path, &options()).unwrap().collect();
        let [Ok(_), Err(error)] = items.as_slice() else {
            panic!("{} items", items.len())
        };
        assert!(error.to_string().contains("--strict"), "{error}");
    }

    #[test]
    fn a_bag_that_gives_no_frame_is_an_error_with_the_first_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = bag(folder.path(), &[false, false]);
        let intake = Intake::new(Strictness::default());
        assert_eq!(intake.open(&path, &options()).unwrap().count(), 0);
        let error = intake.finish().unwrap_err().to_string();
        assert!(
            error.contains("no cloud of") && error.contains("at 0.0"),
            "{error}"
        );
    }

    #[test]
    fn a_frame_that_the_network_fails_on_is_lost_and_what_it_adds_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = bag(folder.path(), &[true; 3]);
        let intake = Intake::new(Strictness::default());
        for (i, frame) in intake.open(&path, &options()).unwrap().enumerate() {
            let stamp = frame.unwrap().stamp;
            match i {
                0 => intake
                    .failed(stamp, &std::io::Error::other("no memory"))
                    .unwrap(),
                1 => intake.note(Condition::new(ConditionKind::DroppedPillars, "7 lost")),
                _ => {}
            }
        }
        let summary = intake.finish().unwrap();
        assert_eq!(summary.frames, 2);
        assert_eq!(summary.conditions[0].frames, 1);
        assert_eq!(summary.losses[0].kind, Loss::NotDetected);
        assert_eq!(summary.losses[0].text, "cloud at 0.000000000: no memory");
    }

    #[test]
    fn frames_that_are_passed_over_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = bag(folder.path(), &[true, true, false, true, true]);
        let intake = Intake::new(Strictness::default());
        let frames = intake.open(&path, &options()).unwrap().every(3);
        let stamps: Vec<i64> = frames.map(|f| f.unwrap().stamp.0).collect();
        assert_eq!(stamps, [0, 400_000_000]);
        assert_eq!(intake.finish().unwrap().frames, 2);
    }
}
