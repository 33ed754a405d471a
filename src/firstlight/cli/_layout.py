"""``firstlight layout``: check where the modules of a detector are, and look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from firstlight.cli._options import Json
from firstlight.cli._output import columns, note, print_json

__all__ = ["layout"]


def layout(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The layout file, TOML or JSON.")],
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the modules into a picture.")] = None,
    as_json: Json = False,
) -> None:
    """Check a layout file, and show the image that the modules make.

    The mark in each module of the picture is the corner of its first pixel.
    """
    from firstlight.processors import Layout, layout_svg

    found = Layout.read(path)
    if svg is not None:
        svg.write_text(layout_svg(found), encoding="utf-8")
        note(f"wrote {svg}")
    rows, columns_ = found.shape
    covered = 1 - float(found.gaps.mean())
    if as_json:
        print_json({"name": found.name, "shape": [rows, columns_], "modules": len(found.modules), "covered": covered})
        return
    what = f", {found.dtype}" if found.dtype is not None else ""
    print(f"{found.name}: {rows} x {columns_} pixels{what}, {len(found.modules)} modules cover {covered:.1%}")
    lines = [
        (str(m.key), f"rows {m.origin[0]} to {m.end[0] - 1}", f"columns {m.origin[1]} to {m.end[1] - 1}", _turns(m))
        for m in found.modules
    ]
    print(columns(lines, indent="  "))


def _turns(module: object) -> str:
    from firstlight.processors import Module

    assert isinstance(module, Module)
    flip = "" if module.flip == "none" else f"{module.flip} flipped"
    turn = f"turned by {module.rotation}" if module.rotation else ""
    return ", ".join(filter(None, (flip, turn)))
