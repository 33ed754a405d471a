"""The examples and tests of dranspose 0.2.0 as its authors published them: fetched with pip, never kept in this repository."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

RELEASE = "dranspose-0.2.0"
_HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def published(request: pytest.FixtureRequest) -> Path:
    """The unpacked source distribution; it is fetched once, and stays in pytest's cache."""
    if importlib.util.find_spec("dranspose") is None:
        pytest.skip("dranspose is not installed: python -m pip install '.[test]'")
    folder = Path(request.config.cache.mkdir("dranspose"))
    found = folder / RELEASE
    if not (found / "examples").is_dir():
        fetch = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-binary",
            ":all:",
            "--no-deps",
            "--dest",
            str(folder),
        ]
        done = subprocess.run([*fetch, RELEASE.replace("-", "==")], capture_output=True, text=True, timeout=110)
        if done.returncode:
            pytest.skip(f"the source distribution of dranspose cannot be fetched: {done.stderr.strip()[-200:]}")
        with tarfile.open(folder / f"{RELEASE}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return found


@pytest.fixture
def payloads(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Their examples (``examples.dummy.worker``) and the payloads among their tests (``aux_payloads``) can be imported, here
    and in worker processes; and ours (``own_payloads``)."""
    before = set(sys.modules)
    for folder in (published, published / "tests", _HERE):
        monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    monkeypatch.chdir(published)
    yield published
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("examples", "aux_payloads"):
            del sys.modules[name]
