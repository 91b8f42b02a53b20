"""Build and test the conda packages into dist/conda, an indexed channel.

rattler-build builds each variant of each recipe and tests it in new
environments, unless it did that before with the same files. dist/conda changes
only if everything succeeds. The full logs are in build/rattler-build/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from conda_tools import (
    DIST,
    PACKAGES,
    PLATFORM,
    ROOT,
    channel_url,
    forget,
    has_cuda_driver,
    index,
    local_variants,
)
from rattler_build import (
    PlatformConfig,
    RattlerBuildError,
    RenderConfig,
    RenderedVariant,
    Stage0Recipe,
    ToolConfiguration,
    VariantConfig,
)

RECIPES = ROOT / "recipe"
OUTPUT = ROOT / "build" / "rattler-build"
Variants = dict[str, list[str]]
TAIL = 60  # lines of the log to print after a failure


class Progress:
    """Write all events to a log, and steps and errors to the terminal."""

    def __init__(self, log: TextIO) -> None:
        self.log = log
        self.start = time.monotonic()

    def on_download_start(self, event) -> None: ...
    def on_download_progress(self, event) -> None: ...
    def on_download_complete(self, event) -> None: ...

    def on_build_step(self, event) -> None:
        self.log.write(f"[{event.step_name}] {event.message}\n")
        seconds = time.monotonic() - self.start
        text = f"  [{seconds:3.0f} s] {event.step_name}: {event.message}"
        print(text, flush=True)

    def on_log(self, event) -> None:
        self.log.write(f"{event.message}\n")
        if event.level == "error":
            print(f"  error: {event.message}", flush=True)


def render(recipe: Path, overrides: Variants) -> list[RenderedVariant]:
    """Render the variants of a recipe that are built here."""
    variants = VariantConfig.from_file(RECIPES / "variants.yaml")
    variants = variants.merge(VariantConfig(local_variants() | overrides))
    return Stage0Recipe.from_file(recipe).render(
        variants,
        RenderConfig(platform=PlatformConfig(target_platform=PLATFORM)),
    )


def build(
    name: str,
    recipe: Path,
    output: Path,
    test: bool = True,
    overrides: Variants | None = None,
    usable: bool = False,
    made_from: str = "",
) -> list[Path]:
    """Build and test the variants of one package.

    Args:
        name: The package.
        recipe: Its recipe.yaml.
        output: The folder that gets the packages and the log.
        test: Also run the recipe's tests.
        overrides: Replace keys of variants.yaml.
        usable: Build no variants that this machine cannot install.
        made_from: A digest of all files that the packages are made from. A
            variant that was built from the same is not built again. An empty
            one stands for files that are not known.

    Returns:
        The .conda files.

    Raises:
        RattlerBuildError: A build or a test failed. The end of the log has been
            printed.
    """
    output.mkdir(parents=True, exist_ok=True)
    log = output / f"{name}.log"
    packages = []
    for variant in render(recipe, overrides or {}):
        described = f"{made_from}{test}{variant.recipe.to_dict()}"
        key = hashlib.sha256(described.encode()).hexdigest()[:16]
        record = output / f"{key}.json"
        package = recorded(record) if made_from else None
        unusable = needs_cuda(variant) and not has_cuda_driver()
        if package is None and usable and unusable:
            continue
        if package is None:
            print(f"{name}: building from {recipe}", flush=True)
            start = time.monotonic()
            forget(name)
            try:
                with log.open("w") as stream:
                    package = build_variant(variant, output, test, stream)
            except RattlerBuildError:
                lines = log.read_text().splitlines()
                print(
                    *lines[-TAIL:], f"{name}: failed; full log: {log}", sep="\n"
                )
                raise
            content = {"path": str(package), "sha256": sha256(package)}
            record.write_text(json.dumps(content))
            print(
                f"{name}: {package.name},"
                f" {package.stat().st_size / 1e3:.0f} kB,"
                f" built{' and tested' if test else ''}"
                f" in {time.monotonic() - start:.0f} s",
                flush=True,
            )
        else:
            print(f"{name}: {package.name} is up to date", flush=True)
        packages.append(package)
    return packages


def needs_cuda(variant: RenderedVariant) -> bool:
    return variant.variant.get("cuda_compiler_version", "None") != "None"


def recorded(record: Path) -> Path | None:
    """Return the package that a build left, if it is still the same file."""
    try:
        content = json.loads(record.read_text())
        if sha256(path := Path(content["path"])) == content["sha256"]:
            return path
    except (OSError, LookupError, TypeError, ValueError):
        pass
    return None


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def listed(channel: Path) -> dict[str, str]:
    """Return the hashes that a channel's repodata has, if it is not damaged."""
    try:
        text = (channel / PLATFORM / "repodata.json").read_text()
        packages = json.loads(text)["packages.conda"]
        return {name: packages[name]["sha256"] for name in packages}
    except (OSError, LookupError, TypeError, ValueError):
        return {}


