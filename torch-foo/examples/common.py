"""What both examples need: a model as it is or patched, figures, charts.

Needs Linux, which tells the peak of a process's memory in /proc/self.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch_foo
from torch_foo.integrations.transformers import Report, patch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

AS_IT_IS, PATCHED = NAMES = "as it is", "torch_foo"
WIDTH = 40  # of text charts, in characters
Figures = dict[str, float]


class Time(NamedTuple):
    """In seconds, and how much of it was in products of matrices."""

    total: float
    products: float


def median(times: list[Time]) -> Time:
    return Time(*map(statistics.median, zip(*times, strict=True)))


# --- arguments: wrong ones are told in one line ------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that both examples have."""
    result = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--model",
        type=_model,
        required=True,
        metavar="PATH",
        help="a GGUF file or a folder, as transformers saves it",
    )
    result.add_argument(
        "--plot", type=_plot, metavar="FILE.png", help="needs matplotlib"
    )
    # Run only that one; the last line is the peak of the process's memory.
    result.add_argument("--memory-of", choices=NAMES, help=argparse.SUPPRESS)
    return result


def at_least(least: int) -> Callable[[str], int]:
    """A type of argument."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"{text!r}, expected a whole number of at least {least}"
            )
        return value

    return parse


def _model(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no file or folder {text}")
    return path


def _plot(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError(
            "needs matplotlib, which is not installed here: `pip install "
            "matplotlib` or `conda install matplotlib-base`"
        )
    return path


# --- the model ---------------------------------------------------------------


def load(path: Path) -> tuple[Any, Any]:
    """The tokenizer and the model, in float32."""
    logging.disable_progress_bar()
    source: dict[str, Any] = {"local_files_only": True}
    if path.is_dir():
        source["pretrained_model_name_or_path"] = str(path)
    else:
        source["pretrained_model_name_or_path"] = str(path.parent)
        source["gguf_file"] = path.name
    print(f"loading {path.name} ...", flush=True)
    start = time.perf_counter()
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32
        )
    except Exception as error:  # a wrong file may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        sys.exit(f"{sys.argv[0]}: cannot load {path}: {reason}")
    print(
        f"loaded in {time.perf_counter() - start:.0f} s:"
        f" {type(model).__name__}, {model.num_parameters() / 1e6:.0f} M"
        " parameters, float32",
        flush=True,
    )
    # A folder's weights are pages of its file: bring them into memory, where a
    # copy's are, for times that compare.
    return tokenizer, copy.deepcopy(model)


def patched(model: Any) -> Report:
    """Patch it, or end: there would be nothing to compare."""
    report = patch(model)
    if not report:
        sys.exit(f"{sys.argv[0]}: {report}")
    return report


# --- figures -----------------------------------------------------------------


def forget_peak() -> None:
    """Let the peak of this process's memory be what it needs now."""
    Path("/proc/self/clear_refs").write_text("5")


def print_peak() -> None:
    """The peak of this process's memory, in MiB.

    Not from getrusage: its figure begins with the memory of the parent.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            print(int(line.split()[1]) / 1024)


def peak_memory() -> Figures:
    """In MiB, of this program run again with --memory-of, for each name."""
    peaks = {}
    for name in NAMES:
        print(f"measuring the memory of a process, {name} ...", flush=True)
        command = [sys.executable, *sys.argv, "--memory-of", name]
        child = subprocess.run(
            command,
            env=os.environ | {"TQDM_DISABLE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        if child.returncode:
            sys.exit(child.returncode)
        peaks[name] = float(child.stdout.splitlines()[-1])
    return peaks


def shares(times: dict[str, Time]) -> str:
    """What the patch won, of the time outside of products of matrices."""
    before, after = (times[n].total - times[n].products for n in NAMES)
    share = before / times[AS_IT_IS].total
    return (
        f"outside of matrix products: {share:.0%} of the time {AS_IT_IS}, of"
        f" which torch_foo won {1 - after / before:.0%}"
    )


# --- charts ------------------------------------------------------------------


def bars(title: str, values: Figures) -> str:
    """A chart as text."""
    scale = WIDTH / max(values.values())
    return "\n".join(
        [title]
        + [
            f"  {name:<9} {'#' * round(value * scale):<{WIDTH}} {value:,.4g}"
            for name, value in values.items()
        ]
    )


def bars_of_times(title: str, times: dict[str, Time]) -> str:
    """A chart as text, in which the time in products has another mark."""
    scale = WIDTH / max(time.total for time in times.values())
    lines = [f"{title}: # in matrix products, - in all else"]
    for name, (total, products) in times.items():
        bar = ("#" * round(products * scale)).ljust(round(total * scale), "-")
        lines.append(
            f"  {name:<9} {bar:<{WIDTH}} {1e3 * products:,.4g}"
            f" + {1e3 * (total - products):,.4g} ms"
        )
    return "\n".join(lines)


def draw_bars(axis: Any, title: str, values: Figures) -> None:
    """The same on a matplotlib axis."""
    drawn = axis.bar(list(values), list(values.values()), color=["C7", "C0"])
    axis.bar_label(drawn, fmt="{:,.4g}")
    axis.set_title(title, fontsize=10)
    axis.margins(y=0.12)


def figure(title: str, width: float) -> Any:
    """A figure whose title also says what was run on what."""
    from matplotlib.figure import Figure

    result = Figure(figsize=(width, 4), dpi=100, layout="constrained")
    result.suptitle(f"{title}\n{versions()}", fontsize=11)
    return result


def save(figure: Any, file: Path) -> None:
    figure.savefig(file)
    print(f"plot: {file}")


def versions() -> str:
    info = torch_foo.build_info()
    return (
        f"torch_foo {info.torch_foo} ({info.simd_target}), torch"
        f" {torch.__version__}, {torch.get_num_threads()} threads, float32"
    )
