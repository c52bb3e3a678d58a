//! Ground truth: labelled boxes per frame, from the project's own `labels.json`, from KITTI's
//! object files and from nuScenes key frames written as JSON.
//!
//! `labels.json` maps the stamp of a frame, in nanoseconds as a string, to its boxes:
//!
//! ```json
//! {"315978406019574000": [{"label": "VEHICLE", "track": "605e47ae", "center": [-11.7, 3.0, 0.5],
//!   "size_lwh": [4.4, 1.8, 1.6], "yaw": 0.02, "velocity": [0.0, 0.0], "points": 212}]}
//! ```
//!
//! Metres, radians, m/s, in the frame in which the model detects; `track`, `velocity` and `points`
//! (LiDAR returns on the object) may be absent, null, or NaN as Python writes it: they are then not
//! known. A box without a finite place, size or heading is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nalgebra::{Matrix3x4, Point3, Rotation3, UnitQuaternion, Vector2, Vector3};
use serde_json::{Map, Value};

use super::json::{Entries, count, if_known, known, name, strict};
use crate::cloud::Points;
use crate::geometry::{Box3d, Pose, wrap_angle};

/// One labelled object.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    pub bbox: Box3d,
    /// Name in the data set.
    pub label: String,
    /// Index into the model's classes; `None` for objects that the model does not know.
    pub class: Option<usize>,
    /// Velocity over ground in the frame of the box, m/s.
    pub velocity: Option<Vector2<f32>>,
    /// LiDAR returns on the object.
    pub points: Option<u32>,
    /// Identity over time.
    pub track: Option<String>,
    /// Neither hit nor miss for any class: detections on it are not counted.
    pub ignored: bool,
}

/// What went wrong with a file of labels.
#[derive(Debug, thiserror::Error)]
pub enum TruthError {
    #[error("cannot read {path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not valid JSON: {source}")]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path}, key {key}: {what}")]
    Key {
        path: PathBuf,
        key: String,
        what: String,
    },
    #[error("{path}, line {line}: {what}")]
    Line {
        path: PathBuf,
        line: usize,
        what: String,
    },
    #[error(
        "{path} holds no labels: expected labels.json, a folder with one, a nuScenes key frame \
         (JSON with boxes_lidar), or a KITTI folder with label_2/ and calib/"
    )]
    NoLabels { path: PathBuf },
    #[error("class map rule `{rule}`: {what}")]
    ClassMap { rule: String, what: String },
}

/// What a label of the data set means to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Class(usize),
    /// Detections on such an object count neither for nor against the model.
    Ignore,
}

/// From the labels of a data set to the classes of a model.
///
/// A label that bears a class's name, in any case, means that class. Rules come first:
/// `VEHICLE=CAR,LARGE_VEHICLE=ignore`. Other labels are left out, so detections on such objects
/// are false.
#[derive(Debug, Clone, Default)]
pub struct ClassMap {
    classes: Vec<String>,
    rules: BTreeMap<String, Meaning>,
}

impl ClassMap {
    /// Reads rules of the form `LABEL=CLASS` or `LABEL=ignore`, separated by commas.
    pub fn new(classes: &[String], rules: &str) -> Result<Self, TruthError> {
        let mut map = Self {
            classes: classes.to_vec(),
            rules: BTreeMap::new(),
        };
        for rule in rules.split(',').map(str::trim).filter(|r| !r.is_empty()) {
            let error = |what: String| TruthError::ClassMap {
                rule: rule.to_string(),
                what,
            };
            let (label, class) = rule
                .split_once('=')
                .ok_or_else(|| error("expected LABEL=CLASS or LABEL=ignore".into()))?;
            let (label, class) = (label.trim(), class.trim());
            let meaning = match map.position(class) {
                Some(index) => Meaning::Class(index),
                None if class.eq_ignore_ascii_case("ignore") => Meaning::Ignore,
                None => {
                    return Err(error(format!(
                        "the model has no class `{class}`; it has {}",
                        classes.join(", ")
                    )));
                }
            };
            map.rules.insert(label.to_lowercase(), meaning);
        }
        Ok(map)
    }

