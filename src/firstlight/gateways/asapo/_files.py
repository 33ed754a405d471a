"""Files of messages: below the folder of a beamtime and nowhere else, whole or not at all.

Names come from strangers. Each folder on the way is opened relative to the one above and never through a symbolic link, so
that no link, not even one that is made in this moment, leads a file to another place.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from firstlight.errors import DiskFullError, StorageError
from firstlight.gateways.asapo._errors import Answer, Refusal
from firstlight.model import Buffer

if TYPE_CHECKING:
    from firstlight.gateways.asapo._beamtimes import Beamtime

__all__ = [
    "FileWriter",
    "SourceType",
    "file_path",
    "open_file",
    "open_first_file",
    "relative_path",
    "root_for",
    "storage_error",
    "write_file",
]

_MAX_NAME = 1024
#: Of an ingest mode: raw files, too, go to the core folder.
_RAW_TO_CORE = 16

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: Another name would do; these do not go away by trying again.
_NAME_AT_FAULT = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.EILSEQ}
#: File systems without hard links say one of these.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


class SourceType(StrEnum):
    """What a producer says of its data; also the first folder of its files."""

    RAW = "raw"
    PROCESSED = "processed"


def storage_error(error: OSError, what: str, path: Path) -> StorageError:
    """The error of our tree for an `OSError`; `what` completes "cannot ..."."""
    values = {"path": str(path), "code": error.errno}
    if error.errno in _FULL:
        return DiskFullError(f"cannot {what} {path}: the disk is full; free some space", **values)
    return StorageError(f"cannot {what} {path}: {error.strerror or error}", **values)


# -- names ----------------------------------------------------------------------------------------------------------


def relative_path(name: str) -> tuple[str, ...]:
    r"""The folders and the file that a client's file name means, below whatever folder they are looked for.

    >>> relative_path(r"processed\scan\image_0001.cbf")
    ('processed', 'scan', 'image_0001.cbf')

    Raises
    ------
    Refusal
        If it is absolute, or has ``.``, ``..``, nothing, or a NUL between its slashes, or has more than 1024 bytes.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise Refusal(f"file name {name[:100]!r} is not valid text; it has half of a character in it") from error
    if size > _MAX_NAME:
        raise Refusal(f"file name has {size} bytes; {_MAX_NAME} are possible")
    parts = tuple(name.replace("\\", "/").split("/"))
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise Refusal(f"file name {name!r} cannot be used; it must be relative, without '.', '..' and empty parts")
    return parts


def file_path(name: str, source_type: str) -> tuple[str, ...]:
    """The folders and the file that a producer's file name means.

    Raises
    ------
    Refusal
        As `relative_path`, and if the first folder is not that of the type of the source.
    """
    parts = relative_path(name)
    if len(parts) < 2 or parts[0] != source_type:
        raise Refusal(f"file {name} is not in {source_type} folder")
    return parts


def root_for(beamtime: Beamtime, source_type: str, mode: int) -> Path:
    """The folder below which a file of this type is written.

    Raises
    ------
    Refusal
        If there is none.
    """
    if source_type != SourceType.RAW or mode & _RAW_TO_CORE:
        return beamtime.core
    if beamtime.online is None:
        raise Refusal(
            f"beamtime {beamtime.id} has no folder at a beamline for raw files now; "
            f"ingest mode {mode | _RAW_TO_CORE} writes them to its core folder"
        )
    return beamtime.online


# -- writing --------------------------------------------------------------------------------------------------------


