//! Raising a graph's operator set, for the operators that pillar detectors use.
//!
//! QuantizeLinear per channel needs opset 13, and this project writes 17. Between 11 and 17 most operators
//! only gained element types; those are listed in [`UNCHANGED`]. A few changed their form and are converted.
//! Anything else is refused by name: a silent change of meaning would be worse.

use super::proto::TensorProto;
use super::{Model, NodeProto, OnnxError};

/// The oldest operator set that can be raised.
pub const OLDEST: i64 = 11;

/// Operators whose meaning at opset 11 holds unchanged up to 17 for graphs at inference
/// (the default-domain change logs of 12 to 17 only add types, optional inputs or attributes to them).
const UNCHANGED: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "DepthToSpace",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "HardSigmoid",
    "Identity",
    "InstanceNormalization",
    "LeakyRelu",
    "Less",
    "Log",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "Range",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "Relu",
    "Reshape",
    "Resize",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Slice",
    "Softplus",
    "SpaceToDepth",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
    "Tile",
    "TopK",
    "Transpose",
    "Where",
    "Greater",
    "GreaterOrEqual",
    "LessOrEqual",
];

/// Raises the default operator set to `target` (at most 17) and says whether anything had to change.
/// A model at or above `target` is left alone.
pub fn raise(model: &mut Model, target: i64) -> Result<bool, OnnxError> {
    assert!(target <= 17, "conversions are known up to opset 17");
    let from = model.opset();
    if from >= target {
        return Ok(false);
    }
    if from < OLDEST {
        return Err(model.graph_error(format!(
            "opset {from} is too old to be raised to {target}; export the model again with opset {OLDEST} or newer"
        )));
    }
    if !model.proto().functions.is_empty() {
        return Err(model.graph_error("model-local functions cannot be raised to another opset"));
    }
    let mut nodes = Vec::with_capacity(model.graph().node.len());
    let mut constants: Vec<TensorProto> = Vec::new();
    for mut node in model.graph().node.clone() {
        let op = node.op_type().to_owned();
        let default_domain = node.is(&op);
        if default_domain && from < 13 {
            match op.as_str() {
                "Squeeze" | "Unsqueeze" | "ReduceSum" => {
                    axes_to_input(model, &mut node, "axes", &mut constants);
                }
                "Split" => axes_to_input(model, &mut node, "split", &mut constants),
                // Before 13 the tensor was flattened to two axes at `axis`; only over the last axis are
                // both the same, and that is known here only if it is written as -1.
                "Softmax" | "LogSoftmax" | "Hardmax"
                    if node.attribute("axis").and_then(|a| a.i) != Some(-1) =>
                {
                    return Err(refuse(model, &node, from, target));
                }
                "Dropout" => node.attribute.clear(),
                _ => {}
            }
        }
        if default_domain && op == "Dropout" {
            // Out of training it passes its input on.
            if node.output.get(1).is_some_and(|m| !m.is_empty()) {
                return Err(refuse(model, &node, from, target));
            }
            let (Some(input), Some(output)) = (node.input.first(), node.output.first()) else {
                return Err(refuse(model, &node, from, target));
            };
            node = NodeProto::new("Identity", &node.label(), &[input], &[output]);
        }
        let known = UNCHANGED.contains(&node.op_type())
            || matches!(
                op.as_str(),
                "Squeeze"
                    | "Unsqueeze"
                    | "ReduceSum"
                    | "Split"
                    | "Softmax"
                    | "LogSoftmax"
                    | "Hardmax"
            );
        if default_domain && !known {
            return Err(refuse(model, &node, from, target));
        }
        if node.is("BatchNormalization") && node.output.len() > 1 {
            node.output.truncate(1);
        }
        nodes.push(node);
    }
    model.graph_mut().node = nodes;
    model.graph_mut().initializer.extend(constants);
    for import in &mut model.proto_mut().opset_import {
        if matches!(import.domain.as_deref(), None | Some("" | "ai.onnx")) {
            import.version = Some(target);
        }
    }
    // Opset 17 came with IR version 8.
    let ir = model.proto().ir_version.unwrap_or(0).max(8);
    model.proto_mut().ir_version = Some(ir);
    model.validate()?;
    Ok(true)
}

fn refuse(model: &Model, node: &NodeProto, from: i64, to: i64) -> OnnxError {
    model.node_error(
        node,
        format!(
            "cannot be raised from opset {from} to {to}; export the model again with opset {to}"
        ),
    )
}

/// Moves a list attribute (`axes`, `split`) to a constant second input.
fn axes_to_input(
    model: &Model,
    node: &mut NodeProto,
    attribute: &str,
    constants: &mut Vec<TensorProto>,
) {
    let values = node.ints(attribute).to_vec();
    if values.is_empty() {
        return;
    }
    node.attribute
        .retain(|a| a.name.as_deref() != Some(attribute));
    let wish = format!(
        "{}_{attribute}",
        node.output.first().map_or("node", |o| o.as_str())
    );
    let mut name = model.fresh_name(&wish);
    while constants.iter().any(|t| t.name.as_deref() == Some(&name)) {
        name.push('_');
    }
    constants.push(TensorProto::i64(&name, &[values.len()], &values));
    node.input.truncate(1);
    node.input.push(name);
}
