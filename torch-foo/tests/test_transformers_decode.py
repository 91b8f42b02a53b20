"""The decode step: the same tokens, and who may look into a model."""

import copy
import gc
import itertools
import pickle

import pytest
import torch
import torch_foo
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

transformers = pytest.importorskip("transformers")

# These imports would fail without transformers.
from tiny_models import COPIES, LAYERS, count_steps, make  # noqa: E402
from torch_foo.integrations.transformers import (  # noqa: E402
    _cache,
    _decode,
    _join,
    patch,
    unpatch,
)
from transformers import (  # noqa: E402
    DynamicCache,
    StaticCache,
    modeling_utils,
)
from transformers.generation.streamers import BaseStreamer  # noqa: E402
from transformers.integrations.sdpa_attention import (  # noqa: E402
    sdpa_attention_forward,
)

CACHE = _cache.CACHE  # the name of the argument
STEPPING = ["llama", "mistral", "qwen2", "qwen3", "smollm3"]


@pytest.fixture
def steps(monkeypatch):
    return count_steps(monkeypatch)


def prompt(rows: int = 2, length: int = 20) -> dict[str, torch.Tensor]:
    """Make sequences, all but the last with padding on the left."""
    ids = torch.randint(1, 97, (rows, length))
    mask = torch.ones_like(ids)
    for row in range(rows - 1):
        mask[row, : 3 + row % 5] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Streamer(BaseStreamer):
    """Collect the tokens."""

    def __init__(self) -> None:
        self.tokens = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        pass


WAYS = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 5},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "several": {"do_sample": True, "num_return_sequences": 4},
    "penalty": {"repetition_penalty": 1.3},
    # transformers 4 needs a token that ends a candidate.
    "lookup": {"prompt_lookup_num_tokens": 3, "eos_token_id": 96},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", STEPPING)
def test_same_tokens(family, way, steps):
    model = make(family)
    settings = {"max_new_tokens": 12, "do_sample": False, **WAYS[way]}
    # Candidates from the prompt are for one sequence.
    inputs = prompt(1 if way == "lookup" else 2)

    def generate() -> torch.Tensor:
        torch.manual_seed(0)
        return model.generate(**inputs, **settings)

    expected = generate()
    patch(model)
    assert torch.equal(generate(), expected)
    assert len(steps) >= LAYERS * (1 if way == "lookup" else 11)
    assert unpatch(model)
    assert torch.equal(generate(), expected)


