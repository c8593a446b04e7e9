"""Does every example do what it says, and end with status 0 when somebody presses Ctrl-C?

So do the short programs of the README, but for the end.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import re
import signal
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from certificates import authority, client_context
from drivers import DEADLINE_S, RawClient, frame, until
from programs import PYTHON, Program
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import wspy
from wspy.contexts import default_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from websockets.sync.client import ClientConnection

    Serve: TypeAlias = Callable[[str], wspy.AsyncServer]

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
FILE_SIZE = 40 << 20
SHUTDOWN_TIMEOUT = 10
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LISTENS = (socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def start(patience: float) -> Iterator[Callable[..., tuple[Program, str]]]:
    """Return a function that starts an example and returns it with the address that it prints."""
    programs: list[Program] = []

    def start_example(name: str, *arguments: str) -> tuple[Program, str]:
        program = Program(*PYTHON, EXAMPLES / name, *(arguments or ("0",)), patience=patience)
        programs.append(program.__enter__())
        return program, program.line()

    yield start_example
    for program in programs:
        program.__exit__(None, None, None)


def join(url: str, **options: Any) -> ClientConnection:
    """Connect as somebody else's client."""
    client: ClientConnection = connect(
        url.replace("http:", "ws:"), proxy=None, open_timeout=20, close_timeout=20, **options
    )
    return client


def assert_ends(program: Program, *clients: ClientConnection) -> None:
    """Press Ctrl-C: clients are told, nothing is amiss, and nobody waits for the end of shutdown_timeout."""
    start = time.monotonic()
    assert program.interrupt() == (0, "", "")
    assert time.monotonic() - start < SHUTDOWN_TIMEOUT
    for client in clients:
        with pytest.raises(ConnectionClosed):
            while True:
                client.recv(timeout=20)
        assert client.close_code == 1001


def get(url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, method=method)  # noqa: S310 -- the URL is ours
    try:
        with HTTP.open(request, timeout=20) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_each_example_is_short_and_tested_here() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    names = [path.name for path in EXAMPLES.glob("*.py")]
    assert names
    for name in names:
        assert f'"{name}"' in tests
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 45, name


def test_the_page_asks_nobody_else_for_anything() -> None:
    page = (EXAMPLES / "echo.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|\bsrc=|@import|url\(|//[a-z]+\.", page)
    assert re.findall(r'href="([^"]*)"', page) == ["data:,"]


def test_echo_server(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("echo_server.py")
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9][0-9]*/", url)
    status, headers, body = get(url)
    assert (status, body) == (200, (EXAMPLES / "echo.html").read_bytes())
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert get(url, "HEAD")[::2] == (200, b"")
    assert get(url + "?a=b")[0] == 200
    assert get(url + "nothing")[0] == 404
    with join(url) as client, join(url) as other:
        for message in ("Größe", b"\x00\xff", "", "x" * 100_000):
            client.send(message)
            assert client.recv(timeout=20) == message
        assert_ends(program, client, other)


def test_echo_server_ends_as_soon_as_it_has_said_where_it_is(start: Callable[..., tuple[Program, str]]) -> None:
    program, _ = start("echo_server.py")
    assert_ends(program)