def made_from() -> str:
    """Return the digest of the recipes, both projects, and the channel."""
    command = ["git", "ls-files", "-z", "--cached", "--others"]
    command += ["--exclude-standard", "recipe", "libfoo", "torch-foo"]
    command += ["ci/conda_tools.py", "ci/package.py"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True)
    files = [ROOT / name for name in sorted(listed.split("\0")[:-1])]
    channel = channel_url()
    if channel.startswith("file://"):  # made on this machine
        folder = Path(channel.removeprefix("file://"))
        files.append(folder / PLATFORM / "repodata.json")
    named = {str(file): sha256(file) for file in files if file.is_file()}
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def build_variant(
    variant: RenderedVariant, output: Path, test: bool, log: TextIO
) -> Path:
    """Build and test one variant; return its .conda file."""
    for leftover in ("bld", "test", "broken"):
        shutil.rmtree(output / leftover, ignore_errors=True)
    (output / "noarch").mkdir(exist_ok=True)
    # A cuda build is tested on machines without a driver, too, and torch-foo is
    # built over libfoo-core's cpu build on machines with one.
    driver = "CONDA_OVERRIDE_CUDA"
    before = os.environ.pop(driver, None)
    cuda = needs_cuda(variant)
    os.environ[driver] = (
        variant.variant["cuda_compiler_version"] if cuda else ""
    )
    try:
        result = variant.run_build(
            ToolConfiguration(
                test_strategy="native" if test else "skip",
                compression_threads=os.cpu_count(),
            ),
            output_dir=output,
            channels=[channel_url()],
            progress_callback=Progress(log),
            package_format="conda:3",
            no_build_id=True,
        )
    finally:
        del os.environ[driver]
        if before is not None:
            os.environ[driver] = before
    (package,) = (Path(path) for path in result.packages)
    return package


def ensure(
    usable: bool = False, test: bool = True, overrides: Variants | None = None
) -> Path:
    """Build what is out of date, and put all packages into DIST.

    Args:
        usable: Build no variants that this machine cannot install.
        test: Also run the recipes' tests.
        overrides: Replace keys of variants.yaml.

    Returns:
        DIST, which has these packages and no others.
    """
    digest = made_from()
    built: list[Path] = []
    for name in PACKAGES:
        recipe = RECIPES / name / "recipe.yaml"
        built += build(name, recipe, OUTPUT, test, overrides, usable, digest)
    for old in OUTPUT.glob(f"{PLATFORM}/*.conda"):
        if old not in built:
            old.unlink()
    expected = {package.name: sha256(package) for package in built}
    present = {
        file.name: sha256(file) for file in DIST.glob(f"{PLATFORM}/*.conda")
    }
    if not expected == present == listed(DIST):
        new = DIST.with_name(f"{DIST.name}.new")
        for folder in (new, DIST):
            shutil.rmtree(folder, ignore_errors=True)
        (new / PLATFORM).mkdir(parents=True)
        for package in built:
            shutil.copy2(package, new / PLATFORM)
        index(new)
        new.rename(DIST)
    print(f"{DIST.relative_to(ROOT)}: a channel with {len(built)} packages")
    return DIST


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--no-test", action="store_true", help="build without testing"
    )
    parser.add_argument(
        "--all-cuda-architectures",
        action="store_true",
        help="build the CUDA kernels for every GPU, as for a release",
    )
    arguments = parser.parse_args()
    every = {"cuda_architectures": [""]}
    overrides = every if arguments.all_cuda_architectures else {}
    try:
        ensure(test=not arguments.no_test, overrides=overrides)
    except RattlerBuildError as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
