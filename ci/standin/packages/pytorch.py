"""`libtorch` and `pytorch` from PyTorch's CPU wheel, as conda-forge has them.

Libraries, headers and CMake files are in the environment itself, and
site-packages/torch has links to them.
"""

import functools
import re
from collections.abc import Iterator

from standin.packages.conda import File, Package
from standin.packages.python import PYTHON, SITE, TAG
from standin.packages.wheels import Wheel

TOP = f"{SITE}/torch/"
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
    version = wheel.version
    major, minor = version.split(".")[:2]
    range_ = f">={version},<{major}.{int(minor) + 1}.0a0"
    libtorch = Package(
        "libtorch",
        version,
        depends=("libgcc", "libstdcxx"),
        constrains=(f"pytorch {version} cpu_generic_*",),
        run_exports={"weak": [f"libtorch {range_}"]},
        build="cpu_generic_h{hash}_0",
        files=functools.partial(part, wheel, of_python=False),
        made_from=wheel.made_from,
    )
    exact = f"libtorch {version} cpu_generic_*"
    pytorch = Package(
        "pytorch",
        version,
        depends=(exact, "numpy >=1.23,<3", *PYTHON, *wheel.depends),
        constrains=("pytorch-gpu <0.0a0",),
        run_exports={"weak": [f"pytorch {range_}", f"libtorch {range_}"]},
        build=f"cpu_generic_py{TAG}_h{{hash}}_0",
        files=functools.partial(part, wheel, of_python=True),
        made_from=wheel.made_from,
    )
    cpu = Package("pytorch-cpu", version, depends=(f"pytorch {version}",))
    return [libtorch, pytorch, cpu]


def part(wheel: Wheel, of_python: bool) -> Iterator[File]:
    """The C++ part, or the Python part with links to the C++ part."""
    entries = set()

    def keep(name: str) -> bool:
        shared = SHARED.fullmatch(name)
        if LEFT_OUT.match(name):
            return False
        if shared:
            entries.add(shared[1])
        return of_python == (not shared or name == OF_PYTHON)

    for file in wheel.files(keep):
        name = file.name.removeprefix(TOP)
        if file.name.startswith(TOP) and SHARED.fullmatch(f"torch/{name}"):
            executable = file.executable or name.startswith("bin/")
            yield File(name, file.content, executable)
        elif of_python:
            yield file
    for entry in sorted(entries) if of_python else ():
        link = f"{TOP}{entry}"
        yield File(link, link="../" * link.count("/") + entry)
