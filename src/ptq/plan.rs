//! Which layers become integer, which tensors need a quantizer, and which of those must share one.
//!
//! In: a float graph. Out: a [`Plan`]. Rules:
//!
//! - A convolution with constant weights is quantized unless the recipe keeps it in float.
//! - Its input, and its output after a Relu or Clip that only it feeds, get a quantizer. Nothing comes between
//!   a convolution and its Relu, so the runtime can fuse them.
//! - Operators that only move values (concat, max-pool, depth-to-space, reshape, ...) share one quantizer
//!   between inputs and outputs, so they run on integers without requantization.
//! - An Add that feeds a quantized tensor gets quantized inputs.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::recipe::{Recipe, TargetSettings, matches};
use crate::onnx::proto::NodeProto;
use crate::onnx::{Links, Model, OnnxError, deconvolution, fold, opset, widen};

/// A float graph made ready for quantization, and what was done to it.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub model: Model,
    pub changes: Changes,
}

/// Rewrites that keep the function of the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// Operator set of the file.
    pub opset_from: i64,
    /// Operator set written.
    pub opset_to: i64,
    /// Float types of the file, other than float32, that float32 copies were made of.
    #[serde(default)]
    pub widened: Vec<String>,
    /// BatchNormalization nodes folded into convolutions.
    pub folded_batch_norms: Vec<String>,
    /// Transposed convolutions that became 1x1 convolution and depth-to-space.
    pub rewritten_deconvolutions: Vec<String>,
    /// Transposed convolutions that could not, with the reason.
    pub kept_deconvolutions: Vec<(String, String)>,
}

/// A layer that will have integer weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Name of the node.
    pub name: String,
    /// `Conv` or `ConvTranspose`.
    pub op: String,
    /// Tensors it reads and, after a fused activation, gives.
    pub input: String,
    pub output: String,
    pub weight: String,
    pub bias: Option<String>,
    /// Axis of the weights that runs over output channels: 0 for Conv, 1 for ConvTranspose.
    pub axis: usize,
    pub weight_bits: u32,
}

/// Tensors that share one quantizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// All of them, in graph order.
    pub tensors: Vec<String>,
    /// Those that are computed and not just moved from another of the group; they hold all its values.
    pub sources: Vec<String>,
    pub bits: u32,
}

/// A convolution that stays in float.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FloatLayer {
    pub name: String,
    pub op: String,
    /// Its output tensor.
    #[serde(skip)]
    pub output: String,
    #[serde(skip)]
    pub weight: Option<String>,
    pub reason: String,
}

/// The quantized region of a graph.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub layers: Vec<Layer>,
    pub groups: Vec<Group>,
    pub float_layers: Vec<FloatLayer>,
}

/// Folds, raises and rewrites a graph, and gives every node a name of its own.
pub fn prepare(mut model: Model) -> Result<Prepared, OnnxError> {
    let opset_from = model.opset();
    model.sort_topologically()?;
    fold::constants(&mut model)?;
    let widened = widen::to_f32(&mut model)?;
    opset::raise(&mut model, 17)?;
    let folded_batch_norms = fold::batch_norm(&mut model)?;
    let rewritten = deconvolution::rewrite(&mut model)?;
    let mut taken: HashSet<String> = HashSet::new();
    for i in 0..model.graph().node.len() {
        let node = &model.graph().node[i];
        let wish = match node.name.as_deref() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => format!("{}_{i}", node.op_type()),
        };
        let mut name = wish.clone();
        let mut n = 1;
        while !taken.insert(name.clone()) {
            name = format!("{wish}_{n}");
            n += 1;
        }
        model.graph_mut().node[i].name = Some(name);
    }
    let changes = Changes {
        opset_from,
        opset_to: model.opset(),
        widened,
        folded_batch_norms,
        rewritten_deconvolutions: rewritten.nodes,
        kept_deconvolutions: rewritten.kept,
    };
    Ok(Prepared { model, changes })
}

/// The inputs that an operator only moves to its outputs; `None` if it computes.
fn moved_inputs(node: &NodeProto) -> Option<&[String]> {
    const ONE: &[&str] = &[
        "MaxPool",
        "DepthToSpace",
        "SpaceToDepth",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Identity",
        "Split",
        "Expand",
        "Tile",
    ];
    let nearest = node.is("Resize") && matches!(node.string("mode"), b"" | b"nearest");
    if node.is("Concat") {
        Some(&node.input)
    } else if nearest || ONE.iter().any(|op| node.is(op)) {
        node.input.get(..1)
    } else {
        None
    }
}

