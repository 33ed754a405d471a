"""``firstlight bench``: how fast it is on this machine, beside what the machine and pyzmq do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli._options import Json
from firstlight.cli._output import note, print_json

if TYPE_CHECKING:
    from firstlight.testing.bench import Report

__all__ = ["bench"]


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME[,NAME]", help="Only these lines of the table; an unknown name lists all."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each candidate runs once a round; medians are shown.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Small runs, one round: a first look, no more.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Data are written here, and this disk is measured. Default: temporary."),
    ] = None,
    read_all: Annotated[
        bool, typer.Option("--read-all", help="Consumers read every byte, not only the first and the last.")
    ] = False,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a page in Markdown.")] = False,
) -> None:
    """Measure streams through memory, network and disk, beside the limits of this machine and pyzmq.

    Starts services of its own and deletes everything afterwards. Run it on an idle machine; the whole takes some
    minutes, 1 GiB of memory more than once, and 3 GB of disk.
    """
    from firstlight.testing.bench import FULL, QUICK, measure

    report = measure(
        [name for names in only or () for name in names.split(",")],
        rounds=1 if quick else rounds,
        sizes=QUICK if quick else FULL,
        folder=folder,
        read_all=read_all,
        on_step=lambda name, number, of: note(f"round {number} of {of}: {name}"),
    )
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report))
    else:
        _show(report, as_markdown)


def _show(report: Report, as_markdown: bool) -> None:
    from firstlight.testing.bench import CELLS, cells, doubts, headline, markdown

    if as_markdown:
        print(markdown(report), end="")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*CELLS, caption=headline(report.machine))
    for row in report.rows:
        table.add_row(*cells(row), style="red" if row.reached is False else "")
    Console().print(table)
    for line in doubts(report):
        note(f"to be doubted: {line}")
