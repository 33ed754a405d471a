"""The ports of the gateway."""

from __future__ import annotations

import pytest

from firstlight.errors import ConnectionLostError
from firstlight.gateways.asapo import AsapoGateway, AsapoSettings


def test_there_is_no_port_behind_the_last_one() -> None:
    with pytest.raises(ConnectionLostError, match="no port behind 65535; choose another --asapo-port"):
        AsapoGateway(AsapoSettings(port=65535)).listen()
