"""Trains the demo model on converted sweeps (`generate.py`), on a GPU or a CPU.

    python training/train.py --data build/training/data --out build/training/run --minutes 30

Sweeps that `generate.py` still writes are taken in as they come. Survives a kill: run it again with
the same --out and it goes on from the last checkpoint, the rest of the schedule spread over what
is left of the time.
"""

import argparse
import json
import math
import os
import queue
import time
from pathlib import Path

import numpy as np
import torch

from data import Sweeps, Training, constants, numbered
from model import CenterPoint, Grid
from scores import evaluate, table

# Every box term counts the same in CenterPoint but velocity, which counts 0.2. Most objects stand, and
# an L1 term that hears them most learns to answer zero: here what moves counts as any other term,
# what stands half as much. Sine and cosine count double, headings being what short training leaves worst.
CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 0.5, 0.5)
MOVING = 0.5  # m/s
# Cars are twenty times as many as buses. CenterPoint normalises the loss of each group of classes by
# itself, which makes classes equal; the cube root of their rarity lies between that and nothing.
CLASS_WEIGHTS = (1.0, 2.2, 2.7, 1.9, 1.15)
# At 0.4 m a pillar, a pedestrian's heading is often not there to be seen.
HEADING_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 0.25)


def loss_of(outputs, batch, box_weight):
    """Gaussian focal loss on the heatmap (CornerNet, alpha 2, beta 4) and L1 on the boxes: total, heat, box."""
    of_class, of_code, of_heading = constants(outputs[0].device, (CLASS_WEIGHTS, CODE_WEIGHTS, HEADING_WEIGHTS))
    count = max(1.0, float(np.dot(batch["objects"], CLASS_WEIGHTS)))
    logits, heat = outputs[0].float(), batch["heat"]
    p = torch.sigmoid(logits).clamp(1e-4, 1 - 1e-4)
    positive = heat.eq(1).float()
    hit = -torch.log(p) * (1 - p) ** 2 * positive
    miss = -torch.log(1 - p) * p**2 * (1 - heat) ** 4 * (1 - positive)
    heat_loss = ((hit + miss) * batch["judged"][:, None] * of_class[:, None, None]).sum() / count
    maps = torch.cat([o.float() for o in outputs[1:]], 1)  # [b, 10, h, w]
    picked = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])[batch["at"]]
    weight = of_code * (batch["weight"] * of_class[batch["label"]])[:, None]
    weight[:, 6:8] *= of_heading[batch["label"]][:, None]
    moves = batch["values"][:, 8:].norm(dim=1) > MOVING
    weight[:, 8:] *= (batch["two_sweeps"] * (1 + moves))[:, None]
    box_loss = ((picked - batch["values"]).abs() * weight).sum() / count
    return heat_loss + box_weight * box_loss, heat_loss.detach(), box_loss.detach()


class Average:
    """Moving average of weights and of the norms' statistics; short while there are few steps."""

    def __init__(self, model, grid, decay=0.999):
        self.decay, self.steps = decay, 0
        self.model = CenterPoint(grid).to(next(model.parameters()).device, memory_format=torch.channels_last)
        self.model.load_state_dict(model.state_dict())
        self.mine = [v for v in self.model.state_dict().values() if v.is_floating_point()]
        self.theirs = [v for v in model.state_dict().values() if v.is_floating_point()]

    @torch.no_grad()
    def update(self):
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.mine, self.theirs, 1 - decay)


def capture(model, batch, precision):
    """Makes the backbone, neck and heads a CUDA graph for batches of this size, forwards and backwards."""
    g, device = model.grid, next(model.parameters()).device
    before = {k: v.clone() for k, v in model.net.state_dict().items()}  # trial runs move the norms' statistics
    example = torch.randn(batch, g.size, g.size, 32, device=device, dtype=precision).permute(0, 3, 1, 2)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32, cache_enabled=False):
        torch.cuda.make_graphed_callables(model.net, (example.requires_grad_(),))
    model.net.load_state_dict(before)


