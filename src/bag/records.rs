//! The bodies of MCAP records, parsed without belief in a length.
//!
//! The `mcap` crate's `parse_record` sets aside what a string claims before it looks whether that is
//! there: 25 bytes that claim 4 GiB end the process where there are none to be had. Here every length is
//! held against what is left of the record, texts are borrowed from it, and names are kept only up to a
//! length.

/// A topic, type or encoding with a longer name is damaged. DDS takes 255 bytes, ROS less.
pub(super) const LONGEST_NAME: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Channel {
    pub id: u16,
    pub schema_id: u16,
    pub topic: String,
    pub message_encoding: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schema {
    pub id: u16,
    pub name: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statistics {
    pub message_count: u64,
    pub message_start_time: u64,
    pub message_end_time: u64,
    pub channel_message_counts: Vec<(u16, u64)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChunkIndex {
    pub message_start_time: u64,
    pub message_end_time: u64,
    pub chunk_start_offset: u64,
    pub chunk_length: u64,
    pub message_index_length: u64,
    pub uncompressed_size: u64,
    /// Channels that have messages in the chunk; empty where the file does not say so.
    pub channels: Vec<u16>,
}

/// The beginning of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChunkHeader<'a> {
    pub uncompressed_size: u64,
    pub uncompressed_crc: u32,
    pub compression: &'a [u8],
    pub compressed_size: u64,
    /// What follows, as much of it as there is.
    pub packed: &'a [u8],
}

/// What a record is called in a reason.
struct Body<'a> {
    kind: &'static str,
    left: &'a [u8],
}

impl<'a> Body<'a> {
    fn new(kind: &'static str, body: &'a [u8]) -> Self {
        Body { kind, left: body }
    }

    fn take(&mut self, count: u64, field: &str) -> Result<&'a [u8], String> {
        let there = usize::try_from(count)
            .ok()
            .filter(|&n| n <= self.left.len());
        let Some((taken, left)) = there.and_then(|n| self.left.split_at_checked(n)) else {
            return Err(format!(
                "the {field} of a {} record claims {count} bytes where {} are left",
                self.kind,
                self.left.len()
            ));
        };
        self.left = left;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self, field: &str) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, field)?);
        Ok(bytes)
    }

    fn u16(&mut self, field: &str) -> Result<u16, String> {
        self.number(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &str) -> Result<u32, String> {
        self.number(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &str) -> Result<u64, String> {
        self.number(field).map(u64::from_le_bytes)
    }

    /// What is behind a length of four bytes.
    fn bytes(&mut self, field: &str) -> Result<&'a [u8], String> {
        let length = self.u32(field)?;
        self.take(length.into(), field)
    }

    fn name(&mut self, field: &str) -> Result<&'a str, String> {
        let bytes = self.bytes(field)?;
        if bytes.len() > LONGEST_NAME {
            return Err(format!(
                "the {field} of a {} record has {} bytes; {LONGEST_NAME} are the most that is taken",
                self.kind,
                bytes.len()
            ));
        }
        std::str::from_utf8(bytes)
            .map_err(|_| format!("the {field} of a {} record is not UTF-8", self.kind))
    }

    /// A map from channels to numbers. Its length is that of its bytes, so it cannot claim entries that are not there.
    fn by_channel(&mut self, field: &str) -> Result<Vec<(u16, u64)>, String> {
        let mut entries = Body::new(self.kind, self.bytes(field)?);
        let mut map = Vec::with_capacity(entries.left.len() / 10);
        while !entries.left.is_empty() {
            map.push((entries.u16(field)?, entries.u64(field)?));
        }
        Ok(map)
    }
}

/// The profile of a file.
pub(super) fn header(body: &[u8]) -> Result<&str, String> {
    Body::new("header", body).name("profile")
}

/// Where the summary section begins; 0 where there is none.
pub(super) fn footer(body: &[u8]) -> Result<u64, String> {
    Body::new("footer", body).u64("start of the summary")
}

pub(super) fn schema(body: &[u8]) -> Result<Schema, String> {
    let mut body = Body::new("schema", body);
    let schema = Schema {
        id: body.u16("id")?,
        name: body.name("name")?.to_owned(),
    };
    body.name("encoding")?;
    body.bytes("data")?;
    Ok(schema)
}

pub(super) fn channel(body: &[u8]) -> Result<Channel, String> {
    let mut body = Body::new("channel", body);
    let channel = Channel {
        id: body.u16("id")?,
        schema_id: body.u16("schema")?,
        topic: body.name("topic")?.to_owned(),
        message_encoding: body.name("message encoding")?.to_owned(),
    };
    body.bytes("metadata")?;
    Ok(channel)
}

