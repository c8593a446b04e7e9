"""Does a connection send and receive messages, answer control frames, and end in order?"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import wspy
from wspy import BinaryMessage, Connection, SocketClosed, TextMessage, websocket

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 15.0


class Recorder(Connection):
    """A connection that answers messages with themselves, and keeps what onclose was told."""

    ended: tuple[int, str] | None = None

    def onmessage(self, message: wspy.Message) -> None:
        self.send(message)

    def onclose(self, code: int, reason: str) -> None:
        assert self.ended is None
        self.ended = code, reason


@pytest.fixture
def echo() -> Iterator[Connection]:
    """A connection to a server that answers messages with themselves."""
    served: list[Recorder] = []

    def serve() -> None:
        served.append(Recorder(listener.accept()[0]))
        served[0].receive_forever()

    with websocket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        with Recorder.connect(listener.getsockname()) as connection:
            connection.sock.settimeout(DEADLINE_S)
            yield connection
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert served[0].ended is not None


@pytest.mark.parametrize("size", [None, 1, 1000])
def test_messages_go_both_ways(echo: Connection, size: int | None) -> None:
    for message in (TextMessage("höllo" * 500), BinaryMessage(b""), BinaryMessage(b"x" * 3000)):
        echo.send(message, size)
        assert echo.recv() == message


def test_a_close_is_echoed_and_told_once(echo: Connection) -> None:
    echo.close(3000, "reason")
    assert (echo.close_code, echo.closed) == (3000, True)
    with pytest.raises(SocketClosed):
        echo.send("more")
    with pytest.raises(SocketClosed):
        echo.recv()
    echo.close()
