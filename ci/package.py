"""Build and test the conda packages into dist/conda, an indexed channel.

rattler-build builds each package from its recipe and tests it in new
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


def render(recipe: Path, variants: VariantConfig) -> RenderedVariant:
    """Render the one variant of a recipe that is built here."""
    (rendered,) = Stage0Recipe.from_file(recipe).render(
        variants,
        RenderConfig(platform=PlatformConfig(target_platform=PLATFORM)),
    )
    return rendered


def build(name: str, recipe: Path, output: Path, test: bool = True) -> Path:
    """Build and test one package.

    Returns:
        The .conda file.

    Raises:
        RattlerBuildError: The build or a test failed. The end of the log has
            been printed.
    """
    variants = VariantConfig.from_file(RECIPES / "variants.yaml")
    variants = variants.merge(VariantConfig(local_variants()))
    forget(name)
    for leftover in ("bld", "test", "broken"):
        shutil.rmtree(output / leftover, ignore_errors=True)
    for old in output.glob(f"*/{name}-[0-9]*.conda"):
        old.unlink()
    output.mkdir(parents=True, exist_ok=True)
    (output / "noarch").mkdir(exist_ok=True)

    start = time.monotonic()
    log = output / f"{name}.log"
    print(f"{name}: building from {recipe}", flush=True)
    try:
        with log.open("w") as stream:
            result = render(recipe, variants).run_build(
                ToolConfiguration(
                    test_strategy="native" if test else "skip",
                    compression_threads=os.cpu_count(),
                ),
                output_dir=output,
                channels=[channel_url()],
                progress_callback=Progress(stream),
                package_format="conda:3",
                no_build_id=True,
            )
    except RattlerBuildError:
        lines = log.read_text().splitlines()
        print(*lines[-TAIL:], f"{name}: failed; full log: {log}", sep="\n")
        raise
    (package,) = (Path(path) for path in result.packages)
    print(
        f"{name}: {package.name}, {package.stat().st_size / 1e3:.0f} kB,"
        f" built{' and tested' if test else ''}"
        f" in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return package


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--no-test", action="store_true", help="build without testing"
    )
    arguments = parser.parse_args()
    try:
        built = [
            build(
                name,
                RECIPES / name / "recipe.yaml",
                OUTPUT,
                test=not arguments.no_test,
            )
            for name in PACKAGES
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
