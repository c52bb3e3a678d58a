//! Float32 copies of graphs in other float types: float16 and bfloat16, as deployments convert them, and float64.
//!
//! Quantization computes in float32: steps, sums and gradients. A graph of halves with a Cast behind its input and
//! before its outputs is turned into the graph that it was before: constants, Casts and declared types become float32,
//! and Casts between floats, which then do nothing, go.

use std::collections::{BTreeSet, HashMap};

use super::proto::{GraphProto, NodeProto, TensorProto, TypeValue, data_type};
use super::{Model, OnnxError, each_tensor};

const NAMES: [(i32, &str); 3] = [
    (data_type::FLOAT16, "float16"),
    (data_type::BFLOAT16, "bfloat16"),
    (data_type::DOUBLE, "float64"),
];

fn is_other(data_type: i32) -> bool {
    NAMES.iter().any(|(other, _)| *other == data_type)
}

fn is_float(data_type: i32) -> bool {
    data_type == data_type::FLOAT || is_other(data_type)
}

/// Turns all floats of a graph into float32. Returns the types that there were; empty if nothing had to be done.
///
/// The nodes must be in topological order, see [`Model::sort_topologically`].
pub fn to_f32(model: &mut Model) -> Result<Vec<String>, OnnxError> {
    let types = types(model.graph());
    let mut found: BTreeSet<i32> = types.values().copied().filter(|t| is_other(*t)).collect();
    let file = model.file().to_owned();
    each_tensor(model.proto_mut(), &mut |tensor| {
        let from = tensor.data_type.unwrap_or(0);
        if !is_other(from) {
            return Ok(());
        }
        found.insert(from);
        let name = tensor.name.clone().unwrap_or_default();
        let floats = tensor.to_f32().map_err(|reason| OnnxError::Tensor {
            file: file.clone(),
            tensor: name.clone(),
            reason,
        })?;
        let copy = TensorProto::f32(&name, &floats.dims, &floats.data);
        tensor.data_type = copy.data_type;
        tensor.raw_data = copy.raw_data;
        tensor.int32_data.clear();
        tensor.double_data.clear();
        Ok(())
    })?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    declare(model.graph_mut());
    drop_casts(model, &types);
    model.sort_topologically()?;
    model.validate()?;
    let name = |t: &i32| NAMES.iter().find(|(other, _)| other == t);
    Ok(found
        .iter()
        .filter_map(name)
        .map(|(_, n)| (*n).to_owned())
        .collect())
}

/// Element types of the values, as far as they are declared or follow from the operators.
fn types(graph: &GraphProto) -> HashMap<String, i32> {
    let mut types: HashMap<String, i32> = HashMap::new();
    let declared = graph
        .input
        .iter()
        .chain(&graph.value_info)
        .chain(&graph.output);
    for value in declared {
        let tensor = match value.r#type.as_ref().and_then(|t| t.value.as_ref()) {
            Some(TypeValue::Tensor(tensor)) => tensor.elem_type,
            _ => None,
        };
        if let (Some(name), Some(tensor)) = (&value.name, tensor) {
            types.insert(name.clone(), tensor);
        }
    }
    for tensor in &graph.initializer {
        if let (Some(name), Some(found)) = (&tensor.name, tensor.data_type) {
            types.insert(name.clone(), found);
        }
    }
    for node in &graph.node {
        let of = |index: usize| {
            node.input
                .get(index)
                .and_then(|name| types.get(name))
                .copied()
        };
        let result = match node.op_type() {
            "Cast" => i32::try_from(node.int("to", 0)).ok(),
            "Constant" | "ConstantOfShape" => {
                let value = node.attribute("value").and_then(|a| a.t.as_ref());
                value.and_then(|t| t.data_type)
            }
            "Where" | "CastLike" => of(1),
            "OneHot" => of(2),
            "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or"
            | "Not" | "Xor" | "IsNaN" | "IsInf" => Some(data_type::BOOL),
            "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" => Some(data_type::INT64),
            // Its kind is that of its zero point, and never a float.
            "QuantizeLinear" => Some(data_type::UINT8),
            "DequantizeLinear" => of(1),
            // These hold graphs of their own.
            "If" | "Loop" | "Scan" | "SequenceMap" => None,
            _ => of(0),
        };
        for (index, output) in node.output.iter().enumerate() {
            let result = match (node.op_type(), index) {
                ("TopK" | "MaxPool", 1) => Some(data_type::INT64),
                ("Dropout", 1) => Some(data_type::BOOL),
                _ => result,
            };
            if let Some(result) = result {
                types.entry(output.clone()).or_insert(result);
            }
        }
    }
    types
}

