//! Writes rosbag2 folders: `metadata.yaml` and MCAP files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use mcap::records::MessageHeader;
use serde_yaml::Value;

use super::Stamp;
use super::metadata::{
    Duration, FileInformation, Metadata, MetadataFile, QosProfile, StartingTime, TopicMetadata,
    TopicWithCount, VERSION,
};
use super::msg::Message;
use crate::files;

/// Why a bag could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0} exists already; remove it or choose another name for the bag")]
    Exists(PathBuf),
    #[error("{0} is no name for a bag folder")]
    NoName(PathBuf),
    #[error("cannot write {path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot write {path}: {source}")]
    Mcap {
        path: PathBuf,
        source: mcap::McapError,
    },
    #[error("cannot write {path}: {source}")]
    Yaml {
        path: PathBuf,
        source: serde_yaml::Error,
    },
    #[error("{topic}: a log time of {log_time} ns lies before the epoch, which a bag cannot hold")]
    NegativeTime { topic: String, log_time: i64 },
    #[error("{topic} holds {existing}, so {offered} cannot be written to it")]
    TypeChange {
        topic: String,
        existing: String,
        offered: String,
    },
}

struct TopicState {
    channel: u16,
    type_name: String,
    type_hash: String,
    latched: bool,
    count: u64,
}

/// Writes a rosbag2 folder. Everything goes into a hidden folder beside the wanted one, which
/// [`finish`](Writer::finish) renames: a bag that is there is whole, and a writer dropped earlier
/// leaves nothing behind.
pub struct Writer {
    folder: PathBuf,
    temporary: tempfile::TempDir,
    file_name: String,
    mcap: mcap::Writer<BufWriter<File>>,
    topics: BTreeMap<String, TopicState>,
    start: i64,
    end: i64,
    count: u64,
}

