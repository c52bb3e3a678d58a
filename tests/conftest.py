"""What the Python tests of the command line share."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import surroundings  # noqa: E402  (needs the path above)

# Whatever the shell holds that started this.
surroundings.clean()


@pytest.fixture(scope="session")
def damage():
    """Turns one bit in the middle of a file."""

    def turn(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    return turn


@pytest.fixture(scope="session")
def program() -> Path:
    """`centerpoint_ptq` as `make test` built it; CENTERPOINT_PTQ_BIN names another one."""
    named = os.environ.get("CENTERPOINT_PTQ_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = Path(named) if named else target / "release" / "centerpoint_ptq"
    if not path.is_file():
        pytest.fail(f"{path} is not there; `make build` makes it")
    return path


@pytest.fixture(scope="session")
def bag(program, tmp_path_factory) -> Path:
    """A short simulated drive."""
    out = tmp_path_factory.mktemp("bag") / "drive"
    command = [program, "simulate", "--sensor", "os32", "--frames", "32", "--seed", "5", "--out", out]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def quantized(program, bag, tmp_path_factory):
    """The demo model as INT8, what was said on the way, and the exit code."""
    out = tmp_path_factory.mktemp("model") / "int8"
    command = [program, "quantize", "--model", ROOT / "models" / "demo", "--bag", bag, "--out", out]
    command += ["--recipe", ROOT / "calibration" / "quick.yaml", "--progress", "json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    # A model that sees nothing on this drive is refused by the gate (3), but written.
    assert result.returncode in (0, 3), result.stderr
    return out, [json.loads(line) for line in result.stdout.splitlines()], result.returncode


@pytest.fixture
def without_tf(tmp_path):
    """A copy of a bag without any tf."""
    from mcap.reader import make_reader
    from mcap.writer import Writer

    def make(bag: Path) -> Path:
        out = tmp_path / "without_tf.mcap"
        (source,) = bag.glob("*.mcap")
        with source.open("rb") as read, out.open("wb") as write:
            writer = Writer(write)
            writer.start(profile="ros2", library="test")
            channels = {}
            for schema, channel, message in make_reader(read).iter_messages():
                if channel.topic.startswith("/tf"):
                    continue
                if channel.topic not in channels:
                    of = writer.register_schema(schema.name, schema.encoding, schema.data)
                    channels[channel.topic] = writer.register_channel(channel.topic, channel.message_encoding, of)
                writer.add_message(channels[channel.topic], message.log_time, message.data, message.publish_time)
            writer.finish()
        return out

    return make


@pytest.fixture
def variants(quantized, tmp_path):
    """Folders of models with the same layers and other descriptions, so other content, all of them accepted."""
    made, _, _ = quantized
    report = json.loads((made / "report.json").read_text())
    report["check"]["verdict"] = {"accepted": True, "reasons": []}

    def make(count):
        folders = []
        for i in range(count):
            folder = tmp_path / f"variant_{i}"
            shutil.copytree(made, folder)
            (folder / "model.yaml").write_text((made / "model.yaml").read_text() + f"# {i}\n")
            report["recipe"]["check"]["latency_runs"] = i + 1
            (folder / "report.json").write_text(json.dumps(report))
            folders.append(folder)
        return folders

    return make


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory) -> Path:
    """The demo model as if it were trained on sweeps half a second apart: for drives that are long and have few frames."""
    folder = tmp_path_factory.mktemp("slow") / "demo"
    shutil.copytree(ROOT / "models" / "demo", folder)
    description = folder / "model.yaml"
    text = description.read_text()
    assert "sweep_period: 0.1\n" in text
    description.write_text(text.replace("sweep_period: 0.1\n", "sweep_period: 0.5\n"))
    return folder
