"""attention: few queries over many keys."""

import math

import torch
import torch.nn.functional as F

from torch_foo.operators.base import (
    Operator,
    Sample,
    batch_first,
    batched,
    every_other,
    expect,
    expect_dtype,
    expect_same_dtype,
    expect_shape,
    promoted_alike,
    transposed,
    widen,
)

#: The dtypes that keys and values may have beside a float32 query.
NARROW = torch.float16, torch.bfloat16


def scale_of(query, scale):
    """Return the scale; by default that of heads of query's size."""
    return max(query.shape[-1], 1) ** -0.5 if scale is None else scale


def by_key_head(tensor, key):
    """Make one matrix of all heads that share a key head."""
    batch, heads, queries, size = tensor.shape
    count = key.shape[1]
    rows = heads // max(count, 1) * queries
    return tensor.reshape(batch, count, rows, size)


def weights(query, key, mask, scale):
    """Return the weights of keys: (batch, key heads, rows, keys).

    The sums of rows are 1, or 0 where all scores are minus infinity.
    """
    scores = by_key_head(widen(query), key) @ widen(key).mT
    scores = scores * scale_of(query, scale)
    if mask is not None:
        shape = (*query.shape[:-1], key.shape[2])
        if mask.dtype == torch.bool:
            lowest = scores.new_full((), -math.inf)
            mask = torch.where(mask, torch.zeros_like(lowest), lowest)
        scores = scores + by_key_head(widen(mask).expand(shape), key)
    none = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(none, 0).softmax(-1).masked_fill(none, 0)


def is_narrow(query, key, value):
    """Return whether keys and values have 16 bits beside a float32 query."""
    dtypes = [getattr(t, "dtype", None) for t in (query, key, value)]
    return dtypes in [[torch.float32, n, n] for n in NARROW]


def eager_attention(query, key, value):
    """Attend as models do without a function of torch."""
    group = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(group, 1) for t in (key, value))
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.float().softmax(-1).to(query.dtype) @ value


