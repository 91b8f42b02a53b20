"""The recipes render, here and on conda-forge, and their tests can fail."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import package
import pytest
from conda_tools import PACKAGES, channel_url, create_environment, forget
from rattler_build import (
    JinjaConfig,
    PlatformConfig,
    RattlerBuildError,
    RenderConfig,
    Stage0Recipe,
    VariantConfig,
)

CPU = {"cuda_compiler_version": ["None"]}
# rattler-build pads the paths of its prefixes to one length. In a folder with a
# path as long as package.OUTPUT, ccache knows all files that are not broken.
OUTPUT = package.OUTPUT.with_name("broken-recipe")
PLATFORM = PlatformConfig(target_platform="linux-64")


def render(root: Path, name: str, variants: VariantConfig) -> list[dict]:
    recipe = Stage0Recipe.from_file(root / "recipe" / name / "recipe.yaml")
    rendered = recipe.render(variants, RenderConfig(platform=PLATFORM))
    return [
        {**variant.recipe.to_dict(), "variant": variant.variant}
        for variant in rendered
    ]


def builds(recipes: list[dict]) -> list[str]:
    """Return the variants' names: what the build strings begin with."""
    strings = [recipe["build"]["string"] for recipe in recipes]
    return sorted(re.split("_|h", string)[0] for string in strings)


def test_it_renders_with_our_variants(root: Path) -> None:
    variants = VariantConfig.from_file(root / "recipe" / "variants.yaml")
    core = render(root, "libfoo-core", variants)
    assert builds(core) == ["cpu", "cuda130"]
    assert builds(render(root, "torch-foo", variants)) == ["py310"]
    # A feature weighs its package down; the solver prefers the other one.
    assert [
        recipe["build"]["variant"]["down_prioritize_variant"] for recipe in core
    ] == [int("None" in recipe["variant"].values()) for recipe in core]


@pytest.mark.parametrize(
    ("name", "built"),
    [("libfoo-core", ["cpu", "cuda129"]), ("torch-foo", ["py310"])],
)
def test_it_renders_with_conda_forges_pins(
    name: str, built: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # conda-forge sets the variable for recipes with a CUDA compiler.
    if len(built) > 1:
        monkeypatch.setenv("CF_CUDA_ENABLED", "True")
    pins = VariantConfig.from_conda_build_config(
        Path(__file__).parent / "pins.yaml", JinjaConfig(platform=PLATFORM)
    )
    # render() also returns the variants that `skip` drops in a build.
    rendered = [
        recipe
        for recipe in render(root, name, pins)
        if recipe["variant"].get("is_python_min", True)
    ]
    for recipe in rendered:
        requirements = recipe["requirements"]["build"]
        cuda = "cuda-nvcc_linux-64 12.9.*" in requirements
        assert "sysroot_linux-64 2.17.*" in requirements
        assert f"gxx_linux-64 {14 if cuda else 15}.*" in requirements
    assert builds(rendered) == built


@pytest.mark.parametrize("name", PACKAGES)
def test_there_is_one_recipe_format(name: str, root: Path) -> None:
    assert not (root / "recipe" / name / "meta.yaml").exists()


@pytest.fixture
def core_copy(root: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of libfoo and its recipe that a test can break."""
    shutil.copytree(
        root / "libfoo",
        tmp_path / "libfoo",
        ignore=shutil.ignore_patterns("build"),
    )
    shutil.copytree(root / "recipe", tmp_path / "recipe")
    yield tmp_path
    shutil.rmtree(OUTPUT)
    # The broken package has the name, version and build string of the good one.
    forget("libfoo-core")


def break_add(libfoo: Path) -> None:
    """Make foo_core's add multiply."""
    source = libfoo / "src/cpu/elementwise.cc"
    text = source.read_text()
    broken = text.replace("return a + b;", "return a * b;")
    assert broken != text
    source.write_text(broken)


def test_a_broken_library_fails_the_recipes_tests(core_copy: Path) -> None:
    """The good package is in the cache, where `package` has put it."""
    break_add(core_copy / "libfoo")
    recipe = core_copy / "recipe/libfoo-core/recipe.yaml"
    with pytest.raises(RattlerBuildError):
        package.build("libfoo-core", recipe, OUTPUT, overrides=CPU)
    log = (OUTPUT / "libfoo-core.log").read_text()
    assert "1 tests failed out of 1" in log


def test_a_rebuilt_package_is_not_shadowed_by_the_cached_one(
    core_copy: Path, minor: str
) -> None:
    """Install it as torch-foo's build does: from the same channel again."""
    recipe = core_copy / "recipe/libfoo-core/recipe.yaml"

    def built_and_installed() -> tuple[str, bytes]:
        (file,) = package.build(
            "libfoo-core", recipe, OUTPUT, test=False, overrides=CPU
        )
        prefix = core_copy / "env"
        create_environment(
            prefix, ["libfoo-core"], [OUTPUT.as_uri(), channel_url()]
        )
        library = prefix / f"lib/libfoo_core.so.{minor}"
        return file.name, library.read_bytes()

    good_name, good = built_and_installed()
    break_add(core_copy / "libfoo")
    broken_name, broken = built_and_installed()
    assert broken_name == good_name
    assert broken != good
