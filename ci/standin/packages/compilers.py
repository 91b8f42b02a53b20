"""conda-forge's compiler packages, around this machine's own compiler."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from standin.files import cache_root
from standin.packages.conda import PLACEHOLDER, File, Package, text_files
from standin.packages.wheels import Wheel, tool_package
from standin.progress import StandinError

TRIPLE = "x86_64-conda-linux-gnu"
BINUTILS = ("ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "strip")
# The C library's parts; they are the machine's, so only names are needed.
GLIBC = "ld-linux-x86-64.so.2 libc.so.6 libdl.so.2 libm.so.6 libpthread.so.0"
GLIBC += " librt.so.1 libutil.so.1"
OLDEST_GLIBC = "2.28"
CPP17 = "#include <optional>\nint main() { return *std::optional<int>(0); }\n"
CUDA_MOVES = {  # the wheels' = conda-forge's
    "nvidia/cu13/bin/": "bin/",
    "nvidia/cu13/include/": "targets/x86_64-linux/include/",
    "nvidia/cu13/lib/": "targets/x86_64-linux/lib/",
    "nvidia/cu13/nvvm/bin/": "nvvm/bin/",  # nvcc needs no libnvvm.so
}


@dataclass(frozen=True)
class Compiler:
    """The machine's C and C++ compilers."""

    c: str
    cxx: str
    version: str

    def library(self, name: str) -> Path:
        """One of the libraries that the compiler links programs with."""
        command = [self.cxx, f"-print-file-name={name}"]
        path = Path(subprocess.check_output(command, text=True).strip())
        if not path.is_absolute():
            raise StandinError(f"{self.cxx} has no {name}")
        return path.resolve()


def find() -> Compiler:
    """The compiler that CC and CXX name, else gcc, else clang."""
    pairs = [("gcc", "g++"), ("clang", "clang++")]
    if os.environ.get("CXX") and not os.environ.get("CONDA_PREFIX"):
        pairs = [(os.environ.get("CC", "cc"), os.environ["CXX"])]
    for c, cxx in pairs:
        c_path, cxx_path = shutil.which(c), shutil.which(cxx)
        if c_path and cxx_path:
            return Compiler(c_path, cxx_path, version_of(cxx_path))
    raise StandinError(
        f"no C++ compiler ({' or '.join(cxx for _, cxx in pairs)}) on PATH: "
        "install one (on Debian and Ubuntu: apt-get install g++)"
    )


def version_of(compiler: str) -> str:
    """The compiler's version; only GCC has the first of these options."""
    for option in ("-dumpfullversion", "-dumpversion"):
        result = subprocess.run(
            [compiler, option], capture_output=True, text=True
        )
        if result.returncode == 0 and result.stdout.strip():
            return result.stdout.strip()
    raise StandinError(f"{compiler} does not tell its version")


