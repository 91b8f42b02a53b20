"""torch.foo and torch.accelerator: devices, memory, streams, random numbers."""

import copy
import time

import pytest
import torch
import torch_foo.device
from torch import nn
from torch_foo.device import _module


def test_names_are_those_of_torch_cuda():
    own = {"DeviceProperties", "set_memory_limit"}
    assert set(_module.__all__) - own <= {*dir(torch.cuda), *dir(torch.cpu)} | {
        "get_amp_supported_dtype"  # torch.amp's, for a backend
    }
    for name in _module.__all__:
        assert hasattr(torch.foo, name)
    with pytest.raises(
        AttributeError, match=r"torch\.foo.*no attribute 'nvml'"
    ):
        torch.foo.nvml  # noqa: B018


def test_enabling_twice():
    x = torch.ones(2, device="foo")
    torch_foo.device.enable()
    assert torch_foo.device.is_enabled()
    assert (x + 1).tolist() == [2, 2]


def test_one_device():
    foo = torch.device("foo", 0)
    assert torch.foo.is_available()
    assert torch.foo.device_count() == torch.accelerator.device_count() == 1
    assert torch.accelerator.current_accelerator() == torch.device("foo")
    assert torch.accelerator.current_device_index() == 0
    assert torch.foo.current_device() == 0
    assert torch.get_device_module("foo") is torch.foo
    for device in (0, "foo", "foo:0", foo, None, -1):
        torch.foo.set_device(device)
        torch.foo.synchronize(device)
        with torch.foo.device(device):
            assert torch.ones(2, device="foo").device == foo
    with torch.foo.device_of(torch.ones(2)):
        pass
    torch.accelerator.set_device_index(0)
    torch.accelerator.synchronize()
    assert torch.foo.get_device_name() == torch.foo.get_device_properties()[0]


@pytest.mark.parametrize(
    "select",
    [
        torch.accelerator.set_device_index,
        torch.accelerator.get_device_capability,
        lambda index: torch.accelerator.device_index(index).__enter__(),
        torch.accelerator.memory_stats,
        torch.foo.set_device,
        torch.foo.device,
        torch.foo.synchronize,
        torch.foo.Stream,
        torch.foo.get_rng_state,
        torch.foo.get_device_properties,
        torch.foo.memory_allocated,
        torch.foo.mem_get_info,
    ],
)
def test_another_device_is_refused(select):
    with pytest.raises(RuntimeError, match=r"expected foo:0.*got foo:1"):
        select(1)


def test_dtypes_that_are_supported():
    dtypes = torch.accelerator.get_device_capability()["supported_dtypes"]
    assert {torch.float32, torch.bool, torch.complex64} <= dtypes
    assert torch.qint8 not in dtypes
    with torch.accelerator.device_index(0):
        torch.ones(1, device="foo")


def test_device_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="expected a device foo, got cpu"):
        torch.foo.set_device("cpu")


def test_memory():
    empty = torch.foo.memory_allocated()
    x = torch.empty(1000, dtype=torch.uint8, device="foo")
    assert torch.foo.memory_allocated() == empty + 1000
    assert torch.accelerator.memory_allocated() == empty + 1000
    torch.foo.reset_peak_memory_stats()
    y = torch.empty(500, dtype=torch.uint8, device="foo")
    del y
    assert torch.foo.max_memory_allocated() == empty + 1500
    assert torch.foo.memory_allocated() == empty + 1000
    stats = torch.foo.memory_stats()
    assert stats["allocated_bytes.all.peak"] == empty + 1500
    torch.foo.empty_cache()
    torch.foo.reset_accumulated_memory_stats()
    del x


def test_memory_limit():
    limit = torch.ops.torch_foo._device_memory()[2]
    try:
        torch.foo.set_memory_limit(torch.foo.memory_allocated() + 1000)
        assert torch.foo.mem_get_info()[0] == 1000
        with pytest.raises(torch.OutOfMemoryError, match="foo out of memory"):
            torch.empty(1001, dtype=torch.uint8, device="foo")
        torch.foo.set_per_process_memory_fraction(1.0)
        assert torch.foo.mem_get_info()[1] == (
            torch.foo.get_device_properties().total_memory
        )
        with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
            torch.foo.set_per_process_memory_fraction(1.5)
    finally:
        torch.foo.set_memory_limit(limit)


