//! Writes a rosbag2 folder: `metadata.yaml` and one MCAP file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use mcap::records::MessageHeader;
use serde_yaml::Value;

use super::metadata::{
    Duration, FileInformation, Metadata, MetadataFile, QosProfile, StartingTime, TopicMetadata,
    TopicWithCount, VERSION,
};
use super::msg::Message;

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
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteError::Io { path, source }
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
    pub fn finish(mut self) -> Result<(), WriteError> {
        let mcap_path = self.temporary.path().join(&self.file_name);
        self.mcap
            .finish()
            .map_err(|source| self.mcap_error(source))?;
        let metadata = self.metadata().map_err(|source| self.yaml_error(source))?;
        let text = serde_yaml::to_string(&metadata).map_err(|source| self.yaml_error(source))?;
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteError::Io { path, source }
        };
        let file = self.mcap.into_inner();
        let file = file
            .into_inner()
            .map_err(|error| io(&mcap_path)(error.into_error()))?;
        file.sync_all().map_err(io(&mcap_path))?;
        let yaml = self.temporary.path().join("metadata.yaml");
        fs::write(&yaml, text).map_err(io(&yaml))?;
        if self.folder.exists() {
            return Err(WriteError::Exists(self.folder));
        }
        fs::rename(self.temporary.path(), &self.folder).map_err(io(&self.folder))?;
        // Nothing is left under the temporary name for the guard to remove.
        let _ = self.temporary.keep();
        Ok(())
    }

    fn metadata(&self) -> Result<MetadataFile, serde_yaml::Error> {
        let (start, end) = match self.count {
            0 => (0, 0),
            _ => (self.start, self.end),
        };
        let starting_time = StartingTime {
            nanoseconds_since_epoch: start,
        };
        let duration = Duration {
            nanoseconds: end - start,
        };
        let topics = self.topics.iter().map(|(name, state)| {
            Ok::<_, serde_yaml::Error>(TopicWithCount {
                topic_metadata: TopicMetadata {
                    name: name.clone(),
                    type_name: state.type_name.clone(),
                    serialization_format: "cdr".to_owned(),
                    offered_qos_profiles: serde_yaml::to_value([QosProfile::reliable(
                        state.latched,
                    )])?,
                    type_description_hash: state.type_hash.clone(),
                },
                message_count: state.count,
            })
        });
        Ok(MetadataFile {
            rosbag2_bagfile_information: Metadata {
                version: VERSION,
                storage_identifier: "mcap".to_owned(),
                duration,
                starting_time,
                message_count: self.count,
                topics_with_message_count: topics.collect::<Result<_, _>>()?,
                compression_format: String::new(),
                compression_mode: String::new(),
                relative_file_paths: vec![self.file_name.clone()],
                files: vec![FileInformation {
                    path: self.file_name.clone(),
                    starting_time,
                    duration,
                    message_count: self.count,
                }],
                custom_data: Value::Null,
                ros_distro: "unknown".to_owned(),
            },
        })
    }

    fn mcap_error(&self, source: mcap::McapError) -> WriteError {
        let path = self.folder.join(&self.file_name);
        WriteError::Mcap { path, source }
    }

    fn yaml_error(&self, source: serde_yaml::Error) -> WriteError {
        let path = self.folder.join("metadata.yaml");
        WriteError::Yaml { path, source }
    }
}
