"""Views in words, for terminals, and as JSON, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.model import View

__all__ = ["view_facts", "view_text"]


def view_facts(view: View) -> dict[str, Any]:
    """A view for programs; of pictures and maps only the shape, their numbers belong into a stream or a file."""
    from firstlight.model import Histogram, Image, Line, Scalar, ScatterMap, Table, Text

    facts: dict[str, Any] = {"kind": type(view).__name__, "unit": view.unit, "temporality": view.temporality}
    match view:
        case Scalar():
            facts["value"] = _number(view.value)
        case Text():
            facts["text"] = view.text
        case Line():
            facts["values"] = _numbers(view.values)
        case Table():
            facts["columns"] = {name: _numbers(column) for name, column in view.columns.items()}
        case Image() | ScatterMap() | Histogram():
            facts["shape"] = list(view.values.shape)
    return facts


def _numbers(values: Any) -> list[Any]:
    return [_number(value) for value in values.tolist()]


def _number(value: Any) -> Any:
    return value if value == value else None  # JSON has no NaN


def view_text(view: View) -> str:
    """A view in one line; of a table, or of words, in several."""
    from firstlight.model import Histogram, Image, Line, Scalar, ScatterMap, Table, Text, Trend

    unit = f" {view.unit}" if view.unit else ""
    match view:
        case Scalar():
            return f"{view.value:g}{unit}"
        case Text():
            return view.text
        case Table():
            return f"table of {', '.join(view.columns)}"
        case Trend() if len(view.values):
            return f"trend of {len(view.values)} points{unit}, {_span(view.values)}, now {view.values[-1]}"
        case Line():
            return f"line of {len(view.values)} points{unit}, {_span(view.values)}"
        case Image():
            return f"image {_shape(view.values)}{unit}, {_span(view.values)}"
        case ScatterMap():
            return f"map of {len(view.values)} points{unit}, {_span(view.values)}"
        case Histogram():
            return f"histogram of {_shape(view.values)} intervals{unit}, {view.values.sum():g} in all"
    return type(view).__name__


def _shape(values: Any) -> str:
    return " x ".join(map(str, values.shape))


def _span(values: Any) -> str:
    import numpy as np

    if values.dtype.kind not in "biuf":
        return str(values.dtype)
    seen = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return f"{seen.min():g} to {seen.max():g}" if seen.size else "empty"
