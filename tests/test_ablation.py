"""The ablation harness (benches/ablation) on small data: its calibrators do what they claim, its models hold the same
integer layers as ours and run, its table has every row, and a second run makes nothing again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HARNESS = ROOT / "benches" / "ablation"
sys.path.insert(0, str(HARNESS))
import baselines  # noqa: E402
import calibrators  # noqa: E402
import frames  # noqa: E402
import harness  # noqa: E402
import onnx_graph  # noqa: E402
import page  # noqa: E402

BACKBONE = "pts_backbone_neck_head.onnx"
METHODS = ["float", "ort-minmax", "ort-entropy", "ort-percentile", "kl", "kl-levelled", "percentile", "max-min", "grid"]
LOW_BIT_METHODS = ["kl", "kl-levelled", "percentile", "max-min", "grid"]


def histogram(values):
    found = calibrators.Histogram(float(np.abs(values).max()))
    found.add(values.astype(np.float32))
    return found


def test_kl_clips_a_planted_outlier_and_keeps_a_uniform_tensor():
    random = np.random.default_rng(1)
    dense = random.uniform(0, 1, 1_000_000)
    assert calibrators.kl_threshold(histogram(dense)) > 0.95
    planted = np.append(dense, [8.0] * 20)
    assert 0.9 < calibrators.kl_threshold(histogram(planted)) < 1.3


def test_kl_over_all_values_collapses_on_a_sparse_tensor_and_levelled_does_not():
    random = np.random.default_rng(2)
    occupied = random.uniform(0, 10, 50_000)
    sparse = np.concatenate([np.zeros(950_000), occupied])
    assert calibrators.kl_threshold(histogram(sparse)) < 3
    assert calibrators.kl_threshold(histogram(sparse), level_zeros=True) > 9


def test_the_divergence_is_that_of_the_definition():
    counts = np.array([4, 0, 2, 2, 1, 3], np.int64)
    # Four bins kept in two groups: P = [4, 0, 2, 6], Q spreads 4 over one bin and 4 over two.
    p, q = np.array([4, 2, 6]) / 12, np.array([4, 2, 2]) / 8
    assert calibrators.divergence(counts, 4, 2) == pytest.approx(np.sum(p * np.log(p / q)))
    assert calibrators.divergence(counts, 2, 2) == np.inf


def test_the_percentile_counts_zeros():
    values = np.concatenate([np.zeros(9_000), np.linspace(0.001, 1, 1_000)])
    assert calibrators.percentile_threshold(histogram(values), 99) == pytest.approx(0.9, abs=0.01)
    assert calibrators.percentile_threshold(histogram(values), 90) < 0.01


def test_a_range_has_zero_on_a_level_and_ends_at_its_bounds():
    for low, high, bits in [(0.0, 3.0, 8), (-1.0, 3.0, 8), (-0.2, 3.0, 4)]:
        step, zero, lowest, highest = onnx_graph.with_range(low, high, bits, True)
        assert (lowest, highest) == (0, 2**bits - 1)
        assert (lowest - zero) * step == pytest.approx(low, abs=0.51 * step)
        assert (highest - zero) * step == pytest.approx(high, abs=0.51 * step)
    assert onnx_graph.with_range(-1.0, 3.0, 8, False)[1:] == (0, -127, 127)


def test_a_stage_that_the_recipes_do_not_have_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="rounding.*standard.yaml.*--methods"):
        harness.recipe("rounding", 8, 8, 16)
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "standard.yaml").write_text((ROOT / "calibration" / "quick.yaml").read_text())
    with pytest.raises(SystemExit, match="tgpl.*reconstruction.tgpl.weight"):
        harness.recipe("tgpl", 8, 8, 16)


def test_recipes_of_the_stages_differ_in_their_stage_and_changes_come_last():
    rounding, tgpl, equalized = (harness.recipe(m, 4, 4, 16) for m in ("rounding", "tgpl", "equalized"))
    assert rounding["reconstruction"]["tgpl"]["weight"] == 0 < tgpl["reconstruction"]["tgpl"]["weight"]
    assert "equalization" not in tgpl and equalized["equalization"]["alpha"] > 0
    assert tgpl["input_bits"] == 8 and "input_bits" not in harness.recipe("tgpl", 8, 8, 16)
    changed = harness.recipe("tgpl", 4, 4, 16, (("reconstruction.tgpl.boxes", "0.5"), ("equalization", "{alpha: 0.3}")))
    assert changed["reconstruction"]["tgpl"]["boxes"] == 0.5 and changed["equalization"] == {"alpha": 0.3}
    with pytest.raises(KeyError):
        harness.recipe("grid", 8, 8, 16, (("reconstruction.seed", "1"),))


def test_the_marked_part_alone_is_replaced(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# Title\n\nkept\n\n<!-- a -->\nold\n<!-- end a -->\n\nkept, too\n")
    page.replace_marked(path, "a", "new", "unused")
    page.replace_marked(path, "b", "more", "unused")
    text = path.read_text()
    assert "old" not in text and text.count("new") == 1 and "kept, too" in text and "<!-- b -->\nmore" in text


@pytest.fixture(scope="session")
def ablation(program, tmp_path_factory):
    """One run of the whole table, small."""
    work = tmp_path_factory.mktemp("ablation")
    command = [sys.executable, HARNESS / "ablate.py", "--small", "--program", program, "--work", work]
    command += ["--frames", "4", "--held-out-frames", "6", "--bits", "W8A8", "W4A4", "--methods", *METHODS]

    def run():
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900, env=ENVIRONMENT)
        assert result.returncode == 0, result.stderr
        return json.loads((work / "results.json").read_text())

    return work, run(), run


ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "CENTERPOINT_PTQ_DATA"}


def models(work):
    """Every INT8 folder that the run made, with the settings it was made from."""
    for settings in sorted((work / "models").glob("*.settings.json")):
        yield settings.with_name(settings.name.split(".")[0]), json.loads(settings.read_text())


def test_the_table_has_every_row(ablation):
    work, results, _ = ablation
    expected = [("-", "float"), *(("W8A8", m) for m in METHODS[1:]), *(("W4A4", m) for m in LOW_BIT_METHODS)]
    assert [(r["bits"], r["method"]) for r in results["rows"]] == expected
    text = (work / "ablation.md").read_text()
    assert text.count("| W4A4 | + grid search |") == 4 and text.count("| - | float |") == 3
    assert results["rows"][0]["scores"]["agreement"]["f1"] == 1.0
    assert all(d["difference"] == 0 for d in results["rows"][0]["scores"]["difference"].values())
    for name in ("mean", "car", "pedestrian"):
        assert (work / "plots" / f"ablation_{name}.svg").read_text().startswith("<svg")


def test_every_model_is_valid_has_our_layers_and_runs(ablation):
    work, _, _ = ablation
    spatial = frames.Spatial(next((work / "spatial").glob("*.npz")))
    assert len(spatial) == 4
    found = list(models(work))
    assert len(found) == len(METHODS) - 1 + len(LOW_BIT_METHODS)
    layers = set()
    for folder, _ in found:
        model = onnx.load(folder / BACKBONE)
        onnx.checker.check_model(model, full_check=True)
        layers.add(tuple(onnx_graph.quantized_layers(model)))
        session = onnxruntime.InferenceSession(str(folder / BACKBONE), providers=["CPUExecutionProvider"])
        assert all(np.isfinite(v).all() for v in session.run(None, {"spatial_features": spatial[0]}))
        assert yaml.safe_load((folder / "model.yaml").read_text())["precision"] == "int8"
    assert len(layers) == 1 and len(layers.pop()) > 10


def test_other_steps_leave_the_integer_weights_and_scale_the_biases(ablation):
    work, _, _ = ablation
    found = {folder.name: (folder, settings) for folder, settings in models(work)}
    checked = 0
    for folder, settings in found.values():
        if settings.get("method") not in baselines.STEP_METHODS:
            continue
        mine, reference = (onnx.load(f / BACKBONE) for f in (folder, found[settings["reference"]][0]))
        a, b = onnx_graph.constants(mine), onnx_graph.constants(reference)
        assert a.keys() == b.keys()
        integer = [n for n in a if a[n].dtype == np.int8]
        assert integer and all(np.array_equal(a[n], b[n]) for n in integer)
        for name in (n for n in a if a[n].dtype == np.int32 and a[n].any()):
            steps = name.replace("_quantized", "_scale")
            error = np.abs(a[name] * a[steps].astype(float) - b[name] * b[steps].astype(float))
            assert (error <= 0.501 * a[steps]).all()
            checked += 1
    assert checked > 10


def test_max_min_leaves_every_step_at_the_extremes(ablation):
    work, _, _ = ablation
    folders = [f for f, s in models(work) if s.get("recipe", {}).get("name") == "ablation_max-min"]
    assert len(folders) == 2
    for folder in folders:
        report = json.loads((folder / "report.json").read_text())
        assert report["frames"]["calibration"] == 4
        assert all(t["chosen"] == t["max_min"] for t in report["tensors"])
        assert all(clip == 1.0 for layer in report["layers"] for clip in layer["clip"])


def test_a_second_run_makes_nothing_again(ablation):
    work, first, run = ablation
    before = {p: p.stat().st_mtime_ns for p in (work / "models").iterdir()}
    (work / "results.json").unlink()
    assert run() == first
    assert {p: p.stat().st_mtime_ns for p in (work / "models").iterdir()} == before


def test_rows_of_the_results_file_are_not_measured_again(ablation):
    work, first, run = ablation
    for folder in ("models", "boxes", "scores"):
        (work / folder).rename(work / f"{folder}_away")
    try:
        assert run() == first
        assert not (work / "models").exists()
    finally:
        for folder in ("models", "boxes", "scores"):
            (work / f"{folder}_away").rename(work / folder)
