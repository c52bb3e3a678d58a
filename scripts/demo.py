#!/usr/bin/env python3
"""The main job on a real ROS 2 graph, watched from outside; `make demo` runs it.

A player publishes a simulated drive, centerpoint_node detects in it and fills its calibration
buffer. Asked over ROS, it quantizes itself, swaps the INT8 model in while clouds keep flowing, and
goes back to float and to INT8 again. Then the two models are compared on a drive neither has seen.

Writes build/demo/: summary.json, demo.png, the drives, the models, the programs' output.
Exit code 0 when everything went as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

import surroundings  # noqa: E402  (beside this file)

# Whoever names the domain may want to look on from another machine.
NETWORK = ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_STATIC_PEERS", "ROS_LOCALHOST_ONLY", "CYCLONEDDS_URI")
surroundings.clean(NETWORK if any(a.startswith("--domain") for a in sys.argv) else ())
PREFIX = Path(os.environ.get("CENTERPOINT_PTQ_PREFIX", ROOT / "install"))
os.environ["AMENT_PREFIX_PATH"] = f"{PREFIX}:{os.environ.get('AMENT_PREFIX_PATH', '')}"

try:
    import graph
except ImportError as error:
    sys.exit(f"demo: {error}; run `make demo`, or `make install` and `. build/env.sh` first")

TOPIC = "/sensing/lidar/top/pointcloud"
# Longest waits, in seconds. A slow machine gets its time; a hang still ends.
START, QUANTIZE, ANSWER = 60.0, 600.0, 60.0


class Failure(Exception):
    """Something did not go as it should."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sensor", default="os64", help="simulated sensor (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=120, help="sweeps of the drive")
    parser.add_argument("--seed", type=int, default=7, help="seed of the drive")
    parser.add_argument("--unseen", type=int, default=40, help="sweeps of the drive to compare on")
    parser.add_argument("--rate", type=float, default=1.0, help="speed of the player")
    parser.add_argument("--calibration-frames", type=int, default=32, help="frames to calibrate from")
    parser.add_argument("--float-frames", type=int, default=60, help="detections in float first")
    parser.add_argument("--int8-frames", type=int, default=60, help="detections in INT8 after it")
    parser.add_argument("--model", type=Path, help="model.yaml (default: the demo model)")
    parser.add_argument("--recipe", type=Path, help="quantization recipe (default: quick)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo")
    parser.add_argument(
        "--domain", type=int, help="ROS domain, to look on with RViz (default: one of its own)"
    )
    return parser.parse_args()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {text}", flush=True)


BEGIN = time.monotonic()


