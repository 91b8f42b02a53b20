"""What was measured, as a table and as JSON."""

import datetime
import json
import os
import platform
import statistics
import textwrap
from pathlib import Path
from typing import Any

import torch
import torch_foo
from cases import Case

Times = dict[str, list[float]]
Result = dict[str, Any]
PROBE = "probe: "
OTHERS = ["eager", "built-in", "compile"]


def results_of(case: Case, times: Times, skipped: dict[str, str]) -> list:
    """The case's lines: allocating, then by `out=` or in place."""
    plain = {
        n: t
        for n, t in times.items()
        if not n.endswith(" out") and n != PROBE + "in place"
    }
    results = [result_of(case, plain, skipped)]
    if "torch_foo out" in times:
        out = {n.removesuffix(" out"): t for n, t in times.items()}
        # Later names win: those with `out` stand after those without.
        results.append(result_of(case, out, skipped))
        how = "in place" if case.in_place else "out="
        results[-1]["direction"] = how
        results[-1]["case"] += f" {how}"
    return results


def result_of(case: Case, times: Times, skipped: dict[str, str]) -> Result:
    result: Result = {
        "case": case.name,
        **case.about,
        "samples": len(times["torch_foo"]),
        "skipped": skipped,
    }
    if case.read:
        result |= {"bytes_read": case.read, "bytes_written": case.written}
    for kind, statistic in [("median", statistics.median), ("min", min)]:
        value = {n: statistic(t) * 1e6 for n, t in times.items()}
        ours = value["torch_foo"]
        result[f"{kind}_us"] = value
        others = [n for n in value if n != "torch_foo"]
        roof = [value[n] for n in others if n.startswith(PROBE)]
        key = {"median": "medians", "min": "minima"}[kind]
        result[f"ratio_of_{key}"] = {
            n: value[n] / ours for n in others if not n.startswith(PROBE)
        }
        if roof:
            result[f"torch_foo_to_roofline_of_{key}"] = ours / min(roof)
    return result


def environment() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            models = [s for s in file if s.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    return {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **torch_foo.build_info()._asdict(),
    }


def allocator() -> str:
    """What is loaded before the C library, else that."""
    loaded = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    tuned = [n for n in os.environ if n.startswith(("MALLOC_", "GLIBC_TUN"))]
    name = " ".join(Path(f).name for f in loaded) or "the C library's"
    return " ".join([name, *(f"{n}={os.environ[n]}" for n in sorted(tuned))])


def heading(with_probes: bool) -> str:
    told = environment()
    lines = [f"{key}: {value}" for key, value in told.items()]
    text = (
        "Warm buffers. torch_foo: microseconds, median and minimum. Others: "
        "their time over torch_foo's, ratio of medians (of minima); above 1, "
        "torch_foo is faster."
    )
    if not with_probes:
        return "\n".join([*lines, "", *textwrap.wrap(text, 80)])
    text += (
        " roofline: torch_foo's time over that of a probe which moves the "
        "same bytes. Where a line has `out=` or is in place, so is the "
        "built-in if it can; the others allocate, and what that costs depends "
        f"on the allocator, here {told['allocator']}."
    )
    names = "".join(f"{n:>16}" for n in [*OTHERS, "roofline"])
    columns = f"{'':<28}{'torch_foo us':>19}{names}"
    return "\n".join([*lines, "", *textwrap.wrap(text, 80), "", columns])


def line(result: Result) -> str:
    medians, minima = result["ratio_of_medians"], result["ratio_of_minima"]
    name = (
        f"{result['size']:>10} {result['dtype']:<8} "
        + {"forward": "", "forward+backward": "fwd+bwd"}.get(
            result["direction"], result["direction"]
        )
        if "size" in result
        else result["case"]
    )
    best, median = (result[k]["torch_foo"] for k in ("min_us", "median_us"))
    text = f"{name:<28}{rounded(median):>10}{rounded(best):>9}"
    if "size" not in result:
        return text + "".join(
            f"   {n} {ratio:.2f} ({minima[n]:.2f})"
            for n, ratio in medians.items()
        )
    for other in OTHERS:
        cell = "-"
        if other in medians:
            cell = f"{medians[other]:.2f} ({minima[other]:.2f})"
        text += f"{cell:>16}"
    roof = "torch_foo_to_roofline_of_"
    distance = result[roof + "medians"], result[roof + "minima"]
    return text + f"{'{:.2f} ({:.2f})'.format(*distance):>16}"


def rounded(microseconds: float) -> str:
    return f"{microseconds:.{2 if microseconds < 1000 else 0}f}"


def write(file: str, options: dict, results: list[Result]) -> None:
    told = {"environment": environment(), "options": options}
    with open(file, "w") as stream:
        json.dump({**told, "results": results}, stream, indent=1)
