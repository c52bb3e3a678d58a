"""A node that detects in streaming clouds and can be calibrated, and gates for models made from such clouds."""

import time
from pathlib import Path

import graph

# A quantization of a few small frames; generous, since test machines are slow and busy.
QUANTIZE = 300.0
# What ends "at once" ends in less than this, in seconds, on a machine with other work, too. What it must not wait for
# (a quantization, a hanging engine) takes longer, or leaves other traces that the tests look for.
AT_ONCE = 30.0
FRAMES = 16

# What these clouds make an arbitrary model see is noise; the gate has tests of its own.
LENIENT = {
    "min_boxes": 1,
    "min_boxes_total": 1,
    "min_f1": 0.0,
    "max_missed": 1.0,
    "max_extra": 1.0,
    "bands": None,
    "max_centre_error": 1e6,
    "max_yaw_error": 1e6,
    "max_size_error": 1e6,
}
IMPOSSIBLE = LENIENT | {"min_f1": 1.0, "max_centre_error": 1e-9}


def verdict(observer, node) -> dict:
    """How the running calibration of a node ends."""
    done = lambda s: s["state"] == "idle" and s["last"]  # noqa: E731
    return observer.wait_status(done, QUANTIZE, "end of the calibration", node)["last"]


class Live:
    """A node that detects in streaming clouds and has filled its buffer."""

    def __init__(self, ros, model, recipe, inside=lambda command: command, frames=FRAMES, **parameters):
        self.observer, self.driver = ros.observer(markers=False), ros.driver()
        self.node = ros.node(
            model,
            {
                "recipe_path": str(recipe),
                "calibration.max_frames": FRAMES,
                "calibration.min_frames": FRAMES,
                "calibration.min_period_s": 0.1,
                # These clouds are all of one place.
                "calibration.choice": "newest",
                "calibration.threads": 2,
                "calibration.nice": 0,
            }
            | parameters,
            inside,
        )
        self.observer.wait_ready(self.node)
        self.driver.connect(self.observer, self.node, forget=False)
        self.driver.stream(rate=5.0)
        self.wait_frames(frames)
        self.store = ros.folder / "store"

    def wait_frames(self, count):
        self.observer.wait_for(
            lambda: int(self.observer.values("calibration").get("buffer_frames", 0)) >= count,
            60.0,
            f"{count} buffered frames",
            self.node,
        )

    def models(self) -> list[str]:
        """The models in the store, where nothing else may be left."""
        # The status tells of a swap before what it came from is cleaned away.
        self.observer.wait_for(
            lambda: not list((self.store / "incoming").glob("*")), 10.0, "nothing half-made in the store", self.node
        )
        return sorted(p.name for p in (self.store / "models").glob("*"))

    def calibrate(self):
        reply = self.observer.call("calibrate")
        assert reply.success, reply.message
        return reply

    def finish(self) -> dict:
        """The verdict of the running calibration."""
        return verdict(self.observer, self.node)

    def wait_child(self) -> int:
        status = self.observer.wait_status(
            lambda s: s["pid"] and s["stage"] != "start", QUANTIZE, "quantization", self.node
        )
        return status["pid"]

    def wait_more_detections(self, count=3):
        before = len(self.observer.seen.objects)
        self.observer.wait_for(
            lambda: len(self.observer.seen.objects) >= before + count,
            30.0,
            "further detections",
            self.node,
        )


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_gone(pid: int):
    deadline = time.monotonic() + graph.PATIENCE
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)
