//! The operators.
//!
//! Each checks the shapes it is given before burn sees them, because burn panics where they do not fit.

use burn_tensor::activation;
use burn_tensor::module::{avg_pool2d, conv_transpose2d, conv2d, max_pool2d};
use burn_tensor::ops::{ConvOptions, ConvTransposeOptions, PadMode};
use burn_tensor::{Int, Tensor, TensorData, backend::Backend};

use super::convolution::{Convolve, convolution};
use super::value::{Value, with_tensor};
use crate::onnx::proto::NodeProto;

type Inputs<'a, B> = [Option<&'a Value<B>>];
type Result<T> = std::result::Result<T, String>;

/// Refuses operators and attributes that are not handled.
pub(super) fn supported(node: &NodeProto) -> Result<()> {
    const KNOWN: &[&str] = &[
        "Abs",
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
        "DepthToSpace",
        "Div",
        "Dropout",
        "Elu",
        "Equal",
        "Exp",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "Neg",
        "Pad",
        "Pow",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Softplus",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ];
    let op = node.op_type();
    if !KNOWN.iter().any(|known| node.is(known)) {
        return Err(format!("the operator {op} has no differentiable copy"));
    }
    let only = |name: &str, value: &[u8]| match node.string(name) {
        found if found.is_empty() || found == value => Ok(()),
        found => Err(format!(
            "{name} {} is not handled",
            String::from_utf8_lossy(found)
        )),
    };
    let zero = |name: &str| match node.int(name, 0) {
        0 => Ok(()),
        value => Err(format!("{name} {value} is not handled")),
    };
    match op {
        "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool" => {
            only("auto_pad", b"NOTSET")?;
            zero("ceil_mode")?;
            if !node.ints("output_shape").is_empty() {
                return Err("output_shape is not handled".into());
            }
            let wrong = |v: &&i64| **v < 1;
            for name in ["strides", "dilations", "kernel_shape"] {
                if let Some(value) = node.ints(name).iter().find(wrong) {
                    return Err(format!("{name} {value} is not handled"));
                }
            }
            if node.ints("pads").iter().any(|p| *p < 0) {
                return Err("negative pads are not handled".into());
            }
            if op == "MaxPool" && node.output.len() > 1 {
                return Err("indices of the maxima are not handled".into());
            }
            Ok(())
        }
        "BatchNormalization" => zero("training_mode"),
        "Pad" => only("mode", b"constant"),
        "Resize" => {
            only("mode", b"nearest")?;
            only("coordinate_transformation_mode", b"asymmetric")?;
            only("nearest_mode", b"floor")
        }
        "Cast" if node.int("to", 1) != 1 => {
            Err("casts to other types than float are not handled".into())
        }
        _ => Ok(()),
    }
}

/// Runs one operator.
pub(super) fn run<B: Convolve>(node: &NodeProto, inputs: &Inputs<'_, B>) -> Result<Vec<Value<B>>> {
    if node.is("Constant") {
        return Ok(vec![constant(node)?]);
    }
    let first = input(inputs, 0)?;
    let result = match node.op_type() {
        "Shape" => Value::Ints(first.dims().iter().map(|&d| d as i64).collect()),
        "ConstantOfShape" => filled(node, ints(inputs, 0)?)?,
        "Gather" => gather(node, first, ints(inputs, 1)?)?,
        "Expand" => expand(first, ints(inputs, 1)?)?,
        "Tile" => tile(first, ints(inputs, 1)?)?,
        "Equal" | "Where" => choice(node.op_type(), inputs)?,
        "Conv" => conv(node, inputs)?,
        "ConvTranspose" => conv_transpose(node, inputs)?,
        "MaxPool" | "AveragePool" => pool(node, first)?,
        "GlobalAveragePool" => match rank4(first)? {
            t if t.dims()[2] * t.dims()[3] > 0 => t.mean_dim(3).mean_dim(2).into(),
            _ => return Err("an empty map has no mean".into()),
        },
        "BatchNormalization" => batch_norm(node, inputs)?,
        "DepthToSpace" | "SpaceToDepth" => blocks(node, rank4(first)?)?,
        "Resize" => nearest(inputs)?,
        "Concat" => concat(node, inputs)?,
        "Split" => return split(node, inputs),
        "Slice" => slice(inputs)?,
        "Pad" => pad(inputs)?,
        "Transpose" => transpose(node, first)?,
        "Reshape" => reshape(node, first, ints(inputs, 1)?)?,
        "Flatten" => flatten(node, first)?,
        "Squeeze" | "Unsqueeze" => squeeze(node, first, optional_ints(inputs, 1)?)?,
        "ReduceMax" | "ReduceMean" | "ReduceSum" => reduce(node, inputs)?,
        "Softmax" => {
            let axis = axis(node.int("axis", -1), first.dims().len())?;
            unary(first, Unary::Softmax(axis))?
        }
        "MatMul" => matmul(first, input(inputs, 1)?)?,
        "Gemm" => gemm(node, inputs)?,
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" => {
            let mut result = first.clone();
            for i in 1..inputs.len() {
                result = binary(node.op_type(), &result, input(inputs, i)?)?;
            }
            result
        }
        "Clip" => {
            let bound = |i: usize, name: &str, default: f32| match inputs.get(i).copied().flatten()
            {
                Some(value) => value.to_vec().first().copied().ok_or("a bound is empty"),
                None => Ok(node.float(name, default)),
            };
            unary(
                first,
                Unary::Clip(bound(1, "min", f32::MIN)?, bound(2, "max", f32::MAX)?),
            )?
        }
        "Identity" | "Dropout" | "Cast" => first.clone(),
        "LeakyRelu" => unary(first, Unary::LeakyRelu(node.float("alpha", 0.01)))?,
        "Elu" => unary(first, Unary::Elu(node.float("alpha", 1.0)))?,
        "HardSigmoid" => unary(
            first,
            Unary::HardSigmoid(node.float("alpha", 0.2), node.float("beta", 0.5)),
        )?,
        "Relu" => unary(first, Unary::Relu)?,
        "Sigmoid" => unary(first, Unary::Sigmoid)?,
        "Tanh" => unary(first, Unary::Tanh)?,
        "HardSwish" => unary(first, Unary::HardSwish)?,
        "Softplus" => unary(first, Unary::Softplus)?,
        "Exp" => unary(first, Unary::Exp)?,
        "Log" => unary(first, Unary::Log)?,
        "Sqrt" => unary(first, Unary::Sqrt)?,
        "Neg" => unary(first, Unary::Neg)?,
        "Abs" => unary(first, Unary::Abs)?,
        "Reciprocal" => unary(first, Unary::Reciprocal)?,
        other => return Err(format!("the operator {other} has no differentiable copy")),
    };
    Ok(vec![result])
}

