"""Shared memory does not pile up: a participant that was killed leaves 70 MB that somebody has to remove."""

import signal
import sys
from pathlib import Path

import graph

PARTICIPANT = """
import rclpy, sys
rclpy.init()
node = rclpy.create_node("participant")
print("ready", flush=True)
try:
    rclpy.spin(node)
except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
    pass
"""


def segments() -> set[Path]:
    return {p for p in Path("/dev/shm").glob("fastrtps_*") if not p.name.endswith(("_el", "_sl"))}


def owned(names: set[Path]) -> set[Path]:
    """Without the ports, which participants share."""
    return {p for p in names if "port" not in p.name}


def test_what_a_killed_participant_leaves_is_removed_and_what_is_in_use_stays(ros, tmp_path):
    def participant(name: str) -> tuple[graph.Process, set[Path]]:
        known = segments()
        process = ros.start(name, [sys.executable, "-c", PARTICIPANT])
        observer.wait_for(lambda: "ready" in process.output, 20.0, "participant", process)
        return process, segments() - known

    observer = ros.observer()
    killed, left = participant("killed")
    alive, used = participant("alive")
    assert owned(left) and owned(used)

    killed.end(signal.SIGKILL)
    assert left <= segments(), "a killed participant leaves its segments"
    assert graph.sweep_shared_memory() > 60_000_000
    assert not owned(left) & segments()
    assert used <= segments(), "what is in use stays"

    # One that ends by itself leaves nothing of its own.
    alive.end()
    assert not owned(used) & segments()
