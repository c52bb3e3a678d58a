"""`centerpoint_ptq play`: bags to the graph."""

import json
import os
import signal
import sqlite3
import subprocess
import time

import graph
import pytest
from rclpy.serialization import serialize_message
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

TOPIC = "/sensing/lidar/top/pointcloud"
PERIOD = 100_000_000


@pytest.fixture(scope="session")
def bag(tmp_path_factory):
    """Eight sweeps of a small sensor, at 10 Hz."""
    path = tmp_path_factory.mktemp("player") / "drive"
    tool = graph.program("centerpoint_ptq")
    subprocess.run(
        [tool, "simulate", "--sensor", "vlp16", "--frames", "8", "--seed", "3", "--out", path],
        check=True,
        timeout=600,
        capture_output=True,
    )
    return path


@pytest.fixture
def stamps(bag) -> list[int]:
    return sorted(int(stamp) for stamp in json.loads((bag / "labels.json").read_text()))


class Listener:
    """Records clouds and transforms as they come."""

    def __init__(self, observer: graph.Observer, topic=TOPIC):
        self.observer = observer
        self.clouds, self.tf, self.tf_static = [], [], []
        self.when = []
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.listen(PointCloud2, topic, graph.LOSSLESS, self.clouds)
        self.listen(TFMessage, "/tf", graph.LOSSLESS, self.tf)
        self.listen(TFMessage, "/tf_static", latched, self.tf_static)

    def listen(self, kind, topic, qos, record):
        def receive(message):
            with self.observer.lock:
                record.append(message)
                if record is self.clouds:
                    self.when.append(time.monotonic())
                self.observer.lock.notify_all()

        self.observer.node.create_subscription(kind, topic, receive, qos)

    def stamps(self):
        return [graph.nanoseconds(m.header.stamp) for m in self.clouds]

    def wait(self, count, process=None):
        self.observer.wait_for(lambda: len(self.clouds) >= count, 30.0, f"{count} clouds", process)


def summary(player: graph.Process) -> dict:
    assert player.wait(30.0) == 0, player.output
    return json.loads(player.output.splitlines()[-1])


def test_a_bag_is_played_whole_in_order_and_at_its_own_rate(ros, bag, stamps):
    heard = Listener(ros.observer())
    player = ros.player(bag, "--wait-for-subscribers", "1", "--json")
    told = summary(player)
    heard.wait(len(stamps))
    assert heard.stamps() == stamps
    assert (told["clouds"], told["passes"], told["interrupted"]) == (8, 1, False)
    # Never early; late is what a busy machine makes of it, but not by another unit of time.
    recorded = (stamps[-1] - stamps[0]) * 1e-9
    assert recorded <= told["seconds"] < 60.0 * recorded
    children = {t.child_frame_id for m in heard.tf for t in m.transforms}
    assert "base_link" in children
    (latched,) = heard.observer.wait_for(lambda: heard.tf_static, graph.PATIENCE, "static transforms")
    assert [t.child_frame_id for t in latched.transforms] == ["lidar_top"]
    assert heard.clouds[0].header.frame_id == "lidar_top"


def test_static_transforms_reach_a_late_subscriber(ros, bag):
    player = ros.player(bag, "--loop")
    Listener(ros.observer()).wait(2, player)
    heard = Listener(ros.observer())
    heard.wait(2, player)
    heard.observer.wait_for(lambda: heard.tf_static, 5.0, "static transforms", player)
    assert player.end()[0] == 0


def test_looping_keeps_time_going_forward(ros, bag, stamps):
    heard = Listener(ros.observer())
    player = ros.player(bag, "--wait-for-subscribers", "1", "--loop", "--rate", "4", "--json")
    heard.wait(20, player)
    code, _ = player.end()
    assert code == 0
    told = json.loads(player.output.splitlines()[-1])
    assert told["interrupted"] and told["passes"] >= 2
    assert told["pass_ns"] == len(stamps) * PERIOD
    expected = [
        stamp + n * told["pass_ns"] for n in range(told["passes"] + 1) for stamp in stamps
    ]
    got = heard.stamps()
    # What a busy machine took up too late is not there any more.
    assert got == [stamp for stamp in expected if stamp in set(got)] and set(got) <= set(expected)
    assert got[0] in stamps and got[-1] > stamps[-1]
    # Transforms move along.
    moved = [graph.nanoseconds(t.header.stamp) for m in heard.tf for t in m.transforms]
    assert moved == sorted(moved) and moved[-1] > stamps[-1]


