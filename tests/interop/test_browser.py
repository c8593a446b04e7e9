"""Does Chromium get along with AsyncServer, and does a person get along with the page of the echo example?

Chromium is driven through chromedriver, whose protocol is JSON over HTTP (W3C WebDriver).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from certificates import server_context
from listeners import Connections, Listener, Websockets
from programs import PYTHON, Program
from recorder import Recorder

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ECHO_SERVER = Path(__file__).resolve().parents[2] / "examples" / "echo_server.py"
ELEMENT: Final = "element-6066-11e4-a52e-4f735466cecf"
FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=900,700",
)

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium isn't installed"),
    pytest.mark.skipif(not CHROMEDRIVER, reason="chromedriver isn't installed"),
]


class Browser:
    """One tab of a Chromium without a window."""

    def __init__(self, driver: str, profile: Path, seconds: float) -> None:
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._base = driver
        self._seconds = seconds
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "acceptInsecureCerts": True}
        session = self._call("POST", "/session", capabilities={"alwaysMatch": wanted})
        self.process: int | None = session["capabilities"].get("goog:processID")
        self._base += f"/session/{session['sessionId']}"
        self._call("POST", "/timeouts", script=int(seconds * 1000), pageLoad=int(seconds * 1000))

    def _call(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + path, data, method=method)  # noqa: S310 -- the URL is ours
        try:
            with self._opener.open(request, timeout=2 * self._seconds) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None

    def quit(self) -> None:
        self._call("DELETE", "")

    def go(self, url: str) -> None:
        self._call("POST", "/url", url=url)

    def reload(self) -> None:
        self._call("POST", "/refresh")

    def element(self, selector: str) -> str:
        found: str = self._call("POST", "/element", using="css selector", value=selector)[ELEMENT]
        return found

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self.element(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"/element/{self.element(selector)}/value", text=text)

    def label(self, selector: str) -> str:
        """Return what a screen reader calls an element."""
        name: str = self._call("GET", f"/element/{self.element(selector)}/computedlabel")
        return name

    def size(self, width: int, height: int) -> None:
        """Pretend to be a screen of this many CSS pixels: windows have a least width, and phones are narrower."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("POST", "/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)

    def prefer(self, scheme: str) -> None:
        """Ask pages for light or dark colours."""
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self._call("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params=features)

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("GET", "/screenshot"))

    def run(self, body: str, *arguments: Any) -> Any:
        """Return what the body of a JavaScript function returns."""
        return self._call("POST", "/execute/sync", script=body, args=arguments)

    def run_async(self, body: str, *arguments: Any) -> Any:
        """Return what the body of an asynchronous JavaScript function returns; it may await."""
        script = (
            "const args = [...arguments], done = args.pop();"
            f"(async () => {{{body}}})().then(done, (error) => done('failed: ' + error));"
        )
        return self._call("POST", "/execute/async", script=script, args=arguments)

    def wait(self, condition: str, *arguments: Any) -> None:
        """Wait until an expression in JavaScript is true, looked at whenever the page changes."""
        script = """
            const [condition, ...rest] = args;
            const holds = new Function('args', 'return ' + condition);
            if (holds(rest)) return true;
            return await new Promise((resolve) => {
                const observer = new MutationObserver(() => {
                    if (!holds(rest)) return;
                    observer.disconnect();
                    resolve(true);
                });
                const everything = {subtree: true, childList: true, attributes: true, characterData: true};
                observer.observe(document, everything);
            });
        """
        assert self.run_async(script, condition, *arguments) is True


def start(stack: contextlib.ExitStack, patience: float) -> tuple[Program, str]:
    """Start a chromedriver; return it and its port."""
    assert CHROMEDRIVER
    while True:
        driver = stack.enter_context(Program(CHROMEDRIVER, "--port=0", patience=patience))
        try:
            while (started := re.search(r"started successfully on port (\d+)", driver.line())) is None:
                pass
        except AssertionError as error:
            if "Address already in use" not in str(error):
                raise  # else the port that it got for IPv4 is somebody's for IPv6
        else:
            return driver, started[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, patience: float) -> Iterator[Browser]:
    with contextlib.ExitStack() as stack:
        driver, port = start(stack, patience)
        profile = tmp_path_factory.mktemp("profile")
        browser = Browser(f"http://127.0.0.1:{port}", profile, driver.seconds)
        try:
            yield browser
        finally:
            leave(browser)