def built_in_attention(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def bools(*shape):
    """Return a maker of a mask whose first row attends to nothing."""

    def make(_):
        mask = torch.arange(math.prod(shape)) % 3 > 0
        mask = mask.view(shape)
        if mask.dim() > 1:
            mask.view(-1, shape[-1])[0] = False
        return mask

    return make


class attention(Operator):
    """Compute ``softmax(scale * query @ key.mT + mask) @ value``.

    It is made for the few queries of generated tokens and the many keys of a
    cache: keys and values are read once for all queries, and for all heads that
    share them. For many queries,
    ``torch.nn.functional.scaled_dot_product_attention`` is faster. Sums are in
    float32 (float64 for float64), and the result is rounded once.

    Args:
        query: (batch, heads, queries, size), float32, float64, float16 or
            bfloat16, any strides.
        key: (batch, key heads, keys, size), of query's device, and of its dtype
            or, where that is float32, of float16 or bfloat16: a cache of half
            the bytes, which takes about half of the time to read, and which
            autocast leaves as it is. Heads are a multiple of key heads; those
            that follow each other share one.
        value: (batch, key heads, keys, value size), of key's dtype and device.
        mask: broadcasts to (batch, heads, queries, keys), on query's device: of
            bool, where False leaves a key out, or of query's dtype, to be
            added. None means zeros. A query without keys, or whose scores are
            all minus infinity, has the weights 0; they do not hide values that
            are NaN.
        scale: a number; None means ``1 / sqrt(size)``.
        out: where to put the result: a tensor of shape (batch, heads, queries,
            value size), of query's dtype and device. An overlap with another
            argument is an error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor. Gradients are computed by torch,
        from all weights at once.

    Source: ``torch.nn.functional.scaled_dot_product_attention`` with
    ``enable_gqa=True``.

    >>> query, key = torch.zeros(1, 2, 1, 4), torch.zeros(1, 1, 2, 4)
    >>> value = torch.tensor([[[[1.0], [3.0]]]])
    >>> torch_foo.attention(query, key, value).flatten()
    tensor([2., 2.])
    """

    schema = (
        "attention(Tensor query, Tensor key, Tensor value, Tensor? mask=None, "
        "*, float? scale=None) -> Tensor"
    )
    variants = ("out",)
    autocast = "promote"
    linear_in = ("value",)
    peers = {"eager": eager_attention, "built-in": built_in_attention}
    sizes = ((1, 128), (1, 1024), (1, 4096), (4, 4096))
    times_gradients = False  # they are torch's products

    @staticmethod
    def dims(query, key, value, mask, scale):
        # Ranks that share heads would have to share key heads alike.
        same = query.shape[1] == key.shape[1]
        q, k = ("h", "h") if same else ("H", "G")
        scores = f"b{q}qK"
        if mask is not None:
            scores = scores[4 - len(mask.shape) :]
        return f"b{q}qD, b{k}KD, b{k}Kv, {scores} -> b{q}qv"

    @staticmethod
    def reference(query, key, value, mask=None, scale=None):
        y = weights(query, key, mask, scale) @ widen(value)
        shape = (*query.shape[:-1], value.shape[-1])
        return y.reshape(shape).to(query.dtype)

    @staticmethod
    def promote(query, key, value, *others):
        """Widen no keys and values of 16 bits if query is float32."""
        query, *rest = promoted_alike(query, *others)
        args = query, key, value, *rest
        return args if is_narrow(query, key, value) else promoted_alike(*args)

    @staticmethod
    def fake(query, key, value, mask, scale):
        expect_same_dtype(query)
        expect_same_dtype(key, value)
        narrow = NARROW if query.dtype == torch.float32 else ()
        expect_dtype(key, query.dtype, *narrow)
        for tensor in (query, key, value):
            expect(tensor.dim() == 4, "{} of 4 dimensions", tensor)
        batch, heads, queries, size = query.shape
        count, keys = key.shape[1:3]
        expect_shape(key, batch, count, keys, size)
        expect_shape(value, batch, count, keys, value.shape[3])
        expect(
            heads == 0 if count == 0 else heads % count == 0,
            "{} with a multiple of {} heads",
            query,
            count,
        )
        if mask is not None:
            expect_dtype(mask, torch.bool, query.dtype)
            scores = (batch, heads, queries, keys)
            expected = "{} that broadcasts to {}", mask, scores
            expect(mask.dim() <= 4, *expected)
            last = scores[4 - mask.dim() :]
            for have, want in zip(mask.shape, last, strict=True):
                expect(have == want or have == 1, *expected)
        return query.new_empty((batch, heads, queries, value.shape[-1]))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        """Multiply by torch, in the type of computation."""
        query, key, value, mask = ctx.saved_tensors
        wants_query, wants_key, wants_value, wants_mask = ctx.needs_input_grad[
            :4
        ]
        p = weights(query, key, mask, ctx.scale)
        grad = by_key_head(widen(grad), key)
        grad_p = grad @ widen(value).mT
        grad_s = p * (grad_p - (p * grad_p).sum(-1, keepdim=True))
        scaled = grad_s * scale_of(query, ctx.scale)
        grad_query = grad_key = grad_value = grad_mask = None
        if wants_query:
            y = scaled @ widen(key)
            grad_query = y.reshape(query.shape).to(query.dtype)
        if wants_key:
            y = scaled.mT @ by_key_head(widen(query), key)
            grad_key = y.to(key.dtype)
        if wants_value:
            grad_value = (p.mT @ grad).to(value.dtype)
        if wants_mask and mask is not None and mask.is_floating_point():
            y = grad_s.reshape(*query.shape[:-1], key.shape[2])
            grad_mask = y.sum_to_size(mask.shape).to(mask.dtype)
        return grad_query, grad_key, grad_value, grad_mask, None

    @staticmethod
    def flops(query, key, value, *_, **__):
        return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])

    @staticmethod
    def vmap(op, info, in_dims, query, key, value, mask, scale):
        """Add batches."""
        tensors = [
            batched(tensor, dim, info)
            for tensor, dim in zip(
                (query, key, value), in_dims[:3], strict=True
            )
        ]
        examples, batch = tensors[0].shape[:2]
        if mask is not None:
            mask = batch_first(mask, in_dims[3], 4)
            if in_dims[3] is None:
                ones = (1,) * (4 - mask.dim())
                mask = mask.reshape(1, *ones, *mask.shape)
            mask = mask.expand(examples, batch, *mask.shape[2:]).flatten(0, 1)
        y = op(*(tensor.flatten(0, 1) for tensor in tensors), mask, scale)
        return y.reshape(examples, batch, *y.shape[1:]), 0

    @staticmethod
    def samples():
        q, k, v = (2, 4, 3, 8), (2, 1, 5, 8), (2, 1, 5, 6)
        pairs = q, (2, 2, 5, 8), (2, 2, 5, 6)  # heads that share a key head
        yield Sample("plain", q, k, v)
        yield Sample("mask", *pairs, bools(2, 1, 3, 5))
        yield Sample("added", q, k, v, (4, 1, 5))
        yield Sample("row-mask", *pairs, bools(5))
        yield Sample("scale", q, k, v, scale=0.3)
        yield Sample("query", (1, 3, 1, 4), (1, 3, 7, 4), (1, 3, 7, 4))
        yield Sample("no-batch", (0, 2, 1, 4), (0, 1, 3, 4), (0, 1, 3, 4))
        yield Sample("no-keys", q, (2, 1, 0, 8), (2, 1, 0, 6))
        yield Sample("no-heads", (2, 0, 1, 4), (2, 0, 3, 4), (2, 0, 3, 4))
        yield Sample("no-size", (1, 2, 1, 0), (1, 1, 3, 0), (1, 1, 3, 4))
        yield Sample("no-values", (1, 2, 1, 4), (1, 1, 3, 4), (1, 1, 3, 0))
        yield Sample("strided", q, k, v, (2, 1, 3, 5), layout=every_other)
        yield Sample("transposed", q, k, v, (2, 1, 3, 5), layout=transposed)
        large = (1, 6, 2, 64), (1, 2, 1100, 64), (1, 2, 1100, 64)
        yield Sample("large", *large)

        def narrow(name, dtype, *args):
            dtypes = {torch.float32: dtype}
            return Sample(name, *args, other=(1, 2), dtypes=dtypes)

        yield narrow("float16-cache", torch.float16, q, k, v, (2, 1, 3, 5))
        yield narrow("bfloat16-cache", torch.bfloat16, q, k, v, (2, 1, 3, 5))
        yield narrow("large-cache", torch.bfloat16, *large)

    @staticmethod
    def benchmark(rows, columns):
        """Attend as Llama 3.2 1B does: rows are queries, columns keys."""
        cache = (1, 8, columns, 64)
        return Sample("cache", (1, 32, rows, 64), cache, cache)
