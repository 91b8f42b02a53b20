"""What only CUDA has: streams, graphs, several devices, limits of a launch.

Without a GPU, conftest.py skips all of it and says why.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch_foo
from torch import Tensor
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.cuda

two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs"
)
DELAY = 400_000_000  # cycles of the GPU, about 0.2 s
MANY_ROWS = 70_000  # more than a grid's second and third dimension may have


def run_all(case, args) -> list[Tensor]:
    """All results of an operator and, if it has any, its gradients."""
    return _all(case.function, case, args)


def run_all_of_reference(case, args) -> list[Tensor]:
    return _all(case.reference, case, args)


def _all(function: Callable[..., Any], case, args) -> list[Tensor]:
    leaves = [args[i].detach() for i in case.leaves]
    if case.has_gradient:
        leaves = [leaf.requires_grad_() for leaf in leaves]
    results = tree_leaves(function(*case.with_leaves(args, leaves)))
    if not case.has_gradient:
        return results
    ones = [torch.ones_like(r) for r in results]
    gradients = torch.autograd.grad(results, leaves, ones)
    return [r.detach() for r in results] + list(gradients)


def assert_equal(got, expected) -> None:
    """Fail unless all results are the same, bit for bit (or both nan)."""
    assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def sized(make_case, case, rows: int, columns: int):
    """The operator with the benchmark's arguments of some size."""
    return make_case(case.op, case.operator.benchmark(rows, columns))


# --- streams ----------------------------------------------------------------


def test_current_stream(typical):
    """A result is that of what is queued before it, and nothing waits."""
    args = typical.args(device="cuda")
    expected = run_all(typical, args)
    given = [torch.full_like(args[i], 7.0) for i in typical.leaves]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run_all(typical, args)  # what is loaded or allocated once
        torch.cuda._sleep(DELAY)
        for tensor, i in zip(given, typical.leaves, strict=True):
            tensor.copy_(args[i])
        got = run_all(typical, typical.with_leaves(args, given))
        assert not stream.query(), "a call waited until the GPU was done"
    stream.synchronize()
    assert_equal(got, expected)


