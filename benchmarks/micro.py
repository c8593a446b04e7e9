"""What do masking, UTF-8 validation and request heads cost, beside websockets, picows and bytes.decode?

    python benchmarks/micro.py [--seconds 0.02]

The first table of each part is what Python pays for a call. The second is C alone: micro.c, compiled here with cc,
calls the functions in a loop. Peers that are not installed are reported as missing.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import platform
import shutil
import subprocess
import tempfile
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HERE = Path(__file__).resolve().parent
CORE = HERE.parent / "wspy" / "_core"
REPEATS = 7
KEY = bytes.fromhex("37fa213d")
SIZES = {"4 B": 4, "32 B": 32, "125 B": 125, "1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20, "16 MiB": 1 << 24}
TEXTS = {
    "ASCII": "The quick brown fox jumps over the lazy dog. ",
    "mixed": 'Größe, {"price": 12, "€": true} \U0001f600 and then some words; ',
    "CJK": "漢字仮名交じり文",
}
IMPLEMENTATIONS = ("scalar", "SSE2", "AVX2", "NEON")
HEADS = {
    "RFC 6455": (
        b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n"
    ),
    "browser": (
        b"GET /chat?room=12 HTTP/1.1\r\nHost: server.example.com:8080\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
        b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 "
        b"(KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: https://www.example.com\r\n"
        b"Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
        b"Accept-Language: en-GB,en-US;q=0.9,en;q=0.8,de;q=0.7\r\n"
        b"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes; id=af3c\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    ),
}


# ---- timing ----


class Clock:
    """Times calls; each figure is the best of some repeats that take about ``seconds`` each."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def python(self, statement: str, **names: Any) -> float:
        """Return the nanoseconds of a statement."""
        timer = timeit.Timer(statement, globals=names)
        once = max(timer.timeit(3) / 3, 1e-8)
        count = max(int(self.seconds / once), 1)
        return min(timer.repeat(REPEATS, count)) / count * 1e9

    def native(self, function: Callable[..., float], *arguments: Any) -> float:
        """Return the nanoseconds of one of micro.c's calls."""
        once = max(function(*arguments, 3) / 3, 0.5)
        count = max(int(self.seconds * 1e9 / once), 1)
        return min(function(*arguments, count) for _ in range(REPEATS)) / count


def cell(nanoseconds: float | None, size: int) -> str:
    """Return a call's nanoseconds and its gigabytes per second."""
    return f"{'-':>20}" if nanoseconds is None else f"{nanoseconds:>13,.1f}{size / nanoseconds:>7.1f}"


def print_table(title: str, columns: dict[str, int], rows: Iterable[tuple[str, list[float | None] | None]]) -> None:
    """Print what each way costs at each size; None for a way that isn't there."""
    print(f"\n{title}; ns per call, GB/s")
    print(f"{'':36}" + "".join(f"{name:>20}" for name in columns))
    for name, figures in rows:
        cells = ["  missing"] if figures is None else map(cell, figures, columns.values())
        print(f"{name:36}" + "".join(cells))


# ---- C alone ----


def compiled() -> ctypes.CDLL | None:
    """Return micro.c as a library, or None without a compiler or core.h."""
    compiler = shutil.which("cc")
    if compiler is None or not (CORE / "core.h").exists():
        return None
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "micro.so"
        command = [
            compiler,
            "-std=c11",
            "-O2",
            "-shared",
            "-fPIC",
            f"-I{CORE}",
            str(HERE / "micro.c"),
            "-o",
            str(library),
        ]
        subprocess.run(command, check=True)
        native = ctypes.CDLL(str(library))
    for name in ("micro_mask", "micro_mask_kernel", "micro_utf8"):
        getattr(native, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        getattr(native, name).restype = ctypes.c_double
    native.micro_head.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t]
    native.micro_head.restype = ctypes.c_double
    return native


def address(cdata: Any) -> int:
    return int(ffi.cast("uintptr_t", cdata))


def address_of_bytes(data: bytes) -> int:
    return address(ffi.from_buffer("uint8_t[]", data))


def address_of_function(name: str) -> int:
    compiled_ffi: Any = ffi  # its types are those that wspy uses
    return address(compiled_ffi.addressof(lib, name))


