//! One MCAP file, read front to back with one chunk in memory at a time.
//!
//! Records are framed here, not by the `mcap` crate's readers, for three reasons: errors name
//! the offset they were met at, a file that breaks off still yields every whole message before
//! the break, and no length from the file is believed before it is held against the file's size.
//! Record bodies are parsed by the crate.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mcap::MAGIC;
use mcap::records::{Record, op};

use super::reader::{BagError, RawMessage, Selection, Topic};

/// A record's opcode and length.
const FRAME: u64 = 9;
const FOOTER_BODY: u64 = 20;
/// Channel, sequence, log time and publish time before a message's data.
const MESSAGE_HEADER: usize = 22;
/// No sane chunk unpacks to more; a larger claim is a broken or hostile file.
const MAX_CHUNK: u64 = 1 << 31;

pub(super) struct McapFile {
    /// Where the bytes are.
    data: PathBuf,
    /// What errors call the file: a packed one is read from an unpacked copy.
    path: PathBuf,
    file: BufReader<File>,
    /// Where `file` stands.
    at: u64,
    len: u64,
    summary: Option<Summary>,
}

/// What the index at the end of a complete file says.
#[derive(Default)]
struct Summary {
    schemas: HashMap<u16, String>,
    channels: HashMap<u16, mcap::records::Channel>,
    counts: HashMap<u16, u64>,
    has_counts: bool,
    /// Channels that have messages in the chunk at an offset; only where the file says so.
    chunk_channels: HashMap<u64, Vec<u16>>,
    times: Option<(i64, i64)>,
}

