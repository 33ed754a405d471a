from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 (registers the filters with h5py)
import numpy as np
import pytest

from firstlight.errors import ConfigurationError, DataError, StorageError
from firstlight.model._arrays import ArraySpec, Compression
from firstlight.model._codecs import decode
from firstlight.writers import NexusWriter
from recordings import recording
from unit.writers.frames import START_NS, Message, full_header, images, message

PIXELS = "entry/data/data"
IDS = "entry/instrument/detector/sequence_number"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.float32, ">u2"])
@pytest.mark.parametrize("compression", list(Compression))
def test_pixels_come_back_and_blobs_are_not_touched(tmp_path: Path, compression: Compression, dtype: Any) -> None:
    frames = list(images(5, dtype=dtype))
    sent = [message(i, frame, compression) for i, frame in enumerate(frames, start=1)]
    with NexusWriter(tmp_path / "run.nxs", header={}) as writer:
        for one in sent:
            writer.write(one)
    assert writer.n_frames == 5
    assert writer.n_bytes == sum(len(one.data) for one in sent)
    with h5py.File(tmp_path / "run.nxs") as file:
        data = file[PIXELS]
        assert data.dtype == np.dtype(dtype)
        assert data.chunks == (1, 48, 70)
        assert np.array_equal(data[()], frames)
        for i, one in enumerate(sent):
            filters, stored = data.id.read_direct_chunk((i, 0, 0))
            assert filters == 0  # every declared filter was applied
            assert stored == bytes(one.data)


def test_what_is_kept_per_frame(tmp_path: Path) -> None:
    numbers = [1, 2, 5, 9]
    with NexusWriter(tmp_path / "run.nxs", header=full_header(), per_frame=("n_peaks", "score")) as writer:
        for number, frame in zip(numbers, images(4), strict=True):
            meta = {"n_peaks": number * 3} | ({"score": 0.5} if number == 5 else {})
            writer.write(message(number, frame, **meta))
    with h5py.File(tmp_path / "run.nxs") as file:
        assert file[IDS][()].tolist() == numbers
        assert file["entry/frames/message_id"] == file[IDS]
        assert file["entry/frames/timestamp"][()].tolist() == [START_NS + n * 10_000_000 for n in numbers]
        assert file["entry/frames/n_peaks"][()].tolist() == [3, 6, 15, 27]
        assert np.array_equal(file["entry/frames/score"][()], [np.nan, np.nan, 0.5, np.nan], equal_nan=True)
        # A frame that is missing turns the crystal all the same.
        omega = file["entry/sample/transformations/omega"][()]
        assert omega == pytest.approx([10.0, 10.1, 10.4, 10.8])
        assert file["entry/sample/transformations/omega_end"][()] == pytest.approx(omega + 0.1)
        assert file["entry/end_time"][()] == b"2023-11-14T22:13:20.213456Z"


def test_default_plot_is_the_stack_of_frames(tmp_path: Path) -> None:
    """Follow the ``default`` and ``signal`` attributes as a viewer does."""
    with NexusWriter(tmp_path / "run.nxs", header=full_header()) as writer:
        for number, frame in enumerate(images(3), start=1):
            writer.write(message(number, frame))
    with h5py.File(tmp_path / "run.nxs") as file:
        entry = file[file.attrs["default"]]
        group = entry[entry.attrs["default"]]
        assert group.attrs["NX_class"] == "NXdata"
        signal_data = group[group.attrs["signal"]]
        assert signal_data.shape == (3, 48, 70)
        assert len(group.attrs["axes"]) == signal_data.ndim
        assert group[group.attrs["axes"][0]].shape == (3,)
        assert file["entry/instrument/detector/data"] == signal_data


def test_frame_of_another_type_or_shape_is_refused_and_the_file_stays_valid(tmp_path: Path) -> None:
    good = list(images(2))
    with NexusWriter(tmp_path / "run.nxs", header={}) as writer:
        writer.write(message(1, good[0]))
        with pytest.raises(DataError, match=r"message 2 is uint32 .* holds uint16 of shape \(48, 70\)"):
            writer.write(message(2, good[0].astype(np.uint32)))
        with pytest.raises(DataError, match=r"\(48, 69\).*\(48, 70\)"):
            writer.write(message(3, good[0][:, :69]))
        writer.write(message(4, good[1]))
    assert (writer.n_frames, writer.n_refused) == (2, 2)
    with h5py.File(tmp_path / "run.nxs") as file:
        assert np.array_equal(file[PIXELS][()], good)
        assert file[IDS][()].tolist() == [1, 4]


