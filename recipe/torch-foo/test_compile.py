"""Compile an operator between two operations of PyTorch."""

import torch
import torch_foo


def function(x: torch.Tensor) -> torch.Tensor:
    return torch_foo.rms_norm(x.sin()).cos()


x = torch.randn(4, 8)
compiled = torch.compile(function, fullgraph=True)
torch.testing.assert_close(compiled(x), function(x))
