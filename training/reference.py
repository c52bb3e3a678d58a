"""What the network sees of one frame, in plain NumPy: pillars, targets, augmentation.

Nothing here is used to train. `data.py` does the same for whole batches on the device; this is what
`test_data.py` holds it against, one frame and one box at a time.
"""

import numpy as np

from model import CLASSES


def pillarize(points, grid):
    """Decorated points [M, 9] ordered by pillar, points per pillar, and each pillar's flat cell (y, x).

    Keeps the first `max_points` of a pillar in input order, as the deployed code does.
    """
    low, high = np.float32(grid.min), np.float32(grid.max)
    inside = np.ones(len(points), bool)
    for axis in range(3):
        inside &= (points[:, axis] >= low[axis]) & (points[:, axis] < high[axis])
    pillars = {}
    for p in points[inside]:
        column, row = (min(int((p[a] - low[a]) / np.float32(grid.pillar)), grid.size - 1) for a in range(2))
        pillar = pillars.setdefault(row * grid.size + column, [])
        if len(pillar) < grid.max_points:
            pillar.append(p)
    features, counts, cells = [], [], sorted(pillars)
    for cell in cells:
        p = np.stack(pillars[cell])
        centre = (np.float32([cell % grid.size, cell // grid.size]) + 0.5) * np.float32(grid.pillar) + low[:2]
        features.append(np.concatenate([p, p[:, :3] - p[:, :3].mean(0), p[:, :2] - centre], 1))
        counts.append(len(p))
    features = np.concatenate(features) if features else np.zeros((0, 9))
    return features.astype(np.float32), np.array(counts, np.int64), np.array(cells, np.int64)


def augment(points, boxes, view):
    """Flips, turns, scales and lifts copies of points [M, 4] and boxes [n, 11] as `view` says."""
    points, boxes = points.astype(np.float64), boxes.astype(np.float64)
    for axis in (0, 1):
        if view.flip[axis] < 0:
            points[:, axis] *= -1
            boxes[:, 1 + axis] *= -1
            boxes[:, 8 + axis] *= -1
            boxes[:, 7] = -boxes[:, 7] if axis == 1 else np.pi - boxes[:, 7]
    c, s = np.cos(view.turn), np.sin(view.turn)
    for array, x in ((points, 0), (boxes, 1), (boxes, 8)):
        old = array[:, x].copy()
        array[:, x] = c * old - s * array[:, x + 1]
        array[:, x + 1] = s * old + c * array[:, x + 1]
    boxes[:, 7] += view.turn
    points[:, :3] *= view.scale
    boxes[:, 1:7] *= view.scale
    boxes[:, 8:10] *= view.scale
    points[:, 2] += view.lift
    boxes[:, 3] += view.lift
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
    """Heatmaps [classes, h, w], the mask of cells that are judged, and box targets.

    Box targets: a list of (flat cell, ten values, weight, index of the box), the weights of one box
    adding up to one.
    """
    size = grid.size // grid.downsample
    cell = grid.pillar * grid.downsample
    heat = np.zeros((len(CLASSES), size, size), np.float32)
    judged = np.ones((size, size), np.float32)
    seen = []
    for k, b in enumerate(boxes):
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
        seen.append((k, x, y, cx, cy, sigma))
    centres = {(cx, cy) for _, _, _, cx, cy, _ in seen}
    for cx, cy in centres:  # a seen object's centre is always judged
        judged[cy, cx] = 1
    nearest = {}  # which object a cell belongs to: the nearest of those with their centre in it, or beside it
    for k, x, y, cx, cy, _ in seen:
        for j in range(max(cy - 1, 0), min(cy + 2, size)):
            for i in range(max(cx - 1, 0), min(cx + 2, size)):
                away = ((i, j) != (cx, cy), (i + 0.5 - x) ** 2 + (j + 0.5 - y) ** 2)
                if away < nearest.get((i, j), ((2, 0),))[0]:
                    nearest[i, j] = (away, k)
    out = []
    for k, x, y, cx, cy, sigma in seen:
        b = boxes[k]
        theta = -b[7] - np.pi / 2
        cells = [at for at, (_, owner) in nearest.items() if owner == k]
        weights = np.array([np.exp(-((i - cx) ** 2 + (j - cy) ** 2) / (2 * sigma * sigma)) for i, j in cells])
        for (i, j), weight in zip(cells, weights / weights.sum()):
            values = [x - i, y - j, b[3], np.log(b[5]), np.log(b[4]), np.log(b[6]), np.sin(theta), np.cos(theta), b[8], b[9]]
            out.append((j * size + i, np.array(values), weight, k))
    return heat, judged, out
