//! One MCAP file, taken apart into pieces that can be had in order of log time.
//!
//! Records are framed here, not by the `mcap` crate's readers, for three reasons: errors name
//! the offset they were met at, a file that breaks off still yields every whole message before
//! the break, and no length from the file is believed before it is held against the file's size.
//! The bodies of records are parsed in [`records`], which believes no length either.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mcap::MAGIC;
use mcap::records::op;

use super::budget::{Budget, Errors, open_regular};
use super::error::{BagError, at};
use super::limits::{Excess, Limit};
use super::reader::{RawMessage, Selection, Topic};
use super::records;

/// A record's opcode and length.
const FRAME: u64 = 9;
const FOOTER_BODY: u64 = 20;
/// Start, end and unpacked size at the beginning of a chunk.
const CHUNK_TIMES: u64 = 24;
/// Channel, sequence, log time and publish time before a message's data.
const MESSAGE_HEADER: usize = 22;
/// A longer definition of a topic or type, or entry of the index, is not read: the text of the largest types has
/// some hundred kilobytes.
const LONGEST_DEFINITION: u64 = 16 << 20;
/// Memory for a piece of a file until it is read.
pub(super) const PIECE_BYTES: u64 = 160;

pub(super) struct McapFile {
    /// Where the bytes are.
    data: PathBuf,
    /// What errors call the file: a packed one is read from an unpacked copy.
    path: PathBuf,
    budget: Budget,
    file: BufReader<File>,
    /// Where `file` stands.
    at: u64,
    len: u64,
    summary: Option<Summary>,
    selection: Selection,
    channels: HashMap<u16, Channel>,
    /// Whether `channels` holds all there are.
    all_channels: bool,
    /// Channels that messages name and nothing defines, so that each is told once.
    undefined: HashSet<u16>,
    /// Where the record lies that the end of the file cuts off.
    cut_at: Option<u64>,
    /// What has been met so far, for files whose index does not say.
    seen: Option<Summary>,
}

/// What the index at the end of a complete file says.
#[derive(Default)]
struct Summary {
    schemas: HashMap<u16, String>,
    channels: HashMap<u16, records::Channel>,
    counts: HashMap<u16, u64>,
    has_counts: bool,
    /// The chunks by their offsets.
    chunks: HashMap<u64, IndexedChunk>,
    times: Option<(i64, i64)>,
}

struct IndexedChunk {
    start: i64,
    end: i64,
    /// Length of the chunk's record, and of the message indexes behind it.
    length: u64,
    index_length: u64,
    size: u64,
    /// Channels that have messages in it; empty where the file does not say so.
    channels: Vec<u16>,
}

#[derive(Clone)]
struct Channel {
    topic: Arc<str>,
    wanted: bool,
    /// The encoding, where it is not one that can be read.
    foreign: Option<String>,
}

/// A stretch of a file whose messages can be had in order of log time.
#[derive(Debug)]
pub(super) struct Piece {
    /// Log time of its earliest message. What a chunk says of itself, so not to be relied on.
    pub start: i64,
    pub offset: u64,
    pub kind: PieceKind,
}

#[derive(Debug)]
pub(super) enum PieceKind {
    /// A chunk that unpacks to `size` bytes, by what it says of itself.
    Chunk { size: u64 },
    /// Messages outside of chunks that lie in order already, up to the offset `end`.
    Run { end: u64 },
}

/// A file taken apart.
pub(super) struct Plan {
    /// In file order.
    pub pieces: Vec<Piece>,
    pub errors: Errors,
    /// What is to be told behind all messages: where the file is cut off.
    pub cut: Option<BagError>,
}

/// An unpacked chunk.
pub(super) struct Chunk {
    pub records: Vec<u8>,
    /// Why it is not all there.
    damage: Option<String>,
    /// Whether the file ends within it, which the plan tells.
    cut: bool,
}

/// Log time of a message and its place in the chunk.
pub(super) type Entry = (i64, u32);