    fn position(&self, class: &str) -> Option<usize> {
        self.classes
            .iter()
            .position(|c| c.eq_ignore_ascii_case(class))
    }

    fn meaning(&self, label: &str) -> Option<Meaning> {
        self.rules
            .get(&label.to_lowercase())
            .copied()
            .or_else(|| self.position(label).map(Meaning::Class))
    }

    fn truth(&self, bbox: Box3d, label: String) -> Truth {
        let meaning = self.meaning(&label);
        Truth {
            bbox,
            class: match meaning {
                Some(Meaning::Class(class)) => Some(class),
                _ => None,
            },
            ignored: meaning == Some(Meaning::Ignore),
            label,
            velocity: None,
            points: None,
            track: None,
        }
    }
}

/// The labels of a recording, by stamp in nanoseconds (by frame number for KITTI).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {
    frames: BTreeMap<i64, Vec<Truth>>,
}

impl Labels {
    /// Labels made by hand, by stamp in nanoseconds.
    pub fn from_frames(frames: BTreeMap<i64, Vec<Truth>>) -> Self {
        Self { frames }
    }

    /// Reads `labels.json`, a folder that has one (the simulator's bags), a nuScenes key frame
    /// (JSON), or a KITTI object folder with `label_2/` and `calib/`.
    pub fn load(path: &Path, map: &ClassMap) -> Result<Self, TruthError> {
        if path.is_dir() {
            let inside = path.join("labels.json");
            if inside.is_file() {
                return Self::load(&inside, map);
            }
            if path.join("label_2").is_dir() {
                return Self::load_kitti(&path.join("label_2"), &path.join("calib"), map);
            }
            return Err(TruthError::NoLabels { path: path.into() });
        }
        let text = strict(&read(path)?);
        let json = |source| TruthError::Json {
            path: path.into(),
            source,
        };
        if text.trim_start().starts_with('[') {
            return Err(TruthError::NoLabels { path: path.into() });
        }
        let Entries(top) = serde_json::from_str(&text).map_err(json)?;
        match top.iter().any(|(key, _)| key == "boxes_lidar") {
            true => Self::parse_keyframe(path, top.into_iter().collect(), map),
            false => Self::parse_labels(path, top, map),
        }
    }

    fn parse_labels(
        path: &Path,
        top: Vec<(String, Value)>,
        map: &ClassMap,
    ) -> Result<Self, TruthError> {
        let mut frames = BTreeMap::new();
        for (stamp, boxes) in top {
            let error = |key: String, what: String| TruthError::Key {
                path: path.into(),
                key,
                what,
            };
            let ns: i64 = stamp.parse().map_err(|_| {
                error(
                    stamp.clone(),
                    "a frame's key is its stamp in nanoseconds".into(),
                )
            })?;
            let Value::Array(boxes) = boxes else {
                return Err(error(stamp, "expected a list of boxes".into()));
            };
            let mut truths = Vec::with_capacity(boxes.len());
            for (i, value) in boxes.iter().enumerate() {
                let truth = label(value, map);
                truths.push(truth.map_err(|what| error(format!("{stamp}[{i}]"), what))?);
            }
            if frames.insert(ns, truths).is_some() {
                return Err(error(stamp, "this stamp is there twice".into()));
            }
        }
        Ok(Self { frames })
    }

