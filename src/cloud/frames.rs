//! What the detector is fed: decoded, placed in the model's frame, joined from several sweeps.
//!
//! [`FrameAssembler`] does it for one cloud at a time and serves the node; [`Frames`] drives it
//! from a bag.
//!
//! # Where a cloud is taken to be
//!
//! 1. [`InputOptions::sensor_pose`], where given, places it.
//! 2. A cloud whose `frame_id` is the model's frame, or for which none is named, stays as it is.
//! 3. Otherwise tf places it, at the cloud's stamp.
//! 4. Without any tf at all the points are taken as being in the model's frame already, with
//!    [`Placement::Assumed`] in the frame.
//!
//! # Sweeps
//!
//! Joining sweeps needs the vehicle's motion: the pose of the model's frame in the fixed frame.
//! Where tf does not give it, a frame holds the newest sweep only. A cloud with a field `time_lag`
//! was joined before and passes through. Sweeps belong to a sensor: clouds of another `frame_id` on
//! the same topic are joined among themselves.
//!
//! In a bag a transform may be recorded a little after the cloud it belongs to. [`Frames`] holds
//! clouds back for up to [`InputOptions::tf_wait`] seconds of the recording until tf is there, and
//! uses them before a transform comes that makes tf forget their time.
//!
//! # Stamps
//!
//! A frame's stamp is that of its newest cloud, and no two frames of a bag have the same one. Where
//! the stamps of a recording are of no use, since they are 0 or repeat from the start, the log time
//! stands in for all of them; where one repeats later on, for that one.
//!
//! # What is odd
//!
//! Whatever makes a frame worse than it could be is in [`Frame::conditions`]. Nothing is logged
//! here: who uses the frames tells it.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bag::msg::{Header, Message, PointCloud2, TfMessage};
use crate::bag::{BagError, CdrError, Messages, RawMessage, Reader, Stamp, Topic};
use crate::geometry::{Pose, pose_from_xyz_rpy};
use crate::text::{shown, shown_all};

use super::condition::{Condition, ConditionKind};
use super::plausibility::{Expectations, Plausibility};
use super::sweeps::{Densifier, Joined, SweepSettings};
use super::tf::{LONGEST_NAME, TfBuffer, TfError};
use super::{CloudError, DecodeOptions, DecodeStats, Points, decode_with_stats};

/// Frames that do not move, best first: `odom` is continuous, `map` may jump (REP-105).
const FIXED_FRAMES: [&str; 2] = ["odom", "map"];
/// Clouds that may wait for tf at once; enough for a second of any sensor.
const MAX_WAITING: usize = 32;
/// Clouds at the start of a bag whose stamps are looked at before any is used.
const STAMPS_LOOKED_AT: usize = 16;
/// Sensors on one topic whose sweeps are kept apart.
const MAX_SENSORS: usize = 16;
/// A sensor counts as being there for so long after its last cloud, seconds.
const SENSOR_MEMORY: f64 = 2.0;

/// What to read and where to put it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputOptions {
    /// The point cloud topic; may be left out where the bag has only one.
    pub topic: Option<String>,
    /// The frame the model expects; by default the cloud's own.
    pub model_frame: Option<String>,
    /// Pose of the sensor in the model's frame: x, y, z in metres, roll, pitch, yaw in radians.
    pub sensor_pose: Option<[f64; 6]>,
    /// A frame that does not move; by default `odom` or `map`, whichever tf has.
    pub fixed_frame: Option<String>,
    /// Sweeps to join, the newest included.
    pub sweeps: usize,
    /// Seconds between two of them that the model was trained with.
    pub sweep_period: f64,
    /// Sweeps older than this are not joined, seconds.
    pub max_sweep_age: f64,
    /// How far beyond the known transforms to answer with the nearest one, seconds.
    pub tf_tolerance: f64,
    /// How long a cloud of a bag waits for tf, seconds of the recording.
    pub tf_wait: f64,
    /// Fields to read.
    pub fields: DecodeOptions,
    /// What the model expects of a cloud; without it, less is found odd.
    pub expect: Option<Expectations>,
}

impl Default for InputOptions {
    fn default() -> Self {
        InputOptions {
            topic: None,
            model_frame: None,
            sensor_pose: None,
            fixed_frame: None,
            sweeps: 1,
            sweep_period: 0.1,
            max_sweep_age: 1.0,
            tf_tolerance: 0.02,
            tf_wait: 1.0,
            fields: DecodeOptions::default(),
            expect: None,
        }
    }
}

/// How a cloud came into the model's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// It was in it.
    SameFrame,
    /// By the given pose of the sensor.
    SensorPose,
    /// By tf.
    Tf,
    /// Not at all: there was no tf, so it was taken to be in it.
    Assumed,
}

/// One input of the detector.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Stamp of the newest sweep, or the time that stands in for it: see the module's text.
    pub stamp: Stamp,
    /// Name of the model's frame.
    pub frame_id: String,
    /// In the model's frame at `stamp`, newest sweep first.
    pub points: Points,
    pub model_from_cloud: Pose,
    pub placement: Placement,
    /// Pose of the model's frame in the fixed frame, where tf gives it.
    pub fixed_from_model: Option<Pose>,
    /// Sweeps in `points`; of a cloud that was joined before, as many as it has time lags.
    pub sweeps: usize,
    /// About the newest sweep's message.
    pub stats: DecodeStats,
    /// What makes the result of this frame worse than it could be.
    pub conditions: Vec<Condition>,
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Bag(#[from] BagError),
    #[error("{path} has no sensor_msgs/msg/PointCloud2 topic; its topics are {found}")]
    NoPointCloud { path: PathBuf, found: String },
    #[error("{path} has several point cloud topics, name the one to use: {found}")]
    SeveralTopics { path: PathBuf, found: String },
    #[error("{path} has no topic {topic}; its point cloud topics are {found}")]
    NoSuchTopic {
        path: PathBuf,
        topic: String,
        found: String,
    },
    #[error("{path}: {topic} is {type_name}, not sensor_msgs/msg/PointCloud2")]
    WrongType {
        path: PathBuf,
        topic: String,
        type_name: String,
    },
    #[error("{topic} at {log_time}: {source}")]
    Message {
        topic: String,
        log_time: Stamp,
        source: CdrError,
    },
    #[error("cloud of frame \"{frame_id}\" at {stamp}: {source}")]
    Cloud {
        stamp: Stamp,
        frame_id: String,
        source: CloudError,
    },
    #[error("cloud of frame \"{frame_id}\" at {stamp} cannot be placed: {source}")]
    Tf {
        stamp: Stamp,
        frame_id: String,
        source: Box<TfError>,
    },
}

/// What becomes of a cloud that gives no frame, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Its message or its points cannot be read.
    BadCloud,
    /// tf does not lead from its frame to the model's.
    NotPlaced,
    /// A part of the recording is damaged or was cut off: what it held is not known.
    DamagedBag,
    /// The network failed on its frame.
    NotDetected,
}

