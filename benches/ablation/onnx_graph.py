"""Surgery on ONNX graphs that `centerpoint_ptq quantize` wrote: the quantizers in them, other steps, the float graph.

A tensor's quantizer there is [Clip,] QuantizeLinear, DequantizeLinear with constants that all tensors of a
group share; a weight or bias is an integer constant behind a DequantizeLinear of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper


@dataclass
class Group:
    """Tensors that share one quantizer."""

    scale: str  # names of the constants
    zero_point: str
    tensors: list[str] = field(default_factory=list)
    clips: list[tuple[str, str]] = field(default_factory=list)  # constants: low, high


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializers, Constant nodes, and Identity of either, by name."""
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
    return values


def set_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Replaces an initializer, or adds it."""
    new = numpy_helper.from_array(np.asarray(value), name)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(new)
            return
    model.graph.initializer.append(new)


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Node by what it computes."""
    return {output: node for node in model.graph.node for output in node.output}


def groups(model: onnx.ModelProto) -> list[Group]:
    """The activation quantizers, in graph order."""
    source, found = producers(model), {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        tensor, scale, zero_point = node.input
        group = found.setdefault(scale, Group(scale, zero_point))
        before = source.get(tensor)
        if before is not None and before.op_type == "Clip":
            tensor = before.input[0]
            group.clips.append((before.input[1], before.input[2]))
        group.tensors.append(tensor)
    return list(found.values())


def quantized_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions whose weight is integer."""
    source = producers(model)
    return sorted(
        n.name
        for n in model.graph.node
        if n.op_type in ("Conv", "ConvTranspose")
        and n.input[1] in source
        and source[n.input[1]].op_type == "DequantizeLinear"
    )


def float_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that are left in float."""
    integer = set(quantized_layers(model))
    names = [n.name for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose")]
    return sorted(set(names) - integer)


def without_activation_quantizers(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with integer weights and float activations: what calibration observes."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    source, dropped, instead = producers(out), set(), {}
    for node in out.graph.node:
        before = source.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is None or before.op_type != "QuantizeLinear":
            continue
        tensor = before.input[0]
        dropped |= {node.output[0], before.output[0]}
        if tensor in source and source[tensor].op_type == "Clip":
            dropped.add(tensor)
            tensor = source[tensor].input[0]
        instead[node.output[0]] = tensor
    interface = {o.name for o in out.graph.output}
    back = {tensor: name for name, tensor in instead.items() if name in interface}
    kept = [n for n in out.graph.node if n.output[0] not in dropped]
    for node in kept:
        inputs = [instead.get(name, name) for name in node.input]
        node.input[:] = [back.get(name, name) for name in inputs]
        node.output[:] = [back.get(name, name) for name in node.output]
    return _with_nodes(out, kept)


def _with_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for n in nodes for name in n.input} | {o.name for o in model.graph.output}
    tensors = [t for t in model.graph.initializer if t.name in used]
    tensors = [onnx.TensorProto.FromString(t.SerializeToString()) for t in tensors]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    return model


def observed(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """The graph with these tensors as its only outputs (graph inputs among them are left out)."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.output[:]
    made = producers(out)
    out.graph.output.extend(
        helper.make_tensor_value_info(t, onnx.TensorProto.FLOAT, None) for t in tensors if t in made
    )
    return out


def with_range(low: float, high: float, bits: int, unsigned: bool) -> tuple[np.float32, int, int, int]:
    """Step, zero point, lowest and highest level of a range in tensor units; zero is always inside."""
    low, high = min(low, 0.0), max(high, 0.0)
    if unsigned:
        top = 2**bits - 1
        step = np.float32((high - low) / top or 1.0)
        return step, int(np.clip(np.rint(-low / step), 0, top)), 0, top
    top = 2 ** (bits - 1) - 1
    return np.float32(max(high, -low) / top or 1.0), 0, -top, top


def set_ranges(model: onnx.ModelProto, ranges: dict[str, tuple[float, float, int]]) -> None:
    """Gives activation groups, by the name of their scale, another low, high and bits. Biases are stored again to suit.

    The weights' integers and steps stay as they are.
    """
    values = constants(model)
    for group in groups(model):
        unsigned = values[group.zero_point].dtype == np.uint8
        step, zero, lowest, highest = with_range(*ranges[group.scale], unsigned)
        set_constant(model, group.scale, step)
        set_constant(model, group.zero_point, np.array(zero, values[group.zero_point].dtype))
        for low, high in group.clips:
            set_constant(model, low, np.float32((lowest - zero) * step))
            set_constant(model, high, np.float32((highest - zero) * step))
    _store_biases_again(model, values)


def _store_biases_again(model: onnx.ModelProto, before: dict[str, np.ndarray]) -> None:
    """Integer biases are in steps of input step times weight step; `before` holds the constants they came from."""
    now, source = constants(model), producers(model)
    for node in model.graph.node:
        bias = source.get(node.input[2]) if node.op_type == "Conv" and len(node.input) > 2 else None
        if bias is None or bias.op_type != "DequantizeLinear":
            continue
        integers, steps, _ = bias.input
        weight_steps = now[source[node.input[1]].input[1]]
        value = before[integers].astype(np.float64) * before[steps]
        new_steps = weight_steps * now[source[node.input[0]].input[1]]
        levels = np.rint(value / new_steps.astype(np.float64))
        if np.abs(levels).max() > np.iinfo(np.int32).max:
            raise ValueError(f"{node.name}: its bias does not fit into 32 bits at the new input step")
        set_constant(model, integers, levels.astype(np.int32))
        set_constant(model, steps, new_steps.astype(np.float32))


def float_graph(quantized: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """The prepared float graph: structure of the exported model, weights and biases of the float file.

    BatchNormalization is folded and stride-kernel deconvolutions are 1x1 convolutions, as in the exported
    model; the values are computed here from the float file, never from the rounded ones.
    """
    out = without_activation_quantizers(quantized)
    folded, source = folded_weights(original), producers(out)
    for node in out.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        for slot, value in zip((1, 2), folded[node.name]):
            if len(node.input) <= slot:
                continue
            made = source.get(node.input[slot])
            if made is None:  # a float constant already
                continue
            old = constants(quantized)[made.input[0]]
            name = f"{node.name}_float_{slot}"
            set_constant(out, name, value.reshape(-1, *old.shape[1:]).astype(np.float32))
            node.input[slot] = name
    kept = [n for n in out.graph.node if n.op_type != "DequantizeLinear"]
    del out.metadata_props[:]
    return _with_nodes(out, kept)


def folded_weights(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of each convolution of the float file by node name, in float64.

    With BatchNormalization folded, and deconvolutions as the 1x1 convolution before a depth-to-space.
    """
    values, found = constants(model), {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        weight = values[node.input[1]].astype(np.float64)
        axis = 0 if node.op_type == "Conv" else 1
        bias = values[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros(weight.shape[axis])
        after = [n for n in model.graph.node if node.output[0] in n.input]
        if [n.op_type for n in after] == ["BatchNormalization"]:
            gamma, beta, mean, variance = (values[i].astype(np.float64) for i in after[0].input[1:])
            epsilon = next((a.f for a in after[0].attribute if a.name == "epsilon"), 1e-5)
            factor = gamma / np.sqrt(variance + epsilon)
            weight = weight * np.expand_dims(factor, tuple(i for i in range(weight.ndim) if i != axis))
            bias = (bias - mean) * factor + beta
        if node.op_type == "ConvTranspose":
            inputs, outputs, height, width = weight.shape
            weight = weight.transpose(2, 3, 1, 0).reshape(height * width * outputs, inputs, 1, 1)
            bias = np.tile(bias, height * width)
        found[node.name] = (weight, bias)
    return found
