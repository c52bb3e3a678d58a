"""Batches for training, made on the device that trains.

Sweeps lie in device memory as 16-bit points. A batch joins, augments, pillarizes and decorates them
and paints the targets there, all frames at once: the host only draws lots and handles boxes, so one
process keeps a GPU busy. `reference.py` says the same for one frame in plain NumPy.
"""

import functools
import queue
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bags import STEP, Recording
from model import CLASSES, Grid

MIN_POINTS = 2  # objects with fewer returns are neither object nor background


@dataclass(frozen=True)
class View:
    """How a frame is shown: with the sweep before it or not, and flipped, turned, scaled, lifted."""

    two: bool = True
    flip: tuple = (1, 1)
    turn: float = 0.0
    scale: float = 1.0
    lift: float = 0.0

    @staticmethod
    def draw(rng, two):
        """`two` is the chance of the older sweep: the model must also work where ego motion is unknown."""
        return View(
            two=rng.random() < two,
            flip=tuple(rng.choice((-1, 1), 2)),
            turn=rng.uniform(-np.pi / 4, np.pi / 4),
            scale=rng.uniform(0.95, 1.05),
            lift=rng.normal(0, 0.15),  # the mounting height is never known to the centimetre
        )

    def matrix(self):
        c, s = np.cos(self.turn), np.sin(self.turn)
        m = np.eye(4)
        m[:2, :2] = np.array([[c, -s], [s, c]]) * self.flip
        m[:3, :3] *= self.scale
        m[2, 3] = self.lift
        return m

    def boxes(self, boxes):
        """Copies of boxes [n, 11], moved as the points are."""
        m, out = self.matrix(), boxes.astype(np.float64)
        out[:, 1:4] = out[:, 1:4] @ m[:3, :3].T + m[:3, 3]
        out[:, 4:7] *= self.scale
        heading = np.stack([np.cos(out[:, 7]), np.sin(out[:, 7])], 1) @ m[:2, :2].T
        out[:, 7] = np.arctan2(heading[:, 1], heading[:, 0])
        out[:, 8:10] = out[:, 8:10] @ m[:2, :2].T
        return out


class Sweeps:
    """Converted bags (`bags.convert`) in one buffer of device memory, frame by frame."""

    def __init__(self, device, capacity):
        """`capacity` is in points."""
        self.device = numbered(device)
        self.points = torch.empty((capacity, 3), dtype=torch.int16, device=self.device)
        self.used = 0
        self.begin, self.length, self.lag, self.from_previous, self.boxes, self.has = [], [], [], [], [], []

    def __len__(self):
        return len(self.begin)

    def add(self, folder):
        """Takes a folder in; False, and nothing taken, where the buffer has no room for it."""
        recording = Recording(folder)
        n = int(recording.offsets[-1])
        if self.used + n > len(self.points):
            return False
        self.points[self.used : self.used + n] = torch.from_numpy(np.array(recording.points)).to(self.device)
        for i in range(len(recording)):
            self.begin.append(self.used + int(recording.offsets[i]))
            self.length.append(int(recording.offsets[i + 1] - recording.offsets[i]))
            j = recording.previous(i)
            self.lag.append(0.0 if j is None else (recording.stamps[i] - recording.stamps[j]) * 1e-9)
            self.from_previous.append(None if j is None else np.linalg.inv(recording.poses[i]) @ recording.poses[j])
            boxes = recording.boxes(i)
            self.boxes.append(boxes)
            self.has.append(np.isin(np.arange(len(CLASSES)), boxes[boxes[:, 10] >= MIN_POINTS, 0]))
        self.used += n
        return True

    def joined(self, picks):
        """Points [M, 4] (x, y, z, time lag) and frame [M] of picks (index, view), newest sweep of a frame first."""
        segments, matrices = [], []
        at = 0
        for frame, (i, view) in enumerate(picks):
            m = view.matrix()
            parts = [(i, 0.0, m)]
            if view.two and self.lag[i] > 0:
                parts.append((i - 1, self.lag[i], m @ self.from_previous[i]))
            for j, lag, matrix in parts:
                segments.append((self.begin[j] - at, self.length[j], frame))
                matrices.append([*matrix[:3].reshape(-1), lag])
                at += self.length[j]
        segments = self.upload(np.array(segments, np.int64))
        matrices = self.upload(np.array(matrices, np.float32))
        which = torch.repeat_interleave(
            torch.arange(len(segments), device=self.device), segments[:, 1], output_size=at)
        rows = torch.arange(at, device=self.device) + segments[which, 0]
        xyz = self.points[rows].float() * STEP
        m = matrices[which]
        moved = (m[:, :12].view(-1, 3, 4)[:, :, :3] * xyz[:, None]).sum(2) + m[:, 3:12:4]
        return torch.cat([moved, m[:, 12:]], 1), segments[which, 2]

    def upload(self, array):
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def batch(self, picks, grid):
        """One batch of picks (index, view): everything that the network and the loss need."""
        points, frame = self.joined(picks)
        features, counts, cells = pillarize(points, frame, len(picks), grid)
        host = host_targets([view.boxes(self.boxes[i]) for i, view in picks],
                            [view.two and self.lag[i] > 0 for i, view in picks], grid)
        paint = [self.upload(host[k]) for k in ("place", "sigma")]
        heat, judged = paint_targets(*paint, host["reach"], len(picks), grid)
        batch = {k: self.upload(host[k]) for k in ("at", "values", "weight", "label", "two_sweeps")}
        return batch | {"features": features, "counts": counts, "cells": cells, "heat": heat, "judged": judged,
                        "frames": len(picks), "objects": host["objects"]}


