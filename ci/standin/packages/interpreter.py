"""`python` and its ABI packages, from the interpreter that runs ci/pixi."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from standin.packages.conda import PLACEHOLDER, Package, text_files
from standin.packages.wheels import Python
from standin.progress import StandinError

LEFT_OUT = {
    "__pycache__",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
}
ABI3_SINCE = "3.10"


def running_python() -> Python:
    """The version of this interpreter."""
    return Python(".".join(map(str, sys.version_info[:3])))


def packages(patchelf: Path) -> list[Package]:
    """`python` and the packages that tell its ABI, as conda-forge has them."""
    python = running_python()
    check_layout(python)
    minor, tag = python.minor, python.tag
    abi = f"python_abi {minor}.* *_cp{tag}"
    return [
        Package(
            "python",
            python.version,
            fill=lambda root: copy_python(root, python, patchelf),
            made_from=(sys.version, sys.base_prefix),
            build="h{hash}_0_cpython",
            depends=(abi,),
            constrains=(abi,),
            run_exports={"noarch": ["python"], "weak": [abi]},
        ),
        Package(
            "python_abi",
            minor,
            build=f"h{{hash}}_8_cp{tag}",
            noarch="generic",
            constrains=(f"python {minor}.* *_cpython",),
        ),
        Package(
            "cpython",
            python.version,
            build=f"py{tag}h{{hash}}_0",
            noarch="generic",
            depends=(f"python {python.version}.*", abi),
        ),
        Package(
            "python-gil",
            python.version,
            noarch="generic",
            depends=(f"cpython {python.version}.*", abi),
        ),
        Package(
            "_python_abi3_support",
            "1.0",
            noarch="generic",
            depends=("cpython", "python-gil"),
        ),
        # conda-forge builds abi3 packages with the oldest Python; here there
        # is one Python, so this says what they promise, not what they used.
        Package(
            "python-abi3",
            ABI3_SINCE,
            noarch="generic",
            depends=(f"python >={ABI3_SINCE}",),
            run_exports={
                "weak": [f"cpython >={ABI3_SINCE}", "_python_abi3_support 1.*"]
            },
        ),
    ]


def check_layout(python: Python) -> None:
    """The standard library and headers have to be where CPython puts them."""
    prefix = Path(sys.base_prefix)
    how = (
        "use another python3, such as one from pyenv, `uv python install` or "
        "conda, by putting it first on PATH"
    )
    if (prefix / f"lib/python{python.minor}/dist-packages").is_dir() or (
        prefix == Path("/usr")
    ):
        raise StandinError(
            f"the python3 of {prefix} is the distribution's own, which cannot "
            f"be copied into environments: {how}"
        )
    for needed in (
        f"lib/python{python.minor}/os.py",
        f"include/python{python.minor}/Python.h",
    ):
        if not (prefix / needed).is_file():
            raise StandinError(f"{prefix} has no {needed}: {how}")


def copy_python(root: Path, python: Python, patchelf: Path) -> None:
    """Copy the interpreter, its library and its standard library."""
    prefix = Path(sys.base_prefix)
    name = f"python{python.minor}"
    shutil.copytree(
        prefix / "lib" / name,
        root / "lib" / name,
        symlinks=True,
        ignore=lambda folder, names: [n for n in names if left_out(n)],
    )
    text_files({f"{python.site}/README.txt": "Packages go here.\n"})(root)
    shutil.copytree(prefix / "include" / name, root / "include" / name)
    (root / "bin").mkdir()
    executable = root / "bin" / name
    shutil.copy2((prefix / "bin" / name).resolve(), executable)
    for link in ("python", "python3"):
        (root / "bin" / link).symlink_to(name)
    movable = {executable: "$ORIGIN/../lib"}
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        shared = str(sysconfig.get_config_var("INSTSONAME"))
        library = root / "lib" / shared
        shutil.copy2(prefix / "lib" / shared, library)
        movable[library] = "$ORIGIN"
        (root / "lib" / f"lib{name}.so").symlink_to(shared)
    for file, rpath in movable.items():
        file.chmod(0o755)
        subprocess.run([patchelf, "--set-rpath", rpath, file], check=True)
    works(executable)
    for file in (root / "lib" / name).rglob("*"):
        if file.suffix in (".py", ".json", ".txt", "") and file.is_file():
            move_prefix(file, str(prefix).encode())


def works(executable: Path) -> None:
    """The copy has to find the libraries that it needs."""
    script = "import ctypes, hashlib, ssl, zlib"
    command = [str(executable), "-B", "-S", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise StandinError(
            f"a copy of {sys.base_prefix} does not work ({last})"
        )


def left_out(name: str) -> bool:
    """Parts of the standard library that nothing here needs."""
    return (
        name in LEFT_OUT or name.startswith("_tkinter") or (name.endswith(".a"))
    )


def move_prefix(file: Path, prefix: bytes) -> None:
    """Make a text file name the environment where it named the old place."""
    content = file.read_bytes()
    if prefix in content and b"\0" not in content and not os.path.islink(file):
        file.write_bytes(content.replace(prefix, PLACEHOLDER.encode()))
