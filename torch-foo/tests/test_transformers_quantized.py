"""Models whose weights patch() quantizes."""

import copy
from functools import partial

import pytest
import torch
import torch_foo
from torch import nn

transformers = pytest.importorskip("transformers")

# These imports would fail without transformers.
import tiny_models  # noqa: E402
from tiny_models import COPIES, LAYERS, count_steps  # noqa: E402
from torch_foo.integrations.transformers import (  # noqa: E402
    _join,
    patch,
    unpatch,
)
from torch_foo.nn import QuantizedEmbedding, QuantizedLinear  # noqa: E402

# A multiple of the blocks' elements.
make = partial(tiny_models.make, hidden_size=64, intermediate_size=96)
LINEARS = 7 * LAYERS + 1
GONE = pytest.warns(UserWarning, match="their float weights are gone")


def dequantized(model: nn.Module, format: str, dtype: torch.dtype) -> nn.Module:
    """Return a model of floats whose weights hold what blocks can hold."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                blocks = torch_foo.quantize(module.weight, format)
                module.weight.copy_(torch_foo.dequantize(blocks, format))
    return twin.to(dtype)


def logits(model: nn.Module, seq: int = 30) -> torch.Tensor:
    ids = torch.arange(1, seq + 1).view(1, -1)
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("format", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "granite"])
def test_results(family, format, tied):
    model = make(family, tie_word_embeddings=tied)
    exact = logits(dequantized(model, format, torch.float64))
    report = patch(model, weights=format)
    assert report.replaced[f"weights {format}", "Linear"] == LINEARS
    assert report.replaced[f"weights {format}", "Embedding"] == 1
    assert type(model.lm_head) is QuantizedLinear
    assert type(model.model.embed_tokens) is QuantizedEmbedding
    shared = model.lm_head.weight is model.model.embed_tokens.weight
    assert shared is tied
    # Activations are rounded to 8 bits.
    error = (logits(model) - exact).norm() / exact.norm()
    assert error < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decode_step(dtype, monkeypatch):
    model = make("qwen2").to(dtype)
    patch(model, weights="q8_0")
    other = copy.deepcopy(model)
    patch(other, decode=False)
    for layer in other.model.layers:
        with pytest.warns(UserWarning, match="stay quantized"):
            unpatch(layer)
    patch(other, decode=False)
    steps = count_steps(monkeypatch)
    settings = {"max_new_tokens": 10, "do_sample": False}
    ids = torch.randint(1, 97, (2, 20))
    expected = other.generate(ids, **settings)
    assert not steps
    assert torch.equal(model.generate(ids, **settings), expected)
    assert len(steps) == 9 * LAYERS


def test_one_product_for_what_has_one_input():
    model = make()
    patch(model, weights="q4_0")
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linears in (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (mlp.gate_proj, mlp.up_proj),
        ):
            weights = [linear.weight for linear in linears]
            assert _join.adjoin(weights)


def test_rules():
    model = make(hidden_size=256, tie_word_embeddings=False)
    report = patch(
        model,
        weights={
            "lm_head": "q6_k",
            "mlp.up_proj": "q4_0",
            "*.1.mlp.*": "q4_1",
            "self_attn.*": "q4_k",
        },
    )
    layers = model.model.layers
    assert model.lm_head.format == "q6_k"
    assert layers[1].mlp.up_proj.format == "q4_0"  # the first that matches
    assert layers[1].mlp.gate_proj.format == "q4_1"
    assert type(layers[0].mlp.gate_proj) is nn.Linear
    assert layers[0].self_attn.o_proj.format == "q4_k"
    assert type(model.model.embed_tokens) is nn.Embedding
    assert report.replaced["weights q4_k", "Linear"] == 4 * LAYERS
    # Heads that share their weight with an embedding do so after it.
    model = make(tie_word_embeddings=True)
    patch(model, weights={"lm_head": "q8_0"})
    assert model.model.embed_tokens.weight is model.lm_head.weight


def test_rules_for_weights_that_are_shared():
    embedding, head = "model.embed_tokens", "lm_head"
    model = make(tie_word_embeddings=True)
    for rule in (
        {head: "q8_0", "*": "q4_0"},
        {"*.embed_tokens": "q4_0", head: "q8_0"},
    ):
        message = f"q4_0 for {embedding} and q8_0 for {head}, which have"
        with pytest.raises(ValueError, match=message):
            patch(model, weights=rule)
    assert type(model.lm_head) is nn.Linear
    report = patch(model, weights={head: "q8_0"})
    note = f"{embedding} is q8_0 too, because it has the weight of {head}"
    assert note in report.notes
    # Parametrizations make weights that are soon gone.
    model = make()
    for layer in model.model.layers:
        nn.utils.parametrizations.weight_norm(layer.mlp.up_proj)
    patch(model, weights={"*.0.mlp.*": "q8_0", "*.1.mlp.*": "q4_0"})
    # A rule for both needs no note.
    assert len(patch(make(tie_word_embeddings=True), weights="q8_0").notes) == 1


def test_what_cannot_be_quantized_is_left():
    model = make(intermediate_size=90)
    hooked = model.model.layers[0].self_attn.k_proj
    hooked.register_forward_hook(lambda *_: None)
    calls = model.model.layers[0].self_attn.v_proj
    calls.forward = calls.forward
    model.lm_head = nn.utils.parametrizations.weight_norm(model.lm_head)
    model.model.embed_tokens.max_norm = 1.0
    left = patch(model, weights="q8_0").left
    reason = "its rows have 90 numbers, expected a multiple of 32 for q8_0"
    assert left["Linear", reason] == LAYERS
    assert left["Linear", "it has hooks"] == 1
    reason = "its forward was already replaced by another library"
    assert left["Linear", reason] >= 1
    assert left["ParametrizedLinear", "it is not a torch.nn.Linear"] >= 1
    assert left["Embedding", "its max_norm is 1.0, expected None"] == 1
    logits(model)
    left = patch(make().to("meta"), weights="q8_0").left
    assert left["Linear", "its weight is on meta, expected the CPU"] == LINEARS


def test_wrong_rules():
    with pytest.raises(ValueError, match="the format 'q9', expected one of"):
        patch(make(), weights="q9")
    with pytest.raises(ValueError, match="'head' in weights is the name of no"):
        patch(make(), weights={"head": "q8_0"})
    with pytest.raises(TypeError, match="not the class LlamaForCausalLM"):
        patch(transformers.LlamaForCausalLM, weights="q8_0")
    for wrong in (["q8_0"], True, {"*": ["q8_0"]}, {1: "q8_0"}):
        with pytest.raises(TypeError, match="expected a format, such as"):
            patch(make(), weights=wrong)
    with pytest.raises(ValueError, match="weights is empty"):
        patch(make(), weights={})
    with pytest.raises(ValueError, match="keep is for weights"):
        patch(make(), keep=True)


def test_twice():
    model = make()
    assert "the float weights are gone" in str(patch(model, weights="q8_0"))
    blocks = model.lm_head.weight
    again = patch(model, weights="q8_0")
    assert not again.left
    assert model.lm_head.weight is blocks
    other = patch(model, weights="q4_0")
    reason = "its weight is q8_0 already, and the float one is gone"
    assert other.left["QuantizedLinear", reason] == LINEARS
    assert model.lm_head.format == "q8_0"
    with GONE:
        assert unpatch(model)
    assert model.lm_head.format == "q8_0"


def test_keep():
    model = make(tie_word_embeddings=True)
    before = dict(model.named_parameters())
    expected = logits(model)
    names = list(model.state_dict())
    for format in ("q8_0", "q4_0", "q4_0"):
        report = patch(model, weights=format, keep=True)
        assert not report.left
        assert not report.notes
        assert model.lm_head.format == format
        assert "lm_head" in dict(model.named_modules())
        assert list(model.state_dict()) == names
    model = copy.deepcopy(model)
    assert unpatch(model) > LINEARS
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), expected)
    with pytest.warns(UserWarning, match="is not patched"):
        unpatch(model)


def test_kept_weights_follow_to_another_dtype():
    model = make(tie_word_embeddings=True)
    expected = logits(copy.deepcopy(model).bfloat16())
    patch(model, weights="q8_0", keep=True)
    model.bfloat16()
    unpatch(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model), expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("way", COPIES)
def test_copies(way):
    model = make()
    patch(model, weights="q4_1")
    twin = way(model)
    assert torch.equal(logits(twin), logits(model))
    assert torch.equal(logits(twin, 1), logits(model, 1))


def test_another_dtype():
    model = make()
    patch(model, weights="q8_0")
    blocks = {
        n: m.weight for n, m in model.named_modules() if hasattr(m, "format")
    }
    model.bfloat16()
    assert logits(model).dtype == torch.bfloat16
    for name, weight in blocks.items():
        assert model.get_submodule(name).weight is weight
        assert weight.dtype == torch.uint8


def test_saved_weights(tmp_path):
    model = make()
    patch(model, weights="q4_0")
    model.save_pretrained(tmp_path)
    twin = make()
    patch(twin, weights="q4_0")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    from safetensors.torch import load_file

    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(twin), logits(model))


def test_what_is_not_quantized_trains():
    """As adapters do, beside a frozen quantized weight."""
    model = make("qwen2")
    patch(model, weights="q8_0")
    model.train()
    ids = torch.randint(1, 97, (2, 9))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    losses = []
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in parameters)
    assert losses[-1] < losses[0]
    with pytest.raises(RuntimeError, match="floating point"):
        model.requires_grad_(True)
