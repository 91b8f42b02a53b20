"""Importing: the order of imports, autoload, and broken installations.

Every test runs a separate process. A broken installation is a copy of the
installed package in a folder laid out like a Python environment. It runs with
-S so that the rest of the real environment is not found.
"""

import ast
import graphlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import _torch_foo_autoload
import pytest
import torch
import torch_foo

USE = "print(torch.ops.torch_foo.add(torch.ones(1), torch.ones(1)).item())"


def run(code: str, *options: str, **env: str) -> str:
    """Run Python code in a new process; return its stdout and stderr."""
    clean = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    result = subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**clean, **env},
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return result.stdout


def last_line(output: str) -> str:
    return output.rstrip().rsplit("\n", 1)[-1]


# --- the modules ------------------------------------------------------------

PACKAGE = Path(torch_foo.__file__).parent


def imports(module: Path) -> set[str]:
    """The modules of torch_foo that a module imports when it is imported."""
    found = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module, *names}
    return found


def test_no_import_cycles():
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = imports(path)
    # A package's own file imports what it holds, which may not import back.
    graph = {
        name: sorted(
            other
            for other in wanted & modules.keys()
            if not f"{name}.".startswith(f"{other}.")
        )
        for name, wanted in modules.items()
    }
    assert "torch_foo.operators" in graph["torch_foo._registration"]
    list(graphlib.TopologicalSorter(graph).static_order())


def test_private_interfaces_of_torch_stand_in_one_module():
    private = re.compile(r"\btorch\.(?:\w+\.)*_(?!check\b|_)\w+|\._schema\b")
    users = {
        path.relative_to(PACKAGE).name
        for path in PACKAGE.rglob("*.py")
        if private.search(path.read_text())
    }
    # A backend stands in for parts of PyTorch, which these have the names of.
    assert users == {"_torch_internals.py", "_hooks.py", "_inductor.py"}


# --- a sound installation ---------------------------------------------------


@pytest.mark.parametrize("autoload", ["0", "1"])
@pytest.mark.parametrize(
    "order", ["import torch, torch_foo", "import torch_foo, torch"]
)
def test_import_order(order, autoload):
    output = run(f"{order}; {USE}", TORCH_DEVICE_BACKEND_AUTOLOAD=autoload)
    assert last_line(output) == "2.0"


def test_autoload():
    assert last_line(run(f"import torch; {USE}")) == "2.0"


LATE = "torch.utils.flop_counter", "torch.distributed.tensor"


@pytest.mark.parametrize("first", [False, True], ids=["before", "after"])
def test_modules_that_are_told_about_operators(first):
    """They are imported by their users only, and left as they were."""
    code = f"""
import sys, torch
names = {LATE!r}
if {first}:
    for name in names: __import__(name)
import torch_foo
assert {first} or not any(name in sys.modules for name in names)
for name in names: __import__(name)
from torch.utils.flop_counter import flop_registry
from torch.distributed.tensor import DTensor
assert torch.ops.torch_foo.linear in flop_registry
rules = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
assert torch.ops.torch_foo.linear.default in rules
for name in names:
    module = sys.modules[name]
    assert type(module.__loader__).__module__.startswith("_frozen_importlib")
    assert module.__spec__.loader is module.__loader__
assert not any("torch_foo" in type(f).__module__ for f in sys.meta_path if
    "skbc" not in type(f).__module__)
print("fine")
"""
    assert last_line(run(code)) == "fine"


def test_modules_that_cannot_be_told_about_operators():
    """A version of torch with another interface is a warning."""
    code = """
import torch_foo
torch_foo.operators.OPERATORS["gone"] = torch_foo.operators.OPERATORS["linear"]
from torch.utils.flop_counter import flop_registry
print("imported")
"""
    output = run(code)
    assert "RuntimeWarning: torch_foo could not tell torch.utils.flop" in output
    assert last_line(output) == "imported"