def numbered(device):
    """The device, a GPU by its number, as other threads have a current one of their own."""
    device = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


@functools.cache
def constants(device, values):
    """Numbers as tensors on the device, made once: making one waits for all work there.

    (And division by a tensor is division: by a number, CUDA multiplies with its reciprocal.)
    """
    return tuple(torch.tensor(v, device=device) for v in values)


def pillarize(points, frame, frames, grid):
    """Decorated points [M, 9] ordered by frame and pillar, points per pillar, flat cells (frame, y, x).

    Keeps the first `max_points` of a pillar in input order, as the deployed code does.
    """
    device = points.device
    low, high, pillar = constants(device, (grid.min, grid.max, grid.pillar))
    outside = frames * grid.size**2
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(1)
    column, row = ((points[:, :2] - low[:2]) / pillar).int().clamp(max=grid.size - 1).unbind(1)
    key = torch.where(inside, (frame.int() * grid.size + row) * grid.size + column, outside)
    # One more point that lies outside: then the last group always holds what is left out.
    key = torch.cat([key, key.new_full((1,), outside)])
    key, order = torch.sort(key, stable=True)
    new = torch.ones_like(key, dtype=torch.bool)
    new[1:] = key[1:] != key[:-1]
    start = new.nonzero().squeeze(1)
    group = new.cumsum(0) - 1
    rank = torch.arange(len(key), device=device) - start[group]
    kept = ((rank < grid.max_points) & (key < outside)).nonzero().squeeze(1)
    counts = start.diff().clamp(max=grid.max_points)
    cells = key[start[:-1]].long()
    group, points = group[kept], points[order[kept]]
    mean = torch.segment_reduce(points[:, :3], "mean", lengths=counts, axis=0, unsafe=True)
    inside = cells % grid.size**2
    centre = torch.stack([inside % grid.size, inside // grid.size], 1).float()
    centre = (centre + 0.5) * pillar + low[:2]
    features = torch.cat([points, points[:, :3] - mean[group], points[:, :2] - centre[group]], 1)
    return features, counts, cells


def gaussian_radius(length, width, overlap=0.1):
    """CenterPoint's radius (CornerNet's rule): boxes moved by it still overlap by `overlap`. Cells."""
    total, area = length + width, length * width
    r1 = (total + np.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    r2 = total + np.sqrt(total**2 - 4 * (1 - overlap) * area)
    r3 = -overlap * total + np.sqrt((overlap * total) ** 2 + 4 * overlap * (1 - overlap) * area)
    return np.minimum(np.minimum(r1, r2), r3)


def host_targets(boxes, two_sweeps, grid):
    """What there is to paint and to regress for a batch; boxes are few, so NumPy is quick enough.

    Boxes are learned at an object's centre and at the cells around it, as a peak may lie one cell off:
    AFDet (arXiv 2006.12671) regresses a square around the centre, TTFNet (arXiv 1909.00700) weighs
    cells by the Gaussian and lets every object count the same.
    """
    size, cell = grid.size // grid.downsample, grid.pillar * grid.downsample
    frame = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
    b = np.concatenate(boxes)
    where = (b[:, 1:3] - np.array(grid.min[:2])) / cell
    on_map = ((where >= 0) & (where < size)).all(1)
    frame, b, where = frame[on_map], b[on_map], where[on_map]
    centre = where.astype(np.int64)
    radius = np.maximum(2, gaussian_radius(b[:, 4] / cell, b[:, 5] / cell).astype(np.int64))
    sigma = (2 * radius + 1) / 6
    seen = b[:, 10] >= MIN_POINTS
    place = np.stack([frame, b[:, 0].astype(np.int64), *centre.T, radius, seen], 1)
    reach = int(radius.max(initial=0))

    frame, b, where, centre, sigma_seen = frame[seen], b[seen], where[seen], centre[seen], sigma[seen]
    steps = np.array([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    cells = centre[:, None] + steps  # [n, 9, 2]
    flat = (frame[:, None] * size + cells[..., 1]) * size + cells[..., 0]
    middle = np.broadcast_to((steps == 0).all(1), flat.shape)
    away = ((cells + 0.5 - where[:, None]) ** 2).sum(2)
    away[middle] -= 2  # the cell of a centre is no neighbour's
    weight = np.exp(-(steps**2).sum(1) / (2 * sigma_seen[:, None] ** 2))
    owner = np.broadcast_to(np.arange(len(b))[:, None], flat.shape)
    valid = ((cells >= 0) & (cells < size)).all(2)
    flat, away, weight, owner, steps = (
        a[valid] for a in (flat, away, weight, owner, np.broadcast_to(steps, cells.shape)))
    # A cell belongs to one object: of those whose centres lie in it, or else beside it, to the nearest.
    order = np.lexsort((away, flat))
    first = np.ones(len(flat), bool)
    first[1:] = flat[order][1:] != flat[order][:-1]
    taken = order[first]
    flat, weight, owner, steps = flat[taken], weight[taken], owner[taken], steps[taken]
    weight = weight / np.bincount(owner, weight, len(b))[owner]
    theta = -b[:, 7] - np.pi / 2
    values = np.stack([*(where - centre).T, b[:, 3], *np.log(b[:, [5, 4, 6]]).T, np.sin(theta), np.cos(theta),
                       b[:, 8], b[:, 9]], 1)[owner]
    values[:, :2] -= steps
    label = b[:, 0].astype(np.int64)
    return {
        "place": place, "sigma": sigma.astype(np.float32), "reach": reach,
        "at": flat, "values": values.astype(np.float32), "weight": weight.astype(np.float32), "label": label[owner],
        "two_sweeps": np.array(two_sweeps, np.float32)[frame][owner],
        "objects": np.bincount(label, minlength=len(CLASSES)),
    }


def paint_targets(place, sigma, reach, frames, grid):
    """Heatmaps [frames, classes, h, w] and the mask [frames, h, w] of cells that are judged."""
    size, device = grid.size // grid.downsample, place.device
    frame, label, x, y, radius, seen = (c[:, None] for c in place.unbind(1))
    side = torch.arange(-reach, reach + 1, device=device)
    dy, dx = (d.reshape(1, -1) for d in torch.meshgrid(side, side, indexing="ij"))
    i, j = x + dx, y + dy
    inside = (dx.abs() <= radius) & (dy.abs() <= radius) & (i >= 0) & (i < size) & (j >= 0) & (j < size)
    blob = torch.exp(-(dx**2 + dy**2) / (2 * sigma[:, None] ** 2))
    # One cell more than there are takes what falls outside of the map or of the patch.
    heat = torch.zeros(frames * len(CLASSES) * size * size + 1, device=device)
    at = ((frame * len(CLASSES) + label) * size + j) * size + i
    at = torch.where(inside & (seen > 0), at, len(heat) - 1)
    heat.scatter_reduce_(0, at.flatten(), blob.flatten(), "amax")
    judged = torch.ones(frames * size * size + 1, device=device)
    at = (frame * size + j) * size + i
    judged.index_fill_(0, torch.where(inside & (seen == 0), at, len(judged) - 1).flatten(), 0)
    # A seen object's centre is always judged.
    judged.index_fill_(0, torch.where(seen > 0, (frame * size + y) * size + x, len(judged) - 1).flatten(), 1)
    return heat[:-1].view(frames, len(CLASSES), size, size), judged[:-1].view(frames, size, size)


class Training:
    """Endless batches of random frames, made in a thread of their own beside the step that runs.

    Takes in what appears in `folder` meanwhile, so that training need not wait for all the data.
    """

    # Frames with a class that is in less than this share of them are drawn more often, by the root
    # of what is missing: repeat factor sampling (LVIS, arXiv 1908.03195).
    COMMON = 1.0

    def __init__(self, folder, device, grid=Grid(), batch=16, capacity=10**9, two=0.9, seed=0, wanted=1):
        self.folder, self.grid, self.size, self.two = Path(folder), grid, batch, two
        self.sweeps = Sweeps(device, capacity)
        self.rng = np.random.default_rng(seed)
        self.taken, self.full = set(), False
        self.sums = np.zeros(0)
        self.wanted = wanted  # sweeps before the first batch
        self.ready = queue.Queue(maxsize=3)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        while not self.ready.empty():
            self.ready.get_nowait()
        self.thread.join()

    def take_in(self, most):
        """Loads up to `most` folders that are new."""
        new = [] if self.full else sorted(set(self.folder.glob("train-*")) - self.taken)
        for folder in new[:most]:
            self.full = not self.sweeps.add(folder)
            if self.full:
                print(f"device memory is full: training goes on with {len(self.sweeps)} sweeps", flush=True)
                break
            self.taken.add(folder)
        if new and len(self.sweeps):
            has = np.array(self.sweeps.has)
            repeat = np.sqrt(np.maximum(1, self.COMMON / np.maximum(has.mean(0), 0.01)))
            self.sums = np.cumsum(np.where(has, repeat, 1).max(1))

    def draw(self):
        lots = np.searchsorted(self.sums, self.rng.random(self.size) * self.sums[-1], side="right")
        return [(int(i), View.draw(self.rng, self.two)) for i in lots]

    def _run(self):
        try:
            cuda = self.sweeps.device.type == "cuda"
            if cuda:
                torch.cuda.set_device(self.sweeps.device)
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream() if cuda else None):
                while len(self.sweeps) < self.wanted and not self.full and not self.stopped.wait(0.2):
                    self.take_in(64)
                count = 0
                while not self.stopped.is_set():
                    if count % 8 == 0:
                        self.take_in(4)
                    count += 1
                    batch = self.sweeps.batch(self.draw(), self.grid)
                    done = torch.cuda.Event() if cuda else None
                    if cuda:
                        done.record()
                    while not self.stopped.is_set():
                        try:
                            self.ready.put((batch, done), timeout=0.2)
                            break
                        except queue.Full:
                            pass
        except BaseException as error:  # the trainer hears of it, whatever it is
            self.ready.put((error, None))

    def next(self, timeout):
        """The next batch; raises `queue.Empty` where none came in `timeout` seconds."""
        batch, done = self.ready.get(timeout=max(timeout, 0.001))
        if isinstance(batch, BaseException):
            raise batch
        if done is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(done)
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.record_stream(stream)
        return batch
