"""Sensor studies: calibrate on one sensor and run on another; how many frames a calibration needs.

    nice build/ros2/venv/bin/python benches/ablation/sensors.py                 # docs/ablation.md
    nice build/ros2/venv/bin/python benches/ablation/sensors.py --small

Transfer: one column per sensor that runs, one row per sensor that calibrated; the diagonal is recalibrated.
Frames: 4, 16, 64 and 256 calibration frames of one drive. The figures are those of the ablation.
"""

from __future__ import annotations

import page
from ablate import BITS, METHODS, difference, interval, seeds_mean
from baselines import STEP_METHODS
from harness import (
    HELD_OUT, OUR_METHODS, Bag, Drive, Results, Setting, check_methods, common_arguments, parse, row_key, run_rows, study,
)  # fmt: skip

# Name: simulated sensor, standard deviation of its range in metres (None: its own).
SENSORS = {
    "64 beams": ("os64", None),
    "32 beams": ("os32", None),
    "16 beams": ("vlp16", None),
    "64 beams, 8 cm noise": ("os64", 0.08),
}
FRAME_COUNTS = (4, 16, 64, 256)
HELD_OUT_SEED = 2001


def drive(sensor: str, frames: int, seed: int) -> Drive:
    """A drive of a sensor of the study in scenes of 8 frames."""
    name, noise = SENSORS[sensor]
    return Drive(name, frames, max(1, frames // 8), seed, noise)


def transfer_settings(args) -> list[tuple[Setting, str]]:
    """Models by calibrating sensor, each with the sensor it runs on."""
    total = args.frames + HELD_OUT
    return [
        (Setting(method, *BITS[bits], drive(calibrated, total, seed), args.frames), running)
        for bits in args.bits
        for method in args.methods
        for running in args.sensors
        for calibrated in args.sensors
        for seed in args.seeds
    ]


def frame_settings(args) -> list[tuple[Setting, str]]:
    """Models by number of frames, spread over one drive that is long enough for all."""
    first, total = args.sensors[0], max(args.frame_counts) + HELD_OUT
    return [
        (Setting(method, *BITS[bits], drive(first, total, seed), count), first)
        for bits in args.bits
        for method in args.methods
        for count in args.frame_counts
        for seed in args.seeds
    ]


def grouped(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Rows by these keys; the seeds are left together."""
    found: dict[tuple, list[dict]] = {}
    for r in rows:
        found.setdefault(tuple(r[k] for k in keys), []).append(r)
    return found


def cell(group: list[dict]) -> str:
    """Difference of mean AP from float, and F1 against float's boxes."""
    return f"{interval(difference(group, 'mean'))}, F1 {page.number(seeds_mean(group, 'agreement', 'f1'))}"


def transfer_table(rows: list[dict], sensors: list[str]) -> str:
    groups = grouped(rows, "bits", "method", "calibrated", "running")
    head = ["bits", "calibrator", "calibrated on", *(f"run on {s}" for s in sensors)]
    body = [
        [bits, METHODS[method], name, *(cell(groups[bits, method, name, s]) for s in sensors)]
        for bits, method in dict.fromkeys((r["bits"], r["method"]) for r in rows)
        for name in sensors
    ]
    return page.table(head, body)


def frames_table(rows: list[dict], counts: list[int]) -> str:
    groups = grouped(rows, "bits", "method", "frames")
    body = [
        [bits, METHODS[method], *(cell(groups[bits, method, n]) for n in counts)]
        for bits, method in dict.fromkeys((r["bits"], r["method"]) for r in rows)
    ]
    return page.table(["bits", "calibrator", *(f"{n} frames" for n in counts)], body)


def render(results: dict[str, list[dict]], args) -> None:
    """The marked part of the page, and the plots beside it."""
    plots = args.page.parent / "plots"
    parts = [
        f"{args.held_out_frames} held-out frames of each sensor; seeds {', '.join(map(str, args.seeds))}. Points of mean "
        "AP against float on the same sensor, with the hull over the seeds of the 95 % bootstrap intervals, and F1 against "
        "float's boxes.",
    ]
    if results["transfer"]:
        parts += [f"Calibrated on {args.frames} frames of one sensor, run on another; the diagonal is recalibrated:"]
        parts += [transfer_table(results["transfer"], args.sensors)]
        for bits, method in dict.fromkeys((r["bits"], r["method"]) for r in results["transfer"]):
            rows = [r for r in results["transfer"] if (r["bits"], r["method"]) == (bits, method)]
            groups = grouped(rows, "calibrated", "running")
            series = {
                f"on {c}": {s: difference(groups[c, s], "mean") for s in args.sensors} for c in args.sensors
            }
            file = f"transfer_{bits}_{method}.svg".lower()
            title = f"{bits}, {METHODS[method]}: calibrated on one sensor, run on another"
            page.bars(plots / file, title, "AP points against float", args.sensors, series)
            parts += [f"![{title}](plots/{file})"]
    if results["frames"]:
        counts = args.frame_counts
        parts += [f"Number of calibration frames, {args.sensors[0]}:", frames_table(results["frames"], counts)]
        groups = grouped(results["frames"], "bits", "method", "frames")
        series = {
            f"{bits} {METHODS[method]}": {str(n): difference(groups[bits, method, n], "mean") for n in counts}
            for bits, method in dict.fromkeys((b, m) for b, m, _ in groups)
        }
        title = "Calibration frames"
        page.lines(plots / "frames.svg", title, "AP points against float", list(map(str, counts)), series)
        parts += [f"![{title}](plots/frames.svg)"]
    page.replace_marked(args.page, "sensors", "\n\n".join(parts), "Ablation")


def arguments():
    parser = common_arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=[*OUR_METHODS, *STEP_METHODS], metavar="METHOD", default=["grid"])
    parser.add_argument("--bits", nargs="+", choices=BITS, default=["W8A8", "W4A4"])
    parser.add_argument("--sensors", nargs="+", choices=SENSORS, help="the first one serves the study of frames")
    parser.add_argument("--seeds", nargs="+", type=int, help="calibration drives; default 11 12 13")
    parser.add_argument("--frames", type=int, help="calibration frames of the transfer study; default 64")
    parser.add_argument("--frame-counts", nargs="+", type=int, help="multiples of 4; default 4 16 64 256")
    parser.add_argument("--held-out-frames", type=int, help="of each sensor; default 400")
    args = parse(parser, "sensors.json", {
        "frames": (64, 12), "frame_counts": (list(FRAME_COUNTS), [4, 8]), "held_out_frames": (400, 16),
    })  # fmt: skip
    args.sensors = args.sensors or list(SENSORS)[:: 2 if args.small else 1]
    args.seeds = args.seeds or ([11] if args.small else [11, 12, 13])
    return args


def main() -> None:
    args = arguments()
    work = study(args)
    results = Results(args.out, args.fresh)
    plans = {"transfer": transfer_settings(args), "frames": frame_settings(args)}
    about = {"held_out_frames": args.held_out_frames}
    keys = {
        name: [row_key(work, s, held_out=[sensor, HELD_OUT_SEED, args.held_out_frames]) for s, sensor in plan]
        for name, plan in plans.items()
    }
    tasks = [(name, *task, key) for name in plans for task, key in zip(plans[name], keys[name]) if key not in results.rows]
    check_methods([s for _, s, _, _ in tasks])

    def measure(i: int, s: Setting) -> dict:
        _, _, sensor, key = tasks[i]
        held_out = Bag(work.bag(drive(sensor, args.held_out_frames, HELD_OUT_SEED)))
        calibrated = next(k for k, v in SENSORS.items() if v == (s.drive.sensor, s.drive.noise))
        return {
            "bits": s.bits, "method": s.method, "seed": s.drive.seed, "frames": s.frame_count, "calibrated": calibrated,
            "running": sensor, "key": key, "scores": work.score(work.model(s), held_out),
        }  # fmt: skip

    every = [key for found in keys.values() for key in found]
    run_rows([s for _, s, _, _ in tasks], args.held_out_frames, measure, lambda r: results.keep(r, every, about), args.jobs)
    render({name: results.of(found) for name, found in keys.items()}, args)
    print(f"wrote {args.out} and {args.page}")


if __name__ == "__main__":
    main()
