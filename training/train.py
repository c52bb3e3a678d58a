"""Trains the demo model on simulated bags, on the CPU.

    python training/train.py --bags build/training/train-? --held-out build/training/test-? --out build/training/run

Survives a kill: run it again with the same arguments and it goes on from the last checkpoint.
"""

import argparse
import functools
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bags import convert
from data import Frames, collate
from model import CLASSES, HEADS, CenterPoint, Grid

BOX_HEADS = [n for n in HEADS if n != "heatmap"]
# CenterPoint weighs velocity 0.2. Most objects stand, and an L1 term that hears them most learns to
# answer zero: here what moves counts as much as any other box term, what stands half as much.
CODE_WEIGHTS = torch.tensor([1.0] * 8 + [0.5] * 2)
MOVING = 0.5  # m/s


def loss_of(outputs, batch, box_weight):
    """Gaussian focal loss on the heatmap (CornerNet, alpha 2, beta 4) and L1 on the boxes at object centres."""
    logits = outputs[0].float()
    heat, judged = batch["heat"], batch["judged"][:, None]
    p = torch.sigmoid(logits).clamp(1e-4, 1 - 1e-4)
    positive = heat.eq(1).float()
    hit = -torch.log(p) * (1 - p) ** 2 * positive
    miss = -torch.log(1 - p) * p**2 * (1 - heat) ** 4 * (1 - positive)
    count = max(1.0, float(len(batch["at"])))
    heat_loss = ((hit + miss) * judged).sum() / count
    maps = torch.cat([o.float() for o in outputs[1:]], 1)  # [b, 10, h, w]
    picked = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])[batch["at"]]
    weight = CODE_WEIGHTS.repeat(len(picked), 1)
    moves = batch["values"][:, 8:].norm(dim=1) > MOVING
    weight[:, 8:] *= (batch["velocity"] * (1 + moves))[:, None]
    box_loss = ((picked - batch["values"]).abs() * weight).sum() / count
    return heat_loss + box_weight * box_loss, heat_loss.item(), box_loss.item()


def decode(outputs, grid, threshold=0.05, keep=300):
    """Peaks of every frame: arrays of class, score, x, y."""
    p = torch.sigmoid(outputs[0].float())
    p = p * (p == F.max_pool2d(p, 3, 1, 1))
    b, c, h, w = p.shape
    score, index = p.reshape(b, -1).topk(keep)
    cell = grid.pillar * grid.downsample
    found = []
    for i in range(b):
        k = index[i][score[i] > threshold]
        cls, y, x = k // (h * w), k % (h * w) // w, k % w
        off = outputs[1][i].float()[:, y, x]
        found.append(torch.stack([cls.float(), score[i][: len(k)], (x + off[0]) * cell + grid.min[0],
                                  (y + off[1]) * cell + grid.min[1]], 1).numpy())
    return found


