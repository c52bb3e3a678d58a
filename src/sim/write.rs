//! Writes simulated sweeps as a rosbag2 folder with ground truth.

use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;

use super::rng::Rng;
use super::scene::{Scene, SceneConfig, SceneKind, SimSweep, SimTruth};
use super::sensor::Sensor;
use super::{ObjectClass, SimError};
use crate::bag::msg::{
    BoundingBox3D, Detection3D, Detection3DArray, Header, ObjectHypothesisWithPose, PointCloud2,
    PointField, PoseMsg, TfMessage, TransformStamped,
};
use crate::bag::{Stamp, Writer};
use crate::cloud::Points;
use crate::geometry::Pose;

pub const ODOM_FRAME: &str = "odom";
pub const BASE_FRAME: &str = "base_link";
pub const LIDAR_FRAME: &str = "lidar_top";

const CLOUD_TOPIC: &str = "/sensing/lidar/top/pointcloud";
const TRUTH_TOPIC: &str = "/ground_truth/objects";

/// Time between the last sweep of a scene and the first of the next, nanoseconds.
const SCENE_GAP: i64 = 10_000_000_000;

/// What a bag shall hold.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub frames: usize,
    /// Independent scenes over which the frames are spread, 10 s apart.
    pub scenes: usize,
    /// One per scene in turn.
    pub sensors: Vec<Sensor>,
    pub kind: Option<SceneKind>,
    /// Sweeps per second.
    pub rate: f64,
    /// See [`SceneConfig::mount`].
    pub mount: Option<[f64; 6]>,
    /// Stamp of the first sweep.
    pub start: Stamp,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub frames: usize,
    pub scenes: usize,
    pub points: usize,
    /// Labelled objects with at least one point, summed over the frames, as in [`ObjectClass::ALL`].
    pub seen: [usize; 5],
    /// Labelled objects, seen or not.
    pub labelled: [usize; 5],
}

/// Seed of a bag's scene: a scene can be made again by itself.
pub fn scene_seed(seed: u64, scene: usize) -> u64 {
    Rng::new(&[seed, scene as u64]).next_u64()
}

fn header(stamp: Stamp, frame: &str) -> Header {
    Header {
        stamp,
        frame_id: frame.to_owned(),
    }
}

fn transform(stamp: Stamp, parent: &str, child: &str, pose: &Pose) -> TransformStamped {
    TransformStamped {
        header: header(stamp, parent),
        child_frame_id: child.to_owned(),
        transform: pose.into(),
    }
}

/// `x`, `y`, `z`, `intensity` as `f32`, `ring` as `u16`; 18 bytes a point.
fn cloud_message(points: &Points, stamp: Stamp) -> PointCloud2 {
    const STEP: usize = 18;
    let mut data = Vec::with_capacity(points.0.len() * STEP);
    for p in &points.0 {
        for value in [p.x, p.y, p.z, p.intensity] {
            data.extend_from_slice(&value.to_le_bytes());
        }
        data.extend_from_slice(&p.ring.to_le_bytes());
    }
    let mut fields: Vec<PointField> = ["x", "y", "z", "intensity"]
        .iter()
        .zip((0..).step_by(4))
        .map(|(name, offset)| PointField::new(name, offset, PointField::FLOAT32))
        .collect();
    fields.push(PointField::new("ring", 16, PointField::UINT16));
    PointCloud2 {
        header: header(stamp, LIDAR_FRAME),
        height: 1,
        width: points.0.len() as u32,
        fields,
        is_bigendian: false,
        point_step: STEP as u32,
        row_step: data.len() as u32,
        data,
        is_dense: true,
    }
}

fn truth_message(truths: &[SimTruth], stamp: Stamp) -> Detection3DArray {
    let detections = truths
        .iter()
        .map(|truth| {
            let b = &truth.bbox;
            let (sin, cos) = (f64::from(b.yaw) / 2.0).sin_cos();
            let center = PoseMsg {
                position: [0, 1, 2].map(|i| f64::from(b.center[i])),
                orientation: [0.0, 0.0, sin, cos],
            };
            Detection3D {
                header: header(stamp, BASE_FRAME),
                results: vec![ObjectHypothesisWithPose {
                    class_id: truth.class.label().to_owned(),
                    score: 1.0,
                    pose: center,
                    ..Default::default()
                }],
                bbox: BoundingBox3D {
                    center,
                    size: [0, 1, 2].map(|i| f64::from(b.size[i])),
                },
                id: truth.track.to_string(),
            }
        })
        .collect();
    Detection3DArray {
        header: header(stamp, BASE_FRAME),
        detections,
    }
}

