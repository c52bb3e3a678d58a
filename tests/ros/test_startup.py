"""How the node starts, refuses to start, and ends."""

import os
import re
import shutil
import signal
import subprocess

import graph
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from live import AT_ONCE
from peers import street


def refusal(ros, command) -> str:
    """What a node that must not start says."""
    process = ros.start("node", command)
    assert process.wait(20.0) != 0, process.output
    assert "panicked" not in process.output
    return process.output


def edited(model, tmp_path, change):
    folder = tmp_path / "edited"
    shutil.copytree(model.parent, folder)
    description = yaml.safe_load(model.read_text())
    change(description)
    (folder / "model.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return folder / "model.yaml"


def test_a_missing_model_is_named(ros, tmp_path):
    absent = tmp_path / "absent" / "model.yaml"
    said = refusal(ros, graph.node_command({"model_path": str(absent)}))
    assert str(absent) in said and "model_path" in said


def test_no_model_at_all_is_an_error_with_advice(ros):
    assert "model_path" in refusal(ros, graph.node_command({}))


def test_a_model_with_the_wrong_channels_is_refused(ros, model, tmp_path):
    def change(description):
        description["classes"].append("TRAM")
        description["post"]["score_thresholds"].append(0.3)
        description["post"]["yaw_norm_thresholds"].append(0.3)

    path = edited(model, tmp_path, change)
    said = refusal(ros, graph.node_command({"model_path": str(path)}))
    assert "heatmap" in said and "backbone" in said


def test_a_model_beyond_the_bound_is_refused_by_name_size_and_setting(ros, model):
    said = refusal(ros, graph.node_command({"model_path": str(model), "model_max_mb": 1}))
    for part in ("pts_backbone_neck_head.onnx", "5 MB", "1 MB", "model_max_mb"):
        assert part in said, said


def test_an_int8_model_that_is_not_as_it_was_made_is_refused_by_name(ros, variants, damage):
    (made,) = variants(1)
    file = made / "pts_backbone_neck_head.onnx"
    damage(file)
    said = refusal(ros, graph.node_command({"model_path": str(made)}))
    assert file.name in said and "not as it was made" in said, said


def test_a_model_with_a_wrong_tensor_name_is_refused(ros, model, tmp_path):
    path = edited(model, tmp_path, lambda d: d["encoder"].update(input="voxels"))
    said = refusal(ros, graph.node_command({"model_path": str(path)}))
    assert "voxels" in said and "input_features" in said


def test_a_file_that_is_no_onnx_is_refused(ros, model, tmp_path):
    path = edited(model, tmp_path, lambda d: None)
    (path.parent / "pts_voxel_encoder.onnx").write_bytes(b"not a model")
    said = refusal(ros, graph.node_command({"model_path": str(path)}))
    assert "pts_voxel_encoder.onnx" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("calibration.max_frames", "many"),
        ("calibration.min_period_s", 1),
        ("publish.markers", "yes please"),
        ("target", 5),
        ("input.sensor_pose", "1 2 3"),
        ("input.reliability", "now and then"),
        ("runtime.provider", "abacus"),
        ("calibration.nice", 40),
    ],
)
def test_a_bad_parameter_is_refused_by_name(ros, model, name, value):
    said = refusal(ros, graph.node_command({"model_path": str(model), name: value}))
    assert name in said


def test_an_unknown_parameter_is_told_with_the_likely_name(ros, eager_model):
    observer = ros.observer()
    node = ros.node(eager_model, {"calibration.max_frame": 7})
    observer.wait_ready(node)
    observer.wait_for(lambda: "'calibration.max_frame'" in node.output, graph.PATIENCE, "a word about it", node)
    assert "did you mean 'calibration.max_frames'" in node.output