def test_streams_and_events():
    stream = torch.foo.Stream()
    assert stream == torch.foo.current_stream() == torch.foo.default_stream()
    assert stream == torch.accelerator.current_stream()
    start = torch.foo.Event(enable_timing=True)
    end = torch.foo.Event(enable_timing=True)
    with torch.foo.stream(stream):
        start.record()
        time.sleep(0.01)
        end.record(stream)
    with torch.foo.stream(None):
        pass
    torch.foo.set_stream(stream)
    assert 10 <= start.elapsed_time(end) < 10000
    stream.record_event().synchronize()
    stream.wait_event(end)
    stream.wait_stream(torch.foo.current_stream())
    end.wait()
    assert end.query()
    assert stream.query()
    torch.ones(2, device="foo").record_stream(stream)
    with pytest.raises(RuntimeError, match="recorded"):
        start.elapsed_time(torch.foo.Event(enable_timing=True))
    with pytest.raises(RuntimeError, match="enable_timing"):
        start.elapsed_time(torch.foo.Event())


# --- random numbers ---------------------------------------------------------

DRAWS = {
    "randn": lambda device: torch.randn(50, device=device),
    "rand_like": lambda device: torch.rand_like(torch.ones(50, device=device)),
    "randperm": lambda device: torch.randperm(50, device=device),
    "randint": lambda device: torch.randint(0, 9, (50,), device=device),
    "bernoulli": lambda device: (
        torch.ones(50, device=device).mul(0.5).bernoulli()
    ),
    "exponential_": lambda device: torch.ones(50, device=device).exponential_(),
    "multinomial": lambda device: torch.ones(50, device=device).multinomial(20),
    "normal": lambda device: torch.normal(0.0, torch.ones(50, device=device)),
    "poisson": lambda device: torch.poisson(torch.ones(50, device=device)),
    "dropout": lambda device: nn.functional.dropout(
        torch.ones(50, device=device), 0.5
    ),
    "rrelu": lambda device: nn.functional.rrelu(
        -torch.ones(50, device=device), training=True
    ),
    "gamma": lambda device: torch._standard_gamma(
        torch.ones(50, device=device)
    ),
    "attention": lambda device: nn.functional.scaled_dot_product_attention(
        *[torch.ones(1, 4, 8, 8, device=device)] * 3, dropout_p=0.5
    ),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_random_numbers_have_a_stream_of_their_own(draw):
    torch.manual_seed(1)
    expected = [draw("cpu"), draw("cpu")]
    cpu_state = torch.get_rng_state()
    torch.manual_seed(1)
    got = [draw("foo"), draw("foo")]
    assert [g.device.type for g in got] == ["foo", "foo"]
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g.cpu(), e)
    # Neither has moved the other.
    torch.testing.assert_close(draw("cpu"), expected[0])
    torch.manual_seed(1)
    draw("cpu"), draw("cpu")
    assert torch.equal(torch.get_rng_state(), cpu_state)


def test_seeds_and_states():
    torch.manual_seed(3)
    assert torch.foo.initial_seed() == 3
    state = torch.foo.get_rng_state()
    a = torch.rand(5, device="foo")
    torch.foo.set_rng_state(state, "foo:0")
    assert torch.equal(torch.rand(5, device="foo"), a)
    torch.foo.set_rng_state_all(torch.foo.get_rng_state_all())
    cpu = torch.get_rng_state()
    torch.foo.manual_seed(3)
    torch.foo.manual_seed_all(3)
    assert torch.equal(torch.get_rng_state(), cpu)
    assert torch.equal(torch.rand(5, device="foo"), a)
    torch.foo.seed()
    torch.foo.seed_all()
    assert torch.foo.initial_seed() != 3
    with torch.random.fork_rng(device_type="foo"):  # before 2.13, not default
        inside = torch.rand(5, device="foo")
    assert torch.equal(torch.rand(5, device="foo"), inside)


def test_generators():
    ours = torch.rand(
        5, device="foo", generator=torch.Generator().manual_seed(7)
    )
    theirs = torch.rand(5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(ours.cpu(), theirs)
    generator = copy.copy(torch.foo.default_generators[0].get_state())
    torch.rand(5, device="foo", generator=torch.Generator())
    assert torch.equal(generator, torch.foo.get_rng_state())
    with pytest.raises(NotImplementedError, match="getNewGenerator"):
        torch.Generator("foo")