impl Loss {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Loss::BadCloud => "bad_cloud",
            Loss::NotPlaced => "not_placed",
            Loss::DamagedBag => "damaged_bag",
            Loss::NotDetected => "not_detected",
        }
    }
}

impl FrameError {
    /// What is lost where this comes up among the frames of a bag; `None` where the bag cannot be
    /// read at all.
    pub fn loss(&self) -> Option<Loss> {
        match self {
            FrameError::Bag(_) => Some(Loss::DamagedBag),
            FrameError::Message { .. } | FrameError::Cloud { .. } => Some(Loss::BadCloud),
            FrameError::Tf { .. } => Some(Loss::NotPlaced),
            FrameError::NoPointCloud { .. }
            | FrameError::SeveralTopics { .. }
            | FrameError::NoSuchTopic { .. }
            | FrameError::WrongType { .. } => None,
        }
    }
}

/// What belongs to one sensor of a topic.
struct Sensor {
    densifier: Densifier,
    plausibility: Plausibility,
    last: Stamp,
}

/// Makes frames of clouds, with what tf has said so far.
pub struct FrameAssembler {
    options: InputOptions,
    tf: TfBuffer,
    /// By `frame_id`.
    sensors: BTreeMap<String, Sensor>,
    /// The fixed frame in use, once one was found.
    fixed_frame: Option<String>,
    /// Whether tf is known to come, see [`expect_tf`](Self::expect_tf).
    expects_tf: bool,
    /// About transforms that came since the last cloud.
    invalid_transform: Option<Condition>,
}

impl FrameAssembler {
    pub fn new(options: InputOptions) -> Self {
        const CACHE: f64 = 10.0;
        FrameAssembler {
            tf: TfBuffer::new(CACHE, options.tf_tolerance),
            sensors: BTreeMap::new(),
            fixed_frame: options.fixed_frame.clone(),
            expects_tf: false,
            invalid_transform: None,
            options,
        }
    }

    pub fn options(&self) -> &InputOptions {
        &self.options
    }

    pub fn tf(&self) -> &TfBuffer {
        &self.tf
    }

    /// Says that tf will come, as when somebody publishes it: a cloud that needs it is an error
    /// from now on even while there is none, and not taken as being in the model's frame.
    pub fn expect_tf(&mut self) {
        self.expects_tf = true;
    }

    /// Takes in transforms. Those that are no valid transform are left out; the next frame says so.
    pub fn push_tf(&mut self, message: &TfMessage, is_static: bool) {
        for transform in &message.transforms {
            if let Err(error) = self.tf.insert(transform, is_static) {
                let text = format!("transform left out: {error}");
                self.invalid_transform =
                    Some(Condition::new(ConditionKind::InvalidTransform, text));
            }
        }
    }

    /// Where the cloud lies in the model's frame.
    fn place(&self, frame_id: &str, stamp: Stamp) -> Result<(Pose, Placement), TfError> {
        if let Some([x, y, z, roll, pitch, yaw]) = self.options.sensor_pose {
            let pose = pose_from_xyz_rpy([x, y, z], [roll, pitch, yaw]);
            return Ok((pose, Placement::SensorPose));
        }
        match self.options.model_frame.as_deref() {
            None => Ok((Pose::identity(), Placement::SameFrame)),
            Some(model) if model == frame_id => Ok((Pose::identity(), Placement::SameFrame)),
            Some(_) if self.tf.is_empty() && !self.expects_tf => {
                Ok((Pose::identity(), Placement::Assumed))
            }
            Some(model) => {
                let pose = self.tf.lookup(model, frame_id, stamp)?;
                Ok((pose, Placement::Tf))
            }
        }
    }

    /// The pose of the model's frame in the fixed frame, and the fixed frame's name.
    fn ego(
        &self,
        frame_id: &str,
        stamp: Stamp,
        model_from_cloud: &Pose,
    ) -> Result<(Pose, String), TfError> {
        let model = self.options.model_frame.as_deref();
        let try_fixed = |fixed: &str| match model {
            // With a given sensor pose, tf may know the sensor and not the model's frame.
            Some(model) if self.tf.has_frame(model) => self.tf.lookup(fixed, model, stamp),
            _ => {
                let fixed_from_cloud = self.tf.lookup(fixed, frame_id, stamp)?;
                Ok(fixed_from_cloud * model_from_cloud.inverse())
            }
        };
        let named = |fixed: &str| Ok((try_fixed(fixed)?, fixed.to_owned()));
        match &self.fixed_frame {
            Some(fixed) => named(fixed),
            None => {
                let [first, second] = FIXED_FRAMES;
                // The better one's error is the one to tell, unless only the other is there.
                named(first).or_else(|error| match named(second) {
                    Ok(found) => Ok(found),
                    Err(other) if self.tf.has_frame(second) && !self.tf.has_frame(first) => {
                        Err(other)
                    }
                    Err(_) => Err(error),
                })
            }
        }
    }

    /// Whether tf that is yet to come could place the cloud or tell the vehicle's pose better.
    fn should_wait(&self, frame_id: &str, stamp: Stamp) -> bool {
        if self.tf.is_empty() {
            return true;
        }
        match self.place(frame_id, stamp) {
            Err(error) => error.may_resolve_later(),
            Ok((pose, _)) => self
                .ego(frame_id, stamp, &pose)
                .is_err_and(|error| error.may_resolve_later()),
        }
    }

    /// Whether to hold a live cloud back for tf: its place is not known yet, or the vehicle's pose
    /// has been coming but not yet for its stamp. A pose that has never come is not waited for.
    ///
    /// `received` as in [`push_received`](Self::push_received).
    pub fn awaits_tf(&self, header: &Header, received: Stamp) -> bool {
        let frame_id = clean(&header.frame_id);
        let stamp = stamp_or(header.stamp, received);
        match self.place(frame_id, stamp) {
            Err(error) => error.may_resolve_later(),
            Ok(_) if self.options.sweeps < 2 => false,
            Ok((pose, _)) => match self.ego(frame_id, stamp, &pose) {
                Err(error @ TfError::Extrapolation { .. }) => error.may_resolve_later(),
                _ => false,
            },
        }
    }

    /// Decodes a cloud, moves it to the model's frame and joins it with the sweeps before it.
    pub fn push_cloud(&mut self, cloud: &PointCloud2) -> Result<Frame, FrameError> {
        self.assemble(cloud, cloud.header.stamp, Vec::new())
    }

    /// [`push_cloud`](Self::push_cloud) for a live cloud that came at `received`, by the clock that
    /// stamps the transforms: that is taken for the stamp of a cloud that bears none.
    pub fn push_received(
        &mut self,
        cloud: &PointCloud2,
        received: Stamp,
    ) -> Result<Frame, FrameError> {
        let mut conditions = Vec::new();
        if cloud.header.stamp == NO_STAMP {
            let text = "the clouds bear the stamp 0, so the time when they come is taken: the vehicle's motion \
                        until then shifts them; have the driver stamp them";
            conditions.push(Condition::new(ConditionKind::NoStamp, text));
        }
        let stamp = stamp_or(cloud.header.stamp, received);
        self.assemble(cloud, stamp, conditions)
    }