fn input<'a, B: Backend>(inputs: &Inputs<'a, B>, index: usize) -> Result<&'a Value<B>> {
    inputs
        .get(index)
        .copied()
        .flatten()
        .ok_or_else(|| format!("it has no input {index}"))
}

fn rank4<B: Backend>(value: &Value<B>) -> Result<Tensor<B, 4>> {
    value
        .rank4()
        .ok_or_else(|| format!("shape {:?}; it handles maps of rank 4", value.dims()))
}

fn ints<'a, B: Backend>(inputs: &Inputs<'a, B>, index: usize) -> Result<&'a [i64]> {
    match input(inputs, index)? {
        Value::Ints(list) => Ok(list),
        _ => Err(format!("input {index} is not a constant list of integers")),
    }
}

fn optional_ints<'a, B: Backend>(
    inputs: &Inputs<'a, B>,
    index: usize,
) -> Result<Option<&'a [i64]>> {
    match inputs.get(index).copied().flatten() {
        Some(_) => ints(inputs, index).map(Some),
        None => Ok(None),
    }
}

/// An axis that may count from the end.
fn axis(axis: i64, rank: usize) -> Result<usize> {
    let rank = rank as i64;
    match if axis < 0 { axis + rank } else { axis } {
        found if (0..rank).contains(&found) => Ok(found as usize),
        _ => Err(format!("axis {axis} of a tensor of rank {rank}")),
    }
}

/// Two numbers per spatial axis.
fn pair(node: &NodeProto, name: &str, default: usize) -> Result<[usize; 2]> {
    match node.ints(name) {
        [] => Ok([default; 2]),
        &[y, x] => Ok([y as usize, x as usize]),
        other => Err(format!("{name} {other:?}; it handles two spatial axes")),
    }
}

/// Rows above and below, columns before and after.
fn pads(node: &NodeProto) -> Result<[[usize; 2]; 2]> {
    match node.ints("pads") {
        [] => Ok([[0; 2]; 2]),
        &[top, left, bottom, right] => Ok([
            [top as usize, bottom as usize],
            [left as usize, right as usize],
        ]),
        other => Err(format!("pads {other:?}; it handles two spatial axes")),
    }
}

/// The map with a border where the two sides differ, and the border that both sides still need.
fn even_pads<B: Backend>(
    x: Tensor<B, 4>,
    [rows, columns]: [[usize; 2]; 2],
    fill: f32,
) -> (Tensor<B, 4>, [usize; 2]) {
    if rows[0] == rows[1] && columns[0] == columns[1] {
        return (x, [rows[0], columns[0]]);
    }
    let border = (columns[0], columns[1], rows[0], rows[1]);
    (x.pad(border, PadMode::Constant(fill)), [0, 0])
}

fn bias<B: Backend>(inputs: &Inputs<'_, B>, channels: usize) -> Result<Option<Tensor<B, 1>>> {
    match inputs.get(2).copied().flatten() {
        None => Ok(None),
        Some(Value::R1(bias)) if bias.dims()[0] == channels => Ok(Some(bias.clone())),
        Some(other) => Err(format!(
            "a bias of shape {:?} for {channels} channels",
            other.dims()
        )),
    }
}

