"""The modules of torch_foo.nn against those of torch.nn."""

import copy
import io
import pickle

import pytest
import torch
import torch_foo


@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize("affine", [False, True])
def test_rms_norm_is_a_drop_in(dtype, eps, affine, device):
    kwargs = {"eps": eps, "elementwise_affine": affine, "dtype": dtype}
    kwargs["device"] = device
    theirs = torch.nn.RMSNorm(16, **kwargs)
    if affine:
        torch.nn.init.normal_(theirs.weight)
    ours = torch_foo.nn.RMSNorm(16, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, torch.nn.RMSNorm)
    assert repr(ours) == repr(theirs)
    # Small numbers, where a wrong eps would show.
    x = (torch.randn(2, 3, 16, device=device) / 1000).to(dtype)
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


def test_rms_norm_trains(device):
    module = torch_foo.nn.RMSNorm(8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), module).to(device)
    before = module.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 8, device=device)).square().sum().backward()
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


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_rms_norm_of_another_dtype(dtype, eps, autocast, device):
    """As torch's: the result has the input's dtype, and is rounded once."""
    for other in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        theirs = torch.nn.RMSNorm(64, eps, device=device, dtype=other)
        torch.nn.init.normal_(theirs.weight)
        ours = torch_foo.nn.RMSNorm(64, eps, device=device, dtype=other)
        ours.load_state_dict(theirs.state_dict())
        x = (torch.randn(5, 64, device=device) / 1000).to(dtype)
        results = []
        for module in (ours, theirs):
            leaf = x.clone().requires_grad_()
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                y = module(leaf)
            y.double().square().sum().backward()
            results.append((y, leaf.grad, module.weight.grad))
        for got, expected in zip(*results, strict=True):
            assert got.dtype == expected.dtype
            # float64 results of float32 numbers are as accurate as those.
            limit = max(torch.finfo(got.dtype).eps, 4e-6)
            error = (got - expected).double().norm()
            assert error <= limit * expected.double().norm()
        if dtype.itemsize == 2 and device == "cpu":
            assert torch.equal(results[0][0], results[1][0])


# --- gates ------------------------------------------------------------------

GATES = [
    (torch_foo.nn.SwiGLU(), torch.nn.SiLU()),
    (torch_foo.nn.GeGLU(), torch.nn.GELU()),
    (torch_foo.nn.GeGLU("tanh"), torch.nn.GELU("tanh")),
]


@pytest.mark.parametrize(("ours", "activation"), GATES, ids=str)
def test_gates(ours, activation, device):
    gate, up = torch.randn(2, 3, 4, 5, device=device)
    expected = activation(gate) * up
    torch.testing.assert_close(ours(gate, up), expected)
    torch.testing.assert_close(ours(torch.cat([gate, up], -1)), expected)
    assert not ours.state_dict()
    assert not list(ours.parameters())


@pytest.mark.parametrize(("ours", "activation"), GATES, ids=str)
def test_feed_forward_trains(ours, activation, device):
    """Compare a block of Llama, with one or two projections, with PyTorch."""
    first = torch.nn.Linear(6, 16, device=device)
    down = torch.nn.Linear(8, 6, device=device)
    x = torch.randn(4, 6, device=device)

    def gradients(block):
        loss = block(x).square().sum()
        return torch.autograd.grad(loss, [*first.parameters()])

    def plain(x):
        gate, up = first(x).chunk(2, -1)
        return down(activation(gate) * up)

    def packed(x):
        return down(ours(first(x)))

    def two(x):
        return down(ours(*first(x).chunk(2, -1)))

    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    for block in (packed, two, compiled):
        torch.testing.assert_close(gradients(block), gradients(plain))


def test_gate_of_unknown_approximation():
    with pytest.raises(ValueError, match="approximate is 'erf', expected"):
        torch_foo.nn.GeGLU("erf")
    assert repr(torch_foo.nn.GeGLU("tanh")) == "GeGLU(approximate='tanh')"


# --- rotary embedding -------------------------------------------------------


