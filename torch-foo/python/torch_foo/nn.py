"""Modules over the operators, with the interfaces of torch.nn."""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_foo.operators.blocks import FORMATS
from torch_foo.ops import (
    cross_entropy,
    dequantize,
    gelu_mul,
    linear_quantized,
    quantize,
    rms_norm,
    rope,
    silu_mul,
)


def _check_tensor(module: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"torch_foo.nn.{module}: {name} is {type(value).__name__}, "
            "expected a tensor"
        )


class RMSNorm(torch.nn.RMSNorm):
    """A drop-in for torch.nn.RMSNorm that uses :func:`torch_foo.rms_norm`.

    It normalizes the last dimension only. The state_dict is that of
    torch.nn.RMSNorm.

    Args:
        normalized_shape: The size n of the last dimension, as n or (n,).
        eps: The number added to the mean square of a row. None means the
            machine epsilon of the accumulator's dtype, as in torch.nn.RMSNorm.
        elementwise_affine: Whether the module has a weight.
        device: The device of the weight.
        dtype: The dtype of the weight. That of the result is the input's.

    Shape:
        (..., n) to (..., n).

    >>> torch_foo.nn.RMSNorm(2, eps=0.0)(torch.tensor([[3.0, 4.0]])).detach()
    tensor([[0.8485, 1.1314]])
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(normalized_shape, int):
            if len(normalized_shape) != 1:
                raise ValueError(
                    "torch_foo.nn.RMSNorm: normalized_shape is "
                    f"{tuple(normalized_shape)}, expected one dimension"
                )
            (normalized_shape,) = normalized_shape
        super().__init__(
            normalized_shape, eps, elementwise_affine, device, dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the rows of x."""
        _check_tensor("RMSNorm", "x", x)
        (n,) = self.normalized_shape
        if x.dim() == 0 or x.shape[-1] != n:
            raise RuntimeError(
                f"torch_foo.nn.RMSNorm: x has shape {tuple(x.shape)}, "
                f"expected a last dimension of {n}"
            )
        eps = self.eps
        if eps is None:
            wide = torch.promote_types(x.dtype, torch.float32)
            eps = torch.finfo(wide).eps
        return rms_norm(x, self.weight, eps)


class SwiGLU(torch.nn.Module):
    """The activation ``silu(gate) * up``, :func:`torch_foo.silu_mul`.

    It stands between the projections of a feed-forward block and has no
    weights: ``down(act(gate_proj(x), up_proj(x)))``, or
    ``down(act(gate_up_proj(x)))`` where one projection computes both.

    Shape:
        Two tensors (..., n), or one (..., 2 n) that holds gate, then up;
        to (..., n).

    >>> torch_foo.nn.SwiGLU()(torch.tensor([0.0, 1.0, 1.0, 2.0]))
    tensor([0.0000, 1.4621])
    """

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """Gate `up`, or the second half of `gate`."""
        return silu_mul(gate, up)


