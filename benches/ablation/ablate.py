"""The whole ablation in one command: every calibrator, bit width and calibration seed, scored on the deployed engine.

    nice build/ros2/venv/bin/python benches/ablation/ablate.py                  # docs/ablation.md
    nice build/ros2/venv/bin/python benches/ablation/ablate.py --small --page /tmp/ablation.md

Each model is calibrated on a simulated drive of its seed, then run by `centerpoint_ptq detect` over a held-out
drive with ground truth, and scored by `centerpoint_ptq evaluate` against float with paired bootstrap
intervals. Where CENTERPOINT_PTQ_DATA names the real recordings, agreement with float there is added (of models
calibrated on simulated frames). What was made before is not made again: neither models and boxes (in the work folder, by
the program that made them), nor rows of the results file that have the same recipe, float model and held-out frames;
`--fresh` measures those again.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import page
from harness import (
    HELD_OUT, Bag, Drive, Results, Setting, check_methods, common_arguments, mean, parse, real_recordings, row_key, run_rows,
    study,
)  # fmt: skip

BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
# In the order of the table. ONNX Runtime and NNCF quantize to 8 bits only.
METHODS = {
    "float": "float",
    "ort-minmax": "ONNX Runtime, min-max",
    "ort-entropy": "ONNX Runtime, entropy",
    "ort-percentile": "ONNX Runtime, percentile",
    "nncf": "NNCF",
    "kl": "KL entropy, 2048 bins",
    "kl-levelled": "KL entropy, zeros' bin levelled",
    "percentile": "percentile 99.99",
    "max-min": "max-min",
    "grid": "+ grid search",
    "rounding": "+ adaptive rounding",
    "tgpl": "+ TGPL",
    "equalized": "+ channels equalized first",
}
EIGHT_BITS_ONLY = {"ort-minmax", "ort-entropy", "ort-percentile", "nncf"}
DEFAULT_METHODS = [m for m in METHODS if m != "nncf"]
# Figures of the summary by key: title, digits.
AGREEMENT = {"f1": ("F1", 3), "centre": ("centre m", 3), "size": ("size m", 3), "yaw": ("yaw rad", 3)}
ERRORS = {"translation": ("ATE m", 3), "scale": ("ASE", 3), "orientation": ("AOE rad", 3)}
TITLE = "Ablation"


def plan(methods: list[str], bits: list[str], seeds: list[int], drive_of, frames: int) -> list[Setting]:
    """The models of the table, in its order. Float is one row."""
    settings = []
    if "float" in methods:
        settings.append(Setting("float", 32, 32, drive_of(seeds[0]), frames))
    # All of one seed first: a run that is stopped leaves a whole table.
    for seed in seeds:
        for name in bits:
            for method in METHODS:
                if method == "float" or method not in methods or (method in EIGHT_BITS_ONLY and name != "W8A8"):
                    continue
                settings.append(Setting(method, *BITS[name], drive_of(seed), frames))
    return settings


def label(s: Setting) -> str:
    """How the table names a model's bits."""
    return "-" if s.method == "float" else s.bits


