"""`centerpoint_ptq select`: a bag of chosen frames that `quantize` splits as it was chosen."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "demo"
SECOND = 1_000_000_000


def run(program, *arguments, codes=(0,)):
    result = subprocess.run(list(map(str, [program, *arguments])), capture_output=True, text=True, timeout=600)
    assert result.returncode in codes, result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def drive(program, tmp_path_factory) -> Path:
    """Eight scenes of ten seconds."""
    out = tmp_path_factory.mktemp("long") / "drive"
    run(program, "simulate", "--sensor", "os32", "--frames", 160, "--scenes", 8, "--rate", 2, "--seed", 8, "--out", out)
    return out


def stamps(bag: Path) -> dict[str, list[int]]:
    """Stamps of the frames by topic."""
    from mcap.reader import make_reader

    found: dict[str, list[int]] = {}
    for file in yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["relative_file_paths"]:
        with (bag / file).open("rb") as stream:
            for _, channel, message in make_reader(stream).iter_messages():
                found.setdefault(channel.topic, []).append(message.log_time)
    return {topic: sorted(times) for topic, times in found.items() if topic.endswith("/pointcloud")}


def used(model: Path) -> tuple[list[int], list[int]]:
    """Stamps of the frames that a model was calibrated with, and of those it was checked on."""
    frames = json.loads((model / "report.json").read_text())["frames"]["list"]
    return tuple(sorted(f["stamp"] for f in frames if f["role"] == role) for role in ("calibration", "held_out"))


def select(program, model, drive, out, choice):
    said = run(program, "select", "--model", model, "--bag", drive, "--max-frames", 16, "--choice", choice, "--out", out)
    found = stamps(out)
    calibration, held_out = (found[f"/centerpoint/{name}/pointcloud"] for name in ("calibration", "held_out"))
    assert (len(calibration), len(held_out)) == (12, 4)
    assert "12 frames to calibrate with and 4 to check with, of 160" in said
    assert min(abs(a - b) for a in calibration for b in held_out) >= 2 * SECOND
    assert "left out, since the model wants 2 sweeps: 8 frames of 1 sweep" in said, "the first of each scene"
    return calibration, held_out


def test_diverse_frames_are_from_all_over_and_the_newest_are_the_newest(program, slow_model, drive, tmp_path):
    scenes = {
        choice: {s // (10 * SECOND) for role in select(program, slow_model, drive, tmp_path / choice, choice) for s in role}
        for choice in ("diverse", "newest")
    }
    assert len(scenes["diverse"]) >= 6 and len(scenes["newest"]) <= 3, scenes


def test_a_calibration_splits_the_frames_as_they_were_chosen(program, slow_model, drive, tmp_path):
    calibration, held_out = select(program, slow_model, drive, tmp_path / "chosen", "random")
    recipe = yaml.safe_load((ROOT / "calibration" / "quick.yaml").read_text())
    for part in ("weights", "activations"):
        recipe[part]["search"]["steps"] = 5
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Whether the gate accepts it is not the question here.
    run(program, "quantize", "--model", MODEL, "--bag", tmp_path / "chosen", "--recipe", tmp_path / "recipe.yaml",
        "--out", tmp_path / "int8", "--progress", "none", codes=(0, 3))  # fmt: skip
    assert used(tmp_path / "int8") == (calibration, held_out)


def test_a_recording_can_be_checked_on_what_a_buffer_holds_out(program, slow_model, drive, bag, tmp_path):
    calibration, held_out = select(program, slow_model, drive, tmp_path / "buffer", "newest")
    command = ["quantize", "--model", MODEL, "--bag", bag, "--check-buffer", tmp_path / "buffer", "--progress", "none"]
    command += ["--out", tmp_path / "int8"]
    run(program, *command, codes=(0, 3))
    calibrated, checked = used(tmp_path / "int8")
    assert checked == held_out
    # All frames of the recording but the first, which lacks a sweep, calibrate; none of the buffer's does.
    assert len(calibrated) == 31 and not set(calibrated) & set(calibration)

    # Of the buffer's own drive, nothing near what is held out calibrates; of the buffer itself, what was to calibrate.
    for source in (drive, tmp_path / "buffer"):
        out = tmp_path / f"int8_{source.name}"
        run(program, *command[:2], slow_model, *command[3:4], source, *command[5:8], "none", "--out", out, codes=(0, 3))
        calibrated, checked = used(out)
        assert checked == held_out
        assert min(abs(a - b) for a in calibrated for b in held_out) >= 2 * SECOND
    assert calibrated == calibration

    said = run(program, *command[:2], slow_model, *command[3:6], drive, "--out", tmp_path / "none", codes=(1,))
    assert "/centerpoint/held_out/pointcloud" in said and not (tmp_path / "none").exists()


def test_a_recording_whose_frames_lack_sweeps_is_refused_unless_they_are_meant(program, drive, without_tf, tmp_path):
    command = ["select", "--model", MODEL, "--bag", without_tf(drive), "--max-frames", 8, "--out", tmp_path / "chosen"]
    said = run(program, *command, codes=(1,))
    assert "160 of 160 frames" in said and "--allow-few-sweeps" in said, said
    assert not (tmp_path / "chosen").exists()
    said = run(program, *command, "--allow-few-sweeps")
    assert "8 of the frames have fewer sweeps than the 2 that the model wants" in said, said


def test_a_folder_that_exists_is_not_written_to(program, drive, tmp_path):
    said = run(program, "select", "--model", MODEL, "--bag", drive, "--out", tmp_path, codes=(1,))
    assert "exists already" in said
