"""What `package` leaves in dist/conda."""

import json
import os
import re
from pathlib import Path

import pytest
from conda_tools import (
    DIST,
    channel_url,
    create_environment,
    environment_variables,
    forget,
)
from rattler_build import Package

USE = """
import torch, torch_foo
x = torch.randn(3, 64)
expected = torch.nn.functional.rms_norm(x, (64,), eps=1e-6)
torch.testing.assert_close(torch.ops.torch_foo.rms_norm(x), expected)
print(torch_foo.__file__)
"""


def only(pattern: str) -> Path:
    (path,) = (DIST / "linux-64").glob(pattern)
    return path


@pytest.fixture(scope="module")
def torch_foo() -> Package:
    return Package.from_file(only("torch-foo-0.1.0-*.conda"))


@pytest.fixture(scope="module")
def libfoo_core() -> Package:
    return Package.from_file(only("libfoo-core-0.1.0-*.conda"))


def test_it_holds_the_two_packages_and_lists_them() -> None:
    files = {path.name for path in DIST.glob("*/*.conda")}
    assert len(files) == 2
    repodata = json.loads((DIST / "linux-64/repodata.json").read_text())
    assert set(repodata["packages.conda"]) == files


def test_torch_foo_depends_on_no_minor_version(torch_foo: Package) -> None:
    depends = dict(spec.partition(" ")[::2] for spec in torch_foo.depends)
    assert depends.pop("python") in ("", "*")
    assert depends.pop("cpython").startswith(">=3.")
    assert depends.pop("pytorch") == ">=2.10,<3"
    assert depends.pop("libfoo-core") == ">=0.1.0,<0.2.0a0"
    assert "python_abi" not in depends
    assert "libtorch" not in depends


def test_libfoo_core_needs_neither_torch_nor_python(
    libfoo_core: Package,
) -> None:
    names = {spec.split()[0] for spec in libfoo_core.depends}
    assert names <= {"__glibc", "libgcc", "libhwy", "libstdcxx"}


def test_torch_foo_is_one_binary(torch_foo: Package) -> None:
    binaries = [
        file
        for entry in torch_foo.files
        if re.search(r"\.so(\.|$)", file := str(entry))
    ]
    assert len(binaries) == 1, binaries
    assert binaries[0].endswith("torch_foo/_C.abi3.so")


def test_a_user_installs_it_by_name(run, tmp_path: Path) -> None:
    """As `conda install torch-foo` would: a fresh environment, then use."""
    forget("libfoo-core", "torch-foo")
    prefix = tmp_path / "env"
    installed = create_environment(
        prefix, ["torch-foo"], [DIST.as_uri(), channel_url()]
    )
    assert any(p.startswith("libfoo-core-0.1.0") for p in installed)
    env = environment_variables(prefix)
    used = run(
        prefix / "bin/python",
        "-c",
        USE,
        env={"PATH": env["PATH"], "CONDA_PREFIX": str(prefix)},
        cwd=tmp_path,
    )
    assert str(prefix) in used
    assert os.path.realpath(used.strip()).startswith(str(tmp_path))
