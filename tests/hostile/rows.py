"""Which row of the list of hostile inputs applies to which front end, and which to clients?

A row applies to every front end of ``drivers.FRONT_ENDS`` unless it says why not. ``test_rows.py`` fails for a row that
applies and that no test names: in a function, as in ``test_h11_no_descriptors``, or at the beginning of the name of a
case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

CLIENT: Final = "about clients, which no front end is; see CLIENT_ROWS"
ELSEWHERE: Final = "the same for all front ends: tested with the module that decides it"
ITS_OWN: Final = "tested with its own client, which no other front end has"
ASYNCIO: Final = "about coroutines"
WORKERS: Final = "no worker processes yet"
NOT_OFFERED: Final = "nothing like that is offered"
NO_PINGS: Final = "a Connection sends no pings of its own: who receives has a timeout"
NO_HTTP: Final = "a websocket takes opening handshakes and nothing else, and asks nobody about them"
NO_SERVER: Final = "about servers, and this front end is one connection"
NO_SEAM: Final = "its system calls are those of Python's sockets, which can't be made to fail"
NOTHING_WAITS: Final = "send() waits for the peer, in a thread that serves nobody else"
IN_ITS_TEST: Final = "tested in tests/test_connection.py: it is the caller of a method who sees it"


class Row(NamedTuple):
    """A row, and why it does not apply.

    Args:
        what: the input or the fault, in short.
        why_not: by front end; or for all of them, under "*".
    """

    what: str
    why_not: Mapping[str, str] = {}

    def applies_to(self, front_end: str) -> bool:
        """Whether a front end needs a test for it."""
        return front_end not in self.why_not and "*" not in self.why_not


def later(section: str, count: int, reason: str) -> dict[str, Row]:
    """Return the rows of a section that no front end can be tested for."""
    return {f"{section}{number}": Row(reason, {"*": reason}) for number in range(1, count + 1)}


ROWS: Final[dict[str, Row]] = {
    # request line
    "A1": Row("empty lines before the request"),
    "A2": Row("nothing is sent"),
    "A3": Row("half a request line"),
    "A4": Row("headers that never end"),
    "A5": Row("a long request line"),
    "A6": Row("a malformed method"),
    "A7": Row("get"),
    "A8": Row("POST with an upgrade"),
    "A9": Row("whitespace in the request line"),
    "A10": Row("no version"),
    "A11": Row("HTTP/1.0 with an upgrade"),
    "A12": Row("HTTP/2.0 and others"),
    "A13": Row("a malformed version"),
    "A14": Row("the preface of HTTP/2"),
    "A15": Row("a fragment"),
    "A16": Row("control characters in the target"),
    "A17": Row("an absolute target with another host"),
    "A18": Row("other forms of the target"),
    "A19": Row("a bare LF"),
    "A20": Row("CR without LF"),
    "A21": Row("no HTTP at all"),
    "A22": Row("all of it in segments of one byte"),
    # headers, bodies, keep-alive
    "B1": Row("no Host"),
    "B2": Row("two Hosts"),
    "B3": Row("a malformed Host"),
    "B4": Row("whitespace before the colon"),
    "B5": Row("whitespace behind the request line"),
    "B6": Row("a folded line"),
    "B7": Row("a malformed name"),
    "B8": Row("control characters in a value"),
    "B9": Row("8-bit bytes in a value"),
    "B10": Row("101 header lines"),
    "B11": Row("2000 headers, the upgrade last"),
    "B12": Row("a long header line"),
    "B13": Row("a long head of legal lines"),
    "B14": Row("90 times the same header"),
    "B15": Row("a malformed Content-Length"),
    "B16": Row("two different Content-Lengths"),
    "B17": Row("two equal Content-Lengths"),
    "B18": Row("Content-Length and Transfer-Encoding"),
    "B19": Row("transfer codings"),
    "B20": Row("an upgrade with a body"),
    "B21": Row("malformed chunk sizes"),
    "B22": Row("malformed chunks"),
    "B23": Row("10,000 trailers"),
    "B24": Row("a body"),
    "B25": Row("10,000 pipelined requests", {"connection": NO_HTTP}),
    "B26": Row("a request behind Connection: close", {"connection": NO_HTTP}),
    "B27": Row("answers without content", {"connection": NO_HTTP}),
    "B28": Row("Expect: 100-continue"),
    "B29": Row("another expectation"),
    "B30": Row("idle and long-lived keep-alive", {"connection": NO_HTTP}),
    "B31": Row("a request and a half-close", {"connection": NO_HTTP}),
    # the upgrade
    "C1": Row("no Upgrade"),
    "C2": Row("another Upgrade"),
    "C3": Row("another Connection"),
    "C4": Row("other cases and lists"),
    "C5": Row("a malformed key"),
    "C6": Row("two keys"),
    "C7": Row("no version"),
    "C8": Row("another version"),
    "C9": Row("an Origin that is not trusted"),
    "C10": Row("an Origin without an allow-list"),
    "C11": Row("no Origin with an allow-list"),
    "C12": Row("malformed subprotocols"),
    "C13": Row("subprotocols with 7,900 spaces"),
    "C14": Row("subprotocols that nobody speaks"),
    "C15": Row("malformed extensions"),
    "C16": Row("unknown extensions"),
    "C17": Row("a location that is not served"),
    "C18": Row("max_connections", {"connection": NO_SERVER}),
    "C19": Row("the sample key"),
    "C20": Row("frames in the segment of the request"),
    "C21": Row("a client that vanishes before the 101"),
    "C22": Row("a 101 in parts", {"connection": NO_SEAM}),
    "C23": Row("a failing callback", {"connection": NO_HTTP}),
    # frame headers
    "D1": Row("reserved bits"),
    "D2": Row("reserved opcodes"),
    "D3": Row("an unmasked frame"),
    "D4": Row("a masked frame from a server", {"*": CLIENT}),
    "D5": Row("a length not in its shortest form"),
    "D6": Row("a length of 2^63"),
    "D7": Row("a length beyond the limit"),
    "D8": Row("lengths whose sum wraps"),
    "D9": Row("a long control frame"),
    "D10": Row("a control frame in fragments"),
    "D11": Row("a continuation of nothing"),
    "D12": Row("a message inside a message"),
    "D13": Row("the same after an empty fragment"),
    "D14": Row("control frames between fragments"),
    "D15": Row("empty frames"),
    "D16": Row("a masking key of zeros"),
    "D17": Row("frames cut everywhere, and a thousand in one segment"),
    "D18": Row("random bytes"),
    "D19": Row("a header and then nothing"),
    "D20": Row("masking keys are unpredictable", {"*": CLIENT}),
    # the closing handshake
    "E1": Row("an empty Close"),
    "E2": Row("a Close of one byte"),
    "E3": Row("codes that may not be sent"),
    "E4": Row("codes that may be sent"),
    "E5": Row("a reason of 123 bytes"),
    "E6": Row("a reason that is not UTF-8"),
    "E7": Row("a Close inside a message"),
    "E8": Row("frames behind a Close"),
    "E9": Row("messages and a Close in one segment"),
    "E10": Row("messages after our Close"),
    "E11": Row("a Close that is never answered"),
    "E12": Row("both close at once"),
    "E13": Row("FIN without a Close"),
    "E14": Row("the server ends TCP first"),
    "E15": Row("misuse of close()"),
    "E16": Row("close() twice"),
    "E17": Row("a violation while the queue is full"),
    # UTF-8
    "F1": Row("bytes that are not UTF-8"),
    "F2": Row("a code point in parts"),
    "F3": Row("a message that ends inside a code point"),
    "F4": Row("a bad byte in the first fragment"),
    "F5": Row("a bad byte early in a frame"),
    "F6": Row("code points at the edges"),
    "F7": Row("binary messages are not text"),
    "F8": Row("the validator at every split"),
    "F9": Row("a lone surrogate is sent"),
    # compression
    "G1": Row("malformed parameters in an offer"),
    "G2": Row("several offers, the first not acceptable"),
    "G3": Row("two acceptable offers"),
    "G4": Row("a window of 256 bytes"),
    "G5": Row("a client whose window can't be limited"),
    "G6": Row("a quoted value"),
    "G7": Row("an answer that was not asked for", {"*": CLIENT}),
    "G8": Row("the samples of RFC 7692"),
    "G9": Row("a last block in the middle of a connection"),
    "G10": Row("empty messages"),
    "G11": Row("RSV1 where it can't be"),
    "G12": Row("data that is not DEFLATE"),
    "G13": Row("a truncated message"),
    "G14": Row("bytes behind a last block"),
    "G15": Row("a bomb"),
    "G16": Row("a message at its limit"),
    "G17": Row("compressed text that is not UTF-8"),
    "G18": Row("plain messages between compressed ones"),
    "G19": Row("references to a message that was to be forgotten"),
    "G20": Row("connections that agree and never compress"),
    "G21": Row("what is compressed and not sent", {"connection": NOTHING_WAITS}),
    "G22": Row("a secret beside what others say"),
    "G23": Row("deflate-frame"),
    # resources
    "H1": Row("fragments beyond the limit"),
    "H2": Row("endless fragments"),
    "H3": Row("a frame in segments of one byte"),
    "H4": Row("a flood of pings"),
    "H5": Row("a flood of pongs"),
    "H6": Row("a slow reader", {"connection": NOTHING_WAITS}),
    "H7": Row("a broadcast to stalled clients", {"connection": NO_SERVER}),
    "H8": Row("handshakes that drip"),
    "H9": Row("half-open peers", {"connection": NO_PINGS}),
    "H10": Row("a peer that takes nothing"),
    "H11": Row("no descriptors", {"connection": NO_SERVER}),
    "H12": Row("accept() fails", {"connection": NO_SEAM}),
    "H13": Row("no memory"),
    "H14": Row("no memory for zlib", {"threads": ELSEWHERE, "connection": ELSEWHERE}),
    "H15": Row("a flood of log lines"),
    "H16": Row("a text of 4-byte characters"),
    "H17": Row("the worst case for parsers"),
    "H18": Row("subscriptions", {"*": NOT_OFFERED}),
    # faults and life cycle
    "I1": Row("RST at any point"),
    "I2": Row("a send to nobody"),
    "I3": Row("interrupted system calls", {"connection": NO_SEAM}),
    "I4": Row("short writes", {"connection": NO_SEAM}),
    "I5": Row("data that is pending at the end"),
    "I6": Row("a descriptor that is used again"),
    "I7": Row("a failing handler"),
    "I8": Row("KeyboardInterrupt and SystemExit in a handler", {"connection": IN_ITS_TEST}),
    "I9": Row("calls in handlers"),
    "I10": Row("send after close"),
    "I11": Row("send from many threads"),
    "I12": Row("closing others in a handler", {"connection": NO_SERVER}),
    "I13": Row("walking through clients", {"connection": NO_SERVER}),
    "I14": Row("a payload that changes"),
    "I15": Row("SIGTERM and SIGINT", {"connection": NO_SERVER}),
    "I16": Row("a second signal", {"connection": NO_SERVER}),
    "I17": Row("fork", {"connection": IN_ITS_TEST}),
    "I18": Row("a clock that jumps", {"connection": IN_ITS_TEST}),
    "I19": Row("the end of the interpreter", {"connection": IN_ITS_TEST}),
    "I20": Row("an abandoned server", {"connection": NO_SERVER}),
    "I21": Row("a cancelled task", {"epoll": ASYNCIO, "threads": ASYNCIO, "connection": ASYNCIO}),
    "I22": Row("two concurrent recv", {"epoll": ASYNCIO, "threads": ITS_OWN, "connection": IN_ITS_TEST}),
    "I23": Row("sub-interpreters"),
    "I24": Row("a partial message at the end"),
    # TLS
    "J1": Row("a TLS handshake that drips, or none"),
    "J2": Row("plain HTTP where TLS is spoken"),
    "J3": Row("TLS where plain HTTP is spoken"),
    "J4": Row("several frames in a record, and silence"),
    "J5": Row("a record in many segments"),
    "J6": Row("TLS that waits for the other direction"),
    "J7": Row("renegotiation"),
    "J8": Row("the end of TCP without close_notify"),
    "J9": Row("close_notify without a Close frame"),
    "J10": Row("key updates, tickets and early data"),
    "J11": Row("certificates that a client has to refuse", {"*": CLIENT}),
    "J12": Row("another certificate while serving"),
    "J13": Row("many handshakes"),
    # authentication
    "K1": Row("no credentials, or an unknown scheme"),
    "K2": Row("the scheme in another case"),
    "K3": Row("what is not base64"),
    "K4": Row("no colon, and no user name"),
    "K5": Row("a password beyond ASCII"),
    "K6": Row("control characters in a password"),
    "K7": Row("two credentials"),
    "K8": Row("long credentials"),
    "K9": Row("how long it takes", {"*": ELSEWHERE}),
    "K10": Row("a digest for something else"),
    "K11": Row("a nonce that is too old"),
    "K12": Row("a nonce that was used"),
    "K13": Row("a digest of another kind"),
    "K14": Row("a forged nonce"),
    "K15": Row("malformed parameters"),
    "K16": Row("brute force"),
    "K17": Row("credentials in the log"),
    "K18": Row("a function that is slow"),
    "K19": Row("a server that asks again and again", {"*": CLIENT}),
    # injection
    "L1": Row("headers that can't be sent"),
    "L2": Row("a reason phrase that can't be sent", {"connection": NO_HTTP}),
    "L3": Row("a subprotocol that can't be sent"),
    "L4": Row("a request that can't be sent", {"*": CLIENT}),
    "L5": Row("control characters in the log"),
    "L6": Row("input in the body of an error"),
    "L7": Row("a close reason in the log"),
    "L8": Row("percent signs in the log"),
    **later("M", 8, CLIENT),
    "M9": Row("connecting again", {"*": NOT_OFFERED}),
    "N1": Row("a path that exists", {"connection": NO_SERVER}),
    "N2": Row("the mode of a Unix socket", {"connection": NO_SERVER}),
    "N3": Row("a path that is too long", {"connection": NO_SERVER}),
    **{f"N{number}": Row(WORKERS, {"*": WORKERS}) for number in (4, 5, 6, 8)},
    "N7": Row("what the child of a fork draws by chance", {"*": ELSEWHERE}),
}


def numbered(section: str, *numbers: int) -> set[str]:
    """Return the names of some rows of a section."""
    return {f"{section}{number}" for number in numbers}


CLIENT_ROWS: Final = frozenset[str]().union(
    numbered("D", 1, 2, *range(4, 21)),  # a server's frames are not masked
    numbered("E", *range(1, 14), 15, 16),  # and who ends TCP first is the server
    numbered("F", *range(1, 8), 9),
    numbered("G", 7, *range(9, 20)),
    numbered("H", 1, 2, 3, 4),
    numbered("I", 1, 2, 3, 4, 7, 8, 9, 10, 11, 14, 17, 18, 19, 20, 22, 24),
    numbered("J", 2, 4, 6, 8, 11),
    numbered("K", 17, 19),
    numbered("L", 4),
    numbered("M", *range(1, 9)),
)
"""What a client has to bear, which is no front end: ``websocket.connect`` and a ``Connection``. The others are about
servers."""
