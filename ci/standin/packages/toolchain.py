"""conda-forge's compiler packages, around this machine's own compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from standin.packages.conda import Package, copy_library, text_files
from standin.progress import StandinError

TRIPLE = "x86_64-conda-linux-gnu"
SCRIPTS = Path(__file__).parent / "activate"
BINUTILS = ("ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "strip")
# The C library's parts; they are the machine's, so only names are needed.
GLIBC = [
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
]
OLDEST_GLIBC = "2.28"
CPP17 = "#include <optional>\nint main() { return *std::optional<int>(0); }\n"


@dataclass(frozen=True)
class Compiler:
    """The machine's C and C++ compilers."""

    c: str
    cxx: str
    version: str

    @property
    def major(self) -> str:
        """The major version."""
        return self.version.split(".")[0]

    def library(self, name: str) -> Path:
        """One of the libraries that the compiler links programs with."""
        command = [self.cxx, f"-print-file-name={name}"]
        path = Path(subprocess.check_output(command, text=True).strip())
        if not path.is_absolute():
            raise StandinError(f"{self.cxx} has no {name}")
        return path.resolve()


def find_compiler() -> Compiler:
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


def check_compiler(compiler: Compiler) -> None:
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


def check_git() -> None:
    """Recipes and versions are read with git."""
    if not shutil.which("git"):
        raise StandinError(
            "no git on PATH: install it (on Debian and Ubuntu: "
            "apt-get install git)"
        )


def wrapper(tool: str) -> str:
    """A script that stands for a tool of the machine."""
    return f'#!/bin/sh\nexec {tool} "$@"\n'


def packages(compiler: Compiler) -> list[Package]:
    """Compilers, their run-time libraries and the metapackages over them."""
    version, major = compiler.version, compiler.major
    c_exports = [f"libgcc >={major}"]
    cxx_exports = [f"libstdcxx >={major}", *c_exports]
    gcc = {name: shutil.which(name) or name for name in BINUTILS}
    gcc |= {"cc": compiler.c, "gcc": compiler.c}
    gxx = {"c++": compiler.cxx, "g++": compiler.cxx}
    gcc_exact, sysroot_name = f"gcc_linux-64 {version}", "sysroot_linux-64"
    packages = [
        sysroot(),
        tool_package("gcc_linux-64", version, gcc, c_exports, sysroot_name),
        tool_package("gxx_linux-64", version, gxx, cxx_exports, gcc_exact),
        meta("c-compiler", gcc_exact),
        meta("cxx-compiler", "c-compiler", f"gxx_linux-64 {version}"),
        meta("compilers", "c-compiler", "cxx-compiler"),
    ]
    for name, file, *depends in (
        ("libgcc", "libgcc_s.so.1"),
        ("libstdcxx", "libstdc++.so.6", f"libgcc {version}"),
        ("libgomp", "libgomp.so.1"),
    ):
        source = compiler.library(file)
        packages.append(library_package(name, version, source, file, depends))
    return packages


def tool_package(
    name: str,
    version: str,
    tools: dict[str, str],
    exports: list[str],
    *depends: str,
) -> Package:
    """Wrappers for tools, and the variables that name them."""
    script = f"activate-{name}.sh"
    folder = f"bin/{TRIPLE}"
    files = {f"{folder}-{new}": wrapper(tool) for new, tool in tools.items()}
    files[f"etc/conda/activate.d/{script}"] = (SCRIPTS / script).read_text()
    return Package(
        name,
        version,
        fill=text_files(files),
        made_from=(files,),
        depends=depends,
        run_exports={"strong": exports},
    )


def cuda_compiler(version: str) -> list[Package]:
    """What compiler("cuda") asks for, over the packages with nvcc's files."""
    major, minor = map(int, version.split(".")[:2])
    release = f"{major}.{minor}"
    names = ["cccl_linux-64", "crt-dev_linux-64", "cudart-dev_linux-64"]
    names += ["nvcc-tools", "nvvm-tools", "version"]
    exports = [f"cuda-version >={release},<{major + 1}"]
    return [
        Package(
            "cuda-version",
            release,
            noarch="generic",
            constrains=(f"__cuda >={major}",),
        ),
        tool_package(
            "cuda-nvcc_linux-64",
            version,
            {},
            exports,
            "gxx_linux-64",
            *(f"cuda-{name} {release}.*" for name in names),
        ),
        Package(
            "cuda-nvcc", version, depends=(f"cuda-nvcc_linux-64 {version}",)
        ),
    ]


def sysroot() -> Package:
    """Names of the C library, and the oldest one that programs run with."""
    folder = f"{TRIPLE}/sysroot/lib64"
    return Package(
        "sysroot_linux-64",
        OLDEST_GLIBC,
        fill=text_files({f"{folder}/{name}": "" for name in GLIBC}),
        made_from=(GLIBC,),
        noarch="generic",
        run_exports={"strong": [f"__glibc >={OLDEST_GLIBC},<3.0.a0"]},
    )


def meta(name: str, *depends: str) -> Package:
    """A package that only depends on others."""
    return Package(name, "1.11.0", depends=depends)


def library_package(
    name: str, version: str, source: Path, file: str, depends: list[str]
) -> Package:
    """A run-time library of the compiler."""
    return Package(
        name,
        version,
        fill=lambda root: copy_library(source, root / "lib" / file),
        made_from=(source,),
        depends=tuple(depends),
    )
