//! What a bag may make its reader spend.
//!
//! A few bytes of a bag can stand for any number of others: what is packed, what is named many times, what
//! a database computes. So whatever comes out of a bag is counted, and ends at a limit that is far above
//! what recordings need.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a bag may make its reader spend, see [`Reader::open_with`](super::Reader::open_with). The default
/// refuses no recording of a vehicle that is known: hours, tens of gigabytes, clouds of megabytes, chunks
/// of a hundred of them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a message, unpacked. Clouds have some megabytes, accumulated maps a hundred.
    pub message_bytes: u64,
    /// Bytes of a chunk of an MCAP file, unpacked; at most 4 GiB. Recorders fill chunks up to a size that is
    /// mostly below 10 MB, a message larger than that has a chunk of its own. A vehicle's computer that runs
    /// a detector and a calibration can spare this much, twice it cannot.
    pub chunk_bytes: u64,
    /// Bytes on the disk of a file that is packed as a whole, unpacked.
    pub file_bytes: u64,
    /// How many times its size a bag may unpack to in one pass, above a few gigabytes that any bag may; chunks
    /// that are unpacked again count again. Points hardly compress, transforms to a tenth. For a packed
    /// file it holds above 256 MiB.
    pub expansion: u64,
    /// Bytes of memory for the times and places of what is still to be read.
    pub index_bytes: u64,
    /// Files of a bag.
    pub files: usize,
    /// Topics of a bag.
    pub topics: usize,
    /// Whether a link in a bag's folder may lead out of it. Whoever sends a bag decides what lies in its
    /// folder, and whoever reads it may be allowed to read more.
    pub follow_links: bool,
    /// Ends reading with [`BagError::Stopped`] when it is raised.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: 256 << 20,
            chunk_bytes: 512 << 20,
            file_bytes: 64 << 30,
            expansion: 64,
            index_bytes: 1 << 30,
            files: 20_000,
            topics: 1 << 16,
            follow_links: false,
            stop: None,
        }
    }
}

/// A limit of [`Limits`] that a bag goes beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Message,
    Chunk,
    File,
    /// Of all that is unpacked in a pass.
    Expansion,
    /// Of one packed file, by its size.
    FileExpansion,
    Index,
    Files,
    Topics,
}

impl Limit {
    /// The option of the command line that raises it.
    pub fn option(self) -> &'static str {
        match self {
            Limit::Message => "--max-message-mb",
            Limit::Chunk => "--max-chunk-mb",
            Limit::File => "--max-unpacked-mb",
            Limit::Expansion | Limit::FileExpansion => "--max-expansion",
            Limit::Index => "--max-index-mb",
            Limit::Files => "--max-bag-files",
            Limit::Topics => "--max-bag-topics",
        }
    }

    /// What it is a limit of.
    fn what(self) -> &'static str {
        match self {
            Limit::Message => "a message",
            Limit::Chunk => "a chunk",
            Limit::File | Limit::FileExpansion => "a packed file",
            Limit::Expansion => "what is unpacked of the bag in one pass",
            Limit::Index => "the list of what is to be read",
            Limit::Files | Limit::Topics => "the bag",
        }
    }
}

/// How far a bag goes beyond a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    pub limit: Limit,
    pub most: u64,
    /// What the bag claims, where it does so; else it was found to be more.
    pub claimed: Option<u64>,
}

impl std::fmt::Display for Excess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Excess {
            limit,
            most,
            claimed,
        } = *self;
        let (what, option) = (limit.what(), limit.option());
        let unit = match limit {
            Limit::Files => "files",
            Limit::Topics => "topics",
            _ => "bytes",
        };
        match claimed {
            Some(claimed) => write!(f, "{what} has {claimed} {unit}")?,
            None => write!(f, "{what} has more {unit} than may be")?,
        }
        write!(
            f,
            ", the limit is {most}; if that is no mistake, raise it with {option}"
        )
    }
}

impl Limits {
    /// The limits, with a chunk no larger than offsets in it can tell.
    pub(super) fn sane(mut self) -> Self {
        self.chunk_bytes = self.chunk_bytes.min(u32::MAX.into());
        self
    }

    pub(super) fn most(&self, limit: Limit) -> u64 {
        match limit {
            Limit::Message => self.message_bytes,
            Limit::Chunk => self.chunk_bytes,
            Limit::File => self.file_bytes,
            Limit::Expansion | Limit::FileExpansion => self.expansion,
            Limit::Index => self.index_bytes,
            Limit::Files => self.files as u64,
            Limit::Topics => self.topics as u64,
        }
    }

    /// Holds a claim against a limit.
    pub(super) fn check(&self, limit: Limit, claimed: u64) -> Result<(), Excess> {
        let most = self.most(limit);
        match claimed > most {
            true => Err(Excess {
                limit,
                most,
                claimed: Some(claimed),
            }),
            false => Ok(()),
        }
    }
}
