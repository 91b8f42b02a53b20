"""Tensors of the device: made, copied, viewed, computed with."""

import torch


def test_round_trip():
    x = torch.randn(3, 4)
    y = x.to("foo")
    assert y.device == torch.device("foo", 0)
    assert y.cpu().device == torch.device("cpu")
    assert torch.equal(y.cpu(), x)
    assert torch.equal(y.t()[1].cpu(), x.t()[1])
    assert torch.equal((y * y + 1).cpu(), x * x + 1)
