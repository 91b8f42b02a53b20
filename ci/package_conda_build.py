"""Build and test the recipes with conda-build into dist/conda-build.

conda-build reads the same two recipes as `package`. The exit status is 1 if
conda-build is not installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conda_tools import PACKAGES, ROOT, channel_url, local_variants

OUTPUT = ROOT / "dist" / "conda-build"


def main() -> int:
    conda = shutil.which("conda")
    if (
        not conda
        or subprocess.run(
            [conda, "build", "--version"], capture_output=True
        ).returncode
    ):
        print(
            "package-conda-build: conda-build is not installed here;"
            " `package` builds the same recipes with rattler-build",
            file=sys.stderr,
        )
        return 1
    command: list[str | Path] = [conda, "build", "--no-anaconda-upload"]
    command += ["--output-folder", OUTPUT]
    command += ["--variant-config-files", ROOT / "recipe/variants.yaml"]
    command += ["--variants", json.dumps(local_variants())]
    command += ["--override-channels"]
    command += ["--channel", OUTPUT.as_uri(), "--channel", channel_url()]
    shutil.rmtree(OUTPUT, ignore_errors=True)
    (OUTPUT / "noarch").mkdir(parents=True)
    for name in PACKAGES:
        print(f"{name}: building with conda-build", flush=True)
        # Only the tests of libfoo-core's cuda build need a driver.
        driver = "13.0" if name == "libfoo-core" else ""
        done = subprocess.run(
            [*command, ROOT / "recipe" / name],
            env=os.environ | {"CONDA_OVERRIDE_CUDA": driver},
        )
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