def test_benchmark_echo(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("benchmark_echo.py")
    with join(url) as client:
        for message in ("text", b"binary"):
            client.send(message)
            assert client.recv(timeout=20) == message
        assert_ends(program, client)


def test_threaded_server(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("threaded_server.py")
    with join(url) as nameless, join(url) as client:
        for one in (nameless, client):
            assert one.recv(timeout=20) == "What is your name?"
        assert [program.line().split()[2:] for _ in range(2)] == [["connected"]] * 2
        client.send("Anna")
        for message in ("text", b"binary"):
            client.send(message)
            assert client.recv(timeout=20) == message
            assert program.line() == f"Received message {message!r} from 'Anna'"
        who = "{}:{}".format(*client.local_address)
        client.close()
        assert program.line() == f"Client {who} disconnected: 1000"
        who = "{}:{}".format(*nameless.local_address)
        assert program.interrupt() == (0, f"Client {who} disconnected: 1001\n", "")


def test_checksum_extension(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("checksum_extension.py")
    address = ("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))
    with join(url) as other, RawClient(address) as peer:
        other.send("x" * 1000)
        assert other.recv(timeout=20) == "x" * 1000
        peer.claimed = 0x20
        response = peer.open(headers=[("Sec-WebSocket-Extensions", "x-crc32")])
        assert response.headers["sec-websocket-extensions"] == "x-crc32"
        checked = "Größe".encode() + zlib.crc32("Größe".encode()).to_bytes(4)
        peer.send(frame(1, checked, rsv=0x20))
        assert peer.frame() == (1, checked, True)
        peer.send(frame(1, checked[:-1] + b"?", rsv=0x20))
        peer.closes(1007)
        other.close()
    assert program.interrupt() == (0, "", "")


def write_certificate(path: Path) -> str:
    """Write a certificate and its key; return where it is."""
    authority().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)


def test_tls_server(start: Callable[..., tuple[Program, str]], tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    program, url = start("tls_server.py", "0", write_certificate(pem))
    assert re.fullmatch(r"wss://127\.0\.0\.1:[1-9][0-9]*/", url)

    def asked() -> tuple[str, Any]:
        with join(url, ssl=client_context()) as client:
            client.send("Größe")
            assert client.recv(timeout=20) == "Größe"
            return program.line(), client.socket.getpeercert()  # type: ignore[attr-defined]

    said, first = asked()
    assert re.fullmatch(r"127\.0\.0\.1:\d+ speaks TLSv1\.3", said)
    write_certificate(pem)
    program.process.send_signal(signal.SIGHUP)
    assert program.line() == "with the new certificate"
    assert asked()[1] != first
    pem.write_text("nothing")
    program.process.send_signal(signal.SIGHUP)
    assert program.line().startswith("still with the old certificate")
    assert program.interrupt() == (0, "", "")


NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))
CLIENTS = {"frames_client.py"}


@pytest.mark.parametrize("name", sorted({*NAMES} - CLIENTS))
def test_a_port_that_is_taken_is_one_line(name: str, patience: float, tmp_path: Path) -> None:
    file = write_certificate(tmp_path / "server.pem") if name == "tls_server.py" else str(EXAMPLES / name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Program(*PYTHON, EXAMPLES / name, str(port), file, patience=patience) as program:
            status, out, err = program.ended()
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"can't serve: .*Address already in use.*{port}.*\n", err)


@pytest.mark.parametrize("name", NAMES)
def test_the_port_is_8000_unless_one_is_given(name: str) -> None:
    """Looked for in the text: the port may be taken where the tests run."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert re.search(rf"python {name} \[PORT\]", text)
    assert len(re.findall(r"int\(sys\.argv\[1\]\) if len\(sys\.argv\) > [12] else 8000", text)) == 1


@pytest.mark.slow
def test_broadcast(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("broadcast.py")
    with join(url) as client, join(url) as other:
        times = [client.recv(timeout=20) for _ in range(2)]
        assert len(set(times)) == 2
        assert all(re.fullmatch(r"\d\d:\d\d:\d\d", str(moment)) for moment in times)
        assert other.recv(timeout=20) in times
        assert_ends(program, client, other)


@pytest.mark.slow
def test_push_from_thread(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("push_from_thread.py")
    with join(url) as client, join(url) as other:
        assert re.fullmatch(r"load \d+\.\d+, clients [0-2]", str(client.recv(timeout=20)))
        assert client.recv(timeout=20)
        assert other.recv(timeout=20)
        assert_ends(program, client, other)


def test_chat(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("chat.py")
    with join(url + "kitchen?name=Anna") as anna, join(url + "garden") as somebody:
        assert anna.recv(timeout=20) == "Anna has joined"
        assert somebody.recv(timeout=20) == "Somebody has joined"
        with join(url + "kitchen?name=J%C3%BCrgen&name=Eve") as other:
            assert anna.recv(timeout=20) == other.recv(timeout=20) == "Jürgen has joined"
            other.send("it is warm here")
            assert anna.recv(timeout=20) == other.recv(timeout=20) == "Jürgen says: it is warm here"
        assert anna.recv(timeout=20) == "Jürgen has left"
        with join(url + "kitchen?name=Bin") as noisy:
            assert noisy.recv(timeout=20) == "Bin has joined"
            noisy.send(b"\xff")
            with pytest.raises(ConnectionClosed):
                noisy.recv(timeout=20)
            assert (noisy.close_code, noisy.close_reason) == (1003, "this is a chat")
        assert [anna.recv(timeout=20) for _ in range(2)] == ["Bin has joined", "Bin has left"]
        somebody.send("alone")
        assert somebody.recv(timeout=20) == "Somebody says: alone"
        assert_ends(program, anna, somebody)


def test_foreign_loop(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("foreign_loop.py")
    with join(url) as client, join(url) as other:
        for message in ("text", b"binary"):
            client.send(message)
            assert client.recv(timeout=20) == message
        assert_ends(program, client, other)


def test_foreign_loop_ends_without_clients(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("foreign_loop.py")
    with join(url):
        pass
    assert_ends(program)


@pytest.mark.slow
def test_onsent_file(start: Callable[..., tuple[Program, str]], tmp_path: Path) -> None:
    # More than the server holds back for a client: it can only arrive whole if onsent paces it.
    file = tmp_path / "file"
    content = hashlib.shake_256(b"wspy").digest(1 << 16) * (FILE_SIZE >> 16) + b"tail"
    file.write_bytes(content)
    program, url = start("onsent_file.py", "0", str(file))
    address = re.fullmatch(r"ws://(.*):(.*)/", url)
    assert address is not None
    with socket.create_connection((address[1], int(address[2])), timeout=20) as gone:
        gone.sendall(UPGRADE)
        assert gone.recv(1 << 16)
    with join(url) as slow:
        with join(url) as client:
            assert whole_file(client) == content
        assert whole_file(slow) == content
    assert_ends(program)


def test_onsent_file_without_its_file(start: Callable[..., tuple[Program, str]], tmp_path: Path) -> None:
    program, url = start("onsent_file.py", "0", str(tmp_path / "missing"))
    with join(url) as client, pytest.raises(ConnectionClosed):
        client.recv(timeout=20)
    assert client.close_code == 1011
    status, out, err = program.interrupt()
    assert (status, out) == (0, "")
    assert err.count("Traceback") == err.count("FileNotFoundError") == 1


def whole_file(client: ClientConnection) -> bytes:
    """Receive what onsent_file.py sends."""
    content = b"".join(piece for piece in client if isinstance(piece, bytes))
    assert (client.close_code, client.close_reason) == (1000, "that was all")
    return content


def test_frames_server_and_frames_client(start: Callable[..., tuple[Program, str]], patience: float) -> None:
    program, url = start("frames_server.py")
    port = url.rpartition(":")[2].strip("/")
    with Program(*PYTHON, EXAMPLES / "frames_client.py", port, patience=patience) as client:
        status, out, err = client.ended()
    assert (status, err) == (0, "")
    hello, closing = out.splitlines()
    assert "TEXT" in hello
    assert "Hello, Client!" in hello
    assert "CLOSE" in closing
    for part in ("Hello, ", "are you there?", "Server!", "that was all"):
        assert part in program.line()
    with join(url) as other:
        assert other.recv(timeout=20) == "Hello, Client!"
    assert "CLOSE" in program.line()
    assert_ends(program)


def test_frames_client_without_a_server(patience: float) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with Program(*PYTHON, EXAMPLES / "frames_client.py", str(port), patience=patience) as client:
            assert client.ended() == (1, "", f"can't connect: [Errno 111] Connection refused, port {port}\n")


def test_connection_echo(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("connection_echo.py")
    with join(url) as client:
        assert program.line().startswith("opened at 127.0.0.1:")
        for message in ("text", b"binary", "x" * 100_000):
            client.send(message)
            assert client.recv(timeout=20) == message
            assert program.line().startswith("received <")
    assert program.line() == "closed with 1000"
    with join(url) as client:
        assert program.line().startswith("opened at")
        status, out, err = program.interrupt()
        assert (status, err) == (0, "")
        assert out.startswith("closed with ")
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=20)
        assert client.close_code == 1001


def test_token_server(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("token_server.py")
    token = program.line().rpartition(" ")[2]
    cookie = {"Cookie": f"a=b; token={token}"}
    for headers in ({"Authorization": f"Bearer {token}"}, {"Authorization": f"bearer  {token}"}, cookie):
        with join(url, additional_headers=headers) as client:
            client.send("hello")
            assert client.recv(timeout=20) == "Anna says: hello"
    for headers in ({}, {"Authorization": "Bearer x"}, {"Cookie": "token=x"}, {"Authorization": f"Basic {token}"}):
        with pytest.raises(InvalidStatus) as caught:
            join(url, additional_headers=headers)
        assert (caught.value.response.status_code, caught.value.response.body) == (401, b"Who are you?\n")
    with pytest.raises(InvalidStatus) as caught:
        join(url, additional_headers=cookie, origin="https://elsewhere.example")
    assert caught.value.response.status_code == 403
    assert_ends(program)


def test_selectors_loop(start: Callable[..., tuple[Program, str]]) -> None:
    program, url = start("selectors_loop.py")
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].strip("/")))) as silent:
        assert get(url.replace("ws:", "http:"))[0] == 426
        with join(url) as client, join(url) as other:
            for message in ("text", b"binary", "x" * 1_000_000):
                other.send(message)
                client.send(message)
                assert client.recv(timeout=20) == message
                assert other.recv(timeout=20) == message
            client.send(["frag", "ments"])
            assert client.recv(timeout=20) == "fragments"
        assert (client.close_code, other.close_code) == (1000, 1000)
        silent.shutdown(socket.SHUT_WR)
        assert silent.recv(1) == b""
    assert program.interrupt() == (0, "", "")


# ---- the short programs of the README ----


def blocks() -> list[str]:
    """Return the programs of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def block(mark: str) -> str:
    """Return the program that has these words."""
    (found,) = (block for block in blocks() if mark in block)
    return found


def run(program: str, names: dict[str, Any]) -> None:
    exec(compile(program, "README.md", "exec"), names)  # noqa: S102 -- it is ours


@pytest.fixture(scope="module")
def readme() -> dict[str, Any]:
    """Return what the programs define. Who would serve for ever is closed instead; who waits for a peer comes below."""
    others = ("accept()", "connect(", "load_cert_chain")
    programs = [each for each in blocks() if not any(word in each for word in others)]
    assert len(programs) >= 6
    names: dict[str, Any] = {
        "concurrent": concurrent,
        "contextlib": contextlib,
        "print": lambda _: None,
        "time": time,
        "wspy": wspy,
    }
    for program in programs:
        run(program.replace("8000", "0").replace(".run()", ".close()"), names)
    return names


@pytest.fixture
def serve(readme: dict[str, Any]) -> Iterator[Callable[[str], wspy.AsyncServer]]:
    """Return a function that starts a server of the README."""
    with contextlib.ExitStack() as servers:

        def start_server(name: str) -> wspy.AsyncServer:
            server: wspy.AsyncServer = servers.enter_context(readme[name](("127.0.0.1", 0)))
            return server.start()

        yield start_server


def url_of(server: wspy.AsyncServer, scheme: str = "ws") -> str:
    return "{}://{}:{}/".format(scheme, *server.address)


def test_the_readme_echoes(serve: Serve) -> None:
    with join(url_of(serve("Echo"))) as client:
        client.send("hello")
        assert client.recv(timeout=20) == "hello"


def test_the_readme_speaks_tls(readme: dict[str, Any], tmp_path: Path) -> None:
    names = {"ssl": ssl, "Echo": readme["Echo"]}
    issued = authority().issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
    issued.private_key_pem.write_to_path(tmp_path / "privkey.pem")
    program = (
        block("ssl=context).run").replace("8000", "0").replace(".run()", ".start()").replace("Echo(", "server = Echo(")
    )
    program = program.replace('(""', '("127.0.0.1"').replace("fullchain", f"{tmp_path}/fullchain")
    run(program.replace("privkey", f"{tmp_path}/privkey"), names)
    with names["server"] as server, join(url_of(server, "wss"), ssl=client_context()) as client:
        client.send("hello")
        assert client.recv(timeout=20) == "hello"


def test_the_readme_answers_plain_http(serve: Serve) -> None:
    server = serve("Site")
    assert get(url_of(server, "http") + "health")[::2] == (200, b"fine\n")
    status, headers, body = get(url_of(server, "http"))
    assert (status, headers["Cache-Control"], body) == (404, "no-store", b"not here\n")
    with join(url_of(server)):
        pass


def test_the_readme_knows_who_it_is(readme: dict[str, Any]) -> None:
    pair = "Anna", "swordfish"
    with readme["Greeter"](("127.0.0.1", 0), auth=wspy.BasicAuth([pair], realm="the club")) as server:
        server.start()
        with wspy.Connection.connect(url_of(server), auth=pair) as client:
            assert client.recv().payload == "Hello, Anna!"
        with pytest.raises(wspy.ResponseError):
            wspy.Connection.connect(url_of(server))


def test_the_readme_broadcasts(serve: Serve) -> None:
    server = serve("Chat")
    with join(url_of(server)) as client:
        with join(url_of(server) + "?name=Anna") as anna:
            anna.send(b"\xff")
            anna.send("hello")
            assert anna.recv(timeout=20) == client.recv(timeout=20) == "Anna says: hello"
        assert client.recv(timeout=20) == "Anna has left"


def test_the_readme_does_something_later(serve: Serve) -> None:
    server = serve("Clock")
    with join(url_of(server)) as client:
        server.call_soon(server.tick)  # type: ignore[attr-defined]
        assert re.fullmatch(r"\d\d:\d\d:\d\d", str(client.recv(timeout=20)))


def test_the_readme_works_in_threads(serve: Serve, readme: dict[str, Any]) -> None:
    try:
        with join(url_of(serve("Worker"))) as client:
            client.send("hello")
            assert client.recv(timeout=20) == "HELLO"
    finally:
        readme["Worker"].pool.shutdown()


def test_the_readme_exchanges_frames() -> None:
    server: dict[str, Any] = {"wspy": wspy}
    printed: list[wspy.Frame] = []
    client: dict[str, Any] = {"wspy": wspy, "print": printed.append}
    thread = threading.Thread(
        target=run, args=(block("sock, address = listener.accept()\n").replace("8000", "0"), server)
    )
    thread.start()
    until(lambda: "listener" in server and server["listener"].getsockopt(*LISTENS), "the server listens")
    run(block('location="/my/path"').replace("8000", str(server["listener"].getsockname()[1])), client)
    thread.join(DEADLINE_S)
    assert server["frame"] == wspy.Frame(wspy.OPCODE_TEXT, "Hello, Server!")
    assert printed == [wspy.Frame(wspy.OPCODE_TEXT, "one ", final=False)]


def test_the_readme_receives_messages(serve: Serve) -> None:
    server = serve("Chat")
    printed: list[str] = []
    program = block("ws://127.0.0.1:8000/chat").replace("ws://127.0.0.1:8000/", url_of(server))
    thread = threading.Thread(target=run, args=(program, {"wspy": wspy, "print": printed.append}))
    thread.start()
    until(lambda: printed, "a message is printed")
    server.stop()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert printed == ["Jo says: Hello!"]


def test_the_readme_speaks_tls_on_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = authority().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    authority().cert_pem.write_to_path(str(tmp_path / "trusted.pem"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    default_context.cache_clear()
    server: dict[str, Any] = {"wspy": wspy, "ssl": ssl}
    program = block("wspy.websocket(ssl=context)").replace('""', '"127.0.0.1"').replace("8443", "0")
    thread = threading.Thread(target=run, args=(program, server))
    thread.start()
    until(lambda: "listener" in server and server["listener"].getsockopt(*LISTENS), "the server listens")
    address = f"localhost:{server['listener'].getsockname()[1]}"
    talking = threading.Thread(target=run, args=(block("wss://").replace("example.com", address), {"wspy": wspy}))
    talking.start()
    thread.join(DEADLINE_S)
    connection = wspy.Connection(server["client"])
    assert [message.payload for message in connection] == ["Hello!"]
    talking.join(DEADLINE_S)
    default_context.cache_clear()


def test_the_readme_echoes_on_a_connection() -> None:
    with wspy.websocket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        names = {"wspy": wspy, "listener": listener, "print": lambda *_: None}
        thread = threading.Thread(target=run, args=(block("class EchoConnection"), names))
        thread.start()
        with join("ws://{}:{}/".format(*listener.getsockname())) as client:
            client.send("hello")
            assert client.recv(timeout=20) == "hello"
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_the_readme_blocks_in_threads(serve: Serve) -> None:
    with join(url_of(serve("Interview"))) as silent, join(url_of(serve("Interview"))) as client:
        assert silent.recv(timeout=20) == client.recv(timeout=20) == "What is your name?"
        client.send("Anna")
        client.send("hello")
        assert client.recv(timeout=20) == "Anna says: hello"


@pytest.mark.parametrize("others", [[], [wspy.DeflateMessage]])
def test_the_readme_has_an_extension(readme: dict[str, Any], others: list[Any]) -> None:
    extension = readme["Xor"]
    with readme["CompressedEcho"](("127.0.0.1", 0), extensions=[*others, extension]) as server:
        server.start()
        with wspy.Connection.connect(url_of(server), extensions=[extension(key=7), *others]) as connection:
            assert connection.sock.extension_instances[0].parameters == {"key": 7}
            for message in ("hello", "hello" * 100, b"\xff"):
                connection.send(message)
                assert connection.recv().payload == message
            (client,) = server.clients
            assert client.extensions[0].parameters == {"key": 7}


def test_the_readme_keeps_its_paragraphs_short() -> None:
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    for paragraph in text.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.startswith(("|", "- ", "  "))]
        assert len(lines) <= 5, paragraph
