"""`pip install ./libfoo ./torch-foo`, and the content of the wheels.

The installers build in isolation, each build in a separate environment.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest

USE = """
import torch, torch_foo
a = torch.arange(6.0).reshape(2, 3)
assert torch_foo.muladd(a, a, 1.0).equal(a * a + 1)
print(torch_foo.build_info())
"""
# Any other torch would install gigabytes of CUDA libraries.
TORCH = "torch==2.13.0+cpu"


@pytest.fixture(scope="module")
def installer_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of pip and uv."""
    folder = tmp_path_factory.mktemp("installers")
    constraints = folder / "constraints.txt"
    constraints.write_text(f"{TORCH}\n")
    env = {
        "PIP_CONSTRAINT": str(constraints),
        "PIP_NO_COMPILE": "1",  # torch has thousands of files
        "UV_CONSTRAINT": str(constraints),
        "UV_BUILD_CONSTRAINT": str(constraints),
        "UV_CACHE_DIR": str(folder / "uv"),
        # Three builds compile the same sources.
        "SKBUILD_BUILD_DIR": str(folder / "{wheel_tag}"),
        "CMAKE_C_COMPILER_LAUNCHER": "ccache",
        "CMAKE_CXX_COMPILER_LAUNCHER": "ccache",
    }
    if "CI_PIXI_STANDIN" in os.environ:
        source = os.environ["FETCHCONTENT_SOURCE_DIR_HIGHWAY"]
        define = f"FETCHCONTENT_SOURCE_DIR_HIGHWAY={source}"
        env["SKBUILD_CMAKE_DEFINE"] = define
    else:
        index = "https://download.pytorch.org/whl/cpu"
        env |= {"PIP_EXTRA_INDEX_URL": index, "UV_INDEX": index}
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return env


@pytest.fixture(scope="module")
def venv(run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain virtual environment into which pip installed both projects."""
    return tmp_path_factory.mktemp("pip") / "venv"


def site_packages(venv: Path) -> Path:
    (path,) = venv.glob("lib/python3.*/site-packages")
    return path


@pytest.fixture(scope="module")
def installed(
    run, venv: Path, installer_env: dict[str, str], root: Path
) -> Path:
    run(sys.executable, "-m", "venv", venv)
    run(
        venv / "bin/pip",
        "install",
        root / "libfoo",
        root / "torch-foo",
        env=installer_env,
    )
    return site_packages(venv)


def check_use(run, venv: Path, cwd: Path, versions: dict[str, str]) -> None:
    used = run(venv / "bin/python", "-c", USE, cwd=cwd)
    assert f"torch_foo='{versions['torch-foo']}'" in used
    assert f"foo_core='{versions['libfoo-core']}'" in used


def test_pip_installs_both(
    run,
    installed: Path,
    venv: Path,
    tmp_path: Path,
    versions: dict[str, str],
) -> None:
    check_use(run, venv, tmp_path, versions)
    run(venv / "bin/pip", "check")


def test_the_tag_stands_for_every_python(installed: Path) -> None:
    (wheel,) = installed.glob("torch_foo-*.dist-info/WHEEL")
    tags = [line for line in wheel.read_text().splitlines() if "Tag" in line]
    assert tags
    assert all(tag.startswith("Tag: cp310-abi3-linux") for tag in tags)


def test_torch_abi_audit_says_stable(run, installed: Path) -> None:
    audit = run("torch-abi-audit", "--json", installed / "torch_foo")
    report = json.loads(audit)
    (extension,) = report["extensions"]
    assert extension["cpython"]["compliant"]
    assert not extension["torch"]["uses_torch"]
    (library,) = report["bundled_libs"]
    assert library["path"].endswith("torch_foo/lib/libtorch_foo.so")
    assert library["torch"]["uses_torch"]
    assert library["torch"]["stable"]
    assert library["torch"]["min_torch_version"] == "2.10.0"


def test_the_operators_do_not_depend_on_python(run, installed: Path) -> None:
    library = installed / "torch_foo/lib/libtorch_foo.so"
    symbols = run("nm", "--dynamic", "--undefined-only", library)
    assert "torch_library_impl" in symbols
    assert not re.search(r" _?Py", symbols)


def test_abi3audit_finds_nothing(run, installed: Path) -> None:
    report = run(
        "abi3audit",
        "--strict",
        "--summary",
        "--assume-minimum-abi3",
        "3.10",
        installed / "torch_foo/_C.abi3.so",
    )
    assert "0 ABI version mismatches and 0 ABI violations" in " ".join(
        report.split()
    )


def test_libfoo_core_is_installed_once(installed: Path, minor: str) -> None:
    libraries = installed.rglob("libfoo_core.so*")
    assert [path.name for path in libraries] == [f"libfoo_core.so.{minor}"]


@pytest.mark.parametrize("editable", [False, True])
def test_uv_installs_both(
    run,
    installer_env: dict[str, str],
    root: Path,
    tmp_path: Path,
    editable: bool,
    versions: dict[str, str],
) -> None:
    venv = tmp_path / "venv"
    run("uv", "venv", "--python", sys.executable, venv)
    projects: list[str | Path] = []
    for project in ("libfoo", "torch-foo"):
        projects += ["--editable"] if editable else []
        projects += [root / project]
    run("uv", "pip", "install", "--python", venv, *projects, env=installer_env)
    check_use(run, venv, tmp_path, versions)
    code = "import torch_foo; print(torch_foo.__file__)"
    lines = run(venv / "bin/python", "-c", code, cwd=tmp_path).splitlines()
    in_tree = Path(lines[-1]).is_relative_to(root / "torch-foo")
    assert in_tree == editable