/// Whether a kernel, spread by its dilation, fits into a padded map.
fn fits(
    size: [usize; 2],
    kernel: [usize; 2],
    dilation: [usize; 2],
    pads: [[usize; 2]; 2],
) -> Result<()> {
    let fits = (0..2).all(|i| {
        kernel[i] > 0 && (kernel[i] - 1) * dilation[i] < size[i] + pads[i][0] + pads[i][1]
    });
    if fits {
        Ok(())
    } else {
        Err(format!("a kernel of {kernel:?} for a map of {size:?}"))
    }
}

fn conv<B: Convolve>(node: &NodeProto, inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let (x, weight) = (rank4(input(inputs, 0)?)?, rank4(input(inputs, 1)?)?);
    let groups = node.int("group", 1).max(1) as usize;
    let [_, channels, rows, columns] = x.dims();
    let [out, per_group, h, w] = weight.dims();
    if per_group * groups != channels || out % groups != 0 {
        return Err(format!(
            "weights of shape {:?} for {channels} channels",
            weight.dims()
        ));
    }
    let (stride, dilation) = (pair(node, "strides", 1)?, pair(node, "dilations", 1)?);
    let pads = pads(node)?;
    fits([rows, columns], [h, w], dilation, pads)?;
    let bias = bias(inputs, out)?;
    let (x, even) = even_pads(x, pads, 0.0);
    if groups == 1 && dilation == [1, 1] {
        return Ok(convolution(x, weight, bias, stride, even).into());
    }
    Ok(conv2d(
        x,
        weight,
        bias,
        ConvOptions::new(stride, even, dilation, groups),
    )
    .into())
}

fn conv_transpose<B: Backend>(node: &NodeProto, inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let (x, weight) = (rank4(input(inputs, 0)?)?, rank4(input(inputs, 1)?)?);
    let groups = node.int("group", 1).max(1) as usize;
    let [_, channels, rows, columns] = x.dims();
    let [from, per_group, h, w] = weight.dims();
    if from != channels || from % groups != 0 || rows * columns == 0 || h * w == 0 {
        return Err(format!(
            "weights of shape {:?} for {channels} channels",
            weight.dims()
        ));
    }
    let (stride, dilation) = (pair(node, "strides", 1)?, pair(node, "dilations", 1)?);
    let extra = pair(node, "output_padding", 0)?;
    let [rows_pads, columns_pads] = pads(node)?;
    if rows_pads[0] != rows_pads[1] || columns_pads[0] != columns_pads[1] {
        return Err("pads that differ between the sides are not handled".into());
    }
    let even = [rows_pads[0], columns_pads[0]];
    let size = [rows, columns];
    for i in 0..2 {
        let full = (size[i] - 1) * stride[i] + ([h, w][i] - 1) * dilation[i] + extra[i] + 1;
        if full <= 2 * even[i] {
            return Err(format!(
                "pads of {even:?} leave nothing of a map of {size:?}"
            ));
        }
    }
    let bias = bias(inputs, per_group * groups)?;
    let options = ConvTransposeOptions::new(stride, even, extra, dilation, groups);
    Ok(conv_transpose2d(x, weight, bias, options).into())
}

fn pool<B: Backend>(node: &NodeProto, x: &Value<B>) -> Result<Value<B>> {
    let x = rank4(x)?;
    let kernel = pair(node, "kernel_shape", 1)?;
    let (stride, dilation) = (pair(node, "strides", 1)?, pair(node, "dilations", 1)?);
    let pads = pads(node)?;
    fits([x.dims()[2], x.dims()[3]], kernel, dilation, pads)?;
    if (0..2).any(|i| pads[i].iter().any(|p| *p >= kernel[i])) {
        return Err("pads as wide as the kernel are not handled".into());
    }
    if node.is("MaxPool") {
        // Nothing is smaller than the border.
        let (x, even) = even_pads(x, pads, f32::MIN);
        return Ok(max_pool2d(x, kernel, stride, even, dilation, false).into());
    }
    let counts_border = node.int("count_include_pad", 0) != 0;
    let uneven = pads.iter().any(|p| p[0] != p[1]);
    if dilation != [1, 1] || (uneven && !counts_border) {
        return Err("dilations, or pads that differ between the sides, are not handled".into());
    }
    let (x, even) = even_pads(x, pads, 0.0);
    Ok(avg_pool2d(x, kernel, stride, even, counts_border, false).into())
}

fn batch_norm<B: Backend>(node: &NodeProto, inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let x = input(inputs, 0)?;
    let dims = x.dims();
    let channels = *dims.get(1).ok_or("it needs a channel axis")?;
    let mut spread = vec![1; dims.len()];
    spread[1] = channels;
    let mut parts = Vec::new();
    for i in 1..5 {
        let part = input(inputs, i)?;
        let wrong = || {
            format!(
                "input {i} has shape {:?} for {channels} channels",
                part.dims()
            )
        };
        parts.push(part.reshape(&spread).ok_or_else(wrong)?);
    }
    let epsilon = node.float("epsilon", 1e-5);
    let deviation = unary(&unary(&parts[3], Unary::Add(epsilon))?, Unary::Sqrt)?;
    let centred = binary("Sub", x, &parts[2])?;
    let scaled = binary("Mul", &binary("Div", &centred, &deviation)?, &parts[0])?;
    binary("Add", &scaled, &parts[1])
}