impl McapFile {
    pub fn open(data: &Path, path: &Path, budget: &Budget) -> Result<Self, BagError> {
        let mut this = Self::open_unchecked(data, path, budget)?;
        let mut magic = [0; 8];
        this.file
            .read_exact(&mut magic)
            .map_err(|_| this.corrupt(0, "it ends within the MCAP magic bytes".into()))?;
        this.at = MAGIC.len() as u64;
        if magic != *MAGIC {
            return Err(this.corrupt(0, "it does not begin with the MCAP magic bytes".into()));
        }
        // The header only matters for the profile; a file cut this early yields its error later.
        if let Ok(Some((op::HEADER, body))) = this.read_definition(MAGIC.len() as u64)
            && let Ok(profile) = records::header(&body)
            && profile.starts_with("ros1")
        {
            return Err(BagError::Ros1 {
                path: path.to_owned(),
                what: format!("MCAP profile \"{profile}\""),
            });
        }
        this.summary = this.read_summary();
        if let Some(summary) = &this.summary
            && !summary.channels.is_empty()
            && summary
                .channels
                .values()
                .all(|channel| channel.message_encoding == "ros1")
        {
            return Err(BagError::Ros1 {
                path: path.to_owned(),
                what: "message encoding \"ros1\"".into(),
            });
        }
        Ok(this)
    }

    fn open_unchecked(data: &Path, path: &Path, budget: &Budget) -> Result<Self, BagError> {
        let file = open_regular(data)?;
        let len = file.metadata().map_err(BagError::io(path))?.len();
        Ok(McapFile {
            data: data.to_owned(),
            path: path.to_owned(),
            budget: budget.clone(),
            file: BufReader::with_capacity(1 << 16, file),
            at: 0,
            len,
            summary: None,
            selection: Selection::Nothing,
            channels: HashMap::new(),
            all_channels: false,
            undefined: HashSet::new(),
            cut_at: None,
            seen: None,
        })
    }

    /// First and last log time, where the file has an index.
    pub fn times(&self) -> Option<(i64, i64)> {
        let summary = self.summary.as_ref()?;
        let chunks = || {
            let filled = summary
                .chunks
                .values()
                .filter(|c| (c.start, c.end) != (0, 0));
            filled
                .map(|chunk| (chunk.start, chunk.end))
                .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
        };
        summary.times.or_else(chunks)
    }

    /// Log time of the first message, or earlier: by the index, or else by what records say of
    /// themselves, without unpacking any.
    pub fn start(&mut self) -> Option<i64> {
        // A chunk from 0 to 0 is empty, or its messages have that time: whoever looks there early
        // loses nothing.
        let indexed = self.summary.as_ref().and_then(|summary| {
            let chunks = summary.chunks.values().map(|chunk| chunk.start);
            summary.times.map(|times| times.0).or_else(|| chunks.min())
        });
        if indexed.is_some() {
            return indexed;
        }
        let most = self.budget.limits.index_bytes;
        let plan = self.plan(&Selection::All, most).ok()?;
        plan.pieces.iter().map(|piece| piece.start).min()
    }

    /// Whether the index names all topics.
    pub fn has_index(&self) -> bool {
        self.summary.as_ref().is_some_and(Summary::is_complete)
    }

    /// The topics of the file: from its index, or by reading all of it where it has none (as
    /// when the recorder was killed).
    pub fn topics(&mut self) -> Result<Vec<Topic>, BagError> {
        if !self.has_index() {
            if self.summary.is_none() {
                tracing::warn!(
                    "{}: no index at the end of the file (was the recording cut off?); reading \
                     all of it",
                    at(&self.path)
                );
            }
            let (summary, errors) = self.scan()?;
            for error in &errors.list {
                tracing::warn!("{error}");
            }
            if errors.more > 0 {
                tracing::warn!("{}: {} more such errors", at(&self.path), errors.more);
            }
            self.summary = Some(summary);
        }
        let summary = self.summary.as_ref().expect("read or set just above");
        Ok(summary
            .channels
            .values()
            .map(|channel| Topic {
                encoding: foreign(&channel.message_encoding),
                count: summary
                    .has_counts
                    .then(|| summary.counts.get(&channel.id).copied().unwrap_or(0)),
                ..Topic::new(
                    &channel.topic,
                    summary
                        .schemas
                        .get(&channel.schema_id)
                        .map_or("", |name| name),
                )
            })
            .collect())
    }

