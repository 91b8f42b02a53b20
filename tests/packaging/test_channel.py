"""The channel that `package` leaves in dist/conda."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from conda_tools import (
    DIST,
    channel_url,
    create_environment,
    environment_variables,
    forget,
    solve,
)
from rattler_build import Package

# The builds of libfoo-core, and the CUDA versions of drivers that get them.
BUILDS = {"cpu": ["", "12.9"], "cuda130": ["13.0", "13.1"]}
BINARIES = ["_C.abi3.so", "lib/libtorch_foo.so"]

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


@pytest.fixture(scope="module", params=BUILDS)
def libfoo_core(
    request: pytest.FixtureRequest, versions: dict[str, str]
) -> Package:
    version = versions["libfoo-core"]
    return Package.from_file(
        only(f"libfoo-core-{version}-{request.param}_h*.conda")
    )


def test_it_holds_the_three_packages_and_lists_them() -> None:
    files = {path.name for path in DIST.glob("*/*.conda")}
    assert len(files) == 3
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
    if libfoo_core.build_string.startswith("cuda"):
        assert {"__cuda", "cuda-version"} <= names
        names -= {"__cuda", "cuda-version"}
    assert names <= {"__glibc", "libgcc", "libhwy", "libstdcxx"}


def test_torch_foo_is_one_binary(torch_foo: Package) -> None:
    """It holds the operators and the module through which Python loads them."""
    binaries = {
        file.partition("/torch_foo/")[2]
        for entry in torch_foo.files
        if re.search(r"\.so(\.|$)", file := str(entry))
    }
    assert binaries == set(BINARIES)


@pytest.mark.parametrize(
    ("build", "driver"), [(b, d) for b, ds in BUILDS.items() for d in ds]
)
def test_the_driver_decides_which_build_a_user_gets(
    build: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", driver)
    records = solve(["torch-foo"], [DIST.as_uri(), channel_url()])
    chosen = {record.name.normalized: record for record in records}
    assert str(chosen["libfoo-core"].build).startswith(f"{build}_h")
    assert ("cuda-version" in chosen) == (build != "cpu")


class Installed(NamedTuple):
    """torch-foo over one of libfoo-core's builds, in an environment."""

    exports: list[tuple[str, ...]]  # of libfoo_core.so: name, type
    needed: list[str]
    cuda: str  # torch_foo.build_info().cuda
    torch_foo: list[str]  # the hashes of BINARIES


@pytest.fixture(scope="module")
def installed(run, tmp_path_factory: pytest.TempPathFactory) -> list[Installed]:
    """The cpu build and the cuda build, one after the other in one prefix.

    conda writes the path of the prefix into binaries.
    """
    forget("libfoo-core", "torch-foo")
    prefix = tmp_path_factory.mktemp("swapped") / "env"

    def install(driver: str) -> Installed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CONDA_OVERRIDE_CUDA", driver)
            channels = [DIST.as_uri(), channel_url()]
            create_environment(prefix, ["torch-foo"], channels)
        library = prefix / "lib/libfoo_core.so"
        symbols = run("nm", "-D", "--defined-only", "--format=posix", library)
        section = run("readelf", "-d", library)
        code = "import torch_foo; print(torch_foo.build_info().cuda)"
        (package,) = prefix.glob("lib/python3.*/site-packages/torch_foo")
        binaries = [(package / name).read_bytes() for name in BINARIES]
        return Installed(
            [tuple(line.split()[:2]) for line in symbols.splitlines()],
            re.findall(r"\(NEEDED\).*\[(.*)\]", section),
            run(prefix / "bin/python", "-c", code, cwd=prefix).strip(),
            [hashlib.sha256(binary).hexdigest() for binary in binaries],
        )

    return [install(drivers[0]) for drivers in BUILDS.values()]


def test_both_builds_export_the_same_symbols(
    installed: list[Installed],
) -> None:
    cpu, cuda = installed
    assert any("rms_norm" in name for name, _ in cpu.exports)
    assert cpu.exports == cuda.exports


def test_no_build_needs_a_library_of_cuda(installed: list[Installed]) -> None:
    for build in installed:
        assert any(name.startswith("libhwy") for name in build.needed)
        assert not any("cuda" in name for name in build.needed)


def test_the_same_torch_foo_runs_over_both_builds(
    installed: list[Installed],
) -> None:
    cpu, cuda = installed
    assert (cpu.cuda, cuda.cuda) == ("False", "True")
    assert cpu.torch_foo == cuda.torch_foo


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
