"""What is answered to a client of ASAP::O when something cannot be done: an HTTP status and a code of its TCP protocol."""

from __future__ import annotations

from firstlight.errors import FirstlightError

__all__ = ["Answer", "Refusal"]


class Answer:
    """Codes of the reply to a request over TCP."""

    OK = 0
    REAUTHORIZE = 1
    WARNING = 2
    WRONG_REQUEST = 3
    NOT_SUPPORTED = 4
    NO_DATA = 5
    NOT_AUTHORIZED = 6
    INTERNAL = 65535


class Refusal(FirstlightError):
    """A request of a client that is not done.

    Parameters
    ----------
    text
        What the client's user reads; some of these texts are searched for in their logs.
    status
        Of HTTP.
    code
        Of the protocol over TCP, one of `Answer`.
    """

    def __init__(self, text: str, *, status: int = 400, code: int = Answer.WRONG_REQUEST) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
