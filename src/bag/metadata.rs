//! `metadata.yaml` of a rosbag2 folder.
//!
//! Written as version 9 (Jazzy and later). Read leniently, versions 4 (Foxy) to 9: what a
//! version lacks or leaves empty has a default, what a later one adds is ignored, and numbers may
//! be written as text.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_yaml::Value;

/// The version written, and the newest one known.
pub(super) const VERSION: u32 = 9;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MetadataFile {
    pub rosbag2_bagfile_information: Metadata,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Metadata {
    #[serde(default, deserialize_with = "number")]
    pub version: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub storage_identifier: String,
    #[serde(default, deserialize_with = "or_default")]
    pub duration: Duration,
    #[serde(default, deserialize_with = "or_default")]
    pub starting_time: StartingTime,
    #[serde(default, deserialize_with = "number")]
    pub message_count: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub topics_with_message_count: Vec<TopicWithCount>,
    #[serde(default, deserialize_with = "or_default")]
    pub compression_format: String,
    #[serde(default, deserialize_with = "or_default")]
    pub compression_mode: String,
    #[serde(default, deserialize_with = "or_default")]
    pub relative_file_paths: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub files: Vec<FileInformation>,
    #[serde(default)]
    pub custom_data: Value,
    #[serde(default, deserialize_with = "or_default")]
    pub ros_distro: String,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Duration {
    #[serde(default, deserialize_with = "number")]
    pub nanoseconds: i64,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct StartingTime {
    #[serde(default, deserialize_with = "number")]
    pub nanoseconds_since_epoch: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TopicWithCount {
    pub topic_metadata: TopicMetadata,
    #[serde(default, deserialize_with = "number")]
    pub message_count: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TopicMetadata {
    pub name: String,
    #[serde(rename = "type")]
    pub type_name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub serialization_format: String,
    /// A list since version 9, before that a string that holds the list as YAML. Nothing here
    /// needs it when reading.
    #[serde(default)]
    pub offered_qos_profiles: Value,
    #[serde(default, deserialize_with = "or_default")]
    pub type_description_hash: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FileInformation {
    pub path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub starting_time: StartingTime,
    #[serde(default, deserialize_with = "or_default")]
    pub duration: Duration,
    #[serde(default, deserialize_with = "number")]
    pub message_count: u64,
}

/// Takes `~`, and a key without a value, for the default.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Takes a number as one, and as text.
fn number<'de, T: Default + TryFrom<i128>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = match &value {
        Value::Null => return Ok(T::default()),
        Value::Number(number) => number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from))
            .or_else(|| number.as_f64().map(|number| number as i128)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| D::Error::custom(format!("{value:?} is not a number that fits here")))
}

/// What a publisher offered, as rosbag2 stores it: enough for `ros2 bag play` to latch what was
/// latched.
#[derive(Debug, Clone, Serialize)]
pub(super) struct QosProfile {
    history: &'static str,
    depth: u32,
    reliability: &'static str,
    durability: &'static str,
    deadline: QosDuration,
    lifespan: QosDuration,
    liveliness: &'static str,
    liveliness_lease_duration: QosDuration,
    avoid_ros_namespace_conventions: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct QosDuration {
    sec: u64,
    nsec: u64,
}

impl QosProfile {
    /// Reliable; transient local when `latched`.
    pub fn reliable(latched: bool) -> Self {
        // i64::MAX nanoseconds is how rmw spells "for ever".
        let infinite = QosDuration {
            sec: 9_223_372_036,
            nsec: 854_775_807,
        };
        QosProfile {
            history: "keep_last",
            depth: if latched { 1 } else { 10 },
            reliability: "reliable",
            durability: if latched {
                "transient_local"
            } else {
                "volatile"
            },
            deadline: infinite,
            lifespan: infinite,
            liveliness: "automatic",
            liveliness_lease_duration: infinite,
            avoid_ros_namespace_conventions: false,
        }
    }
}
