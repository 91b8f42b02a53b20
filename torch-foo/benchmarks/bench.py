"""Time torch_foo against eager PyTorch, its built-ins and torch.compile.

Competitors are called in turn, in random order, so that what else the machine
does hits all of them alike. Beside the median there is the minimum, which says
more on a machine that is not quiet. A ratio above 1 means that torch_foo is
faster. Fresh results cost page faults, often more than the arithmetic: `out=`
rows show how much; the allocator is named in the heading.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
import torch_foo
from torch import Tensor

Call = Callable[[], object]


@dataclass
class Case:
    """One line of the table: the same result by several competitors."""

    name: str
    calls: dict[str, Call]  # "torch_foo" is one of them
    mode: Callable[[], AbstractContextManager[object]] = nullcontext


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def forward_backward(function: Callable[..., Tensor], *args: Tensor) -> Call:
    leaves = [a.detach().clone().requires_grad_() for a in args]
    grad = torch.randn_like(leaves[0])
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def eager_rms_norm(x: Tensor, w: Tensor) -> Tensor:
    """As models write it."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
    return (y * w.float()).to(x.dtype)


def cases(
    shapes: list[tuple[int, int]], dtypes: list[torch.dtype]
) -> Iterator[Case]:
    for shape in shapes:
        for dtype in dtypes:
            size = f"{shape[0]}x{shape[1]} {str(dtype).removeprefix('torch.')}"
            yield from cases_of(shape, dtype, size)


def cases_of(
    shape: tuple[int, int], dtype: torch.dtype, size: str
) -> Iterator[Case]:
    # Functions are made anew for each case: torch.compile would otherwise
    # give up on a function that it has seen with too many dtypes and shapes.
    a, b = (torch.randn(shape).to(dtype) for _ in range(2))
    w, out = torch.randn(shape[1]).to(dtype), torch.empty_like(a)
    c = torch.tensor(0.5, dtype=dtype)

    binary = {
        "add": (torch_foo.add, torch.add),
        "mul": (torch_foo.mul, torch.mul),
    }
    for name, (ours, theirs) in binary.items():
        fast = compiled(lambda a, b, f=theirs: f(a, b))
        yield Case(
            f"{name} {size}",
            {
                "torch_foo": lambda f=ours: f(a, b),
                "eager": lambda f=theirs: f(a, b),
                "compile": lambda f=fast: f(a, b),
            },
        )
        yield Case(
            f"{name} out= {size}",
            {
                "torch_foo": lambda f=ours: f(a, b, out=out),
                "eager": lambda f=theirs: f(a, b, out=out),
            },
        )

    fast_muladd = compiled(lambda a, b: a * b + 0.5)
    yield Case(
        f"muladd {size}",
        {
            "torch_foo": lambda: torch_foo.muladd(a, b, 0.5),
            "eager": lambda: a * b + 0.5,
            "built-in": lambda: torch.addcmul(c, a, b),
            "compile": lambda: fast_muladd(a, b),
        },
    )
    yield Case(
        f"muladd out= {size}",
        {
            "torch_foo": lambda: torch_foo.muladd(a, b, 0.5, out=out),
            "built-in": lambda: torch.addcmul(c, a, b, out=out),
        },
    )

    fast_norm = compiled(lambda x, w: eager_rms_norm(x, w))
    yield Case(
        f"rms_norm {size}",
        {
            "torch_foo": lambda: torch_foo.rms_norm(a, w),
            "eager": lambda: eager_rms_norm(a, w),
            "built-in": lambda: F.rms_norm(a, (shape[1],), w, 1e-6),
            "compile": lambda: fast_norm(a, w),
        },
    )
    yield Case(
        f"rms_norm out= {size}",
        {
            "torch_foo": lambda: torch_foo.rms_norm(a, w, out=out),
            "built-in": lambda: F.rms_norm(a, (shape[1],), w, 1e-6),
        },
    )
    fast_training = compiled(lambda x, w: eager_rms_norm(x, w))
    yield Case(
        f"rms_norm fwd+bwd {size}",
        {
            "torch_foo": forward_backward(torch_foo.rms_norm, a, w),
            "eager": forward_backward(eager_rms_norm, a, w),
            "built-in": forward_backward(
                lambda x, w: F.rms_norm(x, (shape[1],), w, 1e-6), a, w
            ),
            "compile": forward_backward(fast_training, a, w),
        },
    )


