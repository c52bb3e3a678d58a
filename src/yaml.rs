//! Reading YAML that comes from outside, which can neither exhaust the reader nor fill a log; and the project's own YAML
//! files, whose refusals say what the file is where it is something else.
//!
//! Size, depth, nodes and what aliases expand to are held against [`Bounds`] before `serde_yaml` sees the text: its parser
//! takes time by the square of the depth and memory by the number of nodes, and a value that comes from aliases may be larger than its
//! text by any factor. What is counted are the events of the same libyaml, so the two cannot differ about what is nested.

use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::mem::MaybeUninit;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::files::{self, FileError};
use crate::text::excerpt;

/// What a YAML text from outside may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Of the text, and again of all strings with aliases expanded.
    pub bytes: usize,
    /// Scalars, sequences and mappings, with aliases expanded.
    pub nodes: usize,
    pub depth: usize,
}

impl Bounds {
    /// For what people write: descriptions, recipes, parameters. The longest of those is a hundredth of it.
    pub const SETTINGS: Bounds = Bounds {
        bytes: 1 << 20,
        nodes: 100_000,
        depth: 100,
    };
    /// For the metadata of a bag: 10,000 files and 1,000 topics with the QoS of several publishers each fit in.
    pub const METADATA: Bounds = Bounds {
        bytes: 16 << 20,
        nodes: 1_000_000,
        depth: 100,
    };
}

/// Why a YAML text is refused. What it quotes of the text is short and has no control characters.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    #[error("it is longer than {limit} bytes, the most that is read")]
    Bytes { limit: usize },
    #[error("it is nested more than {limit} deep at line {line}")]
    Depth { limit: usize, line: u64 },
    #[error("it holds more than {limit} values at line {line}, with aliases expanded")]
    Nodes { limit: usize, line: u64 },
    #[error("its strings are longer than {limit} bytes at line {line}, with aliases expanded")]
    Expanded { limit: usize, line: u64 },
    #[error("it has a value that contains itself, at line {line}")]
    Recursive { line: u64 },
    #[error("it has more than {limit} `%` directives at line {line}")]
    Directives { limit: usize, line: u64 },
    #[error("{0}")]
    Content(String),
}

impl From<serde_yaml::Error> for YamlError {
    fn from(error: serde_yaml::Error) -> Self {
        YamlError::Content(excerpt(&error.to_string()))
    }
}

/// Parses a text from outside.
pub(crate) fn from_str_bounded<T: DeserializeOwned>(
    text: &str,
    bounds: &Bounds,
) -> Result<T, YamlError> {
    check(text, bounds)?;
    Ok(serde_yaml::from_str(text)?)
}

/// Reads a text file of at most `bytes`; the error says what else it is. Only a regular file is read: a pipe may never
/// end, and opening a device may do something.
pub(crate) fn read_bounded(path: &Path, bytes: usize) -> Result<String, ReadError> {
    let content = files::read_bounded(path, bytes as u64).map_err(|error| {
        ReadError::Io(match error {
            FileError::Io(error) => error,
            FileError::NotRegular(_) if path.is_dir() => ErrorKind::IsADirectory.into(),
            FileError::NotRegular(_) => Error::other("it is no regular file"),
            FileError::TooLarge { .. } => {
                let limit = YamlError::Bytes { limit: bytes };
                Error::new(ErrorKind::FileTooLarge, limit.to_string())
            }
        })
    })?;
    String::from_utf8(content).map_err(|_| ReadError::NoText)
}

/// Reads one of the project's own files.
pub(crate) fn read(path: &Path) -> Result<String, ReadError> {
    read_bounded(path, Bounds::SETTINGS.bytes)
}

pub(crate) enum ReadError {
    Io(std::io::Error),
    /// The bytes are no text.
    NoText,
}

/// What is open in a text, and what it has come to.
#[derive(Default)]
struct Open {
    /// Whose anchor it is, if it has one.
    anchor: Option<Vec<u8>>,
    size: Size,
}

/// What a value comes to with its aliases expanded.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
}

