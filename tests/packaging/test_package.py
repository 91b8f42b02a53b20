"""What `package` builds again, with builds that only write a file."""

import subprocess
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
        (channel / package.PLATFORM / "repodata.json").touch()

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
    index.unlink()
    assert ensure() == []
    assert index.exists()
