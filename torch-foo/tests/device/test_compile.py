"""torch.compile for foo, and what it refuses."""

import pytest
import torch
import torch_foo
from torch import nn
from torch._inductor import config as inductor_config
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Compile anew: code in a cache says nothing of what made it."""
    torch._dynamo.reset()
    with inductor_config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


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


def test_wrappers_in_cpp_are_refused():
    model, x = nn.GELU(), torch.ones(3, device="foo")
    exported = torch.export.export(model, (x,))
    for compile_ in (
        lambda: torch.compile(model, options={"cpp_wrapper": True})(x),
        lambda: torch._inductor.aoti_compile_and_package(exported),
    ):
        with pytest.raises(Exception, match="cpp_wrapper and AOTInductor need"):
            compile_()
