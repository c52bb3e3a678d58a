//! All files of a model beside its description: both graphs, and the files that hold their weights where exporters put
//! those beside the graph.

use std::path::{Path, PathBuf};

use super::{DetectorError, ModelDescription};
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
        let bytes = std::fs::read(&path).map_err(|reason| DetectorError::File {
            key,
            path: path.clone(),
            reason,
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
        Ok([
            Part::read("encoder", model.encoder_path())?,
            Part::read("backbone", model.backbone_path())?,
        ])
    }
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
        let [encoder, backbone] = Part::both(model)?.map(|part| part.outline.files());
        Ok(ModelFiles { encoder, backbone })
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
