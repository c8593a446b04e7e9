"""Does an address become a listening socket, and does nothing of anybody else's get lost on the way?"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wspy import listening
from wspy.listening import close_listener, open_listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    Family: TypeAlias = int
    Found: TypeAlias = list[tuple[Family, int, int, str, tuple[Any, ...]]]

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")


@contextlib.contextmanager
def opened(address: Any, *, backlog: int = 16, reuse_port: bool = False) -> Iterator[socket.socket]:
    listener = open_listener(address, backlog=backlog, reuse_port=reuse_port)
    try:
        yield listener
    finally:
        close_listener(listener)


def refused(address: Any, kind: type[Exception], **options: Any) -> Exception:
    """Return the exception that an address raises; nothing may be left open, which conftest.py looks after."""
    with pytest.raises(kind) as caught, opened(address, **options):
        pass
    return caught.value


def is_in_use(address: Any, **options: Any) -> bool:
    error = refused(address, OSError, **options)
    assert isinstance(error, OSError)
    return error.errno == errno.EADDRINUSE


def connect(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(5)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def accepts(listener: socket.socket, family: int, address: Any) -> bool:
    """Whether a connection to an address arrives at a listener."""
    with connect(family, address) as client:
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
            return client.recv(5) == b"hello"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def stale(path: Path) -> Path:
    """Return a path at which a server has left its socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
        left.listen()
    return path


# ---- TCP ----


def test_a_host_and_port_listen_without_blocking_for_this_process_alone() -> None:
    with opened(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        assert port > 0
        assert listener.gettimeout() == 0
        assert not listener.get_inheritable()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert accepts(listener, socket.AF_INET, (host, port))


@needs_ipv6
def test_no_host_stands_for_every_interface_of_both_families() -> None:
    with opened(("", 0)) as listener:
        port = listener.getsockname()[1]
        assert accepts(listener, socket.AF_INET, ("127.0.0.1", port))
        assert accepts(listener, socket.AF_INET6, ("::1", port))


@needs_ipv6
def test_no_host_is_in_use_if_one_family_is() -> None:
    with opened(("0.0.0.0", 0)) as listener:  # noqa: S104 -- to be in the way
        assert is_in_use(("", listener.getsockname()[1]))


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "::1"])
def test_an_ipv6_host_stands_for_ipv6_alone(host: str) -> None:
    with opened((host, 0)) as listener:
        port = listener.getsockname()[1]
        assert accepts(listener, socket.AF_INET6, ("::1", port))
        with opened(("127.0.0.1", port)):
            pass


@needs_ipv6
def test_what_getsockname_returns_is_an_address() -> None:
    with opened(("::1", 0)) as listener:
        address = listener.getsockname()
    with opened(address) as listener:
        assert listener.getsockname() == address


def test_the_scope_of_an_ipv6_address_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(host: str | None, *_: Any, **__: Any) -> Found:
        asked.append(host)
        return [HERE]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for scope in (0, 3):
        with opened(("fe80::1", 0, 0, scope)):
            pass
    assert asked == ["fe80::1", "fe80::1%3"]


def test_a_host_name_is_looked_up() -> None:
    with opened(("localhost", 0)) as listener:
        host, port = listener.getsockname()[:2]
        assert host in {"127.0.0.1", "::1"}
        assert accepts(listener, listener.family, (host, port))


