"""An environment in which OM (OnDA Monitor) runs: made once, and kept in ``build/``.

    python tests/system/om_environment.py

makes it, if it is not there, and prints the path of its Python. OM is published under the GPL and needs numpy 1, so it has
an environment and processes of its own; nothing of it is imported into ours.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a program it finds its neighbours as the tests do.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from system.environments import BUILD, EnvironmentFailed, environment

__all__ = ["REQUIREMENTS", "om_python"]

#: OM 23.8.3 uses ``numpy.float_``, which numpy 2 has no more. The last two are what its source of ASAP::O imports.
REQUIREMENTS = ("ondamonitor==23.8.3", "numpy<2", "asapo_consumer==25.3.0", "seedee==0.3.2")

#: OM's wheels are for this version only; another Python that runs the tests may have it beside itself.
_VERSION = (3, 11)

_CHECK = "import asapo_consumer, om.data_retrieval_layer as layer; layer.EigerAsapoDataRetrieval"


def om_python(build: Path = BUILD) -> Path:
    """The Python of the environment; the first call takes a minute and some 600 MB of `build`.

    Raises
    ------
    EnvironmentFailed
        With the last line of what failed.
    """
    return environment("om", REQUIREMENTS, _CHECK, base=_base_python(), build=build)


def _base_python() -> str:
    if sys.version_info[:2] == _VERSION:
        return sys.executable
    return shutil.which("python{}.{}".format(*_VERSION)) or sys.executable


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{om_python()}\n")
    except EnvironmentFailed as error:
        sys.exit(str(error))
