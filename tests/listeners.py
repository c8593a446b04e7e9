"""Servers made of a websocket that listens, and a thread for each client, who is a Connection or a websocket."""

from __future__ import annotations

import contextlib
import socket
import threading
from queue import SimpleQueue
from typing import Any

import wspy
from wspy import OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, Connection, Frame, websocket


class Echo(Connection):
    """A connection that answers messages with themselves, and tells the listener."""

    listener: Listener

    def onmessage(self, message: wspy.Message) -> None:
        self.send(message)

    def onpingreceived(self, payload: bytes) -> None:
        self.listener.pings.put(payload)

    def onpong(self, payload: bytes) -> None:
        self.listener.pongs.put(payload)

    def onclose(self, code: int, reason: str) -> None:
        self.listener.ended.put((code, reason))


class Listener:
    """A websocket that listens, in a thread, and a thread for each client; the subclass says what it does there."""

    def __init__(self, **options: Any) -> None:
        self.opened: SimpleQueue[Any] = SimpleQueue()
        self.pings: SimpleQueue[bytes] = SimpleQueue()
        self.pongs: SimpleQueue[bytes] = SimpleQueue()
        self.ended: SimpleQueue[tuple[int, str]] = SimpleQueue()
        self.errors: list[BaseException] = []
        self._sock = websocket(**options)
        self._sock.bind(("127.0.0.1", 0))
        self._sock.listen()
        self.url = "ws://{}:{}".format(*self._sock.getsockname())
        self._threads = [threading.Thread(target=self._accept)]
        self._clients: list[websocket] = []

    def converse(self, client: websocket) -> None:
        raise NotImplementedError

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the shutdown below
            while True:
                client, _ = self._sock.accept()
                self._clients.append(client)
                thread = threading.Thread(target=self._guarded, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _guarded(self, client: websocket) -> None:
        try:
            with client:
                self.converse(client)
        except BaseException as error:  # noqa: BLE001 -- the fixture fails for it
            self.errors.append(error)

    def start(self) -> None:
        self._threads[0].start()

    def stop(self, seconds: float) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(seconds)
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive()
        self._sock.close()


class Connections(Listener):
    """Each client is a ``Connection``."""

    def converse(self, client: websocket) -> None:
        connection = type("Told", (Echo,), {"listener": self})(client)
        self.opened.put(connection)
        connection.receive_forever()


class Websockets(Listener):
    """Each client is a ``websocket``: what Connection does by itself is done here, frame by frame."""

    def converse(self, client: websocket) -> None:
        self.opened.put(client)
        end: tuple[int, str] = 1006, ""
        with contextlib.suppress(wspy.SocketClosed):
            while True:
                frame = client.recv()
                if frame.opcode == OPCODE_PING:
                    client.send(Frame(OPCODE_PONG, frame.payload))
                elif frame.opcode == OPCODE_CLOSE:
                    assert isinstance(frame, wspy.ControlFrame)
                    code, reason = frame.unpack_close()
                    end = code or 1005, reason
                    client.send(wspy.create_close_frame(code))
                    break
                elif frame.opcode != OPCODE_PONG:
                    client.send(Frame(frame.opcode, frame.payload, final=frame.final))
        self.ended.put(end)
