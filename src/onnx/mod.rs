//! ONNX files as graphs that can be read, checked, rewritten and written again.
//!
//! In: an `.onnx` file. Out: the same file with BatchNormalization folded ([`fold`]), transposed
//! convolutions turned into 1x1 convolutions ([`deconvolution`]), a newer operator set ([`opset`]), or
//! whatever [`crate::ptq`] adds. A file that is read and written without a change keeps every attribute,
//! type and metadata entry (see [`proto`] for why that holds).
//!
//! ```no_run
//! # fn main() -> Result<(), centerpoint_ptq::onnx::OnnxError> {
//! let mut model = centerpoint_ptq::onnx::Model::load("backbone.onnx")?;
//! centerpoint_ptq::onnx::fold::constants(&mut model)?;
//! centerpoint_ptq::onnx::fold::batch_norm(&mut model)?;
//! model.set_metadata("note", "folded");
//! model.save("folded.onnx")?;
//! # Ok(())
//! # }
//! ```

pub mod deconvolution;
mod error;
pub mod fold;
pub mod limit;
pub mod opset;
pub mod outline;
pub mod proto;
mod tensor;
pub mod widen;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use prost::Message;

use crate::files;

pub use error::OnnxError;
pub use outline::Outline;
use proto::{
    AttributeProto, DimensionValue, GraphProto, ModelProto, NodeProto, StringStringEntryProto,
    TensorProto, TypeValue, attribute_type,
};
pub use tensor::Tensor;

/// An ONNX model with a graph that passed [`Model::validate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    proto: ModelProto,
    /// Where it came from; only for messages.
    file: PathBuf,
}

/// Where the consumers and the producer of each value are, as indices into the node list.
#[derive(Debug, Default)]
pub struct Links {
    pub producer: HashMap<String, usize>,
    pub consumers: HashMap<String, Vec<usize>>,
}

