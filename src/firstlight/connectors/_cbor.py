"""Read CBOR without copying what is large, and without trusting it.

`cbor2` copies every byte string (measured on two cores: 1.3 to 2.4 ms for a frame of 4 MB, most of it page
faults). A detector message is a few dozen small items around one large string, so the large strings are lifted
out first, as views of the received buffer, and cbor2 decodes what is left: a few hundred bytes.

The walk that finds them also bounds depth, number of items and every length before memory is taken, and removes
tags that the caller did not ask for; so none of the types with a surprising cost (regular expressions,
big fractions, shared references) is ever built. Format: RFC 8949.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection
from typing import Any, NamedTuple

import cbor2

from firstlight.errors import DataError

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "item_end", "loads"]

#: Containers and tags within each other. DECTRIS messages need six.
MAX_DEPTH = 48

#: Items in one message; a start message has about a hundred, plus what people write into user_data.
MAX_ITEMS = 200_000

# Pieces of one string of indefinite length; nobody sends detector data that way.
_MAX_CHUNKS = 1000

#: Shorter byte strings are not worth a placeholder.
_LIFT_BYTES = 4096

# Stands for a lifted string. Tags that nobody asked for are removed, so a message cannot smuggle this one in.
_PLACEHOLDER_TAG = 0x66697273746C6974
_PLACEHOLDER_HEAD = b"\xdb" + _PLACEHOLDER_TAG.to_bytes(8, "big") + b"\x1a"

_BREAK = 0xFF
_UNTIL_BREAK = -1


class _Mark(NamedTuple):
    """A piece of the message to leave out: a tag's head, or a long string (then `size` > 0)."""

    head: int
    body: int
    size: int


def loads(message: bytes | memoryview, tags: Collection[int]) -> Any:
    """Decode the one item that `message` holds.

    Parameters
    ----------
    message
        Exactly one encoded item.
    tags
        Tag numbers to keep; they come back as `cbor2.CBORTag`. All others are removed and their content stays.

    Returns
    -------
    object
        Byte strings of 4 kB or more are memoryviews of `message`, shorter ones are bytes. Containers below a tag are
        immutable (tuple, frozendict), others may be.

    Raises
    ------
    DataError
        If the bytes are not well-formed CBOR, go on behind the item, or exceed `MAX_DEPTH` or `MAX_ITEMS`.
        ``offset`` is where, as far as known.
    """
    view = memoryview(message).cast("B") if isinstance(message, memoryview) else memoryview(message)
    end, marks = _walk(view, 0, frozenset(tags), lift=True)
    if end != len(view):
        raise DataError(f"{len(view) - end} bytes follow the CBOR item that ends at byte {end}", offset=end)
    skeleton, strings = _cut(view, marks)

    def resolve(tag: cbor2.CBORTag, _immutable: bool) -> Any:
        return strings[tag.value] if tag.tag == _PLACEHOLDER_TAG else tag

    try:
        return cbor2.loads(skeleton, tag_hook=resolve, max_depth=MAX_DEPTH, strict_hashable_types=True)
    except (cbor2.CBORError, TypeError, ValueError) as error:
        raise DataError(f"not valid CBOR: {error}", offset=None) from error


def item_end(buffer: bytes | memoryview | mmap.mmap, start: int) -> int:
    """Return where the encoded item that begins at `start` ends. Holds no view of `buffer` afterwards.

    Raises
    ------
    DataError
        If there is no whole, well-formed item; ``offset`` says where that shows.
    """
    # An error keeps this frame alive, and a map with a view of it cannot be closed.
    with memoryview(buffer) as view:
        return _walk(view, start, frozenset(), lift=False)[0]


def _cut(view: memoryview, marks: list[_Mark]) -> tuple[bytes, list[memoryview]]:
    pieces: list[bytes | memoryview] = []
    strings: list[memoryview] = []
    done = 0
    for mark in marks:
        pieces.append(view[done : mark.head])
        if mark.size:
            pieces.append(_PLACEHOLDER_HEAD + len(strings).to_bytes(4, "big"))
            strings.append(view[mark.body : mark.body + mark.size])
        done = mark.body + mark.size
    pieces.append(view[done:])
    return b"".join(pieces), strings


def _walk(view: memoryview, pos: int, tags: frozenset[int], *, lift: bool) -> tuple[int, list[_Mark]]:
    """Step over one item, and list what to leave out of it."""
    marks: list[_Mark] = []
    open_items = [1]  # what is still to come, per container; negative: until a break
    n_items = 0
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            continue
        if open_items[-1] < 0 and pos < len(view) and view[pos] == _BREAK:
            open_items.pop()
            pos += 1
            continue
        n_items += 1
        if n_items > MAX_ITEMS:
            raise DataError(f"more than {MAX_ITEMS} items in one CBOR message", offset=pos)
        if open_items[-1] > 0:
            open_items[-1] -= 1
        head = pos
        major, argument, pos = _head(view, pos)
        if major in (2, 3):
            pos, size = _string_end(view, pos, major, argument)
            if lift and major == 2 and size >= _LIFT_BYTES:
                marks.append(_Mark(head, pos - size, size))
        elif major in (4, 5, 6):
            if major == 6 and argument not in tags:
                marks.append(_Mark(head, pos, 0))
            open_items.append(_n_children(view, pos, major, argument))
            if len(open_items) > MAX_DEPTH:
                raise DataError(f"CBOR containers nested deeper than {MAX_DEPTH}", offset=head)
    return pos, marks


def _head(view: memoryview, pos: int) -> tuple[int, int | None, int]:
    """Major type, argument (None: indefinite length) and where the content begins: RFC 8949 section 3."""
    if pos >= len(view):
        raise DataError(f"CBOR item cut off at byte {pos}", offset=pos)
    major, info = view[pos] >> 5, view[pos] & 0x1F
    if info < 24:
        return major, info, pos + 1
    if info <= 27:
        end = pos + 1 + (1 << (info - 24))
        if end > len(view):
            raise DataError(f"CBOR item cut off at byte {len(view)}", offset=pos)
        return major, int.from_bytes(view[pos + 1 : end], "big"), end
    if info == 31 and major in (2, 3, 4, 5):
        return major, None, pos + 1
    raise DataError(f"byte 0x{view[pos]:02x} at {pos} does not begin a CBOR item", offset=pos)


def _string_end(view: memoryview, pos: int, major: int, length: int | None) -> tuple[int, int]:
    """End of a string, and its size if it is in one piece (0 for chunks)."""
    if length is not None:
        if length > len(view) - pos:
            raise DataError(
                f"CBOR string of {length} bytes at byte {pos}, but only {len(view) - pos} are left", offset=pos
            )
        return pos + length, length
    for _ in range(_MAX_CHUNKS):
        if pos < len(view) and view[pos] == _BREAK:
            return pos + 1, 0
        chunk_major, chunk_length, body = _head(view, pos)
        if chunk_major != major or chunk_length is None:
            raise DataError(f"chunk of another type in the CBOR string at byte {pos}", offset=pos)
        pos, _ = _string_end(view, body, major, chunk_length)
    raise DataError(f"more than {_MAX_CHUNKS} chunks in one CBOR string at byte {pos}", offset=pos)


def _n_children(view: memoryview, pos: int, major: int, argument: int | None) -> int:
    if argument is None:
        return _UNTIL_BREAK
    if major == 6:
        return 1
    n_children = argument * 2 if major == 5 else argument
    if n_children > len(view) - pos:
        raise DataError(
            f"CBOR container of {n_children} items at byte {pos}, but only {len(view) - pos} bytes", offset=pos
        )
    return n_children
