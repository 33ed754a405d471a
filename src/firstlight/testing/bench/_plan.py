"""Which runs a claim needs, the rounds, and whether the claim holds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from firstlight.errors import ConfigurationError
from firstlight.testing.bench._limits import direct_limits, memcpy_limit, tcp_limit
from firstlight.testing.bench._paths import run_disk, run_frames, run_indexed, run_paced, run_small
from firstlight.testing.bench._peers import run_zmq, zmq_versions
from firstlight.testing.bench._sample import FULL, Machine, Sample, Setup, Sizes, describe_machine

__all__ = ["CLAIMS", "Claim", "Report", "Row", "measure"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the table.

    Parameters
    ----------
    case
        What it is chosen by.
    sample
        Which figure it is about.
    text
        What is measured, for people; `Sizes` are filled in.
    limit
        The figure, or its ratio to that of `against`, ...; None: the comparison is there to explain the others.
    at_least
        ... has to be at least so large; False: at most.
    against
        The figure that it is compared with; empty for a fixed number.
    """

    case: str
    sample: str
    text: str
    limit: float | None
    against: str = ""
    at_least: bool = True


_LOCAL = "{frame}, local producer, local consumer"
_TCP_LOCAL = "{frame}, TCP producer, local consumer"
_QUERY = "metadata query over {indexed} messages, 1 % match, field"

CLAIMS = (
    Claim("local", "local", _LOCAL, 0.5, "memcpy"),
    Claim("local", "local", _LOCAL, 2.5, "zmq-ipc"),
    Claim("tcp-local", "tcp-local", _TCP_LOCAL, 1.5, "zmq-tcp"),
    Claim("tcp-local", "tcp-local", _TCP_LOCAL, None, "tcp"),
    Claim("tcp-tcp", "tcp-tcp", "{frame}, TCP producer, TCP consumer", 1.0, "zmq-tcp"),
    Claim("small", "small", "{small} in batches, indexed, acknowledged by a group", 150_000),
    Claim(
        "latency", "latency", "{rate} x {streams} streams of {small}, p99 from send to delivery", 5.0, at_least=False
    ),
    Claim("disk", "disk", "{frame}, policy disk, until written", 0.6, "direct-write"),
    Claim("read-back", "read-back", "{frame}, evicted, read from disk", 0.6, "direct-read"),
    Claim("query", "query-scan", f"{_QUERY} not declared", 1000.0, at_least=False),
    Claim("query", "query-declared", f"{_QUERY} declared", 50.0, at_least=False),
    Claim(
        "memory", "memory", "memory of the service beyond its rings, {indexed} small messages", 200.0, at_least=False
    ),
)


@dataclass(frozen=True, slots=True)
class _Step:
    """One thing to run in a round."""

    name: str
    yields: tuple[str, ...]
    run: Callable[[Setup], Sample | Mapping[str, Sample]]
    #: What takes long and varies little is not run in every round.
    max_rounds: int = 1000


# In this order in every round, so that what is compared lies close together in time.
_STEPS = (
    _Step("memcpy", ("memcpy",), memcpy_limit),
    _Step("pyzmq ipc", ("zmq-ipc",), partial(run_zmq, transport="ipc")),
    _Step("local", ("local",), partial(run_frames, local_producer=True, local_consumer=True)),
    _Step("bare TCP", ("tcp",), tcp_limit),
    _Step("pyzmq tcp", ("zmq-tcp",), partial(run_zmq, transport="tcp")),
    _Step("TCP to local", ("tcp-local",), partial(run_frames, local_producer=False, local_consumer=True)),
    _Step("TCP to TCP", ("tcp-tcp",), partial(run_frames, local_producer=False, local_consumer=False)),
    _Step("small messages", ("small",), run_small),
    _Step("direct I/O", ("direct-write", "direct-read"), direct_limits),
    _Step("disk", ("disk", "read-back"), run_disk),
    _Step("latency", ("latency",), run_paced, max_rounds=3),
    _Step("memory and queries", ("memory", "query-scan", "query-declared"), run_indexed, max_rounds=1),
)


