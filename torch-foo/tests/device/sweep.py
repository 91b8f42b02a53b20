"""Compares the device foo with the CPU on PyTorch's own samples of operators.

The samples are those of OpInfo, with which PyTorch tests its operators. One of
them becomes calls of several forms: the function, its gradient and forward-mode
derivative, in place, with out=, and wrong input that has to be refused. Calls
run in worker processes, so that a crash is counted, too. ``--write`` puts the
table into docs/device-backend.md.
"""

import argparse
import gc
import multiprocessing
import os
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Memory that nobody has written holds neither zeros nor old results.
os.environ.setdefault("MALLOC_PERTURB_", "129")
# Threads that wait leave the processor to the other worker.
os.environ["OMP_WAIT_POLICY"] = "passive"

import numpy as np
import torch
import torch_foo.device
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import tree_leaves, tree_map

WORKERS = 2
SECONDS = 120  # that a call may take
LEAST = 0.99  # of the calls that the CPU can run have to pass
DTYPES = ["float32", "int64", "complex64"]
WRONG_INPUT = "wrong input"  # whatever the CPU refuses
FORMS = ["function", "gradient", "forward", "in place", "out=", WRONG_INPUT]
OUTCOMES = ["passed", "refused", "wrong", "crashed"]
PAGE = Path(__file__).parents[2] / "docs" / "device-backend.md"

#: Operators whose results are memory that nobody has written.
UNINITIALIZED = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}

#: Operators that compute in another way where the device is not the CPU.
OTHER = {"nn.functional.scaled_dot_product_attention"}


# --- calls --------------------------------------------------------------------


@dataclass
class Call:
    op: OpInfo
    dtype: torch.dtype
    form: str
    number: int  # of the sample
    sample: SampleInput

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{name(self.op)}, {dtype}, {self.form} {self.number}"


def name(op: OpInfo) -> str:
    return ".".join(filter(None, [op.name, op.variant_test_name]))


def calls(op: OpInfo, dtypes: list[str], most: int) -> Iterator[Call]:
    for dtype in (getattr(torch, name) for name in dtypes):
        if dtype not in op.dtypes:
            continue
        computed = dtype.is_floating_point or dtype.is_complex
        differentiable = op.supports_autograd and computed
        seed()
        samples = op.sample_inputs("cpu", dtype, requires_grad=differentiable)
        for i, sample in enumerate(samples):
            if i == most:
                break
            for form in FORMS[:5]:
                if form == "gradient" and not differentiable:
                    continue
                if form == "forward" and not (
                    differentiable and op.supports_forward_ad
                ):
                    continue
                if form == "in place" and (
                    op.inplace_variant is None or sample.broadcasts_input
                ):
                    continue
                if form == "out=" and not op.supports_out:
                    continue
                yield Call(op, dtype, form, i, sample)
    if op.error_inputs_func is not None and "float32" in dtypes:
        seed()
        for i, e in enumerate(op.error_inputs("cpu")):
            if i == most:
                break
            yield Call(op, torch.float32, WRONG_INPUT, i, e.sample_input)


