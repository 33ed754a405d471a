"""Paths, parameters and versions as clients send them."""

from __future__ import annotations

import pytest

from firstlight.gateways.asapo._errors import Refusal
from firstlight.gateways.asapo._web import Request, check_version, whole_number


def test_a_path_is_split_before_it_is_decoded() -> None:
    request = Request("GET", b"/v0.7/beamtime/bt/det/auto%20s%2F%24%25/0/3", b"token=a%2Bb&x=", b"")
    assert request.path == ("v0.7", "beamtime", "bt", "det", "auto s/$%", "0", "3")
    assert (request.get("token"), request.get("x", "?"), request.get("none", "?")) == ("a+b", "", "?")


@pytest.mark.parametrize("path", [b"/v0.7/%ff", b"/v0.7/\xff"])
def test_a_path_that_is_no_text_is_refused(path: bytes) -> None:
    with pytest.raises(Refusal, match="not UTF-8"):
        Request("GET", path, b"", b"")


@pytest.mark.parametrize(
    ("endpoint", "host"), [("a.b:8400", "a.b"), ("a.b", "a.b"), ("[::1]:8400", "[::1]"), ("127.0.0.1:1", "127.0.0.1")]
)
def test_the_host_is_what_the_client_calls_us(endpoint: str, host: str) -> None:
    assert Request("GET", b"/", b"", b"", endpoint=endpoint).host == host


@pytest.mark.parametrize("text", ["v0.1", "v0.6", "v0.7"])
def test_versions_up_to_ours_are_served(text: str) -> None:
    check_version(text)


@pytest.mark.parametrize(("text", "status"), [("v0.8", 415), ("v1.0", 415), ("0.7", 400), ("v7", 400), ("va.b", 400)])
def test_other_versions_are_not(text: str, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        check_version(text)
    assert refused.value.status == status


@pytest.mark.parametrize("text", ["-1", "1.0", "", "9223372036854775808", "99999999999999999999999", "²", "0x1"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="a whole number from 0 on"):
        whole_number(text, "an id")


def test_the_largest_id_is_one() -> None:
    assert whole_number("9223372036854775807", "an id") == 2**63 - 1


def test_a_body_that_is_not_what_it_should_be_is_named() -> None:
    with pytest.raises(Refusal, match=r"the body of POST /v0.7/x cannot be read"):
        Request("POST", b"/v0.7/x", b"", b"{").json(dict)
