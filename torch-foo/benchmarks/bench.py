"""Time torch_foo against eager PyTorch, its built-ins and torch.compile.

The benchmark runs every operator forward, and forward and backward, at three or
four sizes in float32 and bfloat16. It calls the alternatives in turn, in random
order, so that other load on the machine hits all of them alike. It reports the
median and the minimum, which is more reliable on a busy machine.

Buffers are warm. A fresh result costs page faults, often more than the
arithmetic, unless the allocator keeps freed memory, as with --warm-allocator.
Lines with `out=` or in place allocate nothing.

torch.compile compiles once for each operator, dtype and direction, with a
dynamic number of rows, and once more for a single row.

With --device cuda the times are those of the kernels: CUDA events enclose many
calls, which are in the queue before the GPU begins. Clocks are warm. Arguments
and results change from call to call, so that the L2 cache does not hold them,
unless they are small. In place of a probe there is the rate of a copy of 1 GiB.
Most of the time goes to torch.compile, unless --no-compile leaves it out.
"""

import argparse
import importlib.util
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import cases
import report
import torch
import torch_foo
from cases import GOALS, OPERATORS, Call, Case
from measure import CudaTimer, measure
from roofline import copy_rate, probes

Make = Callable[[], Case]

QUICK = (16, 512)  # rows
COPY = 1 << 30  # bytes that are copied to measure the rate


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message} (--help tells more)\n")


def parse() -> argparse.Namespace:
    parser = Parser(
        prog="bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"operators: {', '.join(OPERATORS)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only 16 and 512 rows: on a CPU, 3 minutes instead of up to 30",
    )
    parser.add_argument(
        "--calls",
        action="store_true",
        help="measure only the overhead of a call: 4 elements, by grad mode",
    )
    parser.add_argument(
        "--weights",
        action="store_true",
        help="measure only products with weights of 4 and 8 bits: 1 to 16 rows",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="measure only torch_foo, with 1 thread and with --threads",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="default: cpu",
    )
    parser.add_argument(
        "--goals",
        action="store_true",
        help="measure only what has a goal, on a GPU: bfloat16, large sizes",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="leave out torch.compile, which takes seconds for each operator",
    )
    parser.add_argument(
        "--only",
        metavar="REGEX",
        default="",
        help="only operators whose name matches, such as ^mul$ or rms_norm",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time for each measurement, of at least 5 rounds "
        "(default: 2, with --quick 0.3; on a GPU 0.15, with --goals 0.5, and "
        "as long before it to warm up)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        default=1,
        help="torch.set_num_threads(N) (default: 1; on a busy machine, several "
        "threads mostly wait for each other)",
    )
    parser.add_argument(
        "--warm-allocator",
        action="store_true",
        help="make glibc keep freed memory, as most other allocators do "
        "(restarts with MALLOC_* variables set)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write all results to FILE, after each case",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="also draw speed-ups and distances to the roofline (.png, .svg, "
        ".pdf; needs matplotlib)",
    )
    options = parser.parse_args()
    check(parser, options)
    return options


def check(parser: Parser, options: argparse.Namespace) -> None:
    only = [k for k in ("calls", "scaling", "weights") if getattr(options, k)]
    if options.device == "cuda" and only:
        parser.error("--calls, --scaling and --weights need --device cpu")
    if len(only) > 1:
        parser.error(f"--{only[0]} and --{only[1]}: one of them")
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.scaling and options.threads == 1:
        parser.error("--scaling needs --threads of at least 2")
    if options.warm_allocator and platform.libc_ver()[0] != "glibc":
        parser.error("--warm-allocator: the C library is not glibc")
    check_device(parser, options)
    if options.seconds is None and options.device == "cuda":
        options.seconds = 0.5 if options.goals else 0.15
    elif options.seconds is None:
        options.seconds = 0.3 if options.quick else 2.0
    if not options.seconds > 0:
        parser.error("--seconds must be more than 0")
    try:
        pattern = re.compile(options.only)
    except re.error as error:
        parser.error(f"--only: not a regular expression: {error}")
    if not any(pattern.search(name) for name in OPERATORS):
        parser.error(
            f"--only: '{options.only}' is in none of {', '.join(OPERATORS)}"
        )
    for option in ("json", "plot"):
        file = getattr(options, option)
        if file is None:
            continue
        if Path(file).is_dir() or not Path(file).parent.is_dir():
            parser.error(f"--{option}: cannot write to {file}")
    if options.plot is None:
        return
    if (
        options.calls
        or options.scaling
        or options.weights
        or (options.device == "cuda")
    ):
        parser.error(
            "--plot: there is none of --calls, --scaling, --weights and "
            "--device cuda"
        )
    if Path(options.plot).suffix not in (".png", ".svg", ".pdf"):
        parser.error("--plot: the file must end in .png, .svg or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed")


def check_device(parser: Parser, options: argparse.Namespace) -> None:
    if options.device == "cpu":
        if options.goals:
            parser.error("--goals needs --device cuda")
        return
    if not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} finds no GPU")
    if not torch_foo.build_info().cuda:
        parser.error("--device cuda: this foo_core has no CUDA kernels")


def keep_freed_memory() -> None:
    """Restart with an allocator that keeps freed memory, unless it does."""
    wanted = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(256 << 20),
    }
    if not wanted.items() <= os.environ.items():
        command = [sys.executable, *sys.argv]
        os.execve(sys.executable, command, os.environ | wanted)


