"""The asyncio client against a real service: verbs, waiting, cancellation, lost connections, what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import firstlight
from firstlight.broker import BrokerSettings
from firstlight.client import AsyncClient
from firstlight.errors import (
    ConnectionLostError,
    DuplicateIdError,
    MessageNotFoundError,
    StreamAbortedError,
    StreamError,
    StreamFinishedError,
    StreamNotFoundError,
    StreamTimeoutError,
)
from firstlight.model import Dataset, Keep, Message, Policy, WhenFull
from firstlight.storage import StorageSettings
from firstlight.testing import ThreadService
from firstlight.wire import MAX_INTERVALS

LARGE = (512, 1024)
HOLD = Policy(keep=Keep.MEMORY, when_full=WhenFull.BLOCK)

Connect = Callable[..., AsyncClient]


def awaited(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own that complains about everything that asyncio can complain about."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        problems: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
            async with asyncio.timeout(60):
                await test(*args, **kwargs)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others, "tasks were left behind"

        asyncio.run(watched(), debug=True)
        gc.collect()
        assert problems == []

    return run


@pytest.fixture(params=[True, False], ids=["shared-memory", "tcp"])
def connect(request: pytest.FixtureRequest, service: ThreadService) -> Connect:
    return functools.partial(AsyncClient, service.url, shared_memory=request.param)


def frame(number: int) -> NDArray[np.uint32]:
    return np.full(LARGE, number, np.uint32)


async def ids(messages: Any, n: int = 1_000_000) -> list[int]:
    found: list[int] = []
    async for message in messages:
        found.append(message.id)
        if len(found) == n:
            break
    return found


# -- the verbs ---------------------------------------------------------------------------------------------------------


@awaited
async def test_arrays_and_bytes_travel(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", stream="s", header={"h": 1}) as out:
            for n in range(1, 8):
                await out.send(frame(n), meta={"n": n})
            for n in range(8, 2001):
                await out.send(b"bytes %d" % n, meta={"n": n})
        assert (out.n_sent, out.n_acknowledged, out.n_duplicates) == (2000, 2000, 0)
        expected = 1
        async for message in beam.consume("det", stream="s"):
            assert (message.id, message.meta["n"]) == (expected, expected)
            if expected < 8:
                assert (message.array == expected).all() and not message.array.flags.writeable
            else:
                assert bytes(message.data) == b"bytes %d" % expected
            expected += 1
        assert expected == 2001
        assert await beam.meta("det", stream="s") == {"h": 1}


@awaited
async def test_who_waits_for_messages_hears_that_what_was_sent_is_stored(connect: Connect) -> None:
    async with connect() as beam:
        out = await beam.produce("det", stream="s", linger=30.0, finish=False)
        reader = beam.consume("none", stream="s")
        await out.send(b"x")
        assert not out.settled
        out.push()
        assert not await reader.wait(30.0, producer=out)
        assert out.settled and not reader.at_hand
        async with beam.consume("det", stream="s", group="g", ack="manual") as grouped:
            assert await grouped.wait(30.0)
            assert [message.id for message in await grouped.receive_many(30.0)] == [1]
            grouped.ack_ranges([(1, 1)])
            assert await beam.unacknowledged("det", "g", stream="s") == []
        await reader.close()
        await out.close()


@awaited
async def test_a_reused_buffer_does_not_change_what_was_sent(connect: Connect) -> None:
    async with connect() as beam:
        buffer = np.zeros(LARGE, np.uint32)
        async with beam.produce("det", stream="s") as out:
            for n in range(1, 21):
                buffer[:] = n
                await out.send(buffer)
        async for message in beam.consume("det", stream="s"):
            assert (message.array == message.id).all()


@awaited
async def test_loaned_arrays(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", stream="s") as out:
            for n in range(1, 31):
                loan = await out.loan(LARGE, np.uint32)
                loan[:] = n
                await out.send(loan, meta={"n": n})
            loan = await out.loan(LARGE, np.uint32)
            await out.send(b"in between")
            if beam.path == "shared memory":
                with pytest.raises(StreamError, match="no longer valid"):
                    await out.send(loan)
        found = [message async for message in beam.consume("det", stream="s")]
        assert len(found) == 31
        assert all((message.array == message.id).all() for message in found[:30])


@awaited
async def test_every_question(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", beamtime="bt", stream="s", policy=Policy(fields=("meta.n",))) as out:
            for n in range(1, 11):
                await out.send(b"x", meta={"n": n * n})
        scan: dict[str, Any] = {"beamtime": "bt", "stream": "s"}
        assert await beam.find("det", "meta.n > 50 order by meta.n desc", **scan) == [10, 9, 8]
        assert await beam.beamtimes() == ["bt"]
        assert await beam.sources(beamtime="bt") == ["det"]
        assert [info.stream for info in await beam.streams("det", state="finished")] == ["s"]
        assert (await beam.info("det", **scan)).n_messages == 10
        await beam.set_meta("det", {"a": {"b": 1}}, **scan)
        await beam.set_meta("det", {"a": {"c": 2}}, mode="update", **scan)
        assert await beam.meta("det", **scan) == {"a": {"b": 1, "c": 2}}
        assert await ids(beam.consume("det", group="g", **scan), 4) == [1, 2, 3, 4]
        gc.collect()
        await beam.set_cursor("det", "g", 7, **scan)
        assert await beam.unacknowledged("det", "g", **scan) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10][3:]
        assert [group.group for group in await beam.groups("det", **scan)] == ["g"]
        await beam.reset("det", "g", **scan)
        assert len(await beam.unacknowledged("det", "g", **scan)) == 10
        assert await beam.keep("det", [1, 2], **scan) == 2
        assert (await beam.status())["connections"]
        assert await beam.delete("det", **scan)
        assert not await beam.delete("det", **scan)
        with pytest.raises(StreamNotFoundError):
            await beam.info("det", **scan)


@awaited
async def test_single_messages(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", stream="s", finish=False) as out:
            with pytest.raises(MessageNotFoundError, match="no message"):
                await beam.last("det", stream="s")
            for n in (1, 2, 5):
                await out.send(b"%d" % n, id=n)
            await out.flush()
        assert bytes((await beam.get("det", 2, stream="s")).data) == b"2"
        assert (await beam.last("det", stream="s")).id == 5
        with pytest.raises(MessageNotFoundError, match="its last id is 5"):
            await beam.get("det", 4, stream="s")
        assert await ids(beam.get_many("det", [1, 4, 5], stream="s")) == [1, 5]
        with pytest.raises(StreamNotFoundError):
            await beam.get("dett", 1, stream="s")


@awaited
async def test_groups_share_and_messages_come_back(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", stream="s", finish=False) as out:
            for n in range(1, 101):
                await out.send(b"x", id=n)
        one = beam.consume("det", stream="s", group="g", prefetch=5)
        two = beam.consume("det", stream="s", group="g", prefetch=5)
        async with one, two:
            first = [(await anext(one)).id for _ in range(20)]
            second = [(await anext(two)).id for _ in range(20)]
            assert not set(first) & set(second)
            await one.flush()
            await two.flush()
        async with beam.consume("det", stream="s", group="g", ack="manual", prefetch=1) as three:
            message: Message = await anext(three)
            assert message.id not in first[:-1] + second[:-1]
            message.nack()
            async for again in three:
                again.ack()
                if again.id == message.id:
                    break
            assert again.attempt == message.attempt + 1
            await three.flush()
        with pytest.raises(StreamError, match="consumer is closed"):
            again.nack()


@awaited
async def test_datasets_and_the_newest(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", stream="s") as out:
            for n in range(1, 4):
                for part in (1, 2):
                    await out.send(b"%d" % part, id=n, part=part, parts=2)
        found = [d async for d in beam.consume("det", stream="s", datasets=True)]
        assert [(type(d), d.id, sorted(d.messages)) for d in found] == [(Dataset, n, [1, 2]) for n in (1, 2, 3)]
        async with beam.produce("cam", stream="s", finish=False) as out:
            for n in range(1, 11):
                await out.send(b"x", id=n)
            await out.flush()
            async with beam.monitor("cam", stream="s") as newest:
                assert (await anext(newest)).id == 10
                await out.send(b"x", id=15)
                await out.flush()
                assert (await anext(newest)).id == 15
                assert newest.skipped == 4


# -- ends and errors ---------------------------------------------------------------------------------------------------


@awaited
async def test_an_exception_aborts_the_stream(connect: Connect) -> None:
    async with connect() as beam:
        with pytest.raises(ZeroDivisionError):
            async with beam.produce("det", stream="s") as out:
                await out.send(b"x")
                raise ZeroDivisionError("beam lost")
        found = []
        with pytest.raises(StreamAbortedError, match="ZeroDivisionError: beam lost"):
            async for message in beam.consume("det", stream="s"):
                found.append(message.id)
        assert found == [1]


@awaited
async def test_cancelling_a_producer_aborts_its_stream(connect: Connect) -> None:
    async with connect() as beam:
        sent = asyncio.Event()

        async def produce() -> None:
            async with beam.produce("det", stream="s") as out:
                await out.send(b"x")
                sent.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(produce())
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        info = await beam.info("det", stream="s")
        assert (info.n_messages, info.aborted) == (1, "CancelledError: ")


@awaited
async def test_refused_messages(connect: Connect) -> None:
    async with connect() as beam:
        out = await beam.produce("det", stream="s")
        await out.send(b"x", id=1)
        await out.flush()
        await out.send(b"other", id=1)
        with pytest.raises(DuplicateIdError):
            await out.flush()
        await out.send(b"x", id=1)
        await out.finish(next_stream="s2")
        assert (out.n_sent, out.n_acknowledged, out.n_duplicates) == (3, 2, 1)
        with pytest.raises(StreamError, match="is closed"):
            await out.send(b"x")
        with pytest.raises(StreamFinishedError):
            async with beam.produce("det", stream="s") as late:
                await late.send(b"x")
        consumer = beam.consume("det", stream="s")
        assert await ids(consumer) == [1]
        assert consumer.next_stream == "s2"
        assert await ids(consumer) == []


@awaited
async def test_stalls_and_misspelt_names_are_different(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", stream="s", finish=False) as out:
            await out.send(b"x")
        with pytest.raises(StreamTimeoutError, match=r"last id 1.*not finished"):
            await ids(beam.consume("det", stream="s", timeout=0.2))
        with pytest.raises(StreamNotFoundError, match="sources in this beamtime: det"):
            await ids(beam.consume("dett", stream="s", timeout=0.2))


@awaited
async def test_before_and_after(service: ThreadService) -> None:
    beam = AsyncClient(service.url)
    with pytest.raises(ConnectionLostError, match="is not connected"):
        await beam.status()
    with pytest.raises(ConnectionLostError, match="is not connected"):
        beam.consume("det", stream="s")
    await beam.connect()
    with pytest.raises(ConnectionLostError, match="has connected before"):
        await beam.connect()
    await beam.close()
    await beam.close()
    with pytest.raises(ConnectionLostError, match="is closed"):
        await beam.status()


# -- waiting and cancellation ------------------------------------------------------------------------------------------


@awaited
async def test_one_client_does_many_things_at_once(connect: Connect) -> None:
    async def produce(beam: AsyncClient, name: str) -> None:
        async with beam.produce(name, stream="s") as out:
            for n in range(200):
                await out.send(b"x" * 100, meta={"n": n})
                if n % 50 == 0:
                    await asyncio.sleep(0.001)

    async with connect() as beam:
        names = [f"source{n}" for n in range(10)]
        tasks = [asyncio.create_task(ids(beam.consume(name, stream="s", timeout=20))) for name in names]
        await asyncio.gather(*(produce(beam, name) for name in names))
        assert await asyncio.gather(*tasks) == [list(range(1, 201))] * 10


@awaited
async def test_a_loop_that_never_waits_lets_others_run(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", stream="s") as out:
            for _ in range(5000):
                await out.send(b"x")
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(other())
        consumer = beam.consume("det", stream="s")
        await anext(consumer)
        here = consumer._core._waiting
        assert here > 10
        turns = 0
        for _ in range(here):  # none of these has to be waited for
            await anext(consumer)
            busy_until = time.monotonic() + 0.003
            while time.monotonic() < busy_until:
                pass
        assert turns > 0
        await consumer.close()
        task.cancel()
        await asyncio.wait([task])


@awaited
async def test_more_ids_than_one_message_takes(connect: Connect) -> None:
    odd = range(1, 2 * MAX_INTERVALS + 4, 2)
    there = [1, 2, 5, odd[-1]]
    async with connect() as beam:
        async with beam.produce("det", stream="s", policy=Policy(keep=Keep.ASKED)) as out:
            for number in there:
                await out.send(b"x", id=number)
        there.remove(2)
        assert [m.id async for m in beam.get_many("det", odd, stream="s")] == there
        assert await beam.keep("det", odd, stream="s") == len(there)


@awaited
async def test_a_cancelled_turn_takes_nothing(connect: Connect) -> None:
    async with connect() as beam, beam.produce("det", stream="s") as out:
        messages = beam.consume("det", stream="s", group="g")
        for n in range(1, 6):
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(messages), 0.02)
            await out.send(b"x", id=n)
            await out.flush()
            assert (await anext(messages)).id == n
        await messages.flush()
        assert await beam.unacknowledged("det", "g", stream="s") == [5]


@awaited
async def test_a_cancelled_send_has_sent_nothing(tmp_path: Path) -> None:
    settings = BrokerSettings(storage=StorageSettings(memory_bytes=64 << 20))
    with service_in_thread(tmp_path, settings) as service:
        async with AsyncClient(service.url, shared_memory=False) as beam:
            async with beam.produce("det", stream="s", policy=HOLD) as out:
                n = 0
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1.0):
                        while True:
                            await out.send(frame(n + 1), id=n + 1)
                            n += 1
                assert n > 1
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(out.send(b"never", id=n + 1), 0.05)
                assert out.n_sent == n
                # Somebody reads: there is room again, and the same producer goes on.
                reader = asyncio.create_task(ids(beam.consume("det", stream="s", group="g", timeout=20)))
                for _ in range(5):
                    n += 1
                    await out.send(frame(n), id=n)
                await out.finish()
            assert await reader == list(range(1, n + 1))


@awaited
async def test_waiting_for_room_ends_with_an_error(tmp_path: Path) -> None:
    settings = BrokerSettings(storage=StorageSettings(memory_bytes=64 << 20))
    with service_in_thread(tmp_path, settings) as service:
        async with AsyncClient(service.url, shared_memory=False) as beam:
            out = await beam.produce("det", stream="s", policy=HOLD, timeout=0.3)
            with pytest.raises(StreamTimeoutError, match=r"no room for a message of \S+ within 0.3 s"):
                while True:
                    await out.send(frame(1))
            await out.close()


@awaited
async def test_giving_up_the_loop_gives_the_messages_back(connect: Connect) -> None:
    async with connect() as beam:
        async with beam.produce("det", stream="s") as out:
            for _ in range(10):
                await out.send(b"x")
        assert await ids(beam.consume("det", stream="s", group="g"), 3) == [1, 2, 3]
        gc.collect()
        for _ in range(100):
            (group,) = await beam.groups("det", stream="s")
            if group.members == 0:
                break
            await asyncio.sleep(0.05)
        assert group.members == 0
        assert await ids(beam.consume("det", stream="s", group="g")) == list(range(3, 11))


# -- lost connections --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service_in_thread(folder: Path, settings: BrokerSettings | None = None) -> Iterator[ThreadService]:
    with ThreadService(folder / "data", settings) as running:
        yield running


@awaited
async def test_it_lives_through_a_restart(connect: Connect, service: ThreadService) -> None:
    async with connect() as reading, connect() as beam:
        group = asyncio.create_task(ids(reading.consume("det", stream="s", group="g", timeout=30)))
        following = asyncio.create_task(ids(reading.consume("det", stream="s", timeout=30)))
        async with beam.produce("det", stream="s", ack="written") as out:
            for n in range(1, 61):
                if n in (20, 40):
                    await asyncio.to_thread(service.restart)
                await out.send(frame(n) if n % 2 else b"small", id=n)
                await asyncio.sleep(0.001)
        assert (await beam.info("det", stream="s")).n_messages == 60
        assert sorted(set(await group)) == list(range(1, 61))
        assert sorted(await following) == list(range(1, 61))


@awaited
async def test_questions_wait_for_the_service_to_come_back(service: ThreadService) -> None:
    async with AsyncClient(service.url) as beam:
        restart = asyncio.create_task(asyncio.to_thread(service.restart))
        for _ in range(20):
            assert await beam.beamtimes() == []
        await restart


@awaited
async def test_a_service_that_stays_away(tmp_path: Path) -> None:
    with service_in_thread(tmp_path) as service:
        async with AsyncClient(service.url, reconnect_timeout=0.3, connect_timeout=0.3) as beam:
            out = await beam.produce("det", stream="s")
            waiting = asyncio.create_task(ids(beam.consume("det", stream="s", timeout=None)))
            await beam.status()
            await asyncio.to_thread(service.stop)
            with pytest.raises(ConnectionLostError, match=r"tried for 0 s|no service at"):
                await waiting
            with pytest.raises(ConnectionLostError):
                await out.send(b"x")
                await out.flush()
            with pytest.raises(ConnectionLostError):
                await beam.status()


@awaited
async def test_closing_while_the_service_is_away(tmp_path: Path) -> None:
    with service_in_thread(tmp_path) as service:
        beam = await AsyncClient(service.url).connect()
        await asyncio.to_thread(service.stop)
        for _ in range(100):
            if beam._reconnecting is not None:
                break
            await asyncio.sleep(0.02)
        assert beam._reconnecting is not None
        started = time.monotonic()
        await beam.close()
        assert time.monotonic() - started < 5


# -- connecting --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@awaited
async def test_connecting_does_not_hold_the_loop_up() -> None:
    with listening() as sock:  # the kernel takes the connection, nobody answers
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        task = asyncio.create_task(other())
        url = f"firstlight://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(ConnectionLostError, match="did not answer: nothing came in time"):
            async with AsyncClient(url, connect_timeout=0.3):
                pass
        assert turns > 5
        task.cancel()
        await asyncio.wait([task])


@awaited
async def test_cancelling_while_it_connects() -> None:
    with listening() as sock:
        beam = AsyncClient(f"127.0.0.1:{sock.getsockname()[1]}", connect_timeout=20)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(beam.connect(), 0.1)


@awaited
async def test_somebody_else_answers() -> None:
    def answer(content: bytes) -> Callable[..., Coroutine[Any, Any, None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(content)
            await writer.drain()
            writer.close()

        return serve

    for content, text in (
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 5, "is not a firstlight service"),
        (b"", "closed the connection"),
    ):
        server = await asyncio.start_server(answer(content), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ConnectionLostError, match=text):
                await AsyncClient(f"127.0.0.1:{port}").connect()


@awaited
async def test_nobody_there() -> None:
    with listening() as sock:
        port = sock.getsockname()[1]
    with pytest.raises(ConnectionLostError, match="is `firstlight serve` running there"):
        await AsyncClient(f"127.0.0.1:{port}").connect()
    with pytest.raises(ConnectionLostError, match=r"no service at name\.invalid:1"):
        await AsyncClient("name.invalid:1").connect()


# -- what it leaves behind ---------------------------------------------------------------------------------------------

FORGETFUL = """
    import asyncio, gc, sys
    import numpy as np
    from firstlight.client import AsyncClient

    async def forget_to_close(url):
        beam = await AsyncClient(url).connect()
        out = await beam.produce("det", stream="s")
        await out.send(np.ones((600, 600)))
        await out.flush()
        async for message in beam.consume("det", stream="s", group="g"):
            break
        asyncio.get_running_loop().call_later(60, print, "never")
        return beam, message

    async def interrupted(url):
        async with AsyncClient(url) as beam:
            await asyncio.wait_for(anext(beam.consume("none", stream="s", timeout=None)), 0.1)

    kept = asyncio.run(forget_to_close(sys.argv[1]), debug=True)
    assert kept[1].array.sum() == 360000
    try:
        asyncio.run(interrupted(sys.argv[1]), debug=True)
    except TimeoutError:
        print("timeout")
    del kept
    gc.collect()
"""


def test_a_forgotten_client_ends_without_a_word(service: ThreadService) -> None:
    program = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(FORGETFUL), service.url]
    environment = {**os.environ, "PYTHONPATH": str(Path(firstlight.__file__).parents[1])}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.stdout, done.returncode) == ("", "timeout\n", 0)
