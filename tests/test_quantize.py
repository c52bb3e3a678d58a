"""`centerpoint_ptq quantize` from the outside: what it writes is standard ONNX by onnx.checker, holds the weights
that NumPy computes from the float file, and runs on integers in the onnxruntime that Python has.

`make test` builds the program first; CENTERPOINT_PTQ_BIN names another one.
"""

import json
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "demo"
BACKBONE = "pts_backbone_neck_head.onnx"
REFUSED = 3
WITH_LOSSES = 4


def quantize(program, bag, out, *extra, model=MODEL):
    command = [program, "quantize", "--model", model, "--bag", bag, "--out", out, "--progress", "json", *extra]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def constants(model):
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return values


def folded_weights(path):
    """Weights of the float file by node name, normalization folded and deconvolutions as 1x1, in NumPy."""
    model = onnx.load(path)
    values = constants(model)
    weights = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        weight = values[node.input[1]].astype(np.float64)
        followers = [n for n in model.graph.node if node.output[0] in n.input]
        if [n.op_type for n in followers] == ["BatchNormalization"]:
            gamma, _, _, var = (values[i].astype(np.float64) for i in followers[0].input[1:])
            factor = gamma / np.sqrt(var + next(a.f for a in followers[0].attribute if a.name == "epsilon"))
            weight *= factor.reshape((-1, 1, 1, 1) if node.op_type == "Conv" else (1, -1, 1, 1))
        if node.op_type == "ConvTranspose":
            inputs, outputs, k, _ = weight.shape
            weight = weight.transpose(2, 3, 1, 0).reshape(k * k * outputs, inputs, 1, 1)
        weights[node.name] = weight
    return weights


def test_the_file_is_valid_and_says_what_made_it(quantized):
    out, _, _ = quantized
    model = onnx.load(out / BACKBONE)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 17
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["centerpoint_ptq.target"] == "cpu"
    assert int(metadata["centerpoint_ptq.calibration_frames"]) == 24
    assert json.loads(metadata["centerpoint_ptq.recipe_json"])["name"] == "quick"
    interface = lambda m: [(v.name, v.type) for v in [*m.graph.input, *m.graph.output]]
    assert interface(model) == interface(onnx.load(MODEL / BACKBONE))


def test_the_integers_are_the_float_weights_to_half_a_step_or_clipped(quantized):
    out, _, _ = quantized
    model = onnx.load(out / BACKBONE)
    values = constants(model)
    sources = {n.output[0]: n for n in model.graph.node}
    expected = folded_weights(MODEL / BACKBONE)
    checked = 0
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1] in values:
            continue
        integers, scales, zeros = (values[i] for i in sources[node.input[1]].input)
        assert integers.dtype == np.int8 and not zeros.any() and (scales > 0).all()
        weight = expected[node.name]
        assert integers.shape == weight.shape
        steps = weight / scales.astype(np.float64).reshape(-1, 1, 1, 1)
        limit = int({p.key: p.value for p in model.metadata_props}["centerpoint_ptq.weight_levels"])
        assert np.abs(np.clip(steps, -limit, limit) - integers).max() < 0.5001
        bias, bias_scale, _ = (values[i] for i in sources[node.input[2]].input)
        assert bias.dtype == np.int32
        activation_scale = values[sources[node.input[0]].input[1]]
        assert np.array_equal(bias_scale, scales * activation_scale)
        checked += 1
    heads = len(onnx.load(MODEL / BACKBONE).graph.output)
    assert checked == len(expected) - heads, "all but the last convolution of each head"


def test_every_quantized_convolution_becomes_an_integer_kernel(quantized, tmp_path):
    out, _, _ = quantized
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(out / BACKBONE), options, providers=["CPUExecutionProvider"])
    kernels = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    float_model = onnx.load(MODEL / BACKBONE)
    all_convolutions = Counter(n.op_type for n in float_model.graph.node)
    heads = len(float_model.graph.output)
    assert kernels["QLinearConv"] == all_convolutions["Conv"] + all_convolutions["ConvTranspose"] - heads
    assert kernels["ConvTranspose"] == 0
    assert kernels["Conv"] + kernels["FusedConv"] == heads
    # Concat and depth-to-space run on integers as they are: nothing is converted in between.
    assert kernels["QuantizeLinear"] == 1 and kernels["DequantizeLinear"] == heads