class Progress:
    """Show the progress of a run on standard error."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = time.monotonic()

    def show(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        text = f"[{self.done}/{self.total} {minutes}:{seconds:02}] {text}"
        if sys.stderr.isatty():
            print(f"\r{text[:79]:<79}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if sys.stderr.isatty():
            print(f"\r{'':79}\r", end="", file=sys.stderr, flush=True)


def groups(options: argparse.Namespace) -> Iterator[tuple]:
    """Yield operators, dtypes, directions, sizes, and a goal or None."""
    if options.goals:
        for goal in GOALS:
            if re.search(options.only, goal.operator):
                dtype = torch.bfloat16
                yield goal.operator, dtype, goal.backward, [goal.size], goal
        return
    for name, operator in OPERATORS.items():
        if not re.search(options.only, name):
            continue
        sizes = [
            s for s in operator.sizes if not options.quick or s[0] in QUICK
        ]
        for dtype in cases.DTYPES:
            for backward in (False, True)[: 1 + cases.has_backward(operator)]:
                yield name, dtype, backward, sizes, None


class Results(list):
    """The results of a run, written to a file as they come."""

    def __init__(
        self, options: argparse.Namespace, facts: dict[str, Any]
    ) -> None:
        self.options, self.facts = options, facts
        self.failures = 0

    def add(self, results: list[report.Result]) -> None:
        for result in results:
            print(report.line(result), flush=True)
        self += results
        if self.options.json:
            report.write(
                self.options.json, self.facts, vars(self.options), self
            )


def run_calls(options: argparse.Namespace, results: Results) -> None:
    make = cases.weight_cases if options.weights else cases.call_cases
    for case in make():
        with case.mode():
            times, skipped = measure(case.calls, options.seconds)
        results.add(report.results_of(case, times, skipped))


def run_operators(options: argparse.Namespace, results: Results) -> None:
    for name in cases.PUBLIC:
        if name not in OPERATORS and re.search(options.only, name):
            print(f"{name} is left out: its class has no benchmark()")
    chosen = list(groups(options))
    progress = Progress(sum(len(sizes) for *_, sizes, _ in chosen))
    run = run_scaling if options.scaling else run_case
    if options.device == "cuda":
        run = partial(run_cuda, results.facts)
    shown = ""
    for name, dtype, backward, sizes, goal in chosen:
        if name != shown:
            print(name, flush=True)
            shown = name
        compiled = None
        if not (options.scaling or options.no_compile):
            torch.compiler.reset()
            compiled = torch.compile(
                cases.eager(OPERATORS[name]), fullgraph=True, dynamic=False
            )
        build = partial(
            cases.build,
            name,
            dtype=dtype,
            backward=backward,
            compiled=compiled,
            dynamic=len(sizes) > 1,
            device=options.device,
        )
        for rows, columns in sizes:
            size = f"{rows}x{columns} {dtype}"
            progress.show(f"{name} {size}{' fwd+bwd' * backward}")
            try:
                lines = run(partial(build, rows, columns), options)
            except Exception:  # a machine with a GPU is too dear to stop here
                progress.clear()
                print(f"{size} failed", flush=True)
                traceback.print_exc()
                results.failures += 1
                continue
            finally:
                progress.done += 1
            progress.clear()
            notes = [
                f"without {call}: {why[:60]}"
                for call, why in lines[0]["skipped"].items()
            ]
            if goal and goal.text:  # in place, where there is such a form
                notes.append(report.compare(lines[-1], goal))
            results.add(lines)
            for note in notes:
                print(f"{'':>19} {note}", flush=True)


def calls_of(case: Case) -> dict[str, Call]:
    """Return the calls of a case and the probes."""
    roof = probes(case.read, case.written)
    if not case.in_place:
        del roof["in place"]
    return case.calls | {report.PROBE + n: call for n, call in roof.items()}


def run_case(make: Make, options: argparse.Namespace) -> list[report.Result]:
    case = make()
    with case.mode():
        times, skipped = measure(calls_of(case), options.seconds)
    return report.results_of(case, times, skipped)


def run_cuda(
    facts: dict[str, Any], make: Make, options: argparse.Namespace
) -> list[report.Result]:
    case = cases.rotated(make, int(facts["l2_mib"] * 2**20))
    # A fresh result costs nothing here: `out=` would only repeat the times.
    calls = {
        name: call
        for name, call in case.calls.items()
        if case.in_place or not name.endswith(" out")
    }
    with case.mode():
        times, skipped = measure(
            calls, options.seconds, timer=CudaTimer(options.seconds)
        )
    rate = facts["copy_gb_per_s"] * 1e9
    times[report.PROBE + "copy"] = [(case.read + case.written) / rate]
    return report.results_of(case, times, skipped)


def run_scaling(make: Make, options: argparse.Namespace) -> list[report.Result]:
    case = make()
    calls = {
        f"{threads} {name}": call
        for name, call in calls_of(case).items()
        if name.startswith(("torch_foo", report.PROBE))
        for threads in (1, options.threads)
    }
    with case.mode():
        times, _ = measure(
            calls,
            options.seconds,
            lambda name: torch.set_num_threads(int(name.split()[0])),
        )
    torch.set_num_threads(options.threads)
    return report.scaling_of(case, times, options.threads)


def main() -> None:
    options = parse()
    if options.warm_allocator:
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kind = "scaling" if options.scaling else ""
    if options.calls or options.weights:
        kind = "calls"
    start = time.monotonic()
    facts = report.environment()
    if options.device == "cuda":
        kind = "cuda"
        rate = copy_rate(COPY, 0.5, CudaTimer(warm_up=0.5))
        facts |= report.gpu() | {"copy_gb_per_s": round(rate / 1e9, 1)}
    print(report.heading(kind, facts), flush=True)
    results = Results(options, facts)
    is_list = options.calls or options.weights
    (run_calls if is_list else run_operators)(options, results)
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    if options.plot:
        import plot  # needs matplotlib

        plot.write(options.plot, facts, results)
    if results.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
