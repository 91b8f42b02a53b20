"""`libtorch` and `pytorch` from PyTorch's CPU wheel, as conda-forge has them.

Libraries, headers and CMake files are in the environment itself, and
site-packages/torch has links to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from standin.packages.conda import File, Package
from standin.packages.python import PYTHON, SITE, TAG
from standin.packages.wheels import Wheel

# What is shared, but for headers that would collide with the package pybind11.
SHARED = re.compile(
    r"torch/((?:bin|include|lib|share)/(?!pybind11/)[^/]+)(/.*)?"
)
# Test programs, and what other packages of conda-forge provide.
LEFT_OUT = re.compile(
    r"torch/(test/|bin/(?!torch_shm_manager)|lib/(libtorchbind_test|"
    r"libjitbackend_test|libbackend_with_compiler|libaoti_custom_ops))"
)
OF_PYTHON = "torch/lib/libtorch_python.so"


def packages(wheel: Wheel) -> list[Package]:
    """Both packages."""
    version = wheel.version
    major, minor = version.split(".")[:2]
    range_ = f">={version},<{major}.{int(minor) + 1}.0a0"
    libtorch = Package(
        "libtorch",
        version,
        files=lambda: libraries(wheel),
        made_from=wheel.made_from,
        build="cpu_generic_h{hash}_0",
        depends=("libgcc", "libstdcxx"),
        constrains=(f"pytorch {version} cpu_generic_*",),
        run_exports={"weak": [f"libtorch {range_}"]},
    )
    pytorch = Package(
        "pytorch",
        version,
        files=lambda: python_part(wheel),
        made_from=wheel.made_from,
        build=f"cpu_generic_py{TAG}_h{{hash}}_0",
        depends=(
            f"libtorch {version} cpu_generic_*",
            "numpy >=1.23,<3",
            *PYTHON,
            *wheel.depends,
        ),
        constrains=("pytorch-gpu <0.0a0",),
        run_exports={"weak": [f"pytorch {range_}", f"libtorch {range_}"]},
    )
    cpu = Package("pytorch-cpu", version, depends=(f"pytorch {version}",))
    return [libtorch, pytorch, cpu]


def kept(name: str) -> bool:
    """Whether a file of the wheel is in either package."""
    return not LEFT_OUT.match(name)


def libraries(wheel: Wheel) -> Iterator[File]:
    """The C++ part, in the environment's own folders."""
    for file in wheel.files(
        lambda n: bool(kept(n) and n != OF_PYTHON and SHARED.fullmatch(n))
    ):
        if file.name.startswith(f"{SITE}/torch/"):
            name = file.name.removeprefix(f"{SITE}/torch/")
            tool = name.startswith("bin/")
            yield File(name, file.content, file.executable or tool)


def python_part(wheel: Wheel) -> Iterator[File]:
    """The Python part, and links to the C++ part."""
    entries = set()

    def keep(name: str) -> bool:
        shared = SHARED.fullmatch(name)
        if shared and kept(name):
            entries.add(shared[1])
        return kept(name) and (not shared or name == OF_PYTHON)

    for file in wheel.files(keep):
        if file.name == f"{SITE}/{OF_PYTHON}":
            name = OF_PYTHON.removeprefix("torch/")
            yield File(name, file.content, executable=True)
        else:
            yield file
    for entry in sorted(entries):
        link = f"{SITE}/torch/{entry}"
        yield File(link, link="../" * link.count("/") + entry)
