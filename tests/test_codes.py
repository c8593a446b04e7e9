"""Do the numbers of RFC 6455 have their names, and the names of the original wspy their numbers?"""

from __future__ import annotations

import pytest

from wspy import codes
from wspy.codes import CloseCode, Opcode, Role


def test_opcodes_are_those_of_section_5_2() -> None:
    assert {member.name: member.value for member in Opcode} == {
        "CONTINUATION": 0,
        "TEXT": 1,
        "BINARY": 2,
        "CLOSE": 8,
        "PING": 9,
        "PONG": 10,
    }


def test_close_codes_are_those_of_section_7_4_and_the_registry() -> None:
    assert [member.value for member in CloseCode] == [*range(1000, 1004), *range(1005, 1016)]  # 1004 is reserved


def test_roles_are_told_apart_as_in_the_core() -> None:
    assert (Role.SERVER, Role.CLIENT) == (0, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPCODE_CONTINUATION", 0),
        ("OPCODE_TEXT", 1),
        ("OPCODE_BINARY", 2),
        ("OPCODE_CLOSE", 8),
        ("OPCODE_PING", 9),
        ("OPCODE_PONG", 10),
        ("CLOSE_NORMAL", 1000),
        ("CLOSE_GOING_AWAY", 1001),
        ("CLOSE_PROTOCOL_ERROR", 1002),
        ("CLOSE_NOACCEPT_DTYPE", 1003),
        ("CLOSE_NO_STATUS", 1005),
        ("CLOSE_ABNORMAL", 1006),
        ("CLOSE_INVALID_DATA", 1007),
        ("CLOSE_POLICY", 1008),
        ("CLOSE_MESSAGE_TOOBIG", 1009),
        ("CLOSE_MISSING_EXTENSIONS", 1010),
        ("CLOSE_UNABLE", 1011),
        ("CLOSE_SERVICE_RESTART", 1012),
        ("CLOSE_TRY_AGAIN_LATER", 1013),
        ("CLOSE_BAD_GATEWAY", 1014),
        ("CLOSE_TLS_HANDSHAKE", 1015),
    ],
)
def test_plain_names_compare_and_print_as_integers(name: str, value: int) -> None:
    number = getattr(codes, name)
    assert number == value
    assert f"{number} {number!s}" == f"{value} {value}"
    assert {number: 1}[value] == 1


def test_each_member_has_a_plain_name() -> None:
    plain = [getattr(codes, name) for name in codes.__all__ if name.isupper()]
    assert sorted(plain) == sorted([*Opcode, *CloseCode])
    assert all(isinstance(number, Opcode | CloseCode) for number in plain)