def save(path, state):
    """Whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def compact(optimizer):
    """The optimizer's state with moments in bfloat16, which keeps a checkpoint under 16 MiB."""
    state = optimizer.state_dict()
    half = {k: {n: v.bfloat16() if n.startswith("exp_avg") else v for n, v in s.items()} for k, s in state["state"].items()}
    return {"state": half, "param_groups": state["param_groups"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of generate.py, which may still be writing")
    parser.add_argument("--out", default="build/training/run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="end, evaluated, this long after the start")
    parser.add_argument("--end-at", type=float, help="end, evaluated, at this time (seconds since 1970)")
    parser.add_argument("--steps", type=int, help="end after so many steps if time has not ended it before")
    parser.add_argument("--reserve", type=float, default=25, help="seconds of the time that are for evaluation")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--box-weight", type=float, default=0.5)
    parser.add_argument("--two", type=float, default=0.9, help="chance that a frame which has an older sweep comes with it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16",
                        help="of convolutions; a CPU without bfloat16 units is quicker with float32")
    parser.add_argument("--wanted", type=int, default=1, help="sweeps to wait for before the first step")
    parser.add_argument("--capacity", type=float, help="GiB of device memory for sweeps [default: 45 % of what is free, 4 on a CPU]")
    parser.add_argument("--graphs", action="store_true", help="replay the network as a CUDA graph: less work for the host")
    parser.add_argument("--save-seconds", type=float, default=30, help="between checkpoints")
    parser.add_argument("--every", type=int, default=200, help="steps between lines of the log")
    args = parser.parse_args()
    began = time.time()
    ends = [t for t in (args.end_at, args.minutes and began + 60 * args.minutes) if t]
    if not ends and not args.steps:
        parser.error("say --minutes, --end-at or --steps")
    stop_at = min(ends) - args.reserve if ends else math.inf

    torch.manual_seed(args.seed)
    device = numbered(args.device)
    precision = getattr(torch, args.precision)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # `taskset` leaves the other cores alone
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    grid = Grid()
    model = CenterPoint(grid).to(device, memory_format=torch.channels_last)
    average = Average(model, grid)
    optimizer = torch.optim.AdamW(model.parameters(), args.rate, betas=(0.9, 0.99), weight_decay=0.01,
                                  fused=device.type == "cuda")
    step, progress, log = 0, 0.0, []
    checkpoint = out / "last.pt"

    def load(state):
        nonlocal step, progress, log
        model.load_state_dict(state["raw"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = average.steps = state["step"]
        progress, log = state["progress"], state["log"]

    def keep():
        save(checkpoint, {"raw": model.state_dict(), "average": average.model.state_dict(),
                          "optimizer": compact(optimizer), "step": step, "progress": progress, "log": log})
        save(out / "final.pt", {"model": average.model.state_dict()})

    if checkpoint.exists():
        load(torch.load(checkpoint, map_location=device))
        print(f"going on from step {step} ({progress:.1%})", flush=True)

    if args.graphs:
        capture(model, args.batch, precision)
    free = 0.45 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 * 2**30
    capacity = int((args.capacity * 2**30 if args.capacity else free) / 6)
    sums = torch.zeros(3, device=device)
    waited = 0.0
    first, first_step = progress, step
    with Training(args.data, device, grid, args.batch, capacity, args.two, args.seed + step, args.wanted) as training:
        started = saved = told = None
        while True:
            asked = time.time()
            try:
                batch = training.next(min(stop_at, asked + 600) - asked)
            except queue.Empty:
                print("no batch came in time", flush=True)
                break
            now = time.time()
            if started is None:
                started = saved = told = now
                told_step = step
                print(f"first batch after {now - began:.1f} s, {len(training.sweeps)} sweeps so far", flush=True)
            else:
                waited += now - asked
            # The schedule follows whichever comes first, steps or time, so that a run always ends annealed.
            by_time = (now - started) / max(1e-3, stop_at - started)
            by_steps = (step - first_step) / (args.steps - first_step) if args.steps and args.steps > first_step else float(bool(args.steps))
            progress = first + (1 - first) * max(by_time, by_steps)
            if progress >= 1:
                break
            rate = args.rate * min(1.0, 0.02 + step / 500, 0.02 + progress / 0.03) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-6
            for group in optimizer.param_groups:
                group["lr"] = rate
            outputs = model(batch["features"], batch["counts"], batch["cells"], batch["frames"], precision)
            loss, heat, box = loss_of(outputs, batch, args.box_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0, foreach=True)
            optimizer.step()
            average.update()
            step += 1
            sums += torch.stack([loss.detach(), heat, box])
            if step % args.every == 0:
                means = (sums / args.every).tolist()
                sums.zero_()
                now = time.time()
                frames = (step - told_step) * args.batch / (now - told)
                print(f"step {step} ({progress:.1%}) loss {means[0]:.3f} heat {means[1]:.3f} box {means[2]:.3f} "
                      f"rate {rate:.5f} {now - began:.0f} s {frames:.0f} frames/s, waited {waited:.1f} s for data, "
                      f"{len(training.sweeps)} sweeps", flush=True)
                log.append({"step": step, "seconds": now - began, "loss": means, "sweeps": len(training.sweeps)})
                told, told_step, waited = now, step, 0.0
                if not math.isfinite(means[0]):
                    if not checkpoint.exists():
                        raise SystemExit("the loss is not finite")
                    print("the loss is not finite: back to the last checkpoint, at half the rate", flush=True)
                    load(torch.load(checkpoint, map_location=device))
                    args.rate /= 2
                elif now - saved > args.save_seconds:
                    saved = now
                    try:
                        keep()
                    except (OSError, RuntimeError) as error:  # a disk that is full for a while costs no training
                        print(f"no checkpoint written: {error}", flush=True)
        sweeps = len(training.sweeps)
    if started is None:
        raise SystemExit("nothing was learnt: no data came in the time there was")
    keep()
    seconds = time.time() - began
    print(f"{step} steps, {sweeps} sweeps, {seconds:.0f} s", flush=True)
    del training
    result = {"arguments": vars(args), "steps": step, "sweeps": sweeps, "seconds": seconds, "log": log}
    held_out = sorted(Path(args.data).glob("test-*"))
    if held_out:
        points = sum((f / "points.i16").stat().st_size // 6 for f in held_out)
        test = Sweeps(device, points)
        for folder in held_out:
            test.add(folder)
        result["held_out"] = evaluate(average.model, test, precision)
        print(f"{len(test)} held-out sweeps, {time.time() - began - seconds:.0f} s")
        print(table(result["held_out"]), flush=True)
    (out / "log.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
