"""Does each error of the core say what it means, which rule it is, and what the peer is told?"""

from __future__ import annotations

import re

import pytest
from reference import CLOSE_CODES

from wspy._core import ffi, lib

ERRORS = {name: getattr(lib, name) for name in dir(lib) if re.match(r"WSPY_ERROR_", name)}
EACH_ERROR = pytest.mark.parametrize("name", ERRORS)
SECTION = re.compile(r"(RFC (6455|9110|9112|6585) §\d+(\.\d+)*)?")


def text(error: int) -> str:
    return ffi.string(lib.wspy_error_text(error)).decode()


def section(error: int) -> str:
    return ffi.string(lib.wspy_error_section(error)).decode()


def test_there_are_errors() -> None:
    assert len(ERRORS) > 30
    assert len(set(ERRORS.values())) == len(ERRORS)


@EACH_ERROR
def test_each_is_negative_and_fits_a_byte(name: str) -> None:
    assert -128 <= ERRORS[name] < 0  # the protocol keeps it in an int8_t


@EACH_ERROR
def test_each_has_a_sentence_of_its_own(name: str) -> None:
    sentence = text(ERRORS[name])
    assert re.fullmatch(r"[a-zA-Z0-9_ ,'-]{10,80}", sentence)
    assert [other for other, error in ERRORS.items() if text(error) == sentence] == [name]


@EACH_ERROR
def test_each_names_its_section_or_none(name: str) -> None:
    assert SECTION.fullmatch(section(ERRORS[name]))


@pytest.mark.parametrize(("name", "code"), CLOSE_CODES.items())
def test_each_broken_rule_has_its_close_code_and_its_section(name: str, code: int) -> None:
    error = ERRORS[f"WSPY_ERROR_{name}"]
    assert lib.wspy_error_close_code(error) == code
    assert lib.wspy_close_code_valid(code)
    assert section(error).startswith("RFC 6455 §")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RSV", "5.2"),
        ("OPCODE", "5.2"),
        ("UNMASKED", "5.1"),
        ("MASKED", "5.1"),
        ("LENGTH_FORM", "5.2"),
        ("LENGTH_RANGE", "5.2"),
        ("CONTROL_LENGTH", "5.5"),
        ("CONTROL_FRAGMENT", "5.5"),
        ("CONTINUATION", "5.4"),
        ("INTERLEAVED", "5.4"),
        ("MESSAGE_SIZE", "10.4"),
        ("UTF8", "8.1"),
        ("CLOSE_LENGTH", "5.5.1"),
        ("CLOSE_CODE", "7.4"),
        ("CLOSE_UTF8", "5.5.1"),
    ],
)
def test_the_section_is_that_of_the_rule(name: str, expected: str) -> None:
    assert section(ERRORS[f"WSPY_ERROR_{name}"]) == f"RFC 6455 §{expected}"


def test_a_lack_of_memory_can_be_told_to_the_peer() -> None:
    assert lib.wspy_error_close_code(lib.WSPY_ERROR_NO_MEMORY) == 1011


@EACH_ERROR
def test_a_code_is_one_that_a_close_carries_or_1006(name: str) -> None:
    code = lib.wspy_error_close_code(ERRORS[name])
    assert code == 1006 or lib.wspy_close_code_valid(code)


def test_section_7_1_5_a_connection_that_just_ended_is_1006() -> None:
    for name in ("EOF", "RESET", "OPEN_TIMEOUT", "CLOSE_TIMEOUT", "PING_TIMEOUT", "ABORTED"):
        assert lib.wspy_error_close_code(ERRORS[f"WSPY_ERROR_{name}"]) == 1006


def test_no_error_is_a_normal_end() -> None:
    assert (lib.wspy_error_close_code(0), section(0), text(0)) == (1000, "", "no error")


@pytest.mark.parametrize("number", [1, -7, -15, -100, 2**31 - 1, -(2**31)])
def test_a_number_that_is_no_error_is_a_failed_system_call(number: int) -> None:
    assert number not in ERRORS.values()
    assert (lib.wspy_error_close_code(number), section(number)) == (1006, "")
    assert text(number) == text(lib.WSPY_ERROR_SYSTEM)


@EACH_ERROR
def test_texts_are_static(name: str) -> None:
    for of in (lib.wspy_error_text, lib.wspy_error_section):
        assert of(ERRORS[name]) == of(ERRORS[name])
