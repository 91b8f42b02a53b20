"""`libtorch` and `pytorch` from PyTorch's CPU wheel, as conda-forge has them.

Libraries, headers and CMake files are in the environment itself, and
site-packages/torch has links to them.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from standin.files import file_digest
from standin.packages.conda import Package
from standin.packages.wheels import (
    Names,
    Python,
    Wheel,
    extract,
    write_launchers,
)

SHARED_FOLDERS = ("bin", "include", "lib", "share")
# Test programs, and what other packages of conda-forge provide.
LEFT_OUT = re.compile(
    r"torch/(test/|bin/(?!torch_shm_manager)|lib/(libtorchbind_test|"
    r"libjitbackend_test|libbackend_with_compiler|libaoti_custom_ops))"
)
# Would collide with the package pybind11, so they stay inside torch.
NOT_SHARED = ("include/pybind11",)
OF_PYTHON = "lib/libtorch_python.so"


def shared_entry(name: str) -> str | None:
    """torch/lib/libc10.so -> lib/libc10.so: what the links point to."""
    parts = name.split("/")
    if parts[0] != "torch" or len(parts) < 3 or parts[1] not in SHARED_FOLDERS:
        return None
    entry = "/".join(parts[1:3])
    return None if entry in NOT_SHARED else entry


def packages(wheel: Wheel, names: Names, python: Python) -> list[Package]:
    """Both packages."""
    version = wheel.version
    major, minor = version.split(".")[:2]
    below = f"<{major}.{int(minor) + 1}.0a0"
    made_from = (file_digest(wheel.path),)
    libtorch_export = f"libtorch >={version},{below}"
    libtorch = Package(
        "libtorch",
        version,
        fill=lambda root: fill_libtorch(wheel, root),
        made_from=made_from,
        build="cpu_generic_h{hash}_0",
        depends=("libgcc", "libstdcxx"),
        constrains=(f"pytorch {version} cpu_generic_*",),
        run_exports={"weak": [libtorch_export]},
    )
    pytorch = Package(
        "pytorch",
        version,
        fill=lambda root: fill_pytorch(wheel, root, python),
        made_from=made_from,
        build=f"cpu_generic_py{python.tag}_h{{hash}}_0",
        depends=(
            f"libtorch {version} cpu_generic_*",
            "numpy >=1.23,<3",
            *python.depends,
            *wheel.depends(names),
        ),
        constrains=("pytorch-gpu <0.0a0",),
        run_exports={"weak": [f"pytorch >={version},{below}", libtorch_export]},
    )
    return [libtorch, pytorch]


def fill_libtorch(wheel: Wheel, root: Path) -> None:
    """The C++ part, in the environment's own folders."""
    with zipfile.ZipFile(wheel.path) as archive:
        for member in archive.infolist():
            name = member.filename
            entry = shared_entry(name)
            if not entry or entry == OF_PYTHON or LEFT_OUT.match(name):
                continue
            target = root / name.removeprefix("torch/")
            extract(archive, member, target, entry.startswith("bin/"))


def fill_pytorch(wheel: Wheel, root: Path, python: Python) -> None:
    """The Python part, and links to the C++ part."""
    entries = set()

    def keep(name: str) -> bool:
        if LEFT_OUT.match(name):
            return False
        entry = shared_entry(name)
        if entry:
            entries.add(entry)
        return entry is None

    wheel.unpack(root, python.site, keep)
    torch = root / python.site / "torch"
    up = "../" * len((torch / "lib").relative_to(root).parts)
    for entry in entries:
        link = torch / entry
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(up + entry)
    with zipfile.ZipFile(wheel.path) as archive:
        member = archive.getinfo(f"torch/{OF_PYTHON}")
        extract(archive, member, root / OF_PYTHON, executable=True)
    write_launchers(root, wheel.scripts)