    fn assemble(
        &mut self,
        cloud: &PointCloud2,
        stamp: Stamp,
        mut conditions: Vec<Condition>,
    ) -> Result<Frame, FrameError> {
        let frame_id = clean(&cloud.header.frame_id);
        let unfit = |source| FrameError::Cloud {
            stamp,
            frame_id: shown(frame_id),
            source,
        };
        if frame_id.len() > LONGEST_NAME {
            let bytes = frame_id.len();
            return Err(unfit(CloudError::FrameName { bytes }));
        }
        let (mut points, stats) = decode_with_stats(cloud, &self.options.fields).map_err(unfit)?;
        let (model_from_cloud, placement) =
            self.place(frame_id, stamp)
                .map_err(|source| FrameError::Tf {
                    stamp,
                    frame_id: shown(frame_id),
                    source: Box::new(source),
                })?;
        let model_frame = self.options.model_frame.clone();
        let model_frame = model_frame.unwrap_or_else(|| frame_id.to_owned());
        conditions.extend(self.invalid_transform.take());
        if placement == Placement::Assumed {
            let text = format!(
                "there is no tf, so the points of frame \"{}\" are taken as lying in the model's frame \
                 \"{model_frame}\" as they are (its origin is on the ground below the vehicle); give the \
                 sensor's pose if they do not",
                shown(frame_id)
            );
            conditions.push(Condition::new(ConditionKind::AssumedPlace, text));
        }
        points.transform(&model_from_cloud);
        let ego = self.ego(frame_id, stamp, &model_from_cloud);
        let fixed_from_model = match &ego {
            Ok((pose, fixed)) => {
                self.fixed_frame = Some(fixed.clone());
                Some(*pose)
            }
            Err(_) => None,
        };
        conditions.extend(self.several_sensors(frame_id, stamp));
        let wanted = self.options.sweeps;
        let sensor = self.sensor(frame_id, stamp);
        let sweeps = if stats.has_time_lag {
            time_lags(&points)
        } else {
            conditions.extend(sensor.plausibility.check(&points, &stats));
            let joined;
            (points, joined) = sensor.densifier.push(stamp, points, fixed_from_model);
            match &ego {
                Err(error) if wanted > 1 => conditions.push(Condition::new(
                    ConditionKind::NoEgoMotion,
                    format!(
                        "the vehicle's pose is not known, so single sweeps are used where the model wants \
                         {wanted}: {error}{}",
                        clock_hint(error)
                    ),
                )),
                _ => conditions.extend(self.options.sweep_conditions(&joined)),
            }
            joined.sweeps()
        };
        if stats.has_time_lag && sweeps < wanted {
            let text = format!("the cloud holds {sweeps} sweeps where the model wants {wanted}");
            conditions.push(Condition::new(ConditionKind::FewSweeps, text));
        }
        conditions.sort_by_key(|condition| condition.kind);
        Ok(Frame {
            stamp,
            frame_id: model_frame,
            points,
            model_from_cloud,
            placement,
            fixed_from_model,
            sweeps,
            stats,
            conditions,
        })
    }

    /// What belongs to the sensor, which is made known where it is new.
    fn sensor(&mut self, frame_id: &str, stamp: Stamp) -> &mut Sensor {
        if !self.sensors.contains_key(frame_id) {
            if self.sensors.len() >= MAX_SENSORS {
                let oldest = self.sensors.iter().min_by_key(|(_, sensor)| sensor.last);
                let oldest = oldest.map(|(name, _)| name.clone());
                oldest.map(|name| self.sensors.remove(&name));
            }
            let options = &self.options;
            let new = Sensor {
                densifier: Densifier::new(SweepSettings {
                    count: options.sweeps,
                    period: options.sweep_period,
                    max_age: options.max_sweep_age,
                }),
                plausibility: Plausibility::new(options.expect.clone()),
                last: stamp,
            };
            self.sensors.insert(frame_id.to_owned(), new);
        }
        let sensor = self.sensors.get_mut(frame_id).expect("inserted just above");
        sensor.last = stamp;
        sensor
    }

    /// Whether another sensor sent on this topic a moment ago.
    fn several_sensors(&self, frame_id: &str, stamp: Stamp) -> Option<Condition> {
        let is_there = |sensor: &Sensor| stamp.seconds_since(sensor.last).abs() < SENSOR_MEMORY;
        let others: Vec<String> = self
            .sensors
            .iter()
            .filter(|(name, sensor)| *name != frame_id && is_there(sensor))
            .map(|(name, _)| format!("\"{}\"", shown(name)))
            .collect();
        (!others.is_empty()).then(|| {
            let text = format!(
                "clouds of frames \"{}\" and {} come on one topic: each is joined with its own sweeps only, and \
                 gives boxes of its own; read one sensor's topic, or put the clouds together before",
                shown(frame_id),
                others.join(", ")
            );
            Condition::new(ConditionKind::SeveralSensors, text)
        })
    }
}

impl InputOptions {
    /// What is odd about how sweeps were joined.
    fn sweep_conditions(&self, joined: &Joined) -> Option<Condition> {
        // As it was written in the description, which is in single precision.
        let period = self.sweep_period as f32;
        let ages = || {
            let ages: Vec<String> = joined.ages.iter().map(|age| format!("{age:.3}")).collect();
            ages.join(", ")
        };
        if joined.is_short {
            let text = format!(
                "{} of {} sweeps: those before came too long ago, or without a pose; the model was trained on \
                 sweeps {period} s apart",
                joined.sweeps(),
                self.sweeps
            );
            Some(Condition::new(ConditionKind::FewSweeps, text))
        } else if joined.is_off_period {
            let text = format!(
                "the joined sweeps are {} s old, where the model was trained on sweeps {period} s apart: was one \
                 lost, or does the sensor turn at another rate?",
                ages()
            );
            Some(Condition::new(ConditionKind::SweepAge, text))
        } else {
            None
        }
    }
}

/// What may be the matter where a stamp is far from all that tf knows.
fn clock_hint(error: &TfError) -> String {
    /// Seconds; no transform is as late.
    const FAR: f64 = 5.0;
    let TfError::Extrapolation {
        first, last, stamp, ..
    } = error
    else {
        return String::new();
    };
    let (ahead, behind) = (stamp.seconds_since(*last), first.seconds_since(*stamp));
    let (off, way) = match ahead > behind {
        true => (ahead, "ahead of"),
        false => (behind, "behind"),
    };
    if off < FAR {
        return String::new();
    }
    format!(
        "; the clouds' clock seems to be {off:.0} s {way} that of tf (TAI is 37 s ahead of UTC, a sensor without a \
         clock source counts from when it was switched on)"
    )
}

