//! Reading the project's YAML files, whose refusals say what the file is where it is something else.

use std::path::Path;

use serde::de::DeserializeOwned;

/// Reads a text file; the error says what else it is.
pub(crate) fn read(path: &Path) -> Result<String, ReadError> {
    let bytes = std::fs::read(path).map_err(ReadError::Io)?;
    String::from_utf8(bytes).map_err(|_| ReadError::NoText)
}

pub(crate) enum ReadError {
    Io(std::io::Error),
    /// The bytes are no text.
    NoText,
}

/// Parses a file of a type whose `format` is a number; `path` only helps to guess what it is instead.
pub(crate) fn parse<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    format: u32,
) -> Result<T, String> {
    if is_too_deep(text) {
        return Err(format!("it is nested more than {DEEPEST} deep"));
    }
    let value: serde_yaml::Value = match serde_yaml::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            return Err(match looks_like_toml(text, path) {
                true => "it looks like TOML; it has to be YAML, `key: value`".into(),
                false => error.to_string(),
            });
        }
    };
    let map = match &value {
        serde_yaml::Value::Null => return Err("it is empty".into()),
        serde_yaml::Value::Mapping(map) => map,
        _ if looks_like_toml(text, path) => {
            return Err("it looks like TOML; it has to be YAML, `key: value`".into());
        }
        _ => return Err("it holds no keys; it has to be YAML, `key: value`".into()),
    };
    let parameters = |value: &serde_yaml::Value| value.get("ros__parameters").is_some();
    if parameters(&value) || map.values().any(parameters) {
        return Err("it holds parameters of a ROS node (`ros__parameters`)".into());
    }
    if map.contains_key("rosbag2_bagfile_information") {
        return Err("it is the metadata of a bag".into());
    }
    // Before the keys, which belong to the format.
    match map.get("format") {
        None => {
            return Err(format!(
                "it has no `format`, which comes first in every such file: `format: {format}`"
            ));
        }
        Some(found) if found.as_u64() == Some(u64::from(format)) => {}
        Some(serde_yaml::Value::Number(found)) => {
            let newer = found
                .as_f64()
                .is_some_and(|found| found > f64::from(format));
            let advice = match newer {
                true => "it needs a newer version of centerpoint_ptq",
                false => "write it anew after the documentation of this version",
            };
            return Err(format!(
                "its `format` is {found}, this version reads {format}; {advice}"
            ));
        }
        Some(found) => {
            let found = serde_yaml::to_string(found).unwrap_or_default();
            return Err(format!(
                "its `format` is {}; it has to be the number {format}",
                found.trim()
            ));
        }
    }
    // From the text and not from the value: its errors name the line.
    serde_yaml::from_str(text).map_err(|error| error.to_string())
}

/// No file of ours comes near, and the parser takes time by the square of the depth.
const DEEPEST: usize = 100;

fn is_too_deep(text: &str) -> bool {
    let mut depth = 0usize;
    text.lines().any(|line| {
        // Sequences and keys may be nested in one line without brackets.
        let marks = line
            .split_whitespace()
            .filter(|word| matches!(*word, "-" | "?"));
        marks.count() > DEEPEST
            || line.chars().any(|c| {
                match c {
                    '{' | '[' => depth += 1,
                    '}' | ']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                depth > DEEPEST
            })
    })
}

fn looks_like_toml(text: &str, path: &Path) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let first = first.unwrap_or_default();
    let key = first.split_once('=').map(|(key, _)| key.trim());
    let is_key = |key: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '"');
        !key.is_empty() && key.chars().all(plain)
    };
    path.extension().is_some_and(|e| e == "toml")
        || (first.starts_with('[') && first.ends_with(']') && !first.contains(','))
        || key.is_some_and(is_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        #[allow(dead_code)]
        format: u32,
        name: String,
    }

    fn read(text: &str) -> Result<Thing, String> {
        parse(text, Path::new("thing.yaml"), 3)
    }

    #[test]
    fn yaml_and_json_are_read() {
        assert_eq!(read("format: 3\nname: a").unwrap().name, "a");
        assert_eq!(read(r#"{"format": 3, "name": "a"}"#).unwrap().name, "a");
    }

    #[test]
    fn what_is_nested_beyond_reason_is_refused_before_it_is_parsed() {
        for text in [
            "{a: ".repeat(40_000),
            "- ".repeat(40_000),
            "[".repeat(200_000),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains("nested"), "{error}");
        }
        read("format: 3\nname: '[[[[['").unwrap();
    }

    #[test]
    fn what_it_is_instead_is_said() {
        for (text, expected) in [
            ("", "empty"),
            ("# nothing but words\n\n", "empty"),
            ("just words", "no keys"),
            ("format = 3\nname = \"a\"", "TOML"),
            ("[thing]\nname = \"a\"", "TOML"),
            ("name: a", "no `format`"),
            (
                "format: 2\nold: 1",
                "`format` is 2, this version reads 3; write it anew",
            ),
            ("format: 4\nnew: 1", "newer version"),
            ("format: \"3\"\nname: a", "the number 3"),
            (
                "/**:\n  ros__parameters:\n    a: 1",
                "parameters of a ROS node",
            ),
            (
                "rosbag2_bagfile_information:\n  version: 9",
                "metadata of a bag",
            ),
            ("format: 3\nname: a\nnaem: b", "naem"),
            ("format: 3\nname: [", "line"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
