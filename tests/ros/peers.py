"""A LiDAR driver as the tests need it: clouds of a small street, good ones and broken ones."""

import array
import threading
import time

import graph
import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2, PointField
from tf2_msgs.msg import TFMessage

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
TOPIC = "/sensing/lidar/top/pointcloud"


def street(seed: int = 0, points: int = 12_000) -> np.ndarray:
    """Ground, a wall and four car-sized boxes about the origin of base_link: x, y, z, intensity."""
    random = np.random.default_rng(seed)
    ground = np.column_stack(
        [random.uniform(-45, 45, (points // 2, 2)), random.normal(0.0, 0.02, points // 2)]
    )
    wall = np.column_stack(
        [
            random.uniform(-40, 40, points // 6),
            np.full(points // 6, 12.0) + random.normal(0.0, 0.03, points // 6),
            random.uniform(0, 4, points // 6),
        ]
    )
    parts = [ground, wall]
    rest = (points - len(ground) - len(wall)) // 4
    for x, y, yaw in [(12, -3.5, 0.0), (-9, 3.5, 3.1), (24, 3.6, 3.2), (5, 7.5, 0.1)]:
        box = random.uniform(-0.5, 0.5, (rest, 3)) * [4.4, 1.9, 1.6]
        # Half of the points on front and back, half on the sides.
        box[::2, 0] = np.sign(box[::2, 0]) * 2.2
        box[1::2, 1] = np.sign(box[1::2, 1]) * 0.95
        cos, sin = np.cos(yaw), np.sin(yaw)
        parts.append(box @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + [x, y, 0.8])
    xyz = np.concatenate(parts)
    return np.column_stack([xyz, random.uniform(0, 100, len(xyz))]).astype(np.float32)


def cloud(points: np.ndarray, stamp: int, frame: str = "base_link") -> PointCloud2:
    message = PointCloud2()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
    message.header.frame_id = frame
    message.height, message.width = 1, len(points)
    message.fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(["x", "y", "z", "intensity"])
    ]
    message.point_step = 16
    message.row_step = 16 * len(points)
    message.data = array.array("B", np.ascontiguousarray(points, np.float32).tobytes())
    message.is_dense = True
    return message


def transform(parent: str, child: str, stamp: int, xyz=(0.0, 0.0, 0.0), yaw: float = 0.0):
    message = TransformStamped()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
    message.header.frame_id = parent
    message.child_frame_id = child
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = map(float, xyz)
    r.z, r.w = float(np.sin(yaw / 2)), float(np.cos(yaw / 2))
    return message


class Driver:
    """Publishes clouds and transforms as a vehicle does."""

    def __init__(self, domain: int, topic: str = TOPIC, reliable: bool = True):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = Node("driver", context=self.context)
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        self.clouds = self.node.create_publisher(
            PointCloud2, topic, QoSProfile(depth=5, reliability=reliability)
        )
        self.tf = self.node.create_publisher(TFMessage, "/tf", 100)
        self.tf_static = self.node.create_publisher(
            TFMessage, "/tf_static", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        )
        self.stamp = START
        self.sent: list[int] = []
        # When, by stamp.
        self.sent_at: dict[int, float] = {}
        self.streaming: threading.Thread | None = None
        self.stop = threading.Event()

    def connect(self, observer, process, forget: bool = True, frame: str = "base_link") -> None:
        """Sends clouds until one is answered on every topic that the observer hears: who is connected on
        this side may not be so on the other yet, and a transform that was sent may not be there yet.
        What that took is forgotten, unless the test counts everything."""
        deadline = time.monotonic() + graph.PATIENCE
        while self.clouds.get_subscription_count() == 0:
            assert time.monotonic() < deadline, "the node does not subscribe to the clouds"
            time.sleep(0.05)
        while True:
            stamp = self.send(street(points=600), frame)
            # An answer comes after those to all earlier clouds; a cloud that got lost gets none.
            answered = observer.comes_within(lambda: observer.answered(stamp), 3.0, process)  # noqa: B023
            # Times come on topics of their own, a first cycle with the second answer.
            if answered and observer.seen.processing_ms and observer.seen.latency_ms and observer.seen.cycle_ms:
                break
            assert time.monotonic() < deadline, f"no answer to any cloud; status {observer.status}\n{process.output}"
        # Far from what follows: no sweeps are joined.
        self.stamp += 5 * SECOND
        if forget:
            self.sent.clear()
            observer.forget()

    def send(self, points: np.ndarray, frame: str = "base_link", step: float = 0.1) -> int:
        """Publishes the next cloud and the vehicle's place at that time; returns its stamp."""
        self.stamp += int(step * SECOND)
        metres = (self.stamp - START) / SECOND * 5.0
        moved = transform("odom", "base_link", self.stamp, (metres, 0.0, 0.0))
        self.tf.publish(TFMessage(transforms=[moved]))
        self.sent_at[self.stamp] = time.monotonic()
        self.clouds.publish(cloud(points, self.stamp, frame))
        self.sent.append(self.stamp)
        return self.stamp

    def send_message(self, message: PointCloud2) -> int:
        """Publishes a cloud as it is, with the next stamp."""
        self.stamp += SECOND // 10
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.stamp, SECOND)
        self.clouds.publish(message)
        self.sent.append(self.stamp)
        return self.stamp

    def stream(self, rate: float = 10.0, seeds: int = 20, points: int = 12_000) -> None:
        """Publishes clouds from a thread until `close` or `pause`."""
        streets = [street(seed, points) for seed in range(seeds)]
        self.stop.clear()

        def run():
            due = time.monotonic()
            index = 0
            while not self.stop.is_set():
                self.send(streets[index % seeds])
                index += 1
                due += 1.0 / rate
                self.stop.wait(max(due - time.monotonic(), 0.0))

        self.streaming = threading.Thread(target=run, daemon=True)
        self.streaming.start()

    def pause(self) -> None:
        self.stop.set()
        if self.streaming:
            self.streaming.join(graph.PATIENCE)
            self.streaming = None

    def close(self) -> None:
        self.pause()
        self.context.try_shutdown()
        self.node.destroy_node()