def rotated_as_in_llama(x, positions, base=10000.0):
    """Apply the formula of transformers' modeling_llama.py in float64."""
    dim = x.shape[-1]
    inverse = 1 / base ** (
        torch.arange(0, dim, 2, device=x.device).double() / dim
    )
    angles = positions.double()[..., None] * inverse
    angles = torch.cat([angles, angles], -1).unsqueeze(-2)
    half = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
    return x.double() * angles.cos() + half.double() * angles.sin()


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_rotary_embedding(dtype, base, device):
    module = torch_foo.nn.RotaryEmbedding(
        16, max_position=5000, base=base, device=device
    )
    x = torch.randn(2, 3, 4, 16, device=device).to(dtype)
    expected = rotated_as_in_llama(x, torch.arange(3, device=device), base)
    torch.testing.assert_close(module(x), expected.to(dtype))
    positions = torch.tensor([[0, 4999, 17], [3, 2, 1]], device=device)
    expected = rotated_as_in_llama(x, positions, base).to(dtype)
    # The tables have the accuracy of float32, even at far positions.
    tolerance = 1e-6 if dtype.itemsize > 2 else torch.finfo(dtype).eps
    torch.testing.assert_close(
        module(x, positions), expected, rtol=tolerance, atol=tolerance
    )


def test_rotary_embedding_interleaved_and_partial():
    x = torch.randn(1, 7, 2, 10)
    module = torch_foo.nn.RotaryEmbedding(10, 7, rotary_dim=6, interleaved=True)
    halves = torch.cat([x[..., 0:6:2], x[..., 1:6:2]], -1)
    expected = rotated_as_in_llama(halves, torch.arange(7)).float()
    got = module(x)
    torch.testing.assert_close(got[..., 0:6:2], expected[..., :3])
    torch.testing.assert_close(got[..., 1:6:2], expected[..., 3:])
    assert torch.equal(got[..., 6:], x[..., 6:])
    assert "rotary_dim=6, interleaved=True" in repr(module)


@pytest.mark.parametrize("rotary_dim", [3, 6, -2])
def test_rotary_embedding_checks_rotary_dim(rotary_dim):
    message = rf"rotary_dim is {rotary_dim}, expected an even .* 0 to head_dim"
    with pytest.raises(ValueError, match=message):
        torch_foo.nn.RotaryEmbedding(4, 8, rotary_dim=rotary_dim)
    with pytest.raises(ValueError, match="rotary_dim is 5, expected an even"):
        torch_foo.nn.RotaryEmbedding(5, 8)


def test_rotary_embedding_checks_x():
    module = torch_foo.nn.RotaryEmbedding(4, 8)
    for shape in ((1, 2, 3, 6), (2, 3, 4)):
        with pytest.raises(
            RuntimeError, match=r"expected \(batch, seq, heads, 4\)"
        ):
            module(torch.ones(shape))
    with pytest.raises(RuntimeError, match="x has 9 positions, but cos has 8"):
        module(torch.ones(1, 9, 1, 4))


