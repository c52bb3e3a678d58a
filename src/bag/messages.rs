//! The messages of all files of a bag in order of log time.
//!
//! Files are taken apart into pieces: chunks, runs of messages outside of chunks, databases. A
//! piece is opened when the time of its first message has come, and the messages of the open
//! pieces are merged. So a recording that lies in order has one piece open at a time, and one
//! that does not has those that overlap. What they unpack to has a limit, beyond which chunks are
//! dropped and unpacked again at their next message.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Stamp;
use super::budget::{Budget, Errors};
use super::error::{BagError, at};
use super::limits::{Excess, Limit};
use super::mcap_file::{Entry, McapFile, PIECE_BYTES, Piece, PieceKind};
use super::reader::{Content, OpenFile, RawMessage, Selection, ZSTD_MAGIC};

/// Bytes of unpacked chunks that are kept, unless a single chunk is larger.
const CHUNK_MEMORY: usize = 128 << 20;

/// Memory for the time and place of a message.
pub(super) const ENTRY_BYTES: u64 = 16;

/// Files open at a time; a packed one lies unpacked on the disk meanwhile.
const MAX_OPEN: usize = 64;

/// Errors that are handed out; what a hostile bag has more of is counted.
const MOST_ERRORS: u64 = 1000;

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
    budget: Budget,
    /// Bytes of unpacked chunks in memory, and their limit; and which of the open ones they are.
    resident: usize,
    memory: usize,
    resident_at: BTreeSet<Place>,
    /// Bytes for times and places of what is still to be read.
    index: u64,
    errors: VecDeque<BagError>,
    /// Errors that were handed out, and those that were only counted.
    told_errors: u64,
    more_errors: u64,
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
    /// Bytes of the list of its rows.
    index: u64,
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
    /// Bytes of the list of its messages.
    index: u64,
}

