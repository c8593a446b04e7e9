"""What if TLS is hostile, to a websocket that listens? Rows J; those for clients are in tests/test_secured.py."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from certificates import client_context, server_context
from drivers import DEADLINE_S, PATIENCE, RawClient, echo, frame, head, only, until

if TYPE_CHECKING:
    from typing import Self

    from drivers import Servers

pytestmark = only("connection", because="the others have no TLS yet")
TEXT = 1


def hello() -> tuple[bytes, ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """Return a ClientHello, and what goes on with it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read(), client, incoming, outgoing


def secure(peer: RawClient) -> ssl.SSLSocket:
    """Let a peer speak TLS from now on."""
    wrapped = client_context().wrap_socket(peer.socket, server_hostname="localhost", suppress_ragged_eofs=False)
    peer.socket = wrapped
    return wrapped


def opened(server: Any) -> RawClient:
    """Return a peer after the opening handshake, by TLS."""
    peer: RawClient = server.connect()
    secure(peer)
    peer.open()
    return peer


@pytest.mark.slow
def test_j1_a_client_hello_that_drips_or_never_comes(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = serve(ssl=server_context(), onmessage=echo, open_timeout=0.4 * PATIENCE)
    silent, stopping, dripping = server.connect(), server.connect(), server.connect()
    data = hello()[0]
    stopping.send(data[: len(data) // 2])
    peer = opened(server)  # meanwhile
    peer.text("x")
    assert peer.message() == "x"
    began = time.monotonic()
    for number in range(len(data)):
        if dripping.is_ended():
            break
        dripping.send(data[number : number + 1])
        threading.Event().wait(0.01)
    assert time.monotonic() - began < 5 * PATIENCE
    for one in (silent, stopping, dripping):
        with contextlib.suppress(ConnectionError):
            assert one.socket.recv(100) == b""
    until(lambda: len(caplog.messages) >= 3, "logged")
    assert all("open_timeout" in message for message in caplog.messages)
    peer.text("y")
    assert peer.message() == "y"


def test_j1_a_handshake_byte_by_byte(serve: Servers) -> None:
    server = serve(ssl=server_context(), onmessage=echo)
    peer = server.paced()
    data, client, incoming, outgoing = hello()
    peer.send_pieces([data[number : number + 1] for number in range(len(data))])
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write(peer.socket.recv(1 << 16))
    client.write(head() + frame(TEXT, b"hello"))
    data = outgoing.read()
    peer.send_pieces([data[number : number + 1] for number in range(len(data))])
    received = b""
    while not received.endswith(b"hello"):
        try:
            received += client.read(1 << 16)
        except ssl.SSLWantReadError:
            incoming.write(peer.socket.recv(1 << 16))
    assert received.startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize("data", [head(), b"GET / HTTP/1.1\r\n", b"\0" * 100, b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_j2_no_tls(serve: Servers, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    caplog.set_level("INFO")
    server = serve(ssl=server_context(), onmessage=echo)
    peer = server.connect()
    peer.send(data)
    began = time.monotonic()
    if data.startswith(b"GET"):
        assert peer.response().status == 400
    until(peer.is_ended, "ended")
    assert time.monotonic() - began < 1 * PATIENCE
    until(lambda: server.connections() == 0, "gone")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert server.cpu_seconds() < 0.5 * PATIENCE
    opened(server).end()


def test_j4_many_frames_in_few_records_and_then_silence(serve: Servers) -> None:
    server = serve(ssl=server_context(), onmessage=echo)
    peer = opened(server)
    many = [b"%05d" % number for number in range(3000)]
    peer.send(b"".join(frame(TEXT, each) for each in many))  # 33,000 bytes, and reads of 16,384
    assert [peer.frame().payload for _ in many] == many


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_j5_records_in_many_segments(serve: Servers, size: int) -> None:
    server = serve(ssl=server_context(), onmessage=echo)
    peer = opened(server)
    client = TLSPieces(peer, server)
    message = bytes(range(256)) * 4
    client.send(frame(2, message), size)
    assert peer.message() == message


class TLSPieces:
    """Sends what TLS has made in pieces: by a relay, between a socket of the ssl module and the server."""

    def __init__(self, peer: RawClient, server: Any) -> None:
        self.plain = server.paced()
        data, self.tls, self.incoming, self.outgoing = hello()
        self.plain.send(data)
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.incoming.write(self.plain.socket.recv(1 << 16))
        peer.end()
        peer.socket = self  # type: ignore[assignment] # what it needs of one
        peer._data.clear()
        self.send(head(), 1 << 16)
        peer.opened()

    def send(self, data: bytes, size: int) -> None:
        self.tls.write(data)
        made = self.outgoing.read()
        self.plain.send_pieces([made[start : start + size] for start in range(0, len(made), size)])

    def recv(self, size: int) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                self.incoming.write(self.plain.socket.recv(1 << 16))

    def close(self) -> None:
        self.plain.end()


@pytest.mark.slow
def test_j6_a_peer_that_sends_much_and_reads_late(serve: Servers) -> None:
    """The server's send waits for the kernel, in the middle of a record, and goes on."""
    server = serve(ssl=server_context(), onmessage=echo, max_size=None)
    peer = opened(server)
    message = bytes(range(256)) * 4096 * 8
    peer.binary(message)
    for _ in range(3):
        assert peer.message() == message
        peer.binary(message)
    assert peer.message() == message


def test_j8_fin_without_close_notify(serve: Servers) -> None:
    server = serve(ssl=server_context(), onmessage=echo)
    peer = opened(server)
    peer.send(frame(TEXT, b"whole") + frame(TEXT, b"half of it")[:8])
    assert peer.message() == "whole"
    socket.socket.shutdown(peer.socket, socket.SHUT_WR)
    code, reason = server.outcome(peer)
    assert (code, server.story(peer).messages) == (1006, ["whole"])
    assert "cut" in reason


def test_j8_after_the_closing_handshake_it_is_clean(serve: Servers) -> None:
    server = serve(ssl=server_context())
    peer = opened(server)
    peer.send(b"\x88\x82\0\0\0\0\x03\xe8")
    peer.closes(1000)
    assert peer.socket.recv(1) == b"", "close_notify, and not FIN alone"
    socket.socket.shutdown(peer.socket, socket.SHUT_WR)
    assert server.outcome(peer) == (1000, "")


def test_j9_close_notify_without_a_close(serve: Servers) -> None:
    server = serve(ssl=server_context(), onmessage=echo)
    peer = opened(server)
    peer.text("x")
    assert peer.message() == "x"
    peer.socket = peer.socket.unwrap()  # type: ignore[attr-defined] # of an SSLSocket
    code, reason = server.outcome(peer)
    assert (code, server.story(peer).messages) == (1006, ["x"])
    assert "Close" in reason


# ---- what only the program of OpenSSL can do ----


class Terminal:
    """openssl s_client, after the opening handshake; a line of one letter is a command to it."""

    def __init__(self, server: Any, *options: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl isn't installed")
        command = ["openssl", "s_client", "-connect", "{}:{}".format(*server.address), *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self.output = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := self.process.stdout.read(1 << 16):
            self.output += data

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def sees(self, text: bytes) -> None:
        until(lambda: text in self.output, f"{text!r} is seen")

    def __enter__(self) -> Self:
        self.sees(b"---\n")
        self.write(head())
        self.sees(b"101 Switching Protocols")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.reader.join(DEADLINE_S)
        self.process.communicate()


def test_j7_renegotiation_is_refused(serve: Servers) -> None:
    server = serve(ssl=server_context(), onmessage=echo)
    with Terminal(server, "-tls1_2") as terminal:
        cpu = server.cpu_seconds()
        terminal.write(b"R\n")
        terminal.sees(b"RENEGOTIATING")
        until(lambda: terminal.process.poll() is not None or b"no renegotiation" in terminal.output, "refused")
        assert server.cpu_seconds() - cpu < 0.5 * PATIENCE
    opened(server).end()


def test_j10_key_updates(serve: Servers) -> None:
    """RFC 8446 §4.6.3: each wants another one of the server."""
    server = serve(ssl=server_context(), onmessage=echo)
    with Terminal(server, "-tls1_3") as terminal:
        for number in range(300):
            before = terminal.output.count(b"KEYUPDATE")
            terminal.write(b"K\n")
            until(lambda before=before: terminal.output.count(b"KEYUPDATE") > before, f"{number}")
        terminal.write(frame(TEXT, b"still here\n", key=bytes(4)))
        terminal.sees(b"still here")