    fn parse_keyframe(
        path: &Path,
        top: Map<String, Value>,
        map: &ClassMap,
    ) -> Result<Self, TruthError> {
        let error = |key: &str, what: String| TruthError::Key {
            path: path.into(),
            key: key.into(),
            what,
        };
        let list = |key: &str| -> Result<&[Value], TruthError> {
            match top.get(key) {
                None | Some(Value::Null) => Ok(&[]),
                Some(Value::Array(values)) => Ok(values),
                Some(_) => Err(error(key, "expected a list".into())),
            }
        };
        let boxes = list("boxes_lidar")?;
        let (names, velocities) = (list("names")?, list("velocity_lidar_xy")?);
        let points = list("num_lidar_pts")?;
        for (key, count) in [
            ("names", names.len()),
            ("velocity_lidar_xy", velocities.len()),
            ("num_lidar_pts", points.len()),
        ] {
            if count != boxes.len() && !(count == 0 && key != "names") {
                let boxes = boxes.len();
                return Err(error(
                    key,
                    format!("{count} entries for {boxes} boxes_lidar"),
                ));
            }
        }
        // Microseconds as an integer, or seconds.
        let stamp = match top.get("timestamp") {
            Some(Value::Number(n)) => match n.as_i64() {
                Some(us) => us.checked_mul(1000),
                None => n
                    .as_f64()
                    .map(|s| (s * 1e9).round())
                    .filter(|ns| ns.abs() < i64::MAX as f64)
                    .map(|ns| ns as i64),
            }
            .ok_or_else(|| {
                error(
                    "timestamp",
                    format!(
                        "{n} is out of range: microseconds as an integer, or seconds, are expected"
                    ),
                )
            })?,
            _ => {
                let what = "microseconds as an integer, or seconds, are needed";
                return Err(error("timestamp", what.into()));
            }
        };
        let mut truths = Vec::with_capacity(boxes.len());
        for (i, (values, label)) in boxes.iter().zip(names).enumerate() {
            let of = |list: &str, what| error(&format!("{list}[{i}]"), what);
            let [x, y, z, l, w, h, yaw] =
                known("the box", values).map_err(|what| of("boxes_lidar", what))?;
            let bbox = Box3d {
                center: Vector3::new(x, y, z),
                size: Vector3::new(l, w, h),
                yaw,
            };
            check(&bbox).map_err(|what| of("boxes_lidar", what))?;
            let label = name("the name", Some(label)).and_then(|name| name.ok_or_else(no_name));
            let label = label.map_err(|what| of("names", what))?;
            let velocity = if_known::<2>("the velocity", velocities.get(i));
            let points = count("the count", points.get(i));
            truths.push(Truth {
                velocity: velocity
                    .map_err(|what| of("velocity_lidar_xy", what))?
                    .map(Vector2::from),
                points: points.map_err(|what| of("num_lidar_pts", what))?,
                ..map.truth(bbox, label)
            });
        }
        Ok(Self {
            frames: [(stamp, truths)].into(),
        })
    }

    /// Reads KITTI object labels (`label_2/000000.txt`) with their calibrations; the boxes come
    /// out in the Velodyne's frame, keyed by the number in the file's name. They cover only the
    /// camera's field of view: restrict the evaluation to it with
    /// [`EvalOptions::sector`](super::EvalOptions).
    pub fn load_kitti(
        label_dir: &Path,
        calib_dir: &Path,
        map: &ClassMap,
    ) -> Result<Self, TruthError> {
        let io = |source| TruthError::Io {
            path: label_dir.into(),
            source,
        };
        let mut frames = BTreeMap::new();
        for entry in std::fs::read_dir(label_dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_none_or(|e| e != "txt") {
                continue;
            }
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
            let number: i64 = stem.parse().map_err(|_| TruthError::Key {
                path: path.clone(),
                key: stem.into(),
                what: "a KITTI label file is named by its frame's number".into(),
            })?;
            let calibration = KittiCalibration::load(&calib_dir.join(format!("{stem}.txt")))?;
            frames.insert(number, load_kitti_labels(&path, &calibration, map)?);
        }
        if frames.is_empty() {
            return Err(TruthError::NoLabels {
                path: label_dir.into(),
            });
        }
        Ok(Self { frames })
    }

    /// The labels of the frame with exactly this stamp; `None` for a frame that nobody labelled.
    pub fn at(&self, stamp_ns: i64) -> Option<&[Truth]> {
        self.frames.get(&stamp_ns).map(Vec::as_slice)
    }

