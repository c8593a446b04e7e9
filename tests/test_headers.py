"""Does each grammar of header fields take what it must and nothing else?"""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measures import best_time

from wspy.headers import Headers, is_token, parse_extensions, parse_host, parse_token_list

TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters
LATIN1 = [chr(octet) for octet in range(256)]
BLANKS = st.text(" \t", max_size=3)
TOKENS = st.text(TOKEN_CHARACTERS, min_size=1, max_size=12)


# RFC 9110 §5.6.2


@pytest.mark.parametrize("character", LATIN1, ids=lambda character: f"{ord(character):02x}")
def test_a_token_consists_of_the_characters_of_rfc_9110_5_6_2(character: str) -> None:
    assert is_token(character) == (character in TOKEN_CHARACTERS)
    assert is_token(f"a{character}b") == (character in TOKEN_CHARACTERS)


@pytest.mark.parametrize("text", ["", "a\n", "\na", "K\u212a", "\u0660", "a b"])
def test_what_is_not_a_token(text: str) -> None:
    assert not is_token(text)


# RFC 9110 §5.6.1


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("chat", ["chat"]),
        ("chat, superchat", ["chat", "superchat"]),
        ("a,b\t,\tc ", ["a", "b", "c"]),
        ("Keep-Alive, UPGRADE", ["Keep-Alive", "UPGRADE"]),
        (", a,, ,b,", ["a", "b"]),
        ("", []),
        (" , ,", []),
    ],
)
def test_a_token_list_ignores_whitespace_and_empty_elements(value: str, tokens: list[str]) -> None:
    assert parse_token_list(value) == tokens


@pytest.mark.parametrize(
    "value", ["a b", "a;b", '"a"', "a,b c", "a\x0b,b", "a,\xe9", "a\x00", "\xa0a", "a=b", "a/b", "a\r\n,b", "a\n"]
)
def test_a_token_list_of_something_else_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="token"):
        parse_token_list(value)


@given(st.lists(st.tuples(BLANKS, TOKENS, BLANKS), max_size=8))
def test_a_token_list_is_what_was_joined(elements: list[tuple[str, str, str]]) -> None:
    assert parse_token_list(",".join(map("".join, elements))) == [token for _, token, _ in elements]


@given(st.text('aZ9~,;= \t\n\x00"\xe9\u212a', max_size=60))
def test_an_arbitrary_token_list_has_tokens_or_is_refused(value: str) -> None:
    try:
        tokens = parse_token_list(value)
    except ValueError:
        return
    assert all(map(is_token, tokens))
    assert parse_token_list(", ".join(tokens)) == tokens


@pytest.mark.parametrize(
    "value", ["b" + " " * 65000 + "x", "," * 65000, "a," * 32000, "\t" * 65000, "a" * 65000 + "\xff", "a ," * 20000]
)
def test_c13_a_token_list_takes_linear_time(value: str) -> None:
    def parse() -> None:
        try:
            parse_token_list(value)
        except ValueError:
            pass

    assert best_time(parse) < 0.01


# RFC 6455 §9.1


@pytest.mark.parametrize(
    ("value", "extensions"),
    [
        ("foo", [("foo", [])]),
        ("foo, bar; baz=2", [("foo", []), ("bar", [("baz", "2")])]),
        ("deflate-stream", [("deflate-stream", [])]),
        ("mux; max-channels=4; flow-control, deflate-stream", [
            ("mux", [("max-channels", "4"), ("flow-control", None)]),
            ("deflate-stream", []),
        ]),
        ("private-extension", [("private-extension", [])]),
        ("permessage-deflate; client_max_window_bits", [("permessage-deflate", [("client_max_window_bits", None)])]),
        ('x; server_max_window_bits="10"', [("x", [("server_max_window_bits", "10")])]),
        ('a; b="c\\d\\e"', [("a", [("b", "cde")])]),
        ("a ;b = c\t; d , e", [("a", [("b", "c"), ("d", None)]), ("e", [])]),
        ("a; b=1; b=2", [("a", [("b", "1"), ("b", "2")])]),
        ("a; b, a", [("a", [("b", None)]), ("a", [])]),
        (", ,a,,", [("a", [])]),
        ("constructor; __class__=__init__", [("constructor", [("__class__", "__init__")])]),
    ],
)  # fmt: skip
def test_extensions(value: str, extensions: list[tuple[str, list[tuple[str, str | None]]]]) -> None:
    assert parse_extensions(value) == extensions


