//! Opens rosbag2 folders and files and iterates over their messages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Stamp;
use super::mcap_file::McapFile;
use super::metadata::{Metadata, MetadataFile, VERSION};
use super::sqlite_file::SqliteFile;

/// Why a bag, or a part of it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BagError {
    #[error("{0}: there is no such file or folder")]
    NotFound(PathBuf),
    #[error(
        "{path} holds no bag: a rosbag2 folder has a metadata.yaml and .mcap or .db3 files, \
         here there {found}"
    )]
    NoBag { path: PathBuf, found: String },
    #[error(
        "{path} is neither MCAP nor SQLite (nor a zstd-compressed one): it begins with {start}"
    )]
    Magic { path: PathBuf, start: String },
    #[error(
        "{path} is a ROS 1 recording ({what}); only ROS 2 (CDR) is read. Convert it first, for \
         example a .bag with `rosbags-convert` from the Python package rosbags, or replay it \
         through ros1_bridge and record it with `ros2 bag record`"
    )]
    Ros1 { path: PathBuf, what: String },
    #[error("{path} is not a rosbag2 metadata file: {source}")]
    Metadata {
        path: PathBuf,
        source: serde_yaml::Error,
    },
    #[error("{metadata} lists {file}, which is not there")]
    MissingFile { metadata: PathBuf, file: PathBuf },
    #[error("{path}: {what} compression \"{format}\" is not supported; rosbag2's \"zstd\" is")]
    Compression {
        path: PathBuf,
        what: &'static str,
        format: String,
    },
    #[error(
        "{path}: topic {topic} is encoded as \"{encoding}\", but only \"cdr\" (ROS 2) can be read"
    )]
    Encoding {
        path: PathBuf,
        topic: String,
        encoding: String,
    },
    #[error("{path} is damaged at byte {offset}: {reason}")]
    Corrupt {
        path: PathBuf,
        offset: u64,
        reason: String,
    },
    #[error("{path} is damaged or no rosbag2 database: {source}")]
    Sqlite {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("{topic} at {log_time}: the message cannot be unpacked: {source}")]
    Message {
        topic: Arc<str>,
        log_time: Stamp,
        source: std::io::Error,
    },
    #[error("{path} cannot be read: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl BagError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| BagError::Io { path, source }
    }

    pub(super) fn sqlite(path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        let path = path.to_owned();
        move |source| BagError::Sqlite { path, source }
    }
}

/// A topic of a bag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    /// As in `sensor_msgs/msg/PointCloud2`.
    pub type_name: String,
    /// Messages on it, where the bag says so.
    pub count: Option<u64>,
}

/// A message as it lies in the bag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    pub topic: Arc<str>,
    /// When it was recorded, ns since the epoch.
    pub log_time: i64,
    /// CDR; decode with [`Message::decode`](super::msg::Message::decode).
    pub data: Vec<u8>,
}

/// Which topics an iteration is after.
#[derive(Debug, Clone)]
pub(super) enum Selection {
    All,
    /// None of them: for reading a file only to see what is in it.
    Nothing,
    Topics(Arc<BTreeSet<String>>),
}

impl Selection {
    pub fn wants(&self, topic: &str) -> bool {
        match self {
            Selection::All => true,
            Selection::Nothing => false,
            Selection::Topics(topics) => topics.contains(topic),
        }
    }
}

/// An opened bag. Iterations are independent of each other and of the reader.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    files: Vec<PathBuf>,
    /// Each message is a zstd frame of its own (compression mode "message").
    packed_messages: bool,
    topics: Vec<Topic>,
    times: Option<(Stamp, Stamp)>,
}

