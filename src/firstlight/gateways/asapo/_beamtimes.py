"""Which beamtime a beamline has, which beamline a beamtime belongs to, and where the files of a beamtime lie.

Below the folder of the gateway::

    beamlines/<beamline>/current/beamtime-metadata-*.json         what the beamline does now; written by the facility
    beamtimes/<beamline>/<year>/data|commissioning/<beamtime>     files of a beamtime: its core folder
    beamtimes/<facility>/gpfs/<beamline>/<year>/...               the same, as DESY's file systems have it
    unassigned/<beamtime>                                         files of a beamtime that nobody made a folder for

Nothing of this has to exist: on a laptop every beamtime is unassigned.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.gateways.asapo._files import storage_error

__all__ = ["AUTO", "Beamtime", "Beamtimes", "name_problem"]

#: What clients send for a name that they leave to us; the name of the beamline of a beamtime that has none.
AUTO = "auto"

_MAX_NAME = 100
#: A file of this kind has a few hundred bytes.
_MAX_METADATA = 1 << 20
_YEAR = "[0-9][0-9][0-9][0-9]"
#: Where a beamtime has both, its data are meant; of several years, the last.
_KINDS = ("commissioning", "data")


class Beamtime(NamedTuple):
    """A beamtime, and where its files go.

    Parameters
    ----------
    id
        Its name.
    beamline
        To which it belongs by what the facility wrote; ``auto`` if nobody knows.
    core
        Folder of its files.
    online
        Folder of raw files at the beamline, while this is the beamline's beamtime; None if there is none.
    """

    id: str
    beamline: str
    core: Path
    online: Path | None

    @property
    def folders(self) -> list[Path]:
        """Where its files are, in the order in which they are looked for."""
        return [self.core] if self.online is None else [self.core, self.online]


class _Metadata(NamedTuple):
    """What a beamline does now."""

    beamtime: str
    beamline: str
    core: Path


def name_problem(name: str) -> str:
    """Why this cannot name a beamtime or a beamline; empty if it can.

    Names come from strangers and become names of folders.

    >>> name_problem("11000015"), name_problem("../x")
    ('', "has a '/' or '\\\\' in it")
    """
    if not name:
        return "is empty"
    if "/" in name or "\\" in name:
        return "has a '/' or '\\' in it"
    if name.startswith("."):
        return "begins with a dot"
    if not name.isprintable():  # neither control characters nor half of a character
        return "has characters in it that cannot be printed"
    return f"is longer than {_MAX_NAME} bytes" if len(name.encode()) > _MAX_NAME else ""


class Beamtimes:
    """Looks beamtimes up in files that the facility writes; every call reads the file system.

    Parameters
    ----------
    root
        Folder of the gateway.
    beamlines, beamtimes
        Where the facility has them, if not below `root`.

    Notes
    -----
    A symbolic link is not followed to anywhere outside of these folders. Only a ``corePath`` in a metadata file may lead
    away: it is the facility that writes it.
    """

    def __init__(self, root: Path, *, beamlines: Path | None = None, beamtimes: Path | None = None) -> None:
        self._beamlines = _real(beamlines or root / "beamlines")
        self._beamtimes = _real(beamtimes or root / "beamtimes")
        self._unassigned = _real(root) / "unassigned"

    def resolve(self, beamtime: str, beamline: str) -> Beamtime:
        """The beamtime that a client means.

        Parameters
        ----------
        beamtime, beamline
            ``auto`` or nothing means: look it up.

        Raises
        ------
        Refusal
            If it cannot be known, if a name cannot be used, or if the beamtime is another beamline's; status 401.
        StorageError
            If the file system fails.
        """
        try:
            return self._resolve(_given(beamtime, "beamtime"), _given(beamline, "beamline"))
        except OSError as error:
            raise storage_error(error, "look up beamtimes in", Path(error.filename or self._beamtimes)) from error

    def _resolve(self, beamtime: str, beamline: str) -> Beamtime:
        if beamtime:
            return self._of_beamtime(beamtime, beamline)
        if not beamline:
            raise _refused("neither beamtime nor beamline is given; name one of them, the other may be 'auto'")
        current = self._current(beamline)
        if current is None:
            raise _refused(f"beamline {beamline} has no beamtime now: there is no {self._metadata_pattern(beamline)}")
        return self._beamtime(current.beamtime, current.beamline, current.core)

    def _of_beamtime(self, beamtime: str, beamline: str) -> Beamtime:
        found = dict(self._folders(beamtime)) or dict(self._with_current(beamtime, beamline))
        if not found:
            # The parent is made here, so that the first file has to make one folder only: where a whole path is missing,
            # a file system is not mounted, and must not be imitated.
            self._unassigned.mkdir(parents=True, exist_ok=True)
            # Not the beamline that was given: what nobody wrote down gives nobody a right.
            return Beamtime(beamtime, AUTO, self._unassigned / beamtime, None)
        if beamline and beamline not in found:
            raise _refused(f"beamtime {beamtime} belongs to beamline {', '.join(found)} and not to {beamline}")
        if not beamline and len(found) > 1:
            raise _refused(f"beamtime {beamtime} is at several beamlines: {', '.join(found)}; give the beamline, too")
        own = beamline or next(iter(found))
        return self._beamtime(beamtime, own, found[own])

    def _beamtime(self, beamtime: str, beamline: str, core: Path) -> Beamtime:
        return Beamtime(beamtime, beamline, core, self._online(beamtime, beamline))

    # -- folders of beamtimes ---------------------------------------------------------------------------------------

    def _folders(self, beamtime: str) -> Iterator[tuple[str, Path]]:
        """Beamlines that have a folder for it, and the folder."""
        name = glob.escape(beamtime)
        for above in ("*", "*/gpfs/*"):
            for kind in _KINDS:
                for folder in sorted(self._beamtimes.glob(f"{above}/{_YEAR}/{kind}/{name}")):
                    if folder.is_dir() and _is_inside(folder, self._beamtimes):
                        yield folder.parents[2].name, folder

    # -- what beamlines do now --------------------------------------------------------------------------------------

    def _with_current(self, beamtime: str, beamline: str) -> Iterator[tuple[str, Path]]:
        """Beamlines that say that this is their beamtime now.

        A file that cannot be read is not passed over, not even another beamline's: it may be the one that names this
        beamtime, and its files would go to a wrong place.
        """
        names = [beamline] if beamline else sorted(path.parent.name for path in self._beamlines.glob("*/current"))
        for name in names:
            current = self._current(name)
            if current is not None and current.beamtime == beamtime:
                yield current.beamline, current.core

    def _current(self, beamline: str) -> _Metadata | None:
        """What the beamline's newest metadata file says; None if it has none."""
        folder = self._beamlines / beamline / "current"
        if not _is_inside(folder, self._beamlines):
            return None
        files = [path for path in folder.glob("beamtime-metadata-*.json") if _is_inside(path, self._beamlines)]
        newest = max(files, key=_modified_ns, default=None)
        return None if newest is None else _read_metadata(newest, beamline)

    def _online(self, beamtime: str, beamline: str) -> Path | None:
        folder = self._beamlines / beamline / "current"
        if not folder.is_dir() or not _is_inside(folder, self._beamlines):
            return None
        current = self._current(beamline)
        # Raw files of a beamtime that is over must not land among those of the next users.
        return folder if current is None or current.beamtime == beamtime else None

    def _metadata_pattern(self, beamline: str) -> Path:
        return self._beamlines / beamline / "current" / "beamtime-metadata-*.json"