impl Model {
    /// Reads a file, external tensor data included, and checks the graph.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, OnnxError> {
        let file = path.as_ref();
        let bytes = limit::read(file)?;
        // Weighs what lies beside it, too, before any of that is read.
        Outline::decode(&bytes, file)?;
        let mut proto = decode_proto(&bytes, file)?;
        load_external_data(&mut proto, file)?;
        Self::from_proto(proto, file)
    }

    /// Decodes a model held in memory; `file` only names it in messages.
    pub fn decode(bytes: &[u8], file: impl AsRef<Path>) -> Result<Self, OnnxError> {
        Self::from_proto(decode_proto(bytes, file.as_ref())?, file)
    }

    /// Wraps messages built in memory.
    pub fn from_proto(proto: ModelProto, file: impl AsRef<Path>) -> Result<Self, OnnxError> {
        let model = Model {
            proto,
            file: file.as_ref().to_owned(),
        };
        model.validate()?;
        Ok(model)
    }

    /// The model as bytes of an ONNX file.
    pub fn encode(&self) -> Vec<u8> {
        self.proto.encode_to_vec()
    }

    /// Writes the file, in one step: a reader sees the old one or the new one.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), OnnxError> {
        let file = path.as_ref();
        let written = files::write_out(file, |out| out.write_all(&self.encode()));
        written.map_err(|source| OnnxError::Write {
            file: file.to_owned(),
            source,
        })
    }

    /// The messages themselves.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The messages themselves; call [`Model::validate`] after editing.
    pub fn proto_mut(&mut self) -> &mut ModelProto {
        &mut self.proto
    }

    /// The file the model was read from, for messages.
    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn graph(&self) -> &GraphProto {
        self.proto
            .graph
            .as_ref()
            .expect("validate() refuses a model without a graph")
    }

    pub fn graph_mut(&mut self) -> &mut GraphProto {
        self.proto
            .graph
            .as_mut()
            .expect("validate() refuses a model without a graph")
    }

    /// Version of the default operator set.
    pub fn opset(&self) -> i64 {
        self.proto
            .opset_import
            .iter()
            .find(|o| is_default_domain(o.domain.as_deref()))
            .and_then(|o| o.version)
            .unwrap_or(0)
    }

    /// Sets a `metadata_props` entry, replacing one of the same key.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<String>) {
        let value = Some(value.into());
        match self
            .proto
            .metadata_props
            .iter_mut()
            .find(|e| e.key.as_deref() == Some(key))
        {
            Some(entry) => entry.value = value,
            None => self.proto.metadata_props.push(StringStringEntryProto {
                key: Some(key.to_owned()),
                value,
            }),
        }
    }

    /// A `metadata_props` entry.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.proto
            .metadata_props
            .iter()
            .find(|e| e.key.as_deref() == Some(key))
            .and_then(|e| e.value.as_deref())
    }

    /// A constant of the graph by name.
    pub fn initializer(&self, name: &str) -> Option<&TensorProto> {
        self.graph()
            .initializer
            .iter()
            .find(|t| t.name.as_deref() == Some(name))
    }

    /// A constant as floats; an error names the tensor.
    pub fn initializer_f32(&self, name: &str) -> Result<Tensor<f32>, OnnxError> {
        let tensor = self
            .initializer(name)
            .ok_or_else(|| self.tensor_error(name, "is not a constant of the graph"))?;
        tensor
            .to_f32()
            .map_err(|reason| self.tensor_error(name, reason))
    }

    /// Adds a constant, replacing one of the same name.
    pub fn set_initializer(&mut self, tensor: TensorProto) {
        let graph = self.graph_mut();
        match graph.initializer.iter_mut().find(|t| t.name == tensor.name) {
            Some(old) => *old = tensor,
            None => graph.initializer.push(tensor),
        }
    }

    /// Producer and consumers of every value. Values that inner graphs (`If`, `Loop`) read count as consumed
    /// by the node that holds the inner graph.
    pub fn links(&self) -> Links {
        let mut links = Links::default();
        for (i, node) in self.graph().node.iter().enumerate() {
            for value in node.output.iter().filter(|v| !v.is_empty()) {
                links.producer.insert(value.clone(), i);
            }
            let mut read: Vec<&String> = node.input.iter().filter(|v| !v.is_empty()).collect();
            inner_graph_inputs(node, &mut read);
            for value in read {
                links.consumers.entry(value.clone()).or_default().push(i);
            }
        }
        links
    }

    /// Names of the graph outputs.
    pub fn output_names(&self) -> Vec<String> {
        self.graph()
            .output
            .iter()
            .filter_map(|o| o.name.clone())
            .collect()
    }

    /// Names of the graph inputs that are no constants.
    pub fn input_names(&self) -> Vec<String> {
        let constants: HashSet<_> = self.graph().initializer.iter().map(|t| &t.name).collect();
        self.graph()
            .input
            .iter()
            .filter(|i| !constants.contains(&i.name))
            .filter_map(|i| i.name.clone())
            .collect()
    }

    /// The declared shape of a graph input or output: `None` per free dimension; `None` if it is not a tensor.
    pub fn value_shape(&self, name: &str) -> Option<Vec<Option<i64>>> {
        let graph = self.graph();
        let info = graph
            .input
            .iter()
            .chain(&graph.output)
            .chain(&graph.value_info)
            .find(|v| v.name.as_deref() == Some(name))?;
        match info.r#type.as_ref()?.value.as_ref()? {
            TypeValue::Tensor(t) => Some(
                t.shape
                    .as_ref()?
                    .dim
                    .iter()
                    .map(|d| match d.value {
                        Some(DimensionValue::Value(v)) => Some(v),
                        _ => None,
                    })
                    .collect(),
            ),
            _ => None,
        }
    }

    /// Makes every reader of `old` read `new` instead (inner graphs are left alone).
    pub fn redirect(&mut self, old: &str, new: &str) {
        for node in &mut self.graph_mut().node {
            for input in node.input.iter_mut().filter(|i| *i == old) {
                new.clone_into(input);
            }
        }
    }

    /// A value or node name that nothing in the graph has yet, made from `wish`.
    pub fn fresh_name(&self, wish: &str) -> String {
        let graph = self.graph();
        let taken = |name: &str| {
            graph
                .node
                .iter()
                .any(|n| n.name.as_deref() == Some(name) || n.output.iter().any(|o| o == name))
                || graph
                    .initializer
                    .iter()
                    .any(|t| t.name.as_deref() == Some(name))
                || graph.input.iter().any(|i| i.name.as_deref() == Some(name))
        };
        let mut name = wish.to_owned();
        let mut i = 1;
        while taken(&name) {
            name = format!("{wish}_{i}");
            i += 1;
        }
        name
    }

    /// Drops nodes whose outputs nobody reads, and constants and value infos that belong to nothing.
    pub fn remove_unused(&mut self) {
        loop {
            let mut read: HashSet<String> = self.links().consumers.into_keys().collect();
            read.extend(self.output_names());
            let graph = self.graph_mut();
            let before = graph.node.len();
            graph
                .node
                .retain(|n| n.output.iter().any(|o| read.contains(o)));
            graph
                .initializer
                .retain(|t| t.name.as_ref().is_some_and(|n| read.contains(n)));
            if graph.node.len() == before {
                let graph_inputs: HashSet<Option<String>> =
                    graph.input.iter().map(|i| i.name.clone()).collect();
                graph.value_info.retain(|v| {
                    v.name.as_ref().is_some_and(|n| read.contains(n))
                        && !graph_inputs.contains(&v.name)
                });
                return;
            }
        }
    }

    /// Node indices in an order where each comes after what it reads; among free ones the old order stays.
    /// The error is a node of a cycle.
    fn topological_order(&self) -> Result<Vec<usize>, usize> {
        let links = self.links();
        let nodes = &self.graph().node;
        let mut waits_for = vec![0usize; nodes.len()];
        for (value, readers) in &links.consumers {
            if links.producer.contains_key(value) {
                for &r in readers {
                    waits_for[r] += 1;
                }
            }
        }
        let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&i| waits_for[i] == 0).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(i) = ready.pop_first() {
            order.push(i);
            for value in &nodes[i].output {
                for &r in links.consumers.get(value).into_iter().flatten() {
                    waits_for[r] -= 1;
                    if waits_for[r] == 0 {
                        ready.insert(r);
                    }
                }
            }
        }
        match (0..nodes.len()).find(|&i| waits_for[i] > 0) {
            Some(stuck) => Err(stuck),
            None => Ok(order),
        }
    }

    /// Orders the nodes so that each comes after what it reads, as the standard wants and some tools do not keep.
    pub fn sort_topologically(&mut self) -> Result<(), OnnxError> {
        let order = self
            .topological_order()
            .map_err(|i| self.node_error(&self.graph().node[i], "is part of a cycle"))?;
        let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut self.graph_mut().node)
            .into_iter()
            .map(Some)
            .collect();
        self.graph_mut().node = order.into_iter().filter_map(|i| nodes[i].take()).collect();
        Ok(())
    }

    /// Checks that the graph is there, that each value has one source, that every node reads only what nodes,
    /// inputs or constants give, and that there is no cycle. Nodes may be in any order: some exporters write them
    /// unsorted, and runtimes take that.
    pub fn validate(&self) -> Result<(), OnnxError> {
        let graph = self.proto.graph.as_ref().ok_or_else(|| OnnxError::Decode {
            file: self.file.clone(),
            reason: "it holds no graph".into(),
        })?;
        if self.opset() < 1 {
            return Err(self.graph_error("it imports no operator set of the default domain"));
        }
        let mut known: HashSet<&str> = HashSet::new();
        for input in &graph.input {
            let name = input.name.as_deref().unwrap_or("");
            if name.is_empty() || !known.insert(name) {
                return Err(
                    self.graph_error(format!("input \"{name}\" has no name or occurs twice"))
                );
            }
        }
        let mut constants: HashSet<&str> = HashSet::new();
        for tensor in &graph.initializer {
            let name = tensor.name.as_deref().unwrap_or("");
            if name.is_empty() || !constants.insert(name) {
                return Err(
                    self.graph_error(format!("constant \"{name}\" has no name or occurs twice"))
                );
            }
            if tensor.data_location.unwrap_or(0) == 0 {
                tensor
                    .shape()
                    .map_err(|reason| self.tensor_error(name, reason))?;
            }
        }
        known.extend(constants);
        let sparse = graph
            .sparse_initializer
            .iter()
            .filter_map(|s| s.values.as_ref()?.name.as_deref());
        known.extend(sparse);
        for node in &graph.node {
            if node.op_type().is_empty() {
                return Err(self.node_error(node, "has no operator type"));
            }
            for value in node.output.iter().filter(|v| !v.is_empty()) {
                if !known.insert(value) {
                    return Err(self.node_error(node, format!("gives \"{value}\" a second source")));
                }
            }
        }
        for node in &graph.node {
            let mut read: Vec<&String> = node.input.iter().filter(|v| !v.is_empty()).collect();
            inner_graph_inputs(node, &mut read);
            if let Some(value) = read.iter().find(|v| !known.contains(v.as_str())) {
                return Err(self.node_error(
                    node,
                    format!("reads \"{value}\", which no input, constant or node gives"),
                ));
            }
        }
        for output in &graph.output {
            let name = output.name.as_deref().unwrap_or("");
            if !known.contains(name) {
                return Err(self.graph_error(format!("nothing gives the output \"{name}\"")));
            }
        }
        self.topological_order()
            .map_err(|i| self.node_error(&graph.node[i], "is part of a cycle"))?;
        Ok(())
    }

    /// How many nodes of each operator there are.
    pub fn operator_counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.graph().node {
            *counts.entry(node.op_type().to_owned()).or_default() += 1;
        }
        counts
    }

    pub(crate) fn node_error(&self, node: &NodeProto, reason: impl Into<String>) -> OnnxError {
        OnnxError::Node {
            file: self.file.clone(),
            node: node.label(),
            op: node.op_type().to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn tensor_error(&self, tensor: &str, reason: impl Into<String>) -> OnnxError {
        OnnxError::Tensor {
            file: self.file.clone(),
            tensor: tensor.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn graph_error(&self, reason: impl Into<String>) -> OnnxError {
        OnnxError::Graph {
            file: self.file.clone(),
            reason: reason.into(),
        }
    }
}

impl NodeProto {
    /// A node of the default domain.
    pub fn new(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        NodeProto {
            op_type: Some(op.to_owned()),
            name: Some(name.to_owned()),
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: outputs.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        }
    }

    /// The same node with an integer attribute.
    #[must_use]
    pub fn with_int(mut self, name: &str, value: i64) -> Self {
        self.set_attribute(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(attribute_type::INT),
            i: Some(value),
            ..Default::default()
        });
        self
    }

    /// The same node with an attribute that is a list of integers.
    #[must_use]
    pub fn with_ints(mut self, name: &str, values: &[i64]) -> Self {
        self.set_attribute(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(attribute_type::INTS),
            ints: values.to_vec(),
            ..Default::default()
        });
        self
    }

    /// The same node with a string attribute.
    #[must_use]
    pub fn with_string(mut self, name: &str, value: &str) -> Self {
        self.set_attribute(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(attribute_type::STRING),
            s: Some(value.as_bytes().to_vec()),
            ..Default::default()
        });
        self
    }

    fn set_attribute(&mut self, attribute: AttributeProto) {
        self.attribute.retain(|a| a.name != attribute.name);
        self.attribute.push(attribute);
    }

    /// Whether this is the operator `op` of the default domain.
    pub fn is(&self, op: &str) -> bool {
        self.op_type() == op && is_default_domain(self.domain.as_deref())
    }

    /// The node's name, or its first output where it has none.
    pub fn label(&self) -> String {
        match self.name.as_deref() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => format!(
                "giving {}",
                self.output.first().map_or("nothing", |o| o.as_str())
            ),
        }
    }

    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute
            .iter()
            .find(|a| a.name.as_deref() == Some(name))
    }

    /// An integer attribute or its default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|a| a.i).unwrap_or(default)
    }

    /// A float attribute or its default.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).and_then(|a| a.f).unwrap_or(default)
    }

    /// A list attribute; empty where absent.
    pub fn ints(&self, name: &str) -> &[i64] {
        self.attribute(name).map_or(&[], |a| &a.ints)
    }

    /// A string attribute; empty where absent.
    pub fn string(&self, name: &str) -> &[u8] {
        self.attribute(name)
            .and_then(|a| a.s.as_deref())
            .unwrap_or(b"")
    }
}

