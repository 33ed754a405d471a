"""The import graph: what `import firstlight` costs, and that names come from where they should.

The layers themselves are checked by import-linter (see pyproject.toml).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import firstlight

PACKAGE = Path(firstlight.__file__).parent

#: Loading any of these takes longer than all the rest, or needs an extra that a reader of streams does not install.
HEAVY = (
    "cbor2",
    "h5py",
    "hdf5plugin",
    "matplotlib",
    "numba",
    "prometheus_client",
    "pydantic",
    "starlette",
    "uvicorn",
    "zmq",
)


def test_every_public_name_is_loaded_on_first_use() -> None:
    program = (
        "import firstlight\n"
        "for name in firstlight.__all__:\n"
        "    assert getattr(firstlight, name) is getattr(firstlight, name), name\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_importing_loads_nothing_heavy() -> None:
    program = (
        "import sys, firstlight\n"
        "from firstlight import FirstlightError\n"
        f"print(*sorted(set(sys.modules) & set({HEAVY!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == []


def test_lazy_names_and_declared_names_are_the_same() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == firstlight._HOMES
    assert set(firstlight.__all__) == {*declared, "__version__"}
    assert set(firstlight.__all__) <= set(dir(firstlight))


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        firstlight.Clinet  # noqa: B018


def _private_imports(path: Path) -> list[str]:
    """Return each import in `path` of a private module that belongs to another package."""
    own = path.relative_to(PACKAGE).parts[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            private = any(part.startswith("_") and not part.startswith("__") for part in parts[1:])
            if parts[0] == "firstlight" and private and parts[1] != own:
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {name}")
    return found


def test_private_modules_stay_inside_their_package() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    assert sources
    assert [line for path in sources for line in _private_imports(path)] == []


def test_every_package_says_what_is_public() -> None:
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        assert "__all__" in assigned, f"{path.relative_to(PACKAGE)} has no __all__"


def test_type_checkers_of_users_see_the_annotations() -> None:
    assert (PACKAGE / "py.typed").is_file()
