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
//! 4. Without any tf at all the points are taken as being in the model's frame already, with one
//!    warning and [`Placement::Assumed`] in the frame.
//!
//! # Sweeps
//!
//! Joining sweeps needs the vehicle's motion: the pose of the model's frame in the fixed frame.
//! Where tf does not give it, a frame holds the newest sweep only (one warning). A cloud with a
//! field `time_lag` was joined before and passes through.
//!
//! In a bag a transform may be recorded a little after the cloud it belongs to. [`Frames`] holds
//! clouds back for up to [`InputOptions::tf_wait`] seconds of the recording until tf is there.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bag::msg::{Header, Message, PointCloud2, TfMessage};
use crate::bag::{BagError, CdrError, Messages, RawMessage, Reader, Stamp, Topic};
use crate::geometry::{Pose, pose_from_xyz_rpy};

use super::condition::Condition;
use super::sweeps::Densifier;
use super::tf::{TfBuffer, TfError};
use super::{CloudError, DecodeOptions, DecodeStats, Points, decode_with_stats};

/// Frames that do not move, best first: `odom` is continuous, `map` may jump (REP-105).
const FIXED_FRAMES: [&str; 2] = ["odom", "map"];
/// Clouds that may wait for tf at once; enough for a second of any sensor.
const MAX_WAITING: usize = 32;

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
    /// Sweeps older than this are not joined, seconds.
    pub max_sweep_age: f64,
    /// How far beyond the known transforms to answer with the nearest one, seconds.
    pub tf_tolerance: f64,
    /// How long a cloud of a bag waits for tf, seconds of the recording.
    pub tf_wait: f64,
    /// Fields to read.
    pub fields: DecodeOptions,
}

