"""`centerpoint_ptq evaluate` against an independent NumPy evaluation, number by number.

Random detections and labels go through the command line as files; average precision (both
definitions), counts, box errors, distance bands and ignored objects must come out as written here.
`make test` builds the binary first (CENTERPOINT_PTQ_BIN names another one; tests/conftest.py).
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ["CAR", "TRUCK", "PEDESTRIAN"]
DISTANCES = [0.5, 1.0, 2.0, 4.0]
BANDS = {"all": (0, np.inf), "0-30": (0, 30), "30-50": (30, 50), "50+": (50, np.inf)}


# --- a recording that never was ----------------------------------------------------------------


def recording(seed: int, frames: int = 12) -> tuple[dict, dict]:
    """Labels and detections: noisy copies of the truths, doubles, misses and false ones."""
    rng = np.random.default_rng(seed)
    labels, found = {}, {}
    for frame in range(frames):
        stamp = 1_700_000_000_000_000_000 + frame * 100_000_000
        truths, detections = [], []
        for _ in range(rng.integers(5, 25)):
            radius, azimuth = rng.uniform(2, 75), rng.uniform(-np.pi, np.pi)
            cls = int(rng.choice(3, p=[0.5, 0.2, 0.3]))
            truth = {
                # "VAN" is to be ignored for every class, "TREE" means nothing.
                "label": str(rng.choice([CLASSES[cls], "VAN", "TREE"], p=[0.86, 0.07, 0.07])),
                "center": [radius * np.cos(azimuth), radius * np.sin(azimuth), rng.uniform(0, 2)],
                "size_lwh": (np.array([4.2, 1.9, 1.6]) * rng.uniform(0.5, 1.5, 3)).tolist(),
                "yaw": rng.uniform(-np.pi, np.pi),
            }
            if rng.random() < 0.8:
                truth["velocity"] = rng.normal(0, 4, 2).tolist()
            if rng.random() < 0.8:
                truth["points"] = int(rng.integers(0, 30))
            truths.append(truth)
            for _ in range(rng.choice(3, p=[0.2, 0.6, 0.2])):
                detection = {
                    "center": (truth["center"] + rng.normal(0, 0.7, 3)).tolist(),
                    "size_lwh": (truth["size_lwh"] * rng.uniform(0.8, 1.2, 3)).tolist(),
                    "yaw": truth["yaw"] + rng.normal(0, 0.5),
                    "label": CLASSES[cls if rng.random() < 0.9 else int(rng.integers(3))],
                    "score": score(rng),
                }
                if rng.random() < 0.9:
                    detection["velocity"] = rng.normal(0, 4, 2).tolist()
                detections.append(detection)
        for _ in range(rng.integers(0, 10)):
            detections.append(
                {
                    "center": rng.uniform(-60, 60, 3).tolist(),
                    "size_lwh": rng.uniform(0.5, 5, 3).tolist(),
                    "yaw": rng.uniform(-np.pi, np.pi),
                    "label": CLASSES[int(rng.integers(3))],
                    "score": score(rng),
                }
            )
        labels[str(stamp)] = truths
        found[str(stamp)] = detections
    return labels, found


def score(rng: np.random.Generator) -> float:
    """In steps of 1/32, so that scores tie, as those of an INT8 model do."""
    return int(rng.integers(2, 32)) / 32


def run(program: Path, folder: Path, labels: dict, *boxes: dict, options: list[str] = ()) -> dict:
    (folder / "labels.json").write_text(json.dumps(labels))
    command = [program, "evaluate", "--json", "--truth", folder, "--class-map", "VAN=ignore"]
    command += ["--classes", ",".join(CLASSES)]
    for index, content in enumerate(boxes, start=1):
        path = folder / f"boxes{index}.json"
        path.write_text(json.dumps(content))
        command += ["--detections" + ("2" if index == 2 else ""), path]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the reference -----------------------------------------------------------------------------


def ground(box: dict) -> np.ndarray:
    # Positions are stored as 32-bit floats.
    return np.asarray(box["center"], np.float32)[:2].astype(np.float64)


def distance_from_origin(box: dict) -> float:
    return float(np.hypot(*ground(box)))


class Reference:
    def __init__(self, labels: dict, boxes: dict, min_points: int, max_range: float):
        self.frames = [(labels[stamp], detections) for stamp, detections in boxes.items()]
        self.min_points, self.max_range = min_points, max_range

    def counts(self, truth: dict) -> bool:
        enough = truth.get("points", self.min_points) >= self.min_points
        return enough and distance_from_origin(truth) < self.max_range

    def matched(self, name: str, distance: float) -> list[dict]:
        """Outcomes over the whole recording in one sorted pass, as the nuScenes devkit goes."""
        everything = [
            (index, detection)
            for index, (_, detections) in enumerate(self.frames)
            for detection in detections
            if detection["label"] == name
        ]
        scores = np.array([d["score"] for _, d in everything])
        taken, outcomes = set(), []

        def nearest(frame: int, position: np.ndarray, wanted) -> int | None:
            truths = self.frames[frame][0]
            free = [i for i, t in enumerate(truths) if wanted(t) and (frame, i) not in taken]
            if not free:
                return None
            gaps = [np.linalg.norm(ground(truths[i]) - position) for i in free]
            best = int(np.argmin(gaps))
            if gaps[best] >= distance:
                return None
            taken.add((frame, free[best]))
            return free[best]

        for i in np.argsort(-scores, kind="stable"):
            frame, detection = everything[i]
            position = ground(detection)
            hit = nearest(frame, position, lambda t: t["label"] == name and self.counts(t))
            if hit is not None:
                truth = self.frames[frame][0][hit]
                outcomes.append({"hit": True, "range": distance_from_origin(truth),
                                 "truth": truth, "detection": detection})
                continue
            forgiven = nearest(
                frame,
                position,
                lambda t: t["label"] == "VAN" or (t["label"] == name and not self.counts(t)),
            )
            if forgiven is None and distance_from_origin(detection) < self.max_range:
                outcomes.append({"hit": False, "range": distance_from_origin(detection)})
        return outcomes

    def truths(self, name: str, band: str) -> tuple[int, int]:
        low, high = BANDS[band]
        here = [
            self.counts(t)
            for truths, _ in self.frames
            for t in truths
            if t["label"] == name and low <= distance_from_origin(t) < high
        ]
        return sum(here), len(here) - sum(here)


def average_precision(hits: np.ndarray, truths: int) -> tuple[float | None, float | None]:
    if truths == 0:
        return None, None
    if len(hits) == 0:
        return 0.0, 0.0
    found = np.cumsum(hits).astype(float)
    precision = found / np.arange(1, len(hits) + 1)
    curve = np.interp(np.linspace(0, 1, 101), found / truths, precision, right=0)
    # The devkit's calc_ap with min_recall = min_precision = 0.1.
    tail = curve[round(100 * 0.1) + 1 :] - 0.1
    return float(curve.mean()), float(np.maximum(tail, 0).mean() / 0.9)


def errors(outcomes: list[dict]) -> dict[str, float | None]:
    translation, scale, orientation, velocity = [], [], [], []
    for outcome in outcomes:
        if not outcome["hit"]:
            continue
        truth, detection = outcome["truth"], outcome["detection"]
        translation.append(np.linalg.norm(ground(truth) - ground(detection)))
        a, b = np.array(truth["size_lwh"]), np.array(detection["size_lwh"])
        shared = np.prod(np.minimum(a, b))
        scale.append(1 - shared / (np.prod(a) + np.prod(b) - shared))
        turn = detection["yaw"] - truth["yaw"]
        orientation.append(abs(np.arctan2(np.sin(turn), np.cos(turn))))
        if "velocity" in truth and "velocity" in detection:
            velocity.append(np.linalg.norm(np.subtract(truth["velocity"], detection["velocity"])))
    named = zip(["translation", "scale", "orientation", "velocity"],
                [translation, scale, orientation, velocity])
    return {name: float(np.mean(values)) if values else None for name, values in named}


def same(found: float | None, expected: float | None, tolerance: float) -> bool:
    if found is None or expected is None:
        return found is expected
    return abs(found - expected) <= tolerance


# --- the comparison ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("min_points", "max_range"), [(5, 50.0), (0, 1e6)])
def test_every_score_equals_the_numpy_reference(program, tmp_path, seed, min_points, max_range):
    labels, boxes = recording(seed)
    options = ["--min-points", str(min_points), "--max-range", str(max_range)]
    result = run(program, tmp_path, labels, boxes, options=options)
    evaluation = result["models"][0]["evaluation"]
    reference = Reference(labels, boxes, min_points, max_range)
    headline, clipped_of_classes = [], []

    assert result["frames"] == len(labels)
    assert [c["class"] for c in evaluation["classes"]] == CLASSES
    compared = 0
    for row in evaluation["classes"]:
        name = row["class"]
        matched = {d: reference.matched(name, d) for d in DISTANCES}
        for scores in [row["all"], *row["bands"]]:
            low, high = BANDS[scores["band"]]
            where = f"{name} {scores['band']}"
            counted, ignored = reference.truths(name, scores["band"])
            assert (scores["truths"], scores["ignored"]) == (counted, ignored), where
            clipped = []
            assert [at["distance"] for at in scores["at"]] == DISTANCES
            for at in scores["at"]:
                here = [o for o in matched[at["distance"]] if low <= o["range"] < high]
                hits = np.array([o["hit"] for o in here], int)
                plain, nuscenes = average_precision(hits, counted)
                assert at["hits"] == hits.sum(), where
                assert at["false_positives"] == len(hits) - hits.sum(), where
                assert same(at["ap"], plain, 1e-9), (where, at, plain)
                assert same(at["ap_nuscenes"], nuscenes, 1e-9), (where, at, nuscenes)
                clipped.append(nuscenes)
                compared += 1
                if at["distance"] == 2.0:
                    assert scores["ap"] == at["ap"], where
                    for key, expected in errors(here).items():
                        assert same(scores["errors"][key], expected, 1e-5), (where, key)
            mean = None if None in clipped else float(np.mean(clipped))
            assert same(scores["ap_nuscenes"], mean, 1e-9), where
        headline.append(row["all"]["ap"])
        clipped_of_classes.append(row["all"]["ap_nuscenes"])
    assert same(evaluation["mean_ap"], float(np.mean(headline)), 1e-9)
    assert same(evaluation["mean_ap_nuscenes"], float(np.mean(clipped_of_classes)), 1e-9)
    assert compared == len(CLASSES) * len(BANDS) * len(DISTANCES)
    assert 0.1 < evaluation["mean_ap"] < 0.95, "the recording should be neither hopeless nor easy"


def test_two_models_get_a_difference_and_an_agreement(program, tmp_path):
    labels, first = recording(7)
    _, second = recording(7)
    for detections in second.values():
        del detections[::3]
    result = run(program, tmp_path, labels, first, second, options=["--resamples", "100"])
    means = [m["evaluation"]["mean_ap"] for m in result["models"]]
    mean = next(d for d in result["difference"] if d["class"] == "mean")
    assert mean["difference"] == pytest.approx(means[1] - means[0], abs=1e-12)
    assert mean["lower"] <= mean["difference"] <= mean["upper"]
    agreement = result["agreement"]["total"]
    total = [sum(map(len, boxes.values())) for boxes in (first, second)]
    assert (agreement["matched"], agreement["missed"], agreement["extra"]) == (
        total[1],
        total[0] - total[1],
        0,
    )


def test_the_same_model_twice_differs_by_nothing(program, tmp_path):
    labels, boxes = recording(3)
    result = run(program, tmp_path, labels, boxes, boxes, options=["--resamples", "50"])
    for row in result["difference"]:
        assert (row["difference"], row["lower"], row["upper"]) == (0, 0, 0)
    assert result["agreement"]["total"]["f1"] == 1
    assert result["agreement"]["total"]["centre"]["max"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels, boxes: labels.clear(), "none of the 12 frames"),
        (lambda labels, boxes: labels.update(soon=[]), "key soon"),
        (lambda labels, boxes: boxes.update(then=[]), "key then"),
        (lambda labels, boxes: next(iter(boxes.values()))[0].pop("score"), "score"),
        (lambda labels, boxes: next(iter(boxes.values()))[0].update(label="TRAM"), "TRAM"),
    ],
)
def test_a_fault_in_a_file_is_named(program, tmp_path, change, message):
    labels, boxes = recording(1)
    change(labels, boxes)
    with pytest.raises(AssertionError, match=message):
        run(program, tmp_path, labels, boxes)
