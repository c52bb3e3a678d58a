"""The open choices of the method, one setting after the other: `standard.yaml` at few bits, one key changed.

    nice build/ros2/venv/bin/python benches/ablation/choices.py                 # docs/ablation.md
    nice build/ros2/venv/bin/python benches/ablation/choices.py --only tgpl.boxes positives

What was measured before is kept as long as its recipe stays; `--only` says what else is measured.

Calibrated and judged on simulated drives that the ablation does not use, so that what is chosen here is not judged by
what chose it. Among the choices are those that make pseudo-labels better or worse: their threshold and number.
"""

from __future__ import annotations

import page
from ablate import AGREEMENT, BITS, difference, interval, seeds_mean
from harness import (
    HELD_OUT, Bag, Changes, Drive, Results, Setting, check_methods, common_arguments, parse, row_key, run_rows, study,
)  # fmt: skip

CALIBRATION_SEED, HELD_OUT_SEED = 77, 3001
AS_IT_IS = "as it is"
# Group: what the recipe says, then what is tried instead.
CHOICES: dict[str, list[Changes]] = {
    "activations.search.p": [(("activations.search.p", p),) for p in ("2.0", "2.4", "4.0")],
    "activations.search.alpha": [(("activations.search.alpha", a),) for a in ("0.2", "0.5")],
    "activations.search.steps": [(("activations.search.steps", n),) for n in ("20", "500")],
    "reconstruction.block": [(("reconstruction.block", n),) for n in ("1", "2")],
    "reconstruction.iterations": [(("reconstruction.iterations", n),) for n in ("100", "2000")],
    "reconstruction.drop": [(("reconstruction.drop", d),) for d in ("0.0", "0.25")],
    "reconstruction.regularizer": [(("reconstruction.regularizer", r),) for r in ("0.1", "10.0")],
    "reconstruction.activation_rate": [(("reconstruction.activation_rate", r),) for r in ("0.0", "0.001")],
    "reconstruction.tgpl.weight": [(("reconstruction.tgpl.weight", w),) for w in ("0.0", "0.3", "3.0")],
    "reconstruction.tgpl.boxes": [(("reconstruction.tgpl.boxes", w),) for w in ("0.0", "0.25", "1.0")],
    "reconstruction.positives.threshold": [(("reconstruction.positives.threshold", t),) for t in ("0.03", "0.3", "0.5")],
    "reconstruction.positives.max": [(("reconstruction.positives.max", n),) for n in ("4", "16")],
    "reconstruction.positives.radius": [(("reconstruction.positives.radius", r),) for r in ("1", "2")],
    # The four most sensitive layers get 8 bits.
    "sensitivity": [(("sensitivity", "{windows: 16, keep: 4, max_float_share: 1.0, max_float_bytes: 1000000}"),)],
    "equalization": [(("equalization", f"{{alpha: {a}, limit: 32, frames: 16}}"),) for a in ("0.35", "0.5")],
}


def settings(args) -> list[tuple[str, Setting]]:
    """The recipe as it is, then every choice, by group."""
    drive = Drive("mixed", args.frames + HELD_OUT, max(1, (args.frames + HELD_OUT) // 4), CALIBRATION_SEED)
    few = (("reconstruction.iterations", "5"),) if args.small else ()
    make = lambda changes=(): Setting("tgpl", *BITS[args.bits], drive, args.frames, few + changes)  # noqa: E731
    return [(AS_IT_IS, make())] + [(g, make(c)) for g, choices in CHOICES.items() for c in choices]


def table(rows: list[dict]) -> str:
    """One row per choice; those of a group come together."""
    head = ["key", "value", "mean AP", "against float, points", *(f"{t} to float" for t, _ in AGREEMENT.values())]
    body = []
    for r in rows:
        agreement = [page.number(seeds_mean([r], "agreement", k), d) for k, (_, d) in AGREEMENT.items()]
        mean_ap = page.number(seeds_mean([r], "mean_ap"))
        body.append([r["group"], r["value"], mean_ap, interval(difference([r], "mean")), *agreement])
    return page.table(head, body)


def render(about: dict, rows: list[dict], path) -> None:
    text = (
        f"`standard.yaml` at {about['bits']}, the input's layers at 8 bits, one key changed at a time; "
        f"{about['frames']} calibration frames (seed {CALIBRATION_SEED}), {about['held_out_frames']} held-out ones (seed "
        f"{HELD_OUT_SEED}), which the tables above do not use. AP of so few frames is good to a point; the agreement with "
        "float's boxes tells more."
    )
    page.replace_marked(path, "choices", f"{text}\n\n{table(rows)}", "Ablation")


def arguments():
    parser = common_arguments(__doc__)
    parser.add_argument("--bits", choices=BITS, default="W4A4")
    parser.add_argument("--only", nargs="+", help="groups whose name holds one of these")
    parser.add_argument("--frames", type=int, help="calibration frames, a multiple of 4; default 64")
    parser.add_argument("--held-out-frames", type=int, help="default 300")
    return parse(parser, "choices.json", {"frames": (64, 8), "held_out_frames": (300, 10)})


def main() -> None:
    args = arguments()
    work = study(args)
    results = Results(args.out, args.fresh)
    plan = settings(args)
    about = {"bits": args.bits, "frames": args.frames, "held_out_frames": args.held_out_frames}
    held_out = Bag(work.bag(Drive("mixed", args.held_out_frames, max(1, args.held_out_frames // 5), HELD_OUT_SEED)))
    keys = [row_key(work, s, held_out=[HELD_OUT_SEED, args.held_out_frames]) for _, s in plan]
    wanted = [
        (group, s, key)
        for (group, s), key in zip(plan, keys)
        if key not in results.rows and (not args.only or group == AS_IT_IS or any(o in group for o in args.only))
    ]
    check_methods([s for _, s, _ in wanted])

    def measure(i: int, s: Setting) -> dict:
        group, _, key = wanted[i]
        value = "-" if group == AS_IT_IS else s.changes[-1][1]
        return {"group": group, "value": value, "key": key, "scores": work.score(work.model(s), held_out)}

    def keep(row: dict) -> None:
        results.keep(row, keys, about)
        render(about, results.of(keys), args.page)

    run_rows([s for _, s, _ in wanted], args.held_out_frames, measure, keep, args.jobs)
    render(about, results.of(keys), args.page)
    print(f"wrote {args.out} and {args.page}")


if __name__ == "__main__":
    main()