def by_method(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Rows of all seeds of a bit width and method, in the table's order."""
    found = defaultdict(list)
    for r in rows:
        found[r["bits"], r["method"]].append(r)
    return found


def difference(group: list[dict], which: str) -> tuple[float | None, float | None, float | None]:
    """Mean over the seeds of AP minus float's, in points, and the hull of their 95 % intervals."""
    found = [r["scores"]["difference"] for r in group]
    found = [next((v for k, v in d.items() if k == which), None) for d in found]
    found = [d for d in found if d is not None and d["difference"] is not None]
    if not found:
        return None, None, None
    return (
        100 * mean([d["difference"] for d in found]),
        100 * min(d["lower"] for d in found),
        100 * max(d["upper"] for d in found),
    )


def interval(values: tuple) -> str:
    """A difference with its interval."""
    value, low, high = values
    return "-" if value is None else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def seeds_mean(group: list[dict], *keys: str) -> float | None:
    """Mean over the seeds of a nested figure."""
    values = []
    for r in group:
        value = r["scores"]
        for key in keys:
            value = (value or {}).get(key)
        values.append(value)
    return mean(values)


def main_table(groups: dict, classes: list[str]) -> str:
    head = ["bits", "calibrator", "drives", "mean AP", "against float, points", *classes]
    rows = []
    for (bits, method), group in groups.items():
        aps = [seeds_mean(group, "classes", c, "ap") for c in classes]
        drives, change = (str(len(group)), interval(difference(group, "mean"))) if method != "float" else ("", "")
        rows.append([bits, METHODS[method], drives, page.number(seeds_mean(group, "mean_ap")), change, *map(page.number, aps)])
    return page.table(head, rows)


def class_table(groups: dict, classes: list[str]) -> str:
    head = ["bits", "calibrator", *(f"{c}, points" for c in classes)]
    rows = [
        [bits, METHODS[method], *(interval(difference(group, c)) for c in classes)]
        for (bits, method), group in groups.items()
        if method != "float"
    ]
    return page.table(head, rows)


def box_table(groups: dict) -> str:
    head = ["bits", "calibrator"] + [f"{t} to truth" for t, _ in ERRORS.values()]
    head += [f"{t} to float" for t, _ in AGREEMENT.values()]
    rows = []
    for (bits, method), group in groups.items():
        to_truth = [page.number(seeds_mean(group, "errors", k), d) for k, (_, d) in ERRORS.items()]
        to_float = [page.number(seeds_mean(group, "agreement", k), d) for k, (_, d) in AGREEMENT.items()]
        rows.append([bits, METHODS[method], *to_truth, *to_float])
    return page.table(head, rows)


def band_table(groups: dict, classes: list[str], bands: list[str]) -> str:
    head = ["bits", "calibrator", *(f"{c} {b} m" for c in classes for b in bands)]
    rows = [
        [bits, METHODS[m], *(page.number(seeds_mean(g, "classes", c, "bands", b)) for c in classes for b in bands)]
        for (bits, m), g in groups.items()
    ]
    return page.table(head, rows)


def real_table(groups: dict, recordings: list[str]) -> str:
    head = ["bits", "calibrator", *(f"{name}: {t}" for name in recordings for t, _ in AGREEMENT.values())]
    rows = []
    for (bits, method), group in groups.items():
        cells = []
        for name in recordings:
            found = [r["real"].get(name, {}).get("agreement", {}) for r in group]
            cells += [page.number(mean([f.get(k) for f in found]), d) for k, (_, d) in AGREEMENT.items()]
        rows.append([bits, METHODS[method], *cells])
    return page.table(head, rows)


def render(results: dict, path: Path) -> None:
    """The marked part of the page, and the plots beside it."""
    groups, about = by_method(results["rows"]), results["about"]
    seeds = sorted({r["seed"] for r in results["rows"]})
    scores = results["rows"][0]["scores"]
    classes = list(scores["classes"])
    bands = list(next(iter(scores["classes"].values()))["bands"])
    names = [b for b in BITS if any(bits == b for bits, _ in groups)]
    plots = path.parent / "plots"
    for key, title in (("mean", "Mean AP against float"), *((c, f"AP of {c} against float") for c in classes)):
        series = {
            METHODS[m]: {b: difference(groups[b, m], key) for b in names if (b, m) in groups}
            for m in METHODS
            if any((b, m) in groups for b in names)
        }
        page.bars(plots / f"ablation_{key.lower()}.svg", title, "AP points", names, series)
    parts = [
        f"{scores['frames']} held-out frames of {about['held_out']}; calibrated on {about['frames']} frames of simulated "
        f"drives, seeds {', '.join(map(str, seeds))}; sensor {about['sensor']}. AP at 2 m on the ground, means over "
        "the drives. Differences from float are paired; in brackets the hull over the drives of the 95 % bootstrap intervals "
        f"({about['block']} frames drawn as one, {about['resamples']} times).",
        main_table(groups, classes),
        "![Mean AP against float](plots/ablation_mean.svg)",
        "Per class:",
        class_table(groups, classes),
        "Box errors at matched boxes: to the truth (hits at 2 m, means over the classes), and to float's boxes at the "
        "deployed thresholds.",
        box_table(groups),
        "AP by distance:",
        band_table(groups, classes, bands),
    ]
    recordings = sorted({name for r in results["rows"] for name in r["real"]})
    if recordings:
        parts += ["Agreement with float on real recordings, calibrated on the simulated frames:"]
        parts += [real_table(groups, recordings)]
    page.replace_marked(path, "ablation", "\n\n".join(parts), TITLE)


def arguments():
    parser = common_arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS, metavar="METHOD")
    parser.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--seeds", nargs="+", type=int, help="calibration drives; default 11 12 13")
    parser.add_argument("--sensor", default="mixed", help="of the simulated drives")
    parser.add_argument("--frames", type=int, help="calibration frames, a multiple of 4; default 64")
    parser.add_argument("--held-out", type=Path, help="bag with labels; default: simulated, seed 1001")
    parser.add_argument("--held-out-frames", type=int, help="default 1000")
    args = parse(parser, "results.json", {"frames": (64, 12), "held_out_frames": (1000, 20)})
    args.seeds = args.seeds or ([11] if args.small else [11, 12, 13])
    return args