@pytest.mark.parametrize("compression", list(Compression))
def test_damaged_blob_is_refused_first_or_later(tmp_path: Path, compression: Compression) -> None:
    frame = next(images(1))
    whole = message(1, frame, compression)
    blob = bytes(whole.data)
    damaged = [blob[:0], blob[:7], b"\xff" * len(blob)]
    if compression is not Compression.DEFLATE:  # a zlib stream tells its length only by being unpacked
        damaged += [blob[:-1], blob + b"\0", blob[: len(blob) // 2]]
    with NexusWriter(tmp_path / "run.nxs", header={}) as writer:
        for data in damaged:
            if data == blob or (compression is Compression.NONE and len(data) == len(blob)):
                continue
            with pytest.raises(DataError, match="message 7 was not written"):
                writer.write(Message(7, whole.spec, data))
        assert writer.n_frames == 0
        writer.write(whole)
        with pytest.raises(DataError, match="message 8 was not written"):
            writer.write(Message(8, whole.spec, damaged[0]))
    with h5py.File(tmp_path / "run.nxs") as file:
        assert np.array_equal(file[PIXELS][()], [frame])


def test_header_of_a_packed_blob_must_agree_with_its_description(tmp_path: Path) -> None:
    frame = next(images(1))
    one = message(1, frame)
    taller = ArraySpec(frame.dtype, (frame.shape[0] + 1, frame.shape[1]), Compression.BSLZ4)
    with NexusWriter(tmp_path / "run.nxs", header={}) as writer, pytest.raises(DataError, match="its header says"):
        writer.write(Message(1, taller, one.data))


def test_other_compression_is_packed_anew_and_counted(tmp_path: Path) -> None:
    frames = list(images(4))
    kinds = [Compression.BSLZ4, Compression.NONE, Compression.LZ4, Compression.BSLZ4]
    with NexusWriter(tmp_path / "run.nxs", header={}) as writer:
        for number, (frame, kind) in enumerate(zip(frames, kinds, strict=True), start=1):
            writer.write(message(number, frame, kind))
    assert (writer.n_frames, writer.n_reencoded) == (4, 2)
    with h5py.File(tmp_path / "run.nxs") as file:
        assert np.array_equal(file[PIXELS][()], frames)
        spec = ArraySpec(frames[0].dtype, frames[0].shape, Compression.BSLZ4)
        for i in range(4):
            assert np.array_equal(decode(file[PIXELS].id.read_direct_chunk((i, 0, 0))[1], spec), frames[i])


def test_message_that_comes_twice_is_written_once(tmp_path: Path) -> None:
    frames = list(images(3))
    with NexusWriter(tmp_path / "run.nxs", header={}) as writer:
        for number in (1, 2, 1, 3, 3):
            writer.write(message(number, frames[number - 1]))
    assert (writer.n_frames, writer.n_duplicates) == (3, 2)
    with h5py.File(tmp_path / "run.nxs") as file:
        assert np.array_equal(file[PIXELS][()], frames)


def test_run_without_frames_is_a_valid_file(tmp_path: Path) -> None:
    with NexusWriter(tmp_path / "run.nxs", header=full_header(), per_frame=("n_peaks",)):
        pass
    with h5py.File(tmp_path / "run.nxs") as file:
        assert file["entry/definition"][()] == b"NXmx"
        assert PIXELS not in file
        assert "signal" not in file["entry/data"].attrs
        assert (
            len(file[IDS]) == len(file["entry/frames/n_peaks"]) == len(file["entry/sample/transformations/omega"]) == 0
        )


def test_mask_and_flatfield_lie_beside_the_frames(tmp_path: Path) -> None:
    frame = next(images(1))
    bits = np.zeros(frame.shape, np.uint32)
    bits[3, 4], bits[5, 6] = 1, 0x80000000
    flat = np.linspace(0.9, 1.1, frame.size).reshape(frame.shape)
    with NexusWriter(tmp_path / "bits.nxs", header={}, mask=bits, flatfield=flat) as writer:
        writer.write(message(1, frame))
    with NexusWriter(tmp_path / "bool.nxs", header={}, mask=bits > 0) as writer:
        writer.write(message(1, frame))
        with pytest.raises(DataError):
            writer.write(message(2, frame[:5]))
    with h5py.File(tmp_path / "bits.nxs") as file:
        assert np.array_equal(file["entry/instrument/detector/pixel_mask"][()], bits)
        assert np.array_equal(file["entry/instrument/detector/flatfield"][()], flat.astype(np.float32))
    with h5py.File(tmp_path / "bool.nxs") as file:
        assert np.array_equal(file["entry/instrument/detector/pixel_mask"][()], (bits > 0) * 256)
    with (
        NexusWriter(tmp_path / "small.nxs", header={}, mask=bits[1:]) as writer,
        pytest.raises(DataError, match="mask of"),
    ):
        writer.write(message(1, frame))


def test_existing_files_are_not_replaced_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "run.nxs"
    path.write_text("precious")
    with pytest.raises(StorageError, match="exists"):
        NexusWriter(path, header={})
    assert path.read_text() == "precious"
    left = tmp_path / "cut.nxs.partial"
    left.write_text("from a crash")
    with pytest.raises(StorageError, match="cut off"):
        NexusWriter(tmp_path / "cut.nxs", header={})
    assert left.read_text() == "from a crash"
    with NexusWriter(path, header={}, overwrite=True) as writer:
        writer.write(message(1, next(images(1))))
        assert path.read_text() == "precious"  # until the new one is complete
    assert h5py.is_hdf5(path)


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.nxs"
    writer = NexusWriter(path, header={})
    writer.write(message(1, next(images(1))))
    path.write_text("somebody else")
    with pytest.raises(StorageError, match="exists"):
        writer.close()
    assert path.read_text() == "somebody else"
    with h5py.File(writer.partial_path) as file:
        assert file[PIXELS].shape[0] == 1


def test_name_without_partial_is_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "run.nxs"
    with NexusWriter(path, header={}) as writer:
        writer.write(message(1, next(images(1))))
        assert not path.exists()
        assert writer.partial_path.exists()
    assert path.exists()
    assert not writer.partial_path.exists()
    writer.close()
    with pytest.raises(StorageError, match="closed"):
        writer.write(message(2, next(images(1))))


def test_error_in_the_block_leaves_a_readable_partial_file(tmp_path: Path) -> None:
    frame = next(images(1))
    with (
        pytest.raises(ZeroDivisionError),
        NexusWriter(tmp_path / "run.nxs", header=full_header()) as writer,
    ):
        writer.write(message(1, frame))
        raise ZeroDivisionError
    assert not (tmp_path / "run.nxs").exists()
    with h5py.File(writer.partial_path) as file:
        assert np.array_equal(file[PIXELS][()], [frame])
        assert file[IDS][()].tolist() == [1]
        assert "end_time" not in file["entry"]


def test_others_read_along(tmp_path: Path) -> None:
    frames = list(images(4))
    writer = NexusWriter(tmp_path / "run.nxs", header=full_header(), flush_every_s=0)
    writer.write(message(1, frames[0]))
    with h5py.File(writer.partial_path, "r", swmr=True) as file:
        data, ids = file[PIXELS], file[IDS]
        for number in (1, 2, 3):
            ids.refresh()
            data.refresh()
            assert ids[()].tolist() == list(range(1, number + 1))
            assert np.array_equal(data[()], frames[:number])
            writer.write(message(number + 1, frames[number]))
    writer.close()


def test_frames_flushed_before_a_kill_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.nxs"
    program = [sys.executable, str(Path(__file__).with_name("frames.py")), str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for expected in (5, 10, 15):
                assert process.stdout.readline() == f"{expected}\n"
                if expected < 15:
                    process.stdin.write("on\n")
                    process.stdin.flush()
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not path.exists()
    with h5py.File(f"{path}.partial", "r", swmr=True) as file:
        assert file[IDS][()].tolist() == list(range(1, 16))
        assert file["entry/frames/n_peaks"][()].tolist() == list(range(1, 16))
        for i, frame in enumerate(images(15)):
            assert np.array_equal(file[PIXELS][i], frame)
        assert file["entry/sample/transformations/omega"].shape == (15,)


FULL_DISK = """
import resource, signal, sys
from firstlight.errors import StorageError
from firstlight.model._arrays import Compression
from firstlight.writers import NexusWriter
from unit.writers.frames import full_header, images, message

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = NexusWriter(sys.argv[1], header=full_header(), flush_every_s=0)
sent = [message(i, frame, Compression.NONE) for i, frame in enumerate(images(8, shape=(200, 500)), start=1)]
for one in sent[:5]:
    writer.write(one)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (writer.partial_path.stat().st_size + 100_000, hard))
for one in sent[5:]:
    try:
        writer.write(one)
    except StorageError as error:
        print(one.id, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
writer.close()
"""


def test_full_disk_ends_the_file_and_what_came_before_can_be_read(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk; it needs a process of its own.

    There is room again for the second and third frame after the limit: those must not be taken, see the writer.
    """
    path = tmp_path / "run.nxs"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:2] for line in lines] == ["6 ", "7 ", "8 "]
    assert "cannot write message 6 to" in lines[0]
    assert "takes no more frames" in lines[1]
    with h5py.File(path) as file:
        assert np.array_equal(file[PIXELS][()], list(images(8, shape=(200, 500)))[:5])
        assert file[IDS][()].tolist() == [1, 2, 3, 4, 5]


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot create"):
        NexusWriter(tmp_path / "nowhere" / "run.nxs", header={})


@pytest.mark.parametrize("names", ["n_peaks", ("a/b",), ("",), ("timestamp",), ("a", "a")])
def test_names_per_frame_that_cannot_be(tmp_path: Path, names: Any) -> None:
    with pytest.raises(ConfigurationError, match="per_frame"):
        NexusWriter(tmp_path / "run.nxs", header={}, per_frame=names)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pixel_mask"):
        NexusWriter(tmp_path / "run.nxs", header={}, mask=np.zeros(5))
    assert list(tmp_path.iterdir()) == []


def test_per_frame_value_that_is_no_number(tmp_path: Path) -> None:
    frame = next(images(1))
    with NexusWriter(tmp_path / "run.nxs", header={}, per_frame=("n_peaks",)) as writer:
        with pytest.raises(DataError, match="message 3: metadata 'n_peaks' is 'many'"):
            writer.write(message(3, frame, n_peaks="many"))
        writer.write(message(4, frame, n_peaks=True))
    assert writer.n_frames == 1


def test_frame_needs_rows_and_columns(tmp_path: Path) -> None:
    with NexusWriter(tmp_path / "run.nxs", header={}) as writer:
        for array in (np.zeros(5, np.uint16), np.zeros((2, 3, 4), np.uint16), np.zeros((0, 4), np.uint16)):
            with pytest.raises(DataError, match="rows and columns"):
                writer.write(message(1, array, Compression.NONE))


def test_header_is_kept_and_its_holes_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = full_header() | {"odd": {"()": np.float32(2.5)}, "list": {"()": np.arange(3)}}
    del header["entry"]["instrument"]["detector"]["distance"]
    header["entry"]["instrument"]["detector"]["beam_center_x"] = {"()": "left"}
    header["entry"]["instrument"]["detector"]["count_time"]["@units"] = "fortnights"
    header["entry"]["instrument"]["detector"]["x_pixel_size"]["()"] = 0
    with caplog.at_level(logging.WARNING), NexusWriter(tmp_path / "run.nxs", header=header) as writer:
        writer.write(message(1, next(images(1))))
    assert [line.partition(":")[0].rpartition("/")[2] for line in writer.unknown] == [
        "distance",
        "beam_center_x",
        "x_pixel_size",
        "count_time",
        "omega_vector",
    ]
    assert "fortnights" in caplog.text
    with h5py.File(tmp_path / "run.nxs") as file:
        assert [line.decode() for line in file["entry/firstlight/unknown"][()]] == list(writer.unknown)
        kept = json.loads(file["entry/firstlight/stream_header"][()])
        assert kept["odd"]["()"] == 2.5
        assert kept["list"]["()"] == [0, 1, 2]
        detector = file["entry/instrument/detector"]
        assert "distance" not in detector
        assert "count_time" not in detector
        assert np.isnan(detector["transformations/det_z"][()])
        assert np.isnan(detector["module/fast_pixel_direction"][()])
        assert np.isnan(detector["module/module_offset"].attrs["offset"][0])
        assert detector["module/module_offset"].attrs["offset"][1] == pytest.approx(20.5 * 100e-6)


def test_start_time_comes_from_the_first_frame_if_the_header_has_none(tmp_path: Path) -> None:
    for name, start in (("none", None), ("bad", "yesterday")):
        header = {} if start is None else {"entry": {"start_time": {"()": start}}}
        with NexusWriter(tmp_path / name, header=header) as writer:
            writer.write(message(1, next(images(1))))
        with h5py.File(tmp_path / name) as file:
            assert file["entry/start_time"][()] == b"2023-11-14T22:13:20.133456Z"


def test_blocks_of_a_real_detector_go_into_the_file_as_they_came(tmp_path: Path) -> None:
    """Chunks that a DECTRIS file writer stored are the bytes that its stream sends."""
    n_files = 0
    for source in sorted(recording("eiger_hdf5").glob("*_data_*.h5")):
        with h5py.File(source) as file:
            data = file["entry/data/data"]
            kinds = {str(Compression.LZ4.value): Compression.LZ4, str(Compression.BSLZ4.value): Compression.BSLZ4}
            compression = next((kinds[name] for name in data._filters if name in kinds), None)
            if compression is None or data.chunks[0] != 1:
                continue
            spec = ArraySpec(data.dtype, data.shape[1:], compression)
            blobs = [data.id.read_direct_chunk((i, 0, 0))[1] for i in range(len(data))]
            expected = data[()]
        target = tmp_path / source.name
        with NexusWriter(target, header={}) as writer:
            for number, blob in enumerate(blobs, start=1):
                writer.write(Message(number, spec, blob))
        with h5py.File(target) as file:
            assert np.array_equal(file[PIXELS][()], expected)
            assert [file[PIXELS].id.read_direct_chunk((i, 0, 0))[1] for i in range(len(blobs))] == blobs
        n_files += 1
    assert n_files >= 2
