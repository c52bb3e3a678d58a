//! What can be known of an ONNX file without its weights: versions, nodes, and which other files belong to it.
//!
//! Exporters keep weights in files beside the graph (`model.onnx.data`). A graph alone is then no model: whatever
//! copies, hashes or weighs one has to have them all, and [`Outline::files`] is where it learns which they are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use prost::Message;

use super::OnnxError;
use super::limit::{self, Scale};
use super::proto::{OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};
use super::tensor::bytes_each;
use crate::files::{self, FileError};

/// A file without its weights; reading one does not copy them.
#[derive(Debug, Clone)]
pub struct Outline {
    model: ModelOutline,
    path: PathBuf,
    /// Of all tensors, in the order in which they come.
    external: Vec<PathBuf>,
    /// Of all files together.
    bytes: u64,
}

// The messages of `proto`, without the fields that hold data: a field that is not here is skipped unread.

#[derive(Clone, PartialEq, Message)]
struct ModelOutline {
    #[prost(int64, optional, tag = "1")]
    ir_version: Option<i64>,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphOutline>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "20")]
    training_info: Vec<TrainingOutline>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionOutline>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphOutline {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeOutline>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorOutline>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializer: Vec<SparseOutline>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeOutline {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, optional, tag = "4")]
    op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeOutline>,
    #[prost(string, optional, tag = "7")]
    domain: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeOutline {
    #[prost(message, optional, tag = "5")]
    t: Option<TensorOutline>,
    #[prost(message, optional, tag = "6")]
    g: Option<GraphOutline>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<TensorOutline>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<GraphOutline>,
    #[prost(message, optional, tag = "22")]
    sparse_tensor: Option<SparseOutline>,
    #[prost(message, repeated, tag = "23")]
    sparse_tensors: Vec<SparseOutline>,
}

#[derive(Clone, PartialEq, Message)]
struct SparseOutline {
    #[prost(message, optional, tag = "1")]
    values: Option<TensorOutline>,
    #[prost(message, optional, tag = "2")]
    indices: Option<TensorOutline>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorOutline {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    data_type: Option<i32>,
    #[prost(string, optional, tag = "8")]
    name: Option<String>,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
    #[prost(int32, optional, tag = "14")]
    data_location: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainingOutline {
    #[prost(message, optional, tag = "1")]
    initialization: Option<GraphOutline>,
    #[prost(message, optional, tag = "2")]
    algorithm: Option<GraphOutline>,
}

#[derive(Clone, PartialEq, Message)]
struct FunctionOutline {
    #[prost(message, repeated, tag = "7")]
    node: Vec<NodeOutline>,
    #[prost(message, repeated, tag = "11")]
    attribute_proto: Vec<AttributeOutline>,
}

impl ModelOutline {
    fn tensors(&self) -> Vec<&TensorOutline> {
        let mut found = Vec::new();
        if let Some(graph) = &self.graph {
            graph.tensors(&mut found);
        }
        for graph in self
            .training_info
            .iter()
            .flat_map(|t| t.initialization.iter().chain(&t.algorithm))
        {
            graph.tensors(&mut found);
        }
        for function in &self.functions {
            for attribute in &function.attribute_proto {
                attribute.tensors(&mut found);
            }
            for node in &function.node {
                node.tensors(&mut found);
            }
        }
        found
    }
}

impl GraphOutline {
    fn tensors<'a>(&'a self, found: &mut Vec<&'a TensorOutline>) {
        found.extend(&self.initializer);
        for sparse in &self.sparse_initializer {
            sparse.tensors(found);
        }
        for node in &self.node {
            node.tensors(found);
        }
    }
}

impl NodeOutline {
    fn tensors<'a>(&'a self, found: &mut Vec<&'a TensorOutline>) {
        for attribute in &self.attribute {
            attribute.tensors(found);
        }
    }

    fn op(&self) -> &str {
        let default = matches!(self.domain.as_deref(), None | Some("" | "ai.onnx"));
        match self.op_type.as_deref() {
            Some(op) if default => op,
            _ => "",
        }
    }
}

