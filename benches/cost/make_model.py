"""A CenterPoint of full size with random weights: Autoware's base layout, for what a calibration costs.

    make_model.py --program target/release/centerpoint_ptq --out build/cost/full_size

480 x 480 pillars of 0.32 m, 32 channels in, head maps of 480 x 480 cells; backbone 64/128/256 channels with 4, 6 and 6
convolutions, neck of 3 x 128, one shared convolution, six heads: 5.2 million parameters, 243 billion
multiplications a frame. Its detections mean nothing, but its activations look like a trained network's: weights are
drawn per channel with different spreads, and every layer is normalised on simulated frames (as BatchNormalization
would, then folded), with shifts that leave most of a map empty behind its Relu. The heatmap is
shifted so that some two hundred peaks a frame pass 0.1. The pillar encoder is the demo model's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import yaml
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
GRID, CHANNELS_IN = 480, 32
STAGES = ((64, 1, 4), (128, 2, 6), (256, 2, 6))  # channels, stride of the first, convolutions
NECK, SHARED, HEAD = 128, 64, 64
HEADS = {"heatmap": 5, "reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
PEAKS_A_FRAME = 200
SCORE = 0.1
# Means of what the box heads say: pillars, metres, logarithms of metres, a unit vector, metres a second.
OUTPUT_SPREAD = {"reg": (0.5, 0.2), "height": (0.8, 0.3), "dim": (0.8, 0.4), "rot": (0.0, 0.7), "vel": (0.0, 2.0)}


class Builder:
    """Nodes and weights one after the other, each layer normalised on what it sees."""

    def __init__(self, maps: list[np.ndarray], seed: int):
        self.random = np.random.default_rng(seed)
        self.values = {"spatial_features": maps}
        self.nodes, self.initializers = [], []

    def run(self, node: onnx.NodeProto, weights: list[onnx.TensorProto]) -> list[np.ndarray]:
        """The node on every frame."""
        names = [n for n in node.input if n in self.values]
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]
        output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "layer", inputs, [output], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        frames = range(len(self.values[names[0]]))
        return [session.run(None, {n: self.values[n][i] for n in names})[0] for i in frames]

    def add(self, node: onnx.NodeProto, weights: list[onnx.TensorProto] = ()) -> str:
        self.nodes.append(node)
        self.initializers += weights
        self.values[node.output[0]] = self.run(node, list(weights))
        return node.output[0]

    def layer(self, name: str, source: str, outputs: int, kernel: int, stride: int, spread=None, up=False) -> str:
        """A convolution (`up`: a deconvolution whose kernel is its stride), and its Relu unless it has a spread.

        `spread` is the mean and standard deviation of each output over the occupied cells.
        """
        inputs = self.values[source][0].shape[1]
        shape = (inputs, outputs, kernel, kernel) if up else (outputs, inputs, kernel, kernel)
        weight = self.random.standard_normal(shape) * self.random.lognormal(0, 0.5, (inputs, 1, 1, 1) if up else (1, inputs, 1, 1))
        pad = 0 if up else kernel // 2
        make = lambda w, b: (  # noqa: E731
            helper.make_node(
                "ConvTranspose" if up else "Conv", [source, f"{name}.weight", f"{name}.bias"], [f"{name}_conv" if spread is None else name],
                name=name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
            ),
            [numpy_helper.from_array(w.astype(np.float32), f"{name}.weight"), numpy_helper.from_array(b.astype(np.float32), f"{name}.bias")],
        )  # fmt: skip
        seen = self.run(*make(weight, np.zeros(outputs)))
        # Where nothing was, a convolution without bias gives exactly zero.
        seen = np.concatenate([v[0].reshape(outputs, -1)[:, np.abs(v[0]).max(axis=0).ravel() > 0] for v in seen], axis=1)
        mean, deviation = seen.mean(axis=1), seen.std(axis=1) + 1e-6
        if spread is None:
            gamma, beta = self.random.lognormal(-0.3, 0.4, outputs), self.random.normal(-0.4, 0.3, outputs)
        else:
            gamma, beta = np.full(outputs, spread[1]), np.full(outputs, spread[0])
        factor = gamma / deviation
        weight = weight * factor.reshape((1, -1, 1, 1) if up else (-1, 1, 1, 1))
        made = self.add(*make(weight, beta - mean * factor))
        if spread is not None:
            return made
        return self.add(helper.make_node("Relu", [made], [name], name=f"{name}/Relu"))

    def forget(self, *names: str) -> None:
        for name in names:
            self.values.pop(name, None)


def build(maps: list[np.ndarray], seed: int) -> onnx.ModelProto:
    """The backbone, neck and heads."""
    b = Builder(maps, seed)
    x, ups = "spatial_features", []
    for i, (channels, stride, count) in enumerate(STAGES):
        for j in range(count):
            x = b.layer(f"blocks.{i}.{j}", x, channels, 3, stride if j == 0 else 1)
        scale = 2**i
        ups.append(b.layer(f"neck.{i}", x, NECK, scale, scale, up=True) if i else b.layer("neck.0", x, NECK, 1, 1))
    x = b.add(helper.make_node("Concat", ups, ["neck"], name="neck/Concat", axis=1))
    shared = b.layer("shared", x, SHARED, 3, 1)
    for head, outputs in HEADS.items():
        x = b.layer(f"{head}.0", shared, HEAD, 3, 1)
        b.layer(head, x, outputs, 3, 1, spread=OUTPUT_SPREAD.get(head, (0.0, 1.0)))
        b.forget(x, f"{x}_conv")
    shift = heatmap_shift(b.values["heatmap"])
    bias = next(t for t in b.initializers if t.name == "heatmap.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(shift), bias.name))
    outputs = [helper.make_tensor_value_info(h, TensorProto.FLOAT, [1, n, GRID, GRID]) for h, n in HEADS.items()]
    given = helper.make_tensor_value_info("spatial_features", TensorProto.FLOAT, [1, CHANNELS_IN, GRID, GRID])
    graph = helper.make_graph(b.nodes, "full_size", [given], outputs, b.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def heatmap_shift(maps: list[np.ndarray]) -> float:
    """What to add to the logits, so that the wanted number of peaks passes the score."""
    peaks = []
    for m in maps:
        padded = np.pad(m[0], ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        around = [padded[:, i : i + GRID, j : j + GRID] for i in range(3) for j in range(3)]
        peaks.append(m[0][m[0] >= np.max(around, axis=0)])
    peaks = np.sort(np.concatenate(peaks))
    wanted = peaks[-min(len(peaks), PEAKS_A_FRAME * len(maps))]
    return float(np.log(SCORE / (1 - SCORE)) - wanted)


def description() -> dict:
    """The demo model's, with the larger grid."""
    demo = yaml.safe_load((ROOT / "models" / "demo" / "model.yaml").read_text())
    demo["name"] = "full_size"
    demo["grid"].update(min=[-76.8, -76.8, -4.0], max=[76.8, 76.8, 6.0], pillar=[0.32, 0.32], downsample=1)
    return demo