impl Size {
    fn add(&mut self, other: Size) {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Holds a text against its bounds. A text that is no YAML passes up to where that shows: the parser tells it better.
fn check(text: &str, bounds: &Bounds) -> Result<(), YamlError> {
    if text.len() > bounds.bytes {
        return Err(YamlError::Bytes {
            limit: bounds.bytes,
        });
    }
    // Each is compared with all before it.
    const DIRECTIVES: usize = 16;
    let directives = (1..).zip(text.lines()).filter(|(_, l)| l.starts_with('%'));
    if let Some((line, _)) = directives.clone().nth(DIRECTIVES) {
        return Err(YamlError::Directives {
            limit: DIRECTIVES,
            line,
        });
    }
    let mut events = Events::new(text);
    // The first holds the whole document.
    let mut open = vec![Open::default()];
    let mut anchors: HashMap<Vec<u8>, Size> = HashMap::new();
    let mut total = Size::default();
    while let Some((event, line)) = events.next() {
        let mut ended = None;
        let one = Size { nodes: 1, bytes: 0 };
        match event {
            Event::Scalar { anchor, bytes } => ended = Some((anchor, Size { nodes: 1, bytes })),
            Event::Start { anchor } => {
                if open.len() > bounds.depth {
                    return Err(YamlError::Depth {
                        limit: bounds.depth,
                        line,
                    });
                }
                total.add(one);
                open.push(Open { anchor, size: one });
            }
            Event::End => {
                let Some(Open { anchor, size }) = open.pop() else {
                    break;
                };
                if let Some(parent) = open.last_mut() {
                    parent.size.add(size);
                }
                if let Some(anchor) = anchor {
                    anchors.insert(anchor, size);
                }
            }
            Event::Alias { anchor } => {
                if open.iter().any(|o| o.anchor.as_ref() == Some(&anchor)) {
                    return Err(YamlError::Recursive { line });
                }
                // One that is not known is an error of the parser's.
                ended = Some((None, anchors.get(&anchor).copied().unwrap_or_default()));
            }
            Event::Other => {}
        }
        if let Some((anchor, size)) = ended {
            total.add(size);
            if let Some(parent) = open.last_mut() {
                parent.size.add(size);
            }
            if let Some(anchor) = anchor {
                anchors.insert(anchor, size);
            }
        }
        if total.nodes > bounds.nodes {
            return Err(YamlError::Nodes {
                limit: bounds.nodes,
                line,
            });
        }
        if total.bytes > bounds.bytes {
            return Err(YamlError::Expanded {
                limit: bounds.bytes,
                line,
            });
        }
    }
    Ok(())
}

enum Event {
    Scalar {
        anchor: Option<Vec<u8>>,
        bytes: usize,
    },
    /// Of a sequence or mapping.
    Start {
        anchor: Option<Vec<u8>>,
    },
    End,
    Alias {
        anchor: Vec<u8>,
    },
    Other,
}

/// libyaml's events of a text, which it reads no further than it is asked to: whoever stops at a depth has paid for no
/// more than that.
struct Events<'a> {
    parser: Box<MaybeUninit<unsafe_libyaml::yaml_parser_t>>,
    ended: bool,
    text: std::marker::PhantomData<&'a str>,
}

impl<'a> Events<'a> {
    fn new(text: &'a str) -> Self {
        let mut parser = Box::new(MaybeUninit::uninit());
        // SAFETY: the parser is initialized before all else, and stays where it is, in its box. The text outlives it by `'a`.
        let ready = unsafe {
            let parser: *mut unsafe_libyaml::yaml_parser_t = parser.as_mut_ptr();
            let ready = unsafe_libyaml::yaml_parser_initialize(parser).ok;
            if ready {
                unsafe_libyaml::yaml_parser_set_encoding(
                    parser,
                    unsafe_libyaml::YAML_UTF8_ENCODING,
                );
                unsafe_libyaml::yaml_parser_set_input_string(
                    parser,
                    text.as_ptr(),
                    text.len() as u64,
                );
            }
            ready
        };
        // It only fails for lack of memory.
        assert!(ready, "libyaml has no memory for a parser");
        Events {
            parser,
            ended: false,
            text: std::marker::PhantomData,
        }
    }