def test_the_runtime_of_python_agrees_with_the_float_model(program, bag, quantized, tmp_path):
    out, _, _ = quantized
    dump = tmp_path / "dump"
    command = [program, "detect", "--model", MODEL, "--bag", bag, "--limit", "3"]
    command += ["--out", tmp_path / "boxes.json", "--dump", dump]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    frames = [np.load(path) for path in sorted(dump.glob("*/spatial.npy"))]
    assert len(frames) == 3
    sessions = [
        onnxruntime.InferenceSession(str(folder / BACKBONE), providers=["CPUExecutionProvider"])
        for folder in (MODEL, out)
    ]
    names = [o.name for o in sessions[0].get_outputs()]
    for x in frames:
        maps = [s.run(None, {"spatial_features": x.reshape(1, *x.shape[-3:])}) for s in sessions]
        # Where the float model sees something. The step is chosen for the large values, so the empty ground is coarser.
        seen = maps[0][names.index("heatmap")].max(axis=1, keepdims=True) > -2.0
        assert seen.sum() > 20
        for name, a, b in zip(names, *maps):
            if name == "vel":  # ranges alone coarsen it to nearly its spread where little moves
                continue
            if name == "heatmap":  # logits far below zero all say no
                a, b = (1 / (1 + np.exp(-m)) for m in (a, b))
            a, b = (m[np.broadcast_to(seen, m.shape)] for m in (a, b))
            # A broken scale or channel leaves about 1; heights hardly differ from each other.
            assert np.abs(a - b).mean() <= (0.5 if name == "height" else 0.25) * a.std(), name


def test_progress_never_falls_and_the_last_line_is_the_verdict(quantized):
    out, events, code = quantized
    fractions = [e["fraction"] for e in events if e["event"] == "progress"]
    assert len(fractions) > 10 and fractions == sorted(fractions) and fractions[-1] == 1.0
    stages = list(dict.fromkeys(e["stage"] for e in events if e["event"] == "progress"))
    assert stages == ["frames", "weights", "ranges", "search", "export", "check"]
    assert events[-1]["event"] == "done"
    report = json.loads((out / "report.json").read_text())
    assert events[-1]["verdict"] == report["check"]["verdict"]
    assert (code == 0) == report["check"]["verdict"]["accepted"]


def test_the_report_holds_what_a_reader_needs(quantized):
    out, _, _ = quantized
    report = json.loads((out / "report.json").read_text())
    # The first of the 32 frames of the drive has a single sweep, where the model wants two.
    assert report["frames"]["calibration"] == 24 and report["frames"]["held_out"] == 7
    assert len({f["sha256"] for f in report["frames"]["list"]}) == 31
    assert {f["sweeps"] for f in report["frames"]["list"]} == {2}
    assert report["input"]["sweeps_wanted"] == 2 and report["input"]["sweeps"] == {"2": 31}
    assert report["input"]["left_out"] == {"1": 1}
    for layer in report["layers"]:
        assert layer["integer_kernel"], layer["name"]
        assert layer["error_chosen"] <= layer["error_max_min"]
    for tensor in report["tensors"]:
        assert tensor["error_chosen"] <= tensor["error_max_min"]
        assert tensor["seen"]["min"] <= 0 <= tensor["seen"]["max"]
    latency = report["check"]["latency"]
    assert latency["backbone_speedup"] == pytest.approx(
        latency["float_backbone"]["median"] / latency["int8_backbone"]["median"]
    )
    assert report["check"]["kernels"]["integer_multiplications"] > 0.95
    description = yaml.safe_load((out / "model.yaml").read_text())
    assert description["precision"] == "int8"
    assert "of the multiplications" in (out / "report.txt").read_text()