def _refused(text: str) -> Refusal:
    return Refusal(text, status=401, code=Answer.NOT_AUTHORIZED)


def _given(name: str, what: str) -> str:
    """The name; empty if the client leaves it to us."""
    if name in ("", AUTO):
        return ""
    problem = name_problem(name)
    if problem:
        # Cut: it is a stranger's text, of any length.
        raise _refused(f"{name[:_MAX_NAME]!r} cannot be the name of a {what}: it {problem}")
    return name


def _is_inside(path: Path, folder: Path) -> bool:
    return _real(path).is_relative_to(folder)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # other than Path.resolve it has no error of its own for a link to itself


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1  # it has just been replaced; if it is the only one, reading tells


def _read_metadata(path: Path, beamline: str) -> _Metadata:
    fields = _read_fields(path)
    values = {name: fields.get(name) for name in ("beamtimeId", "beamline", "corePath")}
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            raise _refused(f"{name} in {path} is {'missing' if value is None else 'not a text'}; correct the file")
    beamtime, stated, core = map(str, values.values())
    if stated != beamline:
        raise _refused(f"beamline in {path} is {stated!r}, but it is in the folder of {beamline}; correct the file")
    problem = name_problem(beamtime) or ("means none" if beamtime == AUTO else "")
    if problem:
        raise _refused(f"beamtimeId in {path} is {beamtime!r}, which {problem}; correct the file")
    if not Path(core).is_absolute() or "\0" in core:
        raise _refused(f"corePath in {path} is {core!r}, which is not an absolute path; correct the file")
    return _Metadata(beamtime, stated, Path(core))


def _read_fields(path: Path) -> dict[str, object]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _refused(f"{path} is not a file; beamtime metadata are expected there")
        with open(path, "rb") as file:
            text = file.read(_MAX_METADATA + 1)
    except OSError as error:
        raise _refused(f"cannot read {path}: {error.strerror}") from error
    if len(text) > _MAX_METADATA:
        raise _refused(f"{path} is larger than {_MAX_METADATA} bytes; these are no beamtime metadata")
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise _refused(f"{path} is not a JSON object: {error}") from error
