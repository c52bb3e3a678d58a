#!/usr/bin/env python3
"""Runs the tests again and again, as they must not fail by chance: every second time beside other work.

    make test-repeated N=10                          # the whole of `make test`
    make test-repeated N=4 PYTEST_ARGS='-k swaps'    # of the Python tests these only

Other work is one core kept busy and another ROS graph, in another domain: a talker and a listener of clouds, and
participants that come and are killed, whose shared memory stays for a while. With `--odd` those runs also get
surroundings that few shells have. What each run said is in build/test-repeated/. Exit code 0 when none failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import graph

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "test-repeated"

TALKER = """
import rclpy, sys
from sensor_msgs.msg import PointCloud2
rclpy.init()
node = rclpy.create_node(sys.argv[1])
if sys.argv[1] == "talker":
    out = node.create_publisher(PointCloud2, "/sensing/lidar/top/pointcloud", 5)
    cloud = PointCloud2(height=1, width=62_500, point_step=16, row_step=1_000_000, data=bytes(1_000_000))
    node.create_timer(0.1, lambda: out.publish(cloud))
else:
    node.create_subscription(PointCloud2, "/sensing/lidar/top/pointcloud", lambda _: None, 5)
try:
    rclpy.spin(node)
except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
    pass
"""

ODD = {
    **{"LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "PYTHONOPTIMIZE": "2", "PYTEST_ADDOPTS": "--maxfail=1 -p no:tmpdir"},
    **{"RUST_LOG": "trace", "RUST_BACKTRACE": "full", "ROS_LOCALHOST_ONLY": "1", "ROS_NAMESPACE": "/odd"},
    **{"ROS_LOG_DIR": "/proc/nowhere", "RCUTILS_CONSOLE_OUTPUT_FORMAT": "{message}", "ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"},
}


class OtherWork:
    """A busy core and another graph, until `close`."""

    def __init__(self, domain: int, folder: Path):
        self.domain, self.folder, self.opened = domain, folder, []
        self.over = threading.Event()
        self.start("busy", "while True: pass")
        for name in ["talker", "listener"]:
            self.start(name, TALKER, name)
        self.comers = threading.Thread(target=self.come_and_go)
        self.comers.start()

    def start(self, name: str, program: str, *arguments: str) -> graph.Process:
        command = [sys.executable, "-c", program, *arguments]
        process = graph.Process(command, self.folder / f"{name}.log", self.domain)
        self.opened.append(process)
        return process

    def come_and_go(self) -> None:
        while not self.over.is_set():
            comer = self.start("comer", TALKER, "comer")
            self.over.wait(5.0)
            comer.kill()
            self.over.wait(2.0)
            comer.close()
            self.opened.remove(comer)

    def close(self) -> None:
        self.over.set()
        self.comers.join()
        for process in self.opened:
            process.close(grace=2.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--domain", type=int, default=7, help="of the other graph (default: %(default)s)")
    parser.add_argument("--odd", action="store_true", help="odd surroundings for those beside other work")
    parser.add_argument("command", nargs="+", help="what to run")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number in range(1, args.times + 1):
        beside = number % 2 == 0
        log = FOLDER / f"{number}.log"
        begin = time.monotonic()
        with contextlib.ExitStack() as stack, log.open("wb") as output:
            odd = beside and args.odd
            if beside:
                stack.enter_context(contextlib.closing(OtherWork(args.domain, FOLDER)))
            code = subprocess.run(
                args.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"ROS_DOMAIN_ID": str(args.domain)} | (ODD if odd else {}),
                preexec_fn=(lambda: (os.umask(0o077), os.nice(10))) if odd else None,
            ).returncode
        failed += code != 0
        result = "passed" if code == 0 else f"FAILED ({code}), see {log}"
        minutes = (time.monotonic() - begin) / 60
        beside = " beside other work" if beside else ""
        print(f"run {number} of {args.times}{beside}: {result}, {minutes:.1f} min", flush=True)
    print(f"{args.times - failed} of {args.times} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