def test_streaming(steps):
    model = make()
    inputs = {"input_ids": torch.randint(1, 97, (1, 5))}
    tokens = []
    for _ in range(2):
        streamer = Streamer()
        model.generate(
            **inputs, max_new_tokens=9, do_sample=False, streamer=streamer
        )
        tokens.append(streamer.tokens)
        patch(model)
    assert tokens[0] == tokens[1]
    assert len(steps) == 9 * LAYERS  # a short prompt, too


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", STEPPING)
def test_16_bits_compute_the_same_as_module_by_module(
    family, dtype, steps, monkeypatch
):
    """With torch_foo's attention there, too, which rounds less than torch's."""

    def attention(query, key, value, attn_mask, scale, **_):
        assert attn_mask is not None
        return torch_foo.attention(query, key, value, attn_mask, scale=scale)

    model, inputs = make(family).to(dtype), prompt()
    settings = {"max_new_tokens": 8, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    patch(model, decode=False)
    expected = model.generate(**inputs, **settings)
    assert not steps
    patch(model)
    actual = model.generate(**inputs, **settings)
    assert len(steps) == 7 * LAYERS
    for a, b in zip(actual.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_as_accurate_as_before(dtype, steps):
    """The step's attention rounds less than torch's; the rest as before."""

    def error(model):
        return (step(model).double() - exact).norm().item()

    before = after = 0.0
    for seed in range(40):
        model = make(seed=seed).to(dtype)
        exact = step(copy.deepcopy(model).double())
        before += error(model)
        patch(model)
        after += error(model)
    assert len(steps) == 40 * LAYERS
    assert after <= 1.1 * before


# --- who looks into a model -------------------------------------------------


def cached(model: nn.Module, length: int = 20) -> dict:
    """Return the arguments of a decode step."""
    with torch.no_grad():
        ids = torch.arange(1, length + 1).view(1, -1)
        output = model(ids, use_cache=True)
    name = "cache" if "cache" in output else "past_key_values"
    return {name: output[name], "input_ids": ids[:, :1], "use_cache": True}


def step(model: nn.Module, length: int = 20, **more: object) -> torch.Tensor:
    arguments = cached(model, length)
    with torch.no_grad():
        return model(**arguments, **more).logits


PARTS = [
    "self_attn",
    "mlp",
    "mlp.act_fn",
    "mlp.down_proj",
    "self_attn.q_proj",
    "input_layernorm",
    "post_attention_layernorm",
]


@pytest.mark.parametrize("part", PARTS)
def test_hooks_inside_of_a_layer(part, steps):
    model = make()
    expected = step(model)
    patch(model)
    module = model.model.layers[0].get_submodule(part)
    calls = []
    arguments = cached(model)
    for register in (
        module.register_forward_hook,
        module.register_forward_pre_hook,
    ):
        calls.clear()
        hook = register(lambda *_: calls.append(1))
        steps.clear()
        with torch.no_grad():
            torch.testing.assert_close(model(**arguments).logits, expected)
        assert calls
        assert len(steps) == LAYERS - 1  # the other layers are not observed
        hook.remove()
        arguments = cached(model)
    step(model)
    assert len(steps) == LAYERS - 1 + LAYERS


def test_hooks_on_all_modules(steps):
    model = make()
    patch(model)
    seen = set()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.add(type(module).__name__)
    )
    try:
        step(model)
    finally:
        hook.remove()
    assert {"LlamaMLP", "LlamaRMSNorm", "LlamaAttention"} <= seen
    assert not steps


def test_a_forward_that_another_library_put_there(steps):
    model = make()
    expected = step(model)
    patch(model)
    for part in PARTS:
        module = model.model.layers[0].get_submodule(part)
        before = vars(module).get("forward")
        inner, calls = module.forward, []

        def forward(*args, inner=inner, calls=calls, **more):
            calls.append(1)
            return inner(*args, **more)

        module.forward = forward
        steps.clear()
        torch.testing.assert_close(step(model), expected)
        assert calls, part
        assert len(steps) == LAYERS - 1, part
        if before is None:
            del module.forward
        else:
            module.forward = before
    steps.clear()
    step(model)
    assert len(steps) == LAYERS


def test_modules_that_are_replaced(steps):
    model, other = make(), make(seed=1)
    patch(model)
    step(model)
    for name in ("self_attn.v_proj", "mlp.up_proj", "mlp"):
        for m in (model, make()):
            parent, _, child = name.rpartition(".")
            layer = m.model.layers[1]
            new = copy.deepcopy(other.model.layers[1].get_submodule(name))
            setattr(layer.get_submodule(parent), child, new)
            if m is model:
                actual = step(m)
            else:
                m.load_state_dict(model.state_dict())
                torch.testing.assert_close(actual, step(m))


def test_gradients(steps):
    model = make()
    patch(model)
    arguments = cached(model)
    steps.clear()
    logits = model(**arguments).logits
    logits.sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None
    assert not steps


@pytest.mark.parametrize("output", ["attentions", "hidden_states"])
def test_outputs_of_layers(output, steps):
    model = make()
    if output == "attentions":
        model.set_attn_implementation("eager")
    arguments = [cached(model) for _ in range(2)]
    outputs = []
    for inputs in arguments:
        with torch.no_grad():
            outputs.append(model(**inputs, **{f"output_{output}": True}))
        patch(model)
    expected, actual = (o[output] for o in outputs)
    assert len(expected) == len(actual) == LAYERS + (output != "attentions")
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b)


