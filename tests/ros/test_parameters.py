"""Parameters that show only on a running node, and what the programs say of them without ROS."""

import os
import subprocess

import graph
import pytest
from peers import street

LONG = 120.0


@pytest.mark.parametrize("resume", [True, False])
def test_a_node_looks_for_the_model_that_ran_last_if_it_is_told_to(ros, eager_model, resume):
    observer = ros.observer()
    node = ros.node(eager_model, {"store.resume": resume})
    observer.wait_ready(node)
    if resume:
        observer.wait_status(lambda s: s["start"] is not None, LONG, "a look at the store", node)
    else:
        observer.wait_for(lambda: len(observer.seen.diagnostics) >= 5, LONG, "five reports", node)
        assert observer.status["start"] is None


def lifetimes(observer) -> set[float]:
    markers = [m for m in observer.seen.markers[-1].markers if m.action == m.ADD]
    return {m.lifetime.sec + m.lifetime.nanosec / 1e9 for m in markers}


def test_markers_leave_when_clouds_cease(ros, eager_model):
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    driver.connect(observer, node)

    def markers_of_next_cloud():
        before = len(observer.seen.markers)
        driver.send(street())
        observer.wait_for(lambda: len(observer.seen.markers) > before, LONG, "markers", node)
        return lifetimes(observer)

    (automatic,) = markers_of_next_cloud()
    assert automatic > 0.5, "half a second more than the time between clouds"
    for given in [0.0, 2.5]:
        assert observer.set_parameter("publish.marker_lifetime_s", given).successful
        assert markers_of_next_cloud() == {given}
    assert not observer.set_parameter("publish.marker_lifetime_s", -3.0).successful
    assert observer.set_parameter("publish.marker_lifetime_s", -1.0).successful
    (automatic,) = markers_of_next_cloud()
    assert automatic > 0.5 and automatic != 2.5


def test_a_sensor_pose_may_be_an_array(ros, eager_model):
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model, {"input.sensor_pose": [0.0, 0.0, 1.7, 0.0, 0.0, 0.0]})
    observer.wait_ready(node)
    driver.connect(observer, node)
    stamp = driver.send(street(), frame="velodyne")
    answered = lambda: observer.seen.objects and observer.seen.objects[-1].stamp == stamp  # noqa: E731
    observer.wait_for(answered, LONG, "detections", node)


@pytest.mark.parametrize("name", ["centerpoint_node", "calibration_action_server"])
def test_help_and_version_need_no_graph(name):
    def said(*arguments):
        command = [graph.program(name), *arguments]
        # There is no folder for a log, which nothing of this needs.
        environment = os.environ | {"ROS_LOG_DIR": "/dev/null/none"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONG)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    for flag in ["--help", "-h"]:
        text = said(flag)
        assert name in text and "calibration.max_frames *  (integer, default 64)" in text
    assert said("--version").startswith(f"{name} ")


def test_an_argument_that_means_nothing_is_told(ros):
    process = ros.start("node", [graph.program("centerpoint_node"), "--verbose"])
    assert process.wait(LONG) != 0
    assert "'--verbose'" in process.output and "--help" in process.output