/// Whether an operator only moves values.
pub(super) fn is_moving(node: &NodeProto) -> bool {
    moved_inputs(node).is_some()
}

/// The value after an activation that only this value feeds, else the value itself.
fn after_activation(
    model: &Model,
    links: &Links,
    outputs: &HashSet<String>,
    value: &str,
) -> String {
    if !outputs.contains(value)
        && let Some(&[reader]) = links.consumers.get(value).map(Vec::as_slice)
    {
        let node = &model.graph().node[reader];
        let activates = node.is("Relu") || node.is("Clip");
        if activates
            && node.input.first().is_some_and(|i| i == value)
            && let Some(output) = node.output.first()
        {
            return output.clone();
        }
    }
    value.to_owned()
}

/// Whether a graph output can be reached from a value without passing another convolution.
fn feeds_output(model: &Model, links: &Links, outputs: &HashSet<String>, value: &str) -> bool {
    let mut open = vec![value.to_owned()];
    let mut seen: HashSet<String> = HashSet::new();
    while let Some(value) = open.pop() {
        if outputs.contains(&value) {
            return true;
        }
        if !seen.insert(value.clone()) {
            continue;
        }
        for &reader in links.consumers.get(&value).into_iter().flatten() {
            let node = &model.graph().node[reader];
            if !is_convolution(node) {
                open.extend(node.output.iter().cloned());
            }
        }
    }
    false
}

fn is_convolution(node: &NodeProto) -> bool {
    node.is("Conv") || node.is("ConvTranspose")
}

/// Sets of tensors that grow together.
#[derive(Default)]
struct Shared {
    parent: HashMap<String, String>,
}

impl Shared {
    fn contains(&self, value: &str) -> bool {
        self.parent.contains_key(value)
    }

    /// Adds a tensor on its own; false if it was there.
    fn add(&mut self, value: &str) -> bool {
        if self.contains(value) {
            return false;
        }
        self.parent.insert(value.to_owned(), value.to_owned());
        true
    }

    fn root(&self, value: &str) -> String {
        let mut at = value;
        while let Some(parent) = self.parent.get(at) {
            if parent == at {
                break;
            }
            at = parent;
        }
        at.to_owned()
    }

    /// Joins the sets of two tensors; false if they were one already.
    fn join(&mut self, a: &str, b: &str) -> bool {
        self.add(a);
        self.add(b);
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return false;
        }
        self.parent.insert(b, a);
        true
    }
}

impl Plan {
    /// Chooses layers and tensors for a graph made by [`prepare`].
    pub fn new(model: &Model, recipe: &Recipe, target: &TargetSettings) -> Result<Self, OnnxError> {
        let links = model.links();
        let outputs: HashSet<String> = model.output_names().into_iter().collect();
        let inputs = model.input_names();
        let mut plan = Plan::default();
        let mut input_bits: HashMap<String, u32> = HashMap::new();
        for node in model.graph().node.iter().filter(|n| is_convolution(n)) {
            let name = node.label();
            let [input, weight] = match node.input.get(..2) {
                Some([input, weight]) => [input.clone(), weight.clone()],
                _ => return Err(model.node_error(node, "has no input or no weights")),
            };
            let Some(value) = node.output.first() else {
                return Err(model.node_error(node, "has no output"));
            };
            let bias = node.input.get(2).filter(|b| !b.is_empty()).cloned();
            let (mut weight_bits, mut activation_bits) =
                (recipe.weights.bits, recipe.activations.bits);
            if let Some(least) = recipe.input_bits.filter(|_| inputs.contains(&input)) {
                weight_bits = weight_bits.max(least);
                activation_bits = activation_bits.max(least);
            }
            let mut keep = None;
            for layer in recipe.layers.iter().filter(|l| matches(&l.name, &name)) {
                keep = layer.keep_float.or(keep);
                weight_bits = layer.weight_bits.unwrap_or(weight_bits);
                activation_bits = layer.activation_bits.unwrap_or(activation_bits);
            }
            let constant = |v: &String| model.initializer(v).is_some();
            let reason = if !constant(&weight) || !bias.iter().all(constant) {
                Some("its weights are not constant")
            } else if constant(&input) {
                Some("its input is a constant")
            } else if keep == Some(true) {
                Some("the recipe keeps this layer in float")
            } else if keep.is_none()
                && recipe.keep_float.head_outputs
                && feeds_output(model, &links, &outputs, value)
            {
                Some("the recipe keeps head outputs in float")
            } else if node.is("ConvTranspose") && !target.conv_transpose {
                Some("the target has no integer kernel for transposed convolutions")
            } else {
                None
            };
            if let Some(reason) = reason {
                plan.float_layers.push(FloatLayer {
                    name,
                    op: node.op_type().to_owned(),
                    output: value.clone(),
                    weight: constant(&weight).then_some(weight),
                    reason: reason.to_owned(),
                });
                continue;
            }
            let bits = input_bits.entry(input.clone()).or_insert(activation_bits);
            *bits = activation_bits.min(*bits);
            plan.layers.push(Layer {
                output: after_activation(model, &links, &outputs, value),
                axis: usize::from(node.is("ConvTranspose")),
                op: node.op_type().to_owned(),
                name,
                input,
                weight,
                bias,
                weight_bits,
            });
        }
        let unmatched = recipe.layers.iter().find(|l| {
            !model
                .graph()
                .node
                .iter()
                .any(|n| is_convolution(n) && matches(&l.name, &n.label()))
        });
        if let Some(layer) = unmatched {
            return Err(model.graph_error(format!(
                "the recipe's layer \"{}\" matches no convolution",
                layer.name
            )));
        }
        if plan.layers.is_empty() {
            return Err(model.graph_error("no convolution is left to quantize"));
        }
        plan.groups = groups(
            model,
            &links,
            &outputs,
            &plan.layers,
            &input_bits,
            recipe.activations.bits,
        );
        Ok(plan)
    }