def test_autoload_can_be_turned_off():
    code = "import torch; print(hasattr(torch.ops.torch_foo, 'add'))"
    output = run(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert last_line(output) == "False"


def test_autoload_imports_nothing_when_it_is_loaded():
    code = (
        "import sys; before = set(sys.modules); import _torch_foo_autoload; "
        "print(set(sys.modules) - before)"
    )
    directory = Path(_torch_foo_autoload.__file__).parent
    output = run(code, "-S", PYTHONPATH=str(directory))
    assert output == "{'_torch_foo_autoload'}\n"


def test_build_info():
    info = torch_foo.build_info()
    assert info.torch_foo == torch_foo.__version__
    assert info.torch_foo == importlib.metadata.version("torch-foo")
    assert info.torch == torch.__version__
    assert info.foo_core.startswith("0.2.")
    assert isinstance(info.cuda, bool)
    assert info.simd_target


# --- two copies -------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A second installation, which works."""
    native = Path(torch_foo.cmake_prefix_path)
    shutil.copytree(PACKAGE, tmp_path / "torch_foo")
    shutil.copytree(native, tmp_path / "torch_foo", dirs_exist_ok=True)
    return tmp_path


def test_second_copy_has_no_effect(copy):
    native = Path(torch_foo.cmake_prefix_path) / "lib" / "libtorch_foo.so"
    second = copy / "torch_foo" / "lib" / "libtorch_foo.so"
    output = run(
        f"import torch, torch_foo\n"
        f"torch.ops.load_library({str(second)!r})\n"
        f"torch.ops.load_library({str(native)!r})\n{USE}"
    )
    assert f"{second} is not used. " in output
    assert last_line(output) == "2.0"


def test_import_beside_another_copy(copy):
    second = copy / "torch_foo" / "lib" / "libtorch_foo.so"
    output = run(
        f"import torch\ntorch.ops.load_library({str(second)!r})\n"
        "import torch_foo",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert last_line(output).startswith(
        "ImportError: torch_foo's operators are registered already, from "
        f"{second}, so "
    )


def test_import_after_the_same_library():
    native = Path(torch_foo.cmake_prefix_path) / "lib" / "libtorch_foo.so"
    output = run(
        f"import torch\ntorch.ops.load_library({str(native)!r})\n"
        f"import torch_foo\n{USE}",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert last_line(output) == "2.0"


def test_libraries_hold_no_paths_of_the_build():
    """But for where they look for others."""
    native = Path(torch_foo.cmake_prefix_path)
    for library in [native / "_C.abi3.so", *(native / "lib").iterdir()]:
        data = library.read_bytes()
        for text in re.findall(rb"[ -~]*/[ -~]{4,}", data):
            places = text.decode().split(":")
            assert all(
                place.startswith("$ORIGIN") or place == f"{sys.prefix}/lib"
                for place in places
            ), text


# --- broken installations ---------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages with a copy of torch_foo that has no foo_core.

    The copy needs a version that does not exist. In a conda environment, the
    interpreter's RPATH would find the real one for any copy.
    """
    site = tmp_path / "lib" / "python3" / "site-packages"
    package = Path(torch_foo.__file__).parent
    shutil.copytree(package, site / "torch_foo")
    # An editable installation keeps the native part elsewhere.
    native = Path(torch_foo.cmake_prefix_path)
    shutil.copytree(native, site / "torch_foo", dirs_exist_ok=True)
    library = site / "torch_foo" / "lib" / "libtorch_foo.so"
    needs_another, count = re.subn(
        rb"libfoo_core\.so\.\d\.\d\0",
        b"libfoo_core.so.9.9\0",
        library.read_bytes(),
    )
    assert count == 1
    library.write_bytes(needs_another)
    shutil.copy(_torch_foo_autoload.__file__, site)
    return site


PACKAGES = str(Path(torch.__file__).parents[1])


def run_in(site: Path, code: str, *options: str, torch_too: bool = True) -> str:
    path = [str(site), *[PACKAGES] * torch_too]
    code = f"import sys; sys.path[:0] = {path!r}\n{code}"
    return run(code, "-S", *options)


# Imports torch once, which takes a second, and torch_foo in a fork per folder.
IMPORTER = f"""
import os, sys
sys.path.insert(0, {PACKAGES!r})
import torch
for folder in sys.stdin:
    if os.fork() == 0:
        sys.path.insert(0, folder.strip())
        try:
            import torch_foo
        except ImportError as error:
            print("ImportError:", error, flush=True)
        os._exit(0)
    os.wait()
    print(flush=True)
"""


@pytest.fixture(scope="module")
def importer() -> Iterator[subprocess.Popen[str]]:
    env = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    env.pop("LD_LIBRARY_PATH", None)
    with subprocess.Popen(
        [sys.executable, "-S", "-c", IMPORTER],
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def import_error(site: Path, importer: subprocess.Popen[str]):
    """Return a function that imports torch_foo; it returns the last line."""

    def import_error() -> str:
        importer.stdin.write(f"{site}\n")
        importer.stdin.flush()
        *_, last = iter(importer.stdout.readline, "\n")
        return last.rstrip()

    return import_error


def test_foo_core_missing(import_error):
    error = import_error()
    assert error == (
        "ImportError: torch_foo needs libfoo_core.so.9.9, but found no "
        "foo_core. Install the matching version: `pip install "
        "'libfoo-core==9.9.*'` or `conda install libfoo-core=9.9`."
    )


@pytest.mark.parametrize("place", ["wheel", "conda"])
def test_foo_core_of_another_version(site, import_error, place):
    lib = site / "foo_core" / "lib" if place == "wheel" else site.parents[1]
    lib.mkdir(parents=True, exist_ok=True)
    found = lib / "libfoo_core.so.9.8"
    found.touch()
    error = import_error()
    assert error.startswith(
        "ImportError: torch_foo needs libfoo_core.so.9.9, but found only "
        f"{found}. Install the matching version: "
    )


def test_another_library_missing(site, import_error):
    """The error names it, not only this package."""
    library = site / "torch_foo" / "lib" / "libtorch_foo.so"
    another = library.read_bytes().replace(
        b"libfoo_core.so.9.9\0", b"libhwy.so.99\0\0\0\0\0\0\0"
    )
    library.write_bytes(another)
    assert import_error().startswith(
        "ImportError: torch_foo's native library needs libhwy.so.99, which is "
        "not found. Install it, such as by `conda install libhwy`."
    )


@pytest.mark.parametrize("library", ["_C.abi3.so", "lib/libtorch_foo.so"])
def test_native_library_broken(site, import_error, library):
    (site / "torch_foo" / library).write_bytes(b"not a library")
    error = import_error()
    assert error.startswith("ImportError: torch_foo's native library")
    assert "Reinstall torch-foo and libfoo-core" in error


def test_operators_missing(site, import_error):
    (site / "torch_foo" / "lib" / "libtorch_foo.so").unlink()
    error = import_error()
    assert error.startswith(
        "ImportError: torch_foo's native library does not load: "
        "libtorch_foo.so: cannot open shared object file"
    )
    assert "Reinstall torch-foo and libfoo-core" in error


def test_operator_that_was_not_built():
    error = run(
        "from torch_foo import _registration, operators\n"
        "class linea(operators.Operator): pass\n"
        "_registration.register(linea)"
    )
    assert last_line(error).startswith(
        "ImportError: torch_foo's native library has no operator linea: it was "
        "built from other sources than this Python package. Reinstall torch-foo"
    )


def test_native_library_missing(site, import_error):
    (site / "torch_foo" / "_C.abi3.so").unlink()
    error = import_error()
    assert error.startswith("ImportError: torch_foo's native library is not in")


def test_torch_missing(site):
    error = last_line(run_in(site, "import torch_foo", torch_too=False))
    assert error == (
        "ImportError: torch_foo needs torch >= 2.10, and no torch is "
        "installed here. Install it: `pip install torch` or "
        "`conda install pytorch`."
    )


@pytest.mark.parametrize("version", ["2.9.1+cpu", "1.13.1", "2.9.0a0+git1234"])
def test_torch_too_old(site, version):
    fake = site / "torch" / "__init__.py"
    fake.parent.mkdir()
    fake.write_text(f"__version__ = {version!r}\n")
    error = last_line(run_in(site, "import torch_foo", torch_too=False))
    assert error == (
        f"ImportError: torch_foo needs torch >= 2.10, but torch {version} is "
        f"installed in {fake.parent}. Upgrade it: `pip install -U torch` or "
        "`conda update pytorch`."
    )


def test_torch_that_fails_is_not_called_missing(site):
    fake = site / "torch" / "__init__.py"
    fake.parent.mkdir()
    fake.write_text("import something_of_torchs_own\n")
    error = last_line(run_in(site, "import torch_foo", torch_too=False))
    assert "No module named 'something_of_torchs_own'" in error


BROKEN_AUTOLOAD = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
ours = [w for w in caught if "torch_foo" in str(w.message)]
print(len(ours), ours[0].category.__name__, str(ours[0].message))
print(torch.ones(1).item())
"""


def test_broken_installation_leaves_torch_alone(site):
    output = run_in(site, BROKEN_AUTOLOAD)
    assert (
        "1 RuntimeWarning torch_foo is installed but could not be loaded: "
        "torch_foo needs libfoo_core.so.9.9"
    ) in output
    assert output.endswith(
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns this attempt off.\n1.0\n"
    )


def test_broken_installation_leaves_torch_alone_even_with_werror(site):
    code = "import torch; print(torch.ones(1).item())"
    output = run_in(site, code, "-W", "error:torch_foo:RuntimeWarning")
    assert "torch_foo is installed but could not be loaded" in output
    assert output.endswith("1.0\n")