def test_outputs_that_were_asked_for_once(steps):
    """Transformers 5 leaves its hooks in the model."""
    model = make()
    patch(model)
    ids = torch.ones(1, 20, dtype=torch.int64)
    with torch.no_grad():
        model(ids, output_hidden_states=True)
        hidden = model(**cached(model), output_hidden_states=True).hidden_states
    assert len(hidden) == LAYERS + 1
    steps.clear()
    step(model)
    assert len(steps) == LAYERS
    attention = model.model.layers[0].self_attn
    attention.register_forward_hook(lambda *_: None)
    step(model)
    assert len(steps) == LAYERS + LAYERS - 1


def test_attention_of_another_kind(steps):
    model = make()
    patch(model)
    model.set_attn_implementation("eager")
    step(model)
    assert not steps
    reason = "its attention is eager, expected sdpa"
    assert patch(model).left == {("LlamaDecoderLayer", reason): LAYERS}


def test_training_and_autocast(steps):
    model = make(attention_dropout=0.5)
    patch(model)
    arguments = cached(model)
    steps.clear()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(**arguments)
    model.train()
    step(model)
    assert not steps


@pytest.mark.parametrize(("rows", "used"), [(16, True), (17, False)])
def test_rows(rows, used, steps):
    model = make()
    settings = {"max_new_tokens": 4, "do_sample": False}
    inputs = prompt(rows)
    expected = model.generate(**inputs, **settings)
    patch(model)
    assert torch.equal(model.generate(**inputs, **settings), expected)
    assert bool(steps) is used


@pytest.mark.parametrize("rows", [1, 2])  # without a mask, and with one
@pytest.mark.parametrize("way", ["greedy", "lookup"])
def test_masks(rows, way, steps):
    model, inputs = make(), prompt(1)
    if rows == 2 and way == "greedy":
        inputs = prompt(2)
    elif rows == 2:
        inputs["attention_mask"][0, :3] = 0
    settings = {"max_new_tokens": 8, "do_sample": False, **WAYS[way]}
    expected = model.generate(**inputs, **settings)
    patch(model)
    assert torch.equal(model.generate(**inputs, **settings), expected)
    assert any(mask is not None for mask in steps) is (
        rows == 2 or way == "lookup"
    )
    assert len(steps) > 0


def test_masks_that_are_left_to_transformers(steps):
    """One mask for each head."""
    model = make()
    heads = model.config.num_attention_heads
    mask = torch.ones(1, heads, 1, 21, dtype=torch.bool)
    mask[:, 0, :, 5] = False
    expected = step(model, attention_mask=mask)
    patch(model)
    torch.testing.assert_close(step(model, attention_mask=mask), expected)
    assert not steps


def test_attention_that_another_library_put_there(steps, monkeypatch):
    model, calls = make(), []
    patch(model)
    expected = step(model)

    def attention(*args, **more):
        calls.append(1)
        return sdpa_attention_forward(*args, **more)

    attentions = modeling_utils.ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(attentions, "sdpa", attention)
    arguments = cached(model)
    calls.clear()
    steps.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(**arguments).logits, expected)
    assert len(calls) == LAYERS
    assert not steps


def test_modes_that_see_all_operators(steps):
    model = make()
    patch(model)
    arguments = cached(model)
    steps.clear()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**arguments)
    assert counter.get_total_flops() > 0
    assert not steps


def test_a_static_cache_is_left_to_transformers(steps):
    model = make()
    patch(model)
    inputs, settings = prompt(), {"max_new_tokens": 4, "do_sample": False}
    settings["disable_compile"] = True
    expected = make().generate(**inputs, **settings)
    actual = model.generate(**inputs, **settings, cache_implementation="static")
    assert torch.equal(actual, expected)
    assert not steps


@pytest.mark.parametrize("compiled", [False, True])
def test_compile(compiled):
    model = make()
    expected = step(model)
    patch(model)
    run = torch.compile(model, backend="eager") if compiled else model
    torch.testing.assert_close(step(run), expected)


# --- a whole model's step ---------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Count the layers of each call of the operator."""
    counts, call = [], _decode._Plan.__call__

    def counted(plan, x, rooms, *rest):
        counts.append(len(rooms))
        return call(plan, x, rooms, *rest)

    monkeypatch.setattr(_decode._Plan, "__call__", counted)
    return counts