def test_parameters_of_a_running_node_are_checked(ros, eager_model):
    observer = ros.observer()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    assert observer.set_parameter("calibration.max_frames", 20).successful
    for name, value, reason in [
        ("calibration.max_frames", "many", "integer"),
        ("calibration.max_frames", -1, "between"),
        ("calibration.max_frames", 3, "between"),
        ("calibration.max_frames", 8, "min_frames"),
        ("model_path", "/other/model.yaml", "restart"),
        ("max_frames", 3, "did you mean"),
    ]:
        result = observer.set_parameter(name, value)
        assert not result.successful
        assert reason in result.reason, result.reason
    assert node.running()


def test_name_namespace_parameter_file_and_remapping_are_honoured(ros, eager_model, tmp_path):
    """What launch passes on the command line."""
    observer = ros.observer(node="/vehicle/front")
    driver = ros.driver(topic="/front/points")
    node = ros.node(
        eager_model,
        params_file=graph.share() / "config" / "centerpoint_node.param.yaml",
        name="front",
        namespace="/vehicle",
        input_topic="/front/points",
    )
    observer.wait_ready(node)
    driver.connect(observer, node)
    stamp = driver.send(street())
    (objects,) = observer.wait_for(lambda: observer.seen.objects, 20.0, "detections", node)
    assert objects.stamp == stamp
    observer.wait_for(lambda: observer.values("detection"), 5.0, "diagnostics", node)


def test_diagnostics_have_names_levels_and_figures(ros, eager_model):
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model, {"diagnostics.max_processing_ms": 0.001})
    observer.wait_ready(node)
    waiting = observer.wait_for(lambda: observer.values("input"), 5.0, "diagnostics", node)
    # Or later, where the machine is slow.
    assert waiting["message"] == "waiting for the first cloud" or "no cloud since" in waiting["message"]
    driver.connect(observer, node)
    driver.stream(rate=5.0)
    observer.wait_for(
        lambda: int(observer.values("input").get("clouds_published", 0)) >= 10, 30.0, "clouds", node
    )
    names = [s.name for s in observer.seen.diagnostics[-1].status]
    assert names == ["centerpoint: input", "centerpoint: detection", "centerpoint: calibration"]
    detection = observer.values("detection")
    assert detection["precision"] == "float"
    assert re.fullmatch(r"demo@[0-9a-f]{12}", detection["model_id"])
    figures = {k: float(v) for k, v in detection.items() if k.startswith("processing_")}
    assert 0.0 < figures["processing_p50_ms"] <= figures["processing_p95_ms"]
    assert figures["processing_p95_ms"] <= figures["processing_p99_ms"] <= figures["processing_max_ms"]
    assert detection["kernels_CPUExecutionProvider"] == "1.000" and detection["convolutions_int8"] == "0"
    assert int(detection["convolutions_float"]) > 10
    assert 0.0 < float(detection["buffer_mean_ms"]) <= float(detection["buffer_max_ms"])
    assert detection["level"] == int.from_bytes(DiagnosticStatus.WARN, "little")
    assert "limit" in detection["message"]
    assert int(observer.values("calibration")["buffer_frames"]) >= 1
    assert observer.values("calibration")["state"] == "idle"

    driver.pause()
    observer.wait_for(
        lambda: observer.values("input")["level"] == 1
        and "no cloud for" in observer.values("input")["message"],
        10.0,
        "a warning that clouds ceased",
        node,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly_and_at_once(ros, eager_model, number):
    observer, driver = ros.observer(), ros.driver()
    node = ros.node(eager_model)
    observer.wait_ready(node)
    driver.connect(observer, node)
    driver.stream(rate=20.0)
    observer.wait_for(lambda: len(observer.seen.objects) >= 3, 20.0, "detections", node)
    code, seconds = node.end(number)
    assert code == 0, node.output
    assert seconds < AT_ONCE
    assert "panicked" not in node.output


def test_help_of_the_tool_lists_the_player(ros):
    tool = graph.program("centerpoint_ptq")
    said = subprocess.run([tool, "--help"], capture_output=True, text=True, env=os.environ, timeout=600)
    assert "play" in said.stdout
