"""DTensor, data parallelism and sharded data parallelism, with two processes.

One pair of processes runs all of it: `python test_distributed.py RANK FOLDER`.
"""

import copy
import itertools
import os
import re
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch_foo
from torch import Tensor
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves
from torch_foo.operators import OPERATORS

WORLD = 2

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this torch has no gloo",
)


def test_two_processes(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), tmp_path],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=900)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()


# --- what each process runs -------------------------------------------------


def run(rank: int, folder: Path) -> int:
    """Run the cases in this process; return how many failed."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
    )
    failed = 0
    for case in CASES:
        torch.manual_seed(0)
        start = time.process_time()
        try:
            case()
            print(f"{case.__name__}: {time.process_time() - start:.1f} s")
        except Exception:
            failed += 1
            print(f"{case.__name__}, rank {rank}:\n{traceback.format_exc()}")
    dist.destroy_process_group()
    return failed


def mesh(*shape: int):
    return dist.device_mesh.init_device_mesh("cpu", shape or (WORLD,))


def distributed(value, placements, on):
    """The tensor with these placements, the rest of an operator's arguments."""
    from torch.distributed.tensor import (
        DTensor,
        Replicate,
        distribute_tensor,
    )

    if not isinstance(value, Tensor):
        return value
    whole = [Replicate() if p.is_partial() else p for p in placements]
    tensor = distribute_tensor(
        value.detach().clone(), on, whole, src_data_rank=None
    ).to_local()
    for dim, p in enumerate(placements):
        if p.is_partial() and on.size(dim) > 1:
            tensor = tensor * (0.25 if on.get_local_rank(dim) else 0.75)
    return DTensor.from_local(
        tensor, on, placements, shape=value.shape, stride=value.stride()
    ).requires_grad_(value.requires_grad)


def whole(results):
    return [
        r.full_tensor() if hasattr(r, "full_tensor") else r
        for r in tree_leaves(results)
        if isinstance(r, Tensor)
    ]


def all_samples():
    for operator in OPERATORS.values():
        for sample in operator.samples():
            if not sample.is_large:
                yield operator, sample


