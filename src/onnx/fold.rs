//! Folding: constants into initializers, BatchNormalization into the convolution before it.

use std::collections::HashMap;

use super::proto::TensorProto;
use super::{Model, OnnxError};

/// Turns `Constant` nodes, and `Identity` nodes over constants (exporters use them to store equal tensors
/// once), into plain initializers. Returns how many nodes went.
pub fn constants(model: &mut Model) -> Result<usize, OnnxError> {
    let outputs = model.output_names();
    let mut made: Vec<TensorProto> = Vec::new();
    let mut aliases: HashMap<String, String> = HashMap::new();
    let mut kept = Vec::new();
    let mut gone = 0;
    for node in model.graph().node.clone() {
        let Some(output) = node.output.first().cloned() else {
            kept.push(node);
            continue;
        };
        if node.is("Constant") {
            let tensor = if let Some(t) = node.attribute("value").and_then(|a| a.t.clone()) {
                Some(TensorProto {
                    name: Some(output.clone()),
                    ..t
                })
            } else if let Some(v) = node.attribute("value_float").and_then(|a| a.f) {
                Some(TensorProto::f32(&output, &[], &[v]))
            } else if let Some(v) = node.attribute("value_int").and_then(|a| a.i) {
                Some(TensorProto::i64(&output, &[], &[v]))
            } else if let Some(a) = node.attribute("value_floats") {
                Some(TensorProto::f32(&output, &[a.floats.len()], &a.floats))
            } else {
                node.attribute("value_ints")
                    .map(|a| TensorProto::i64(&output, &[a.ints.len()], &a.ints))
            };
            // String and sparse constants stay nodes.
            if let Some(tensor) = tensor {
                made.push(tensor);
                gone += 1;
                continue;
            }
        } else if node.is("Identity") && !outputs.contains(&output) {
            let source = node.input.first().map_or("", String::as_str);
            let source = aliases
                .get(source)
                .map_or(source, String::as_str)
                .to_owned();
            let constant = model.initializer(&source).is_some()
                || made.iter().any(|t| t.name.as_deref() == Some(&source));
            // Inner graphs may read the alias by name; redirect() does not reach them.
            let inner_readers = model.graph().node.iter().any(|n| {
                n.attribute
                    .iter()
                    .any(|a| a.g.is_some() || !a.graphs.is_empty())
            });
            if constant && !inner_readers {
                aliases.insert(output, source);
                gone += 1;
                continue;
            }
        }
        kept.push(node);
    }
    model.graph_mut().node = kept;
    model.graph_mut().initializer.extend(made);
    for (alias, source) in aliases {
        model.redirect(&alias, &source);
    }
    // Older exporters list constants as inputs too; as an input a constant could be overridden at run time.
    let names: std::collections::HashSet<_> = model
        .graph()
        .initializer
        .iter()
        .map(|t| t.name.clone())
        .collect();
    model.graph_mut().input.retain(|i| !names.contains(&i.name));
    model.validate()?;
    Ok(gone)
}

