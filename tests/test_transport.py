"""Do frames and messages get over TLS as they do without? And is nobody believed who isn't to be?"""

from __future__ import annotations

import contextlib
import datetime as dt
import inspect
import socket
import ssl
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import test_connection
import test_websocket
import trustme
from certificates import authority, client_context, server_context
from drivers import DEADLINE_S, accept_value, until
from sockets import RawServer, Running, connected, listening, secured
from steps import at_each_step

import wspy
from wspy import OPCODE_BINARY, OPCODE_TEXT, Frame, SocketClosed, websocket
from wspy.contexts import default_context
from wspy.deadline import Deadline
from wspy.reception import LINGER_BYTES
from wspy.tls import TLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OTHERWISE: dict[str, str] = {}
"""Scenarios that say something of TCP alone, and what."""


FIXTURES = {"caplog", "monkeypatch", "patience", "tmp_path"}


def is_scenario(function: Any) -> bool:
    """Return whether a function connects two of ours and nobody else, with nothing that varies."""
    if not inspect.isfunction(function) or not function.__name__.startswith("test_"):
        return False
    if hasattr(function, "pytestmark") or not inspect.signature(function).parameters.keys() <= FIXTURES:
        return False
    source = inspect.getsource(function)
    return ("connected(" in source or "both(" in source) and function.__name__ not in OTHERWISE


def scenarios() -> list[Any]:
    return [each for each in (*vars(test_websocket).values(), *vars(test_connection).values()) if is_scenario(each)]


@pytest.mark.parametrize("scenario", scenarios(), ids=lambda each: f"{each.__module__}-{each.__name__}")
def test_by_tls(scenario: Callable[..., None], request: pytest.FixtureRequest) -> None:
    arguments = {name: request.getfixturevalue(name) for name in inspect.signature(scenario).parameters}
    with secured():
        scenario(**arguments)


def test_each_exception_is_needed() -> None:
    names = {*vars(test_websocket), *vars(test_connection)}
    assert names >= OTHERWISE.keys()


# ---- certificates and names ----


@contextlib.contextmanager
def refusing(context: ssl.SSLContext) -> Iterator[int]:
    """Listen as long as a client is refused or refuses, and return the port."""
    with listening(ssl=context) as listener:
        accepting = Running(listener.accept)
        yield listener.getsockname()[1]
        listener.close()
        with pytest.raises(SocketClosed):
            accepting.result()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_j11_the_name_is_asked_for_and_checked(host: str) -> None:
    asked: list[str | None] = []
    context = server_context()
    context.sni_callback = lambda _, name, __: asked.append(name)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with websocket(sfamily=family, ssl=context) as listener, websocket(sfamily=family, ssl=client_context()) as client:
        listener.bind(("::1" if ":" in host else "127.0.0.1", 0))
        listener.listen()
        accepting = Running(lambda: listener.accept()[0])
        assert not client.secure
        assert client.ssl_object is None
        client.connect(f"wss://{host}:{listener.getsockname()[1]}/path")
        with accepting.result() as server:
            assert asked == ["localhost" if host.lower() == "localhost" else None]  # RFC 6066 §3: no address
            assert client.secure
            assert server.secure
            assert server.location == "/path"
            assert client.ssl_object.version() == server.ssl_object.version() == "TLSv1.3"
            assert ("DNS", "localhost") in client.ssl_object.getpeercert()["subjectAltName"]


def an_hour_ago() -> dt.datetime:
    return dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)