    /// Reads all of the file for what an index would say.
    fn scan(&self) -> Result<(Summary, Errors), BagError> {
        let mut again = McapFile::open_unchecked(&self.data, &self.path, &self.budget)?;
        again.all_channels = true;
        again.seen = Some(Summary {
            has_counts: true,
            ..Summary::default()
        });
        let most = self.budget.limits.index_bytes;
        let plan = again.plan(&Selection::Nothing, most)?;
        let mut errors = plan.errors;
        for piece in plan.pieces {
            match again.load(piece.offset) {
                Ok(chunk) => errors.extend(again.entries(piece.offset, &chunk).1),
                Err(error) if error.is_fatal() => return Err(error),
                Err(error @ BagError::Io { .. }) => return Err(error),
                Err(error) => errors.push(error),
            }
        }
        plan.cut.into_iter().for_each(|cut| errors.push(cut));
        Ok((again.seen.unwrap_or_default(), errors))
    }

    fn corrupt(&self, offset: u64, reason: String) -> BagError {
        BagError::Corrupt {
            path: self.path.clone(),
            offset,
            reason,
        }
    }

    /// Moves within the buffer where that is enough: small records would otherwise each cost a
    /// read of a whole buffer.
    fn seek(&mut self, offset: u64) -> Result<(), BagError> {
        let distance = offset.wrapping_sub(self.at) as i64;
        self.file
            .seek_relative(distance)
            .map_err(BagError::io(&self.path))?;
        self.at = offset;
        Ok(())
    }

    /// Opcode and body length of the record at `offset`; `None` when its frame does not fit.
    fn read_frame(&mut self, offset: u64) -> Result<Option<(u8, u64)>, BagError> {
        if self.len.saturating_sub(offset) < FRAME {
            return Ok(None);
        }
        self.seek(offset)?;
        let mut frame = [0; FRAME as usize];
        self.file
            .read_exact(&mut frame)
            .map_err(BagError::io(&self.path))?;
        self.at += FRAME;
        let mut length = [0; 8];
        length.copy_from_slice(&frame[1..]);
        Ok(Some((frame[0], u64::from_le_bytes(length))))
    }