fn blocks<B: Backend>(node: &NodeProto, x: Tensor<B, 4>) -> Result<Value<B>> {
    let [n, c, h, w] = x.dims();
    let b = node.int("blocksize", 0).max(0) as usize;
    if node.is("SpaceToDepth") {
        if b == 0 || h % b != 0 || w % b != 0 {
            return Err(format!("blocks of {b} for a map of {h} x {w}"));
        }
        let split = x.reshape([n, c, h / b, b, w / b, b]);
        return Ok(split
            .permute([0, 3, 5, 1, 2, 4])
            .reshape([n, c * b * b, h / b, w / b])
            .into());
    }
    if b == 0 || c % (b * b) != 0 {
        return Err(format!("blocks of {b} for {c} channels"));
    }
    let k = c / (b * b);
    let split = if node.string("mode") == b"CRD" {
        x.reshape([n, k, b, b, h, w]).permute([0, 1, 4, 2, 5, 3])
    } else {
        x.reshape([n, b, b, k, h, w]).permute([0, 3, 4, 1, 5, 2])
    };
    Ok(split.reshape([n, k, h * b, w * b]).into())
}

/// Nearest neighbour by whole factors: each cell is repeated.
fn nearest<B: Backend>(inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let x = rank4(input(inputs, 0)?)?;
    let [n, c, h, w] = x.dims();
    let size: Vec<f32> = match (
        inputs.get(2).copied().flatten(),
        inputs.get(3).copied().flatten(),
    ) {
        (_, Some(Value::Ints(sizes))) => sizes.iter().map(|&s| s as f32).collect(),
        (Some(scales), None) => {
            let dims = [n, c, h, w];
            scales
                .to_vec()
                .iter()
                .zip(dims)
                .map(|(s, d)| s * d as f32)
                .collect()
        }
        _ => return Err("it has neither scales nor sizes".into()),
    };
    let whole = |i: usize, from: usize| -> Result<usize> {
        let to: f32 = size.get(i).copied().unwrap_or(0.0);
        let factor = to / from.max(1) as f32;
        if factor >= 1.0 && factor.fract() == 0.0 {
            Ok(factor as usize)
        } else {
            Err(format!("it handles whole factors only, not {from} to {to}"))
        }
    };
    if whole(0, n)? != 1 || whole(1, c)? != 1 {
        return Err("it handles the spatial axes only".into());
    }
    let (fy, fx) = (whole(2, h)?, whole(3, w)?);
    let spread: Tensor<B, 6> = x.reshape([n, c, h, 1, w, 1]);
    Ok(spread
        .expand([n, c, h, fy, w, fx])
        .reshape([n, c, h * fy, w * fx])
        .into())
}

fn concat<B: Backend>(node: &NodeProto, inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let first = input(inputs, 0)?;
    let dims = first.dims();
    let axis = axis(node.int("axis", 0), dims.len())?;
    let all: Vec<&Value<B>> = (0..inputs.len())
        .map(|i| input(inputs, i))
        .collect::<Result<_>>()?;
    for other in &all {
        let d = other.dims();
        let same = d.len() == dims.len() && (0..d.len()).all(|i| i == axis || d[i] == dims[i]);
        if !same {
            return Err(format!(
                "{dims:?} and {d:?} cannot be joined along axis {axis}"
            ));
        }
    }
    macro_rules! join {
        ($($variant:ident),*) => {
            match first {
                $(Value::$variant(_) => {
                    let tensors = all.iter().filter_map(|v| match v {
                        Value::$variant(t) => Some(t.clone()),
                        _ => None,
                    });
                    Ok(Tensor::cat(tensors.collect(), axis).into())
                })*
                Value::Ints(_) => {
                    let lists = (0..inputs.len()).map(|i| ints(inputs, i));
                    Ok(Value::Ints(lists.collect::<Result<Vec<_>>>()?.concat()))
                }
            }
        };
    }
    join!(R1, R2, R3, R4, R5, R6)
}

/// The part from `start` to `end` along one axis.
fn part<B: Backend>(x: &Value<B>, axis: usize, start: usize, end: usize) -> Result<Value<B>> {
    let length = x.dims()[axis];
    if start >= end || end > length {
        return Err(format!("{start} to {end} of {length} along axis {axis}"));
    }
    with_tensor!(x, t => t.clone().narrow(axis, start, end - start).into())
        .ok_or_else(|| "lists of integers are not handled".into())
}

