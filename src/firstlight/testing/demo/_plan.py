"""What a demonstration is going to do: options checked and filled in, and the folder that it writes into."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from firstlight.errors import ConfigurationError, DiskFullError, FirstlightError, StorageError
from firstlight.settings import parse_size
from firstlight.testing._eiger import EIGER_SHAPES
from firstlight.testing.demo._names import PROCESSES, SOURCE

__all__ = ["Output", "Plan", "make_plan"]

PixelType: TypeAlias = Literal["uint16", "uint32"]

#: Frames per second that two slow cores keep up with, and memory of the service; by size of the detector.
_RATES_HZ = {"500K": 60.0, "1M": 50.0, "4M": 20.0, "9M": 6.0, "16M": 4.0}
_MEMORY = {"9M": "1GiB", "16M": "1536MiB"}
_USUAL_MEMORY = "768MiB"
_USUAL_DURATION_S = 24.0
_RECORDING_HZ = 20.0
#: A simulated frame packs to 0.33 bytes per pixel, whatever its type.
_BYTES_PER_PIXEL = 0.35
#: Journal, results, index and the picture.
_OTHER_BYTES = 200_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """One demonstration; made by `make_plan`.

    Parameters
    ----------
    out
        Folder for everything that is written.
    size, shape, dtype
        Of the simulated detector.
    n_frames
        Images; 0 with a recording, which has its own number.
    rate_hz
        Frames per second; 0 is as fast as analysis follows.
    hit_fraction
        Part of the simulated frames that show a crystal.
    n_workers
        Processes that look for peaks.
    memory
        Of the service, for messages, such as ``"768MiB"``.
    recording
        Is sent instead of simulated frames.
    all_frames
        Write every frame into the NeXus file, not only hits.
    seed
        Of everything random.
    """

    out: Path
    size: str
    dtype: PixelType
    n_frames: int
    rate_hz: float
    hit_fraction: float
    n_workers: int
    memory: str
    recording: Path | None
    all_frames: bool
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        return EIGER_SHAPES[self.size]

    @property
    def n_distinct(self) -> int:
        """Different simulated frames; they are repeated. Fewer of the large ones, which take longer to make."""
        return min(self.n_frames, 32 if math.prod(self.shape) < 5_000_000 else 16)

    @property
    def detector(self) -> str:
        """How people call it."""
        return f"EIGER {self.size}, {self.dtype}" if self.recording is None else self.recording.name

    @property
    def disk_bytes(self) -> int:
        """About so much is written, by the service and into the NeXus file."""
        if self.recording is not None:
            return 2 * self.recording.stat().st_size + _OTHER_BYTES
        written = 1.0 if self.all_frames else self.hit_fraction
        return int(2 * written * self.n_frames * math.prod(self.shape) * _BYTES_PER_PIXEL) + _OTHER_BYTES


def make_plan(
    out: Path,
    *,
    size: str | None = None,
    dtype: PixelType | None = None,
    n_frames: int | None = None,
    rate_hz: float | None = None,
    hit_fraction: float | None = None,
    n_workers: int = 2,
    memory: str | None = None,
    recording: Path | None = None,
    all_frames: bool = False,
    seed: int = 0,
) -> Plan:
    """Check the options and fill in those that were not given.

    Raises
    ------
    ConfigurationError
        If an option makes no sense, or does not go together with a recording.
    FirstlightError
        If the recording cannot be read.
    """
    if recording is not None:
        _check_recording(recording, {"size": size, "dtype": dtype, "frames": n_frames, "hits": hit_fraction})
    size = size or "4M"
    if size not in EIGER_SHAPES:
        raise ConfigurationError(
            f"there is no EIGER of size {size!r}; choose from {', '.join(EIGER_SHAPES)}", size=size
        )
    memory = memory or _MEMORY.get(size, _USUAL_MEMORY)
    _check_memory(memory)
    rate = rate_hz if rate_hz is not None else _RECORDING_HZ if recording is not None else _RATES_HZ[size]
    frames = n_frames if n_frames is not None else round((rate or _RATES_HZ[size]) * _USUAL_DURATION_S)
    hits = 0.3 if hit_fraction is None else hit_fraction
    for name, value, low, high in (
        ("frames", frames, 1, 1_000_000), ("rate", rate, 0, 100_000),
        ("hits", hits, 0, 1), ("workers", n_workers, 1, 256),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ConfigurationError(
                f"{name} is {value:g}; it must lie between {low} and {high}", name=name, value=value
            )
    return Plan(
        out.absolute(), size, dtype or "uint16", 0 if recording is not None else frames, rate, hits, n_workers, memory,
        recording, all_frames or recording is not None, seed,
    )  # fmt: skip


def _check_recording(path: Path, of_the_simulation: dict[str, object]) -> None:
    for name, value in of_the_simulation.items():
        if value is not None:
            raise ConfigurationError(f"a recording has its own {name}; leave --{name} out", option=name)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise FirstlightError(f"cannot read the recording {path}: {error.strerror}", path=str(path)) from error


def _check_memory(text: str) -> None:
    try:
        parse_size(text)
    except ValueError as error:
        raise ConfigurationError(f"memory: {error}", memory=text) from error


class Output:
    """The folder of a demonstration.

    One that an earlier demonstration left is used again; files of anything else are not touched.

    Raises
    ------
    StorageError
        If the folder cannot be used, or holds files that a demonstration would overwrite and did not write.
    DiskFullError
        If there is not enough room.
    """

    def __init__(self, plan: Plan) -> None:
        self.folder = plan.out
        self.nexus = plan.out / ("frames.nxs" if plan.all_frames else "hits.nxs")
        self.picture = plan.out / "summary.png"
        self.table = plan.out / "frames.csv"
        self.record = plan.out / "summary.json"
        self.service = plan.out / "service"
        self.settings = plan.out / "firstlight.toml"
        self._claim()
        free = shutil.disk_usage(self.folder).free
        if free < plan.disk_bytes:
            raise DiskFullError(
                f"{self.folder} has {free / 1e9:.1f} GB of free space, and about {plan.disk_bytes / 1e9:.1f} GB are "
                "needed; take fewer --frames, or another folder with --out",
                path=str(self.folder),
            )
        self.note({"state": "running"})
        self._write_settings("disk" if plan.all_frames else "keep")

    def _claim(self) -> None:
        own = [self.folder / name for name in ("hits.nxs", "frames.nxs", "hits.nxs.partial", "frames.nxs.partial")]
        own += [self.picture, self.table, self.record, self.settings, *self.logs()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = [path for path in [*own, self.service] if path.exists()]
            if there and not self._is_ours():
                raise StorageError(
                    f"{there[0]} is there already, and no demonstration wrote it; choose another folder with --out",
                    path=str(there[0]),
                )
            shutil.rmtree(self.service, ignore_errors=True)
            for path in own:
                path.unlink(missing_ok=True)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"cannot write into {self.folder}: {error.strerror}", path=str(self.folder)) from error

    def _is_ours(self) -> bool:
        try:
            found = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("program") == "firstlight demo"

    def _write_settings(self, keep: str) -> None:
        text = (
            "# Settings of the service in this demonstration; `firstlight config --help` tells of all there are.\n"
            "# keep: frames stay in memory until somebody asks for them to be kept. disk: all of them are kept.\n"
            f'[sources.{SOURCE}]\nkeep = "{keep}"\n'
        )
        self._write(self.settings, text)

    def note(self, values: dict[str, object]) -> None:
        """Write the record of this demonstration, which also tells the next one whose folder this is."""
        self._write(self.record, json.dumps({"program": "firstlight demo", **values}, indent=1) + "\n")

    def write_table(self, rows: list[tuple[object, ...]]) -> None:
        """Write the table of all frames: comma-separated, the first row has the names."""
        self._write(self.table, "".join(",".join(map(str, row)) + "\n" for row in rows))

    def _write(self, path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}", path=str(path)) from error

    def files(self) -> list[Path]:
        """What there is to look at, the most interesting first."""
        return [path for path in (self.nexus, self.picture, self.table, self.record) if path.exists()]

    def log(self, name: str) -> Path:
        """Where the log of a process goes; it stays after a failure only."""
        return self.folder / f"{name}.log"

    def logs(self) -> list[Path]:
        """Those that there are."""
        return [path for path in map(self.log, PROCESSES) if path.exists()]

    def tidy(self, *, failed: bool = False) -> None:
        """Remove what only the service needed, and logs that nobody needs."""
        shutil.rmtree(self.service, ignore_errors=True)
        self.settings.unlink(missing_ok=True)
        for path in self.logs():
            if not (failed and path.stat().st_size):
                path.unlink()
