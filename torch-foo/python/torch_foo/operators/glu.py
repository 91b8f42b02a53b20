"""silu_mul and gelu_mul: gated linear units, and their gradients."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F

from torch_foo.operators.base import (
    Operator,
    Sample,
    batched,
    every_other,
    expect,
    expect_rows,
    expect_same_dtype,
    expect_shape,
    one_by_one,
    transposed,
    widen,
)
from torch_foo.operators.elementwise import promoted


def gate_and_up(gate, up):
    if up is not None:
        return gate, up
    first, second = gate.chunk(2, -1)
    return first, second


def expect_approximation(approximate):
    expect(approximate in ("none", "tanh"), "approximate 'none' or 'tanh'")


def gradients_fake(grad, gate, up, wants_gate, wants_up):
    out = Gated.fake(gate, up)
    expect_same_dtype(gate, up, grad)
    expect_shape(grad, *out.shape)
    return (
        gate.new_empty(gate.shape) if wants_gate else None,
        gate.new_empty(gate.shape) if wants_up and up is not None else None,
    )


def gradients(grad, gate, up, activation, derivative, wants_gate, wants_up):
    """Return the gradients of ``activation * up``."""
    g, (_, u) = widen(grad), gate_and_up(gate, up)
    grad_gate = (g * widen(u) * derivative).to(gate.dtype)
    grad_up = (g * activation).to(gate.dtype)
    if up is None:
        packed = torch.cat([grad_gate, grad_up], -1)
        return packed if wants_gate else None, None
    return grad_gate if wants_gate else None, grad_up if wants_up else None


def call_backward(operator, ctx, grad, *options):
    """Call the operator of the gradients, which takes tensors of one dtype."""
    gate, up = ctx.saved_tensors
    wants = ctx.needs_input_grad[:2]
    if up is None or up.dtype == gate.dtype:
        return operator.call(grad, gate, up, *options, *wants)
    grads = operator.call(grad, *promoted(gate, up), *options, *wants)
    return tuple(
        None if g is None else g.to(t.dtype)
        for g, t in zip(grads, (gate, up), strict=True)
    )


class Gated(Operator, family=True):
    """What gated linear units share, whatever their activation is."""

    #: Keyword arguments, in samples.
    options: ClassVar[tuple[dict[str, str], ...]] = ({},)
    variants = ("out",)
    tags = ("pointwise",)

    @staticmethod
    def dims(gate, up, *_):
        return "...N, -> ...N" if up is None else "..., ... -> ..."

    @staticmethod
    def fake(gate, up, *_):
        expect_same_dtype(gate)
        if up is not None:
            expect_same_dtype(up)
            expect_shape(up, *gate.shape)
            dtype = torch.promote_types(gate.dtype, up.dtype)
            return gate.new_empty(gate.shape, dtype=dtype)
        expect_rows(gate)
        even = gate.shape[-1] % 2 == 0
        expect(even, "{} of an even last dimension", gate)
        return gate.new_empty((*gate.shape[:-1], gate.shape[-1] // 2))

    @staticmethod
    def vmap(op, info, in_dims, gate, up, *rest):
        """Add a dimension to both."""
        dgate, dup, *_ = in_dims
        gate, up = batched(gate, dgate, info), batched(up, dup, info)
        return op(gate, up, *rest), 0

    @classmethod
    def samples(cls):
        for named in cls.options:
            suffix = "".join(f"-{value}" for value in named.values())

            def sample(name, *shapes, named=named, suffix=suffix, **options):
                return Sample(name + suffix, *shapes, **named, **options)

            yield sample("two", (3, 5), (3, 5))
            yield sample("packed", (3, 8))
            yield sample("row", (7,), (7,))
            yield sample("packed-row", (6,))
            yield sample("scalars", (), ())
            yield sample("3d", (2, 3, 4), (2, 3, 4))
            yield sample("empty", (0, 3), (0, 3))
            yield sample("packed-empty", (3, 0))
            yield sample("strided", (3, 5), (3, 5), layout=every_other)
            yield sample("transposed", (4, 3), (4, 3), layout=transposed)
            yield sample("packed-strided", (3, 4), layout=every_other)
            yield sample("packed-transposed", (2, 3, 4), layout=transposed)
            yield sample("other-gate", (3, 5), (3, 5), other=0)
            yield sample("other-up", (3, 5), (3, 5), other=1)
            yield sample("large", (67, 4099), (67, 4099))
            yield sample("packed-large", (67, 8198))

    @staticmethod
    def benchmark(rows, columns):
        return Sample("matrices", (rows, columns), (rows, columns))


def backward_dims(grad, gate, up, *_):
    packed = "...N, ...N, -> ...N,"
    return packed if up is None else "..., ..., ... -> ..., ..."


def backward_samples(*others):
    for wants in ((True, True), (True, False), (False, True), (False, False)):
        name = f"wants-{wants[0]:d}{wants[1]:d}"
        yield Sample(name, (3, 5), (3, 5), (3, 5), *others, *wants)
        yield Sample(f"{name}-packed", (3, 5), (3, 10), None, *others, *wants)


class silu_mul(Gated):
    """Compute ``silu(gate) * up``, rounded once; the gate of SwiGLU.

    Args:
        gate: float32, float64, float16 or bfloat16, of any shape and strides.
        up: of gate's shape and device. Dtypes are promoted as torch's are;
            where they differ, a copy of the narrower tensor is made. None means
            that gate is packed: its last dimension holds gate, then up.
        out: where to put the result: a tensor of its shape, dtype and device.
            It may be gate or up; another overlap with them is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020;
    ``torch.nn.functional.silu``.

    >>> torch_foo.silu_mul(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    tensor([0.0000, 1.4621])
    """

    schema = "silu_mul(Tensor gate, Tensor? up=None) -> Tensor"
    peers = {
        "eager": lambda gate, up: F.silu(gate) * up,
        "built-in out": lambda gate, up, out: torch.mul(
            torch.ops.aten.silu.out(gate, out=out), up, out=out
        ),
    }

    @staticmethod
    def reference(gate, up=None):
        gate, up = promoted(*gate_and_up(gate, up))
        return (F.silu(widen(gate)) * widen(up)).to(gate.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return call_backward(_silu_mul_backward, ctx, grad)


class _silu_mul_backward(Operator):
    """Compute the gradients of silu_mul, each None where not wanted."""

    schema = (
        "_silu_mul_backward(Tensor grad, Tensor gate, Tensor? up, "
        "bool wants_gate, bool wants_up) -> (Tensor grad_gate, Tensor grad_up)"
    )
    tags = ("pointwise",)
    dims = staticmethod(backward_dims)
    fake = staticmethod(gradients_fake)
    vmap = staticmethod(one_by_one)
    samples = staticmethod(backward_samples)

    @staticmethod
    def reference(grad, gate, up, *wants):
        x = widen(gate_and_up(gate, up)[0])
        s = x.sigmoid()
        derivative = s * (1 + x * (1 - s))
        return gradients(grad, gate, up, x * s, derivative, *wants)


class gelu_mul(Gated):
    """Compute ``gelu(gate) * up``, rounded once; the gate of GEGLU.

    Args:
        gate: float32, float64, float16 or bfloat16, of any shape and strides.
        up: of gate's shape and device. Dtypes are promoted as torch's are;
            where they differ, a copy of the narrower tensor is made. None means
            that gate is packed: its last dimension holds gate, then up.
        approximate: "none" for gelu by the error function, "tanh" for its
            approximation by tanh.
        out: where to put the result: a tensor of its shape, dtype and device.
            It may be gate or up; another overlap with them is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020;
    ``torch.nn.functional.gelu``.

    >>> torch_foo.gelu_mul(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    tensor([0.0000, 1.6827])
    """

    schema = (
        "gelu_mul(Tensor gate, Tensor? up=None, *, "
        'str approximate="none") -> Tensor'
    )
    options = ({}, {"approximate": "tanh"})
    peers = {
        "eager": lambda gate, up: F.gelu(gate) * up,
        "built-in out": lambda gate, up, out: torch.mul(
            torch.ops.aten.gelu.out(gate, out=out), up, out=out
        ),
    }

    @staticmethod
    def reference(gate, up=None, approximate="none"):
        gate, up = promoted(*gate_and_up(gate, up))
        activation = F.gelu(widen(gate), approximate=approximate)
        return (activation * widen(up)).to(gate.dtype)

    @staticmethod
    def fake(gate, up, approximate):
        expect_approximation(approximate)
        return Gated.fake(gate, up)

    @staticmethod
    def setup_context(ctx, inputs, output):
        gate, up, ctx.approximate = inputs
        ctx.save_for_backward(gate, up)

    @staticmethod
    def backward(ctx, grad):
        approximate = ctx.approximate
        return *call_backward(_gelu_mul_backward, ctx, grad, approximate), None


class _gelu_mul_backward(Operator):
    """Compute the gradients of gelu_mul, each None where not wanted."""

    schema = (
        "_gelu_mul_backward(Tensor grad, Tensor gate, Tensor? up, "
        "str approximate, bool wants_gate, bool wants_up) "
        "-> (Tensor grad_gate, Tensor grad_up)"
    )
    tags = ("pointwise",)
    dims = staticmethod(backward_dims)
    vmap = staticmethod(one_by_one)

    @staticmethod
    def reference(grad, gate, up, approximate, *wants):
        x = widen(gate_and_up(gate, up)[0])
        if approximate == "none":
            phi = (1 + torch.erf(x * math.sqrt(0.5))) / 2
            density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
            derivative = phi + x * density
        else:
            scale = math.sqrt(2 / math.pi)
            tanh = torch.tanh(scale * (x + 0.044715 * x**3))
            phi = (1 + tanh) / 2
            inner = scale * (1 + 3 * 0.044715 * x.square())
            derivative = phi + x / 2 * (1 - tanh.square()) * inner
        return gradients(grad, gate, up, x * phi, derivative, *wants)

    @staticmethod
    def fake(grad, gate, up, approximate, *wants):
        expect_approximation(approximate)
        return gradients_fake(grad, gate, up, *wants)

    @staticmethod
    def samples():
        yield from backward_samples("none")
        for sample in backward_samples("tanh"):
            sample.name += "-tanh"
            yield sample