@pytest.mark.parametrize(
    "value",
    [
        ";;=",
        "",
        ",",
        " , ",
        "a;",
        ";a",
        "a;;b",
        "a; =b",
        "a; b=",
        "a; b==c",
        "a=b",
        'a; b="c',
        'a; b=c"',
        'a; b="',
        'a; b=""',
        'a; b="c" d',
        'a; b="c"d',
        'a; b="c,d"',
        'a; b="c;d"',
        'a; b="c d"',
        'a; b="c\\"d"',
        'a; b="c\\',
        'a; b="\\\\"',
        'a; "b"=c',
        '"a"; b',
        "a b",
        "a; b c",
        "a; b=c d",
        "a/b",
        "\xe9",
        "a; b=\xe9",
        "a; b=c\x00",
        "a\x0b; b",
        "a; b=c\n",
    ],
)
def test_c15_malformed_extensions_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"token|empty"):
        parse_extensions(value)


@given(
    st.lists(
        st.tuples(TOKENS, st.lists(st.tuples(TOKENS, st.none() | TOKENS, st.booleans()), max_size=4)),
        min_size=1,
        max_size=4,
    ),
    BLANKS,
)
def test_extensions_are_what_was_joined(
    extensions: list[tuple[str, list[tuple[str, str | None, bool]]]], blank: str
) -> None:
    def written(name: str, value: str | None, quoted: bool) -> str:
        if value is None:
            return name
        text = '"' + "".join(map("\\".__add__, value)) + '"' if quoted else value
        return f"{name}{blank}={blank}{text}"

    value = f"{blank},".join(
        f"{blank};".join([name, *(written(*parameter) for parameter in parameters)]) for name, parameters in extensions
    )
    assert parse_extensions(value) == [
        (name, [(key, value) for key, value, _ in parameters]) for name, parameters in extensions
    ]


@given(st.text('ab,;="\\ \t\xe9\n', max_size=40))
def test_arbitrary_extensions_are_tokens_or_are_refused(value: str) -> None:
    try:
        extensions = parse_extensions(value)
    except ValueError:
        return
    for name, parameters in extensions:
        assert is_token(name)
        assert all(is_token(key) and (value is None or is_token(value)) for key, value in parameters)


@pytest.mark.parametrize(
    "value",
    [
        'a; b="' + "\\" * 65000,
        'a; b="' + "\\a" * 32000,
        "a;" * 32000,
        "a" + " " * 65000 + "b",
        "a;b=" * 16000,
        "a" + ";b=c" * 16000,
        '"' * 65000,
        "," * 65000,
        "a; b=" + "\t" * 65000 + "c d",
        'a;b="' + "c" * 65000,
    ],
)
def test_extensions_take_linear_time(value: str) -> None:
    def parse() -> None:
        try:
            parse_extensions(value)
        except ValueError:
            pass

    assert best_time(parse) < 0.02


# RFC 9110 §7.2, RFC 3986 §3.2.2


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("example.com", ("example.com", None)),
        ("EXAMPLE.com:8080", ("example.com", 8080)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("a:65535", ("a", 65535)),
        ("a:00080", ("a", 80)),
        ("a:", ("a", None)),
        ("[::1]:80", ("[::1]", 80)),
        ("[0:0::0001]", ("[::1]", None)),
        ("[2001:DB8::1]", ("[2001:db8::1]", None)),
        ("my_host-1.local", ("my_host-1.local", None)),
        ("xn--bcher-kva.example", ("xn--bcher-kva.example", None)),
        ("%41b", ("%41b", None)),
        ("localhost", ("localhost", None)),
    ],
)
def test_hosts(value: str, host: tuple[str, int | None]) -> None:
    assert parse_host(value) == host


def test_an_ipv6_address_has_one_spelling() -> None:
    assert parse_host("[::ffff:127.0.0.1]") == parse_host("[0::FFFF:7f00:1]")


@pytest.mark.parametrize(
    "value",
    [
        "user@a",
        "a/b",
        "a b",
        "a:b",
        "a:0",
        "a:65536",
        "a:99999",
        "a:123456",
        "[::1",
        "::1]",
        "[]",
        "",
        ":80",
        "[::1]a",
        "[::1]]",
        "[[::1]]",
        "[:::::]",
        "[1.2.3.4]",
        "[v1.a]",
        "[::1%25lo]",
        "[fe80::1%lo]",
        "a:80:80",
        "a?b",
        "a#b",
        "a\\b",
        "a\n",
        "a\x00",
        "a\xe9",
        "%4",
        "%zz",
        "a:+1",
        "a:-1",
        "a:\u0661",
        "a: 80",
        "a,b c",
        "http://a",
        '"a"',
        "[::1]:x",
    ],
)
def test_b3_malformed_hosts_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="host") as info:
        parse_host(value)
    assert len(value) < 3 or value not in str(info.value)


@pytest.mark.parametrize("value", ["%41" * 20000 + "@", "a" * 65000 + "@", "a:" + "1" * 65000, "[" + ":" * 65000])
def test_hosts_take_linear_time(value: str) -> None:
    def parse() -> None:
        with pytest.raises(ValueError):
            parse_host(value)

    assert best_time(parse) < 0.01


