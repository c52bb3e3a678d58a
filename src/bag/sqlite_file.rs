//! One `.db3` file of rosbag2's SQLite storage, opened read-only.
//!
//! A database is a program as much as data: a view or a column may compute what is not in the file, and pages
//! may name each other so that a file of a few kilobytes has rows without end. So only plain tables are
//! read, nothing in them is longer than the file, there are no more rows than fit into it, and what SQLite does
//! for it is counted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit as SqliteLimit;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::budget::{Budget, Errors, bytes_on_disk};
use super::error::{BagError, at};
use super::limits::{Excess, Limit};
use super::messages::ENTRY_BYTES;
use super::reader::{RawMessage, Selection, Topic};
use super::records::LONGEST_NAME;
use super::sqlite_pages::{FoundRow, Pages};
use crate::text::excerpt;

/// Bytes of a file that a row takes at least.
const ROW_BYTES: u64 = 8;
/// As many as an MCAP file can have.
const MOST_TOPICS: usize = 1 << 16;
/// Memory for a row that was found without SQLite.
const FOUND_ROW_BYTES: u64 = 64;

pub(super) struct SqliteFile {
    /// Where the bytes are.
    data: PathBuf,
    /// What errors call the file.
    path: PathBuf,
    budget: Budget,
    /// Bytes of the file and its journal.
    len: u64,
    connection: Connection,
    /// Whether SQLite was stopped since it did more than a file of its size can ask for.
    endless: Arc<AtomicBool>,
    topics: Vec<SqliteTopic>,
    /// What an iteration is after, by the numbers of the topics.
    wanted: HashMap<i64, Arc<str>>,
    /// Bytes that are there and bytes that should be, where the file was cut off.
    cut: Option<(u64, u64)>,
    salvage: Option<Salvage>,
}

struct SqliteTopic {
    id: i64,
    name: String,
    type_name: String,
    format: String,
}

/// The rows of a damaged file by their numbers, found without SQLite, which does not reach all.
struct Salvage {
    pages: Pages,
    rows: HashMap<i64, FoundRow>,
}

/// What an iteration over a database gives.
pub(super) struct RowPlan {
    /// Log time and number of each message, in order.
    pub rows: Vec<(i64, i64)>,
    pub errors: Errors,
    /// Why there may have been more.
    pub damage: Option<BagError>,
}

impl SqliteFile {
    /// Opens `data`, which errors call `path`.
    pub fn open(data: &Path, path: &Path, budget: &Budget) -> Result<Self, BagError> {
        let mut len = std::fs::metadata(data).map_err(BagError::io(path))?.len();
        for ending in ["-wal", "-journal", "-shm"] {
            let beside = beside(data, ending);
            let Ok(found) = std::fs::symlink_metadata(&beside) else {
                continue;
            };
            // SQLite opens them by name, whatever they are.
            let is_file = match budget.limits.follow_links {
                true => beside.is_file(),
                false => found.is_file(),
            };
            if !is_file {
                return Err(BagError::NoFile(beside));
            }
            if ending == "-wal" {
                len = len.saturating_add(bytes_on_disk(&found));
            }
        }
        // What a file lacks may still lie in its journal, where SQLite finds it.
        let cut = match journal(data, "-wal") {
            Some(_) => None,
            None => Pages::open(data).ok().and_then(|pages| pages.cut()),
        };
        let endless = Arc::new(AtomicBool::new(false));
        let connection = connect(data, path, len, budget, &endless);
        let mut this = SqliteFile {
            data: data.to_owned(),
            path: path.to_owned(),
            budget: budget.clone(),
            len,
            connection: connection.map_err(|source| match endless.load(Ordering::Relaxed) {
                true => BagError::Endless(path.to_owned()),
                false => damaged(path, cut, source),
            })?,
            endless,
            topics: Vec::new(),
            wanted: HashMap::new(),
            cut,
            salvage: None,
        };
        for (table, columns) in [
            ("topics", "id, name, type, serialization_format"),
            ("messages", "id, topic_id, timestamp, data"),
        ] {
            let kind = kind(&this.connection, table);
            let kind = kind.map_err(|source| this.damaged(source))?;
            if let Some(kind) = kind.filter(|kind| kind != "table") {
                return Err(this.table(table, format!("is a {}", excerpt(&kind))));
            }
            let is_plain = is_plain(&this.connection, table, columns);
            if !is_plain.map_err(|source| this.damaged(source))? {
                return Err(this.table(table, "is none that holds data itself".to_owned()));
            }
        }
        this.topics = this.read_topics()?;
        Ok(this)
    }

