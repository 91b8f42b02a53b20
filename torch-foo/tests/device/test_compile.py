"""torch.compile for foo, and what it refuses."""

import gc

import pytest
import torch
import torch_foo
from torch import nn
from torch._dynamo.device_interface import get_interface_for_device
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch._inductor.utils import fresh_cache
from torch.nn import functional as F
from torch_foo.device import _inductor


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Compile anew: code in a cache says nothing of what made it."""
    torch._dynamo.reset()
    with inductor_config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()
    gc.collect()  # compiled models are in cycles


def model_and_batch():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)
    )
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    return model.to("foo"), x.to("foo"), y.to("foo")


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_training_step(backend):
    def losses(compile_):
        model, x, y = model_and_batch()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)

        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        step = compile_(step)
        values = []
        for _ in range(3):
            optimizer.zero_grad()
            values.append(step(x, y).item())
            optimizer.step()
        return values

    expected = losses(lambda step: step)
    compiled = losses(lambda step: torch.compile(step, backend=backend))
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
    assert compiled[2] < compiled[0]


def test_one_graph_with_our_operators_random_numbers_and_new_tensors():
    weight = torch.rand(8, device="foo")

    def f(x):
        y = torch_foo.rms_norm(x.sin(), weight) + torch.arange(8, device="foo")
        with torch.autocast("foo", dtype=torch.bfloat16):
            z = y @ y.t()
        return y, z, F.dropout(torch.ones(400, device="foo"), 0.25), y.cpu() + 1

    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for rows in (3, 5):
        x = torch.randn(rows, 8, device="foo")
        y, z, dropped, on_cpu = compiled(x)
        expected = f(x)
        torch.testing.assert_close(y, expected[0])
        torch.testing.assert_close(z, expected[1], rtol=0.02, atol=0.02)
        assert dropped.unique().tolist() == [0, pytest.approx(4 / 3)]
        assert 0.6 < dropped.bool().float().mean() < 0.9
        torch.testing.assert_close(on_cpu, expected[3])


@pytest.mark.parametrize("dynamic", [False, True])
def test_indices(dynamic):
    """Indices that a kernel computes have the dtype that it takes them for."""

    def f(x, ones):
        device = x.device
        rows = torch.arange(4, device=device)
        columns = torch.arange(20, device=device)
        return (
            rows,
            torch.arange(50, dtype=torch.uint8, device=device),
            torch.arange(9, dtype=torch.int32, device=device) * 3,
            ones.cumsum(0),
            torch.triu_indices(4, 4, device=device),
            torch.where(rows[:, None] >= columns[None], x, 0.0),
            (columns * 2).sum() + x.sum().long() * 0,
            x.view(4, 5).t().argmax(),
            x.view(4, 5)[:, ::2].argmin(1),
        )

    torch.manual_seed(0)
    x, ones = torch.randn(20), torch.ones(20, dtype=torch.int64)
    expected = f(x, ones)
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    on_foo = compiled(x.to("foo"), ones.to("foo"))
    for got, cpu in zip(on_foo, expected, strict=True):
        assert got.is_foo
        assert got.dtype == cpu.dtype
        assert got.tolist() == cpu.tolist()


def test_without_inputs():
    compiled = torch.compile(lambda: torch.arange(4, device="foo"))
    assert compiled().tolist() == [0, 1, 2, 3]


def test_embedding():
    torch.manual_seed(0)
    module, ids = nn.Embedding(256, 64), torch.randint(0, 256, (2, 5))
    expected = module(ids)
    expected.sum().backward()
    gradient, module.weight.grad = module.weight.grad, None
    module.to("foo")
    got = torch.compile(module)(ids.to("foo"))
    got.sum().backward()
    assert got.tolist() == expected.tolist()
    assert module.weight.grad.tolist() == gradient.tolist()


def test_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().to("foo")
    ids = torch.arange(5, device="foo")[None]
    with torch.no_grad():
        expected = model(ids).logits
        got = torch.compile(model)(ids).logits
    torch.testing.assert_close(got, expected)


def test_convolution():
    """Inductor would lay it out as the CPU's mkldnn wants it."""
    model = nn.Conv2d(3, 8, 3, padding=1).to("foo")
    x = torch.randn(2, 3, 14, 14, device="foo")
    with torch.no_grad():
        got = torch.compile(model)(x)
    torch.testing.assert_close(got, model(x))


def test_layouts_by_device():
    """The fake kernel of nonzero_static has another layout for CUDA."""
    x = torch.tensor([[0, 1, 2], [0, 3, 0]], device="foo")
    compiled = torch.compile(lambda x: torch.nonzero_static(x, size=4))
    expected = torch.nonzero_static(x.cpu(), size=4)
    assert torch.equal(compiled(x).cpu(), expected)


def test_what_dynamo_asks():
    torch.compile(torch.sin)(torch.ones(2, device="foo"))
    interface = get_interface_for_device("foo")
    assert interface.is_available()
    assert interface.device_count() == 1
    assert interface.current_device() == 0


def test_cache_is_of_one_version(monkeypatch):
    """Code of another version of _inductor.py is not taken from the cache."""

    def compile_():
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(lambda x: x.sin() + 1)
        compiled(torch.ones(3, device="foo"))
        # AOTAutograd's cache is asked first, and has what Inductor's has.
        names = ("autograd_cache_hit", "autograd_cache_miss")
        return [counters["aot_autograd"][name] for name in names]

    with inductor_config.patch(force_disable_caches=False), fresh_cache():
        assert compile_() == [0, 1]
        assert compile_() == [1, 0]
        monkeypatch.setattr(_inductor, "_source", b"another")
        assert compile_() == [0, 1]


def test_wrappers_in_cpp_are_refused():
    model, x = nn.GELU(), torch.ones(3, device="foo")
    exported = torch.export.export(model, (x,))
    for compile_ in (
        lambda: torch.compile(model, options={"cpp_wrapper": True})(x),
        lambda: torch._inductor.aoti_compile_and_package(exported),
    ):
        with pytest.raises(Exception, match="cpp_wrapper and AOTInductor need"):
            compile_()
