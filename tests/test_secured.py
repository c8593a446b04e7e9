"""Do events with ciphertext and plaintext become the right commands, whatever is raised meanwhile?"""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import logging
import ssl
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from certificates import authority, client_context, server_context
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from steps import at_each_step

from wspy import loop as core
from wspy.journal import Journal
from wspy.secured import Secured
from wspy.tls import TLS

if TYPE_CHECKING:
    from pathlib import Path

    Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

SLOT = 7
HANDLE = 1 << 24 | SLOT
FEED, FEED_END, RAW_SEND, ABORT = (
    core.key(HANDLE | command) for command in (core.FEED, core.FEED_END, core.RAW_SEND, core.ABORT)
)


class Queue:
    """What Secured asks of a loop, with the payloads of its events."""

    def __init__(self) -> None:
        self.arena = bytearray()
        self.commands: list[tuple[bytes, bytes]] = []

    def push(self, commands: Any) -> None:
        """Take commands."""
        assert len(commands) % 3 == 0
        for key, prefix, payload in zip(commands[::3], commands[1::3], commands[2::3], strict=True):
            assert int.from_bytes(prefix[:4], "little") == len(prefix) - 4 + len(payload)
            self.commands.append((key, prefix[4:] + payload))

    @staticmethod
    def handle(slot: int) -> int:
        """Return the one there is."""
        assert slot == SLOT
        return HANDLE

    @staticmethod
    def peer(handle: int) -> None:
        """Know no address."""
        assert handle == HANDLE

    def take(self) -> list[tuple[bytes, bytes]]:
        """Return the commands since the last time."""
        taken, self.commands = self.commands, []
        return taken