/// Makes all that names a type name float32.
fn declare(graph: &mut GraphProto) {
    let values = graph.input.iter_mut().chain(&mut graph.output);
    for value in values.chain(&mut graph.value_info) {
        if let Some(TypeValue::Tensor(tensor)) =
            value.r#type.as_mut().and_then(|t| t.value.as_mut())
            && tensor.elem_type.is_some_and(is_other)
        {
            tensor.elem_type = Some(data_type::FLOAT);
        }
    }
    for node in &mut graph.node {
        for attribute in &mut node.attribute {
            let names_type = matches!(attribute.name.as_deref(), Some("to" | "dtype"));
            let other = attribute
                .i
                .and_then(|i| i32::try_from(i).ok())
                .is_some_and(is_other);
            if names_type && other {
                attribute.i = Some(i64::from(data_type::FLOAT));
            }
            for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                declare(inner);
            }
        }
    }
}

/// Takes Casts out that went from one float type to another.
fn drop_casts(model: &mut Model, types: &HashMap<String, i32>) {
    let holds_graphs = |node: &NodeProto| {
        let mut attributes = node.attribute.iter();
        attributes.any(|a| a.g.is_some() || !a.graphs.is_empty())
    };
    // Inner graphs read outer values by name, which a change of names does not reach.
    let renaming = !model.graph().node.iter().any(holds_graphs);
    let outputs = model.output_names();
    let casts: Vec<(String, String)> = model
        .graph()
        .node
        .iter()
        .filter(|node| node.is("Cast") && node.int("to", 0) == i64::from(data_type::FLOAT))
        .filter_map(|node| Some((node.input.first()?.clone(), node.output.first()?.clone())))
        .filter(|(input, _)| types.get(input).is_some_and(|t| is_float(*t)))
        .collect();
    for (input, output) in casts {
        let Some(at) = model
            .graph()
            .node
            .iter()
            .position(|n| n.output.contains(&output))
        else {
            continue;
        };
        // An earlier one may have changed the name of what it reads.
        let input = model.graph().node[at]
            .input
            .first()
            .cloned()
            .unwrap_or(input);
        let is_output = outputs.contains(&output);
        let producer = model
            .graph()
            .node
            .iter()
            .position(|n| n.output.contains(&input));
        if renaming && !is_output {
            model.graph_mut().node.remove(at);
            model.redirect(&output, &input);
        } else if let Some(producer) = producer
            && renaming
            && !outputs.contains(&input)
        {
            for name in &mut model.graph_mut().node[producer].output {
                if *name == input {
                    name.clone_from(&output);
                }
            }
            model.redirect(&input, &output);
            // After the names: it reads what it gives now.
            model.graph_mut().node.remove(at);
            model
                .graph_mut()
                .value_info
                .retain(|v| v.name.as_ref() != Some(&input));
        } else {
            let node = &mut model.graph_mut().node[at];
            *node = NodeProto::new("Identity", &node.label(), &[&input], &[&output]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::AttributeProto;
    use super::super::tests::{model, value};
    use super::*;

    fn half(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
        let halves = values.iter().map(|v| half::f16::from_f32(*v));
        TensorProto {
            name: Some(name.into()),
            dims: dims.iter().map(|d| *d as i64).collect(),
            data_type: Some(data_type::FLOAT16),
            raw_data: Some(halves.flat_map(|h| h.to_le_bytes()).collect()),
            ..Default::default()
        }
    }

    fn cast(input: &str, output: &str, to: i32) -> NodeProto {
        NodeProto::new("Cast", &format!("to_{output}"), &[input], &[output])
            .with_int("to", i64::from(to))
    }

    #[test]
    fn halves_between_casts_become_the_graph_that_they_were() {
        let mut m = model(
            17,
            vec![
                cast("x", "xh", data_type::FLOAT16),
                NodeProto::new("Mul", "mul", &["xh", "w"], &["mh"]),
                NodeProto::new("Relu", "relu", &["mh"], &["yh"]),
                cast("yh", "y", data_type::FLOAT),
                NodeProto::new("Neg", "neg", &["yh"], &["zh"]),
                cast("zh", "z", data_type::FLOAT),
            ],
            vec![half("w", &[2], &[0.5, -2.0])],
            vec![value("x", &[1, 2])],
            vec![value("y", &[1, 2]), value("z", &[1, 2])],
        );
        assert_eq!(to_f32(&mut m).unwrap(), ["float16"]);
        let nodes: Vec<_> = m
            .graph()
            .node
            .iter()
            .map(|n| (n.op_type(), n.input[0].as_str(), n.output[0].as_str()))
            .collect();
        assert_eq!(
            nodes,
            [("Mul", "x", "mh"), ("Relu", "mh", "y"), ("Neg", "y", "z")]
        );
        assert_eq!(m.initializer_f32("w").unwrap().data, [0.5, -2.0]);
        assert_eq!(
            m.initializer("w").unwrap().data_type,
            Some(data_type::FLOAT)
        );
        assert!(to_f32(&mut m).unwrap().is_empty());
    }

    #[test]
    fn casts_from_integers_and_between_input_and_output_stay() {
        let mut m = model(
            17,
            vec![
                NodeProto::new("Shape", "shape", &["x"], &["s"]),
                cast("s", "sh", data_type::FLOAT16),
                NodeProto::new("ReduceSum", "sum", &["sh"], &["th"]).with_int("keepdims", 0),
                NodeProto::new("Mul", "mul", &["th", "w"], &["yh"]),
                cast("yh", "y", data_type::FLOAT),
                cast("x", "z", data_type::FLOAT),
            ],
            vec![half("w", &[], &[3.0])],
            vec![value("x", &[1, 2])],
            vec![value("y", &[]), value("z", &[1, 2])],
        );
        to_f32(&mut m).unwrap();
        let ops: Vec<_> = m.graph().node.iter().map(NodeProto::op_type).collect();
        assert_eq!(ops, ["Shape", "Cast", "ReduceSum", "Mul", "Identity"]);
        assert_eq!(m.graph().node[1].int("to", 0), i64::from(data_type::FLOAT));
    }

    #[test]
    fn constants_within_nodes_and_doubles_are_turned_too() {
        let mut fill = NodeProto::new("ConstantOfShape", "fill", &["shape"], &["f"]);
        let mut value_of = half("", &[1], &[7.0]);
        value_of.data_type = Some(data_type::BFLOAT16);
        value_of.raw_data = Some(half::bf16::from_f32(7.0).to_le_bytes().to_vec());
        fill.attribute.push(AttributeProto {
            name: Some("value".into()),
            r#type: Some(4),
            t: Some(value_of),
            ..Default::default()
        });
        let mut wide = TensorProto::f32("w", &[1], &[0.0]);
        wide.data_type = Some(data_type::DOUBLE);
        wide.raw_data = None;
        wide.float_data.clear();
        wide.double_data = vec![0.25];
        let mut m = model(
            17,
            vec![
                fill,
                cast("f", "fd", data_type::DOUBLE),
                NodeProto::new("Mul", "mul", &["fd", "w"], &["md"]),
                cast("md", "y", data_type::FLOAT),
            ],
            vec![wide, TensorProto::i64("shape", &[1], &[1])],
            vec![],
            vec![value("y", &[1])],
        );
        assert_eq!(to_f32(&mut m).unwrap(), ["float64", "bfloat16"]);
        let ops: Vec<_> = m.graph().node.iter().map(NodeProto::op_type).collect();
        assert_eq!(ops, ["ConstantOfShape", "Mul"]);
        let filled = m.graph().node[0].attribute[0].t.as_ref().unwrap();
        assert_eq!(filled.to_f32().unwrap().data, [7.0]);
        assert_eq!(m.initializer_f32("w").unwrap().data, [0.25]);
    }
}
