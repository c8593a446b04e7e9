"""Does curl, which speaks HTTP and nothing else, get along with AsyncServer?"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest
from recorder import Recorder

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CURL = shutil.which("curl")
PAGE = "<!doctype html><title>Größe</title>"
UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)

pytestmark = pytest.mark.skipif(CURL is None, reason="curl isn't installed")


class Answer(NamedTuple):
    """What curl has received."""

    status: int
    headers: dict[str, str]
    body: str


class WebServer(Recorder):
    """Has a page, a file that is gone, and something else at every other path."""

    def onrequest(self, request: wspy.Request) -> wspy.Response | None:
        if request.path == "/page":
            return wspy.Response(200, headers={"Content-Type": "text/html; charset=utf-8"}, body=PAGE)
        if request.path == "/large":
            return wspy.Response(200, body=b"x" * (4 << 20))
        if request.path == "/gone":
            return wspy.Response(410, headers=[("X-One", "1"), ("X-Two", "2")])
        if request.path == "/nothing":
            return wspy.Response(204)
        if request.path == "/broken":
            raise ZeroDivisionError
        return None


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        server.start()
        yield server


@pytest.fixture
def curl(server: WebServer, seconds: float) -> Callable[..., str]:
    """Return a function that runs curl and returns what it writes."""
    base = server.url.replace("ws:", "http:")

    def run(*arguments: str, paths: tuple[str, ...] = ("/",)) -> str:
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--path-as-is", *arguments]
        command += [base + path for path in paths]
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return run


def parse(text: str) -> Answer:
    """Take a response apart that curl has written with its head."""
    head, _, body = text.partition("\r\n\r\n")
    status_line, *fields = head.split("\r\n")
    version, status = status_line.split(" ")[:2]
    assert version == "HTTP/1.1"
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    return Answer(int(status), headers, body)


def test_a_page(curl: Callable[..., str]) -> None:
    answer = parse(curl("--include", paths=("/page",)))
    assert (answer.status, answer.body) == (200, PAGE)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-length"] == str(len(PAGE.encode()))


def test_the_head_of_a_page(curl: Callable[..., str]) -> None:
    whole = parse(curl("--include", paths=("/page",)))
    assert parse(curl("--head", paths=("/page",))) == (200, whole.headers, "")
    # Were there a body, it would stand where the next response begins.
    heads = curl("--head", paths=("/large", "/gone", "/page")).split("\r\n\r\n")
    assert [head.split(" ")[1] for head in heads[:-1]] == ["200", "410", "200"]
    assert heads[-1] == ""


def test_a_large_body(curl: Callable[..., str]) -> None:
    assert curl(paths=("/large",)) == "x" * (4 << 20)


def test_headers_without_a_body(curl: Callable[..., str]) -> None:
    answer = parse(curl("--include", paths=("/gone",)))
    assert (answer.status, answer.body) == (410, "")
    assert (answer.headers["x-one"], answer.headers["x-two"], answer.headers["content-length"]) == ("1", "2", "0")
    answer = parse(curl("--include", paths=("/nothing",)))
    assert answer.status == 204
    assert "content-length" not in answer.headers


def test_one_connection_serves_many_requests(curl: Callable[..., str], server: WebServer) -> None:
    paths = ("/page", "/gone", "/nothing", "/large", "/page")
    written = curl("--output", "/dev/null", "--write-out", "%{http_code} %{num_connects}\\n", paths=paths[:1])
    assert written == "200 1\n"
    arguments = [argument for _ in paths for argument in ("--output", "/dev/null")]
    written = curl(*arguments, "--write-out", "%{http_code} %{num_connects}\\n", paths=paths)
    assert written.split("\n") == ["200 1", "410 0", "204 0", "200 0", "200 0", ""]
    assert server.stats()["accepted"] == 2


def test_a_client_may_close_after_a_request(curl: Callable[..., str]) -> None:
    answer = parse(curl("--include", "--header", "Connection: close", paths=("/page",)))
    assert (answer.headers["connection"], answer.body) == ("close", PAGE)


def test_http_1_0(curl: Callable[..., str]) -> None:
    answer = parse(curl("--include", "--http1.0", paths=("/page",)))
    assert (answer.status, answer.headers["connection"], answer.body) == (200, "close", PAGE)


def test_what_is_no_websocket_is_told_to_upgrade(curl: Callable[..., str]) -> None:
    answer = parse(curl("--include"))
    assert answer.status == 426
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["sec-websocket-version"] == "13"
    assert answer.body
    answer = parse(curl("--head"))
    assert (answer.status, answer.headers["allow"], answer.body) == (405, "GET", "")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--request", "BREW"], 501),
        (["--data", "x=y"], 413),
        (["--data", "x=y", "--header", "Transfer-Encoding: chunked"], 413),
        (["--header", "Host:"], 400),
        (["--header", "Host: a b"], 400),
        (["--header", "Content-Length: x"], 400),
        (["--header", "X: " + "x" * 9000], 431),
        (["--header", "Expect: miracles"], 417),
    ],
    ids=lambda value: value[-1][:30] if isinstance(value, list) else None,
)
def test_a_bad_request_is_refused(
    curl: Callable[..., str], server: WebServer, arguments: list[str], status: int
) -> None:
    answer = parse(curl("--include", *arguments))
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert answer.body
    assert parse(curl("--include", paths=("/page",))).status == 200


def test_a_long_target_is_refused(curl: Callable[..., str]) -> None:
    assert parse(curl("--include", paths=("/" + "x" * 9000,))).status == 414


@pytest.mark.parametrize(
    ("missing", "instead", "status"),
    [
        ("Sec-WebSocket-Key", (), 400),
        ("Sec-WebSocket-Key", ("Sec-WebSocket-Key: short",), 400),
        ("Sec-WebSocket-Version", (), 400),
        ("Sec-WebSocket-Version", ("Sec-WebSocket-Version: 12",), 426),
        ("Connection", ("Connection: keep-alive",), 400),
        ("Upgrade", ("Upgrade: h2c",), 426),
    ],
)
def test_a_bad_handshake_is_refused(
    curl: Callable[..., str], server: WebServer, missing: str, instead: tuple[str, ...], status: int
) -> None:
    lines = [line for line in UPGRADE if not line.startswith(missing + ":")] + list(instead)
    answer = parse(curl("--include", *(argument for line in lines for argument in ("--header", line))))
    assert answer.status == status
    if missing == "Sec-WebSocket-Version" or status == 426:
        assert answer.headers["sec-websocket-version"] == "13"
    assert server.opened.empty()


def test_a_handler_fails(curl: Callable[..., str]) -> None:
    answer = parse(curl("--include", paths=("/broken",)))
    assert answer.status == 500
    assert "ZeroDivision" not in answer.body


def test_a_stopped_server_refuses(server: WebServer, curl: Callable[..., str], seconds: float) -> None:
    server.stop()
    assert server.join(seconds)
    with pytest.raises(AssertionError, match="connect"):
        curl()