def tool(*options, log: Path | None = None) -> str:
    """Runs centerpoint_ptq and returns what it printed."""
    command = [str(graph.program("centerpoint_ptq")), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUANTIZE)
    if log:
        log.write_text(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    if done.returncode:
        raise Failure(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr.strip()}")
    return done.stdout


def drive(folder: Path, sensor: str, frames: int, seed: int, scenes: int = 1) -> Path:
    """A simulated drive, made once."""
    bag = folder / f"drive_{sensor}_{frames}_{scenes}_{seed}"
    if not bag.is_dir():
        say(f"simulating {frames} sweeps of {sensor} in {scenes} scenes, seed {seed}")
        options = ["--sensor", sensor, "--frames", frames, "--seed", seed, "--scenes", scenes]
        tool("simulate", *options, "--out", bag)
    return bag


def stamps_of(bag: Path) -> list[int]:
    return sorted(map(int, json.loads((bag / "labels.json").read_text())))


class Demo:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.out: Path = args.out
        own = None if args.domain is not None else graph.Domain()
        self.domain = args.domain if own is None else own.number
        self.opened: list = [own] if own else []
        self.summary: dict = {}

    def close(self) -> None:
        for opened in reversed(self.opened):
            opened.close()

    # --- live ---

    def start(self) -> None:
        args, out = self.args, self.out
        share = graph.share()
        self.model = args.model or share / "models" / "demo" / "model.yaml"
        recipe = args.recipe or share / "calibration" / "quick.yaml"
        self.bag = drive(out, args.sensor, args.frames, args.seed)
        self.unseen = drive(out, args.sensor, args.unseen, args.seed + 1, scenes=4)
        for stale in ["store", "buffer", "ros_home"]:
            shutil.rmtree(out / stale, ignore_errors=True)

        say(f"starting centerpoint_node as its launch file does, in ROS domain {self.domain}")
        self.observer = graph.Observer(self.domain)
        self.opened.append(self.observer)
        self.node = graph.Process(
            graph.node_command(
                {
                    "model_path": str(self.model),
                    "model_store": str(out / "store"),
                    "recipe_path": str(recipe),
                    "calibration.buffer_path": str(out / "buffer"),
                    "calibration.max_frames": args.calibration_frames,
                    "calibration.min_frames": args.calibration_frames,
                    "calibration.min_period_s": 0.3,
                    # The demo has no other work to leave room for.
                    "calibration.threads": 0,
                },
                params_file=share / "config" / "centerpoint_node.param.yaml",
                input_topic=TOPIC,
            ),
            out / "node.log",
            self.domain,
            ROS_HOME=str(out / "ros_home"),
        )
        self.opened.append(self.node)
        self.observer.wait_ready(self.node, START)
        self.expect(self.observer.status["precision"] == "float", "the node starts in float")
        say(f"model {self.observer.status['model_id']} runs in float")

        command = [graph.program("centerpoint_ptq"), "play", "--bag", self.bag, "--loop", "--restamp"]
        command += ["--rate", args.rate, "--wait-for-subscribers", 1, "--json"]
        self.player = graph.Process(command, out / "player.log", self.domain)
        self.opened.append(self.player)
        say(f"playing {self.bag.name} on {TOPIC}")

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            raise Failure(f"not so: {what}; status {self.observer.status}")

    def wait_detections(self, count: int, what: str) -> None:
        seen = self.observer.seen.objects
        goal = len(seen) + count
        self.observer.wait_for(lambda: len(seen) >= goal, ANSWER + 2.0 * count, what, self.node)

    def live(self) -> None:
        args, observer = self.args, self.observer
        self.wait_detections(args.float_frames, "detections in float")
        boxes = sum(len(o.message.detections) for o in observer.seen.objects)
        say(f"{len(observer.seen.objects)} clouds answered in float, {boxes} boxes")

        def buffered() -> bool:
            have = int(observer.values("calibration").get("buffer_frames", 0))
            return have >= args.calibration_frames

        wait = ANSWER + args.calibration_frames
        observer.wait_for(buffered, wait, "full calibration buffer", self.node)
        self.float_latency = self.latency("float")

        reply = observer.call("calibrate")
        self.expect(reply.success, f"the node calibrates: {reply.message}")
        say(f"asked the node to quantize itself: {reply.message}")
        begin, before = time.monotonic(), len(observer.seen.objects)
        self.follow()
        last = observer.status["last"]
        seconds = time.monotonic() - begin
        meanwhile = len(observer.seen.objects) - before
        self.expect(last["outcome"] == "swapped", f"the INT8 model is swapped in: {last}")
        self.expect(observer.status["precision"] == "int8", "INT8 runs after the swap")
        self.expect(meanwhile > 0, "detection goes on during the calibration")
        self.int8_model = Path(last["model"])
        self.report = Path(last["report"])
        self.summary["calibration"] = {
            "frames": last["frames"],
            "seconds": seconds,
            "clouds_answered_meanwhile": meanwhile,
        }
        say(f"INT8 swapped in after {seconds:.1f} s; {meanwhile} clouds were answered meanwhile")

        self.wait_detections(args.int8_frames, "detections in INT8")
        observer.wait_for(
            lambda: "inference_int8_p50_ms" in observer.values("detection"), ANSWER, "INT8 latency"
        )
        self.int8_latency = self.latency("int8")
        for service, precision in [("use_float", "float"), ("use_int8", "int8")]:
            reply = observer.call(service)
            self.expect(reply.success, f"~/{service}: {reply.message}")
            observer.wait_status(lambda s: s["precision"] == precision, ANSWER, precision)
            self.wait_detections(5, f"detections after ~/{service}")
        say("went back to float and to INT8 again, clouds flowing")

    def follow(self) -> None:
        """Tells the stages of the calibration until it ends."""
        observer, told = self.observer, None
        deadline = time.monotonic() + QUANTIZE
        while True:
            status = observer.status
            if status["state"] == "idle" and status["last"]:
                return
            if status["stage"] and status["stage"] != told:
                told = status["stage"]
                say(f"  {told} ({100 * status['fraction']:.0f} %)")
            if time.monotonic() > deadline:
                raise Failure(f"the calibration takes more than {QUANTIZE} s: {status}")
            if not self.node.running():
                raise Failure(f"the node ended during the calibration:\n{self.node.output}")
            time.sleep(0.1)

    def latency(self, precision: str) -> dict:
        values = self.observer.values("detection")
        return {
            part: float(values[f"inference_{precision}_{part}_ms"]) for part in ["p50", "p95", "max"]
        }

    def stop(self) -> None:
        observer = self.observer
        code, _ = self.player.end()
        self.expect(code == 0, f"the player ends cleanly ({code})\n{self.player.output}")
        played = json.loads(self.player.output.splitlines()[-1])

        counts = observer.wait_settled(self.node, ANSWER)
        published = int(counts["clouds_published"])
        observer.wait_for(
            lambda: len(observer.seen.objects) >= published, ANSWER, "the last detections"
        )
        code, _ = self.node.end()
        self.expect(code == 0, f"the node ends cleanly ({code})")

        stamps = [o.stamp for o in observer.seen.objects]
        self.expect(stamps == sorted(set(stamps)), "each cloud is answered at most once, in order")
        recorded, length = set(stamps_of(self.bag)), played["pass_ns"]
        first = min(recorded)
        for stamp in stamps:
            own = stamp - played["stamp_shift_ns"]
            if length:
                own = first + (own - first) % length
            self.expect(own in recorded, f"stamp {stamp} is one that was played")
        self.expect(len(stamps) == published, "every published answer was received")
        dropped = {
            key.removeprefix("clouds_dropped_"): int(value)
            for key, value in counts.items()
            if key.startswith("clouds_dropped_") and int(value)
        }
        unexpected = set(dropped) - {"superseded"}
        self.expect(not unexpected, f"clouds are dropped for newer ones only: {dropped}")
        self.summary["clouds"] = {
            "played": played["clouds"],
            "received": int(counts["clouds_received"]),
            "published": published,
            "dropped": int(counts["clouds_dropped"]),
            "dropped_by_reason": dropped,
            "lost_before_the_node": played["clouds"] - int(counts["clouds_received"]),
        }
        live = observer.seen
        self.summary["latency"] = {
            "inference_float_ms": self.float_latency,
            "inference_int8_ms": self.int8_latency,
            "cloud_to_objects_ms_median": statistics.median(live.latency_ms),
            "cycle_ms_median": statistics.median(live.cycle_ms),
        }

    # --- afterwards ---

    def compare(self) -> None:
        say(f"comparing both models on {self.unseen.name}, which neither has seen")
        out = self.out
        result = json.loads(
            tool(
                *("evaluate", "--model", self.model, "--model2", self.int8_model),
                *("--bag", self.unseen, "--truth", self.unseen / "labels.json", "--json"),
                log=out / "evaluate.log",
            )
        )
        (out / "evaluate.json").write_text(json.dumps(result, indent=1))
        self.summary["evaluation"] = result
        sizes = {
            "float": sum(f.stat().st_size for f in self.model.parent.glob("*.onnx")),
            "int8": sum(f.stat().st_size for f in self.int8_model.parent.glob("*.onnx")),
        }
        self.summary["model_bytes"] = sizes
        self.expect(sizes["int8"] < sizes["float"], f"the INT8 model is smaller: {sizes}")
        self.summary["report"] = str(self.report)

    def draw(self) -> None:
        out = self.out
        for name, model in [("float", self.model), ("int8", self.int8_model)]:
            tool("detect", "--model", model, "--bag", self.unseen, "--out", out / f"{name}.json")
        boxes = json.loads((out / "float.json").read_text())
        # The frame with most to see: as many classes as there are in any, and then most boxes.
        stamps = [stamp for stamp in boxes if stamp.isdecimal()]
        richest = max(stamps, key=lambda stamp: (len({box["label"] for box in boxes[stamp]}), len(boxes[stamp])))
        tool(
            *("render", "--bag", self.unseen, "--stamp", richest, "--sweeps", 2),
            *("--boxes", out / "float.json", "--boxes2", out / "int8.json"),
            *("--labels", self.unseen / "labels.json"),
            *("--names", "float,INT8", "--out", out / "demo.png"),
            log=out / "render.log",
        )

    def tell(self) -> None:
        s = self.summary
        clouds, latency, sizes = s["clouds"], s["latency"], s["model_bytes"]
        rows = [
            ("clouds played / received", f"{clouds['played']} / {clouds['received']}"),
            ("clouds answered", f"{clouds['published']}, in order, none twice"),
            ("clouds dropped", f"{clouds['dropped']} {clouds['dropped_by_reason'] or ''}"),
            (
                "calibration",
                f"{s['calibration']['frames']} frames, {s['calibration']['seconds']:.1f} s, "
                f"{s['calibration']['clouds_answered_meanwhile']} clouds answered meanwhile",
            ),
        ]
        for name in ["float", "int8"]:
            ms = latency[f"inference_{name}_ms"]
            rows.append(
                (f"inference {name}", f"{ms['p50']:.1f} ms median, {ms['p95']:.1f} ms 95 %")
            )
        rows.append(
            ("cloud to detections", f"{latency['cloud_to_objects_ms_median']:.1f} ms median, end to end")
        )
        rows += agreement_rows(s["evaluation"])
        rows.append(
            (
                "model size",
                f"{sizes['float'] / 1e6:.2f} MB float, {sizes['int8'] / 1e6:.2f} MB INT8 "
                f"({sizes['float'] / sizes['int8']:.1f}x smaller)",
            )
        )
        width = max(len(name) for name, _ in rows)
        print()
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")
        print(f"\n  picture   {self.out / 'demo.png'}")
        print(f"  summary   {self.out / 'summary.json'}")
        print(f"  report    {self.report}\n")


def agreement_rows(evaluation: dict) -> list[tuple[str, str]]:
    """Agreement of INT8 with float, and the average precision of both."""
    rows = []
    agreement = evaluation["agreement"]
    total = agreement["total"]
    text = f"{total['matched']} boxes in both, {total['missed']} in float only, {total['extra']} in INT8 only"
    if total["f1"] is not None:
        text = f"F1 {total['f1']:.3f}: {text}"
    rows.append(("INT8 against float", text))
    if total["centre"]:
        degrees = 57.3 * total["yaw"]["mean"]
        rows.append(
            ("  mean differences", f"centre {100 * total['centre']['mean']:.1f} cm, heading {degrees:.2f} deg")
        )
    judged = [(c["class"], c["all"]["f1"]) for c in agreement["classes"] if c["all"]["f1"] is not None]
    rows.append(("  F1 by class", ", ".join(f"{name} {f1:.2f}" for name, f1 in judged) or "no boxes"))
    precision = {}
    for name, model in zip(["float", "INT8"], evaluation["models"]):
        for scores in (model.get("evaluation") or {}).get("classes", []):
            if scores["all"]["ap"] is not None:
                precision.setdefault(scores["class"], {})[name] = scores["all"]["ap"]
    text = ", ".join(f"{c} {ap['float']:.2f} / {ap['INT8']:.2f}" for c, ap in precision.items())
    if text:
        rows.append(("AP float / INT8", text))
    return rows


def main() -> int:
    args = arguments()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    demo = Demo(args)
    try:
        demo.start()
        demo.live()
        demo.stop()
        demo.compare()
        demo.draw()
    except (Failure, TimeoutError, AssertionError, subprocess.TimeoutExpired) as error:
        print(f"\ndemo failed: {error}\n\nThe programs' output is in {args.out}", file=sys.stderr)
        return 1
    finally:
        demo.close()
    demo.summary["seconds"] = time.monotonic() - BEGIN
    (args.out / "summary.json").write_text(json.dumps(demo.summary, indent=1) + "\n")
    demo.tell()
    return 0


if __name__ == "__main__":
    sys.exit(main())
