"""Fixtures for tests of the node on a real ROS 2 graph.

Every test has a domain of its own, bounded waits, and its processes end with it.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

PREFIX = Path(os.environ.get("CENTERPOINT_PTQ_PREFIX", ROOT / "install"))
if (PREFIX / "share").is_dir():
    os.environ["AMENT_PREFIX_PATH"] = f"{PREFIX}:{os.environ.get('AMENT_PREFIX_PATH', '')}"

import graph  # noqa: E402  (needs the paths above)
from peers import Driver  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def installed(tmp_path_factory):
    # Logs of the peers in this process; a HOME need not be there.
    os.environ["ROS_HOME"] = str(tmp_path_factory.mktemp("ros_home"))
    for name in ["calibration_action_server", "centerpoint_node", "centerpoint_ptq"]:
        try:
            path = graph.program(name)
        except LookupError:
            path = None
        if not path or not os.access(path, os.X_OK):
            pytest.fail(f"{name} is not installed; run `make install` and source build/env.sh")


@pytest.fixture(scope="session")
def model() -> Path:
    return graph.share() / "models" / "demo" / "model.yaml"


@pytest.fixture
def eager_model(model, tmp_path) -> Path:
    """The demo model with thresholds so low that every frame has boxes, whatever it was fed."""
    folder = tmp_path / "eager"
    shutil.copytree(model.parent, folder)
    description = yaml.safe_load(model.read_text())
    post = description["post"]
    post["score_thresholds"] = [1e-5] * len(description["classes"])
    post["max_detections"] = 40
    (folder / "model.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return folder / "model.yaml"


@pytest.fixture
def recipe(tmp_path):
    """Writes the quick recipe with fewer search steps and the given gate."""

    def write(name="recipe", **gate) -> Path:
        text = (graph.share() / "calibration" / "quick.yaml").read_text()
        settings = yaml.safe_load(text)
        for part in ["weights", "activations"]:
            settings[part]["search"]["steps"] = 10
        settings["check"] = {"warm_up": 1, "latency_runs": 3}
        settings["gate"] |= gate
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return path

    return write


class Graph:
    """Starts programs and peers in one domain and ends them all."""

    def __init__(self, folder: Path):
        domain = graph.Domain()
        self.domain = domain.number
        self.folder = folder
        self.opened = [domain]

    def start(self, name: str, command: list, **env: str) -> graph.Process:
        number = sum(isinstance(o, graph.Process) for o in self.opened)
        env.setdefault("ROS_HOME", str(self.folder / "ros_home"))
        process = graph.Process(command, self.folder / f"{number}_{name}.log", self.domain, **env)
        self.opened.append(process)
        return process

    def node(
        self, model: Path, parameters: dict | None = None, inside=lambda command: command, **options
    ) -> graph.Process:
        """The node, with files of its own below this test's folder; `inside` may wrap its command."""
        settings = {
            "model_path": str(model),
            "model_store": str(self.folder / "store"),
            "recipe_path": str(graph.share() / "calibration" / "quick.yaml"),
            "calibration.buffer_path": str(self.folder / "buffer"),
            "request_folders": str(self.folder.parent),
        } | (parameters or {})
        return self.start("node", inside(graph.node_command(settings, **options)))

    def action_server(self, **parameters) -> graph.Process:
        """Beside the node, as the launch file starts it."""
        command = [graph.program("calibration_action_server"), "--ros-args", "-r", "__node:=centerpoint_calibration"]
        settings = {"node": "centerpoint", "request_folders": str(self.folder.parent)} | parameters
        for name, value in settings.items():
            command += ["-p", f"{name}:={graph.quoted(value) if isinstance(value, str) else json.dumps(value)}"]
        return self.start("server", command)

    def player(self, bag: Path, *options) -> graph.Process:
        command = [graph.program("centerpoint_ptq"), "play", "--bag", bag, *options]
        return self.start("player", command)

    def observer(self, **options) -> graph.Observer:
        observer = graph.Observer(self.domain, **options)
        self.opened.append(observer)
        return observer

    def driver(self, **options) -> Driver:
        driver = Driver(self.domain, **options)
        self.opened.append(driver)
        return driver

    def close(self):
        for opened in reversed(self.opened):
            opened.close()


@pytest.fixture
def ros(tmp_path):
    opened = Graph(tmp_path)
    yield opened
    opened.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Shows what the programs said when a test fails."""
    report = (yield).get_result()
    opened = item.funcargs.get("ros")
    if report.failed and isinstance(opened, Graph):
        for process in opened.opened:
            if isinstance(process, graph.Process):
                report.sections.append((process.log.name, process.output[-8000:]))
