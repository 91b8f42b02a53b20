"""What is compared: each operator with other ways to the same result.

The eager composition is as models write it; a built-in is one function of
torch, or two, where that differs; torch.compile gets the eager composition.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
import torch_foo
from torch import Tensor

Call = Callable[[], object]
Function = Callable[..., object]
Tensors = tuple[Tensor, ...]

EPS = 1e-6
HEADS, HEAD_DIM = 32, 128
DTYPES = [torch.float32, torch.bfloat16]


@dataclass
class Case:
    """Calls that have the same result; "torch_foo" is one of them.

    A name that ends in "out" is of a call without memory of its own, by
    `out=` or in place.
    """

    name: str
    calls: dict[str, Call]
    mode: Callable[[], AbstractContextManager[object]] = nullcontext
    about: dict[str, str] = field(default_factory=dict)
    read: int = 0  # bytes
    written: int = 0
    in_place: bool = False


@dataclass(frozen=True)
class Operator:
    """Functions of the same arguments, which `make` makes."""

    make: Callable[[int, int, torch.dtype], Tensors]
    ours: Function
    eager: Function
    built_in: Function | None = None
    # These also take `out`; in place, they write to their arguments.
    ours_out: Function | None = None
    built_in_out: Function | None = None
    in_place: bool = False
    # So many arguments are read by torch_foo; others have more for eager.
    inputs: int | None = None
    # So many arguments have a gradient, and the backward pass has to read and
    # to write at least as much as these tensors, the results' gradients
    # included.
    gradients: int = 0
    backward: Callable[..., tuple[Tensors, Tensors]] | None = None
    # (rows, columns)
    sizes: tuple[tuple[int, int], ...] = tuple(
        (rows, 4096) for rows in (1, 16, 512, 4096)
    )


def eager_rms_norm(x: Tensor, w: Tensor) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)
    return w * y.to(x.dtype)


def eager_add_rms_norm(x: Tensor, residual: Tensor, w: Tensor) -> Tensors:
    residual = residual + x
    return eager_rms_norm(residual, w), residual


def built_in_add_rms_norm(x: Tensor, residual: Tensor, w: Tensor) -> Tensors:
    residual = residual + x
    return F.rms_norm(residual, w.shape, w, EPS), residual


def built_in_add_rms_norm_(x: Tensor, residual: Tensor, w: Tensor) -> Tensors:
    residual.add_(x)
    return F.rms_norm(residual, w.shape, w, EPS), residual


def our_add_rms_norm_(x: Tensor, residual: Tensor, w: Tensor) -> Tensors:
    torch_foo.add_rms_norm_(x, residual, w, EPS)
    return x, residual


def eager_rope(
    x: Tensor, cos: Tensor, sin: Tensor, cos2: Tensor, sin2: Tensor
) -> Tensor:
    """As in transformers, whose tables hold each angle twice."""
    half = x.shape[-1] // 2
    rotated = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos2.unsqueeze(-2) + rotated * sin2.unsqueeze(-2)


def our_rope(x: Tensor, cos: Tensor, sin: Tensor, *_: Tensor) -> Tensor:
    return torch_foo.rope(x, cos, sin)


def our_rope_(x: Tensor, cos: Tensor, sin: Tensor, *_: Tensor) -> Tensor:
    torch_foo.rope_(x, cos, sin)
    return x


def eager_quantize(x: Tensor) -> Tensors:
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    return (x / scale).round().to(torch.int8), scale


def two_matrices(rows: int, columns: int, dtype: torch.dtype) -> Tensors:
    return tuple(torch.randn(rows, columns).to(dtype) for _ in range(2))


def one_matrix(rows: int, columns: int, dtype: torch.dtype) -> Tensors:
    return (torch.randn(rows, columns).to(dtype),)


def matrix_and_weight(rows: int, columns: int, dtype: torch.dtype) -> Tensors:
    return (
        torch.randn(rows, columns).to(dtype),
        torch.randn(columns).to(dtype),
    )


def residual_and_weight(rows: int, columns: int, dtype: torch.dtype) -> Tensors:
    (x,) = one_matrix(rows, columns, dtype)
    return x, *matrix_and_weight(rows, columns, dtype)


def layer(rows: int, columns: int, dtype: torch.dtype) -> Tensors:
    """Without its bias, as models mostly are."""
    return (
        torch.randn(rows, columns).to(dtype),
        torch.randn(4096, columns).to(dtype),
    )


def tokens(rows: int, columns: int, dtype: torch.dtype) -> Tensors:
    half = HEAD_DIM // 2
    frequency = 10000 ** (-torch.arange(half) / half)
    angle = torch.outer(torch.arange(rows), frequency)
    x = torch.randn(1, rows, columns // HEAD_DIM, HEAD_DIM)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return x.to(dtype), cos, sin, cos.repeat(1, 2), sin.repeat(1, 2)


def logits_and_target(rows: int, columns: int, dtype: torch.dtype) -> Tensors:
    (logits,) = one_matrix(rows, columns, dtype)
    return logits, torch.randint(columns, (rows,))


OPERATORS = {
    "add": Operator(
        two_matrices,
        ours=torch_foo.add,
        eager=torch.add,
        ours_out=torch_foo.add,
        built_in_out=torch.add,
        gradients=2,
        backward=lambda a, b: ((), ()),  # the gradient is the result's
    ),
    "mul": Operator(
        two_matrices,
        ours=torch_foo.mul,
        eager=torch.mul,
        ours_out=torch_foo.mul,
        built_in_out=torch.mul,
        gradients=2,
        backward=lambda a, b: ((a, a, b), (a, b)),
    ),
    "muladd": Operator(
        two_matrices,
        ours=lambda a, b: torch_foo.muladd(a, b, 0.5),
        eager=lambda a, b: a * b + 0.5,
        built_in=lambda a, b: torch.addcmul(a.new_tensor(0.5), a, b),
        ours_out=lambda a, b, out: torch_foo.muladd(a, b, 0.5, out=out),
        built_in_out=lambda a, b, out: torch.addcmul(
            a.new_tensor(0.5), a, b, out=out
        ),
        gradients=2,
        backward=lambda a, b: ((a, a, b), (a, b)),
    ),
    "rms_norm": Operator(
        matrix_and_weight,
        ours=lambda x, w: torch_foo.rms_norm(x, w, EPS),
        eager=eager_rms_norm,
        built_in=lambda x, w: F.rms_norm(x, w.shape, w, EPS),
        ours_out=lambda x, w, out: torch_foo.rms_norm(x, w, EPS, out=out),
        gradients=2,
        backward=lambda x, w: ((x, x, w), (x, w)),
    ),
    "add_rms_norm": Operator(
        residual_and_weight,
        ours=lambda x, r, w: torch_foo.add_rms_norm(x, r, w, EPS),
        eager=eager_add_rms_norm,
        built_in=built_in_add_rms_norm,
        ours_out=our_add_rms_norm_,
        built_in_out=built_in_add_rms_norm_,
        in_place=True,
        gradients=3,
        backward=lambda x, r, w: ((x, x, x, w), (x, w)),
    ),
    # Forward only: its gradients are products of torch's.
    "linear": Operator(
        layer,
        ours=torch_foo.linear,
        eager=F.linear,
        ours_out=torch_foo.linear,
        built_in_out=lambda x, w, out: torch.mm(x, w.T, out=out),
        sizes=((1, 4096), (4, 4096), (16, 4096)),
    ),
    "silu_mul": Operator(
        two_matrices,
        ours=torch_foo.silu_mul,
        eager=lambda gate, up: F.silu(gate) * up,
        ours_out=torch_foo.silu_mul,
        built_in_out=lambda gate, up, out: torch.mul(
            torch.ops.aten.silu.out(gate, out=out), up, out=out
        ),
        gradients=2,
        backward=lambda gate, up: ((gate, gate, up), (gate, up)),
    ),
    "gelu_mul": Operator(
        two_matrices,
        ours=torch_foo.gelu_mul,
        eager=lambda gate, up: F.gelu(gate) * up,
        ours_out=torch_foo.gelu_mul,
        built_in_out=lambda gate, up, out: torch.mul(
            torch.ops.aten.gelu.out(gate, out=out), up, out=out
        ),
        gradients=2,
        backward=lambda gate, up: ((gate, gate, up), (gate, up)),
    ),
    "rope": Operator(
        tokens,
        ours=our_rope,
        eager=eager_rope,
        ours_out=our_rope_,
        in_place=True,
        inputs=3,
        gradients=1,
        backward=lambda x, cos, sin, *_: ((x, cos, sin), (x,)),
    ),
    "cross_entropy": Operator(
        logits_and_target,
        ours=torch_foo.cross_entropy,
        eager=lambda x, target: F.cross_entropy(x.float(), target),
        built_in=F.cross_entropy,
        gradients=1,
        backward=lambda x, target: ((x, target), (x,)),
        sizes=((1, 32000), (16, 32000), (512, 32000), (128, 128256)),
    ),
    "quantize_int8_rowwise": Operator(
        one_matrix, ours=torch_foo.quantize_int8_rowwise, eager=eager_quantize
    ),
}


def build(
    name: str,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    backward: bool,
    compiled: Function | None = None,
) -> Case:
    """One operator at one size, forward or forward and backward."""
    op = OPERATORS[name]
    args = op.make(rows, columns, dtype)
    functions = {
        "torch_foo": op.ours,
        "eager": op.eager,
        "built-in": op.built_in,
        "compile": compiled,
    }
    functions = {n: f for n, f in functions.items() if f is not None}
    if compiled is not None:
        # One compilation for all numbers of rows, but for a single row.
        for a in args if rows > 1 else ():
            if rows in a.shape and a.shape != (columns,):  # no weight
                torch._dynamo.mark_dynamic(a, a.shape.index(rows))
    results = flat(op.ours(*args))
    read = sum(a.nbytes for a in args[: op.inputs])
    written = sum(r.nbytes for r in results)
    if backward:
        reads, writes = op.backward(*args)
        read += sum(t.nbytes for t in reads)
        written += sum(t.nbytes for t in writes)
        leaves = [a.requires_grad_() for a in args[: op.gradients]]
        grads = [torch.randn_like(r) for r in results]
        calls = {
            n: forward_backward(f, args, leaves, grads)
            for n, f in functions.items()
        }
    else:
        calls = {n: bind(f, args) for n, f in functions.items()}
        for n, f in [("torch_foo", op.ours_out), ("built-in", op.built_in_out)]:
            if f is not None:
                calls[f"{n} out"] = bind_out(f, args, results, op.in_place)
    about = {
        "operator": name,
        "size": f"{rows}x{columns}",
        "dtype": str(dtype).removeprefix("torch."),
        "direction": "forward+backward" if backward else "forward",
    }
    return Case(
        " ".join(about.values()),
        calls,
        nullcontext if backward else torch.no_grad,
        about,
        read,
        written,
        op.in_place and not backward,
    )


def flat(result: object) -> Tensors:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def bind(function: Function, args: Tensors) -> Call:
    return lambda: function(*args)


def bind_out(
    function: Function, args: Tensors, results: Tensors, in_place: bool
) -> Call:
    if in_place:
        return bind(function, tuple(a.clone() for a in args))
    out = torch.empty_like(results[0])
    return lambda: function(*args, out=out)


def forward_backward(
    function: Function, args: Tensors, leaves: list[Tensor], grads: list[Tensor]
) -> Call:
    return lambda: torch.autograd.grad(flat(function(*args)), leaves, grads)


def call_cases() -> list[Case]:
    """The cost of a call: 4 elements, where the kernel takes no time."""
    cases = []
    for name, mode, requires_grad in [
        ("inference_mode", torch.inference_mode, False),
        ("no_grad", torch.no_grad, False),
        ("no_grad, parameters", torch.no_grad, True),
        ("grad mode", torch.enable_grad, False),
        ("requires_grad", torch.enable_grad, True),
    ]:
        a, b = (torch.randn(4, requires_grad=requires_grad) for _ in range(2))
        out = torch.empty(4)
        calls = {
            "torch_foo": lambda a=a, b=b: torch_foo.mul(a, b),
            "torch.mul": lambda a=a, b=b: torch.mul(a, b),
            "torch.ops": lambda a=a, b=b: torch.ops.torch_foo.mul(a, b),
        }
        cases.append(Case(f"mul, {name}", calls, mode))
        if mode is torch.enable_grad and requires_grad:
            continue
        calls = {
            "torch_foo": lambda a=a, b=b, o=out: torch_foo.mul(a, b, out=o),
            "torch.mul": lambda a=a, b=b, o=out: torch.mul(a, b, out=o),
        }
        cases.append(Case(f"mul out=, {name}", calls, mode))
        calls = {
            "torch_foo": lambda a=a, b=b: torch_foo.rms_norm(a, b),
            "torch.mul": lambda a=a, b=b: torch.mul(a, b),
            "F.rms_norm": lambda a=a, b=b: F.rms_norm(a, (4,), b, 1e-6),
        }
        cases.append(Case(f"rms_norm, {name}", calls, mode))
    return cases
