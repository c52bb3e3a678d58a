//! The tree of coordinate frames over time, as `/tf` and `/tf_static` describe it.

use std::collections::{BTreeMap, VecDeque};

use nalgebra::{Quaternion, Translation3, UnitQuaternion};

use crate::bag::Stamp;
use crate::bag::msg::TransformStamped;
use crate::geometry::Pose;

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
}

impl TfError {
    /// Whether transforms that have yet to arrive could mend it.
    pub fn may_resolve_later(&self) -> bool {
        match self {
            TfError::UnknownFrame { .. } | TfError::NotConnected { .. } => true,
            TfError::Extrapolation { last, stamp, .. } => stamp > last,
            TfError::Loop(_) | TfError::Invalid { .. } => false,
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
}

/// Transforms of the last seconds. Between samples it interpolates (rotation on the great
/// circle); before the first and after the last it answers only within the tolerance, with the
/// nearest sample.
#[derive(Debug, Clone)]
pub struct TfBuffer {
    tracks: BTreeMap<String, Track>,
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
            parent: parent.to_owned(),
            child: child.to_owned(),
            reason,
        };
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
        let track = self
            .tracks
            .entry(child.to_owned())
            .or_insert_with(|| Track {
                parent: parent.to_owned(),
                is_static,
                samples: VecDeque::new(),
            });
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
            && newest.0.saturating_sub(first.0.0) > self.cache
        {
            track.samples.pop_front();
        }
        Ok(())
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
                    frame: frame.to_owned(),
                    known: match self.frames().as_slice() {
                        [] => "none".to_owned(),
                        frames => format!("\"{}\"", frames.join("\", \"")),
                    },
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
            let root = |chain: &[&str]| chain.last().map_or("", |frame| frame).to_owned();
            return Err(TfError::NotConnected {
                target: target.to_owned(),
                source_frame: source.to_owned(),
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
                return Err(TfError::Loop(current.to_owned()));
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
                frame: child.to_owned(),
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
                parent: track.parent.clone(),
                child: child.to_owned(),
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
