"""The package of dist/conda, in an environment of its own, as users have it.

The lines are those of libfoo/README.md, and run in the activated environment
with its CMake and its compiler, in a folder that has the consumer only.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conda_tools import (
    DIST,
    ROOT,
    channel_url,
    create_environment,
    environment_variables,
    forget,
)

CONSUMER = ROOT / "libfoo/tests/package/find_package"


@pytest.fixture(scope="module")
def prefix(readme, tmp_path_factory: pytest.TempPathFactory) -> Path:
    install = readme("conda").splitlines()[0]
    assert install.startswith("conda install libfoo-core ")
    specs = [*install.split()[2:], "pkg-config"]
    forget("libfoo-core")
    prefix = tmp_path_factory.mktemp("user") / "env"
    installed = create_environment(
        prefix, specs, [DIST.as_uri(), channel_url()]
    )
    assert any(p.startswith("libfoo-core-0.2.0") for p in installed)
    return prefix


@pytest.fixture(scope="module")
def variables(prefix: Path) -> dict[str, str]:
    return environment_variables(prefix)


@pytest.fixture
def consumer(tmp_path: Path) -> Path:
    return shutil.copytree(CONSUMER, tmp_path / "consumer")


def check_loads(run, prefix: Path, program: Path) -> None:
    listed = run("ldd", program)
    for name in ("foo_core", "hwy"):
        assert re.search(rf"lib{name}\S* => {prefix}/lib/", listed), listed


def test_conda_find_package(
    run, shell, readme, prefix: Path, variables: dict[str, str], consumer: Path
) -> None:
    lines = readme("conda").partition("\n")[2]
    shell(lines, consumer, variables)
    build = consumer / "build"
    test = ["ctest", "--output-on-failure", "--no-tests=error"]
    run(*test, cwd=build, env=variables)
    cache = (build / "CMakeCache.txt").read_text()
    for entry in ("CMAKE_COMMAND", "CMAKE_CXX_COMPILER", "foo_core_DIR"):
        assert re.search(rf"^{entry}:\w+={prefix}/", cache, re.M), entry
    check_loads(run, prefix, build / "app")


def test_conda_pkg_config(
    run, shell, readme, prefix: Path, variables: dict[str, str], consumer: Path
) -> None:
    env = {
        **variables,
        "CXX": f"{variables['CXX']} -Wall -Wextra -Wpedantic -Werror",
    }
    shell(readme("pkg-config"), consumer, env)
    run(consumer / "app", env=variables)
    check_loads(run, prefix, consumer / "app")
