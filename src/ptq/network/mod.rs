//! A differentiable copy of an ONNX graph, on burn.
//!
//! In: a [`Model`]. Out: a [`Network`] whose nodes can be run one by one, on a backend with or without gradients. It
//! covers the operators of pillar encoders, 2-D backbones, necks and heads; a graph with another operator or an
//! attribute that is not handled is refused with the node's name when the network is made.
//!
//! Operators that only move values are exact. The others agree with ONNX Runtime to float tolerance: sums are taken in
//! another order.

pub mod convolution;
mod ops;
mod value;

use std::collections::HashMap;

use burn_tensor::backend::Backend;

pub use convolution::Convolve;
pub use value::{Value, Values};

use crate::onnx::proto::NodeProto;
use crate::onnx::{Model, OnnxError};

/// Refuses a graph with a node that this module has no copy of.
pub fn supported(model: &Model) -> Result<(), OnnxError> {
    for node in &model.graph().node {
        ops::supported(node).map_err(|problem| {
            model.node_error(
                node,
                format!(
                    "{problem}, which the recipe's section `reconstruction` needs; use a recipe without it, as \
                     quick.yaml is"
                ),
            )
        })?;
    }
    Ok(())
}

/// A node of the network.
#[derive(Debug, Clone)]
pub struct Node {
    /// As [`NodeProto::label`].
    pub name: String,
    pub op: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

/// An ONNX graph that runs on burn.
#[derive(Debug)]
pub struct Network<B: Backend> {
    nodes: Vec<Node>,
    protos: Vec<NodeProto>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    constants: HashMap<String, Value<B>>,
    /// For messages: the graph without its constants.
    model: Model,
}

impl<B: Convolve> Network<B> {
    /// Copies a graph. Nodes run in the order of the file; sort it before.
    pub fn new(model: &Model, device: &B::Device) -> Result<Self, OnnxError> {
        let mut constants = HashMap::new();
        for tensor in &model.graph().initializer {
            let name = tensor.name.clone().unwrap_or_default();
            // Constants of other types belong to operators that are refused anyhow.
            let value = if let Ok(ints) = tensor.to_i64() {
                Some(Value::Ints(ints.data))
            } else if let Ok(floats) = tensor.to_f32() {
                Value::from_f32(&floats.dims, floats.data, device)
            } else {
                None
            };
            if let Some(value) = value {
                constants.insert(name, value);
            }
        }
        let protos = model.graph().node.clone();
        supported(model)?;
        let nodes = protos
            .iter()
            .map(|n| Node {
                name: n.label(),
                op: n.op_type().to_owned(),
                inputs: n.input.clone(),
                outputs: n.output.clone(),
            })
            .collect();
        Ok(Network {
            nodes,
            protos,
            inputs: model.input_names(),
            outputs: model.output_names(),
            constants,
            model: model.clone(),
        })
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// A constant of the graph.
    pub fn constant(&self, name: &str) -> Option<&Value<B>> {
        self.constants.get(name)
    }

    /// Runs the node at `index`: takes its inputs from `values`, else from the constants, and puts its outputs there.
    ///
    /// What stands in `values` under a constant's name takes that constant's place.
    pub fn step(&self, index: usize, values: &mut Values<B>) -> Result<(), OnnxError> {
        let (node, proto) = (&self.nodes[index], &self.protos[index]);
        let fail = |problem: String| self.model.node_error(proto, problem);
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for name in &node.inputs {
            inputs.push(if name.is_empty() {
                None
            } else {
                let value = values.get(name).or_else(|| self.constants.get(name));
                Some(value.ok_or_else(|| fail(format!("its input {name} is not there")))?)
            });
        }
        let results = ops::run(proto, &inputs).map_err(fail)?;
        for (name, value) in node.outputs.iter().zip(results) {
            if !name.is_empty() {
                values.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    /// Runs all nodes.
    pub fn run(&self, values: &mut Values<B>) -> Result<(), OnnxError> {
        (0..self.nodes.len()).try_for_each(|index| self.step(index, values))
    }
}

#[cfg(test)]
mod tests;
