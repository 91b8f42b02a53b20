"""cross_entropy: of class indices over the last dimension."""

import torch
import torch.nn.functional as F

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
    integers,
    one_by_one,
    shuffled,
    transposed,
    widen,
)


def loss_fake(logits, target, reduction, label_smoothing):
    """Return the loss of checked arguments, empty."""
    expect_same_dtype(logits)
    expect_rows(logits)
    expect_dtype(target, torch.int64)
    reductions = ("none", "mean", "sum")
    expect(reduction in reductions, "reduction 'none', 'mean' or 'sum'")
    expect_shape(target, *logits.shape[:-1])
    expect(0 <= label_smoothing <= 1, "label_smoothing of 0 to 1")
    known = all(isinstance(n, int) for n in logits.shape)
    has_classes = not known or logits.shape[-1] > 0 or target.numel() == 0
    expect(has_classes, "{} of at least 1 class", logits)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    shape = target.shape if reduction == "none" else ()
    return logits.new_empty(shape, dtype=dtype)


class cross_entropy(Operator):
    """Compute the cross-entropy of class indices over the last dimension.

    No log-probabilities are kept in memory.

    Args:
        logits: (..., n), float32, float64, float16 or bfloat16, any strides.
        target: int64, (...), each in [0, n) or ignore_index. (In
            ``torch.nn.functional.cross_entropy`` classes are the second
            dimension.) On CUDA, a target that is out of range is no error: the
            loss and the gradient of its row become NaN.
        ignore_index: targets that have no loss and no gradient.
        reduction: "mean" over the targets that are not ignored (nan if there
            are none), "sum", or "none".
        label_smoothing: 0 to 1, the share of the uniform distribution in the
            target's.

    Returns:
        The loss, float32 (float64 for float64 logits): of shape (...) if the
        reduction is "none", else ().

    Source: ``torch.nn.functional.cross_entropy``; label smoothing from Szegedy
    et al., "Rethinking the Inception Architecture for Computer Vision", 2015.

    >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    >>> torch_foo.cross_entropy(logits, torch.tensor([1, 0]))
    tensor(0.3709)
    """

    schema = (
        "cross_entropy(Tensor logits, Tensor target, *, int ignore_index=-100, "
        'str reduction="mean", float label_smoothing=0.0) '
        "-> (Tensor loss, Tensor lse)"
    )
    internal_results = ("lse",)
    peers = {
        "eager": lambda x, target: F.cross_entropy(x.float(), target),
        "built-in": F.cross_entropy,
    }
    sizes = ((1, 32000), (16, 32000), (512, 32000), (128, 128256))

    @staticmethod
    def reference(
        logits,
        target,
        ignore_index=-100,
        reduction="mean",
        label_smoothing=0.0,
    ):
        classes = logits.shape[-1]
        loss = F.cross_entropy(
            widen(logits).reshape(target.numel(), classes),
            target.reshape(-1),
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        return loss.reshape(target.shape) if reduction == "none" else loss

    @staticmethod
    def fake(logits, target, ignore_index, reduction, label_smoothing):
        loss = loss_fake(logits, target, reduction, label_smoothing)
        return loss, logits.new_empty(target.shape, dtype=torch.float64)

    @staticmethod
    def dims(logits, target, ignore_index, reduction, *_):
        rows = {"none": "...N, ... -> ..., ...", "sum": "...N, ... -> , ..."}
        # A mean needs to know how many targets of all ranks are not ignored.
        return rows.get(reduction, "")

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, target, *ctx.options = inputs
        _, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(logits, target, lse)

    @staticmethod
    def backward(ctx, grad, grad_lse):
        (wants_logits,) = ctx.needs_input_grad[:1]
        if not wants_logits:
            return None, None, None, None, None
        grad_logits = _cross_entropy_backward.call(
            grad, *ctx.saved_tensors, *ctx.options
        )
        return grad_logits, None, None, None, None

    @staticmethod
    def vmap(
        op, info, in_dims, logits, target, ignore_index, reduction, smoothing
    ):
        """Add rows, and reduce for each example."""
        dlogits, dtarget, *_ = in_dims
        logits = batched(logits, dlogits, info)
        target = batched(target, dtarget, info)
        loss, lse = op(logits, target, ignore_index, "none", smoothing)
        rows = info.batch_size, loss[:1].numel()
        if reduction != "none":
            loss = loss.reshape(rows).sum(1)
        if reduction == "mean":
            loss = loss / (target != ignore_index).reshape(rows).sum(1)
        return (loss, lse), (0, 0)

    @staticmethod
    def samples():
        rows, targets = (3, 5), shuffled(5, 3)
        yield Sample("mean", rows, targets)
        yield Sample("sum", rows, targets, reduction="sum")
        yield Sample("none", rows, targets, reduction="none")
        yield Sample("ignored", rows, integers(1, -100, 4))
        yield Sample(
            "smoothed",
            rows,
            integers(1, 2, 4),
            ignore_index=2,
            label_smoothing=0.3,
        )
        yield Sample("uniform", (2, 3), shuffled(3, 2), label_smoothing=1.0)
        yield Sample(
            "smoothed-none",
            (3, 4),
            integers(1, -100, 3),
            reduction="none",
            label_smoothing=0.1,
        )
        yield Sample("row", (7,), lambda _: torch.tensor(3))
        yield Sample("3d", (2, 3, 4), shuffled(4, 2, 3))
        yield Sample("3d-none", (2, 3, 4), shuffled(4, 2, 3), reduction="none")
        yield Sample("one-class", (3, 1), integers(0, 0, 0))
        yield Sample("empty", (0, 5), shuffled(5, 0), reduction="sum")
        yield Sample("strided", rows, targets, layout=every_other)
        yield Sample(
            "transposed", (3, 2, 4), shuffled(4, 3, 2), layout=transposed
        )
        large = (67, 4099), shuffled(4099, 67)
        yield Sample("large", *large)
        yield Sample(
            "large-smoothed", *large, label_smoothing=0.1, reduction="none"
        )

    @staticmethod
    def benchmark(rows, columns):
        return Sample("logits", (rows, columns), shuffled(columns, rows))


class _cross_entropy_backward(Operator):
    """Compute the gradient of cross_entropy's logits."""

    schema = (
        "_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, "
        "Tensor lse, int ignore_index, str reduction, float label_smoothing) "
        "-> Tensor"
    )
    vmap = staticmethod(one_by_one)

    @staticmethod
    def reference(
        grad, logits, target, lse, ignore_index, reduction, label_smoothing
    ):
        """Compute it without lse, whose own gradient is then included."""
        classes = logits.shape[-1]
        kept = target != ignore_index
        indices = torch.arange(classes, device=target.device)
        onehot = target.unsqueeze(-1) == indices
        softmax = widen(logits).softmax(-1)
        difference = (
            softmax
            - (1 - label_smoothing) * onehot.to(softmax.dtype)
            - label_smoothing / max(classes, 1)
        )
        factor = widen(grad) * kept
        if reduction == "mean":
            factor = factor / kept.sum().clamp(min=1)
        return (factor.unsqueeze(-1) * difference).to(logits.dtype)

    @staticmethod
    def fake(
        grad, logits, target, lse, ignore_index, reduction, label_smoothing
    ):
        loss = loss_fake(logits, target, reduction, label_smoothing)
        expect_dtype(grad, loss.dtype)
        expect_dtype(lse, torch.float64)
        expect_shape(grad, *loss.shape)
        expect_shape(lse, *target.shape)
        return logits.new_empty(logits.shape)

    @staticmethod
    def dims(grad, logits, target, lse, ignore_index, reduction, *_):
        rows = "...N, ..., ... -> ...N"
        return {"none": f"..., {rows}", "sum": f", {rows}"}.get(reduction, "")

    @staticmethod
    def samples():
        logits = torch.linspace(-2, 2, 15).view(3, 5).cos()

        for reduction, shape in (("none", (3,)), ("mean", ()), ("sum", ())):
            yield Sample(
                reduction,
                lambda dtype, shape=shape: torch.ones(
                    shape, dtype=torch.promote_types(dtype, torch.float32)
                ),
                logits.to,
                integers(4, -100, 0),
                lambda dtype: logits.to(dtype).double().logsumexp(-1),
                -100,
                reduction,
                0.1,
            )