def main() -> None:
    args = arguments()
    work = study(args)
    results = Results(args.out, args.fresh)
    if args.held_out:
        held_out, limit = Bag(args.held_out.resolve()), args.held_out_frames
    else:
        count = args.held_out_frames
        held_out, limit = Bag(work.bag(Drive(args.sensor, count, max(1, count // work.block), 1001))), None
    about = {
        "held_out": args.held_out.name if args.held_out else "a simulated drive, seed 1001",
        "frames": args.frames, "sensor": args.sensor, "block": work.block, "resamples": work.resamples,
        "held_out_frames": args.held_out_frames,
    }  # fmt: skip
    judged_on = {name: about[name] for name in ("held_out", "held_out_frames", "block", "resamples")}
    # Two consecutive sweeps make a frame; scenes of 8 give views that differ.
    total = args.frames + HELD_OUT
    drive_of = lambda seed: Drive(args.sensor, total, max(1, total // 8), seed)  # noqa: E731
    # The page's rows: these options' and whatever else was measured alike.
    seeds = sorted({*args.seeds, *(r["seed"] for r in results.rows.values())})
    key_of = {
        s: row_key(work, s, held_out=judged_on, real=sorted(real_recordings()))
        for s in plan(list(METHODS), list(BITS), seeds, drive_of, args.frames)
    }
    wanted = [
        s
        for s in key_of
        if s.method in args.methods
        and (s.method == "float" or (s.bits in args.bits and s.drive.seed in args.seeds))
        and key_of[s] not in results.rows
    ]
    check_methods(wanted)

    def measure(_, s: Setting) -> dict:
        model = work.model(s)
        return {
            "bits": label(s), "method": s.method, "seed": s.drive.seed, "frames": s.frame_count, "key": key_of[s],
            "scores": work.score(model, held_out, limit),
            "real": {name: work.score(model, bag, limit) for name, bag in real_recordings().items()},
        }  # fmt: skip

    def show() -> None:
        if rows := results.of(list(key_of.values())):
            render({"about": about, "rows": rows}, args.page)

    def keep(row: dict) -> None:
        # After each, so that a run that is stopped leaves what it has.
        results.keep(row, list(key_of.values()), about)
        show()

    run_rows(wanted, args.held_out_frames, measure, keep, args.jobs)
    show()
    print(f"wrote {args.out} and {args.page}")


if __name__ == "__main__":
    main()
