//! The messages of all files of a bag in order of log time.
//!
//! Files are taken apart into pieces: chunks, runs of messages outside of chunks, databases. A
//! piece is opened when the time of its first message has come, and the messages of the open
//! pieces are merged. So a recording that lies in order has one piece open at a time, and one
//! that does not has those that overlap. What they unpack to has a limit, beyond which chunks are
//! dropped and unpacked again at their next message.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};

use super::Stamp;
use super::mcap_file::{Entry, McapFile, Piece, PieceKind};
use super::reader::{BagError, Content, OpenFile, RawMessage, Selection, ZSTD_MAGIC};

/// Bytes of unpacked chunks that are kept, unless a single chunk is larger.
const CHUNK_MEMORY: usize = 128 << 20;

/// Files open at a time; a packed one lies unpacked on the disk meanwhile.
const MAX_OPEN: usize = 64;

/// A file of a bag.
#[derive(Debug, Clone)]
pub(super) struct BagFile {
    pub path: PathBuf,
    /// Log time of its first message, where that is known without unpacking it. A file where it
    /// is not known is read behind those before it.
    pub start: Option<i64>,
}

/// Where something comes in the bag: log time, number of the file, offset or row, offset in the
/// chunk.
type Place = (i64, usize, u64, u32);

/// Iterates over messages; see [`Reader::messages`](super::Reader::messages).
pub struct Messages {
    /// The bag.
    path: PathBuf,
    sources: Vec<Source>,
    selection: Selection,
    /// Messages that the bag counts on the topics of the selection.
    expected: Option<u64>,
    /// What is to be opened, by its earliest message.
    pending: BTreeMap<Place, Pending>,
    /// What is open, by its next message.
    open: BTreeMap<Place, Cursor>,
    /// Files whose turn has come while too many are open.
    delayed: VecDeque<usize>,
    open_files: usize,
    /// Bytes of unpacked chunks in memory, and their limit.
    resident: usize,
    memory: usize,
    errors: VecDeque<BagError>,
    /// Damage that ends a file, told behind all messages.
    cuts: Vec<BagError>,
    told: HashSet<Told>,
    given: u64,
    latest: i64,
    ended: bool,
}

/// What is told once.
#[derive(PartialEq, Eq, Hash)]
enum Told {
    Encoding(String),
    Order(usize),
    Memory(usize),
    OpenFiles,
}

struct Source {
    path: PathBuf,
    file: Option<OpenFile>,
    /// Pieces that are not read to their end.
    left: usize,
    cut: Option<BagError>,
}

enum Pending {
    File,
    Piece(Piece),
}

enum Cursor {
    Chunk(OpenChunk),
    /// Messages outside of chunks up to an offset.
    Run {
        end: u64,
    },
    /// Times and numbers of the rows that follow.
    Rows(std::vec::IntoIter<(i64, i64)>),
}

struct OpenChunk {
    /// What it unpacks to, unless that was dropped for lack of memory.
    records: Option<Vec<u8>>,
    size: usize,
    entries: std::vec::IntoIter<Entry>,
}

impl Messages {
    pub(super) fn new(
        path: &Path,
        files: &[BagFile],
        selection: Selection,
        expected: Option<u64>,
    ) -> Self {
        let place = |(number, file): (usize, &BagFile)| {
            let start = file.start.unwrap_or(i64::MAX);
            ((start, number, 0, 0), Pending::File)
        };
        let source = |file: &BagFile| Source {
            path: file.path.clone(),
            file: None,
            left: 0,
            cut: None,
        };
        Messages {
            path: path.to_owned(),
            sources: files.iter().map(source).collect(),
            selection,
            expected,
            pending: files.iter().enumerate().map(place).collect(),
            open: BTreeMap::new(),
            delayed: VecDeque::new(),
            open_files: 0,
            resident: 0,
            memory: CHUNK_MEMORY,
            errors: VecDeque::new(),
            cuts: Vec::new(),
            told: HashSet::new(),
            given: 0,
            latest: i64::MIN,
            ended: false,
        }
    }

