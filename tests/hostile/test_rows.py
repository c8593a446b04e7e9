"""Is there a test for every row that applies, on every front end?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from drivers import PLAIN
from rows import CLIENT, CLIENT_ROWS, ELSEWHERE, IN_ITS_TEST, ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).resolve().parent.parent
LIST = TESTS.parent.parent / "shared" / "threats.md"


def rows_of(test: str) -> set[str]:
    """Return the rows that a test names: test_i7_… in its function, "A5 …" in its parameters."""
    function, _, parameters = test.partition("[")
    named = re.findall(r"(?<=_)[a-n]\d+(?=_|$)", function)
    return {name.upper() for name in named} | set(re.findall(r"(?<![\w#])[A-N]\d+(?=[ \]-]|$)", parameters))


# Of what a client consists of.
CLIENT_TESTS = [
    *("test_websocket.py", "test_connection.py", "test_protocol.py", "test_client_handshake.py"),
    *("test_http_response.py", "test_tls.py", "test_attempts.py"),
    *("test_extending.py", "test_extensions.py", "test_deflate.py"),
]


def collect(*files: str) -> Iterator[str]:
    """Yield the names of tests."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout[-2000:]
    for test in filter(re.compile(r"\S+\.py::").match, result.stdout.splitlines()):
        yield test.rpartition("::")[2] if "[" not in test else test[test.rindex("::", 0, test.index("[")) + 2 :]


@pytest.fixture(scope="module")
def collected() -> dict[str, set[str]]:
    """The rows that the tests of each front end name."""
    found: dict[str, set[str]] = {front_end: set() for front_end in PLAIN}
    for name in collect("behaviour", "hostile", f"--ignore=hostile/{Path(__file__).name}"):
        fronts = [front_end for front_end in PLAIN if re.search(rf"\[(.*-)?{front_end}[-\]]", name)]
        # a test that chooses no front end is about AsyncServer
        for front_end in fronts or ["epoll"]:
            found[front_end] |= rows_of(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("front_end", PLAIN)
def test_every_row_that_applies_has_a_test(front_end: str, collected: dict[str, set[str]]) -> None:
    missing = [name for name, row in ROWS.items() if row.applies_to(front_end) and name not in collected[front_end]]
    assert not missing


@pytest.mark.slow
def test_every_row_of_a_client_has_a_test() -> None:
    found = set().union(*(rows_of(name) for name in collect(*CLIENT_TESTS) if "(server)" not in name))
    assert not CLIENT_ROWS - found


def test_what_is_about_clients_is_one_of_their_rows() -> None:
    assert {name for name, row in ROWS.items() if CLIENT in row.why_not.values()} <= CLIENT_ROWS <= ROWS.keys()


def test_every_row_that_is_said_to_be_tested_elsewhere_is() -> None:
    said = {name for name, row in ROWS.items() if ELSEWHERE in row.why_not.values()}
    names = [
        name
        for file in TESTS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)
    ]
    assert said
    assert said <= set().union(*map(rows_of, names))


def test_every_row_that_the_tests_of_connection_are_said_to_have_is_there() -> None:
    said = {name for name, row in ROWS.items() if IN_ITS_TEST in row.why_not.values()}
    names = re.findall(r"^def (test_\w+)", (TESTS / "test_connection.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert said
    assert said <= set().union(*map(rows_of, names))


def test_each_exception_is_about_a_front_end_that_exists() -> None:
    for row in ROWS.values():
        assert row.why_not.keys() <= {*PLAIN, "*"}
        assert all(row.why_not.values())


@pytest.mark.skipif(not LIST.exists(), reason="the list of hostile inputs is not here")
def test_the_table_has_every_row_of_the_list() -> None:
    section = LIST.read_text(encoding="utf-8").partition("## 4.")[2].partition("## 5.")[0]
    assert set(re.findall(r"^\| ([A-N]\d+) \|", section, re.MULTILINE)) == ROWS.keys()


@pytest.mark.parametrize(
    ("test", "rows"),
    [
        ("test_h11_no_descriptors", {"H11"}),
        ("test_c9_c10_c11_origins[epoll-x]", {"C9", "C10", "C11"}),
        ("test_the_answer[epoll-A5 70000 bytes]", {"A5"}),
        ("test_the_byte_that_decides[epoll-D7]", {"D7"}),
        ("test_a_stream[epoll-D15 0 bytes (server)]", {"D15"}),
        ("test_t8_churn[epoll]", set()),
        ("test_utf8[epoll-U+FFFE]", set()),
    ],
)
def test_names_of_rows_are_recognised(test: str, rows: set[str]) -> None:
    assert rows_of(test) == rows
