"""Frames of a stream into one NeXus file (NXmx), the compressed blobs as they came."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

from firstlight.errors import ConfigurationError, DataError, DiskFullError, StorageError
from firstlight.model import ArraySpec, Compression, Ranges, decode, encode
from firstlight.writers._blobs import check_blob
from firstlight.writers._nxmx import Layout, add_module, add_start_time, iso_time, write_layout

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Frame", "NexusWriter"]

logger = logging.getLogger(__name__)

_DETECTOR = "entry/instrument/detector"
_FRAMES = "entry/frames"
#: Names that the writer itself uses beside the per-frame numbers of the caller.
_TAKEN = frozenset({"message_id", "timestamp"})


class Frame(Protocol):
    """What the writer needs of a message."""

    @property
    def id(self) -> int:
        """Number in the stream, from 1."""

    @property
    def spec(self) -> ArraySpec:
        """Type, shape and packing of `data`."""

    @property
    def data(self) -> Buffer:
        """The blob."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """Metadata."""

    @property
    def timestamp_ns(self) -> int:
        """Time of the data, ns since 1970 UTC; 0 if unknown."""


class NexusWriter:
    """Writes the frames of one stream into one NXmx file, without unpacking them.

    >>> with NexusWriter("lysozyme_0001.nxs", header=header, per_frame=("n_peaks",)) as file:  # doctest: +SKIP
    ...     for message in beam.consume("eiger", stream="lysozyme_0001", group="writer"):
    ...         file.write(message)

    The file is ``<path>.partial`` until `close` renames it, so a name without that ending is a complete file. From the
    first frame on, others may read along (HDF5 *single writer, multiple readers*): ``h5py.File(name, "r", swmr=True)``.
    A file left behind by a crash is opened in the same way, and holds every frame up to the last flush.

    Where things are::

        entry/data/data                              the frames (n, rows, columns), in the order of writing
        entry/instrument/detector/data               the same dataset
        entry/instrument/detector/sequence_number    (n,) int64, id of the message that each frame was
        entry/frames/message_id, timestamp           the same ids; (n,) int64, ns since 1970 UTC
        entry/frames/<name>                          (n,) float64, one for each of `per_frame`; NaN where not given
        entry/sample/transformations/omega           (n,) deg, if the header says that it moves: frame number = id
        entry/firstlight/unknown                     what the header did not say, and what follows from that
        entry/firstlight/stream_header               the header, JSON

    Frames that are missing in the stream leave no hole; the ids tell. A message that comes twice is written once.
    A run without frames gives a valid file without ``data``, because nobody said what shape they would have had.

    Parameters
    ----------
    path
        File to be written. ``.nxs`` or ``.h5`` are usual.
    header
        Nested mapping shaped like NeXus (``firstlight.model._header``); everything in it is optional.
    mask : (rows, columns), optional
        Pixel mask; bits as NXdetector defines them, or true for pixels to ignore.
    flatfield : (rows, columns), optional
        Kept beside the frames, not applied.
    per_frame
        Names of numbers in the metadata of the messages, kept per frame.
    overwrite
        Replace a file that is there, or left from a crash. Otherwise that is an error.
    flush_every_s
        After so many seconds the next write makes everything visible to readers, and safe against a crash of this
        process. Who waits for messages calls `flush`.
    swmr
        False for file systems that do not allow reading along (NFS, SMB); then a crash may cost the file.

    Raises
    ------
    ConfigurationError
        If an argument cannot be used.
    StorageError
        If the file exists or cannot be created.

    Attributes
    ----------
    n_frames
        Frames in the file.
    n_bytes
        Their compressed size.
    n_duplicates
        Messages that came again and were left out.
    n_refused
        Messages that were an error.
    n_reencoded
        Frames that came with another compression than the first one and were packed anew.
    unknown
        What the header did not say.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        header: Mapping[str, Any],
        mask: npt.ArrayLike | None = None,
        flatfield: npt.ArrayLike | None = None,
        per_frame: Sequence[str] = (),
        overwrite: bool = False,
        flush_every_s: float = 1.0,
        swmr: bool = True,
    ) -> None:
        self.path = Path(path)
        self.partial_path = self.path.with_name(self.path.name + ".partial")
        self.n_frames = self.n_bytes = self.n_duplicates = self.n_refused = self.n_reencoded = 0
        self._per_frame = _checked_names(per_frame)
        self._corrections = {"mask": mask, "flatfield": flatfield}
        self._overwrite, self._flush_every_s, self._swmr = overwrite, flush_every_s, swmr
        self._spec: ArraySpec | None = None
        self._data: Any = None
        self._written = Ranges()
        self._last_timestamp_ns = 0
        self._failure: str | None = None
        self._check_absent()
        with self._storage_errors("create"):
            self._file = h5py.File(self.partial_path, "w" if overwrite else "w-", libver="latest")
        with self._remove_on_error():
            self._layout = write_layout(self._file, header, mask=mask, flatfield=flatfield)
            self._columns = _make_columns(self._file, self._layout, self._per_frame)
        self._flushed_at = time.monotonic()
        if self.unknown:
            logger.warning("%s: the stream header is incomplete: %s", self.path, "; ".join(self.unknown))

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(self._layout.unknown)

    @property
    def closed(self) -> bool:
        """Whether nothing more can be written."""
        return not self._file

    def write(self, message: Frame) -> None:
        """Append one frame.

        The first one decides on type, shape and compression of all. A frame that is refused leaves the file as it was.

        Raises
        ------
        DataError
            If type or shape differ from the first frame, the blob is not what its description says, or a value for
            `per_frame` is no number.
        DiskFullError, StorageError
            If it cannot be written. The writer takes no more frames then; `close` keeps what came before.
        """
        self._check_open()
        self._check_sound()
        if message.id in self._written:
            self.n_duplicates += 1
            return
        try:
            blob, row = self._checked(message)
        except DataError:
            self.n_refused += 1
            raise
        with self._storage_errors(f"write message {message.id} to"):
            if self._data is None:
                self._begin(message)
            self._append(blob)
        self._note(message, blob, row)

    def flush(self) -> None:
        """Make everything written so far visible to readers, and safe if this process crashes (not the machine)."""
        self._check_open()
        with self._storage_errors("flush"):
            for column in self._columns:
                column.flush()
            self._file.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Complete the file and give it its name. Does nothing the second time.

        Raises
        ------
        StorageError
            If that fails, or a file of this name appeared meanwhile; the frames are in ``<path>.partial`` then.
        """
        if self.closed:
            return
        self.abort()
        with self._storage_errors("complete"):
            # A file that is read along takes no new objects, so it is opened once more.
            with h5py.File(self.partial_path, "r+", libver="latest") as file:
                end = iso_time(self._last_timestamp_ns)
                if end is not None:
                    file["entry/end_time"] = end
                if self._data is not None:
                    # A write that failed may have left the room that it was going to fill.
                    file["entry/data/data"].resize(self.n_frames, axis=0)
            if not self._overwrite:
                self._check_free(self.path)
            os.replace(self.partial_path, self.path)
        logger.info("%s: %d frames, %d bytes", self.path, self.n_frames, self.n_bytes)

    def abort(self) -> None:
        """Stop here: what was written stays readable, but under the name ``<path>.partial``."""
        if self.closed:
            return
        try:
            self.flush()
        finally:
            with self._storage_errors("close"):
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """`close`; or `abort` if an error left the block, because then the run may be incomplete."""
        if kind is None:
            self.close()
        else:
            self.abort()

    def _checked(self, message: Frame) -> tuple[memoryview, list[float]]:
        """Return the blob in the packing of the file, and one number per name of `per_frame`."""
        spec, blob = message.spec, _bytes_of(message)
        if self._spec is None:
            self._check_first(spec, message.id)
        elif (spec.dtype, spec.shape) != (self._spec.dtype, self._spec.shape):
            raise DataError(
                f"message {message.id} is {spec.dtype} of shape {spec.shape}, but {self.path} holds {self._spec.dtype} "
                f"of shape {self._spec.shape}; write it to a file of its own",
                id=message.id,
            )
        try:
            check_blob(blob, spec)
            if self._spec is not None and spec.compression is not self._spec.compression:
                blob = encode(decode(blob, spec), self._spec.compression)
        except DataError as error:
            raise DataError(f"message {message.id} was not written to {self.path}: {error}", id=message.id) from error
        return blob, [_number(message, name) for name in self._per_frame]

    def _check_first(self, spec: ArraySpec, message_id: int) -> None:
        if len(spec.shape) != 2 or 0 in spec.shape:
            raise DataError(
                f"message {message_id} has shape {spec.shape}; a detector frame has rows and columns", id=message_id
            )
        for name, array in self._corrections.items():
            if array is not None and np.shape(array) != spec.shape:
                raise DataError(
                    f"message {message_id} has shape {spec.shape}, but the {name} of {self.path} {np.shape(array)}",
                    id=message_id,
                )

    def _begin(self, message: Frame) -> None:
        """Make the dataset; from here on others can read along, and no object can be added."""
        spec = message.spec
        if "data_size" not in self._file[f"{_DETECTOR}/module"]:
            add_module(self._file, (spec.shape[0], spec.shape[1]))
        if not self._layout.has_start_time:
            add_start_time(self._file, message.timestamp_ns)
            self._layout.has_start_time = True
        data = _make_data(self._file, spec, self._layout)
        self._spec = spec
        self._file.flush()
        if self._swmr:
            self._file.swmr_mode = True
        self._data = data

    def _append(self, blob: memoryview) -> None:
        # One call per frame, 14 us: with spare room instead, a crash would leave frames of zeros that nobody measured.
        self._data.resize(self.n_frames + 1, axis=0)
        self._data.id.write_direct_chunk((self.n_frames, 0, 0), blob)

    def _note(self, message: Frame, blob: memoryview, row: list[float]) -> None:
        self.n_frames += 1
        self.n_bytes += blob.nbytes
        self.n_reencoded += self._spec is not None and message.spec.compression is not self._spec.compression
        self._last_timestamp_ns = max(self._last_timestamp_ns, message.timestamp_ns)
        self._written.add(message.id, message.id)
        axes = self._layout.axes
        angles = [angle for axis in axes for angle in (axis.begin_deg(message.id), axis.end_deg(message.id))]
        for column, value in zip(self._columns, [message.id, message.timestamp_ns, *angles, *row], strict=True):
            column.values.append(value)
        if time.monotonic() - self._flushed_at >= self._flush_every_s:
            self.flush()

    def _check_open(self) -> None:
        if self.closed:
            raise StorageError(f"{self.path} is closed; open a new writer", path=self.path)

    def _check_sound(self) -> None:
        # HDF5 2.0 remembers the place of a chunk whose write failed. A second try is reported as success and lost:
        # the chunk is missing from the index. So nothing is tried again in the same file.
        if self._failure is not None:
            raise StorageError(
                f"{self.path} takes no more frames after an earlier error; close it and go on in another file: "
                f"{self._failure}",
                path=self.path,
            )

    def _check_absent(self) -> None:
        if not self._overwrite:
            self._check_free(self.path)
            self._check_free(self.partial_path)

    def _check_free(self, path: Path) -> None:
        if not path.exists():
            return
        what = "may hold frames of a run that was cut off" if path == self.partial_path else "exists"
        raise StorageError(f"{path} {what}; move it away, choose another name or say overwrite=True", path=path)

    @contextlib.contextmanager
    def _storage_errors(self, what: str) -> Iterator[None]:
        """Turn what HDF5 and the system say into our errors."""
        try:
            yield
        except StorageError:
            raise
        except (OSError, RuntimeError) as error:
            kind = DiskFullError if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else StorageError
            self._failure = f"cannot {what} {self.partial_path}: {' '.join(str(error).split())}"
            raise kind(self._failure, path=self.partial_path) from error

    @contextlib.contextmanager
    def _remove_on_error(self) -> Iterator[None]:
        """Leave no half-made file behind when the arguments were wrong."""
        done = False
        try:
            with self._storage_errors("write the header to"):
                yield
            done = True
        finally:
            if not done:
                self._file.close()
                self.partial_path.unlink(missing_ok=True)


class _Column:
    """A dataset of one number per frame, filled at each flush."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.values: list[float] = []

    def flush(self) -> None:
        if not self.values:
            return
        n = len(self.dataset)
        self.dataset.resize(n + len(self.values), axis=0)
        self.dataset[n:] = np.array(self.values, self.dataset.dtype)
        self.values.clear()


