//! In which order a graph is reconstructed: blocks of layers, and the nodes between them.
//!
//! In: a prepared graph and its plan. Out: a [`Program`]: per block the nodes that are run while it is tuned, and
//! for any state of the work the nodes that can run without another block (the glue) or that remain (the tail).

use std::collections::{HashMap, HashSet};

use super::super::plan::{Plan, is_moving};
use crate::onnx::{Model, OnnxError};

/// Layers that are tuned together: a chain in which each but the last feeds the next and nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Indices into the plan's layers, in order.
    pub layers: Vec<usize>,
    /// The layers' nodes and their fused activations, in order.
    pub nodes: Vec<usize>,
    /// What the first layer reads.
    pub input: String,
    /// What the last layer gives, after its activation.
    pub output: String,
}

/// A node of the graph, without its constants.
#[derive(Debug, Clone)]
struct Step {
    reads: Vec<String>,
    gives: Vec<String>,
    /// Only moves values, within a group of tensors that share a quantizer.
    moves: bool,
}

/// A graph as the reconstruction sees it.
#[derive(Debug, Clone)]
pub struct Program {
    pub blocks: Vec<Block>,
    steps: Vec<Step>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// Group of every tensor that is quantized.
    groups: HashMap<String, usize>,
}

/// Which nodes have been run, for all crops.
pub type Done = Vec<bool>;

impl Program {
    /// Cuts a graph with unique node names, in topological order, into blocks of at most `longest` layers.
    pub fn new(model: &Model, plan: &Plan, longest: usize) -> Result<Self, OnnxError> {
        let outputs = model.output_names();
        let constants: HashSet<&str> = model
            .graph()
            .initializer
            .iter()
            .filter_map(|t| t.name.as_deref())
            .collect();
        let nodes = &model.graph().node;
        let links = model.links();
        let groups: HashMap<String, usize> = plan
            .groups
            .iter()
            .enumerate()
            .flat_map(|(i, g)| g.tensors.iter().map(move |t| (t.clone(), i)))
            .collect();
        let sources: HashSet<&String> = plan.groups.iter().flat_map(|g| &g.sources).collect();
        let steps = nodes
            .iter()
            .map(|node| Step {
                reads: node
                    .input
                    .iter()
                    .filter(|i| !i.is_empty() && !constants.contains(i.as_str()))
                    .cloned()
                    .collect(),
                gives: node
                    .output
                    .iter()
                    .filter(|o| !o.is_empty())
                    .cloned()
                    .collect(),
                moves: is_moving(node)
                    && node
                        .output
                        .iter()
                        .all(|o| groups.contains_key(o) && !sources.contains(o)),
            })
            .collect();
        // Each layer with its nodes.
        let position: HashMap<String, usize> = nodes
            .iter()
            .enumerate()
            .map(|(i, n)| (n.label(), i))
            .collect();
        let mut blocks: Vec<Block> = Vec::new();
        for (index, layer) in plan.layers.iter().enumerate() {
            let gone = || model.graph_error(format!("layer {} is gone", layer.name));
            let at = *position.get(&layer.name).ok_or_else(gone)?;
            let mut own = vec![at];
            if !nodes[at].output.contains(&layer.output) {
                own.push(*links.producer.get(&layer.output).ok_or_else(gone)?);
            }
            // A block goes on where its output is read by this layer only.
            let previous = blocks.iter_mut().find(|b| {
                b.output == layer.input
                    && b.layers.len() < longest
                    && !outputs.contains(&b.output)
                    && links.consumers.get(&b.output).is_some_and(|c| c.len() == 1)
            });
            match previous {
                Some(block) => {
                    block.layers.push(index);
                    block.nodes.extend(own);
                    block.output.clone_from(&layer.output);
                }
                None => blocks.push(Block {
                    layers: vec![index],
                    nodes: own,
                    input: layer.input.clone(),
                    output: layer.output.clone(),
                }),
            }
        }
        Ok(Program {
            blocks,
            steps,
            inputs: model.input_names(),
            outputs,
            groups,
        })
    }

    /// No node has run yet.
    pub fn start(&self) -> Done {
        vec![false; self.steps.len()]
    }

    /// The quantized group that a tensor belongs to.
    pub fn group(&self, tensor: &str) -> Option<usize> {
        self.groups.get(tensor).copied()
    }

    /// Whether a node only moves values of a group; it then works on values before their quantizer.
    pub fn moves(&self, node: usize) -> bool {
        self.steps[node].moves
    }

    /// The tensors that a node reads, constants left out.
    pub fn reads(&self, node: usize) -> &[String] {
        &self.steps[node].reads
    }

    /// The tensors that a node gives.
    pub fn gives(&self, node: usize) -> &[String] {
        &self.steps[node].gives
    }

    /// Nodes that can run now and belong to no block that has yet to run.
    pub fn glue(&self, done: &Done) -> Vec<usize> {
        let waiting: HashSet<usize> = self
            .blocks
            .iter()
            .flat_map(|b| b.nodes.iter().copied())
            .filter(|&n| !done[n])
            .collect();
        let mut there: HashSet<&String> = self.inputs.iter().collect();
        there.extend(
            (0..self.steps.len())
                .filter(|&i| done[i])
                .flat_map(|i| &self.steps[i].gives),
        );
        let mut glue = Vec::new();
        for (i, step) in self.steps.iter().enumerate() {
            if !done[i] && !waiting.contains(&i) && step.reads.iter().all(|r| there.contains(r)) {
                there.extend(&step.gives);
                glue.push(i);
            }
        }
        glue
    }

    /// Tensors read from outside of a set of nodes.
    pub fn sources(&self, nodes: &[usize]) -> Vec<String> {
        let own: HashSet<&String> = nodes.iter().flat_map(|&n| &self.steps[n].gives).collect();
        let mut found: Vec<String> = Vec::new();
        for read in nodes.iter().flat_map(|&n| &self.steps[n].reads) {
            if !own.contains(read) && !found.contains(read) {
                found.push(read.clone());
            }
        }
        found
    }

    /// Whether somebody still has to read a tensor.
    pub fn needed(&self, tensor: &str, done: &Done) -> bool {
        self.steps
            .iter()
            .zip(done)
            .any(|(step, done)| !done && step.reads.iter().any(|r| r == tensor))
    }

    /// The graph outputs that a block reaches, and the nodes that lie between it and them, with all that those need.
    pub fn tail(&self, block: &Block, done: &Done) -> Tail {
        let open: Vec<usize> = (0..self.steps.len())
            .filter(|n| !done[*n] && !block.nodes.contains(n))
            .collect();
        let mut reached: HashSet<&String> = HashSet::from([&block.output]);
        for &n in &open {
            if self.steps[n].reads.iter().any(|r| reached.contains(r)) {
                reached.extend(&self.steps[n].gives);
            }
        }
        let outputs: Vec<String> = self
            .outputs
            .iter()
            .filter(|o| reached.contains(o))
            .cloned()
            .collect();
        let mut wanted: HashSet<&String> = outputs.iter().collect();
        let mut nodes: Vec<usize> = Vec::new();
        for &n in open.iter().rev() {
            if self.steps[n].gives.iter().any(|g| wanted.contains(g)) {
                wanted.extend(&self.steps[n].reads);
                nodes.push(n);
            }
        }
        nodes.reverse();
        Tail { nodes, outputs }
    }
}

/// What remains of the network behind a block.
#[derive(Debug, Clone, PartialEq)]
pub struct Tail {
    pub nodes: Vec<usize>,
    /// The graph outputs it reaches.
    pub outputs: Vec<String>,
}
