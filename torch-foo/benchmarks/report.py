"""Print measurements as a table and write them as JSON."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import torch
import torch_foo
from cases import Case, Goal
from measure import HOST

Times = dict[str, list[float]]
Result = dict[str, Any]
PROBE = "probe: "
OTHERS = ["eager", "built-in", "compile"]
STATISTICS = [("median", "medians", statistics.median), ("min", "minima", min)]


def results_of(case: Case, times: Times, skipped: dict[str, str]) -> list:
    """Return a result that allocates, then one with `out=` or in place."""
    plain = {
        n: t
        for n, t in times.items()
        if not n.endswith(" out") and n != PROBE + "in place"
    }
    results = [result_of(case, plain, skipped)]
    if "torch_foo out" in times:
        out = {n.removesuffix(" out"): t for n, t in times.items()}
        # Of equal names the last one wins, and those with `out` come last.
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
    host = {n: t for n, t in times.items() if n.startswith(HOST)}
    if host:
        result["host_us"] = {
            n.removeprefix(HOST): statistics.median(t) * 1e6
            for n, t in host.items()
            if t
        }
    for kind, key, statistic in STATISTICS:
        value = {
            n: statistic(t) * 1e6 for n, t in times.items() if n not in host
        }
        ours = value["torch_foo"]
        result[f"{kind}_us"] = value
        others = [n for n in value if n != "torch_foo"]
        roof = [value[n] for n in others if n.startswith(PROBE)]
        result[f"ratio_of_{key}"] = {
            n: value[n] / ours for n in others if not n.startswith(PROBE)
        }
        if roof:
            result[f"torch_foo_to_roofline_of_{key}"] = ours / min(roof)
    return result


def scaling_of(case: Case, times: Times, threads: int) -> list[Result]:
    """Return the speed-ups of a case with several threads over one."""
    results = []
    for call, how in [
        ("torch_foo", case.about["direction"]),
        ("torch_foo out", "in place" if case.in_place else "out="),
    ]:
        if f"1 {call}" not in times:
            continue
        result: Result = {
            "case": case.name,
            **case.about,
            "direction": how,
            "threads": threads,
            "skipped": {},
        }
        for kind, key, statistic in STATISTICS:
            value = {n: statistic(t) * 1e6 for n, t in times.items()}
            result[f"{kind}_us"] = {
                n: value[f"{n} {call}"] for n in (1, threads)
            }
            result[f"speed_up_of_{key}"] = (
                value[f"1 {call}"] / value[f"{threads} {call}"]
            )
            # The fastest probe with each number of threads.
            probe = {
                n: min(
                    v
                    for name, v in value.items()
                    if name.startswith(f"{n} {PROBE}")
                )
                for n in (1, threads)
            }
            result[f"probes_speed_up_of_{key}"] = probe[1] / probe[threads]
        results.append(result)
    return results


def compare(result: Result, goal: Goal) -> str:
    """Add to a result whether it reaches its goal, and return that as text."""
    if goal.share:
        is_met = result["torch_foo_to_roofline_of_medians"] * goal.share <= 1
    else:
        is_met = result["median_us"]["torch_foo"] <= goal.microseconds
    result |= {"goal": goal.text, "goal_is_met": is_met}
    text = f"goal: {goal.text}, {'met' if is_met else 'MISSED'}"
    if goal.published:
        result["published"] = goal.published
        text += f" (published: {goal.published})"
    return text


def gpu() -> dict[str, Any]:
    """Return what is known of the current GPU."""
    properties = torch.cuda.get_device_properties("cuda")
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv"]
    try:
        driver = subprocess.check_output(command, text=True).split()[-1]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "multiprocessors": properties.multi_processor_count,
        "driver": driver,
        "torch_cuda": torch.version.cuda,
    }


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
    """Return the allocator: what is preloaded, or else the C library's."""
    loaded = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    tuned = [n for n in os.environ if n.startswith(("MALLOC_", "GLIBC_TUN"))]
    name = " ".join(Path(f).name for f in loaded) or "the C library's"
    return " ".join([name, *(f"{n}={os.environ[n]}" for n in sorted(tuned))])