@pytest.mark.parametrize("family", STEPPING)
def test_one_call_for_each_token(family, calls):
    model, inputs = make(family), prompt()
    settings = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(**inputs, **settings)
    patch(model)
    assert torch.equal(model.generate(**inputs, **settings), expected)
    assert calls == [LAYERS] * 5


@pytest.mark.parametrize("window", [8, 12, 24])
@pytest.mark.parametrize("has_window", [False, True])
def test_windows(window, has_window, calls):
    """Of a cache that keeps all tokens, or those in the window."""
    model = make("mistral", sliding_window=window)
    inputs, results = prompt(), []
    for _ in range(2):
        cache = DynamicCache(config=model.config if has_window else None)
        calls.clear()
        tokens = model.generate(
            **inputs,
            max_new_tokens=10,
            do_sample=False,
            **{CACHE: cache},
        )
        results.append(tokens)
        patch(model)
    assert torch.equal(*results)
    fits = has_window or window == 24
    assert calls.count(LAYERS) == (9 if has_window else 4 if fits else 0)


def replace_forward(layer, seen):
    """Put another library's forward around a layer's."""
    inner = layer.forward

    def forward(*args, **more):
        seen.append(args[0])
        return inner(*args, **more)

    layer.forward = forward


class Wrapper(nn.Module):
    """What sharding and checkpointing put around a layer."""

    def __init__(self, layer, seen) -> None:
        super().__init__()
        self.layer, self.seen = layer, seen

    def forward(self, x, *args, **more):
        self.seen.append(x)
        return self.layer(x, *args, **more)


OBSERVERS = {
    "hook": lambda layers, seen: layers[1].register_forward_hook(
        lambda _, args, y: seen.append(args[0])
    ),
    "pre-hook": lambda layers, seen: layers[1].register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    ),
    "forward": lambda layers, seen: replace_forward(layers[1], seen),
    "wrapper": lambda layers, seen: layers.__setitem__(
        1, Wrapper(layers[1], seen)
    ),
    "compile": lambda layers, seen: layers[1].compile(
        backend=lambda graph, _: seen.append(1) or graph.forward
    ),
}


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observers_of_a_layer(observer, calls):
    """They see what comes from the layers before, in either order."""
    model, other, seen, wanted = make(), make(), [], []
    patch(model)
    step(model)
    calls.clear()
    OBSERVERS[observer](model.model.layers, seen)
    arguments = cached(model)
    seen.clear()
    with torch.no_grad():
        actual = model(**arguments).logits
    assert LAYERS not in calls
    torch.testing.assert_close(actual, step(other))
    if observer != "compile":
        other.model.layers[1].register_forward_pre_hook(
            lambda _, args: wanted.append(args[0])
        )
        arguments = cached(other)
        wanted.clear()
        with torch.no_grad():
            other(**arguments)
        torch.testing.assert_close(seen, wanted)
    else:
        assert seen


def test_layers_that_are_left_out_or_swapped(calls):
    model, other = make(), make()
    patch(model)
    for change in (
        lambda m: m.config.__setattr__("num_hidden_layers", 1),
        lambda m: m.config.__setattr__("num_hidden_layers", LAYERS),
        lambda m: setattr(m.model, "layers", m.model.layers[::-1]),
        lambda m: m.model.layers.__delitem__(0),
        lambda m: m.model.layers.append(m.model.layers[0]),  # twice
    ):
        for m in (model, other):
            change(m)
        calls.clear()
        torch.testing.assert_close(step(model), step(other))
    assert calls