fn split<B: Backend>(node: &NodeProto, inputs: &Inputs<'_, B>) -> Result<Vec<Value<B>>> {
    let x = input(inputs, 0)?;
    let axis = axis(node.int("axis", 0), x.dims().len())?;
    let length = x.dims()[axis];
    let parts = node.output.len().max(1);
    let sizes: Vec<usize> = match optional_ints(inputs, 1)? {
        Some(sizes) => sizes.iter().map(|&s| s.max(0) as usize).collect(),
        None if node.ints("split").is_empty() => vec![length / parts; parts],
        None => node
            .ints("split")
            .iter()
            .map(|&s| s.max(0) as usize)
            .collect(),
    };
    if sizes.iter().sum::<usize>() != length || sizes.len() != parts {
        return Err(format!("{length} cells cannot be split into {sizes:?}"));
    }
    let mut start = 0;
    sizes
        .iter()
        .map(|size| {
            start += size;
            part(x, axis, start - size, start)
        })
        .collect()
}

fn slice<B: Backend>(inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let mut x = input(inputs, 0)?.clone();
    let (starts, ends) = (ints(inputs, 1)?, ints(inputs, 2)?);
    if optional_ints(inputs, 4)?.is_some_and(|steps| steps.iter().any(|s| *s != 1)) {
        return Err("steps other than 1 are not handled".into());
    }
    let axes = optional_ints(inputs, 3)?;
    for (i, (&start, &end)) in starts.iter().zip(ends).enumerate() {
        let along = match axes {
            Some(axes) => *axes.get(i).ok_or("it has fewer axes than starts")?,
            None => i as i64,
        };
        let along = axis(along, x.dims().len())?;
        let length = x.dims()[along] as i64;
        let place =
            |v: i64| (if v < 0 { v.saturating_add(length) } else { v }).clamp(0, length) as usize;
        x = part(&x, along, place(start), place(end))?;
    }
    Ok(x)
}

fn pad<B: Backend>(inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let x = rank4(input(inputs, 0)?)?;
    let border = ints(inputs, 1)?;
    let fill = match inputs.get(2).copied().flatten() {
        Some(value) => value
            .to_vec()
            .first()
            .copied()
            .ok_or("the value is empty")?,
        None => 0.0,
    };
    match border {
        &[0, 0, top, left, 0, 0, bottom, right] if border.iter().all(|p| *p >= 0) => {
            let border = (left as usize, right as usize, top as usize, bottom as usize);
            Ok(x.pad(border, PadMode::Constant(fill)).into())
        }
        other => Err(format!("pads {other:?}; it handles borders of maps")),
    }
}

