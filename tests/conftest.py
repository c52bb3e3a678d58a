"""What the Python tests of the command line share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def program() -> Path:
    """`centerpoint_ptq` as `make test` built it; CENTERPOINT_PTQ_BIN names another one."""
    named = os.environ.get("CENTERPOINT_PTQ_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = Path(named) if named else target / "release" / "centerpoint_ptq"
    if not path.is_file():
        pytest.fail(f"{path} is not there; `make build` makes it")
    return path
