"""Does the code keep to its own plan: imports downward, no I/O inside, a test beside each source file?"""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "wspy"

# A module imports from lower layers, or from its own as long as that makes no circle when the program runs. Names are
# relative to wspy; a package stands for all that is in it.
LAYERS = (
    {"version", "codes", "limits"},
    {
        "_core",
        "errors",
        "frames",
        "messages",
        "http11",
        "http_response",
        "headers",
        "uri",
        "auth",
        "client_auth",
    },
    {"extensions", "deflate"},
    {"handshake", "client_handshake", "protocol", "attempts"},
    {
        "loop",
        "heads",
        "deadline",
        "calls",
        "listening",
        "signals",
        "threads",
        "held",
        "journal",
        "lenient",
        "nonces",
        "outbox",
        "server_auth",
        "tls",
        "contexts",
    },
    {"closure", "connecting", "exclusive", "extending", "reception", "secured"},
    {"transport"},
    {"websocket"},
    {"connection", "async_client", "extended", "async_server", "memory", "serving", "asyncio", "sync"},
    {"server", "server_client"},
    {"exceptions", "conformance"},
    {"__init__"},
)
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}

# Nothing up to the protocol does I/O, reads a clock, or knows of threads.
PURE = {name for name, level in LAYER.items() if level <= LAYER["protocol"]}
IMPURE = {"_socket", "asyncio", "logging", "select", "selectors", "socket", "ssl", "threading", "time"}

# The Python faces of the C core; all others ask them.
FACES = {"_core", "frames", "heads", "loop", "nonces", "protocol"}

# Source files whose test isn't their namesake, and where it is.
TESTED_BY = {
    "wspy/_core/ffi_build.py": "tests/core/test_boundary.py",
    "wspy/_core/input.c": "tests/core/test_connection.py",
    "wspy/_core/deadlines.c": "tests/core/test_connection.py",
}

# Split, so that this file doesn't hold what it looks for.
FORBIDDEN = re.compile("|".join([r"(?<![\w.])/" + "work/", r"\bTO" + r"DO\b", r"pypi" + r"\.org", r"npmjs" + r"\.org"]))
OUTSIDE = re.compile(r"\.\./" + "shared")


def module_name(path: Path) -> str:
    """Return the layer's name of a file: its first component below wspy."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the module that ``from … import`` names, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    package = ("wspy", *path.relative_to(PACKAGE).parts[:-1])
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def for_types_only(path: Path) -> set[ast.AST]:
    """Return what stands below ``if TYPE_CHECKING``."""
    blocks = [node for node in ast.walk(tree(path)) if isinstance(node, ast.If)]
    return {
        node
        for block in blocks
        if isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }


def imports(path: Path, *, types: bool = True) -> set[str]:
    """Return what a file imports, anywhere in it; ``from wspy import x`` counts as ``wspy.x``."""
    found = set()
    skipped = set() if types else for_types_only(path)
    for node in ast.walk(tree(path)):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            found.update(f"wspy.{alias.name}" for alias in node.names) if module == "wspy" else found.add(module)
    return found


def own_imports(path: Path, *, types: bool = True) -> set[str]:
    """Return the layer names of what a file imports from this package, itself excluded."""
    names = {name.split(".")[1] for name in imports(path, types=types) if name.startswith("wspy.")}
    return {"version" if name == "__version__" else name for name in names} - {module_name(path)}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_module_has_a_layer_and_imports_downward_only(path: Path) -> None:
    name = module_name(path)
    assert name in LAYER, f"{name} has no layer: add it to LAYERS"
    unknown = own_imports(path) - LAYER.keys()
    assert not unknown, f"{name} imports {unknown}, which has no layer"
    upward = {other for other in own_imports(path) if LAYER[other] > LAYER[name]}
    assert not upward, f"{name} imports {upward} from above"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources():
        graph.setdefault(module_name(path), set()).update(own_imports(path, types=False))
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"in or behind a circle: {sorted(graph)}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_up_to_the_protocol_does_io_or_reads_a_clock(path: Path) -> None:
    if module_name(path) in PURE:
        assert not {name.split(".")[0] for name in imports(path)} & IMPURE


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_faces_of_the_core_touch_it(path: Path) -> None:
    name = module_name(path)
    if name not in FACES:
        assert "_core" not in own_imports(path)
        assert not {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)} & {"ffi", "lib"}
    if name != "_core":
        assert not {imported.split(".")[0] for imported in imports(path)} & {"cffi", "_cffi_backend", "ctypes"}


def file_of(name: str) -> Path:
    """Return where an imported module is: of the package, or one of the tests' own."""
    package, _, inside = name.partition(".")
    if package == "wspy":
        return PACKAGE / (inside.split(".")[0] or "__init__")
    return ROOT / "tests" / package


def reached(path: Path) -> set[Path]:
    """Return what a file imports when it runs, and what that imports, without suffixes."""
    found: set[Path] = set()
    ahead = [path]
    while ahead:
        new = {file_of(name) for name in imports(ahead.pop(), types=False)} - found
        found |= new
        ahead += [file for file in (name.with_suffix(".py") for name in new) if file.exists()]
    return found


def test_what_sanitizers_pass_over_reaches_nothing_of_the_core() -> None:
    listed = re.search(r"^PURE=\((.*?)\)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert listed
    for name in listed[1].split():
        assert PACKAGE / "_core" not in reached(ROOT / name), name
    assert PACKAGE / "_core" in reached(ROOT / "tests" / "test_exclusive.py")  # by way of drivers.py


def namesake(path: Path) -> str:
    """Return where the test of a source file is, unless TESTED_BY says otherwise."""
    where = path.relative_to(PACKAGE)
    folder = Path("tests", *["core" if part == "_core" else part for part in where.parent.parts])
    return str(folder / f"test_{where.stem}.py")


@pytest.mark.parametrize(
    "path", [*sources(), *sorted(PACKAGE.rglob("*.c"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_each_source_file_has_a_test(path: Path) -> None:
    if path.name in {"__init__.py", "__main__.py"}:
        return
    test = TESTED_BY.get(str(path.relative_to(ROOT)), namesake(path))
    assert (ROOT / test).exists()


@pytest.mark.parametrize(("source", "test"), TESTED_BY.items())
def test_each_exception_is_needed(source: str, test: str) -> None:
    assert (ROOT / source).exists()
    assert (ROOT / test).exists()
    assert not (ROOT / namesake(ROOT / source)).exists()


def repository() -> list[Path]:
    """Return the files of the repository, or of the sdist that was made of it."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    else:
        names = (ROOT / "wspy.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    paths = [ROOT / name for name in names if name]
    return [path for path in paths if path.is_file() and "corpus" not in path.parts]


def test_the_repository_speaks_of_the_project_alone() -> None:
    files = repository()
    assert Path(__file__).resolve() in files
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = FORBIDDEN.findall(text)
        if ROOT / "tests" not in path.parents:
            found += OUTSIDE.findall(text)
        assert not found, f"{path.relative_to(ROOT)} has {found}"