impl Writer {
    /// Starts a bag that will be the folder `folder`; it must not exist, its parents are made.
    pub fn create(folder: &Path) -> Result<Self, WriteError> {
        if folder.exists() {
            return Err(WriteError::Exists(folder.to_owned()));
        }
        let name = folder
            .file_name()
            .ok_or_else(|| WriteError::NoName(folder.to_owned()))?
            .to_string_lossy()
            .into_owned();
        let parent = match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(io(parent))?;
        let mut builder = tempfile::Builder::new();
        let prefix = format!(".{name}.unfinished-");
        builder.prefix(&prefix);
        #[cfg(unix)]
        {
            // A bag is for others to read too; the umask still applies.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        let temporary = builder.tempdir_in(parent).map_err(io(parent))?;
        let file_name = format!("{name}_0.mcap");
        let path = temporary.path().join(&file_name);
        let file = File::create(&path).map_err(io(&path))?;
        let mcap = mcap::WriteOptions::new()
            .profile("ros2")
            .library(concat!("centerpoint_ptq/", env!("CARGO_PKG_VERSION")))
            // LiDAR coordinates hardly compress; the fastest level gets nearly all there is.
            .compression_level(1)
            .compression_threads(0)
            .create(BufWriter::new(file))
            .map_err(|source| WriteError::Mcap { path, source })?;
        Ok(Writer {
            folder: folder.to_owned(),
            temporary,
            file_name,
            mcap,
            topics: BTreeMap::new(),
            start: i64::MAX,
            end: i64::MIN,
            count: 0,
        })
    }

    /// Appends a message received at `log_time` (ns since the epoch). The first message of a
    /// topic settles its type. `/tf_static` is marked as latched.
    pub fn write<M: Message>(
        &mut self,
        topic: &str,
        log_time: i64,
        message: &M,
    ) -> Result<(), WriteError> {
        self.declare(
            topic,
            M::TYPE,
            M::SCHEMA,
            M::TYPE_HASH,
            topic.ends_with("/tf_static"),
        )?;
        self.append(topic, log_time, &message.encode())
    }

    /// Like [`write`](Writer::write), for a topic whose last message late subscribers shall get
    /// when the bag is played (transient local).
    pub fn write_latched<M: Message>(
        &mut self,
        topic: &str,
        log_time: i64,
        message: &M,
    ) -> Result<(), WriteError> {
        self.declare(topic, M::TYPE, M::SCHEMA, M::TYPE_HASH, true)?;
        self.append(topic, log_time, &message.encode())
    }

    /// Appends a message that is serialized already, as when one bag is copied to another.
    pub fn write_raw(
        &mut self,
        topic: &str,
        type_name: &str,
        schema: &str,
        log_time: i64,
        data: &[u8],
    ) -> Result<(), WriteError> {
        self.declare(topic, type_name, schema, "", topic.ends_with("/tf_static"))?;
        self.append(topic, log_time, data)
    }

    /// Messages written so far.
    pub fn message_count(&self) -> u64 {
        self.count
    }

    fn declare(
        &mut self,
        topic: &str,
        type_name: &str,
        schema: &str,
        type_hash: &str,
        latched: bool,
    ) -> Result<(), WriteError> {
        if let Some(state) = self.topics.get(topic) {
            if state.type_name == type_name {
                return Ok(());
            }
            return Err(WriteError::TypeChange {
                topic: topic.to_owned(),
                existing: state.type_name.clone(),
                offered: type_name.to_owned(),
            });
        }
        let qos = serde_yaml::to_string(&[QosProfile::reliable(latched)])
            .map_err(|source| self.yaml_error(source))?;
        let metadata = BTreeMap::from([
            ("offered_qos_profiles".to_owned(), qos),
            ("topic_type_hash".to_owned(), type_hash.to_owned()),
        ]);
        let channel = self
            .mcap
            .add_schema(type_name, "ros2msg", schema.as_bytes())
            .and_then(|id| self.mcap.add_channel(id, topic, "cdr", &metadata))
            .map_err(|source| self.mcap_error(source))?;
        self.topics.insert(
            topic.to_owned(),
            TopicState {
                channel,
                type_name: type_name.to_owned(),
                type_hash: type_hash.to_owned(),
                latched,
                count: 0,
            },
        );
        Ok(())
    }

    fn append(&mut self, topic: &str, log_time: i64, data: &[u8]) -> Result<(), WriteError> {
        let time = u64::try_from(log_time).map_err(|_| WriteError::NegativeTime {
            topic: topic.to_owned(),
            log_time,
        })?;
        let state = self
            .topics
            .get_mut(topic)
            .expect("declared by every caller just before");
        let header = MessageHeader {
            channel_id: state.channel,
            sequence: state.count as u32,
            log_time: time,
            publish_time: time,
        };
        state.count += 1;
        self.mcap
            .write_to_known_channel(&header, data)
            .map_err(|source| self.mcap_error(source))?;
        self.count += 1;
        self.start = self.start.min(log_time);
        self.end = self.end.max(log_time);
        Ok(())
    }

    /// Completes the bag and gives it its name.
    pub fn finish(self) -> Result<(), WriteError> {
        let (part, folder, temporary) = self.complete()?;
        write_metadata(temporary.path(), &[part])?;
        if folder.exists() {
            return Err(WriteError::Exists(folder));
        }
        fs::rename(temporary.path(), &folder).map_err(io(&folder))?;
        // Nothing is left under the temporary name for the guard to remove.
        let _ = temporary.keep();
        Ok(())
    }

    /// Completes the MCAP file alone, as `<name>.mcap` where the bag would have been the folder `<name>`: a part of a bag
    /// that grows and shrinks by whole files, see [`write_metadata`]. A file of that name is replaced.
    pub fn finish_part(self) -> Result<Part, WriteError> {
        let (mut part, folder, temporary) = self.complete()?;
        let path = folder.with_extension("mcap");
        fs::rename(temporary.path().join(&part.file), &path).map_err(io(&path))?;
        part.file = file_name(&path);
        Ok(part)
    }

    /// Ends the MCAP file and waits until it is on the disk; also gives the bag's folder and the one it is made in.
    fn complete(mut self) -> Result<(Part, PathBuf, tempfile::TempDir), WriteError> {
        self.mcap
            .finish()
            .map_err(|source| self.mcap_error(source))?;
        let (start, end) = match self.count {
            0 => (0, 0),
            _ => (self.start, self.end),
        };
        let topics = self.topics.into_iter().map(|(name, state)| PartTopic {
            name,
            type_name: state.type_name,
            type_hash: state.type_hash,
            latched: state.latched,
            count: state.count,
        });
        let part = Part {
            start: Stamp(start),
            end: Stamp(end),
            topics: topics.collect(),
            file: self.file_name,
        };
        let path = self.temporary.path().join(&part.file);
        let file = self.mcap.into_inner().into_inner();
        let file = file.map_err(|error| io(&path)(error.into_error()))?;
        file.sync_all().map_err(io(&path))?;
        Ok((part, self.folder, self.temporary))
    }

    fn mcap_error(&self, source: mcap::McapError) -> WriteError {
        let path = self.folder.join(&self.file_name);
        match source {
            mcap::McapError::Io(source) => WriteError::Io { path, source },
            source => WriteError::Mcap { path, source },
        }
    }

    fn yaml_error(&self, source: serde_yaml::Error) -> WriteError {
        let path = self.folder.join("metadata.yaml");
        WriteError::Yaml { path, source }
    }
}

/// An MCAP file of a bag.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name in the bag's folder.
    pub file: String,
    /// Log times of its first and last message.
    pub start: Stamp,
    pub end: Stamp,
    pub topics: Vec<PartTopic>,
}