impl Reader {
    /// Opens a rosbag2 folder, a `.mcap` or a `.db3`, or one of these packed with zstd.
    ///
    /// A folder without `metadata.yaml` (an unfinished recording) is read by the files in it, in
    /// the order of their names. What is in a file is told by its first bytes, not by its name.
    pub fn open(path: &Path) -> Result<Self, BagError> {
        if !path.exists() {
            return Err(BagError::NotFound(path.to_owned()));
        }
        if !path.is_dir() {
            // The file a user picks may be one of a folder that has metadata; the file is what
            // was asked for.
            if path.file_name().is_some_and(|name| name == "metadata.yaml")
                && let Some(folder) = path.parent()
            {
                return Self::open_folder(if folder.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    folder
                });
            }
            return Self::from_files(path, vec![path.to_owned()], false);
        }
        Self::open_folder(path)
    }

    fn open_folder(folder: &Path) -> Result<Self, BagError> {
        let metadata_path = folder.join("metadata.yaml");
        if metadata_path.is_file() {
            return Self::from_metadata(folder, &metadata_path);
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(BagError::io(folder))? {
            let entry = entry.map_err(BagError::io(folder))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort_by_key(|name| natural_key(name));
        let is_bag = |name: &&String| {
            let name = name.strip_suffix(".zstd").unwrap_or(name);
            name.ends_with(".mcap") || name.ends_with(".db3")
        };
        let files: Vec<PathBuf> = names
            .iter()
            .filter(is_bag)
            .map(|n| folder.join(n))
            .collect();
        if files.is_empty() {
            return Err(BagError::NoBag {
                path: folder.to_owned(),
                found: list(&names),
            });
        }
        tracing::warn!(
            folder = %folder.display(),
            "no metadata.yaml; taking the {} bag files in the order of their names",
            files.len()
        );
        Self::from_files(folder, files, false)
    }

    fn from_metadata(folder: &Path, metadata_path: &Path) -> Result<Self, BagError> {
        let text = fs::read_to_string(metadata_path).map_err(BagError::io(metadata_path))?;
        let metadata: Metadata = serde_yaml::from_str::<MetadataFile>(&text)
            .map_err(|source| BagError::Metadata {
                path: metadata_path.to_owned(),
                source,
            })?
            .rosbag2_bagfile_information;
        if metadata.version > VERSION {
            tracing::warn!(
                file = %metadata_path.display(),
                "metadata version {} is newer than {VERSION}; reading on",
                metadata.version
            );
        }
        let mode = metadata.compression_mode.to_ascii_lowercase();
        let packed = matches!(mode.as_str(), "file" | "message");
        if packed && metadata.compression_format != "zstd" {
            return Err(BagError::Compression {
                path: metadata_path.to_owned(),
                what: "bag",
                format: metadata.compression_format,
            });
        }
        let mut listed = metadata.relative_file_paths;
        if listed.is_empty() {
            listed = metadata.files.into_iter().map(|file| file.path).collect();
        }
        if listed.is_empty() {
            return Err(BagError::NoBag {
                path: folder.to_owned(),
                found: "is a metadata.yaml that lists no files".into(),
            });
        }
        let files = listed
            .iter()
            .map(|name| {
                find_listed(folder, name).ok_or_else(|| BagError::MissingFile {
                    metadata: metadata_path.to_owned(),
                    file: folder.join(name),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let packed_messages = mode == "message";
        if metadata.topics_with_message_count.is_empty() {
            return Self::from_files(folder, files, packed_messages);
        }
        // The index of a plain file is cheap to read, and refuses ROS 1 before anybody waits.
        let plain = |file: &&PathBuf| file.extension().is_none_or(|ending| ending != "zstd");
        open_all(files.iter().filter(plain), |_| Ok(()))?;
        let mut topics = BTreeMap::new();
        for topic in metadata.topics_with_message_count {
            let format = &topic.topic_metadata.serialization_format;
            if !matches!(format.as_str(), "cdr" | "") {
                tracing::warn!(
                    topic = topic.topic_metadata.name,
                    "serialization format \"{format}\" cannot be read"
                );
            }
            let name = topic.topic_metadata.name;
            merge(
                &mut topics,
                Topic {
                    name,
                    type_name: topic.topic_metadata.type_name,
                    count: Some(topic.message_count),
                },
            );
        }
        let start = metadata.starting_time.nanoseconds_since_epoch;
        let end = start.saturating_add(metadata.duration.nanoseconds);
        Ok(Reader {
            path: folder.to_owned(),
            files,
            packed_messages,
            topics: topics.into_values().collect(),
            times: (metadata.message_count > 0).then_some((Stamp(start), Stamp(end))),
        })
    }

    fn from_files(
        path: &Path,
        files: Vec<PathBuf>,
        packed_messages: bool,
    ) -> Result<Self, BagError> {
        let mut topics = BTreeMap::new();
        let mut times: Option<(Stamp, Stamp)> = None;
        open_all(&files, |mut file| {
            for topic in file.topics()? {
                merge(&mut topics, topic);
            }
            if let Some((start, end)) = file.times() {
                let (start, end) = (Stamp(start), Stamp(end));
                times = Some(times.map_or((start, end), |t| (t.0.min(start), t.1.max(end))));
            }
            Ok(())
        })?;
        Ok(Reader {
            path: path.to_owned(),
            files,
            packed_messages,
            topics: topics.into_values().collect(),
            times,
        })
    }

    /// The path the bag was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bag's files in the order they are read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Log times of the first and last message, where the bag says so.
    pub fn times(&self) -> Option<(Stamp, Stamp)> {
        self.times
    }

    /// All topics, sorted by name.
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// The topics whose messages are of type `type_name`.
    pub fn topics_of_type<'a>(&'a self, type_name: &'a str) -> impl Iterator<Item = &'a Topic> {
        self.topics.iter().filter(move |t| t.type_name == type_name)
    }

    /// Iterates over the messages of `topics`, file after file, in the order of recording.
    /// Topics that the bag does not have yield nothing.
    ///
    /// Damage is an error item: iteration goes on behind it where that is possible and ends
    /// otherwise, so a recording that was cut off yields what is whole, then one error.
    pub fn messages(&self, topics: &[&str]) -> Messages {
        let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
        self.iterate(Selection::Topics(Arc::new(topics)))
    }

    /// Like [`messages`](Reader::messages), for all topics.
    pub fn all_messages(&self) -> Messages {
        self.iterate(Selection::All)
    }

    fn iterate(&self, selection: Selection) -> Messages {
        Messages {
            files: self.files.clone().into(),
            current: None,
            selection,
            packed_messages: self.packed_messages,
        }
    }
}

/// Looks into the files of a bag. One that cannot be opened does not spoil the others: it comes
/// up again as an error item among the messages. None that can be, or one of ROS 1, is an error.
fn open_all<'a>(
    files: impl IntoIterator<Item = &'a PathBuf>,
    mut look: impl FnMut(OpenFile) -> Result<(), BagError>,
) -> Result<(), BagError> {
    let (mut good, mut first_error) = (0, None);
    for file in files {
        match OpenFile::open(file).and_then(&mut look) {
            Ok(()) => good += 1,
            Err(error @ BagError::Ros1 { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!("{error}");
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) if good == 0 => Err(error),
        _ => Ok(()),
    }
}

/// Adds the counts of a topic that is spread over files.
fn merge(topics: &mut BTreeMap<String, Topic>, topic: Topic) {
    match topics.get_mut(&topic.name) {
        None => {
            topics.insert(topic.name.clone(), topic);
        }
        Some(known) => {
            known.count = known.count.zip(topic.count).map(|(a, b)| a + b);
        }
    }
}

/// "are a, b" for an error message.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names.len() {
        0 => "is nothing".to_owned(),
        n if n <= SHOWN => format!("is only {}", names.join(", ")),
        n => format!("are {} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}

/// Sorts `bag_10` behind `bag_9`: runs of digits compare as numbers.
fn natural_key(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (number, tail) = tail.split_at(end);
        key.push((text.to_owned(), number.parse().unwrap_or(u64::MAX)));
        rest = tail;
    }
    key
}

/// Finds a file of metadata.yaml. Old recorders wrote the folder's name in front, and packing or
/// unpacking by hand adds or removes the ending.
fn find_listed(folder: &Path, name: &str) -> Option<PathBuf> {
    let base = Path::new(name).file_name()?.to_string_lossy().into_owned();
    let mut candidates = vec![folder.join(name), folder.join(&base)];
    candidates.push(match base.strip_suffix(".zstd") {
        Some(plain) => folder.join(plain),
        None => folder.join(format!("{base}.zstd")),
    });
    candidates.into_iter().find(|path| path.is_file())
}

#[derive(Debug, PartialEq, Eq)]
enum Storage {
    Mcap,
    Sqlite,
    Zstd,
}

/// Tells what a file is by how it begins.
fn sniff(path: &Path) -> Result<Storage, BagError> {
    let mut start = Vec::with_capacity(16);
    File::open(path)
        .and_then(|file| file.take(16).read_to_end(&mut start))
        .map_err(BagError::io(path))?;
    if start.starts_with(mcap::MAGIC) {
        Ok(Storage::Mcap)
    } else if start.starts_with(b"SQLite format 3\0") {
        Ok(Storage::Sqlite)
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Ok(Storage::Zstd)
    } else if start.starts_with(b"#ROSBAG V") {
        Err(BagError::Ros1 {
            path: path.to_owned(),
            what: "a .bag file".into(),
        })
    } else {
        Err(BagError::Magic {
            path: path.to_owned(),
            start: match start.as_slice() {
                [] => "nothing, it is empty".to_owned(),
                start => format!("\"{}\"", start.escape_ascii()),
            },
        })
    }
}

/// A file of the bag, unpacked to a temporary one if it is packed as a whole.
struct OpenFile {
    content: Content,
    unpacked: Option<Unpacked>,
}

enum Content {
    Mcap(McapFile),
    Sqlite(SqliteFile),
}

struct Unpacked {
    file: tempfile::NamedTempFile,
    /// Why not all of the packed file could be unpacked.
    failure: Option<BagError>,
}

impl OpenFile {
    fn open(path: &Path) -> Result<Self, BagError> {
        let mut storage = sniff(path)?;
        let unpacked = match storage {
            Storage::Zstd => {
                let mut unpacked = unpack(path)?;
                storage = match sniff(unpacked.file.path()) {
                    Ok(storage) => storage,
                    // Broken off before the first bytes came out: that is the thing to say.
                    Err(error) => return Err(unpacked.failure.take().unwrap_or(error)),
                };
                Some(unpacked)
            }
            _ => None,
        };
        let data = unpacked.as_ref().map_or(path, |u| u.file.path());
        let content = match storage {
            Storage::Mcap => Content::Mcap(McapFile::open(data, path)?),
            Storage::Sqlite => Content::Sqlite(SqliteFile::open(data, path)?),
            Storage::Zstd => {
                return Err(BagError::Compression {
                    path: path.to_owned(),
                    what: "twofold",
                    format: "zstd".into(),
                });
            }
        };
        Ok(OpenFile { content, unpacked })
    }

    fn topics(&mut self) -> Result<Vec<Topic>, BagError> {
        match &mut self.content {
            Content::Mcap(file) => file.topics(),
            Content::Sqlite(file) => Ok(file.topics()),
        }
    }

    fn times(&self) -> Option<(i64, i64)> {
        match &self.content {
            Content::Mcap(file) => file.times(),
            Content::Sqlite(file) => file.times(),
        }
    }

    fn messages(self, selection: &Selection) -> FileMessages {
        FileMessages {
            content: match self.content {
                Content::Mcap(file) => Box::new(file.messages(selection.clone())),
                Content::Sqlite(file) => Box::new(file.messages(selection)),
            },
            unpacked: self.unpacked,
        }
    }
}

/// Unpacks a file to a temporary one, in the folder that `TMPDIR` names, as far as it goes.
fn unpack(path: &Path) -> Result<Unpacked, BagError> {
    let packed = File::open(path).map_err(BagError::io(path))?;
    let mut decoder = zstd::stream::read::Decoder::new(packed).map_err(BagError::io(path))?;
    let mut file = tempfile::Builder::new()
        .prefix("bag-unpacked-")
        .tempfile()
        .map_err(BagError::io(&std::env::temp_dir()))?;
    let mut failure = None;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => file
                .write_all(&buffer[..count])
                .map_err(BagError::io(file.path()))?,
            Err(source) => {
                failure = Some(BagError::Io {
                    path: path.to_owned(),
                    source,
                });
                break;
            }
        }
    }
    Ok(Unpacked { file, failure })
}

/// The messages of one file.
struct FileMessages {
    content: Box<dyn Iterator<Item = Result<RawMessage, BagError>> + Send>,
    /// Keeps the temporary file until its messages are read.
    unpacked: Option<Unpacked>,
}

impl Iterator for FileMessages {
    type Item = Result<RawMessage, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.content
            .next()
            .or_else(|| self.unpacked.as_mut()?.failure.take().map(Err))
    }
}

/// Iterates over messages; see [`Reader::messages`].
pub struct Messages {
    files: VecDeque<PathBuf>,
    current: Option<FileMessages>,
    selection: Selection,
    packed_messages: bool,
}

impl Iterator for Messages {
    type Item = Result<RawMessage, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(current) = &mut self.current {
                match current.next() {
                    Some(Ok(message)) if self.packed_messages => {
                        return Some(unpack_message(message));
                    }
                    Some(item) => return Some(item),
                    None => self.current = None,
                }
            }
            match OpenFile::open(&self.files.pop_front()?) {
                Ok(file) => self.current = Some(file.messages(&self.selection)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn unpack_message(message: RawMessage) -> Result<RawMessage, BagError> {
    match zstd::stream::decode_all(message.data.as_slice()) {
        Ok(data) => Ok(RawMessage { data, ..message }),
        Err(source) => Err(BagError::Message {
            topic: message.topic,
            log_time: Stamp(message.log_time),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_sort_by_their_numbers() {
        let mut names = ["b_10.mcap", "b_9.mcap", "b_0.mcap", "a_11.mcap"];
        names.sort_by_key(|name| natural_key(name));
        assert_eq!(names, ["a_11.mcap", "b_0.mcap", "b_9.mcap", "b_10.mcap"]);
    }
}
