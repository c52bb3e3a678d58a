//! Opens rosbag2 folders and files and iterates over their messages.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::{Read, Seek, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::Stamp;
use super::budget::{Budget, bytes_on_disk, open_regular};
use super::error::{BagError, at};
use super::limits::{Excess, Limit, Limits};
use super::mcap_file::McapFile;
use super::messages::{BagFile, Messages};
use super::metadata::{Metadata, MetadataFile, VERSION};
use super::records::LONGEST_NAME;
use super::sqlite_file::SqliteFile;
use crate::text::excerpt;
use crate::yaml::{self, Bounds, YamlError};

/// A topic of a bag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    /// As in `sensor_msgs/msg/PointCloud2`, also where the bag has another way to write it.
    pub type_name: String,
    /// Messages on it, where the bag says so.
    pub count: Option<u64>,
    /// How its messages are encoded, where that is not CDR: then they cannot be read.
    pub encoding: Option<String>,
}

impl Topic {
    /// A topic whose messages are of a type as the bag has it.
    pub(super) fn new(name: &str, type_name: &str) -> Self {
        Topic {
            name: name.to_owned(),
            type_name: ros2_type_name(type_name),
            count: None,
            encoding: None,
        }
    }
}

/// The name that ROS 2 has for a type: the first recorders of rosbag2, converters and bridges
/// also write `sensor_msgs/PointCloud2`, and DDS `sensor_msgs::msg::dds_::PointCloud2_`.
fn ros2_type_name(name: &str) -> String {
    let parts = name.trim().replace("::", "/");
    let mut parts: Vec<&str> = parts.split('/').collect();
    if parts.len() > 2
        && parts[parts.len() - 2] == "dds_"
        && let Some(last) = parts.last_mut()
    {
        *last = last.strip_suffix('_').unwrap_or(last);
    }
    parts.retain(|part| *part != "dds_");
    match parts.as_slice() {
        [package, name] if !package.is_empty() && !name.is_empty() => {
            format!("{package}/msg/{name}")
        }
        parts => parts.join("/"),
    }
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
    files: Vec<BagFile>,
    topics: Vec<Topic>,
    times: Option<(Stamp, Stamp)>,
    limits: Limits,
    /// Bytes of its files.
    size: u64,
}

impl Reader {
    /// Opens a rosbag2 folder, a `.mcap` or a `.db3`, or one of these packed with zstd.
    ///
    /// A folder without a `metadata.yaml` that can be read and fits the files (an unfinished
    /// recording) is read by the files in it, with a warning. What is in a file is told by its
    /// first bytes, not by its name.
    ///
    /// Only regular files are opened, and only those in the folder: metadata that names others, and links that
    /// lead out of it, are refused. The path itself may be a link.
    pub fn open(path: &Path) -> Result<Self, BagError> {
        Self::open_with(path, &Limits::default())
    }

    /// Like [`open`](Reader::open), with limits to what the bag may make its reader spend.
    pub fn open_with(path: &Path, limits: &Limits) -> Result<Self, BagError> {
        let limits = &limits.clone().sane();
        if !path.exists() {
            return Err(BagError::NotFound(path.to_owned()));
        }
        if !path.is_dir() {
            // The file a user picks may be one of a folder that has metadata; the file is what
            // was asked for.
            if path.file_name().is_some_and(|name| name == "metadata.yaml")
                && let Some(folder) = path.parent()
            {
                let folder = match folder.as_os_str().is_empty() {
                    true => Path::new("."),
                    false => folder,
                };
                return Self::open_folder(folder, limits);
            }
            return Self::from_files(path, vec![path.to_owned()], limits);
        }
        Self::open_folder(path, limits)
    }

