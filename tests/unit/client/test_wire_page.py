"""docs/reference/wire-protocol.md says what the code does: tables, bytes, and a client that works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec
import pytest

from firstlight import wire
from firstlight.client import Client
from firstlight.testing import ThreadService
from firstlight.wire import Hello, Item, StreamInfo, encode, frame

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "wire-protocol.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| ([^|]*)\|", re.MULTILINE)


def told() -> dict[str, tuple[int, list[str]]]:
    """Name -> tag and fields of every message on the page."""
    found: dict[str, tuple[int, list[str]]] = {}
    for tag, name, fields in ROW.findall(PAGE):
        assert name not in found, f"{name} is told twice"
        found[name] = int(tag), [field.strip() for field in fields.split(",") if field.strip()]
    return found


def _said(kind: type[msgspec.Struct]) -> list[str]:
    """The fields of a message as the page writes them."""
    return [
        field.name if field.default is msgspec.NODEFAULT else f"{field.name} = {_literal(field.default)}"
        for field in msgspec.structs.fields(kind)
    ]


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    return {None: "nil", (): "[]"}.get(value, str(value))


def test_every_message_is_told_with_its_tag_and_fields() -> None:
    kinds = {*get_args(wire.FromClient), *get_args(wire.FromService)}
    kinds |= set(get_args(get_type_hints(wire.Ask)["question"]))
    code = {kind.__name__: (kind.__struct_config__.tag, _said(kind)) for kind in kinds}
    assert told() == code


def test_records_are_told_completely() -> None:
    item = re.search(r"array `\[(first_id[^]]*)\]`", PAGE)
    assert item is not None
    assert re.split(r",\s+", item.group(1)) == _said(Item)
    for kind in (StreamInfo, wire.GroupInfo):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in PAGE


def test_the_bytes_of_hello() -> None:
    dump = re.search(r"```text\n([0-9a-f][0-9a-f ]+)\n```", PAGE)
    assert dump is not None
    assert bytes.fromhex(dump.group(1)) == frame(encode(Hello((1, 0), "demo", "")))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path_factory.mktemp("page") / "client.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_client_on_the_page_works(program: Path, tmp_path: Path) -> None:
    printed = PAGE.rsplit("```text\n", 1)[1].split("```")[0]
    with ThreadService(tmp_path / "data") as service:
        address = urlsplit(service.url)
        command = [sys.executable, "-X", "dev", str(program), str(address.hostname), str(address.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, printed), done.stderr
        with Client(service.url) as client:
            messages = [(m.id, m.meta, bytes(m.data)) for m in client.consume("example", stream="scan_0001")]
            assert messages == [(1, {"hits": 3}, b"\1\2\3\4\5"), (2, {}, b"pixels")]
            assert client.unacknowledged("example", "readers", stream="scan_0001") == []
        again = subprocess.run(command, capture_output=True, text=True, timeout=60)
        # What is there already is confirmed, and not stored again.
        assert again.returncode == 0, again.stderr
