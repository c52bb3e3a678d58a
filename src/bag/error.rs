//! Why a bag, or a part of it, cannot be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Stamp;
use super::limits::{Excess, Limit};
use crate::text::excerpt;
use crate::yaml::YamlError;

/// A path as messages have it: its name may come with a bag.
pub(super) fn at(path: &Path) -> String {
    excerpt(&path.display().to_string())
}

/// Why a bag, or a part of it, cannot be read. What comes from the bag is quoted short and without
/// control characters, what files hold is not quoted.
#[derive(Debug, thiserror::Error)]
pub enum BagError {
    #[error("{}: there is no such file or folder", at(.0))]
    NotFound(PathBuf),
    #[error("{} is neither a folder nor a regular file", at(.0))]
    NoFile(PathBuf),
    #[error(
        "{} holds no bag: a rosbag2 folder has a metadata.yaml and .mcap or .db3 files, here there {}",
        at(path),
        excerpt(found)
    )]
    NoBag { path: PathBuf, found: String },
    #[error("{} is neither MCAP nor SQLite (nor a zstd-compressed one){}", at(path), if *is_empty { "; it is empty" } else { "" })]
    Magic { path: PathBuf, is_empty: bool },
    #[error(
        "{} is a ROS 1 recording ({}); only ROS 2 (CDR) is read. Convert it first, for example a .bag with \
         `rosbags-convert` from the Python package rosbags, or replay it through ros1_bridge and record it with \
         `ros2 bag record`",
        at(path),
        excerpt(what)
    )]
    Ros1 { path: PathBuf, what: String },
    #[error("{} is not a rosbag2 metadata file: {source}", at(path))]
    Metadata { path: PathBuf, source: YamlError },
    #[error("{} lists {}, which is not there", at(metadata), at(file))]
    MissingFile { metadata: PathBuf, file: PathBuf },
    #[error(
        "{} lists {}, which is not in the bag's folder; files of a bag have plain names in it",
        at(metadata),
        at(file)
    )]
    OutsideFile { metadata: PathBuf, file: PathBuf },
    #[error(
        "{} is a link out of the bag's folder, which is not followed; if you trust who made the bag, read it with \
         --follow-links",
        at(.0)
    )]
    OutsideLink(PathBuf),
    #[error(
        "{}: {what} compression \"{}\" is not supported; rosbag2's \"zstd\" is",
        at(path),
        excerpt(format)
    )]
    Compression {
        path: PathBuf,
        what: &'static str,
        format: String,
    },
    #[error(
        "{}: topic {} is encoded as \"{}\", but only \"cdr\" (ROS 2) can be read",
        at(path),
        excerpt(topic),
        excerpt(encoding)
    )]
    Encoding {
        path: PathBuf,
        topic: String,
        encoding: String,
    },
    #[error("{} is damaged at byte {offset}: {}", at(path), excerpt(reason))]
    Corrupt {
        path: PathBuf,
        offset: u64,
        reason: String,
    },
    #[error("{} is damaged or no rosbag2 database: {}", at(path), excerpt(&source.to_string()))]
    Sqlite {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("{} is no rosbag2 database: its table {table} {what}", at(path))]
    SqliteTable {
        path: PathBuf,
        table: &'static str,
        what: String,
    },
    #[error(
        "{} is damaged, or made to keep its reader busy: it asks for more steps than a database of its size can need",
        at(.0)
    )]
    Endless(PathBuf),
    #[error(
        "{} was cut off: {bytes} of {expected} bytes are there, and the messages in the others are missing",
        at(path)
    )]
    SqliteCut {
        path: PathBuf,
        bytes: u64,
        expected: u64,
    },
    /// Damage that ends a file, with what it cost.
    #[error("{source}; of {expected} messages on the topics read {given} could be read")]
    Incomplete {
        source: Box<BagError>,
        given: u64,
        expected: u64,
    },
    #[error(
        "{} at {log_time}: the message cannot be unpacked: {source}",
        excerpt(topic)
    )]
    Message {
        topic: Arc<str>,
        log_time: Stamp,
        source: std::io::Error,
    },
    /// A bag asks for more than [`Limits`] lets it spend.
    #[error("{}: {excess}", at(path))]
    Limit { path: PathBuf, excess: Excess },
    #[error("{}: {count} more errors are not told", at(path))]
    More { path: PathBuf, count: u64 },
    #[error("{}: reading was stopped", at(.0))]
    Stopped(PathBuf),
    #[error("{} cannot be read: {source}", at(path))]
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

    /// Whether it holds for all of the bag, not only for what was being read.
    pub(super) fn is_fatal(&self) -> bool {
        match self {
            BagError::Stopped(_) => true,
            BagError::Limit { excess, .. } => {
                matches!(excess.limit, Limit::Expansion | Limit::Topics)
            }
            _ => false,
        }
    }
}