class Conversation:
    """A client, and the server's side of its connection."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.queue = Queue()
        self.secured = Secured(context or server_context(), self.queue, Journal(logging.getLogger("wspy.server")))  # type: ignore[arg-type]
        self.client = TLS(client_context(), server_side=False, server_hostname="localhost")

    def event(self, kind: int, payload: bytes = b"") -> None:
        """Let an event come up."""
        self.queue.arena[:] = b"of another" + payload
        assert list(self.secured.others([(SLOT, kind, len(b"of another"), len(payload))])) == []

    def receive(self, ciphertext: bytes) -> None:
        """Let something come from the peer."""
        self.event(core.EVENT_RAW | core.EVENT_APART, ciphertext)

    def send(self, plaintext: bytes, *, is_last: bool = False) -> None:
        """Let something go to the peer."""
        self.event((core.EVENT_OUT_LAST if is_last else core.EVENT_OUT) | core.EVENT_APART, plaintext)

    def open(self) -> None:
        """Perform the handshake."""
        while ciphertext := self.client.take():
            self.receive(ciphertext)
            for key, payload in self.queue.take():
                assert key == RAW_SEND
                assert payload[:1] == b"\0"
                self.client.receive(payload[1:])


@pytest.fixture
def opened() -> Conversation:
    conversation = Conversation()
    conversation.open()
    return conversation


def test_ciphertext_becomes_feed(opened: Conversation) -> None:
    opened.client.send(b"hello")
    opened.receive(opened.client.take())
    assert opened.queue.take() == [(FEED, b"hello")]


def test_half_a_record_becomes_nothing(opened: Conversation) -> None:
    opened.client.send(b"hello")
    opened.receive(opened.client.take()[:-1])
    assert opened.queue.take() == []


def test_plaintext_becomes_one_raw_send(opened: Conversation) -> None:
    opened.send(b"x" * 40_000)
    [(key, payload)] = opened.queue.take()
    assert (key, payload[:1]) == (RAW_SEND, core.OUT)
    assert opened.client.receive(payload[1:]) == b"x" * 40_000


def test_the_last_plaintext_has_close_notify_behind_it(opened: Conversation) -> None:
    opened.send(b"bye", is_last=True)
    [(key, payload)] = opened.queue.take()
    assert (key, payload[:1]) == (RAW_SEND, core.OUT_AND_LAST)
    assert opened.client.receive(payload[1:]) == b"bye"
    assert opened.client.has_ended


def test_an_end_before_the_first_byte_says_nothing() -> None:
    conversation = Conversation()
    conversation.send(b"lost", is_last=True)
    assert conversation.queue.take() == [(RAW_SEND, core.OUT_AND_LAST)]


def test_j9_close_notify_becomes_an_end(opened: Conversation) -> None:
    opened.client.send(b"last")
    opened.client.close()
    opened.receive(opened.client.take())
    assert opened.queue.take() == [(FEED, b"last"), (FEED_END, b"\0")]


def test_j8_the_end_of_tcp_becomes_one(opened: Conversation) -> None:
    opened.receive(b"")
    assert opened.queue.take() == [(FEED_END, b"\0")]


def test_j2_plain_http_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    conversation = Conversation()
    with caplog.at_level(logging.INFO, "wspy.server"):
        conversation.receive(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    (key, answer), end = conversation.queue.take()
    assert (key, end) == (RAW_SEND, (FEED_END, b"\1"))
    head, body = answer[1:].split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert [record.getMessage() for record in caplog.records] == [
        "TLS with unknown has failed: it speaks HTTP without TLS"
    ]
    assert caplog.records[0].exc_info is None


def test_plaintext_before_a_failure_comes_before_its_end(opened: Conversation) -> None:
    opened.client.send(b"good")
    good = opened.client.take()
    opened.client.send(b"bad")
    bad = opened.client.take()
    opened.receive(good + bad[:-1] + bytes([bad[-1] ^ 1]))
    alert, fed, end = opened.queue.take()
    assert alert[0] == RAW_SEND
    assert fed == (FEED, b"good")
    assert end == (FEED_END, b"\1")


def test_what_can_not_be_sent_any_more_ends_the_connection(opened: Conversation) -> None:
    opened.send(b"", is_last=True)
    opened.queue.take()
    opened.send(b"more")
    assert opened.queue.take() == [(ABORT, b"")]


class InterruptionError(BaseException):
    """Nothing that anybody expects."""


@pytest.mark.parametrize("kind", [InterruptionError, ZeroDivisionError])
@pytest.mark.parametrize("what", ["received", "to_send"])
def test_an_interruption_ends_the_connection(
    opened: Conversation,
    what: str,
    kind: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Part of a record may be lost: nobody could read what follows. Others go on, unless it is for the program."""

    def interrupt(*_: object) -> None:
        raise kind

    for method in ("receive", "seal"):
        monkeypatch.setattr(TLS, method, interrupt)
    with pytest.raises(kind) if kind is InterruptionError else contextlib.nullcontext():
        if what == "received":
            opened.receive(b"x")
        else:
            opened.send(b"x")
    assert opened.queue.take() == [(ABORT, b"")]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * (kind is ZeroDivisionError)