fn is_default_domain(domain: Option<&str>) -> bool {
    matches!(domain, None | Some("" | "ai.onnx"))
}

fn decode_proto(bytes: &[u8], file: &Path) -> Result<ModelProto, OnnxError> {
    ModelProto::decode(bytes).map_err(|e| OnnxError::Decode {
        file: file.to_owned(),
        reason: e.to_string(),
    })
}

/// Outer values that the inner graphs of a node read.
fn inner_graph_inputs<'a>(node: &'a NodeProto, read: &mut Vec<&'a String>) {
    for inner in node
        .attribute
        .iter()
        .flat_map(|a| a.g.iter().chain(&a.graphs))
    {
        let mut own: HashSet<&str> = inner
            .input
            .iter()
            .filter_map(|i| i.name.as_deref())
            .collect();
        own.extend(inner.initializer.iter().filter_map(|t| t.name.as_deref()));
        for node in &inner.node {
            let mut inputs: Vec<&String> = node.input.iter().filter(|v| !v.is_empty()).collect();
            inner_graph_inputs(node, &mut inputs);
            read.extend(inputs.into_iter().filter(|i| !own.contains(i.as_str())));
            own.extend(node.output.iter().map(String::as_str));
        }
    }
}

/// Pulls tensors kept in files beside the model into the model, so that it can be written as one file.
fn load_external_data(model: &mut ModelProto, file: &Path) -> Result<(), OnnxError> {
    let mut budget = outline::Budget::default();
    each_tensor(model, &mut |tensor| {
        if tensor.data_location.unwrap_or(0) != 1 {
            return Ok(());
        }
        let name = tensor.name.clone().unwrap_or_default();
        let place = outline::Place::new(&tensor.external_data, &name, file)?;
        let needed = tensor.bytes().map_err(|reason| OnnxError::Tensor {
            file: file.to_owned(),
            tensor: name.clone(),
            reason,
        })?;
        tensor.raw_data = Some(place.read(&name, needed, file, &mut budget)?);
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(())
    })
}