impl McapFile {
    pub fn open(data: &Path, path: &Path) -> Result<Self, BagError> {
        let mut this = Self::open_unchecked(data, path)?;
        let mut magic = [0; 8];
        this.file
            .read_exact(&mut magic)
            .map_err(|_| this.corrupt(0, "it ends within the MCAP magic bytes".into()))?;
        this.at = MAGIC.len() as u64;
        if magic != *MAGIC {
            return Err(this.corrupt(0, "it does not begin with the MCAP magic bytes".into()));
        }
        // The header only matters for the profile; a file cut this early yields its error later.
        if let Ok(Some((op::HEADER, body))) = this.read_record(MAGIC.len() as u64)
            && let Ok(Record::Header(header)) = mcap::parse_record(op::HEADER, &body)
            && header.profile.starts_with("ros1")
        {
            return Err(BagError::Ros1 {
                path: path.to_owned(),
                what: format!("MCAP profile \"{}\"", header.profile),
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

    /// First and last log time, where the file has an index.
    pub fn times(&self) -> Option<(i64, i64)> {
        self.summary.as_ref()?.times
    }

    /// The topics of the file: from its index, or by reading all of it where it has none (as
    /// when the recorder was killed).
    pub fn topics(&mut self) -> Result<Vec<Topic>, BagError> {
        if self.summary.is_none() {
            tracing::warn!(
                file = %self.path.display(),
                "no index at the end of the file (was the recording cut off?); reading all of it"
            );
            self.summary = Some(self.scan()?);
        }
        let summary = self.summary.as_ref().expect("set just above");
        Ok(summary
            .channels
            .values()
            .map(|channel| Topic {
                name: channel.topic.clone(),
                type_name: summary
                    .schemas
                    .get(&channel.schema_id)
                    .cloned()
                    .unwrap_or_default(),
                count: summary
                    .has_counts
                    .then(|| summary.counts.get(&channel.id).copied().unwrap_or(0)),
            })
            .collect())
    }

    fn scan(&self) -> Result<Summary, BagError> {
        let again = McapFile::open_unchecked(&self.data, &self.path)?;
        let mut messages = again.messages(Selection::Nothing);
        for error in messages.by_ref().filter_map(Result::err) {
            tracing::warn!("{error}");
        }
        Ok(Summary {
            has_counts: true,
            ..messages.seen
        })
    }

    fn open_unchecked(data: &Path, path: &Path) -> Result<Self, BagError> {
        let file = File::open(data).map_err(BagError::io(path))?;
        let len = file.metadata().map_err(BagError::io(path))?.len();
        Ok(McapFile {
            data: data.to_owned(),
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 16, file),
            at: 0,
            len,
            summary: None,
        })
    }

    pub fn messages(self, selection: Selection) -> McapMessages {
        let mut messages = McapMessages {
            position: MAGIC.len() as u64,
            chunk: None,
            channels: HashMap::new(),
            seen: Summary::default(),
            done: false,
            selection,
            source: self,
        };
        if let Some(summary) = messages.source.summary.take() {
            for channel in summary.channels.values() {
                messages.add_channel(channel.clone());
            }
            messages.source.summary = Some(summary);
        }
        messages
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
        let mut body = Vec::with_capacity(available as usize);
        (&mut self.file)
            .take(available)
            .read_to_end(&mut body)
            .map_err(BagError::io(&self.path))?;
        self.at += body.len() as u64;
        Ok(body)
    }

    /// The whole record at `offset`; `None` when it does not fit into the file.
    fn read_record(&mut self, offset: u64) -> Result<Option<(u8, Vec<u8>)>, BagError> {
        let Some((opcode, length)) = self.read_frame(offset)? else {
            return Ok(None);
        };
        if length > self.len - offset - FRAME {
            return Ok(None);
        }
        Ok(Some((opcode, self.read_body(offset + FRAME, length)?)))
    }

    /// The index at the end, if the file is complete and has one. An index is a convenience, so
    /// one that cannot be read is treated as absent.
    fn read_summary(&mut self) -> Option<Summary> {
        let tail = FRAME + FOOTER_BODY + MAGIC.len() as u64;
        let footer_at = self.len.checked_sub(tail)?;
        let (opcode, body) = self.read_record(footer_at).ok()??;
        if opcode != op::FOOTER {
            return None;
        }
        let Ok(Record::Footer(footer)) = mcap::parse_record(opcode, &body) else {
            return None;
        };
        if footer.summary_start == 0 || footer.summary_start >= footer_at {
            return None;
        }
        let mut summary = Summary::default();
        let mut offset = footer.summary_start;
        while offset < footer_at {
            let (opcode, body) = self.read_record(offset).ok()??;
            offset += FRAME + body.len() as u64;
            summary.add(opcode, &body)?;
        }
        (!summary.channels.is_empty() || summary.has_counts).then_some(summary)
    }
}

impl Summary {
    /// Takes in a record of the summary section, ignoring kinds that are of no use here. `None`
    /// when the record is malformed.
    fn add(&mut self, opcode: u8, body: &[u8]) -> Option<()> {
        // Only these are parsed: the crate's parser is not safe on every malformed record.
        if !matches!(
            opcode,
            op::SCHEMA | op::CHANNEL | op::STATISTICS | op::CHUNK_INDEX
        ) {
            return Some(());
        }
        match mcap::parse_record(opcode, body).ok()? {
            Record::Schema { header, .. } => {
                self.schemas.insert(header.id, header.name);
            }
            Record::Channel(channel) => {
                self.channels.insert(channel.id, channel);
            }
            Record::Statistics(statistics) => {
                self.has_counts = true;
                if statistics.message_count > 0 {
                    self.times = Some((
                        statistics.message_start_time as i64,
                        statistics.message_end_time as i64,
                    ));
                }
                self.counts.extend(statistics.channel_message_counts);
            }
            Record::ChunkIndex(index) if !index.message_index_offsets.is_empty() => {
                let channels = index.message_index_offsets.into_keys().collect();
                self.chunk_channels
                    .insert(index.chunk_start_offset, channels);
            }
            _ => {}
        }
        Some(())
    }
}

struct Chunk {
    /// Where the chunk lies in the file, for errors.
    offset: u64,
    records: Vec<u8>,
    position: usize,
    /// The error to give out after the records that could be saved.
    damage: Option<String>,
}

#[derive(Clone)]
struct Channel {
    topic: Arc<str>,
    wanted: bool,
    /// The encoding, where it is not one that can be read.
    foreign: Option<String>,
}

/// The messages of a file in file order.
pub(super) struct McapMessages {
    source: McapFile,
    position: u64,
    chunk: Option<Chunk>,
    channels: HashMap<u16, Channel>,
    selection: Selection,
    /// What has been met so far: topics and counts for files without an index.
    seen: Summary,
    done: bool,
}

impl McapMessages {
    fn add_channel(&mut self, channel: mcap::records::Channel) {
        let foreign = (channel.message_encoding != "cdr").then_some(channel.message_encoding);
        self.channels.insert(
            channel.id,
            Channel {
                wanted: self.selection.wants(&channel.topic),
                topic: channel.topic.into(),
                foreign,
            },
        );
    }

    /// Handles a record that may lie in a chunk or outside.
    fn record(&mut self, opcode: u8, body: &[u8]) -> Result<Option<RawMessage>, String> {
        match opcode {
            op::SCHEMA | op::CHANNEL => {
                self.seen
                    .add(opcode, body)
                    .ok_or("a malformed schema or channel record")?;
                if opcode == op::CHANNEL
                    && let Ok(Record::Channel(channel)) = mcap::parse_record(opcode, body)
                {
                    self.add_channel(channel);
                }
                Ok(None)
            }
            op::MESSAGE => self.message(body),
            _ => Ok(None),
        }
    }

    fn message(&mut self, body: &[u8]) -> Result<Option<RawMessage>, String> {
        if body.len() < MESSAGE_HEADER {
            return Err(format!("a message record of {} bytes", body.len()));
        }
        let id = u16::from_le_bytes([body[0], body[1]]);
        let mut time = [0; 8];
        time.copy_from_slice(&body[6..14]);
        let log_time = i64::from_le_bytes(time);
        *self.seen.counts.entry(id).or_default() += 1;
        let (first, last) = self.seen.times.unwrap_or((log_time, log_time));
        self.seen.times = Some((first.min(log_time), last.max(log_time)));
        let channel = self
            .channels
            .get_mut(&id)
            .ok_or_else(|| format!("a message of channel {id}, which is not defined"))?;
        if !channel.wanted {
            return Ok(None);
        }
        if let Some(encoding) = channel.foreign.take() {
            // Said once; the rest of the topic is skipped.
            channel.wanted = false;
            return Err(format!(
                "topic {} is encoded as \"{encoding}\", but only \"cdr\" (ROS 2) can be read",
                channel.topic
            ));
        }
        Ok(Some(RawMessage {
            topic: channel.topic.clone(),
            log_time,
            data: body[MESSAGE_HEADER..].to_vec(),
        }))
    }

    /// The next wanted message of the open chunk, or `None` when it is used up.
    fn next_in_chunk(&mut self) -> Option<Result<RawMessage, BagError>> {
        let mut chunk = self.chunk.take()?;
        loop {
            let left = &chunk.records[chunk.position..];
            let Some(body) = split_record(left) else {
                let damage = chunk.damage.take().or_else(|| {
                    (!left.is_empty())
                        .then(|| "the chunk ends in the middle of a record".to_owned())
                });
                return damage.map(|reason| Err(self.source.corrupt(chunk.offset, reason)));
            };
            let opcode = left[0];
            let range = chunk.position + FRAME as usize..;
            let body = &chunk.records[range][..body];
            chunk.position += FRAME as usize + body.len();
            match self.record(opcode, body) {
                Ok(None) => {}
                Ok(Some(message)) => {
                    self.chunk = Some(chunk);
                    return Some(Ok(message));
                }
                Err(reason) => {
                    let error = self.source.corrupt(chunk.offset, reason);
                    self.chunk = Some(chunk);
                    return Some(Err(error));
                }
            }
        }
    }

    /// Whether the index says that a chunk holds nothing of interest.
    fn can_skip(&self, offset: u64) -> bool {
        let Some(summary) = &self.source.summary else {
            return false;
        };
        summary.chunk_channels.get(&offset).is_some_and(|ids| {
            ids.iter()
                .all(|id| self.channels.get(id).is_some_and(|c| !c.wanted))
        })
    }

    /// Goes on to the next record of the file.
    fn advance(&mut self) -> Result<Option<RawMessage>, BagError> {
        let offset = self.position;
        let Some((opcode, length)) = self.source.read_frame(offset)? else {
            self.done = true;
            return Err(self.source.corrupt(
                offset,
                "it ends here without an end record; the recording was cut off".into(),
            ));
        };
        if matches!(opcode, op::DATA_END | op::FOOTER) {
            self.done = true;
            return Ok(None);
        }
        let body_at = offset + FRAME;
        let available = self.source.len - body_at;
        let cut = length > available;
        self.position = body_at.saturating_add(length);
        if cut {
            self.done = true;
        }
        match opcode {
            op::CHUNK if cut || !self.can_skip(offset) => {
                let body = self.source.read_body(body_at, length)?;
                let mut chunk =
                    unpack(&body, offset).map_err(|reason| self.source.corrupt(offset, reason))?;
                if cut {
                    chunk.damage = Some(format!(
                        "a chunk of {length} bytes is cut off after {available}"
                    ));
                }
                self.chunk = Some(chunk);
                Ok(None)
            }
            _ if cut => Err(self.source.corrupt(
                offset,
                format!("a record of {length} bytes is cut off after {available}"),
            )),
            op::SCHEMA | op::CHANNEL | op::MESSAGE => {
                let body = self.source.read_body(body_at, length)?;
                self.record(opcode, &body)
                    .map_err(|reason| self.source.corrupt(offset, reason))
            }
            _ => Ok(None),
        }
    }
}

impl Iterator for McapMessages {
    type Item = Result<RawMessage, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.next_in_chunk() {
                return Some(item);
            }
            if self.done {
                return None;
            }
            match self.advance() {
                Ok(None) => {}
                Ok(Some(message)) => return Some(Ok(message)),
                Err(error) => {
                    // An I/O error would come again for ever.
                    self.done |= matches!(error, BagError::Io { .. });
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Length of the body of the record that `bytes` begins with, if it is whole.
fn split_record(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(1..FRAME as usize)?;
    let length = u64::from_le_bytes(length.try_into().ok()?);
    (length <= (bytes.len() - FRAME as usize) as u64).then_some(length as usize)
}

/// Unpacks the body of a chunk record, as much of it as there is. A chunk whose checksum is
/// wrong is refused whole.
fn unpack(body: &[u8], offset: u64) -> Result<Chunk, String> {
    let number = |at: usize| {
        let bytes = body.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let short = || "a chunk header is cut off".to_owned();
    let size = number(16).ok_or_else(short)?;
    let word = |at: usize| {
        let bytes = body.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let crc = word(24).ok_or_else(short)?;
    let name_length = word(28).ok_or_else(short)? as usize;
    let name_end = 32usize.saturating_add(name_length);
    let name = body.get(32..name_end).ok_or_else(short)?;
    let packed_length = number(name_end).ok_or_else(short)?;
    let packed = &body[name_end + 8..];
    if size > MAX_CHUNK {
        return Err(format!("a chunk claims to unpack to {size} bytes"));
    }
    let whole = packed_length <= packed.len() as u64;
    let packed = &packed[..packed_length.min(packed.len() as u64) as usize];

    // Grows with what comes out, not with what the header claims.
    let mut records = Vec::new();
    let failure = match name {
        b"" => {
            records.extend_from_slice(packed);
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
        offset,
        records,
        position: 0,
        damage,
    })
}
