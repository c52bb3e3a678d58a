"""What does not come, or comes badly: the node says so as long as it lasts, with what is on the graph instead."""

import json
import threading
import time

import graph
import pytest
import rclpy
from peers import TOPIC, cloud, street, transform
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import LaserScan, PointCloud2
from tf2_msgs.msg import TFMessage

OK, WARN, ERROR = 0, 1, 2
# Ends a hang; nothing here takes so long.
LONG = 120.0


class Peer:
    """A node that publishes what a test wants, and nothing else."""

    def __init__(self, ros, name="peer"):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=ros.domain)
        self.node = Node(name, context=self.context)
        ros.opened.append(self)

    def publisher(self, kind, topic, reliable=True, latched=False):
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        return self.node.create_publisher(
            kind, topic, QoSProfile(depth=5, reliability=reliability, durability=durability)
        )

    def close(self):
        self.context.try_shutdown()


class Spinning:
    """Runs a peer's timers."""

    def __init__(self, peer):
        self.peer = peer
        self.executor = SingleThreadedExecutor(context=peer.context)
        self.executor.add_node(peer.node)
        self.thread = threading.Thread(target=self.spin, daemon=True)
        self.thread.start()

    def spin(self):
        try:
            while self.peer.context.ok():
                self.executor.spin_once(timeout_sec=0.1)
        except Exception:
            if self.peer.context.ok():  # else: the context went, as meant
                raise

    def close(self):
        self.peer.close()
        self.thread.join(5.0)


def told(observer, node, task, level, *parts, meanwhile=lambda: None):
    """Waits until diagnostics have this level and say all this; does something half a second apart `meanwhile`."""
    due = time.monotonic()

    def is_told():
        nonlocal due
        if time.monotonic() >= due:
            due += 0.5
            meanwhile()
        values = observer.values(task)
        return values.get("level") == level and all(p in values["message"] for p in parts) and values

    what = f"{parts} at level {level} in the status of {task}"
    try:
        return observer.wait_for(is_told, LONG, what, node)
    except TimeoutError as error:
        raise AssertionError(f"{what}; it is {observer.values(task)}") from error


def warned(observer, node, part):
    """Waits until the log has it; returns how often."""
    count = lambda: sum(part in log.msg for log in observer.seen.log)  # noqa: E731
    return observer.wait_for(count, LONG, f"'{part}' on /rosout", node)


def conditions(observer) -> dict[str, dict]:
    return {c["kind"]: c for c in observer.status["conditions"]}


def test_a_topic_that_nobody_publishes_is_told_with_those_that_have_clouds(ros, eager_model):
    observer = ros.observer()
    node = ros.node(eager_model)
    told(observer, node, "input", WARN, "no cloud since the start", TOPIC, "nobody publishes it", "ROS_DOMAIN_ID")
    assert warned(observer, node, "nobody publishes it") == 1
    listed = observer.wait_status(lambda s: s["conditions"], LONG, "conditions in the status", node)["conditions"]
    assert [c["kind"] for c in listed] == ["no_clouds"] and listed[0]["part"] == "input"
    assert listed == json.loads(json.dumps(listed)) and listed[0]["since_s"] >= 0.0

    Peer(ros).publisher(PointCloud2, "/sensing/lidar/top/pointcloud_raw")
    values = told(observer, node, "input", WARN, "/sensing/lidar/top/pointcloud_raw", "-r ~/input/pointcloud:=")
    assert "condition_no_clouds" in values and json.loads(values["conditions"])[0]["kind"] == "no_clouds"

    driver = ros.driver()
    driver.connect(observer, node)
    driver.stream(rate=5.0)
    told(observer, node, "input", OK, "clouds arrive")
    observer.wait_status(lambda s: not s["conditions"], LONG, "a status without conditions", node)
    assert "over after" in node.output
    # When clouds cease it is told again, and it ends again.
    driver.pause()
    told(observer, node, "input", WARN, "no cloud for more than 2 s", "/driver publishes it and matches")
    driver.stream(rate=5.0)
    told(observer, node, "input", OK, "clouds arrive")


