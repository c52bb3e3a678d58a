//! One `.db3` file of rosbag2's SQLite storage, opened read-only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use super::reader::{BagError, RawMessage, Selection, Topic};

pub(super) struct SqliteFile {
    path: PathBuf,
    connection: Connection,
    topics: Vec<SqliteTopic>,
}

struct SqliteTopic {
    id: i64,
    name: String,
    type_name: String,
    format: String,
}

impl SqliteFile {
    /// Opens `data`, which errors call `path`.
    pub fn open(data: &Path, path: &Path) -> Result<Self, BagError> {
        let connection = connect(data).map_err(BagError::sqlite(path))?;
        let topics = read_topics(&connection).map_err(BagError::sqlite(path))?;
        Ok(SqliteFile {
            path: path.to_owned(),
            connection,
            topics,
        })
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
                name: topic.name.clone(),
                type_name: topic.type_name.clone(),
                count: counts
                    .as_ref()
                    .map(|counts| counts.get(&topic.id).copied().unwrap_or(0)),
            })
            .collect()
    }

    fn counts(&self) -> rusqlite::Result<HashMap<i64, u64>> {
        self.connection
            .prepare("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id")?
            .query_map([], |row| {
                let count: i64 = row.get(1)?;
                Ok((row.get(0)?, count as u64))
            })?
            .collect()
    }

    /// The messages in order of time. Only their numbers are collected beforehand: sorting the
    /// messages themselves would make SQLite hold all of them.
    pub fn messages(self, selection: &Selection) -> SqliteMessages {
        let mut failure = None;
        let mut wanted = HashMap::new();
        for topic in &self.topics {
            if !selection.wants(&topic.name) {
                continue;
            }
            if topic.format == "cdr" {
                wanted.insert(topic.id, Arc::from(topic.name.as_str()));
            } else {
                failure = Some(BagError::Encoding {
                    path: self.path.clone(),
                    topic: topic.name.clone(),
                    encoding: topic.format.clone(),
                });
            }
        }
        let mut ids = Vec::new();
        let all = "SELECT id, topic_id FROM messages";
        let sorted = format!("{all} ORDER BY timestamp, id");
        let mut result = collect_ids(&self.connection, &sorted, &wanted, &mut ids);
        if result.is_err() && ids.is_empty() {
            // The index by time may lie in a part of the file that is lost; the rows need not.
            let again = collect_ids(&self.connection, all, &wanted, &mut ids);
            result = result.and(again);
        }
        if let Err(source) = result {
            failure = failure.or(Some(BagError::sqlite(&self.path)(source)));
        }
        SqliteMessages {
            file: self,
            wanted,
            ids: ids.into_iter(),
            failure,
        }
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let probe = |connection: Connection| {
        connection.query_row("SELECT COUNT(*) FROM sqlite_master", [], |_| Ok(()))?;
        Ok(connection)
    };
    let first = Connection::open_with_flags(path, flags).and_then(probe);
    if first.is_ok() {
        return first;
    }
    // A file left in WAL mode on a read-only medium opens only if SQLite is told that nobody
    // else writes to it.
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'?' | b'#' | b'%' => uri.push_str(&format!("%{byte:02X}")),
            _ if byte.is_ascii() => uri.push(*byte as char),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
        .and_then(probe)
        .or(first)
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

fn collect_ids(
    connection: &Connection,
    query: &str,
    wanted: &HashMap<i64, Arc<str>>,
    ids: &mut Vec<i64>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(query)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if wanted.contains_key(&row.get(1)?) {
            ids.push(row.get(0)?);
        }
    }
    Ok(())
}

pub(super) struct SqliteMessages {
    file: SqliteFile,
    wanted: HashMap<i64, Arc<str>>,
    ids: std::vec::IntoIter<i64>,
    /// Given out at the end, after what could be read.
    failure: Option<BagError>,
}

impl Iterator for SqliteMessages {
    type Item = Result<RawMessage, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(id) = self.ids.next() else {
            return self.failure.take().map(Err);
        };
        let row = self
            .file
            .connection
            .prepare_cached("SELECT topic_id, timestamp, data FROM messages WHERE id = ?1")
            .and_then(|mut statement| {
                statement.query_row([id], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?))
                })
            });
        match row {
            Ok((topic_id, log_time, data)) => Some(Ok(RawMessage {
                topic: self.wanted.get(&topic_id)?.clone(),
                log_time,
                data,
            })),
            Err(source) => {
                // Pages that follow a broken one are rarely better, and one error is enough.
                self.ids = Vec::new().into_iter();
                self.failure = None;
                Some(Err(BagError::sqlite(&self.file.path)(source)))
            }
        }
    }
}