    fn open_file(&mut self, number: usize) {
        if self.open_files == MAX_OPEN {
            if self.told.insert(Told::OpenFiles) {
                tracing::warn!(
                    "{}: more than {MAX_OPEN} files of the bag overlap in time; some have to wait, \
                     so their messages may come out of order",
                    self.path.display()
                );
            }
            self.delayed.push_back(number);
            return;
        }
        let mut file = match OpenFile::open(&self.sources[number].path) {
            Ok(file) => file,
            Err(error) => return self.errors.push_back(error),
        };
        let mut pieces = 0;
        let (errors, cut) = match &mut file.content {
            Content::Mcap(mcap) => match mcap.plan(&self.selection) {
                Ok(plan) => {
                    pieces = plan.pieces.len();
                    for piece in plan.pieces {
                        let place = (piece.start, number, piece.offset, 0);
                        self.pending.insert(place, Pending::Piece(piece));
                    }
                    (plan.errors, plan.cut)
                }
                Err(error) => (Vec::new(), Some(error)),
            },
            Content::Sqlite(database) => {
                let plan = database.plan(&self.selection);
                let mut rows = plan.rows.into_iter();
                if let Some((time, id)) = rows.next() {
                    pieces = 1;
                    let place = (time, number, id as u64, 0);
                    self.open.insert(place, Cursor::Rows(rows));
                }
                (plan.errors, plan.damage)
            }
        };
        for error in errors {
            self.tell(error);
        }
        // Where a packed file is cut off, what it unpacks to is cut off, too: that is one fault.
        let packed = file.unpacked.as_mut().and_then(|file| file.failure.take());
        let source = &mut self.sources[number];
        source.cut = packed.or(cut);
        source.file = Some(file);
        source.left = pieces;
        self.open_files += 1;
        self.close_if_read(number);
    }

    fn piece_is_read(&mut self, number: usize) {
        self.sources[number].left -= 1;
        self.close_if_read(number);
    }

    fn close_if_read(&mut self, number: usize) {
        let source = &mut self.sources[number];
        if source.left == 0 {
            source.file = None;
            self.cuts.extend(source.cut.take());
            self.open_files -= 1;
            if let Some(number) = self.delayed.pop_front() {
                self.open_file(number);
            }
        }
    }

    /// Hands out an error, unless it is about a topic and came up in another file.
    fn tell(&mut self, error: BagError) {
        if let BagError::Encoding { topic, .. } = &error
            && !self.told.insert(Told::Encoding(topic.clone()))
        {
            return;
        }
        self.errors.push_back(error);
    }

    /// The file that an open or pending piece lies in.
    fn content(&mut self, number: usize) -> &mut Content {
        let file = self.sources[number].file.as_mut();
        &mut file.expect("open until its last piece is read").content
    }

    fn mcap(&mut self, number: usize) -> &mut McapFile {
        match self.content(number) {
            Content::Mcap(mcap) => mcap,
            Content::Sqlite(_) => unreachable!("only MCAP has chunks and runs"),
        }
    }