@pytest.mark.parametrize("named", ["best_effort", "reliable"])
def test_a_quality_of_service_that_does_not_match_is_told(ros, eager_model, named):
    observer = ros.observer()
    clouds = Peer(ros, "sensor").publisher(PointCloud2, TOPIC, reliable=False)
    node = ros.node(eager_model, {"input.reliability": named})
    if named == "reliable":
        told(observer, node, "input", WARN, "/sensor publishes it as best_effort", "input.reliability")
    else:
        told(observer, node, "input", WARN, "/sensor publishes it and matches")
    clouds.publish(cloud(street(), 1))


def test_a_topic_of_another_type_is_told(ros, eager_model):
    observer = ros.observer()
    Peer(ros, "scanner").publisher(LaserScan, TOPIC)
    node = ros.node(eager_model)
    told(observer, node, "input", WARN, "/scanner as sensor_msgs/msg/LaserScan", "sensor_msgs/msg/PointCloud2")


def test_transforms_that_nobody_publishes_or_nobody_hears_are_told(ros, eager_model):
    observer = ros.observer()
    peer = Peer(ros, "sensor")
    clouds = peer.publisher(PointCloud2, TOPIC)
    node = ros.node(eager_model)
    stamp = 1_000_000_000

    def send():
        nonlocal stamp
        stamp += 100_000_000
        clouds.publish(cloud(street(), stamp, "lidar"))

    peer.node.create_timer(0.2, send)
    ros.opened.append(Spinning(peer))
    values = told(observer, node, "input", WARN, "nobody publishes /tf or /tf_static", "cannot be placed")
    assert values["condition_no_tf"] and values["condition_no_transform"], "all that is wrong is listed"

    static = peer.publisher(TFMessage, "/tf_static")
    told(observer, node, "input", WARN, "/sensor publishes /tf_static, but not as transient_local")
    peer.node.destroy_publisher(static)
    static = peer.publisher(TFMessage, "/tf_static", latched=True)
    static.publish(TFMessage(transforms=[transform("base_link", "lidar", stamp)]))
    observer.wait_for(lambda: observer.seen.objects, LONG, "detections", node)
    observer.wait_for(
        lambda: not {"no_tf", "no_transform"} & conditions(observer).keys(), LONG, "the end of the trouble", node
    )


def test_what_is_wrong_with_clouds_lasts_in_diagnostics_and_comes_back(ros, eager_model):
    observer, driver = ros.observer(markers=False), ros.driver()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    driver.connect(observer, node)
    begin = len(observer.seen.objects)
    for _ in range(2):
        # One alone may be superseded by another.
        empty = lambda: driver.send(street()[:0])  # noqa: E731
        values = told(observer, node, "input", WARN, "no finite point", meanwhile=empty)
        assert "% of the last clouds" in values["condition_empty_cloud"]
        observer.wait_status(lambda s: "empty_cloud" in conditions(observer), LONG, "it in the status", node)
        share = conditions(observer)["empty_cloud"]["share"]
        assert 0.0 < share < 1.0
        driver.stream(rate=5.0)
        told(observer, node, "input", OK, "clouds arrive")
        driver.pause()
    assert len(observer.seen.objects) > begin


def test_a_recipe_that_cannot_be_read_is_an_error_from_the_start_until_it_can(ros, eager_model, tmp_path):
    observer, driver = ros.observer(), ros.driver()
    recipe = tmp_path / "later.yaml"
    node = ros.node(eager_model, {"recipe_path": str(recipe)})
    told(observer, node, "calibration", ERROR, "recipe_path", str(recipe))
    assert warned(observer, node, str(recipe)) == 1
    driver.connect(observer, node)  # it detects all the same
    reply = observer.call("calibrate")
    assert not reply.success and str(recipe) in reply.message
    recipe.write_text((graph.share() / "calibration" / "quick.yaml").read_text())
    observer.wait_for(lambda: observer.values("calibration")["level"] == OK, LONG, "the end of the error", node)


def test_a_log_folder_that_cannot_be_written_is_told_in_diagnostics(ros, eager_model, tmp_path):
    (tmp_path / "file").write_text("no folder")
    observer = ros.observer()
    command = graph.node_command({"model_path": str(eager_model), "model_store": str(tmp_path / "store"),
                                  "calibration.buffer_path": str(tmp_path / "buffer")})  # fmt: skip
    node = ros.start("node", command, ROS_LOG_DIR=str(tmp_path / "file" / "log"))
    told(observer, node, "detection", WARN, "the log goes to", str(tmp_path / "file" / "log"))
