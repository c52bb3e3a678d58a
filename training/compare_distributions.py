"""Compares simulated bags with real recordings as a pillar network meets them.

    python training/compare_distributions.py --real DATA --out build/comparison \
        kitti=BAG nuscenes=BAG argoverse=BAG [--before kitti=BAG ...] [--plots docs/plots]

For each real set a simulated bag of a like sensor: hdl64, hdl32, dual64. The measures are printed
and go to `comparison.json` in `--out`. Only statistics are made of the recordings, and nothing is
trained on them: their licences are non-commercial.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mcap.reader import make_reader

from cdr import Cdr

CLOUD = "/sensing/lidar/top/pointcloud"
RANGES = [(0, 10), (10, 20), (20, 30), (30, 50)]
HALF, PILLAR = 51.2, 0.4
# Real names to ours. Nothing is made of trams, obstacles and the like.
NAMES = {
    "Car": "CAR", "Van": "CAR", "car": "CAR", "VEHICLE": "CAR", "CAR": "CAR",
    "Truck": "TRUCK", "truck": "TRUCK", "TRUCK": "TRUCK", "LARGE_VEHICLE": "TRUCK",
    "bus": "BUS", "BUS": "BUS",
    "Pedestrian": "PEDESTRIAN", "pedestrian": "PEDESTRIAN", "PEDESTRIAN": "PEDESTRIAN",
    "Cyclist": "BICYCLE", "bicycle": "BICYCLE", "BICYCLIST": "BICYCLE", "BICYCLE": "BICYCLE",
}


def read_cloud(data):
    """Stamp in nanoseconds, frame, points [n, 3]."""
    cdr = Cdr(data)
    stamp, frame = cdr.header()
    count = cdr.take("I", 4) * cdr.take("I", 4)
    offsets = {}
    for _ in range(cdr.take("I", 4)):
        name = cdr.string()
        offsets[name] = cdr.take("I", 4)
        cdr.take("B", 1), cdr.take("I", 4)
    cdr.take("?", 1)
    step = cdr.take("I", 4)
    cdr.take("I", 4), cdr.take("I", 4)
    kind = np.dtype({"names": "xyz", "formats": ["<f4"] * 3, "offsets": [offsets[a] for a in "xyz"], "itemsize": step})
    cloud = np.frombuffer(cdr.data, kind, count, cdr.at)
    points = np.stack([cloud["x"], cloud["y"], cloud["z"]], 1).astype(np.float64)
    return stamp, frame, points[np.isfinite(points).all(1)]


def read_transforms(data):
    """Child frame and 4 x 4 parent-from-child of each transform."""
    cdr = Cdr(data)
    for _ in range(cdr.take("I", 4)):
        cdr.header()
        child = cdr.string()
        x, y, z, i, j, k, w = cdr.take("7d", 8)
        matrix = np.eye(4)
        matrix[:3] = [
            [1 - 2 * (j * j + k * k), 2 * (i * j - k * w), 2 * (i * k + j * w), x],
            [2 * (i * j + k * w), 1 - 2 * (i * i + k * k), 2 * (j * k - i * w), y],
            [2 * (i * k - j * w), 2 * (j * k + i * w), 1 - 2 * (i * i + j * j), z],
        ]
        yield child, matrix


class Frame:
    """One sweep in a frame whose z = 0 is the ground below the sensor, x forward, and its boxes."""

    def __init__(self, points, boxes, names, field=None):
        self.points, self.boxes, self.names = points, boxes, names
        self.field = field  # half angle of labelled objects, radians, or None for all around


def read_ground_height(points):
    """Height of the ground near the sensor: the lowest dense layer within 12 m."""
    near = points[np.hypot(points[:, 0], points[:, 1]) < 12][:, 2]
    counts, edges = np.histogram(near, bins=np.arange(-3.5, 1.0, 0.05))
    return edges[np.argmax(counts)] + 0.025


def kitti(folder):
    for cloud in sorted((folder / "velodyne").glob("*.bin")):
        points = np.fromfile(cloud, "<f4").reshape(-1, 4)[:, :3].astype(np.float64)
        calib = {}
        for line in (folder / "calib" / f"{cloud.stem}.txt").read_text().splitlines():
            if ":" in line:
                key, values = line.split(":")
                calib[key] = np.array(values.split(), float)
        rect, to_camera = np.eye(4), np.eye(4)
        rect[:3, :3] = calib["R0_rect"].reshape(3, 3)
        to_camera[:3] = calib["Tr_velo_to_cam"].reshape(3, 4)
        back = np.linalg.inv(rect @ to_camera)
        boxes, names = [], []
        for line in (folder / "label_2" / f"{cloud.stem}.txt").read_text().splitlines():
            word = line.split()
            if word[0] not in NAMES:
                continue
            h, w, l, x, y, z, turn = map(float, word[8:15])
            centre = back @ [x, y - h / 2, z, 1]
            boxes.append([*centre[:3], l, w, h, -turn - np.pi / 2])
            names.append(NAMES[word[0]])
        boxes = np.array(boxes).reshape(-1, 7)
        ground = read_ground_height(points)
        points[:, 2] -= ground
        boxes[:, 2] -= ground
        yield Frame(points, boxes, names, np.radians(38))


def nuscenes(folder):
    for label in sorted(folder.glob("*.json")):
        entry = json.loads(label.read_text())
        raw = np.fromfile(label.with_suffix(".pcd.bin"), "<f4").reshape(-1, 5)[:, :3].astype(np.float64)
        boxes = np.array(entry["boxes_lidar"], float).reshape(-1, 7)
        kept = [i for i, name in enumerate(entry["names"]) if name.split(".")[-1] in NAMES]
        boxes, names = boxes[kept], [NAMES[entry["names"][i].split(".")[-1]] for i in kept]
        # x right, y forward.
        points = np.stack([raw[:, 1], -raw[:, 0], raw[:, 2]], 1)
        boxes = np.concatenate([boxes[:, 1:2], -boxes[:, :1], boxes[:, 2:6], boxes[:, 6:] - np.pi / 2], 1)
        # Its own vehicle is in view.
        own = (np.abs(points[:, 0]) < 2.5) & (np.abs(points[:, 1]) < 1.3)
        points = points[~own]
        ground = read_ground_height(points)
        points[:, 2] -= ground
        boxes[:, 2] -= ground
        yield Frame(points, boxes, names)


def bag(folder, stride=1):
    """Any of our bags, or the Argoverse drive: clouds with labels.json beside them."""
    labels = {int(k): v for k, v in json.loads((folder / "labels.json").read_text()).items()}
    mounts = {}
    with open(next(folder.glob("*.mcap")), "rb") as source:
        index = 0
        for _, channel, message in make_reader(source).iter_messages():
            if channel.topic in ("/tf", "/tf_static"):
                mounts.update(read_transforms(message.data))
            if channel.topic != CLOUD:
                continue
            index += 1
            if (index - 1) % stride:
                continue
            stamp, frame, points = read_cloud(message.data)
            mount = np.eye(4) if frame == "base_link" else mounts[frame]
            points = points @ mount[:3, :3].T + mount[:3, 3]
            boxes, names = [], []
            for b in labels[stamp]:
                if b["label"] in NAMES:
                    name = NAMES[b["label"]]
                    if b["label"] == "LARGE_VEHICLE" and b["size_lwh"][0] > 9.5:
                        name = "BUS"
                    boxes.append([*b["center"], *b["size_lwh"], b["yaw"]])
                    names.append(name)
            boxes = np.array(boxes).reshape(-1, 7)
            # The middle of all rings lies at the sensor.
            shift = mount[:2, 3] if frame != "base_link" else np.array([1.4, 0.0])
            ground = read_ground_height(points)
            points[:, :2] -= shift
            boxes[:, :2] -= shift
            points[:, 2] -= ground
            boxes[:, 2] -= ground
            yield Frame(points, boxes, names)


def inside(points, box, pad=0.0):
    """Points in the box, in its own frame: x forward, z from its bottom."""
    rel = points - box[:3]
    c, s = np.cos(box[6]), np.sin(box[6])
    own = np.stack([rel[:, 0] * c + rel[:, 1] * s, rel[:, 1] * c - rel[:, 0] * s, rel[:, 2] + box[5] / 2], 1)
    half = box[3:5] / 2 + pad
    return own[(np.abs(own[:, 0]) < half[0]) & (np.abs(own[:, 1]) < half[1]) & (own[:, 2] > -pad) & (own[:, 2] < box[5] + pad)]


def local_ground(points, cell=2.0):
    """Height over the lowest point of the cell of 2 m, bounded by a slope of 15 %."""
    key = np.floor(points[:, :2] / cell).astype(int)
    key = (key[:, 0] + 200) * 400 + key[:, 1] + 200
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    first = np.flatnonzero(np.r_[True, sorted_key[1:] != sorted_key[:-1]])
    lowest = np.minimum.reduceat(points[order, 2], first)
    low = np.repeat(lowest, np.diff(np.r_[first, len(order)]))
    flat = np.hypot(points[order, 0], points[order, 1])
    low = np.clip(low, -0.3 - 0.06 * flat, 0.3 + 0.06 * flat)
    height = np.empty(len(points))
    height[order] = points[order, 2] - low
    return height


def measure(frames):
    """All measures of one set of frames, as {group: {measure: value}} and histograms for plots."""
    n = 0
    totals, values, cars = {}, {}, {}

    def add(name, value):
        values.setdefault(name, []).append(value)

    heights = np.zeros(40)
    car_heights, car_depths, person_heights = np.zeros(12), np.zeros(10), np.zeros(10)
    returns = {c: [] for c in ("CAR", "PEDESTRIAN", "BICYCLE", "TRUCK", "BUS")}
    sizes = {c: [] for c in returns}
    for frame in frames:
        n += 1
        p = frame.points
        flat = np.hypot(p[:, 0], p[:, 1])
        kept = flat < 70
        p, flat = p[kept], flat[kept]
        add("points", len(p))
        height = local_ground(p)
        add("share within 20 cm of a level plane", np.mean(np.abs(p[:, 2]) < 0.2))
        add("share within 20 cm of the local ground", np.mean(height < 0.2))
        add("share above 2.5 m", np.mean(height > 2.5))
        heights += np.histogram(height, bins=40, range=(0, 8))[0] / len(p)
        for low, high in RANGES:
            ring = (flat >= low) & (flat < high)
            add(f"returns {low} to {high} m", ring.mean())
            add(f"returns {low} to {high} m, 0.2 to 2.5 m high", (ring & (height > 0.2) & (height < 2.5)).mean())
        grid = np.floor((p[:, :2] + HALF) / PILLAR).astype(int)
        size = int(round(2 * HALF / PILLAR))
        good = ((grid >= 0) & (grid < size)).all(1) & (p[:, 2] > -3) & (p[:, 2] < 5)
        q, key = p[good], (grid[good, 1] * size + grid[good, 0])
        order = np.argsort(key, kind="stable")
        q, key = q[order], key[order]
        first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        count = np.diff(np.r_[first, len(key)])
        low, high = np.minimum.reduceat(q[:, 2], first), np.maximum.reduceat(q[:, 2], first)
        mean = np.add.reduceat(q[:, 2], first) / count
        cell = np.stack([key[first] % size, key[first] // size], 1) * PILLAR + PILLAR / 2 - HALF
        away = np.hypot(cell[:, 0], cell[:, 1])
        add("pillars", len(first))
        add("points a pillar, mean", count.mean())
        add("pillars of one point", np.mean(count == 1))
        add("pillars flatter than 10 cm", np.mean(high - low < 0.1))
        add("pillars taller than 50 cm", np.mean(high - low > 0.5))
        add("pillars that float above 2 m", np.mean(low > 2.0))
        for a, b in RANGES:
            band = (away >= a) & (away < b)
            area = np.pi * (b * b - a * a) / PILLAR**2
            add(f"pillars hit {a} to {b} m", band.sum() / area)
            if band.any():
                add(f"pillars taller than 50 cm, {a} to {b} m, of all", (band & (high - low > 0.5)).sum() / area)
                # Roughness of what is flat: spread of the mean height of ground pillars.
                ground = band & (high - low < 0.1) & (np.abs(mean) < 0.8)
                if ground.sum() > 20:
                    add(f"spread of ground pillars {a} to {b} m", mean[ground].std())
        turn = np.arctan2(frame.boxes[:, 1], frame.boxes[:, 0]) if len(frame.boxes) else np.zeros(0)
        seen = dict.fromkeys(returns, 0)
        for box, name, angle in zip(frame.boxes, frame.names, turn):
            if frame.field is not None and abs(angle) > frame.field:
                continue
            away = np.hypot(box[0], box[1])
            if away > 60:
                continue
            sizes[name].append(box[3:6])
            near = p[np.hypot(p[:, 0] - box[0], p[:, 1] - box[1]) < box[3] / 2 + 1.5]
            own = inside(near, box, 0.1)
            # The lowest 15 cm would count the road below real boxes, which sit in it by some cm.
            own = own[own[:, 2] > 0.15]
            if len(own) > 0:
                seen[name] += 1
            returns[name].append((away, len(own)))
            if name == "CAR" and len(own) >= 30 and away < 35:
                car_heights += np.histogram(own[:, 2] / box[5], bins=12, range=(0, 1.2))[0] / len(own)
                side = np.min([box[3] / 2 - np.abs(own[:, 0]), box[4] / 2 - np.abs(own[:, 1])], axis=0)
                car_depths += np.histogram(np.clip(side, -0.1, 0.89), bins=10, range=(-0.1, 0.9))[0] / len(own)
                upper = own[:, 2] > 0.62 * box[5]
                add("car: share above the belt line", upper.mean())
                add("car: share on the roof", np.mean(own[:, 2] > 0.9 * box[5]))
                add("car: deeper than 40 cm in the box", np.mean(side > 0.4))
                bins = np.floor((own[:, :2] + box[3:5] / 2) / PILLAR).astype(int)
                add("car: share of its pillars hit", len(np.unique(bins, axis=0)) / np.prod(np.ceil(box[3:5] / PILLAR)))
            if name == "PEDESTRIAN" and len(own) >= 8 and away < 35:
                person_heights += np.histogram(own[:, 2] / box[5], bins=10, range=(0, 1))[0] / len(own)
        for name, count in seen.items():
            share = 1.0 if frame.field is None else frame.field / np.pi
            add(f"{name} with returns, all around within 60 m", count / share)
    result = {"frames": n}
    for name, entries in values.items():
        result[name] = float(np.mean(entries))
    for name, entries in returns.items():
        entries = np.array(entries).reshape(-1, 2)
        for low, high in RANGES:
            band = entries[(entries[:, 0] >= low) & (entries[:, 0] < high), 1]
            if len(band) >= 5:
                band = band[band > 0]
                for q in (25, 50, 75, 90) if len(band) else ():
                    result[f"{name} returns, {q} %, {low} to {high} m"] = float(np.percentile(band, q))
        if len(sizes[name]) >= 5:
            box = np.array(sizes[name])
            for axis, what in enumerate(("length", "width", "height")):
                for q in (10, 50, 90):
                    result[f"{name} {what}, {q} %"] = float(np.percentile(box[:, axis], q))
    norm = lambda h: (h / max(h.sum(), 1e-9)).round(4).tolist()
    result["_heights"] = norm(heights)
    result["_car_heights"], result["_car_depths"], result["_person_heights"] = map(norm, (car_heights, car_depths, person_heights))
    return result


STYLES = {
    "real": ("real", "#111111", ""),
    "before": ("simulated, before", "#c2410c", "3 3"),
    "simulated": ("simulated", "#1d4ed8", "7 3"),
}


def plot(path, title, results, labels, series, y_label, x_label, log=False):
    """An SVG of one panel a data set; `series(measures)` gives the values over `labels`."""
    width, height, left, top, gap = 250, 190, 62, 58, 24
    panels = list(results.items())
    values = {n: {c: series(m) for c, m in sets.items()} for n, sets in panels}
    every = [v for sets in values.values() for line in sets.values() for v in line if v is not None]
    low, high = (max(min(every), 0.5), max(every)) if log else (0.0, max(every) * 1.05)
    place = (lambda v: np.log(max(v, low) / low) / np.log(high / low)) if log else (lambda v: v / high)
    total = left + len(panels) * (width + gap)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{top + height + 62}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="18" font-size="14" font-weight="bold">{title}</text>',
        f'<text x="14" y="{top + height / 2}" transform="rotate(-90 14 {top + height / 2})" text-anchor="middle">{y_label}</text>',
        f'<text x="{left + (total - left) / 2}" y="{top + height + 52}" text-anchor="middle">{x_label}</text>',
    ]
    ticks = [t for t in (1, 3, 10, 30, 100, 300, 1000, 3000) if low <= t <= high] if log else np.linspace(0, high, 5)[:-1]
    for i, (name, _) in enumerate(panels):
        x0 = left + i * (width + gap)
        out.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        out.append(f'<text x="{x0 + width / 2}" y="{top - 6}" text-anchor="middle">{name}</text>')
        for t in ticks:
            y = top + height * (1 - place(t))
            out.append(f'<line x1="{x0}" x2="{x0 + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            if i == 0:
                out.append(f'<text x="{x0 - 5}" y="{y + 4:.1f}" text-anchor="end">{t:.3g}</text>')
        xs = [x0 + width * (k + 0.5) / len(labels) for k in range(len(labels))]
        for x, label in zip(xs, labels):
            out.append(f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle" font-size="10">{label}</text>')
        for c, line in values[name].items():
            _, colour, dash = STYLES[c]
            at = [(x, top + height * (1 - place(v))) for x, v in zip(xs, line) if v is not None]
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            out.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in at]
    shown = [c for c in STYLES if any(c in sets for sets in results.values())]
    for k, c in enumerate(shown):
        label, colour, dash = STYLES[c]
        x = left + 190 * k
        out.append(f'<line x1="{x}" x2="{x + 34}" y1="34" y2="34" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        out.append(f'<text x="{x + 40}" y="38">{label}</text>')
    path.write_text("\n".join(out) + "\n</svg>\n")


def draw(results, folder):
    folder.mkdir(parents=True, exist_ok=True)
    over = [f"{a}-{b} m" for a, b in RANGES]
    plot(
        folder / "simulator_car_returns.svg", "Returns of a car against its range (median)", results, over,
        lambda m: [m.get(f"CAR returns, 50 %, {a} to {b} m") for a, b in RANGES],
        "returns", "distance", log=True)
    plot(
        folder / "simulator_car_depth.svg", "Where a car's returns lie in its labelled box", results,
        [f"{10 * k - 10}" for k in range(10)], lambda m: m["_car_depths"],
        "share of the returns", "centimetres inwards from the nearest side (bins of 10 cm)")
    plot(
        folder / "simulator_ground.svg", "Unevenness of the ground: spread of the mean height of flat pillars", results,
        over, lambda m: [m.get(f"spread of ground pillars {a} to {b} m") for a, b in RANGES],
        "standard deviation, m", "distance")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("simulated", nargs="+")
    parser.add_argument("--before", nargs="*", default=[])
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plots", type=Path, help="folder for SVG plots")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = {}
    readers = {
        "kitti": lambda: kitti(args.real / "kitti_object"),
        "nuscenes": lambda: nuscenes(args.real / "nuscenes_keyframes"),
        "argoverse": lambda: bag(args.real / "argoverse1_drive", 4),
    }
    for entry in args.simulated:
        name, path = entry.split("=")
        before = dict(e.split("=") for e in args.before).get(name)
        results[name] = {"real": measure(readers[name]())}
        if before:
            results[name]["before"] = measure(bag(Path(before)))
        results[name]["simulated"] = measure(bag(Path(path)))
    (args.out / "comparison.json").write_text(json.dumps(results, indent=1))
    if args.plots:
        draw(results, args.plots)
    for name, sets in results.items():
        columns = [c for c in ("real", "before", "simulated") if c in sets]
        counts = ", ".join(f"{sets[c]['frames']} {c}" for c in columns)
        print(f"\n{name}: {counts}")
        for key in sets["real"]:
            cells = []
            for c in columns:
                v = sets[c].get(key)
                if isinstance(v, list):
                    v = " ".join(f"{100 * x:.0f}" for x in v)
                cells.append(f"{v:10.3f}" if isinstance(v, float) else f"{v!s:>10}")
            print(f"{key:60s}", *cells, sep=" " if not key.startswith("_") else "\n   ")


if __name__ == "__main__":
    main()
