"""The guide to adding an operator, applied to a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "torch-foo" / "docs" / "adding-an-operator.md"
MOST_FILES = 9
CONFIG = "lib/cmake/foo_core"
# One SIMD target and little optimization: this is about the steps.
FLAGS = "-O1 -DHWY_COMPILE_ONLY_STATIC"


def steps() -> list[tuple[str, str, str]]:
    """The guide's edits: a file, the line that it goes before, the text."""
    return re.findall(
        r"[Ii]n\s`(\S+)`,\sbefore\s`([^`]+)`:\n\n```\w+\n(.*?)```\n",
        GUIDE.read_text(),
        flags=re.DOTALL,
    )


def run(*command: object, cwd: Path, **env: str) -> str:
    """Run a command, which has to succeed, and show what it took."""
    words = [str(word) for word in command]
    start = time.monotonic()
    done = subprocess.run(
        words,
        cwd=cwd,
        env=os.environ | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(f"{time.monotonic() - start:6.1f} s  {' '.join(words)[:68]}")
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def copy() -> Path:
    """The repository's files, with the guide's edits.

    It stays where it is, with what was built, and files that are the same keep
    their time. So another run compiles only what has changed.
    """
    target = ROOT / "build" / "guide" / "repository"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listed, cwd=ROOT, text=True).splitlines()
    files = {n: ROOT / n for n in names if (ROOT / n).is_file()}
    contents = {name: file.read_bytes() for name, file in files.items()}
    for name, before, text in steps():
        content = contents[name].decode()
        found = [
            line for line in content.split("\n") if line.startswith(before)
        ]
        assert found, f"{name} has no line that begins with {before!r}"
        at = f"\n{found[0]}\n"
        assert content.count(at) == 1
        contents[name] = content.replace(at, f"\n{text}{at[1:]}").encode()
    for old in sorted(target.rglob("*")):
        name = str(old.relative_to(target))
        is_built = name.startswith("torch-foo/build/")
        if old.is_file() and name not in contents and not is_built:
            old.unlink()
    for name, content in contents.items():
        file = target / name
        if not file.is_file() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            shutil.copymode(files[name], file)
    return target


@pytest.fixture(scope="module")
def site(copy: Path) -> Path:
    """A folder of Python packages, built from the copy."""
    prefix, build = copy.parent / "prefix", copy.parent / "build"
    site = copy.parent / "site"
    for installed in (prefix, site):
        shutil.rmtree(installed, ignore_errors=True)
    run(sys.executable, "torch-foo/codegen/generate.py", cwd=copy)
    run(
        "cmake",
        *("-S", "libfoo", "-B", build, "-G", "Ninja"),
        "-DCMAKE_BUILD_TYPE=None",
        f"-DCMAKE_CXX_FLAGS={FLAGS}",
        f"-DCMAKE_INSTALL_PREFIX={prefix}",
        "-DCMAKE_INSTALL_LIBDIR=lib",
        cwd=copy,
    )
    run("cmake", "--build", build, "--target", "foo_core", cwd=copy)
    run("cmake", "--install", build, cwd=copy)
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
        *("--no-build-isolation", f"--target={site}", copy / "torch-foo"),
        # conda's CMAKE_ARGS look for packages in the environment alone.
        f"--config-settings=cmake.define.foo_core_DIR={prefix / CONFIG}",
        cwd=copy,
    )
    shutil.copytree(prefix / "lib", site / "foo_core" / "lib", symlinks=True)
    return site


@pytest.fixture(scope="module")
def preload(site: Path) -> dict[str, str]:
    """The environment that loads the copy's foo_core.

    Python and the linker's flags lead to the environment's library first.
    """
    (library,) = (site / "foo_core" / "lib").glob("libfoo_core.so.?.?")
    return {"LD_PRELOAD": str(library), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def test_few_files_change_by_hand() -> None:
    files = dict.fromkeys(name for name, _, _ in steps())
    print(f"\nThe guide changes {len(files)} files:", *files, sep="\n  ")
    assert 0 < len(files) <= MOST_FILES


def test_kernel(copy: Path, preload: dict[str, str]) -> None:
    build = copy.parent / "build"
    names = ["foo_core_elementwise_test"]
    names += ["foo_core_cuda_on_cpu_elementwise_test"]
    run("cmake", "--build", build, "--target", *names, cwd=copy)
    tests = ("unit.elementwise", "cuda_on_cpu.elementwise", "abi.exports")
    for test in tests:
        options = ["--test-dir", build, "--output-on-failure"]
        output = run("ctest", *options, "-R", f"^{test}$", cwd=copy, **preload)
        assert "100% tests passed" in output


def test_operator(copy: Path, site: Path, preload: dict[str, str]) -> None:
    """The tests that the samples of the new operator run through."""
    packages = sysconfig.get_path("purelib")
    # Without site's startup files, which find the tree's own torch_foo.
    start = f"import sys; sys.path[:0] = [{str(site)!r}]; "
    start += f"sys.path.append({packages!r}); "
    tests = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["torch-foo/tests", "-q", "-k", "sub-", "-p", "no:cacheprovider"]
    python = [sys.executable, "-S", "-c"]
    output = run(*python, start + tests, *options, cwd=copy, **preload)
    passed = re.search(r"(\d+) passed", output)
    assert passed, output[-2000:]
    assert int(passed[1]) > 100
    print(passed[0])
    module = "import runpy; runpy.run_module('torch_foo', run_name='__main__')"
    output = run(*python, start + module, cwd=copy, **preload)
    assert re.search(r"^  sub +ok$", output, re.MULTILINE)


def test_generated_files_are_up_to_date(copy: Path, site: Path) -> None:
    check = ["torch-foo/codegen/generate.py", "--check"]
    run(sys.executable, *check, cwd=copy)
    page = (copy / "torch-foo/docs/operators.md").read_text()
    assert "| [`sub`](#sub) | Compute `a - b`. |" in page
