"""Reads simulated bags into compact arrays that training loads into memory.

An independent reader of rosbag2 MCAP and of `PointCloud2`: it shares nothing with the Rust code.
"""

import json
from pathlib import Path

import numpy as np
from mcap.reader import make_reader

from cdr import Cdr
from model import CLASSES

DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
STEP = 0.005  # metres per count of the cached int16 coordinates, far below the sensor's noise
REACH = 78.0  # metres kept around the vehicle: the grid's half diagonal, for rotated copies


def read_cloud(data):
    """Returns stamp (ns), frame and a structured array of the fields."""
    cdr = Cdr(data)
    stamp, frame = cdr.header()
    height, width = cdr.take("I", 4), cdr.take("I", 4)
    fields = {}
    for _ in range(cdr.take("I", 4)):
        name = cdr.string()
        offset, kind, _count = cdr.take("I", 4), cdr.take("B", 1), cdr.take("I", 4)
        fields[name] = ("<" + DTYPES[kind], offset)
    cdr.take("?", 1)
    step, _row = cdr.take("I", 4), cdr.take("I", 4)
    n = cdr.take("I", 4)
    raw = cdr.data[cdr.at : cdr.at + n]
    dtype = np.dtype({"names": list(fields), "formats": [f for f, _ in fields.values()],
                      "offsets": [o for _, o in fields.values()], "itemsize": step})
    return stamp, frame, np.frombuffer(raw, dtype, count=height * width)


def read_tf(data):
    """Yields parent, child, stamp (ns), 4x4 parent_from_child."""
    cdr = Cdr(data)
    for _ in range(cdr.take("I", 4)):
        stamp, parent = cdr.header()
        child = cdr.string()
        x, y, z, qx, qy, qz, qw = cdr.take("7d", 8)
        m = np.eye(4)
        m[:3, :3] = [
            [1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy - qz * qw), 2 * (qx * qz + qy * qw)],
            [2 * (qx * qy + qz * qw), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz - qx * qw)],
            [2 * (qx * qz - qy * qw), 2 * (qy * qz + qx * qw), 1 - 2 * (qx * qx + qy * qy)],
        ]
        m[:3, 3] = x, y, z
        yield parent, child, stamp, m


def convert(bag, out):
    """Writes points.i16 (int16 [M, 3], base_link), frames.npz (offsets, stamps, poses, boxes) into `out`."""
    bag, out = Path(bag), Path(out)
    if (out / "frames.npz").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    labels = {int(k): v for k, v in json.loads((bag / "labels.json").read_text()).items()}
    poses, mounts, stamps, offsets, boxes, box_offsets = {}, {}, [], [0], [], [0]
    with open(out / "points.i16", "wb") as sink, open(next(bag.glob("*.mcap")), "rb") as source:
        for _, channel, message in make_reader(source).iter_messages():
            if channel.topic in ("/tf", "/tf_static"):
                for parent, child, stamp, m in read_tf(message.data):
                    if child == "base_link":
                        poses[stamp] = m
                    else:
                        mounts[child] = m
            elif channel.topic == "/sensing/lidar/top/pointcloud":
                stamp, frame, cloud = read_cloud(message.data)
                # By columns, which is several times as quick as by rows.
                given = [cloud[c].astype(np.float32) for c in "xyz"]
                x, y, z = (m[0] * given[0] + m[1] * given[1] + m[2] * given[2] + m[3]
                           for m in mounts[frame][:3].astype(np.float32))
                kept = np.flatnonzero((np.abs(x) < REACH) & (np.abs(y) < REACH) & np.isfinite(z))
                counts = np.empty((len(kept), 3), "<i2")
                for k, column in enumerate((x, y, z)):
                    counts[:, k] = np.round(column[kept] / np.float32(STEP))
                counts.tofile(sink)
                stamps.append(stamp)
                offsets.append(offsets[-1] + len(kept))
                for b in labels[stamp]:
                    velocity = b.get("velocity") or [0.0, 0.0]
                    boxes.append([CLASSES.index(b["label"]), *b["center"], *b["size_lwh"], b["yaw"],
                                  *velocity, b.get("points", 1)])
                box_offsets.append(len(boxes))
    np.savez(out / "frames.npz", offsets=np.array(offsets), stamps=np.array(stamps),
             poses=np.stack([poses[s] for s in stamps]), boxes=np.array(boxes, np.float32).reshape(-1, 11),
             box_offsets=np.array(box_offsets))
    return out


class Recording:
    """One converted bag: `sweep(i)` points, `boxes(i)`, and whether sweep i - 1 belongs to the same scene."""

    def __init__(self, folder):
        folder = Path(folder)
        self.points = np.memmap(folder / "points.i16", "<i2", "r").reshape(-1, 3)
        z = np.load(folder / "frames.npz")
        self.offsets, self.stamps, self.poses = z["offsets"], z["stamps"], z["poses"]
        self.all_boxes, self.box_offsets = z["boxes"], z["box_offsets"]

    def __len__(self):
        return len(self.stamps)

    def sweep(self, i):
        return self.points[self.offsets[i] : self.offsets[i + 1]].astype(np.float32) * STEP

    def boxes(self, i):
        """[n, 11]: class, x, y, z, length, width, height, yaw, vx, vy, points in the sweep."""
        return self.all_boxes[self.box_offsets[i] : self.box_offsets[i + 1]].copy()

    def previous(self, i):
        """Index of the sweep before, or None where sweep i opens a scene."""
        return i - 1 if i > 0 and 0 < self.stamps[i] - self.stamps[i - 1] < 0.5e9 else None

    def frame(self, i, with_previous=True):
        """Points [M, 4]: x, y, z, time lag, newest sweep first, in base_link of sweep i."""
        now = self.sweep(i)
        parts = [np.concatenate([now, np.zeros((len(now), 1), np.float32)], 1)]
        j = self.previous(i) if with_previous else None
        if j is not None:
            m = (np.linalg.inv(self.poses[i]) @ self.poses[j]).astype(np.float32)
            old = self.sweep(j) @ m[:3, :3].T + m[:3, 3]
            lag = np.full((len(old), 1), (self.stamps[i] - self.stamps[j]) * 1e-9, np.float32)
            parts.append(np.concatenate([old, lag], 1))
        return np.concatenate(parts)