def before_and_after(calls, arguments):
    """Return a model's results for a token without and with patch()."""
    model, results = make(), []
    for _ in range(2):
        inputs = cached(model) | arguments
        calls.clear()
        with torch.no_grad():
            results.append(model.model(**inputs))
        patch(model)
    return results


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention_mask": torch.ones(1, 21, dtype=torch.int64)},
        {"attention_mask": (torch.arange(21) > 4).long()[None]},
        {"attention_mask": (torch.arange(21) > 4)[None, None, None]},
        {"position_ids": torch.tensor([[7]])},
        {"cache_position": torch.tensor([7])},
        {"use_cache": False},
        {"output_attentions": False, "return_dict": True},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_arguments_of_a_model(arguments, calls):
    expected, actual = before_and_after(calls, arguments)
    assert calls
    assert type(actual) is type(expected)
    assert actual.keys() == expected.keys()
    torch.testing.assert_close(
        actual.last_hidden_state, expected.last_hidden_state
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"return_dict": False},
        {"output_hidden_states": True},
        {"input_ids": None, "inputs_embeds": torch.ones(1, 1, 32)},
        {"input_ids": torch.ones(1, 2, dtype=torch.int64)},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_what_a_model_does_itself(arguments, calls):
    expected, actual = before_and_after(calls, arguments)
    assert LAYERS not in calls
    assert type(actual) is type(expected)
    assert len(actual) == len(expected)
    torch.testing.assert_close(actual[0], expected[0])
    if "output_hidden_states" in arguments:
        torch.testing.assert_close(actual.hidden_states, expected.hidden_states)


def test_a_config_that_asks_for_hidden_states(calls):
    model = make(output_hidden_states=True)
    results = []
    for _ in range(2):
        arguments = cached(model)
        calls.clear()
        with torch.no_grad():
            results.append(model(**arguments).hidden_states)
        patch(model)
    torch.testing.assert_close(*reversed(results))
    assert LAYERS not in calls


def test_traces(calls):
    model = make().requires_grad_(False)
    patch(model)
    arguments = cached(model)
    calls.clear()

    def run(ids):
        return model(**arguments | {"input_ids": ids}).logits

    with torch.no_grad():
        torch.jit.trace(run, arguments["input_ids"], check_trace=False)
    assert not calls


def test_windows_of_some_layers(calls):
    kinds = ["sliding_attention", "full_attention"]
    settings = {"use_sliding_window": True, "sliding_window": 8}
    model, inputs = make("qwen2", **settings, layer_types=kinds), prompt()
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    patch(model)
    actual = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(actual, expected)
    assert LAYERS not in calls


def test_numbers_that_change(calls):
    model, other = make(), make()
    patch(model)
    step(model)
    for m in (model, other):
        m.model.layers[0].input_layernorm.variance_epsilon = 0.5
    torch.testing.assert_close(step(model), step(other))
    for m in (model, other):
        m.model.layers[1].self_attn.scaling = -3.0
    torch.testing.assert_close(step(model), step(other))
    assert calls


def test_a_cache_that_offloads_does_more_than_append():
    cache = DynamicCache()
    assert _cache.appends(cache)
    cache.offloading = True
    assert not _cache.appends(cache)


def test_a_cache_that_is_missing_or_another_models(calls):
    model, other = make(), make(num_key_value_heads=4)
    ids = torch.ones(1, 1, dtype=torch.int64)
    with torch.no_grad():
        expected = model(ids).logits
        patch(model)
        torch.testing.assert_close(model(ids).logits, expected)
        arguments = cached(other)
        with pytest.raises(RuntimeError):
            model(**arguments)


# --- weights ----------------------------------------------------------------