/// One entry of `labels.json`: all boxes of a frame, in `base_link`.
fn labels_entry(truths: &[SimTruth], scene: usize, stamp: Stamp) -> String {
    let mut text = format!("\"{}\": [", stamp.0);
    for (i, t) in truths.iter().enumerate() {
        let b = &t.bbox;
        let separator = if i == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{separator}{{\"label\": \"{}\", \"track\": \"{scene}-{}\", \
             \"center\": [{:.4}, {:.4}, {:.4}], \"size_lwh\": [{:.4}, {:.4}, {:.4}], \
             \"yaw\": {:.5}, \"velocity\": [{:.4}, {:.4}], \"points\": {}}}",
            t.class.label(),
            t.track,
            b.center.x,
            b.center.y,
            b.center.z,
            b.size.x,
            b.size.y,
            b.size.z,
            b.yaw,
            t.velocity.x,
            t.velocity.y,
            t.points
        );
    }
    text.push(']');
    text
}

impl Plan {
    fn check(&self) -> Result<(), SimError> {
        let refuse = |what: String| Err(SimError::BadPlan(what));
        if self.frames == 0 || self.scenes == 0 || self.scenes > self.frames {
            return refuse(format!(
                "{} frames over {} scenes: each scene needs a frame",
                self.frames, self.scenes
            ));
        }
        if self.sensors.is_empty() {
            return refuse("no sensor".into());
        }
        if self.start.0 < 0 {
            return refuse(format!("start {} lies before 1970", self.start.0));
        }
        // Refuses before any file is made what a scene would refuse later.
        for sensor in &self.sensors {
            self.config(sensor, self.frames.div_ceil(self.scenes))
                .check()?;
        }
        Ok(())
    }

    fn config(&self, sensor: &Sensor, sweeps: usize) -> SceneConfig {
        SceneConfig {
            kind: self.kind,
            sweeps,
            rate: self.rate,
            mount: self.mount,
            ..SceneConfig::new(sensor.clone())
        }
    }
}

/// Simulates the plan into a new rosbag2 folder.
///
/// | topic | content |
/// | --- | --- |
/// | `/sensing/lidar/top/pointcloud` | the sweep, in `lidar_top` |
/// | `/tf` | `odom` to `base_link` at each sweep; with several scenes also `base_link` to `lidar_top`, whose mounting differs |
/// | `/tf_static` | `base_link` to `lidar_top`, with one scene or a given mounting |
/// | `/ground_truth/objects` | labelled boxes in `base_link` |
///
/// and `labels.json` beside them: the boxes with velocity and number of points, by stamp.
/// `progress` hears the number of frames done and answers whether to go on.
pub fn write_bag(
    out: &Path,
    plan: &Plan,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Summary, SimError> {
    plan.check()?;
    let mut writer = Writer::create(out)?;
    let mut labels = String::from("{");
    let mut summary = Summary {
        scenes: plan.scenes,
        ..Summary::default()
    };
    let one_mount = plan.mount.is_some() || plan.scenes == 1;
    let mut clock = plan.start.0;
    // Sweeps are made side by side, as many as there are threads, and written in order.
    let batch = rayon::current_num_threads().max(1);
    for scene_index in 0..plan.scenes {
        let sweeps =
            plan.frames / plan.scenes + usize::from(scene_index < plan.frames % plan.scenes);
        let sensor = &plan.sensors[scene_index % plan.sensors.len()];
        let config = plan.config(sensor, sweeps);
        let scene = Scene::generate(scene_seed(plan.seed, scene_index), &config)?;
        for first in (0..sweeps).step_by(batch) {
            let made: Vec<SimSweep> = (first..(first + batch).min(sweeps))
                .into_par_iter()
                .map(|i| scene.sweep(i))
                .collect();
            for sweep in &made {
                let stamp = Stamp(clock + sweep.stamp.0);
                let mount = transform(stamp, BASE_FRAME, LIDAR_FRAME, &sweep.base_from_lidar);
                let mut transforms = vec![transform(
                    stamp,
                    ODOM_FRAME,
                    BASE_FRAME,
                    &sweep.odom_from_base,
                )];
                if !one_mount {
                    transforms.push(mount);
                } else if summary.frames == 0 {
                    let message = TfMessage {
                        transforms: vec![mount],
                    };
                    writer.write("/tf_static", stamp.0, &message)?;
                }
                writer.write("/tf", stamp.0, &TfMessage { transforms })?;
                writer.write(CLOUD_TOPIC, stamp.0, &cloud_message(&sweep.points, stamp))?;
                writer.write(TRUTH_TOPIC, stamp.0, &truth_message(&sweep.truths, stamp))?;
                labels.push_str(if summary.frames == 0 { "\n" } else { ",\n" });
                labels.push_str(&labels_entry(&sweep.truths, scene_index, stamp));
                summary.frames += 1;
                summary.points += sweep.points.0.len();
                for truth in &sweep.truths {
                    if let Some(i) = ObjectClass::ALL.iter().position(|c| *c == truth.class) {
                        summary.labelled[i] += 1;
                        summary.seen[i] += usize::from(truth.points > 0);
                    }
                }
            }
            if !progress(summary.frames) {
                return Err(SimError::Stopped);
            }
        }
        clock += scene.stamp(sweeps - 1).0 + SCENE_GAP;
    }
    writer.finish()?;
    labels.push_str("\n}\n");
    let path = out.join("labels.json");
    std::fs::write(&path, labels).map_err(|source| SimError::Labels { path, source })?;
    Ok(summary)
}
