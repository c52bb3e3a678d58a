//! From a plan, integers and steps to a standard ONNX model with explicit QuantizeLinear and DequantizeLinear.
//!
//! Integer weights stand behind a DequantizeLinear of their own (per output channel), the bias as `int32` in
//! steps of input step times weight step, activations behind a QuantizeLinear/DequantizeLinear pair per tensor
//! with one pair of constants per group. Any runtime can run that as it stands; those with integer kernels
//! recognise the pattern and fuse it.

use super::plan::Plan;
use super::quantizer::Quantizer;
use super::ranges::ActivationType;
use super::recipe::{BiasType, TargetSettings};
use super::weights::LayerWeights;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{Model, OnnxError};

/// A float graph with everything that turns it into an integer one. Calibration stages refine it one after
/// the other; only the export looks at all of it.
#[derive(Debug, Clone)]
pub struct Quantization {
    pub plan: Plan,
    /// Per layer of the plan.
    pub weights: Vec<LayerWeights>,
    /// Per group of the plan.
    pub activations: Vec<Quantizer>,
}

impl Quantization {
    /// Makes every `int32` bias fit, see [`LayerWeights::fit_bias`]. Returns the layers that changed.
    pub fn fit_biases(&mut self, model: &Model) -> Result<Vec<String>, OnnxError> {
        let mut changed = Vec::new();
        for (layer, weights) in self.plan.layers.iter().zip(&mut self.weights) {
            let Some(bias) = &layer.bias else { continue };
            let Some(group) = self
                .plan
                .groups
                .iter()
                .position(|g| g.tensors.contains(&layer.input))
            else {
                continue;
            };
            let bias = model.initializer_f32(bias)?.data;
            let float = model.initializer_f32(&layer.weight)?.data;
            if weights.fit_bias(&float, &bias, self.activations[group].scale) > 0 {
                changed.push(layer.name.clone());
            }
        }
        Ok(changed)
    }
}

/// The float graph with its quantized layers' weights replaced by what their integers stand for.
pub fn with_quantized_weights(model: &Model, plan: &Plan, weights: &[LayerWeights]) -> Model {
    let mut model = model.clone();
    for (layer, w) in plan.layers.iter().zip(weights) {
        let name = model.fresh_name(&format!("{}_rounded", layer.weight));
        model.set_initializer(TensorProto::f32(&name, &w.dims, &w.dequantized()));
        // By layer, not by constant: a constant may be shared with a layer that stays in float.
        for node in &mut model.graph_mut().node {
            if node.name.as_deref() == Some(&layer.name) {
                node.input[1].clone_from(&name);
            }
        }
    }
    model.remove_unused();
    model
}

/// Writes the quantized graph.
pub fn qdq(
    model: &Model,
    quantization: &Quantization,
    target: &TargetSettings,
) -> Result<Model, OnnxError> {
    let mut out = model.clone();
    let Quantization {
        plan,
        weights,
        activations,
    } = quantization;
    for (group, quantizer) in plan.groups.iter().zip(activations) {
        let (scale, zero) =
            activation_constants(&mut out, &group.tensors[0], quantizer, target.activations);
        for tensor in &group.tensors {
            quantize_tensor(
                &mut out,
                tensor,
                [&scale, &zero],
                quantizer,
                target.activations,
            )?;
        }
    }
    for (layer, w) in plan.layers.iter().zip(weights) {
        let at = out
            .graph()
            .node
            .iter()
            .position(|n| n.name.as_deref() == Some(&layer.name))
            .ok_or_else(|| model.graph_error(format!("layer {} is gone", layer.name)))?;
        let channels = w.dims[w.axis];
        let name = |part: &str, out: &Model| out.fresh_name(&format!("{}_{part}", layer.weight));
        let [q, s, z, dq] =
            ["quantized", "scale", "zero_point", "dequantized"].map(|p| name(p, &out));
        let scales = w.scales();
        out.set_initializer(TensorProto::i8(&q, &w.dims, &w.integers));
        out.set_initializer(TensorProto::f32(&s, &[channels], &scales));
        out.set_initializer(TensorProto::i8(&z, &[channels], &vec![0; channels]));
        let node = NodeProto::new("DequantizeLinear", &dq, &[&q, &s, &z], &[&dq])
            .with_int("axis", w.axis as i64);
        out.graph_mut().node.push(node);
        out.graph_mut().node[at].input[1] = dq;
        let (Some(bias), BiasType::Int32) = (&layer.bias, target.bias) else {
            continue;
        };
        let group = plan
            .group_of(&layer.input)
            .ok_or_else(|| model.graph_error(format!("{} has no quantizer", layer.input)))?;
        let input_scale = activations[group].scale;
        let values = model.initializer_f32(bias)?.data;
        if values.len() != channels {
            return Err(model.tensor_error(
                bias,
                format!("{} values for {channels} channels", values.len()),
            ));
        }
        // The runtime multiplies the two steps in f32 as well.
        let steps: Vec<f32> = scales.iter().map(|s| s * input_scale).collect();
        let integers: Vec<i32> = values
            .iter()
            .zip(&steps)
            .map(|(&b, &s)| (f64::from(b) / f64::from(s)).round_ties_even() as i32)
            .collect();
        let name = |part: &str, out: &Model| out.fresh_name(&format!("{bias}_{part}"));
        let [q, s, z, dq] =
            ["quantized", "scale", "zero_point", "dequantized"].map(|p| name(p, &out));
        out.set_initializer(TensorProto::i32(&q, &[channels], &integers));
        out.set_initializer(TensorProto::f32(&s, &[channels], &steps));
        out.set_initializer(TensorProto::i32(&z, &[channels], &vec![0; channels]));
        let node =
            NodeProto::new("DequantizeLinear", &dq, &[&q, &s, &z], &[&dq]).with_int("axis", 0);
        out.graph_mut().node.push(node);
        out.graph_mut().node[at].input[2] = dq;
    }
    out.remove_unused();
    out.sort_topologically()?;
    out.validate()?;
    Ok(out)
}

