"""Payloads as dranspose's users write them, for what its published ones do not show."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import numpy as np
from dranspose.data.albaem import AlbaemPacket
from dranspose.event import StreamData
from dranspose.ingester import Ingester, IngesterSettings, IsSoftwareTriggered
from dranspose.middlewares import contrast, eiger_legacy, lecroy, pcap, stream1, xspress
from dranspose.middlewares.positioncap import PositioncapParser
from dranspose.parameters import BinaryParameter, FloatParameter, IntParameter
from readerwriterlock.rwlock import RWLockFair

__all__ = [
    "Broken",
    "Closing",
    "CountingIngester",
    "CountingSettings",
    "Dying",
    "Failing",
    "FirstFrames",
    "FrameNumbers",
    "Lists",
    "Names",
    "Offsets",
    "Several",
    "Shown",
    "Ticking",
    "Timed",
    "Uneven",
]


class FrameNumbers:
    """Which frame of each stream is in an event."""

    def __init__(self, parameters: Any, context: Any, state: Any, **kwargs: Any) -> None:
        self.number = 0

    @staticmethod
    def describe_parameters() -> list[Any]:
        return [IntParameter(name="offset", default=7), FloatParameter(name="sleep_s")]

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        time.sleep(parameters["sleep_s"].value)
        found = {name: stream1.parse(stream) for name, stream in event.streams.items()}
        return {name: getattr(packet, "frame", packet.htype) for name, packet in found.items()}


class Offsets(FrameNumbers):
    """The parameter, and a mask that nobody has to give."""

    @staticmethod
    def describe_parameters() -> list[Any]:
        return [IntParameter(name="offset", description="of each frame", default=7), BinaryParameter(name="mask")]

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        return [parameters["offset"].value, len(parameters["mask"].value)]


class FirstFrames:
    """What the first frame of each stream is."""

    def __init__(self, parameters: Any, context: Any, state: Any, **kwargs: Any) -> None:
        self.name = state.name

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        return {name: bytes(stream.frames[0].buffer) for name, stream in event.streams.items()}


class CountingSettings(IngesterSettings):
    """Frames of each stream."""

    n: int = 3


class CountingIngester(Ingester):
    """Several streams that need nobody to send them, and one that software triggers."""

    def __init__(self, settings: CountingSettings) -> None:
        super().__init__(settings=settings)
        self.n = settings.n

    async def run_source(self, stream: str) -> AsyncIterator[Any]:
        while stream == "asked":
            yield IsSoftwareTriggered()
        for number in range(-1, self.n + 1):
            await asyncio.sleep(0.01)
            header = {"htype": "image", "frame": number, "of": stream}
            if number in (-1, self.n):
                header = {"htype": "header" if number < 0 else "series_end", "of": stream}
            yield StreamData(typ="STINS", frames=[json.dumps(header).encode()])

    def software_trigger(self) -> Iterator[Any]:
        for number in itertools.count():
            yield {"asked": StreamData(typ="JSON", frames=[str(number).encode()])}


class Blocking:
    """Holds the lock of its tree until it is told to go on."""

    has_lock, may_go = threading.Event(), threading.Event()

    def __init__(self, **kwargs: Any) -> None:
        self.publish: dict[str, Any] = {"map": {}}
        lock = RWLockFair()
        self.publish_rlock, self.wlock = lock.gen_rlock(), lock.gen_wlock()

    def process_result(self, result: Any, parameters: Any) -> None:
        with self.wlock:
            self.has_lock.set()
            assert self.may_go.wait(60)
            self.publish["map"][str(result.event_number)] = 1


class Broken:
    """Cannot be made."""

    def __init__(self, **kwargs: Any) -> None:
        raise LookupError("no calibration")


class Names:
    """Which streams an event has."""

    def __init__(self, state: Any, **kwargs: Any) -> None:
        pass

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        return sorted(event.streams)


class Parsed:
    """What dranspose's own parsers make of a stream."""

    parsers: ClassVar = {
        "EIGER_LEGACY": eiger_legacy.parse, "xspress": xspress.parse, "contrast": contrast.parse, "PCAP": pcap.parse,
        "albaem": lambda data: AlbaemPacket.validate_json(data.frames[0]), "lecroy_9fwdWp6Rq7": lecroy.parse,
    }  # fmt: skip

    def __init__(self, **kwargs: Any) -> None:
        pass

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        (data,) = event.streams.values()
        return type(self.parsers[data.typ](data)).__name__


