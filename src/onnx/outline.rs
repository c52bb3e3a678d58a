//! What can be known of an ONNX file without its weights: versions, nodes, and which other files belong to it.
//!
//! Exporters keep weights in files beside the graph (`model.onnx.data`). A graph alone is then no model: whatever
//! copies, hashes or weighs one has to have them all, and [`Outline::files`] is where it learns which they are.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use prost::Message;

use super::OnnxError;
use super::proto::{OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};

/// A file without its weights; reading one does not copy them.
#[derive(Debug, Clone)]
pub struct Outline {
    model: ModelOutline,
    path: PathBuf,
    /// Of all tensors, in the order in which they come.
    external: Vec<PathBuf>,
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
        let bytes = std::fs::read(path).map_err(|source| OnnxError::Read {
            file: path.to_owned(),
            source,
        })?;
        Self::decode(&bytes, path)
    }

    /// The outline of a file whose bytes are these. The files beside it are looked for: they must be there, in its own
    /// folder.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self, OnnxError> {
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
        for tensor in model.tensors() {
            if tensor.data_location.unwrap_or(0) == 1 {
                let name = tensor.name.as_deref().unwrap_or_default();
                let place = Place::new(&tensor.external_data, name, path)?;
                if !external.contains(&place.name) {
                    place.find(name, path)?;
                    external.push(place.name);
                }
            }
        }
        Ok(Outline {
            model,
            path: path.to_owned(),
            external,
        })
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
    pub fn bytes(&self) -> Result<u64, OnnxError> {
        let size = |file: PathBuf| {
            let found = std::fs::metadata(&file);
            let found = found.map_err(|source| OnnxError::Read { file, source })?;
            Ok(found.len())
        };
        self.files().into_iter().map(size).sum()
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
    offset: usize,
    length: Option<usize>,
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
        let mut name = PathBuf::new();
        for component in Path::new(location).components() {
            match component {
                Component::Normal(part) => name.push(part),
                Component::CurDir => {}
                _ => {
                    return Err(fail(format!(
                        "its data is in \"{location}\", outside the model's folder; export the model so that its \
                         external data lies beside the graph"
                    )));
                }
            }
        }
        let number = |key: &str| -> Result<Option<usize>, OnnxError> {
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
            name,
        })
    }

    /// The file, which must be there. A link is followed to where the graph itself lies, and no further: some package
    /// managers make every file of a model a link into one other folder.
    pub(super) fn find(&self, tensor: &str, graph: &Path) -> Result<PathBuf, OnnxError> {
        let path = folder_of(graph).join(&self.name);
        let real = |path: &Path| {
            path.canonicalize().map_err(|source| OnnxError::External {
                file: graph.to_owned(),
                tensor: tensor.to_owned(),
                external: path.to_owned(),
                source,
            })
        };
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
        if !target.is_file() {
            let name = self.name.display();
            return Err(refusal(
                tensor,
                graph,
                format!("its data is in \"{name}\", which is no file"),
            ));
        }
        Ok(path)
    }

    /// The tensor's bytes, as many as it has to have where that is known. `budget` bounds what is read in all: many
    /// tensors may name one file, each all of it.
    pub(super) fn read(
        &self,
        tensor: &str,
        needed: Option<u64>,
        graph: &Path,
        budget: &mut Budget,
    ) -> Result<Vec<u8>, OnnxError> {
        use std::io::{Read, Seek, SeekFrom};
        let path = self.find(tensor, graph)?;
        let unreadable = |source| OnnxError::External {
            file: graph.to_owned(),
            tensor: tensor.to_owned(),
            external: path.clone(),
            source,
        };
        let mut file = std::fs::File::open(&path).map_err(unreadable)?;
        let there = file.metadata().map_err(unreadable)?.len();
        let offset = self.offset as u64;
        let length = match (self.length, needed) {
            (Some(length), _) => length as u64,
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
        // Before room is made for it: the length comes from the file.
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
        file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact(&mut bytes).map_err(unreadable)?;
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
        let most = MOST_SHARED.saturating_mul(self.files.values().sum());
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