    fn open_folder(folder: &Path, limits: &Limits) -> Result<Self, BagError> {
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
        let present: Vec<PathBuf> = names
            .iter()
            .filter(is_bag)
            .map(|n| folder.join(n))
            .collect();
        check(folder, Limit::Files, present.len(), limits)?;
        let metadata_path = folder.join("metadata.yaml");
        if !metadata_path.is_file() {
            if present.is_empty() {
                return Err(BagError::NoBag {
                    path: folder.to_owned(),
                    found: list(&names),
                });
            }
            tracing::warn!(
                "{}: no metadata.yaml; reading the {} bag file(s) in the folder",
                at(folder),
                present.len()
            );
            check_links(folder, &present, limits)?;
            return Self::from_files(folder, present, limits);
        }
        check_links(folder, std::slice::from_ref(&metadata_path), limits)?;
        let reason = match Self::from_metadata(folder, &metadata_path, &present, limits)? {
            Described::Bag(reader) => return Ok(reader),
            Described::Not(reason) => reason,
        };
        tracing::warn!(
            "{reason}; reading the {} bag file(s) beside it as if there were no metadata",
            present.len()
        );
        check_links(folder, &present, limits)?;
        Self::from_files(folder, present, limits)
    }

    /// The bag that `metadata.yaml` describes, or why it does not describe the files in the
    /// folder; that is an error if there are none.
    fn from_metadata(
        folder: &Path,
        metadata_path: &Path,
        present: &[PathBuf],
        limits: &Limits,
    ) -> Result<Described, BagError> {
        let metadata = match read_metadata(metadata_path) {
            Ok(metadata) => metadata,
            Err(error @ (BagError::Metadata { .. } | BagError::Io { .. }))
                if !present.is_empty() =>
            {
                return Ok(Described::Not(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let mut listed = metadata.relative_file_paths.clone();
        if listed.is_empty() {
            listed = metadata.files.iter().map(|f| f.path.clone()).collect();
        }
        let not = |reason: &str| {
            let reason = format!("{} {reason}", at(metadata_path));
            Ok(Described::Not(reason))
        };
        if listed.is_empty() {
            if present.is_empty() {
                return Err(BagError::NoBag {
                    path: folder.to_owned(),
                    found: "is a metadata.yaml that lists no files".into(),
                });
            }
            return not("lists no files");
        }
        check(folder, Limit::Files, listed.len(), limits)?;
        let (mut files, mut missing) = (Vec::new(), Vec::new());
        let (mut seen, mut again) = (HashSet::new(), 0);
        for name in &listed {
            let error = match find_listed(folder, name) {
                Listed::Found(path) => {
                    // The messages would come twice.
                    match seen.insert(path.clone()) {
                        true => files.push(path),
                        false => again += 1,
                    }
                    continue;
                }
                Listed::Missing(path) => {
                    files.push(path.clone());
                    BagError::MissingFile {
                        metadata: metadata_path.to_owned(),
                        file: path,
                    }
                }
                Listed::Outside => BagError::OutsideFile {
                    metadata: metadata_path.to_owned(),
                    file: name.into(),
                },
            };
            missing.push(error);
        }
        if again > 0 {
            tracing::warn!(
                "{} lists files more than once ({again} times); each is read once",
                at(metadata_path)
            );
        }
        check_links(folder, &files, limits)?;
        let listed_names: HashSet<_> = files.iter().map(|file| file.file_name()).collect();
        let others: Vec<String> = present
            .iter()
            .filter(|path| !listed_names.contains(&path.file_name()))
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        if !missing.is_empty() && !others.is_empty() {
            return Ok(Described::Not(missing.remove(0).to_string()));
        }
        if seen.is_empty() {
            return Err(missing.remove(0));
        }
        // What is missing comes up again as an error among the messages.
        warn_all(metadata_path, &missing);
        // The index of a plain file is cheap to read, and refuses ROS 1 before anybody waits.
        let plain = |file: &&PathBuf| {
            file.is_file() && file.extension().is_none_or(|ending| ending != "zstd")
        };
        let size = size_of(&files);
        let budget = Budget::new(folder, size, limits);
        let mut looks = BTreeMap::new();
        open_all(files.iter().filter(plain), &budget, |path, mut file| {
            looks.insert(path.to_owned(), file.look(files.len() > 1)?);
            Ok(())
        })?;
        let mut topics = BTreeMap::new();
        for topic in &metadata.topics_with_message_count {
            let format = topic.topic_metadata.serialization_format.as_str();
            merge(
                &mut topics,
                Topic {
                    count: Some(topic.message_count),
                    encoding: (!matches!(format, "cdr" | "")).then(|| format.to_owned()),
                    ..Topic::new(&topic.topic_metadata.name, &topic.topic_metadata.type_name)
                },
            );
        }
        check(folder, Limit::Topics, topics.len(), limits)?;
        // What the files say of themselves, where all of them do, is what can be read.
        let counts = files.iter().map(|file| looks.get(file)?.count);
        let in_files = sum(counts);
        let in_topics = topics.values().filter_map(|topic| topic.count);
        let in_topics = in_topics.fold(0, u64::saturating_add);
        let in_metadata = metadata.message_count;
        let agrees = !topics.is_empty()
            && in_metadata == in_topics
            && in_files.is_none_or(|count| count == in_topics);
        let is_empty = topics.is_empty() && in_metadata == 0 && in_files == Some(0);
        // Since version 5 the list of files comes twice, the second time behind it.
        let breaks_off = metadata.version >= 5 && metadata.files.is_empty();
        if !others.is_empty() && (breaks_off || !(agrees || is_empty)) {
            return not("is not whole, or older than the files beside it");
        }
        if !others.is_empty() {
            tracing::warn!(
                "{} does not list {}, beside it, so that is not read; to read it, too, make \
                 the metadata anew with `ros2 bag reindex`, or remove it",
                at(metadata_path),
                excerpt(&others.join(", "))
            );
        }
        if !agrees && !is_empty {
            tracing::warn!(
                "{} counts {in_metadata} messages, by topics {in_topics}, but the files {}; \
                 taking topics and counts from the files",
                at(metadata_path),
                in_files.map_or("may hold others".to_owned(), |n| format!("hold {n}"))
            );
            return Ok(Described::Bag(Self::from_files(folder, files, limits)?));
        }
        let start = metadata.starting_time.nanoseconds_since_epoch;
        let end = start.saturating_add(metadata.duration.nanoseconds);
        let mut in_list = HashMap::new();
        for file in metadata.files.iter().filter(|file| file.message_count > 0) {
            let start = file.starting_time.nanoseconds_since_epoch;
            in_list
                .entry(Path::new(&file.path).file_name())
                .or_insert(start);
        }
        let known = |path: PathBuf| {
            let start = looks.get(&path).and_then(|look| look.start);
            let start = start.or_else(|| in_list.get(&path.file_name()).copied());
            BagFile { path, start }
        };
        Ok(Described::Bag(Reader {
            path: folder.to_owned(),
            files: files.into_iter().map(known).collect(),
            topics: topics.into_values().collect(),
            times: (metadata.message_count > 0).then_some((Stamp(start), Stamp(end))),
            limits: limits.clone(),
            size,
        }))
    }

    fn from_files(path: &Path, files: Vec<PathBuf>, limits: &Limits) -> Result<Self, BagError> {
        let bag = path;
        let size = size_of(&files);
        let budget = Budget::new(path, size, limits);
        let mut topics = BTreeMap::new();
        let mut times: Option<(i64, i64)> = None;
        let mut starts = BTreeMap::new();
        open_all(&files, &budget, |path, mut file| {
            for topic in file.topics()? {
                merge(&mut topics, topic);
            }
            check(bag, Limit::Topics, topics.len(), limits)?;
            if let Some((start, end)) = file.times() {
                times = Some(times.map_or((start, end), |t| (t.0.min(start), t.1.max(end))));
            }
            if files.len() > 1 {
                starts.insert(path.to_owned(), file.start());
            }
            Ok(())
        })?;
        let file = |path: PathBuf| BagFile {
            start: starts.get(&path).copied().flatten(),
            path,
        };
        Ok(Reader {
            path: path.to_owned(),
            files: files.into_iter().map(file).collect(),
            topics: topics.into_values().collect(),
            times: times.map(|(start, end)| (Stamp(start), Stamp(end))),
            limits: limits.clone(),
            size,
        })
    }

    /// The path the bag was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bag's files in the order that `metadata.yaml` lists them in, or that of their names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
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

    /// Iterates over the messages of `topics` in order of log time, however they lie in the
    /// files, which may overlap in time; ties in file order. Topics that the bag does not have
    /// yield nothing.
    ///
    /// Memory holds one message of each place that is read from, the chunks of MCAP files that
    /// overlap in time, up to 128 MiB (or a single larger one; chunks that do not fit are
    /// unpacked more than once, with a warning), and a few bytes for each chunk, for each message
    /// of an overlapping chunk, for each message of a database, and for each break in the order
    /// of messages that lie outside of chunks. A packed file is unpacked to a temporary one while
    /// it is read. Where files or chunks do not say rightly when they begin (packed files of a
    /// bag whose metadata has no times for them), they are read as they are listed, and what
    /// comes too late for the order is told by a warning.
    ///
    /// Damage is an error item, and iteration goes on behind it; a chunk that is damaged costs
    /// the messages of that chunk. A recording that was cut off yields all messages that are
    /// whole, and its one error behind those of all files. A topic that is not encoded as CDR is
    /// one error, [`BagError::Encoding`].
    pub fn messages(&self, topics: &[&str]) -> Messages {
        let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
        self.iterate(Selection::Topics(Arc::new(topics)))
    }

    /// Like [`messages`](Reader::messages), for all topics.
    pub fn all_messages(&self) -> Messages {
        self.iterate(Selection::All)
    }

    fn iterate(&self, selection: Selection) -> Messages {
        let readable = |topic: &&Topic| topic.encoding.is_none() && selection.wants(&topic.name);
        let counts = self.topics.iter().filter(readable).map(|topic| topic.count);
        let budget = Budget::new(&self.path, self.size, &self.limits);
        let expected = sum(counts);
        Messages::new(&self.path, &self.files, selection, expected, budget)
    }
}

/// What a `metadata.yaml` is worth.
enum Described {
    Bag(Reader),
    /// Why it does not describe the files beside it.
    Not(String),
}

/// What a plain file says of itself at little cost.
struct Look {
    /// Messages in it.
    count: Option<u64>,
    /// Log time of the first one.
    start: Option<i64>,
}

/// The sum, where all are known.
fn sum(mut counts: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    counts.try_fold(0u64, |sum, count| Some(sum.saturating_add(count?)))
}

fn size_of(files: &[PathBuf]) -> u64 {
    let sizes = files.iter().filter_map(|file| file.metadata().ok());
    sizes.fold(0, |sum, file| sum.saturating_add(bytes_on_disk(&file)))
}

/// Holds how many there are of something in a bag against its limit.
fn check(bag: &Path, limit: Limit, count: usize, limits: &Limits) -> Result<(), BagError> {
    let checked = limits.check(limit, count as u64);
    checked.map_err(|excess| BagError::Limit {
        path: bag.to_owned(),
        excess,
    })
}

/// Refuses files of a bag that are links out of its folder, unless those are to be followed.
fn check_links(folder: &Path, files: &[PathBuf], limits: &Limits) -> Result<(), BagError> {
    if limits.follow_links {
        return Ok(());
    }
    let mut real: Option<PathBuf> = None;
    for file in files {
        let is_plain = fs::symlink_metadata(file).is_ok_and(|found| !found.is_symlink());
        if is_plain && file.parent() == Some(folder) {
            continue;
        }
        // What is not there is no way out.
        let Ok(target) = file.canonicalize() else {
            continue;
        };
        let real = match &mut real {
            Some(real) => real,
            real => real.insert(folder.canonicalize().map_err(BagError::io(folder))?),
        };
        if !target.starts_with(real) {
            return Err(BagError::OutsideLink(file.clone()));
        }
    }
    Ok(())
}

/// Warns of errors of which there may be any number.
fn warn_all(path: &Path, errors: &[BagError]) {
    const TOLD: usize = 20;
    for error in errors.iter().take(TOLD) {
        tracing::warn!("{error}");
    }
    if errors.len() > TOLD {
        let more = errors.len() - TOLD;
        tracing::warn!("{}: {more} more such errors", at(path));
    }
}

fn read_metadata(path: &Path) -> Result<Metadata, BagError> {
    let error = |source| BagError::Metadata {
        path: path.to_owned(),
        source,
    };
    let text = yaml::read_bounded(path, Bounds::METADATA.bytes).map_err(|why| match why {
        yaml::ReadError::Io(source) => BagError::io(path)(source),
        yaml::ReadError::NoText => error(YamlError::Content("it is no text".into())),
    })?;
    let metadata = yaml::from_str_bounded::<MetadataFile>(&text, &Bounds::METADATA)
        .map_err(error)?
        .rosbag2_bagfile_information;
    for topic in &metadata.topics_with_message_count {
        let topic = &topic.topic_metadata;
        let names = [&topic.name, &topic.type_name, &topic.serialization_format];
        if let Some(name) = names.iter().find(|name| name.len() > LONGEST_NAME) {
            let text = format!(
                "a name of a topic has {} bytes; {LONGEST_NAME} are the most that is taken",
                name.len()
            );
            return Err(error(YamlError::Content(text)));
        }
    }
    if metadata.version > VERSION {
        tracing::warn!(
            "{}: metadata version {} is newer than {VERSION}, the newest that is known",
            at(path),
            metadata.version
        );
    }
    let mode = metadata.compression_mode.to_ascii_lowercase();
    let is_packed = matches!(mode.as_str(), "file" | "message");
    if is_packed && !metadata.compression_format.eq_ignore_ascii_case("zstd") {
        return Err(BagError::Compression {
            path: path.to_owned(),
            what: "bag",
            format: metadata.compression_format,
        });
    }
    Ok(metadata)
}

/// Looks into the files of a bag. One that cannot be opened does not spoil the others: it comes
/// up again as an error item among the messages. None that can be, or one of ROS 1, is an error.
fn open_all<'a>(
    files: impl IntoIterator<Item = &'a PathBuf>,
    budget: &Budget,
    mut look: impl FnMut(&Path, OpenFile) -> Result<(), BagError>,
) -> Result<(), BagError> {
    let (mut good, mut errors) = (0, Vec::new());
    for file in files {
        budget.go_on()?;
        match OpenFile::open(file, budget).and_then(|open| look(file, open)) {
            Ok(()) => good += 1,
            Err(error @ BagError::Ros1 { .. }) => return Err(error),
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    if good == 0 && !errors.is_empty() {
        return Err(errors.remove(0));
    }
    warn_all(&budget.bag, &errors);
    Ok(())
}

/// Adds the counts of a topic that is spread over files.
fn merge(topics: &mut BTreeMap<String, Topic>, topic: Topic) {
    match topics.get_mut(&topic.name) {
        None => {
            topics.insert(topic.name.clone(), topic);
        }
        Some(known) => {
            known.count = known
                .count
                .zip(topic.count)
                .map(|(a, b)| a.saturating_add(b));
            known.encoding = known.encoding.take().or(topic.encoding);
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

/// Where a file of metadata.yaml lies.
enum Listed {
    Found(PathBuf),
    /// Not there, where it would be.
    Missing(PathBuf),
    /// Named so that it would lie elsewhere.
    Outside,
}

/// Finds a file of metadata.yaml. Old recorders wrote the folder's name in front, and packing or
/// unpacking by hand adds or removes the ending. Never leaves the folder: of a path that leads out of it
/// only the last name counts.
fn find_listed(folder: &Path, name: &str) -> Listed {
    let path = Path::new(name);
    let is_inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    let is_inside = path.components().all(is_inside);
    let Some(base) = path.file_name() else {
        return Listed::Outside;
    };
    let plain = folder.join(base);
    let base = base.to_string_lossy();
    let mut candidates = vec![plain.clone()];
    if is_inside {
        candidates.insert(0, folder.join(path));
    }
    candidates.push(match base.strip_suffix(".zstd") {
        Some(unpacked) => folder.join(unpacked),
        None => folder.join(format!("{base}.zstd")),
    });
    match candidates.into_iter().find(|path| path.is_file()) {
        // So that two ways to name a file are the same.
        Some(path) => Listed::Found(path.components().collect()),
        None if is_inside => Listed::Missing(plain),
        None => Listed::Outside,
    }
}

/// What a zstd frame begins with.
pub(super) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(Debug, PartialEq, Eq)]
enum Storage {
    Mcap,
    Sqlite,
    Zstd,
}

/// Tells what a file is by how it begins.
fn sniff(path: &Path) -> Result<Storage, BagError> {
    let mut start = Vec::with_capacity(16);
    open_regular(path)?
        .take(16)
        .read_to_end(&mut start)
        .map_err(BagError::io(path))?;
    if start.starts_with(mcap::MAGIC) {
        Ok(Storage::Mcap)
    } else if start.starts_with(b"SQLite format 3\0") {
        Ok(Storage::Sqlite)
    } else if start.starts_with(&ZSTD_MAGIC) {
        Ok(Storage::Zstd)
    } else if start.starts_with(b"#ROSBAG V") {
        Err(BagError::Ros1 {
            path: path.to_owned(),
            what: "a .bag file".into(),
        })
    } else {
        Err(BagError::Magic {
            path: path.to_owned(),
            is_empty: start.is_empty(),
        })
    }
}

/// A file of the bag, unpacked to a temporary one if it is packed as a whole.
pub(super) struct OpenFile {
    pub content: Content,
    /// Keeps the temporary file until its messages are read.
    pub unpacked: Option<Unpacked>,
}

pub(super) enum Content {
    Mcap(Box<McapFile>),
    Sqlite(Box<SqliteFile>),
}

pub(super) struct Unpacked {
    /// Open while it is needed; the path where it has one.
    file: fs::File,
    path: Option<tempfile::TempPath>,
    /// Why not all of the packed file could be unpacked.
    pub failure: Option<BagError>,
}

impl OpenFile {
    pub fn open(path: &Path, budget: &Budget) -> Result<Self, BagError> {
        let mut storage = sniff(path)?;
        let unpacked = match storage {
            Storage::Zstd => {
                let mut unpacked = unpack(path, budget)?;
                storage = match sniff(&unpacked.data()) {
                    Ok(storage) => storage,
                    // Broken off before the first bytes came out: that is the thing to say.
                    Err(error) => return Err(unpacked.failure.take().unwrap_or(error)),
                };
                // A process that is killed leaves nothing behind. SQLite needs a name.
                if storage == Storage::Mcap {
                    unpacked.unlink();
                }
                Some(unpacked)
            }
            _ => None,
        };
        let data = unpacked.as_ref().map(Unpacked::data);
        let data = data.as_deref().unwrap_or(path);
        let content = match storage {
            Storage::Mcap => Content::Mcap(Box::new(McapFile::open(data, path, budget)?)),
            Storage::Sqlite => Content::Sqlite(Box::new(SqliteFile::open(data, path, budget)?)),
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

    /// Log time of the first message, or earlier.
    fn start(&mut self) -> Option<i64> {
        match &mut self.content {
            Content::Mcap(file) => file.start(),
            Content::Sqlite(file) => file.times().map(|times| times.0),
        }
    }

    /// Times are looked for where the file `is_part` of a bag.
    fn look(&mut self, is_part: bool) -> Result<Look, BagError> {
        let count = match &mut self.content {
            Content::Mcap(file) if file.has_index() => {
                sum(file.topics()?.iter().map(|topic| topic.count))
            }
            Content::Mcap(_) => None,
            Content::Sqlite(file) => file.count(),
        };
        let start = if is_part { self.start() } else { None };
        Ok(Look { count, start })
    }
}

/// Unpacks a file to a temporary one, in the folder that `TMPDIR` names, as far as it goes. A file that
/// unpacks to more than it may is refused, not cut: what is in it was never whole.
fn unpack(path: &Path, budget: &Budget) -> Result<Unpacked, BagError> {
    let mut start = Vec::with_capacity(32);
    let mut packed = open_regular(path)?;
    (&packed)
        .take(32)
        .read_to_end(&mut start)
        .and_then(|_| packed.rewind())
        .map_err(BagError::io(path))?;
    let size = packed.metadata().map_err(BagError::io(path))?;
    let (most, limit) = budget.unpacked_file(bytes_on_disk(&size));
    let beyond = |claimed| BagError::Limit {
        path: path.to_owned(),
        excess: Excess {
            limit,
            most,
            claimed,
        },
    };
    let expected = zstd::zstd_safe::get_frame_content_size(&start)
        .ok()
        .flatten();
    if let Some(expected) = expected
        && expected > most
    {
        return Err(beyond(Some(expected)));
    }
    let mut decoder = zstd::stream::read::Decoder::new(&packed).map_err(BagError::io(path))?;
    let mut file = tempfile::Builder::new()
        .prefix("bag-unpacked-")
        .tempfile()
        .map_err(BagError::io(&std::env::temp_dir()))?;
    let mut failure = None;
    let mut unpacked = 0u64;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                unpacked += count as u64;
                if unpacked > most {
                    return Err(beyond(None));
                }
                budget.spend(count as u64)?;
                leave_space(file.path(), unpacked)?;
                file.write_all(&buffer[..count])
                    .map_err(BagError::io(file.path()))?;
            }
            Err(source) => {
                let what = match source.kind() {
                    std::io::ErrorKind::UnexpectedEof => "the packed file was cut off".to_owned(),
                    _ => format!("it cannot be unpacked further ({source})"),
                };
                let of = expected.map_or(String::new(), |size| format!(" of {size}"));
                failure = Some(BagError::Corrupt {
                    path: path.to_owned(),
                    offset: (&packed).stream_position().unwrap_or(0),
                    reason: format!("{what}; {unpacked}{of} bytes could be unpacked"),
                });
                break;
            }
        }
    }
    let (file, path) = file.into_parts();
    Ok(Unpacked {
        file,
        path: Some(path),
        failure,
    })
}

impl Unpacked {
    /// Where its bytes can be opened.
    fn data(&self) -> PathBuf {
        match &self.path {
            Some(path) => path.to_path_buf(),
            None => self.descriptor(),
        }
    }

    fn descriptor(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Takes its name away, where it can be opened without one.
    fn unlink(&mut self) {
        if self.descriptor().exists() {
            self.path = None;
        }
    }
}

/// Keeps an unpacked file from filling a disk that others need, too. Looks once in a while.
fn leave_space(file: &Path, written: u64) -> Result<(), BagError> {
    const EVERY: u64 = 64 << 20;
    const LEFT: u64 = 256 << 20;
    // The buffer is a part of that.
    if written % EVERY >= 1 << 16 {
        return Ok(());
    }
    let Ok(disk) = rustix::fs::statvfs(file) else {
        return Ok(());
    };
    match disk.f_bavail.saturating_mul(disk.f_frsize) < LEFT {
        true => Err(BagError::io(&std::env::temp_dir())(std::io::Error::new(
            std::io::ErrorKind::StorageFull,
            "too little space is left to unpack a file of the bag; TMPDIR names another folder",
        ))),
        false => Ok(()),
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
