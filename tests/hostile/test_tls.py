"""Does TLS let nobody do what he could not do without? Rows J of the list."""

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
from certificates import authority
from drivers import (
    BINARY,
    DEADLINE_S,
    SECURE,
    TEXT,
    RawClient,
    at,
    bytewise,
    close_frame,
    echo,
    frame,
    head,
    only,
    until,
)
from measures import PATIENCE
from tls_socket import TLSSocket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers import Servers

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl isn't installed")
secure = only(*SECURE, because="about TLS")
servers = only("epoll-tls", "threads-tls", because="about what only a server has, or does")
plain = only("epoll", "threads", because="about servers without TLS")


def tls_of(peer: RawClient) -> TLSSocket:
    assert isinstance(peer.socket, TLSSocket)
    return peer.socket


def unencrypted(server: Any) -> RawClient:
    """Return a peer that speaks no TLS to a server that does."""
    return RawClient(server.address)


def to_the_end(peer: RawClient) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := peer.socket.recv(1 << 16):
            data += more
    return data


# ---- handshakes ----


@secure
@pytest.mark.parametrize("sent", [0, 1, 5, 100], ids=["nothing", "a byte", "a header", "half a ClientHello"])
def test_j1_a_handshake_that_stops(serve: Servers, sent: int, caplog: pytest.LogCaptureFixture) -> None:
    """open_timeout is for TLS, too; others are not held up meanwhile."""
    caplog.set_level("INFO", "wspy")
    server = serve(open_timeout=0.3, onmessage=echo)
    slow = server.connect()
    hello = tls_of(slow).sealed()
    assert len(hello) > 100
    began = time.monotonic()
    slow.socket.plain.sendall(hello[:sent])
    with server.open() as other:
        other.text("hello")
        assert other.message() == "hello"
        assert slow.socket.plain.recv(1) == b""
        assert time.monotonic() - began > 0.2
        other.close()
    until(lambda: server.connections() == 0, "dropped")
    if server.has("log"):
        failures = [text.partition(" has failed: ")[2] for text in caplog.messages if text.startswith("TLS with")]
        assert failures == ["its handshake was not completed in time"] * (sent > 0)
    else:
        refusals = [message for message in caplog.messages if "closed by" not in message]
        assert ["open_timeout" in message for message in refusals] == [True]


