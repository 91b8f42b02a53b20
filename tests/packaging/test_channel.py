"""The channel that `package` leaves in dist/conda."""

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
def torch_foo(versions: dict[str, str]) -> Package:
    version = versions["torch-foo"]
    return Package.from_file(only(f"torch-foo-{version}-*.conda"))


@pytest.fixture(scope="module")
def libfoo_core(versions: dict[str, str]) -> Package:
    version = versions["libfoo-core"]
    return Package.from_file(only(f"libfoo-core-{version}-*.conda"))


def test_it_holds_the_two_packages_and_lists_them() -> None:
    files = {path.name for path in DIST.glob("*/*.conda")}
    assert len(files) == 2
    repodata = json.loads((DIST / "linux-64/repodata.json").read_text())
    assert set(repodata["packages.conda"]) == files


def test_torch_foo_depends_on_no_minor_version_of_python_or_torch(
    torch_foo: Package, versions: dict[str, str], minor: str
) -> None:
    major, number = map(int, minor.split("."))
    next_minor = f"{major}.{number + 1}"
    depends = dict(spec.partition(" ")[::2] for spec in torch_foo.depends)
    assert depends.pop("python") in ("", "*")
    assert depends.pop("cpython").startswith(">=3.")
    assert depends.pop("pytorch") == ">=2.10,<3"
    assert depends.pop("libfoo-core") == (
        f">={versions['libfoo-core']},<{next_minor}.0a0"
    )
    assert "python_abi" not in depends
    assert "libtorch" not in depends


def test_libfoo_core_needs_neither_torch_nor_python(
    libfoo_core: Package,
) -> None:
    names = {spec.split()[0] for spec in libfoo_core.depends}
    assert names <= {"__glibc", "libgcc", "libhwy", "libstdcxx"}


def test_torch_foo_is_one_binary(torch_foo: Package) -> None:
    """It holds the operators and the module through which Python loads them."""
    binaries = {
        file.partition("/torch_foo/")[2]
        for entry in torch_foo.files
        if re.search(r"\.so(\.|$)", file := str(entry))
    }
    assert binaries == {"_C.abi3.so", "lib/libtorch_foo.so"}


@pytest.fixture(scope="module")
def user_env(
    tmp_path_factory: pytest.TempPathFactory, versions: dict[str, str]
) -> Path:
    """A fresh environment, as `conda create torch-foo` would make it."""
    forget("libfoo-core", "torch-foo")
    prefix = tmp_path_factory.mktemp("user") / "env"
    installed = create_environment(
        prefix, ["torch-foo"], [DIST.as_uri(), channel_url()]
    )
    core = f"libfoo-core-{versions['libfoo-core']}-"
    assert any(package.startswith(core) for package in installed)
    return prefix


def test_a_user_installs_it_by_name(run, user_env: Path) -> None:
    used = run(
        user_env / "bin/python",
        "-c",
        USE,
        env=environment_variables(user_env),
        cwd=user_env,
    )
    assert os.path.realpath(used.strip()).startswith(str(user_env))


def readme_block(root: Path, language: str) -> str:
    """Return the README's code in one language."""
    text = (root / "README.md").read_text()
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    return block


def test_the_python_of_the_readme_runs(run, root: Path, user_env: Path) -> None:
    code = readme_block(root, "python").partition("fast =")[0]
    run(user_env / "bin/python", "-c", code, cwd=user_env)


def test_the_cpp_of_the_readme_runs(run, root: Path, user_env: Path) -> None:
    source = user_env / "readme.cpp"
    source.write_text(
        readme_block(root, "cpp")
        + """
int main() {
  static float x[4096] = {64}, y[4096];
  normalize(x, y, 1);
  return y[0] > 63.9f && y[0] < 64.1f ? 0 : 1;  // x / sqrt(mean(x^2)) = 64
}
"""
    )
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
    lib = user_env / "lib"
    run(
        "c++",
        *flags,
        f"-I{user_env}/include",
        source,
        "-o",
        user_env / "readme",
        f"-L{lib}",
        "-lfoo_core",
        f"-Wl,-rpath,{lib}",
    )
    run(user_env / "readme")