def _make_columns(file: Any, layout: Layout, per_frame: Sequence[str]) -> list[_Column]:
    """Datasets in the order in which `NexusWriter._note` has their values."""
    frames = file.create_group(_FRAMES)
    frames.attrs["NX_class"] = "NXcollection"

    def growing(path: str, dtype: type) -> Any:
        return file.create_dataset(path, (0,), dtype, maxshape=(None,), chunks=(1024,))

    ids = growing(f"{_DETECTOR}/sequence_number", np.int64)
    frames["message_id"] = ids
    times = growing(f"{_FRAMES}/timestamp", np.int64)
    times.attrs.update({"units": "ns", "start": "1970-01-01T00:00:00Z"})
    axes = file["entry/sample"].get("transformations", {})
    angles = [axes[name] for axis in layout.axes for name in (axis.name, f"{axis.name}_end")]
    numbers = [growing(f"{_FRAMES}/{name}", np.float64) for name in per_frame]
    return [_Column(dataset) for dataset in (ids, times, *angles, *numbers)]


def _make_data(file: Any, spec: ArraySpec, layout: Layout) -> Any:
    """The dataset of the frames under both of its names, shown by default where NeXus files are shown."""
    group = file["entry/data"]
    if "data" not in group:
        group.create_dataset(
            "data", (0, *spec.shape), spec.dtype, maxshape=(None, *spec.shape), chunks=(1, *spec.shape), **_filter(spec)
        )
        group.attrs["signal"] = "data"
        file[f"{_DETECTOR}/data"] = group["data"]
        file[f"{_DETECTOR}/bit_depth_image"] = np.int64(spec.dtype.itemsize * 8)
        if layout.axes:
            name = layout.axes[0].name
            group[name] = file[f"entry/sample/transformations/{name}"]
            group.attrs["axes"] = [name, ".", "."]
            group.attrs[f"{name}_indices"] = 0
    return group["data"]


