"""What the choice of frames is worth: buffers of one size, filled from one long drive by each policy.

    nice build/ros2/venv/bin/python benches/ablation/buffer.py                  # docs/ablation.md
    nice build/ros2/venv/bin/python benches/ablation/buffer.py --small

A drive of many scenes, ten seconds each; `centerpoint_ptq select` chooses from it as the node does. The newest frames are
those of the last scenes. Judged on the ablation's held-out kind of drive.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import page
from ablate import BITS, METHODS, difference, interval, seeds_mean
from harness import (
    OUR_METHODS, Bag, Drive, Results, Setting, Study, check_methods, common_arguments, parse, row_key, run_rows, study,
)  # fmt: skip

CHOICES = ("diverse", "random", "newest")
RATE = 10.0  # sweeps a second: the model joins two, and was trained on those of a sensor that turns so fast
PER_SCENE = 100
SCENE_GAP = 10 * 10**9  # nanoseconds from the last sweep of a scene to the first of the next
START = 1_700_000_000 * 10**9  # stamp of a simulated drive's first sweep
HELD_OUT_SEED = 4001


@dataclass(frozen=True)
class Selected(Drive):
    """The frames that a policy keeps of a drive."""

    choice: str = "diverse"
    kept: int = 64


class BufferStudy(Study):
    """Makes the bags of `Selected` by `centerpoint_ptq select`."""

    def bag(self, drive: Drive):
        if not isinstance(drive, Selected):
            return super().bag(drive)
        whole = Drive(drive.sensor, drive.frames, drive.scenes, drive.seed, drive.noise)
        settings = {"drive": vars(whole), "rate": RATE, "program": self.program.hash}
        source = self.store.make(
            "bags", settings, lambda path: self.program.run("simulate", *whole.options(), "--rate", RATE, "--out", path)
        )
        chosen = {"source": source.name, "choice": drive.choice, "kept": drive.kept, "program": self.program.hash}
        return self.store.make(
            "bags",
            chosen,
            lambda path: self.program.run(
                "select", "--model", self.float_model, "--bag", source, "--choice", drive.choice, "--max-frames", drive.kept,
                "--threads", self.program.threads, "--out", path,
            ),  # fmt: skip
        )


def seen(model, classes: list[str], start: int) -> dict:
    """What a buffer's frames were of: scenes of the drive, and boxes of the float model in those held out, by class."""
    report = json.loads((model / "report.json").read_text())
    length = int((PER_SCENE - 1) / RATE * 1e9) + SCENE_GAP
    scenes = {(frame["stamp"] - start) // length for frame in report["frames"]["list"]}
    found = {c["class"]: c["all"]["matched"] + c["all"]["missed"] for c in report["check"]["agreement"]["classes"]}
    return {"scenes": len(scenes), "float_boxes": {c: found.get(c, 0) for c in classes}}


def seen_table(rows: list[dict], classes: list[str], scenes: int) -> str:
    """What the gate has to judge by; the same for all models of one buffer."""
    bits = rows[0]["bits"]
    head = ["choice", f"scenes of {scenes}", *classes]
    body = []
    for choice in CHOICES:
        group = [r["seen"] for r in rows if (r["choice"], r["bits"]) == (choice, bits)]
        mean = lambda values: page.number(sum(values) / len(values), 1)  # noqa: E731
        counts = [[g["float_boxes"][c] for g in group] for c in classes]
        body.append([choice, mean([g["scenes"] for g in group]), *(f"{mean(c)} (least {min(c)})" for c in counts)])
    return page.table(head, body)


def render(rows: list[dict], args) -> None:
    groups: dict[tuple, list[dict]] = {}
    for r in rows:
        groups.setdefault((r["bits"], r["method"], r["choice"]), []).append(r)
    classes = list(rows[0]["scores"]["classes"])
    head = ["bits", "calibrator", "choice", "drives", "mean AP against float, points", "F1 to float"]
    head += [f"{c}, points" for c in classes]
    body = [
        [
            bits, METHODS[method], choice, str(len(group)), interval(difference(group, "mean")),
            page.number(seeds_mean(group, "agreement", "f1")), *(interval(difference(group, c)) for c in classes),
        ]
        for (bits, method, choice), group in groups.items()
    ]  # fmt: skip
    text = (
        f"{args.kept} frames (a quarter of them to check with) of drives of {args.scenes} scenes, {args.scenes * PER_SCENE} "
        f"sweeps at {RATE:g} Hz, seeds {', '.join(map(str, args.seeds))}; {args.held_out_frames} held-out frames of a mixed drive "
        f"(seed {HELD_OUT_SEED})."
    )
    what = "What lies in these buffers: scenes among the frames, and boxes that float finds in those held out, means over the drives:"
    parts = [text, page.table(head, body), what, seen_table(rows, classes, args.scenes)]
    page.replace_marked(args.page, "buffer", "\n\n".join(parts), "Ablation")


def main() -> None:
    parser = common_arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=OUR_METHODS, metavar="METHOD", default=["grid"])
    parser.add_argument("--bits", nargs="+", choices=BITS, default=["W8A8", "W4A4"])
    parser.add_argument("--seeds", nargs="+", type=int, help="drives; default 21 22 23")
    parser.add_argument("--scenes", type=int, help="of a drive; default 40")
    parser.add_argument("--frames", type=int, help="that the buffer keeps; default 64")
    parser.add_argument("--held-out-frames", type=int, help="default 400")
    args = parse(parser, "buffer.json", {"frames": (64, 32), "scenes": (40, 4), "held_out_frames": (400, 16)})
    args.kept, args.seeds = args.frames, args.seeds or ([21] if args.small else [21, 22, 23])
    work = study(args)
    work = BufferStudy(work.program, work.store, work.float_model)
    results = Results(args.out, args.fresh)
    total = args.scenes * PER_SCENE
    plan = [
        Setting(method, *BITS[bits], Selected("mixed", total, args.scenes, seed, None, choice, args.kept), args.kept)
        for bits in args.bits
        for method in args.methods
        for choice in CHOICES
        for seed in args.seeds
    ]
    keys = [row_key(work, s, held_out=[HELD_OUT_SEED, args.held_out_frames], rate=RATE) for s in plan]
    tasks = [(s, key) for s, key in zip(plan, keys) if key not in results.rows]
    check_methods([s for s, _ in tasks])
    held_out = Bag(work.bag(Drive("mixed", args.held_out_frames, max(1, args.held_out_frames // 8), HELD_OUT_SEED)))

    def measure(i: int, s: Setting) -> dict:
        model = work.model(s)
        scores = work.score(model, held_out)
        return {
            "bits": s.bits, "method": s.method, "seed": s.drive.seed, "choice": s.drive.choice, "key": tasks[i][1],
            "scores": scores, "seen": seen(model, list(scores["classes"]), START),
        }  # fmt: skip

    about = {"kept": args.kept, "scenes": args.scenes, "held_out_frames": args.held_out_frames}
    run_rows([s for s, _ in tasks], args.held_out_frames, measure, lambda r: results.keep(r, keys, about), args.jobs)
    render(results.of(keys), args)
    print(f"wrote {args.out} and {args.page}")


if __name__ == "__main__":
    main()
