"""INT8 models by other calibrators: the same layers, the same frames, a model folder like any other.

    baselines.py --float models/demo --reference build/max_min --spatial frames.npz --method kl --out build/kl

`--reference` is a folder that `centerpoint_ptq quantize` wrote with max-min steps; it says which layers
are integer. `--spatial` holds the calibration frames, see `frames.py`. Methods:

kl, kl-levelled, percentile         the reference with other activation steps, its integer weights as they are
ort-minmax, ort-entropy, ort-percentile   ONNX Runtime's `quantize_static` on the prepared float graph
nncf                                NNCF's post-training quantization of the same graph (needs `nncf`)
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import yaml

import calibrators
import frames
import onnx_graph

# Operators that ONNX Runtime is asked to quantize: those that our plan runs on integers.
ORT_OPERATORS = ["Conv", "ConvTranspose", "Relu", "Clip", "Concat", "DepthToSpace", "MaxPool", "Reshape", "Transpose"]
ORT_METHODS = {"ort-minmax": "MinMax", "ort-entropy": "Entropy", "ort-percentile": "Percentile"}
STEP_METHODS = ("kl", "kl-levelled", "percentile")
METHODS = (*STEP_METHODS, *ORT_METHODS, "nncf")
# Largest difference of the prepared float graph from the float file, as a share of a map's largest value.
SAME_FUNCTION = 1e-3


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, for a file or a model in memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def backbone(folder: Path) -> Path:
    """The ONNX file with the convolutions."""
    return folder / yaml.safe_load((folder / "model.yaml").read_text())["backbone"]["file"]


def group_settings(model: onnx.ModelProto, report: dict) -> dict[str, dict]:
    """What the report says of each activation group, by the name of the group's scale."""
    by_tensor = {t: record for record in report["tensors"] for t in record["tensors"]}
    return {g.scale: by_tensor[g.tensors[0]] for g in onnx_graph.groups(model)}


def histograms(model: onnx.ModelProto, settings: dict[str, dict], spatial: frames.Spatial):
    """|x| of each group over all frames, through the graph with integer weights and float activations."""
    groups = onnx_graph.groups(model)
    observed = onnx_graph.observed(
        onnx_graph.without_activation_quantizers(model), [t for g in groups for t in g.tensors]
    )
    runtime, given = session(observed), observed.graph.input[0].name
    names = [o.name for o in runtime.get_outputs()]
    found = {
        g.scale: calibrators.Histogram(max(-settings[g.scale]["seen"]["min"], settings[g.scale]["seen"]["max"]))
        for g in groups
    }
    for x in spatial:
        values = dict(zip(names, runtime.run(names, {given: x})))
        values[given] = x
        for g in groups:
            for tensor in g.tensors:
                found[g.scale].add(values[tensor])
    return found


def other_steps(method: str, reference: onnx.ModelProto, report: dict, spatial: frames.Spatial) -> onnx.ModelProto:
    """The reference with activation ranges clipped where a calibrator says."""
    settings, ranges = group_settings(reference, report), {}
    for scale, histogram in histograms(reference, settings, spatial).items():
        bits, seen = settings[scale]["bits"], settings[scale]["seen"]
        if method in ("kl", "kl-levelled"):
            limit = calibrators.kl_threshold(histogram, bits, level_zeros=method == "kl-levelled")
        else:
            limit = calibrators.percentile_threshold(histogram)
        ranges[scale] = (max(seen["min"], -limit), min(seen["max"], limit), bits)
    onnx_graph.set_ranges(reference, ranges)
    return reference


def prepared(float_file: Path, reference: onnx.ModelProto, spatial: frames.Spatial) -> onnx.ModelProto:
    """The float graph after our preparation, checked against the float file on a frame."""
    original = onnx.load(float_file)
    model = onnx_graph.float_graph(reference, original)
    x = next(iter(spatial))
    runtime = session(model)
    outputs = [o.name for o in runtime.get_outputs()]
    mine = runtime.run(outputs, {runtime.get_inputs()[0].name: x})
    theirs = session(float_file).run(outputs, {original.graph.input[0].name: x})
    for name, a, b in zip(outputs, mine, theirs):
        error, spread = np.abs(a - b).max(), np.abs(b).max()
        if error > SAME_FUNCTION * max(spread, 1.0):
            raise ValueError(f"the prepared graph is not the float file's function: {name} differs by {error:.3g}")
    return model


