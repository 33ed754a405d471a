"""A test that is skipped without anybody's leave fails the run where CI is set; elsewhere it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

SKIPPED_INSIDE = "import pytest\n\ndef test_a():\n    pytest.skip('the moon is not full')\n\ndef test_b():\n    pass\n"
SKIPPED_WHOLE = "import pytest\npytest.skip('the moon is not full', allow_module_level=True)\n"
NO_RECORDING = "from recordings import recording\n\ndef test_a():\n    recording('x')\n\ndef test_b():\n    pass\n"
EXPECTED_FAILURE = "import pytest\n\n@pytest.mark.xfail(reason='known')\ndef test_a():\n    assert False\n"


def _run(folder: Path, source: str, *, ci: str, recordings: Path) -> subprocess.CompletedProcess[str]:
    for name in ("conftest.py", "recordings.py"):
        shutil.copy(TESTS / name, folder)
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    (folder / "test_it.py").write_text(source)
    environment = {**os.environ, "CI": ci, "FIRSTLIGHT_RECORDINGS": str(recordings)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("source", [SKIPPED_INSIDE, SKIPPED_WHOLE])
def test_a_skip_fails_the_run_in_ci_only(tmp_path: Path, source: str) -> None:
    done = _run(tmp_path, source, ci="true", recordings=tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "test_it.py" in done.stdout
    assert "the moon is not full" in done.stdout
    elsewhere = _run(tmp_path, source, ci="", recordings=tmp_path)
    assert elsewhere.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), elsewhere.stdout


def test_a_missing_recording_is_excused_only_if_there_are_none(tmp_path: Path) -> None:
    assert _run(tmp_path, NO_RECORDING, ci="true", recordings=tmp_path / "absent").returncode == pytest.ExitCode.OK
    assert _run(tmp_path, NO_RECORDING, ci="true", recordings=tmp_path).returncode == pytest.ExitCode.TESTS_FAILED


def test_an_expected_failure_is_not_a_skip(tmp_path: Path) -> None:
    assert _run(tmp_path, EXPECTED_FAILURE, ci="true", recordings=tmp_path).returncode == pytest.ExitCode.OK
