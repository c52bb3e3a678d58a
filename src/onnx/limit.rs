//! How large a model may be, all its files together: what comes from outside is held against this before it is read.
//!
//! It is one number for the whole process, since it guards the process's memory: the node sets it from its parameters, the
//! command line from its options.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::OnnxError;
use crate::files::{self, FileError};

/// Detectors of this kind have 5 to 100 MB.
pub const DEFAULT_MB: u64 = 1000;

static BYTES: AtomicU64 = AtomicU64::new(DEFAULT_MB * 1_000_000);

/// Bytes that the files of one model may have.
pub fn bytes() -> u64 {
    BYTES.load(Ordering::Relaxed)
}

/// Sets it for all models that are read from now on.
pub fn set_mb(megabytes: u64) {
    BYTES.store(megabytes.saturating_mul(1_000_000), Ordering::Relaxed);
}

/// Weighs the files of one model.
#[derive(Debug, Default)]
pub(crate) struct Scale(u64);

impl Scale {
    /// Adds a file, if the model may have it, too.
    pub(crate) fn add(&mut self, file: &Path, bytes: u64) -> Result<(), OnnxError> {
        self.0 = self.0.saturating_add(bytes);
        match self.0 <= self::bytes() {
            true => Ok(()),
            false => Err(too_large(file, self.0)),
        }
    }
}

fn too_large(file: &Path, bytes: u64) -> OnnxError {
    OnnxError::TooLarge {
        file: file.to_owned(),
        bytes,
        most: self::bytes(),
    }
}

/// Why a file of a model was not opened, or not read to its end.
pub(crate) fn refused(file: &Path, error: FileError) -> OnnxError {
    match error {
        FileError::TooLarge { bytes, .. } => too_large(file, bytes),
        error => OnnxError::Read {
            file: file.to_owned(),
            source: error.into(),
        },
    }
}

/// Opens a file of a model.
pub(crate) fn open(file: &Path) -> Result<File, OnnxError> {
    files::open_regular(file, bytes()).map_err(|error| refused(file, error))
}

/// Reads a graph as a whole.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, OnnxError> {
    files::read_bounded(file, bytes()).map_err(|error| refused(file, error))
}
