"""Simulates and converts what `train.py` learns from, with many processes at once.

    python training/generate.py --out build/training/data --sweeps 8000 --held-out 1000

Each process simulates a bag of 96 sweeps, converts it (`bags.convert`) and removes the bag; a folder
appears in --out when it is whole. Folders that exist are kept, so a run that was ended goes on.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # one process per core already; read when NumPy is loaded

from bags import convert  # noqa: E402

SWEEPS = 3  # per scene: more scenes teach more than longer ones
SCENES = 32  # per folder: each of the eight sensors four times
FIRST_SEED = 1_000_000  # far from the seeds of held-out bags, of calibrations and of examples
HELD_OUT_SEED = 1001


def make(job):
    name, frames, scenes, seed, tool, out, scratch = job
    out, bag = Path(out), Path(scratch) / f"{name}.bag"
    part = out / f"part-{name}"
    for folder in (bag, part):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        subprocess.run([tool, "simulate", "--quiet", "--sensor", "mixed", "--frames", str(frames),
                       "--scenes", str(scenes), "--seed", str(seed), "--threads", "1", "--out", str(bag)],
                       check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        convert(bag, part)
        os.replace(part, out / name)
    finally:
        shutil.rmtree(bag, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
    return frames


def leave(*_):
    raise SystemExit(143)


def start():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)  # training comes first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="build/training/data")
    parser.add_argument("--tool", default=os.environ.get("CENTERPOINT_PTQ", "target/release/centerpoint_ptq"))
    parser.add_argument("--sweeps", type=int, default=8000)
    parser.add_argument("--held-out", type=int, default=1000, help="sweeps of scenes that training never sees")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--scratch", help="folder for bags on their way [default: --out]")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(args.scratch or out)
    scratch.mkdir(parents=True, exist_ok=True)
    jobs = []
    if args.held_out:
        jobs.append((f"test-{args.held_out}", args.held_out, max(1, args.held_out // 10), HELD_OUT_SEED))
    per = SWEEPS * SCENES
    for k in range(-(-args.sweeps // per)):
        jobs.append((f"train-{k:05}", per, SCENES, FIRST_SEED + k))
    jobs = [(*job, args.tool, out, scratch) for job in jobs if not (out / job[0]).exists()]
    signal.signal(signal.SIGTERM, leave)  # the workers inherit it: nothing half made stays
    began, done = time.time(), 0
    with multiprocessing.Pool(args.processes, start) as pool:
        for k, frames in enumerate(pool.imap_unordered(make, jobs), 1):
            done += frames
            if k == len(jobs) or k % (4 * args.processes) == 0:
                print(f"made {done} sweeps, {done / (time.time() - began):.0f} a second", flush=True)


if __name__ == "__main__":
    main()