def check(compiler: Compiler) -> None:
    """It has to build a C++17 program."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cpp"
        source.write_text(CPP17)
        result = subprocess.run(
            [compiler.cxx, "-std=c++17", source, "-o", source.with_suffix("")],
            capture_output=True,
            text=True,
        )
    if result.returncode:
        first = (result.stderr.strip().splitlines() or ["no output"])[0]
        raise StandinError(
            f"{compiler.cxx} cannot build a C++17 program ({first}): install "
            "GCC 8 or clang 7 or newer (on Debian and Ubuntu: g++)"
        )


def packages(compiler: Compiler) -> list[Package]:
    """Compilers, their run-time libraries and the metapackages over them."""
    version, major = compiler.version, compiler.version.split(".")[0]
    c_exports = [f"libgcc >={major}"]
    cxx_exports = [f"libstdcxx >={major}", *c_exports]
    gcc = {name: wrapper(shutil.which(name) or name) for name in BINUTILS}
    gcc |= dict.fromkeys(("cc", "gcc"), cached(compiler.c))
    gxx = dict.fromkeys(("c++", "g++"), cached(compiler.cxx))
    gcc_exact, gxx_exact = f"gcc_linux-64 {version}", f"gxx_linux-64 {version}"
    sysroot = f"{TRIPLE}/sysroot/lib64"
    return [
        # Names of the C library, and the oldest one that programs run with.
        Package(
            "sysroot_linux-64",
            OLDEST_GLIBC,
            files=text_files({f"{sysroot}/{n}": "" for n in GLIBC.split()}),
            run_exports={"strong": [f"__glibc >={OLDEST_GLIBC},<3.0.a0"]},
        ),
        tools("gcc_linux-64", version, gcc, c_exports, "sysroot_linux-64"),
        tools("gxx_linux-64", version, gxx, cxx_exports, gcc_exact),
        Package("c-compiler", "1.11.0", depends=(gcc_exact,)),
        Package("cxx-compiler", "1.11.0", depends=("c-compiler", gxx_exact)),
        library(compiler, "libgcc", "libgcc_s.so.1"),
        library(compiler, "libstdcxx", "libstdc++.so.6", f"libgcc {version}"),
        library(compiler, "libgomp", "libgomp.so.1"),
    ]


def wrapper(tool: str) -> str:
    """A script that stands for a tool of the machine."""
    return f'#!/bin/sh\nexec {tool} "$@"\n'


def cached(compiler: str) -> str:
    """A script that stands for a compiler of the machine.

    ccache makes nothing twice from the same sources, wherever they are.
    """
    folder = cache_root() / "ccache"
    return (
        "#!/bin/sh\n"
        f'export CCACHE_DIR="${{CCACHE_DIR:-{folder}}}" CCACHE_BASEDIR=/\n'
        f'exec {PLACEHOLDER}/bin/ccache {compiler} "$@"\n'
    )


def tools(
    name: str,
    version: str,
    scripts: dict[str, str],
    exports: list[str],
    *depends: str,
) -> Package:
    """Wrappers for tools, and the variables that name them."""
    activate = f"activate-{name}.sh"
    text = (Path(__file__).parent / "activate" / activate).read_text()
    files = {f"etc/conda/activate.d/{activate}": text}
    files |= {f"bin/{TRIPLE}-{n}": script for n, script in scripts.items()}
    return Package(
        name,
        version,
        files=text_files(files),
        made_from=(files,),
        depends=("ccache", *depends),
        run_exports={"strong": exports},
    )


def library(compiler: Compiler, name: str, file: str, *depends: str) -> Package:
    """A run-time library of the compiler."""
    source = compiler.library(file)
    return Package(
        name,
        compiler.version,
        files=lambda: [File(f"lib/{file}", source.read_bytes(), True)],
        made_from=(source,),
        depends=depends,
    )


def cuda_packages(wheels: list[Wheel]) -> list[Package]:
    """What compiler("cuda") asks for, with the files of nvcc's wheels."""
    nvcc = next(w for w in wheels if w.project == "nvidia-cuda-nvcc")
    major, minor = map(int, nvcc.version.split(".")[:2])
    release = f"{major}.{minor}"
    exports = [f"cuda-version >={release},<{major + 1}"]
    version = f"cuda-version {release}.*"
    scripts = tools(
        "cuda-nvcc_linux-64", nvcc.version, {}, exports, "gxx_linux-64", version
    )
    parts = [tool_package(wheel, CUDA_MOVES) for wheel in wheels]

    def files() -> Iterator[File]:
        for package in (scripts, *parts):
            yield from package.files()

    made_from = (scripts.made_from, *(wheel.made_from for wheel in wheels))
    return [
        Package("cuda-version", release, constrains=(f"__cuda >={major}",)),
        dataclasses.replace(scripts, files=files, made_from=made_from),
        Package(
            "cuda-nvcc",
            nvcc.version,
            depends=(f"cuda-nvcc_linux-64 {nvcc.version}",),
        ),
    ]