    fn table(&self, table: &'static str, what: String) -> BagError {
        BagError::SqliteTable {
            path: self.path.clone(),
            table,
            what,
        }
    }

    fn read_topics(&self) -> Result<Vec<SqliteTopic>, BagError> {
        let error = |source| self.damaged(source);
        let query = "SELECT id, name, type, serialization_format FROM topics";
        let mut statement = self.connection.prepare(query).map_err(error)?;
        let mut rows = statement.query([]).map_err(error)?;
        let mut topics = Vec::new();
        while let Some(row) = rows.next().map_err(error)? {
            let name = |column: usize| -> Result<String, BagError> {
                let text = row.get_ref(column).map_err(error)?;
                let text = text.as_str().map_err(|source| error(source.into()))?;
                match text.len() {
                    0..=LONGEST_NAME => Ok(text.to_owned()),
                    length => Err(self.table(
                        "topics",
                        format!("has a name of {length} bytes; {LONGEST_NAME} are the most"),
                    )),
                }
            };
            if topics.len() == MOST_TOPICS {
                let what = format!("has more than {MOST_TOPICS} rows");
                return Err(self.table("topics", what));
            }
            topics.push(SqliteTopic {
                id: row.get(0).map_err(error)?,
                name: name(1)?,
                type_name: name(2)?,
                format: name(3)?,
            });
        }
        Ok(topics)
    }

    /// Whether that many rows can be in the file.
    fn fits(&self, rows: u64) -> rusqlite::Result<()> {
        match rows > self.len / ROW_BYTES {
            true => Err(corrupt()),
            false => Ok(()),
        }
    }