pub(super) fn statistics(body: &[u8]) -> Result<Statistics, String> {
    let mut body = Body::new("statistics", body);
    let message_count = body.u64("message count")?;
    // Schemas, channels, attachments, metadata, chunks.
    body.take(2 + 4 * 4, "counts")?;
    Ok(Statistics {
        message_count,
        message_start_time: body.u64("start")?,
        message_end_time: body.u64("end")?,
        channel_message_counts: body.by_channel("message counts")?,
    })
}

pub(super) fn chunk_index(body: &[u8]) -> Result<ChunkIndex, String> {
    let mut body = Body::new("chunk index", body);
    let mut index = ChunkIndex {
        message_start_time: body.u64("start")?,
        message_end_time: body.u64("end")?,
        chunk_start_offset: body.u64("offset")?,
        chunk_length: body.u64("length")?,
        message_index_length: 0,
        uncompressed_size: 0,
        channels: Vec::new(),
    };
    let channels = body.by_channel("message index offsets")?;
    index.channels = channels.into_iter().map(|(channel, _)| channel).collect();
    index.message_index_length = body.u64("message index length")?;
    body.name("compression")?;
    body.u64("compressed size")?;
    index.uncompressed_size = body.u64("uncompressed size")?;
    Ok(index)
}

pub(super) fn chunk_header(body: &[u8]) -> Result<ChunkHeader<'_>, String> {
    let mut body = Body::new("chunk", body);
    body.take(16, "times")?;
    Ok(ChunkHeader {
        uncompressed_size: body.u64("uncompressed size")?,
        uncompressed_crc: body.u32("checksum")?,
        compression: body.bytes("compression")?,
        compressed_size: body.u64("compressed size")?,
        packed: body.left,
    })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::BTreeMap;

    use mcap::records::{self, Record, op};
    use proptest::prelude::*;

    use super::*;

    fn string(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn counts(out: &mut Vec<u8>, map: &BTreeMap<u16, u64>) {
        out.extend((map.len() as u32 * 10).to_le_bytes());
        for (key, value) in map {
            out.extend(key.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
    }

    /// Bodies of each kind as the crate's parser reads them, which is trusted with whole ones.
    fn bodies(text: &str, id: u16, time: u64, map: &BTreeMap<u16, u64>) -> Vec<(u8, Vec<u8>)> {
        let mut header = Vec::new();
        string(&mut header, text);
        string(&mut header, "library");
        let mut schema = id.to_le_bytes().to_vec();
        string(&mut schema, text);
        string(&mut schema, "ros2msg");
        string(&mut schema, "uint8 data");
        let mut channel = id.to_le_bytes().to_vec();
        channel.extend(7u16.to_le_bytes());
        string(&mut channel, text);
        string(&mut channel, "cdr");
        let mut metadata = Vec::new();
        string(&mut metadata, "key");
        string(&mut metadata, text);
        channel.extend((metadata.len() as u32).to_le_bytes());
        channel.extend(metadata);
        let mut statistics = 12u64.to_le_bytes().to_vec();
        statistics.extend([1; 18]);
        statistics.extend(time.to_le_bytes());
        statistics.extend((!time).to_le_bytes());
        counts(&mut statistics, map);
        let mut index = Vec::new();
        for number in [time, !time, 77, 88] {
            index.extend(number.to_le_bytes());
        }
        counts(&mut index, map);
        index.extend(5u64.to_le_bytes());
        string(&mut index, "zstd");
        index.extend(6u64.to_le_bytes());
        index.extend(time.to_le_bytes());
        let mut footer = time.to_le_bytes().to_vec();
        footer.extend([0; 12]);
        vec![
            (op::HEADER, header),
            (op::SCHEMA, schema),
            (op::CHANNEL, channel),
            (op::STATISTICS, statistics),
            (op::CHUNK_INDEX, index),
            (op::FOOTER, footer),
        ]
    }

    /// Whether a parser takes a body.
    fn accepts(opcode: u8, body: &[u8]) -> bool {
        match opcode {
            op::HEADER => header(body).is_ok(),
            op::SCHEMA => schema(body).is_ok(),
            op::CHANNEL => channel(body).is_ok(),
            op::STATISTICS => statistics(body).is_ok(),
            op::CHUNK_INDEX => chunk_index(body).is_ok(),
            op::FOOTER => footer(body).is_ok(),
            _ => chunk_header(body).is_ok(),
        }
    }

    #[test]
    fn a_length_beyond_the_record_is_refused_wherever_it_stands() {
        let map = BTreeMap::from([(3, 4)]);
        for (opcode, body) in bodies("name", 1, 2, &map) {
            for at in 0..body.len().saturating_sub(3) {
                let mut bent = body.clone();
                bent[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
                accepts(opcode, &bent);
            }
            let length = body.windows(8).position(|part| part == b"\x04\0\0\0name");
            if let Some(at) = length {
                let mut bent = body.clone();
                bent[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
                assert!(!accepts(opcode, &bent), "opcode {opcode}");
            }
        }
        let chunk = [&[0; 28][..], &u32::MAX.to_le_bytes(), &[0; 12]].concat();
        assert!(chunk_header(&chunk).unwrap_err().contains("4294967295"));
        let statistics_body = [&[0; 42][..], &u32::MAX.to_le_bytes(), &[0; 10]].concat();
        let error = statistics(&statistics_body).unwrap_err();
        assert!(
            error.contains("claims 4294967295 bytes where 10 are left"),
            "{error}"
        );
        let odd = [&[0; 42][..], &7u32.to_le_bytes(), &[0; 7]].concat();
        assert!(statistics(&odd).is_err());
    }

    #[test]
    fn names_are_kept_up_to_a_length() {
        let of = |length| bodies(&"n".repeat(length), 1, 2, &BTreeMap::new());
        assert!(of(LONGEST_NAME).iter().all(|(op, body)| accepts(*op, body)));
        for (opcode, body) in of(LONGEST_NAME + 1) {
            let named = matches!(opcode, op::HEADER | op::SCHEMA | op::CHANNEL);
            assert_eq!(accepts(opcode, &body), !named, "opcode {opcode}");
        }
    }

    proptest! {
        #[test]
        fn whole_records_are_read_as_the_crate_reads_them(
            text in "\\PC{0,40}",
            id in any::<u16>(),
            time in any::<u64>(),
            map in prop::collection::btree_map(any::<u16>(), any::<u64>(), 0..20),
        ) {
            for (opcode, body) in bodies(&text, id, time, &map) {
                #[expect(clippy::disallowed_methods)]
                match mcap::parse_record(opcode, &body).unwrap() {
                    Record::Header(found) => {
                        prop_assert_eq!(header(&body).unwrap(), found.profile);
                    }
                    Record::Footer(found) => {
                        prop_assert_eq!(footer(&body).unwrap(), found.summary_start);
                    }
                    Record::Schema { header, data } => {
                        let found = schema(&body).unwrap();
                        prop_assert_eq!((found.id, found.name), (header.id, header.name));
                        prop_assert_eq!(data, Cow::Borrowed(b"uint8 data"));
                    }
                    Record::Channel(found) => {
                        let records::Channel { id, schema_id, topic, message_encoding, .. } = found;
                        let found = Channel { id, schema_id, topic, message_encoding };
                        prop_assert_eq!(channel(&body).unwrap(), found);
                    }
                    Record::Statistics(found) => {
                        prop_assert_eq!(statistics(&body).unwrap(), Statistics {
                            message_count: found.message_count,
                            message_start_time: found.message_start_time,
                            message_end_time: found.message_end_time,
                            channel_message_counts: map.clone().into_iter().collect(),
                        });
                        prop_assert_eq!(found.channel_message_counts, map.clone());
                    }
                    Record::ChunkIndex(found) => {
                        prop_assert_eq!(chunk_index(&body).unwrap(), ChunkIndex {
                            message_start_time: found.message_start_time,
                            message_end_time: found.message_end_time,
                            chunk_start_offset: found.chunk_start_offset,
                            chunk_length: found.chunk_length,
                            message_index_length: found.message_index_length,
                            uncompressed_size: found.uncompressed_size,
                            channels: found.message_index_offsets.into_keys().collect(),
                        });
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }

        #[test]
        fn no_bytes_make_a_parser_panic_and_a_cut_body_is_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in any::<prop::sample::Index>(),
        ) {
            for opcode in 0..=op::DATA_END {
                accepts(opcode, &bytes);
            }
            for (opcode, body) in bodies("name", 1, 2, &BTreeMap::from([(3, 4)])) {
                let cut = &body[..cut.index(body.len())];
                let needs_all = !matches!(opcode, op::HEADER | op::FOOTER);
                prop_assert!(!accepts(opcode, cut) || !needs_all);
            }
        }
    }
}