@secure
def test_j1_a_handshake_that_is_given_up(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wspy")
    server = serve()
    peer = server.connect()
    peer.socket.plain.sendall(tls_of(peer).sealed()[:100])
    peer.socket.plain.shutdown(socket.SHUT_WR)
    assert peer.socket.plain.recv(1) == b""
    until(lambda: len(caplog.messages) == 1, "logged")
    assert caplog.messages[0].endswith(" has failed: it left") or not server.has("log")


@secure
def test_j1_a_handshake_that_drips(serve: Servers) -> None:
    """Each byte is progress, and none of them more time."""
    server = serve(open_timeout=0.3)
    slow = server.connect()
    hello = tls_of(slow).sealed()
    slow.socket.plain.settimeout(0.02)
    ended = False
    for byte in bytewise(hello):
        try:
            slow.socket.plain.send(byte)
            ended = slow.socket.plain.recv(1) == b""
        except TimeoutError:
            continue
        except OSError:
            ended = True
        if ended:
            break
    assert ended
    assert server.handshakes() == 0


@secure
@pytest.mark.parametrize("path", ["/", "/" + "x" * 100_000], ids=["a request", "a long one"])
def test_j2_plain_http(serve: Servers, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wspy")
    server = serve()
    with unencrypted(server) as peer:
        began = time.monotonic()
        peer.send(head(path))
        with contextlib.suppress(ConnectionResetError):
            assert peer.response().status == 400
            assert to_the_end(peer) == b""
        assert time.monotonic() - began < 1 * PATIENCE
    until(lambda: server.connections() == 0, "ended")
    assert server.stories == []
    assert [record.levelname for record in caplog.records] == ["INFO"]


@secure
@pytest.mark.parametrize(
    "data",
    [b"\0" * 200, b"\xff" * 200, b"SSH-2.0-x\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), b"\x15\x03\x03\0\2\2\x28"],
    ids=["zeros", "ones", "SSH", "a long record", "an alert"],
)
def test_j2_no_tls_at_all(serve: Servers, data: bytes) -> None:
    server = serve()
    cpu = server.cpu_seconds()
    with unencrypted(server) as peer:
        peer.send(data)
        assert len(to_the_end(peer)) < 100  # an alert, if anything
    until(lambda: server.connections() == 0, "ended")
    assert server.cpu_seconds() - cpu < 0.5 * PATIENCE
    server.open().close()


@plain
def test_j3_tls_where_plain_http_is_spoken(serve: Servers) -> None:
    server = serve()
    peer = server.connect()
    peer.send(TLSSocket(peer.socket).sealed())
    assert peer.response().status == 400
    peer.eof()


# ---- records ----


@secure
@pytest.mark.parametrize("count", [2, 500, 4000])
def test_j4_frames_in_one_record_and_then_silence(serve: Servers, count: int) -> None:
    """All are handled at once, although nothing more comes that would wake the server."""
    server = serve(onmessage=echo)
    peer = server.open()
    messages = [f"{number:04}" for number in range(count)]
    peer.send(b"".join(frame(TEXT, message.encode()) for message in messages))
    assert [peer.message() for _ in messages] == messages
    peer.close()


@secure
def test_j5_a_conversation_in_segments_of_one_byte(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.connect()
    tls = tls_of(peer)
    for byte in bytewise(tls.sealed()):
        tls.plain.sendall(byte)
    peer.open()
    for byte in bytewise(tls.sealed(frame(TEXT, b"hello"))):
        tls.plain.sendall(byte)
    assert peer.message() == "hello"
    peer.close()


@secure
def test_j5_a_record_at_every_split(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    tls = tls_of(peer)
    cut = 0
    while cut < len(record := tls.sealed(frame(TEXT, b"a split"))):
        for piece in at(record, cut):
            tls.plain.sendall(piece)
        assert peer.message() == "a split"
        cut += 1
    tls.plain.sendall(record)
    assert peer.message() == "a split"
    peer.close()


@secure
def test_j6_both_directions_at_once(serve: Servers) -> None:
    """Whoever waits for the one still makes progress in the other."""
    server = serve(onmessage=echo, queues=True, max_size=None)
    peer = server.open()
    payload = bytes(i % 251 for i in range(1 << 20))
    sender = threading.Thread(target=lambda: [peer.socket.plain.sendall(record) for record in records])
    records = [tls_of(peer).sealed(frame(BINARY, payload)) for _ in range(8)]
    sender.start()
    assert [peer.message() == payload for _ in range(8)] == [True] * 8
    sender.join()
    peer.close()


@secure
@pytest.mark.slow
def test_j6_a_peer_that_reads_late(serve: Servers) -> None:
    """The server has to stop in the middle of a record, and goes on there."""
    server = serve(onmessage=echo, max_size=None)
    peer = server.open()
    message = bytes(range(256)) * (1 << 15)
    for _ in range(4):
        peer.binary(message)
        assert peer.message() == message
    peer.close()


@contextlib.contextmanager
def s_client(server: Any, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """Run OpenSSL's client, until it has got the answer to an opening handshake; with what it has said so far."""
    host, port = server.address[:2]
    command = [str(OPENSSL), "s_client", "-connect", f"{host}:{port}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        try:
            assert client.stdin is not None
            client.stdin.write(head())
            client.stdin.flush()
            yield client, said_until(client, b"Sec-WebSocket-Accept")
        finally:
            client.kill()


def said_until(client: subprocess.Popen[bytes], word: bytes) -> bytes:
    """Return what it says up to the line with a word, or to its end."""
    assert client.stdout is not None
    said = b""
    while word not in said:
        line = client.stdout.readline()
        if not line:
            break
        said += line
    return said


def ask(client: subprocess.Popen[bytes], command: bytes, answer: bytes) -> bytes:
    """Have it do something, wait until it says so, and return what it says until then."""
    assert client.stdin is not None
    client.stdin.write(command)
    client.stdin.flush()
    said = said_until(client, answer)
    assert answer in said
    return said


@secure
@needs_openssl
def test_j7_renegotiation_is_refused(serve: Servers) -> None:
    server = serve()
    with s_client(server, "-tls1_2") as (client, _):
        ask(client, b"R\n", b"RENEGOTIATING")
        assert b"no renegotiation" in said_until(client, b"no renegotiation")
    until(lambda: server.connections() == 0, "ended")


# ---- ends ----


@secure
@pytest.mark.parametrize("cut", [1, 2, 6, 9], ids=str)
def test_j8_the_end_of_tcp_within_a_message(serve: Servers, cut: int) -> None:
    server = serve()
    peer = server.open()
    peer.send(frame(TEXT, b"hello")[:cut])
    peer.socket.plain.shutdown(socket.SHUT_WR)
    assert server.outcome(peer)[0] == 1006
    assert server.story(peer).messages == []


@secure
def test_j8_the_end_of_tcp_within_a_record(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    tls = tls_of(peer)
    tls.plain.sendall(tls.sealed(frame(TEXT, b"hello"))[:-1])
    tls.plain.shutdown(socket.SHUT_WR)
    assert server.outcome(peer)[0] == 1006
    assert server.story(peer).messages == []


@secure
def test_j8_after_the_closing_handshake_it_is_clean(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    peer.send(close_frame(1000, "bye"))
    peer.socket.plain.shutdown(socket.SHUT_WR)
    peer.closes(1000)
    peer.eof()
    assert not tls_of(peer).is_cut_off
    assert server.outcome(peer) == (1000, "bye")


@secure
def test_j9_close_notify_without_a_close_frame(serve: Servers) -> None:
    """It is answered by close_notify (RFC 8446 §6.1), and tells nothing of WebSocket (RFC 6455 §7.1.5)."""
    server = serve(onmessage=echo)
    peer = server.open()
    peer.text("before")
    tls = tls_of(peer)
    with contextlib.suppress(ssl.SSLError):
        tls.tls.unwrap()
    tls.flush()
    assert peer.message() == "before"
    peer.eof()
    assert not tls.is_cut_off
    assert server.outcome(peer)[0] == 1006


@secure
def test_a_record_that_was_changed_ends_the_connection(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    tls = tls_of(peer)
    good, bad = tls.sealed(frame(TEXT, b"good")), bytearray(tls.sealed(frame(TEXT, b"bad")))
    bad[-1] ^= 1
    tls.plain.sendall(good + bytes(bad))
    assert server.outcome(peer)[0] == 1006
    assert server.story(peer).messages == ["good"]
    with pytest.raises(ssl.SSLError, match=r"(?i)bad[_ ]record[_ ]mac"):
        peer.socket.recv(1)


# ---- after the handshake ----


@secure
@needs_openssl
def test_j10_key_updates_and_early_data(serve: Servers) -> None:
    """Updates hold nothing up, and tests/core/test_raw.py has their bound; data before the handshake isn't taken."""
    server = serve(onopen=lambda client: None)
    with s_client(server, "-tls1_3") as (client, greeting):
        said = greeting + b"".join(ask(client, b"K\n", b"KEYUPDATE") for _ in range(100))
        server.wait(lambda: server.stories, "onopen")
        [story] = server.stories
        story.client.send("still here\n")
        said += said_until(client, b"still here")
        assert b"still here" in said
        said += client.communicate(b"Q\n", timeout=DEADLINE_S)[0]  # what it says of tickets may wait until then
        assert b"Max Early Data: 0" in said


# ---- certificates ----


def serial(peer: RawClient) -> int:
    """Return the number of the certificate that a peer has got."""
    tls_of(peer).shake_hands()
    found = tls_of(peer).tls.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def files(directory: Path, name: str) -> tuple[Path, Path]:
    """Write a new certificate and its key."""
    issued = authority().issue_cert("localhost")
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


@servers
def test_j12_another_certificate_while_serving(serve: Servers, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files(tmp_path, "first"))
    server = serve(onmessage=echo, ssl=context)
    old = server.open()
    certfile, keyfile = files(tmp_path, "second")
    server.server.reload_tls(certfile=certfile, keyfile=keyfile)
    new = server.open()
    assert serial(old) != serial(new)
    for peer in (old, new):
        peer.text("hello")
        assert peer.message() == "hello"
        peer.close()


@servers
def test_j12_a_pair_that_does_not_match_changes_nothing(serve: Servers, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files(tmp_path, "first"))
    server = serve(ssl=context)
    before = serial(server.open())
    certificate, _ = files(tmp_path, "second")
    _, other = files(tmp_path, "third")
    for wrong in (other, tmp_path / "nowhere"):
        with pytest.raises(OSError):
            server.server.reload_tls(certificate, wrong)
    assert serial(server.open()) == before


@secure
def test_j12_another_context(serve: Servers, tmp_path: Path) -> None:
    server = serve(onmessage=echo)
    old = server.open()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files(tmp_path, "other"))
    server.change_tls(context)
    new = server.open()
    assert serial(new) != serial(old)
    for peer in (old, new):
        peer.text("hello")
        assert peer.message() == "hello"
        peer.close()


# ---- many ----


@secure
@pytest.mark.slow
def test_j13_handshakes_do_not_hold_up_who_is_there(serve: Servers, patience: float) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    others = [server.connect() for _ in range(100)]
    for other in others:
        other.socket.plain.sendall(tls_of(other).sealed())
    gaps = []
    for _ in range(50):
        began = time.monotonic()
        peer.text("hello")
        assert peer.message() == "hello"
        gaps.append(time.monotonic() - began)
    assert max(gaps) < 0.25 * patience
    for other in others:
        other.open()
    until(lambda: len(server.stories) == 101, "all are open")