class GeGLU(torch.nn.Module):
    """The activation ``gelu(gate) * up``, :func:`torch_foo.gelu_mul`.

    Args:
        approximate: "none" or "tanh", as in torch.nn.GELU.

    Shape:
        As for :class:`SwiGLU`.

    >>> torch_foo.nn.GeGLU()(torch.tensor([0.0, 1.0, 1.0, 2.0]))
    tensor([0.0000, 1.6827])
    """

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(
                f"torch_foo.nn.GeGLU: approximate is {approximate!r}, "
                "expected 'none' or 'tanh'"
            )
        super().__init__()
        self.approximate = approximate

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """Gate `up`, or the second half of `gate`."""
        return gelu_mul(gate, up, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class RotaryEmbedding(torch.nn.Module):
    """Rotary position embedding, :func:`torch_foo.rope` with its tables.

    The tables `cos` and `sin` are buffers outside of the state_dict. They stay
    float32 when the module is converted to another dtype, because the angles
    of far positions need that accuracy.

    Args:
        head_dim: The size of a head.
        max_position: The number of positions in the tables.
        base: The base of the frequencies, ``base ** (-2 i / rotary_dim)``.
        rotary_dim: The even number of elements of a head that are rotated;
            None means all. The rest is copied.
        interleaved: Whether pair i is (2i, 2i + 1), as in GPT-J, instead of
            (i, i + rotary_dim / 2), as in Llama.
        device: The device of the tables.

    Shape:
        x (batch, seq, heads, head_dim) of any floating-point dtype; positions
        (seq,) or (batch, seq) of int64, None for 0, 1, ..., seq - 1; to the
        shape of x.

    >>> rotary = torch_foo.nn.RotaryEmbedding(2, max_position=8)
    >>> x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    >>> rotary(x, torch.tensor([1])).flatten()
    tensor([0.5403, 0.8415])
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        head_dim: int,
        max_position: int,
        base: float = 10000.0,
        *,
        rotary_dim: int | None = None,
        interleaved: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if rotary_dim % 2 or not 0 <= rotary_dim <= head_dim:
            raise ValueError(
                f"torch_foo.nn.RotaryEmbedding: rotary_dim is {rotary_dim}, "
                f"expected an even number from 0 to head_dim ({head_dim})"
            )
        super().__init__()
        self.head_dim = head_dim
        self.max_position = max_position
        self.base = base
        self.rotary_dim = rotary_dim
        self.interleaved = interleaved
        cos, sin = self._tables(device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(
        self, device: torch.device | str | None
    ) -> tuple[Tensor, Tensor]:
        # In float64: angles of far positions are inexact in float32.
        exponents = torch.arange(
            0, self.rotary_dim, 2, dtype=torch.float64, device=device
        )
        positions = torch.arange(
            self.max_position, dtype=torch.float64, device=device
        )
        frequencies = self.base ** (-exponents / max(self.rotary_dim, 1))
        angles = torch.outer(positions, frequencies)
        return angles.cos().float(), angles.sin().float()

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "RotaryEmbedding":
        """Keep the tables float32, and compute them when they leave meta."""
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)
        device = self.cos.device
        if cos.is_meta and not self.cos.is_meta:
            self.cos, self.sin = self._tables(device)
        elif self.cos.dtype != cos.dtype:
            self.cos, self.sin = cos.to(device), sin.to(device)
        return self

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rotate the heads of x by the angles of their positions."""
        _check_tensor("RotaryEmbedding", "x", x)
        if x.dim() != 4 or x.shape[-1] != self.head_dim:
            raise RuntimeError(
                f"torch_foo.nn.RotaryEmbedding: x has shape {tuple(x.shape)}, "
                f"expected (batch, seq, heads, {self.head_dim})"
            )
        return rope(
            x, self.cos, self.sin, positions, interleaved=self.interleaved
        )

    def extra_repr(self) -> str:
        return (
            f"{self.head_dim}, max_position={self.max_position}, "
            f"base={self.base}, rotary_dim={self.rotary_dim}, "
            f"interleaved={self.interleaved}"
        )


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss computed by :func:`torch_foo.cross_entropy`.

    The constructor is that of torch.nn.CrossEntropyLoss, but `weight` must be
    None. Two things differ. Targets are class indices, not probabilities.
    Classes are always the LAST dimension of the input, where
    torch.nn.CrossEntropyLoss has them in the second. The loss of 16-bit logits
    is float32.

    Shape:
        Input (..., classes) and target (...) of int64; to (), or (...) if the
        reduction is "none".

    >>> loss = torch_foo.nn.CrossEntropyLoss()
    >>> loss(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 0]))
    tensor(0.3709)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        if weight is not None:
            raise ValueError(
                "torch_foo.nn.CrossEntropyLoss: weight is not supported, "
                "expected None"
            )
        super().__init__(
            None, size_average, ignore_index, reduce, reduction, label_smoothing
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of class indices."""
        _check_tensor("CrossEntropyLoss", "target", target)
        if target.is_floating_point():
            raise RuntimeError(
                "torch_foo.nn.CrossEntropyLoss: target has dtype "
                f"{str(target.dtype).removeprefix('torch.')}: class "
                "probabilities are not supported, expected int64 class indices"
            )
        return cross_entropy(
            input,
            target,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class _Blocks(torch.nn.Module):
    """A module whose weight is rows of blocks, a parameter without gradient.

    Only floating-point tensors change their dtype with a module's, so the
    blocks do not.
    """

    weight: Tensor
    format: str
    #: The float module that it was made from, where that is kept: in a tuple,
    #: so that it is no part of this one. It follows to devices and dtypes.
    original: tuple[torch.nn.Module, ...] = ()

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "_Blocks":
        for module in self.original:
            module._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def _set_blocks(self, blocks: Tensor, format: str) -> tuple[int, int]:
        """Set the weight, and return the number of rows and of columns."""
        name = f"torch_foo.nn.{type(self).__name__}"
        _check_tensor(type(self).__name__, "blocks", blocks)
        if format not in FORMATS:
            names = ", ".join(map(repr, FORMATS))
            raise ValueError(
                f"{name}: format is {format!r}, expected one of {names}"
            )
        elements, size = FORMATS[format][:2]
        if (
            blocks.dtype != torch.uint8
            or blocks.dim() != 2
            or blocks.shape[1] % size
        ):
            dtype = str(blocks.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name}: blocks is {dtype} of shape {tuple(blocks.shape)}, "
                f"expected uint8 with two dimensions, the last a multiple of "
                f"{size} for {format!r}"
            )
        self.format = format
        if not isinstance(blocks, torch.nn.Parameter):  # others may share it
            blocks = torch.nn.Parameter(blocks, requires_grad=False)
        self.weight = blocks
        rows, columns = blocks.shape
        return rows, columns // size * elements

    def _save_to_state_dict(
        self, destination: Any, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination._metadata[prefix[:-1]]["format"] = self.format

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Refuse blocks of another format, which may be as large.

        What was saved by other libraries does not tell the format.
        """
        found = local_metadata.get("format", self.format)
        if found != self.format:
            error_msgs.append(
                f"{prefix}weight has the format {found!r}, expected "
                f"{self.format!r}"
            )
            return
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def requires_grad_(self, requires_grad: bool = True) -> "_Blocks":
        """Train the bias, or not: the blocks stay frozen."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(requires_grad)
        return self

    def reset_parameters(self) -> None:
        """Leave the blocks alone: there is nothing to initialize."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.format!r}"


class QuantizedLinear(_Blocks, torch.nn.Linear):
    """torch.nn.Linear with a weight of blocks of 4 to 8 bits per number.

    It computes :func:`torch_foo.linear_quantized`. The weight is a frozen
    parameter of bytes: gradients flow to the input and the bias only. The
    state_dict holds its bytes.

    Args:
        blocks: uint8, (out_features, bytes), as :func:`torch_foo.quantize` or a
            GGUF file has them. They are not copied.
        format: The blocks' format, as in :func:`torch_foo.quantize`.
        bias: (out_features,), a tensor or a parameter; None means zeros.

    Shape:
        (..., in_features) to (..., out_features).

    >>> linear = torch.nn.Linear(32, 2)
    >>> torch_foo.nn.QuantizedLinear.from_linear(linear, "q8_0")
    QuantizedLinear(in_features=32, out_features=2, bias=True, format='q8_0')
    """

    def __init__(
        self, blocks: Tensor, format: str, bias: Tensor | None = None
    ) -> None:
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = self._set_blocks(blocks, format)
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(
                f"torch_foo.nn.QuantizedLinear: bias has shape "
                f"{tuple(bias.shape)}, expected ({self.out_features},)"
            )
        if bias is not None and not isinstance(bias, torch.nn.Parameter):
            bias = torch.nn.Parameter(bias)
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, format: str
    ) -> "QuantizedLinear":
        """Quantize the weight of a linear layer, and share its bias."""
        with torch.no_grad():
            blocks = quantize(linear.weight, format)
        return cls(blocks, format, linear.bias).train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the rows of the input by the weight."""
        return linear_quantized(
            input, self.weight, self.bias, format=self.format
        )


class QuantizedEmbedding(_Blocks, torch.nn.Embedding):
    """torch.nn.Embedding with a table of blocks of 4 to 8 bits per number.

    It dequantizes the rows that it looks up, with
    :func:`torch_foo.dequantize`. The weight is as in :class:`QuantizedLinear`,
    and the two may share it.

    Args:
        blocks: uint8, (num_embeddings, bytes).
        format: The blocks' format, as in :func:`torch_foo.quantize`.
        padding_idx: A row, as in torch.nn.Embedding; it changes nothing, since
            the table is not trained.
        dtype: That of the result. It changes with the module's.

    Shape:
        (...) of int64 or int32 to (..., embedding_dim).

    >>> table = torch.nn.Embedding(10, 32)
    >>> torch_foo.nn.QuantizedEmbedding.from_embedding(table, "q4_0")
    QuantizedEmbedding(10, 32, format='q4_0')
    """

    like: Tensor

    def __init__(
        self,
        blocks: Tensor,
        format: str,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        torch.nn.Module.__init__(self)
        sizes = self._set_blocks(blocks, format)
        self.num_embeddings, self.embedding_dim = sizes
        self.padding_idx = padding_idx
        self.max_norm = None
        self.norm_type = 2.0
        self.scale_grad_by_freq = self.sparse = False
        # Without elements: it has the dtype of the result.
        like = torch.empty(0, dtype=dtype, device=blocks.device)
        self.register_buffer("like", like, persistent=False)

    @classmethod
    def from_embedding(
        cls, embedding: torch.nn.Embedding, format: str
    ) -> "QuantizedEmbedding":
        """Quantize the table of an embedding."""
        if embedding.max_norm is not None:
            raise ValueError(
                "torch_foo.nn.QuantizedEmbedding: max_norm is "
                f"{embedding.max_norm}, expected None"
            )
        weight = embedding.weight
        with torch.no_grad():
            blocks = quantize(weight, format)
        result = cls(blocks, format, embedding.padding_idx, weight.dtype)
        return result.train(embedding.training)

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows of the table."""
        rows = torch.nn.functional.embedding(input, self.weight)
        return dequantize(rows, self.format).to(self.like.dtype)
