"""Each version is written in one place; the copies agree with it."""

import re
import tomllib
from pathlib import Path

import pytest


def find(pattern: str, path: Path) -> str:
    match = re.search(pattern, path.read_text(), re.MULTILINE)
    assert match, f"no {pattern} in {path}"
    return match[1]


@pytest.fixture(scope="module")
def versions(root: Path) -> dict[str, str]:
    pyproject = tomllib.loads((root / "torch-foo/pyproject.toml").read_text())
    return {
        "libfoo-core": find(
            r"project\(\s*foo_core\s+VERSION ([\d.]+)",
            root / "libfoo/CMakeLists.txt",
        ),
        "torch-foo": pyproject["project"]["version"],
    }


@pytest.mark.parametrize("name", ["libfoo-core", "torch-foo"])
def test_recipe_has_the_version(
    name: str, versions: dict[str, str], root: Path
) -> None:
    recipe = root / "recipe" / name / "recipe.yaml"
    assert find(r'^  version: "(.*)"$', recipe) == versions[name]


@pytest.mark.parametrize("name", ["libfoo-core", "torch-foo"])
def test_changelog_begins_with_the_version(
    name: str, versions: dict[str, str], root: Path
) -> None:
    folder = {"libfoo-core": "libfoo", "torch-foo": "torch-foo"}[name]
    changelog = root / folder / "CHANGELOG.md"
    assert find(r"^## \[?(\d[\d.]*)", changelog) == versions[name]


def test_torch_foo_asks_for_this_libfoo_core(
    versions: dict[str, str], root: Path
) -> None:
    major, minor, _ = map(int, versions["libfoo-core"].split("."))
    wanted = f"libfoo-core>={major}.{minor},<{major}.{minor + 1}"
    pyproject = tomllib.loads((root / "torch-foo/pyproject.toml").read_text())
    assert wanted in pyproject["project"]["dependencies"]
    recipe = (root / "recipe/torch-foo/recipe.yaml").read_text()
    assert wanted.replace("core>", "core >") in recipe