def heading(kind: str, facts: dict[str, Any]) -> str:
    """Return the heading of a run of a kind, or else of operators."""
    lines = [f"{key}: {value}" for key, value in facts.items()]
    if kind == "scaling":
        text = (
            "Warm buffers. Microseconds with 1 thread, median and minimum, and "
            f"the speed-up with {facts['threads']} threads: ratio of medians "
            "(of minima). probe: the speed-up of a probe that moves the same "
            "bytes."
        )
        columns = f"{'':<28}{'1 thread us':>19}{'speed-up':>16}{'probe':>16}"
        return "\n".join([*lines, "", *textwrap.wrap(text, 80), "", columns])
    names = "".join(f"{n:>16}" for n in OTHERS)
    if kind == "cuda":
        text = (
            "torch_foo: microseconds on the GPU, median and minimum, with a "
            "full queue. Others: the speed-up of torch_foo over them, ratio of "
            "medians (of minima); above 1, torch_foo is faster. copy rate: of "
            "the median (the minimum), the share of the rate of a copy of "
            f"{facts['copy_gb_per_s']} GB/s, bytes read and written. host us: "
            "the time to enqueue the call, which counts where it is the longer "
            "one."
        )
        names += f"{'copy rate':>16}{'host us':>9}"
        columns = f"{'':<28}{'torch_foo us':>19}{names}"
        return "\n".join([*lines, "", *textwrap.wrap(text, 80), "", columns])
    text = (
        "Warm buffers. torch_foo: microseconds, median and minimum. Others: "
        "the speed-up of torch_foo over them, ratio of medians (of minima); "
        "above 1, torch_foo is faster."
    )
    if kind == "calls":
        return "\n".join([*lines, "", *textwrap.wrap(text, 80)])
    text += (
        " roofline: torch_foo's time relative to a probe that moves the same "
        "bytes. In lines with `out=` or in place, the built-in works that way "
        "too if it can. The others allocate, at a cost that depends on the "
        f"allocator, here {facts['allocator']}."
    )
    columns = f"{'':<28}{'torch_foo us':>19}{names}{'roofline':>16}"
    return "\n".join([*lines, "", *textwrap.wrap(text, 80), "", columns])


def line(result: Result) -> str:
    name = (
        f"{result['size']:>10} {result['dtype']:<8} "
        + {"forward": "", "forward+backward": "fwd+bwd"}.get(
            result["direction"], result["direction"]
        )
        if "size" in result
        else result["case"]
    )
    one = "torch_foo" if "ratio_of_medians" in result else 1
    best, median = (result[k][one] for k in ("min_us", "median_us"))
    text = f"{name:<28}{rounded(median):>10}{rounded(best):>9}"
    if one == 1:
        return text + "".join(
            f"{pair(*(result[key + k] for k in ('medians', 'minima'))):>16}"
            for key in ("speed_up_of_", "probes_speed_up_of_")
        )
    medians, minima = result["ratio_of_medians"], result["ratio_of_minima"]
    if "size" not in result:
        return text + "".join(
            f"   {n} {pair(ratio, minima[n])}" for n, ratio in medians.items()
        )
    for other in OTHERS:
        known = other in medians
        cell = pair(medians[other], minima[other]) if known else "-"
        text += f"{cell:>16}"
    roof = "torch_foo_to_roofline_of_"
    distance = result[roof + "medians"], result[roof + "minima"]
    if "host_us" in result:
        share = "{:.0%} ({:.0%})".format(*(1 / d for d in distance))
        host = result["host_us"].get("torch_foo")
        return text + f"{share:>16}{rounded(host) if host else '-':>9}"
    return text + f"{pair(*distance):>16}"


def pair(of_medians: float, of_minima: float) -> str:
    return f"{of_medians:.2f} ({of_minima:.2f})"


def rounded(microseconds: float) -> str:
    return f"{microseconds:.{2 if microseconds < 1000 else 0}f}"


def write(
    file: str, facts: dict[str, Any], options: dict, results: list[Result]
) -> None:
    """Write a line for each result; replace the file in one move."""
    rows = ",\n".join(json.dumps(significant(r)) for r in results)
    head = [
        f'"{key}": {json.dumps(value, indent=1)}'
        for key, value in [("environment", facts), ("options", options)]
    ]
    text = ",\n".join([*head, f'"results": [\n{rows}\n]'])
    temporary = Path(f"{file}.part")
    temporary.write_text(f"{{{text}}}\n")
    temporary.replace(file)


def significant(value: Any) -> Any:
    """Round numbers to four digits, more than a measurement has."""
    if isinstance(value, dict):
        return {k: significant(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