    pub fn times(&self) -> Option<(i64, i64)> {
        self.connection
            .query_row(
                "SELECT MIN(timestamp), MAX(timestamp) FROM messages",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .ok()
    }

    pub fn topics(&self) -> Vec<Topic> {
        let counts = self.counts().ok();
        self.topics
            .iter()
            .map(|topic| Topic {
                encoding: topic.foreign(),
                count: counts
                    .as_ref()
                    .map(|counts| counts.get(&topic.id).copied().unwrap_or(0)),
                ..Topic::new(&topic.name, &topic.type_name)
            })
            .collect()
    }

    fn counts(&self) -> rusqlite::Result<HashMap<i64, u64>> {
        if self.cut.is_some() {
            return Err(corrupt());
        }
        // Grouped here: SQLite would sort them first, on the disk.
        let mut counts: HashMap<i64, u64> = HashMap::new();
        counts.extend(self.topics.iter().map(|topic| (topic.id, 0)));
        let mut statement = self.connection.prepare("SELECT topic_id FROM messages")?;
        let mut rows = statement.query([])?;
        let mut all = 0;
        while let Some(row) = rows.next()? {
            all += 1;
            self.fits(all)?;
            if let Some(count) = counts.get_mut(&row.get(0)?) {
                *count += 1;
            }
        }
        Ok(counts)
    }

    /// Messages of all topics: counted by the index by time, which is small.
    pub fn count(&self) -> Option<u64> {
        if self.cut.is_some() {
            return None;
        }
        // COUNT(*) would walk the pages in one step, which nothing ends.
        let query = "SELECT COUNT(timestamp) FROM messages";
        let count = self.connection.query_row(query, [], |row| row.get(0));
        u64::try_from(count.unwrap_or(-1)).ok()
    }

    /// What is wanted, in order of log time, ties in file order. Only times and numbers are
    /// collected: sorting the messages themselves would make SQLite hold all of them.
    /// The list has at most `most` bytes.
    pub fn plan(&mut self, selection: &Selection, most: u64) -> RowPlan {
        let mut errors = Errors::default();
        for topic in &self.topics {
            if !selection.wants(&topic.name) {
                continue;
            }
            match topic.foreign() {
                None => {
                    let name = Arc::from(topic.name.as_str());
                    self.wanted.insert(topic.id, name);
                }
                Some(encoding) => errors.push(BagError::Encoding {
                    path: self.path.clone(),
                    topic: topic.name.clone(),
                    encoding,
                }),
            }
        }
        let mut rows = Vec::new();
        let damage = match self.cut {
            // SQLite fills up the page that is cut with zeros, without a word.
            Some(_) => Some(self.damaged(corrupt())),
            None => self.collect_rows(most, &mut rows).err(),
        };
        let is_limit =
            |error: &BagError| error.is_fatal() || matches!(error, BagError::Limit { .. });
        if damage.as_ref().is_some_and(|error| !is_limit(error))
            && let Ok(salvage) = Salvage::of(&self.data, most, &self.budget)
        {
            let wanted = salvage.rows.values();
            let wanted = wanted.filter(|row| self.wanted.contains_key(&row.topic));
            rows.extend(wanted.map(|row| (row.time, row.id)));
            self.salvage = Some(salvage);
        }
        rows.sort_unstable();
        rows.dedup();
        RowPlan {
            rows,
            errors,
            damage,
        }
    }

    /// The message with number `id`.
    pub fn message(&mut self, id: i64) -> Result<RawMessage, BagError> {
        if self.cut.is_some() {
            return self.salvaged(id).ok_or_else(|| self.damaged(corrupt()));
        }
        let result = self
            .connection
            .prepare_cached("SELECT topic_id, timestamp, data FROM messages WHERE id = ?1")
            .and_then(|mut statement| {
                statement.query_row([id], |row| {
                    let topic = self.wanted.get(&row.get(0)?).cloned();
                    Ok(RawMessage {
                        topic: topic.ok_or_else(corrupt)?,
                        log_time: row.get(1)?,
                        data: row.get(2)?,
                    })
                })
            });
        let source = match result {
            Ok(message) => return Ok(message),
            Err(source) => source,
        };
        if source.sqlite_error_code() == Some(ErrorCode::TooBig) {
            let query = "SELECT length(data) FROM messages WHERE id = ?1";
            let claimed = self.connection.query_row(query, [id], |row| row.get(0));
            let claimed = claimed
                .ok()
                .and_then(|length: i64| u64::try_from(length).ok());
            let most = self.budget.limits.message_bytes;
            // What is longer than the file is damage, not a long message.
            if self.len > most {
                return Err(BagError::Limit {
                    path: self.path.clone(),
                    excess: Excess {
                        limit: Limit::Message,
                        most,
                        claimed,
                    },
                });
            }
        }
        self.salvaged(id).ok_or_else(|| self.damaged(source))
    }

    fn collect_rows(&self, most: u64, collected: &mut Vec<(i64, i64)>) -> Result<(), BagError> {
        let error = |source| self.damaged(source);
        let query = "SELECT timestamp, id, topic_id FROM messages";
        let mut statement = self.connection.prepare(query).map_err(error)?;
        let mut rows = statement.query([]).map_err(error)?;
        let mut all = 0;
        while let Some(row) = rows.next().map_err(error)? {
            all += 1;
            self.fits(all).map_err(error)?;
            if self.wanted.contains_key(&row.get(2).map_err(error)?) {
                if collected.len() as u64 * ENTRY_BYTES >= most {
                    let (limit, most) = (Limit::Index, self.budget.limits.index_bytes);
                    let excess = Excess {
                        limit,
                        most,
                        claimed: None,
                    };
                    let path = self.path.clone();
                    return Err(BagError::Limit { path, excess });
                }
                let row = row.get(0).and_then(|time| Ok((time, row.get(1)?)));
                collected.push(row.map_err(error)?);
            }
        }
        Ok(())
    }

    fn salvaged(&mut self, id: i64) -> Option<RawMessage> {
        let Salvage { pages, rows } = self.salvage.as_mut()?;
        let row = rows.get(&id)?;
        let most = self.budget.limits.message_bytes;
        Some(RawMessage {
            topic: self.wanted.get(&row.topic)?.clone(),
            log_time: row.time,
            data: pages.data(row, most).ok()??,
        })
    }

    fn damaged(&self, source: rusqlite::Error) -> BagError {
        if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) {
            if let Err(stopped) = self.budget.go_on() {
                return stopped;
            }
            if self.endless.load(Ordering::Relaxed) {
                return BagError::Endless(self.path.clone());
            }
        }
        damaged(&self.path, self.cut, source)
    }
}

impl SqliteTopic {
    /// The encoding, where it is not one that can be read.
    fn foreign(&self) -> Option<String> {
        (self.format != "cdr").then(|| self.format.clone())
    }
}

impl Salvage {
    /// At most as many rows as fit into so many bytes of memory.
    fn of(data: &Path, most: u64, budget: &Budget) -> std::io::Result<Self> {
        let mut pages = Pages::open(data)?;
        let mut rows = HashMap::new();
        pages.rows(|row| {
            rows.insert(row.id, row);
            (rows.len() as u64) < most / FOUND_ROW_BYTES && !budget.is_stopped()
        })?;
        Ok(Salvage { pages, rows })
    }
}