impl Messages {
    pub(super) fn new(
        path: &Path,
        files: &[BagFile],
        selection: Selection,
        expected: Option<u64>,
        budget: Budget,
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
            index: 0,
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
            budget,
            resident: 0,
            memory: CHUNK_MEMORY,
            resident_at: BTreeSet::new(),
            index: 0,
            errors: VecDeque::new(),
            told_errors: 0,
            more_errors: 0,
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
                    at(&self.path)
                );
            }
            self.delayed.push_back(number);
            return;
        }
        let mut file = match OpenFile::open(&self.sources[number].path, &self.budget) {
            Ok(file) => file,
            Err(error) => return self.fail(error),
        };
        let mut pieces = 0;
        let room = (self.budget.limits.index_bytes).saturating_sub(self.index);
        let (errors, cut) = match &mut file.content {
            Content::Mcap(mcap) => match mcap.plan(&self.selection, room) {
                Ok(plan) => {
                    pieces = plan.pieces.len();
                    self.index += pieces as u64 * PIECE_BYTES;
                    for piece in plan.pieces {
                        let place = (piece.start, number, piece.offset, 0);
                        self.pending.insert(place, Pending::Piece(piece));
                    }
                    (plan.errors, plan.cut)
                }
                Err(error) if error.is_fatal() => return self.fail(error),
                Err(error) => (Errors::default(), Some(error)),
            },
            Content::Sqlite(database) => {
                let plan = database.plan(&self.selection, room);
                let index = plan.rows.len() as u64 * ENTRY_BYTES + PIECE_BYTES;
                let mut rows = plan.rows.into_iter();
                if let Some((time, id)) = rows.next() {
                    pieces = 1;
                    self.index += index;
                    self.sources[number].index = index - PIECE_BYTES;
                    let place = (time, number, id as u64, 0);
                    self.open.insert(place, Cursor::Rows(rows));
                }
                (plan.errors, plan.damage)
            }
        };
        self.tell_all(errors);
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
        self.index = self.index.saturating_sub(PIECE_BYTES);
        self.close_if_read(number);
    }

    fn close_if_read(&mut self, number: usize) {
        let source = &mut self.sources[number];
        if source.left == 0 {
            source.file = None;
            self.index = self.index.saturating_sub(source.index);
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
        self.fail(error);
    }

    fn tell_all(&mut self, errors: Errors) {
        errors.list.into_iter().for_each(|error| self.tell(error));
        self.more_errors += errors.more;
    }

    /// Hands out an error; one that holds for all of the bag ends it.
    fn fail(&mut self, error: BagError) {
        if error.is_fatal() {
            self.pending.clear();
            self.open.clear();
            self.resident_at.clear();
            self.delayed.clear();
            self.cuts.clear();
            self.errors.clear();
            self.ended = true;
        } else if self.told_errors == MOST_ERRORS {
            self.more_errors += 1;
            return;
        }
        self.told_errors += 1;
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
            PieceKind::Chunk { size } => size.min(self.budget.limits.chunk_bytes),
        };
        self.make_room(usize::try_from(size).unwrap_or(usize::MAX), number);
        let chunk = match self.mcap(number).load(offset) {
            Ok(chunk) => chunk,
            Err(error) => return self.lose_piece(number, error),
        };
        let (entries, errors) = self.mcap(number).entries(offset, &chunk);
        self.tell_all(errors);
        let index = entries.len() as u64 * ENTRY_BYTES;
        let limits = &self.budget.limits;
        if let Err(excess) = limits.check(Limit::Index, self.index.saturating_add(index)) {
            let path = self.sources[number].path.clone();
            return self.lose_piece(number, BagError::Limit { path, excess });
        }
        self.index += index;
        let records = chunk.records;
        let chunk = OpenChunk {
            records: None,
            size: records.len(),
            entries: entries.into_iter(),
            index,
        };
        self.put_back(number, offset, chunk, records);
    }

    fn lose_piece(&mut self, number: usize, error: BagError) {
        self.fail(error);
        if !self.ended {
            self.piece_is_read(number);
        }
    }

    /// Puts a chunk back, to where its next message comes.
    fn put_back(&mut self, number: usize, offset: u64, mut chunk: OpenChunk, records: Vec<u8>) {
        match chunk.entries.next() {
            Some((time, position)) => {
                self.make_room(records.len(), number);
                self.resident += records.len();
                chunk.records = Some(records);
                let place = (time, number, offset, position);
                self.resident_at.insert(place);
                self.open.insert(place, Cursor::Chunk(chunk));
            }
            None => {
                self.index = self.index.saturating_sub(chunk.index);
                self.piece_is_read(number);
            }
        }
    }

    /// Drops chunks until one of `size` bytes has its place, beginning with the one that is
    /// needed last.
    fn make_room(&mut self, size: usize, number: usize) {
        let most = self.memory.saturating_sub(size);
        let mut dropped = false;
        while self.resident > most
            && let Some(place) = self.resident_at.pop_last()
        {
            if let Some(Cursor::Chunk(chunk)) = self.open.get_mut(&place)
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
                at(&self.sources[number].path),
                self.memory >> 20
            );
        }
    }

    /// The next message of what is open, or `None` where it cannot be read.
    fn deliver(&mut self) -> Option<RawMessage> {
        let (place, cursor) = self.open.pop_first()?;
        self.resident_at.remove(&place);
        let (time, number, offset, position) = place;
        let result = match cursor {
            Cursor::Chunk(chunk) => self.next_of_chunk(number, offset, position, chunk),
            Cursor::Run { end } => self.next_of_run(number, offset, end),
            Cursor::Rows(rows) => self.next_of_rows(number, offset as i64, rows),
        };
        let message = match result {
            Ok(message) => message?,
            Err(error) => {
                self.fail(error);
                return None;
            }
        };
        if time < self.latest && self.told.insert(Told::Order(number)) {
            tracing::warn!(
                "{}: a message of {} comes behind one of {}, out of order: the bag gives a wrong \
                 time, or none, for the beginning of a file or chunk",
                at(&self.sources[number].path),
                Stamp(time),
                Stamp(self.latest)
            );
        }
        self.latest = self.latest.max(time);
        self.given += 1;
        Some(message)
    }

    fn next_of_chunk(
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
                        self.index = self.index.saturating_sub(chunk.index);
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

    fn next_of_run(
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
            Err(error) => self.lose_piece(number, error),
        }
        message.map(Some)
    }

    fn next_of_rows(
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
            Ok(message) => {
                self.budget.spend(message.data.len() as u64)?;
                Some(message)
            }
            Err(error) if error.is_fatal() => return Err(error),
            Err(error @ BagError::Limit { .. }) => {
                self.fail(error);
                None
            }
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
                at(&self.path)
            ),
            (_, last) => cuts.extend(last),
        }
        self.errors.extend(cuts);
        if self.more_errors > 0 {
            self.errors.push_back(BagError::More {
                path: self.path.clone(),
                count: self.more_errors,
            });
        }
    }
}

