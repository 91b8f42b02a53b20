"""What training takes: autograd, optimizers, torch.func, hooks, modules."""

import gc

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset


def trained(device, make_optimizer, steps=3):
    """Return the losses of a small model on a device."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    y = torch.randint(0, 5, (8,))
    model = nn.Sequential(
        # A bias before BatchNorm has only noise for a gradient.
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
    )
    model, x, y = model.to(device, x.dtype), x.to(device), y.to(device)
    parameters = list(model.parameters())
    optimizer = make_optimizer(parameters)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(optimizer.step(closure).item())
    return losses, parameters


OPTIMIZERS = {
    name: value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
    # These take matrices only, or gradients that are sparse.
    and name not in ("Muon", "SparseAdam")
}


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(optimizer, foreach):
    named = {"lr": 0.01}
    if foreach:
        named["foreach"] = True
        if optimizer in (torch.optim.LBFGS, torch.optim.Adafactor):
            pytest.skip("the optimizer has no foreach for both, or none")
    losses, weights = trained("foo", lambda p: optimizer(p, **named))
    expected, cpu_weights = trained("cpu", lambda p: optimizer(p, **named))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for weight, cpu_weight in zip(weights, cpu_weights, strict=True):
        assert weight.device.type == "foo"
        torch.testing.assert_close(weight.cpu(), cpu_weight)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW]
)
def test_fused_optimizers(optimizer):
    make = lambda p: optimizer(p, lr=0.01, fused=True)  # noqa: E731  short
    losses, _ = trained("foo", make)
    torch.testing.assert_close(losses, trained("cpu", make)[0])


def test_muon_and_sparse_gradients():
    weight = nn.Parameter(torch.ones(3, 3, device="foo"))
    weight.square().sum().backward()
    muon = getattr(torch.optim, "Muon", None)
    if muon is not None:  # since torch 2.9
        muon([weight]).step()
    assert weight.isfinite().all()
    embedding = nn.Embedding(5, 3, sparse=True).to("foo")
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Ss]parse"):
        embedding(torch.tensor([1], device="foo")).sum().backward()


def test_gradients():
    x = torch.randn(3, 4, dtype=torch.float64, device="foo", requires_grad=True)
    w = torch.randn(4, 2, dtype=torch.float64, device="foo", requires_grad=True)
    assert gradcheck(lambda x, w: (x @ w).tanh().cumsum(0), (x, w))
    assert gradcheck(lambda x: x.t()[1:].sin().prod(), x)
    seen = []
    x.register_hook(lambda g: seen.append(g.device.type))
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.shape))
    checkpoint(lambda x: x.exp(), x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, x.exp().detach())
    assert seen == ["foo", (3, 4)]
    for reentrant in (True, False):
        x.grad = None
        dropped = checkpoint(F.dropout, x, use_reentrant=reentrant)
        dropped.sum().backward()
        assert torch.equal(x.grad, dropped.ne(0) * 2.0)
    with torch.autograd.graph.save_on_cpu(pin_memory=True):
        y = x.sin().sum()
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    torch.testing.assert_close(g, x.cos())
    with torch.inference_mode():
        assert (torch.ones(2, device="foo") + 1).view(1, 2)[0, 0] == 2


def test_transforms():
    x = torch.randn(3, 4, device="foo")
    low = x.cpu()
    f = lambda x: (x.sin() * x).sum()  # noqa: E731  as in the docs of torch
    func = torch.func
    for transformed in (
        torch.vmap(f),
        func.grad(f),
        torch.vmap(func.grad(f)),
        func.jacrev(func.grad(f)),
        func.jacfwd(torch.sin),
        func.hessian(f),
        lambda x: func.jvp(f, (x,), (x,)),
        lambda x: func.vjp(f, x)[1](torch.ones_like(x[0, 0]))[0],
        func.functionalize(lambda x: x.clone().add_(1)),
    ):
        got = transformed(x)
        torch.testing.assert_close(
            got,
            torch.utils._pytree.tree_map(
                lambda t: t.to("foo"), transformed(low)
            ),
        )
    module = nn.Linear(4, 2).to("foo")
    out = func.functional_call(module, dict(module.named_parameters()), x)
    assert out.device.type == "foo"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent(kind, bias):
    torch.manual_seed(0)
    model = kind(3, 4, 2, bias=bias, bidirectional=True)
    x = torch.randn(5, 2, 3)

    def run(device):
        model.zero_grad()
        out, _ = model.to(device)(x.to(device))
        out.square().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(model(x.to(device))[0], out)
        return [out.cpu(), *(p.grad.cpu() for p in model.parameters())]

    for got, expected in zip(run("foo"), run("cpu"), strict=True):
        torch.testing.assert_close(got, expected)


def test_default_device():
    foo = torch.device("foo", 0)
    with torch.device("foo"):
        assert torch.arange(3).device == nn.Linear(2, 2).weight.device == foo
    torch.set_default_device("foo")
    try:
        assert torch.get_default_device() == foo
        assert torch.tensor([1]).device == foo
    finally:
        torch.set_default_device(None)
    assert torch.tensor([1]).device.type == "cpu"


def test_modules_and_tensors_move():
    x = torch.ones(2, 3)
    assert x.foo().is_foo
    assert not x.is_foo
    assert x.foo(0).device == torch.device("foo", 0)
    module = nn.LSTM(3, 4, 2).foo()
    assert all(p.is_foo for p in module.parameters())
    assert module(x.foo())[0].is_foo
    packed = nn.utils.rnn.pack_sequence([x[0], x[1]]).foo()
    assert packed.is_foo
    module.to("cpu", torch.float64).to("meta")
    module.to_empty(device="foo")
    for device in ("foo:1", torch.device("foo", 1)):
        with pytest.raises(RuntimeError, match=r"foo:0.*got foo:1"):
            x.to(device)
    with pytest.raises(RuntimeError, match=r"same device.*foo:0 and cpu"):
        x.foo() + x
    assert (x.foo() + torch.tensor(1)).tolist() == [[2] * 3] * 2


def test_modules_keep_their_parameters():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[1].weight = weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    values = weight.tolist()
    model(torch.tensor([1])).sum().backward()
    for device in ("foo", "cpu", "foo"):
        model.to(device)
        assert model[0].weight is model[1].weight is weight
        assert weight.device.type == weight.grad.device.type == device
        assert weight.tolist() == values
    weight.grad = None
    model(torch.tensor([1], device="foo")).sum().backward()
    optimizer.step()
    assert weight.tolist() != values
    with torch.no_grad():
        weight.data = torch.ones(4, 3)
        assert weight.device.type == "cpu"


def test_printing():
    x = torch.arange(2000, device="foo")
    assert str(x) == (
        "tensor([   0,    1,    2,  ..., 1997, 1998, 1999], device='foo:0')"
    )
    for dtype in (torch.bool, torch.bfloat16, torch.complex64, torch.uint8):
        assert "device='foo:0'" in str(torch.ones(2, dtype=dtype, device="foo"))
    grown = torch.ones(2, device="foo", requires_grad=True) * 2
    assert str(grown) == (
        "tensor([2., 2.], device='foo:0', grad_fn=<MulBackward0>)"
    )
    assert str(torch.empty(0, 2, device="foo")) == (
        "tensor([], device='foo:0', size=(0, 2))"
    )


def test_data_loader():
    data = TensorDataset(torch.arange(6.0), torch.arange(6))
    loader = DataLoader(data, batch_size=3, pin_memory=True)
    batches = [[t.to("foo", non_blocking=True) for t in b] for b in loader]
    assert batches[1][0].tolist() == [3, 4, 5]
    assert all(t.is_pinned() for t in next(iter(loader)))
    on_foo = TensorDataset(torch.arange(6.0, device="foo"))
    shuffled = DataLoader(on_foo, batch_size=6, shuffle=True)
    (batch,) = next(iter(shuffled))
    assert batch.is_foo
    assert sorted(batch.tolist()) == [0, 1, 2, 3, 4, 5]


def test_profiler():
    x = torch.ones(4, 4, device="foo")
    activities = [ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]
    with profile(activities=activities, profile_memory=True) as profiled:
        (x @ x).add(1).sum()
    names = {event.key for event in profiled.key_averages()}
    assert {"aten::mm", "aten::add", "aten::sum"} <= names
    # Before 2.13, it is not renamed.
    renamed = getattr(ProfilerActivity, "FOO", ProfilerActivity.PrivateUse1)
    assert renamed is ProfilerActivity.PrivateUse1


def test_functions_of_pytorch_with_lists_of_devices():
    """Where PyTorch asks for known devices, foo is one."""
    batch_norm = nn.BatchNorm1d(3)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(batch_norm).to("foo").eval()
    assert model(torch.ones(2, 3, device="foo")).is_foo
    parameters = list(nn.Linear(2, 2).to("foo").parameters())
    vector = nn.utils.parameters_to_vector(parameters)
    nn.utils.vector_to_parameters(torch.zeros_like(vector), parameters)
    assert parameters[0].eq(0).all()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).to("foo")
    x = torch.randn(2, 3, 8, device="foo")
    with torch.inference_mode():
        torch.testing.assert_close(
            layer.eval()(x).cpu(), layer.cpu()(x.cpu()), rtol=1e-4, atol=1e-4
        )
    weights = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2).to("foo"))
    assert weights(torch.ones(1, 2, device="foo")).is_foo
    script = torch.jit.script(nn.Linear(3, 2).to("foo"))
    assert script(torch.ones(1, 3, device="foo")).is_foo
    exported = torch.export.export(
        nn.Linear(3, 2).to("foo"), (torch.ones(1, 3, device="foo"),)
    )
    assert exported.module()(torch.ones(1, 3, device="foo")).is_foo
    del weights, exported
    gc.collect()  # these have cycles