HERE = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))
ELSEWHERE = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 0))  # RFC 5737: nobody has this address
NO_FAMILY = (socket.AF_DECnet, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[[Found], None]:
    """Return a function that decides what names stand for."""
    return lambda found: monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.parametrize("host", ["", "a-name"])
@pytest.mark.parametrize("absent", [ELSEWHERE, NO_FAMILY])
def test_addresses_that_the_system_lacks_are_passed_over(
    resolver: Callable[[Found], None], host: str, absent: Any
) -> None:
    resolver([absent, HERE])
    with opened((host, 0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_name_without_an_address_of_this_system_is_refused(resolver: Callable[[Found], None]) -> None:
    resolver([NO_FAMILY, ELSEWHERE])
    error = refused(("a-name", 0), OSError)
    assert isinstance(error, OSError)
    assert error.errno == errno.EADDRNOTAVAIL


def test_a_busy_port_is_refused_and_the_message_names_it(resolver: Callable[[Found], None]) -> None:
    with opened(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        assert is_in_use(address)
        assert str(address) in str(refused(address, OSError))
        resolver([(*HERE[:4], address), HERE])
        assert is_in_use(("a-name", 0))


def test_a_port_is_shared_if_all_want_it() -> None:
    with opened(("127.0.0.1", 0), reuse_port=True) as listener:
        address = listener.getsockname()
        with opened(address, reuse_port=True) as other:
            assert other.getsockname() == address
        assert is_in_use(address)


@pytest.mark.parametrize("port", [-1, 65_536, 70_000])
def test_a_port_has_16_bits(port: int) -> None:
    refused(("127.0.0.1", port), ValueError)


@pytest.mark.parametrize(
    "address",
    [
        None,
        8000,
        (),
        ("127.0.0.1",),
        ("127.0.0.1", "80"),
        (b"127.0.0.1", 80),
        (None, 80),
        ("::1", 80, 0),
        ("::1", 80, 0, "lo"),
        ("::1", 80, 0, 0, 0),
    ],
    ids=repr,
)
def test_what_is_no_address_is_refused(address: Any) -> None:
    assert "(host, port)" in str(refused(address, TypeError))


def test_a_backlog_that_is_no_number_is_refused(path: Path) -> None:
    refused(("127.0.0.1", 0), TypeError, backlog="many")
    refused(path, TypeError, backlog="many")
    assert not path.exists()


# ---- sockets ----


def test_a_socket_that_listens_is_taken_as_it_is_but_non_blocking() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        assert open_listener(ours, backlog=1, reuse_port=False) is ours
        assert ours.gettimeout() == 0


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_does_not_listen_is_refused_and_stays_open(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as ours:
        with pytest.raises(ValueError, match="listen"):
            open_listener(ours, backlog=1, reuse_port=False)
        assert ours.gettimeout() is None
        assert ours.fileno() >= 0


def test_a_socket_that_listens_for_no_streams_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ours:
        ours.bind(str(path))
        ours.listen()
        with pytest.raises(ValueError, match="stream"):
            open_listener(ours, backlog=1, reuse_port=False)


def test_a_socket_with_tls_is_refused_since_the_core_would_speak_without() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        context.wrap_socket(plain, server_side=True) as secure,
        pytest.raises(ValueError, match="TLS"),
    ):
        open_listener(secure, backlog=1, reuse_port=False)


# ---- Unix sockets: what stands at the path, N1 ----


def test_a_path_becomes_a_socket_and_goes_with_it(path: Path) -> None:
    with opened(path) as listener:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert listener.gettimeout() == 0
        assert listener.getsockname() == str(path)
        assert accepts(listener, socket.AF_UNIX, str(path))
    assert not path.exists()


@pytest.mark.parametrize("form", [str, os.fsencode, Path])
def test_a_path_has_many_forms(path: Path, form: Callable[[Path], Any]) -> None:
    with opened(form(path.with_name("nämlich"))) as listener:
        assert listener.getsockname() == str(path.with_name("nämlich"))


def test_a_path_may_be_relative(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with opened(path.name):
        assert path.is_socket()
    assert not path.exists()


def test_n1_a_stale_socket_is_replaced(stale: Path) -> None:
    before = stale.lstat()
    with opened(stale) as listener:
        assert accepts(listener, socket.AF_UNIX, str(stale))
        assert stale.lstat().st_mtime_ns != before.st_mtime_ns
    assert not stale.exists()


def test_n1_a_live_socket_is_in_use_and_its_server_sees_nothing_of_it(path: Path) -> None:
    with opened(path) as live:
        before = path.lstat()
        assert is_in_use(path)
        assert os.path.samestat(path.lstat(), before)
        with pytest.raises(BlockingIOError):
            live.accept()
        assert accepts(live, socket.AF_UNIX, str(path))


def test_n1_a_live_socket_with_a_full_backlog_is_in_use(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(opened(path, backlog=0))
        with pytest.raises(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                client.settimeout(0)
                client.connect(str(path))
        assert is_in_use(path)
        live.accept()[0].close()
        assert path.is_socket()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_n1_a_socket_that_is_about_to_listen_is_in_use(path: Path, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        before = path.lstat()
        assert is_in_use(path)
        assert os.path.samestat(path.lstat(), before)


def regular_file(path: Path, _: Path) -> None:
    path.write_text("precious", encoding="utf-8")


def directory(path: Path, _: Path) -> None:
    path.mkdir()


def symlink_to_nothing(path: Path, other: Path) -> None:
    path.symlink_to(other)


def symlink_to_a_file(path: Path, other: Path) -> None:
    regular_file(other, path)
    path.symlink_to(other)


def symlink_to_a_stale_socket(path: Path, other: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(other))
    path.symlink_to(other)


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "make", [regular_file, directory, symlink_to_nothing, symlink_to_a_file, symlink_to_a_stale_socket, fifo]
)
def test_n1_whatever_is_no_socket_is_in_use_and_stays_untouched(path: Path, make: Callable[[Path, Path], None]) -> None:
    make(path, path.with_name("other"))
    before = {entry.name: entry.lstat() for entry in path.parent.iterdir()}
    assert is_in_use(path)
    assert {entry.name: entry.lstat() for entry in path.parent.iterdir()} == before


def test_a_path_without_its_directory_is_refused_and_the_message_names_it(path: Path) -> None:
    assert str(path / "socket") in str(refused(path / "socket", FileNotFoundError))


def test_n1_only_one_of_many_servers_replaces_a_stale_socket(path: Path) -> None:
    def start(_: int) -> socket.socket | None:
        try:
            return open_listener(path, backlog=16, reuse_port=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
                left.bind(str(path))
            (winner,) = filter(None, pool.map(start, range(8)))
            assert accepts(winner, socket.AF_UNIX, str(path))
            close_listener(winner)
            assert not path.exists()


def test_n1_a_stale_socket_that_another_server_is_replacing_is_in_use(stale: Path) -> None:
    seen = stale.lstat()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        claim.bind(f"\0wspy replaces {seen.st_dev}:{seen.st_ino}")
        assert is_in_use(stale)
        assert os.path.samestat(stale.lstat(), seen)
    with opened(stale):
        pass


def test_n1_what_took_the_place_of_a_stale_socket_stays(stale: Path) -> None:
    seen = stale.lstat()
    stale.rename(stale.with_name("was-here"))
    listening._remove_seen(str(stale), seen)
    with opened(stale) as live:
        listening._remove_seen(str(stale), seen)
        listening._remove_seen(str(stale), stale.lstat())  # as if the number had been given to the new one
        assert accepts(live, socket.AF_UNIX, str(stale))
    stale_too = stale.with_name("stale-too")
    symlink_to_a_stale_socket(stale, stale_too)
    listening._remove_seen(str(stale_too), seen)
    assert stale_too.is_socket()


# ---- Unix sockets: names, N3 ----


def test_n3_a_path_has_107_bytes_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened("x" * 107) as listener:
        assert accepts(listener, socket.AF_UNIX, "x" * 107)
    assert "at most 107 bytes, this one has 108" in str(refused("x" * 108, ValueError))
    assert "this one has 108" in str(refused("ä" * 54, ValueError))


@pytest.mark.parametrize("path", ["", b"", "a\0b"])
def test_n3_a_path_that_the_kernel_would_read_as_another_is_refused(path: str | bytes) -> None:
    refused(path, ValueError)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "localhost:80", ":8000", "[::1]:8000", "::1", b"here:1"])
def test_a_host_with_a_port_is_no_path(address: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "TCP takes (host, port), a Unix socket a path with a slash" in str(refused(address, ValueError))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["./here:1", "here:", "here:a", Path("here:1"), f"\0here:{os.getpid()}"])
def test_a_colon_alone_makes_no_port(address: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(address) as listener:
        assert accepts(listener, socket.AF_UNIX, os.fsdecode(address))


def test_n3_a_name_after_nul_is_abstract() -> None:
    name = f"\0wspy test {os.getpid()}"
    with opened(name) as listener:
        assert listener.getsockname() == name.encode()
        assert accepts(listener, socket.AF_UNIX, name)
        assert is_in_use(name)
        assert is_in_use(listener.getsockname())
    with opened(name.encode()):
        pass


def test_n3_an_abstract_name_has_107_bytes_at_most() -> None:
    name = f"\0{os.getpid():>107}"
    with opened(name) as listener:
        assert accepts(listener, socket.AF_UNIX, name)
    assert "at most 107 bytes, this one has 108" in str(refused(f"{name}x", ValueError))


# ---- closing ----


def test_tcp_sockets_just_close() -> None:
    listener = open_listener(("127.0.0.1", 0), backlog=1, reuse_port=False)
    close_listener(listener)
    assert listener.fileno() == -1


def test_what_has_taken_the_path_of_a_closing_socket_stays(path: Path) -> None:
    ours = open_listener(path, backlog=1, reuse_port=False)
    path.unlink()
    with opened(path) as live:
        close_listener(ours)
        assert accepts(live, socket.AF_UNIX, str(path))


@pytest.mark.parametrize("make", [regular_file, directory, symlink_to_a_stale_socket])
def test_what_else_has_taken_the_path_of_a_closing_socket_stays(path: Path, make: Callable[[Path, Path], None]) -> None:
    ours = open_listener(path, backlog=1, reuse_port=False)
    path.unlink()
    make(path, path.with_name("other"))
    before = path.lstat()
    close_listener(ours)
    assert path.lstat() == before


def test_a_stale_socket_of_another_server_stays_when_ours_closes(path: Path) -> None:
    ours = open_listener(path, backlog=1, reuse_port=False)
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    close_listener(ours)
    assert path.is_socket()


def test_a_socket_that_another_process_holds_stays(path: Path) -> None:
    ours = open_listener(path, backlog=1, reuse_port=False)
    with ours.dup() as inherited:
        close_listener(ours)
        assert accepts(inherited, socket.AF_UNIX, str(path))


def directory_moved(path: Path, other: Path) -> None:
    path.parent.rename(other)


def directory_became_a_file(path: Path, other: Path) -> None:
    path.parent.rename(other)
    path.parent.write_text("no directory any more", encoding="utf-8")


@pytest.mark.parametrize("lose", [lambda path, _: path.unlink(), directory_moved, directory_became_a_file])
def test_a_path_that_is_gone_or_out_of_reach_does_not_matter(
    tmp_path: Path, lose: Callable[[Path, Path], None]
) -> None:
    path = tmp_path / "directory" / "socket"
    path.parent.mkdir()
    ours = open_listener(path, backlog=1, reuse_port=False)
    lose(path, tmp_path / "other")
    close_listener(ours)
    assert ours.fileno() == -1


def test_a_path_that_can_not_be_removed_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlink(_: str) -> None:
        raise PermissionError(errno.EACCES, "a server that gave up its privileges")

    ours = open_listener(path, backlog=1, reuse_port=False)
    monkeypatch.setattr(os, "unlink", unlink)
    close_listener(ours)
    assert ours.fileno() == -1
    assert path.is_socket()
