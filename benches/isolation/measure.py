"""What a calibration costs the detector beside it: latency and rate of the node before and during one, on a real graph.

    . build/env.sh && $CENTERPOINT_PTQ_PYTHON benches/isolation/measure.py      # build/isolation/isolation.json

The node infers on one thread, the calibration works on one other, so a machine of two cores has one for each; the player
takes a little of both. Run it on an idle machine (`make install` first). Seconds are this machine's; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREFIX = Path(os.environ.get("CENTERPOINT_PTQ_PREFIX", ROOT / "install"))
os.environ["AMENT_PREFIX_PATH"] = f"{PREFIX}:{os.environ.get('AMENT_PREFIX_PATH', '')}"
sys.path.insert(0, str(ROOT / "scripts"))
import graph  # noqa: E402

TOPIC = "/sensing/lidar/top/pointcloud"


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


class Span:
    """What the node does from now on."""

    def __init__(self, observer):
        self.observer, self.start = observer, time.monotonic()
        with observer.lock:
            self.begin, self.first = len(observer.seen.processing_ms), len(observer.seen.objects)

    def summary(self) -> dict:
        seconds = time.monotonic() - self.start
        with self.observer.lock:
            milliseconds = self.observer.seen.processing_ms[self.begin :]
            answers = len(self.observer.seen.objects) - self.first
        return {
            "seconds": round(seconds, 1),
            "clouds_answered": answers,
            "answers_per_second": round(answers / seconds, 2),
            "p50_ms": round(percentile(milliseconds, 0.5), 2),
            "p99_ms": round(percentile(milliseconds, 0.99), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "isolation")
    parser.add_argument("--rate", type=float, default=0.5, help="of the player: 1 is 10 clouds a second")
    parser.add_argument("--seconds", type=float, default=120.0, help="before the calibration")
    parser.add_argument("--recipe", default="standard.yaml")
    parser.add_argument("--nice", type=int, default=10)
    args = parser.parse_args()
    work = args.work
    for stale in ("store", "buffer"):
        shutil.rmtree(work / stale, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    bag = work / "scene"
    if not bag.exists():
        command = [graph.program("centerpoint_ptq"), "simulate", "--sensor", "os64", "--frames", 300, "--seed", 3, "--out", bag]
        # One scene: between two, a recording pauses.
        command += ["--scenes", 1]
        subprocess.run(list(map(str, command)), check=True)
    domain = graph.Domain()
    opened: list = [domain]
    try:
        observer = graph.Observer(domain.number, markers=False)
        opened.append(observer)
        parameters = {
            "model_path": str(graph.share() / "models" / "demo" / "model.yaml"),
            "model_store": str(work / "store"),
            "recipe_path": str(graph.share() / "calibration" / args.recipe),
            "calibration.buffer_path": str(work / "buffer"),
            "calibration.max_frames": 64,
            "calibration.min_frames": 32,
            "calibration.threads": 1,
            "calibration.nice": args.nice,
            "runtime.threads": 1,
        }
        # As the launch file does: without it large clouds get lost on the way, whatever the node does.
        profile = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(graph.share() / "config" / "fastdds.xml")}
        node = graph.node_command(parameters, input_topic=TOPIC)
        node = graph.Process(node, work / "node.log", domain.number, **profile)
        opened.append(node)
        observer.wait_ready(node, 30.0)
        command = [graph.program("centerpoint_ptq"), "play", "--bag", bag, "--loop", "--restamp", "--rate", args.rate]
        player = graph.Process([*command, "--wait-for-subscribers", 1], work / "player.log", domain.number, **profile)
        opened.append(player)
        filled = lambda: int(observer.values("calibration").get("buffer_held_out_frames", 0)) >= 8  # noqa: E731
        observer.wait_for(filled, 300.0, "frames in the buffer", node)
        found = {"rate": 10 * args.rate, "recipe": args.recipe, "nice": args.nice}
        span = Span(observer)
        time.sleep(args.seconds)
        found["before"] = span.summary()
        span = Span(observer)
        reply = observer.call("calibrate")
        if not reply.success:
            raise SystemExit(reply.message)
        observer.wait_status(lambda s: s["stage"] == "store" or (s["state"] == "idle" and s["last"]), 1200.0, "end", node)
        found["during"] = span.summary()
        observer.wait_status(lambda s: s["state"] == "idle" and s["last"], 60.0, "verdict", node)
        found["outcome"] = observer.status["last"]["outcome"]
        found["p50_ratio"] = round(found["during"]["p50_ms"] / found["before"]["p50_ms"], 3)
        found["p99_ratio"] = round(found["during"]["p99_ms"] / found["before"]["p99_ms"], 3)
        detection = observer.values("detection")
        share = float(detection["buffer_mean_ms"]) / float(detection["processing_mean_ms"])
        # Diagnostics have hundredths of a millisecond.
        found["buffer_share"] = round(share, 4)
        values = observer.values("input")
        found["clouds_dropped"] = {k: v for k, v in values.items() if k.startswith("clouds_dropped")}
        print(json.dumps(found, indent=1))
        (work / "isolation.json").write_text(json.dumps(found, indent=1) + "\n")
    finally:
        for each in reversed(opened):
            each.close()


if __name__ == "__main__":
    main()