def test_restamping_makes_the_recording_one_of_now(ros, bag, stamps):
    heard = Listener(ros.observer())
    told = summary(ros.player(bag, "--wait-for-subscribers", "1", "--restamp", "--json"))
    shift = told["stamp_shift_ns"]
    heard.wait(len(stamps))
    assert heard.stamps() == [stamp + shift for stamp in stamps]
    # Of this hour: somebody may set the clock meanwhile.
    assert abs(heard.stamps()[0] - time.time_ns()) < 3600e9


def test_a_paused_player_waits_to_be_resumed(ros, bag):
    observer = ros.observer()
    heard = Listener(observer)
    player = ros.player(bag, "--start-paused", "--clouds", "3", "--wait-for-subscribers", "1", "--json")
    # A player that does not wait has played the bag by then.
    observer.wait_for(lambda: observer.node.count_publishers(TOPIC), graph.PATIENCE, "player", player)
    time.sleep(1.5)
    assert player.running() and not heard.clouds
    assert observer.trigger("/centerpoint_player/resume").success
    assert summary(player)["clouds"] == 3
    heard.wait(3)
    assert len(heard.clouds) == 3


def sqlite_bag(path, times: list[int]):
    """A rosbag2 file of clouds that were logged at these times, with stamps of their own, a tenth of a second apart."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT, "
                   "offered_qos_profiles TEXT)")
        db.execute("CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)")
        db.execute("INSERT INTO topics VALUES (1, ?, 'sensor_msgs/msg/PointCloud2', 'cdr', '')", (TOPIC,))
        for i, logged in enumerate(times):
            cloud = PointCloud2(height=1)
            stamp = 1_700_000_000 * 10**9 + i * PERIOD
            cloud.header.stamp.sec, cloud.header.stamp.nanosec = divmod(stamp, 10**9)
            data = serialize_message(cloud)
            db.execute("INSERT INTO messages VALUES (NULL, 1, ?, ?)", (logged, data))
    db.close()
    return path


YEAR = 31_557_600 * 10**9


def test_a_pause_of_years_is_cut_and_told(ros, tmp_path):
    """As on a board without a battery, whose clock is set while it records."""
    bag = sqlite_bag(tmp_path / "jump.db3", [0, PERIOD, 55 * YEAR, 55 * YEAR + PERIOD])
    heard = Listener(ros.observer())
    player = ros.player(bag, "--wait-for-subscribers", "1", "--max-pause", "0.5", "--json")
    told = summary(player)
    assert (told["clouds"], told["cut_pauses"]) == (4, 1) and len(heard.clouds) == 4
    assert told["cut_seconds"] == pytest.approx(55 * YEAR / 1e9, rel=1e-3)
    assert "pauses for 55.0 years" in player.output and "--max-pause" in player.output
    assert told["seconds"] == pytest.approx(0.7, abs=0.5)


def test_nothing_is_waited_for_where_no_pause_may_be(ros, tmp_path):
    bag = sqlite_bag(tmp_path / "slow.db3", [i * 100 * 10**9 for i in range(5)])
    told = summary(ros.player(bag, "--max-pause", "0", "--json"))
    assert (told["clouds"], told["cut_pauses"]) == (5, 4)


def test_looping_over_a_pause_of_years_goes_on(ros, tmp_path):
    bag = sqlite_bag(tmp_path / "jump.db3", [0, PERIOD, 55 * YEAR, 55 * YEAR + PERIOD])
    heard = Listener(ros.observer())
    player = ros.player(bag, "--wait-for-subscribers", "1", "--loop", "--max-pause", "0.2", "--json")
    heard.wait(12, player)
    assert player.end()[0] == 0
    stamps = heard.stamps()
    assert stamps == sorted(stamps) and stamps[-1] - stamps[0] < 60 * 10**9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_it_waits(ros, tmp_path, number):
    bag = sqlite_bag(tmp_path / "jump.db3", [0, YEAR])
    heard = Listener(ros.observer())
    player = ros.player(bag, "--wait-for-subscribers", "1", "--max-pause", "86400", "--json")
    heard.wait(1, player)
    code, seconds = player.end(number)
    assert code == 0, player.output
    assert seconds < 5.0
    assert json.loads(player.output.splitlines()[-1])["interrupted"]


def test_remapping_and_topic_choice(ros, bag):
    heard = Listener(ros.observer(), topic="/front/points")
    options = ["--topic", TOPIC, "--remap", f"{TOPIC}:=/front/points"]
    told = summary(ros.player(bag, *options, "--wait-for-subscribers", "1", "--json"))
    heard.wait(8)
    assert told["clouds"] == 8 == len(heard.clouds)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--topic", "/no/such/topic"], TOPIC),
        (["--rate", "0"], "a number from 0.001"),
        (["--remap", "nonsense"], "FROM:=TO"),
        (["--wait-for-subscribers", "1", "--wait-timeout", "0.5"], "no 1 subscribers"),
    ],
)
def test_what_cannot_be_played_is_refused_with_the_reason(ros, bag, options, said):
    player = ros.player(bag, *options)
    assert player.wait(20.0) != 0
    assert said in player.output
    assert "panicked" not in player.output


def test_a_missing_bag_is_named(ros, tmp_path):
    player = ros.player(tmp_path / "absent")
    assert player.wait(20.0) != 0
    assert "absent" in player.output


def test_a_replayed_bag_gives_the_boxes_of_the_offline_tool(ros, bag, stamps, eager_model, tmp_path):
    """The live path and `centerpoint_ptq detect` are the same from cloud to box. A machine that is too busy to answer every
    cloud in time hears them slower."""
    offline = tmp_path / "boxes.json"
    subprocess.run(
        [graph.program("centerpoint_ptq"), "detect", "--model", eager_model, "--bag", bag]
        + ["--out", offline],
        check=True,
        timeout=600,
        env=os.environ,
        capture_output=True,
    )
    expected = json.loads(offline.read_text())

    observer = ros.observer()
    heard = Listener(observer)
    for rate in ("0.2", "0.02"):
        before = len(observer.seen.statuses)
        observer.forget()
        node = ros.node(eager_model)
        observer.wait_for(lambda: len(observer.seen.statuses) > before, graph.PATIENCE, "status", node)  # noqa: B023
        assert ros.player(bag, "--wait-for-subscribers", "2", "--rate", rate).wait() == 0
        ended = lambda: len(observer.seen.objects) == len(stamps) or observer.settled()  # noqa: E731
        observer.wait_for(ended, graph.PATIENCE, "an end of all clouds", node)
        if len(observer.seen.objects) == len(stamps):
            break
        assert node.end()[0] == 0
    assert [o.stamp for o in observer.seen.objects] == stamps
    mount = heard.tf_static[0].transforms[0].transform
    compared = 0
    for objects in observer.seen.objects:
        want = expected[str(objects.stamp)]
        got = objects.message.detections
        assert len(got) == len(want)
        for box, detection in zip(want, got):
            (result,) = detection.results
            assert result.hypothesis.class_id == box["label"]
            assert result.hypothesis.score == pytest.approx(box["score"], abs=1e-4)
            p = detection.bbox.center.position
            moved = in_base([p.x, p.y, p.z], mount)
            assert moved == pytest.approx(box["center"], abs=2e-2)
            size = detection.bbox.size
            assert [size.x, size.y, size.z] == pytest.approx(box["size_lwh"], rel=1e-3)
            compared += 1
    assert compared >= len(stamps)


def in_base(point, mount):
    import numpy as np

    r, t = mount.rotation, mount.translation
    q = np.array([r.x, r.y, r.z])
    v = np.array(point)
    twice = 2.0 * np.cross(q, v)
    return list(v + r.w * twice + np.cross(q, twice) + [t.x, t.y, t.z])
