"""Do two ends agree on extensions as RFC 6455 §9 wants it, and on nothing else?"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from wspy.codes import Role
from wspy.extensions import Extension, agree, checked_extensions, confirm, offer
from wspy.frames import Frame

CLIENT, SERVER = Role.CLIENT, Role.SERVER


class Upper(Extension):
    names: ClassVar = ("x-upper", "x-old-upper")
    rsv2: ClassVar = True
    opcodes: ClassVar = (3, 11)
    defaults: ClassVar = {"flag": False, "count": 7, "word": "none"}

    class Instance(Extension.Instance):
        def onsend(self, frame: Frame) -> Frame:
            return Frame(frame.opcode, frame.payload.upper(), rsv2=True)


class Frames(Extension):
    names: ClassVar = ("x-frames",)
    rsv3: ClassVar = True
    per_message: ClassVar = False


class SameBit(Extension):
    names: ClassVar = ("x-same-bit",)
    rsv2: ClassVar = True


class SameOpcode(Extension):
    names: ClassVar = ("x-same-opcode",)
    opcodes: ClassVar = (11,)


# ---- what an extension can be ----


@pytest.mark.parametrize(
    "attributes",
    [
        {"names": ()},
        {"names": ("no token",)},
        {"names": ("x",), "defaults": {"no token": 1}},
        {"names": ("x",), "opcodes": (1,)},
        {"names": ("x",), "opcodes": (8,)},
        {"names": ("x",), "opcodes": (16,)},
    ],
)
def test_what_can_not_be_claimed(attributes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        type("Wrong", (Extension,), attributes)()


@pytest.mark.parametrize("parameters", [{"other": 1}, {"flag": 1}, {"count": True}, {"count": "7"}, {"word": 7}])
def test_what_is_no_parameter(parameters: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Upper(**parameters)


@pytest.mark.parametrize(
    "parameters",
    [{"count": -1}, {"count": 10**9}, {"word": ""}, {"word": "two words"}, {"word": "a, b"}, {"word": "a\r\nb: c"},
     {"word": "ü"}],
)  # fmt: skip
def test_rfc6455_9_1_what_can_not_be_written_as_a_parameter(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(parameters))):
        Upper(**parameters)


@pytest.mark.parametrize("parameter", [("a b", None), ("word", "a\r\nSet-Cookie: b"), ("word", ""), ("", "a")])
def test_what_an_extension_says_can_not_leave_its_field(parameter: tuple[str, str | None]) -> None:
    class Careless(Upper):
        def offers(self) -> Any:
            return [[parameter]]

        def accept(self, offered: Any) -> Any:
            return [parameter]

        def agreed(self, role: Role, offered: Any, answer: Any) -> Any:
            return {}

    with pytest.raises(ValueError, match="token"):
        offer([Careless()])
    with pytest.raises(ValueError, match="token"):
        agree([Careless()], "x-upper", SERVER)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_how_long_nobody_can_be_idle(seconds: Any, expected: type[Exception]) -> None:
    with pytest.raises(expected, match="idle_seconds"):
        type("Restless", (Frames,), {"idle_seconds": seconds})()


def test_the_bits_and_opcodes_of_a_chain_are_those_of_its_extensions() -> None:
    agreement = agree([Upper(), Frames()], "x-frames, x-upper", SERVER)
    assert agreement.rsv == 0x20 | 0x10
    assert agreement.opcodes == 1 << 3 | 1 << 11 | 0x07
    assert agreement.has_frames
    assert [type(each) for each in agreement.chain().instances] == [Frames.Instance, Upper.Instance]
    none = agree([], None, SERVER)
    assert not none
    assert (none.rsv, none.opcodes, none.has_frames, none.chain().instances) == (0, 0, False, [])


# ---- what a client asks for ----


def test_an_offer_names_each_extension_by_each_of_its_names() -> None:
    assert offer([Upper(), Frames()]) == "x-upper, x-old-upper, x-frames"
    assert offer([]) == ""


def test_an_offer_has_the_parameters_that_are_not_the_defaults() -> None:
    assert offer([Upper(flag=True, count=3, word="w")]) == (
        "x-upper; flag; count=3; word=w, x-old-upper; flag; count=3; word=w"
    )


def test_two_of_one_name_can_not_be_offered() -> None:
    with pytest.raises(ValueError, match="same name"):
        checked_extensions([Upper(), Upper])


@pytest.mark.parametrize("wrong", [Upper, Upper(), "x-upper", None, ["x-upper"], [Extension.Instance]])
def test_what_are_no_extensions(wrong: Any) -> None:
    with pytest.raises(TypeError, match="extensions"):
        checked_extensions(wrong)


# ---- what a server answers ----


@pytest.mark.parametrize("offered", [None, "", "x-other", "x-other; a=1, x-none"])
def test_what_is_not_spoken_is_not_answered(offered: str | None) -> None:
    agreement = agree([Upper()], offered, SERVER)
    assert agreement.answer == ""
    assert not agreement


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ("x-upper", "x-upper"),
        ("x-old-upper", "x-old-upper"),
        ("x-upper;flag ; count=3", "x-upper; flag; count=3"),
        ('x-upper; count="3"', "x-upper; count=3"),
        ("x-upper; unknown, x-upper; count=4", "x-upper; count=4"),
        ("x-upper; flag; flag, x-upper", "x-upper"),
        ("x-upper; flag=1, x-upper", "x-upper"),
        ("x-upper; count, x-upper", "x-upper"),
        ("x-upper; count=03, x-upper", "x-upper"),
        ("x-upper; count=x, x-upper", "x-upper"),
        ("x-upper, x-upper; flag", "x-upper"),
        ("x-frames, x-upper", "x-frames, x-upper"),
        ("x-upper, x-same-bit, x-frames", "x-upper, x-frames"),
        ("x-same-opcode, x-upper", "x-same-opcode"),
    ],
)
def test_g1_g2_g3_the_first_offer_that_goes_is_answered_once(offered: str, answer: str) -> None:
    extensions = [Upper(), Frames(), SameBit(), SameOpcode()]
    assert agree(extensions, offered, SERVER).answer == answer


def test_a_malformed_offer_is_an_error() -> None:
    with pytest.raises(ValueError):
        agree([Upper()], "x-upper;;", SERVER)


# ---- what a client accepts ----


def test_what_was_agreed_upon_reaches_the_instances() -> None:
    own = Upper(count=3)
    agreement = agree([Upper(count=9)], offer([own]), SERVER)
    chain = agreement.chain()
    assert chain.instances[0].parameters == {"flag": False, "count": 3, "word": "none"}
    confirmed = confirm([own], agreement.answer, CLIENT).chain()
    assert confirmed.instances[0].parameters == {"flag": False, "count": 3, "word": "none"}
    assert (confirmed.instances[0].role, chain.instances[0].role) == (CLIENT, SERVER)


def test_no_answer_is_an_empty_chain() -> None:
    assert not confirm([Upper()], None, CLIENT)


@pytest.mark.parametrize(
    "answer",
    [
        "x-other",
        "x-upper; unknown",
        "x-upper; flag; flag",
        "x-upper; count=x",
        "x-upper, x-upper",
        "x-upper, x-old-upper",
        "x-upper, x-same-bit",
        "x-upper, x-same-opcode",
        "x-upper;;",
        "",
    ],
)
def test_g7_an_answer_that_was_not_asked_for_fails_the_connection(answer: str) -> None:
    with pytest.raises(ValueError):
        confirm([Upper(), SameBit(), SameOpcode()], answer, CLIENT)


def test_instances_leave_frames_alone_unless_they_say_otherwise() -> None:
    frame = Frame(1, "text")
    plain = Frames.Instance(CLIENT, {})
    assert plain.onsend(frame) is frame
    assert plain.onrecv(frame) is frame
    assert Upper.Instance(CLIENT, {}).onsend(frame) == Frame(1, b"TEXT", rsv2=True)