class Positions:
    """What a PandABox says; its parser has to have seen the header."""

    def __init__(self, **kwargs: Any) -> None:
        self.parser = PositioncapParser()

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        packet = self.parser.parse(event.streams["panda"])
        return {name: field.value for name, field in packet.fields.items()} if hasattr(packet, "fields") else None


class Uneven(Names):
    """Takes its time for every second event."""

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        time.sleep(0.05 * (event.event_number % 2))
        return event.event_number


class Raising(FrameNumbers):
    """Raises at one event."""

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        if event.event_number == 3:
            raise RuntimeError("the sample has gone")
        return super().process_event(event, parameters, tick)


class Failing(Raising):
    """The same, and writes down how often it was called for that event."""

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        if event.event_number == 3:
            with open(f"calls-{os.getpid()}", "a") as calls:
                calls.write("x")
        return super().process_event(event, parameters, tick)


class Dying(FrameNumbers):
    """The first process that gets event 3 is killed by it, as by a kill -9."""

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        if event.event_number == 3:
            try:
                os.mkdir("died")
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().process_event(event, parameters, tick)


class Ticking(FrameNumbers):
    """Tells whether it was its turn to tick, and leaves a file when it was."""

    def get_tick_interval(self, parameters: Any) -> float:
        return 3600.0

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        time.sleep(0.02)
        if tick:
            with open(f"tick-{os.getpid()}", "a") as file:
                file.write("x")
        return tick


class Closing(FrameNumbers):
    """Leaves a file for each of its last calls, with what it was given."""

    def __init__(self, parameters: Any, context: Any, state: Any) -> None:
        context["scans"] = context.get("scans", 0) + 1
        self.context = context
        self.name = state.name

    def process_event(self, event: Any, parameters: Any, tick: bool) -> Any:
        return None

    def finish(self, parameters: Any) -> None:
        with open(f"finish-{self.name}-{self.context['scans']}", "w") as file:
            file.write(str(parameters["offset"].value))

    def close(self, context: Any) -> None:
        with open(f"close-{self.name}", "w") as file:
            file.write(str(context["scans"]))


class Lists:
    """Every result by its number, and what came besides."""

    def __init__(self, parameters: Any, context: Any, state: Any, **kwargs: Any) -> None:
        context["scans"] = context.get("scans", 0) + 1
        self.publish: dict[str, Any] = {"results": {}, "scans": context["scans"]}
        self.results: dict[int, Any] = {}
        self.hashes: set[str] = set()

    def process_result(self, result: Any, parameters: Any) -> None:
        assert result.event_number not in self.results
        self.results[result.event_number] = result.payload
        self.publish["results"][str(result.event_number)] = str(result.payload)
        self.hashes.add(result.parameters_hash)

    def finish(self, parameters: Any) -> None:
        self.publish["finished"] = 1


class Several:
    """All results of each event, and who made them."""

    def __init__(self, **kwargs: Any) -> None:
        self.several: dict[int, list[Any]] = {}

    def process_result(self, result: Any, parameters: Any) -> None:
        self.several.setdefault(result.event_number, []).append((result.worker, result.payload))


class Timed(Lists):
    """Its timer must never come while a result is taken."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.busy = threading.Lock()
        self.ticks = 0
        self.met = False

    def process_result(self, result: Any, parameters: Any) -> None:
        with self.busy:
            time.sleep(0.01)
            super().process_result(result, parameters)

    def timer(self, parameters: Any) -> float:
        self.met |= self.busy.locked()
        self.ticks += 1
        self.publish["offset"] = parameters["offset"].value
        return 0.002


class Shown(Lists):
    """A tree with attributes, as viewers want it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.publish |= {
            "_attrs": {"default": "twod"},
            "twod": {
                "frame": np.arange(12, dtype=np.uint16).reshape(3, 4), "frame_attrs": {"long_name": "photons"},
                "motor": [0.5, 1.5, 2.5],
            },
            "twod_attrs": {"NX_class": "NXdata", "axes": ["motor", "."], "signal": "frame"},
            "text": "Å", "number": 3, "texts": ["a", "bc"], "nothing": None, 5: "no name", "ragged": [[1], [2, 3]],
            "compound": np.array([(0.5, 1)], dtype=[("a", float), ("b", int)]),
        }  # fmt: skip
