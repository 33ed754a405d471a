"""Detectors that are made of modules: their image stands in the event beside the messages that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, DataError
from firstlight.model import ArraySpec, Dataset, Event, Later, Message, MessageRow
from firstlight.processors import Assembled, Layout, ModuleKey

__all__ = ["DetectorImage", "check_detectors", "images_of"]


class DetectorImage(Mapping[ModuleKey, Any]):
    """The image of a detector in one event, and the messages of its modules by their names or part numbers.

    Messages are fetched, decompressed and copied into the image where it is looked at, and no earlier.

    Attributes
    ----------
    layout
        Where the modules are.
    missing
        Modules that this event does not have.

    Examples
    --------
    ::

        image = event["jungfrau"]
        image.array[500:600, 200:300]  # an array; only the modules there are decompressed
        image.array.max(), image.mask, image.missing
        image["jf0"].meta["temperature_c"]
    """

    def __init__(self, layout: Layout, modules: Mapping[ModuleKey, Callable[[], Message | MessageRow]]) -> None:
        self.layout = layout
        self.missing = tuple(module.key for module in layout.modules if module.key not in modules)
        self._modules = modules

    @cached_property
    def array(self) -> Assembled:
        """The image: (rows, columns), modules that are missing filled.

        Raises
        ------
        DataError
            If a module is no array, or of another shape or type than the layout says; with its name.
        """
        return Assembled(self.layout, {key: _Pixels(key, self) for key in self})

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(rows, columns) bool, read-only: True where no module is, or its module is missing."""
        return self.array.mask

    def __getitem__(self, key: ModuleKey) -> Any:
        return self._modules[key]()

    def __iter__(self) -> Iterator[ModuleKey]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        return f"<image of {self.layout.name}: {len(self)} of {len(self.layout.modules)} modules>"


class _Pixels:
    """The array of a module, decoded when it is asked for."""

    def __init__(self, key: ModuleKey, image: DetectorImage) -> None:
        self._key = key
        self._image = image

    @cached_property
    def _message(self) -> Message | MessageRow:
        found: Message | MessageRow = self._image[self._key]
        return found

    @cached_property
    def _spec(self) -> ArraySpec:
        message = self._message
        spec = (message.message if isinstance(message, MessageRow) else message).spec
        if spec is None:
            raise DataError(
                f"detector {self._image.layout.name!r}: message {message.id} of module {self._key!r} is no array",
                module=self._key,
            )
        return spec

    @property
    def shape(self) -> tuple[int, ...]:
        return self._spec.shape[1:] if isinstance(self._message, MessageRow) else self._spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._spec.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._message.array


def images_of(detectors: Mapping[str, Layout], messages: Mapping[str, Any]) -> dict[str, Later]:
    """What stands in an event beside `messages`: each detector of which there is at least one module."""
    return {
        name: Later(lambda event, name=name, layout=layout: _image(name, layout, event))  # type: ignore[misc]
        for name, layout in detectors.items()
        if (name in messages if layout.by_part else any(module.key in messages for module in layout.modules))
    }


def _image(name: str, layout: Layout, event: Event) -> DetectorImage:
    if not layout.by_part:
        sources = [str(module.key) for module in layout.modules if module.key in event]
        return DetectorImage(layout, {source: lambda source=source: event[source] for source in sources})  # type: ignore[misc]
    parts = _parts(name, event.message(name))
    known = {module.key for module in layout.modules}
    if strange := [part for part in parts if part not in known]:
        raise DataError(f"detector {name!r} sent part {strange[0]}, which its layout does not have", module=strange[0])
    return DetectorImage(layout, {part: lambda part=part: parts[part] for part in parts})  # type: ignore[misc]


def _parts(name: str, found: Message | Dataset | MessageRow) -> Mapping[int, Message | MessageRow]:
    if isinstance(found, Dataset):
        return found.messages
    if isinstance(found, Message) and found.parts > 1:
        raise DataError(
            f"message {found.id} of {name!r} is part {found.part} of {found.parts}; read the parts of an image "
            "together: Live(datasets=True)",
            module=found.part,
        )
    return {1: found}


def check_detectors(pipeline: str, detectors: Mapping[str, Layout], inputs: Sequence[str]) -> None:
    """Refuse detectors that events of these inputs cannot have.

    Raises
    ------
    ConfigurationError
        With the detector and what it lacks.
    """
    for name, layout in detectors.items():
        where = f"detector {name!r} of pipeline {pipeline!r}"
        if not isinstance(layout, Layout):
            raise ConfigurationError(f"{where} needs a Layout, not {layout!r}; Layout.read(path) reads one")
        if not layout.by_part and name in inputs:
            raise ConfigurationError(f"{where} has the name of an input; call it differently")
        wanted = [name] if layout.by_part else [str(module.key) for module in layout.modules]
        absent = [source for source in wanted if source not in inputs]
        # An earlier pipeline may send references to all of its inputs as one input of this one.
        if absent and len(absent) < len(wanted):
            raise ConfigurationError(
                f"{where} needs module {absent[0]!r}, which is no input; the inputs: {', '.join(inputs)}"
            )