def seed() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def mover(device: str) -> Callable[[Any], Any]:
    """Return a function that copies a sample's arguments to a device.

    Strides, what is between elements, and shared memory are kept.
    """
    memory: dict[int, Tensor] = {}

    def tensor(t: Tensor) -> Tensor:
        if t.layout is not torch.strided or t.is_quantized:
            return t.detach().to(device, copy=True)
        storage = t.untyped_storage()
        if storage.data_ptr() not in memory:
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            memory[storage.data_ptr()] = flat.to(device, copy=True)
        copy = memory[storage.data_ptr()].view(-1)
        itemsize = t.element_size()
        copy = copy[: copy.numel() // itemsize * itemsize].view(t.dtype)
        copy = copy.as_strided(t.shape, t.stride(), t.storage_offset())
        copy = copy.conj() if t.is_conj() else copy
        copy = copy._neg_view() if t.is_neg() else copy
        return copy.detach().requires_grad_(t.requires_grad)

    def move(x: Any) -> Any:
        if isinstance(x, Tensor):
            return tensor(x)
        if isinstance(x, torch.device) or x == "cpu":
            return torch.device(device)
        return x

    return move


def run(call: Call, device: str) -> tuple[Any, Any]:
    """Return the results, and what the arguments are afterwards."""
    s = call.sample
    given = tree_map(mover(device), (s.input, s.args, s.kwargs))
    first, args, kwargs = given
    if call.op.is_factory_function:
        kwargs.setdefault("device", torch.device(device))
    seed()
    op = call.op.op
    if call.form == "gradient":
        result = s.output_process_fn_grad(op(first, *args, **kwargs))
        roots = [r for r in tensors(result) if r.requires_grad]
        if not roots:
            return (), ()
        leaves = [x for x in tensors(given) if x.requires_grad]
        result = torch.autograd.grad(
            roots, leaves, list(map(torch.ones_like, roots)), allow_unused=True
        )
    elif call.form == "forward":
        with forward_ad.dual_level():
            first, args, kwargs = tree_map(dual, given)
            result = tree_map(tangent, op(first, *args, **kwargs))
    else:
        with torch.no_grad():
            if call.form == "in place":
                result = call.op.inplace_variant(first, *args, **kwargs)
            elif call.form == "out=":
                plain = op(first, *args, **kwargs)
                out = tree_map(torch.zeros_like, plain)
                seed()
                op(first, *args, **kwargs, out=out)
                resized = tree_map(lambda t: t.new_empty(0), plain)
                seed()
                op(first, *args, **kwargs, out=resized)
                result = (out, resized)
            else:
                result = op(first, *args, **kwargs)
    return result, given


def dual(x: Any) -> Any:
    if isinstance(x, Tensor) and x.requires_grad:
        plain = x.detach()
        return forward_ad.make_dual(plain, plain / 2 + 1)
    return x


def tangent(x: Any) -> Any:
    return forward_ad.unpack_dual(x).tangent if isinstance(x, Tensor) else x


def tensors(x: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]


def difference(call: Call, foo: Any, cpu: Any) -> str:
    """Say how the device's results differ from the CPU's."""
    values = call.op.name not in UNINITIALIZED
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if call.op.name in OTHER else {}
    a, b = tree_leaves(foo), tree_leaves(cpu)
    if len(a) != len(b):
        return f"{len(a)} results, expected {len(b)}"
    for x, y in zip(a, b, strict=True):
        if not isinstance(y, Tensor):
            if not isinstance(y, torch.device) and x != y and x == x:
                return f"is {x}, expected {y}"
            continue
        if x.device.type != "foo":
            return f"is on {x.device}"
        if x.layout != y.layout:
            return f"has layout {x.layout}, expected {y.layout}"
        if x.requires_grad != y.requires_grad:
            return f"requires_grad is {x.requires_grad}"
        # Derivatives have whatever strides their formulas give.
        derived = call.form in ("gradient", "forward")
        strided = y.layout is torch.strided and not derived
        if strided and x.stride() != y.stride():
            return f"has strides {x.stride()}, expected {y.stride()}"
        x = x.cpu() if values else torch.zeros_like(y)
        y = y if values else torch.zeros_like(y)
        try:
            torch.testing.assert_close(x, y, equal_nan=True, **tolerance)
        except AssertionError as error:
            return str(error)
    return ""


def attempt(call: Call) -> tuple[str, str, str]:
    """Make a call on both devices; return its form, the outcome, the reason."""
    refusal = None
    try:
        want, want_arguments = run(call, "cpu")
    except Exception as error:
        refusal = error
    form = call.form if refusal is None else WRONG_INPUT
    try:
        got, got_arguments = run(call, "foo")
    except Exception as error:
        if refusal is None:
            return form, "refused", f"{type(error).__name__}: {error}"
        if isinstance(error, type(refusal)):
            return form, "passed", ""
        return form, "wrong", f"{error!r}, expected {refusal!r}"
    if refusal is not None:
        return form, "wrong", f"accepted, expected {refusal!r}"
    if reason := difference(call, got, want):
        return form, "wrong", f"result {reason}"
    if reason := difference(call, got_arguments, want_arguments):
        return form, "wrong", f"argument {reason}"
    return form, "passed", ""


# --- workers ------------------------------------------------------------------


def prepare() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch_foo.device.enable()
    gc.freeze()  # or every gc.collect() looks at all of op_db


def work(
    ops: list[int],
    skipped: int,
    dtypes: list[str],
    most: int,
    connection: Connection,
) -> None:
    """Make the calls of operators; of the first, without some."""
    prepare()
    for index in ops:
        call = None
        for i, call in enumerate(calls(op_db[index], dtypes, most)):
            if i < skipped:
                continue
            connection.send(((index, i), str(call)))
            connection.send(attempt(call))
        skipped, call = 0, None
        gc.collect()
        end = time.monotonic() + 5
        # Autograd's thread for foo lets go of tensors after the call.
        while (left := torch.foo.memory_allocated()) and time.monotonic() < end:
            time.sleep(0.01)
        if left:
            wrong = FORMS[0], "wrong", f"{left} bytes were not freed"
            connection.send(wrong)


Counts = Counter[tuple[str, str, str]]  # of dtype, form and outcome


def sweep(ops: list[int], dtypes: list[str], most: int) -> Counts:
    """Make the calls, print what is not as on the CPU, and return counts."""
    context = multiprocessing.get_context("spawn")
    counts: Counts = Counter()
    running: dict[Connection, list[Any]] = {}
    began = told = time.monotonic()

    def start(ops: list[int], skipped: int) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=work,
            args=(ops, skipped, dtypes, most, theirs),
            daemon=True,
        )
        process.start()
        theirs.close()
        running[ours] = [process, ops, None, time.monotonic()]

    def count(call: Any, form: str, outcome: str, reason: str) -> None:
        _, text = call
        counts[text.split(", ")[1], form, outcome] += 1
        if reason:
            print(f"{outcome}: {text}: {reason}", flush=True)

    for i in range(min(WORKERS, len(ops))):
        start(ops[i::WORKERS], 0)
    while running:
        ready = wait(list(running), 1)
        for connection, worker in list(running.items()):
            process, todo, call, since = worker
            if connection not in ready:
                if time.monotonic() - since > SECONDS:
                    process.kill()
                continue
            try:
                message = connection.recv()
                if len(message) == 3:
                    count(call, *message)
                else:
                    worker[2:] = message, time.monotonic()
            except EOFError:
                del running[connection]
                process.join()
                if process.exitcode:
                    reason = f"with status {process.exitcode}"
                    count(call, FORMS[0], "crashed", reason)
                    index, i = call[0]
                    start(todo[todo.index(index) :], i + 1)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{sum(counts.values())} calls, {told - began:.0f} s")
    return counts