def test_rotary_embedding_keeps_float32_tables():
    module = torch_foo.nn.RotaryEmbedding(4, 8)
    assert not module.state_dict()
    cos = module.cos.clone()
    model = torch.nn.Sequential(module)
    for other in (
        model.bfloat16(),
        model.half(),
        model.double(),
        model.to(torch.float16),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert torch.equal(other[0].cos, cos)
        assert other[0].sin.dtype == torch.float32
        x = torch.randn(1, 8, 2, 4).bfloat16()
        assert other(x).dtype == torch.bfloat16
    meta = torch_foo.nn.RotaryEmbedding(4, 8, device="meta")
    assert meta.cos.is_meta
    assert model.to("meta")[0].sin.is_meta
    # Loading a state_dict does not fill the tables, so to_empty must.
    assert torch.equal(meta.to_empty(device="cpu").cos, cos)


def test_rotary_embedding_moves_to_a_device(device):
    module = torch_foo.nn.RotaryEmbedding(4, 8).to(device)
    x = torch.randn(1, 8, 2, 4)
    expected = torch_foo.nn.RotaryEmbedding(4, 8)(x)
    torch.testing.assert_close(module(x.to(device)).cpu(), expected)
    assert module.bfloat16().cos.dtype == torch.float32
    assert module.cos.device.type == device


def test_rotary_embedding_compiles_and_trains(device):
    module = torch_foo.nn.RotaryEmbedding(4, 8, device=device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 2, 4, device=device, requires_grad=True)
    positions = torch.tensor([5, 1, 7], device=device)
    for args in ((x,), (x, positions)):
        grads = [
            torch.autograd.grad(f(*args).square().sum(), x)
            for f in (module, compiled)
        ]
        torch.testing.assert_close(*grads)
        # A rotation changes no length, so this gradient is 2 x.
        torch.testing.assert_close(grads[0][0], 2 * x.detach())


# --- cross-entropy ----------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "none", "ignore_index": 2},
        {"label_smoothing": 0.1},
        {"size_average": False},
        {"reduce": False},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
def test_cross_entropy_loss_is_a_drop_in(options, dtype, device):
    ours = torch_foo.nn.CrossEntropyLoss(**options)
    theirs = torch.nn.CrossEntropyLoss(**options)
    assert isinstance(ours, torch.nn.CrossEntropyLoss)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    wide = torch.promote_types(dtype, torch.float32)
    for shape in ((7,), (4, 7)):
        logits = torch.randn(shape).to(device, dtype).requires_grad_()
        target = torch.randint(7, shape[:-1]).to(device)
        results = [
            ours(input=logits, target=target),
            theirs(logits.to(wide), target),
        ]
        torch.testing.assert_close(*results)
        grads = [torch.autograd.grad(r.sum(), logits) for r in results]
        torch.testing.assert_close(*grads)


def test_cross_entropy_loss_expects_classes_last():
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(5, (2, 3, 4))
    for reduction in ("none", "mean", "sum"):
        got = torch_foo.nn.CrossEntropyLoss(reduction=reduction)(logits, target)
        expected = torch.nn.CrossEntropyLoss(reduction=reduction)(
            logits.movedim(-1, 1), target
        )
        torch.testing.assert_close(got, expected)


def test_cross_entropy_loss_refuses_what_it_does_not_support():
    with pytest.raises(ValueError, match="weight is not supported"):
        torch_foo.nn.CrossEntropyLoss(torch.ones(3))
    loss = torch_foo.nn.CrossEntropyLoss()
    with pytest.raises(
        RuntimeError, match="class probabilities are not supported"
    ):
        loss(torch.ones(2, 3), torch.ones(2, 3) / 3)
    with pytest.raises(RuntimeError, match="reduction is 'average'"):
        torch_foo.nn.CrossEntropyLoss(reduction="average")(
            torch.ones(2, 3), torch.tensor([0, 1])
        )


def test_cross_entropy_loss_copies_and_compiles():
    module = torch_foo.nn.CrossEntropyLoss(label_smoothing=0.1)
    logits, target = torch.randn(4, 7), torch.randint(7, (4,))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        compiled,
    ):
        torch.testing.assert_close(
            other(logits, target), module(logits, target)
        )


# --- quantized ---------------------------------------------------------------

FORMATS = list(torch_foo.operators.blocks.FORMATS)


def quantized_pair(format="q8_0"):
    """Return a linear layer and an embedding that share their blocks."""
    weight = torch.randn(7, 256)
    linear = torch.nn.Linear(256, 7)
    table = torch.nn.Embedding(7, 256, padding_idx=1)
    with torch.no_grad():
        linear.weight.copy_(weight)
        table.weight.copy_(weight)
    return torch.nn.ModuleDict(
        {
            "linear": torch_foo.nn.QuantizedLinear.from_linear(linear, format),
            "table": torch_foo.nn.QuantizedEmbedding.from_embedding(
                table, format
            ),
        }
    ).requires_grad_(False)


