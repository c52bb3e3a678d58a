//! One `.db3` file of rosbag2's SQLite storage, opened read-only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::reader::{BagError, RawMessage, Selection, Topic};
use super::sqlite_pages::{FoundRow, Pages};

pub(super) struct SqliteFile {
    /// Where the bytes are.
    data: PathBuf,
    /// What errors call the file.
    path: PathBuf,
    connection: Connection,
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
    pub errors: Vec<BagError>,
    /// Why there may have been more.
    pub damage: Option<BagError>,
}

impl SqliteFile {
    /// Opens `data`, which errors call `path`.
    pub fn open(data: &Path, path: &Path) -> Result<Self, BagError> {
        // What a file lacks may still lie in its journal, where SQLite finds it.
        let cut = match journal(data, "-wal") {
            Some(_) => None,
            None => Pages::open(data).ok().and_then(|pages| pages.cut()),
        };
        let mut this = SqliteFile {
            data: data.to_owned(),
            path: path.to_owned(),
            connection: connect(data, path).map_err(|source| damaged(path, cut, source))?,
            topics: Vec::new(),
            wanted: HashMap::new(),
            cut,
            salvage: None,
        };
        this.topics = read_topics(&this.connection).map_err(|source| this.damaged(source))?;
        Ok(this)
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
        self.connection
            .prepare("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id")?
            .query_map([], |row| {
                let count: i64 = row.get(1)?;
                Ok((row.get(0)?, count as u64))
            })?
            .collect()
    }

    /// Messages of all topics: counted by the index by time, which is small.
    pub fn count(&self) -> Option<u64> {
        if self.cut.is_some() {
            return None;
        }
        let query = "SELECT COUNT(*) FROM messages";
        let count = self.connection.query_row(query, [], |row| row.get(0));
        u64::try_from(count.unwrap_or(-1)).ok()
    }

    /// What is wanted, in order of log time, ties in file order. Only times and numbers are
    /// collected: sorting the messages themselves would make SQLite hold all of them.
    pub fn plan(&mut self, selection: &Selection) -> RowPlan {
        let mut errors = Vec::new();
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
            Some(_) => Some(corrupt()),
            None => collect_rows(&self.connection, &self.wanted, &mut rows).err(),
        };
        if damage.is_some()
            && let Ok(salvage) = Salvage::of(&self.data)
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
            damage: damage.map(|source| self.damaged(source)),
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
        result.or_else(|source| self.salvaged(id).ok_or_else(|| self.damaged(source)))
    }

    fn salvaged(&mut self, id: i64) -> Option<RawMessage> {
        let Salvage { pages, rows } = self.salvage.as_mut()?;
        let row = rows.get(&id)?;
        Some(RawMessage {
            topic: self.wanted.get(&row.topic)?.clone(),
            log_time: row.time,
            data: pages.data(row).ok()??,
        })
    }

    fn damaged(&self, source: rusqlite::Error) -> BagError {
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
    fn of(data: &Path) -> std::io::Result<Self> {
        let mut pages = Pages::open(data)?;
        let mut rows = HashMap::new();
        pages.rows(|row| {
            rows.insert(row.id, row);
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

/// The journal of a database that was not closed, if there is one that holds something.
fn journal(data: &Path, ending: &str) -> Option<PathBuf> {
    let mut path = data.as_os_str().to_owned();
    path.push(ending);
    let path = PathBuf::from(path);
    path.metadata()
        .is_ok_and(|file| file.len() > 0)
        .then_some(path)
}

fn connect(data: &Path, path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let probe = |connection: Connection| {
        // Lets SQLite open a file that is shorter than its header says. Nothing is written.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)?;
        connection.query_row("SELECT COUNT(*) FROM sqlite_master", [], |_| Ok(()))?;
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
            path.display(),
            journal.display()
        );
    }
    Ok(second)
}

fn read_topics(connection: &Connection) -> rusqlite::Result<Vec<SqliteTopic>> {
    connection
        .prepare("SELECT id, name, type, serialization_format FROM topics")?
        .query_map([], |row| {
            Ok(SqliteTopic {
                id: row.get(0)?,
                name: row.get(1)?,
                type_name: row.get(2)?,
                format: row.get(3)?,
            })
        })?
        .collect()
}

fn collect_rows(
    connection: &Connection,
    wanted: &HashMap<i64, Arc<str>>,
    collected: &mut Vec<(i64, i64)>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT timestamp, id, topic_id FROM messages")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if wanted.contains_key(&row.get(2)?) {
            collected.push((row.get(0)?, row.get(1)?));
        }
    }
    Ok(())
}