# Headers


def test_fields_are_found_without_regard_to_case() -> None:
    headers = Headers({"Content-Type": "text/plain"})
    assert headers["content-type"] == headers["CONTENT-TYPE"] == headers.get("Content-type") == "text/plain"
    assert "content-TYPE" in headers
    assert "content" not in headers
    assert 1 not in headers


def test_an_absent_field() -> None:
    headers = Headers()
    with pytest.raises(KeyError):
        headers["a"]
    assert headers.get("a") is None
    assert headers.get("a", "b") == "b"
    assert headers.get_all("a") == []


def test_repeated_fields_are_kept_in_order_and_joined() -> None:
    headers = Headers([("A", "1"), ("b", "2"), ("a", "3")])
    assert headers["a"] == "1, 3"
    assert headers.get_all("A") == ["1", "3"]
    assert list(headers.items()) == [("A", "1"), ("b", "2"), ("a", "3")]
    assert list(headers) == list(headers.keys()) == ["A", "b"]
    assert len(headers) == 2
    assert dict(headers) == {"A": "1, 3", "b": "2"}
    assert headers.repeated
    assert not Headers([("a", "1")]).repeated


def test_added_fields_come_last() -> None:
    headers = Headers([("a", "1")])
    headers.add("B", "2")
    headers.add("A", "3")
    assert list(headers.items()) == [("a", "1"), ("B", "2"), ("A", "3")]
    assert headers["a"] == "1, 3"


def test_headers_made_of_headers_are_independent() -> None:
    first = Headers([("a", "1"), ("a", "2")])
    second = Headers(first)
    second.add("b", "3")
    assert list(first.items()) == [("a", "1"), ("a", "2")]
    assert second.get_all("a") == ["1", "2"]


@pytest.mark.parametrize("fields", [[], [("A", "1"), ("b", "")], [("A", "1"), ("b", ""), ("a", "\xe9")]])
def test_parsed_fields_are_indexed_like_added_ones(fields: list[tuple[str, str]]) -> None:
    assert Headers.from_parsed(list(fields)) == Headers(fields)
    assert list(Headers.from_parsed(list(fields)).items()) == fields


def test_equality_is_of_names_without_case_and_of_values() -> None:
    assert Headers([("A", "1"), ("B", "2")]) == Headers([("b", "2"), ("a", "1")])
    assert Headers([("a", "1")]) != Headers([("a", "2")])
    assert Headers() != {}
    with pytest.raises(TypeError):
        hash(Headers())


def test_repr_shows_fields_but_no_credentials() -> None:
    assert repr(Headers([("A", "1"), ("a", "\x80")])) == "Headers([('A', '1'), ('a', '\\x80')])"
    secret = Headers([(name, "hush") for name in ("Authorization", "COOKIE", "Set-Cookie", "Proxy-Authorization")])
    assert "hush" not in repr(secret)


def test_encoded_fields_are_latin1_lines() -> None:
    assert Headers([("A", "1"), ("b", "\xe9\t ~"), ("a", "")]).encode() == b"A: 1\r\nb: \xe9\t ~\r\na: \r\n"
    assert Headers().encode() == b""


@pytest.mark.parametrize("character", LATIN1, ids=lambda character: f"{ord(character):02x}")
def test_l1_no_other_character_gets_into_a_name(character: str) -> None:
    if character in TOKEN_CHARACTERS:
        assert Headers([(f"a{character}", "b")])[f"a{character}"] == "b"
        return
    for name in (character, f"a{character}", f"{character}a", f"a{character}b"):
        with pytest.raises(ValueError, match="name"):
            Headers([(name, "b")])


@pytest.mark.parametrize("character", LATIN1, ids=lambda character: f"{ord(character):02x}")
def test_l1_no_control_character_gets_into_a_value(character: str) -> None:
    if character == "\t" or (character >= " " and character != "\x7f"):
        assert Headers([("a", f"b{character}c")]).encode() == f"a: b{character}c\r\n".encode("latin-1")
        return
    for value in (character, f"b{character}", f"{character}b", f"b{character}c"):
        with pytest.raises(ValueError, match="value"):
            Headers([("a", value)])


@pytest.mark.parametrize(("name", "value"), [("", "b"), ("a", "\u0100"), ("a", "b\r\nc: d"), ("\u0100", "b")])
def test_l1_what_no_field_can_be(name: str, value: str) -> None:
    headers = Headers()
    with pytest.raises(ValueError):
        headers.add(name, value)
    assert len(headers) == 0


@pytest.mark.parametrize(("name", "value"), [(b"a", "b"), ("a", b"b"), ("a", 1), (1, "b"), ("a", None)])
def test_names_and_values_are_str(name: str, value: str) -> None:
    with pytest.raises(TypeError):
        Headers([(name, value)])