fn transpose<B: Backend>(node: &NodeProto, x: &Value<B>) -> Result<Value<B>> {
    let rank = x.dims().len();
    let order: Vec<usize> = match node.ints("perm") {
        [] => (0..rank).rev().collect(),
        perm => perm.iter().map(|&p| axis(p, rank)).collect::<Result<_>>()?,
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if sorted != (0..rank).collect::<Vec<_>>() {
        return Err(format!("perm {order:?} for a tensor of rank {rank}"));
    }
    fn to<const D: usize>(order: &[usize]) -> [usize; D] {
        std::array::from_fn(|i| order[i])
    }
    with_tensor!(x, t => t.clone().permute(to(&order)).into())
        .ok_or_else(|| "lists of integers are not handled".into())
}

fn reshape<B: Backend>(node: &NodeProto, x: &Value<B>, shape: &[i64]) -> Result<Value<B>> {
    let dims = x.dims();
    let keeps = node.int("allowzero", 0) == 0;
    let mut to = Vec::with_capacity(shape.len());
    let mut open = None;
    for (i, &d) in shape.iter().enumerate() {
        to.push(match d {
            0 if keeps => *dims.get(i).ok_or("a 0 beyond the input's rank")?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            d if d >= 0 => d as usize,
            d => return Err(format!("shape {shape:?} has {d}")),
        });
    }
    if let Some(i) = open {
        to[i] = dims.iter().product::<usize>() / to.iter().product::<usize>().max(1);
    }
    x.reshape(&to)
        .ok_or_else(|| format!("{dims:?} does not fill {shape:?}"))
}

fn flatten<B: Backend>(node: &NodeProto, x: &Value<B>) -> Result<Value<B>> {
    let dims = x.dims();
    let at = match node.int("axis", 1) {
        at if at == dims.len() as i64 => dims.len(),
        at => axis(at, dims.len())?,
    };
    let to = [dims[..at].iter().product(), dims[at..].iter().product()];
    x.reshape(&to)
        .ok_or_else(|| format!("{dims:?} cannot be flattened"))
}

fn squeeze<B: Backend>(node: &NodeProto, x: &Value<B>, axes: Option<&[i64]>) -> Result<Value<B>> {
    // A list of integers stands for a scalar, too.
    if matches!(x, Value::Ints(_)) {
        return Ok(x.clone());
    }
    let dims = x.dims();
    let axes: Vec<i64> = axes.map_or_else(|| node.ints("axes").to_vec(), <[i64]>::to_vec);
    let to: Vec<usize> = if node.is("Unsqueeze") {
        let rank = dims.len() + axes.len();
        let new: Vec<usize> = axes.iter().map(|&a| axis(a, rank)).collect::<Result<_>>()?;
        let mut old = dims.iter();
        (0..rank)
            .map(|i| {
                if new.contains(&i) {
                    Some(1)
                } else {
                    old.next().copied()
                }
            })
            .collect::<Option<_>>()
            .ok_or("an axis twice")?
    } else {
        let gone: Vec<usize> = axes
            .iter()
            .map(|&a| axis(a, dims.len()))
            .collect::<Result<_>>()?;
        let goes = |i: &usize| {
            if axes.is_empty() {
                dims[*i] == 1
            } else {
                gone.contains(i)
            }
        };
        (0..dims.len())
            .filter(|i| !goes(i))
            .map(|i| dims[i])
            .collect()
    };
    x.reshape(&to)
        .ok_or_else(|| format!("{dims:?} cannot become {to:?}"))
}

fn reduce<B: Backend>(node: &NodeProto, inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let x = input(inputs, 0)?;
    let dims = x.dims();
    let axes: Vec<i64> = match optional_ints(inputs, 1)? {
        Some(axes) => axes.to_vec(),
        None => node.ints("axes").to_vec(),
    };
    let mut along: Vec<usize> = axes
        .iter()
        .map(|&a| axis(a, dims.len()))
        .collect::<Result<_>>()?;
    if along.is_empty() {
        if node.int("noop_with_empty_axes", 0) != 0 {
            return Ok(x.clone());
        }
        along = (0..dims.len()).collect();
    }
    let mut result = x.clone();
    for &i in &along {
        result = with_tensor!(&result, t => {
            let t = t.clone();
            match node.op_type() {
                "ReduceMax" => t.max_dim(i),
                "ReduceMean" => t.mean_dim(i),
                _ => t.sum_dim(i),
            }
            .into()
        })
        .ok_or("lists of integers are not handled")?;
    }
    if node.int("keepdims", 1) != 0 {
        return Ok(result);
    }
    let to: Vec<usize> = (0..dims.len())
        .filter(|i| !along.contains(i))
        .map(|i| dims[i])
        .collect();
    result
        .reshape(&to)
        .ok_or_else(|| "it cannot be reduced".into())
}

fn matmul<B: Backend>(a: &Value<B>, b: &Value<B>) -> Result<Value<B>> {
    let (da, db) = (a.dims(), b.dims());
    let [.., rows, inner] = da[..] else {
        return Err(format!("a first factor of shape {da:?} is not handled"));
    };
    let [.., other, columns] = db[..] else {
        return Err(format!("a second factor of shape {db:?} is not handled"));
    };
    if inner != other {
        return Err(format!("{da:?} and {db:?} cannot be multiplied"));
    }
    let (la, lb) = (&da[..da.len() - 2], &db[..db.len() - 2]);
    if lb.is_empty() {
        // All rows at once.
        let count = la.iter().product::<usize>() * rows;
        let flat = a.reshape(&[count, inner]);
        let product = match (flat, b) {
            (Some(Value::R2(a)), Value::R2(b)) => Value::R2(a.matmul(b.clone())),
            _ => return Err(format!("{da:?} and {db:?} are not handled")),
        };
        let to: Vec<usize> = la.iter().copied().chain([rows, columns]).collect();
        return product
            .reshape(&to)
            .ok_or_else(|| "the product has no shape".into());
    }
    if la != lb {
        return Err(format!(
            "{da:?} and {db:?}: products over different stacks are not handled"
        ));
    }
    let stack = la.iter().product();
    let product = match (
        a.reshape(&[stack, rows, inner]),
        b.reshape(&[stack, inner, columns]),
    ) {
        (Some(Value::R3(a)), Some(Value::R3(b))) => Value::R3(a.matmul(b)),
        _ => return Err(format!("{da:?} and {db:?} are not handled")),
    };
    let to: Vec<usize> = la.iter().copied().chain([rows, columns]).collect();
    product
        .reshape(&to)
        .ok_or_else(|| "the product has no shape".into())
}

fn gemm<B: Backend>(node: &NodeProto, inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let factor = |i: usize, name: &str| match input(inputs, i)? {
        Value::R2(t) if node.int(name, 0) != 0 => Ok(Value::R2(t.clone().transpose())),
        Value::R2(t) => Ok(Value::R2(t.clone())),
        other => Err(format!(
            "input {i} has shape {:?}; it handles matrices",
            other.dims()
        )),
    };
    let product = matmul(&factor(0, "transA")?, &factor(1, "transB")?)?;
    let product = unary(&product, Unary::Mul(node.float("alpha", 1.0)))?;
    match inputs.get(2).copied().flatten() {
        None => Ok(product),
        Some(c) => binary(
            "Add",
            &product,
            &unary(c, Unary::Mul(node.float("beta", 1.0)))?,
        ),
    }
}

/// Element by element, shapes widened as NumPy does.
fn binary<B: Backend>(op: &str, a: &Value<B>, b: &Value<B>) -> Result<Value<B>> {
    if let (Value::Ints(a), Value::Ints(b)) = (a, b) {
        return of_lists(op, a, b).map(Value::Ints);
    }
    let (da, db) = (a.dims(), b.dims());
    let rank = da.len().max(db.len());
    let wide = |d: &[usize]| [vec![1; rank - d.len()], d.to_vec()].concat();
    let (wa, wb) = (wide(&da), wide(&db));
    if wa
        .iter()
        .zip(&wb)
        .any(|(a, b)| a != b && *a != 1 && *b != 1)
    {
        return Err(format!("{da:?} and {db:?} do not go together"));
    }
    let none = || format!("{da:?} and {db:?} are not handled");
    let (a, b) = (
        a.reshape(&wa).ok_or_else(none)?,
        b.reshape(&wb).ok_or_else(none)?,
    );
    macro_rules! apply {
        ($($variant:ident),*) => {
            match (a, b) {
                $((Value::$variant(a), Value::$variant(b)) => Ok(match op {
                    "Add" => a + b,
                    "Sub" => a - b,
                    "Mul" => a * b,
                    "Div" => a / b,
                    "Pow" => a.powf(b),
                    "Max" => a.max_pair(b),
                    _ => a.min_pair(b),
                }.into()),)*
                _ => Err(none()),
            }
        };
    }
    apply!(R1, R2, R3, R4, R5, R6)
}

/// Arithmetic of shapes. A list of one goes with any other.
fn of_lists(op: &str, a: &[i64], b: &[i64]) -> Result<Vec<i64>> {
    let length = a.len().max(b.len());
    if (a.len() != length && a.len() != 1) || (b.len() != length && b.len() != 1) {
        return Err(format!("{a:?} and {b:?} do not go together"));
    }
    (0..length)
        .map(|i| {
            let (a, b) = (a[i % a.len()], b[i % b.len()]);
            match op {
                "Add" => a.checked_add(b),
                "Sub" => a.checked_sub(b),
                "Mul" => a.checked_mul(b),
                "Div" => a.checked_div(b),
                "Max" => Some(a.max(b)),
                "Min" => Some(a.min(b)),
                "Equal" => Some(i64::from(a == b)),
                _ => None,
            }
            .ok_or_else(|| format!("{op} of {a} and {b} is not handled"))
        })
        .collect()
}

/// Comparison and choice, of shapes only: nothing else in a detector needs them.
fn choice<B: Backend>(op: &str, inputs: &Inputs<'_, B>) -> Result<Value<B>> {
    let (a, b) = (ints(inputs, 0)?, ints(inputs, 1)?);
    if op == "Equal" {
        return of_lists(op, a, b).map(Value::Ints);
    }
    let c = ints(inputs, 2)?;
    let zeros = vec![0; a.len().max(b.len()).max(c.len())];
    let [a, b, c] = [a, b, c].map(|list| of_lists("Add", list, &zeros));
    let (a, b, c) = (a?, b?, c?);
    let picked = a.iter().zip(b.iter().zip(&c));
    Ok(Value::Ints(
        picked
            .map(|(&a, (&b, &c))| if a != 0 { b } else { c })
            .collect(),
    ))
}

/// A list of integers, or floats.
fn constant<B: Backend>(node: &NodeProto) -> Result<Value<B>> {
    let tensor = node
        .attribute("value")
        .and_then(|a| a.t.as_ref())
        .ok_or("it has no value, or one that is not a tensor")?;
    if let Ok(list) = tensor.to_i64() {
        return Ok(Value::Ints(list.data));
    }
    let floats = tensor.to_f32().map_err(|e| e.to_string())?;
    Value::from_f32(&floats.dims, floats.data, &B::Device::default())
        .ok_or_else(|| format!("shape {:?} is not handled", floats.dims))
}

/// One value all over a shape.
fn filled<B: Backend>(node: &NodeProto, shape: &[i64]) -> Result<Value<B>> {
    let dims = sizes(shape)?;
    let count = dims.iter().product();
    let value = match node.attribute("value") {
        None => Value::from_f32(&dims, vec![0.0; count], &B::Device::default()),
        Some(_) => match constant::<B>(node)? {
            Value::Ints(list) if dims.len() <= 1 => {
                let value = *list.first().ok_or("its value is empty")?;
                Some(Value::Ints(vec![value; count]))
            }
            Value::R1(value) => {
                let value = value.to_data().iter::<f32>().next();
                let value = value.ok_or("its value is empty")?;
                Value::from_f32(&dims, vec![value; count], &B::Device::default())
            }
            _ => None,
        },
    };
    value.ok_or_else(|| format!("a constant of shape {dims:?} is not handled"))
}

/// Sizes of a shape, none of them open. More cells than memory could hold are refused.
fn sizes(shape: &[i64]) -> Result<Vec<usize>> {
    let dims: Option<Vec<usize>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let dims = dims.ok_or_else(|| format!("the shape {shape:?} is not one"))?;
    match dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) {
        Some(count) if count <= 1 << 31 => Ok(dims),
        _ => Err(format!("the shape {shape:?} is too large")),
    }
}

