"""Modules over the operators, drop-in for those of torch.nn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_foo.ops import rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm over the last dimension, by :func:`torch_foo.rms_norm`.

    Args:
        normalized_shape: n, the size of the last dimension, or (n,).
        eps: added to the mean square of a row. None means the machine epsilon
            of the dtype that is computed in, as for torch.nn.RMSNorm.
        elementwise_affine: whether there is a weight.
        device: of the weight.
        dtype: of the weight, and then of the input: no type promotion outside
            of autocast regions.

    Shape: (..., n) to (..., n). The state_dict is that of torch.nn.RMSNorm.

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
        """Normalise the rows of x."""
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