    /// The labels of the frame nearest in time, if within the tolerance.
    pub fn nearest(&self, stamp_ns: i64, tolerance_ns: u64) -> Option<(i64, &[Truth])> {
        let before = self.frames.range(..=stamp_ns).next_back();
        let after = self.frames.range(stamp_ns..).next();
        before
            .into_iter()
            .chain(after)
            .min_by_key(|(stamp, _)| stamp.abs_diff(stamp_ns))
            .filter(|(stamp, _)| stamp.abs_diff(stamp_ns) <= tolerance_ns)
            .map(|(stamp, truths)| (*stamp, truths.as_slice()))
    }

    /// Fills in the missing counts of LiDAR points of the frame nearest in time, if within the
    /// tolerance, see [`count_points`].
    pub fn count_points(&mut self, stamp_ns: i64, tolerance_ns: u64, points: &Points) {
        let found = self.nearest(stamp_ns, tolerance_ns).map(|(stamp, _)| stamp);
        if let Some(truths) = found.and_then(|stamp| self.frames.get_mut(&stamp)) {
            count_points(truths, points);
        }
    }

    /// Stamps and boxes in order of time.
    pub fn frames(&self) -> impl Iterator<Item = (i64, &[Truth])> {
        self.frames.iter().map(|(s, t)| (*s, t.as_slice()))
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Moves all boxes to the model's frame. Boxes stay upright: of the rotation, only what it
    /// does to the heading counts.
    pub fn transform(&mut self, model_from_labels: &Pose) {
        for truth in self.frames.values_mut().flatten() {
            truth.bbox = transform_box(&truth.bbox, model_from_labels);
            if let Some(v) = &mut truth.velocity {
                let moved = model_from_labels.rotation * Vector3::new(v.x, v.y, 0.0).cast::<f64>();
                *v = moved.xy().cast();
            }
        }
    }

    /// How many boxes of each label mean nothing to the model.
    pub fn unmapped(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for truth in self.frames.values().flatten() {
            if truth.class.is_none() && !truth.ignored {
                *counts.entry(truth.label.as_str()).or_default() += 1;
            }
        }
        counts
    }
}

/// Fills in [`Truth::points`] where it is missing: returns of the newest sweep inside the box.
pub fn count_points(truths: &mut [Truth], points: &Points) {
    for truth in truths.iter_mut().filter(|t| t.points.is_none()) {
        let bbox = &truth.bbox;
        let reach = bbox.size.xy().norm() / 2.0;
        let inside = points.0.iter().filter(|p| {
            p.time_lag == 0.0
                && (p.x - bbox.center.x).abs() <= reach
                && (p.y - bbox.center.y).abs() <= reach
                && bbox.contains(&Vector3::new(p.x, p.y, p.z))
        });
        truth.points = Some(inside.count() as u32);
    }
}

/// An upright box in another frame; its heading is the projection of the turned heading on the
/// new ground plane.
pub fn transform_box(bbox: &Box3d, target_from_source: &Pose) -> Box3d {
    let center = target_from_source * Point3::from(bbox.center.cast::<f64>());
    let (sin, cos) = f64::from(bbox.yaw).sin_cos();
    let heading = target_from_source.rotation * Vector3::new(cos, sin, 0.0);
    Box3d {
        center: center.coords.cast(),
        size: bbox.size,
        yaw: wrap_angle(heading.y.atan2(heading.x) as f32),
    }
}

/// One box of labels.json.
fn label(value: &Value, map: &ClassMap) -> Result<Truth, String> {
    let needed = |key: &str| {
        value
            .get(key)
            .ok_or_else(|| format!("missing field `{key}`"))
    };
    let label = name("label", Some(needed("label")?))?.ok_or_else(no_name)?;
    let bbox = Box3d {
        center: known::<3>("center", needed("center")?)?.into(),
        size: known::<3>("size_lwh", needed("size_lwh")?)?.into(),
        yaw: known::<1>("yaw", needed("yaw")?)?[0],
    };
    check(&bbox)?;
    Ok(Truth {
        velocity: if_known::<2>("velocity", value.get("velocity"))?.map(Vector2::from),
        points: count("points", value.get("points"))?,
        track: name("track", value.get("track"))?,
        ..map.truth(bbox, label)
    })
}

fn no_name() -> String {
    "the label has no name".into()
}

fn read(path: &Path) -> Result<String, TruthError> {
    std::fs::read_to_string(path).map_err(|source| TruthError::Io {
        path: path.into(),
        source,
    })
}

fn check(bbox: &Box3d) -> Result<(), String> {
    let numbers = bbox.center.iter().chain(bbox.size.iter());
    if !numbers.chain([&bbox.yaw]).all(|v| v.is_finite()) {
        return Err("a box needs finite numbers".into());
    }
    if bbox.size.min() <= 0.0 {
        return Err(format!(
            "a box needs positive sizes, not {} x {} x {}",
            bbox.size.x, bbox.size.y, bbox.size.z
        ));
    }
    Ok(())
}

/// Where KITTI's cameras sit against the Velodyne.
#[derive(Debug, Clone, PartialEq)]
pub struct KittiCalibration {
    /// From the rectified camera frame (x right, y down, z forward) to the Velodyne's.
    pub velodyne_from_camera: Pose,
}

impl KittiCalibration {
    /// Reads `R0_rect` and `Tr_velo_to_cam` of an object calibration file.
    pub fn load(path: &Path) -> Result<Self, TruthError> {
        let text = read(path)?;
        let rect = kitti_matrix::<9>(path, &text, "R0_rect")?;
        let tr = kitti_matrix::<12>(path, &text, "Tr_velo_to_cam")?;
        let tr = Matrix3x4::from_row_slice(&tr);
        // The files round to seven digits; the nearest true rotations are taken.
        let rect = UnitQuaternion::from_matrix(&nalgebra::Matrix3::from_row_slice(&rect));
        let rotation = Rotation3::from_matrix(&tr.fixed_columns::<3>(0).into_owned());
        let camera_from_velodyne = Pose::from_parts(
            tr.column(3).into_owned().into(),
            UnitQuaternion::from_rotation_matrix(&rotation),
        );
        let rectified_from_camera = Pose::from_parts(nalgebra::Translation3::identity(), rect);
        Ok(Self {
            velodyne_from_camera: (rectified_from_camera * camera_from_velodyne).inverse(),
        })
    }
}

fn kitti_matrix<const N: usize>(
    path: &Path,
    text: &str,
    key: &str,
) -> Result<[f64; N], TruthError> {
    let error = |what: String| TruthError::Key {
        path: path.into(),
        key: key.into(),
        what,
    };
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))
        .ok_or_else(|| error("missing".into()))?;
    let values: Vec<f64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|e| error(format!("not a number: {e}")))?;
    if !values.iter().all(|v| v.is_finite()) {
        return Err(error("not finite".into()));
    }
    let count = values.len();
    values
        .try_into()
        .map_err(|_| error(format!("{count} numbers, expected {N}")))
}

