"""What the studies share: the program, a store that skips what exists, and one row's way from recipe to figures.

Everything that is made is kept under a name that is the hash of what it was made from (settings, files, program,
code), so a study can be stopped at any time and goes on where it was.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml

import baselines
import frames

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
REFUSED = 3  # exit code of `quantize`: written, but the gate says no

# --- what is assumed about recipes: the only place that knows their keys ---------------------------------------

QUICK, STANDARD, EQUALIZED = "calibration/quick.yaml", "calibration/standard.yaml", "calibration/w4a4.yaml"
# s0 itself is always the first candidate; the others are s0 again and a step so large that all becomes zero, which
# never has a smaller error and ties go to the first. So the max-min step stays, exactly.
MAX_MIN_SEARCH = {"alpha": 1.0, "beta": 1.0e9, "steps": 2, "p": 2.0}
INPUT_BITS = 8  # of the layers that read the network's input, where others have fewer; the same for all calibrators
HELD_OUT = 4  # frames that `quantize` keeps for its own gate
OUR_METHODS = ("max-min", "grid", "rounding", "tgpl", "equalized")


# Keys of a recipe, with dots between the levels, and what they are set to, as YAML.
Changes = tuple[tuple[str, str], ...]


def recipe(method: str, weight_bits: int, activation_bits: int, frame_count: int, changes: Changes = ()) -> dict:
    """The recipe of one of our stages; each stage has those before it. `changes` come last.

    `frame_count`, a multiple of 4, is how many frames calibrate; 4 more are held out for the gate, whose verdict
    plays no part here.
    """
    stage = OUR_METHODS.index(method)
    file = QUICK if stage < 2 else STANDARD
    if not (ROOT / file).is_file():
        raise SystemExit(f"method {method}: there is no {file}; leave it out with --methods")
    wanted = yaml.safe_load((ROOT / file).read_text())
    wanted["name"] = f"ablation_{method}"
    every = frame_count // HELD_OUT + 1
    wanted["frames"].update(
        max=frame_count + HELD_OUT, block=1, hold_out_every=every, min_calibration=1, min_held_out=1
    )
    for part, bits in (("weights", weight_bits), ("activations", activation_bits)):
        wanted[part]["bits"] = bits
        if bits < 8:
            wanted["input_bits"] = INPUT_BITS
        if method == "max-min":
            wanted[part]["search"] = dict(MAX_MIN_SEARCH)
    if stage >= 2:
        loss = (wanted.get("reconstruction") or {}).get("tgpl") or {}
        if "weight" not in loss:
            raise SystemExit(
                f"method {method}: {file} has no `reconstruction.tgpl.weight`; leave it out with --methods"
            )
        if method == "rounding":
            loss["weight"] = 0.0
        if method == "equalized":
            wanted["equalization"] = yaml.safe_load((ROOT / EQUALIZED).read_text())["equalization"]
        # Measured for the report only; it changes nothing here.
        wanted.pop("sensitivity", None)
    for name, value in changes:
        *parents, last = name.split(".")
        part = wanted
        for parent in parents:
            part = part[parent]
        part[last] = yaml.safe_load(value)
    return wanted


# --- store -----------------------------------------------------------------------------------------------------


@cache
def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode())
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


@cache
def code_hash() -> str:
    """Hash of the code that makes baseline models."""
    files = (HERE / name for name in ("baselines.py", "calibrators.py", "frames.py", "onnx_graph.py"))
    return hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class Store:
    """Files and folders by the hash of the settings that made them, under build/ablation by default."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, kind: str, settings: dict, suffix: str = "") -> Path:
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return self.root / kind / (key + suffix)

    def make(self, kind: str, settings: dict, build, suffix: str = "") -> Path:
        """Calls `build(path)` unless it was made before. The settings stand beside it as .settings.json."""
        path = self.path(kind, settings, suffix)
        if path.exists():
            return path
        with self._locked(f"{kind}_{path.name}"):
            if not path.exists():
                partial = path.with_name(path.name + ".partial")
                path.parent.mkdir(parents=True, exist_ok=True)
                remove(partial)
                build(partial)
                write_atomically(path.with_name(path.name + ".settings.json"), json.dumps(settings, indent=1))
                os.replace(partial, path)
        return path

    @contextmanager
    def _locked(self, name: str):
        """Rows measured at the same time often need the same thing: one makes it, the others wait."""
        file = self.root / "locks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Results:
    """The rows of a study by their keys, in a file: none is measured twice."""

    def __init__(self, path: Path, fresh: bool):
        self.path = path
        rows = json.loads(path.read_text())["rows"] if path.is_file() and not fresh else []
        self.rows = {r["key"]: r for r in rows}

    def of(self, keys: list[str]) -> list[dict]:
        """Those of these that are there, in this order."""
        return [self.rows[k] for k in keys if k in self.rows]

    def keep(self, row: dict, keys: list[str], about: dict) -> None:
        """Adds a row and writes all: those of `keys` first and in that order, then the others."""
        self.rows[row["key"]] = row
        rows = self.of(keys) + [r for k, r in self.rows.items() if k not in set(keys)]
        write_atomically(self.path, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


# --- program ---------------------------------------------------------------------------------------------------


@dataclass
class Program:
    """`centerpoint_ptq`, run at low priority."""

    path: Path
    threads: int = 0

    def command(self, *arguments) -> list[str]:
        return [str(self.path), *map(str, arguments)]

    def run(self, *arguments, accepted=(0,)) -> None:
        """Runs it; another exit code is an error with what the program said."""
        command = self.command(*arguments)
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode not in accepted:
            raise RuntimeError(f"{' '.join(command)}\nexit code {result.returncode}\n{result.stderr or result.stdout}")

    @property
    def hash(self) -> str:
        return file_hash(self.path)


@dataclass(frozen=True)
class Drive:
    """A simulated drive. Noise is the range's standard deviation in metres, the sensor's own if None."""

    sensor: str
    frames: int
    scenes: int
    seed: int
    noise: float | None = None

    def options(self) -> list:
        fixed = ["--sensor", self.sensor, "--frames", self.frames, "--scenes", self.scenes, "--seed", self.seed]
        return fixed + ([] if self.noise is None else ["--noise", self.noise])


@dataclass(frozen=True)
class Bag:
    """A recording: where, what `detect` needs to read it, and whether labels lie beside it."""

    path: Path
    options: tuple[str, ...] = ()
    labelled: bool = True


@dataclass(frozen=True)
class Setting:
    """One model of a study."""

    method: str
    weight_bits: int
    activation_bits: int
    drive: Drive
    frame_count: int
    changes: Changes = ()

    @property
    def bits(self) -> str:
        return f"W{self.weight_bits}A{self.activation_bits}"

    def recipe(self) -> dict:
        """Of one of our methods."""
        return recipe(self.method, self.weight_bits, self.activation_bits, self.frame_count, self.changes)


# Poses of the sensor above the ground: the model expects the ground at z = 0.
REAL = {
    "argoverse": ("argoverse1_drive", ("--sensor-pose", "0 0 0.3 0 0 0")),
    "kitti": ("kitti_drive_0052", ("--sensor-pose", "0 0 1.73 0 0 0")),
}


def real_recordings() -> dict[str, Bag]:
    """The recordings below CENTERPOINT_PTQ_DATA; none if that is not set."""
    data = os.environ.get("CENTERPOINT_PTQ_DATA")
    if not data:
        return {}
    return {name: Bag(Path(data) / folder, options, False) for name, (folder, options) in REAL.items()}


# --- one row ---------------------------------------------------------------------------------------------------


@dataclass
class Study:
    """Makes models and scores them, with everything made kept in the store."""

    program: Program
    store: Store
    float_model: Path
    # Scores from which boxes enter the precision-recall curve; agreement keeps to the description's.
    open_score: float = 0.05
    resamples: int = 1000
    block: int = 10  # frames that the bootstrap draws as one run

    def bag(self, drive: Drive) -> Path:
        """The bag of a simulated drive."""
        return self.store.make(
            "bags",
            {"drive": vars(drive), "program": self.program.hash},
            lambda path: self.program.run("simulate", *drive.options(), "--out", path),
        )

    def model(self, s: Setting) -> Path:
        """The folder of a model."""
        if s.method == "float":
            return self.float_model
        return self._ours(s) if s.method in OUR_METHODS else self._baseline(s)

    def _ours(self, s: Setting) -> Path:
        wanted = s.recipe()
        bag = self.bag(s.drive)

        def build(path: Path) -> None:
            file = path.with_suffix(".yaml")
            file.write_text(yaml.safe_dump(wanted, sort_keys=False))
            try:
                self.program.run(
                    "quantize", "--model", self.float_model, "--bag", bag, "--recipe", file, "--out", path,
                    # Every frame counts in studies of so few.
                    "--allow-few-sweeps", "--threads", self.program.threads, "--progress", "none", accepted=(0, REFUSED),
                )  # fmt: skip
            finally:
                file.unlink()
            if s.method == "max-min":
                assert_max_min(json.loads((path / "report.json").read_text()))

        settings = {"recipe": wanted, "bag": bag.name, "float": file_hash(self.float_model)}
        return self.store.make("models", {**settings, "program": self.program.hash}, build)

    def _baseline(self, s: Setting) -> Path:
        reference = self._ours(Setting("max-min", s.weight_bits, s.activation_bits, s.drive, s.frame_count))
        settings = {"method": s.method, "reference": reference.name, "code": code_hash()}
        return self.store.make("models", settings, lambda path: self._build_baseline(s, reference, path))

    def _build_baseline(self, s: Setting, reference: Path, path: Path) -> None:
        spatial = self._spatial(s, reference)
        arguments = ["--float", self.float_model, "--reference", reference, "--spatial", spatial]
        # A process of its own: ONNX Runtime's calibrators keep memory, and NNCF has its own Python.
        python = os.environ.get("CENTERPOINT_PTQ_NNCF_PYTHON") if s.method == "nncf" else sys.executable
        if not python:
            raise SystemExit("method nncf: CENTERPOINT_PTQ_NNCF_PYTHON is not set; see requirements.txt")
        command = [python, HERE / "baselines.py", *arguments, "--method", s.method, "--out", path]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{s.method}: {result.stderr}")

    def _spatial(self, s: Setting, reference: Path) -> Path:
        """The calibration frames, the same for all bit widths."""
        report = json.loads((reference / "report.json").read_text())
        settings = {"frames": report["frames"]["sha256"], "float": file_hash(self.float_model), "code": code_hash()}
        detect = self.program.command("detect", "--model", self.float_model, "--bag", self.bag(s.drive))

        def build(path: Path) -> None:
            frames.collect(detect, report, path.with_suffix(".dump"), path)

        return self.store.make("spatial", settings, build, ".npz")

    def boxes(self, model: Path, bag: Bag, limit: int | None) -> dict[str, Path]:
        """Boxes of a model on a bag: `open` down to a low score for precision, `deployed` as described.

        Suppression goes from high scores to low ones, so the deployed boxes are the open ones above the
        description's thresholds.
        """
        settings = {
            "model": file_hash(model), "bag": file_hash(bag.path), "options": bag.options, "limit": limit,
            "open": self.open_score, "program": self.program.hash,
        }  # fmt: skip
        folder = self.store.make("boxes", settings, lambda path: self._detect(model, bag, limit, path))
        return {kind: folder / f"{kind}.json" for kind in ("open", "deployed")}

    def _detect(self, model: Path, bag: Bag, limit: int | None, path: Path) -> None:
        path.mkdir()
        description = yaml.safe_load((model / "model.yaml").read_text())
        thresholds = dict(zip(description["classes"], description["post"]["score_thresholds"]))
        description["post"]["score_thresholds"] = [min(t, self.open_score) for t in thresholds.values()]
        for file in model.glob("*.onnx*"):
            (path / file.name).symlink_to(file.resolve())
        (path / "model.yaml").write_text(yaml.safe_dump(description))
        extra = [] if limit is None else ["--limit", limit]
        self.program.run(
            "detect", "--model", path / "model.yaml", "--bag", bag.path, *bag.options, *extra,
            "--threads", self.program.threads, "--out", path / "open.json",
        )  # fmt: skip
        found = json.loads((path / "open.json").read_text())
        deployed = {
            stamp: [b for b in boxes if b["score"] >= np.float32(thresholds[b["label"]])]
            for stamp, boxes in found.items()
        }
        (path / "deployed.json").write_text(json.dumps(deployed))

    def score(self, model: Path, bag: Bag, limit: int | None = None) -> dict:
        """A model's figures on a bag beside the float model's, from `centerpoint_ptq evaluate`."""
        classes = yaml.safe_load((self.float_model / "model.yaml").read_text())["classes"]
        mine, theirs = self.boxes(model, bag, limit), self.boxes(self.float_model, bag, limit)
        kinds = {"deployed": []}
        if bag.labelled:
            kinds["open"] = ["--truth", bag.path, "--resamples", self.resamples, "--block", self.block]
        found = {}
        for kind, options in kinds.items():
            files = ["--detections", theirs[kind], "--detections2", mine[kind], "--classes", ",".join(classes)]

            def build(path: Path) -> None:
                self.program.run("evaluate", *files, *options, "--json", "--out", path)

            settings = {
                "boxes": [theirs[kind].parent.name, mine[kind].parent.name], "kind": kind,
                "options": [str(o) for o in options if o is not bag.path], "program": self.program.hash,
            }  # fmt: skip
            found[kind] = json.loads(self.store.make("scores", settings, build, ".json").read_text())
        return summary(found)


def assert_max_min(report: dict) -> None:
    """The recipe of `max-min` must leave every step as the extremes give it."""
    moved = [t["tensors"][0] for t in report["tensors"] if t["chosen"] != t["max_min"]]
    if moved:
        raise RuntimeError(f"max-min: the search moved the step of {', '.join(moved)}")


def summary(found: dict[str, dict]) -> dict:
    """The figures of a row from what `evaluate` said.

    AP at 2 m, per class and distance band; box errors are means over the hits at 2 m (metres, 1 - IoU of
    aligned boxes, radians); agreement is with float, at the deployed thresholds (metres, radians).
    """
    agreement = found["deployed"]["agreement"]
    out = {
        "frames": found["deployed"]["frames"],
        "agreement": {
            key: agreement["total"][key] if key == "f1" else (agreement["total"][key] or {}).get("mean")
            for key in ("f1", "centre", "size", "yaw")
        },
        "agreement_by_band": {cell["band"]: cell["f1"] for cell in agreement["bands"]},
    }
    if "open" not in found:
        return out
    evaluation = found["open"]["models"][1]["evaluation"]
    out["frames"] = found["open"]["frames"]
    out["mean_ap"] = evaluation["mean_ap"]
    out["classes"] = {
        c["class"]: {
            "ap": c["all"]["ap"],
            "bands": {band["band"]: band["ap"] for band in c["bands"]},
            "truths": c["all"]["truths"],
            "errors": c["all"]["errors"],
        }
        for c in evaluation["classes"]
    }
    judged = [c["errors"] for c in out["classes"].values()]
    out["errors"] = {key: mean([e[key] for e in judged]) for key in ("translation", "scale", "orientation", "velocity")}
    out["difference"] = {
        d["class"]: {key: d[key] for key in ("difference", "lower", "upper")} for d in found["open"]["difference"]
    }
    return out


def mean(values: list) -> float | None:
    """Mean of those that are there."""
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def row_key(study: Study, s: Setting, **more) -> str:
    """What a row was measured from, but for the program: its recipe or the baselines' code, float model and frames.

    The gate judges a model that is made already, so it plays no part.
    """
    made_by = code_hash()
    if s.method in OUR_METHODS:
        made_by = {name: part for name, part in s.recipe().items() if name != "gate"}
    parts = {
        "setting": [s.method, s.bits, vars(s.drive), s.frame_count], "made_by": made_by,
        "float": file_hash(study.float_model), "open": study.open_score, **more,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


# --- command line and progress ---------------------------------------------------------------------------------

# Seconds on one core for the demo model, only to say beforehand how long a study takes.
SECONDS_BUILD = {"float": 0, "max-min": 30, "grid": 30, "rounding": 120, "tgpl": 250, "equalized": 250, "nncf": 120}
SECONDS_BUILD_BASELINE = 40
SECONDS_A_FRAME = 0.15


def estimate(settings: list[Setting], held_out_frames: int) -> float:
    """Seconds that these models take to make and to run."""
    of_model = sum(SECONDS_BUILD.get(s.method, SECONDS_BUILD_BASELINE) for s in settings)
    return of_model + len(settings) * held_out_frames * SECONDS_A_FRAME


def common_arguments(description: str) -> argparse.ArgumentParser:
    """The options that every study has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    program = os.environ.get("CENTERPOINT_PTQ_BIN", target / "release" / "centerpoint_ptq")
    parser.add_argument("--program", type=Path, default=Path(program), help="default: CENTERPOINT_PTQ_BIN, or the build's")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo", help="folder of the float model")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablation", help="what is made on the way; kept")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--page", type=Path, help="Markdown page whose marked part is written; plots lie beside it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="rows measured at a time; default: one per core")
    parser.add_argument("--threads", type=int, help="threads of the program; default: the cores shared among the jobs")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the results file has")
    parser.add_argument("--small", action="store_true", help="few frames, one seed: does it work?")
    return parser


def parse(parser: argparse.ArgumentParser, results: str, counts: dict[str, tuple]) -> argparse.Namespace:
    """The options, with the defaults that depend on others: `results` names the file, `counts` the (whole, small) study's
    numbers of frames by option; calibration frames are multiples of the blocks that keep some for the gate."""
    args = parser.parse_args()
    for name, (whole, small) in counts.items():
        setattr(args, name, getattr(args, name) or (small if args.small else whole))
    if any(n % HELD_OUT or n < HELD_OUT for n in [args.frames, *(getattr(args, "frame_counts", None) or [])]):
        parser.error(f"numbers of calibration frames are multiples of {HELD_OUT}")
    if args.jobs < 1:
        parser.error("--jobs: at least 1")
    args.threads = args.threads or max(1, os.cpu_count() // args.jobs)
    args.out = args.out or (args.work if args.small else HERE) / results
    args.page = args.page or (args.work if args.small else ROOT / "docs") / "ablation.md"
    return args


def study(args: argparse.Namespace) -> Study:
    """A study with the options of the command line; lowers the priority of this process and its children."""
    if not args.program.is_file():
        raise SystemExit(f"{args.program} is not there; `make build` makes it")
    if not (args.model / "model.yaml").is_file():
        raise SystemExit(f"{args.model} holds no model.yaml")
    os.nice(10)
    return Study(Program(args.program.resolve(), args.threads), Store(args.work.resolve()), args.model.resolve())


def run_rows(settings: list[Setting], held_out_frames: int, measure, keep, jobs: int) -> None:
    """Calls `measure(index, setting)` for each, `jobs` at a time, and `keep(row)` with each answer, one after the other.

    Estimate and progress go to standard error. A row that fails stops the study; what was kept stays.
    """
    start, left = time.monotonic(), dict(enumerate(settings))

    def minutes() -> str:
        return f"{estimate(list(left.values()), held_out_frames) / 60 / min(jobs, max(1, len(left))):.0f} min"

    print(f"{len(settings)} models, about {minutes()}", file=sys.stderr)
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(measure, i, s): i for i, s in enumerate(settings)}
        try:
            for future in as_completed(running):
                keep(future.result())
                s = left.pop(running[future])
                print(
                    f"[{len(settings) - len(left)}/{len(settings)}] {s.bits} {s.method} seed {s.drive.seed}, {s.frame_count} "
                    f"frames; {time.monotonic() - start:.0f} s in all, about {minutes()} left",
                    file=sys.stderr,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def check_methods(settings: list[Setting]) -> None:
    """An error before hours of work, for a method that this version does not have."""
    for s in settings:
        if s.method in OUR_METHODS:
            s.recipe()
        elif s.method == "nncf" and not os.environ.get("CENTERPOINT_PTQ_NNCF_PYTHON"):
            raise SystemExit("method nncf: CENTERPOINT_PTQ_NNCF_PYTHON is not set; see requirements.txt")
        elif s.method not in (*baselines.METHODS, "float"):
            raise SystemExit(f"there is no method {s.method}")