def call_cases() -> Iterator[Case]:
    """The cost of a call: 4 elements, where the kernel takes no time."""
    for name, mode, requires_grad in [
        ("inference_mode", torch.inference_mode, False),
        ("no_grad", torch.no_grad, False),
        ("no_grad, parameters", torch.no_grad, True),
        ("grad mode", torch.enable_grad, False),
        ("requires_grad", torch.enable_grad, True),
    ]:
        a, b = torch.randn(2, 4)
        a.requires_grad_(requires_grad)
        b.requires_grad_(requires_grad)
        out = torch.empty(4)
        yield Case(
            f"mul, {name}",
            {
                "torch_foo": lambda a=a, b=b: torch_foo.mul(a, b),
                "torch.mul": lambda a=a, b=b: torch.mul(a, b),
                "torch.ops": lambda a=a, b=b: torch.ops.torch_foo.mul(a, b),
            },
            mode,
        )
        if mode is torch.enable_grad and requires_grad:
            continue
        yield Case(
            f"mul out=, {name}",
            {
                "torch_foo": lambda a=a, b=b, o=out: torch_foo.mul(a, b, out=o),
                "torch.mul": lambda a=a, b=b, o=out: torch.mul(a, b, out=o),
            },
            mode,
        )
        yield Case(
            f"rms_norm, {name}",
            {
                "torch_foo": lambda a=a, b=b: torch_foo.rms_norm(a, b),
                "torch.mul": lambda a=a, b=b: torch.mul(a, b),
                "F.rms_norm": lambda a=a, b=b: F.rms_norm(a, (4,), b, 1e-6),
            },
            mode,
        )


def measure(case: Case, seconds: float) -> dict[str, list[float]]:
    """Times of each competitor in seconds, interleaved in random order."""
    with case.mode():
        return measure_in_mode(case, seconds)


def measure_in_mode(case: Case, seconds: float) -> dict[str, list[float]]:
    repeats = {}
    for name, call in case.calls.items():
        call()  # compiles
        call()
        start = time.perf_counter()
        call()
        # So many calls that the clock's own cost does not show.
        once = max(time.perf_counter() - start, 1e-7)
        repeats[name] = max(1, int(5e-5 / once))
    times: dict[str, list[float]] = {name: [] for name in case.calls}
    names = list(case.calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["torch_foo"]) < 5:
        random.shuffle(names)
        for name in names:
            call, n = case.calls[name], repeats[name]
            start = time.perf_counter()
            for _ in range(n):
                call()
            times[name].append((time.perf_counter() - start) / n)
    return times


def summary(case: Case, times: dict[str, list[float]]) -> dict[str, object]:
    median = {n: statistics.median(t) for n, t in times.items()}
    best = {n: min(t) for n, t in times.items()}
    others = [n for n in times if n != "torch_foo"]
    return {
        "case": case.name,
        "samples": len(times["torch_foo"]),
        "median_us": {n: t * 1e6 for n, t in median.items()},
        "min_us": {n: t * 1e6 for n, t in best.items()},
        "ratio_of_medians": {
            n: median[n] / median["torch_foo"] for n in others
        },
        "ratio_of_minima": {n: best[n] / best["torch_foo"] for n in others},
    }


def line(result: dict) -> str:
    cells = [
        f"{n} {ratio:.2f} ({result['ratio_of_minima'][n]:.2f})"
        for n, ratio in result["ratio_of_medians"].items()
    ]
    median, best = (result[k]["torch_foo"] for k in ("median_us", "min_us"))
    return (
        f"{result['case']:<36}{median:>10.2f} {best:>10.2f}   "
        + "  ".join(f"{cell:<22}" for cell in cells)
    ).rstrip()


def environment() -> dict[str, object]:
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
        "allocator": os.environ.get("LD_PRELOAD") or "the C library's",
        "python": platform.python_version(),
        **torch_foo.build_info()._asdict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="two small shapes, under 2 minutes"
    )
    parser.add_argument(
        "--calls",
        action="store_true",
        help="only what a call costs: 4 elements, by grad mode",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time to spend on each line (default: 1, with --quick 0.2)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        default=1,
        help="torch.set_num_threads(N) (default: 1; with more, threads wait "
        "for each other, and on a busy machine that is all one measures)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="also write all results to FILE"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = options.seconds or (0.2 if options.quick else 1.0)
    shapes = [(1, 4096), (16, 4096), (512, 4096), (4096, 4096)]
    dtypes = [torch.float32, torch.bfloat16]

    started = time.perf_counter()
    about = environment()
    for key, value in about.items():
        print(f"{key}: {value}")
    print("\nRatios to torch_foo: of medians (of minima); above 1 it is faster")
    print(f"{'case':<36}{'median us':>10} {'min us':>10}")
    results = []
    kernels = cases(shapes[:2] if options.quick else shapes, dtypes)
    for case in call_cases() if options.calls else (*call_cases(), *kernels):
        print(f"{case.name} ...", end="\r", file=sys.stderr, flush=True)
        results.append(summary(case, measure(case, seconds)))
        print(line(results[-1]), flush=True)
    print(f"\n{len(results)} cases in {time.perf_counter() - started:.0f} s")
    if options.json:
        with open(options.json, "w") as file:
            everything = {"environment": about, "results": results}
            json.dump(everything, file, indent=1)
        print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