fn activation_constants(
    model: &mut Model,
    tensor: &str,
    quantizer: &Quantizer,
    kind: ActivationType,
) -> (String, String) {
    let scale = model.fresh_name(&format!("{tensor}_scale"));
    model.set_initializer(TensorProto::f32(&scale, &[], &[quantizer.scale]));
    let zero = model.fresh_name(&format!("{tensor}_zero_point"));
    model.set_initializer(match kind {
        ActivationType::Uint8 => TensorProto::u8(&zero, &[], &[quantizer.zero_point as u8]),
        ActivationType::Int8Symmetric => TensorProto::i8(&zero, &[], &[quantizer.zero_point as i8]),
    });
    (scale, zero)
}

/// Puts a QuantizeLinear/DequantizeLinear pair behind a tensor, for all of its readers.
fn quantize_tensor(
    model: &mut Model,
    tensor: &str,
    [scale, zero]: [&str; 2],
    quantizer: &Quantizer,
    kind: ActivationType,
) -> Result<(), OnnxError> {
    let is_output = model.output_names().iter().any(|o| o == tensor);
    let (mut from, to) = if is_output {
        // The name belongs to the graph's interface: what is computed gets another one.
        let raw = model.fresh_name(&format!("{tensor}_float"));
        for node in &mut model.graph_mut().node {
            for output in node.output.iter_mut().filter(|o| *o == tensor) {
                output.clone_from(&raw);
            }
        }
        (raw, tensor.to_owned())
    } else {
        let to = model.fresh_name(&format!("{tensor}_dequantized"));
        model.redirect(tensor, &to);
        (tensor.to_owned(), to)
    };
    let bits = match kind {
        ActivationType::Uint8 => super::quantizer::Levels::unsigned(8),
        ActivationType::Int8Symmetric => super::quantizer::Levels::signed(8),
    };
    if quantizer.levels != bits {
        // The operator saturates at the ends of its type; fewer levels have to be enforced before it.
        let [lo, hi, clipped] =
            ["low", "high", "clipped"].map(|p| model.fresh_name(&format!("{tensor}_{p}")));
        let (low, high) = quantizer.range();
        model.set_initializer(TensorProto::f32(&lo, &[], &[low]));
        model.set_initializer(TensorProto::f32(&hi, &[], &[high]));
        let clip = NodeProto::new("Clip", &clipped, &[&from, &lo, &hi], &[&clipped]);
        model.graph_mut().node.push(clip);
        from = clipped;
    }
    let q = model.fresh_name(&format!("{tensor}_quantized"));
    let nodes = &mut model.graph_mut().node;
    nodes.push(NodeProto::new(
        "QuantizeLinear",
        &q,
        &[&from, scale, zero],
        &[&q],
    ));
    let dq_name = format!("{q}_dequantize");
    nodes.push(NodeProto::new(
        "DequantizeLinear",
        &dq_name,
        &[&q, scale, zero],
        &[&to],
    ));
    Ok(())
}
