"""Requests with arguments, and the typed status: recordings, recipes, models from elsewhere, rolling back."""

import math
import os
import threading

import graph
import pytest
from centerpoint_ptq_msgs.msg import CalibrationStatus, ModelFile
from centerpoint_ptq_msgs.srv import ListModels, LoadModel, SaveBuffer, StartCalibration
from live import FRAMES, IMPOSSIBLE, LENIENT, QUANTIZE, Live


class Statuses:
    """The typed status as a late subscriber gets it."""

    def __init__(self, observer: graph.Observer):
        self.seen: list[CalibrationStatus] = []
        self.changed = threading.Condition()
        observer.node.create_subscription(
            CalibrationStatus, f"{observer.node_name}/calibration_status", self._receive, graph.LATCHED
        )

    def _receive(self, message: CalibrationStatus) -> None:
        with self.changed:
            self.seen.append(message)
            self.changed.notify_all()

    def wait(self, ready, timeout: float) -> CalibrationStatus:
        """The first status, of those seen and to come, that is as wanted."""
        with self.changed:
            found = lambda: next((s for s in self.seen if ready(s)), None)  # noqa: E731
            assert self.changed.wait_for(found, max(timeout, graph.PATIENCE)), self.seen[-1:]
            return found()


def test_a_saved_buffer_calibrates_with_another_recipe_and_is_checked_on_live_frames(ros, eager_model, recipe, tmp_path):
    live = Live(ros, eager_model, recipe("strict", **IMPOSSIBLE))
    observer = live.observer
    folder = tmp_path / "saved" / "monday"
    saved = observer.ask(SaveBuffer, "save_buffer", path=str(folder))
    assert saved.success and saved.path == str(folder), saved.message
    assert (saved.frames, saved.held_out_frames) == (FRAMES * 3 // 4, FRAMES // 4)
    assert (folder / "metadata.yaml").is_file() and len(list(folder.glob("*.mcap"))) == FRAMES
    again = observer.ask(SaveBuffer, "save_buffer", path=str(folder))
    assert not again.success and "there already" in again.message
    elsewhere = observer.call("snapshot")
    assert elsewhere.success and str(ros.folder / "ros_home") in elsewhere.message, elsewhere.message

    # Latched: who comes late knows.
    statuses = Statuses(observer)
    idle = statuses.wait(lambda s: True, 5.0)
    assert (idle.state, idle.calibration, idle.precision) == (CalibrationStatus.IDLE, 0, "float")
    assert idle.last_outcome == CalibrationStatus.NONE and idle.stored_id == ""

    lenient = recipe("lenient", **LENIENT)
    started = observer.ask(StartCalibration, "start_calibration", bag=str(folder), recipe=str(lenient))
    assert started.success and started.calibration == 1, started.message
    assert "frames that the buffer holds out" in started.message
    second = observer.ask(StartCalibration, "start_calibration")
    assert not second.success and "already running" in second.message and second.calibration == 0

    done = statuses.wait(lambda s: s.last_calibration == 1, QUANTIZE)
    assert done.last_outcome == CalibrationStatus.SWAPPED, done
    assert done.precision == "int8" and done.stored_id == done.last_stored_id != ""
    during = [s for s in statuses.seen if s.state == CalibrationStatus.CALIBRATING]
    assert {s.bag for s in during} == {str(folder)} and {s.calibration for s in during} == {1}
    fractions = [s.fraction for s in during]
    assert fractions == sorted(fractions) and fractions[-1] > 0.5
    assert all(math.isnan(s.eta_s) or s.eta_s >= 0.0 for s in during)
    live.wait_more_detections()

    listed = observer.ask(ListModels, "list_models")
    (model,) = listed.models
    assert listed.success and model.id == done.stored_id and model.running and model.accepted
    assert (model.node, model.recipe, model.target) == ("/centerpoint", "quick", "cpu")
    # What the buffer holds out by now checked it; what it held out when it was saved may be among that, and did not calibrate.
    assert 8 <= model.calibration_frames <= FRAMES * 3 // 4 and model.held_out_frames == FRAMES // 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bag": "drive"}, "'drive' is no absolute path"),
        ({"bag": "/no/such/bag"}, "'/no/such/bag' lies outside of the folders"),
        ({"recipe": "mine.yaml"}, "'mine.yaml' is no absolute path"),
        ({"recipe": "/no/such/recipe.yaml"}, "'/no/such/recipe.yaml' lies outside of the folders"),
        ({"target": "gpu"}, "there are cpu and tensorrt"),
        ({}, "needs 16"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_a_request_that_cannot_be_met_is_refused_with_what_is_wrong(ros, eager_model, fields, said):
    observer = ros.observer()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    reply = observer.ask(StartCalibration, "start_calibration", **fields)
    assert not reply.success and said in reply.message and reply.calibration == 0
    assert observer.status["state"] == "idle" and observer.status["calibration"] == 0


def test_callers_reach_no_file_outside_of_the_folders_that_the_operator_names(ros, eager_model, recipe, tmp_path):
    folder = tmp_path / "reach"
    folder.mkdir()
    (folder / "devices.yaml").symlink_to("/dev/zero")
    (folder / "drive").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.yaml")
    with open(folder / "holes.yaml", "wb") as holes:
        holes.truncate(10**12)
    (folder / "secret.yaml").write_text('format: 1\nname: "to be kept"\nweights: "a password"\n')
    observer = ros.observer()
    node = ros.node(eager_model, {"request_folders": str(folder)})
    observer.wait_ready(node)

    def refused(service, kind, **fields) -> str:
        reply = observer.ask(service, kind, **fields)
        assert not reply.success and len(reply.message) < 1000, reply
        return reply.message

    start = lambda **fields: refused(StartCalibration, "start_calibration", **fields)  # noqa: E731
    outside = ["/etc/shadow", "/dev/zero", str(folder / ".." / "saved"), str(folder / "devices.yaml"), "/proc/self/mem"]
    for path in outside:
        assert "lies outside of the folders" in start(recipe=path), path
    assert "lies outside of the folders" in start(bag=str(folder / "drive"))
    assert "no regular file" in start(recipe=str(folder / "pipe.yaml"))
    assert "bytes" in start(recipe=str(folder / "holes.yaml"))
    said = start(recipe=str(folder / "secret.yaml"))
    assert "weights" in said and "password" not in said, said
    assert "there is no such file" in start(recipe=str(folder / "gone.yaml"))
    for path in ["/tmp/taken", str(folder / ".." / "taken"), str(folder / "drive" / "taken")]:
        assert "lies outside" in refused(SaveBuffer, "save_buffer", path=path)
    assert "lies outside" in refused(LoadModel, "load_model", model=str(eager_model.parent))
    assert not (tmp_path / "taken").exists()
    assert observer.status["state"] == "idle" and node.end()[0] == 0


def test_a_recording_that_is_none_fails_the_calibration_and_nothing_else(ros, eager_model, recipe, tmp_path):
    live = Live(ros, eager_model, recipe(**LENIENT))
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(b"\x89MCAP0\r\n" + bytes(1000))
    reply = live.observer.ask(StartCalibration, "start_calibration", bag=str(broken))
    assert reply.success
    last = live.finish()
    assert last["outcome"] == "failed" and "broken.mcap" in last["reasons"][0], last
    assert not live.models()
    live.wait_more_detections()


def test_a_model_from_elsewhere_that_disagrees_on_the_nodes_own_frames_does_not_run(ros, eager_model, recipe, variants):
    live = Live(ros, eager_model, recipe("strict", **IMPOSSIBLE))
    (made,) = variants(1)
    reply = live.observer.ask(LoadModel, "load_model", timeout=60.0, model=str(made))
    assert not reply.success and reply.stored_id == ""
    assert "disagrees with float on 4 frames" in reply.message and "F1" in reply.message, reply.message
    assert live.observer.status["precision"] == "float" and not live.models()
    live.wait_more_detections()


def test_a_model_that_the_nodes_own_frames_cannot_judge_does_not_run_unless_that_is_allowed(ros, eager_model, variants):
    observer = ros.observer()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    (made,) = variants(1)
    reply = observer.ask(LoadModel, "load_model", timeout=60.0, model=str(made))
    assert not reply.success and reply.stored_id == ""
    for part in ("not judged", "holds out 0 frames", "drive until", "store.allow_unjudged"):
        assert part in reply.message, reply.message
    assert observer.status["precision"] == "float"
    refused = observer.set_parameter("store.allow_unjudged", True)
    assert not refused.successful and "read at start only" in refused.reason
    assert node.end()[0] == 0
    seen = len(observer.seen.statuses)
    node = ros.node(eager_model, {"store.allow_unjudged": True})
    observer.wait_for(lambda: observer.seen.statuses[seen:], graph.PATIENCE, "the next node", node)
    reply = observer.ask(LoadModel, "load_model", timeout=60.0, model=str(made))
    assert reply.success and "not judged" in reply.message, reply.message
    said = lambda s: s["judgement"] and s["judgement"]["judged"] is False  # noqa: E731
    runs = lambda s: s["stored_id"] == reply.stored_id and said(s)  # noqa: E731
    observer.wait_status(runs, 5.0, "the model", node)
    told = lambda: "not judged" in observer.values("detection").get("condition_unjudged", "")  # noqa: E731
    observer.wait_for(told, 10.0, "a warning in diagnostics", node)


def files(folder) -> list[ModelFile]:
    return [ModelFile(name=p.name, data=p.read_bytes()) for p in sorted(folder.iterdir())]


def test_models_come_by_path_by_id_and_as_files_and_are_rolled_back_one_by_one(ros, eager_model, recipe, variants):
    live = Live(ros, eager_model, recipe(**LENIENT))
    observer, driver, node = live.observer, live.driver, live.node
    first, second, third = variants(3)

    def load(**fields):
        reply = observer.ask(LoadModel, "load_model", timeout=60.0, **fields)
        if reply.success:
            assert "agrees with float on 4 frames that the buffer holds out" in reply.message
        return reply.stored_id if reply.success else reply.message

    def running() -> str:
        return (observer.wait_for(lambda: observer.status, 5.0, "status"))["stored_id"]

    def wait_running(stored_id):
        observer.wait_status(lambda s: s["stored_id"] == stored_id, 5.0, f"{stored_id} running", node)

    assert not observer.call("roll_back").success
    ids = [load(model=str(first)), load(model=str(second / "model.yaml")), load(files=files(third))]
    assert len(set(ids)) == 3 and all((ros.folder / "store" / "models" / i / "version.json").is_file() for i in ids)
    wait_running(ids[2])
    # The hash at the end of an id tells models of one name apart.
    assert load(model=ids[0][: ids[0].rindex("-") + 6]) == ids[0]
    wait_running(ids[0])
    assert load(files=files(third)) == ids[2], "one that is there already is there once"
    listed = {m.id: m for m in observer.ask(ListModels, "list_models").models}
    assert set(listed) == set(ids)
    assert [m.running for m in listed.values()].count(True) == 1 and listed[ids[2]].running

    # What cannot be loaded leaves what runs.
    bad = files(second)
    bad[[f.name for f in bad].index("pts_backbone_neck_head.onnx")].data = bytes(1000)
    for fields, said in [
        ({"model": "demo-0123456789ab"}, "0123456789ab"),
        ({"model": "models/int8"}, "no absolute path"),
        ({"model": "/no/such/folder"}, "'/no/such/folder' lies outside"),
        ({"files": bad}, "pts_backbone_neck_head.onnx"),
        ({"files": [ModelFile(name="../../escaped", data=b"x")]}, "escaped"),
        ({}, "no"),
    ]:
        assert said in load(**fields)
    assert not (ros.folder / "escaped").exists()
    assert running() == ids[2]
    assert {m.id for m in observer.ask(ListModels, "list_models").models} == set(ids), "what is of no use does not stay"

    for before in (ids[0], ids[1], None):
        reply = observer.call("roll_back")
        assert reply.success, reply.message
        wait_running(before)
    assert observer.status["precision"] == "float" and observer.status["int8_model_id"] is None
    assert not observer.call("roll_back").success
    given_up = {m.id: m.given_up for m in observer.ask(ListModels, "list_models").models}
    assert all(given_up.values()), given_up
    # A person may still want one of them.
    assert load(model=ids[1]) == ids[1]
    wait_running(ids[1])

    driver.pause()
    values = observer.wait_settled(node)
    published = int(values["clouds_published"])
    observer.wait_for(lambda: len(observer.seen.objects) >= published, graph.PATIENCE, "all answers", node)
    stamps = [o.stamp for o in observer.seen.objects]
    assert stamps == sorted(set(stamps)), "in order and once each across all of that"
    received = int(values["clouds_received"])
    assert received == len(stamps) + int(values["clouds_dropped"])
    assert int(values["clouds_dropped"]) == int(values["clouds_dropped_superseded"])
    assert node.end()[0] == 0