class Row(msgspec.Struct, frozen=True):
    """A claim and what was found: medians over the rounds, and the range of them; `reached` is None without a target."""

    case: str
    text: str
    measured: float
    lowest: float
    highest: float
    unit: str
    n_rounds: int
    against: str
    reference: float | None
    ratio: float | None
    target: str
    reached: bool | None


class Report(msgspec.Struct, frozen=True):
    """Everything that was measured; `samples` in the order of the rounds."""

    machine: Machine
    sizes: Sizes
    read_all: bool
    samples: dict[str, list[Sample]]
    rows: list[Row]


def measure(
    only: Sequence[str] = (),
    *,
    rounds: int = 5,
    sizes: Sizes = FULL,
    folder: Path | None = None,
    read_all: bool = False,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Run what the claims need, all candidates once a round, and judge the medians.

    Parameters
    ----------
    only
        Cases of `CLAIMS`; empty for all.
    folder
        Where data are written; by default the temporary folder. Its disk is the one that is measured.
    on_step
        Called before each run with its name, the round from 1, and the number of rounds that it has.

    Raises
    ------
    ConfigurationError
        If there is no such case, no round, or something is not installed.
    FirstlightError
        If anything was lost: then there is no figure.
    """
    claims = _chosen(only)
    wanted = {name for claim in claims for name in (claim.sample, claim.against) if name}
    steps = [step for step in _STEPS if wanted.intersection(step.yields)]
    if rounds < 1:
        raise ConfigurationError(f"{rounds} rounds measure nothing; take at least 1")
    samples: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory(prefix="firstlight-bench-", dir=folder) as name:
        setup = Setup(sizes, Path(name), read_all)
        machine = describe_machine(setup.folder, zmq_versions())
        for number in range(1, rounds + 1):
            for step in steps:
                if number <= step.max_rounds:
                    if on_step is not None:
                        on_step(step.name, number, min(rounds, step.max_rounds))
                    _collect(samples, step, setup)
    rows = [judge(claim, samples, sizes) for claim in claims]
    return Report(machine, sizes, read_all, samples, rows)


def _chosen(only: Iterable[str]) -> list[Claim]:
    known = list(dict.fromkeys(claim.case for claim in CLAIMS))
    if unknown := set(only) - set(known):
        raise ConfigurationError(f"there is no benchmark {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    return [claim for claim in CLAIMS if not only or claim.case in only]


def _collect(samples: dict[str, list[Sample]], step: _Step, setup: Setup) -> None:
    found = step.run(setup)
    for name, sample in ({step.yields[0]: found} if isinstance(found, Sample) else found).items():
        samples.setdefault(name, []).append(sample)


def judge(claim: Claim, samples: Mapping[str, Sequence[Sample]], sizes: Sizes) -> Row:
    """Compare the median with the claim's limit: as it is, or as a ratio of two medians over the same rounds."""
    values = [sample.value for sample in samples[claim.sample]]
    measured = statistics.median(values)
    reference = ratio = None
    if claim.against:
        reference = statistics.median(sample.value for sample in samples[claim.against])
        ratio = measured / reference
    judged = measured if ratio is None else ratio
    return Row(
        case=claim.case,
        text=claim.text.format_map(_words(sizes)),
        measured=measured,
        lowest=min(values),
        highest=max(values),
        unit=samples[claim.sample][0].unit,
        n_rounds=len(values),
        against=claim.against,
        reference=reference,
        ratio=ratio,
        target=_target(claim),
        reached=None if claim.limit is None else (judged >= claim.limit) is claim.at_least or judged == claim.limit,
    )


def _words(sizes: Sizes) -> dict[str, str]:
    return {
        "frame": f"{sizes.frame_bytes / 1e6:g} MB",
        "small": f"{sizes.small_bytes / 1e3:g} kB",
        "rate": f"{sizes.pace_hz / 1e3:g} kHz",
        "streams": str(sizes.n_pace_streams),
        "indexed": f"{sizes.n_indexed:,}".replace(",", " "),
    }


def _target(claim: Claim) -> str:
    if claim.limit is None:
        return ""
    limit = f"{claim.limit:g}" if claim.limit < 1e4 else f"{claim.limit:,.0f}".replace(",", " ")
    return f"{'≥' if claim.at_least else '≤'} {limit}{' x' if claim.against else ''}"
