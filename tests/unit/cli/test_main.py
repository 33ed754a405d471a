"""Exit codes, errors in one line, and what starting costs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import firstlight
from firstlight import errors
from firstlight.cli import app, main
from firstlight.cli._main import exit_code
from firstlight.errors import FirstlightError

VERBS = ["serve", "status", "ls", "info", "tail", "produce", "consume", "cursor", "delete", "inspect"]
VERBS += ["connect", "simulate", "config", "token"]
VERBS += [
    name
    for name in ("run", "set", "view", "debug", "demo", "bench")
    if importlib.util.find_spec(f"firstlight.cli._{name}")
]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("FirstlightError", 1),
        ("StorageError", 1),
        ("StreamAbortedError", 1),
        ("ConfigurationError", 2),
        ("QueryError", 2),
        ("ConnectionLostError", 3),
        ("ServiceRefusedError", 3),
        ("StreamNotFoundError", 4),
        ("MessageNotFoundError", 4),
        ("MessageEvictedError", 4),
        ("StreamTimeoutError", 5),
    ],
)
def test_exit_codes(kind: str, code: int) -> None:
    assert exit_code(getattr(errors, kind)("x")) == code


def test_every_error_has_an_exit_code_that_is_documented() -> None:
    for name in errors.__all__:
        assert exit_code(getattr(errors, name)("x")) in (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lss"], "No such command 'lss'"),
        (["ls", "--bogus"], "No such option: --bogus; `firstlight ls --help` tells how"),
        (["tail"], "Missing argument"),
        (["connect"], "Missing command; `firstlight connect --help` tells how"),
        (["tail", "cam/s", "-n", "many"], "Invalid value for '-n'"),
        (["produce", "cam/s", "x", "--ack", "maybe"], "Invalid value for '--ack'"),
        (["info", "nostream"], "'nostream' does not name a stream: write SOURCE/STREAM or BEAMTIME/SOURCE/STREAM"),
        (["produce", "cam/s", "-", "--meta", "[1]"], "--meta takes a JSON object such as"),
        (["consume", "cam/s", "--format", "npy"], "--format npy makes files: say where with --out DIR"),
        (["consume", "cam/s", "--lines", "--format", "json"], "--lines prints bytes"),
        (["cursor", "cam/s", "g", "--set", "1", "--reset"], "--set and --reset do not go together"),
        (["ls", "--url", "http://x"], "'http://x' is not the address of a service"),
        (["config", "show", "--config", "/nonexistent.toml"], "cannot read the settings in /nonexistent.toml"),
    ],
)
def test_usage_errors_are_one_line_and_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"firstlight: {expected}")
    assert err.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"firstlight {firstlight.__version__}\n"


def test_alone_it_prints_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["inspect", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err == f"firstlight: cannot open {tmp_path / 'no'}: No such file or directory\n"


def test_a_function_that_raises_instead_of_making_a_pipeline_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["run", "json:dumps", "-s", "s"]) == 2
    raised = "raised TypeError: dumps() missing 1 required positional argument: 'obj'"
    assert capsys.readouterr().err == f"firstlight: json:dumps should make a pipeline, and {raised}\n"
    path = tmp_path / "broken_factory.py"
    path.write_text("def make():\n    return 1 / 0\n")
    assert main(["run", f"{path}:make", "-s", "s"]) == 2
    err = capsys.readouterr().err
    assert f"{path}:make should make a pipeline, and raised ZeroDivisionError: division by zero" in err
    assert err.endswith(f" ({path}, line 2: return 1 / 0)\n") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("connect", "eiger2", "tcp://127.0.0.1:1"), ("simulate", "eiger"), ("demo",)])
def test_a_missing_extra_is_named_as_the_pages_install_it(arguments: tuple[str, ...]) -> None:
    # In a process of its own, in which pyzmq is not there.
    program = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'zmq' else find(name, *more)\n"
        "from firstlight.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    extra = "demo" if arguments == ("demo",) else "eiger"
    assert done.stderr.endswith(f" needs zmq: in a clone of firstlight, python -m pip install '.[{extra}]'\n")
    docs = Path(__file__).resolve().parents[3] / "docs" / "how-to"
    for page in docs.glob("*.md"):
        assert "firstlight[" not in page.read_text(encoding="utf-8"), "there is no package index that has firstlight"
    assert "'.[demo]'" in (docs / "install.md").read_text(encoding="utf-8")


def test_debug_lets_the_error_through(tmp_path: Path) -> None:
    with pytest.raises(FirstlightError, match="cannot open"):
        main(["inspect", str(tmp_path / "no"), "--debug"])


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


def test_a_bug_is_one_line_that_tells_how_to_see_more() -> None:
    program = (
        "from firstlight.cli import _status, main\n"
        "def broken(*_): raise KeyError('x')\n"
        "_status.connected = broken\n"
        "main(['status'{}])\n"
    )
    done = run_python(program.format(""))
    assert done.returncode == 1
    assert done.stderr == (
        "firstlight: internal error, KeyError: 'x'; run it again with --debug, and report what it prints\n"
    )
    assert "Traceback" in run_python(program.format(", '--debug'")).stderr


@pytest.mark.parametrize("arguments", [["--help"], ["consume", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    # Not pydantic: typer itself converts values with it.
    heavy = ("h5py", "hdf5plugin", "matplotlib", "msgspec", "numba", "numpy", "starlette", "uvicorn", "zmq")
    program = (
        "import sys\n"
        "from firstlight.cli import main\n"
        f"main({arguments!r})\n"
        f"print(*sorted(set(sys.modules) & set({heavy!r})), file=sys.stderr)\n"
    )
    done = run_python(program)
    assert done.returncode == 0
    assert done.stderr.split() == []


def test_every_verb_has_help_and_json() -> None:
    command = typer.main.get_command(app)
    assert set(VERBS) <= set(command.commands)  # type: ignore[attr-defined]
    groups = {"connect", "simulate", "config", "token"}
    verbs = [command.commands[name] for name in VERBS if name not in groups]  # type: ignore[attr-defined]
    verbs += [verb for name in groups for verb in command.commands[name].commands.values()]  # type: ignore[attr-defined]
    for verb in verbs:
        assert verb.help, verb.name
        assert any("--json" in parameter.opts for parameter in verb.params), verb.name


def test_config_show_tells_where_values_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRSTLIGHT_HTTP__PORT", "1234")
    Path("firstlight.toml").write_text('[storage]\nmemory_bytes = "2GiB"\n')
    assert main(["config", "show"]) == 0
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:3] for line in out.splitlines()}
    assert rows["storage.memory_bytes"] == ["2147483648", "firstlight.toml"]
    assert rows["http.port"] == ["1234", "FIRSTLIGHT_HTTP__PORT"]
    assert rows["server.port"] == ["8410", "default"]
    assert err == "file: firstlight.toml\n"


def test_config_show_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    assert main(["config", "show", "--json"]) == 0
    settings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    port = next(setting for setting in settings if setting["key"] == "server.port")
    assert port == {
        "key": "server.port", "value": 8410, "default": 8410, "origin": "default",
        "description": "TCP port; 0 takes a free one",
    }  # fmt: skip
