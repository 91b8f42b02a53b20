"""Shared parts of the examples: arguments, models, measurements and charts.

It needs Linux, where /proc/self holds the peak memory of a process.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import importlib.util
import statistics
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
    """Seconds in total, and seconds spent in matrix products."""

    total: float
    products: float


def median(times: list[Time]) -> Time:
    return Time(*map(statistics.median, zip(*times, strict=True)))


# --- arguments ---------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of both examples."""
    result = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--model",
        type=existing,
        required=True,
        metavar="PATH",
        help="a GGUF file, or a folder saved by transformers",
    )
    result.add_argument(
        "--plot",
        type=_plot,
        metavar="FILE.png",
        help="also draw the charts to FILE.png (needs matplotlib)",
    )
    return result


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number with a minimum."""

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


def existing(text: str) -> Path:
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
    if not installed("matplotlib"):
        raise argparse.ArgumentTypeError(
            "needs matplotlib, which is not installed here: `pip install "
            "matplotlib` or `conda install matplotlib-base`"
        )
    return path


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# --- the model ---------------------------------------------------------------


def load(path: Path) -> tuple[Any, Any]:
    """Load the tokenizer and the model in float32."""
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
    except Exception as error:  # wrong files raise errors of many types
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        sys.exit(f"{sys.argv[0]}: cannot load {path}: {reason}")
    print(
        f"loaded in {time.perf_counter() - start:.0f} s:"
        f" {type(model).__name__}, {model.num_parameters() / 1e6:.0f} M"
        " parameters, float32",
        flush=True,
    )
    # The weights of a folder are mapped from its file. A copy brings them into
    # memory, where the weights of the patched copy are, so that times compare.
    return tokenizer, copy.deepcopy(model)


def patched(model: Any) -> Report:
    """Patch the model, or exit because there is nothing to compare."""
    report = patch(model)
    if not report:
        sys.exit(f"{sys.argv[0]}: {report}")
    return report


# --- figures -----------------------------------------------------------------


def forget_peak() -> float:
    """Reset the peak memory of this process to the memory in use; return it.

    What malloc keeps of earlier runs is returned first, or it would count.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Return the peak memory of this process in MiB.

    getrusage will not do, because nothing resets its figure.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def shares(times: dict[str, Time]) -> str:
    """Describe the time that the patch saved outside of matrix products."""
    before, after = (times[n].total - times[n].products for n in NAMES)
    share = before / times[AS_IT_IS].total
    return (
        f"outside of matrix products: {share:.0%} of the time {AS_IT_IS}, of"
        f" which torch_foo saved {1 - after / before:.0%}"
    )


# --- charts ------------------------------------------------------------------


def bars(title: str, values: Figures) -> str:
    """Return a bar chart as text."""
    scale = WIDTH / max(values.values())
    return "\n".join(
        [title]
        + [
            f"  {name:<9} {'#' * round(value * scale):<{WIDTH}} {value:,.4g}"
            for name, value in values.items()
        ]
    )


def bars_of_times(title: str, times: dict[str, Time]) -> str:
    """Return a bar chart as text that marks the time in products."""
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
    """Draw a bar chart on a matplotlib axis."""
    colors = ["C7", *["C0"] * (len(values) - 1)]
    drawn = axis.bar(list(values), list(values.values()), color=colors)
    axis.bar_label(drawn, fmt="{:,.4g}")
    axis.tick_params("x", rotation=30)
    axis.set_title(title, fontsize=10)
    axis.margins(y=0.12)


def figure(title: str, width: float) -> Any:
    """Return a figure whose title also names the versions."""
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