@pytest.mark.parametrize(
    ("server", "client", "reason"),
    [
        (lambda: server_context(["other.example"]), client_context, "mismatch"),
        (lambda: server_context(["127.0.0.1"]), client_context, "mismatch"),
        (lambda: server_context(expires=an_hour_ago()), client_context, "expired"),
        (lambda: server_context(signer=trustme.CA()), client_context, "unable to get local issuer|self.signed"),
        (server_context, lambda: None, "unable to get local issuer|self.signed"),
    ],
    ids=["another name", "an address", "expired", "a stranger has signed", "nobody trusts it by default"],
)
def test_j11_a_certificate_that_is_refused(
    server: Callable[[], ssl.SSLContext],
    client: Callable[[], ssl.SSLContext | None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with refusing(server()) as port, websocket(ssl=client()) as one:
        with pytest.raises(ssl.SSLCertVerificationError, match=f"(?i){reason}"):
            one.connect(f"wss://localhost:{port}/")
        assert one.fileno() == -1
        until(lambda: caplog.messages, "logged")
    assert len(caplog.messages) == 1
    assert "alert" in caplog.text.lower()


def test_j11_who_says_so_verifies_nothing() -> None:
    context = client_context(check_hostname=False, verify_mode=ssl.CERT_NONE)
    with connected({"ssl": context}, ssl=server_context(["other.example"])) as (client, server):
        client.send(Frame(OPCODE_TEXT, "x"))
        assert server.recv().text == "x"


def test_certificates_of_clients() -> None:
    context, own = server_context(), client_context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    authority().issue_cert("somebody@example.org").configure_cert(own)
    with connected({"ssl": own}, ssl=context) as (_, server):
        assert ("email", "somebody@example.org") in server.ssl_object.getpeercert()["subjectAltName"]
        assert server.request.ssl_object is server.ssl_object
    with refusing(context) as port, websocket(ssl=client_context()) as one, pytest.raises(OSError, match=r"(?i)alert"):
        one.connect(f"wss://localhost:{port}/")


# ---- which addresses are secure ----


def test_addresses_that_are_no_uri(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    unix = {"sfamily": socket.AF_UNIX}
    with websocket(ssl=server_context(), **unix) as listener, websocket(ssl=client_context(), **unix) as client:
        listener.bind(path)
        listener.listen()
        accepting = Running(lambda: listener.accept()[0])
        client.connect(path)
        with accepting.result() as server:
            assert server.secure
            assert server.request.headers["host"] == "localhost"


def test_a_socket_that_was_passed_in() -> None:
    asked: list[str | None] = []
    context = server_context()
    context.sni_callback = lambda _, name, __: asked.append(name)
    with (
        listening(ssl=context) as listener,
        websocket(socket.create_connection(listener.getsockname()), ssl=client_context()) as client,
    ):
        accepting = Running(lambda: listener.accept()[0])
        client.connect("wss://name.example./")
        with accepting.result() as server:
            assert server.request.headers["host"] == "name.example."
            assert asked == ["name.example"], "RFC 6066 §3: no dot at the end"


def test_m7_redirects_lead_from_ws_to_wss_and_not_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(location: str) -> bytes:
        return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()

    with listening(ssl=server_context()) as listener, socket.create_server(("127.0.0.1", 0)) as first:
        accepting = Running(lambda: listener.accept()[0])
        authority().cert_pem.write_to_path(str(tmp_path / "trusted"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted"))
        default_context.cache_clear()
        with websocket(extra_headers={"Cookie": "secret"}) as client:
            connecting = Running(lambda: client.connect(f"ws://localhost:{first.getsockname()[1]}/"))
            with first.accept()[0] as sock:
                assert b"secret" in sock.recv(1 << 16)
                sock.sendall(moved(f"wss://localhost:{listener.getsockname()[1]}/there"))
            with accepting.result() as server:
                connecting.result()
                assert client.secure
                assert server.location == "/there"
                assert "cookie" not in server.request.headers
        default_context.cache_clear()
    with tls_server() as (port, accept), websocket(ssl=client_context()) as client:
        connecting = Running(lambda: client.connect(f"wss://localhost:{port}/"))
        with accept() as sock:
            sock.recv(1 << 16)
            sock.sendall(moved("ws://localhost/"))
            with pytest.raises(wspy.ResponseError, match="redirect"):
                connecting.result()


def test_a_context_for_the_other_side() -> None:
    with websocket(ssl=client_context()) as listener, pytest.raises(ValueError, match="other side"):
        listener.listen()
    with websocket(ssl=server_context()) as client, pytest.raises(ValueError, match="other side"):
        client.connect(("127.0.0.1", 1))
    one, other = socket.socketpair()
    with other, websocket(one, ssl=client_context()) as server, pytest.raises(ValueError, match="other side"):
        server.do_handshake()


def test_what_one_changes_in_its_context_changes_no_other() -> None:
    """Else whoever trusts everybody once, or shows a certificate, would let all connections do so."""
    with websocket() as one, websocket() as other:
        for each in (one, other):
            each.enable_ssl()
        assert one.ssl is not None
        assert other.ssl is not None
        one.ssl.check_hostname = False
        one.ssl.verify_mode = ssl.CERT_NONE
        for context in (other.ssl, default_context()):
            assert context.verify_mode is ssl.CERT_REQUIRED


def test_enable_ssl(tmp_path: Path) -> None:
    certificate, key, trusted = (str(tmp_path / name) for name in ("certificate", "key", "trusted"))
    issued = authority().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority().cert_pem.write_to_path(trusted)
    with listening() as listener, websocket() as client:
        listener.enable_ssl(key, certificate)
        client.enable_ssl(ca_certs=trusted)
        accepting = Running(lambda: listener.accept()[0])
        client.connect(("localhost", listener.getsockname()[1]))
        with accepting.result() as server:
            assert server.secure
            for one in (client, server):
                with pytest.raises(wspy.SSLError, match="before"):
                    one.enable_ssl()


def test_enable_ssl_with_a_certificate_of_a_client(tmp_path: Path) -> None:
    """Which side this is, nobody has said yet."""
    pem, trusted = str(tmp_path / "pem"), str(tmp_path / "trusted")
    authority().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    authority().cert_pem.write_to_path(trusted)
    with listening() as listener, websocket() as client:
        for one in (listener, client):
            one.enable_ssl(certfile=pem, ca_certs=trusted)
        accepting = Running(lambda: listener.accept()[0])
        client.connect(("localhost", listener.getsockname()[1]))
        with accepting.result() as server:
            assert ("DNS", "localhost") in server.ssl_object.getpeercert()["subjectAltName"]


def test_enable_ssl_with_a_key_alone() -> None:
    with websocket() as one, pytest.raises(ValueError, match="certfile"):
        one.enable_ssl("key")


def test_who_asks_for_tls_where_there_is_none_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket(ssl=client_context()) as client:

        def answer() -> None:
            with listener.accept()[0] as sock:
                sock.recv(100)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                sock.recv(100)

        answering = Running(answer)
        with pytest.raises(ssl.SSLError) as caught:
            client.connect(f"wss://localhost:{listener.getsockname()[1]}/")
        assert caught.value.__notes__ == ["it doesn't speak TLS"]
        answering.result()


# ---- how it begins and ends ----


@contextlib.contextmanager
def tls_server() -> Iterator[tuple[int, Callable[[], ssl.SSLSocket]]]:
    """Return a port, and what accepts a client there and does the TLS handshake, by the ssl module."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)

        def accept() -> ssl.SSLSocket:
            sock = listener.accept()[0]
            sock.settimeout(DEADLINE_S)
            return server_context().wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)

        yield listener.getsockname()[1], accept


@contextlib.contextmanager
def raw() -> Iterator[tuple[websocket, ssl.SSLSocket]]:
    """Return a client, and a server that sends any bytes by TLS, after the opening handshake."""
    with tls_server() as (port, accept), websocket(ssl=client_context()) as client:
        client.settimeout(DEADLINE_S)
        connecting = Running(lambda: client.connect(f"wss://localhost:{port}/"))
        with accept() as sock:
            peer = RawServer(sock)
            peer.read_request()
            peer.answer()
            connecting.result()
            yield client, sock


def test_j8_the_end_of_tcp_alone_is_told_from_that_of_tls() -> None:
    with raw() as (client, sock):
        sock.sendall(b"\x81\x01x\x81\x05he")
        socket.socket.shutdown(sock, socket.SHUT_WR)
        assert client.recv().text == "x"
        with pytest.raises(SocketClosed, match="was cut") as caught:
            client.recv()
        assert caught.value.code == 1006


def test_j9_the_end_of_tls_is_the_end_though_tcp_goes_on() -> None:
    with raw() as (client, sock):
        sock.sendall(b"\x81\x01x")
        ending = Running(sock.unwrap)  # waits for the other end's
        assert client.recv().text == "x"
        with pytest.raises(SocketClosed, match="without a Close") as caught:
            client.recv()
        assert caught.value.code == 1006
        client.close()
        ending.result().close()


def test_records_that_hold_nothing_do_not_put_off_the_end() -> None:
    """Such are those with tickets (RFC 8446 §4.6.1), of which a server sends as many as it likes."""
    context = server_context()
    context.num_tickets = 6000
    tls = TLS(context, server_side=True)
    own, peer = socket.socketpair()
    peer.settimeout(DEADLINE_S)
    deadline = Deadline(DEADLINE_S)
    with peer, websocket(own) as client:

        def converse() -> None:
            client._secure_as_client(TLS(client_context(), server_side=False, server_hostname="localhost"), deadline)
            client._flush_all(deadline)
            client._drain(deadline)

        conversing = Running(converse)
        while not tls.is_open:
            tls.receive(peer.recv(1 << 16))
            records = tls.take()
            peer.sendall(records[:LINGER_BYTES])
        assert len(records) > LINGER_BYTES
        conversing.result()


def test_a_server_that_waits_with_tcp_for_the_end_of_tls_is_answered() -> None:
    """Such are those of asyncio. Here the Close and close_notify arrive together."""
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket(ssl=client_context()) as client:
        connecting = Running(lambda: client.connect(("localhost", listener.getsockname()[1])))
        with listener.accept()[0] as sock:
            sock.settimeout(DEADLINE_S)
            tls = TLS(server_context(), server_side=True)

            def receive() -> bytes:
                data = tls.receive(sock.recv(1 << 16))
                sock.sendall(tls.take())
                return data

            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += receive()
            key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r")[0].decode()
            tls.send(answer(accept_value(key)))
            sock.sendall(tls.take())
            connecting.result()
            connection = wspy.Connection(client, close_timeout=None)
            closing = Running(connection.close)
            assert receive()[:1] == b"\x88"
            tls.send(b"\x88\x02\x03\xe8")
            tls.close()
            sock.sendall(tls.take())
            while not tls.has_ended:
                assert receive() == b""
            assert sock.recv(1) == b""
            closing.result()
            assert connection.close_code == 1000


def answer(accept: str) -> bytes:
    fields = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}")
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *fields, "", ""]).encode()


def test_after_the_end_of_sending_what_arrives_is_still_received() -> None:
    with connected({"ssl": client_context()}, ssl=server_context()) as (client, server):
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(SocketClosed, match="without a Close"):
            server.recv()
        server.send(Frame(OPCODE_TEXT, "still"), Frame(OPCODE_TEXT, "here"))
        assert [client.recv().text, client.recv().text] == ["still", "here"]
        with pytest.raises(SocketClosed, match=r"(?i)shutdown"):
            client.send(Frame(OPCODE_TEXT, "x"))


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_tls_is_ended_before_tcp(how: str) -> None:
    with raw() as (client, sock):
        client.send(Frame(OPCODE_TEXT, "x" * 1000))
        client.close() if how == "close" else client.shutdown(socket.SHUT_WR)
        received = b""
        while data := sock.recv(1 << 16):  # and not ssl.SSLEOFError at the end
            received += data
        assert len(received) == 1000 + 8


def test_what_is_no_record_ends_the_connection_with_an_alert() -> None:
    with raw() as (client, sock):
        sock.sendall(b"\x81\x01x")
        socket.socket.send(sock, b"no record at all")
        assert client.recv().text == "x"
        with pytest.raises(SocketClosed, match="lost"):
            client.recv()
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            sock.recv(100)


def test_j2_a_server_that_speaks_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket(ssl=client_context()) as client:
        connecting = Running(lambda: client.connect(f"wss://localhost:{listener.getsockname()[1]}/"))
        with listener.accept()[0] as sock:
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with pytest.raises(ssl.SSLError, match="WRONG_VERSION"):
                connecting.result()


def test_a_server_that_ends_instead_of_setting_up_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket(ssl=client_context()) as client:
        connecting = Running(lambda: client.connect(f"wss://localhost:{listener.getsockname()[1]}/"))
        with listener.accept()[0] as sock:
            sock.recv(1)
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(SocketClosed, match="TLS"):
                connecting.result()


def test_j1_a_server_that_is_silent() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        websocket(ssl=client_context(), open_timeout=0.1) as client,
    ):
        with pytest.raises(TimeoutError):
            client.connect(f"wss://localhost:{listener.getsockname()[1]}/")
        assert client.fileno() == -1


def test_a_server_that_speaks_first_or_ends_early() -> None:
    for data, expected in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", wspy.ResponseError),
        (b"", wspy.ResponseError),
    ):
        with tls_server() as (port, accept), websocket(ssl=client_context()) as client:
            connecting = Running(lambda port=port, client=client: client.connect(f"wss://localhost:{port}/"))
            with accept() as sock:
                if data:
                    sock.sendall(data)
                else:
                    sock.recv(1 << 16)
                    ending = Running(sock.unwrap)
                with pytest.raises(expected):
                    connecting.result()
                if not data:
                    ending.result().close()


def test_do_handshake_on_a_socket_that_was_accepted_elsewhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket(ssl=client_context()) as client:
        connecting = Running(lambda: client.connect(("localhost", listener.getsockname()[1])))
        with websocket(listener.accept()[0], ssl=server_context()) as server:
            server.do_handshake()
            connecting.result()
            server.send(Frame(OPCODE_TEXT, "x"))
            assert client.recv().text == "x"
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n")
        with websocket(listener.accept()[0], ssl=server_context()) as server, pytest.raises(ssl.SSLError):
            server.do_handshake()


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 100, 1 << 16])
def test_in_a_loop_whose_reads_are_of_any_size(size: int) -> None:
    with listening(ssl=server_context()) as listener, websocket(ssl=client_context()) as client:
        client.settimeout(DEADLINE_S)
        connecting = Running(lambda: client.connect(listener.getsockname()))
        listener.setblocking(flag=False)
        found: list[websocket] = []
        until(lambda: found.extend(accepted(listener)) or found, "accepted")
        (server,) = found
        received: list[Any] = []
        server.recv_callback = received.append

        def turn() -> None:
            if server.can_send():
                server.do_async_send()
            with contextlib.suppress(BlockingIOError):
                server.do_async_recv(size)

        until(lambda: turn() or (server.handshake_sent and not server.can_send()), "opened")
        connecting.result()
        client.send(Frame(OPCODE_TEXT, "x" * 500), Frame(OPCODE_TEXT, "y"))
        until(lambda: turn() or len(received) == 2, "received")
        server.queue_send(Frame(OPCODE_TEXT, "z"))
        until(lambda: turn() or not server.can_send(), "sent")
        assert client.recv().text == "z"
        server.close()


def accepted(listener: websocket) -> list[websocket]:
    try:
        return [listener.accept()[0]]
    except BlockingIOError:
        return []


def test_j6_both_send_much_at_once() -> None:
    count, size = 100, 100_000
    with connected({"ssl": client_context(), "max_size": None}, ssl=server_context(), max_size=None) as ends:

        def send(own: websocket) -> None:
            for _ in range(count):
                own.send(Frame(OPCODE_BINARY, bytes(size)))

        sending = [Running(partial(send, own)) for own in ends]
        receiving = [Running(lambda own=own: sum(len(own.recv().payload) for _ in range(count))) for own in ends]
        assert [each.result() for each in receiving] == [count * size] * 2
        for each in sending:
            each.result()


def test_a_signal_handler_may_receive_while_its_thread_sends() -> None:
    modules = [sys.modules[f"wspy.{name}"] for name in ("outbox", "tls", "transport")]
    message = Frame(OPCODE_BINARY, bytes(20_000))
    received: list[Frame] = []
    calls = 0
    with connected({"ssl": client_context()}, ssl=server_context()) as (own, peer):
        for _ in at_each_step(modules, lambda: own.send(message), lambda: received.append(own.recv())):
            calls += 1
            peer.send(Frame(OPCODE_TEXT, "x"))
        assert [peer.recv().payload for _ in range(calls)] == [message.payload] * calls
    assert [frame.text for frame in received] == ["x"] * (calls - 1)
