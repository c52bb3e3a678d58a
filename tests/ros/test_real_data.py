"""Real recordings through the node over ROS 2: counts, detections, and a calibration from them.

Needs CENTERPOINT_PTQ_DATA, the folder of the recordings. Figures go to
build/test-report/real_data.json.
"""

import json
import os
import subprocess
from pathlib import Path

import graph
import pytest

DATA = os.environ.get("CENTERPOINT_PTQ_DATA")
ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "build" / "test-report" / "real_data.json"

pytestmark = pytest.mark.skipif(
    not DATA, reason="CENTERPOINT_PTQ_DATA is not set: no real recordings to test on"
)

DRIVES = {
    "argoverse1_drive": {
        "topic": "/sensing/lidar/top/pointcloud",
        "frames": 36,
        "points": (70_000, 110_000),
        "parameters": {"input.fixed_frame": "map"},
        # Rear axle, ground near z = -0.3: the recording's frame is used as it is.
        "frame": "base_link",
        "offline": [],
    },
    "kitti_drive_0052": {
        "topic": "/velodyne_points",
        "frames": 24,
        "points": (100_000, 130_000),
        "parameters": {"input.sensor_pose": "0 0 1.73 0 0 0"},
        "frame": "velodyne",
        "offline": ["--sensor-pose", "0 0 1.73 0 0 0"],
    },
}
# Enough for the recipe's smallest calibration and its check.
CALIBRATION_FRAMES = 16
QUANTIZE = 600.0


def record(drive: str, figures: dict) -> None:
    """Adds figures to the report and shows them."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(REPORT.read_text()) if REPORT.is_file() else {}
    known.setdefault(drive, {}).update(figures)
    half = REPORT.with_suffix(f".{os.getpid()}")
    half.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    half.replace(REPORT)
    print(f"\n{drive}: {json.dumps(figures)}")


@pytest.mark.parametrize("name", DRIVES)
def test_a_real_drive_is_detected_calibrated_from_and_detected_in_int8(ros, model, tmp_path, name):
    drive = DRIVES[name]
    bag = Path(DATA) / name
    if not bag.is_dir():
        pytest.skip(f"{bag} is not there")
    observer = ros.observer(markers=False)
    clouds = []
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import PointCloud2

    def receive(message):
        with observer.lock:
            clouds.append((graph.nanoseconds(message.header.stamp), message.width * message.height))

    observer.node.create_subscription(PointCloud2, drive["topic"], receive, QoSProfile(depth=10))
    node = ros.node(
        model,
        {
            "calibration.max_frames": CALIBRATION_FRAMES,
            "calibration.min_frames": CALIBRATION_FRAMES,
            "calibration.min_period_s": 0.0,
            # Two and a half seconds are too short to choose from, or to keep frames far apart.
            "calibration.choice": "newest",
            "calibration.gap_s": 0.15,
            "calibration.threads": 0,
            # Test machines are busy; nothing here is worth waiting behind.
            "calibration.nice": 0,
        }
        | drive["parameters"],
        input_topic=drive["topic"],
    )
    observer.wait_ready(node)

    # Slower than recorded: every cloud is to be answered, also on a small machine.
    player = ros.player(bag, "--rate", "0.2", "--loop", "--wait-for-subscribers", "2")
    frames = drive["frames"]
    observer.wait_for(lambda: len(observer.seen.objects) >= frames, 240.0, "a whole pass", node)
    with observer.lock:
        answered = observer.seen.objects[:frames]
        counts = {stamp: points for stamp, points in clouds}
    low, high = drive["points"]
    boxes = {}
    # What was answered was also heard here, but for what DDS left out on a busy machine.
    assert counts
    for objects in answered:
        assert low < counts.get(objects.stamp, low + 1) < high
        assert objects.frame == drive["frame"]
        for detection in objects.message.detections:
            (result,) = detection.results
            label = result.hypothesis.class_id
            boxes[label] = boxes.get(label, 0) + 1
            p = detection.bbox.center.position
            assert abs(p.x) < 60 and abs(p.y) < 60 and -10 < p.z < 10
    values = observer.values("input")
    dropped = {k: int(v) for k, v in values.items() if k.startswith("clouds_dropped_") and int(v)}
    assert set(dropped) <= {"clouds_dropped_superseded"}, dropped
    assert sum(boxes.values()) > 0, "a model that sees nothing in a real street"

    reply = observer.call("calibrate")
    assert reply.success, reply.message
    last = observer.wait_status(
        lambda s: s["state"] == "idle" and s["last"], QUANTIZE, "end of the calibration", node
    )["last"]
    assert last["outcome"] in ["swapped", "refused"], last
    record(
        name,
        {
            "clouds_answered": len(answered),
            "points_per_cloud": sum(counts.values()) / len(counts),
            "boxes_per_cloud": {k: v / len(answered) for k, v in sorted(boxes.items())},
            "dropped": dropped,
            "calibration_seconds": last["seconds"],
            "calibration_outcome": last["outcome"],
            "calibration_reasons": last["reasons"],
            "inference_float_ms": observer.values("detection").get("inference_float_p50_ms"),
        },
    )
    assert last["outcome"] == "swapped", last["reasons"]

    before = len(observer.seen.objects)
    observer.wait_for(
        lambda: len(observer.seen.objects) >= before + 5, 60.0, "detections in INT8", node
    )
    int8 = sum(len(o.message.detections) for o in observer.seen.objects[before:])
    assert int8 > 0
    observer.wait_for(
        lambda: "inference_int8_p50_ms" in observer.values("detection"), 10.0, "INT8 latency", node
    )
    record(name, {"inference_int8_ms": observer.values("detection")["inference_int8_p50_ms"]})
    player.end()
    assert node.end()[0] == 0

    # The whole drive, both models, without the graph between.
    compared = subprocess.run(
        [graph.program("centerpoint_ptq"), "evaluate", "--bag", bag, "--json"]
        + ["--model", model, "--model2", last["model"], *drive["offline"]],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert compared.returncode == 0, compared.stderr
    total = json.loads(compared.stdout)["agreement"]["total"]
    record(name, {"agreement": total})
    assert total["f1"] >= 0.85, total
    assert total["centre"]["mean"] < 0.2
