from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from firstlight.errors import DataError
from firstlight.processors import Assembled, Layout, Module


class Pixels:
    """A module that counts how often it is read."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.n_read = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        self.n_read += 1
        return self._array


LAYOUT = Layout(
    "four",
    [
        Module("a", shape=(4, 6)),
        Module("b", shape=(4, 6), origin=(0, 7), rotation=180),
        Module("c", shape=(4, 6), origin=(5, 0), rotation=90),
        Module("d", shape=(4, 6), origin=(5, 7), flip="columns"),
    ],
    shape=(11, 14),
    fill=-1,
)


def pixels() -> dict[Any, Pixels]:
    return {key: Pixels(np.arange(24, dtype=np.int32).reshape(4, 6) + 100 * n) for n, key in enumerate("abcd")}


def whole() -> NDArray[np.int32]:
    """The same image, put together by hand."""
    found = np.full((11, 14), -1, np.int32)
    a, b, c, d = (np.arange(24).reshape(4, 6) + 100 * n for n in range(4))
    found[0:4, 0:6] = a
    found[0:4, 7:13] = b[::-1, ::-1]
    found[5:11, 0:4] = c.T[::-1]  # a quarter turn counterclockwise: the last column becomes the first row
    found[5:9, 7:13] = d[:, ::-1]
    return found


def test_the_image_is_put_together() -> None:
    image = Assembled(LAYOUT, pixels())
    assert (image.shape, image.dtype, image.ndim, image.size, len(image)) == ((11, 14), np.int32, 2, 154, 11)
    assert np.array_equal(np.asarray(image), whole())
    assert np.array_equal(image.mask, whole() == -1)
    assert image.missing == ()


_SLICES = st.one_of(st.slices(11), st.integers(-11, 10))
_COLUMNS = st.one_of(st.slices(14), st.integers(-14, 13))


@given(st.one_of(_SLICES, st.tuples(_SLICES, _COLUMNS), st.tuples(st.just(...), _COLUMNS), st.just(...)))
def test_a_slice_is_that_of_the_whole(key: Any) -> None:
    image = Assembled(LAYOUT, pixels())
    assert np.array_equal(image[key], whole()[key])


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ((slice(0, 4), slice(0, 6)), "a"),
        ((3, slice(None)), "ab"),
        ((4, slice(None)), ""),
        ((slice(3, 6), 12), "bd"),
        ((slice(None, None, 10), 0), "ac"),
        ((slice(10, 4, -1), slice(0, 3)), "c"),
        ((slice(4, 11, 7), ...), ""),
    ],
)
def test_only_modules_that_a_slice_touches_are_read(key: Any, read: str) -> None:
    modules = pixels()
    image = Assembled(LAYOUT, modules)
    assert np.array_equal(image[key], whole()[key])
    assert "".join(key for key, module in modules.items() if module.n_read) == read


def test_what_is_no_slice_is_done_on_the_whole_which_is_made_once() -> None:
    modules = pixels()
    image = Assembled(LAYOUT, modules)
    assert np.array_equal(image[[1, 5], [2, 3]], whole()[[1, 5], [2, 3]])
    assert np.array_equal(image[whole() > 5], whole()[whole() > 5])
    assert image.max() == 323 and image.sum() == whole().sum()
    assert np.array_equal(image * 2 - image, whole()) and np.array_equal(np.abs(image), np.abs(whole()))
    assert np.array_equal(1 + image, 1 + whole()) and (image == whole()).all()
    assert {module.n_read for module in modules.values()} == {1}


def test_an_index_beyond_the_image_is_an_index_error() -> None:
    for key in (11, (0, 14), -12):
        with pytest.raises(IndexError, match="out of bounds"):
            Assembled(LAYOUT, pixels())[key]
    with pytest.raises(IndexError):
        Assembled(LAYOUT, pixels())[0, 0, 0]


def test_the_image_cannot_be_changed_by_mistake() -> None:
    image = Assembled(LAYOUT, pixels())
    with pytest.raises(TypeError, match="work on a copy"):
        image += 1
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(image)[0, 0] = 3
    copy = np.array(image)
    copy[0, 0] = 3
    assert image[0, 0] == 0


def test_attributes_that_arrays_do_not_have_are_errors() -> None:
    with pytest.raises(AttributeError, match="no 'brightest'"):
        Assembled(LAYOUT, pixels()).brightest  # noqa: B018


def test_missing_modules_are_filled_and_listed() -> None:
    modules = pixels()
    del modules["b"], modules["d"]
    image = Assembled(LAYOUT, modules)
    expected = whole()
    expected[:, 7:13] = -1
    assert np.array_equal(image, expected)
    assert image.missing == ("b", "d")
    assert np.array_equal(image.mask, expected == -1)
    assert "without b, d" in repr(image)


def test_a_nan_fills_floats() -> None:
    layout = Layout("pair", LAYOUT.modules, fill=np.nan, dtype="float32")
    image = Assembled(layout, pixels())
    assert image.dtype == np.float32
    assert np.array_equal(np.isnan(np.asarray(image)), image.mask)


def test_byte_orders_may_differ() -> None:
    modules = pixels()
    modules["c"] = Pixels(modules["c"]._array.astype(">i4"))
    assert np.array_equal(Assembled(LAYOUT, modules), whole())


def test_a_module_of_another_shape_is_named() -> None:
    modules = pixels() | {"c": Pixels(np.zeros((6, 4), np.int32))}
    with pytest.raises(DataError, match=r"module 'c' sent an array of shape \(6, 4\), and its layout says \(4, 6\)"):
        Assembled(LAYOUT, modules)


def test_a_module_of_another_type_is_named() -> None:
    modules = pixels() | {"c": Pixels(np.zeros((4, 6), np.int64))}
    with pytest.raises(DataError, match="module 'c' sent pixels of int64, and module 'a' has int32"):
        Assembled(LAYOUT, modules)
    wide = Layout("four", LAYOUT.modules, dtype="int64")
    assert Assembled(wide, modules)[0, 5] == 5
    with pytest.raises(DataError, match="module 'c' sent pixels of float64, and the layout asks for int64"):
        Assembled(wide, modules | {"c": Pixels(np.zeros((4, 6)))})


def test_modules_that_cannot_hold_the_fill_value_are_an_error() -> None:
    modules = {key: Pixels(np.zeros((4, 6), np.uint16)) for key in "abcd"}
    with pytest.raises(DataError, match="modules of uint16 cannot hold the fill value -1; set dtype"):
        Assembled(LAYOUT, modules)


def test_without_any_module_the_layout_has_to_know_the_type() -> None:
    with pytest.raises(DataError, match="no module is there"):
        Assembled(LAYOUT, {})
    image = Assembled(Layout("four", LAYOUT.modules, dtype="u1"), {})
    assert not np.asarray(image).any() and image.mask.all()