/// Hands every tensor of a model to `change`, wherever it stands.
fn each_tensor<E>(
    model: &mut ModelProto,
    change: &mut impl FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    let training = model
        .training_info
        .iter_mut()
        .flat_map(|t| t.initialization.iter_mut().chain(&mut t.algorithm));
    for graph in model.graph.iter_mut().chain(training) {
        each_tensor_of_graph(graph, change)?;
    }
    for function in &mut model.functions {
        for attribute in &mut function.attribute_proto {
            each_tensor_of_attribute(attribute, change)?;
        }
        for attribute in function.node.iter_mut().flat_map(|n| &mut n.attribute) {
            each_tensor_of_attribute(attribute, change)?;
        }
    }
    Ok(())
}

fn each_tensor_of_graph<E>(
    graph: &mut GraphProto,
    change: &mut impl FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in &mut graph.initializer {
        change(tensor)?;
    }
    for sparse in &mut graph.sparse_initializer {
        for tensor in sparse.values.iter_mut().chain(&mut sparse.indices) {
            change(tensor)?;
        }
    }
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        each_tensor_of_attribute(attribute, change)?;
    }
    Ok(())
}

fn each_tensor_of_attribute<E>(
    attribute: &mut AttributeProto,
    change: &mut impl FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
        change(tensor)?;
    }
    let sparse = attribute.sparse_tensor.iter_mut();
    for sparse in sparse.chain(&mut attribute.sparse_tensors) {
        for tensor in sparse.values.iter_mut().chain(&mut sparse.indices) {
            change(tensor)?;
        }
    }
    for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        each_tensor_of_graph(graph, change)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::proto::{
        OperatorSetIdProto, TensorShapeProto, TensorType, TypeProto, ValueInfoProto,
    };
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
        ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(TypeProto {
                value: Some(TypeValue::Tensor(TensorType {
                    elem_type: Some(1),
                    shape: Some(TensorShapeProto {
                        dim: dims
                            .iter()
                            .map(|&d| proto::DimensionProto {
                                value: Some(if d < 0 {
                                    DimensionValue::Param(format!("d{}", -d))
                                } else {
                                    DimensionValue::Value(d)
                                }),
                                denotation: None,
                            })
                            .collect(),
                    }),
                })),
                denotation: None,
            }),
            ..Default::default()
        }
    }

    pub(crate) fn model(
        opset: i64,
        nodes: Vec<NodeProto>,
        constants: Vec<TensorProto>,
        inputs: Vec<ValueInfoProto>,
        outputs: Vec<ValueInfoProto>,
    ) -> Model {
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto {
                domain: None,
                version: Some(opset),
            }],
            graph: Some(GraphProto {
                name: Some("test".into()),
                node: nodes,
                initializer: constants,
                input: inputs,
                output: outputs,
                ..Default::default()
            }),
            ..Default::default()
        };
        Model::from_proto(proto, "test.onnx").unwrap()
    }

    fn chain() -> Model {
        model(
            17,
            vec![
                NodeProto::new("Relu", "first", &["x"], &["a"]),
                NodeProto::new("Relu", "second", &["a"], &["y"]),
            ],
            vec![],
            vec![value("x", &[1, -1])],
            vec![value("y", &[1, -1])],
        )
    }

    #[test]
    fn an_unchanged_model_encodes_to_the_same_messages() {
        let mut m = chain();
        m.set_metadata("key", "value");
        m.set_metadata("key", "other");
        let again = Model::decode(&m.encode(), "test.onnx").unwrap();
        assert_eq!(m, again);
        assert_eq!(again.metadata("key"), Some("other"));
        assert_eq!(again.value_shape("x"), Some(vec![Some(1), None]));
    }

    #[test]
    fn sorting_restores_the_order_and_finds_cycles() {
        let mut m = chain();
        m.graph_mut().node.reverse();
        m.validate().unwrap();
        m.sort_topologically().unwrap();
        assert_eq!(m, chain());
        m.graph_mut().node[0].input[0] = "y".into();
        assert!(m.validate().unwrap_err().to_string().contains("cycle"));
        assert!(
            m.sort_topologically()
                .unwrap_err()
                .to_string()
                .contains("cycle")
        );
    }

    #[test]
    fn a_value_from_nowhere_is_reported_with_node_and_file() {
        let mut m = chain();
        m.graph_mut().node[1].input[0] = "ghost".into();
        let message = m.validate().unwrap_err().to_string();
        for part in ["second", "Relu", "ghost", "test.onnx"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn external_data_may_not_leave_the_folder() {
        let mut tensor = TensorProto::f32("w", &[1], &[1.0]);
        tensor.raw_data = None;
        tensor.data_location = Some(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(folder.path().join("w.bin"), 2.5f32.to_le_bytes()).unwrap();
        for (location, good) in [
            ("../../etc/passwd", false),
            ("/etc/passwd", false),
            ("w.bin", true),
        ] {
            tensor.external_data = vec![StringStringEntryProto {
                key: Some("location".into()),
                value: Some(location.into()),
            }];
            let mut m = chain();
            m.graph_mut().initializer = vec![tensor.clone()];
            std::fs::write(&path, m.encode()).unwrap();
            let loaded = Model::load(&path);
            assert_eq!(loaded.is_ok(), good, "{location}");
            if good {
                assert_eq!(loaded.unwrap().initializer_f32("w").unwrap().data, [2.5]);
            }
        }
    }

    /// A graph that each rewriting pass finds work in.
    pub(crate) fn every_pass() -> Model {
        let ones = |name: &str, dims: &[usize]| {
            TensorProto::f32(name, dims, &vec![1.0; dims.iter().product()])
        };
        model(
            11,
            vec![
                NodeProto::new("Identity", "alias", &["s"], &["var"]),
                NodeProto::new("Conv", "conv", &["x", "w"], &["c"]),
                NodeProto::new(
                    "BatchNormalization",
                    "bn",
                    &["c", "s", "s", "s", "var"],
                    &["n"],
                ),
                NodeProto::new("ConvTranspose", "up", &["n", "u", "s"], &["t"])
                    .with_ints("strides", &[2, 2]),
                NodeProto::new("Relu", "relu", &["t"], &["r"]),
                NodeProto::new("Dropout", "drop", &["r"], &["d"]),
                NodeProto::new("Unsqueeze", "axis", &["d"], &["e"]).with_ints("axes", &[0]),
                NodeProto::new("Squeeze", "back", &["e"], &["y"]).with_ints("axes", &[0]),
            ],
            vec![
                ones("w", &[2, 2, 1, 1]),
                ones("s", &[2]),
                ones("u", &[2, 2, 2, 2]),
            ],
            vec![value("x", &[1, 2, 4, 4])],
            vec![value("y", &[1, 2, 8, 8])],
        )
    }

    #[test]
    fn the_passes_leave_one_convolution_pair_and_the_new_operator_set() {
        let mut m = every_pass();
        assert_eq!(fold::constants(&mut m).unwrap(), 1);
        assert_eq!(fold::batch_norm(&mut m).unwrap(), ["bn"]);
        assert!(opset::raise(&mut m, 17).unwrap());
        assert_eq!(deconvolution::rewrite(&mut m).unwrap().nodes, ["up"]);
        assert_eq!(m.opset(), 17);
        let ops: Vec<_> = m.graph().node.iter().map(NodeProto::op_type).collect();
        assert_eq!(
            ops,
            [
                "Conv",
                "Conv",
                "Relu",
                "DepthToSpace",
                "Identity",
                "Unsqueeze",
                "Squeeze"
            ]
        );
        assert_eq!(m.graph().node[5].input.len(), 2, "axes became an input");
        let mut old = every_pass();
        old.proto_mut().opset_import[0].version = Some(9);
        assert!(
            opset::raise(&mut old, 17)
                .unwrap_err()
                .to_string()
                .contains("opset 9")
        );
        let mut odd = every_pass();
        odd.graph_mut().node[4].op_type = Some("Scan".into());
        let message = opset::raise(&mut odd, 17).unwrap_err().to_string();
        assert!(
            message.contains("relu") && message.contains("Scan"),
            "{message}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn damaged_bytes_are_an_error_or_a_valid_graph_but_never_a_panic(
            cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        ) {
            let mut bytes = every_pass().encode();
            for (at, value) in cuts {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(keep) = keep {
                bytes.truncate(keep.index(bytes.len()) + 1);
            }
            if let Ok(mut m) = Model::decode(&bytes, "damaged.onnx") {
                let _ = fold::constants(&mut m);
                let _ = fold::batch_norm(&mut m);
                let _ = deconvolution::rewrite(&mut m);
                let _ = opset::raise(&mut m, 17);
                m.remove_unused();
            }
        }
    }
}