impl Iterator for Messages {
    type Item = Result<RawMessage, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if !self.ended
                && let Err(stopped) = self.budget.go_on()
            {
                self.fail(stopped);
            }
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
                        match unpack(message, &self.path, &self.budget) {
                            Ok(message) => return Some(Ok(message)),
                            Err(error) => self.fail(error),
                        }
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
fn unpack(message: RawMessage, bag: &Path, budget: &Budget) -> Result<RawMessage, BagError> {
    if !message.data.starts_with(&ZSTD_MAGIC) {
        return Ok(message);
    }
    let limits = &budget.limits;
    let most = limits.message_bytes;
    let beyond = |claimed| BagError::Limit {
        path: bag.to_owned(),
        excess: Excess {
            limit: Limit::Message,
            most,
            claimed,
        },
    };
    let claimed = zstd::zstd_safe::get_frame_content_size(&message.data);
    if let Ok(Some(claimed)) = claimed
        && claimed > most
    {
        return Err(beyond(Some(claimed)));
    }
    let mut data = Vec::new();
    let unpacked = zstd::stream::read::Decoder::with_buffer(message.data.as_slice())
        .and_then(|decoder| decoder.take(most.saturating_add(1)).read_to_end(&mut data));
    budget.spend(data.len() as u64)?;
    match unpacked {
        Ok(_) if data.len() as u64 > most => Err(beyond(None)),
        Ok(_) => Ok(RawMessage { data, ..message }),
        Err(source) => Err(BagError::Message {
            topic: message.topic,
            log_time: Stamp(message.log_time),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use mcap::records::MessageHeader;
    use mcap::{Compression, WriteOptions};
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseError;

    use super::*;
    use crate::bag::Reader;

    /// How a file is written.
    #[derive(Debug, Clone)]
    struct Layout {
        chunks: bool,
        chunk_size: u64,
        compression: Option<Compression>,
        index: bool,
        /// What the index has: channels, statistics, chunks.
        channels: bool,
        statistics: bool,
        chunk_indexes: bool,
    }

    const PLAIN: Layout = Layout {
        chunks: true,
        chunk_size: 1000,
        compression: None,
        index: true,
        channels: true,
        statistics: true,
        chunk_indexes: true,
    };

    fn layout() -> impl Strategy<Value = Layout> {
        let compression = prop_oneof![
            Just(None),
            Just(Some(Compression::Zstd)),
            Just(Some(Compression::Lz4)),
        ];
        let often = || prop::bool::weighted(0.8);
        let index = (often(), often(), often(), often());
        (often(), 1..600u64, compression, index).prop_map(
            |(chunks, chunk_size, compression, (index, channels, statistics, chunk_indexes))| {
                Layout {
                    chunks,
                    chunk_size,
                    compression,
                    index,
                    channels,
                    statistics,
                    chunk_indexes,
                }
            },
        )
    }

    /// Times and topics in file order; a message's number is what it holds.
    fn write(path: &Path, layout: &Layout, messages: &[(i64, usize)], first: u64) {
        let mut writer = WriteOptions::new()
            .use_chunks(layout.chunks)
            .chunk_size(Some(layout.chunk_size))
            .compression(layout.compression)
            .compression_threads(0)
            .emit_summary_records(layout.index)
            .emit_summary_offsets(layout.index)
            .emit_message_indexes(layout.index)
            .repeat_channels(layout.index && layout.channels)
            .repeat_schemas(layout.index && layout.channels)
            .emit_statistics(layout.index && layout.statistics)
            .emit_chunk_indexes(layout.index && layout.chunk_indexes)
            .create(File::create(path).unwrap())
            .unwrap();
        for (number, &(time, topic)) in (first..).zip(messages) {
            let schema = writer
                .add_schema("std_msgs/msg/Empty", "ros2msg", b"")
                .unwrap();
            let topic = TOPICS[topic];
            let channel_id = writer
                .add_channel(schema, topic, "cdr", &Default::default())
                .unwrap();
            let header = MessageHeader {
                channel_id,
                sequence: 0,
                log_time: time as u64,
                publish_time: 0,
            };
            let mut data = number.to_le_bytes().to_vec();
            data.resize(8 + number as usize % 90, 7);
            writer.write_to_known_channel(&header, &data).unwrap();
        }
        writer.finish().unwrap();
    }

    const TOPICS: [&str; 3] = ["/a", "/b", "/c"];

    /// The messages of some files as they must come: a stable sort.
    fn sorted(parts: &[Vec<(i64, usize)>], topics: &[usize]) -> Vec<(i64, usize, u64)> {
        let mut all: Vec<_> = (0..)
            .zip(parts.iter().flatten())
            .map(|(number, &(time, topic))| (time, topic, number))
            .collect();
        all.retain(|(_, topic, _)| topics.contains(topic));
        all.sort_by_key(|(time, ..)| *time);
        all
    }

    fn number(message: &RawMessage) -> (i64, usize, u64) {
        let topic = TOPICS.iter().position(|topic| *topic == &*message.topic);
        let number = u64::from_le_bytes(message.data[..8].try_into().unwrap());
        assert_eq!(message.data.len(), (8 + number as usize % 90).max(8));
        (message.log_time, topic.unwrap(), number)
    }

    fn names(topics: &[usize]) -> Vec<&'static str> {
        topics.iter().map(|topic| TOPICS[*topic]).collect()
    }

    /// Mostly in order, with some messages far from their place.
    fn times() -> impl Strategy<Value = Vec<(i64, usize)>> {
        let message = (0..20i64, prop::bool::weighted(0.1), 0..2000i64, 0..3usize);
        prop::collection::vec(message, 0..120).prop_map(|messages| {
            let place = |(i, (jitter, far, anywhere, topic)): (i64, _)| match far {
                true => (anywhere, topic),
                false => (i * 10 + jitter, topic),
            };
            (0..).zip(messages).map(place).collect()
        })
    }

    fn subset() -> impl Strategy<Value = Vec<usize>> {
        prop::sample::subsequence(vec![0, 1, 2], 1..=3)
    }

    #[test]
    fn a_part_that_begins_at_time_0_comes_first() {
        let layout = Layout {
            chunks: true,
            chunk_size: 1,
            compression: None,
            index: true,
            channels: true,
            statistics: false,
            chunk_indexes: true,
        };
        let folder = tempfile::tempdir().unwrap();
        for (i, (messages, first)) in [(vec![(1, 0)], 0), (vec![(0, 0), (10, 0)], 1)]
            .into_iter()
            .enumerate()
        {
            let path = folder.path().join(format!("b_{i}.mcap"));
            write(&path, &layout, &messages, first);
        }
        let reader = Reader::open(folder.path()).unwrap();
        let times: Vec<i64> = reader.all_messages().map(|m| m.unwrap().log_time).collect();
        assert_eq!(times, [0, 1, 10]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn messages_come_in_a_stable_order_of_log_time(
            layouts in prop::collection::vec(layout(), 1..4),
            parts in prop::collection::vec(times(), 1..4),
            topics in subset(),
            memory in prop_oneof![Just(0usize), 1..3000usize, Just(CHUNK_MEMORY)],
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut first = 0;
            for (i, messages) in parts.iter().enumerate() {
                let layout = &layouts[i % layouts.len()];
                write(&folder.path().join(format!("b_{i}.mcap")), layout, messages, first);
                first += messages.len() as u64;
            }
            let reader = Reader::open(folder.path()).unwrap();
            let mut messages = reader.messages(&names(&topics));
            messages.memory = memory;
            let mut read = Vec::new();
            for item in &mut messages {
                let message = item.map_err(|error| TestCaseError::fail(error.to_string()))?;
                read.push(number(&message));
            }
            prop_assert_eq!(read, sorted(&parts, &topics));
            prop_assert_eq!(messages.resident, 0);
            prop_assert_eq!(messages.open_files, 0);
        }

        #[test]
        fn a_cut_file_gives_whole_messages_in_order_then_one_error(
            layout in layout(),
            messages in times(),
            cut in any::<prop::sample::Index>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("cut.mcap");
            write(&path, &layout, &messages, 0);
            let whole = std::fs::metadata(&path).unwrap().len();
            let length = 8 + cut.index(whole as usize - 8) as u64;
            File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
            let reader = Reader::open(&path).unwrap();
            let (mut read, mut errors) = (Vec::new(), 0);
            for item in reader.all_messages() {
                match item {
                    Ok(message) => {
                        prop_assert_eq!(errors, 0, "messages behind the error");
                        read.push(number(&message));
                    }
                    Err(_) => errors += 1,
                }
            }
            let all = sorted(std::slice::from_ref(&messages), &[0, 1, 2]);
            // What is read is a beginning of the file in order of time, all of it.
            let mut expected = all.clone();
            expected.retain(|(.., number)| (*number as usize) < read.len());
            prop_assert_eq!(&read, &expected);
            prop_assert!(errors == 1 || read.len() == all.len() && errors == 0);
        }
    }

    #[test]
    fn chunks_that_do_not_fit_into_memory_together_are_unpacked_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.mcap");
        // Every chunk reaches from the beginning to the end.
        let messages: Vec<(i64, usize)> = (0..400).map(|i| (i * 37 % 401, 0)).collect();
        let layout = Layout {
            compression: Some(Compression::Zstd),
            ..PLAIN
        };
        write(&path, &layout, &messages, 0);
        let reader = Reader::open(&path).unwrap();
        let mut items = reader.all_messages();
        items.memory = 4000;
        let mut read = Vec::new();
        let mut most = 0;
        while let Some(item) = items.next() {
            read.push(number(&item.unwrap()));
            most = most.max(items.resident);
        }
        assert_eq!(read, sorted(&[messages], &[0]));
        assert!((1000..=4000).contains(&most), "{most}");
        assert!(items.told.contains(&Told::Memory(0)));
    }

    #[test]
    fn a_chunk_that_says_a_wrong_time_of_itself_is_read_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wrong.mcap");
        let layout = Layout {
            chunk_size: 1,
            index: false,
            ..PLAIN
        };
        write(&path, &layout, &[(10, 0), (20, 0), (30, 0)], 0);
        let mut bytes = std::fs::read(&path).unwrap();
        let start = 10u64.to_le_bytes();
        let chunk = bytes.windows(8).position(|bytes| bytes == start).unwrap();
        bytes[chunk] = 25;
        std::fs::write(&path, bytes).unwrap();
        let reader = Reader::open(&path).unwrap();
        let mut items = reader.all_messages();
        let times: Vec<_> = items.by_ref().map(|item| item.unwrap().log_time).collect();
        assert_eq!(times, [20, 10, 30]);
        assert!(items.told.contains(&Told::Order(0)));
    }

    #[test]
    fn a_recording_in_order_has_one_chunk_in_memory_and_one_file_open() {
        let folder = tempfile::tempdir().unwrap();
        for part in 0..80 {
            let messages: Vec<_> = (0..60).map(|i| (part * 1000 + i * 10, 0)).collect();
            let path = folder.path().join(format!("b_{part}.mcap"));
            write(&path, &PLAIN, &messages, part as u64 * 60);
        }
        let reader = Reader::open(folder.path()).unwrap();
        let mut items = reader.all_messages();
        let mut count = 0;
        while let Some(item) = items.next() {
            assert_eq!(number(&item.unwrap()).2, count);
            count += 1;
            assert!(items.resident < 2200, "{}", items.resident);
            assert!(items.open_files <= 1);
        }
        assert_eq!(count, 80 * 60);
    }

    #[test]
    fn more_files_than_may_be_open_are_all_read() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            chunks: false,
            ..PLAIN
        };
        for part in 0..2 * MAX_OPEN {
            let path = folder.path().join(format!("b_{part}.mcap"));
            write(&path, &layout, &[(0, 0), (1000, 0)], 0);
        }
        let reader = Reader::open(folder.path()).unwrap();
        let mut items = reader.all_messages();
        assert_eq!(items.by_ref().map(Result::unwrap).count(), 4 * MAX_OPEN);
        assert!(items.told.contains(&Told::OpenFiles));
    }
}
