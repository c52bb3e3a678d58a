"""Hundreds of swaps under load, and nodes and quantizations killed at random: every cloud is accounted for, and what is on
the disk starts."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import graph
import pytest
from live import AT_ONCE

SWAPS = 300
# `CENTERPOINT_PTQ_KILLS=200` for the long run; a few show in every run that it works.
KILLS = int(os.environ.get("CENTERPOINT_PTQ_KILLS", "25"))


@pytest.fixture
def int8_store(ros, program, variants) -> Path:
    """A store whose model the node `centerpoint` ran last."""
    (made,) = variants(1)
    store = ros.folder / "store"

    def models(*arguments) -> str:
        command = [program, "models", "--store", store, *arguments]
        return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=600).stdout

    models("add", made)
    (model,) = json.loads(models("list", "--json"))["models"]
    # It comes from elsewhere, and there is no node yet whose frames could judge it.
    models("activate", model["id"], "--node", "/centerpoint", "--unjudged")
    return store


def test_no_cloud_is_lost_or_answered_twice_across_hundreds_of_swaps(ros, eager_model, int8_store):
    observer, driver = ros.observer(markers=False), ros.driver()
    node = ros.node(eager_model, {"calibration.choice": "newest"})
    observer.wait_status(lambda s: s["start"], 30.0, "start", node)
    assert observer.status["precision"] == "int8", observer.status
    driver.connect(observer, node, forget=False)
    driver.stream(rate=12.0, points=4_000)
    ran = []
    for i in range(SWAPS):
        service, precision = [("use_float", "float"), ("use_int8", "int8")][i % 2]
        reply = observer.call(service)
        assert reply.success and reply.message.startswith(precision), reply.message
        ran.append(reply.message)
    driver.pause()
    values = observer.wait_settled(node) | observer.values("detection")
    last = driver.sent[-1]
    observer.wait_for(lambda: observer.seen.objects[-1].stamp == last, 20.0, "the last answer", node)
    stamps = [o.stamp for o in observer.seen.objects]
    assert stamps == sorted(set(stamps)), "in order and once each"
    assert set(stamps) <= set(driver.sent)
    received = int(values["clouds_received"])
    assert received == len(stamps) + int(values["clouds_dropped"])
    assert int(values["clouds_dropped"]) == int(values["clouds_dropped_superseded"])
    # Both kinds answered while they were exchanged.
    assert 0 < int(values["published_int8"]) < len(stamps)
    assert len(set(ran)) == 2
    code, _ = node.end()
    assert code == 0, node.output


def test_a_swap_while_the_node_shuts_down_ends_cleanly(ros, eager_model, int8_store):
    observer, driver = ros.observer(markers=False), ros.driver()
    for number in (signal.SIGINT, signal.SIGTERM):
        before = len(observer.seen.statuses)
        node = ros.node(eager_model)
        observer.wait_for(lambda: any(s["start"] for _, s in observer.seen.statuses[before:]), 30.0, "start", node)
        driver.connect(observer, node)
        client = observer.node.create_client(graph.Trigger, "/centerpoint/use_float")
        assert client.wait_for_service(10.0)
        client.call_async(graph.Trigger.Request())
        code, seconds = node.end(number)
        assert code == 0, node.output
        assert seconds < AT_ONCE
        observer.node.destroy_client(client)


def test_nodes_and_quantizations_killed_at_random_leave_a_store_and_a_buffer_that_start(
    ros, eager_model, int8_store, program
):
    """Each round a node starts on what the last one left, calibrates, and it or its child is killed at some moment."""
    chance = random.Random(3)
    observer, driver = ros.observer(markers=False), ros.driver()
    parameters = {"calibration.choice": "newest", "calibration.min_frames": 8, "calibration.max_frames": 16,
                  "calibration.min_period_s": 0.05, "calibration.threads": 2, "calibration.nice": 0}  # fmt: skip
    node = ros.node(eager_model, parameters)
    observer.wait_ready(node)
    driver.connect(observer, node)
    driver.stream(rate=5.0, points=2_000)
    enough = lambda: int(observer.values("calibration").get("buffer_held_out_frames", 0)) >= 4  # noqa: E731
    observer.wait_for(enough, 60.0, "frames to check with", node)
    frames = 0
    for _ in range(KILLS):
        statuses = observer.seen.statuses
        if node is None:
            before = len(statuses)
            node = ros.node(eager_model, parameters)
            started = lambda: any(s["start"] for _, s in statuses[before:])  # noqa: B023, E731
            observer.wait_for(started, 30.0, "a start on what was left", node)
            start = observer.status["start"]
            assert not start["problems"], start
            # Float, where float ran last; else a model of the store.
            assert observer.status["precision"] == ("int8" if start["model"] else "float")
        observer.call("calibrate")
        time.sleep(chance.uniform(0.0, 3.0))
        pid = observer.status.get("pid")
        if pid and chance.random() < 0.4:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # It was done already.
            idle = lambda: observer.status["state"] == "idle"  # noqa: E731
            observer.wait_for(idle, 30.0, "the end of the killed quantization", node)
        else:
            node.kill()
            node = None
        listed = subprocess.run([program, "models", "--store", int8_store, "list", "--check", "--json"],
                                capture_output=True, text=True, timeout=600)  # fmt: skip
        assert listed.returncode == 0, listed.stdout + listed.stderr
        frames = len(list((ros.folder / "buffer" / "frames").glob("*.mcap")))
        assert frames >= 8 and not list((ros.folder / "buffer" / "frames").glob("*.damaged"))
    if node is None:
        before = len(observer.seen.statuses)
        node = ros.node(eager_model, parameters)
        observer.wait_for(lambda: any(s["start"] for _, s in observer.seen.statuses[before:]), 30.0, "start", node)
    # What the killed ones left half-made is gone, but for what a living quantization works on.
    observer.wait_for(lambda: observer.status["state"] == "idle", 60.0, "idle", node)
    assert len(list((int8_store / "incoming").glob("*"))) <= 1