    /// The next event and the line it begins at; `None` at the end, and where the text is no YAML.
    fn next(&mut self) -> Option<(Event, u64)> {
        if self.ended {
            return None;
        }
        let mut event = MaybeUninit::<unsafe_libyaml::yaml_event_t>::uninit();
        // SAFETY: the parser was initialized by `new` and has not failed before. An event is only looked at after it was
        // written, by the type that it says it has, and its strings are copied before it is deleted.
        unsafe {
            if unsafe_libyaml::yaml_parser_parse(self.parser.as_mut_ptr(), event.as_mut_ptr()).fail
            {
                self.ended = true;
                return None;
            }
            let event = event.as_mut_ptr();
            let line = (*event).start_mark.line + 1;
            let told = match (*event).type_ {
                unsafe_libyaml::YAML_NO_EVENT | unsafe_libyaml::YAML_STREAM_END_EVENT => {
                    self.ended = true;
                    Event::Other
                }
                unsafe_libyaml::YAML_SCALAR_EVENT => Event::Scalar {
                    anchor: name((*event).data.scalar.anchor),
                    bytes: (*event).data.scalar.length as usize,
                },
                unsafe_libyaml::YAML_SEQUENCE_START_EVENT => Event::Start {
                    anchor: name((*event).data.sequence_start.anchor),
                },
                unsafe_libyaml::YAML_MAPPING_START_EVENT => Event::Start {
                    anchor: name((*event).data.mapping_start.anchor),
                },
                unsafe_libyaml::YAML_SEQUENCE_END_EVENT
                | unsafe_libyaml::YAML_MAPPING_END_EVENT => Event::End,
                unsafe_libyaml::YAML_ALIAS_EVENT => Event::Alias {
                    anchor: name((*event).data.alias.anchor).unwrap_or_default(),
                },
                _ => Event::Other,
            };
            unsafe_libyaml::yaml_event_delete(event);
            Some((told, line))
        }
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // SAFETY: `new` initialized it, and nothing uses it any more.
        unsafe { unsafe_libyaml::yaml_parser_delete(self.parser.as_mut_ptr()) }
    }
}

/// # Safety
/// `anchor` is null or a string that ends with NUL.
unsafe fn name(anchor: *const u8) -> Option<Vec<u8>> {
    if anchor.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    let name = unsafe { std::ffi::CStr::from_ptr(anchor.cast()) };
    Some(name.to_bytes().to_vec())
}

/// Parses a file of a type whose `format` is a number; `path` only helps to guess what it is instead.
pub(crate) fn parse<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    format: u32,
) -> Result<T, String> {
    let value: serde_yaml::Value = match from_str_bounded(text, &Bounds::SETTINGS) {
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
                excerpt(found.trim())
            ));
        }
    }
    // From the text and not from the value: its errors name the line.
    serde_yaml::from_str(text).map_err(|error| YamlError::from(error).to_string())
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
        let started = std::time::Instant::now();
        let lines: String = (0..400).map(|i| " ".repeat(i) + "a:\n").collect();
        for text in [
            "{a: ".repeat(40_000),
            "- ".repeat(40_000),
            "? ".repeat(40_000),
            "[".repeat(200_000),
            format!("format: 3 # ]]\nname: {}", "[\n']', ".repeat(100_000)),
            // A quote that a reader of brackets would take for the beginning of a string.
            format!("a: b'\nc: {}", "[\n".repeat(100_000)),
            lines,
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains("nested more than 100 deep"), "{error}");
            assert!(error.contains("at line"), "{error}");
        }
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
        // Brackets in strings and comments are nothing deep.
        let brackets = "[{".repeat(300);
        read(&format!("format: 3 # {brackets}\nname: '{brackets}'")).unwrap();
    }

    fn value(text: &str) -> Result<serde_yaml::Value, YamlError> {
        from_str_bounded(text, &Bounds::SETTINGS)
    }

    #[test]
    fn a_text_that_is_too_long_is_refused_unread() {
        let text = format!("a: '{}'", "x".repeat(1 << 20));
        let error = value(&text).unwrap_err();
        assert!(matches!(error, YamlError::Bytes { limit: 1_048_576 }));
        let many = "[".to_owned() + &"a,".repeat(200_000) + "]";
        let error = value(&many).unwrap_err();
        assert!(matches!(error, YamlError::Nodes { line: 1, .. }), "{error}");
    }

    #[test]
    fn aliases_count_as_what_they_expand_to() {
        let shared = "base: &b {x: 1, y: [2, 3]}\none: *b\ntwo: *b\n";
        let parsed = value(shared).unwrap();
        assert_eq!(parsed["one"], parsed["base"]);

        // A billion laughs.
        let mut text = "a0: &a0 [lol, lol]\n".to_owned();
        for i in 1..30 {
            let before = i - 1;
            text += &format!("a{i}: &a{i} [*a{before}, *a{before}, *a{before}]\n");
        }
        let error = value(&text).unwrap_err();
        assert!(matches!(error, YamlError::Nodes { .. }), "{error}");
        assert!(error.to_string().contains("at line 10,"), "{error}");

        let long = "x".repeat(100_000);
        let text = format!("[&a {long}{}]", ", *a".repeat(100));
        let error = value(&text).unwrap_err();
        assert!(matches!(error, YamlError::Expanded { .. }), "{error}");

        let error = value("a: &a [1, *a]").unwrap_err();
        assert!(matches!(error, YamlError::Recursive { line: 1 }), "{error}");
    }

    #[test]
    fn directives_that_are_compared_with_each_other_are_few() {
        let text: String = (0..50_000).map(|i| format!("%TAG !a{i}! x\n")).collect();
        let error = value(&(text + "--- a")).unwrap_err();
        assert!(
            matches!(error, YamlError::Directives { line: 17, .. }),
            "{error}"
        );
        assert_eq!(value("%YAML 1.1\n--- a").unwrap(), "a");
    }

    #[test]
    fn an_error_quotes_little_and_nothing_that_a_terminal_obeys() {
        let name = format!("\\x1b[2J\\n{}", "y".repeat(100_000));
        let error = read(&format!("format: 3\nname: a\n? \"{name}\"\n: b")).unwrap_err();
        assert!(error.len() < 400, "{} bytes", error.len());
        assert!(!error.contains(char::is_control), "{error}");
        assert!(error.contains("unknown field"), "{error}");
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn only_a_regular_file_is_read_and_no_more_of_it_than_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.yaml");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        for path in [path.as_path(), Path::new("/dev/zero"), folder.path()] {
            assert!(matches!(super::read(path), Err(ReadError::Io(_))));
        }
        let path = folder.path().join("long.yaml");
        std::fs::write(&path, " ".repeat(11)).unwrap();
        assert!(matches!(read_bounded(&path, 10), Err(ReadError::Io(_))));
        assert!(matches!(read_bounded(&path, 11), Ok(text) if text.len() == 11));
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
