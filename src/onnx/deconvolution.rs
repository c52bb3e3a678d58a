//! Transposed convolutions whose kernel equals their stride, as a 1x1 convolution and a depth-to-space.
//!
//! With kernel = stride and no padding the output patches do not overlap, so each input pixel makes its own
//! `k x k` patch: a 1x1 convolution to `k * k * C` channels, then those channels laid out in space. ONNX Runtime
//! has integer kernels for convolutions but none for ConvTranspose.
//!
//! Channel order is DepthToSpace's `DCR` (depth, column, row): channel `(i * k + j) * C + c` of the
//! convolution becomes channel `c` at row `i`, column `j` of the patch.

use super::proto::TensorProto;
use super::{Model, NodeProto, OnnxError};

/// What happened to the ConvTranspose nodes of a graph.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Rewritten {
    /// Names of the nodes that became convolutions.
    pub nodes: Vec<String>,
    /// Names of those that stay, with the reason.
    pub kept: Vec<(String, String)>,
}

/// Rewrites every ConvTranspose that allows it. A Relu or Clip right behind it moves before the depth-to-space,
/// which changes no value and lets a runtime fuse it with the convolution.
pub fn rewrite(model: &mut Model) -> Result<Rewritten, OnnxError> {
    let mut result = Rewritten::default();
    let mut index = 0;
    while index < model.graph().node.len() {
        let node = model.graph().node[index].clone();
        if node.is("ConvTranspose") {
            match obstacle(model, &node)? {
                Some(reason) => result.kept.push((node.label(), reason)),
                None => {
                    rewrite_one(model, index)?;
                    result.nodes.push(node.label());
                }
            }
        }
        index += 1;
    }
    model.remove_unused();
    model.sort_topologically()?;
    model.validate()?;
    Ok(result)
}

/// Why a ConvTranspose has to stay, if it has to.
fn obstacle(model: &Model, node: &NodeProto) -> Result<Option<String>, OnnxError> {
    if node.output.is_empty() {
        return Ok(Some("it has no output".into()));
    }
    let Some(weight) = node.input.get(1).filter(|w| model.initializer(w).is_some()) else {
        return Ok(Some("its weights are not constant".into()));
    };
    let bias = node.input.get(2).filter(|b| !b.is_empty());
    if bias.is_some_and(|b| model.initializer(b).is_none()) {
        return Ok(Some("its bias is not constant".into()));
    }
    let dims = model.initializer_f32(weight)?.dims;
    let &[inputs, outputs, height, width] = dims.as_slice() else {
        return Ok(Some(format!(
            "its weights have shape {dims:?}, not four axes"
        )));
    };
    if inputs == 0 || outputs == 0 || height == 0 {
        return Ok(Some(format!("its weights are empty ({dims:?})")));
    }
    let kernel = [height as i64, width as i64];
    let strides = match node.ints("strides") {
        [] => &[1, 1],
        s => s,
    };
    let reason = if strides != kernel.as_slice() {
        Some(format!("kernel {kernel:?} differs from stride {strides:?}"))
    } else if height != width {
        Some(format!("kernel {kernel:?} is not square"))
    } else if node.int("group", 1) != 1 {
        Some(format!("it has {} groups", node.int("group", 1)))
    } else if height > 1 && node.ints("dilations").iter().any(|&d| d != 1) {
        Some("it is dilated".into())
    } else if ["pads", "output_padding"]
        .iter()
        .any(|a| node.ints(a).iter().any(|&p| p != 0))
    {
        Some("it is padded".into())
    } else if !node.ints("output_shape").is_empty() {
        Some("it fixes its output shape".into())
    } else if !matches!(node.string("auto_pad"), b"" | b"NOTSET" | b"VALID") {
        Some("it pads automatically".into())
    } else {
        None
    };
    Ok(reason)
}

fn rewrite_one(model: &mut Model, index: usize) -> Result<(), OnnxError> {
    let node = model.graph().node[index].clone();
    let weight = model.initializer_f32(&node.input[1])?;
    let (inputs, outputs, k) = (weight.dims[0], weight.dims[1], weight.dims[2]);
    let rows = k * k * outputs;
    let mut data = vec![0.0f32; rows * inputs];
    for i in 0..inputs {
        for o in 0..outputs {
            for cell in 0..k * k {
                data[(cell * outputs + o) * inputs + i] =
                    weight.data[(i * outputs + o) * k * k + cell];
            }
        }
    }
    let weight_name = model.fresh_name(&format!("{}_as_conv", node.input[1]));
    model.set_initializer(TensorProto::f32(&weight_name, &[rows, inputs, 1, 1], &data));
    let mut conv_inputs = vec![node.input[0].clone(), weight_name];
    if let Some(name) = node.input.get(2).filter(|b| !b.is_empty()) {
        let bias = model.initializer_f32(name)?.data;
        if bias.len() != outputs {
            return Err(model.node_error(
                &node,
                format!("{} biases for {outputs} channels", bias.len()),
            ));
        }
        let bias_name = model.fresh_name(&format!("{name}_as_conv"));
        model.set_initializer(TensorProto::f32(&bias_name, &[rows], &bias.repeat(k * k)));
        conv_inputs.push(bias_name);
    }
    let inputs: Vec<&str> = conv_inputs.iter().map(String::as_str).collect();
    let name = node.name.clone().unwrap_or_default();
    let conv = |output: &str| {
        NodeProto::new("Conv", &name, &inputs, &[output])
            .with_ints("kernel_shape", &[1, 1])
            .with_ints("strides", &[1, 1])
            .with_ints("pads", &[0, 0, 0, 0])
            .with_ints("dilations", &[1, 1])
            .with_int("group", 1)
    };
    let value = node.output[0].clone();
    if k == 1 {
        model.graph_mut().node[index] = conv(&value);
        return Ok(());
    }
    let wide = model.fresh_name(&format!("{value}_wide"));
    let to_space = |from: &str, to: &str, model: &Model| {
        let name = model.fresh_name(&format!("{name}_depth_to_space"));
        NodeProto::new("DepthToSpace", &name, &[from], &[to])
            .with_int("blocksize", k as i64)
            .with_string("mode", "DCR")
    };
    let links = model.links();
    let activation = match links.consumers.get(&value).map(Vec::as_slice) {
        Some(&[i]) if !model.output_names().contains(&value) => {
            let n = &model.graph().node[i];
            ((n.is("Relu") || n.is("Clip")) && n.input[0] == value && !n.output.is_empty())
                .then_some(i)
        }
        _ => None,
    };
    match activation {
        Some(i) => {
            let end = model.graph().node[i].output[0].clone();
            let bounded = model.fresh_name(&format!("{end}_wide"));
            let after = to_space(&bounded, &end, model);
            let nodes = &mut model.graph_mut().node;
            nodes[index] = conv(&wide);
            nodes[i].input[0] = wide;
            nodes[i].output[0] = bounded;
            nodes.insert(i + 1, after);
        }
        None => {
            let after = to_space(&wide, &value, model);
            let nodes = &mut model.graph_mut().node;
            nodes[index] = conv(&wide);
            nodes.insert(index + 1, after);
        }
    }
    Ok(())
}
