"""A ROS 2 graph under observation: programs as launch would start them, and an rclpy peer.

Used by scripts/demo.py and by the tests in tests/ros. Needs build/env.sh to be sourced.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import struct
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import rclpy
from ament_index_python.packages import get_package_prefix, get_package_share_directory
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Log, Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Float64, String
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import MarkerArray

PACKAGE = "centerpoint_ptq"

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
LOSSLESS = QoSProfile(depth=500, reliability=ReliabilityPolicy.RELIABLE)
SENSOR = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


def program(name: str) -> Path:
    """An installed program, found as `ros2 run` finds it."""
    return Path(get_package_prefix(PACKAGE)) / "lib" / PACKAGE / name


def share() -> Path:
    return Path(get_package_share_directory(PACKAGE))


def nanoseconds(stamp) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


class Domain:
    """A ROS domain for one run alone, as long as this value is open.

    Two runs on one machine in one domain would hear each other; a lock file for each domain keeps
    them apart. A process that takes one after the other gets another each time: DDS may keep an
    endpoint alive a little longer than its owner. Domains up to 101 keep clear of Linux' ephemeral
    ports.
    """

    taken = itertools.count()

    def __init__(self):
        first = os.getpid() + next(Domain.taken)
        for offset in range(100):
            self.number = (first + offset) % 100 + 1
            path = Path(tempfile.gettempdir()) / f"centerpoint_ptq_domain_{self.number}.lock"
            try:
                self.file = path.open("w")
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                continue  # taken, or another user's
        raise RuntimeError("all ROS domains are taken by other runs on this machine")

    def close(self) -> None:
        self.file.close()
        sweep_shared_memory()


def sweep_shared_memory(folder: Path = Path("/dev/shm")) -> int:
    """Removes the shared memory of Fast DDS that nobody holds any more; returns the bytes freed.

    A participant that is killed leaves its segment, 70 MB with config/fastdds.xml, and nobody else
    removes it. Whoever uses a segment or a port holds a lock on the file `<name>_el` or `<name>_sl`
    beside it, so what is in use stays. `fastdds shm clean` of a full ROS 2 does the same.
    """
    freed = 0
    for path in folder.glob("fastrtps_*"):
        if path.name.endswith(("_el", "_sl")):
            continue
        locks = [p for suffix in ("_el", "_sl") if (p := Path(f"{path}{suffix}")).exists()]
        semaphore = folder / f"sem.{path.name}_mutex"
        try:
            with contextlib.ExitStack() as held:
                for lock in locks:
                    fcntl.flock(held.enter_context(lock.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
                freed += path.stat().st_size
                for part in [path, semaphore, *locks]:
                    part.unlink(missing_ok=True)
        except OSError:
            continue  # in use, another user's, or gone meanwhile
    return freed


class Process:
    """A program with its output in a file. `close` ends it and nothing else."""

    def __init__(self, command: list, log: Path, domain: int | None = None, **env: str):
        self.command = [str(part) for part in command]
        self.log = log
        environment = os.environ | env
        if domain is not None:
            environment["ROS_DOMAIN_ID"] = str(domain)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            # A session of its own: a Ctrl-C at the terminal is ours to pass on.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout: float) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{Path(self.command[0]).name} still runs after {timeout} s\n{self.output}"
            ) from None

    def end(self, number: signal.Signals = signal.SIGINT, timeout: float = 10.0) -> tuple[int, float]:
        """Sends a signal; returns the exit code and the seconds until the end."""
        begin = time.monotonic()
        if self.running():
            self.process.send_signal(number)
        return self.wait(timeout), time.monotonic() - begin

    def close(self, grace: float = 3.0) -> None:
        if self.running():
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(grace)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def node_command(
    parameters: dict,
    *,
    params_file: Path | None = None,
    name: str = "centerpoint",
    namespace: str = "",
    input_topic: str = "/sensing/lidar/top/pointcloud",
    log_level: str = "info",
) -> list[str]:
    """The command line that the launch file amounts to."""
    command = [str(program("centerpoint_node")), "--ros-args", "--log-level", log_level]
    command += ["-r", f"__node:={name}", "-r", f"__ns:={namespace or '/'}"]
    command += ["-r", f"~/input/pointcloud:={input_topic}"]
    if params_file:
        command += ["--params-file", str(params_file)]
    for key, value in parameters.items():
        command += ["-p", f"{key}:={json.dumps(value) if not isinstance(value, str) else quoted(value)}"]
    return command


def quoted(text: str) -> str:
    """A string that YAML does not take for something else."""
    return "'" + text.replace("'", "''") + "'"


@dataclass
class Detections:
    """One Detection3DArray as it came."""

    stamp: int
    frame: str
    message: Detection3DArray
    received: float


@dataclass
class Seen:
    """Everything the observer received, in order."""

    clouds: list[int] = field(default_factory=list)
    objects: list[Detections] = field(default_factory=list)
    markers: list[MarkerArray] = field(default_factory=list)
    statuses: list[tuple[float, dict]] = field(default_factory=list)
    diagnostics: list[DiagnosticArray] = field(default_factory=list)
    log: list[Log] = field(default_factory=list)
    processing_ms: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    cycle_ms: list[float] = field(default_factory=list)


class Observer:
    """An rclpy node in a thread that records what the detector publishes and calls its services."""

    def __init__(
        self,
        domain: int,
        node: str = "/centerpoint",
        input_topic: str | None = None,
        markers: bool = True,
    ):
        self.node_name = node
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = Node("observer", context=self.context)
        self.seen = Seen()
        self.lock = threading.Condition()
        self.clients: dict[str, object] = {}

        def listen(kind, topic, qos, handle, raw=False):
            def receive(message):
                with self.lock:
                    handle(message)
                    self.lock.notify_all()

            self.node.create_subscription(kind, topic, receive, qos, raw=raw)

        seen = self.seen
        listen(
            Detection3DArray,
            f"{node}/output/objects",
            LOSSLESS,
            lambda m: seen.objects.append(
                Detections(nanoseconds(m.header.stamp), m.header.frame_id, m, time.monotonic())
            ),
        )
        if markers:
            listen(MarkerArray, f"{node}/output/markers", LOSSLESS, seen.markers.append)
        listen(
            String,
            f"{node}/status",
            QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL),
            lambda m: seen.statuses.append((time.monotonic(), json.loads(m.data))),
        )
        listen(DiagnosticArray, "/diagnostics", LOSSLESS, seen.diagnostics.append)
        listen(Log, "/rosout", LOSSLESS, seen.log.append)
        for name, record in [
            ("processing_time_ms", seen.processing_ms),
            ("pipeline_latency_ms", seen.latency_ms),
            ("cyclic_time_ms", seen.cycle_ms),
        ]:
            listen(
                Float64, f"{node}/debug/{name}", LOSSLESS, lambda m, r=record: r.append(m.data)
            )
        if input_topic:
            # As bytes: a cloud's stamp follows the four bytes that say how it is encoded.
            listen(
                PointCloud2,
                input_topic,
                SENSOR,
                lambda m: seen.clouds.append(
                    (lambda s: s[0] * 1_000_000_000 + s[1])(struct.unpack_from("<iI", m, 4))
                ),
                raw=True,
            )
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self) -> None:
        try:
            while self.context.ok():
                self.executor.spin_once(timeout_sec=0.1)
        except Exception:
            if self.context.ok():  # else: the context went, as meant
                raise

    def close(self) -> None:
        # Not destroy_node: it may crash while another context's executor waits.
        self.context.try_shutdown()
        self.thread.join(5.0)

    def forget(self) -> None:
        """Drops the record of detections, markers and times so far."""
        with self.lock:
            seen = self.seen
            for record in [seen.objects, seen.markers, seen.processing_ms, seen.latency_ms]:
                record.clear()
            seen.cycle_ms.clear()

    # --- waiting ---

    def wait_for(self, ready, timeout: float, what: str, process: Process | None = None):
        """Waits until `ready()` is true and returns its value."""
        deadline = time.monotonic() + timeout
        with self.lock:
            while True:
                if value := ready():
                    return value
                left = deadline - time.monotonic()
                if process and not process.running():
                    raise AssertionError(
                        f"the process ended ({process.process.returncode}) before {what}\n{process.output}"
                    )
                if left <= 0:
                    said = f"\n{process.output}" if process else ""
                    raise TimeoutError(f"no {what} within {timeout} s; status {self.status}{said}")
                self.lock.wait(min(left, 0.2))

    @property
    def status(self) -> dict:
        return self.seen.statuses[-1][1] if self.seen.statuses else {}

    def wait_ready(self, process: Process, timeout: float = 30.0) -> None:
        """Until the node is there, with its input connected."""
        self.wait_for(lambda: self.status, timeout, "status", process)

    def wait_status(self, ready, timeout: float, what: str, process: Process | None = None) -> dict:
        return self.wait_for(
            lambda: self.status if self.status and ready(self.status) else None, timeout, what, process
        )

    def values(self, task: str) -> dict[str, str]:
        """The newest diagnostic values of a task, with `level` and `message`."""
        for array in reversed(self.seen.diagnostics):
            for status in array.status:
                if status.name == f"{self.node_name.lstrip('/')}: {task}":
                    values = {v.key: v.value for v in status.values}
                    level = int.from_bytes(status.level, "little")
                    return values | {"level": level, "message": status.message}
        return {}

    def wait_settled(self, process: Process | None = None, timeout: float = 20.0) -> dict[str, str]:
        """Until all clouds the node has received have come to something, and none has come for a
        while; returns the diagnostic values of the input."""

        def settled():
            values = self.values("input")
            if not values or float(values.get("last_cloud_s", 0.0)) < 1.5:
                return None
            ended = int(values["clouds_published"]) + int(values["clouds_dropped"])
            return values if ended == int(values["clouds_received"]) else None

        return self.wait_for(settled, timeout, "end of all clouds", process)

    # --- asking ---

    def call(self, service: str, timeout: float = 10.0) -> Trigger.Response:
        """Calls one of the node's Trigger services."""
        return self._call(Trigger, f"{self.node_name}/{service}", Trigger.Request(), timeout)

    def ask(self, kind, service: str, timeout: float = 10.0, **fields):
        """Calls one of the node's services with a type of its own."""
        return self._call(kind, f"{self.node_name}/{service}", kind.Request(**fields), timeout)

    def trigger(self, service: str, timeout: float = 10.0) -> Trigger.Response:
        """Calls a Trigger service by its full name."""
        return self._call(Trigger, service, Trigger.Request(), timeout)

    def set_parameter(self, name: str, value, timeout: float = 10.0):
        kinds = {
            bool: ("bool_value", ParameterType.PARAMETER_BOOL),
            int: ("integer_value", ParameterType.PARAMETER_INTEGER),
            float: ("double_value", ParameterType.PARAMETER_DOUBLE),
            str: ("string_value", ParameterType.PARAMETER_STRING),
        }
        key, kind = kinds[type(value)]
        request = SetParameters.Request(
            parameters=[Parameter(name=name, value=ParameterValue(type=kind, **{key: value}))]
        )
        reply = self._call(SetParameters, f"{self.node_name}/set_parameters", request, timeout)
        return reply.results[0]

    def _call(self, kind, name: str, request, timeout: float):
        client = self.clients.get(name)
        if client is None:
            client = self.clients[name] = self.node.create_client(kind, name)
        deadline = time.monotonic() + timeout
        # Not wait_for_service: the executor spins in its own thread already.
        while not client.service_is_ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no service {name} within {timeout} s")
            time.sleep(0.02)
        future = client.call_async(request)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if not done.wait(max(deadline - time.monotonic(), 0.1)):
            raise TimeoutError(f"no answer of {name} within {timeout} s")
        return future.result()
