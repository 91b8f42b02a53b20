"""torch_foo.nn against torch.nn."""

import copy
import pickle

import pytest
import torch
import torch_foo


@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize("affine", [False, True])
def test_rms_norm_is_a_drop_in(dtype, eps, affine):
    kwargs = {"eps": eps, "elementwise_affine": affine, "dtype": dtype}
    theirs = torch.nn.RMSNorm(16, **kwargs)
    if affine:
        torch.nn.init.normal_(theirs.weight)
    ours = torch_foo.nn.RMSNorm(16, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, torch.nn.RMSNorm)
    assert repr(ours) == repr(theirs)
    # Small numbers, on which a wrong eps would show.
    x = (torch.randn(2, 3, 16) / 1000).to(dtype)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())


def test_rms_norm_takes_a_shape():
    assert torch_foo.nn.RMSNorm((4,)).normalized_shape == (4,)
    assert torch_foo.nn.RMSNorm(torch.Size([4])).weight.shape == (4,)
    with pytest.raises(ValueError, match=r"\(3, 4\), expected one dimension"):
        torch_foo.nn.RMSNorm((3, 4))


@pytest.mark.parametrize("affine", [False, True])
def test_rms_norm_checks_the_last_dimension(affine):
    module = torch_foo.nn.RMSNorm(4, elementwise_affine=affine)
    for shape in ((2, 5), ()):
        with pytest.raises(
            RuntimeError, match="expected a last dimension of 4"
        ):
            module(torch.ones(shape))


def test_rms_norm_trains():
    module = torch_foo.nn.RMSNorm(8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), module)
    before = module.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module.weight, before)


def test_rms_norm_copies_and_compiles():
    module = torch_foo.nn.RMSNorm(8)
    x = torch.randn(4, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        compiled,
    ):
        torch.testing.assert_close(other(x), module(x))


def test_rms_norm_with_a_parametrized_weight():
    class Exp(torch.nn.Module):
        def forward(self, w):
            return w.exp()

    module = torch_foo.nn.RMSNorm(8)
    x = torch.randn(4, 8)
    expected = module(x) * torch.e
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Exp())
    torch.testing.assert_close(module(x), expected)


def test_rms_norm_under_autocast():
    module = torch_foo.nn.RMSNorm(8)  # its weight stays float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(torch.randn(4, 8).bfloat16())
    assert y.dtype == torch.float32
