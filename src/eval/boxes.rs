//! The JSON file of detections that `detect` writes and `evaluate` and `render` read.
//!
//! ```json
//! {"format": 1, "model": "demo", "classes": ["CAR"], "frames": [
//!   {"stamp": 315978406019574000, "frame_id": "base_link", "detections": [
//!     {"center": [10.0, 2.0, 0.8], "size_lwh": [4.4, 1.9, 1.6], "yaw": 0.1,
//!      "class": 0, "score": 0.9, "velocity": [3.0, 0.0]}]}]}
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::geometry::Detection;

/// Detections of a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoxesFile {
    /// Version of this layout, 1.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Name of the model.
    #[serde(default)]
    pub model: String,
    /// Names that [`Detection::class`] indexes.
    pub classes: Vec<String>,
    pub frames: Vec<BoxesFrame>,
}

/// Detections of one frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoxesFrame {
    /// Nanoseconds since the epoch; a string of digits is read, too.
    #[serde(deserialize_with = "stamp")]
    pub stamp: i64,
    /// Coordinate frame of the boxes.
    #[serde(default)]
    pub frame_id: String,
    pub detections: Vec<Detection>,
}

fn first_format() -> u32 {
    1
}

fn stamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(ns) => Ok(ns),
        Either::Text(text) => text
            .parse()
            .map_err(|_| D::Error::custom(format!("stamp `{text}` is not in nanoseconds"))),
    }
}

/// What is wrong with a file of detections.
#[derive(Debug, thiserror::Error)]
pub enum BoxesError {
    #[error("cannot read or write {path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not a file of detections: {source}")]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path} has format {format}; this version reads format 1")]
    Format { path: PathBuf, format: u32 },
    #[error("{path}, frame {stamp}, detection {index}: {what}")]
    Detection {
        path: PathBuf,
        stamp: i64,
        index: usize,
        what: String,
    },
}

impl BoxesFile {
    /// Reads and checks a file: finite boxes with sizes that are not negative, known classes.
    pub fn load(path: &Path) -> Result<Self, BoxesError> {
        let text = std::fs::read_to_string(path).map_err(|source| BoxesError::Io {
            path: path.into(),
            source,
        })?;
        let file: Self = serde_json::from_str(&text).map_err(|source| BoxesError::Json {
            path: path.into(),
            source,
        })?;
        if file.format != 1 {
            return Err(BoxesError::Format {
                path: path.into(),
                format: file.format,
            });
        }
        for frame in &file.frames {
            for (index, d) in frame.detections.iter().enumerate() {
                let numbers = d.bbox.center.iter().chain(d.bbox.size.iter());
                let finite = numbers
                    .chain([&d.bbox.yaw, &d.score])
                    .all(|v| v.is_finite());
                let what = if !finite {
                    "a number that is not finite".to_string()
                } else if d.bbox.size.min() < 0.0 {
                    "a negative size".to_string()
                } else if d.class >= file.classes.len() {
                    format!("class {} of {}", d.class, file.classes.len())
                } else {
                    continue;
                };
                return Err(BoxesError::Detection {
                    path: path.into(),
                    stamp: frame.stamp,
                    index,
                    what,
                });
            }
        }
        Ok(file)
    }

    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<(), BoxesError> {
        let io = |source| BoxesError::Io {
            path: path.into(),
            source,
        };
        let json = serde_json::to_string(self).map_err(|source| BoxesError::Json {
            path: path.into(),
            source,
        })?;
        std::fs::write(path, json).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(json: &str) -> Result<BoxesFile, BoxesError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boxes.json");
        std::fs::write(&path, json).unwrap();
        BoxesFile::load(&path)
    }

    const ONE: &str = r#"{"classes": ["CAR"], "frames": [{"stamp": "315978406019574001",
        "detections": [{"center": [1, 2, 3], "size_lwh": [4, 2, 1], "yaw": 0.5, "class": 0,
                        "score": 0.75}]}]}"#;

    #[test]
    fn a_file_survives_writing_and_reading_to_the_nanosecond() {
        let file = load(ONE).unwrap();
        assert_eq!(file.frames[0].stamp, 315_978_406_019_574_001);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("again.json");
        file.save(&path).unwrap();
        assert_eq!(BoxesFile::load(&path).unwrap(), file);
    }

    #[test]
    fn a_file_with_a_fault_is_refused_by_place() {
        for (from, to, part) in [
            (r#""class": 0"#, r#""class": 1"#, "class 1 of 1"),
            ("[4, 2, 1]", "[4, -2, 1]", "negative"),
            ("0.75", "1e99", "finite"),
            (r#""yaw": 0.5, "#, "", "yaw"),
            ("315978406019574001", "now", "nanoseconds"),
            (r#"{"classes""#, r#"{"format": 2, "classes""#, "format 2"),
        ] {
            let message = load(&ONE.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(part), "no `{part}` in `{message}`");
            assert!(message.contains("boxes.json"), "{message}");
        }
    }
}