fn gather<B: Backend>(node: &NodeProto, x: &Value<B>, index: &[i64]) -> Result<Value<B>> {
    let dims = x.dims();
    let along = axis(node.int("axis", 0), dims.len())?;
    let places: Vec<usize> = index
        .iter()
        .map(|&i| axis(i, dims[along]).map_err(|_| format!("index {i} of {}", dims[along])))
        .collect::<Result<_>>()?;
    if let Value::Ints(list) = x {
        return Ok(Value::Ints(places.iter().map(|&i| list[i]).collect()));
    }
    // A scalar index takes the axis away, which a list of one cannot tell; only shapes are read that way.
    let places: Vec<i64> = places.into_iter().map(|i| i as i64).collect();
    let count = places.len();
    if count < 2 {
        return Err("one slice of a tensor is not handled".into());
    }
    with_tensor!(x, t => {
        let index = Tensor::<B, 1, Int>::from_data(TensorData::new(places, [count]), &t.device());
        t.clone().select(along, index).into()
    })
    .ok_or_else(|| "it cannot be gathered".into())
}

fn expand<B: Backend>(x: &Value<B>, shape: &[i64]) -> Result<Value<B>> {
    let (from, to) = (x.dims(), sizes(shape)?);
    let rank = from.len().max(to.len());
    let wide = |d: &[usize]| [vec![1; rank - d.len()], d.to_vec()].concat();
    let (from, to) = (wide(&from), wide(&to));
    let goes = |(a, b): (&usize, &usize)| a == b || *a == 1 || *b == 1;
    if !from.iter().zip(&to).all(goes) {
        return Err(format!("{from:?} cannot be widened to {to:?}"));
    }
    let to: Vec<usize> = from
        .iter()
        .zip(&to)
        .map(|(&a, &b)| if b == 1 { a } else { b })
        .collect();
    let repeats: Vec<i64> = from
        .iter()
        .zip(&to)
        .map(|(&a, &b)| if a == b { 1 } else { b as i64 })
        .collect();
    let x = x
        .reshape(&from)
        .ok_or_else(|| format!("{from:?} is not handled"))?;
    tile(&x, &repeats)
}

