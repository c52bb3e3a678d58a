//! The JSON file of detections that `detect` writes and `evaluate` and `render` read: that of the
//! labels (see [`truth`](super::truth)) with a score to each box.
//!
//! ```json
//! {"315978406019574000": [{"label": "CAR", "score": 0.9, "center": [10.0, 2.0, 0.8],
//!   "size_lwh": [4.4, 1.9, 1.6], "yaw": 0.1, "velocity": [3.0, 0.0]}]}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nalgebra::Vector2;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::geometry::{Box3d, Detection};

/// A detection with its class by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedDetection {
    pub label: String,
    /// Confidence, 0 to 1.
    pub score: f32,
    #[serde(flatten)]
    pub bbox: Box3d,
    /// Velocity over ground in the frame of the box, m/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub velocity: Option<Vector2<f32>>,
}

/// The detections of a recording, by stamp in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BoxesFile {
    pub frames: BTreeMap<i64, Vec<NamedDetection>>,
}

/// What is wrong with a file of detections.
#[derive(Debug, thiserror::Error)]
pub enum BoxesError {
    #[error("cannot read {path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not a file of detections by stamp: {source}")]
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
    #[error("a detection at {stamp} ns is `{label}`, which is none of the classes {classes}")]
    UnknownClass {
        stamp: i64,
        label: String,
        classes: String,
    },
}

impl BoxesFile {
    /// Reads and checks a file: stamps in nanoseconds, finite numbers, no negative size.
    pub fn load(path: &Path) -> Result<Self, BoxesError> {
        let text = std::fs::read_to_string(path).map_err(|source| BoxesError::Io {
            path: path.into(),
            source,
        })?;
        let top: BTreeMap<String, Vec<Value>> =
            serde_json::from_str(&text).map_err(|source| BoxesError::Json {
                path: path.into(),
                source,
            })?;
        let mut frames = BTreeMap::new();
        for (stamp, values) in top {
            let error = |key: String, what: String| BoxesError::Key {
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
            let mut detections = Vec::with_capacity(values.len());
            for (i, value) in values.into_iter().enumerate() {
                let key = || format!("{stamp}[{i}]");
                let detection: NamedDetection =
                    serde_json::from_value(value).map_err(|e| error(key(), e.to_string()))?;
                check(&detection).map_err(|what| error(key(), what.into()))?;
                detections.push(detection);
            }
            frames.insert(ns, detections);
        }
        Ok(Self { frames })
    }

    /// The names that occur.
    pub fn labels(&self) -> BTreeSet<&str> {
        let all = self.frames.values().flatten();
        all.map(|d| d.label.as_str()).collect()
    }

    /// Detections with their classes as indices into a list of names.
    pub fn with_classes(
        &self,
        classes: &[String],
    ) -> Result<BTreeMap<i64, Vec<Detection>>, BoxesError> {
        let index = |stamp: i64, d: &NamedDetection| {
            let class = classes.iter().position(|c| *c == d.label);
            let class = class.ok_or_else(|| BoxesError::UnknownClass {
                stamp,
                label: d.label.clone(),
                classes: classes.join(", "),
            })?;
            Ok(Detection {
                bbox: d.bbox,
                class,
                score: d.score,
                velocity: d.velocity,
            })
        };
        self.frames
            .iter()
            .map(|(stamp, found)| {
                let found: Result<_, _> = found.iter().map(|d| index(*stamp, d)).collect();
                Ok((*stamp, found?))
            })
            .collect()
    }
}

fn check(detection: &NamedDetection) -> Result<(), &'static str> {
    let Box3d { center, size, yaw } = &detection.bbox;
    let numbers = center.iter().chain(size.iter());
    let velocity = detection.velocity.iter().flat_map(|v| v.iter());
    if !numbers
        .chain(velocity)
        .chain([yaw, &detection.score])
        .all(|v| v.is_finite())
    {
        return Err("a number is not finite");
    }
    if size.min() < 0.0 {
        return Err("a size is negative");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(json: &str) -> Result<BoxesFile, BoxesError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boxes.json");
        std::fs::write(&path, json).unwrap();
        BoxesFile::load(&path)
    }

    const ONE: &str = r#"{"315978406019574001": [{"label": "CAR", "center": [1, 2, 3],
        "size_lwh": [4, 2, 1], "yaw": 0.5, "score": 0.75}], "5": []}"#;

    #[test]
    fn a_file_gives_its_frames_by_stamp_to_the_nanosecond() {
        let file = load(ONE).unwrap();
        assert_eq!(file.labels(), ["CAR"].into());
        let classes = ["BUS", "CAR"].map(String::from);
        let frames = file.with_classes(&classes).unwrap();
        assert_eq!(frames[&5], []);
        let found = &frames[&315_978_406_019_574_001][0];
        assert_eq!((found.class, found.score, found.velocity), (1, 0.75, None));
        assert_eq!(found.bbox.size.x, 4.0);
    }

    #[test]
    fn a_file_with_a_fault_is_refused_by_place() {
        for (from, to, part) in [
            ("[4, 2, 1]", "[4, -2, 1]", "negative"),
            ("0.75", "1e99", "finite"),
            (r#""yaw": 0.5, "#, "", "yaw"),
            (r#", "score": 0.75"#, "", "score"),
            ("315978406019574001", "now", "nanoseconds"),
            (r#""5": []"#, r#""5": 7"#, "boxes.json"),
        ] {
            let message = load(&ONE.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(part), "no `{part}` in `{message}`");
            assert!(message.contains("boxes.json"), "{message}");
        }
        let error = load(ONE).unwrap().with_classes(&["BUS".to_string()]);
        assert!(error.unwrap_err().to_string().contains("`CAR`"));
    }

    proptest! {
        #[test]
        fn reading_any_text_gives_boxes_or_an_error(text in "\\PC{0,200}") {
            let _ = load(&text);
        }
    }
}
