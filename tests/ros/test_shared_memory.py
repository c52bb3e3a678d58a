"""Shared memory does not pile up: a participant that was killed leaves 70 MB that somebody has to remove."""

import os
import sys

import graph
import pytest

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


@pytest.mark.skipif(
    os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp",
    reason="another RMW than Fast DDS leaves nothing of Fast DDS",
)
def test_what_a_killed_participant_leaves_is_removed_and_what_is_in_use_stays(ros):
    """Only what these two made is looked at: other participants on this machine come and go as they like."""

    def participant(name: str) -> graph.Process:
        process = ros.start(name, [sys.executable, "-c", PARTICIPANT])
        observer.wait_for(lambda: "ready" in process.output, graph.PATIENCE, "participant", process)
        return process

    def there(segments) -> set:
        return {segment for segment in segments if segment.exists()}

    observer = ros.observer()
    killed, alive = participant("killed"), participant("alive")
    left, used = killed.segments(), alive.segments()
    assert there(left) and there(used) and not left & used

    killed.kill()
    assert there(left) == left, "a killed participant leaves its segments"
    assert killed.free_shared_memory() > 60_000_000
    assert not there(left)
    assert there(used) == used, "what is in use stays"

    # One that ends by itself leaves nothing of its own.
    alive.end()
    assert not there(used)