def leave(browser: Browser) -> None:
    """End Chromium, in one way or the other."""
    try:
        browser.quit()
    except (AssertionError, OSError):
        if browser.process is None:
            raise
        os.kill(browser.process, signal.SIGKILL)


@pytest.fixture
def echo_server(patience: float) -> Iterator[tuple[Program, str]]:
    with Program(*PYTHON, ECHO_SERVER, "0", patience=patience) as program:
        yield program, program.line()


@pytest.fixture
def deaf_server() -> Iterator[str]:
    """Serve the page with WebSockets that are never read: no Close frame is answered."""
    page = ECHO_SERVER.with_name("echo.html").read_bytes()

    class Deaf(wspy.AsyncServer):
        def onrequest(self, request: wspy.Request) -> wspy.Response | None:
            headers = {"Content-Type": "text/html; charset=utf-8"}
            return None if request.is_websocket else wspy.Response(200, headers=headers, body=page)

        def onopen(self, client: wspy.AsyncClient) -> None:
            client.pause_reading()

    with Deaf(("127.0.0.1", 0), shutdown_timeout=0) as server:
        server.start()
        yield "http://{}:{}/".format(*server.address)


STATE = "document.querySelector('[role=status]').textContent"
LOG = "document.querySelector('[role=log]').innerText"


# ---- the page of the example ----


def test_a_person_sends_messages_and_sees_the_echoes(browser: Browser, echo_server: tuple[Program, str]) -> None:
    _, url = echo_server
    browser.go(url)
    browser.wait(f"{STATE}.includes('Connected')")
    assert browser.run("return document.activeElement.id") == "message"
    browser.type("#message", "Grüße, Welt\n")
    browser.wait(f"{LOG}.split('Grüße, Welt').length === 3")
    browser.type("#message", "<b>second</b>")
    browser.click("#send")
    browser.wait(f"{LOG}.split('<b>second</b>').length === 3")
    assert browser.run("return document.getElementById('message').value") == ""


def test_a_person_closes_and_connects_again(browser: Browser, echo_server: tuple[Program, str]) -> None:
    _, url = echo_server
    browser.go(url)
    browser.wait(f"{STATE}.includes('Connected')")
    browser.click("#close")
    browser.wait(f"{STATE}.includes('Closed with code 1000')")
    assert browser.run("return document.getElementById('message').disabled")
    browser.click("#connect")
    browser.wait(f"{STATE}.includes('Connected')")
    browser.type("#message", "again\n")
    browser.wait(f"{LOG}.split('again').length === 3")


def test_a_person_sees_that_the_server_stops(browser: Browser, echo_server: tuple[Program, str]) -> None:
    program, url = echo_server
    browser.go(url)
    browser.wait(f"{STATE}.includes('Connected')")
    assert program.interrupt() == (0, "", "")
    browser.wait(f"{STATE}.includes('Closed with code 1001')")
    assert browser.run(f"return {STATE}").endswith("Press Connect to try again.")
    assert browser.run("return document.title") == "Closed – wspy echo"  # noqa: RUF001 -- as a typographer would
    browser.click("#connect")
    browser.wait(f"{STATE}.includes('Could not connect')")
    assert not browser.run("return document.getElementById('connect').disabled")


def test_a_person_sends_too_much_and_is_told_the_limit(browser: Browser, echo_server: tuple[Program, str]) -> None:
    _, url = echo_server
    browser.go(url)
    browser.wait(f"{STATE}.includes('Connected')")
    assert browser.run("return document.title") == "Connected – wspy echo"  # noqa: RUF001 -- the same
    browser.run("message.value = 'long '.repeat(20000); send.click()")
    browser.wait("document.querySelectorAll('.received').length === 1")
    heights = browser.run("return [...document.querySelectorAll('[role=log] p')].map((line) => line.clientHeight)")
    assert max(heights) < 300
    browser.run("message.value = 'x'.repeat((1 << 20) + 1); send.click()")
    browser.wait(f"{STATE}.includes('Closed with code 1009')")
    assert "the server takes up to 1 MiB" in browser.run(f"return {STATE}")