def average_precision(found, truth, cls, reach=50.0, near=2.0, min_points=5):
    """AP at `near` metres of centre distance, 101 recall levels; objects with few points are not counted."""
    rows, total = [], 0
    for detections, boxes in zip(found, truth):
        boxes = boxes[(boxes[:, 0] == cls) & (np.hypot(boxes[:, 1], boxes[:, 2]) < reach)]
        counted = boxes[:, 10] >= min_points
        total += counted.sum()
        used = np.zeros(len(boxes), bool)
        d = detections[(detections[:, 0] == cls) & (np.hypot(detections[:, 2], detections[:, 3]) < reach)]
        for row in d[np.argsort(-d[:, 1])]:
            distance = np.hypot(boxes[:, 1] - row[2], boxes[:, 2] - row[3])
            distance[used] = np.inf
            j = distance.argmin() if len(distance) else -1
            if j >= 0 and distance[j] < near:
                used[j] = True
                if counted[j]:
                    rows.append((row[1], 1))
            else:
                rows.append((row[1], 0))
    if not rows or not total:
        return 0.0, int(total)
    hits = np.array(sorted(rows, reverse=True))[:, 1]
    tp = np.cumsum(hits)
    recall, precision = tp / total, tp / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    levels = np.linspace(0, 1, 101)
    at = np.searchsorted(recall, levels)
    return float(np.mean([precision[i] if i < len(precision) else 0.0 for i in at])), int(total)


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    found, truth = [], []
    for batch in loader:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch["features"], batch["counts"], batch["cells"], len(batch["boxes"]))
        found += decode(outputs, model.grid)
        truth += [b.numpy() for b in batch["boxes"]]
    model.train()
    return {name: average_precision(found, truth, c) for c, name in enumerate(CLASSES)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bags", nargs="+", required=True)
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--out", default="build/training/run")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--box-weight", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1000, help="steps between held-out scores and checkpoints")
    parser.add_argument("--minutes", type=float, help="stop at a well-annealed point near this time instead of at --steps")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # `taskset` leaves the other cores alone
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    cached = lambda bags: [convert(b, Path(str(b).rstrip("/") + ".cache")) for b in bags]
    grid = Grid()
    train = Frames(cached(args.bags), grid)
    held_out = Frames(cached(args.held_out), grid, train=False, stride=5)
    print(f"{len(train)} frames to train on, {len(held_out)} held out", flush=True)
    join = functools.partial(collate, grid=grid)
    test_loader = DataLoader(held_out, 4, collate_fn=join, num_workers=1)

    model = CenterPoint(grid).to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    step, spent, log = 0, 0.0, []
    checkpoint = out / "last.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["raw"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, log = state["step"], state["spent"], state["log"]
        print(f"going on from step {step}", flush=True)

    def save(name):
        state = {"model": average.module.state_dict(), "raw": model.state_dict(), "average": average.state_dict(),
                 "optimizer": optimizer.state_dict(), "step": step, "spent": spent, "log": log}
        torch.save(state, out / "tmp.pt")
        os.replace(out / "tmp.pt", out / name)

    def batches():
        while True:
            loader = DataLoader(train, args.batch, shuffle=True, drop_last=True, collate_fn=join, num_workers=1,
                                prefetch_factor=4)
            yield from loader

    # The schedule follows whichever comes first, steps or time, so that a run always ends annealed.
    started, began, means = time.time(), spent, np.zeros(3)
    for batch in batches():
        spent = began + time.time() - started
        progress = step / args.steps
        if args.minutes:
            progress = max(progress, spent / (60 * args.minutes))
        if progress >= 1:
            break
        rate = args.rate * min(1.0, 0.05 + step / 300) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch["features"], batch["counts"], batch["cells"], len(batch["boxes"]))
        loss, heat, box = loss_of(outputs, batch, args.box_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        average.update_parameters(model)
        step += 1
        means += [loss.item(), heat, box]
        if step % 50 == 0:
            print(f"step {step} ({progress:.1%}) loss {means[0] / 50:.3f} heat {means[1] / 50:.3f} "
                  f"box {means[2] / 50:.3f} rate {rate:.5f} {spent / 60:.1f} min", flush=True)
            means[:] = 0
        if step % args.every == 0:
            scores = evaluate(average.module, test_loader)
            log.append({"step": step, "minutes": spent / 60, "ap": scores})
            print("held out " + "  ".join(f"{k} {v[0]:.3f} (of {v[1]})" for k, v in scores.items()), flush=True)
            save("last.pt")
    scores = evaluate(average.module, test_loader)
    log.append({"step": step, "minutes": spent / 60, "ap": scores})
    print("held out " + "  ".join(f"{k} {v[0]:.3f} (of {v[1]})" for k, v in scores.items()), flush=True)
    save("final.pt")
    (out / "log.json").write_text(json.dumps({"arguments": vars(args), "log": log}, indent=1))


if __name__ == "__main__":
    main()