class _Reader:
    """Frames for ONNX Runtime's calibrators, one at a time."""

    def __init__(self, name: str, spatial: frames.Spatial):
        self.name, self.spatial, self.rest = name, spatial, iter(())

    def __len__(self):
        return len(self.spatial)

    def set_range(self, start_index: int, end_index: int):
        self.rest = iter([self.spatial[i] for i in range(start_index, end_index)])

    def get_next(self):
        x = next(self.rest, None)
        return None if x is None else {self.name: x}


def onnx_runtime(method: str, model: onnx.ModelProto, excluded: list[str], reduce: bool, spatial, out: Path) -> None:
    """`quantize_static`: QDQ, `uint8` activations, `int8` weights per output channel."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    present = {n.op_type for n in model.graph.node}
    quantize_static(
        model,
        str(out),
        _Reader(model.graph.input[0].name, spatial),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[op for op in ORT_OPERATORS if op in present],
        per_channel=True,
        reduce_range=reduce,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=excluded,
        calibrate_method=getattr(CalibrationMethod, ORT_METHODS[method]),
        # Its calibrators keep every activation of a batch of frames in memory: one frame at a time.
        extra_options={"CalibStridedMinMax": 1},
    )


def nncf(model: onnx.ModelProto, excluded: list[str], spatial: frames.Spatial, out: Path) -> None:
    """NNCF's default post-training quantization, with the same layers in float."""
    try:
        import nncf as library
    except ImportError as error:
        raise SystemExit(f"{error}; see benches/ablation/requirements.txt") from error
    name = model.graph.input[0].name
    dataset = library.Dataset([spatial[i] for i in range(len(spatial))], lambda x: {name: x})
    quantized = library.quantize(
        model, dataset, subset_size=len(spatial), ignored_scope=library.IgnoredScope(names=excluded)
    )
    onnx.save(quantized, out)


def write_folder(reference: Path, out: Path, method: str) -> Path:
    """A model folder for a method without its backbone; returns where that goes.

    The encoder stays float and is the reference's.
    """
    out.mkdir(parents=True)
    description = yaml.safe_load((reference / "model.yaml").read_text())
    description["name"] = f"{description['name']}_{method}"
    shutil.copy(reference / description["encoder"]["file"], out)
    (out / "model.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return out / description["backbone"]["file"]


def build(method: str, float_folder: Path, reference_folder: Path, spatial_file: Path, out: Path) -> None:
    """Makes one model folder; an error leaves none."""
    report = json.loads((reference_folder / "report.json").read_text())
    reference, spatial = onnx.load(backbone(reference_folder)), frames.Spatial(spatial_file)
    wanted = onnx_graph.quantized_layers(reference)
    try:
        file = write_folder(reference_folder, out, method)
        if method in STEP_METHODS:
            onnx.save(other_steps(method, reference, report, spatial), file)
        else:
            model = prepared(backbone(float_folder), reference, spatial)
            excluded = onnx_graph.float_layers(reference)
            if method == "nncf":
                nncf(model, excluded, spatial, file)
            else:
                onnx_runtime(method, model, excluded, report["reduced_range"], spatial, file)
        made = onnx.load(file)
        onnx.checker.check_model(made, full_check=True)
        if onnx_graph.quantized_layers(made) != wanted:
            odd = sorted(set(onnx_graph.quantized_layers(made)) ^ set(wanted))
            raise ValueError(f"{method} quantized other layers than we did: {', '.join(odd)}")
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--float", type=Path, required=True, help="folder of the float model")
    parser.add_argument("--reference", type=Path, required=True, help="folder of the max-min INT8 model")
    parser.add_argument("--spatial", type=Path, required=True, help="calibration frames")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} exists already")
    build(args.method, args.float, args.reference, args.spatial, args.out)


if __name__ == "__main__":
    main()
