"""Write the pages that follow from the code: one for each package, and one for the command line.

They are written before Sphinx looks for pages, into files that the repository ignores, and only when they
changed, so that a second build has nothing to do.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

import firstlight

_PACKAGE_PAGE = """# {name}

```{{eval-rst}}
.. automodule:: {name}
   :members:
   :show-inheritance:
   :exclude-members: {elsewhere}
```
"""

_API_INDEX = """# Python interface

The names that most programs need come from `firstlight` itself; each stands on the page of the package that defines it.

{names}

```{{toctree}}
:maxdepth: 1
:glob:

firstlight.*
```
"""

_NO_COMMAND_LINE = """# Command line

This version has no command line yet.
"""


def _public_packages() -> list[str]:
    """Return the importable subpackages of firstlight that declare what is public."""
    found = []
    for init in sorted(Path(firstlight.__file__).parent.glob("*/__init__.py")):
        name = f"firstlight.{init.parent.name}"
        # The command line has its page, made from the commands.
        if name != "firstlight.cli" and getattr(importlib.import_module(name), "__all__", ()):
            found.append(name)
    return found


def _from_elsewhere(package: str) -> str:
    """Names that a package passes on; each is described by the package that defines it."""
    module = importlib.import_module(package)
    homes = {name: getattr(getattr(module, name), "__module__", package) or package for name in module.__all__}
    return ", ".join(
        name
        for name, home in homes.items()
        if home.startswith("firstlight") and not f"{home}.".startswith(f"{package}.")
    )


def _list_of_names() -> str:
    homes = sorted(firstlight._HOMES.items())
    return "\n".join(f"- `firstlight.{name}`, from `firstlight.{home}`" for name, home in homes)


def _command_line_page() -> str:
    """Return what ``typer utils docs`` writes about the commands, or a word that there are none."""
    if importlib.util.find_spec("firstlight.cli") is None:
        return _NO_COMMAND_LINE
    command = [sys.executable, "-m", "typer", "firstlight.cli", "utils", "docs", "--name", "firstlight"]
    # The same package as the one that Sphinx imports, installed or not.
    environment = {**os.environ, "PYTHONPATH": str(Path(firstlight.__file__).parents[1])}
    made = subprocess.run(
        [*command, "--title", "Command line"], env=environment, capture_output=True, text=True, timeout=120
    )
    if made.returncode:
        raise ExtensionError(f"{' '.join(command)} failed:\n{made.stderr}")
    return made.stdout


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_pages(app: Any) -> None:
    """Write all generated pages below the folder of the documentation, and remove those of packages that are gone."""
    reference = Path(app.srcdir) / "reference"
    packages = _public_packages()
    for stale in (reference / "api").glob("firstlight.*.md"):
        if stale.stem not in packages:
            stale.unlink()
    for name in packages:
        _write(reference / "api" / f"{name}.md", _PACKAGE_PAGE.format(name=name, elsewhere=_from_elsewhere(name)))
    _write(reference / "api" / "index.md", _API_INDEX.format(names=_list_of_names()))
    _write(reference / "command-line.md", _command_line_page())


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this to learn what the extension does."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
