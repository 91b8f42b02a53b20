"""conda-forge's compiler packages, around this machine's own compiler."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from standin.files import cache_root
from standin.packages.conda import PLACEHOLDER, File, Package
from standin.progress import StandinError

TRIPLE = "x86_64-conda-linux-gnu"
BINUTILS = ("ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "strip")
# The C library's parts; they are the machine's, so only names are needed.
GLIBC = "ld-linux-x86-64.so.2 libc.so.6 libdl.so.2 libm.so.6 libpthread.so.0"
GLIBC += " librt.so.1 libutil.so.1"
OLDEST_GLIBC = "2.28"
CPP17 = "#include <optional>\nint main() { return *std::optional<int>(0); }\n"


class Compiler(NamedTuple):
    """The machine's C and C++ compilers."""

    c: str
    cxx: str
    version: str


def find() -> Compiler:
    c, cxx = shutil.which("gcc"), shutil.which("g++")
    if not c or not cxx:
        raise StandinError(
            "no C++ compiler (gcc and g++) on PATH: install it (on Debian and "
            "Ubuntu: apt-get install g++)"
        )
    return Compiler(c, cxx, answer(cxx, "-dumpfullversion"))


def answer(*command: str) -> str:
    return subprocess.check_output(command, text=True).strip()


def check(compiler: Compiler) -> None:
    """It has to build a C++17 program."""
    options = ("-std=c++17", "-x", "c++", "-", "-o", os.devnull)
    result = subprocess.run(
        [compiler.cxx, *options], input=CPP17, capture_output=True, text=True
    )
    if result.returncode:
        first = (result.stderr.strip().splitlines() or ["no output"])[0]
        raise StandinError(
            f"{compiler.cxx} cannot build a C++17 program ({first}): install "
            "GCC 8 or newer (on Debian and Ubuntu: g++)"
        )


def packages(compiler: Compiler) -> list[Package]:
    """Compilers, their run-time libraries and the metapackages over them."""
    version, major = compiler.version, compiler.version.split(".")[0]
    c_exports = [f"libgcc >={major}"]
    cxx_exports = [f"libstdcxx >={major}", *c_exports]
    gcc = {n: f'#!/bin/sh\nexec {program(n)} "$@"\n' for n in BINUTILS}
    gcc |= dict.fromkeys(("cc", "gcc"), cached(compiler.c))
    gxx = dict.fromkeys(("c++", "g++"), cached(compiler.cxx))
    gcc_exact, gxx_exact = f"gcc_linux-64 {version}", f"gxx_linux-64 {version}"
    of_gcc = ("ccache", "sysroot_linux-64")
    sysroot = f"{TRIPLE}/sysroot/lib64"
    return [
        # Names of the C library, and the oldest one that programs run with.
        Package(
            "sysroot_linux-64",
            OLDEST_GLIBC,
            run_exports={"strong": [f"__glibc >={OLDEST_GLIBC},<3.0.a0"]},
            text={f"{sysroot}/{name}": "" for name in GLIBC.split()},
        ),
        tools("gcc_linux-64", version, gcc, c_exports, *of_gcc),
        tools("gxx_linux-64", version, gxx, cxx_exports, gcc_exact),
        Package("c-compiler", "1.11.0", depends=(gcc_exact,)),
        Package("cxx-compiler", "1.11.0", depends=("c-compiler", gxx_exact)),
        library(compiler, "libgcc", "libgcc_s.so.1"),
        library(compiler, "libstdcxx", "libstdc++.so.6", f"libgcc {version}"),
        library(compiler, "libgomp", "libgomp.so.1"),
    ]


def program(name: str) -> str:
    """A tool of the machine, as a shell's word."""
    found = shutil.which(name)
    if not found:
        raise StandinError(
            f"no {name} on PATH: install it (on Debian and Ubuntu: apt-get "
            "install binutils)"
        )
    return shlex.quote(found)


def cached(compiler: str) -> str:
    """A script that stands for a compiler of the machine.

    ccache makes nothing twice from the same sources, wherever they are.
    """
    folder = cache_root() / "ccache"
    return (
        "#!/bin/sh\n"
        f'export CCACHE_DIR="${{CCACHE_DIR:-{folder}}}" CCACHE_BASEDIR=/\n'
        f'exec "{PLACEHOLDER}/bin/ccache" {shlex.quote(compiler)} "$@"\n'
    )


def tools(
    name: str,
    version: str,
    scripts: dict[str, str],
    exports: list[str],
    *depends: str,
) -> Package:
    """Wrappers for tools, and the variables that name them."""
    text = {f"bin/{TRIPLE}-{n}": script for n, script in scripts.items()}
    text |= activation(name)
    exported = {"strong": exports}
    return Package(name, version, depends, run_exports=exported, text=text)


def activation(name: str) -> dict[str, str]:
    """The script that sets the variables of a package, if it has one."""
    script = Path(__file__).parent / f"activate/activate-{name}.sh"
    target = f"etc/conda/activate.d/{script.name}"
    return {target: script.read_text()} if script.is_file() else {}


def library(compiler: Compiler, name: str, file: str, *depends: str) -> Package:
    """A run-time library of the compiler."""
    source = Path(answer(compiler.cxx, f"-print-file-name={file}")).resolve()
    return Package(
        name,
        compiler.version,
        depends,
        files=lambda: [File(f"lib/{file}", source.read_bytes(), True)],
        made_from=(source,),
    )


def cuda_packages(version: str, parts: list[str]) -> list[Package]:
    """What compiler("cuda") asks for, over the packages of nvcc's wheels."""
    major, minor = map(int, version.split(".")[:2])
    release = f"{major}.{minor}"
    exports = [f"cuda-version >={release},<{major + 1}"]
    depends = ("gxx_linux-64", f"cuda-version {release}.*", *parts)
    compiler = "cuda-nvcc_linux-64"
    return [
        Package("cuda-version", release, constrains=(f"__cuda >={major}",)),
        tools(compiler, version, {}, exports, *depends),
        Package("cuda-nvcc", version, depends=(f"{compiler} {version}",)),
    ]
