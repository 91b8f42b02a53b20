"""Builds with CMake, and torch, in environments of the stand-in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

MANIFEST = """
[dependencies]
cmake = "*"
cxx-compiler = "*"
gtest = "*"
libhwy = "*"
ninja = "*"
pip = "*"
python = "*"
pytorch = "*"
[pypi-dependencies]
editables = "*"
"""
CMAKE = """
cmake_minimum_required(VERSION 3.26)
project(sample LANGUAGES CXX)
find_package(GTest REQUIRED)
find_package(hwy 1.1 REQUIRED)
add_executable(sample sample.cpp)
target_link_libraries(sample PRIVATE GTest::gtest_main hwy::hwy)
enable_testing()
include(GoogleTest)
gtest_discover_tests(sample)
"""
SOURCE = """
#include <gtest/gtest.h>
#include <hwy/contrib/math/math-inl.h>
#include <hwy/targets.h>
TEST(Sample, Runs) { EXPECT_NE(hwy::SupportedTargets(), 0); }
"""
COMPILED = """
import torch
import torch._inductor.config as config
config.cpp_cache_precompile_headers = False  # slow for a single kernel
@torch.compile(fullgraph=True)
def f(x):
    return (x.sin() * 2 + 1).sum(-1)
x = torch.randn(8, 64)
torch.testing.assert_close(f(x), (x.sin() * 2 + 1).sum(-1))
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory, new_workspace):
    """A workspace with all of the above installed."""
    return new_workspace(tmp_path_factory.mktemp("full")).write(MANIFEST)


def test_dependencies_of_all_packages_are_met(full):
    assert "No broken requirements" in full.passes("run", "pip", "check")


def test_pypi_dependency_is_installed_by_pip(full):
    assert "editables" in full.passes("run", "pip", "list")
    packages = full.folder / ".pixi/envs/default/conda-meta"
    assert not list(packages.glob("editables-*.json"))
    assert list(packages.glob("pytorch-*.json"))


def test_cmake_project_finds_everything_in_the_environment(full):
    source = full.folder / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CMAKE)
    (source / "sample.cpp").write_text(SOURCE)
    build = "cmake -G Ninja -S source -B build $CMAKE_ARGS"
    full.passes("run", "bash", "-c", f"{build} && cmake --build build")
    full.passes("run", "ctest", "--test-dir", "build")
    linked = subprocess.check_output(
        ["ldd", full.folder / "build/sample"], text=True
    )
    libraries = full.folder / ".pixi/envs/default/lib"
    for name in ("libhwy.so.1", "libgtest.so", "libstdc++.so.6"):
        assert f"=> {libraries}/{name}" in linked
    cache = (full.folder / "build/CMakeCache.txt").read_text()
    assert "/bin/x86_64-conda-linux-gnu-c++" in cache


def test_pkg_config_file_names_the_environment(full):
    prefix = full.passes("run", "printenv", "CONDA_PREFIX").strip()
    text = Path(prefix, "lib/pkgconfig/libhwy.pc").read_text()
    assert f"prefix={prefix}\n" in text


def test_torch_has_the_layout_of_conda_forge(full):
    prefix = full.folder / ".pixi/envs/default"
    assert (prefix / "share/cmake/Torch/TorchConfig.cmake").is_file()
    inner = next(prefix.glob("lib/python3.*/site-packages/torch"))
    for name in ("lib/libtorch_cpu.so", "include/ATen", "lib/libc10.so"):
        assert os.path.samefile(inner / name, prefix / name)
        assert (inner / name).is_symlink()


def test_torch_compile(full):
    full.passes("run", "python", "-c", COMPILED)


def test_pip_in_a_task_uses_the_wheelhouse(full):
    words = ["run", "pip", "install", "--dry-run", "wheel"]
    shown = full.passes(*words, PIP_NO_INDEX=None, PIP_FIND_LINKS=None)
    assert "Would install" in shown
    assert "Looking in links" in shown
    assert "Looking in indexes" not in shown


def test_channel_alias_names_the_channel(full):
    alias = full.passes("run", "printenv", "CONDA_CHANNEL_ALIAS").strip()
    channel = Path(alias.removeprefix("file://")) / "conda-forge"
    assert (channel / "linux-64/repodata.json").is_file()
    for name, file in (
        ("GOOGLETEST", "googletest/include/gtest/gtest.h"),
        ("HIGHWAY", "hwy/highway.h"),
    ):
        variable = f"FETCHCONTENT_SOURCE_DIR_{name}"
        source = full.passes("run", "printenv", variable).strip()
        assert (Path(source) / file).is_file()
