//! What one pass over a bag has spent of its [`Limits`].

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::BagError;
use super::limits::{Excess, Limit, Limits};
use crate::files::{self, FileError};

/// Bytes that any bag may unpack to in one pass.
const BASE: u64 = 4 << 30;
/// Bytes that any packed file may unpack to.
const FILE_BASE: u64 = 256 << 20;

/// The limits of a bag, and what one pass over it has spent. Clones share what is spent.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    pub limits: Limits,
    pub bag: PathBuf,
    most: u64,
    spent: Arc<AtomicU64>,
}

impl Budget {
    /// For a pass over files of so many bytes.
    pub fn new(bag: &Path, size: u64, limits: &Limits) -> Self {
        let most = limits.expansion.saturating_mul(size);
        Budget {
            limits: limits.clone(),
            bag: bag.to_owned(),
            most: most.saturating_add(BASE),
            spent: Arc::default(),
        }
    }

    /// Counts a chunk that is about to be read. The smallest takes its time, too.
    pub fn spend_chunk(&self, packed: u64, unpacked: u64) -> Result<(), BagError> {
        const LEAST: u64 = 4096;
        self.spend(packed.saturating_add(unpacked).max(LEAST))
    }

    /// Counts bytes that were unpacked, or are about to be.
    pub fn spend(&self, bytes: u64) -> Result<(), BagError> {
        self.go_on()?;
        let before = self.spent.fetch_add(bytes, Ordering::Relaxed);
        match before.saturating_add(bytes) > self.most {
            true => Err(BagError::Limit {
                path: self.bag.clone(),
                excess: Excess {
                    limit: Limit::Expansion,
                    most: self.most,
                    claimed: None,
                },
            }),
            false => Ok(()),
        }
    }

    /// An error where reading is to stop.
    pub fn go_on(&self) -> Result<(), BagError> {
        match self.is_stopped() {
            true => Err(BagError::Stopped(self.bag.clone())),
            false => Ok(()),
        }
    }

    pub fn is_stopped(&self) -> bool {
        let stop = self.limits.stop.as_ref();
        stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Bytes that a packed file of `packed` bytes may have, and what says so.
    pub fn unpacked_file(&self, packed: u64) -> (u64, Limit) {
        let by_size = self.limits.expansion.saturating_mul(packed);
        let by_size = by_size.saturating_add(FILE_BASE);
        match by_size < self.limits.file_bytes {
            true => (by_size, Limit::FileExpansion),
            false => (self.limits.file_bytes, Limit::File),
        }
    }
}

/// Bytes that a file really has: holes cost nothing to make.
pub(super) fn bytes_on_disk(file: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    match file.blocks() {
        // Some file systems do not count blocks.
        0 => file.len(),
        blocks => blocks.saturating_mul(512).min(file.len()),
    }
}

/// Opens a regular file of the bag.
pub(super) fn open_regular(path: &Path) -> Result<File, BagError> {
    files::open_regular(path, u64::MAX).map_err(|error| match error {
        FileError::NotRegular(_) => BagError::NoFile(path.to_owned()),
        error => BagError::io(path)(error.into()),
    })
}

/// Errors of a file, of which there may be as many as it has records.
#[derive(Default)]
pub(super) struct Errors {
    pub list: Vec<BagError>,
    /// Those beyond the most that are kept.
    pub more: u64,
}

impl Errors {
    /// Whoever has read so many knows the file.
    pub const MOST: usize = 100;

    pub fn push(&mut self, error: BagError) {
        match self.list.len() < Self::MOST {
            true => self.list.push(error),
            false => self.more += 1,
        }
    }

    pub fn extend(&mut self, other: Errors) {
        self.more += other.more;
        other.list.into_iter().for_each(|error| self.push(error));
    }
}
