"""Print the results of `bench.py --json` as tables in Markdown."""

import json
import sys
from typing import Any

from report import OTHERS

Result = dict[str, Any]
DIRECTIONS = {
    "forward": "forward, a new result",
    "out": "forward, `out=` or in place",
    "forward+backward": "forward and backward",
}
GOAL = 1.5


def direction(result: Result) -> str:
    name: str = result["direction"]
    return "out" if name in ("out=", "in place") else name


def best(result: Result) -> tuple[float, str]:
    """Return the speed-up over the fastest alternative, and its name."""
    ratios = result["ratio_of_medians"]
    return min((ratios[other], other) for other in OTHERS if other in ratios)


def sizes(results: list[Result]) -> list[str]:
    """Return the sizes by number of rows, then of columns."""
    return sorted(
        {r["size"] for r in results},
        key=lambda size: [int(n) for n in size.split("x")],
    )


def cells(results: list[Result], size: str) -> str:
    """Return the speed-up and the share of the probe's speed, by dtype."""
    chosen = [r for r in results if r["size"] == size]
    speed_up = " · ".join(f"{best(r)[0]:.1f}" for r in chosen)
    share = " · ".join(
        f"{100 / r['torch_foo_to_roofline_of_medians']:.0f}" for r in chosen
    )
    return f"{speed_up} ({share} %)"


def table(results: list[Result]) -> list[str]:
    """Return a table for each group of operators with the same sizes."""
    operators: dict[str, list[Result]] = {}
    for result in results:
        operators.setdefault(result["operator"], []).append(result)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, chosen in operators.items():
        groups.setdefault(tuple(sizes(chosen)), []).append(name)
    lines = []
    for columns, names in sorted(groups.items(), key=lambda g: -len(g[1])):
        lines += [
            f"| | {' | '.join(c.replace('x', ' x ') for c in columns)} |",
            f"|---|{'---|' * len(columns)}",
        ]
        for name in names:
            row = " | ".join(cells(operators[name], size) for size in columns)
            lines.append(f"| `{name}` | {row} |")
        lines.append("")
    return lines


def short(results: list[Result]) -> list[str]:
    lines = []
    for r in results:
        ratio, other = best(r)
        if ratio < GOAL:
            share = 100 / r["torch_foo_to_roofline_of_medians"]
            lines.append(
                f"- {r['case']}: {ratio:.2f} x {other}, {share:.0f} % of the "
                "probe's speed"
            )
    return lines


def goals(results: list[Result]) -> list[str]:
    """Return a line for each result that has a goal."""
    return [
        f"- {r['case']}: {r['median_us']['torch_foo']:.1f} us, "
        f"{100 / r['torch_foo_to_roofline_of_medians']:.0f} % of the rate of a "
        f"copy; goal: {r['goal']}, {'met' if r['goal_is_met'] else 'missed'}"
        for r in results
        if "goal" in r
    ]


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"{__doc__}\nusage: table.py FILE.json")
    try:
        with open(sys.argv[1]) as file:
            written = json.load(file)
    except (OSError, ValueError) as error:
        sys.exit(f"table: {error}")
    results = [
        r for r in written["results"] if "torch_foo_to_roofline_of_medians" in r
    ]
    if not results:
        sys.exit(f"table: {sys.argv[1]} holds no comparison of operators")
    dtypes = " · ".join(dict.fromkeys(r["dtype"] for r in results))
    gpu = written["environment"].get("gpu")
    roof = "rate of a copy" if gpu else "memory probe's speed"
    print(
        "Speed-up over the fastest of eager, built-in and torch.compile: "
        f"medians, {dtypes} (in brackets: share of the {roof})"
        f"{f', {gpu}' if gpu else ''}."
    )
    for name, text in DIRECTIONS.items():
        chosen = [r for r in results if direction(r) == name]
        if chosen:
            print(f"\n{text}:\n")
            print("\n".join(table(chosen)))
    if lines := goals(results):
        print("Goals:\n", *lines, "", sep="\n")
    print(f"Below {GOAL}:\n")
    print("\n".join(short(results)) or "none")


if __name__ == "__main__":
    main()
