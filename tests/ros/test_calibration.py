"""Calibration over ROS while clouds flow: start, progress, swap, rollback, refusals, accidents."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import yaml
from live import AT_ONCE, FRAMES, IMPOSSIBLE, LENIENT, Live, wait_gone

def test_calibration_from_traffic_swaps_to_int8_while_clouds_flow(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe(**LENIENT))
    observer = live.observer
    assert observer.status["precision"] == "float"
    none_yet = observer.call("use_int8")
    assert not none_yet.success and "int8" in none_yet.message

    reply = live.calibrate()
    assert f"from {FRAMES} frames" in reply.message
    second = observer.call("calibrate")
    assert not second.success and "already running" in second.message

    begun = len(observer.seen.objects)
    last = live.finish()
    assert last["outcome"] == "swapped", last
    assert len(observer.seen.objects) > begun, "detection went on during the calibration"
    status = observer.status
    assert status["precision"] == "int8" and status["fallback"] is None
    live.wait_more_detections()

    # What was made lies in the store and says what it is.
    model = Path(last["model"])
    assert model.is_file() and model.is_relative_to(live.store)
    assert yaml.safe_load(model.read_text())["precision"] == "int8"
    assert json.loads(Path(last["report"]).read_text())
    assert live.models() == [model.parent.name]

    # The status told how it went.
    stages = [s["stage"] for _, s in observer.seen.statuses if s["stage"]]
    assert len(set(stages)) >= 3, stages
    fractions = [s["fraction"] for _, s in observer.seen.statuses if s["stage"]]
    assert fractions == sorted(fractions) and fractions[-1] > 0.5

    # There and back again.
    for service, precision in [("use_float", "float"), ("use_int8", "int8"), ("use_float", "float")]:
        reply = observer.call(service)
        assert reply.success, reply.message
        state = json.loads(observer.call("calibration_state").message)
        assert state["precision"] == precision
        assert state["int8_model_id"]
        live.wait_more_detections()

    live.driver.pause()
    last_sent = live.driver.sent[-1]
    observer.wait_for(
        lambda: observer.seen.objects[-1].stamp == last_sent, 20.0, "the last answer", live.node
    )
    stamps = [o.stamp for o in observer.seen.objects]
    assert stamps == sorted(set(stamps)), "in order and once each, across three swaps"
    assert set(stamps) <= set(live.driver.sent)
    values = observer.wait_settled(live.node) | observer.values("detection")
    received = int(values["clouds_received"])
    # Where a busy machine lets the node wait, DDS keeps the newest clouds only.
    assert received <= len(live.driver.sent)
    assert received == len(stamps) + int(values["clouds_dropped"])
    assert int(values["clouds_published"]) == len(stamps)
    assert int(values["clouds_dropped"]) == int(values["clouds_dropped_superseded"])
    assert 0 < int(values["published_int8"]) < len(stamps)
    assert float(values["inference_int8_p50_ms"]) > 0.0
    assert live.node.end()[0] == 0


def test_too_few_frames_are_refused_with_the_numbers(ros, eager_model):
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model, {"calibration.min_frames": 12, "calibration.max_frames": 20})
    observer.wait_ready(node)
    driver.connect(observer, node)
    reply = observer.call("calibrate")
    assert not reply.success
    have = int(re.search(r"holds (\d+) frames", reply.message)[1])
    assert have < 12 and "needs 12" in reply.message
    assert observer.status["state"] == "idle"
    assert not observer.call("cancel_calibration").success


def test_a_model_that_disagrees_is_refused_and_float_goes_on(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe(**IMPOSSIBLE))
    live.calibrate()
    last = live.finish()
    assert last["outcome"] == "refused", last
    assert last["reasons"]
    assert json.loads(Path(last["report"]).read_text())
    assert live.observer.status["precision"] == "float"
    assert not live.observer.call("use_int8").success
    live.wait_more_detections()
    warning = live.observer.wait_for(
        lambda: "refused" in live.observer.values("calibration").get("message", "")
        and live.observer.values("calibration"),
        5.0,
        "the refusal in diagnostics",
    )
    assert warning["level"] == 1


def test_a_calibration_can_be_cancelled_and_started_again(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe(**LENIENT))
    for _ in range(2):
        live.calibrate()
        pid = live.wait_child()
        assert live.observer.call("cancel_calibration").success
        assert live.finish()["outcome"] == "cancelled"
        wait_gone(pid)
        assert not live.models()
    live.wait_more_detections()


def test_a_killed_quantization_leaves_the_node_running_and_is_reported(ros, eager_model, recipe):
    live = Live(ros, eager_model, recipe(**LENIENT))
    live.calibrate()
    pid = live.wait_child()
    os.kill(pid, signal.SIGKILL)
    last = live.finish()
    assert last["outcome"] == "failed"
    assert "signal 9" in last["reasons"][0]
    assert not live.models()
    live.wait_more_detections()
    assert live.observer.status["precision"] == "float"
    live.calibrate()
    live.observer.call("cancel_calibration")


def test_a_quantization_that_fails_says_why(ros, eager_model, recipe, tmp_path):
    # More than the buffer ever holds.
    demanding = yaml.safe_load(recipe(**LENIENT).read_text())
    demanding["frames"]["min_calibration"] = 60
    path = tmp_path / "demanding.yaml"
    path.write_text(yaml.safe_dump(demanding))
    live = Live(ros, eager_model, path)
    live.calibrate()
    last = live.finish()
    assert last["outcome"] == "failed"
    assert "wants at least 60" in last["reasons"][0], last
    live.wait_more_detections()


def test_a_recipe_that_is_none_is_refused_at_once(ros, eager_model, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("format: 1\nname: broken\nno_such_key: 3\n")
    live = Live(ros, eager_model, broken)
    refused = live.observer.call("calibrate")
    assert not refused.success and "broken.yaml" in refused.message and "no_such_key" in refused.message
    assert live.observer.status["state"] == "idle" and live.observer.status["calibration"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_calibration_ends_node_and_child(ros, eager_model, recipe, number):
    live = Live(ros, eager_model, recipe(**LENIENT))
    live.calibrate()
    pid = live.wait_child()
    code, seconds = live.node.end(number)
    assert code == 0, live.node.output
    assert seconds < AT_ONCE
    wait_gone(pid)
    assert not live.models()


def test_the_buffer_is_a_bag_of_what_the_network_saw_and_survives_the_node(ros, eager_model, recipe):
    from mcap.reader import make_reader

    live = Live(ros, eager_model, recipe(**LENIENT))
    live.driver.pause()
    live.observer.wait_settled(live.node)
    bag = ros.folder / "buffer" / "frames"
    files = sorted(bag.glob("*.mcap"))
    listed = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert sorted(listed["relative_file_paths"]) == [f.name for f in files]
    messages = []
    for file in files:
        with file.open("rb") as stream:
            messages += [(c.topic, m) for _, c, m in make_reader(stream).iter_messages()]
    clouds = [(topic, m) for topic, m in messages if topic.endswith("/pointcloud")]
    assert len(files) == len(clouds) == FRAMES
    assert {m.log_time for _, m in clouds} <= set(live.driver.sent)
    held_out = {m.log_time for topic, m in clouds if topic == "/centerpoint/held_out/pointcloud"}
    calibration = {m.log_time for topic, m in clouds if topic == "/centerpoint/calibration/pointcloud"}
    assert (len(calibration), len(held_out)) == (12, 4)
    assert min(abs(a - b) for a in calibration for b in held_out) >= 2_000_000_000
    assert all(b"time_lag" in m.data[:400] for _, m in clouds)

    # Not even the end of a killed node loses them; a frame that breaks costs itself only.
    live.node.kill()
    files[3].write_bytes(files[3].read_bytes()[:500])
    node = ros.node(eager_model, {"calibration.choice": "newest", "calibration.max_frames": FRAMES})
    live.observer.wait_for(
        lambda: live.observer.values("calibration").get("buffer_frames") == str(FRAMES - 1),
        20.0,
        "the buffer of the node before",
        node,
    )


def test_a_node_starts_with_the_model_that_ran_last(ros, eager_model, recipe, damage):
    live = Live(ros, eager_model, recipe(**LENIENT))
    live.calibrate()
    last = live.finish()
    assert last["outcome"] == "swapped", last
    (model,) = live.models()
    live.node.kill()

    def restarted():
        statuses = live.observer.seen.statuses
        before = len(statuses)
        node = ros.node(eager_model, {"calibration.choice": "newest"})
        told = lambda: next((s for _, s in statuses[before:] if s["start"]), None)  # noqa: E731
        return node, live.observer.wait_for(told, 20.0, "start", node)

    node, status = restarted()
    assert status["start"] == {"model": model, "problems": []}
    assert status["precision"] == "int8" and model in status["model_path"]
    # Rolled back, it stays so.
    assert live.observer.call("use_float").success
    assert node.end()[0] == 0
    node, status = restarted()
    assert status["precision"] == "float" and not status["start"]["problems"]
    assert live.observer.call("use_int8").success
    assert node.end()[0] == 0

    # A damaged model is not run, and everybody is told.
    backbone = next((live.store / "models" / model).glob("*backbone*.onnx"))
    damage(backbone)
    node, status = restarted()
    assert status["precision"] == "float"
    assert model in status["start"]["problems"][0] and backbone.name in status["start"]["problems"][0]
    live.observer.wait_for(
        lambda: model in live.observer.values("calibration").get("message", ""), 5.0, "a warning in diagnostics"
    )
    assert live.observer.values("calibration")["level"] == 1
