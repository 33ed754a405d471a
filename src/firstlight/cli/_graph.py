"""``firstlight graph``: what a chain, or a pipeline, is made of, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from firstlight.cli._output import note

__all__ = ["graph"]


def graph(
    target: Annotated[
        str,
        typer.Argument(metavar="CHAIN.toml|MODULE:NAME", help="A chain file, or a pipeline or chain: `saxs.py:saxs`."),
    ],
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into a picture.")] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a flowchart for a Markdown page.")] = False,
) -> None:
    """Draw who reads what: sources, stages, and what these do. Nothing is run, and no service is asked."""
    from firstlight.cli._chain import load_any
    from firstlight.pipeline import as_mermaid, as_svg, as_text, graph_of

    drawn = graph_of(load_any(target))
    if svg is not None:
        svg.write_text(as_svg(drawn), encoding="utf-8")
        note(f"wrote {svg}")
    if mermaid:
        print(as_mermaid(drawn))
    elif svg is None:
        print(as_text(drawn))
