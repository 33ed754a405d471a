"""silx, as published, opens a running pipeline as if it were a file, and knows what to draw."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from firstlight.live import serve
from firstlight.pipeline import Inline, run
from system.environments import EnvironmentFailed, environment
from unit.live.views import VIEWS, items, pipeline

# The first one to run installs silx.
pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

READER = """
import json, sys
import silx.io
from silx.io.nxdata import NXdata, get_default

def drawn(group):
    data = NXdata(group)
    kinds = ("signal_is_0d", "is_curve", "is_image", "is_scatter")
    return {"valid": data.is_valid, "issues": data.issues, "kinds": [kind for kind in kinds if getattr(data, kind)]}

with silx.io.open(sys.argv[1]) as file:
    views, default = file["views"], get_default(file)
    groups = {name: views[name] for name in views if views[name].attrs.get("NX_class") == "NXdata"}
    print(json.dumps({
        "views": sorted(views),
        "default": [default.group.name, default.title, default.axes_names],
        "values": default.signal[()].tolist(),
        "part": views["map/values"][1:2].tolist(),
        "drawn": {name: drawn(group) for name, group in groups.items()},
    }))
"""


@pytest.mark.parametrize("h5pyd", ["0.24.0", "1.0.0"])
def test_silx_draws_a_running_pipeline(h5pyd: str, tmp_path: Path) -> None:
    try:
        python = environment("silx", ["silx>=2.2", f"h5pyd=={h5pyd}"], "import silx.io, h5pyd")
    except EnvironmentFailed as error:
        pytest.skip(f"silx cannot be installed here: {error}")
    running = run(pipeline(), items(), on=Inline())
    running.result()
    with serve(running) as server:
        command = [str(python), "-c", READER, f"{server.url}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert seen["views"] == sorted({name.partition("/")[0] for name in VIEWS} | {"n"})
    assert seen["default"] == ["/views/picture", "Mean frame", [None, "q (1/nm)"]]
    assert (seen["values"], seen["part"]) == ([[0, 1, 2], [3, 4, 5]], [9.0])
    drawn = seen["drawn"]
    assert {name: found["issues"] for name, found in drawn.items() if not found["valid"]} == {}
    kinds = {
        "picture": "is_image",
        "profile": "is_curve",
        "map": "is_scatter",
        "levels": "is_curve",
        "number": "signal_is_0d",
    }
    assert {name: kind for name, kind in kinds.items() if kind not in drawn[name]["kinds"]} == {}
