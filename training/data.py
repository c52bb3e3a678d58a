"""Frames as the network sees them: pillars, targets, augmentation."""

import numpy as np
import torch
from torch.utils.data import Dataset

from bags import Recording
from model import CLASSES, Grid


def pillarize(points, grid):
    """Decorated points [M, 9] ordered by pillar, points per pillar, and each pillar's flat cell (y, x).

    Keeps the first `max_points` of a pillar in input order, as the deployed code does.
    """
    low, high = np.float32(grid.min), np.float32(grid.max)
    inside = np.ones(len(points), bool)
    for axis in range(3):
        inside &= (points[:, axis] >= low[axis]) & (points[:, axis] < high[axis])
    points = points[inside]
    column, row = (
        np.minimum(((points[:, axis] - low[axis]) / np.float32(grid.pillar)).astype(np.int32), grid.size - 1)
        for axis in range(2))
    # 16-bit keys get NumPy's radix sort.
    key = (row * grid.size + column).astype(np.uint16 if grid.size <= 256 else np.int32)
    order = np.argsort(key, kind="stable")
    key, points = key[order], points[order]
    cells, start, counts = np.unique(key, return_index=True, return_counts=True)
    rank = np.arange(len(key)) - np.repeat(start, counts)
    keep = rank < grid.max_points
    points, key = points[keep], key[keep]
    counts = np.minimum(counts, grid.max_points)
    start = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    mean = np.add.reduceat(points[:, :3], start, axis=0) / counts[:, None] if len(start) else points[:0, :3]
    cells = cells.astype(np.int64)
    centre = np.stack([cells % grid.size, cells // grid.size], 1).astype(np.float32)
    centre = (centre + 0.5) * np.float32(grid.pillar) + low[:2]
    features = np.concatenate(
        [points, points[:, :3] - np.repeat(mean, counts, 0), points[:, :2] - np.repeat(centre, counts, 0)], 1)
    return features.astype(np.float32), counts.astype(np.int64), cells


def augment(points, boxes, rng):
    """Flips, turns, scales and shifts points [M, 4] and boxes [n, 11] together."""
    for axis in (0, 1):
        if rng.random() < 0.5:
            points[:, axis] *= -1
            boxes[:, 1 + axis] *= -1
            boxes[:, 8 + axis] *= -1
            boxes[:, 7] = -boxes[:, 7] if axis == 1 else np.pi - boxes[:, 7]
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    for array, x in ((points, 0), (boxes, 1), (boxes, 8)):
        old = array[:, x].copy()
        array[:, x] = c * old - s * array[:, x + 1]
        array[:, x + 1] = s * old + c * array[:, x + 1]
    boxes[:, 7] += angle
    scale = rng.uniform(0.95, 1.05)
    points[:, :3] *= scale
    boxes[:, 1:7] *= scale
    boxes[:, 8:10] *= scale
    # The mounting height is never known to the centimetre.
    lift = rng.normal(0, 0.15)
    points[:, 2] += lift
    boxes[:, 3] += lift
    return points, boxes


def gaussian_radius(length, width, overlap=0.1):
    """CenterPoint's radius (CornerNet's rule): boxes moved by it still overlap by `overlap`. Cells."""
    b = length + width
    r1 = (b + np.sqrt(b * b - 4 * length * width * (1 - overlap) / (1 + overlap))) / 2
    b2 = 2 * b
    r2 = (b2 + np.sqrt(b2 * b2 - 16 * (1 - overlap) * length * width)) / 2
    b3 = -2 * overlap * b
    r3 = (b3 + np.sqrt(b3 * b3 + 16 * overlap * (1 - overlap) * length * width)) / 2
    return min(r1, r2, r3)


def targets(boxes, grid, min_points=2):
    """Heatmaps [classes, h, w], the mask of cells that are judged, and box targets at object centres."""
    size = grid.size // grid.downsample
    cell = grid.pillar * grid.downsample
    heat = np.zeros((len(CLASSES), size, size), np.float32)
    judged = np.ones((size, size), np.float32)
    at, values = [], []
    for b in boxes:
        x, y = (b[1] - grid.min[0]) / cell, (b[2] - grid.min[1]) / cell
        if not (0 <= x < size and 0 <= y < size):
            continue
        cx, cy = int(x), int(y)
        radius = max(2, int(gaussian_radius(b[4] / cell, b[5] / cell)))
        x0, x1, y0, y1 = max(cx - radius, 0), min(cx + radius + 1, size), max(cy - radius, 0), min(cy + radius + 1, size)
        if b[10] < min_points:  # nothing there that a sensor could see: neither object nor background
            judged[y0:y1, x0:x1] = 0
            continue
        gx, gy = np.arange(x0, x1) - cx, np.arange(y0, y1) - cy
        sigma = (2 * radius + 1) / 6
        blob = np.exp(-(gx[None] ** 2 + gy[:, None] ** 2) / (2 * sigma * sigma))
        patch = heat[int(b[0]), y0:y1, x0:x1]
        np.maximum(patch, blob, out=patch)
        theta = -b[7] - np.pi / 2
        at.append(cy * size + cx)
        values.append([x - cx, y - cy, b[3], np.log(b[5]), np.log(b[4]), np.log(b[6]),
                       np.sin(theta), np.cos(theta), b[8], b[9]])
    for b in boxes:  # a seen object's centre is always judged
        if b[10] >= min_points:
            x, y = int((b[1] - grid.min[0]) / cell), int((b[2] - grid.min[1]) / cell)
            if 0 <= x < size and 0 <= y < size:
                judged[y, x] = 1
    return heat, judged, np.array(at, np.int64), np.array(values, np.float32).reshape(-1, 10)


class Frames(Dataset):
    def __init__(self, folders, grid=Grid(), train=True, stride=1):
        self.recordings = [Recording(f) for f in folders]
        self.index = [(r, i) for r, rec in enumerate(self.recordings) for i in range(0, len(rec), stride)]
        self.grid, self.train = grid, train

    def __len__(self):
        return len(self.index)

    def __getitem__(self, k):
        r, i = self.index[k]
        rec = self.recordings[r]
        rng = np.random.default_rng(np.random.SeedSequence([k, torch.initial_seed() % 2**32, torch.randint(2**31, ()).item()]))
        two = not self.train or rng.random() < 0.6  # the model must also work where ego motion is unknown
        points, boxes = rec.frame(i, two), rec.boxes(i)
        has_velocity = bool((points[:, 3] > 0).any()) if len(points) else False
        if self.train:
            points, boxes = augment(points, boxes, rng)
        features, counts, cells = pillarize(points, self.grid)
        return features, counts, cells, *targets(boxes, self.grid), has_velocity, boxes


def collate(items, grid=Grid()):
    """Joins frames; every index becomes one into the joined arrays."""
    names = ("features", "counts", "cells", "heat", "judged", "at", "values", "velocity", "boxes")
    out = {k: [] for k in names}
    for b, (features, counts, cells, heat, judged, at, values, velocity, boxes) in enumerate(items):
        out["features"].append(torch.from_numpy(features))
        out["counts"].append(torch.from_numpy(counts))
        out["cells"].append(torch.from_numpy(cells + b * grid.size**2))
        out["heat"].append(torch.from_numpy(heat))
        out["judged"].append(torch.from_numpy(judged))
        out["at"].append(torch.from_numpy(at + b * judged.size))
        out["values"].append(torch.from_numpy(values))
        out["velocity"].append(torch.full((len(at),), float(velocity)))
        out["boxes"].append(torch.from_numpy(boxes))
    batch = {k: torch.cat(v) for k, v in out.items() if k not in ("heat", "judged", "boxes")}
    batch["heat"], batch["judged"], batch["boxes"] = torch.stack(out["heat"]), torch.stack(out["judged"]), out["boxes"]
    return batch
