"""quantize, dequantize, linear_quantized: GGUF's blocks of 4 to 8 bits."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_foo.operators.base import (
    Operator,
    Sample,
    batched,
    every_other,
    expect,
    expect_dtype,
    expect_rows,
    expect_same_dtype,
    expect_shape,
    one_by_one,
    transposed,
    widen,
)

# --- the formats: float32 (..., elements) and bytes (..., bytes) -------------


def over(x: Tensor, divisor: float) -> Tensor:
    """Divide; by a number, torch multiplies by its reciprocal on CUDA."""
    return x / x.new_full((), divisor)


def furthest(x: Tensor) -> Tensor:
    """The number of the largest magnitude, with its sign."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def reciprocal(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, 1 / x)


def integers(x: Tensor, low: int, high: int) -> Tensor:
    return x.nan_to_num(0).clamp(low, high).to(torch.int32)


def halves(x: Tensor) -> Tensor:
    """Return float16 as bytes; NaN has no sign."""
    x = x.where(~x.isnan(), math.nan).half()
    # Without elements, a stride may be 0, which view refuses.
    return x.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def floats(half: Tensor) -> Tensor:
    """Return what halves made bytes of."""
    half = half.clone(memory_format=torch.contiguous_format)
    return half.view(torch.float16).float()


def joined(*parts: Tensor) -> Tensor:
    return torch.cat([part.to(torch.uint8) for part in parts], -1)


def nibbles(q: Tensor) -> Tensor:
    """Pack 4 bits, those of the first half in the lower ones."""
    low, high = q.chunk(2, -1)
    return low | high << 4


def from_nibbles(packed: Tensor) -> Tensor:
    return torch.cat([packed & 15, packed >> 4], -1)


def pack_q8_0(x: Tensor) -> Tensor:
    d = over(x.abs().amax(-1, keepdim=True), 127)
    y = x * reciprocal(d)
    whole = y.abs().floor()
    q = (whole + (y.abs() - whole >= 0.5)).copysign(y)
    return joined(
        halves(d), integers(q, -127, 127).to(torch.int8).view(torch.uint8)
    )


def unpack_q8_0(b: Tensor) -> Tensor:
    return floats(b[..., :2]) * b[..., 2:].view(torch.int8).float()


def pack_q4_0(x: Tensor) -> Tensor:
    d = over(furthest(x), -8)
    y = (x.double() * reciprocal(d).double()).nan_to_num(0, math.inf, -math.inf)
    return joined(halves(d), nibbles(integers((y + 8.5).float(), 0, 15)))


def unpack_q4_0(b: Tensor) -> Tensor:
    return floats(b[..., :2]) * (from_nibbles(b[..., 2:]).float() - 8)


def pack_q4_1(x: Tensor) -> Tensor:
    low, high = (x + 0.0).aminmax(dim=-1, keepdim=True)
    low, high = low + 0.0, high + 0.0
    d = over(high - low, 15)
    q = integers((x - low) * reciprocal(d) + 0.5, 0, 15)
    return joined(halves(d), halves(low), nibbles(q))


def unpack_q4_1(b: Tensor) -> Tensor:
    q = from_nibbles(b[..., 4:]).float()
    return floats(b[..., :2]) * q + floats(b[..., 2:4])


