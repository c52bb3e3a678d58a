"""Clouds that are of no use: the node counts them, says so, and goes on."""

import array
import time

import graph
import pytest
from peers import cloud, street, transform
from sensor_msgs.msg import PointField
from tf2_msgs.msg import TFMessage


def truncated():
    message = cloud(street(), 0)
    message.data = message.data[: len(message.data) // 2]
    return message


def without_x():
    message = cloud(street(), 0)
    message.fields[0].name = "range"
    return message


def empty():
    return cloud(street()[:0], 0)


def all_nan():
    points = street()
    points[:, :3] = float("nan")
    return cloud(points, 0)


def field_outside():
    message = cloud(street(), 0)
    message.fields[2].offset = 4000
    return message


def unknown_type():
    message = cloud(street(), 0)
    message.fields[1].datatype = 200
    return message


def absurd_size():
    message = cloud(street(), 0)
    message.height, message.width = 2**32 - 1, 2**32 - 1
    message.point_step = 2**32 - 1
    return message


def zero_step():
    message = cloud(street(), 0)
    message.point_step = 0
    message.row_step = 0
    message.data = array.array("B")
    return message


BROKEN = {
    "truncated": (truncated, "bad_cloud"),
    "without_x": (without_x, "bad_cloud"),
    "field_outside": (field_outside, "bad_cloud"),
    "unknown_type": (unknown_type, "bad_cloud"),
    "absurd_size": (absurd_size, "bad_cloud"),
    "zero_step": (zero_step, "bad_cloud"),
    "empty": (empty, "empty_cloud"),
    "all_nan": (all_nan, "empty_cloud"),
}


def test_broken_clouds_are_counted_and_the_next_good_one_is_answered(ros, eager_model):
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    driver.connect(observer, node)
    for name, (make, reason) in BROKEN.items():
        key = f"clouds_dropped_{reason}"
        before = int(observer.values("input").get(key, 0))
        driver.send_message(make())
        observer.wait_for(
            lambda: int(observer.values("input").get(key, 0)) == before + 1,
            10.0,
            f"count of {name} as {reason}: {observer.values('input')}",
            node,
        )
        good = driver.send(street())
        observer.wait_for(
            lambda: observer.seen.objects and observer.seen.objects[-1].stamp == good,
            20.0,
            f"an answer after {name}",
            node,
        )
    assert len(observer.seen.objects) == len(BROKEN)
    told = lambda: [log for log in observer.seen.log if log.msg.startswith("dropped: ")]  # noqa: E731
    dropped = observer.wait_for(told, graph.PATIENCE, "warnings on /rosout", node)
    assert dropped[0].name.endswith("centerpoint")
    assert node.end()[0] == 0


def test_the_first_cloud_may_come_before_its_transform(ros, eager_model):
    """tf arrives a little after the cloud, as it does at the start of a recording. The node waits for it, but not for
    long; a machine that is too busy for one sensor's tf to come in that time gets another sensor."""
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    driver.connect(observer, node)
    stamps = []
    for number in range(20):
        stamp = driver.send(street(points=2_000), frame=f"lidar_{number}")
        stamps.append(stamp)
        time.sleep(0.05)
        driver.tf_static.publish(TFMessage(transforms=[transform("base_link", f"lidar_{number}", stamp)]))
        ended = lambda: observer.answered(stamp) or int(  # noqa: B023, E731
            observer.values("input").get("clouds_dropped_no_transform", 0)
        ) == len(stamps)  # noqa: B023
        observer.wait_for(ended, graph.PATIENCE, "an end of the cloud", node)
        if observer.answered(stamp):
            break
    assert [o.stamp for o in observer.seen.objects] == stamps[-1:], "a node that does not wait answers none"


def test_a_cloud_without_transform_is_not_guessed_at(ros, eager_model):
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    driver.connect(observer, node)
    driver.send(street(), frame="somewhere")
    observer.wait_for(
        lambda: observer.values("input").get("clouds_dropped_no_transform") == "1",
        10.0,
        "the count of clouds without transform",
        node,
    )
    values = observer.values("input")
    assert "somewhere" in values["last_problem"]
    assert "input.sensor_pose" in values["last_problem"], "the way out is named"
    assert not observer.seen.objects


def test_a_given_sensor_pose_needs_no_tf(ros, eager_model):
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model, {"input.sensor_pose": "0 0 1.7 0 0 0"})
    observer.wait_ready(node)
    driver.connect(observer, node)
    points = street()
    points[:, 2] -= 1.7
    stamp = driver.send(points, frame="velodyne")
    (objects,) = observer.wait_for(lambda: observer.seen.objects, 20.0, "detections", node)
    assert (objects.stamp, objects.frame) == (stamp, "velodyne")
    assert objects.message.detections


@pytest.mark.parametrize("kind", [PointField.FLOAT64, PointField.FLOAT32])
def test_other_layouts_are_read_by_field_name(ros, eager_model, kind):
    """Fields in another order, with padding: the boxes are those of the plain layout."""
    import numpy as np

    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    driver.connect(observer, node)
    points = street()
    plain = driver.send_message(cloud(points, 0))
    driver.stamp += 5_000_000_000  # no joining of sweeps

    number = {PointField.FLOAT32: "<f4", PointField.FLOAT64: "<f8"}[kind]
    layout = np.dtype(
        {
            "names": ["intensity", "z", "y", "x"],
            "formats": ["<u2", number, number, number],
            "offsets": [1, 5, 17, 33],
            "itemsize": 50,
        }
    )
    packed = np.zeros(len(points), layout)
    for i, name in enumerate(["x", "y", "z", "intensity"]):
        packed[name] = points[:, i]
    message = cloud(points, 0)
    message.fields = [
        PointField(name="intensity", offset=1, datatype=PointField.UINT16, count=1),
        PointField(name="z", offset=5, datatype=kind, count=1),
        PointField(name="y", offset=17, datatype=kind, count=1),
        PointField(name="x", offset=33, datatype=kind, count=1),
    ]
    message.point_step, message.row_step = 50, 50 * len(points)
    message.data = array.array("B", packed.tobytes())
    observer.wait_for(lambda: len(observer.seen.objects) == 1, 20.0, "the first answer", node)
    other = driver.send_message(message)
    observer.wait_for(lambda: len(observer.seen.objects) == 2, 20.0, "the second answer", node)
    first, second = observer.seen.objects
    assert (first.stamp, second.stamp) == (plain, other)
    assert [d.bbox for d in first.message.detections] == [d.bbox for d in second.message.detections]


def test_large_best_effort_clouds_arrive_with_the_shipped_profile(ros, eager_model):
    """2.4 MB a cloud, best effort on both sides. Each is sent once the one before has come to something, so that a busy
    machine loses none: those that get lost do so on the way, as half of them do without the profile."""
    observer, driver = ros.observer(markers=False), ros.driver(reliable=False)
    node = ros.node(eager_model, {"input.reliability": "best_effort"})
    observer.wait_ready(node)
    driver.connect(observer, node)
    points = [street(seed, 150_000) for seed in range(2)]
    for number in range(20):
        stamp = driver.send(points[number % 2])
        observer.comes_within(lambda: observer.answered(stamp), 10.0, node)  # noqa: B023
    received = len({o.stamp for o in observer.seen.objects})
    assert received >= 0.9 * len(driver.sent)
