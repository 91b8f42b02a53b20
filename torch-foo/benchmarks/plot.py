"""Plot speed-ups and distances to the roofline.

There is a panel for each direction and dtype, and in it a bar for each operator
and size. Bars show calls that allocate, diamonds calls with `out=` or in place.
"""

from typing import Any

from cases import OPERATORS
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from torch_foo.operators import Operator

Result = dict[str, Any]

LABELS = {
    "speed-up": "speed-up over the fastest alternative",
    "distance": "time relative to the roofline",
}
DIRECTIONS = {  # with the other directions in the same panel
    "forward": ("out=", "in place"),
    "forward+backward": (),
}


def value(kind: str, result: Result) -> float:
    if kind == "speed-up":
        return min(result["ratio_of_medians"].values())
    return result["torch_foo_to_roofline_of_medians"]


def size(result: Result) -> int:
    """Return which of its operator's sizes a result has."""
    sizes = OPERATORS[result["operator"]].sizes
    return [f"{r}x{c}" for r, c in sizes].index(result["size"])


def label(index: int, results: list[Result]) -> str:
    """Name the usual size, and in brackets those with other rows."""
    rows = str(Operator.sizes[index][0])
    others = {
        r["operator"]: r["size"]
        for r in results
        if size(r) == index and r["size"].split("x")[0] != rows
    }
    unusual = ", ".join(f"{name}: {of}" for name, of in others.items())
    text = "1 row" if rows == "1" else f"{rows} rows"
    return f"{text} ({unusual})" if unusual else text


def write(file: str, environment: Result, results: list[Result]) -> None:
    present = {r["direction"] for r in results}
    directions = [d for d in DIRECTIONS if d in present]
    dtypes = list(dict.fromkeys(r["dtype"] for r in results))
    names = list(dict.fromkeys(r["operator"] for r in results))
    columns = [(kind, dtype) for kind in LABELS for dtype in dtypes]
    figure, axes = plt.subplots(
        len(directions),
        len(columns),
        squeeze=False,
        sharey=True,
        figsize=(16, 1.8 + len(directions) * (0.8 + 0.55 * len(names))),
        layout="constrained",
    )
    for row, direction in zip(axes, directions, strict=True):
        for axis, (kind, dtype) in zip(row, columns, strict=True):
            chosen = [r for r in results if r["dtype"] == dtype]
            draw(axis, kind, direction, names, chosen)
            axis.set_title(f"{direction}, {dtype}", fontsize=10)
            axis.set_xlabel(LABELS[kind])
            every = [value(kind, r) for r in results]
            axis.set_xlim(min(0.9, *every) / 1.05, max(2.0, *every) * 1.1)
    figure.suptitle(
        "torch_foo {torch_foo}, torch {torch}: {cpu} ({simd_target}), "
        "{threads} thread(s), {date}\nwarm buffers; medians; "
        "allocator: {allocator}; diamonds: out= or in place".format_map(
            environment
        )
    )
    figure.legend(
        handles=[
            plt.Rectangle((0, 0), 1, 1, color=f"C{i}", label=label(i, results))
            for i in sorted({size(r) for r in results})
        ],
        loc="outside lower center",
        ncols=len(Operator.sizes),
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)


def draw(
    axis: Axes,
    kind: str,
    direction: str,
    names: list[str],
    results: list[Result],
) -> None:
    for result in results:
        i, x = size(result), value(kind, result)
        y = names.index(result["operator"]) + (i - 1.5) * 0.2
        if result["direction"] == direction:
            axis.barh(y, x - 1, 0.2, left=1, color=f"C{i}")
        elif result["direction"] in DIRECTIONS[direction]:
            axis.plot(x, y, "D", color="black", markersize=3)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(LogLocator(base=2))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", linewidth=0.4)