def aligned(size: int) -> tuple[Any, int]:
    """Return memory and an address in it that is a multiple of 64, with size bytes behind it."""
    memory = ffi.new("uint8_t[]", size + 64)
    return memory, -(-address(memory) // 64) * 64


# ---- peers ----


def peer(module: str, name: str) -> Any:
    """Return what a peer's module calls by this name, or None."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None


def version(package: str) -> str:
    return str(peer(package, "__version__") or peer(f"{package}.version", "version") or "missing")


def picows_kernel() -> int | None:
    """Return the address of picows' masking kernel, a C symbol of its extension module, or None.

    It masks whole vectors only, with stores that bypass the caches; what masks the rest isn't exported.
    """
    file = peer("picows.picows", "__file__")
    if file is None:
        return None
    find = getattr(ctypes.CDLL(file), "get_apply_mask_fast_fn", None)
    if find is None:
        return None
    find.restype = ctypes.c_void_p
    kernel: int | None = find()
    return kernel


# ---- masking ----


def mask_in_place(clock: Clock, size: int) -> float:
    memory = ffi.new("uint8_t[]", size)
    return clock.python("mask(memory, size, KEY, 0)", mask=lib.wspy_mask, memory=memory, size=size, KEY=KEY)


def mask_to_new_object(clock: Clock, size: int) -> float:
    statement = "output = bytearray(size); into(from_buffer('uint8_t[]', output), data, size, KEY, 0)"
    names = {"into": lib.wspy_mask_into, "from_buffer": ffi.from_buffer, "data": bytes(size), "size": size, "KEY": KEY}
    return clock.python(statement, **names)


def mask_tables(clock: Clock, native: ctypes.CDLL | None) -> None:
    apply_mask = peer("websockets.speedups", "apply_mask")
    print_table(
        "Masking from Python",
        SIZES,
        [
            ("wspy_mask, in place", [mask_in_place(clock, size) for size in SIZES.values()]),
            ("wspy_mask_into, a new bytearray", [mask_to_new_object(clock, size) for size in SIZES.values()]),
            (
                "websockets.speedups, a new bytes",
                apply_mask
                and [clock.python("f(data, KEY)", f=apply_mask, data=bytes(size), KEY=KEY) for size in SIZES.values()],
            ),
        ],
    )
    print("picows masks inside its transport only: nothing that masks can be called from Python")
    if native is None:
        return
    _memory, data = aligned(max(SIZES.values()))
    mask = address_of_function("wspy_mask")
    rows: list[tuple[str, list[float | None] | None]] = []
    for number, name in enumerate(IMPLEMENTATIONS):
        if lib.wspy_mask_select(number) == number:
            rows.append(
                (f"wspy_mask, {name}", [clock.native(native.micro_mask, mask, data, n) for n in SIZES.values()])
            )
    lib.wspy_mask_select(-1)
    rows.append(("picows' kernel, whole vectors only", kernel_figures(clock, native, data)))
    print_table("Masking in place from C, aligned", SIZES, rows)


def kernel_figures(clock: Clock, native: ctypes.CDLL, data: int) -> list[float | None] | None:
    kernel = picows_kernel()
    if kernel is None:
        return None
    types = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p]
    call = ctypes.CFUNCTYPE(ctypes.c_size_t, *types)(kernel)
    return [
        clock.native(native.micro_mask_kernel, kernel, data, size) if call(data, size, 0, 0, data) == size else None
        for size in SIZES.values()
    ]


# ---- UTF-8 ----


def text_of(text: str, size: int) -> bytes:
    """Return so many bytes of UTF-8: the text again and again, and ASCII where the last code point doesn't fit."""
    unit = text.encode()
    data = (unit * (size // len(unit) + 1))[:size]
    return data.decode(errors="ignore").encode().ljust(size, b"x")


def validate(clock: Clock, data: bytes) -> float:
    names = {"feed": lib.wspy_utf8_feed, "state": ffi.new("uint32_t *"), "data": data, "size": len(data)}
    return clock.python("state[0] = 0; feed(state, data, size)", **names)


def utf8_tables(clock: Clock, native: ctypes.CDLL | None) -> None:
    for name, text in TEXTS.items():
        parts = [text_of(text, size) for size in SIZES.values()]
        print_table(
            f"UTF-8 from Python, {name}",
            SIZES,
            [
                ("wspy_utf8_feed", [validate(clock, data) for data in parts]),
                ("bytes.decode, makes a str too", [clock.python("data.decode()", data=data) for data in parts]),
            ],
        )
        if native is not None:
            print_table(f"UTF-8 from C, {name}", SIZES, native_utf8(clock, native, parts))


def native_utf8(clock: Clock, native: ctypes.CDLL, parts: list[bytes]) -> list[tuple[str, list[float | None] | None]]:
    feed = address_of_function("wspy_utf8_feed")
    rows: list[tuple[str, list[float | None] | None]] = []
    for number, name in enumerate(("scalar", "SIMD")):
        if lib.wspy_utf8_select(number) == number:
            figures = [clock.native(native.micro_utf8, feed, address_of_bytes(p), len(p)) for p in parts]
            rows.append((f"wspy_utf8_feed, {name}", list(figures)))
    lib.wspy_utf8_select(1)
    return rows


# ---- request heads ----


def head_tables(clock: Clock, native: ctypes.CDLL | None) -> None:
    columns = {name: len(head) for name, head in HEADS.items()}
    limits = ffi.new("wspy_head_limits *", [8192, 8192, 65536, 100])
    statement = "feed(new('wspy_head_scanner *'), limits, data, size)"
    names = {"feed": lib.wspy_head_feed, "new": ffi.new, "limits": limits}
    rows = [("from Python", [clock.python(statement, data=h, size=len(h), **names) for h in HEADS.values()])]
    if native is not None:
        feed = address_of_function("wspy_head_feed")
        figures = [clock.native(native.micro_head, feed, address_of_bytes(h), len(h)) for h in HEADS.values()]
        rows.append(("from C", figures))
    sizes = ", ".join(f"{name} {size} bytes" for name, size in columns.items())
    print_table(f"The end of a request head: {sizes}", columns, [(name, list(figures)) for name, figures in rows])


# ---- all ----


def processor() -> str:
    """Return the model's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time masking, UTF-8 validation and request heads.")
    parser.add_argument("--seconds", type=float, default=0.02, help="of one repeat of one figure")
    clock = Clock(parser.parse_args().seconds)
    native = compiled()
    print(f"{processor()}, {platform.python_implementation()} {platform.python_version()}")
    print(f"masking: {IMPLEMENTATIONS[lib.wspy_mask_select(-1)]}, UTF-8: {('scalar', 'SIMD')[lib.wspy_utf8_select(1)]}")
    print(f"websockets {version('websockets')}, picows {version('picows')}")
    print(f"a call that does nothing: {clock.python('f(1000)', f=lib.wspy_close_code_valid):.1f} ns")
    if native is None:
        print("C alone: missing, it needs cc and the source tree")
    mask_tables(clock, native)
    utf8_tables(clock, native)
    head_tables(clock, native)


if __name__ == "__main__":
    main()