impl Default for InputOptions {
    fn default() -> Self {
        InputOptions {
            topic: None,
            model_frame: None,
            sensor_pose: None,
            fixed_frame: None,
            sweeps: 1,
            max_sweep_age: 1.0,
            tf_tolerance: 0.02,
            tf_wait: 1.0,
            fields: DecodeOptions::default(),
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
    /// Stamp of the newest sweep.
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
}

impl Loss {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Loss::BadCloud => "bad_cloud",
            Loss::NotPlaced => "not_placed",
            Loss::DamagedBag => "damaged_bag",
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

/// Makes frames of clouds, with what tf has said so far.
pub struct FrameAssembler {
    options: InputOptions,
    tf: TfBuffer,
    densifier: Densifier,
    /// The fixed frame in use, once one was found.
    fixed_frame: Option<String>,
    /// Whether tf is known to come, see [`expect_tf`](Self::expect_tf).
    expects_tf: bool,
    /// What was warned of already.
    warned: BTreeSet<String>,
}

impl FrameAssembler {
    pub fn new(options: InputOptions) -> Self {
        const CACHE: f64 = 10.0;
        FrameAssembler {
            tf: TfBuffer::new(CACHE, options.tf_tolerance),
            densifier: Densifier::new(options.sweeps, options.max_sweep_age),
            fixed_frame: options.fixed_frame.clone(),
            expects_tf: false,
            warned: BTreeSet::new(),
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

    fn warn_once(&mut self, key: &str, text: impl FnOnce() -> String) {
        if self.warned.insert(key.to_owned()) {
            tracing::warn!("{}", text());
        }
    }

    /// Takes in transforms. Those that are no valid transform are left out, with one warning for
    /// each frame.
    pub fn push_tf(&mut self, message: &TfMessage, is_static: bool) {
        for transform in &message.transforms {
            if let Err(error) = self.tf.insert(transform, is_static) {
                self.warn_once(&format!("tf {}", transform.child_frame_id), || {
                    format!("transform left out: {error}")
                });
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
    pub fn awaits_tf(&self, header: &Header) -> bool {
        let frame_id = header
            .frame_id
            .strip_prefix('/')
            .unwrap_or(&header.frame_id);
        match self.place(frame_id, header.stamp) {
            Err(error) => error.may_resolve_later(),
            Ok(_) if self.options.sweeps < 2 => false,
            Ok((pose, _)) => match self.ego(frame_id, header.stamp, &pose) {
                Err(error @ TfError::Extrapolation { .. }) => error.may_resolve_later(),
                _ => false,
            },
        }
    }

    /// Decodes a cloud, moves it to the model's frame and joins it with the sweeps before it.
    pub fn push_cloud(&mut self, cloud: &PointCloud2) -> Result<Frame, FrameError> {
        let (stamp, frame_id) = (cloud.header.stamp, cloud.header.frame_id.as_str());
        let frame_id = frame_id.strip_prefix('/').unwrap_or(frame_id);
        let (mut points, stats) =
            decode_with_stats(cloud, &self.options.fields).map_err(|source| FrameError::Cloud {
                stamp,
                frame_id: frame_id.to_owned(),
                source,
            })?;
        if stats.intensity.is_none() && stats.total > 0 {
            self.warn_once("intensity", || {
                "the cloud has no intensity field; intensities are taken as 0".to_owned()
            });
        }
        let (model_from_cloud, placement) =
            self.place(frame_id, stamp)
                .map_err(|source| FrameError::Tf {
                    stamp,
                    frame_id: frame_id.to_owned(),
                    source: Box::new(source),
                })?;
        let model_frame = self.options.model_frame.clone();
        let model_frame = model_frame.unwrap_or_else(|| frame_id.to_owned());
        if placement == Placement::Assumed {
            self.warn_once("assumed", || {
                format!(
                    "there is no tf, so clouds of frame \"{frame_id}\" are taken as being in \
                     \"{model_frame}\" already; give the sensor's pose if they are not"
                )
            });
        }
        points.transform(&model_from_cloud);
        let fixed_from_model = match self.ego(frame_id, stamp, &model_from_cloud) {
            Ok((pose, fixed)) => {
                self.fixed_frame = Some(fixed);
                Some(pose)
            }
            Err(error) => {
                let sweeps = self.options.sweeps;
                if sweeps > 1 && !stats.has_time_lag {
                    self.warn_once("ego", || {
                        format!(
                            "the vehicle's pose at {stamp} is not known, so single sweeps are \
                             used where {sweeps} were asked for: {error}"
                        )
                    });
                }
                None
            }
        };
        let sweeps = if stats.has_time_lag {
            let lags: BTreeSet<u32> = points.iter().map(|p| p.time_lag.to_bits()).collect();
            lags.len().max(1)
        } else {
            points = self.densifier.push(stamp, points, fixed_from_model);
            self.densifier.joined()
        };
        Ok(Frame {
            stamp,
            frame_id: model_frame,
            points,
            model_from_cloud,
            placement,
            fixed_from_model,
            sweeps,
            stats,
            conditions: Vec::new(),
        })
    }
}

/// The frames of a bag, in the order of recording.
///
/// Clouds before the first transform that could place them are skipped with a warning, since
/// recordings often begin that way; [`skipped`](Frames::skipped) counts them. Everything else
/// that keeps a cloud from becoming a frame is an error item, and iteration goes on behind it.
pub struct Frames {
    path: PathBuf,
    topic: Topic,
    messages: Messages,
    static_topics: BTreeSet<String>,
    has_tf: bool,
    assembler: FrameAssembler,
    waiting: VecDeque<(i64, PointCloud2)>,
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
        let mut known = Vec::new();
        for message in reader.messages(&statics).flatten() {
            match TfMessage::decode(&message.data) {
                Ok(tf) => known.push(tf),
                Err(source) => return Err(undecodable(message, source)),
            }
        }
        for tf in known.iter().rev() {
            assembler.push_tf(tf, true);
        }
        let mut wanted = vec![topic.name.as_str()];
        wanted.extend(&statics);
        wanted.extend(&moving);
        Ok(Frames {
            path: reader.path().to_owned(),
            messages: reader.messages(&wanted),
            static_topics: statics.iter().map(|name| (*name).to_owned()).collect(),
            has_tf: !moving.is_empty(),
            topic,
            assembler,
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
        let wait = (self.assembler.options.tf_wait * 1e9) as i64;
        !self.has_tf
            || self.ended
            || self.waiting.len() > MAX_WAITING
            || self.reached.saturating_sub(*log_time) > wait
            || !self
                .assembler
                .should_wait(&cloud.header.frame_id, cloud.header.stamp)
    }

    fn assemble(&mut self) -> Option<Result<Frame, FrameError>> {
        let (_, cloud) = self.waiting.pop_front()?;
        match self.assembler.push_cloud(&cloud) {
            Ok(frame) => {
                self.placed_any = true;
                Some(Ok(frame))
            }
            Err(error @ FrameError::Tf { .. }) if !self.placed_any => {
                if self.skipped == 0 {
                    tracing::warn!("skipped until tf is there: {error}");
                }
                self.skipped += 1;
                self.last_skip = Some(error);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Reads on by one message.
    fn advance(&mut self) -> Result<(), FrameError> {
        let Some(message) = self.messages.next() else {
            self.ended = true;
            return Ok(());
        };
        let message = message?;
        self.reached = self.reached.max(message.log_time);
        if *message.topic == *self.topic.name {
            match PointCloud2::decode(&message.data) {
                Ok(cloud) => self.waiting.push_back((message.log_time, cloud)),
                Err(source) => return Err(undecodable(message, source)),
            }
        } else {
            match TfMessage::decode(&message.data) {
                Ok(tf) => {
                    let is_static = self.static_topics.contains(&*message.topic);
                    self.assembler.push_tf(&tf, is_static);
                }
                Err(source) => return Err(undecodable(message, source)),
            }
        }
        Ok(())
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
            if self.ended {
                // If nothing at all could be placed, that is not a matter of the first moments.
                return match self.placed_any {
                    true => None,
                    false => self.last_skip.take().map(Err),
                };
            }
            if let Err(error) = self.advance() {
                return Some(Err(error));
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
    let names = |topics: &[&Topic]| match topics {
        [] => "none".to_owned(),
        topics => {
            let names: Vec<&str> = topics.iter().map(|t| t.name.as_str()).collect();
            names.join(", ")
        }
    };
    if let Some(asked) = asked {
        return match reader.topics().iter().find(|topic| topic.name == asked) {
            Some(topic) if topic.type_name == PointCloud2::TYPE => Ok(topic.clone()),
            Some(topic) => Err(FrameError::WrongType {
                path: path(),
                topic: asked.to_owned(),
                type_name: topic.type_name.clone(),
            }),
            None => Err(FrameError::NoSuchTopic {
                path: path(),
                topic: asked.to_owned(),
                found: names(&clouds),
            }),
        };
    }
    match clouds.as_slice() {
        [topic] => Ok((*topic).clone()),
        [] => Err(FrameError::NoPointCloud {
            path: path(),
            found: match reader.topics() {
                [] => "none".to_owned(),
                topics => {
                    let topics: Vec<String> = topics
                        .iter()
                        .map(|t| format!("{} ({})", t.name, t.type_name))
                        .collect();
                    topics.join(", ")
                }
            },
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