/// Folds inference-mode BatchNormalization into the Conv or ConvTranspose before it, where nothing else reads
/// that convolution's output: `W' = W a`, `b' = (b - mean) a + beta` with `a = gamma / sqrt(var + epsilon)`,
/// per output channel (axis 0 of Conv weights, axis 1 within each group of ConvTranspose weights).
/// Returns the names of the folded nodes.
pub fn batch_norm(model: &mut Model) -> Result<Vec<String>, OnnxError> {
    let mut folded = Vec::new();
    loop {
        let links = model.links();
        let outputs = model.output_names();
        let candidate = model.graph().node.iter().enumerate().find_map(|(i, bn)| {
            if !bn.is("BatchNormalization") || bn.int("training_mode", 0) != 0 || bn.input.len() < 5
            {
                return None;
            }
            let value = &bn.input[0];
            let conv = *links.producer.get(value)?;
            let node = &model.graph().node[conv];
            let alone = links.consumers.get(value).is_some_and(|c| c.len() == 1)
                && !outputs.contains(value);
            let constant = |k: usize, n: &super::proto::NodeProto| {
                n.input
                    .get(k)
                    .is_some_and(|v| model.initializer(v).is_some())
            };
            let fits = (node.is("Conv") || node.is("ConvTranspose"))
                && constant(1, node)
                && (node.input.get(2).is_none_or(String::is_empty) || constant(2, node))
                && (1..5).all(|k| constant(k, bn));
            (alone && fits).then_some((conv, i))
        });
        let Some((conv_index, bn_index)) = candidate else {
            break;
        };
        let conv = model.graph().node[conv_index].clone();
        let bn = model.graph().node[bn_index].clone();
        let [gamma, beta, mean, var] = [1, 2, 3, 4].map(|k| model.initializer_f32(&bn.input[k]));
        let (gamma, beta, mean, var) = (gamma?.data, beta?.data, mean?.data, var?.data);
        let epsilon = bn.float("epsilon", 1e-5);
        let weight = model.initializer_f32(&conv.input[1])?;
        if weight.dims.len() < 3 {
            return Err(model.node_error(&conv, format!("weights of shape {:?}", weight.dims)));
        }
        let transposed = conv.is("ConvTranspose");
        let group = usize::try_from(conv.int("group", 1)).unwrap_or(0);
        let channels = if transposed {
            weight.dims[1].saturating_mul(group)
        } else {
            weight.dims[0]
        };
        for (name, values) in [
            ("scale", &gamma),
            ("B", &beta),
            ("mean", &mean),
            ("var", &var),
        ] {
            if values.len() != channels {
                return Err(model.node_error(
                    &bn,
                    format!("{name} has {} values for {channels} channels", values.len()),
                ));
            }
        }
        let bias = match conv.input.get(2) {
            Some(name) if !name.is_empty() => model.initializer_f32(name)?.data,
            _ => vec![0.0; channels],
        };
        if bias.len() != channels
            || group == 0
            || (transposed && !weight.dims[0].is_multiple_of(group))
        {
            return Err(model.node_error(&conv, "bias or group does not fit the weights"));
        }
        let a: Vec<f64> = gamma
            .iter()
            .zip(&var)
            .map(|(&g, &v)| f64::from(g) / (f64::from(v) + f64::from(epsilon)).sqrt())
            .collect();
        let inner: usize = weight.dims[2..].iter().product();
        let per_row = if transposed {
            weight.dims[1]
        } else {
            weight.dims[1] * inner
        };
        let mut data = weight.data;
        for (i, w) in data.iter_mut().enumerate() {
            let channel = if transposed {
                let (input, output) = (i / inner / per_row, i / inner % per_row);
                input / (weight.dims[0] / group) * per_row + output
            } else {
                i / per_row
            };
            *w = (f64::from(*w) * a[channel]) as f32;
        }
        let bias: Vec<f32> = (0..channels)
            .map(|c| ((f64::from(bias[c]) - f64::from(mean[c])) * a[c] + f64::from(beta[c])) as f32)
            .collect();
        // New names: the old constants may be shared with other nodes.
        let weight_name = model.fresh_name(&format!("{}_folded", conv.input[1]));
        model.set_initializer(TensorProto::f32(&weight_name, &weight.dims, &data));
        let bias_name = model.fresh_name(&format!("{}_folded_bias", conv.input[1]));
        model.set_initializer(TensorProto::f32(&bias_name, &[channels], &bias));
        let nodes = &mut model.graph_mut().node;
        nodes[conv_index].input.truncate(1);
        nodes[conv_index].input.extend([weight_name, bias_name]);
        nodes[conv_index].output[0].clone_from(&bn.output[0]);
        nodes.remove(bn_index);
        folded.push(bn.label());
    }
    model.remove_unused();
    model.validate()?;
    Ok(folded)
}