def test_the_log_stays_where_a_person_reads(browser: Browser, echo_server: tuple[Program, str]) -> None:
    _, url = echo_server
    browser.go(url)
    browser.wait(f"{STATE}.includes('Connected')")
    browser.run("for (let number = 0; number < 50; number++) show('event', String(number))")
    assert browser.run("return log.scrollHeight - log.scrollTop - log.clientHeight") < 8
    frames = "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
    browser.run_async("log.scrollTop = 0;" + frames)
    browser.run("show('event', 'more')")
    assert browser.run("return log.scrollTop") == 0
    browser.run_async("log.scrollTop = log.scrollHeight;" + frames)
    browser.run_async("state.style.height = '10rem';" + frames)
    assert browser.run("return log.scrollHeight - log.scrollTop - log.clientHeight") < 8


def test_a_person_need_not_wait_for_a_close_that_is_not_answered(browser: Browser, deaf_server: str) -> None:
    browser.go(deaf_server)
    browser.wait(f"{STATE}.includes('Connected')")
    browser.click("#close")
    browser.wait(f"{STATE}.includes('Closing')")
    browser.click("#connect")
    browser.wait(f"{STATE}.includes('Connected')")


def test_borders_can_be_seen(browser: Browser, echo_server: tuple[Program, str]) -> None:
    """WCAG 2.2, 1.4.11: a contrast of at least 3 to 1."""
    _, url = echo_server
    browser.go(url)
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        for selector in ("#message", "#connect", "#send"):
            style = f"getComputedStyle(document.querySelector('{selector}'))"
            border = browser.run(f"return {style}.borderTopColor")
            for around in (
                f"{style}.backgroundColor",
                "getComputedStyle(document.querySelector('main')).backgroundColor",
            ):
                if selector != "#send" or "main" in around:  # that one is filled with the colour of its border
                    assert contrast(border, browser.run(f"return {around}")) >= 3


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, as WCAG 2.2 defines it."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_is_accessible_and_fits(browser: Browser, echo_server: tuple[Program, str]) -> None:
    _, url = echo_server
    browser.go(url)
    browser.wait(f"{STATE}.includes('Connected')")
    names = {selector: browser.label(selector) for selector in ("#message", "#send", "#connect", "#close", "#log")}
    assert names == {
        "#message": "Message",
        "#send": "Send",
        "#connect": "Connect",
        "#close": "Close",
        "#log": "Messages",
    }
    assert browser.run("return document.documentElement.lang") == "en"
    for width, height in ((900, 700), (360, 640), (320, 480)):
        browser.size(width, height)
        assert browser.run("return innerWidth") == width
        assert browser.run("return document.documentElement.scrollWidth") <= width


# ---- the WebSocket of the browser, without a page of ours ----


class Blank(wspy.AsyncServer):
    """Serves an empty page, so that scripts have an origin."""

    def onrequest(self, request: wspy.Request) -> wspy.Response | None:
        return wspy.Response(200, headers={"Content-Type": "text/html"}, body="<!doctype html><title>blank</title>")


class Obedient(Recorder):
    """Closes when it is asked to, and echoes everything else."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        if message == wspy.TextMessage("abort"):
            client.abort()
        elif message.is_text and message.text.startswith("close "):
            client.close(*json.loads(message.text.removeprefix("close ")))
        else:
            super().onmessage(client, message)


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with Blank(("127.0.0.1", 0)) as server:
        server.start()
        yield "http://{}:{}".format(*server.address)


@pytest.fixture
def serve(browser: Browser, origin: str) -> Iterator[Callable[..., Obedient]]:
    """Return a function that starts a server; the browser is at a page that may connect to it."""
    browser.go(origin)
    with contextlib.ExitStack() as servers:

        def start(**options: Any) -> Obedient:
            server = servers.enter_context(Obedient(**options))
            servers.callback(lambda: assert_no_errors(server))
            server.start()
            return server

        yield start


def assert_no_errors(server: Recorder) -> None:
    assert [server.errors.get() for _ in range(server.errors.qsize())] == []


@pytest.fixture
def server(serve: Callable[..., Obedient]) -> Obedient:
    return serve()


OPEN = """
    const [url, protocols, ...rest] = args;
    const socket = new WebSocket(url, protocols);
    socket.binaryType = 'arraybuffer';
    const closed = new Promise((resolve) => {
        socket.onclose = (event) => resolve([event.code, event.reason, event.wasClean]);
    });
    const received = () => new Promise((resolve) => socket.onmessage = (event) => resolve(event.data));
    const bytes = (data) => [...new Uint8Array(data)];
    await new Promise((resolve) => socket.onopen = resolve);