    /// Reads up to `length` bytes at `offset`, fewer where the file ends.
    fn read_body(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, BagError> {
        let available = length.min(self.len.saturating_sub(offset));
        self.seek(offset)?;
        // Whoever calls has held the length against a limit; the memory may be less still.
        let mut body = Vec::new();
        body.try_reserve_exact(available as usize)
            .map_err(|_| BagError::io(&self.path)(std::io::ErrorKind::OutOfMemory.into()))?;
        (&mut self.file)
            .take(available)
            .read_to_end(&mut body)
            .map_err(BagError::io(&self.path))?;
        self.at += body.len() as u64;
        Ok(body)
    }

    /// The record at `offset`, if it is one that defines something; `None` when it does not fit into the file, or has a
    /// length that no definition has.
    fn read_definition(&mut self, offset: u64) -> Result<Option<(u8, Vec<u8>)>, BagError> {
        let Some((opcode, length)) = self.read_frame(offset)? else {
            return Ok(None);
        };
        if length > self.len - offset - FRAME || length > LONGEST_DEFINITION {
            return Ok(None);
        }
        Ok(Some((opcode, self.read_body(offset + FRAME, length)?)))
    }

    /// The index at the end, if the file is complete and has one. An index is a convenience, so
    /// one that cannot be read is treated as absent.
    fn read_summary(&mut self) -> Option<Summary> {
        let tail = FRAME + FOOTER_BODY + MAGIC.len() as u64;
        let footer_at = self.len.checked_sub(tail)?;
        let (opcode, body) = self.read_definition(footer_at).ok()??;
        if opcode != op::FOOTER {
            return None;
        }
        let start = records::footer(&body).ok()?;
        if start == 0 || start >= footer_at {
            return None;
        }
        let mut summary = Summary::default();
        let mut offset = start;
        let mut cost = 0;
        while offset < footer_at {
            let (opcode, length) = self.read_frame(offset).ok()??;
            let next = offset.checked_add(FRAME)?.checked_add(length)?;
            if next > footer_at || opcode == 0 {
                return None;
            }
            if Summary::OPCODES.contains(&opcode) {
                let (opcode, body) = self.read_definition(offset).ok()??;
                cost += PIECE_BYTES + 2 * length;
                if cost > self.budget.limits.index_bytes {
                    return None;
                }
                summary.add(opcode, &body)?;
            }
            offset = next;
        }
        (!summary.channels.is_empty() || summary.has_counts).then_some(summary)
    }

    /// Takes the file apart. Chunks that the index names are passed over; elsewhere the frames of
    /// all records are read, and the times at the beginning of chunks and messages. The list of pieces has at most
    /// `most` bytes.
    pub fn plan(&mut self, selection: &Selection, most: u64) -> Result<Plan, BagError> {
        self.selection = selection.clone();
        self.channels.clear();
        self.undefined.clear();
        if let Some(summary) = self.summary.take() {
            for channel in summary.channels.values() {
                self.add_channel(channel);
            }
            self.all_channels |= summary.is_complete();
            self.summary = Some(summary);
        }
        let mut plan = Plan {
            pieces: Vec::new(),
            errors: Errors::default(),
            cut: None,
        };
        // The run that the next message may continue, by the time of its last message.
        let mut run: Option<i64> = None;
        let mut offset = MAGIC.len() as u64;
        loop {
            self.budget.go_on()?;
            if plan.pieces.len() as u64 * PIECE_BYTES > most {
                let (limit, most) = (Limit::Index, self.budget.limits.index_bytes);
                plan.cut = Some(self.beyond(Excess {
                    limit,
                    most,
                    claimed: None,
                }));
                break;
            }
            if let Some((piece, next)) = self.indexed(offset)? {
                plan.pieces.extend(piece);
                run = None;
                offset = next;
                continue;
            }
            let Some((opcode, length)) = self.read_frame(offset)? else {
                plan.cut = Some(
                    self.corrupt(
                        offset,
                        "it ends here without an end record; the recording was cut off, and what \
                         followed is not known"
                            .into(),
                    ),
                );
                break;
            };
            if matches!(opcode, op::DATA_END | op::FOOTER) {
                break;
            }
            if opcode == 0 {
                let reason = "from here on it holds zeros where records should be; what followed is not known";
                plan.cut = Some(self.corrupt(offset, reason.into()));
                break;
            }
            let body_at = offset + FRAME;
            let available = self.len - body_at;
            let cut = length > available;
            let next = body_at.saturating_add(length);
            if cut {
                self.cut_at = Some(offset);
                let what = match opcode {
                    op::CHUNK => "chunk",
                    op::MESSAGE => "message",
                    _ => "record",
                };
                plan.cut = Some(self.corrupt(
                    offset,
                    format!(
                        "the recording was cut off: of a {what} of {length} bytes the last {} are \
                         missing, and what followed is not known",
                        length - available
                    ),
                ));
            }
            match opcode {
                op::CHUNK if length < CHUNK_TIMES && !cut => {
                    let reason = "a chunk header is cut off".to_owned();
                    plan.errors.push(self.corrupt(offset, reason));
                }
                op::CHUNK if available >= CHUNK_TIMES => {
                    let times = self.read_body(body_at, CHUNK_TIMES)?;
                    plan.pieces.push(Piece {
                        start: number(&times, 0).map_or(i64::MIN, log_time),
                        offset,
                        kind: PieceKind::Chunk {
                            size: number(&times, 16).unwrap_or(0),
                        },
                    });
                    run = None;
                }
                _ if cut => {}
                op::SCHEMA | op::CHANNEL if length > LONGEST_DEFINITION => {
                    let reason = format!(
                        "a definition of {length} bytes is not read; {LONGEST_DEFINITION} are the most"
                    );
                    plan.errors.push(self.corrupt(offset, reason));
                }
                op::SCHEMA | op::CHANNEL => {
                    let body = self.read_body(body_at, length)?;
                    if let Err(reason) = self.define(opcode, &body) {
                        plan.errors.push(self.corrupt(offset, reason));
                    }
                }
                op::MESSAGE => {
                    let body = self.read_body(body_at, length.min(MESSAGE_HEADER as u64))?;
                    match self.meet(&body, offset) {
                        Ok(None) => {}
                        Ok(Some(time)) => {
                            match (run, plan.pieces.last_mut()) {
                                (Some(last), Some(piece)) if last <= time => {
                                    piece.kind = PieceKind::Run { end: next };
                                }
                                _ => plan.pieces.push(Piece {
                                    start: time,
                                    offset,
                                    kind: PieceKind::Run { end: next },
                                }),
                            }
                            run = Some(time);
                        }
                        Err(error) => plan.errors.push(error),
                    }
                }
                _ => {}
            }
            if cut {
                break;
            }
            offset = next;
        }
        Ok(plan)
    }

    /// The chunk that the index says lies at `offset`, unless nothing in it is wanted; and where
    /// the file goes on behind it. `None` where the index says nothing that holds.
    fn indexed(&mut self, offset: u64) -> Result<Option<(Option<Piece>, u64)>, BagError> {
        let Some(summary) = &self.summary else {
            return Ok(None);
        };
        let Some(chunk) = summary.chunks.get(&offset) else {
            return Ok(None);
        };
        let behind = offset.saturating_add(chunk.length);
        if chunk.length < FRAME + CHUNK_TIMES || behind > self.len {
            return Ok(None);
        }
        let of_no_use = |id: &u16| self.channels.get(id).is_some_and(|channel| !channel.wanted);
        let skip = !chunk.channels.is_empty() && chunk.channels.iter().all(of_no_use);
        let piece = (!skip).then_some(Piece {
            start: chunk.start,
            offset,
            kind: PieceKind::Chunk { size: chunk.size },
        });
        // The message indexes are passed over, too, if there is something behind them.
        let next = behind.saturating_add(chunk.index_length);
        let known = summary.chunks.contains_key(&next);
        let is_record = known
            || self.read_frame(next)?.is_some_and(|(opcode, length)| {
                (op::HEADER..=op::DATA_END).contains(&opcode) && length <= self.len - next - FRAME
            });
        Ok(Some((piece, if is_record { next } else { behind })))
    }

    fn add_channel(&mut self, channel: &records::Channel) {
        self.channels.insert(
            channel.id,
            Channel {
                wanted: self.selection.wants(&channel.topic),
                topic: channel.topic.as_str().into(),
                foreign: foreign(&channel.message_encoding),
            },
        );
    }

    /// Takes in a schema or a channel.
    fn define(&mut self, opcode: u8, body: &[u8]) -> Result<(), String> {
        if opcode == op::CHANNEL {
            let channel = records::channel(body)?;
            self.add_channel(&channel);
            if let Some(seen) = &mut self.seen {
                seen.channels.insert(channel.id, channel);
            }
        } else if let Some(seen) = &mut self.seen {
            let schema = records::schema(body)?;
            seen.schemas.insert(schema.id, schema.name);
        }
        Ok(())
    }

    /// The log time of a message that begins with `header`, if it is wanted. Errors are those of
    /// the record or the chunk at `offset`; what concerns a whole topic is an error once.
    fn meet(&mut self, header: &[u8], offset: u64) -> Result<Option<i64>, BagError> {
        let (Some(id), Some(time)) = (header.get(..2), number(header, 6)) else {
            return Err(self.corrupt(offset, "a message is shorter than its header".into()));
        };
        let (id, time) = (u16::from_le_bytes([id[0], id[1]]), log_time(time));
        if header.len() < MESSAGE_HEADER {
            return Err(self.corrupt(offset, "a message is shorter than its header".into()));
        }
        if let Some(seen) = &mut self.seen {
            *seen.counts.entry(id).or_default() += 1;
            let (first, last) = seen.times.unwrap_or((time, time));
            seen.times = Some((first.min(time), last.max(time)));
        }
        if !self.channels.contains_key(&id) {
            self.learn_channels()?;
        }
        let Some(channel) = self.channels.get_mut(&id) else {
            if !self.undefined.insert(id) {
                return Ok(None);
            }
            let reason = format!("messages of channel {id}, which is not defined, cannot be read");
            return Err(self.corrupt(offset, reason));
        };
        if !channel.wanted {
            return Ok(None);
        }
        if let Some(encoding) = channel.foreign.take() {
            channel.wanted = false;
            return Err(BagError::Encoding {
                path: self.path.clone(),
                topic: channel.topic.to_string(),
                encoding,
            });
        }
        Ok(Some(time))
    }

    /// Looks for channels in all of the file: where chunks are not read in file order, the one
    /// that defines a channel may not have been read yet.
    fn learn_channels(&mut self) -> Result<(), BagError> {
        if std::mem::replace(&mut self.all_channels, true) {
            return Ok(());
        }
        let (found, _) = self.scan()?;
        for (id, channel) in &found.channels {
            if !self.channels.contains_key(id) {
                self.add_channel(channel);
            }
        }
        Ok(())
    }

    /// Reads and unpacks the chunk at `offset`, as much of it as there is.
    pub fn load(&mut self, offset: u64) -> Result<Chunk, BagError> {
        let frame = self.read_frame(offset)?;
        let Some((op::CHUNK, length)) = frame else {
            return Err(self.corrupt(offset, "the index names a chunk that is not here".into()));
        };
        let limits = &self.budget.limits;
        // What does not compress grows a little.
        let most = limits
            .chunk_bytes
            .saturating_add(limits.chunk_bytes / 64 + (1 << 20));
        let available = length.min(self.len - offset - FRAME);
        if available > most {
            return Err(self.beyond(Excess {
                limit: Limit::Chunk,
                most: limits.chunk_bytes,
                claimed: Some(available),
            }));
        }
        let cut = self.cut_at == Some(offset);
        let body = self.read_body(offset + FRAME, length)?;
        let chunk = match records::chunk_header(&body) {
            Ok(header) => {
                let size = header.uncompressed_size;
                let checked = self.budget.limits.check(Limit::Chunk, size);
                checked.map_err(|excess| self.beyond(excess))?;
                self.budget.spend_chunk(available, size)?;
                unpack(&header)
            }
            Err(reason) => {
                self.budget.spend_chunk(available, 0)?;
                Err(reason)
            }
        };
        match chunk {
            Ok(chunk) => Ok(Chunk { cut, ..chunk }),
            Err(_) if cut => Ok(Chunk {
                records: Vec::new(),
                damage: None,
                cut,
            }),
            Err(reason) => Err(self.corrupt(offset, reason)),
        }
    }

    /// The wanted messages of a chunk in order of log time, ties in file order; and what is wrong
    /// with it.
    pub fn entries(&mut self, offset: u64, chunk: &Chunk) -> (Vec<Entry>, Errors) {
        let (mut entries, mut errors) = (Vec::new(), Errors::default());
        // One is enough to say that a chunk is damaged.
        let mut damage = chunk.damage.clone();
        let mut position = 0;
        loop {
            let left = &chunk.records[position..];
            let Some(length) = split_record(left) else {
                if !left.is_empty() {
                    damage.get_or_insert("the chunk ends in the middle of a record".to_owned());
                }
                break;
            };
            let body = &left[FRAME as usize..][..length];
            match left[0] {
                opcode @ (op::SCHEMA | op::CHANNEL) => {
                    if let Err(reason) = self.define(opcode, body) {
                        damage.get_or_insert(reason);
                    }
                }
                op::MESSAGE => {
                    let header = &body[..length.min(MESSAGE_HEADER)];
                    match self.meet(header, offset) {
                        Ok(None) => {}
                        Ok(Some(time)) => entries.push((time, position as u32)),
                        Err(BagError::Corrupt { reason, .. }) if header.len() < MESSAGE_HEADER => {
                            damage.get_or_insert(reason);
                        }
                        Err(error) => errors.push(error),
                    }
                }
                0 => {
                    damage.get_or_insert("a chunk holds zeros where records should be".to_owned());
                    break;
                }
                _ => {}
            }
            position += FRAME as usize + length;
        }
        if let Some(reason) = damage.filter(|_| !chunk.cut) {
            errors.push(self.corrupt(offset, reason));
        }
        entries.sort_unstable();
        (entries, errors)
    }

    /// The message at a place in the chunk at `offset`.
    pub fn message_in(
        &self,
        offset: u64,
        records: &[u8],
        position: u32,
    ) -> Result<RawMessage, BagError> {
        let left = records.get(position as usize..);
        let body = left.and_then(|left| left.get(FRAME as usize..)?.get(..split_record(left)?));
        let body = body.ok_or_else(|| self.changed(offset))?;
        self.check_length(body.len() as u64)?;
        self.message(body).ok_or_else(|| self.changed(offset))
    }

    /// The message at `offset`, outside of chunks.
    pub fn message_at(&mut self, offset: u64) -> Result<RawMessage, BagError> {
        let frame = self.read_frame(offset)?;
        let Some((_, length)) = frame.filter(|(_, l)| *l <= self.len - offset - FRAME) else {
            return Err(self.changed(offset));
        };
        self.check_length(length)?;
        let body = self.read_body(offset + FRAME, length)?;
        self.message(&body).ok_or_else(|| self.changed(offset))
    }

    /// Holds the length of a message's record against the limit.
    fn check_length(&self, length: u64) -> Result<(), BagError> {
        let data = length.saturating_sub(MESSAGE_HEADER as u64);
        let checked = self.budget.limits.check(Limit::Message, data);
        checked.map_err(|excess| self.beyond(excess))
    }

    fn beyond(&self, excess: Excess) -> BagError {
        BagError::Limit {
            path: self.path.clone(),
            excess,
        }
    }

    fn message(&self, body: &[u8]) -> Option<RawMessage> {
        let id = u16::from_le_bytes([*body.first()?, *body.get(1)?]);
        Some(RawMessage {
            topic: self.channels.get(&id)?.topic.clone(),
            log_time: log_time(number(body, 6)?),
            data: body.get(MESSAGE_HEADER..)?.to_vec(),
        })
    }

    fn changed(&self, offset: u64) -> BagError {
        self.corrupt(offset, "the file changed while it was read".into())
    }

    /// Log time and offset of the next wanted message of a run behind the one at `offset`.
    pub fn next_in_run(
        &mut self,
        mut offset: u64,
        end: u64,
    ) -> Result<Option<(i64, u64)>, BagError> {
        loop {
            self.budget.go_on()?;
            let Some((_, length)) = self.read_frame(offset)? else {
                return Ok(None);
            };
            offset = offset.saturating_add(FRAME).saturating_add(length);
            if offset >= end {
                return Ok(None);
            }
            if let Some((op::MESSAGE, length)) = self.read_frame(offset)? {
                let length = length.min(MESSAGE_HEADER as u64);
                let header = self.read_body(offset + FRAME, length)?;
                // What is wrong with it was told when the file was taken apart.
                if let Ok(Some(time)) = self.meet(&header, offset) {
                    return Ok(Some((time, offset)));
                }
            }
        }
    }
}

impl Summary {
    /// The records that say something here.
    const OPCODES: [u8; 4] = [op::SCHEMA, op::CHANNEL, op::STATISTICS, op::CHUNK_INDEX];

