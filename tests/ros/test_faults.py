"""Faults of disks, clocks and company: the node goes on detecting, says what is wrong, and recovers."""

import shutil
import subprocess
from pathlib import Path

import pytest
from centerpoint_ptq_msgs.srv import ListModels, LoadModel, SaveBuffer, StartCalibration
from live import FRAMES, LENIENT, Live, verdict
from peers import SECOND, street, transform
from tf2_msgs.msg import TFMessage


@pytest.fixture
def mounted():
    """Wraps a command so that it has mounts of its own, which end with it."""
    alone = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system allows no mount namespaces")

    def inside(*mounts: str):
        return lambda command: [*alone, "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh", *command]

    return inside


def read_only(folder: Path) -> str:
    return f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}'"


def small_disk(folder: Path, size: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return f"mount -t tmpfs -o size={size} tmpfs '{folder}'"


def test_a_disk_that_became_read_only_stops_what_writes_and_nothing_else(ros, eager_model, recipe, mounted):
    live = Live(ros, eager_model, recipe(**LENIENT))
    live.calibrate()
    assert live.finish()["outcome"] == "swapped"
    (model,) = live.models()
    assert live.node.end()[0] == 0
    live.driver.pause()

    observer = live.observer
    before = len(observer.seen.statuses)
    disk = mounted(*(read_only(ros.folder / name) for name in ("store", "buffer", "ros_home")))
    (ros.folder / "ros_home").mkdir(exist_ok=True)
    parameters = {"calibration.choice": "newest", "calibration.min_period_s": 0.1, "recipe_path": str(recipe(**LENIENT))}
    node = ros.node(eager_model, parameters, disk)
    observer.wait_for(lambda: any(s["start"] for _, s in observer.seen.statuses[before:]), 30.0, "start", node)
    # What was stored can be read, and runs.
    assert observer.status["start"]["model"] == model and observer.status["precision"] == "int8"
    live.driver.connect(observer, node)
    live.driver.stream(rate=5.0, points=4_000)
    told = lambda: "Read-only file system" in observer.values("calibration").get("message", "")  # noqa: E731
    observer.wait_for(told, 20.0, "a warning in diagnostics", node)
    assert observer.values("calibration")["level"] == 1

    assert not observer.ask(SaveBuffer, "save_buffer").success
    started = observer.call("calibrate")
    if started.success:
        last = verdict(observer, node)
        assert last["outcome"] == "failed" and "Read-only file system" in last["reasons"][0], last
    else:
        assert "Read-only file system" in started.message
    # Exchanges need no disk; that the next start will not know of them is said.
    for service, precision in [("use_float", "float"), ("use_int8", "int8"), ("roll_back", "float")]:
        reply = observer.call(service)
        assert reply.success and reply.message.startswith(precision), reply.message
    assert "Read-only file system" in observer.status["store_problem"]
    seen = len(observer.seen.objects)
    observer.wait_for(lambda: len(observer.seen.objects) > seen + 3, 20.0, "further detections", node)
    assert node.end()[0] == 0


def test_a_full_disk_costs_frames_of_the_buffer_and_nothing_else(ros, eager_model, recipe, mounted):
    disk = mounted(small_disk(ros.folder / "buffer", "2m"))
    live = Live(ros, eager_model, recipe(**LENIENT), disk, frames=3)
    observer = live.observer
    told = lambda: "No space left" in observer.values("calibration").get("message", "")  # noqa: E731
    observer.wait_for(told, 30.0, "a warning in diagnostics", live.node)
    held = int(observer.values("calibration")["buffer_frames"])
    assert 3 <= held < FRAMES
    live.wait_more_detections()
    refused = observer.call("calibrate")
    assert not refused.success and f"holds {held} frames" in refused.message and "No space left" in refused.message
    assert live.node.end()[0] == 0


def test_a_store_without_room_fails_the_calibration_and_is_left_as_it_was(ros, eager_model, recipe, mounted):
    live = Live(ros, eager_model, recipe(**LENIENT), mounted(small_disk(ros.folder / "store", "1m")))
    live.calibrate()
    last = live.finish()
    assert last["outcome"] == "failed" and "No space left" in last["reasons"][0], last
    assert live.observer.ask(ListModels, "list_models").models == []
    assert live.observer.status["precision"] == "float"
    # The room that it took is free again: the next try gets as far.
    live.calibrate()
    assert "No space left" in live.finish()["reasons"][0]
    live.wait_more_detections()


def test_a_clock_that_jumps_back_and_forth_costs_no_cloud(ros, eager_model):
    observer, driver = ros.observer(markers=False), ros.driver()
    node = ros.node(eager_model, {"calibration.min_period_s": 0.1, "calibration.choice": "newest"})
    observer.wait_ready(node)
    driver.connect(observer, node)
    driver.tf_static.publish(TFMessage(transforms=[transform("base_link", "lidar", 0, (1.0, 0.0, 0.5))]))
    driver.connect(observer, node, frame="lidar")
    cloud = street(points=2_000)

    def drive(clouds=6):
        for _ in range(clouds):
            stamp = driver.send(cloud, "lidar")
            observer.wait_for(lambda: observer.seen.objects[-1:] and observer.seen.objects[-1].stamp == stamp,  # noqa: B023
                              10.0, f"an answer to {stamp}", node)  # fmt: skip

    drive()
    frames = int(observer.values("calibration").get("buffer_frames", 0))
    for jump in (-3_600, 7_200, -3_600, 86_400 * 365, -86_400 * 366, 4):
        driver.stamp += jump * SECOND
        drive()
    assert [o.stamp for o in observer.seen.objects] == driver.sent, "every cloud, in the order in which they came"
    observer.wait_settled(node)
    assert int(observer.values("calibration")["buffer_frames"]) > frames, "the buffer goes on, too"
    assert node.end()[0] == 0


def test_two_nodes_share_a_store_and_calibrate_at_once(ros, eager_model, recipe):
    parameters = {
        "recipe_path": str(recipe(**LENIENT)), "calibration.max_frames": FRAMES, "calibration.min_frames": FRAMES,
        "calibration.min_period_s": 0.1, "calibration.choice": "newest", "calibration.nice": 0,
    }  # fmt: skip
    driver = ros.driver()
    both = []
    for name in ("front", "rear"):
        observer = ros.observer(node=f"/{name}/centerpoint", markers=False)
        own = {"calibration.buffer_path": str(ros.folder / f"buffer_{name}")}
        node = ros.node(eager_model, parameters | own, namespace=f"/{name}")
        observer.wait_ready(node)
        both.append((observer, node))
    for observer, node in both:
        driver.connect(observer, node)
    driver.stream(rate=4.0, points=4_000)
    for observer, node in both:
        full = lambda: observer.values("calibration").get("buffer_frames") == str(FRAMES)  # noqa: B023, E731
        observer.wait_for(full, 60.0, "a full buffer", node)
    for observer, _ in both:
        reply = observer.call("calibrate")
        assert reply.success, reply.message
    ids = set()
    for observer, node in both:
        last = verdict(observer, node)
        assert last["outcome"] == "swapped", last
        ids.add(last["stored_id"])
    for observer, _ in both:
        models = {m.id: m for m in observer.ask(ListModels, "list_models").models}
        assert set(models) == ids
        running = [m for m in models.values() if m.running]
        assert [m.id for m in running] == [observer.status["stored_id"]], "each knows its own"
        assert {m.node for m in models.values()} <= {"/front/centerpoint", "/rear/centerpoint"}
    # One may run what the other made.
    (front, _), (rear, _) = both
    wanted = rear.status["stored_id"]
    assert front.ask(LoadModel, "load_model", timeout=60.0, model=wanted).stored_id == wanted
    assert not list((ros.folder / "store" / "incoming").iterdir())
    for observer, node in both:
        seen = len(observer.seen.objects)
        observer.wait_for(lambda: len(observer.seen.objects) > seen, 20.0, "detections", node)  # noqa: B023
        assert node.end()[0] == 0


def test_two_nodes_on_one_buffer_both_detect_and_one_of_them_fills_it(ros, eager_model):
    driver, both = ros.driver(), []
    for name in ("front", "rear"):
        observer = ros.observer(node=f"/{name}/centerpoint", markers=False)
        node = ros.node(eager_model, {"calibration.min_period_s": 0.1}, namespace=f"/{name}")
        observer.wait_ready(node)
        both.append((observer, node))
        driver.connect(observer, node)
    driver.stream(rate=4.0, points=4_000)
    (front, first), (rear, second) = both
    told = lambda: "used by another process" in rear.values("calibration").get("message", "")  # noqa: E731
    rear.wait_for(told, 20.0, "a warning in diagnostics", second)
    refused = rear.call("calibrate")
    assert not refused.success and "used by another process" in refused.message
    assert "used by another process" not in front.values("calibration")["message"]
    # Who is alone with it gets it.
    assert first.end()[0] == 0
    alone = lambda: int(rear.values("calibration").get("buffer_frames", 0)) > 0 and not told()  # noqa: E731
    rear.wait_for(alone, 20.0, "the buffer of the one that ended", second)


@pytest.mark.parametrize(
    ("frames", "pose", "said"),
    # The first frame lacks a sweep, and is left out.
    [(4, None, "too few frames: 3 to calibrate and 0 held out"), (24, "0 0 90 0 0 0", "frames are empty")],
    ids=["too few", "only empty ones"],
)
def test_a_recording_of_no_use_fails_the_calibration_with_the_numbers(
    ros, eager_model, recipe, program, tmp_path, frames, pose, said
):
    drive = tmp_path / "drive"
    command = [program, "simulate", "--sensor", "vlp16", "--frames", frames, "--seed", 3, "--out", drive]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=600)
    observer = ros.observer()
    node = ros.node(eager_model, {"input.sensor_pose": pose} if pose else None)
    observer.wait_ready(node)
    reply = observer.ask(StartCalibration, "start_calibration", bag=str(drive), recipe=str(recipe(**LENIENT)))
    assert reply.success and "frames of its own, since the buffer holds too few" in reply.message
    last = verdict(observer, node)
    assert last["outcome"] == "failed" and said in last["reasons"][0], last
    assert not list((ros.folder / "store").rglob("model.yaml"))
    shutil.rmtree(drive)