/// The stamp of a header that was never filled in.
const NO_STAMP: Stamp = Stamp(0);

fn stamp_or(stamp: Stamp, other: Stamp) -> Stamp {
    if stamp == NO_STAMP { other } else { stamp }
}

/// tf1 wrote names with a leading slash.
fn clean(frame_id: &str) -> &str {
    frame_id.strip_prefix('/').unwrap_or(frame_id)
}

/// Different time lags of the points, which are those of sweeps.
fn time_lags(points: &Points) -> usize {
    /// More than any model takes: such lags are those of single points.
    const MOST: usize = 256;
    let mut lags = HashSet::new();
    for point in points.iter() {
        // As whole milliseconds: a sweep's points may differ by what a float rounds.
        if lags.insert((point.time_lag * 1e3).round() as i32) && lags.len() == MOST {
            break;
        }
    }
    lags.len().max(1)
}

/// A message of a bag that was read and not yet used.
enum Pending {
    Cloud(i64, PointCloud2),
    Tf(TfMessage, bool),
}

/// The frames of a bag, in the order of recording.
///
/// Clouds before the first transform that could place them are skipped, since recordings often begin
/// that way; [`skipped`](Frames::skipped) counts them. Everything else that keeps a cloud from
/// becoming a frame is an error item, and iteration goes on behind it.
pub struct Frames {
    path: PathBuf,
    topic: Topic,
    messages: Messages,
    static_topics: BTreeSet<String>,
    has_tf: bool,
    assembler: FrameAssembler,
    pending: Option<Pending>,
    waiting: VecDeque<(i64, PointCloud2)>,
    stamps: Stamps,
    /// Log time up to which the bag was read.
    reached: i64,
    ended: bool,
    placed_any: bool,
    skipped: usize,
    last_skip: Option<FrameError>,
}

impl Frames {
    /// Opens a bag (see [`Reader::open`]) and chooses the topic.
    pub fn open(bag: &Path, options: &InputOptions) -> Result<Self, FrameError> {
        Self::from_reader(&Reader::open(bag)?, options)
    }

    pub fn from_reader(reader: &Reader, options: &InputOptions) -> Result<Self, FrameError> {
        let topic = choose_topic(reader, options.topic.as_deref())?;
        let mut tf: Vec<&str> = reader
            .topics_of_type(TfMessage::TYPE)
            .map(|topic| topic.name.as_str())
            .collect();
        if tf.iter().any(|name| matches!(*name, "/tf" | "/tf_static")) {
            tf.retain(|name| matches!(*name, "/tf" | "/tf_static"));
        }
        let expects_tf = reader
            .topics()
            .iter()
            .any(|topic| tf.contains(&topic.name.as_str()) && topic.count != Some(0));
        let (statics, moving): (Vec<&str>, Vec<&str>) =
            tf.into_iter().partition(|name| name.ends_with("tf_static"));
        let mut assembler = FrameAssembler::new(options.clone());
        if expects_tf {
            assembler.expect_tf();
        }
        // Static transforms hold from the beginning, wherever in the bag they were recorded; where
        // one was recorded again with other values, the first holds until the second comes up
        // in its turn. Damage comes up again, and is told, when the clouds are read.
        for message in reader.messages(&statics).flatten() {
            let Ok(mut tf) = TfMessage::decode(&message.data) else {
                continue;
            };
            tf.transforms
                .retain(|new| !assembler.tf.places(&new.child_frame_id));
            assembler.push_tf(&tf, true);
        }
        let mut wanted = vec![topic.name.as_str()];
        wanted.extend(&statics);
        wanted.extend(&moving);
        Ok(Frames {
            path: reader.path().to_owned(),
            messages: reader.messages(&wanted),
            static_topics: statics.iter().map(|name| (*name).to_owned()).collect(),
            has_tf: !moving.is_empty(),
            stamps: Stamps::of(reader, &topic.name),
            topic,
            assembler,
            pending: None,
            waiting: VecDeque::new(),
            reached: i64::MIN,
            ended: false,
            placed_any: false,
            skipped: 0,
            last_skip: None,
        })
    }

    /// The bag.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The point cloud topic that is read.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Clouds on the topic, where the bag says so: as many frames, if nothing goes wrong.
    pub fn len_hint(&self) -> Option<usize> {
        self.topic.count.and_then(|count| count.try_into().ok())
    }

    /// Clouds at the start that were skipped because tf did not reach back to them.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether the first waiting cloud is to be used now.
    fn front_is_due(&self) -> bool {
        let Some((log_time, cloud)) = self.waiting.front() else {
            return false;
        };
        let stamp = self.stamps.to_look_up(&cloud.header, *log_time);
        let wait = (self.assembler.options.tf_wait * 1e9) as i64;
        !self.has_tf
            || self.ended
            || self.waiting.len() > MAX_WAITING
            || self.reached.saturating_sub(*log_time) > wait
            || self.pending_forgets(stamp)
            || !self
                .assembler
                .should_wait(clean(&cloud.header.frame_id), stamp)
    }

    /// Whether the transforms that come next make tf forget those of `stamp`.
    fn pending_forgets(&self, stamp: Stamp) -> bool {
        match &self.pending {
            Some(Pending::Tf(message, false)) => message
                .transforms
                .iter()
                .any(|transform| self.assembler.tf.would_forget(transform, stamp)),
            _ => false,
        }
    }