class FileWriter:
    """A file that comes in pieces and is seen when it is complete.

    What was begun and not committed is taken away again when the block is left.

    Examples
    --------
    ::

        with FileWriter.open(root, ("processed", "scan", "image_0001.cbf")) as file:
            for chunk in chunks:
                file.append(chunk)
            replaced = file.commit()
    """

    def __init__(self, folder: int, fd: int, temporary: str, path: Path) -> None:
        self._folder = folder
        self._fd = fd
        self._temporary = temporary
        self._path = path
        self._is_open = True

    @classmethod
    def open(cls, root: Path, parts: Sequence[str]) -> FileWriter:
        """Begin a file; folders below `root`, and `root` itself, are made when absent.

        Parameters
        ----------
        parts
            As `file_path` gives them.

        Raises
        ------
        Refusal
            If something else is in the way: a symbolic link, a file where a folder is meant.
        StorageError, DiskFullError
            If it cannot be made for another reason.
        """
        path = root.joinpath(*parts)
        try:
            folder = _open_folder(root, parts[:-1], make=True)
        except OSError as error:
            raise _write_error(error, "make the folder of", path) from error
        try:
            _check_replaceable(folder, parts[-1], path)
            # A name of its own length: the file's may be the longest possible already.
            temporary = f".{secrets.token_hex(8)}.part"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return cls(folder, os.open(temporary, flags, 0o666, dir_fd=folder), temporary, path)
        except OSError as error:
            os.close(folder)
            raise _write_error(error, "make", path) from error
        except Refusal:
            os.close(folder)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def append(self, chunk: Buffer) -> None:
        """Write what comes next.

        Raises
        ------
        StorageError, DiskFullError
            If it cannot be written; then abort.
        """
        todo = memoryview(chunk).cast("B")
        try:
            while todo:
                todo = todo[os.write(self._fd, todo) :]
        except OSError as error:
            raise storage_error(error, "write to", self._path) from error

    def commit(self) -> bool:
        """Let the file be seen; True if it replaced another one.

        Of writers of the same name that commit at the same time, each but one is told that it replaced a file.

        Raises
        ------
        Refusal, StorageError, DiskFullError
            As `open`; the file is gone then.
        """
        assert self._is_open
        try:
            try:
                os.close(self._take_fd())  # network file systems tell here what they could not write
                return self._give_name()
            except OSError as error:
                raise _write_error(error, "write to", self._path) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Take away what was written; nothing after `commit`."""
        if not self._is_open:
            return
        self._is_open = False
        if self._fd >= 0:
            os.close(self._take_fd())
        try:
            os.unlink(self._temporary, dir_fd=self._folder)
        except OSError:
            pass  # it has its own name by now; or the disk is gone, which whoever wrote has been told
        finally:
            os.close(self._folder)

    def _take_fd(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def _give_name(self) -> bool:
        name = self._path.name
        both = {"src_dir_fd": self._folder, "dst_dir_fd": self._folder}
        try:
            # Other than a rename, a link never replaces anything: it decides who of two was first.
            os.link(self._temporary, name, **both, follow_symlinks=False)
            return False
        except FileExistsError:
            replaces = True
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            replaces = _exists(self._folder, name)
        _check_replaceable(self._folder, name, self._path)
        os.rename(self._temporary, name, **both)
        return replaces


def write_file(root: Path, parts: Sequence[str], data: Buffer) -> bool:
    """Write a whole file; True if it replaced another one.

    Raises
    ------
    Refusal, StorageError, DiskFullError
        As `FileWriter`.
    """
    with FileWriter.open(root, parts) as file:
        file.append(data)
        return file.commit()


# -- reading --------------------------------------------------------------------------------------------------------


def open_file(root: Path, parts: Sequence[str]) -> int:
    """A descriptor of a file to read from; close it.

    Raises
    ------
    Refusal
        If there is no such file, or if it is something else, or behind a symbolic link; status 404.
    StorageError
        If that cannot be found out now.
    """
    try:
        folder = _open_folder(root, parts[:-1], make=False)
        try:
            # Not blocking: a pipe of this name would wait for its writer.
            fd = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in _NAME_AT_FAULT | {errno.ENOENT, errno.EACCES, errno.EPERM}:
            raise _missing(parts) from error
        raise storage_error(error, "open", root.joinpath(*parts)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _missing(parts)
    return fd


def open_first_file(roots: Sequence[Path], parts: Sequence[str]) -> int:
    """As `open_file`, in the first of some folders that has it."""
    for root in roots[:-1]:
        try:
            return open_file(root, parts)
        except Refusal:
            continue  # raw files are at the beamline until somebody moves them to the core folder
    return open_file(roots[-1], parts)


def _missing(parts: Sequence[str]) -> Refusal:
    return Refusal(f"file {'/'.join(parts)} does not exist or cannot be read", status=404, code=Answer.NO_DATA)


# -- the way to a file ----------------------------------------------------------------------------------------------


def _open_folder(root: Path, folders: Sequence[str], *, make: bool) -> int:
    """Descriptor of a folder below `root`; `root` itself may be a link, because the facility chose it."""
    if make and not root.exists():
        # Only itself: where more of the path is missing, its file system is not there.
        root.mkdir(exist_ok=True)
    fd = os.open(root, _FOLDER & ~os.O_NOFOLLOW)
    for name in folders:
        try:
            below = _open_below(fd, name, make)
        finally:
            os.close(fd)
        fd = below
    return fd


def _open_below(fd: int, name: str, make: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, dir_fd=fd)
    except FileExistsError:
        pass  # somebody else needed it, too
    return os.open(name, _FOLDER, dir_fd=fd)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _check_replaceable(folder: int, name: str, path: Path) -> None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise Refusal(f"cannot write {path}: there is something of this name that is not a file; take another name")


def _write_error(error: OSError, what: str, path: Path) -> Refusal | StorageError:
    if error.errno in _NAME_AT_FAULT:
        return Refusal(f"cannot {what} {path}: {error.strerror}; take another name")
    return storage_error(error, what, path)