def table(counts: Counts, dtypes: list[str]) -> str:
    lines = [
        f"| dtype | form | {' | '.join(OUTCOMES)} |",
        "|---|---|" + "--:|" * len(OUTCOMES),
    ]
    for dtype in dtypes:
        for form in FORMS:
            row = [counts[dtype, form, outcome] for outcome in OUTCOMES]
            if any(row):
                cells = [dtype, form, *row]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a pattern of names")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--samples", type=int, default=-1, help="per operator")
    parser.add_argument("--write", action="store_true", help="the page's table")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write is for the table of all operators")
    ops = [i for i, o in enumerate(op_db) if re.search(options.only, name(o))]
    print(f"{len(ops)} operators")
    dtypes = options.dtypes.split(",")
    counts = sweep(ops, dtypes, options.samples)
    text = table(counts, dtypes)
    print(text)
    if options.write:
        before, _, rest = PAGE.read_text().partition("<!-- sweep -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        page = f"{before}<!-- sweep -->\n{text}\n{end}{after}"
        PAGE.write_text(page)
    total = Counter(outcome for *_, outcome in counts.elements())
    passed = total["passed"] / total.total()
    print(f"passed: {passed:.2%}, expected at least {LEAST:.0%}")
    sys.exit(total["wrong"] + total["crashed"] > 0 or passed < LEAST)


if __name__ == "__main__":
    main()
