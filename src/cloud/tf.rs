//! The tree of coordinate frames over time, as `/tf` and `/tf_static` describe it.

use std::collections::{BTreeMap, VecDeque};

use nalgebra::{Quaternion, Translation3, UnitQuaternion};

use crate::bag::Stamp;
use crate::bag::msg::TransformStamped;
use crate::geometry::Pose;
use crate::text::{quoted_all, shown};

/// Frames that are kept, of the moving and of the static ones each. Vehicles have hundreds.
const MAX_FRAMES: usize = 2_000;
/// Samples that are kept of all moving frames together, before the youngest of each push the oldest out: for twenty
/// frames 10 s at 1 kHz.
const MAX_SAMPLES: usize = 200_000;
/// A moving frame that got no sample while so many were offered makes room for another where there are too many.
const STALE: u64 = 10 * MAX_FRAMES as u64;
/// Longest name of a frame, in bytes: what DDS has for names of topics.
pub(super) const LONGEST_NAME: usize = 255;

/// How far a rotation's norm may be from 1; within, it is normalised.
const NORM_TOLERANCE: f64 = 0.05;

/// Why a transform is not known.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TfError {
    #[error("frame \"{frame}\" is not in tf; known are {known}")]
    UnknownFrame { frame: String, known: String },
    #[error(
        "frames \"{target}\" and \"{source_frame}\" are not connected in tf: one ends at \
         \"{target_root}\", the other at \"{source_root}\""
    )]
    NotConnected {
        target: String,
        source_frame: String,
        target_root: String,
        source_root: String,
    },
    #[error(
        "\"{parent}\" to \"{child}\" is known from {first} to {last}, but {stamp} was asked for"
    )]
    Extrapolation {
        parent: String,
        child: String,
        first: Stamp,
        last: Stamp,
        stamp: Stamp,
    },
    #[error("tf runs in a circle at frame \"{0}\"")]
    Loop(String),
    #[error("transform \"{parent}\" to \"{child}\" is not valid: {reason}")]
    Invalid {
        parent: String,
        child: String,
        reason: &'static str,
    },
    #[error(
        "transform \"{parent}\" to \"{child}\" is of a new frame, and {frames} {kind} frames are known already, as many \
         as are kept; who publishes so many?"
    )]
    Full {
        parent: String,
        child: String,
        kind: &'static str,
        frames: usize,
    },
}

impl TfError {
    /// Whether transforms that have yet to arrive could mend it.
    pub fn may_resolve_later(&self) -> bool {
        match self {
            TfError::UnknownFrame { .. } | TfError::NotConnected { .. } => true,
            TfError::Extrapolation { last, stamp, .. } => stamp > last,
            TfError::Loop(_) | TfError::Invalid { .. } | TfError::Full { .. } => false,
        }
    }
}

/// How one frame lies in its parent.
#[derive(Debug, Clone)]
struct Track {
    parent: String,
    is_static: bool,
    /// `parent_from_child` by time; one entry for a static transform.
    samples: VecDeque<(Stamp, Pose)>,
    /// Which transform of all that were offered was its last.
    touched: u64,
}

/// Transforms of the last seconds. Between samples it interpolates (rotation on the great
/// circle); before the first and after the last it answers only within the tolerance, with the
/// nearest sample.
///
/// Memory is bounded, whatever is published: frames and samples beyond any vehicle's are not kept.
#[derive(Debug, Clone)]
pub struct TfBuffer {
    tracks: BTreeMap<String, Track>,
    static_frames: usize,
    /// Transforms that were offered so far.
    offered: u64,
    /// Before so many have been offered, no moving frame can make room for another.
    full_until: u64,
    cache: i64,
    tolerance: i64,
}

impl Default for TfBuffer {
    /// Keeps 10 s, as tf2 does, and tolerates 20 ms: what a vehicle at 15 m/s moves in that time
    /// is less than a pillar.
    fn default() -> Self {
        TfBuffer::new(10.0, 0.02)
    }
}