def all_placements(args):
    """Ways to share tensors: all alike, and some at random."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    def choices(arg):
        shards = [Shard(d) for d in range(arg.dim()) if arg.shape[d]]
        floating = arg.is_floating_point()
        return [Replicate(), *shards, *([Partial()] if floating else [])]

    tensors = [a for a in args if isinstance(a, Tensor)]
    found = []
    for wanted in (Replicate(), *map(Shard, range(4)), Partial()):
        found.append(
            tuple(
                wanted if wanted in choices(t) else Replicate() for t in tensors
            )
        )
    for i in range(2):
        mixed = enumerate(map(choices, tensors))
        found.append(tuple(c[(7 * i + 3 * j) % len(c)] for j, c in mixed))
    return list(dict.fromkeys(found))


def shared(args, placements, on):
    left = iter(placements)
    return [
        distributed(a, [next(left)], on) if isinstance(a, Tensor) else a
        for a in args
    ]


@contextmanager
def describing(operator, sample, placements):
    try:
        yield
    except Exception:
        print(operator.__name__, sample.name, placements)
        raise


def operators():
    on = mesh()
    for operator, sample in all_samples():
        packet = getattr(torch.ops.torch_foo, operator.__name__)
        args = sample.args(torch.float64)
        expected = packet(*args, **sample.named)
        for placements in all_placements(args):
            with describing(operator, sample, placements):
                got = packet(*shared(args, placements, on), **sample.named)
                assert_close(whole(got), whole(expected))


def out():
    """Whatever way `out` is split, it gets the result and stays as it is."""
    from torch.distributed.tensor import Partial

    on = mesh()
    for operator, sample in all_samples():
        if "out" not in operator.variants:
            continue
        function = getattr(torch_foo, operator.__name__)
        args = sample.args(torch.float64)
        expected = function(*args, **sample.named)
        zeros = torch.zeros_like(expected)
        ways = itertools.cycle(
            way
            for way in all_placements([expected])
            if Partial() not in way  # see `refusals`
        )
        for placements in all_placements(args):
            given = shared(args, placements, on)
            out_placements = next(ways)
            out = distributed(zeros, out_placements, on)
            with describing(operator, sample, placements):
                got = function(*given, **sample.named, out=out)
                assert got is out
                assert out.placements == out_placements
                assert_close(out.full_tensor(), expected)


def in_place():
    from torch.distributed.tensor import Partial

    on = mesh()
    for operator, sample in all_samples():
        if not operator.inplace:
            continue
        function = getattr(torch_foo, f"{operator.__name__}_")
        args = sample.args(torch.float64)
        expected = [a.clone() if isinstance(a, Tensor) else a for a in args]
        function(*expected, **sample.named)
        for placements in all_placements(args):
            if Partial() in placements:
                continue
            given = shared(args, placements, on)
            with describing(operator, sample, placements):
                function(*given, **sample.named)
                got = [a for a in given if isinstance(a, Tensor)]
                assert [g.placements for g in got] == [(p,) for p in placements]
                assert_close(whole(given), whole(expected))


def refusals():
    from torch.distributed.tensor import Partial, Replicate, Shard

    on = mesh()
    x = distributed(torch.ones(4, 3), [Shard(0)], on)
    out = distributed(torch.ones(2, 4, 3), [Replicate()], on)
    sums = distributed(torch.ones(4, 3), [Partial()], on)
    plain = torch.ones(4, 3)
    for function, args, named, message in [
        ("add", (x, x), {"out": out}, "add: out is float32"),
        ("add", (x, x.detach().requires_grad_()), {"out": x}, "does not suppo"),
        ("add", (x, out[..., :2]), {}, "torch_foo.add cannot take"),
        ("add", (x, plain), {}, "got mixed torch.Tensor and DTensor"),
        ("add", (x, x), {"out": plain}, "add: out is a Tensor, expected a DT"),
        ("add", (plain, plain), {"out": x}, "add: out is a DTensor, expected"),
        ("silu_mul", (x, x), {"out": sums}, "out has placements .* no partial"),
        ("add_rms_norm_", (x, sums), {}, "residual has placements .* partial"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            getattr(torch_foo, function)(*args, **named)
    for tensor in (x, out, sums):
        whole_tensor = tensor.full_tensor()
        assert_close(whole_tensor, torch.ones_like(whole_tensor))
    torch_foo.add(sums, sums, out=sums)  # which is linear
    assert_close(sums.full_tensor(), 2 * plain)


def gradients():
    on = mesh()
    for operator, sample in all_samples():
        if operator.backward is None:
            continue
        function = getattr(torch_foo, operator.__name__)

        def both(args, function=function, named=sample.named):
            results = tree_leaves(function(*args, **named))
            loss = sum((i + r).square().sum() for i, r in enumerate(results))
            leaves = [
                a for a in args if isinstance(a, Tensor) and a.requires_grad
            ]
            return whole([loss, *torch.autograd.grad(loss, leaves)])

        args = sample.args(torch.float64, requires_grad=True)
        expected = both(args)
        for placements in all_placements(args):
            with describing(operator, sample, placements):
                try:
                    got = both(shared(args, placements, on))
                except RuntimeError as error:
                    # Neither can torch.matmul of these shards.
                    unsupported = {
                        "linear": "Cannot flatten unevenly sharded tensor",
                        "attention": "Sharding propagation failed for aten",
                    }.get(operator.__name__.removesuffix("_quantized"))
                    if unsupported and re.search(unsupported, str(error)):
                        continue
                    raise
                assert_close(got, expected)


def nothing_is_sent():
    """The usual ways to share work need no communication, nor do gradients."""
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.debug import CommDebugMode

    on = mesh()
    rows, last, middle, sums, all_ = (
        Shard(0),
        Shard(2),
        Shard(1),
        Partial(),
        Replicate(),
    )
    x, w = torch.randn(4, 6, 8), torch.randn(8)
    table = torch.randn(6, 4)
    heads, target = torch.randn(4, 6, 2, 8), torch.arange(24).view(4, 6) % 8
    cache, positions = heads.bfloat16(), torch.arange(6)
    for name, args, placements, result, named in [
        ("add", (x, x), (last, last), last, {}),
        ("add", (x, w), (rows, all_), rows, {}),
        ("add", (x, w), (last, rows), last, {}),
        ("add", (x, x), (sums, sums), sums, {}),
        ("mul", (x, x), (sums, all_), sums, {}),
        ("muladd", (x, w, 2.0), (middle, all_), middle, {}),
        ("silu_mul", (x, x), (last, last), last, {}),
        ("silu_mul", (x,), (rows,), rows, {}),
        ("gelu_mul", (x, x), (middle, middle), middle, {}),
        ("rms_norm", (x, w), (middle, all_), middle, {}),
        ("add_rms_norm", (x, x, w), (rows, rows, all_), rows, {}),
        ("quantize_int8_rowwise", (x,), (middle,), middle, {}),
        ("linear", (x, x[0], x[0, 0, :6]), (all_, rows, rows), last, {}),
        ("linear", (x, x[0]), (last, middle), sums, {}),
        ("linear", (x, x[0], x[0, 0, :6]), (last, middle, sums), sums, {}),
        ("linear", (x, x[0]), (middle, all_), middle, {}),
        ("attention", (heads, heads, heads), (rows, rows, rows), rows, {}),
        ("attention", (heads, heads, heads), (middle,) * 3, middle, {}),
        ("attention", (heads, cache, cache), (middle,) * 3, middle, {}),
        ("attention", (heads, heads, heads), (last, all_, all_), last, {}),
        (
            "attention",
            (heads, heads, heads),
            (all_, all_, Shard(3)),
            Shard(3),
            {},
        ),
        (
            "attention",
            (heads, heads[:, :2], heads[:, :2], heads[0, 0, :, :2]),
            (rows, rows, rows, all_),
            rows,
            {},
        ),
        ("rope", (heads, table, table), (last, all_, all_), last, {}),
        ("rope", (heads, table, table), (middle, rows, rows), middle, {}),
        (
            "rope",
            (heads, table, table, positions),
            (middle, all_, all_, rows),
            middle,
            {},
        ),
        (
            "cross_entropy",
            (x, target),
            (rows, rows),
            sums,
            {"reduction": "sum"},
        ),
        (
            "cross_entropy",
            (x, target),
            (middle, middle),
            middle,
            {"reduction": "none"},
        ),
    ]:
        operator = OPERATORS[name]
        given = shared(args, placements, on)
        if operator.backward is not None:
            given[0].requires_grad_()
        with CommDebugMode() as sent:
            got = tree_leaves(getattr(torch_foo, name)(*given, **named))
            assert {r.placements for r in got} == {(result,)}, name
            if operator.backward is not None:
                torch.autograd.grad(got[0], given[0], torch.ones_like(got[0]))
        assert sent.get_total_counts() == 0, (name, sent.get_comm_counts())


def rules_look_at_all_arguments():
    """DTensor remembers what a rule said, unless an argument differs."""
    from torch.distributed.tensor import Replicate, Shard

    on = mesh()
    x, target = torch.randn(4, 8), torch.arange(4)
    given = shared((x, target), (Shard(0), Shard(0)), on)
    for reduction in ("sum", "none", "mean", "sum"):
        got = torch_foo.cross_entropy(*given, reduction=reduction)
        want = torch_foo.cross_entropy(x, target, reduction=reduction)
        assert got.shape == want.shape
        assert_close(got.full_tensor(), want)
    row = torch.randn(8)
    operator = torch.ops.torch_foo._add_rms_norm_backward.default
    for other, weight, *wants in [
        (row, None, False, False),
        (row, None, True, True),
        (None, row, True, True),
        (None, row, False, True),
        (row, None, True, False),
    ]:
        args = row, other, row, weight, 1e-6, *wants
        whole_row = [Replicate()] * 3
        assert_close(
            whole(operator(*shared(args, whole_row, on))),
            whole(operator(*args)),
        )


def meshes_of_two_dimensions():
    from torch.distributed.tensor import Partial, Replicate, Shard

    on = mesh(1, WORLD)
    x, w = torch.randn(4, 6, 8, dtype=torch.float64), torch.randn(8).double()
    for placements in itertools.product(
        (Shard(0), Shard(1), Shard(2), Replicate(), Partial()), repeat=2
    ):
        given = [
            distributed(x, placements, on),
            distributed(w, [Replicate(), Replicate()], on),
        ]
        expected = torch_foo.rms_norm(x, w)
        assert_close(torch_foo.rms_norm(*given).full_tensor(), expected)
        out = torch.zeros_like(given[0])
        torch_foo.rms_norm(*given, out=out)
        assert_close(out.full_tensor(), expected)


def compiled():
    from torch.distributed.tensor import Replicate, Shard

    on = mesh()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, dtype=torch.float64, requires_grad=True)
    function = torch.compile(
        lambda x, w: torch_foo.silu_mul(torch_foo.rms_norm(x, w)),
        backend="aot_eager",
        fullgraph=True,
    )
    given = [distributed(x, [Shard(0)], on), distributed(w, [Replicate()], on)]
    y = function(*given)
    assert y.placements == (Shard(0),)
    got = torch.autograd.grad(y.sum(), given)
    y = torch_foo.silu_mul(torch_foo.rms_norm(x, w))
    assert_close(whole(got), [*torch.autograd.grad(y.sum(), [x, w])])


def sequence_parallel():
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        SequenceParallel,
        parallelize_module,
    )

    on = mesh()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    module = torch_foo.nn.RMSNorm(8, dtype=torch.float64)
    module.weight.data.normal_()
    module(x).square().sum().backward()
    expected = module.weight.grad
    parallel = parallelize_module(copy.deepcopy(module), on, SequenceParallel())
    parallel.zero_grad()
    y = parallel(distributed(x, [Shard(1)], on))
    assert y.placements == (Shard(1),)
    y.square().sum().backward()
    assert parallel.weight.placements == (Replicate(),)
    assert_close(y.full_tensor(), module(x))
    assert_close(parallel.weight.grad.full_tensor(), expected)


class Model(torch.nn.Module):
    """A layer of a language model, of the modules of torch_foo.nn."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.norm = torch_foo.nn.RMSNorm(8)
        self.rotary = torch_foo.nn.RotaryEmbedding(4, max_position=6)
        self.gate_up = torch.nn.Linear(8, 32, bias=False)
        self.act = torch_foo.nn.SwiGLU()
        self.down = torch.nn.Linear(16, 11, bias=False)
        self.loss = torch_foo.nn.CrossEntropyLoss()

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        x = self.rotary(x.view(*ids.shape, 2, 4)).flatten(2)
        logits = self.down(self.act(self.gate_up(x)))
        return self.loss(logits, ids.roll(-1, 1))


def data_parallel():
    """Gradients are those of one process with the whole batch."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    model = Model()
    ids = torch.arange(4 * 6).view(4, 6) * 7 % 11
    model(ids).backward()
    expected = [p.grad for p in model.parameters()]
    mine = ids.chunk(WORLD)[dist.get_rank()]

    replica = copy.deepcopy(model)
    replica.zero_grad()
    parallel = DistributedDataParallel(replica)
    parallel(mine).backward()
    assert_close([p.grad for p in replica.parameters()], expected)

    sharded = copy.deepcopy(model)
    sharded.zero_grad()
    for module in (sharded.norm, sharded.gate_up, sharded):
        fully_shard(module, mesh=mesh())
    sharded(mine).backward()
    assert_close(whole([p.grad for p in sharded.parameters()]), expected)


CASES = [
    operators,
    out,
    in_place,
    refusals,
    gradients,
    nothing_is_sent,
    rules_look_at_all_arguments,
    meshes_of_two_dimensions,
    compiled,
    sequence_parallel,
    data_parallel,
]

if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), Path(sys.argv[2])))