def _filter(spec: ArraySpec) -> Mapping[str, Any]:
    """Keywords of ``create_dataset`` that declare the packing of the blobs."""
    match spec.compression:
        case Compression.BSLZ4:
            return hdf5plugin.Bitshuffle(nelems=0, cname="lz4")
        case Compression.LZ4:
            return hdf5plugin.LZ4(nbytes=0)
        case Compression.DEFLATE:
            return {"compression": "gzip", "compression_opts": 4}
        case Compression.NONE:
            return {}


def _bytes_of(message: Frame) -> memoryview:
    try:
        return memoryview(message.data).cast("B")
    except TypeError as error:
        raise DataError(f"message {message.id} has no contiguous block of bytes: {error}", id=message.id) from error


def _number(message: Frame, name: str) -> float:
    value = message.meta.get(name)
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"message {message.id}: metadata {name!r} is {value!r:.80}, no number to keep per frame", id=message.id
        ) from error


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ConfigurationError(f"per_frame is a list of names; write ({names!r},)")
    for name in names:
        if not name or "/" in name or name == "." or name in _TAKEN:
            raise ConfigurationError(f"per_frame: {name!r} cannot be the name of a dataset beside {sorted(_TAKEN)}")
    if len(set(names)) != len(names):
        raise ConfigurationError(f"per_frame: a name is given twice: {list(names)}")
    return tuple(names)