    /// Index of the group that holds a tensor.
    pub fn group_of(&self, tensor: &str) -> Option<usize> {
        self.groups
            .iter()
            .position(|g| g.tensors.iter().any(|t| t == tensor))
    }
}

fn groups(
    model: &Model,
    links: &Links,
    outputs: &HashSet<String>,
    layers: &[Layer],
    input_bits: &HashMap<String, u32>,
    default_bits: u32,
) -> Vec<Group> {
    let constants: HashSet<&str> = model
        .graph()
        .initializer
        .iter()
        .filter_map(|t| t.name.as_deref())
        .collect();
    let mut shared = Shared::default();
    for layer in layers {
        shared.add(&layer.input);
        shared.add(&layer.output);
    }
    loop {
        let mut grew = false;
        for node in &model.graph().node {
            if let Some(inputs) = moved_inputs(node) {
                let movable = inputs
                    .iter()
                    .all(|i| !i.is_empty() && !constants.contains(i.as_str()));
                let wanted = node.output.iter().any(|o| shared.contains(o));
                let offered = inputs.iter().all(|i| shared.contains(i))
                    && !node.output.iter().any(|o| outputs.contains(o));
                if movable && !inputs.is_empty() && (wanted || offered) {
                    for other in inputs[1..]
                        .iter()
                        .chain(&node.output)
                        .filter(|o| !o.is_empty())
                    {
                        grew |= shared.join(&inputs[0], other);
                    }
                }
            } else if node.is("Add")
                && let Some(output) = node.output.first()
                && shared.contains(&after_activation(model, links, outputs, output))
                && node.input.iter().all(|i| !constants.contains(i.as_str()))
            {
                for input in &node.input {
                    grew |= shared.add(input);
                }
            }
        }
        if !grew {
            break;
        }
    }
    // In graph order, so that reports and files come out the same every time.
    let mut ordered = model.input_names();
    ordered.extend(
        model
            .graph()
            .node
            .iter()
            .flat_map(|n| n.output.iter().cloned()),
    );
    let mut groups: Vec<Group> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for tensor in ordered.into_iter().filter(|t| shared.contains(t)) {
        let at = *index.entry(shared.root(&tensor)).or_insert_with(|| {
            groups.push(Group {
                tensors: vec![],
                sources: vec![],
                bits: 8,
            });
            groups.len() - 1
        });
        let moved = links
            .producer
            .get(&tensor)
            .is_some_and(|&p| moved_inputs(&model.graph().node[p]).is_some());
        if !moved {
            groups[at].sources.push(tensor.clone());
        }
        groups[at].tensors.push(tensor);
    }
    for group in &mut groups {
        group.bits = group
            .tensors
            .iter()
            .filter_map(|t| input_bits.get(t).copied())
            .min()
            .unwrap_or(default_bits);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::recipe::Target;
    use super::super::recipe::tests::quick;
    use super::*;
    use crate::onnx::proto::TensorProto;
    use crate::onnx::tests::{model, value};

    fn ones(name: &str, dims: &[usize]) -> TensorProto {
        TensorProto::f32(name, dims, &vec![1.0; dims.iter().product()])
    }

    fn neck() -> Model {
        model(
            17,
            vec![
                NodeProto::new("Conv", "down", &["x", "w"], &["d"]),
                NodeProto::new("Relu", "down_relu", &["d"], &["dr"]),
                NodeProto::new("ConvTranspose", "up", &["dr", "u"], &["t"])
                    .with_ints("strides", &[2, 2]),
                NodeProto::new("Relu", "up_relu", &["t"], &["tr"]),
                NodeProto::new("Conv", "side", &["x", "s"], &["sd"]),
                NodeProto::new("Relu", "side_relu", &["sd"], &["sr"]),
                NodeProto::new("Concat", "cat", &["tr", "sr"], &["cat"]).with_int("axis", 1),
                NodeProto::new("Conv", "shared", &["cat", "h"], &["hd"]),
                NodeProto::new("Relu", "shared_relu", &["hd"], &["hr"]),
                NodeProto::new("Conv", "last", &["hr", "l"], &["y"]),
            ],
            vec![
                ones("w", &[4, 4, 2, 2]),
                ones("u", &[4, 4, 2, 2]),
                ones("s", &[4, 4, 1, 1]),
                ones("h", &[4, 8, 1, 1]),
                ones("l", &[1, 4, 1, 1]),
            ],
            vec![value("x", &[1, 4, 8, 8])],
            vec![value("y", &[1, 1, 8, 8])],
        )
    }

    fn plan(recipe: &Recipe) -> Plan {
        let prepared = prepare(neck()).unwrap();
        Plan::new(&prepared.model, recipe, recipe.target(Target::Cpu)).unwrap()
    }

    #[test]
    fn what_a_concat_joins_shares_one_quantizer_and_moved_values_are_seen_once() {
        let plan = plan(&quick());
        let names: Vec<_> = plan.layers.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["down", "up", "side", "shared"]);
        assert_eq!(plan.float_layers[0].name, "last");
        let cat = &plan.groups[plan.group_of("cat").unwrap()];
        assert_eq!(cat.tensors, ["tr_wide", "tr", "sr", "cat"]);
        assert_eq!(cat.sources, ["tr_wide", "sr"]);
        assert_eq!(plan.groups.len(), 4, "{:?}", plan.groups);
        // Never between a convolution and its Relu.
        for between in ["d", "sd", "hd", "t_wide"] {
            assert_eq!(plan.group_of(between), None, "{between}");
        }
    }

    #[test]
    fn layers_that_read_the_networks_input_may_have_more_bits() {
        let mut recipe = quick();
        (recipe.weights.bits, recipe.activations.bits) = (4, 5);
        recipe.input_bits = Some(8);
        let plan = plan(&recipe);
        let bits: Vec<_> = { &plan.layers }
            .iter()
            .map(|l| (l.name.as_str(), l.weight_bits))
            .collect();
        assert_eq!(bits, [("down", 8), ("up", 4), ("side", 8), ("shared", 4)]);
        let of = |tensor: &str| plan.groups[plan.group_of(tensor).unwrap()].bits;
        assert_eq!([of("x"), of("dr"), of("cat")], [8, 5, 5]);
    }

    #[test]
    fn overrides_choose_layers_and_bits() {
        let mut recipe = quick();
        recipe.keep_float.head_outputs = false;
        recipe.layers = serde_yaml::from_str(
            "[{name: 's*', weight_bits: 4, activation_bits: 6}, {name: side, keep_float: true}]",
        )
        .unwrap();
        let plan = plan(&recipe);
        let names: Vec<_> = plan
            .layers
            .iter()
            .map(|l| (l.name.as_str(), l.weight_bits))
            .collect();
        assert_eq!(names, [("down", 8), ("up", 8), ("shared", 4), ("last", 8)]);
        assert_eq!(plan.groups[plan.group_of("cat").unwrap()].bits, 6);
        recipe.layers[0].name = "nowhere".into();
        let prepared = prepare(neck()).unwrap();
        let error = Plan::new(&prepared.model, &recipe, recipe.target(Target::Cpu)).unwrap_err();
        assert!(error.to_string().contains("nowhere"));
    }
}
