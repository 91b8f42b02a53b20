"""Build and test the conda packages into dist/conda, an indexed channel.

rattler-build builds each variant of each recipe and tests it in new
environments. dist/conda changes only if everything succeeds. The full logs are
in build/rattler-build/PACKAGE.log.
"""

from __future__ import annotations

import argparse
import os
import shutil
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

    def on_download_start(self, event) -> None: ...
    def on_download_progress(self, event) -> None: ...
    def on_download_complete(self, event) -> None: ...

    def on_build_step(self, event) -> None:
        self.log.write(f"[{event.step_name}] {event.message}\n")
        print(f"  {event.step_name}: {event.message}", flush=True)

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
) -> list[Path]:
    """Build and test the variants of one package.

    `overrides` replaces keys of variants.yaml.

    Returns:
        The .conda files.

    Raises:
        RattlerBuildError: A build or a test failed. The end of the log has been
            printed.
    """
    forget(name)
    for old in output.glob(f"*/{name}-[0-9]*.conda"):
        old.unlink()
    (output / "noarch").mkdir(parents=True, exist_ok=True)

    log = output / f"{name}.log"
    print(f"{name}: building from {recipe}", flush=True)
    packages = []
    try:
        with log.open("w") as stream:
            for variant in render(recipe, overrides or {}):
                start = time.monotonic()
                package = build_variant(variant, output, test, stream)
                print(
                    f"{name}: {package.name},"
                    f" {package.stat().st_size / 1e3:.0f} kB,"
                    f" built{' and tested' if test else ''}"
                    f" in {time.monotonic() - start:.0f} s",
                    flush=True,
                )
                packages.append(package)
    except RattlerBuildError:
        lines = log.read_text().splitlines()
        print(*lines[-TAIL:], f"{name}: failed; full log: {log}", sep="\n")
        raise
    return packages


def build_variant(
    variant: RenderedVariant, output: Path, test: bool, log: TextIO
) -> Path:
    """Build and test one variant; return its .conda file."""
    for leftover in ("bld", "test", "broken"):
        shutil.rmtree(output / leftover, ignore_errors=True)
    # A cuda build is tested on machines without a driver, too, and torch-foo is
    # built over libfoo-core's cpu build on machines with one.
    cuda = str(variant.variant.get("cuda_compiler_version", "None"))
    os.environ["CONDA_OVERRIDE_CUDA"] = "" if cuda == "None" else cuda
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
    (package,) = (Path(path) for path in result.packages)
    return package


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
    overrides = {"cuda_architectures": [""]}
    try:
        built = [
            package
            for name in PACKAGES
            for package in build(
                name,
                RECIPES / name / "recipe.yaml",
                OUTPUT,
                test=not arguments.no_test,
                overrides=overrides if arguments.all_cuda_architectures else {},
            )
        ]
    except RattlerBuildError as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(DIST, ignore_errors=True)
    (DIST / PLATFORM).mkdir(parents=True)
    for package in built:
        shutil.copy2(package, DIST / PLATFORM)
    index(DIST)
    print(f"{DIST.relative_to(ROOT)}: a channel with {len(built)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
