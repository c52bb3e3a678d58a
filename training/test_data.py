"""Batches of `data.py` are held against plain NumPy (`reference.py`), on the CPU and on a GPU where there is one.

    python -m pytest training        # in the environment of training/requirements.txt
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import reference
from bags import STEP
from data import Sweeps, View, pillarize
from model import CLASSES, CenterPoint, Grid
from scores import matches, score_class

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
GRID = Grid()


def random_boxes(rng, n, extent=54):
    return np.concatenate([
        rng.integers(0, len(CLASSES), (n, 1)), rng.uniform(-extent, extent, (n, 2)), rng.uniform(0, 2, (n, 1)),
        rng.uniform(0.5, 13, (n, 1)), rng.uniform(0.4, 3, (n, 1)), rng.uniform(1, 4, (n, 1)),
        rng.uniform(-np.pi, np.pi, (n, 1)), rng.uniform(-15, 15, (n, 2)), rng.integers(0, 9, (n, 1))], 1)


@pytest.fixture
def folder(tmp_path):
    """Two scenes of three sweeps as `bags.convert` writes them, crowded enough for full pillars and shared cells."""
    rng = np.random.default_rng(3)
    lengths = [9000, 7000, 8000, 6000, 0, 5000]
    xyz = np.concatenate([rng.normal(0, 15, (sum(lengths), 2)), rng.uniform(-4, 6, (sum(lengths), 1))], 1)
    xyz[::3, :2] = rng.normal(3, 0.6, xyz[::3, :2].shape)
    np.round(np.clip(xyz, -78, 78) / STEP).astype("<i2").tofile(tmp_path / "points.i16")
    poses = np.tile(np.eye(4), (6, 1, 1))
    for i, pose in enumerate(poses):
        c, s = np.cos(0.05 * i), np.sin(0.05 * i)
        pose[:2, :2], pose[:3, 3] = [[c, -s], [s, c]], [1.3 * i, 0.2 * i, 0.01 * i]
    boxes = [random_boxes(rng, n) for n in (40, 0, 25, 60, 9, 80)]
    boxes[3][:, 1:3] *= 0.1  # a crowd
    np.savez(tmp_path / "frames.npz", offsets=np.cumsum([0] + lengths), poses=poses,
             stamps=np.array([0, 1, 2, 100, 101, 102]) * 10**8, boxes=np.concatenate(boxes).astype(np.float32),
             box_offsets=np.cumsum([0] + [len(b) for b in boxes]))
    return tmp_path


@pytest.fixture(params=DEVICES)
def sweeps(request, folder):
    out = Sweeps(request.param, 100_000)
    assert out.add(folder)
    return out


def views(n):
    rng = np.random.default_rng(5)
    return [View.draw(rng, 0.7) for _ in range(n)]


def test_frames_are_joined_and_shown_as_the_reference_does_it(sweeps, folder):
    from bags import Recording
    recording = Recording(folder)
    picks = list(zip([5, 0, 2, 4, 1, 3, 5, 2], views(8)))
    points, frame = (t.cpu().numpy() for t in sweeps.joined(picks))
    for k, (i, view) in enumerate(picks):
        expected, boxes = reference.augment(recording.frame(i, view.two), recording.boxes(i), view)
        np.testing.assert_allclose(points[frame == k], expected, atol=2e-5 * 78)
        got = view.boxes(recording.boxes(i))
        turn = got[:, 7] - boxes[:, 7]
        np.testing.assert_allclose(np.sin(turn), 0, atol=1e-6)
        assert (np.cos(turn) > 0).all()
        np.testing.assert_allclose(np.delete(got, 7, 1), np.delete(boxes, 7, 1), atol=1e-5)
    assert sorted(set(np.round(points[:, 3], 6))) == [0, 0.1]


def test_pillars_are_those_of_the_reference(sweeps):
    picks = list(zip([5, 0, 2, 4, 1, 3], views(6)))
    points, frame = sweeps.joined(picks)
    features, counts, cells = (t.cpu().numpy() for t in pillarize(points, frame, len(picks), GRID))
    points, frame = points.cpu().numpy(), frame.cpu().numpy()
    expected = [reference.pillarize(points[frame == k], GRID) for k in range(len(picks))]
    np.testing.assert_array_equal(counts, np.concatenate([e[1] for e in expected]))
    np.testing.assert_array_equal(cells, np.concatenate([e[2] + k * GRID.size**2 for k, e in enumerate(expected)]))
    np.testing.assert_allclose(features, np.concatenate([e[0] for e in expected]), atol=2e-5)
    assert (counts == GRID.max_points).any() and (counts == 1).any()


def test_targets_are_those_of_the_reference(sweeps):
    picks = list(zip([5, 0, 2, 4, 1, 3], views(6)))
    batch = sweeps.batch(picks, GRID)
    size = GRID.size // GRID.downsample
    rows, objects = [], 0
    for k, (i, view) in enumerate(picks):
        boxes = view.boxes(sweeps.boxes[i])
        heat, judged, targets = reference.targets(boxes, GRID)
        np.testing.assert_allclose(batch["heat"][k].cpu().numpy(), heat, atol=1e-6)
        np.testing.assert_array_equal(batch["judged"][k].cpu().numpy(), judged)
        for at, values, weight, owner in targets:
            two = float(view.two and sweeps.lag[i] > 0)
            rows.append([at + k * size * size, *values, weight, boxes[owner, 0], two])
        objects += len({owner for *_, owner in targets})
    got = np.concatenate([batch[n].cpu().numpy().reshape(len(batch["at"]), -1)
                          for n in ("at", "values", "weight", "label", "two_sweeps")], 1)
    rows = np.array(rows)
    assert got.shape == rows.shape
    np.testing.assert_allclose(got[np.lexsort(got.round(3).T)], rows[np.lexsort(rows.round(3).T)], rtol=1e-5, atol=1e-4)
    assert batch["objects"].sum() == objects
    assert (batch["judged"] == 0).any()


def test_training_and_deployed_encoder_agree(sweeps):
    torch.manual_seed(1)
    encoder = CenterPoint(GRID).to(sweeps.device).eval().encoder
    encoder.norm.running_mean.uniform_(-1, 1)
    batch = sweeps.batch([(5, View()), (0, View())], GRID)
    flat = encoder.forward_flat(batch["features"], batch["counts"], GRID.max_points)
    counts = batch["counts"]
    padded = torch.zeros(len(counts), GRID.max_points, 9, device=sweeps.device)
    group = torch.repeat_interleave(torch.arange(len(counts), device=sweeps.device), counts)
    rank = torch.arange(len(group), device=sweeps.device) - (counts.cumsum(0) - counts)[group]
    padded[group, rank] = batch["features"]
    encoder.fold_scale()
    torch.testing.assert_close(encoder(padded)[:, 0], flat, atol=1e-4, rtol=1e-4)


def test_a_full_buffer_takes_nothing_more(folder):
    sweeps = Sweeps("cpu", 40_000)
    assert sweeps.add(folder) and not sweeps.add(folder)
    assert len(sweeps) == 6


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 20e9, reason="needs 20 GB on a GPU")
def test_buffers_of_more_than_two_to_the_31_values_are_read_right(folder):
    near, far = Sweeps("cuda", 100_000), Sweeps("cuda", 2 * 10**9)
    far.used = len(far.points) - 50_000
    assert near.add(folder) and far.add(folder)
    picks = [(5, View()), (2, View())]
    torch.testing.assert_close(far.joined(picks)[0], near.joined(picks)[0], atol=0, rtol=0)


def test_scores_of_known_boxes():
    box = lambda x, yaw, speed, cls=0: [cls, x, 0, 1, 4, 2, 1.5, yaw, speed * np.cos(yaw), speed * np.sin(yaw), 9]
    truth = np.array([box(5, 0.1, 10), box(15, 0.2, 0), box(25, 3.0, 5), box(70, 0, 0)])
    found = np.array([
        [0, 0.9, 5.5, 0, 0.2, 8, 0],  # axis off by 0.1, 8 m/s for 10
        [0, 0.8, 15.0, 0, 0.2 + np.pi, 0, 0],  # turned round
        [0, 0.7, 40.0, 0, 0, 0, 0],  # nothing there
        [0, 0.2, 26.0, 0, 3.0, -5, 0],  # found, below the deployed score
        [1, 0.9, 5.0, 0, 0, 0, 0]])
    assert list(matches(found[:4], truth[:3], 2.0)) == [0, 1, -1, 2]
    s = score_class([found], [truth], [True], 0)
    assert (s["truths"], s["boxes"], s["moving"]) == (3, 2, 1)
    # Precision 1 up to a recall of 2/3 (67 of 101 levels), 3/4 beyond.
    assert s["ap"] == pytest.approx((67 + 34 * 0.75) / 101)
    assert s["axis_degrees"] == pytest.approx(np.degrees(0.05))
    assert s["turned_round"] == 0.5
    assert (s["speed"], s["speed_said"]) == (pytest.approx(10), pytest.approx(8))