    fn assemble(&mut self) -> Option<Result<Frame, FrameError>> {
        let (log_time, cloud) = self.waiting.pop_front()?;
        let stamp = self.stamps.to_look_up(&cloud.header, log_time);
        let conditions = self.stamps.condition.iter().cloned().collect();
        match self.assembler.assemble(&cloud, stamp, conditions) {
            Ok(mut frame) => {
                self.placed_any = true;
                self.stamps.make_unique(&mut frame, log_time);
                Some(Ok(frame))
            }
            Err(error @ FrameError::Tf { .. }) if !self.placed_any => {
                self.skipped += 1;
                self.last_skip = Some(error);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Reads one message on, which is then pending.
    fn advance(&mut self) -> Result<(), FrameError> {
        let Some(message) = self.messages.next() else {
            self.ended = true;
            return Ok(());
        };
        let message = message?;
        self.reached = self.reached.max(message.log_time);
        let pending = if *message.topic == *self.topic.name {
            PointCloud2::decode(&message.data).map(|cloud| Pending::Cloud(message.log_time, cloud))
        } else {
            let is_static = self.static_topics.contains(&*message.topic);
            TfMessage::decode(&message.data).map(|tf| Pending::Tf(tf, is_static))
        };
        self.pending = Some(pending.map_err(|source| undecodable(message, source))?);
        Ok(())
    }
}

/// Which time stands for a cloud's stamp, and which stamps were given out.
struct Stamps {
    /// The log time, for all clouds of the bag.
    by_log_time: bool,
    /// Why.
    condition: Option<Condition>,
    given: HashSet<Stamp>,
}

impl Stamps {
    /// Looks at the first clouds of the topic. What cannot be read there is told in its turn.
    fn of(reader: &Reader, topic: &str) -> Self {
        let (mut clouds, mut unset, mut different) = (0usize, 0usize, HashSet::new());
        let messages = reader.messages(&[topic]).take(STAMPS_LOOKED_AT).flatten();
        for cloud in messages.filter_map(|message| PointCloud2::decode(&message.data).ok()) {
            clouds += 1;
            unset += usize::from(cloud.header.stamp == NO_STAMP);
            different.insert(cloud.header.stamp);
        }
        // A clock that starts at 0, as a simulator's, may well begin with one such stamp.
        let condition = if unset > 1 {
            let text = format!(
                "{unset} of the first {clouds} clouds of {topic} bear the stamp 0, so the log time stands in for \
                 the stamps: they are late by what the recording took; have the driver stamp its clouds"
            );
            Some(Condition::new(ConditionKind::NoStamp, text))
        } else if different.len() < clouds {
            let text = format!(
                "the stamps of {topic} repeat (the first {clouds} clouds bear {} different ones), so the log \
                 time stands in for them; are several sensors, or parts of a turn, recorded on one topic?",
                different.len()
            );
            Some(Condition::new(ConditionKind::RepeatedStamp, text))
        } else {
            None
        };
        Stamps {
            by_log_time: condition.is_some(),
            condition,
            given: HashSet::new(),
        }
    }

    /// The time to look tf up at.
    fn to_look_up(&self, header: &Header, log_time: i64) -> Stamp {
        match self.by_log_time {
            true => Stamp(log_time),
            false => header.stamp,
        }
    }

    /// Gives a frame whose stamp was there before another one.
    fn make_unique(&mut self, frame: &mut Frame, log_time: i64) {
        if self.given.insert(frame.stamp) {
            return;
        }
        if !self.by_log_time {
            let text = format!(
                "the stamp {} was there before, so the log time stands in for it; was the recording made of \
                 one that was played again and again?",
                frame.stamp
            );
            let condition = Condition::new(ConditionKind::RepeatedStamp, text);
            frame.conditions.push(condition);
            frame.conditions.sort_by_key(|condition| condition.kind);
        }
        frame.stamp = Stamp(log_time);
        while !self.given.insert(frame.stamp) {
            frame.stamp.0 = frame.stamp.0.wrapping_add(1);
        }
    }
}

impl Iterator for Frames {
    type Item = Result<Frame, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.front_is_due() {
                match self.assemble() {
                    Some(item) => return Some(item),
                    None => continue,
                }
            }
            if self.ended && self.pending.is_none() {
                // If nothing at all could be placed, that is not a matter of the first moments.
                return match self.placed_any {
                    true => None,
                    false => self.last_skip.take().map(Err),
                };
            }
            match self.pending.take() {
                Some(Pending::Cloud(log_time, cloud)) => self.waiting.push_back((log_time, cloud)),
                Some(Pending::Tf(tf, is_static)) => self.assembler.push_tf(&tf, is_static),
                None => {
                    if let Err(error) = self.advance() {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

fn undecodable(message: RawMessage, source: CdrError) -> FrameError {
    FrameError::Message {
        topic: message.topic.to_string(),
        log_time: Stamp(message.log_time),
        source,
    }
}

fn choose_topic(reader: &Reader, asked: Option<&str>) -> Result<Topic, FrameError> {
    let path = || reader.path().to_owned();
    let clouds: Vec<&Topic> = reader.topics_of_type(PointCloud2::TYPE).collect();
    let names = |topics: &[&Topic]| shown_all(topics.iter().map(|topic| &topic.name));
    if let Some(asked) = asked {
        return match reader.topics().iter().find(|topic| topic.name == asked) {
            Some(topic) if topic.type_name == PointCloud2::TYPE => Ok(topic.clone()),
            Some(topic) => Err(FrameError::WrongType {
                path: path(),
                topic: shown(asked),
                type_name: shown(&topic.type_name),
            }),
            None => Err(FrameError::NoSuchTopic {
                path: path(),
                topic: shown(asked),
                found: names(&clouds),
            }),
        };
    }
    match clouds.as_slice() {
        [topic] => Ok((*topic).clone()),
        [] => Err(FrameError::NoPointCloud {
            path: path(),
            found: shown_all(
                reader
                    .topics()
                    .iter()
                    .map(|topic| format!("{} ({})", topic.name, topic.type_name)),
            ),
        }),
        several => Err(FrameError::SeveralTopics {
            path: path(),
            found: names(several),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::Writer;
    use crate::bag::msg::{Header, PointField, Transform, TransformStamped};
    use crate::cloud::{Point, encode};
    use approx::assert_relative_eq;

    const TENTH: i64 = 100_000_000;

    /// A post at (20, 5, 1) in the fixed frame, seen by a sensor 2 m above `base_link`, which
    /// drives 1 m a sweep.
    fn cloud(i: i64) -> PointCloud2 {
        let seen = Point {
            x: 20.0 - i as f32,
            y: 5.0,
            z: 1.0 - 2.0,
            intensity: 3.0,
            ..Default::default()
        };
        let header = Header {
            stamp: Stamp(i * TENTH),
            frame_id: "lidar".into(),
        };
        encode(&Points(vec![seen]), header, false)
    }

    fn tf(parent: &str, child: &str, i: i64, translation: [f64; 3]) -> TfMessage {
        TfMessage {
            transforms: vec![TransformStamped {
                header: Header {
                    stamp: Stamp(i * TENTH),
                    frame_id: parent.into(),
                },
                child_frame_id: child.into(),
                transform: Transform {
                    translation,
                    ..Default::default()
                },
            }],
        }
    }

    fn lidar() -> TfMessage {
        tf("base_link", "lidar", 0, [0.0, 0.0, 2.0])
    }

    fn ego(parent: &str, i: i64) -> TfMessage {
        tf(parent, "base_link", i, [i as f64, 0.0, 0.0])
    }

    fn options(sweeps: usize) -> InputOptions {
        InputOptions {
            model_frame: Some("base_link".into()),
            sweeps,
            ..Default::default()
        }
    }

    /// The frames of a bag, and the folder that must stay while they are read.
    fn frames(
        write: impl FnOnce(&mut Writer),
        options: &InputOptions,
    ) -> (tempfile::TempDir, Frames) {
        let folder = tempfile::tempdir().unwrap();
        let bag = folder.path().join("bag");
        let mut writer = Writer::create(&bag).unwrap();
        write(&mut writer);
        writer.finish().unwrap();
        let frames = Frames::open(&bag, options).unwrap();
        (folder, frames)
    }

    fn assert_post(frame: &Frame, i: i64) {
        for point in frame.points.iter() {
            assert_relative_eq!(point.x, 20.0 - i as f32, epsilon = 1e-5);
            assert_relative_eq!(point.y, 5.0, epsilon = 1e-5);
            assert_relative_eq!(point.z, 1.0, epsilon = 1e-5);
        }
    }

    #[test]
    fn sweeps_are_placed_by_tf_and_joined_in_either_fixed_frame() {
        for parent in ["odom", "map"] {
            let write = |writer: &mut Writer| {
                writer.write("/tf_static", 0, &lidar()).unwrap();
                for i in 0..5 {
                    writer.write("/tf", i * TENTH, &ego(parent, i)).unwrap();
                    writer.write("/points", i * TENTH, &cloud(i)).unwrap();
                }
            };
            let (_folder, frames) = frames(write, &options(3));
            assert_eq!(frames.len_hint(), Some(5));
            assert_eq!(frames.topic().name, "/points");
            for (i, frame) in (0..).zip(frames) {
                let frame = frame.unwrap();
                assert_eq!(frame.placement, Placement::Tf);
                assert_eq!(frame.frame_id, "base_link");
                assert_eq!(frame.stamp, Stamp(i * TENTH));
                assert_eq!(frame.sweeps, (i as usize + 1).min(3));
                assert_eq!(frame.points.len(), frame.sweeps);
                let pose = frame.fixed_from_model.unwrap();
                assert_relative_eq!(pose.translation.x, i as f64, epsilon = 1e-9);
                assert_post(&frame, i);
            }
        }
    }

    #[test]
    fn transforms_recorded_behind_their_cloud_are_waited_for() {
        let write = |writer: &mut Writer| {
            for i in 0..8 {
                writer.write("/points", i * TENTH, &cloud(i)).unwrap();
                if i >= 3 {
                    // 0.3 s late, and between the stamps of the clouds.
                    writer.write("/tf", i * TENTH, &ego("odom", i - 3)).unwrap();
                }
            }
            for i in 5..8 {
                writer.write("/tf", 9 * TENTH, &ego("odom", i)).unwrap();
            }
            writer.write("/tf_static", 9 * TENTH, &lidar()).unwrap();
        };
        let (_folder, frames) = frames(write, &options(2));
        let frames: Vec<Frame> = frames.map(Result::unwrap).collect();
        assert_eq!(frames.len(), 8);
        for (i, frame) in (0..).zip(&frames) {
            assert_eq!(frame.sweeps, if i == 0 { 1 } else { 2 });
            assert_post(frame, i);
        }
    }

    fn kinds(frame: &Frame) -> Vec<ConditionKind> {
        frame.conditions.iter().map(|c| c.kind).collect()
    }

    #[test]
    fn a_pause_of_the_recording_costs_no_cloud_before_it() {
        // The sensor's place comes at each cloud's own stamp; there is no odometry to wait for.
        for pause in [2, 15, 100_000] {
            let starts = [0, pause * 10, 2 * pause * 10];
            let stamps = || {
                starts
                    .iter()
                    .flat_map(|start| (0..3).map(move |i| start + i))
            };
            let write = |writer: &mut Writer| {
                for i in stamps() {
                    let lidar = tf("base_link", "lidar", i, [0.0, 0.0, 2.0]);
                    writer.write("/tf", i * TENTH, &lidar).unwrap();
                    let mut cloud = cloud(0);
                    cloud.header.stamp = Stamp(i * TENTH);
                    writer.write("/points", i * TENTH + 1, &cloud).unwrap();
                }
            };
            let (_folder, frames) = frames(write, &options(2));
            let frames: Vec<Frame> = frames.map(Result::unwrap).collect();
            let expected: Vec<Stamp> = stamps().map(|i| Stamp(i * TENTH)).collect();
            assert_eq!(frames.iter().map(|f| f.stamp).collect::<Vec<_>>(), expected);
            assert!(frames.iter().all(|f| f.placement == Placement::Tf));
        }
    }

    #[test]
    fn a_clock_that_jumps_costs_no_cloud_that_waits() {
        // The transforms' clock is set forward, and back again, while a cloud waits for odometry.
        let write = |writer: &mut Writer| {
            writer
                .write("/tf", 0, &tf("base_link", "lidar", 0, [0.0, 0.0, 2.0]))
                .unwrap();
            writer.write("/points", 1, &cloud(0)).unwrap();
            for (n, stamp) in [1, 100_000, 2].into_iter().enumerate() {
                let lidar = tf("base_link", "lidar", stamp, [0.0, 0.0, 2.0]);
                writer.write("/tf", 2 + n as i64, &lidar).unwrap();
            }
        };
        let (_folder, frames) = frames(write, &options(2));
        let frames: Vec<Frame> = frames.map(Result::unwrap).collect();
        assert_eq!(frames.len(), 1);
        assert_post(&frames[0], 0);
    }

    #[test]
    fn stamps_that_are_of_no_use_give_way_to_the_log_time() {
        let same = |stamp: fn(i64) -> i64| {
            let write = move |writer: &mut Writer| {
                writer.write("/tf_static", 0, &lidar()).unwrap();
                for i in 1..7 {
                    writer.write("/tf", i * TENTH, &ego("odom", i)).unwrap();
                    let mut cloud = cloud(i);
                    cloud.header.stamp = Stamp(stamp(i) * TENTH);
                    writer.write("/points", i * TENTH, &cloud).unwrap();
                }
            };
            let (_folder, frames) = frames(write, &options(2));
            let frames: Vec<Frame> = frames.map(Result::unwrap).collect();
            let stamps: Vec<i64> = frames.iter().map(|f| f.stamp.0 / TENTH).collect();
            assert_eq!(stamps, [1, 2, 3, 4, 5, 6]);
            // Placed and joined by that time, too.
            for (i, frame) in (1..).zip(&frames) {
                assert_eq!(frame.sweeps, if i == 1 { 1 } else { 2 });
                assert_post(frame, i);
            }
            frames.iter().map(kinds).collect::<Vec<_>>()
        };
        assert_eq!(same(|i| i), [const { vec![] }; 6]);
        assert_eq!(same(|_| 0), vec![[ConditionKind::NoStamp]; 6]);
        assert_eq!(same(|i| i / 2 * 2), vec![[ConditionKind::RepeatedStamp]; 6]);
        assert_eq!(same(|_| 77), vec![[ConditionKind::RepeatedStamp]; 6]);
    }

    #[test]
    fn a_recording_of_one_that_was_played_twice_keeps_all_frames() {
        let write = |writer: &mut Writer| {
            for lap in 0..2 {
                for i in 1..31 {
                    let log_time = (lap * 100 + i) * TENTH;
                    writer.write("/tf", log_time, &lidar_at(i)).unwrap();
                    writer.write("/points", log_time, &cloud(i)).unwrap();
                }
            }
        };
        let (_folder, frames) = frames(write, &options(1));
        let frames: Vec<Frame> = frames.map(Result::unwrap).collect();
        assert_eq!(frames.len(), 60);
        let different: HashSet<Stamp> = frames.iter().map(|f| f.stamp).collect();
        assert_eq!(different.len(), 60);
        assert!(frames[..30].iter().all(|f| kinds(f).is_empty()));
        assert!(
            frames[30..]
                .iter()
                .all(|f| kinds(f) == [ConditionKind::RepeatedStamp])
        );
        assert_eq!(frames[30].stamp, Stamp(101 * TENTH));
    }

    fn lidar_at(i: i64) -> TfMessage {
        tf("base_link", "lidar", i, [0.0, 0.0, 2.0])
    }

    #[test]
    fn clouds_without_a_stamp_are_placed_when_they_come() {
        let mut assembler = FrameAssembler::new(options(2));
        assembler.push_tf(&lidar(), true);
        for i in 1..4 {
            assembler.push_tf(&ego("odom", i), false);
            let mut cloud = cloud(i);
            cloud.header.stamp = Stamp(0);
            let received = Stamp(i * TENTH);
            assert!(!assembler.awaits_tf(&cloud.header, received));
            assert!(assembler.awaits_tf(&cloud.header, Stamp((i + 1) * TENTH)));
            let frame = assembler.push_received(&cloud, received).unwrap();
            assert_eq!(frame.stamp, received);
            assert_eq!(kinds(&frame), [ConditionKind::NoStamp]);
            assert_eq!(frame.sweeps, if i == 1 { 1 } else { 2 });
            assert_post(&frame, i);
        }
    }

    #[test]
    fn sweeps_of_several_sensors_on_one_topic_are_kept_apart() {
        let mut assembler = FrameAssembler::new(options(2));
        assembler.push_tf(&lidar(), true);
        assembler.push_tf(&tf("base_link", "rear", 0, [0.0, 0.0, 2.0]), true);
        for i in 0..4 {
            assembler.push_tf(&ego("odom", i), false);
            for sensor in ["lidar", "rear"] {
                let mut cloud = cloud(i);
                cloud.header.frame_id = sensor.into();
                let frame = assembler.push_cloud(&cloud).unwrap();
                assert_eq!(frame.sweeps, if i == 0 { 1 } else { 2 });
                assert_eq!(frame.points.len(), frame.sweeps);
                let alone = i == 0 && sensor == "lidar";
                let expected: &[_] = if alone {
                    &[]
                } else {
                    &[ConditionKind::SeveralSensors]
                };
                assert_eq!(kinds(&frame), expected);
            }
        }
        // A name that changes once is no second sensor for long.
        assembler.push_tf(&ego("odom", 30), false);
        let frame = assembler.push_cloud(&cloud(30)).unwrap();
        assert!(!kinds(&frame).contains(&ConditionKind::SeveralSensors));
    }

    #[test]
    fn as_many_frame_names_as_one_likes_take_no_more_memory() {
        let mut assembler = FrameAssembler::new(InputOptions::default());
        for i in 0..1000 {
            let mut cloud = cloud(i);
            cloud.header.frame_id = format!("{}{i}", "x".repeat(200));
            let frame = assembler.push_cloud(&cloud).unwrap();
            let longest = frame.conditions.iter().map(|c| c.text.len()).max();
            assert!(longest.is_none_or(|length| length < 4000), "{longest:?}");
            cloud.header.frame_id = "x".repeat(1_000_000);
            let text = assembler.push_cloud(&cloud).unwrap_err().to_string();
            assert!(
                text.contains("has 1000000 bytes") && text.len() < 400,
                "{text}"
            );
        }
        assert!(assembler.sensors.len() <= MAX_SENSORS);
    }

    #[test]
    fn what_keeps_sweeps_from_being_joined_is_said_as_long_as_it_lasts() {
        let mut assembler = FrameAssembler::new(options(2));
        assembler.push_tf(&lidar(), true);
        for i in 0..9 {
            // Odometry fails for a while.
            if !(3..6).contains(&i) {
                assembler.push_tf(&ego("odom", i), false);
            }
            let frame = assembler.push_cloud(&cloud(i)).unwrap();
            let expected: &[_] = match i {
                3..6 => &[ConditionKind::NoEgoMotion],
                6 => &[ConditionKind::FewSweeps],
                _ => &[],
            };
            assert_eq!(kinds(&frame), expected, "{i}");
        }
    }

    #[test]
    fn clocks_that_do_not_agree_are_named() {
        let mut assembler = FrameAssembler::new(options(2));
        assembler.push_tf(&lidar(), true);
        for (stamp, hint) in [(370, "37 s ahead of"), (-3000, "300 s behind")] {
            assembler.push_tf(&ego("odom", 0), false);
            assembler.push_tf(&ego("odom", 1), false);
            let mut cloud = cloud(0);
            cloud.header.stamp = Stamp(stamp * TENTH);
            let frame = assembler.push_cloud(&cloud).unwrap();
            assert_eq!(kinds(&frame), [ConditionKind::NoEgoMotion]);
            let text = &frame.conditions[0].text;
            assert!(text.contains(hint), "{text}");
        }
    }

    #[test]
    fn a_joined_cloud_with_fewer_sweeps_than_the_model_wants_says_so() {
        let points = |lags: &[f32]| {
            let points = lags.iter().flat_map(|&time_lag| {
                [0.0, 1.0, 2.0].map(|x| Point {
                    x,
                    time_lag,
                    ..Default::default()
                })
            });
            let header = Header {
                stamp: Stamp(TENTH),
                frame_id: "base_link".into(),
            };
            encode(&Points(points.collect()), header, true)
        };
        let mut assembler = FrameAssembler::new(options(3));
        let full = assembler.push_cloud(&points(&[0.0, 0.1, 0.2])).unwrap();
        assert_eq!((full.sweeps, kinds(&full)), (3, vec![]));
        let few = assembler.push_cloud(&points(&[0.0, 0.1])).unwrap();
        assert_eq!(
            (few.sweeps, kinds(&few)),
            (2, vec![ConditionKind::FewSweeps])
        );
    }

    #[test]
    fn a_transform_that_is_none_is_told_with_the_next_frame() {
        let mut assembler = FrameAssembler::new(options(1));
        assembler.push_tf(&lidar(), true);
        let mut bad = lidar();
        bad.transforms[0].transform.rotation = [0.0; 4];
        assembler.push_tf(&bad, true);
        let frame = assembler.push_cloud(&cloud(0)).unwrap();
        assert_eq!(kinds(&frame), [ConditionKind::InvalidTransform]);
        let frame = assembler.push_cloud(&cloud(1)).unwrap();
        assert_eq!(kinds(&frame), []);
    }

    #[test]
    fn a_cloud_that_is_taken_as_it_is_says_so() {
        let mut assembler = FrameAssembler::new(options(1));
        let frame = assembler.push_cloud(&cloud(0)).unwrap();
        assert_eq!(kinds(&frame), [ConditionKind::AssumedPlace]);
        assert!(frame.conditions[0].text.contains("\"lidar\""));
    }

    #[test]
    fn clouds_before_the_first_transform_are_skipped_and_counted() {
        let write = |writer: &mut Writer| {
            writer.write("/tf_static", 0, &lidar()).unwrap();
            let base = |i| tf("vehicle", "base_link", i, [0.0; 3]);
            for i in 0..40 {
                writer.write("/points", i * TENTH, &cloud(i)).unwrap();
                if i >= 20 {
                    writer.write("/tf", i * TENTH, &base(i)).unwrap();
                }
            }
        };
        let options = InputOptions {
            model_frame: Some("vehicle".into()),
            ..Default::default()
        };
        let (_folder, mut frames) = frames(write, &options);
        let first = frames.next().unwrap().unwrap();
        assert_eq!(first.stamp, Stamp(20 * TENTH));
        assert_eq!(frames.skipped(), 20);
        assert_eq!(frames.filter(|frame| frame.is_ok()).count(), 19);
    }

    #[test]
    fn a_static_transform_holds_from_the_beginning_until_it_is_replaced() {
        let write = |writer: &mut Writer| {
            for i in 0..6 {
                writer.write("/points", i * TENTH, &cloud(i)).unwrap();
                if i == 1 || i == 3 {
                    let moved = tf("base_link", "lidar", i, [0.0, 0.0, i as f64]);
                    writer.write("/tf_static", i * TENTH, &moved).unwrap();
                }
            }
        };
        let (_folder, frames) = frames(write, &options(1));
        let heights: Vec<f64> = frames
            .map(|frame| frame.unwrap().model_from_cloud.translation.z)
            .collect();
        assert_eq!(heights, [1.0, 1.0, 1.0, 1.0, 3.0, 3.0]);
    }

    #[test]
    fn a_bag_whose_tf_never_places_a_cloud_is_an_error_that_says_why() {
        let write = |writer: &mut Writer| {
            writer
                .write("/tf_static", 0, &tf("base_link", "camera", 0, [0.0; 3]))
                .unwrap();
            for i in 0..3 {
                writer.write("/points", i * TENTH, &cloud(i)).unwrap();
            }
        };
        let (_folder, frames) = frames(write, &options(1));
        let items: Vec<_> = frames.collect();
        assert_eq!(items.len(), 1);
        let text = items[0].as_ref().unwrap_err().to_string();
        assert!(
            text.contains("\"lidar\"") && text.contains("camera"),
            "{text}"
        );
    }

    #[test]
    fn without_any_tf_points_stay_and_sweeps_stand_alone() {
        let write = |writer: &mut Writer| {
            for i in 0..3 {
                writer.write("/points", i * TENTH, &cloud(i)).unwrap();
            }
        };
        for (sensor_pose, placement, z) in [
            (None, Placement::Assumed, -1.0),
            (
                Some([0.0, 0.0, 2.0, 0.0, 0.0, 0.0]),
                Placement::SensorPose,
                1.0,
            ),
        ] {
            let options = InputOptions {
                sensor_pose,
                ..options(3)
            };
            let (_folder, frames) = frames(write, &options);
            for frame in frames {
                let frame = frame.unwrap();
                assert_eq!(frame.placement, placement);
                assert_eq!((frame.sweeps, frame.points.len()), (1, 1));
                assert_eq!(frame.points.0[0].z, z);
            }
        }
    }

    #[test]
    fn a_joined_cloud_passes_through() {
        let lags = [0.0, 0.1, 0.2].map(|time_lag| Point {
            time_lag,
            ..Default::default()
        });
        let header = Header {
            stamp: Stamp(TENTH),
            frame_id: "base_link".into(),
        };
        let joined = encode(&Points(lags.to_vec()), header, true);
        let mut assembler = FrameAssembler::new(options(3));
        assembler.push_tf(&ego("odom", 1), false);
        for _ in 0..2 {
            let frame = assembler.push_cloud(&joined).unwrap();
            assert_eq!(frame.points.0, lags);
            assert_eq!(frame.placement, Placement::SameFrame);
            assert_eq!(frame.sweeps, 3);
        }
    }

    #[test]
    fn an_assembler_that_expects_tf_assumes_nothing() {
        let mut assembler = FrameAssembler::new(options(1));
        assert!(assembler.push_cloud(&cloud(0)).is_ok());
        assembler.expect_tf();
        assert!(matches!(
            assembler.push_cloud(&cloud(1)),
            Err(FrameError::Tf { .. })
        ));
        assembler.push_tf(&lidar(), true);
        let frame = assembler.push_cloud(&cloud(2)).unwrap();
        assert_eq!(frame.placement, Placement::Tf);
    }

    #[test]
    fn a_bad_cloud_is_an_error_between_good_frames() {
        let mut bad = cloud(1);
        bad.fields = vec![PointField::new("range", 0, PointField::FLOAT32)];
        let write = |writer: &mut Writer| {
            writer.write("/points", 0, &cloud(0)).unwrap();
            writer.write("/points", TENTH, &bad).unwrap();
            let (kind, schema) = (PointCloud2::TYPE, PointCloud2::SCHEMA);
            writer
                .write_raw("/points", kind, schema, 2 * TENTH, &[0, 1, 0, 0, 7])
                .unwrap();
            writer.write("/points", 3 * TENTH, &cloud(3)).unwrap();
        };
        let (_folder, frames) = frames(write, &InputOptions::default());
        let items: Vec<_> = frames.collect();
        let good: Vec<bool> = items.iter().map(Result::is_ok).collect();
        assert_eq!(good, [true, false, false, true]);
        let text = items[1].as_ref().unwrap_err().to_string();
        assert!(
            text.contains("\"range\"") && text.contains("0.100000000"),
            "{text}"
        );
    }

    #[test]
    fn topics_are_chosen_by_type_and_errors_list_what_there_is() {
        let open = |topics: &[&str], asked: Option<&str>| {
            let folder = tempfile::tempdir().unwrap();
            let bag = folder.path().join("bag");
            let mut writer = Writer::create(&bag).unwrap();
            writer.write("/tf", 0, &lidar()).unwrap();
            for topic in topics {
                writer.write(topic, 0, &cloud(0)).unwrap();
            }
            writer.finish().unwrap();
            let options = InputOptions {
                topic: asked.map(str::to_owned),
                ..Default::default()
            };
            Frames::open(&bag, &options)
                .map(|frames| frames.topic().name.clone())
                .map_err(|error| error.to_string())
        };
        assert_eq!(open(&["/a"], None).unwrap(), "/a");
        assert_eq!(open(&["/a", "/b"], Some("/b")).unwrap(), "/b");
        assert!(open(&["/a", "/b"], None).unwrap_err().contains("/a, /b"));
        assert!(
            open(&[], None)
                .unwrap_err()
                .contains("/tf (tf2_msgs/msg/TFMessage)")
        );
        assert!(
            open(&["/a"], Some("/tf"))
                .unwrap_err()
                .contains("TFMessage")
        );
        assert!(open(&["/a"], Some("/c")).unwrap_err().contains("/a"));
    }
}
