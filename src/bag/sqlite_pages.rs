//! The pages of an SQLite file, read without SQLite: for databases that were cut off.
//!
//! SQLite reaches a row through the pages above it, and those may lie behind the break while
//! the row itself is whole. Here the leaves are found by going through the file page by page. A
//! recording is only ever appended to, so there are no leaves that are out of date.
//! (<https://www.sqlite.org/fileformat2.html>, sections 1.3 to 2.1.)

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Type of a page that holds rows of a table.
const TABLE_LEAF: u8 = 13;
/// Header of a leaf, without the list of its cells.
const LEAF_HEADER: usize = 8;
/// The first page begins with the header of the file.
const FILE_HEADER: usize = 100;

pub(super) struct Pages {
    file: BufReader<File>,
    len: u64,
    size: u64,
    /// Bytes of a page that hold something.
    usable: usize,
    /// Bytes that the file should have, where its header says so.
    expected: Option<u64>,
}

/// A row of `messages`.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundRow {
    pub id: i64,
    pub topic: i64,
    pub time: i64,
    /// Its page, from 0, and where in it the row begins.
    pub page: u32,
    pub cell: u16,
}

impl Pages {
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut header = [0; FILE_HEADER];
        file.read_exact(&mut header)?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65536,
            size if size >= 512 && size.is_power_of_two() => u64::from(size),
            size => return Err(invalid(format!("a page size of {size}"))),
        };
        let usable = size as usize - usize::from(header[20]);
        if usable < 480 {
            return Err(invalid(format!("pages of {usable} bytes")));
        }
        // The count of pages holds only if the last program to write the file kept it.
        let pages = u64::from(word(28));
        let is_kept = pages > 0 && word(24) == word(92);
        Ok(Pages {
            file: BufReader::with_capacity(size as usize, file),
            len,
            size,
            usable,
            expected: is_kept.then_some(pages * size),
        })
    }

    /// Bytes that are there and bytes that should be, where some are missing.
    pub fn cut(&self) -> Option<(u64, u64)> {
        let whole_pages = self.len.next_multiple_of(self.size);
        let expected = self.expected.unwrap_or(0).max(whole_pages);
        (self.len < expected).then_some((self.len, expected))
    }

    /// The rows that look like those of rosbag2's `messages`, in file order. Whether their data
    /// is all there is not looked at. Ends where `found` says no.
    pub fn rows(&mut self, mut found: impl FnMut(FoundRow) -> bool) -> io::Result<()> {
        let pages = u32::try_from(self.len / self.size).unwrap_or(u32::MAX);
        for page in 0..pages {
            let bytes = self.page(page)?;
            let start = if page == 0 { FILE_HEADER } else { 0 };
            if bytes.get(start) != Some(&TABLE_LEAF) {
                continue;
            }
            let cells = short(&bytes, start + 3).unwrap_or(0);
            for i in 0..usize::from(cells) {
                let Some(cell) = short(&bytes, start + LEAF_HEADER + 2 * i) else {
                    break;
                };
                if let Some(row) = parse_cell(&bytes, cell, self.usable)
                    && !found(FoundRow { page, ..row.found })
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The data of a row that was found; `None` where not all of it is there, or it has more than `most` bytes.
    pub fn data(&mut self, row: &FoundRow, most: u64) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.page(row.page)?;
        let Some(row) = parse_cell(&bytes, row.cell, self.usable) else {
            return Ok(None);
        };
        // No message is longer than the file it lies in.
        if row.total as u64 > self.len.min(most) {
            return Ok(None);
        }
        let mut data = row.local.to_vec();
        let mut next = row.overflow;
        while data.len() < row.total {
            let Some(page) = next.checked_sub(1) else {
                return Ok(None);
            };
            if u64::from(next) * self.size > self.len {
                return Ok(None);
            }
            let bytes = self.page(page)?;
            let Some(link) = word(&bytes, 0) else {
                return Ok(None);
            };
            next = link;
            let wanted = (row.total - data.len()).min(self.usable - 4);
            data.extend_from_slice(&bytes[4..4 + wanted]);
        }
        Ok(Some(data))
    }

    fn page(&mut self, page: u32) -> io::Result<Vec<u8>> {
        let offset = u64::from(page) * self.size;
        self.file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; self.size as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

struct Cell<'a> {
    found: FoundRow,
    /// Length of the data.
    total: usize,
    /// Its beginning, which lies in the row's own page.
    local: &'a [u8],
    /// The page where it goes on, from 1.
    overflow: u32,
}

/// Reads a row of four columns: the number, which is the row's own and so NULL here, topic, time
/// and data.
fn parse_cell(page: &[u8], cell: u16, usable: usize) -> Option<Cell<'_>> {
    let mut at = usize::from(cell);
    let payload = usize::try_from(varint(page, &mut at)?).ok()?;
    let id = varint(page, &mut at)?;
    // How much of a long row lies in the page itself.
    let most = usable - 35;
    let least = (usable - 12) * 32 / 255 - 23;
    let local = match payload {
        _ if payload <= most => payload,
        _ => match least + (payload - least) % (usable - 4) {
            fitting if fitting <= most => fitting,
            _ => least,
        },
    };
    let bytes = page.get(at..at.checked_add(local)?)?;
    let overflow = match payload == local {
        true => 0,
        false => word(page, at + local)?,
    };
    let mut at = 0;
    let header = usize::try_from(varint(bytes, &mut at)?).ok()?;
    let mut types = [0; 4];
    for kind in &mut types {
        *kind = varint(bytes, &mut at)?;
    }
    if at != header || types[0] != 0 || types[3] < 12 || types[3] % 2 != 0 {
        return None;
    }
    let topic = integer(bytes, types[1], &mut at)?;
    let time = integer(bytes, types[2], &mut at)?;
    let total = usize::try_from((types[3] - 12) / 2).ok()?;
    (at.checked_add(total)? == payload).then_some(Cell {
        found: FoundRow {
            id,
            topic,
            time,
            page: 0,
            cell,
        },
        total,
        local: bytes.get(at..)?,
        overflow,
    })
}

/// A big-endian number of 7 bits a byte, at most nine bytes long.
fn varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let mut value = 0u64;
    for i in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if i == 8 {
            value = value << 8 | u64::from(byte);
            break;
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte < 0x80 {
            break;
        }
    }
    Some(value as i64)
}

/// An integer column of serial type `kind`.
fn integer(bytes: &[u8], kind: i64, at: &mut usize) -> Option<i64> {
    let width = match kind {
        1..=4 => kind as usize,
        5 => 6,
        6 => 8,
        8 => return Some(0),
        9 => return Some(1),
        _ => return None,
    };
    let bytes = bytes.get(*at..*at + width)?;
    *at += width;
    let first = i64::from(*bytes.first()? as i8);
    Some(
        bytes[1..]
            .iter()
            .fold(first, |value, byte| value << 8 | i64::from(*byte)),
    )
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("its header says {what}"),
    )
}
