"""What a calibration costs: seconds, memory and steps of `centerpoint_ptq quantize`, for the demo model and one of full size.

    nice -n 0 build/ros2/venv/bin/python benches/cost/measure.py            # build/cost/cost.json
    nice -n 0 build/ros2/venv/bin/python benches/cost/measure.py --models demo

The full-size model is Autoware's base layout with random weights, see `make_model.py`. Seconds are those of this machine
and its load; the machine's processor time stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

import make_model

ROOT = Path(__file__).resolve().parents[2]
REFUSED = 3  # exit code of `quantize`: written, but the gate says no
# Frames in the drive, by model; the recipe keeps a quarter of the blocks for its gate.
FRAMES = {"demo": 256, "full_size": 88}


def model_folder(name: str, program: Path, work: Path) -> Path:
    """The model; the full-size one is made if it is not there."""
    if name == "demo":
        return ROOT / "models" / "demo"
    folder = work / "full_size"
    if not folder.exists():
        make_model.make(program, folder, seed=1)
    return folder


def measure(name: str, program: Path, work: Path, recipe: Path, threads: int) -> dict:
    """Calibrates once; the figures are those of the program's report."""
    frames = FRAMES[name]
    drive, out = work / f"drive_{frames}", work / f"{name}_int8"
    if not drive.exists():
        simulate = [program, "simulate", "--sensor", "mixed", "--frames", frames, "--scenes", frames // 4, "--seed", 5, "--out", drive]
        subprocess.run(list(map(str, simulate)), check=True)
    shutil.rmtree(out, ignore_errors=True)
    quantize = [
        program, "quantize", "--model", model_folder(name, program, work), "--bag", drive, "--recipe", recipe,
        "--threads", threads, "--out", out,
    ]  # fmt: skip
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = subprocess.run(list(map(str, quantize))).returncode
    if code not in (0, REFUSED):
        raise SystemExit(f"{name}: exit code {code}")
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads((out / "report.json").read_text())
    return {
        "model": name,
        "recipe": report["recipe"]["name"],
        "threads": threads,
        "calibration_frames": report["frames"]["calibration"],
        "held_out_frames": report["frames"]["held_out"],
        "seconds": round(seconds, 1),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_megabytes": round(report["cost"]["peak_memory"] / 1e6),
        "steps_a_block": [b["iterations"] for b in report["reconstruction"]],
        "stages": {name: round(s, 1) for name, s in report["cost"]["stages"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--program", type=Path, default=target / "release" / "centerpoint_ptq")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "cost")
    parser.add_argument("--recipe", type=Path, default=ROOT / "calibration" / "standard.yaml")
    parser.add_argument("--models", nargs="+", choices=FRAMES, default=list(FRAMES))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = []
    for name in args.models:
        found.append(measure(name, args.program, args.work, args.recipe, args.threads))
        print(json.dumps(found[-1], indent=1))
    (args.work / "cost.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
