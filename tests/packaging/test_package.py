"""What `package` builds again, with builds that only write a file."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import package
import pytest
from rattler_build import RattlerBuildError

Ensure = Callable[..., list[str]]
CPU, CUDA, TORCH = "libfoo-core-cpu", "libfoo-core-cuda", "torch-foo"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one source file, which `made_from` reads."""
    root = tmp_path / "tree"
    (root / "libfoo").mkdir(parents=True)
    (root / "libfoo/source").write_text("1")
    (root / ".gitignore").write_text("*.ignored\n")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    monkeypatch.setattr(package, "ROOT", root)
    monkeypatch.setattr(package, "OUTPUT", root / "output")
    monkeypatch.setattr(package, "DIST", root / "dist")
    return root


@pytest.fixture
def ensure(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Ensure:
    """Call package.ensure and return the names of what was built."""
    built: list[str] = []

    def build_variant(variant, output: Path, *options: object) -> Path:
        name = variant.recipe.to_dict()["package"]["name"]
        if name == "libfoo-core":
            name += "-cuda" if package.needs_cuda(variant) else "-cpu"
        built.append(name)
        file = output / package.PLATFORM / f"{name}.conda"
        file.parent.mkdir(exist_ok=True)
        file.write_text((tree / "libfoo/source").read_text())
        if file.read_text() == "broken":
            raise RattlerBuildError("broken")
        return file

    def call(**options: bool) -> list[str]:
        built.clear()
        package.ensure(**options)
        return sorted(built)

    def index(channel: Path) -> None:
        folder = channel / package.PLATFORM
        hashes = {
            file.name: {"sha256": package.sha256(file)}
            for file in folder.glob("*.conda")
        }
        text = json.dumps({"packages.conda": hashes})
        (folder / "repodata.json").write_text(text)

    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "")  # there is no driver
    monkeypatch.setattr(package, "forget", lambda *names: None)
    monkeypatch.setattr(package, "index", index)
    monkeypatch.setattr(package, "build_variant", build_variant)
    return call


def published(tree: Path) -> dict[str, str]:
    return {file.stem: file.read_text() for file in tree.glob("dist/*/*.conda")}


def test_a_change_of_the_sources_builds_everything_again(
    ensure: Ensure, tree: Path
) -> None:
    assert ensure() == [CPU, CUDA, TORCH]
    assert ensure() == []
    (tree / "libfoo/x.ignored").touch()
    assert ensure() == []
    (tree / "libfoo/source").write_text("2")
    assert ensure() == [CPU, CUDA, TORCH]
    assert set(published(tree).values()) == {"2"}
    (tree / "libfoo/new").touch()
    assert ensure() == [CPU, CUDA, TORCH]
    (tree / "libfoo/new").unlink()
    assert ensure() == []  # as before
    assert ensure(test=False) == [CPU, CUDA, TORCH]


def test_a_machine_without_a_driver_needs_no_cuda_build(
    ensure: Ensure, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ensure(usable=True) == [CPU, TORCH]
    assert ensure() == [CUDA]
    assert ensure(usable=True) == []
    assert set(published(tree)) == {CPU, CUDA, TORCH}
    (tree / "libfoo/source").write_text("2")
    assert ensure(usable=True) == [CPU, TORCH]
    assert set(published(tree)) == {CPU, TORCH}  # the other one is stale
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "13.0")
    assert ensure(usable=True) == [CUDA]


def test_a_package_that_is_not_as_it_was_built_is_built_again(
    ensure: Ensure, tree: Path
) -> None:
    ensure()
    (file,) = tree.glob(f"output/*/{CPU}.conda")
    file.write_text("damaged")
    assert ensure() == [CPU]
    file.unlink()
    assert ensure() == [CPU]


def test_a_failed_build_leaves_no_package_behind(
    ensure: Ensure, tree: Path
) -> None:
    ensure()
    (tree / "libfoo/source").write_text("broken")
    for _ in range(2):
        with pytest.raises(RattlerBuildError):
            ensure()
    assert set(published(tree).values()) == {"1"}


def test_a_channel_that_was_not_finished_is_made_anew(
    ensure: Ensure, tree: Path
) -> None:
    ensure()
    (index,) = tree.glob("dist/*/repodata.json")
    whole = index.read_text()
    for damaged in ("", whole[:-1], "[]", '{"packages.conda": 1}'):
        index.write_text(damaged)
        assert ensure() == []
        assert index.read_text() == whole
    index.unlink()
    assert ensure() == []
    assert index.read_text() == whole
    for record in tree.glob("output/*.json"):
        record.write_text("[]")
    assert ensure() == [CPU, CUDA, TORCH]


RECIPE = """
package:
  name: tiny
  version: "1"
build:
  script: mkdir $PREFIX/share && echo tiny > $PREFIX/share/tiny
about:
  license: BSD-3-Clause
tests:
  - script: test -f $PREFIX/share/tiny
"""
# argv: the root of the repository.
BUILD = """
import os
import sys
from pathlib import Path

sys.path[:] = eval(os.environ["TEST_PATH"])
import package

package.ROOT = Path(sys.argv[1])
package.RECIPES = package.ROOT / "recipe"
package.OUTPUT = package.ROOT / "build/rattler-build"
package.DIST = package.ROOT / "dist/conda"
package.PACKAGES = ("tiny",)
package.ensure()
sys.stdout.flush()
os._exit(0)
"""


def test_a_kill_at_any_time(tree: Path, tmp_path: Path) -> None:
    """Of a real build: the next run ends with a package that can be read."""
    (tree / "recipe/tiny").mkdir(parents=True)
    (tree / "recipe/tiny/recipe.yaml").write_text(RECIPE)
    (tree / "recipe/variants.yaml").write_text("{}")
    cache = {"RATTLER_CACHE_DIR": str(tmp_path / "cache")}
    options = {
        "args": [sys.executable, "-c", BUILD, tree],
        "env": {**os.environ, **cache, "TEST_PATH": repr(sys.path)},
        "stdout": subprocess.DEVNULL,
    }
    start = time.monotonic()
    subprocess.run(**options, check=True)
    whole = time.monotonic() - start
    for part in range(1, 11):
        shutil.rmtree(tree / "build")
        shutil.rmtree(tree / "dist")
        with contextlib.suppress(subprocess.TimeoutExpired):
            # It is killed by SIGKILL then.
            subprocess.run(**options, timeout=whole * part / 11)
        subprocess.run(**options, check=True)
        (file,) = tree.glob("dist/conda/*/tiny-1-*.conda")
        assert zipfile.ZipFile(file).testzip() is None
        assert not (tree / "dist/conda.new").exists()