/// A topic in one file of a bag.
#[derive(Debug, Clone, PartialEq)]
pub struct PartTopic {
    pub name: String,
    /// As in `sensor_msgs/msg/PointCloud2`.
    pub type_name: String,
    /// REP-2011 type hash, empty where it is not known.
    pub type_hash: String,
    /// Whether late subscribers get the last message.
    pub latched: bool,
    pub count: u64,
}

impl PartTopic {
    /// A topic with `count` messages of a type that is known here.
    pub fn of<M: Message>(name: &str, count: u64) -> Self {
        PartTopic {
            name: name.to_owned(),
            type_name: M::TYPE.to_owned(),
            type_hash: M::TYPE_HASH.to_owned(),
            latched: false,
            count,
        }
    }
}

/// Writes the `metadata.yaml` of a folder whose MCAP files are these, in this order; in one step, so that a reader sees the
/// old list or the new one.
pub fn write_metadata(folder: &Path, parts: &[Part]) -> Result<(), WriteError> {
    let path = folder.join("metadata.yaml");
    let text = metadata(parts)
        .and_then(|metadata| serde_yaml::to_string(&metadata))
        .map_err(|source| WriteError::Yaml {
            path: path.clone(),
            source,
        })?;
    files::replace(&path, |file| file.write_all(text.as_bytes())).map_err(io(&path))
}

fn metadata(parts: &[Part]) -> Result<MetadataFile, serde_yaml::Error> {
    let count = |part: &Part| part.topics.iter().map(|t| t.count).sum::<u64>();
    let times = |parts: &[&Part]| {
        let start = parts.iter().map(|p| p.start.0).min().unwrap_or(0);
        let end = parts.iter().map(|p| p.end.0).max().unwrap_or(0);
        let starting_time = StartingTime {
            nanoseconds_since_epoch: start,
        };
        let duration = Duration {
            nanoseconds: end - start,
        };
        (starting_time, duration)
    };
    let filled: Vec<&Part> = parts.iter().filter(|part| count(part) > 0).collect();
    let (starting_time, duration) = times(&filled);
    let mut topics: BTreeMap<&str, PartTopic> = BTreeMap::new();
    for topic in parts.iter().flat_map(|part| &part.topics) {
        topics
            .entry(&topic.name)
            .and_modify(|known| known.count += topic.count)
            .or_insert_with(|| topic.clone());
    }
    let topics = topics.into_values().map(|topic| {
        Ok::<_, serde_yaml::Error>(TopicWithCount {
            topic_metadata: TopicMetadata {
                name: topic.name,
                type_name: topic.type_name,
                serialization_format: "cdr".to_owned(),
                offered_qos_profiles: serde_yaml::to_value([QosProfile::reliable(topic.latched)])?,
                type_description_hash: topic.type_hash,
            },
            message_count: topic.count,
        })
    });
    Ok(MetadataFile {
        rosbag2_bagfile_information: Metadata {
            version: VERSION,
            storage_identifier: "mcap".to_owned(),
            duration,
            starting_time,
            message_count: parts.iter().map(count).sum(),
            topics_with_message_count: topics.collect::<Result<_, _>>()?,
            compression_format: String::new(),
            compression_mode: String::new(),
            relative_file_paths: parts.iter().map(|part| part.file.clone()).collect(),
            files: parts
                .iter()
                .map(|part| {
                    let (starting_time, duration) = times(&[part]);
                    FileInformation {
                        path: part.file.clone(),
                        starting_time,
                        duration,
                        message_count: count(part),
                    }
                })
                .collect(),
            custom_data: Value::Null,
            ros_distro: "unknown".to_owned(),
        },
    })
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WriteError + use<> {
    let path = path.to_owned();
    move |source| WriteError::Io { path, source }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or(String::new(), |name| name.to_string_lossy().into_owned())
}
