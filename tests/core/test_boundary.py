"""Is the boundary with C what core.h says, and nothing more?"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wspy import _core
from wspy._core import _wspy, lib

CORE = Path(__file__).resolve().parents[2] / "wspy" / "_core"
CDEF = (CORE / "core.h").read_text(encoding="utf-8").split("/* cdef begins */")[1].split("/* cdef ends */")[0]


def stub_of_lib() -> ast.ClassDef:
    tree = ast.parse((CORE / "_wspy.pyi").read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Lib")


def test_python_imports_what_cffi_made() -> None:
    assert (_core.ffi, _core.lib) == (_wspy.ffi, _wspy.lib)


def test_the_stub_has_every_name_of_the_module_and_no_other() -> None:
    members = stub_of_lib().body
    functions = {node.name for node in members if isinstance(node, ast.FunctionDef)}
    constants = {
        node.target.id for node in members if isinstance(node, ast.AnnAssign) if isinstance(node.target, ast.Name)
    }
    assert functions | constants == {name for name in dir(lib) if not name.startswith("__")}
    assert all(isinstance(getattr(lib, name), int) for name in constants)


def test_the_stub_has_every_parameter() -> None:
    plain = re.sub(r"/\*.*?\*/", "", CDEF, flags=re.DOTALL)
    prototypes = dict(re.findall(r"^\w[\w *]*?(wspy_\w+)\(([^;]*)\);", plain, re.MULTILINE))
    functions = [node for node in stub_of_lib().body if isinstance(node, ast.FunctionDef)]
    assert len(functions) == len(prototypes)
    for function in functions:
        names = [argument.arg for argument in function.args.posonlyargs[1:]]
        assert re.findall(r"(\w+)(?:,|$)", prototypes[function.name].removesuffix("void")) == names


@pytest.mark.parametrize("construct", ["...", "(*", "Python.h", "extern"])
def test_the_cdef_has_no_variadics_and_no_callbacks(construct: str) -> None:
    assert construct not in re.sub(r"/\*.*?\*/", "", CDEF, flags=re.DOTALL)


def test_the_module_has_the_stable_abi() -> None:
    assert Path(_wspy.__file__).name == "_wspy.abi3.so"


@pytest.mark.skipif(not shutil.which("nm"), reason="needs binutils")
def test_the_module_exports_its_init_function_only() -> None:
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", _wspy.__file__]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in symbols] == ["PyInit__wspy"]


def test_nothing_in_the_module_asks_for_openssl_or_zlib() -> None:
    linked = re.findall(rb"lib[a-z]+[-.\w]*\.so[.\d]*", Path(_wspy.__file__).read_bytes())
    assert not [name for name in linked if b"ssl" in name or b"libz" in name or b"crypto" in name]
