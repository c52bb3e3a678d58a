"""A ROS 2 graph under observation: programs as launch would start them, and an rclpy peer.

Used by scripts/demo.py and by the tests in tests/ros. Needs build/env.sh to be sourced.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import rclpy
import surroundings
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

# The least that any wait may take, in seconds. A wait ends when what it waits for is there; its bound is
# there for what never comes, and a machine that has other work to do may take long.
PATIENCE = 120.0


def program(name: str) -> Path:
    """An installed program, found as `ros2 run` finds it."""
    return Path(get_package_prefix(PACKAGE)) / "lib" / PACKAGE / name


def share() -> Path:
    return Path(get_package_share_directory(PACKAGE))


def nanoseconds(stamp) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


class Domain:
    """A ROS domain for one run alone, as long as this value is open.

    Two runs on one machine in one domain would hear each other. A name that the kernel keeps for each
    domain, in the same namespace as its ports, keeps runs of this project apart, whoever starts them;
    domains in which anybody else's participant listens are left alone, and that of the caller's nodes.
    A process that takes one after the other gets another each time: DDS may keep an endpoint alive a
    little longer than its owner. Domains up to 101 keep clear of Linux' ephemeral ports, and people
    like small numbers.
    """

    FIRST, COUNT = 21, 81
    taken = itertools.count()

    def __init__(self):
        first = os.getpid() + next(Domain.taken)
        callers = os.environ.get(surroundings.CALLERS_DOMAIN)
        for offset in range(self.COUNT):
            self.number = (first + offset) % self.COUNT + self.FIRST
            self.lock = socket.socket(socket.AF_UNIX)
            try:
                # An abstract name: no file, and gone with its owner, however that ends.
                self.lock.bind(f"\0centerpoint_ptq_domain_{self.number}")
                if str(self.number) != callers and not inhabited(self.number):
                    return
            except OSError:
                pass  # Another run's.
            self.lock.close()
        raise RuntimeError("all ROS domains are taken by other runs on this machine")

    def close(self) -> None:
        self.lock.close()


def inhabited(domain: int) -> bool:
    """Whether a participant of any process on this machine is in a domain: the standard of DDS says on
    which UDP ports it listens, 250 for each domain."""
    for table in [Path("/proc/net/udp"), Path("/proc/net/udp6")]:
        try:
            sockets = table.read_text().splitlines()[1:]
        except OSError:
            continue  # No IPv6 here.
        if any((int(s.split()[1].rsplit(":", 1)[1], 16) - 7400) // 250 == domain for s in sockets):
            return True
    return False


class Process:
    """A program with its output in a file. `close` ends it and nothing else."""

    def __init__(self, command: list, log: Path, domain: int | None = None, **env: str):
        self.command = [str(part) for part in command]
        self.log = log
        self.shared_memory: set[Path] = set()
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

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, once it has ended."""
        try:
            return self.process.wait(max(timeout, PATIENCE))
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{Path(self.command[0]).name} still runs after {max(timeout, PATIENCE)} s\n{self.output}"
            ) from None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        self.shared_memory |= self.segments()
        if self.running():
            self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGINT, timeout: float = PATIENCE) -> tuple[int, float]:
        """Sends a signal; returns the exit code and the seconds until the end."""
        begin = time.monotonic()
        self.send(number)
        return self.wait(timeout), time.monotonic() - begin

    def kill(self) -> None:
        """Ends it as a crash would. What it leaves in shared memory goes with `close`."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def close(self, grace: float = 10.0) -> None:
        self.send(signal.SIGINT)
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
        self.free_shared_memory()

    def segments(self) -> set[Path]:
        """The segments of shared memory that Fast DDS has made for it, as long as it runs.

        Whoever makes one holds a lock on the file `<name>_el` beside it. Ports are left out:
        participants of all domains share them, and the next one takes over those of a dead one.
        """
        found = set()
        try:
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                name = os.readlink(descriptor)
                if name.startswith("/dev/shm/fastrtps_") and name.endswith("_el") and "port" not in name:
                    found.add(Path(name.removesuffix("_el")))
        except OSError:
            pass  # It has ended, or closed a file meanwhile.
        return found

    def free_shared_memory(self) -> int:
        """Removes what this process, which has ended, left in shared memory; returns the bytes freed.

        A participant that is killed leaves its segment, 70 MB with config/fastdds.xml, and nobody else
        removes it: `fastdds shm clean` of a full ROS 2 does, for all processes. Here those of others
        are not looked at.
        """
        assert not self.running()
        freed = 0
        for segment in self.shared_memory:
            with contextlib.suppress(FileNotFoundError):
                freed += segment.stat().st_size
                segment.unlink()
            Path(f"{segment}_el").unlink(missing_ok=True)
        return freed


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
        self.markers = markers
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
        # What is logged before the two have found each other comes, too.
        listen(Log, "/rosout", QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL), seen.log.append)
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
        self.context.try_shutdown()
        self.thread.join(PATIENCE)
        self.executor.shutdown()
        # Only now, and not whenever the collector comes by, in whichever thread: endpoints, threads and
        # files of every test would stay until then.
        self.node.destroy_node()

    def answered(self, stamp: int) -> bool:
        """Whether a cloud was answered, with detections and, where they are listened to, with markers."""
        marked = not self.markers or any(
            array.markers and nanoseconds(array.markers[0].header.stamp) == stamp for array in self.seen.markers
        )
        return marked and any(o.stamp == stamp for o in self.seen.objects)

    def forget(self) -> None:
        """Drops the record of detections, markers and times so far."""
        with self.lock:
            seen = self.seen
            for record in [seen.objects, seen.markers, seen.processing_ms, seen.latency_ms]:
                record.clear()
            seen.cycle_ms.clear()

    # --- waiting ---

    def wait_for(self, ready, timeout: float, what: str, process: Process | None = None):
        """Waits until `ready()` is true and returns its value. `timeout` may be more than `PATIENCE`; it is
        never less."""
        return self._wait_for(ready, max(timeout, PATIENCE), what, process)

    def comes_within(self, ready, seconds: float, process: Process | None = None) -> bool:
        """Whether `ready()` becomes true in this time: for those who do something else then."""
        try:
            self._wait_for(ready, seconds, "", process)
        except TimeoutError:
            return False
        return True

    def _wait_for(self, ready, timeout: float, what: str, process: Process | None):
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
        return self.wait_for(self.settled, timeout, "end of all clouds", process)

    def settled(self) -> dict[str, str] | None:
        values = self.values("input")
        if not values or float(values.get("last_cloud_s", 0.0)) < 1.5:
            return None
        ended = int(values["clouds_published"]) + int(values["clouds_dropped"])
        return values if ended == int(values["clouds_received"]) else None

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
        timeout = max(timeout, PATIENCE)
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
