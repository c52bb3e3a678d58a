//! All files of a model beside its description: both graphs, and the files that hold their weights where exporters put
//! those beside the graph. What they are called, how large they may be, and what they are known by.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{DetectorError, ModelDescription};
use crate::files::{self, FileError, Links, hash_into, hex};
use crate::onnx::limit::{self, Scale};
use crate::onnx::{OnnxError, Outline};

/// One ONNX file, read.
pub(super) struct Part {
    /// The description's key: `encoder` or `backbone`.
    pub key: &'static str,
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    pub outline: Outline,
}

impl Part {
    fn read(key: &'static str, path: PathBuf) -> Result<Self, DetectorError> {
        let bytes = limit::read(&path).map_err(|error| match error {
            OnnxError::Read { file, source } => DetectorError::File {
                key,
                path: file,
                reason: source,
            },
            error => error.into(),
        })?;
        let outline = Outline::decode(&bytes, &path)?;
        Ok(Part {
            key,
            path,
            bytes,
            outline,
        })
    }

    /// Encoder and backbone.
    pub fn both(model: &ModelDescription) -> Result<[Self; 2], DetectorError> {
        let parts = [
            Part::read("encoder", model.encoder_path())?,
            Part::read("backbone", model.backbone_path())?,
        ];
        weigh(parts.each_ref().map(|part| &part.outline))?;
        Ok(parts)
    }
}

/// Refuses a model that is larger than one may be, all its files together.
fn weigh(parts: [&Outline; 2]) -> Result<(), OnnxError> {
    let mut scale = Scale::default();
    // Weights that both use count twice here, which is of no matter for a bound.
    for part in parts {
        scale.add(part.path(), part.bytes())?;
    }
    Ok(())
}

/// The files of a model. Whatever copies, hashes or weighs one does it with these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The encoder's graph, and what holds its weights.
    pub encoder: Vec<PathBuf>,
    /// The backbone's graph, and what holds its weights.
    pub backbone: Vec<PathBuf>,
}

impl ModelFiles {
    /// Reads the graphs and finds what belongs to them; a file that is missing or lies outside the folder of its graph
    /// is an error.
    pub fn of(model: &ModelDescription) -> Result<Self, DetectorError> {
        let encoder = Part::read("encoder", model.encoder_path())?.outline;
        let backbone = Part::read("backbone", model.backbone_path())?.outline;
        weigh([&encoder, &backbone])?;
        Ok(ModelFiles {
            encoder: encoder.files(),
            backbone: backbone.files(),
        })
    }

    /// Every file once: both graphs, then what holds their weights.
    pub fn paths(&self) -> Vec<&Path> {
        let graphs = self.encoder.iter().take(1).chain(self.backbone.first());
        let weights = self.encoder.iter().skip(1);
        let weights = weights.chain(self.backbone.iter().skip(1));
        let mut paths: Vec<&Path> = Vec::new();
        for path in graphs.chain(weights) {
            if !paths.contains(&path.as_path()) {
                paths.push(path);
            }
        }
        paths
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> Result<u64, DetectorError> {
        let size = |path: &Path| {
            let file = std::fs::metadata(path).map_err(|source| OnnxError::Read {
                file: path.to_owned(),
                source,
            })?;
            Ok(file.len())
        };
        self.paths().into_iter().map(size).sum()
    }
}

/// What a file is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name, without the folder.
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
}

/// Digits of a hash that tell files apart for people.
const SHOWN: usize = 12;

impl FileRecord {
    /// Of a file of a model as it is now.
    pub fn of(path: &Path) -> Result<Self, OnnxError> {
        Self::of_open(path, limit::open(path)?, limit::bytes())
            .map_err(|error| limit::refused(path, error))
    }

    /// Of an open file of at most so many bytes; `path` gives its name.
    pub(crate) fn of_open(path: &Path, file: File, max_bytes: u64) -> Result<Self, FileError> {
        let mut hash = Sha256::new();
        let bytes = hash_into(&mut hash, file, max_bytes)?;
        Ok(Self::new(path, bytes, hash))
    }

    /// Of bytes that were read from `path`.
    pub(super) fn of_bytes(path: &Path, bytes: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(bytes);
        Self::new(path, bytes.len() as u64, hash)
    }

    fn new(path: &Path, bytes: u64, hash: Sha256) -> Self {
        let name = path.file_name().unwrap_or_default();
        Self {
            file: name.to_string_lossy().into_owned(),
            bytes,
            sha256: hex(&hash.finalize()),
        }
    }

    /// Of all ONNX files of a model as they are now: the encoder's graph, the backbone's, then the files that hold
    /// weights of them, where there are any.
    pub fn all_of(model: &ModelDescription) -> Result<Vec<Self>, DetectorError> {
        Self::of_all(&ModelFiles::of(model)?.paths())
    }

    /// Of several files.
    pub(crate) fn of_all(paths: &[impl AsRef<Path>]) -> Result<Vec<Self>, DetectorError> {
        let records = paths.iter().map(|path| Self::of(path.as_ref()));
        Ok(records.collect::<Result<_, _>>()?)
    }

    /// One hash for files that are one graph together: that of the file itself where there is but one.
    pub(crate) fn joint_sha256(records: &[Self]) -> String {
        match records {
            [one] => one.sha256.clone(),
            several => {
                let mut hash = Sha256::new();
                for record in several {
                    hash.update(record.sha256.as_bytes());
                }
                hex(&hash.finalize())
            }
        }
    }

    /// Holds the file of this name in a folder against the record, a piece at a time; the error says what is wrong. The
    /// record may come from anywhere: nothing outside of the folder is looked at, and no more is read than it says.
    pub(crate) fn check(&self, folder: &Path, links: Links) -> Result<(), String> {
        if !files::is_plain_name(&self.file) {
            return Err(format!(
                "'{}' is no name of a file in a model's folder",
                self.file
            ));
        }
        let name = &self.file;
        let path = folder.join(name);
        let found = files::open(&path, self.bytes, links)
            .and_then(|file| Self::of_open(&path, file, self.bytes));
        let first = |hash: &str| hash.chars().take(SHOWN).collect::<String>();
        match found {
            Ok(found) if found == *self => Ok(()),
            Ok(found) if found.bytes != self.bytes => Err(format!(
                "{name} has {} bytes in place of {}",
                found.bytes, self.bytes
            )),
            Ok(found) => Err(format!(
                "{name} has the SHA-256 {}... in place of {}...",
                first(&found.sha256),
                first(&self.sha256)
            )),
            Err(FileError::TooLarge { bytes, .. }) => Err(format!(
                "{name} has {bytes} bytes or more in place of {}",
                self.bytes
            )),
            Err(error) => Err(format!("{name}: {error}")),
        }
    }

    /// Holds all files of a folder against their records.
    pub(crate) fn check_all(records: &[Self], folder: &Path, links: Links) -> Result<(), String> {
        let mut scale = Scale::default();
        for record in records {
            scale
                .add(Path::new(&record.file), record.bytes)
                .map_err(|error| error.to_string())?;
            record.check(folder, links)?;
        }
        Ok(())
    }
}