    /// Takes in a record of the summary section, ignoring kinds that are of no use here. `None`
    /// when the record is malformed.
    fn add(&mut self, opcode: u8, body: &[u8]) -> Option<()> {
        match opcode {
            op::SCHEMA => {
                let schema = records::schema(body).ok()?;
                self.schemas.insert(schema.id, schema.name);
            }
            op::CHANNEL => {
                let channel = records::channel(body).ok()?;
                self.channels.insert(channel.id, channel);
            }
            op::STATISTICS => {
                let statistics = records::statistics(body).ok()?;
                self.has_counts = true;
                if statistics.message_count > 0 {
                    self.times = Some((
                        log_time(statistics.message_start_time),
                        log_time(statistics.message_end_time),
                    ));
                }
                self.counts.extend(statistics.channel_message_counts);
            }
            op::CHUNK_INDEX => {
                let index = records::chunk_index(body).ok()?;
                let chunk = IndexedChunk {
                    start: log_time(index.message_start_time),
                    end: log_time(index.message_end_time),
                    length: index.chunk_length,
                    index_length: index.message_index_length,
                    size: index.uncompressed_size,
                    channels: index.channels,
                };
                self.chunks.insert(index.chunk_start_offset, chunk);
            }
            _ => {}
        }
        Some(())
    }

