//! What can be wrong with an ONNX file or graph; every message names the file and, where there is one, the node.

use std::path::PathBuf;

/// An ONNX file that cannot be read, understood or rewritten.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    #[error("cannot read {file}: {source}")]
    Read {
        file: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot read {external}, which holds tensor {tensor} of {file}: {source}")]
    External {
        file: PathBuf,
        tensor: String,
        external: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{file} is too large: the model would be {} MB with it, and at most {} MB are read (`model_max_mb` of the node, \
         `--max-model-mb` of the command line)",
        bytes.div_ceil(1_000_000), most / 1_000_000
    )]
    TooLarge {
        file: PathBuf,
        /// Of the model's files, as far as they were weighed.
        bytes: u64,
        most: u64,
    },
    #[error("cannot write {file}: {source}")]
    Write {
        file: PathBuf,
        source: std::io::Error,
    },
    #[error("{file} is not an ONNX model, or is damaged: {reason}")]
    Decode { file: PathBuf, reason: String },
    #[error("the graph in {file} is invalid: {reason}")]
    Graph { file: PathBuf, reason: String },
    #[error("node {node} ({op}) in {file}: {reason}")]
    Node {
        file: PathBuf,
        node: String,
        op: String,
        reason: String,
    },
    #[error("tensor {tensor} in {file}: {reason}")]
    Tensor {
        file: PathBuf,
        tensor: String,
        reason: String,
    },
}