    fn open_piece(&mut self, number: usize, piece: Piece) {
        let offset = piece.offset;
        let size = match piece.kind {
            PieceKind::Run { end } => {
                let place = (piece.start, number, offset, 0);
                self.open.insert(place, Cursor::Run { end });
                return;
            }
            PieceKind::Chunk { size } => size,
        };
        self.make_room(usize::try_from(size).unwrap_or(usize::MAX), number);
        let chunk = match self.mcap(number).load(offset) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.errors.push_back(error);
                return self.piece_is_read(number);
            }
        };
        let (entries, errors) = self.mcap(number).entries(offset, &chunk);
        for error in errors {
            self.tell(error);
        }
        let records = chunk.records;
        let chunk = OpenChunk {
            records: None,
            size: records.len(),
            entries: entries.into_iter(),
        };
        self.put_back(number, offset, chunk, records);
    }

    /// Puts a chunk back, to where its next message comes.
    fn put_back(&mut self, number: usize, offset: u64, mut chunk: OpenChunk, records: Vec<u8>) {
        match chunk.entries.next() {
            Some((time, position)) => {
                self.make_room(records.len(), number);
                self.resident += records.len();
                chunk.records = Some(records);
                let place = (time, number, offset, position);
                self.open.insert(place, Cursor::Chunk(chunk));
            }
            None => self.piece_is_read(number),
        }
    }

    /// Drops chunks until one of `size` bytes has its place, beginning with the one that is
    /// needed last.
    fn make_room(&mut self, size: usize, number: usize) {
        let most = self.memory.saturating_sub(size);
        let mut dropped = false;
        for cursor in self.open.values_mut().rev() {
            if self.resident <= most {
                break;
            }
            if let Cursor::Chunk(chunk) = cursor
                && let Some(records) = chunk.records.take()
            {
                self.resident -= records.len();
                dropped = true;
            }
        }
        if dropped && self.told.insert(Told::Memory(number)) {
            tracing::warn!(
                "{}: more chunks overlap in time than fit into {} MiB; some are unpacked more \
                 than once, which takes time",
                self.sources[number].path.display(),
                self.memory >> 20
            );
        }
    }

    /// The next message of what is open, or `None` where it cannot be read.
    fn deliver(&mut self) -> Option<RawMessage> {
        let (place, cursor) = self.open.pop_first()?;
        let (time, number, offset, position) = place;
        let result = match cursor {
            Cursor::Chunk(chunk) => self.from_chunk(number, offset, position, chunk),
            Cursor::Run { end } => self.from_run(number, offset, end),
            Cursor::Rows(rows) => self.from_rows(number, offset as i64, rows),
        };
        let message = match result {
            Ok(message) => message?,
            Err(error) => {
                self.errors.push_back(error);
                return None;
            }
        };
        if time < self.latest && self.told.insert(Told::Order(number)) {
            tracing::warn!(
                "{}: a message of {} comes behind one of {}, out of order: the bag gives a wrong \
                 time, or none, for the beginning of a file or chunk",
                self.sources[number].path.display(),
                Stamp(time),
                Stamp(self.latest)
            );
        }
        self.latest = self.latest.max(time);
        self.given += 1;
        Some(message)
    }

    fn from_chunk(
        &mut self,
        number: usize,
        offset: u64,
        position: u32,
        mut chunk: OpenChunk,
    ) -> Result<Option<RawMessage>, BagError> {
        let records = match chunk.records.take() {
            Some(records) => {
                self.resident -= records.len();
                records
            }
            None => {
                self.make_room(chunk.size, number);
                match self.mcap(number).load(offset) {
                    Ok(chunk) => chunk.records,
                    Err(error) => {
                        self.piece_is_read(number);
                        return Err(error);
                    }
                }
            }
        };
        let message = self.mcap(number).message_in(offset, &records, position);
        self.put_back(number, offset, chunk, records);
        message.map(Some)
    }

    fn from_run(
        &mut self,
        number: usize,
        offset: u64,
        end: u64,
    ) -> Result<Option<RawMessage>, BagError> {
        let mcap = self.mcap(number);
        let message = mcap.message_at(offset);
        let next = mcap.next_in_run(offset, end);
        match next {
            Ok(Some((time, offset))) => {
                let place = (time, number, offset, 0);
                self.open.insert(place, Cursor::Run { end });
            }
            Ok(None) => self.piece_is_read(number),
            Err(error) => {
                self.errors.push_back(error);
                self.piece_is_read(number);
            }
        }
        message.map(Some)
    }

    fn from_rows(
        &mut self,
        number: usize,
        id: i64,
        mut rows: std::vec::IntoIter<(i64, i64)>,
    ) -> Result<Option<RawMessage>, BagError> {
        let message = match self.content(number) {
            Content::Sqlite(database) => database.message(id),
            Content::Mcap(_) => unreachable!("only databases have rows"),
        };
        // One error is enough for all rows that are lost.
        let message = match message {
            Ok(message) => Some(message),
            Err(error) => {
                self.sources[number].cut.get_or_insert(error);
                None
            }
        };
        match rows.next() {
            Some((time, id)) => {
                let place = (time, number, id as u64, 0);
                self.open.insert(place, Cursor::Rows(rows));
            }
            None => self.piece_is_read(number),
        }
        Ok(message)
    }

    /// What is to be told when all is read.
    fn end(&mut self) {
        self.ended = true;
        let given = self.given;
        let mut cuts = std::mem::take(&mut self.cuts);
        let lost = self.expected.filter(|expected| *expected != given);
        match (lost, cuts.pop()) {
            (Some(expected), Some(last)) if expected > given => {
                cuts.push(BagError::Incomplete {
                    source: Box::new(last),
                    given,
                    expected,
                });
            }
            (Some(expected), None) => tracing::warn!(
                "{}: {given} messages could be read where the bag counts {expected} on the same \
                 topics",
                self.path.display()
            ),
            (_, last) => cuts.extend(last),
        }
        self.errors.extend(cuts);
    }
}

impl Iterator for Messages {
    type Item = Result<RawMessage, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(error) = self.errors.pop_front() {
                return Some(Err(error));
            }
            let open = self.open.first_key_value().map(|(place, _)| *place);
            let pending = self.pending.first_key_value().map(|(place, _)| *place);
            match (open, pending) {
                (None, None) if self.ended => return None,
                (None, None) => self.end(),
                (Some(open), pending) if pending.is_none_or(|pending| open < pending) => {
                    if let Some(message) = self.deliver() {
                        return Some(unpack(message));
                    }
                }
                _ => match self.pending.pop_first() {
                    Some(((_, number, ..), Pending::File)) => self.open_file(number),
                    Some(((_, number, ..), Pending::Piece(piece))) => {
                        self.open_piece(number, piece);
                    }
                    None => {}
                },
            }
        }
    }
}

/// Unpacks a message that is a zstd frame of its own (rosbag2's compression mode "message"): CDR
/// never begins like one, so it is told without metadata.
fn unpack(message: RawMessage) -> Result<RawMessage, BagError> {
    if !message.data.starts_with(&ZSTD_MAGIC) {
        return Ok(message);
    }
    match zstd::stream::decode_all(message.data.as_slice()) {
        Ok(data) => Ok(RawMessage { data, ..message }),
        Err(source) => Err(BagError::Message {
            topic: message.topic,
            log_time: Stamp(message.log_time),
            source,
        }),
    }
}