fn tile<B: Backend>(x: &Value<B>, repeats: &[i64]) -> Result<Value<B>> {
    let dims = x.dims();
    let repeats = sizes(repeats)?;
    if repeats.len() != dims.len() {
        return Err(format!("{repeats:?} repeats of {dims:?}"));
    }
    let grown: Vec<i64> = dims
        .iter()
        .zip(&repeats)
        .map(|(&d, &r)| (d * r) as i64)
        .collect();
    sizes(&grown)?;
    with_tensor!(x, t => t.clone().repeat(&repeats).into())
        .ok_or_else(|| "lists of integers are not handled".into())
}

/// Operators of one tensor that keep its shape.
#[derive(Debug, Clone, Copy)]
enum Unary {
    Relu,
    LeakyRelu(f32),
    Elu(f32),
    Sigmoid,
    HardSigmoid(f32, f32),
    HardSwish,
    Tanh,
    Softplus,
    Softmax(usize),
    Clip(f32, f32),
    Exp,
    Log,
    Sqrt,
    Neg,
    Abs,
    Reciprocal,
    Add(f32),
    Mul(f32),
}

fn unary<B: Backend>(x: &Value<B>, op: Unary) -> Result<Value<B>> {
    with_tensor!(x, t => {
        let t = t.clone();
        match op {
            Unary::Relu => activation::relu(t),
            Unary::LeakyRelu(slope) => activation::leaky_relu(t, f64::from(slope)),
            Unary::Elu(alpha) => activation::elu(t, f64::from(alpha)),
            Unary::Sigmoid => activation::sigmoid(t),
            Unary::HardSigmoid(slope, shift) => (t * slope + shift).clamp(0.0, 1.0),
            Unary::HardSwish => t.clone() * (t / 6.0 + 0.5).clamp(0.0, 1.0),
            Unary::Tanh => activation::tanh(t),
            Unary::Softplus => activation::softplus(t, 1.0),
            Unary::Softmax(axis) => activation::softmax(t, axis),
            Unary::Clip(min, max) => t.clamp(min, max),
            Unary::Exp => t.exp(),
            Unary::Log => t.log(),
            Unary::Sqrt => t.sqrt(),
            Unary::Neg => t.neg(),
            Unary::Abs => t.abs(),
            Unary::Reciprocal => t.recip(),
            Unary::Add(value) => t + value,
            Unary::Mul(value) => t * value,
        }
        .into()
    })
    .ok_or_else(|| "lists of integers are not handled".into())
}
