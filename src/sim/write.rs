//! Writes simulated sweeps as a rosbag2 folder with ground truth.

use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;

use super::rng::Rng;
use super::scene::{Scene, SceneConfig, SceneKind, SimSweep, SimTruth};
use super::sensor::Sensor;
use super::{ObjectClass, SimError};
use crate::bag::msg::{
    BoundingBox3D, Detection3D, Detection3DArray, Header, ObjectHypothesisWithPose, PoseMsg,
    TfMessage, TransformStamped,
};
use crate::bag::{Stamp, Writer};
use crate::cloud;
use crate::files;
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
                let cloud = cloud::encode(&sweep.points, header(stamp, LIDAR_FRAME), false);
                writer.write(CLOUD_TOPIC, stamp.0, &cloud)?;
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
    files::replace(&path, |file| file.write_all(labels.as_bytes()))
        .map_err(|source| SimError::Labels { path, source })?;
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::Reader;
    use crate::bag::msg::{Message, PointCloud2};
    use crate::cloud::frames::{Frames, InputOptions};

    fn plan(frames: usize, scenes: usize) -> Plan {
        let mut coarse = Sensor::preset("vlp16").unwrap();
        coarse.azimuth_steps = 180;
        let mut other = Sensor::preset("os32").unwrap();
        other.azimuth_steps = 128;
        Plan {
            seed: 5,
            frames,
            scenes,
            sensors: vec![coarse, other],
            kind: None,
            rate: 10.0,
            mount: None,
            start: Stamp(1_700_000_000_000_000_000),
        }
    }

    #[test]
    fn a_bag_of_several_scenes_reads_back_as_it_was_simulated() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("drive");
        let plan = plan(7, 3);
        let summary = write_bag(&out, &plan, |_| true).unwrap();
        assert_eq!((summary.frames, summary.scenes), (7, 3));

        let options = InputOptions {
            model_frame: Some(BASE_FRAME.to_owned()),
            ..InputOptions::default()
        };
        let frames: Vec<_> = Frames::open(&out, &options)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(frames.len(), 7);
        let labels: serde_json::Value =
            serde_json::from_slice(&std::fs::read(out.join("labels.json")).unwrap()).unwrap();
        assert_eq!(labels.as_object().unwrap().len(), 7);

        // Three, two and two sweeps: each scene can be made again by itself, its points land in
        // the vehicle's frame with its own mounting, and labels stand at the stamps of the clouds.
        let mut index = 0;
        for (scene_index, sweeps) in [3, 2, 2].into_iter().enumerate() {
            let sensor = &plan.sensors[scene_index % 2];
            let config = plan.config(sensor, sweeps);
            let scene = Scene::generate(scene_seed(plan.seed, scene_index), &config).unwrap();
            for i in 0..sweeps {
                let sweep = scene.sweep(i);
                let frame = &frames[index];
                assert_eq!(frame.points.0.len(), sweep.points.0.len());
                let (got, made) = (&frame.points.0[7], &sweep.points.0[7]);
                let expected = sweep.base_from_lidar
                    * nalgebra::Point3::new(made.x.into(), made.y.into(), made.z.into());
                assert!((f64::from(got.x) - expected.x).abs() < 1e-4);
                assert!((f64::from(got.z) - expected.z).abs() < 1e-4);
                assert_eq!(got.ring, made.ring);
                let boxes = labels[frame.stamp.0.to_string()].as_array().unwrap();
                assert_eq!(boxes.len(), sweep.truths.len());
                for (entry, truth) in boxes.iter().zip(&sweep.truths) {
                    assert_eq!(entry["label"], truth.class.label());
                    assert_eq!(entry["points"], truth.points);
                    let x = entry["center"][0].as_f64().unwrap();
                    assert!((x - f64::from(truth.bbox.center.x)).abs() < 1e-3);
                }
                index += 1;
            }
        }
        let gap = frames[3].stamp.seconds_since(frames[2].stamp);
        assert_eq!(gap, 10.0);

        let reader = Reader::open(&out).unwrap();
        let truths: Vec<_> = reader
            .messages(&[TRUTH_TOPIC])
            .map(|m| Detection3DArray::decode(&m.unwrap().data).unwrap())
            .collect();
        assert_eq!(truths.len(), 7);
        assert_eq!(truths[0].header.frame_id, BASE_FRAME);
        assert_eq!(
            truths.iter().map(|t| t.detections.len()).sum::<usize>(),
            summary.labelled.iter().sum::<usize>()
        );
    }

    #[test]
    fn one_seed_gives_one_bag_and_another_seed_another() {
        let folder = tempfile::tempdir().unwrap();
        let clouds = |name: &str, seed: u64, threads: usize| {
            let out = folder.path().join(name);
            let plan = Plan { seed, ..plan(4, 2) };
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| write_bag(&out, &plan, |_| true))
                .unwrap();
            let labels = std::fs::read(out.join("labels.json")).unwrap();
            let clouds: Vec<PointCloud2> = Reader::open(&out)
                .unwrap()
                .messages(&[CLOUD_TOPIC])
                .map(|m| PointCloud2::decode(&m.unwrap().data).unwrap())
                .collect();
            (labels, clouds)
        };
        let first = clouds("a", 1, 1);
        assert!(first == clouds("b", 1, 3));
        assert!(first != clouds("c", 2, 1));
    }

    #[test]
    fn stopping_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("drive");
        let error = write_bag(&out, &plan(6, 3), |done| done < 2).unwrap_err();
        assert!(matches!(error, SimError::Stopped), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn senseless_plans_are_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("drive");
        for spoil in [
            (|p: &mut Plan| p.frames = 0) as fn(&mut Plan),
            |p| p.scenes = 0,
            |p| p.scenes = 99,
            |p| p.sensors.clear(),
            |p| p.sensors[1].max_range = 0.0,
            |p| p.rate = f64::NAN,
            |p| p.frames = 100_000,
            |p| p.mount = Some([0.0; 6]),
            |p| p.start = Stamp(-1),
        ] {
            let mut plan = plan(6, 2);
            spoil(&mut plan);
            assert!(write_bag(&out, &plan, |_| true).is_err(), "{plan:?}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