def joined(model: nn.Module) -> int:
    """Count the layers in which gate and up have one memory."""
    return sum(
        _join.adjoin([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
        for layer in model.model.layers
    )


def test_parameters_stay_what_they_are():
    model = make("qwen2")  # which has biases
    before = dict(model.named_parameters())
    values = {name: p.detach().clone() for name, p in before.items()}
    patch(model)
    assert joined(model) == LAYERS
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert torch.equal(parameter, values[name])
    unpatch(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, values[name])


def test_memory_that_others_see_stays_where_it_is():
    model = make()
    state = model.state_dict()
    patch(model)
    assert joined(model) == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)
    assert all((tensor == 3).all() for tensor in state.values())


def test_weights_that_change(steps):
    model, other = make(), make(seed=1)
    patch(model)
    before = step(model)
    assert steps
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(step(model), step(other))
    for layer in model.model.layers:  # of its own memory
        weight = layer.mlp.up_proj.weight
        weight.data = weight.data * 2
    with torch.no_grad():
        for layer in other.model.layers:
            layer.mlp.up_proj.weight *= 2
    torch.testing.assert_close(step(model), step(other))
    assert (step(model) - before).abs().max() > 1e-3
    model.bfloat16()
    other.bfloat16()
    steps.clear()
    torch.testing.assert_close(step(model), step(other), atol=0.02, rtol=0.02)
    assert len(steps) == LAYERS


def test_weights_of_any_strides(steps):
    model, other = make(), make()
    patch(model)
    for name in ("self_attn.o_proj", "self_attn.k_proj", "mlp.up_proj"):
        weight = model.model.layers[0].get_submodule(name).weight
        weight.data = weight.data.t().contiguous().t()
    torch.testing.assert_close(step(model), step(other))
    assert len(steps) == LAYERS


def test_weights_that_become_views_of_themselves(steps):
    """Their memory begins where it did."""
    model, other = make(), make()
    patch(model)
    step(model)
    for m in (model, other):
        for name in ("self_attn.q_proj", "self_attn.o_proj"):
            weight = m.model.layers[0].get_submodule(name).weight
            weight.data = weight.data.t()
        mlp = m.model.layers[1].mlp
        for name in ("gate_proj", "up_proj"):
            weight = mlp.get_submodule(name).weight
            weight.data = weight.data[:40]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, :40]
    torch.testing.assert_close(step(model), step(other))


@pytest.mark.parametrize("rows", [7, 4096])
@pytest.mark.parametrize(
    "name",
    [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ],
)
def test_weights_of_another_size(name, rows, steps):
    """Results of more rows would be written past their memory."""
    model = make()
    patch(model)
    cache = DynamicCache(config=model.config)
    ids = [*range(1, 20)]
    tokens_after(model, cache, ids)
    layer = model.model.layers[1]
    part = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
    weight = getattr(part, name).weight
    before = weight.data
    weight.data = torch.ones(rows, weight.shape[1])
    # Queries of more heads are refused as an input of o_proj.
    with pytest.raises(
        RuntimeError, match=r"rows, expected|expected \(n, 4096"
    ):
        tokens_after(model, cache, [3])
    weight.data = before
    assert cache.get_seq_length() == len(ids)
    actual = tokens_after(model, cache, [3])
    fresh = DynamicCache(config=model.config)
    expected = tokens_after(model, fresh, [*ids, 3])[-1:]
    torch.testing.assert_close(actual, expected)
    assert steps


def test_gates_that_do_not_exist(monkeypatch):
    model = make()
    patch(model)
    call = _decode._decoder_layers
    monkeypatch.setattr(
        _decode, "_decoder_layers", lambda *args: call(*args[:-1], "silu,sil")
    )
    with pytest.raises(RuntimeError, match="gate is 'sil', expected 'silu'"):
        step(model)


def test_weights_of_two_dtypes(steps):
    model, other = make(), make()
    for m in (model, other):
        m.model.layers[0].self_attn.k_proj.bfloat16()
        m.model.layers[1].mlp.bfloat16()
    patch(model)
    for m in (model, other):
        with pytest.raises(RuntimeError, match="dtype"):
            step(m)