    /// Whether it names all topics and their types; writers may leave out those records.
    fn is_complete(&self) -> bool {
        let in_chunks = self.chunks.values().flat_map(|chunk| &chunk.channels);
        let mut met = self.counts.keys().chain(in_chunks);
        let has_schema = |channel: &records::Channel| {
            channel.schema_id == 0 || self.schemas.contains_key(&channel.schema_id)
        };
        met.all(|id| self.channels.contains_key(id)) && self.channels.values().all(has_schema)
    }
}

/// The encoding of messages, where it is not one that can be read.
fn foreign(encoding: &str) -> Option<String> {
    (encoding != "cdr").then(|| encoding.to_owned())
}

/// A log time of MCAP, which has no sign, as the rest of ROS has it. Order is kept.
fn log_time(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// The eight bytes at `at`.
fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Length of the body of the record that `bytes` begins with, if it is whole.
fn split_record(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(1..FRAME as usize)?;
    let length = u64::from_le_bytes(length.try_into().ok()?);
    (length <= (bytes.len() - FRAME as usize) as u64).then_some(length as usize)
}

/// Unpacks a chunk, as much of it as there is. A chunk whose checksum is wrong is refused whole.
fn unpack(header: &records::ChunkHeader<'_>) -> Result<Chunk, String> {
    let (size, crc, name) = (
        header.uncompressed_size,
        header.uncompressed_crc,
        header.compression,
    );
    let whole = header.compressed_size <= header.packed.len() as u64;
    let packed_length = header.compressed_size.min(header.packed.len() as u64);
    let packed = &header.packed[..packed_length as usize];

    // Grows with what comes out, not with what the header claims.
    let mut records = Vec::new();
    let failure = match name {
        b"" => {
            records.extend_from_slice(&packed[..packed.len().min(size as usize)]);
            None
        }
        b"zstd" => zstd::stream::read::Decoder::with_buffer(packed)
            .and_then(|decoder| decoder.take(size).read_to_end(&mut records))
            .err(),
        b"lz4" => lz4::Decoder::new(packed)
            .and_then(|decoder| decoder.take(size).read_to_end(&mut records))
            .err(),
        other => {
            return Err(format!(
                "chunk compression \"{}\" is not known; zstd and lz4 are",
                other.escape_ascii()
            ));
        }
    };
    let damage = if let Some(error) = failure {
        Some(format!("a chunk cannot be unpacked: {error}"))
    } else if name.is_empty() && packed.len() as u64 > size {
        Some(format!(
            "a chunk holds {} bytes where its header says {size}",
            packed.len()
        ))
    } else if !whole {
        Some("a chunk is shorter than its header says".to_owned())
    } else if records.len() as u64 != size {
        Some(format!(
            "a chunk unpacks to {} bytes where its header says {size}",
            records.len()
        ))
    } else {
        let actual = crc32fast::hash(&records);
        if crc != 0 && crc != actual {
            return Err(format!(
                "a chunk's checksum is {actual:08x} where its header says {crc:08x}; \
                 its messages are skipped"
            ));
        }
        None
    };
    Ok(Chunk {
        records,
        damage,
        cut: false,
    })
}