def test_the_report_says_what_the_verdict_rests_on(quantized):
    out, _, _ = quantized
    report = json.loads((out / "report.json").read_text())
    classes = yaml.safe_load((MODEL / "model.yaml").read_text())["classes"]
    verdict, gate = report["check"]["verdict"], report["recipe"]["gate"]
    judged = {e["class"]: e for e in verdict["judged"] if "band" not in e}
    lacking = {e["class"]: e for e in verdict["not_judged"] if "band" not in e}
    assert sorted([*judged, *lacking]) == sorted(classes)
    for agreement in report["check"]["agreement"]["classes"]:
        name, boxes = agreement["class"], agreement["all"]
        entry = judged.get(name) or lacking[name]
        assert entry["float_boxes"] == boxes["matched"] + boxes["missed"]
        assert entry["int8_boxes"] == boxes["matched"] + boxes["extra"]
        assert (name in judged) == (max(entry["float_boxes"], entry["int8_boxes"]) >= gate["min_boxes"])
        assert entry["needed"] == gate["min_boxes"]
    bands = [(e["class"], e["band"]) for e in verdict["judged"] + verdict["not_judged"] if "band" in e]
    assert sorted(bands) == sorted((c, b) for c in classes for b in ("0-30", "30-50", "50+"))
    text, page = (out / "report.txt").read_text(), (out / "report.html").read_text()
    beside = page[page.index('class="verdict') : page.index('class="tiles"')]
    for name, entry in lacking.items():
        said = f"{name} ({entry['float_boxes']} of float, {entry['int8_boxes']} of INT8"
        assert "NOT JUDGED" in text and said in text and "Not judged" in beside and said in beside