impl AttributeOutline {
    fn tensors<'a>(&'a self, found: &mut Vec<&'a TensorOutline>) {
        found.extend(self.t.iter().chain(&self.tensors));
        for graph in self.g.iter().chain(&self.graphs) {
            graph.tensors(found);
        }
        for sparse in self.sparse_tensor.iter().chain(&self.sparse_tensors) {
            sparse.tensors(found);
        }
    }
}

impl TensorOutline {
    /// Bytes that the shape wants, where that is known.
    fn needed(&self) -> Option<u64> {
        let each = bytes_each(self.data_type.unwrap_or(0))?;
        self.dims.iter().try_fold(each, |bytes, dimension| {
            bytes.checked_mul(u64::try_from(*dimension).ok()?)
        })
    }
}

impl SparseOutline {
    fn tensors<'a>(&'a self, found: &mut Vec<&'a TensorOutline>) {
        found.extend(self.values.iter().chain(&self.indices));
    }
}

/// What the last operator before an output makes of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A sigmoid or softmax: between 0 and 1.
    Probability,
    /// An exponential: above 0.
    Exponential,
    /// A convolution or a product of matrices: anything.
    Unbounded,
    /// Not known here.
    Other,
}

impl Outline {
    /// Reads a file and finds the files that belong to it.
    pub fn read(path: &Path) -> Result<Self, OnnxError> {
        Self::decode(&limit::read(path)?, path)
    }

    /// The outline of a file whose bytes are these. The files beside it are looked for and weighed: they must be there, in
    /// its own folder, with all that the tensors want of them, and no larger together than a model [may be](limit).
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self, OnnxError> {
        let mut scale = Scale::default();
        scale.add(path, bytes.len() as u64)?;
        let model = ModelOutline::decode(bytes).map_err(|e| OnnxError::Decode {
            file: path.to_owned(),
            reason: e.to_string(),
        })?;
        if model.graph.is_none() {
            return Err(OnnxError::Decode {
                file: path.to_owned(),
                reason: "it holds no graph".into(),
            });
        }
        let mut external: Vec<PathBuf> = Vec::new();
        let mut total = bytes.len() as u64;
        let mut budget = Budget::default();
        for tensor in model.tensors() {
            if tensor.data_location.unwrap_or(0) == 1 {
                let name = tensor.name.as_deref().unwrap_or_default();
                let place = Place::new(&tensor.external_data, name, path)?;
                let there = match budget.files.get(&place.name) {
                    Some(there) => *there,
                    None => {
                        let there = place.open(name, path)?.1;
                        scale.add(&place.name, there)?;
                        total = total.saturating_add(there);
                        external.push(place.name.clone());
                        there
                    }
                };
                place.extent(name, tensor.needed(), there, path, &mut budget)?;
            }
        }
        Ok(Outline {
            model,
            path: path.to_owned(),
            external,
            bytes: total,
        })
    }

    /// The file itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold tensors of this one, relative to its folder, each once.
    pub fn external(&self) -> &[PathBuf] {
        &self.external
    }