def placeholder() -> onnx.ModelProto:
    """A network of the right interface, to have the program make spatial features with."""
    nodes, weights = [], []
    for head, outputs in HEADS.items():
        weights.append(numpy_helper.from_array(np.zeros((outputs, CHANNELS_IN, 1, 1), np.float32), f"{head}.weight"))
        nodes.append(helper.make_node("Conv", ["spatial_features", f"{head}.weight"], [head], name=head))
    outputs = [helper.make_tensor_value_info(h, TensorProto.FLOAT, [1, n, GRID, GRID]) for h, n in HEADS.items()]
    given = helper.make_tensor_value_info("spatial_features", TensorProto.FLOAT, [1, CHANNELS_IN, GRID, GRID])
    graph = helper.make_graph(nodes, "placeholder", [given], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(folder: Path, model: onnx.ModelProto) -> None:
    """The model folder; the encoder is the demo model's."""
    about = description()
    onnx.save(model, folder / about["backbone"]["file"])
    shutil.copy(ROOT / "models" / "demo" / about["encoder"]["file"], folder)
    (folder / "model.yaml").write_text(yaml.safe_dump(about, sort_keys=False))


def make(program: Path, out: Path, seed: int, frames: int = 2) -> None:
    """Writes the model folder; it appears when it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        scratch = Path(scratch)
        (model := scratch / "model").mkdir()
        write(model, placeholder())
        run = lambda *a: subprocess.run([program, *map(str, a)], check=True, stdout=subprocess.DEVNULL)  # noqa: E731
        run("simulate", "--sensor", "mixed", "--frames", frames, "--scenes", frames, "--seed", seed, "--out", scratch / "drive")
        run("detect", "--model", model, "--bag", scratch / "drive", "--dump", scratch / "dump", "--out", scratch / "boxes.json")
        maps = [np.load(f).reshape(1, CHANNELS_IN, GRID, GRID) for f in sorted((scratch / "dump").glob("*/spatial.npy"))]
        write(model, build(maps, seed))
        os.replace(model, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--program", type=Path, default=target / "release" / "centerpoint_ptq")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "cost" / "full_size")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    make(options.program, options.out, options.seed)
