"""CenterPoint-Pillar from points to boxes in NumPy and onnxruntime, written from the definition.

It shares nothing with the Rust implementation but the model description, so that the two can be
held against each other. Clear rather than fast: arithmetic in float64 where the result allows it,
one object at a time in the suppression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import yaml

COLUMNS = ["x", "y", "z", "intensity", "time_lag", "ring"]


@dataclass
class Box:
    label: int
    score: float
    center: np.ndarray  # x, y, z of the geometric centre, metres
    size_lwh: np.ndarray
    yaw: float
    velocity: np.ndarray | None

    def corners(self) -> np.ndarray:
        """Footprint, counter-clockwise, [4, 2]."""
        l, w = self.size_lwh[:2] / 2
        local = np.array([[l, w], [-l, w], [-l, -w], [l, -w]])
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return local @ np.array([[c, s], [-s, c]]) + self.center[:2]


class Reference:
    def __init__(self, description: Path):
        self.d = yaml.safe_load(Path(description).read_text())
        folder = Path(description).parent
        options = onnxruntime.SessionOptions()
        # Without fusions: the graph as it was exported.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 2

        def session(file):
            return onnxruntime.InferenceSession(
                str(folder / file), options, providers=["CPUExecutionProvider"]
            )

        self.encoder = session(self.d["encoder"]["file"])
        self.backbone = session(self.d["backbone"]["file"])
        g = self.d["grid"]
        self.low = np.array(g["min"], np.float32)
        self.high = np.array(g["max"], np.float32)
        self.pillar = np.array(g["pillar"], np.float32)
        self.size = np.rint((self.high[:2] - self.low[:2]) / self.pillar).astype(int)  # x, y

    # --- points to pillars -----------------------------------------------------------------

    def pillars(self, points: np.ndarray):
        """`points` [n, 6] in COLUMNS; returns features [pillars, P, F], cells, lost pillars."""
        g = self.d["grid"]
        limit = g["max_points"]
        xyz = points[:, :3].astype(np.float32)
        inside = np.all((xyz >= self.low) & (xyz < self.high), axis=1)
        points, xyz = points[inside], xyz[inside]
        # In float32, as a cell's border is a matter of rounding.
        index = np.floor((xyz[:, :2] - self.low[:2]) / self.pillar).astype(int)
        index = np.clip(index, 0, self.size - 1)
        cell = index[:, 1] * self.size[0] + index[:, 0]
        unique, first, inverse = np.unique(cell, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # place of each unique cell by first appearance
        number = rank[inverse]
        lost = max(0, len(unique) - g["max_pillars"])
        count = len(unique) - lost
        cells = unique[np.argsort(first)][:count]

        raw_columns = self.d["points"]["features"]
        scale = self.d["points"].get("intensity_scale", 1.0)
        features = []
        order = np.argsort(number, kind="stable")
        starts = np.searchsorted(number[order], np.arange(count))
        ends = np.searchsorted(number[order], np.arange(count), side="right")
        width = {"cluster_xyz": 3, "centre_xy": 2, "centre_xyz": 3}
        total = len(raw_columns) + sum(width[k] for k in g.get("decorations", []))
        features = np.zeros((count, limit, total), np.float32)
        for i in range(count):
            kept = points[order[starts[i] : ends[i]][:limit]].astype(np.float64)
            raw = {name: kept[:, k] for k, name in enumerate(COLUMNS)}
            raw["intensity"] = raw["intensity"] * scale
            parts = [raw[name][:, None] for name in raw_columns]
            x, y = cells[i] % self.size[0], cells[i] // self.size[0]
            centre = np.array(
                [
                    self.low[0] + (x + 0.5) * self.pillar[0],
                    self.low[1] + (y + 0.5) * self.pillar[1],
                    (float(self.low[2]) + float(self.high[2])) / 2,
                ]
            )
            for kind in g.get("decorations", []):
                if kind == "cluster_xyz":
                    parts.append(kept[:, :3] - kept[:, :3].mean(axis=0))
                elif kind == "centre_xy":
                    parts.append(kept[:, :2] - centre[:2])
                elif kind == "centre_xyz":
                    parts.append(kept[:, :3] - centre)
                else:
                    raise ValueError(kind)
            features[i, : len(kept)] = np.concatenate(parts, axis=1)
        return features, cells, lost

    # --- networks --------------------------------------------------------------------------

    @staticmethod
    def _name(wanted, tensors):
        return tensors[wanted].name if isinstance(wanted, int) else wanted

    def spatial(self, features: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """[1, C, gy, gx]."""
        e = self.d["encoder"]
        given = self._name(e["input"], self.encoder.get_inputs())
        wanted = self._name(e["output"], self.encoder.get_outputs())
        # One pillar, when there is none, to learn the number of channels.
        shape = features if len(features) else np.zeros((1, *features.shape[1:]), np.float32)
        encoded = self.encoder.run([wanted], {given: shape})[0]
        encoded = encoded.reshape(len(shape), -1)[: len(features)]
        flat = np.zeros((encoded.shape[1], self.size[0] * self.size[1]), np.float32)
        flat[:, cells] = encoded.T
        return flat.reshape(1, encoded.shape[1], self.size[1], self.size[0])

    def heads(self, spatial: np.ndarray) -> dict[str, np.ndarray]:
        b = self.d["backbone"]
        given = self._name(b["input"], self.backbone.get_inputs())
        outputs = self.backbone.get_outputs()
        names = {head: self._name(t, outputs) for head, t in b["outputs"].items()}
        values = self.backbone.run(list(names.values()), {given: spatial})
        return dict(zip(names, values))

    # --- head maps to boxes ----------------------------------------------------------------

    def candidates(self, maps: dict[str, np.ndarray]) -> list[Box]:
        h, p, g = self.d["head"], self.d["post"], self.d["grid"]
        maps = {k: v[0].astype(np.float64) for k, v in maps.items()}
        heat = maps["heatmap"]
        if h["heatmap"] == "logit":
            score = 1 / (1 + np.exp(-heat))
        else:
            score = heat
        best = heat.argmax(axis=0)
        keep = np.take_along_axis(score, best[None], 0)[0] >= np.array(
            p["score_thresholds"], np.float32
        )[best].astype(np.float64)
        if p.get("peak_kernel", 0) == 3:
            padded = np.pad(heat, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
            rows, columns = heat.shape[1:]
            around = [
                padded[:, dy : dy + rows, dx : dx + columns] for dy in range(3) for dx in range(3)
            ]
            peak = heat >= np.max(around, axis=0)
            keep &= np.take_along_axis(peak, best[None], 0)[0]

        first, second = maps["rot"]
        sin, cos = (first, second) if h["rot_order"] == "sin_cos" else (second, first)
        norms = p.get("yaw_norm_thresholds") or [0.0] * len(self.d["classes"])
        keep &= np.hypot(sin, cos) >= np.array(norms, np.float32)[best].astype(np.float64)

        found = []
        for y, x in zip(*np.nonzero(keep)):
            dim = maps["dim"][:, y, x]
            dim = np.exp(dim) if h["dim_scale"] == "log" else dim
            if np.any(dim <= 0):
                continue
            if h["dim_order"] == "wlh":
                dim = dim[[1, 0, 2]]
            theta = math.atan2(sin[y, x], cos[y, x])
            yaw = -theta - math.pi / 2 if h["yaw"] == "legacy" else theta
            yaw = math.atan2(math.sin(yaw), math.cos(yaw))
            cell = self.pillar.astype(np.float64) * g["downsample"]
            velocity = None
            if "vel" in maps:
                velocity = maps["vel"][:, y, x]
                if h.get("velocity_frame", "ego") == "object":
                    c, s = math.cos(yaw), math.sin(yaw)
                    velocity = np.array([[c, -s], [s, c]]) @ velocity
            center = np.array(
                [
                    (x + maps["reg"][0, y, x]) * cell[0] + self.low[0],
                    (y + maps["reg"][1, y, x]) * cell[1] + self.low[1],
                    maps["height"][0, y, x],
                ]
            )
            label = int(best[y, x])
            found.append(Box(label, float(score[label, y, x]), center, dim, yaw, velocity))
        # By falling score as float32, so that scores that are equal there keep the cells' order.
        found.sort(key=lambda b: -np.float32(b.score))
        return found

    def suppress(self, boxes: list[Box]) -> list[Box]:
        p = self.d["post"]
        circle = p.get("circle_nms")
        if circle:
            radius = circle["distance"]
            if circle["unit"] == "squared_metres":
                radius = math.sqrt(radius)
            kept = []
            for b in boxes:
                if all(np.hypot(*(b.center - k.center)[:2]) >= radius for k in kept):
                    kept.append(b)
            boxes = kept
        iou = p.get("iou_nms")
        if iou:
            separate = iou.get("separate_classes", ["PEDESTRIAN"])
            separate = [i for i, name in enumerate(self.d["classes"]) if name in separate]
            stays = []
            for i, b in enumerate(boxes):
                good = True
                for j in range(i):
                    k = boxes[j]
                    if not stays[j] and iou.get("suppressors", "kept") == "kept":
                        continue
                    if b.label != k.label and (b.label in separate or k.label in separate):
                        continue
                    if np.hypot(*(b.center - k.center)[:2]) > iou["search_distance"]:
                        continue
                    if bev_iou(b, k) > iou["threshold"]:
                        good = False
                        break
                stays.append(good)
            boxes = [b for b, good in zip(boxes, stays) if good]
        return boxes[: p.get("max_detections", 500)]

    def decode(self, maps: dict[str, np.ndarray]) -> list[Box]:
        return self.suppress(self.candidates(maps))


def bev_iou(a: Box, b: Box) -> float:
    """Intersection over union of the footprints.

    The corners of the intersection are the corners of each inside the other and the points where
    sides cross; sorted by angle they bound a convex polygon.
    """
    if np.hypot(*(a.center - b.center)[:2]) > (np.hypot(*a.size_lwh[:2]) + np.hypot(*b.size_lwh[:2])) / 2:
        return 0.0
    pa, pb = a.corners(), b.corners()
    points = [q for q in pa if _inside(q, pb)] + [q for q in pb if _inside(q, pa)]
    for i in range(4):
        for j in range(4):
            crossing = _cross(pa[i], pa[(i + 1) % 4], pb[j], pb[(j + 1) % 4])
            if crossing is not None:
                points.append(crossing)
    if len(points) < 3:
        return 0.0
    points = np.array(points)
    middle = points.mean(axis=0)
    turn = np.argsort(np.arctan2(points[:, 1] - middle[1], points[:, 0] - middle[0]))
    x, y = points[turn].T
    shared = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return shared / (np.prod(a.size_lwh[:2]) + np.prod(b.size_lwh[:2]) - shared)


def _inside(q, polygon) -> bool:
    for i in range(4):
        edge = polygon[(i + 1) % 4] - polygon[i]
        to = q - polygon[i]
        if edge[0] * to[1] - edge[1] * to[0] < -1e-9:
            return False
    return True


def _cross(a, b, c, d):
    r, s = b - a, d - c
    determinant = r[0] * s[1] - r[1] * s[0]
    if abs(determinant) < 1e-12:
        return None
    t = ((c - a)[0] * s[1] - (c - a)[1] * s[0]) / determinant
    u = ((c - a)[0] * r[1] - (c - a)[1] * r[0]) / determinant
    return a + t * r if 0 <= t <= 1 and 0 <= u <= 1 else None