    /// The file itself and those that hold tensors of it.
    pub fn files(&self) -> Vec<PathBuf> {
        let folder = folder_of(&self.path);
        let external = self.external.iter().map(|name| folder.join(name));
        std::iter::once(self.path.clone()).chain(external).collect()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Version of the file format.
    pub fn ir_version(&self) -> i64 {
        self.model.ir_version.unwrap_or(0)
    }

    /// Version of the default operator set.
    pub fn opset(&self) -> i64 {
        let imports = self.model.opset_import.iter();
        let mut default =
            imports.filter(|i| matches!(i.domain.as_deref(), None | Some("" | "ai.onnx")));
        default.next().and_then(|i| i.version).unwrap_or(0)
    }

    /// Whether weights or constants of this element type (see [`super::proto::data_type`]) are in it.
    pub fn has_type(&self, data_type: i32) -> bool {
        let mut tensors = self.model.tensors().into_iter();
        tensors.any(|t| t.data_type == Some(data_type))
    }

    /// Whether it computes with integers in place of floats.
    pub fn is_quantized(&self) -> bool {
        let integer = ["QuantizeLinear", "DequantizeLinear", "QLinearConv"];
        let graph = self.model.graph.iter();
        graph
            .flat_map(|g| &g.node)
            .any(|n| integer.contains(&n.op()))
    }

    /// What gives an output its values, past operators that only move, copy or bound them.
    pub fn ending(&self, output: &str) -> Ending {
        const MOVING: &[&str] = &[
            "Identity",
            "Cast",
            "Transpose",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Slice",
            "Split",
            "Dropout",
            "DepthToSpace",
            "SpaceToDepth",
            "QuantizeLinear",
            "DequantizeLinear",
        ];
        let Some(graph) = &self.model.graph else {
            return Ending::Other;
        };
        let producers: HashMap<&str, &NodeOutline> = graph
            .node
            .iter()
            .flat_map(|n| n.output.iter().map(move |o| (o.as_str(), n)))
            .collect();
        let mut found: Option<Ending> = None;
        let mut open = vec![(output, false)];
        // A graph with a cycle is refused elsewhere; here it must only come to an end.
        let mut steps = 0;
        while let Some((value, bounded)) = open.pop() {
            steps += 1;
            let Some(node) = producers.get(value).filter(|_| steps <= 10_000) else {
                return Ending::Other;
            };
            let first = node.input.first().map(String::as_str);
            let ending = match (node.op(), first) {
                (op, Some(input)) if MOVING.contains(&op) => {
                    open.push((input, bounded));
                    continue;
                }
                // Keeps within its bounds what is within them, and may have bounds of its own.
                ("Clip" | "MaxPool", Some(input)) => {
                    open.push((input, true));
                    continue;
                }
                ("Concat", Some(_)) => {
                    open.extend(node.input.iter().map(|i| (i.as_str(), bounded)));
                    continue;
                }
                ("Sigmoid" | "HardSigmoid" | "Softmax", _) => Ending::Probability,
                ("Exp", _) => Ending::Exponential,
                ("Conv" | "ConvTranspose" | "Gemm" | "MatMul" | "BatchNormalization", _)
                    if !bounded =>
                {
                    Ending::Unbounded
                }
                _ => Ending::Other,
            };
            if found.is_some_and(|before| before != ending) {
                return Ending::Other;
            }
            found = Some(ending);
        }
        found.unwrap_or(Ending::Other)
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Where a tensor's data lies.
pub(super) struct Place {
    /// Relative to the folder of the graph.
    name: PathBuf,
    offset: u64,
    length: Option<u64>,
}

impl Place {
    /// Reads the entries of a tensor; the file may only be one in the graph's own folder.
    pub(super) fn new(
        entries: &[StringStringEntryProto],
        tensor: &str,
        graph: &Path,
    ) -> Result<Self, OnnxError> {
        let fail = |reason: String| refusal(tensor, graph, reason);
        let entry = |key: &str| {
            let found = entries.iter().find(|e| e.key.as_deref() == Some(key))?;
            found.value.as_deref()
        };
        let location = entry("location")
            .filter(|location| !location.is_empty())
            .ok_or_else(|| fail("names no external file".into()))?;
        // Some exporters write `./` in front.
        let name = location.trim_start_matches("./");
        if !files::is_plain_name(name) {
            return Err(fail(format!(
                "its data is in \"{location}\", outside the model's folder or in a folder within it; export the model so \
                 that its external data lies beside the graph"
            )));
        }
        let number = |key: &str| -> Result<Option<u64>, OnnxError> {
            entry(key)
                .map(|v| {
                    v.parse()
                        .map_err(|_| fail(format!("external {key} \"{v}\" is no number")))
                })
                .transpose()
        };
        Ok(Place {
            offset: number("offset")?.unwrap_or(0),
            length: number("length")?,
            name: name.into(),
        })
    }

    /// The file, which must be there and regular, and its bytes. A link is followed to where the graph itself lies, and no
    /// further: some package managers make every file of a model a link into one other folder.
    fn open(&self, tensor: &str, graph: &Path) -> Result<(File, u64), OnnxError> {
        let path = folder_of(graph).join(&self.name);
        let unreadable = |path: &Path, source| OnnxError::External {
            file: graph.to_owned(),
            tensor: tensor.to_owned(),
            external: path.to_owned(),
            source,
        };
        let real = |path: &Path| path.canonicalize().map_err(|e| unreadable(path, e));
        let target = real(&path)?;
        let homes = [real(folder_of(graph))?, folder_of(&real(graph)?).to_owned()];
        if !homes.iter().any(|home| target.starts_with(home)) {
            let name = self.name.display();
            let target = target.display();
            return Err(refusal(
                tensor,
                graph,
                format!(
                    "its data is in \"{name}\", a link that leads out of the model's folder to {target}; put the file \
                     itself there"
                ),
            ));
        }
        let file = match files::open_regular(&target, limit::bytes()) {
            Ok(file) => file,
            Err(error @ FileError::TooLarge { .. }) => return Err(limit::refused(&path, error)),
            Err(error) => return Err(unreadable(&path, error.into())),
        };
        let bytes = file.metadata().map_err(|e| unreadable(&path, e))?.len();
        Ok((file, bytes))
    }

    /// Where in the file, which has so many bytes, the tensor's bytes begin, and how many they are: as many as it has to
    /// have, where that is known. `budget` bounds what is read in all: many tensors may name one file, each all of it.
    fn extent(
        &self,
        tensor: &str,
        needed: Option<u64>,
        there: u64,
        graph: &Path,
        budget: &mut Budget,
    ) -> Result<(u64, u64), OnnxError> {
        let offset = self.offset;
        let length = match (self.length, needed) {
            (Some(length), _) => length,
            (None, Some(needed)) => needed,
            (None, None) => there.saturating_sub(offset),
        };
        if let Some(needed) = needed.filter(|needed| *needed != length) {
            return Err(refusal(
                tensor,
                graph,
                format!(
                    "it names {length} bytes of \"{}\", and its shape needs {needed}",
                    self.name.display()
                ),
            ));
        }
        if offset.checked_add(length).is_none_or(|end| end > there) {
            return Err(refusal(
                tensor,
                graph,
                format!(
                    "its {length} bytes begin at byte {offset} of \"{}\", which has only {there}: the file is cut off \
                     or of another model",
                    self.name.display()
                ),
            ));
        }
        budget.take(&self.name, there, length).map_err(|most| {
            refusal(
                tensor,
                graph,
                format!(
                    "with it, tensors would be more than {most} bytes, {MOST_SHARED} times the files they lie in; the \
                     same bytes are named again and again"
                ),
            )
        })?;
        Ok((offset, length))
    }

    /// The tensor's bytes.
    pub(super) fn read(
        &self,
        tensor: &str,
        needed: Option<u64>,
        graph: &Path,
        budget: &mut Budget,
    ) -> Result<Vec<u8>, OnnxError> {
        let (mut file, there) = self.open(tensor, graph)?;
        let (offset, length) = self.extent(tensor, needed, there, graph, budget)?;
        let mut bytes = Vec::new();
        let mut read = || {
            file.seek(SeekFrom::Start(offset))?;
            // The file may be shorter by now.
            match file.by_ref().take(length).read_to_end(&mut bytes)? as u64 == length {
                true => Ok(()),
                false => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            }
        };
        read().map_err(|source| OnnxError::External {
            file: graph.to_owned(),
            tensor: tensor.to_owned(),
            external: folder_of(graph).join(&self.name),
            source,
        })?;
        Ok(bytes)
    }
}

/// How often the same bytes may be read on average; tensors that are tied share theirs.
const MOST_SHARED: u64 = 4;

/// What was read of files beside a graph.
#[derive(Debug, Default)]
pub(super) struct Budget {
    files: HashMap<PathBuf, u64>,
    read: u64,
}

impl Budget {
    /// Counts bytes of a file of a length; the error is how many there may be.
    fn take(&mut self, file: &Path, length: u64, bytes: u64) -> Result<(), u64> {
        self.files.insert(file.to_owned(), length);
        let there = self.files.values().copied().fold(0, u64::saturating_add);
        let most = MOST_SHARED.saturating_mul(there);
        self.read = self.read.saturating_add(bytes);
        match self.read <= most {
            true => Ok(()),
            false => Err(most),
        }
    }
}

fn refusal(tensor: &str, graph: &Path, reason: String) -> OnnxError {
    OnnxError::Tensor {
        file: graph.to_owned(),
        tensor: tensor.to_owned(),
        reason,
    }
}
