#!/usr/bin/env python3
"""What the tests and the demo see of their caller's surroundings: what is listed here, and nothing else.

A shell may hold anything: a ROS domain, `RUST_LOG`, a locale that writes 0,5 for 0.5, options for
pytest, a umask of its own. None of it may decide how a test ends. So the Makefile starts the tests as

    scripts/surroundings.py COMMAND...

which runs COMMAND with the variables named below only, and tests/conftest.py and scripts/demo.py call
`clean()` for those who start them directly. Every program that they start inherits the result. A new
variable that a test needs is added here, with the reason.

Niceness stays: what was lowered cannot be raised again. Nor does it need to: no test depends on it.
"""

from __future__ import annotations

import fnmatch
import locale
import os
import sys
import time

# Patterns of the variables that are handed on.
KEPT = [
    # Who and where.
    *["HOME", "USER", "LOGNAME", "SHELL", "TERM", "PATH", "PWD", "TMPDIR", "CI", "XDG_RUNTIME_DIR"],
    # What build/env.sh sets; a sourced ROS 2 adds to them.
    *["ROS_VERSION", "ROS_PYTHON_VERSION", "ROS_DISTRO", "ROS_HOME", "RMW_IMPLEMENTATION"],
    *["AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "IDL_PACKAGE_FILTER", "COLCON_PREFIX_PATH"],
    *["LD_LIBRARY_PATH", "PYTHONPATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE", "VIRTUAL_ENV"],
    *["ORT_DYLIB_PATH", "LIBCLANG_PATH", "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"],
    # This project's own: recordings to test on, another prefix or program, the length of long tests.
    "CENTERPOINT_PTQ_*",
    # What cargo and compilers build with: other values would build everything anew.
    *["CARGO", "CARGO_*", "RUSTUP_*", "RUSTC", "RUSTC_*", "RUSTFLAGS", "RUSTDOC*", "NEXTEST_*", "RUST_MIN_STACK"],
    *["CC", "CXX", "AR", "LD", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "PKG_CONFIG*", "BINDGEN_*", "LLVM_*"],
    *["*_proxy", "*_PROXY", "SSL_CERT_*", "SOURCE_DATE_EPOCH", "SCCACHE_*", "CCACHE_*"],
    # Which GPU there is, and which kernels NumPy's OpenBLAS takes: on some processors its own choice computes wrongly.
    *["CUDA_*", "NVIDIA_*", "OPENBLAS_*"],
]
# And what is set, whatever it was.
SET = {
    # Numbers with a point, messages in English, text in UTF-8.
    "LC_ALL": "C.UTF-8",
    "PYTHONUTF8": "1",
    # The tests use pytest's own plugins only; a sourced ROS 2 brings some that take part uninvited.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    # Nobody but this machine's nodes is heard (from Iron on).
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
}
# The domain in which the caller's own nodes are, to keep out of it.
CALLERS_DOMAIN = "CENTERPOINT_PTQ_CALLERS_DOMAIN"


def cleaned(variables: dict[str, str], keep: tuple[str, ...] = ()) -> dict[str, str]:
    """The variables that are handed on; `keep` names further patterns."""
    patterns = [*KEPT, *keep]
    left = {k: v for k, v in variables.items() if any(fnmatch.fnmatchcase(k, p) for p in patterns)}
    if domain := variables.get("ROS_DOMAIN_ID"):
        left[CALLERS_DOMAIN] = domain
    return left | {name: value for name, value in SET.items() if name not in keep}


def clean(keep: tuple[str, ...] = ()) -> None:
    """Cleans the surroundings of this process, and so of those that it starts."""
    variables = cleaned(dict(os.environ), keep)
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()
    os.umask(0o022)
    # For a Python that runs already: what it reads and what programs say is UTF-8.
    locale.setlocale(locale.LC_ALL, SET["LC_ALL"])
    # A stream that the caller closed would be the next file that is opened.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    clean()
    os.execvp(sys.argv[1], sys.argv[1:])
