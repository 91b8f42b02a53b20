"""Trace an operator between two operations of PyTorch, which needs no C++."""

import torch
import torch_foo


def function(x: torch.Tensor) -> torch.Tensor:
    return torch_foo.rms_norm(x.sin()).cos()


x = torch.randn(4, 8)
compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x), function(x))