def quick_recipe(folder, **gate) -> Path:
    """Few search steps, and a gate of one's own."""
    recipe = yaml.safe_load((ROOT / "calibration" / "quick.yaml").read_text())
    for part in ("weights", "activations"):
        recipe[part]["search"]["steps"] = 5
    recipe["check"] = {"warm_up": 0, "latency_runs": 1}
    recipe["gate"] |= gate
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_single_sweeps_are_refused_for_a_model_of_two_unless_they_are_meant(program, bag, without_tf, tmp_path):
    """No tf, as of somebody who forgot to record it: calibrated on what the network never sees, in an assumed place."""
    recording, out = without_tf(bag), tmp_path / "int8"
    # The terminal's last lines are read as a person does.
    command = [program, "quantize", "--model", MODEL, "--bag", recording, "--out", out, "--progress", "none"]
    command += ["--sensor-pose", "0 0 1.8 0 0 0", "--recipe", quick_recipe(tmp_path, must_judge="all")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert refused.returncode == 1 and not out.exists()
    for part in ("32 of 32 frames", "fewer sweeps than the 2", "32 frames of 1 sweep", "--fixed-frame", "--allow-few-sweeps"):
        assert part in refused.stderr, refused.stderr

    result = subprocess.run([*command, "--allow-few-sweeps"], capture_output=True, text=True, timeout=900)
    assert result.returncode == REFUSED, "hardly all classes are there often enough: " + result.stdout + result.stderr
    remark = "calibrated on 24 of 24 frames with single sweeps, checked on 8 of 8 frames with single sweeps"
    report = json.loads((out / "report.json").read_text())
    verdict = report["check"]["verdict"]
    assert report["input"]["sweeps"] == {"1": 32} and {f["sweeps"] for f in report["frames"]["list"]} == {1}
    assert verdict["remarks"][0].startswith(remark), verdict
    wanted = [r for r in verdict["reasons"] if "gate.must_judge" in r]
    lacking = [e["class"] for e in verdict["not_judged"] if "band" not in e]
    assert lacking and [r.split(":")[0] for r in wanted] == lacking, verdict
    page = (out / "report.html").read_text()
    for text in (page[: page.index('class="tiles"')], (out / "report.txt").read_text()):
        assert remark in text
    last = result.stdout[result.stdout.rindex("REFUSED; ") :]
    assert "not judged for lack of boxes: " in last or "nothing was judged" in last, last
    assert remark in last and last.splitlines()[-1] == f"wrote {out}"


def test_classes_that_the_model_does_not_have_are_refused_before_anything_is_read(program, bag, tmp_path):
    recipe = quick_recipe(tmp_path, must_judge=["CAR", "TRAM"])
    result = quantize(program, tmp_path / "no_bag", tmp_path / "int8", "--recipe", recipe)
    assert result.returncode == 1
    message = json.loads(result.stdout.splitlines()[-1])["message"]
    assert "TRAM" in message and "PEDESTRIAN" in message, message
    result = quantize(program, bag, tmp_path / "int8", "--recipe", quick_recipe(tmp_path, must_judge="CAR"))
    assert result.returncode == 1 and "[CAR], or `all`" in result.stdout


class Page(HTMLParser):
    """A page's tags, which must close in order, and the attributes that make a browser load something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references = [], Counter(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.references += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def remake(program, *arguments):
    return subprocess.run([program, "report", *arguments], capture_output=True, text=True, timeout=600)


def test_the_page_needs_nothing_but_itself_and_names_everything(quantized):
    out, _, _ = quantized
    text = (out / "report.html").read_text()
    report = json.loads((out / "report.json").read_text())
    page = Page(text)
    assert page.tags["svg"] > len(report["layers"]) and page.tags["script"] == 0
    assert all(reference.startswith("#") for reference in page.references)
    for outside in ("http:", "https:", "url(", "@import"):
        assert outside not in text
    for listed in [*report["layers"], *report["float_layers"], *report["check"]["kernels"]["operators"]]:
        assert f">{escape(listed['name'])}<" in text
    for tensor in (name for group in report["tensors"] for name in group["tensors"]):
        assert f">{escape(tensor)}<" in text
    for record in [*report["float_files"], *report["int8_files"], *report["frames"]["list"]]:
        assert record["sha256"] in text
    assert ("Accepted" in text) == report["check"]["verdict"]["accepted"]


def test_the_page_can_be_made_again_from_the_stored_report(program, quantized, tmp_path):
    out, _, _ = quantized
    page = (out / "report.html").read_bytes()
    result = remake(program, out, "--out", tmp_path / "again.html")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again.html").read_bytes() == page
    shutil.copy(out / "report.json", tmp_path)
    assert remake(program, tmp_path / "report.json").returncode == 0
    assert (tmp_path / "report.html").read_bytes() == page
    assert remake(program, out, "--format", "text").stdout == (out / "report.txt").read_text()


def test_a_report_that_cannot_be_read_is_refused_by_name(program, quantized, tmp_path):
    out, _, _ = quantized
    good = (out / "report.json").read_text()
    path = tmp_path / "report.json"
    for text, words in [
        (None, "No such file"),
        (good[: good.index('"layers"')], "EOF"),
        ("[]", "not a report"),
        (good.replace('"format": 1', '"format": 2', 1), "format 2; this version reads 1"),
    ]:
        if text is not None:
            path.write_text(text)
        result = remake(program, tmp_path)
        assert result.returncode == 1
        assert str(path) in result.stderr and words in result.stderr and "panicked" not in result.stderr
        assert not (tmp_path / "report.html").exists()


def test_a_signal_ends_it_with_nothing_left(program, bag, tmp_path):
    for sent in (signal.SIGTERM, signal.SIGINT):
        out = tmp_path / "int8"
        process = subprocess.Popen(
            [program, "quantize", "--model", MODEL, "--bag", bag, "--out", out, "--progress", "json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stdout:
            if json.loads(line).get("stage") == "ranges":
                break
        process.send_signal(sent)
        stdout, stderr = process.communicate(timeout=600)
        assert process.returncode == 130, stderr
        assert json.loads(stdout.splitlines()[-1])["event"] == "error"
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def whole_method(tmp_path_factory) -> Path:
    """The standard recipe with as few steps as show that it works."""
    recipe = yaml.safe_load((ROOT / "calibration" / "standard.yaml").read_text())
    recipe["frames"]["max"] = 32
    recipe["reconstruction"] |= {"iterations": 4, "batch": 2}
    recipe["reconstruction"]["crops"] |= {"max": 8, "judged": 4}
    path = tmp_path_factory.mktemp("recipe") / "whole.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_killed_reconstruction_goes_on_to_the_same_model(program, bag, whole_method, tmp_path):
    def run(out, kill_at_block=None):
        command = [program, "quantize", "--model", MODEL, "--bag", bag, "--recipe", whole_method]
        process = subprocess.Popen(
            [*command, "--out", out, "--progress", "json"], stdout=subprocess.PIPE, text=True
        )
        steps, fractions = [], []
        for line in process.stdout:
            event = json.loads(line)
            fractions.append(event.get("fraction", 1.0))
            if step := event.get("step"):
                steps.append(step)
                if kill_at_block and step["block"] >= kill_at_block:
                    process.kill()
                    break
        process.stdout.close()
        assert fractions == sorted(fractions), "progress never falls"
        return process.wait(), steps

    code, steps = run(tmp_path / "whole")
    assert code in (0, 3)
    blocks = steps[0]["blocks"]
    assert {s["block"] for s in steps} == set(range(1, blocks + 1))
    assert all(s["layer"] and 1 <= s["iteration"] <= s["iterations"] and s["error"] > 0 for s in steps)

    killed = tmp_path / "killed"
    code, _ = run(killed, kill_at_block=blocks // 2)
    assert code == -signal.SIGKILL and not killed.exists()
    assert (tmp_path / ".killed.resume").is_dir()
    code, steps = run(killed)
    assert code in (0, 3)
    assert min(s["block"] for s in steps) >= blocks // 2 - 1, "finished blocks are not done again"
    assert (killed / BACKBONE).read_bytes() == (tmp_path / "whole" / BACKBONE).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"], "nothing else is left"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: (m / BACKBONE).write_bytes((m / BACKBONE).read_bytes()[:50_000]), [BACKBONE]),
        (lambda m: (m / BACKBONE).write_bytes(b"no model at all"), [BACKBONE]),
        (lambda m: (m / BACKBONE).unlink(), [BACKBONE]),
        (lambda m: (m / "model.yaml").write_text("format: 1"), ["model.yaml"]),
    ],
)
def test_a_broken_model_is_refused_by_name(program, bag, tmp_path, change, words):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    change(model)
    result = quantize(program, bag, tmp_path / "int8", model=model)
    assert result.returncode == 1
    event = json.loads(result.stdout.splitlines()[-1])
    assert event["event"] == "error"
    for word in words:
        assert word in event["message"]
    assert not re.search(r"panicked", result.stderr)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_wrong_arguments_are_told_apart(program, bag, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    text = (ROOT / "calibration" / "quick.yaml").read_text()
    recipe.write_text(text.replace("bins: 4096", "binz: 4096"))
    result = quantize(program, bag, tmp_path / "a", "--recipe", recipe)
    assert result.returncode == 1 and "binz" in result.stdout
    result = quantize(program, tmp_path / "nowhere", tmp_path / "b")
    assert result.returncode == 1 and "nowhere" in result.stdout
    result = quantize(program, bag, tmp_path / "c", "--max-frames", "6")
    assert result.returncode == 1 and "too few frames" in result.stdout
    result = quantize(program, bag, tmp_path / "d", "--topic", "/not/there")
    assert result.returncode == 1 and "/not/there" in result.stdout
    result = quantize(program, bag, bag)
    assert result.returncode == 1 and "exists already" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"]


def test_a_calibration_that_needs_more_memory_than_it_may_take_ends_and_writes_nothing(program, bag, tmp_path):
    out = tmp_path / "int8"
    result = quantize(program, bag, out, "--max-memory-mb", "60")
    assert result.returncode == 1
    assert "more than 60 MB of memory" in json.loads(result.stdout.splitlines()[-1])["message"]
    assert not out.exists()


def test_a_calibration_ends_with_the_process_that_started_it(program, bag, tmp_path):
    out = tmp_path / "int8"
    command = [program, "quantize", "--model", MODEL, "--bag", bag, "--out", out, "--progress", "json"]
    # A shell starts it, says its number, and is killed.
    script = '"$@" --parent $$ & echo $!; exec sleep 600'
    shell = subprocess.Popen(["bash", "-c", script, "bash", *map(str, command)], stdout=subprocess.PIPE, text=True)
    child = int(shell.stdout.readline())
    # It works as long as the shell does.
    assert json.loads(shell.stdout.readline())["event"] == "progress"
    shell.kill()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline, "the child goes on without its parent"
        time.sleep(0.05)
    assert not out.exists() and not list(tmp_path.glob("*"))


@pytest.fixture(scope="module")
def cut_off(bag, tmp_path_factory) -> Path:
    """A recording whose end is not there, as after a power cut or on a full disk."""
    folder = tmp_path_factory.mktemp("cut") / "drive"
    shutil.copytree(bag, folder)
    (file,) = folder.glob("*.mcap")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 85 // 100])
    return folder


def test_what_was_lost_of_a_recording_is_in_the_result_and_the_exit_code(program, cut_off, tmp_path):
    recipe = ["--recipe", ROOT / "calibration" / "quick.yaml"]
    result = quantize(program, cut_off, tmp_path / "int8", *recipe)
    done = json.loads(result.stdout.splitlines()[-1])
    assert done["event"] == "done", result.stdout + result.stderr
    assert done["input"]["losses"][0]["kind"] == "damaged_bag"
    assert result.returncode == (WITH_LOSSES if done["verdict"]["accepted"] else REFUSED)
    assert "warning: the recording is damaged in" in result.stderr

    strict = quantize(program, cut_off, tmp_path / "strict", *recipe, "--strict")
    assert strict.returncode == 1 and not (tmp_path / "strict").exists()
    assert "--strict" in json.loads(strict.stdout.splitlines()[-1])["message"]
