//! The JSON file of detections that `detect` writes and `evaluate` and `render` read: that of the
//! labels (see [`truth`](super::truth)) with a score to each box.
//!
//! ```json
//! {"315978406019574000": [{"label": "CAR", "score": 0.9, "center": [10.0, 2.0, 0.8],
//!   "size_lwh": [4.4, 1.9, 1.6], "yaw": 0.1, "velocity": [3.0, 0.0]}]}
//! ```
//!
//! Where clouds were lost, or something made the results worse, the key `input` holds an
//! [`InputSummary`] beside the stamps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nalgebra::Vector2;
use serde_json::Value;

use super::json::{Entries, if_known, known, name, strict};
use crate::cloud::summary::InputSummary;
use crate::geometry::{Box3d, Detection};

/// A detection with its class by name.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedDetection {
    pub label: String,
    /// Confidence, 0 to 1.
    pub score: f32,
    pub bbox: Box3d,
    /// Velocity over ground in the frame of the box, m/s.
    pub velocity: Option<Vector2<f32>>,
}

/// The detections of a recording, by stamp in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BoxesFile {
    pub frames: BTreeMap<i64, Vec<NamedDetection>>,
    /// What the detections were made from, where the file says so.
    pub input: Option<InputSummary>,
}

/// The key of [`BoxesFile::input`].
const INPUT: &str = "input";

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
        let Entries(top) =
            serde_json::from_str(&strict(&text)).map_err(|source| BoxesError::Json {
                path: path.into(),
                source,
            })?;
        let mut file = Self::default();
        for (stamp, value) in top {
            let error = |key: String, what: String| BoxesError::Key {
                path: path.into(),
                key,
                what,
            };
            if stamp == INPUT {
                let input = serde_json::from_value(value);
                file.input = Some(input.map_err(|e| error(stamp, e.to_string()))?);
                continue;
            }
            let ns: i64 = stamp.parse().map_err(|_| {
                error(
                    stamp.clone(),
                    "a frame's key is its stamp in nanoseconds".into(),
                )
            })?;
            let Value::Array(values) = value else {
                return Err(error(stamp, "expected a list of detections".into()));
            };
            let mut detections = Vec::with_capacity(values.len());
            for (i, value) in values.iter().enumerate() {
                let found = detection(value);
                detections.push(found.map_err(|what| error(format!("{stamp}[{i}]"), what))?);
            }
            if file.frames.insert(ns, detections).is_some() {
                return Err(error(stamp, "this stamp is there twice".into()));
            }
        }
        Ok(file)
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

fn detection(value: &Value) -> Result<NamedDetection, String> {
    let needed = |key: &str| {
        value
            .get(key)
            .ok_or_else(|| format!("missing field `{key}`"))
    };
    let label = name("label", Some(needed("label")?))?;
    let ([score], [yaw]) = (
        known("score", needed("score")?)?,
        known("yaw", needed("yaw")?)?,
    );
    let bbox = Box3d {
        center: known::<3>("center", needed("center")?)?.into(),
        size: known::<3>("size_lwh", needed("size_lwh")?)?.into(),
        yaw,
    };
    if bbox.size.min() < 0.0 {
        return Err("a size is negative".into());
    }
    Ok(NamedDetection {
        label: label.ok_or("the label has no name")?,
        score,
        bbox,
        velocity: if_known::<2>("velocity", value.get("velocity"))?.map(Vector2::from),
    })
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

    #[test]
    fn what_the_detections_were_made_from_is_no_frame() {
        let json = ONE.replace(
            r#""5": []"#,
            r#""5": [], "input": {"frames": 2, "losses": [{"kind": "bad_cloud", "count": 1, "text": "no x"}]}"#,
        );
        let file = load(&json).unwrap();
        assert_eq!(file.frames.len(), 2);
        assert!(file.input.unwrap().has_losses());
        assert_eq!(load(ONE).unwrap().input, None);
    }

    #[test]
    fn a_velocity_that_is_not_known_may_be_nan() {
        let json = ONE.replace(r#""yaw": 0.5"#, r#""yaw": 0.5, "velocity": [NaN, 1]"#);
        let frames = load(&json).unwrap().frames;
        assert_eq!(frames[&315_978_406_019_574_001][0].velocity, None);
        let error = load(&ONE.replace("0.75", "NaN")).unwrap_err().to_string();
        assert!(error.contains("score is NaN"), "{error}");
    }

    proptest! {
        #[test]
        fn reading_any_text_gives_boxes_or_an_error(text in "\\PC{0,200}") {
            let _ = load(&text);
        }
    }
}
