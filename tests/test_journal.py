"""Does the log stay short whatever peers do, and say so?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from wspy import journal
from wspy.journal import Journal, peer_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wspy.loop import Address

ANNA, BORIS = ("192.0.2.1", 1000), ("2001:db8::1", 2000, 0, 0)


class Clock:
    """What the journal takes for the time."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Clock]:
    caplog.set_level("INFO", "wspy.test")
    clock = Clock()
    monkeypatch.setattr(journal, "monotonic", clock)
    return clock


@pytest.fixture
def lines() -> Journal:
    return Journal(logging.getLogger("wspy.test"), 3)


def test_h15_each_address_has_a_few_lines_in_a_second(
    clock: Clock, lines: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        lines.tell((ANNA[0], number), "anna %d", number)
        lines.tell(BORIS, "boris %d", number)
    assert caplog.messages == [f"{who} {number}" for number in range(3) for who in ("anna", "boris")]
    caplog.clear()
    clock.now += 0.99
    lines.tell(ANNA, "anna")
    assert caplog.messages == []
    clock.now += 0.01
    lines.tell(ANNA, "anna")
    assert caplog.messages == [
        "left out 8 more lines about 192.0.2.1",
        "left out 7 more lines about 2001:db8::/64",
        "anna",
    ]


def test_h15_who_has_a_network_has_no_more_lines_than_who_has_an_address(
    clock: Clock, lines: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 6):
        lines.tell((f"2001:db8:0:1::{number:x}", 1, 0, 0), "one")
        lines.tell((f"fe80::{number:x}%eth0", 1, 0, 2), "near")
        lines.tell((f"::ffff:192.0.2.{number}", 1, 0, 0), "mapped %d", number)
        lines.tell((f"2001:db8:0:2:{number:x}::", 1, 0, 0), "other")
    lines.flush()
    assert [caplog.messages.count(line) for line in ("one", "near", "other")] == [3, 3, 3]
    assert [f"mapped {number}" in caplog.messages for number in range(1, 6)] == [True] * 5
    assert caplog.messages[-3:] == [
        f"left out 2 more lines about {network}/64" for network in ("2001:db8:0:1::", "fe80::", "2001:db8:0:2::")
    ]
    assert clock.now == 100


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (None, "unknown"),
        ("", "unix"),
        (b"", "unix"),
        ("/run/one.sock", "/run/one.sock"),
        ("/run/a\nforged line", r"'/run/a\nforged line'"),
        (b"\0abstract", r"b'\x00abstract'"),
        (("192.0.2.1", 80), "192.0.2.1:80"),
        (("2001:db8::1", 80, 0, 0), "[2001:db8::1]:80"),
    ],
)
def test_a_peer_is_named_in_one_line(address: Address | bytes | None, name: str) -> None:
    assert peer_name(address) == name


@pytest.mark.parametrize("address", [None, "", b"", b"\0abstract", "/run/one.sock"])
def test_peers_without_an_address_are_one(
    clock: Clock, lines: Journal, address: Address | bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        lines.tell(address, "line")
    lines.flush()
    assert caplog.messages == ["line"] * 3 + ["left out 2 more lines about local peers"]
    lines.flush()
    assert len(caplog.messages) == 4
    assert clock.now == 100


def test_nothing_is_counted_for_nobody(caplog: pytest.LogCaptureFixture, lines: Journal) -> None:
    caplog.set_level("WARNING", "wspy.test")
    assert not lines.is_open
    for _ in range(10):
        lines.tell(ANNA, "line")
    lines.flush()
    assert caplog.messages == []