fn nanoseconds(seconds: f64) -> i64 {
    (seconds.max(0.0) * 1e9) as i64
}

/// tf1 wrote names with a leading slash.
fn clean(frame: &str) -> &str {
    frame.strip_prefix('/').unwrap_or(frame)
}

impl TfBuffer {
    /// `cache`: how much of the past to keep; `tolerance`: how far beyond the samples to answer.
    /// Both in seconds.
    pub fn new(cache: f64, tolerance: f64) -> Self {
        TfBuffer {
            tracks: BTreeMap::new(),
            static_frames: 0,
            offered: 0,
            full_until: 0,
            cache: nanoseconds(cache),
            tolerance: nanoseconds(tolerance),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }

    /// All frames, parents included.
    pub fn frames(&self) -> Vec<&str> {
        let mut frames: Vec<&str> = self
            .tracks
            .iter()
            .flat_map(|(child, track)| [child.as_str(), track.parent.as_str()])
            .collect();
        frames.sort_unstable();
        frames.dedup();
        frames
    }

    /// Whether it is known how this frame lies in another.
    pub fn places(&self, frame: &str) -> bool {
        self.tracks.contains_key(clean(frame))
    }

    pub fn has_frame(&self, frame: &str) -> bool {
        let frame = clean(frame);
        self.tracks.contains_key(frame) || self.tracks.values().any(|t| t.parent == frame)
    }

    /// Takes in a transform. A sample older than all that is kept means that time was set back
    /// (a bag started over): what was known of that frame is forgotten. The same goes for a
    /// frame that changes its parent.
    pub fn insert(&mut self, transform: &TransformStamped, is_static: bool) -> Result<(), TfError> {
        let parent = clean(&transform.header.frame_id);
        let child = clean(&transform.child_frame_id);
        let invalid = |reason| TfError::Invalid {
            parent: shown(parent),
            child: shown(child),
            reason,
        };
        self.offered += 1;
        if parent.len().max(child.len()) > LONGEST_NAME {
            return Err(invalid("a frame's name has more than 255 bytes"));
        }
        if parent.is_empty() || child.is_empty() {
            return Err(invalid("a frame has no name"));
        }
        if parent == child {
            return Err(invalid("a frame cannot lie in itself"));
        }
        let [x, y, z] = transform.transform.translation;
        let [i, j, k, w] = transform.transform.rotation;
        if ![x, y, z, i, j, k, w].iter().all(|v| v.is_finite()) {
            return Err(invalid("a number is not finite"));
        }
        let rotation = Quaternion::new(w, i, j, k);
        if (rotation.norm() - 1.0).abs() > NORM_TOLERANCE {
            return Err(invalid("the rotation is not a unit quaternion"));
        }
        let pose = Pose::from_parts(
            Translation3::new(x, y, z),
            UnitQuaternion::from_quaternion(rotation),
        );
        let stamp = transform.header.stamp;
        let known = self.tracks.get(child).map(|track| track.is_static);
        if known != Some(is_static) {
            self.make_room(parent, child, is_static)?;
            self.static_frames += usize::from(is_static);
            self.static_frames -= usize::from(known == Some(true));
        }
        let moving = self.tracks.len() + usize::from(known.is_none()) - self.static_frames;
        let track = self
            .tracks
            .entry(child.to_owned())
            .or_insert_with(|| Track {
                parent: parent.to_owned(),
                is_static,
                samples: VecDeque::new(),
                touched: 0,
            });
        track.touched = self.offered;
        let newest = track.samples.back().map_or(stamp, |s| s.0);
        let set_back = newest.0.saturating_sub(stamp.0) > self.cache;
        if track.parent != parent || is_static || track.is_static || set_back {
            track.samples.clear();
            track.parent = parent.to_owned();
            track.is_static = is_static;
        }
        let at = track.samples.partition_point(|s| s.0 < stamp);
        match track.samples.get_mut(at) {
            Some(sample) if sample.0 == stamp => sample.1 = pose,
            _ => track.samples.insert(at, (stamp, pose)),
        }
        let newest = track.samples.back().map_or(stamp, |s| s.0);
        while let Some(first) = track.samples.front()
            && (newest.0.saturating_sub(first.0.0) > self.cache
                || track.samples.len() > MAX_SAMPLES / moving.max(1))
        {
            track.samples.pop_front();
        }
        Ok(())
    }

    /// Where as many frames of the kind are known as are kept, drops a moving one that has long got no sample, or
    /// refuses the new one: those that are known and alive stay, however many others come.
    fn make_room(&mut self, parent: &str, child: &str, is_static: bool) -> Result<(), TfError> {
        let frames = match is_static {
            true => self.static_frames,
            false => self.tracks.len() - self.static_frames,
        };
        if frames < MAX_FRAMES {
            return Ok(());
        }
        if !is_static && self.offered >= self.full_until {
            let moving = self.tracks.iter().filter(|(_, track)| !track.is_static);
            if let Some((name, track)) = moving.min_by_key(|(_, track)| track.touched) {
                self.full_until = track.touched + STALE;
                if self.offered >= self.full_until {
                    let name = name.clone();
                    self.tracks.remove(&name);
                    return Ok(());
                }
            }
        }
        Err(TfError::Full {
            parent: shown(parent),
            child: shown(child),
            kind: if is_static { "static" } else { "moving" },
            frames,
        })
    }

    /// Whether taking in this transform, which is no static one, makes the buffer forget what it knows
    /// of its frame at `stamp`.
    pub fn would_forget(&self, transform: &TransformStamped, stamp: Stamp) -> bool {
        let new = transform.header.stamp;
        let Some(track) = self.tracks.get(clean(&transform.child_frame_id)) else {
            return false;
        };
        let Some((newest, _)) = track.samples.back() else {
            return false;
        };
        if track.is_static || track.parent != clean(&transform.header.frame_id) {
            return true;
        }
        let age = |newer: Stamp, older: Stamp| newer.0.saturating_sub(older.0);
        age(*newest, new) > self.cache
            || (age(new, stamp) > self.cache && age(*newest, stamp) <= self.cache)
    }

    /// The pose that maps coordinates in `source` to `target` at `stamp`.
    pub fn lookup(&self, target: &str, source: &str, stamp: Stamp) -> Result<Pose, TfError> {
        let (target, source) = (clean(target), clean(source));
        if target == source {
            return Ok(Pose::identity());
        }
        for frame in [target, source] {
            if !self.has_frame(frame) {
                return Err(TfError::UnknownFrame {
                    frame: shown(frame),
                    known: quoted_all(self.frames()),
                });
            }
        }
        let up_target = self.ancestors(target)?;
        let up_source = self.ancestors(source)?;
        // Names first, poses after: an unrelated gap above the common frame must not matter.
        let Some((i, j)) = up_target.iter().enumerate().find_map(|(i, frame)| {
            let j = up_source.iter().position(|other| other == frame)?;
            Some((i, j))
        }) else {
            let root = |chain: &[&str]| shown(chain.last().map_or("", |frame| frame));
            return Err(TfError::NotConnected {
                target: shown(target),
                source_frame: shown(source),
                target_root: root(&up_target),
                source_root: root(&up_source),
            });
        };
        let common_from_target = self.climb(&up_target[..i], stamp)?;
        let common_from_source = self.climb(&up_source[..j], stamp)?;
        Ok(common_from_target.inverse() * common_from_source)
    }

    /// The frame and all above it.
    fn ancestors<'a>(&'a self, frame: &'a str) -> Result<Vec<&'a str>, TfError> {
        let mut chain = vec![frame];
        let mut current = frame;
        while let Some(track) = self.tracks.get(current) {
            current = &track.parent;
            if chain.len() > self.tracks.len() {
                return Err(TfError::Loop(shown(current)));
            }
            chain.push(current);
        }
        Ok(chain)
    }

    /// The pose of the first frame in the parent of the last one.
    fn climb(&self, chain: &[&str], stamp: Stamp) -> Result<Pose, TfError> {
        let mut pose = Pose::identity();
        for &frame in chain {
            if let Some(track) = self.tracks.get(frame) {
                pose = self.sample(frame, track, stamp)? * pose;
            }
        }
        Ok(pose)
    }

    fn sample(&self, child: &str, track: &Track, stamp: Stamp) -> Result<Pose, TfError> {
        let samples = &track.samples;
        let (Some(first), Some(last)) = (samples.front(), samples.back()) else {
            return Err(TfError::UnknownFrame {
                frame: shown(child),
                known: String::new(),
            });
        };
        if track.is_static {
            return Ok(last.1);
        }
        let too_early = first.0.0.saturating_sub(stamp.0) > self.tolerance;
        let too_late = stamp.0.saturating_sub(last.0.0) > self.tolerance;
        if too_early || too_late {
            return Err(TfError::Extrapolation {
                parent: shown(&track.parent),
                child: shown(child),
                first: first.0,
                last: last.0,
                stamp,
            });
        }
        let after = samples.partition_point(|s| s.0 < stamp);
        if after == 0 {
            return Ok(first.1);
        }
        let Some(b) = samples.get(after) else {
            return Ok(last.1);
        };
        let a = &samples[after - 1];
        let t = stamp.seconds_since(a.0) / b.0.seconds_since(a.0);
        Ok(Pose::from_parts(
            Translation3::from(a.1.translation.vector.lerp(&b.1.translation.vector, t)),
            // Opposite rotations have no shortest way between them; either end is as good.
            a.1.rotation
                .try_slerp(&b.1.rotation, t, 1e-9)
                .unwrap_or(if t < 0.5 { a.1.rotation } else { b.1.rotation }),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::msg::{Header, Transform};
    use crate::geometry::pose_from_xyz_rpy;
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000_000;

    fn transform(parent: &str, child: &str, seconds: f64, pose: Pose) -> TransformStamped {
        TransformStamped {
            header: Header {
                stamp: Stamp((seconds * 1e9) as i64),
                frame_id: parent.into(),
            },
            child_frame_id: child.into(),
            transform: Transform::from(&pose),
        }
    }

    fn at(x: f64, yaw: f64) -> Pose {
        pose_from_xyz_rpy([x, 0.0, 0.0], [0.0, 0.0, yaw])
    }

    fn buffer() -> TfBuffer {
        let mut tf = TfBuffer::default();
        for (parent, child, seconds, pose, fixed) in [
            (
                "base_link",
                "lidar",
                0.0,
                pose_from_xyz_rpy([1.0, 0.0, 2.0], [0.0; 3]),
                true,
            ),
            (
                "base_link",
                "/camera",
                0.0,
                pose_from_xyz_rpy([0.0, 1.0, 0.0], [0.0; 3]),
                true,
            ),
            ("odom", "base_link", 10.0, at(100.0, 0.0), false),
            ("odom", "base_link", 11.0, at(110.0, 1.0), false),
        ] {
            tf.insert(&transform(parent, child, seconds, pose), fixed)
                .unwrap();
        }
        tf
    }

    #[test]
    fn chains_are_followed_and_dynamic_ones_interpolated() {
        let tf = buffer();
        let pose = tf
            .lookup("odom", "lidar", Stamp(10 * SECOND + SECOND / 2))
            .unwrap();
        let expected = at(105.0, 0.5) * pose_from_xyz_rpy([1.0, 0.0, 2.0], [0.0; 3]);
        assert_relative_eq!(pose, expected, epsilon = 1e-9);
        let back = tf
            .lookup("lidar", "odom", Stamp(10 * SECOND + SECOND / 2))
            .unwrap();
        assert_relative_eq!(back * pose, Pose::identity(), epsilon = 1e-9);
    }

    #[test]
    fn static_siblings_need_no_dynamic_parent() {
        let pose = buffer().lookup("camera", "lidar", Stamp(0)).unwrap();
        assert_relative_eq!(
            pose,
            pose_from_xyz_rpy([1.0, -1.0, 2.0], [0.0; 3]),
            epsilon = 1e-12
        );
    }

    #[test]
    fn beyond_the_samples_only_the_tolerance_is_answered() {
        let tf = buffer();
        let late = Stamp(11 * SECOND + 15_000_000);
        assert_relative_eq!(
            tf.lookup("odom", "base_link", late).unwrap(),
            at(110.0, 1.0),
            epsilon = 1e-9
        );
        let error = tf
            .lookup("odom", "base_link", Stamp(12 * SECOND))
            .unwrap_err();
        assert!(error.may_resolve_later(), "{error}");
        let error = tf
            .lookup("odom", "base_link", Stamp(9 * SECOND))
            .unwrap_err();
        assert!(!error.may_resolve_later());
        let text = error.to_string();
        assert!(
            text.contains("10.000000000") && text.contains("base_link"),
            "{text}"
        );
    }

    #[test]
    fn unknown_and_unconnected_frames_are_named() {
        let mut tf = buffer();
        let text = tf.lookup("map", "lidar", Stamp(0)).unwrap_err().to_string();
        assert!(text.contains("\"map\"") && text.contains("odom"), "{text}");
        tf.insert(&transform("world", "tower", 0.0, at(0.0, 0.0)), true)
            .unwrap();
        let text = tf
            .lookup("tower", "lidar", Stamp(0))
            .unwrap_err()
            .to_string();
        assert!(text.contains("world") && text.contains("odom"), "{text}");
        assert!(TfBuffer::default().lookup("a", "b", Stamp(0)).is_err());
    }

    #[test]
    fn the_cache_is_bounded_and_survives_a_clock_set_back() {
        let mut tf = TfBuffer::default();
        for i in 0..1000 {
            tf.insert(
                &transform("odom", "base_link", i as f64 * 0.1, at(i as f64, 0.0)),
                false,
            )
            .unwrap();
        }
        assert!(tf.tracks["base_link"].samples.len() <= 102);
        assert!(tf.lookup("odom", "base_link", Stamp(50 * SECOND)).is_err());
        tf.insert(&transform("odom", "base_link", 1.0, at(7.0, 0.0)), false)
            .unwrap();
        let pose = tf.lookup("odom", "base_link", Stamp(SECOND)).unwrap();
        assert_relative_eq!(pose, at(7.0, 0.0), epsilon = 1e-12);
    }

    #[test]
    fn circles_are_an_error() {
        let mut tf = TfBuffer::default();
        for (parent, child) in [("a", "b"), ("b", "c"), ("c", "a")] {
            tf.insert(&transform(parent, child, 0.0, at(1.0, 0.0)), true)
                .unwrap();
        }
        tf.insert(&transform("x", "y", 0.0, at(1.0, 0.0)), true)
            .unwrap();
        assert!(matches!(
            tf.lookup("x", "a", Stamp(0)),
            Err(TfError::Loop(_))
        ));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut tf = TfBuffer::default();
        let mut bad = transform("a", "b", 0.0, at(0.0, 0.0));
        bad.transform.rotation = [0.0; 4];
        assert!(tf.insert(&bad, true).is_err());
        bad.transform = Transform {
            translation: [f64::NAN, 0.0, 0.0],
            ..Default::default()
        };
        assert!(tf.insert(&bad, true).is_err());
        assert!(
            tf.insert(&transform("a", "/a", 0.0, at(0.0, 0.0)), true)
                .is_err()
        );
        assert!(
            tf.insert(&transform("a", "", 0.0, at(0.0, 0.0)), true)
                .is_err()
        );
        assert!(tf.is_empty());
    }

    #[test]
    fn as_many_frames_as_one_publishes_take_no_more_memory_and_cost_none_that_is_alive() {
        let mut tf = buffer();
        let mut refused = 0;
        for i in 0..(50 * MAX_FRAMES) {
            let seconds = 11.0 + i as f64 * 1e-4;
            let flood = transform("odom", &format!("flood{i}"), seconds, at(0.0, 0.0));
            refused += usize::from(tf.insert(&flood, i % 2 == 0).is_err());
            if i % 1000 == 0 {
                let ego = transform("odom", "base_link", seconds, at(seconds, 0.0));
                tf.insert(&ego, false).unwrap();
                let found = tf.lookup("odom", "lidar", ego.header.stamp).unwrap();
                assert_relative_eq!(found.translation.vector.x, seconds + 1.0, epsilon = 1e-9);
            }
        }
        assert!(tf.tracks.len() <= 2 * MAX_FRAMES && refused > 0);
        let error = tf
            .lookup("odom", &"y".repeat(1_000_000), Stamp(0))
            .unwrap_err();
        assert!(error.to_string().len() < 3000, "{error}");
        // Frames that fell silent make room for others in the end.
        for i in 0..2 * STALE {
            let ego = transform("odom", "base_link", 30.0 + i as f64 * 1e-3, at(0.0, 0.0));
            tf.insert(&ego, false).unwrap();
        }
        tf.insert(&transform("odom", "drone", 80.0, at(1.0, 0.0)), false)
            .unwrap();
    }

    #[test]
    fn samples_of_all_frames_together_are_bounded() {
        let mut tf = TfBuffer::new(1e6, 0.02);
        for i in 0..2 * MAX_SAMPLES {
            let child = if i % 2 == 0 { "a" } else { "b" };
            tf.insert(&transform("odom", child, i as f64, at(0.0, 0.0)), false)
                .unwrap();
        }
        let samples: usize = tf.tracks.values().map(|track| track.samples.len()).sum();
        assert!(samples <= MAX_SAMPLES, "{samples}");
        let last = Stamp((2 * MAX_SAMPLES) as i64 * SECOND - 2 * SECOND);
        assert!(tf.lookup("odom", "a", last).is_ok());
    }

    #[test]
    fn a_name_longer_than_any_topic_is_no_frame() {
        let mut tf = TfBuffer::default();
        for (parent, child) in [
            ("odom", "x".repeat(256)),
            (&"x".repeat(256), "base_link".into()),
        ] {
            let error = tf.insert(&transform(parent, &child, 0.0, at(0.0, 0.0)), false);
            let text = error.unwrap_err().to_string();
            assert!(text.contains("255 bytes") && text.len() < 500, "{text}");
        }
        assert!(tf.is_empty());
    }

    proptest! {
        #[test]
        fn order_of_arrival_does_not_matter(
            order in Just((0..20).collect::<Vec<i32>>()).prop_shuffle(),
            seconds in 0.0..1.9f64,
        ) {
            let (mut sorted, mut shuffled) = (TfBuffer::default(), TfBuffer::default());
            for i in 0..20 {
                let pose = |i: i32| at((i * i) as f64, i as f64 * 0.3);
                sorted.insert(&transform("o", "b", i as f64 * 0.1, pose(i)), false).unwrap();
                let i = order[i as usize];
                shuffled.insert(&transform("o", "b", i as f64 * 0.1, pose(i)), false).unwrap();
            }
            let stamp = Stamp((seconds * 1e9) as i64);
            prop_assert_eq!(sorted.lookup("o", "b", stamp), shuffled.lookup("o", "b", stamp));
        }
    }
}
