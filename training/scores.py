"""What a model is worth on held-out sweeps: average precision, headings, speeds."""

import numpy as np
import torch

from data import View
from model import CLASSES


def decode(outputs, grid, threshold=0.05, keep=500, circle=0.5, overlap=0.1):
    """Boxes of every frame, best first: arrays of class, score, x, y, yaw, vx, vy.

    As deployed: a cell stands for its best class alone, and of boxes that are near each other or
    overlap the best stays. Only overlap is rougher here, as between parallel boxes:
    `centerpoint_ptq evaluate` has the last word.
    """
    best, label = torch.sigmoid(outputs[0].float()).max(1)
    b, h, w = best.shape
    score, index = best.flatten(1).topk(keep)
    label, y, x = label.flatten(1).gather(1, index), index // w, index % w
    maps = torch.cat([o.float() for o in outputs[1:]], 1).flatten(2)
    at = maps.gather(2, index[:, None].expand(-1, maps.shape[1], -1))
    cell = grid.pillar * grid.downsample
    x, y = (x + at[:, 0]) * cell + grid.min[0], (y + at[:, 1]) * cell + grid.min[1]
    yaw = -torch.atan2(at[:, 6], at[:, 7]) - np.pi / 2
    width, length = at[:, 3].exp(), at[:, 4].exp()

    dx, dy, turn = (v[:, None, :] - v[:, :, None] for v in (x, y, yaw))
    c, s = yaw.cos()[:, :, None], yaw.sin()[:, :, None]
    along, across = c * dx + s * dy, c * dy - s * dx
    crosswise = turn.sin().abs() > turn.cos().abs()
    other = [torch.where(crosswise, p[:, None, :], q[:, None, :]) for p, q in ((width, length), (length, width))]
    shared = 1
    for way, mine, its in ((along, length, other[0]), (across, width, other[1])):
        mine = mine[:, :, None]
        low, high = torch.maximum(-mine / 2, way - its / 2), torch.minimum(mine / 2, way + its / 2)
        shared = shared * (high - low).clamp(min=0)
    area = length * width
    beats = (dx**2 + dy**2 < circle**2) | (shared > overlap * (area[:, :, None] + area[:, None, :] - shared))

    rows = torch.stack([label, score, x, y, yaw, at[:, 8], at[:, 9]], 2).cpu().numpy()
    beats, counts = beats.cpu().numpy(), (score > threshold).sum(1).tolist()
    found = []
    for r, beat, n in zip(rows, beats, counts):
        stays = np.ones(n, bool)
        for k in range(n):
            if stays[k]:
                stays[k + 1 :] &= ~beat[k, k + 1 : n]
        found.append(r[:n][stays])
    return found


def matches(detections, boxes, near):
    """For detections in order of score, the index of the nearest box within `near` that is still free, or -1."""
    distance = np.hypot(detections[:, None, 2] - boxes[None, :, 1], detections[:, None, 3] - boxes[None, :, 2])
    out = np.full(len(detections), -1)
    if not len(boxes):
        return out
    for k in np.flatnonzero(distance.min(1) < near):
        j = distance[k].argmin()
        if distance[k, j] < near:
            out[k] = j
            distance[:, j] = np.inf
    return out


def score_class(found, truth, two_sweeps, cls, reach=50.0, near=2.0, min_points=5, deployed=0.35):
    """AP at `near` metres of centre distance (101 recall levels; objects with few points are not
    counted), and over boxes of at least the deployed score that lie on an object: the error of the
    heading's axis, the share turned round, and the speed of what moves (over 3 m/s, two sweeps)."""
    rows, total, turns, speeds = [], 0, [], []
    for detections, boxes, two in zip(found, truth, two_sweeps):
        boxes = boxes[(boxes[:, 0] == cls) & (np.hypot(boxes[:, 1], boxes[:, 2]) < reach)]
        counted = boxes[:, 10] >= min_points
        total += int(counted.sum())
        d = detections[(detections[:, 0] == cls) & (np.hypot(detections[:, 2], detections[:, 3]) < reach)]
        for row, j in zip(d, matches(d, boxes, near)):
            if j < 0 or counted[j]:
                rows.append((row[1], j >= 0))
            if j >= 0 and counted[j] and row[1] >= deployed:
                turns.append(abs((row[4] - boxes[j, 7] + np.pi) % (2 * np.pi) - np.pi))
                if two and np.hypot(*boxes[j, 8:10]) > 3:
                    speeds.append((np.hypot(*boxes[j, 8:10]), np.hypot(*row[5:7]),
                                   np.hypot(*(row[5:7] - boxes[j, 8:10]))))
    turns = np.array(turns)
    out = {"ap": 0.0, "truths": total, "boxes": len(turns)}
    if len(turns):
        out |= {"axis_degrees": float(np.degrees(np.median(np.minimum(turns, np.pi - turns)))),
                "turned_round": float((turns > np.pi / 2).mean())}
    if speeds:
        mean = np.mean(speeds, 0)
        out |= {"moving": len(speeds), "speed": float(mean[0]), "speed_said": float(mean[1]),
                "velocity_error": float(mean[2])}
    if rows and total:
        hits = np.array(sorted(rows, reverse=True))[:, 1]
        tp = np.cumsum(hits)
        recall, precision = tp / total, tp / np.arange(1, len(hits) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
        out["ap"] = float(precision[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())
    return out


@torch.no_grad()
def evaluate(model, sweeps, precision, frames=None, batch=16):
    """Scores per class on all sweeps, or on about `frames` of them, evenly chosen."""
    model.eval()
    found, chosen = [], list(range(0, len(sweeps), max(1, len(sweeps) // (frames or len(sweeps)))))
    for k in range(0, len(chosen), batch):
        b = sweeps.batch([(i, View()) for i in chosen[k : k + batch]], model.grid)
        found += decode(model(b["features"], b["counts"], b["cells"], b["frames"], precision), model.grid)
    truth, two = [sweeps.boxes[i] for i in chosen], [sweeps.lag[i] > 0 for i in chosen]
    return {name: score_class(found, truth, two, c) for c, name in enumerate(CLASSES)}


def table(scores):
    lines = [f"{'':<11}{'AP 2 m':>8}{'truths':>8}{'boxes':>8}{'axis':>8}{'turned':>8}{'speed':>8}{'said':>8}{'error':>8}"]
    for name, s in scores.items():
        def cell(key, form):
            return f"{s[key]:>{form}}" if key in s else f"{'-':>8}"
        lines.append(f"{name:<11}{s['ap']:>8.3f}{s['truths']:>8}{s['boxes']:>8}" + cell("axis_degrees", "7.1f")
                     + ("°" if "axis_degrees" in s else "") + cell("turned_round", "8.1%") + cell("speed", "8.1f")
                     + cell("speed_said", "8.1f") + cell("velocity_error", "8.1f"))
    return "\n".join(lines)
