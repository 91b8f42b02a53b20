"""Each version is written in one place; the copies agree with it."""

import re
import tomllib
from pathlib import Path

import pytest

PACKAGES = {"libfoo-core": "libfoo", "torch-foo": "torch-foo"}


def version_in(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.read_text(), re.MULTILINE)
    assert match, f"no {pattern} in {path}"
    return match[1]


@pytest.mark.parametrize("name", PACKAGES)
def test_recipe_has_the_version(
    name: str, versions: dict[str, str], root: Path
) -> None:
    recipe = root / "recipe" / name / "recipe.yaml"
    assert version_in(recipe, r'^  version: "(.*)"$') == versions[name]


@pytest.mark.parametrize("name", PACKAGES)
def test_changelog_begins_with_the_version(
    name: str, versions: dict[str, str], root: Path
) -> None:
    changelog = root / PACKAGES[name] / "CHANGELOG.md"
    assert version_in(changelog, r"^## \[?(\d[\d.]*)") == versions[name]


def test_recipe_tests_for_the_soname(minor: str, root: Path) -> None:
    recipe = root / "recipe/libfoo-core/recipe.yaml"
    assert version_in(recipe, r"libfoo_core\.so\.([\d.]+)$") == minor


def test_torch_foo_requires_this_libfoo_core(minor: str, root: Path) -> None:
    major, number = map(int, minor.split("."))
    required = f"libfoo-core>={minor},<{major}.{number + 1}"
    pyproject = tomllib.loads((root / "torch-foo/pyproject.toml").read_text())
    assert required in pyproject["project"]["dependencies"]
    backend = root / "torch-foo/backend/torch_foo_build.py"
    assert f'"{required}"' in backend.read_text()
    recipe = root / "recipe/torch-foo/recipe.yaml"
    assert required.replace("core>", "core >") in recipe.read_text()


@pytest.mark.parametrize("file", ["README.md", "torch-foo/CMakeLists.txt"])
def test_find_package_requests_this_libfoo_core(
    file: str, minor: str, root: Path
) -> None:
    pattern = r"^find_package\(foo_core ([\d.]+) "
    assert version_in(root / file, pattern) == minor
