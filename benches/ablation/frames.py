"""The calibration frames of a quantization, as the network's convolutions see them.

`centerpoint_ptq detect --dump` writes every frame's points and `spatial_features`. Those frames are kept that
report.json lists as calibration, and their points must have the SHA-256 given there: both calibrators see the
same values. Only occupied cells are stored.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

POLL_SECONDS = 0.05


def points_sha256(points: np.ndarray) -> str:
    """Hash of `points` [n, 6] as report.json has it: x, y, z, intensity, time lag (f32), ring (u16)."""
    record = np.zeros(len(points), np.dtype([("f", "<f4", 5), ("ring", "<u2")]))
    record["f"], record["ring"] = points[:, :5], points[:, 5]
    return hashlib.sha256(record.tobytes()).hexdigest()


class Spatial:
    """Frames of a file of `collect`: iterates over, or indexes, arrays [1, C, H, W]."""

    def __init__(self, path: Path):
        stored = np.load(path)
        self.shape = tuple(stored["shape"])
        ends = np.cumsum(stored["counts"])[:-1]
        self.cells = np.split(stored["cells"], ends)
        self.values = np.split(stored["values"], ends)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> np.ndarray:
        channels, height, width = self.shape
        dense = np.zeros((channels, height * width), np.float32)
        dense[:, self.cells[index]] = self.values[index].T
        return dense.reshape(1, channels, height, width)


def _condense(folder: Path, expected: str) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Occupied cells [n], their features [n, C] and the shape [C, H, W] of one dumped frame."""
    if points_sha256(np.load(folder / "points.npy")) != expected:
        raise ValueError(f"frame {folder.name}: not the points that calibrated the model")
    spatial = np.load(folder / "spatial.npy")
    spatial = spatial.reshape(spatial.shape[-3:])
    cells = np.load(folder / "cells.npy").astype(np.int64)
    return cells, spatial.reshape(len(spatial), -1)[:, cells].T.copy(), spatial.shape


def collect(detect: list[str], report: dict, scratch: Path, out: Path) -> None:
    """Runs a `detect` command with `--dump` to `scratch` and stores the calibration frames of a report.

    Frames are condensed and removed while the program goes on, so the disk holds few whole ones.
    """
    wanted = {f["stamp"]: f["sha256"] for f in report["frames"]["list"] if f["role"] == "calibration"}
    kept: dict[int, tuple] = {}

    def take(folders: list[Path]) -> None:
        for folder in folders:
            stamp = int(folder.name)
            if stamp in wanted and stamp not in kept:
                kept[stamp] = _condense(folder, wanted[stamp])
            shutil.rmtree(folder)

    scratch.mkdir(parents=True)
    try:
        command = [*detect, "--dump", str(scratch), "--out", str(scratch.with_suffix(".json"))]
        with open(scratch.with_suffix(".log"), "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                while process.poll() is None:
                    # The newest may still be being written.
                    take(sorted(scratch.iterdir(), key=lambda p: int(p.name))[:-1])
                    time.sleep(POLL_SECONDS)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            log.seek(0)
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{log.read()}")
        take(sorted(scratch.iterdir(), key=lambda p: int(p.name)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for suffix in (".json", ".log"):
            scratch.with_suffix(suffix).unlink(missing_ok=True)
    missing = set(wanted) - set(kept)
    if missing:
        raise ValueError(f"{len(missing)} calibration frames are not in the bag, the first at {min(missing)} ns")
    cells, values, shapes = zip(*(kept[stamp] for stamp in sorted(kept)))
    with open(out, "wb") as file:
        np.savez(
            file,
            shape=np.array(shapes[0]),
            counts=np.array([len(c) for c in cells]),
            cells=np.concatenate(cells),
            values=np.concatenate(values),
        )