@pytest.mark.parametrize("kind", [InterruptionError, MemoryError])
@pytest.mark.parametrize("what", ["received", "to_send"])
def test_a_connection_that_can_not_begin_ends_alone(
    what: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind

    monkeypatch.setattr(TLS, "__init__", fail)
    new = Conversation.__new__(Conversation)
    new.queue = Queue()
    new.secured = Secured(server_context(), new.queue, Journal(logging.getLogger("wspy.server")))  # type: ignore[arg-type]
    with pytest.raises(kind) if kind is InterruptionError else contextlib.nullcontext():
        if what == "received":
            new.receive(b"x")
        else:
            new.send(b"x")
    assert new.queue.take() == [(ABORT, b"")]
    assert new.secured.ssl_object(HANDLE) is None
    assert [record.levelname for record in caplog.records] == ["ERROR"] * (kind is MemoryError)


def test_who_is_gone_is_forgotten(opened: Conversation) -> None:
    assert isinstance(opened.secured.ssl_object(HANDLE), ssl.SSLObject)
    assert opened.secured.ssl_object(HANDLE + (1 << 24)) is None, "another one in the same slot"
    opened.event(core.EVENT_GONE)
    opened.event(core.EVENT_GONE)
    assert opened.secured.ssl_object(HANDLE) is None


# ---- certificates ----


def test_j12_files_that_change_meanwhile_change_nothing(tmp_path: Path) -> None:
    """Both are read once: a key that doesn't belong to its certificate would let nobody connect any more."""
    first, second = (authority().issue_cert("localhost") for _ in range(2))
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    first.cert_chain_pems[0].write_to_path(certificate)
    plain = load_pem_private_key(first.private_key_pem.bytes(), None)
    key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    asked: list[None] = []

    def password() -> str:
        asked.append(None)
        second.cert_chain_pems[0].write_to_path(certificate)
        return "secret"

    conversation = Conversation()
    conversation.secured.reload(certificate, key, password)
    conversation.open()
    assert conversation.client.is_open
    assert conversation.client.ssl_object.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(
        first.cert_chain_pems[0].bytes().decode()
    )
    assert len(asked) == 1


def test_j12_keys_go_with_files_alone(tmp_path: Path) -> None:
    conversation = Conversation()
    with pytest.raises(TypeError, match="has its keys"):
        conversation.secured.reload(server_context(), tmp_path / "key", None)


def test_j12_another_certificate_is_for_those_who_come(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost").configure_cert(context)
    conversation = Conversation(context)
    conversation.open()
    other = authority().issue_cert("localhost")
    path = tmp_path / "both.pem"
    other.private_key_and_cert_chain_pem.write_to_path(path)
    before = conversation.client.ssl_object.getpeercert()
    conversation.secured.reload(path, None, None)
    conversation.event(core.EVENT_GONE)
    conversation.client = TLS(client_context(), server_side=False, server_hostname="localhost")
    conversation.open()
    assert conversation.client.ssl_object.getpeercert() != before


def signed(key: Key, signer: Key) -> bytes:
    """Return a certificate of a key."""
    name, today = x509.Name([]), dt.datetime.now(dt.UTC)
    tomorrow = today + dt.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), today, tomorrow)
    return builder.sign(signer, hashes.SHA384()).public_bytes(Encoding.PEM)


def written(path: Path, key: Key, *certificates: bytes) -> Path:
    """Write a key and its chain."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + b"".join(certificates))
    return path


def of_level(level: int) -> ssl.SSLContext:
    """Return a context that refuses what its level of security is above."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(f"DEFAULT:@SECLEVEL={level}")
    return context


def test_j12_what_a_strict_context_refuses_changes_nothing(tmp_path: Path) -> None:
    """A chain is taken in part, before it is found to be too weak."""
    context = of_level(3)
    authority().issue_cert("localhost").configure_cert(context)
    conversation = Conversation(context)
    key, weak = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
    chain = written(tmp_path / "chain", key, signed(key, weak), signed(weak, weak))
    with pytest.raises(ssl.SSLError, match="CA_KEY_TOO_SMALL"):
        conversation.secured.reload(chain, None, None)
    conversation.open()
    assert conversation.client.is_open


def test_j12_what_a_lax_context_has_can_be_loaded_again(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 -- that is what it is about
    chain = written(tmp_path / "chain", key, signed(key, key))
    context = of_level(0)
    context.load_cert_chain(chain)
    Conversation(context).secured.reload(chain, None, None)


def test_j12_a_signal_handler_may_reload_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "both.pem"
    authority().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    conversation = Conversation()

    def begin() -> None:
        conversation.receive(conversation.client.take())
        assert [key for key, _ in conversation.queue.take()] == [RAW_SEND]

    def reload() -> None:
        conversation.secured.reload(path, None, None)

    for call in (begin, reload):
        for _ in at_each_step(sys.modules["wspy.secured"], call, reload):
            conversation = Conversation()
    conversation.open()
    assert conversation.client.is_open


def test_who_speaks_no_tls_leaves_nothing_for_the_garbage_collector() -> None:
    conversation = Conversation()
    gc.collect()
    gc.disable()
    try:
        conversation.receive(b"GET / HTTP/1.1\r\n\r\n")
        gone = weakref.ref(conversation.secured.ssl_object(HANDLE))  # type: ignore[arg-type]
        conversation.event(core.EVENT_GONE)
        assert gone() is None
    finally:
        gc.enable()