/// The labels of one KITTI frame in the Velodyne's frame. `DontCare` regions have no box in space
/// and are left out.
pub fn load_kitti_labels(
    path: &Path,
    calibration: &KittiCalibration,
    map: &ClassMap,
) -> Result<Vec<Truth>, TruthError> {
    parse_kitti_labels(path, &read(path)?, calibration, map)
}

fn parse_kitti_labels(
    path: &Path,
    text: &str,
    calibration: &KittiCalibration,
    map: &ClassMap,
) -> Result<Vec<Truth>, TruthError> {
    let mut truths = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let error = |what: String| TruthError::Line {
            path: path.into(),
            line: i + 1,
            what,
        };
        let mut fields = line.split_whitespace();
        let Some(label) = fields.next() else { continue };
        if label == "DontCare" {
            continue;
        }
        let values: Vec<f64> = fields
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|e| error(format!("not a number: {e}")))?;
        // truncated, occluded, alpha, 2D box (4), height, width, length, x, y, z, rotation_y
        let [.., h, w, l, x, y, z, rotation_y] = values[..] else {
            return Err(error(format!("{} numbers, expected 14", values.len())));
        };
        if values.len() < 14 {
            return Err(error(format!("{} numbers, expected 14", values.len())));
        }
        // KITTI gives the centre of the bottom face, and the heading about the camera's y (down).
        let center = calibration.velodyne_from_camera * Point3::new(x, y - h / 2.0, z);
        let heading = calibration.velodyne_from_camera.rotation
            * Vector3::new(rotation_y.cos(), 0.0, -rotation_y.sin());
        let bbox = Box3d {
            center: center.coords.cast(),
            size: Vector3::new(l, w, h).cast(),
            yaw: wrap_angle(heading.y.atan2(heading.x) as f32),
        };
        check(&bbox).map_err(error)?;
        truths.push(map.truth(bbox, label.to_string()));
    }
    Ok(truths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use proptest::prelude::*;
    use std::f32::consts::FRAC_PI_2;

    fn classes() -> Vec<String> {
        ["CAR", "PEDESTRIAN"].map(String::from).to_vec()
    }

    fn load(json: &str, rules: &str) -> Result<Labels, TruthError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.json");
        std::fs::write(&path, json).unwrap();
        Labels::load(&path, &ClassMap::new(&classes(), rules)?)
    }

    const TWO: &str = r#"{"1000": [
        {"label": "VEHICLE", "center": [1, 2, 0], "size_lwh": [4, 2, 1.5], "yaw": 0.5,
         "track": "a", "velocity": [3, 0], "points": 12},
        {"label": "pedestrian", "center": [5, 0, 0], "size_lwh": [0.6, 0.6, 1.7], "yaw": 0}],
        "2000": []}"#;

    #[test]
    fn labels_become_classes_by_name_or_by_rule() {
        let plain = load(TWO, "").unwrap();
        let of = |labels: &Labels| -> Vec<(Option<usize>, bool)> {
            let truths = labels.at(1000).unwrap();
            truths.iter().map(|t| (t.class, t.ignored)).collect()
        };
        assert_eq!(of(&plain), [(None, false), (Some(1), false)]);
        assert_eq!(plain.unmapped(), [("VEHICLE", 1)].into());
        let ruled = load(TWO, "vehicle = car, PEDESTRIAN=ignore").unwrap();
        assert_eq!(of(&ruled), [(Some(0), false), (None, true)]);
        assert!(ruled.unmapped().is_empty());
    }

    #[test]
    fn optional_keys_may_be_absent() {
        let labels = load(TWO, "").unwrap();
        let [car, person] = labels.at(1000).unwrap() else {
            panic!("two boxes")
        };
        assert_eq!(car.velocity, Some(Vector2::new(3.0, 0.0)));
        assert_eq!((car.points, car.track.as_deref()), (Some(12), Some("a")));
        assert_eq!((person.velocity, person.points), (None, None));
        assert_eq!(labels.at(2000), Some(&[][..]));
        assert_eq!(labels.at(3000), None);
    }

    #[test]
    fn what_python_writes_for_what_it_does_not_know_is_unknown() {
        let gaps = TWO
            .replace("[3, 0]", "[NaN, NaN]")
            .replace(r#""points": 12"#, r#""points": NaN"#)
            .replace(r#""track": "a""#, r#""track": NaN"#);
        let labels = load(&gaps, "").unwrap();
        let car = &labels.at(1000).unwrap()[0];
        assert_eq!((car.velocity, car.points, &car.track), (None, None, &None));
        let whole = load(&TWO.replace(r#""points": 12"#, r#""points": 12.0"#), "").unwrap();
        assert_eq!(whole.at(1000).unwrap()[0].points, Some(12));
        for (from, to, part) in [
            ("[1, 2, 0]", "[1, NaN, 0]", "center is [1, NaN, 0]"),
            (r#""yaw": 0.5"#, r#""yaw": -Infinity"#, "yaw is -Infinity"),
            (r#""label": "VEHICLE""#, r#""label": NaN"#, "no name"),
        ] {
            let message = load(&TWO.replace(from, to), "").unwrap_err().to_string();
            assert!(
                message.contains("key 1000[0]") && message.contains(part),
                "{message}"
            );
        }
    }

    #[test]
    fn a_stamp_that_is_there_twice_is_refused() {
        for key in [r#""2000": [], "2000": []"#, r#""2000": [], "+2000": []"#] {
            let json = TWO.replace(r#""2000": []"#, key);
            let message = load(&json, "").unwrap_err().to_string();
            assert!(message.contains("twice"), "{message}");
        }
    }

    #[test]
    fn the_nearest_frame_counts_only_within_the_tolerance() {
        let labels = load(TWO, "").unwrap();
        assert_eq!(labels.nearest(1300, 300).unwrap().0, 1000);
        assert_eq!(labels.nearest(1800, 300).unwrap().0, 2000);
        assert_eq!(labels.nearest(1301, 300), None);
        assert!(labels.nearest(i64::MIN, 10).is_none());
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        for (json, parts) in [
            ("[1, 2]", &["labels.json", "no labels"][..]),
            ("{", &["labels.json", "JSON"]),
            (r#"{"now": []}"#, &["key now", "nanoseconds"]),
            (r#"{"1": 5}"#, &["key 1", "list"]),
            (r#"{"7": [{"label": "CAR"}]}"#, &["key 7[0]", "center"]),
            (
                r#"{"7": [{"label": "CAR", "center": [0,0,0], "size_lwh": [4,0,1], "yaw": 0}]}"#,
                &["key 7[0]", "positive"],
            ),
            (
                r#"{"7": [{"label": "CAR", "center": [0,1e99,0], "size_lwh": [4,2,1], "yaw": 0}]}"#,
                &["key 7[0]", "finite"],
            ),
            (
                r#"{"boxes_lidar": [[0,0,0,1,1,1,0]], "names": [], "timestamp": 5}"#,
                &["key names", "0 entries for 1"],
            ),
        ] {
            let message = load(json, "").unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "no `{part}` in `{message}`");
            }
        }
        let message = ClassMap::new(&classes(), "VAN=BUS")
            .unwrap_err()
            .to_string();
        assert!(message.contains("VAN=BUS") && message.contains("CAR, PEDESTRIAN"));
        assert!(ClassMap::new(&classes(), "VAN").is_err());
        let missing = Labels::load(Path::new("no/such.json"), &ClassMap::default());
        assert!(matches!(missing, Err(TruthError::Io { .. })));
    }

    #[test]
    fn a_nuscenes_key_frame_gives_boxes_in_the_lidar_frame() {
        let labels = load(
            r#"{"timestamp": 1533151605047769, "names": ["pedestrian", "car"],
                "boxes_lidar": [[1, 2, 3, 0.6, 0.5, 1.7, 0.1], [4, 5, 6, 4.2, 1.8, 1.5, -2]],
                "velocity_lidar_xy": [[0.5, -0.5], [null, null]], "num_lidar_pts": [6, 90]}"#,
            "",
        )
        .unwrap();
        let truths = labels.at(1_533_151_605_047_769_000).unwrap();
        assert_eq!(truths[0].class, Some(1));
        assert_eq!(truths[0].velocity, Some(Vector2::new(0.5, -0.5)));
        assert_eq!(truths[1].velocity, None);
        assert_eq!(truths[1].points, Some(90));
        assert_eq!(truths[1].bbox.size, Vector3::new(4.2, 1.8, 1.5));
    }

    /// A camera that looks along the Velodyne's x, 1 m to its left.
    const CALIBRATION: &str = "P2: 1 0 0 0 0 1 0 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\n\
        Tr_velo_to_cam: 0 -1 0 1 0 0 -1 0 1 0 0 0\nTr_imu_to_velo: 0 0 0 0 0 0 0 0 0 0 0 0\n";

    fn kitti(line: &str) -> Result<Vec<Truth>, TruthError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("000007.txt");
        std::fs::write(&path, CALIBRATION).unwrap();
        let calibration = KittiCalibration::load(&path)?;
        let map = ClassMap::new(&classes(), "")?;
        parse_kitti_labels(&path, line, &calibration, &map)
    }

    #[test]
    fn a_kitti_box_moves_to_the_velodyne_frame() {
        // 20 m ahead of the camera, 3 m to its right, bottom 1.6 m below it, heading forward
        // (rotation_y = -pi/2).
        let line = "Car 0.00 0 1.85 0 0 1 1 1.5 1.9 4.2 3.0 1.6 20.0 -1.5707963";
        let truths = kitti(line).unwrap();
        let bbox = truths[0].bbox;
        let expected = Vector3::new(20.0, 1.0 - 3.0, -1.6 + 0.75);
        assert_relative_eq!(bbox.center, expected, epsilon = 1e-5);
        assert_eq!(bbox.size, Vector3::new(4.2, 1.9, 1.5));
        assert_relative_eq!(bbox.yaw, 0.0, epsilon = 1e-5);
        assert_eq!(truths[0].class, Some(0));
        // rotation_y = 0 heads along the camera's x, to the right.
        let right = kitti(&line.replace("-1.5707963", "0")).unwrap();
        assert_relative_eq!(right[0].bbox.yaw, -FRAC_PI_2, epsilon = 1e-5);
    }

    #[test]
    fn kitti_regions_without_a_box_are_left_out_and_short_lines_refused() {
        let region = "DontCare -1 -1 -10 5 1 5 1 -1 -1 -1 -1000 -1000 -1000 -10";
        assert!(kitti(region).unwrap().is_empty());
        let message = kitti("Car 0.00 0 1.85").unwrap_err().to_string();
        assert!(
            message.contains("line 1") && message.contains("14"),
            "{message}"
        );
    }

    #[test]
    fn points_are_counted_in_the_newest_sweep_where_the_labels_have_no_count() {
        let mut truths = load(TWO, "").unwrap().at(1000).unwrap().to_vec();
        let point = |x: f32, time_lag: f32| crate::cloud::Point {
            x,
            time_lag,
            ..Default::default()
        };
        let points = Points(vec![
            point(5.0, 0.0),
            point(5.2, 0.0),
            point(5.1, 0.1),
            point(5.4, 0.0),
        ]);
        count_points(&mut truths, &points);
        assert_eq!(truths[0].points, Some(12), "a count of the labels stays");
        assert_eq!(truths[1].points, Some(2));
    }

    proptest! {
        #[test]
        fn a_box_moved_there_and_back_is_the_same(
            x in -80f32..80.0, y in -80f32..80.0, yaw in -3.1f32..3.1,
            dx in -5f64..5.0, turn in -3.1f64..3.1,
        ) {
            let bbox = Box3d {
                center: Vector3::new(x, y, 0.4),
                size: Vector3::new(4.0, 2.0, 1.5),
                yaw,
            };
            let pose = crate::geometry::pose_from_xyz_rpy([dx, 1.0, 1.8], [0.0, 0.0, turn]);
            let back = transform_box(&transform_box(&bbox, &pose), &pose.inverse());
            prop_assert!((back.center - bbox.center).norm() < 1e-3);
            prop_assert!(wrap_angle(back.yaw - bbox.yaw).abs() < 1e-3);
        }

        #[test]
        fn reading_any_text_gives_labels_or_an_error(text in "\\PC{0,200}") {
            let _ = load(&text, "");
        }

        #[test]
        fn reading_any_kitti_line_gives_labels_or_an_error(text in "[a-z0-9 .eE+-]{0,120}") {
            let _ = kitti(&text);
        }
    }
}
