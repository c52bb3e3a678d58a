"""The gate on models that were broken on purpose: `centerpoint_ptq evaluate --gate` on the deployed engine."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "demo"
RECIPE = ROOT / "calibration" / "quick.yaml"
BACKBONE = "pts_backbone_neck_head.onnx"
REFUSED = 3


@pytest.fixture(scope="module")
def other_drive(program, tmp_path_factory) -> Path:
    """Frames that no model here was calibrated on."""
    out = tmp_path_factory.mktemp("other") / "drive"
    command = [program, "simulate", "--sensor", "os64", "--frames", "24", "--scenes", "12", "--seed", "91", "--out", out]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=600)
    return out


@pytest.fixture
def judge(program, other_drive, tmp_path):
    """Exit code and verdict of the gate on a model."""
    recipe = yaml.safe_load(RECIPE.read_text())
    # On a drive this short two boxes at the edge of a threshold decide over a class of twenty.
    recipe["gate"]["min_boxes"] = 50
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))

    def run(model: Path):
        command = [program, "evaluate", "--model", MODEL, "--model2", model, "--bag", other_drive, "--gate", file, "--json"]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
        assert result.returncode in (0, REFUSED), result.stderr
        return result.returncode, json.loads(result.stdout)["verdict"]

    return run


@pytest.fixture
def broken(quantized, tmp_path):
    """A copy of the INT8 model whose graph `change` was let loose on."""

    def make(change) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(quantized[0], folder)
        model = onnx.load(folder / BACKBONE)
        change(model.graph)
        onnx.checker.check_model(model)
        onnx.save(model, folder / BACKBONE)
        return folder

    return make


def constants(graph) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in graph.initializer}


def layer(graph, part: str):
    """The convolution whose name holds `part`, and the constants behind its weights: integers, steps."""
    known = constants(graph)
    by_output = {o: n for n in graph.node for o in n.output}
    conv = next(n for n in graph.node if n.op_type == "Conv" and part in n.name)
    source = by_output.get(conv.input[1])
    names = source.input[:2] if source is not None and source.op_type == "DequantizeLinear" else [conv.input[1]]
    return conv, [known[n] for n in names], known


def replace(tensor: onnx.TensorProto, values) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def test_a_good_model_passes(judge, quantized):
    code, verdict = judge(quantized[0])
    assert (code, verdict["accepted"]) == (0, True), verdict
    judged = {e["class"]: e for e in verdict["judged"] if "band" not in e}
    assert judged["CAR"]["float_boxes"] >= 50 and judged["CAR"]["needed"] == 50
    for entry in verdict["not_judged"]:
        assert max(entry["float_boxes"], entry["int8_boxes"]) < entry["needed"], entry


def test_a_class_that_must_be_judged_and_cannot_be_is_a_refusal(program, other_drive, quantized, tmp_path):
    recipe = yaml.safe_load(RECIPE.read_text())

    def run(**gate):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe | {"gate": recipe["gate"] | gate}))
        command = [program, "evaluate", "--model", MODEL, "--model2", quantized[0], "--bag", other_drive]
        command += ["--limit", "8", "--gate", file]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)

    # No class has as many boxes.
    many = {"min_boxes": 100_000, "must_judge": ["PEDESTRIAN"], "bands": None}
    result = run(**many)
    assert result.returncode == REFUSED, result.stderr
    assert "REFUSED; nothing was judged; not judged for lack of boxes: CAR (" in result.stdout
    assert "PEDESTRIAN: the recipe wants it judged (gate.must_judge)" in result.stdout
    lenient = {"min_f1": 0.0, "max_missed": 1.0, "max_extra": 1.0, "bands": None}
    lenient |= {"max_centre_error": 100.0, "max_yaw_error": 100.0, "max_size_error": 100.0}
    result = run(**lenient, min_boxes=1, must_judge=["car"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ACCEPTED; judged CAR (" in result.stdout
    result = run(must_judge=["TRAM"])
    assert result.returncode == 1 and "TRAM" in result.stderr and "PEDESTRIAN" in result.stderr


def test_a_layer_whose_step_is_off_by_four_is_refused(judge, broken):
    def change(graph):
        _, (_, step), _ = layer(graph, "/blocks.1/")
        replace(step, numpy_helper.to_array(step) * np.float32(4))

    code, verdict = judge(broken(change))
    assert code == REFUSED and not verdict["accepted"]
    assert any("F1" in reason or "missed" in reason for reason in verdict["reasons"]), verdict


def test_a_head_whose_channels_are_swapped_is_refused(judge, broken):
    def change(graph):
        by_output = {o: n for n in graph.node for o in n.output}
        output = next(o.name for o in graph.output if "heatmap" in o.name)
        node = by_output[output]
        while node.op_type != "Conv":
            node = by_output[node.input[0]]
        known = constants(graph)
        for name in node.input[1:]:
            values = numpy_helper.to_array(known[name])
            # Cars become pedestrians.
            replace(known[name], values[[4, 1, 2, 3, 0]])

    code, verdict = judge(broken(change))
    assert code == REFUSED
    assert any(reason.startswith("CAR") for reason in verdict["reasons"]), verdict


def test_frames_of_a_sensor_that_hangs_elsewhere_make_no_model_that_is_accepted(program, bag, judge, tmp_path):
    """The same vehicle with its sensor five metres too low: the float model sees next to nothing there."""
    out = tmp_path / "low"
    command = [program, "quantize", "--model", MODEL, "--bag", bag, "--out", out, "--recipe", RECIPE, "--progress", "json"]
    command += ["--sensor-pose", "0 0 -5 0 0 0"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert result.returncode == REFUSED, result.stdout + result.stderr
    verdict = json.loads(result.stdout.splitlines()[-1])["verdict"]
    assert "are needed to judge" in verdict["reasons"][0], verdict


def test_a_model_from_another_sensors_frames_is_refused_by_what_the_node_sees(program, slow_model, tmp_path):
    """Of a sensor that seems six metres under ground the float model sees little; the vehicle's own frames are clipped."""
    low, seen, buffer = tmp_path / "low", tmp_path / "seen", tmp_path / "buffer"

    def run(*command):
        return subprocess.run(list(map(str, [program, *command])), capture_output=True, text=True, timeout=600)

    simulate = ["simulate", "--scenes", "6", "--rate", "2", "--sensor"]
    assert run(*simulate, "vlp16", "--frames", "16", "--seed", "7", "--out", low).returncode == 0
    assert run(*simulate, "os64", "--frames", "60", "--seed", "91", "--out", seen).returncode == 0
    chosen = run("select", "--model", slow_model, "--bag", seen, "--choice", "newest", "--max-frames", 32, "--out", buffer)
    assert chosen.returncode == 0, chosen.stderr
    command = ["quantize", "--model", slow_model, "--bag", low, "--sensor-pose", "0 0 -6 0 0 0", "--progress", "json"]
    result = run(*command, "--check-buffer", buffer, "--out", tmp_path / "int8")
    assert result.returncode == REFUSED, result.stdout + result.stderr
    verdict = json.loads(result.stdout.splitlines()[-1])["verdict"]
    assert any("F1" in reason or "missed" in reason for reason in verdict["reasons"]), verdict


def test_a_gate_without_a_second_model_is_an_error(program, other_drive):
    command = [program, "evaluate", "--model", MODEL, "--bag", other_drive, "--gate", RECIPE, "--truth", other_drive]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and "second" in result.stderr