def six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales and minima, eight of each, from 12 bytes."""
    first, second, third = packed.chunk(3, -1)
    scales = first & 63, third & 15 | first >> 6 << 4
    minima = second & 63, third >> 4 | second >> 6 << 4
    return torch.cat(scales, -1), torch.cat(minima, -1)


def pack_q4_k(x: Tensor) -> Tensor:
    groups = x.unflatten(-1, (8, 32))
    low, high = groups.aminmax(dim=-1)
    low = low.clamp(max=0) + 0.0
    scales, minima = over(high + 0.0 - low, 15), 0 - low
    most = scales.amax(-1, keepdim=True), minima.amax(-1, keepdim=True)
    d, m = (halves(over(each, 63)) for each in most)
    s, t = (
        integers((each / largest * 63).round(), 0, 63)
        for each, largest in zip((scales, minima), most, strict=True)
    )
    (s0, s1), (t0, t1) = s.chunk(2, -1), t.chunk(2, -1)
    packed = joined(
        s0 | s1 >> 4 << 6, t0 | t1 >> 4 << 6, (s1 & 15) | (t1 & 15) << 4
    )
    scale, minimum = floats(d) * s.float(), floats(m) * t.float()
    y = (groups + minimum[..., None]) / scale[..., None]
    q = integers(y.round(), 0, 15).unflatten(-2, (4, 2))
    q = q[..., 0, :] | q[..., 1, :] << 4
    return joined(d, m, packed, q.flatten(-2))


def unpack_q4_k(b: Tensor) -> Tensor:
    s, t = six_bits(b[..., 4:16])
    q = b[..., 16:].unflatten(-1, (4, 32))
    q = torch.stack([q & 15, q >> 4], -2).flatten(-3, -2)
    scale = floats(b[..., :2]) * s.float()
    minimum = floats(b[..., 2:4]) * t.float()
    y: Tensor = scale[..., None] * q.float() - minimum[..., None]
    return y.flatten(-2)


def pack_q6_k(x: Tensor) -> Tensor:
    groups = x.unflatten(-1, (16, 16))
    scales = over(furthest(groups).squeeze(-1), -32)
    most = over(furthest(scales), -128)
    d, s = halves(most), integers((scales / most).round(), -128, 127)
    scale = floats(d) * s.float()
    q = integers((groups / scale[..., None]).round(), -32, 31) + 32
    q = q.flatten(-2).unflatten(-1, (2, 2, 2, 32))  # half, upper, odd, column
    low, high = q & 15, q >> 4
    low = low[..., 0, :, :] | low[..., 1, :, :] << 4
    shifts = torch.arange(0, 8, 2, device=x.device).view(2, 2, 1)
    high = (high << shifts).sum((-3, -2))
    s = s.to(torch.int8).view(torch.uint8)
    return joined(low.flatten(-3), high.flatten(-2), s, d)


def unpack_q6_k(b: Tensor) -> Tensor:
    low = b[..., :128].unflatten(-1, (2, 1, 2, 32))
    high = b[..., 128:192].unflatten(-1, (2, 1, 1, 32))
    low = torch.cat([low & 15, low >> 4], -3)
    shifts = torch.arange(0, 8, 2, device=b.device, dtype=torch.uint8)
    high = high >> shifts.view(2, 2, 1) & 3
    q = (low | high << 4).flatten(-4).float() - 32
    s = b[..., 192:208].view(torch.int8).float()
    scale = floats(b[..., 208:]) * s
    y: Tensor = scale[..., None] * q.unflatten(-1, (16, 16))
    return y.flatten(-2)


class Format(NamedTuple):
    elements: int
    bytes: int
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor], Tensor]


FORMATS = {
    "q8_0": Format(32, 34, pack_q8_0, unpack_q8_0),
    "q4_0": Format(32, 18, pack_q4_0, unpack_q4_0),
    "q4_1": Format(32, 20, pack_q4_1, unpack_q4_1),
    "q4_k": Format(256, 144, pack_q4_k, unpack_q4_k),
    "q6_k": Format(256, 210, pack_q6_k, unpack_q6_k),
}


def expect_format(format: str) -> Format:
    names = ", ".join(map(repr, FORMATS))
    expect(format in FORMATS, "a format that is one of {}", names)
    return FORMATS[format]


def expect_multiple(tensor: Tensor, of: int, format: str) -> Any:
    """Return how many times ``of`` is in the last dimension."""
    expect_rows(tensor)
    n = tensor.shape[-1]
    what = "{} with a last dimension that is a multiple of {} for {}"
    expect(n % of == 0, what, tensor, of, format)
    return n // of


def blocks(format: str, *shape: int) -> Callable[[torch.dtype], Tensor]:
    """Return a maker of the blocks of random numbers."""
    return lambda _: quantize.reference(torch.randn(shape), format)


class quantize(Operator):
    """Quantize to blocks of 4 to 8 bits per number, as GGUF files hold them.

    Args:
        weight: (..., k), float32, float64, float16 or bfloat16, any strides. It
            is brought to float32 first.
        format: ``"q8_0"``, ``"q4_0"`` or ``"q4_1"``, where k is a multiple of
            32; ``"q4_k"`` or ``"q6_k"``, where it is one of 256.

    Returns:
        uint8, (..., k / elements * bytes), contiguous, where a block of
        (elements, bytes) is (32, 34), (32, 18), (32, 20), (256, 144) or
        (256, 210) in the order of the formats above. For the first three, every
        bit is that of ``gguf.quantize``, which does not make the others;
        llama.cpp's own ``q4_k`` and ``q6_k`` come from a search, and have a
        smaller error.

    Source: ``gguf.quants`` of PyPI's gguf; ggml-quants.c of llama.cpp.

    >>> torch_foo.quantize(torch.arange(32.0), "q8_0")[:6]
    tensor([208,  51,   0,   4,   8,  12], dtype=torch.uint8)
    """

    schema = 'quantize(Tensor weight, str format="q8_0") -> Tensor'
    dims = "...K -> ...B"

    @staticmethod
    def reference(weight, format="q8_0"):
        elements, _, pack, _ = FORMATS[format]
        x = weight.float().unflatten(
            -1, (weight.shape[-1] // elements, elements)
        )
        return pack(x).flatten(-2)

    @staticmethod
    def fake(weight, format):
        elements, size, *_ = expect_format(format)
        expect_same_dtype(weight)
        count = expect_multiple(weight, elements, format)
        shape = (*weight.shape[:-1], count * size)
        return weight.new_empty(shape, dtype=torch.uint8)

    @staticmethod
    def vmap(op, info, in_dims, weight, format):
        """Add rows."""
        return op(batched(weight, in_dims[0], info), format), 0

    @staticmethod
    def samples():
        for name, format in FORMATS.items():
            yield Sample(name, (3, 2 * format.elements), format=name)
        yield Sample("row", (64,), format="q4_1")
        yield Sample("3d", (2, 3, 32), format="q4_0")
        yield Sample("zeros", (2, 256), layout=torch.zeros_like, format="q6_k")
        yield Sample("no-rows", (0, 32), format="q8_0")
        yield Sample("strided", (3, 32), layout=every_other, format="q8_0")
        yield Sample("transposed", (3, 256), layout=transposed, format="q4_k")
        yield Sample("large", (67, 4096), format="q4_0")

    @staticmethod
    def benchmark(rows, columns):
        return Sample("matrix", (rows, columns), format="q8_0")


class dequantize(Operator):
    """Return the numbers that blocks hold.

    Args:
        blocks: uint8, (..., count * bytes), as :func:`quantize` or a GGUF file
            has them.
        format: the blocks' format, as in :func:`quantize`.

    Returns:
        float32, (..., count * elements), contiguous: the numbers of
        ``gguf.dequantize``. ``.to(dtype)`` rounds them to another dtype.

    Source: ``gguf.quants`` of PyPI's gguf.

    >>> blocks = torch_foo.quantize(torch.arange(32.0), "q8_0")
    >>> torch_foo.dequantize(blocks, "q8_0")[[0, 1, 31]]
    tensor([ 0.0000,  0.9766, 31.0059])
    """

    schema = 'dequantize(Tensor blocks, str format="q8_0") -> Tensor'
    dims = "...B -> ...K"

    @staticmethod
    def reference(blocks, format="q8_0"):
        _, size, _, unpack = FORMATS[format]
        count = blocks.shape[-1] // size
        return unpack(blocks.contiguous().unflatten(-1, (count, size))).flatten(
            -2
        )

    @staticmethod
    def fake(blocks, format):
        elements, size, *_ = expect_format(format)
        expect_dtype(blocks, torch.uint8)
        count = expect_multiple(blocks, size, format)
        shape = (*blocks.shape[:-1], count * elements)
        return blocks.new_empty(shape, dtype=torch.float32)

    @staticmethod
    def vmap(op, info, in_dims, blocks, format):
        """Add rows."""
        return op(batched(blocks, in_dims[0], info), format), 0

    @staticmethod
    def samples():
        for name, format in FORMATS.items():
            yield Sample(
                name, blocks(name, 3, 2 * format.elements), format=name
            )
        yield Sample("row", blocks("q4_1", 64), format="q4_1")
        yield Sample("3d", blocks("q4_0", 2, 3, 32), format="q4_0")
        yield Sample("no-rows", blocks("q8_0", 0, 32), format="q8_0")
        yield Sample("no-columns", blocks("q8_0", 3, 0), format="q8_0")

    @staticmethod
    def benchmark(rows, columns):
        return Sample("matrix", blocks("q8_0", rows, columns), format="q8_0")


def rounded(x: Tensor) -> Tensor:
    """Round float32 to 8 bits in blocks of 32; the gradient is that of x."""
    groups = x.detach().unflatten(-1, (x.shape[-1] // 32, 32))
    most = groups.abs().amax(-1, keepdim=True)
    inverse = most.new_full((), 127) / most
    q = (groups * inverse).round().nan_to_num(0, 0, 0)
    y: Tensor = (q * over(most, 127)).flatten(-2)
    return y + (x - x.detach())


class linear_quantized(Operator):
    """Compute ``x @ dequantize(weight, format).T + bias``.

    Unless it is float64, x is first rounded to 8 bits in blocks of 32 along its
    last dimension: to ``d * round(x / d)`` with ``d = max(abs(x)) / 127``. So
    the error is at most half a d times the sum of ``abs(weight)`` over each
    block, beside float32's, and the result is rounded once. A block of x with a
    NaN or an infinity makes NaN.

    Args:
        x: (..., k), float32, float64, float16 or bfloat16, any strides.
        weight: uint8, (n, k / elements * bytes), on x's device: blocks, as
            :func:`quantize` or a GGUF file has them.
        bias: (n,), of x's dtype and device; None means zeros.
        format: the blocks' format, as in :func:`quantize`.
        out: where to put the result: a tensor of shape (..., n), of x's dtype
            and device. An overlap with x, weight or bias is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor. Gradients flow to x, as if it were
        not rounded, and to bias.

    Source: ``ggml_mul_mat`` of llama.cpp.

    >>> weight = torch_foo.quantize(torch.eye(32)[:2], "q8_0")
    >>> torch_foo.linear_quantized(torch.ones(32), weight, format="q8_0")
    tensor([0.9999, 0.9999])
    """

    schema = (
        "linear_quantized(Tensor x, Tensor weight, Tensor? bias=None, *, "
        'str format="q8_0") -> Tensor'
    )
    variants = ("out",)
    autocast = "promote"
    dims = "...K, nB, n -> ...n"
    peers = {
        "eager": lambda x, w, format: F.linear(
            rounded(x.float()).to(x.dtype), w
        )
    }
    sizes = ((1, 4096), (4, 4096), (16, 4096))
    times_gradients = False  # they are torch's products

    @staticmethod
    def reference(x, weight, bias=None, format="q8_0"):
        wide = widen(x)
        matrix = dequantize.reference(weight, format).to(wide.dtype)
        y = (wide if x.dtype == torch.float64 else rounded(wide)) @ matrix.T
        if bias is not None:
            y = y + widen(bias)
        return y.to(x.dtype)

    @staticmethod
    def fake(x, weight, bias, format):
        elements, size, *_ = expect_format(format)
        expect_same_dtype(x, bias)
        expect_dtype(weight, torch.uint8)
        count = expect_multiple(x, elements, format)
        expect(weight.dim() == 2, "{} of 2 dimensions", weight)
        n = weight.shape[0]
        expect_shape(weight, n, count * size)
        if bias is not None:
            expect_shape(bias, n)
        return x.new_empty((*x.shape[:-1], n))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, ctx.format = inputs
        ctx.save_for_backward(weight)
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx, grad):
        """Multiply by torch, in the type of computation."""
        wants_x, _, wants_bias = ctx.needs_input_grad[:3]
        (weight,) = ctx.saved_tensors
        n = weight.shape[0]
        flat = grad.reshape(math.prod(ctx.shape[:-1]), n)
        grad_x = None
        if wants_x:
            wide = widen(flat)
            matrix = dequantize.call(weight, ctx.format).to(wide.dtype)
            grad_x = (wide @ matrix).to(grad.dtype).reshape(ctx.shape)
        return grad_x, None, flat.sum(0) if wants_bias else None, None

    @staticmethod
    def flops(x, weight, *_, **__):
        return 2 * math.prod(x) * weight[0]

    @staticmethod
    def vmap(op, info, in_dims, x, weight, bias, format):
        """Add rows, unless there are weights for each example."""
        dx, dweight, dbias = in_dims[:3]
        if dweight is None and dbias is None:
            return op(x.movedim(dx, 0), weight, bias, format), 0
        return one_by_one(op, info, in_dims, x, weight, bias, format)

    @staticmethod
    def samples():
        def sample(name, x, n, bias=True, format="q8_0", **layout):
            weight = blocks(format, n, x[-1])
            rest = [(n,)] if bias else []
            return Sample(name, x, weight, *rest, format=format, **layout)

        for name, format in FORMATS.items():
            yield sample(name, (3, 2 * format.elements), 5, format=name)
        yield sample("plain", (3, 64), 4, bias=False)
        yield sample("row", (32,), 4)
        yield sample("3d", (2, 3, 32), 5, format="q4_0")
        yield sample("many-rows", (17, 2, 32), 6, bias=False, format="q4_1")
        yield sample("no-rows", (0, 32), 4)
        yield sample("no-columns", (3, 32), 0)
        yield sample("no-products", (3, 0), 4)
        yield sample("strided", (3, 64), 4, layout=every_other)
        yield sample("transposed", (2, 3, 32), 4, layout=transposed)
        yield sample("large", (131, 1024), 517, format="q4_0")

    @staticmethod
    def benchmark(rows, columns):
        """Multiply without a bias, as most models do."""
        weight = blocks("q8_0", 4096, columns)
        return Sample("layer", (rows, columns), weight, format="q8_0")

    @staticmethod
    def peer_arguments(x, weight):
        return x, dequantize.reference(weight).to(x.dtype)