@pytest.mark.parametrize("format", FORMATS)
def test_quantized_modules(format, dtype):
    model = quantized_pair(format).to(dtype)
    linear, table = model["linear"], model["table"]
    assert isinstance(linear, torch.nn.Linear)
    assert isinstance(table, torch.nn.Embedding)
    assert (linear.in_features, linear.out_features) == (256, 7)
    assert linear.weight.dtype == table.weight.dtype == torch.uint8
    assert linear.bias.dtype == dtype
    blocks = linear.weight
    assert torch.equal(blocks, table.weight)
    x = torch.randn(2, 3, 256, dtype=dtype)
    expected = torch_foo.linear_quantized(x, blocks, linear.bias, format=format)
    assert torch.equal(linear(x), expected)
    ids = torch.tensor([[6, 0], [1, 1]])
    rows = torch_foo.dequantize(blocks, format).to(dtype)
    assert torch.equal(table(ids), rows[ids])
    assert table(ids).dtype == dtype


def through_safetensors(model):
    safetensors = pytest.importorskip("safetensors.torch")
    state = safetensors.load(safetensors.save(model.state_dict()))
    twin = quantized_pair()
    twin.load_state_dict(state)
    return twin


def through_state_dict(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin = quantized_pair()
    twin.load_state_dict(torch.load(file))
    return twin


@pytest.mark.parametrize(
    "way",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        through_state_dict,
        through_safetensors,
    ],
)
def test_copies_of_quantized_modules(way):
    model = quantized_pair()
    twin = way(model)
    x, ids = torch.randn(3, 256), torch.arange(7)
    assert torch.equal(twin["linear"](x), model["linear"](x))
    assert torch.equal(twin["table"](ids), model["table"](ids))
    assert repr(twin) == repr(model)


def test_blocks_of_another_format_are_refused():
    state = quantized_pair("q4_0").state_dict()
    model = quantized_pair("q4_k")
    for name in ("linear", "table"):
        assert state[f"{name}.weight"].shape == model[name].weight.shape
    with pytest.raises(
        RuntimeError, match="the format 'q4_0', expected 'q4_k'"
    ):
        model.load_state_dict(state)
    with pytest.raises(
        RuntimeError, match="size mismatch"
    ):  # from another file
        quantized_pair("q8_0").load_state_dict(dict(state))
    floats = torch.nn.ModuleDict({"linear": torch.nn.Linear(256, 7)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(floats.state_dict(), strict=False)


def test_a_frozen_quantized_layer_lets_others_train():
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 256), quantized_pair()["linear"]
    )
    model(torch.randn(2, 5)).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[1].weight.grad is None
    with pytest.raises(RuntimeError, match="floating point"):
        model[1].weight.requires_grad_()


def test_what_quantized_modules_refuse():
    linear, table = (
        torch_foo.nn.QuantizedLinear,
        torch_foo.nn.QuantizedEmbedding,
    )
    blocks = torch.zeros(3, 34, dtype=torch.uint8)
    with pytest.raises(ValueError, match="format is 'q9', expected one of"):
        linear(blocks, "q9")
    with pytest.raises(ValueError, match=r"multiple of 20 for 'q4_1'"):
        linear(blocks, "q4_1")
    with pytest.raises(ValueError, match="blocks is float32 of shape"):
        table(blocks.float(), "q8_0")
    with pytest.raises(TypeError, match="blocks is list, expected a tensor"):
        table([1], "q8_0")
    with pytest.raises(ValueError, match=r"\(4,\), expected \(3,\)"):
        linear(blocks, "q8_0", torch.zeros(4))
    with pytest.raises(RuntimeError, match="a multiple of 32 for q8_0"):
        linear.from_linear(torch.nn.Linear(33, 2), "q8_0")
    with pytest.raises(ValueError, match=r"max_norm is 1\.0, expected None"):
        table.from_embedding(torch.nn.Embedding(3, 32, max_norm=1.0), "q8_0")


def test_quantized_modules_compile():
    model = quantized_pair()
    x, ids = torch.randn(3, 256), torch.arange(7)
    for module, argument in ((model["linear"], x), (model["table"], ids)):
        run = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert torch.equal(run(argument), module(argument))


def test_blocks_stay_frozen_when_their_module_is_trained():
    linear = torch_foo.nn.QuantizedLinear.from_linear(
        torch.nn.Linear(32, 2), "q8_0"
    )
    for wanted in (False, True):
        assert linear.requires_grad_(wanted) is linear
        assert linear.bias.requires_grad is wanted
        assert not linear.weight.requires_grad
