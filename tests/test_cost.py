"""The full-size model that calibrations are timed with (benches/cost), in small: the network of its kind is what it says."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches" / "cost"))
import make_model  # noqa: E402

GRID = 32


@pytest.fixture(scope="module")
def network():
    """A smaller one, the maps it was made on, and the run of a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_model, "GRID", GRID)
        patch.setattr(make_model, "STAGES", ((8, 1, 2), (16, 2, 2), (16, 2, 2)))
        patch.setattr(make_model, "PEAKS_A_FRAME", 7)
        random = np.random.default_rng(3)
        occupied = random.random((2, 1, 1, GRID, GRID)) < 0.2
        maps = [m.astype(np.float32) for m in random.random((2, 1, make_model.CHANNELS_IN, GRID, GRID)) * occupied]
        model = make_model.build(maps, seed=4)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return model, [dict(zip(names, session.run(names, {"spatial_features": m}))) for m in maps]


def test_it_has_the_heads_of_the_layout_at_the_grids_resolution(network):
    model, outputs = network
    onnx.checker.check_model(model, full_check=True)
    assert list(outputs[0]) == list(make_model.HEADS)
    for name, channels in make_model.HEADS.items():
        assert outputs[0][name].shape == (1, channels, GRID, GRID)


def test_the_wanted_number_of_peaks_passes_the_score(network):
    _, outputs = network
    found = 0
    for o in outputs:
        scores = 1 / (1 + np.exp(-o["heatmap"][0]))
        padded = np.pad(scores, ((0, 0), (1, 1), (1, 1)))
        around = np.max([padded[:, i : i + GRID, j : j + GRID] for i in range(3) for j in range(3)], axis=0)
        found += int(((scores == around) & (scores >= make_model.SCORE - 1e-4)).sum())
    assert found == pytest.approx(2 * 7, abs=1)


def test_boxes_are_spread_as_a_trained_networks(network):
    _, outputs = network
    for head, (mean, deviation) in make_model.OUTPUT_SPREAD.items():
        values = np.concatenate([o[head].ravel() for o in outputs])
        assert values.mean() == pytest.approx(mean, abs=0.35 * deviation + 0.1)
        assert values.std() == pytest.approx(deviation, rel=0.35)