"""


def talk(browser: Browser, server: Recorder, body: str, *arguments: Any) -> Any:
    """Run a script that has an open socket, and the promises closed and received()."""
    return browser.run_async(OPEN + body, server.url, [], *arguments)


def test_tls(browser: Browser, serve: Callable[..., Obedient], seconds: float) -> None:
    server = serve(ssl=server_context())
    body = """
        const echo = received();
        socket.send(rest[0]);
        const back = await echo;
        socket.close(3001, 'bye');
        return [back, ...await closed];
    """
    assert talk(browser, server, body, "Größe" * 10_000) == ["Größe" * 10_000, 3001, "", True]
    assert server.opened.get(timeout=seconds).secure
    assert server.ended.get(timeout=seconds) == (3001, "bye")


@pytest.mark.parametrize("text", ["", "text", "Größe 😀", "x" * 125, "x" * 126, "x" * 65536], ids=len)
def test_text(browser: Browser, server: Recorder, text: str) -> None:
    body = "const echo = received(); socket.send(rest[0]); return await echo;"
    assert talk(browser, server, body, text) == text


@pytest.mark.parametrize("kind", ["ArrayBuffer", "view", "Blob"])
def test_binary(browser: Browser, server: Recorder, kind: str) -> None:
    body = """
        const view = new Uint8Array(rest[1]);
        const data = {ArrayBuffer: view.buffer, view, Blob: new Blob([view])}[rest[0]];
        const echo = received();
        socket.send(data);
        return bytes(await echo);
    """
    everything = list(range(256))
    assert talk(browser, server, body, kind, everything) == everything
    assert talk(browser, server, body, kind, []) == []


def test_an_echo_arrives_as_a_blob(browser: Browser, server: Recorder) -> None:
    body = """
        socket.binaryType = 'blob';
        const echo = received();
        socket.send(new Uint8Array([0, 255]));
        const blob = await echo;
        return [blob instanceof Blob, bytes(await blob.arrayBuffer())];
    """
    assert talk(browser, server, body) == [True, [0, 255]]


def test_a_mebibyte_comes_back_unchanged(browser: Browser, server: Recorder) -> None:
    body = """
        const sent = new Uint32Array(1 << 18).map((_, index) => index * 2654435761);
        const echo = received();
        socket.send(sent);
        const back = new Uint32Array(await echo);
        return [back.byteLength, back.every((value, index) => value === sent[index])];
    """
    assert talk(browser, server, body) == [1 << 20, True]


def test_many_messages_in_flight_keep_their_order(browser: Browser, server: Recorder) -> None:
    body = """
        const all = [];
        const complete = new Promise((resolve) => {
            socket.onmessage = (event) => { if (all.push(event.data) === 1000) resolve(); };
        });
        for (let number = 0; number < 1000; number++) socket.send(String(number));
        await complete;
        return all.every((data, index) => data === String(index));
    """
    assert talk(browser, server, body) is True


def test_compression_is_offered_and_not_taken(browser: Browser, server: Recorder, origin: str) -> None:
    assert talk(browser, server, "return [socket.extensions, socket.protocol];") == ["", ""]
    request = server.opened.get(timeout=20).request
    assert request is not None
    assert "permessage-deflate" in request.headers["Sec-WebSocket-Extensions"]
    assert request.headers["Origin"] == origin


def test_compression_is_taken(browser: Browser, serve: Callable[..., Recorder]) -> None:
    server = serve(extensions=[wspy.DeflateMessage])
    body = """
        const texts = [];
        for (let size = 0; size < 100; size++) texts.push(("Größe " + size + " 漢字 ").repeat(size * size));
        const all = [];
        const complete = new Promise((resolve) => {
            socket.onmessage = (event) => { if (all.push(event.data) === texts.length) resolve(); };
        });
        for (const text of texts) socket.send(text);
        await complete;
        return [socket.extensions, all.every((data, index) => data === texts[index])];
    """
    extensions, is_equal = talk(browser, server, body)
    assert extensions.startswith("permessage-deflate")
    assert is_equal
    (instance,) = server.opened.get(timeout=20).extensions
    assert instance.deflater._compressor is not None


@pytest.mark.parametrize(
    ("arguments", "seen", "told"),
    [
        ("", [1005, "", True], (1005, "")),
        ("1000", [1000, "", True], (1000, "")),
        ("3000, 'Tschüs'", [3000, "Tschüs", True], (3000, "Tschüs")),
        ("4999, 'x'.repeat(123)", [4999, "x" * 123, True], (4999, "x" * 123)),
    ],
)
def test_the_browser_closes(
    browser: Browser, server: Recorder, arguments: str, seen: list[Any], told: tuple[int, str]
) -> None:
    code, reason, clean = talk(browser, server, f"socket.close({arguments}); return await closed;")
    assert [code, clean] == [seen[0], seen[2]]
    assert reason in {"", seen[1]}
    assert server.ended.get(timeout=20) == told


@pytest.mark.parametrize(
    ("code", "reason", "seen"),
    [
        (1000, "", [1000, "", True]),
        (1001, "Tschüs", [1001, "Tschüs", True]),
        (1011, "x" * 123, [1011, "x" * 123, True]),
        (3000, "three", [3000, "three", True]),
        (4999, "", [4999, "", True]),
        (None, "", [1005, "", True]),
    ],
)
def test_the_server_closes(browser: Browser, server: Recorder, code: int | None, reason: str, seen: list[Any]) -> None:
    body = "socket.send('close ' + JSON.stringify(rest)); return await closed;"
    assert talk(browser, server, body, code, reason) == seen
    assert server.ended.get(timeout=20) == (seen[0], reason)


def test_the_server_aborts(browser: Browser, server: Recorder) -> None:
    assert talk(browser, server, "socket.send('abort'); return await closed;") == [1006, "", False]
    assert server.ended.get(timeout=20)[0] == 1006


def test_the_browser_leaves_the_page(browser: Browser, server: Recorder) -> None:
    assert talk(browser, server, "window.socket = socket; return socket.readyState;") == 1
    browser.reload()  # a page that is only left may be kept alive, with its connections, for the way back
    assert server.ended.get(timeout=20)[0] == 1001


def test_a_subprotocol(browser: Browser, serve: Callable[..., Obedient]) -> None:
    server = serve(protocols=["chat", "superchat"])
    body = OPEN + "socket.close(); await closed; return socket.protocol;"
    assert browser.run_async(body, server.url, ["other", "superchat", "chat"]) == "superchat"


@pytest.mark.parametrize("trusts", [True, False])
def test_the_origin_decides(browser: Browser, serve: Callable[..., Obedient], origin: str, *, trusts: bool) -> None:
    server = serve(trusted_origins=[origin if trusts else "https://example.com"])
    body = """
        const socket = new WebSocket(args[0]);
        return await new Promise((resolve) => {
            socket.onopen = () => socket.close(1000);
            socket.onclose = (event) => resolve([event.code, event.wasClean]);
        });
    """
    assert browser.run_async(body, server.url) == ([1000, True] if trusts else [1006, False])
    assert server.opened.qsize() == trusts


# ---- a websocket that listens ----


@pytest.mark.parametrize("kind", [Connections, Websockets])
def test_a_websocket_serves_a_browser(browser: Browser, origin: str, patience: float, kind: type[Listener]) -> None:
    browser.go(origin)
    listener = kind(protocols=["chat"], trusted_origins=[origin], max_size=None)
    listener.start()
    try:
        found = browser.run_async(
            OPEN
            + """
            const found = [socket.protocol];
            for (const message of ['', 'Größe 😀', 'x'.repeat(65536), 'y'.repeat(1 << 20)]) {
                socket.send(message);
                found.push(await received() === message);
            }
            socket.send(new Uint8Array([0, 255]));
            found.push(bytes(await received()));
            socket.close(4000, 'Tschüs');
            return [...found, await closed];
            """,
            listener.url,
            ["other", "chat"],
        )
        assert found[:-1] == ["chat", True, True, True, True, [0, 255]]
        assert found[-1][::2] == [4000, True]
        assert listener.ended.get(timeout=20 * patience) == (4000, "Tschüs")
    finally:
        listener.stop(20 * patience)
    assert listener.errors == []