@pytest.mark.parametrize("way", COPIES)
def test_copies(way, steps):
    model = make()
    patch(model)
    expected = step(model)
    steps.clear()
    twin = way(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(step(twin), expected)
    assert len(steps) == LAYERS


def test_a_replica_of_a_layer(steps):
    model = make()
    patch(model)
    step(model)
    layer = model.model.layers[0]
    twin = layer._replicate_for_data_parallel()
    twin.mlp = copy.deepcopy(layer.mlp)
    nn.init.zeros_(twin.mlp.down_proj.weight)
    model.model.layers[0] = twin
    actual = step(model)
    nn.init.zeros_(layer.mlp.down_proj.weight)
    model.model.layers[0] = layer
    torch.testing.assert_close(actual, step(model))


def test_patch_in_inference_mode_then_train():
    model = make()
    with torch.inference_mode():
        patch(model)
    ids = torch.ones(1, 20, dtype=torch.int64)
    model(ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize("format", [None, "q8_0"])
def test_joined_weights_are_saved_once(format, tmp_path):
    """For safetensors and pickle, each weight has a storage of its own."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = make(hidden_size=64)
    patch(model, weights=format)
    assert joined(model) == LAYERS
    size = sum(p.nbytes for p in model.parameters())
    for p in model.parameters():
        assert p.untyped_storage().nbytes() == p.nbytes
    safetensors.save_model(model, tmp_path / "model")
    state = safetensors.load_file(tmp_path / "model")
    for name, tensor in state.items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert len(pickle.dumps(model)) < size + 100_000
    assert not patch(model).left
    assert joined(model) == LAYERS


def test_joined_weights_outlive_each_other():
    model = make()
    patch(model)
    step(model)
    weight = model.model.layers[0].self_attn.k_proj.weight
    expected = weight.detach().clone()
    del model
    gc.collect()
    torch.ones(2**16)
    assert torch.equal(weight, expected)


def test_saved_with_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = make()
    patch(model)
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    safetensors.save_file(model.model.state_dict(), tmp_path / "state")
    state = safetensors.load_file(tmp_path / "state")
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(loaded.model.state_dict()[name], tensor)


# --- caches -----------------------------------------------------------------


def tokens_after(model, cache, ids: list[int]) -> torch.Tensor:
    """Return the logits of tokens that are given one by one."""
    with torch.no_grad():
        return torch.stack(
            [
                model(
                    torch.tensor([[i]]), use_cache=True, **{CACHE: cache}
                ).logits.flatten()
                for i in ids
            ]
        )


def forked(model, fork) -> list[torch.Tensor]:
    """Return the logits of two ends of a text after the same beginning."""
    first = DynamicCache()
    tokens_after(model, first, [*range(1, 30)])
    second = fork(first)
    ends = [first, [3, 4, 5]], [second, [6, 7]], [first, [8]], [second, [9]]
    return [tokens_after(model, *end) for end in ends]


def shallow(cache):
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def cropped(cache):
    twin = copy.deepcopy(cache)
    twin.crop(-2)
    return twin


def dtypes(cache) -> set[torch.dtype]:
    return {
        t.dtype for layer in cache.layers for t in (layer.keys, layer.values)
    }


@pytest.mark.parametrize("family", STEPPING)
@pytest.mark.parametrize(
    ("weights", "asked", "expected"),
    [
        (None, None, torch.float32),
        (None, torch.float16, torch.float16),
        (None, torch.bfloat16, torch.bfloat16),
        ("q8_0", None, torch.float16),
        ("q8_0", torch.float32, torch.float32),
        ("q8_0", torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_dtype_of_a_cache(family, weights, asked, expected, steps):
    sizes = {"head_dim": 8, "hidden_size": 64, "intermediate_size": 64}
    model, ids = make(family, **sizes), [*range(1, 30)]
    patch(model, weights=weights)
    results = []
    for dtype in (torch.float32, asked):
        patch(model, cache_dtype=dtype)
        cache = DynamicCache(config=model.config)
        results.append(tokens_after(model, cache, ids))
    assert dtypes(cache) == {expected}
    assert len(steps) == 2 * len(ids) * LAYERS
    exact, rounded = results
    # Where a rounded key brings an activation to the next of 8 bits, the error
    # grows.
    bound = {torch.float32: 0, torch.float16: 0.01, torch.bfloat16: 0.03}
    assert (rounded - exact).norm() <= bound[expected] * exact.norm()
    # What transformers computes goes on with the same states.
    twin = copy.deepcopy(model)
    twin.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    states = copy.deepcopy(cache)
    steps.clear()
    actual = tokens_after(twin, states, [3, 4, 5])
    assert len(steps) == 3 * (LAYERS - 1)
    wanted = tokens_after(model, cache, [3, 4, 5])
    assert (actual - wanted).norm() <= 0.03 * wanted.norm()


def test_a_model_of_16_bits_has_a_cache_of_its_own(steps):
    model = make(hidden_size=64).bfloat16()
    patch(model, weights="q8_0", cache_dtype=torch.float16)
    cache = DynamicCache(config=model.config)
    tokens_after(model, cache, [1, 2, 3])
    assert steps
    assert dtypes(cache) == {torch.bfloat16}


def test_a_dtype_that_no_cache_has():
    with pytest.raises(ValueError, match=r"cache_dtype is torch\.int8, expect"):
        patch(make(), cache_dtype=torch.int8)


@pytest.mark.parametrize("fork", [copy.deepcopy, shallow, cropped])
def test_forks_of_a_cache(fork, steps):
    model = make()
    expected = forked(model, fork)
    patch(model)
    for a, b in zip(forked(model, fork), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert steps


def test_states_that_were_given_out_never_change(steps):
    model = make()
    patch(model)
    cache = DynamicCache()
    tokens_after(model, cache, [*range(1, 30)])
    held = [
        tensor
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    ]
    values = [tensor.clone() for tensor in held]
    cache.crop(-5)
    tokens_after(model, cache, [*range(50, 60)])
    assert all(map(torch.equal, held, values))


def test_a_cache_appends_in_place(steps):
    model = make()
    patch(model)
    cache = DynamicCache()
    tokens_after(model, cache, [1, 2, 3])
    pointers = set()
    for token in range(40):
        tokens_after(model, cache, [token])
        pointers.add(cache.layers[0].keys.data_ptr())
    assert len(pointers) == 1
    assert cache.get_seq_length() == 43


def test_a_cache_of_inference_mode_outside_of_it(steps):
    model = make()
    expected = forked(model, copy.deepcopy)[0]
    patch(model)
    with torch.inference_mode():
        cache = DynamicCache()
        tokens_after(model, cache, [*range(1, 30)])
    actual = tokens_after(model, cache, [3, 4, 5])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("batches", [(1, 2), (2, 1)])
def test_a_cache_of_another_batch_is_refused(batches, steps):
    model = make()
    patch(model)
    first, second = (torch.ones(b, 1, dtype=torch.int64) for b in batches)
    cache = DynamicCache()
    for _ in range(3):
        continued(model, cache, first.tolist())
    with pytest.raises(RuntimeError):
        continued(model, cache, second.tolist())


def test_a_window_slides(steps):
    settings = {"sliding_window": 8, "max_position_embeddings": 64}
    model, inputs = make("mistral", **settings), prompt()
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    patch(model)
    actual = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert torch.equal(actual, expected)
    assert len(steps) == 11 * LAYERS


def test_a_static_cache_given_by_the_user(steps):
    model = make()
    results = []
    for _ in range(2):
        cache = StaticCache(config=model.config, max_cache_len=32)
        with torch.no_grad():
            results.append(model(torch.ones(1, 4).long(), **{CACHE: cache}))
        patch(model)
    torch.testing.assert_close(*(r.logits for r in results))
    assert not steps


def test_prompts_of_every_length():
    model, other = make(), make()
    patch(model)
    for length, seq in itertools.product((1, 3, 15, 16, 17), (1, 2)):
        ids = torch.randint(1, 97, (seq, length))
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, other(ids).logits)


def reordered(model, cache) -> None:
    cache.reorder_cache(torch.tensor([1, 0]))


def regrown(model, cache) -> None:
    """Replace the last token by another, in transformers' own way."""
    cache.crop(-1)
    hook = model.model.layers[0].self_attn.register_forward_hook(
        lambda *_: None
    )
    other = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    continued(model, cache, [[7], [8]])
    hook.remove()
    other.remove()


def continued(model, cache, ids: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(ids), use_cache=True, **{CACHE: cache}).logits


@pytest.mark.parametrize("change", [reordered, regrown])
def test_states_that_others_replaced(change, steps):
    """They are as many as before, but not the same."""
    results = []
    model = make()
    for _ in range(2):
        cache = DynamicCache()
        for token in range(1, 25):
            continued(model, cache, [[token], [token + 40]])
        change(model, cache)
        results.append(continued(model, cache, [[5], [6]]))
        patch(model)
    torch.testing.assert_close(*results)
    assert len(steps) >= 25 * LAYERS