def test_two_streams(typical):
    """Neither disturbs the other."""
    args = [typical.args(device="cuda") for _ in range(2)]
    expected = [run_all(typical, a) for a in args]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in args]
    got = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(DELAY // 10)
    for _ in range(8):
        for a, stream in zip(args, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(run_all(typical, a))
    torch.cuda.synchronize()
    for i, results in enumerate(got):
        assert_equal(results, expected[i % 2])


@contextmanager
def no_synchronization() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_synchronization(case):
    """PyTorch knows of none; test_graph would fail at one of foo_core's."""
    args = case.args(device="cuda")
    with no_synchronization():
        run_all(case, args)


def test_synchronization_is_seen():
    with no_synchronization(), pytest.raises(RuntimeError, match="synchron"):
        torch.ones(1, device="cuda").item()


# --- graphs -----------------------------------------------------------------


def test_graph(typical):
    """Capture forbids synchronization and allocation outside of PyTorch."""
    args = typical.args(device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run_all(typical, args)  # what is loaded once
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_all(typical, args)
    for _ in range(3):
        fresh = typical.args(device="cuda")
        for i in typical.leaves:
            args[i].copy_(fresh[i])
        graph.replay()
        assert_equal(captured, run_all(typical, fresh))


# --- torch.compile ----------------------------------------------------------


def test_compile_reduce_overhead(all_typical):
    """Forward and backward of all operators in CUDA graphs."""
    calls = [(c, c.args(device="cuda")) for c in all_typical]

    def model(x: Tensor) -> Tensor:
        total = x.sin().sum()
        for case, args in calls:
            leaves = [args[i] * x.mean().cos() for i in case.leaves]
            for result in tree_leaves(case.of_leaves(args)(*leaves)):
                total = total + result.float().square().mean()
        return total

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # two calls warm up and record
        x = torch.randn(5, device="cuda", requires_grad=True)
        torch.compiler.cudagraph_mark_step_begin()
        got = compiled(x)
        (gradient,) = torch.autograd.grad(got, x)
        expected = model(x)
        (wanted,) = torch.autograd.grad(expected, x)
        assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert_close(gradient, wanted, rtol=1e-3, atol=1e-3)
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    torch._dynamo.reset()


# --- memory -----------------------------------------------------------------


def allocations(function: Callable[[], object]) -> tuple[int, int, Any]:
    """The number of blocks and bytes that PyTorch hands out, and the result."""
    before = torch.cuda.memory_stats()
    result = function()
    after = torch.cuda.memory_stats()
    blocks, size = (
        after[f"{key}.all.allocated"] - before[f"{key}.all.allocated"]
        for key in ("allocation", "requested_bytes")
    )
    return blocks, size, result


def bytes_of(results: list[Tensor]) -> int:
    return sum(r.numel() * r.element_size() for r in results)


def test_results_and_scratch_are_all_that_is_allocated(large, dtype):
    """Of what the schema returns; only a reduced loss has scratch memory."""
    args = large.args(dtype, "cuda")
    scratch = 0
    if large.op == "cross_entropy" and large.named.get("reduction") != "none":
        scratch = 8 * args[1].numel()
    blocks, size, results = allocations(
        lambda: tree_leaves(large.packet.default(*args, **large.named))
    )
    assert blocks == len(results) + bool(scratch)
    assert size == bytes_of(results) + scratch


def test_gradients_and_scratch_are_all_that_is_allocated(gradient_kernel):
    args = gradient_kernel.args(device="cuda")
    blocks, size, results = allocations(
        lambda: tree_leaves(gradient_kernel.packet.default(*args))
    )
    results = [r for r in results if r is not None]
    assert blocks in (len(results), len(results) + 1)
    assert size >= bytes_of(results)
    if blocks == len(results):
        assert size == bytes_of(results)
    else:
        name = gradient_kernel.op
        assert name.endswith("rms_norm_backward") or "cross_entropy" in name


def test_out_and_inplace_allocate_nothing(large, dtype):
    args = large.args(dtype, "cuda")
    calls = []
    if large.has_out:
        out = torch.empty_like(large.function(*args))
        calls.append(lambda: large.function(*args, out=out))
    if large.inplace:
        calls.append(lambda: large.inplace(*args))
    for call in calls:
        blocks, size, _ = allocations(call)
        assert (blocks, size) == (0, 0)


# --- results ----------------------------------------------------------------


def test_same_results_every_time(large, dtype):
    args = large.args(dtype, "cuda")
    expected = run_all(large, args)
    for _ in range(3):
        assert_equal(run_all(large, args), expected)


def shifted(tensor: Tensor) -> Tensor:
    """The same values at an address that only single elements divide."""
    memory = tensor.new_empty(tensor.numel() + 1)
    return memory[1:].view(tensor.shape).copy_(tensor)


def with_gaps(tensor: Tensor) -> Tensor:
    """The same values in rows with a gap of one element between them."""
    columns = tensor.shape[-1]
    memory = tensor.new_empty(*tensor.shape[:-1], columns + 1)
    return memory[..., :columns].copy_(tensor)


def assert_near(got, expected, limit: float) -> None:
    """Compare norms, where sums of many terms differ in single elements."""
    for g, e in zip(got, expected, strict=True):
        scale = e.double().norm()
        error = (g.double() - e.double()).norm()
        assert error <= limit * scale, f"{error} of {scale}"


@pytest.mark.parametrize("change", [shifted, with_gaps])
def test_unaligned(typical, make_case, change, dtype):
    """Each argument, and out=, where wide loads would be misaligned."""
    case = sized(make_case, typical, 3, 256)
    args = case.args(dtype, "cuda")
    expected = run_all(case, args)
    for i, a in enumerate(args):
        if isinstance(a, Tensor):
            given = [*args]
            given[i] = change(a)
            # The gradients of linear are products of torch's, which adds in
            # bfloat16 for some alignments.
            assert_near(
                run_all(case, given), expected, 2 * torch.finfo(dtype).eps
            )
    if case.has_out:
        out = change(torch.zeros_like(expected[0]))
        case.function(*args, out=out)
        assert_close(out, expected[0])
    if case.inplace:
        given = [change(a) if isinstance(a, Tensor) else a for a in args]
        case.inplace(*given)
        written = [given[i] for i in case.written]
        assert_close(written, expected[: len(written)])


@pytest.mark.parametrize("sizes", [(MANY_ROWS, 128), (3, 2**20 + 128)], ids=str)
def test_many_rows_and_long_rows(typical, make_case, sizes):
    if typical.op == "linear" and sizes[0] < MANY_ROWS:
        pytest.skip("linear's weight would have 16 GiB")
    case = sized(make_case, typical, *sizes)
    args = case.args(torch.float32, "cuda")
    got, expected = run_all(case, args), run_all_of_reference(case, args)
    assert_near(got, expected, 1e-5)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_many_heads_and_sequences(dim):
    shape = [1, 1, 1, 8]
    shape[dim] = MANY_ROWS
    x = torch.randn(shape, device="cuda")
    cos, sin = torch.randn(2, shape[1], 4, device="cuda")
    expected = torch_foo.operators.OPERATORS["rope"].reference(x, cos, sin)
    assert_close(torch_foo.rope(x, cos, sin), expected)


# --- indices, which the host does not see -----------------------------------

BAD = [-1, 5, 2**40, -(2**63)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("interleaved", [False, True])
def test_positions_out_of_range(bad, interleaved, dtype):
    """Their rows become NaN, and only they."""
    x = torch.randn(2, 3, 2, 10, device="cuda").to(dtype)
    cos, sin = torch.randn(2, 5, 4, device="cuda").to(dtype)
    positions = torch.tensor([[0, bad, 4], [1, 2, 3]], device="cuda")
    good = positions.where(positions != bad, 0)
    got, expected = (
        torch_foo.rope(x, cos, sin, p, interleaved=interleaved)
        for p in (positions, good)
    )
    torch_foo.rope_(x, cos, sin, positions, interleaved=interleaved)
    assert_equal(x, got)
    assert got[0, 1].isnan().all()
    got[0, 1] = expected[0, 1]
    assert_equal(got, expected)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_out_of_range(bad, smoothing, dtype):
    """The loss and the gradient of their rows become NaN."""
    logits = torch.randn(4, 5, device="cuda").to(dtype).requires_grad_()
    target = torch.tensor([0, bad, -100, 4], device="cuda")
    good = target.where(target != bad, 0)
    rows = [0, 2, 3]

    def results(target: Tensor, reduction: str) -> list[Tensor]:
        loss = torch_foo.cross_entropy(
            logits, target, reduction=reduction, label_smoothing=smoothing
        )
        return [loss.detach(), *torch.autograd.grad(loss.sum(), logits)]

    (loss, grad), expected = results(target, "none"), results(good, "none")
    assert loss[1].isnan()
    assert grad[1].isnan().all()
    assert_equal([loss[rows], grad[rows]], [e[rows] for e in expected])
    for reduction in ("mean", "sum"):
        (loss, grad), expected = (
            results(target, reduction),
            results(good, reduction),
        )
        assert loss.isnan()
        assert grad[1].isnan().all()
        assert_equal(grad[rows], expected[1][rows])


# --- devices ----------------------------------------------------------------


@two_gpus
def test_two_devices(typical):
    args = typical.args(device="cuda:0")
    for i, a in enumerate(args):
        if i > 0 and isinstance(a, Tensor):
            given = [*args]
            given[i] = a.to("cuda:1")
            message = r"is on cuda:1, but \w+ is on cuda:0"
            with pytest.raises(RuntimeError, match=message):
                typical.function(*given)


@two_gpus
def test_another_than_the_current_device(typical):
    args = typical.args(device="cuda:0")
    expected = run_all(typical, args)
    given = [a.to("cuda:1") if isinstance(a, Tensor) else a for a in args]
    with torch.cuda.device(0), torch.cuda.stream(torch.cuda.Stream(1)):
        torch.cuda.set_device(0)
        got = run_all(typical, given)
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(1)
    assert all(r.device.index == 1 for r in got)
    assert_equal([r.to("cuda:0") for r in got], expected)


# --- failures ---------------------------------------------------------------

BROKEN = """
import torch, torch_foo
x = torch.ones(4, device="cuda")
out = torch_foo.add(x, x)
try:
    x[torch.tensor([9], device="cuda")]
    torch.cuda.synchronize()
except RuntimeError:
    pass
torch_foo.add(x, x, out=out)
"""


def test_failed_launch():
    """After a kernel of PyTorch has failed, no other kernel can start."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], text=True, capture_output=True
    )
    assert "RuntimeError: torch_foo.add: CUDA failed with " in done.stderr