fn damaged(path: &Path, cut: Option<(u64, u64)>, source: rusqlite::Error) -> BagError {
    match cut {
        Some((bytes, expected)) => BagError::SqliteCut {
            path: path.to_owned(),
            bytes,
            expected,
        },
        None => BagError::Sqlite {
            path: path.to_owned(),
            source,
        },
    }
}

/// What SQLite says of a broken file.
fn corrupt() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, None)
}

fn beside(data: &Path, ending: &str) -> PathBuf {
    let mut path = data.as_os_str().to_owned();
    path.push(ending);
    PathBuf::from(path)
}

/// The journal of a database that was not closed, if there is one that holds something.
fn journal(data: &Path, ending: &str) -> Option<PathBuf> {
    let path = beside(data, ending);
    path.metadata()
        .is_ok_and(|file| file.len() > 0)
        .then_some(path)
}

/// What the schema says that a table is: a view is called so.
fn kind(connection: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
    let query = "SELECT type FROM sqlite_master WHERE name = ?1 COLLATE NOCASE LIMIT 1";
    let mut statement = connection.prepare(query)?;
    let mut rows = statement.query([table])?;
    rows.next()?.map(|row| row.get(0)).transpose()
}

/// Whether what is asked of a table is read from its own pages: neither a view nor a virtual table nor a column that is
/// computed is. SQLite tells by the steps that it would take.
fn is_plain(connection: &Connection, table: &str, columns: &str) -> rusqlite::Result<bool> {
    const NOT_PLAIN: [&str; 6] = [
        "VOpen",
        "Function",
        "PureFunc",
        "InitCoroutine",
        "OpenEphemeral",
        "SorterOpen",
    ];
    let query = format!("EXPLAIN SELECT {columns} FROM {table}");
    let mut statement = connection.prepare(&query)?;
    let mut steps = statement.query([])?;
    while let Some(step) = steps.next()? {
        let operation: String = step.get(1)?;
        if NOT_PLAIN.contains(&operation.as_str()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Steps of SQLite's between two looks at whether to go on.
const STEPS: u32 = 10_000;

/// Takes from a connection what a recording does not need, and counts what is left.
fn restrain(
    connection: &mut Connection,
    len: u64,
    budget: &Budget,
    endless: &Arc<AtomicBool>,
) -> rusqlite::Result<()> {
    // Some dozen steps for each row, for all queries together.
    let most = 20_000_000u64.saturating_add(len.saturating_mul(8));
    let (mut taken, stop, endless) = (0u64, budget.clone(), endless.clone());
    let handler = move || {
        taken = taken.saturating_add(STEPS.into());
        if taken > most {
            endless.store(true, Ordering::Relaxed);
        }
        taken > most || stop.is_stopped()
    };
    connection.progress_handler(STEPS as i32, Some(handler))?;
    for (option, value) in [
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        // Lets SQLite open a file that is shorter than its header says. Nothing is written.
        (DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true),
    ] {
        connection.set_db_config(option, value)?;
    }
    // Nothing in a file is longer than the file. A row has some bytes more than its message.
    let longest = budget.limits.message_bytes.saturating_add(1024).min(len);
    let longest = i32::try_from(longest).unwrap_or(i32::MAX);
    connection.set_limit(SqliteLimit::SQLITE_LIMIT_LENGTH, longest)?;
    Ok(())
}

fn connect(
    data: &Path,
    path: &Path,
    len: u64,
    budget: &Budget,
    endless: &Arc<AtomicBool>,
) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let probe = |mut connection: Connection| {
        restrain(&mut connection, len, budget, endless)?;
        let mut any = connection.prepare("SELECT 1 FROM sqlite_master LIMIT 1")?;
        any.exists([])?;
        drop(any);
        // Files may ask for a cache of their own size.
        connection.pragma_update(None, "cache_size", -8000)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        Ok(connection)
    };
    let first = Connection::open_with_flags(data, flags).and_then(probe);
    if first.is_ok() {
        return first;
    }
    // A file left in WAL mode on a read-only medium opens only if SQLite is told that nobody
    // else writes to it.
    let mut uri = String::from("file:");
    for byte in data.as_os_str().as_encoded_bytes() {
        match byte {
            b'?' | b'#' | b'%' => uri.push_str(&format!("%{byte:02X}")),
            _ if byte.is_ascii() => uri.push(*byte as char),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let second = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
        .and_then(probe)
        .or(first)?;
    for journal in ["-wal", "-journal"]
        .iter()
        .filter_map(|ending| journal(data, ending))
    {
        tracing::warn!(
            "{}: read without its journal {}, which cannot be used; the last messages before the \
             recorder ended may be missing",
            at(path),
            at(&journal)
        );
    }
    Ok(second)
}
