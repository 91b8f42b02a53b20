"""Patched models of transformers: their results, and what is left alone.

These tests use the installed transformers; test_transformers_versions.py runs
them with another version.
"""

import copy
import inspect

import pytest
import torch
import torch_foo
from torch import nn

transformers = pytest.importorskip("transformers")

# These imports would fail without transformers.
import tiny_models  # noqa: E402
from tiny_models import LAYERS  # noqa: E402
from torch_foo.integrations.transformers import patch, unpatch  # noqa: E402
from torch_foo.integrations.transformers._equivalence import (  # noqa: E402
    difference,
)
from torch_foo.integrations.transformers._rebind import (  # noqa: E402
    with_global,
)
from transformers.models.llama import modeling_llama as llama  # noqa: E402

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"]


def make(*args: object, **options: object) -> transformers.PreTrainedModel:
    """Make a tiny model whose norms have weights other than 1, too."""
    model = tiny_models.make(*args, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def moved(inputs: dict, device: str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def batch(seed: int = 0, *, padded: bool = True) -> dict[str, torch.Tensor]:
    """Make two sequences; the first has three padding tokens on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 97, (2, 11), generator=generator)
    if not padded:
        return {"input_ids": ids, "labels": ids.clone()}
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": ids.where(mask.bool(), torch.tensor(-100)),
    }


def results(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict:
    """Return the logits, the loss and the gradients of all parameters."""
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return {"logits": output.logits.detach(), "loss": output.loss.detach()} | {
        name: p.grad.clone() for name, p in model.named_parameters()
    }


def check_close(actual: dict, expected: dict, tolerance: float) -> None:
    """Compare tensors, relative to the largest element of each."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1e-3)
        error = ((actual[name] - value).abs().max() / scale).item()
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_results_and_gradients(family, padded, seed, device):
    model = make(family, seed).to(device)
    inputs = moved(batch(seed, padded=padded), device)
    expected = results(model, inputs)
    assert patch(model)
    check_close(results(model, inputs), expected, 2e-6)
    unpatch(model)
    # On CUDA, the gradient of torch's attention adds up in no fixed order.
    tolerance = 0 if device == "cpu" else 2e-6
    check_close(results(model, inputs), expected, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_16_bits_are_at_least_as_close_to_float64(family, dtype, device):
    model, inputs = make(family).to(device, dtype), moved(batch(), device)
    exact = results(copy.deepcopy(model).double(), inputs)
    as_it_is = results(model, inputs)
    patch(model)
    patched = results(model, inputs)

    def error(values: dict) -> float:
        squares = [
            ((values[n].double() - v).norm() / v.norm().clamp(min=1e-6)) ** 2
            for n, v in exact.items()
        ]
        return sum(squares).sqrt().item()

    assert error(patched) <= 1.1 * error(as_it_is)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_replaced(family):
    report = patch(make(family))
    norms = 2 * LAYERS + 1 + 2 * LAYERS * (family == "qwen3")
    counts = {}
    for (op, _), count in report.replaced.items():
        counts[op] = counts.get(op, 0) + count
    left = {}
    if family == "granite":  # it scales what its layers add
        counts["decode"] = LAYERS + 1
        reason = "it does not compute what LlamaDecoderLayer does"
        left["GraniteDecoderLayer", reason] = LAYERS
    assert counts == {
        "cross_entropy": 1,
        "decode": LAYERS + 1,  # the model, too
        "linear": 7 * LAYERS + 1,
        "rope": LAYERS,
        "rms_norm": norms,
        "mlp": LAYERS,
    }
    assert report.left == left


@pytest.mark.parametrize(
    "op", ["rms_norm", "mlp", "rope", "cross_entropy", "linear", "decode"]
)
def test_each_kind_can_be_switched_off(op):
    report = patch(make(), **{op: False})
    kinds = {kind for kind, _ in report.replaced}
    every = {"rms_norm", "mlp", "rope", "cross_entropy", "linear", "decode"}
    alone = op in ("cross_entropy", "decode")
    assert every - kinds == ({op} if alone else {op, "decode"})


@pytest.mark.parametrize("family", FAMILIES)
def test_generation(family, device):
    """Decode greedily with a cache, from sequences of several lengths."""
    model, inputs = make(family).to(device), moved(batch(), device)
    settings = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "max_new_tokens": 20,
        "do_sample": False,
    }
    expected = model.generate(**settings)
    patch(model)
    assert torch.equal(model.generate(**settings), expected)


def products(model: nn.Module, rows: int) -> set[str]:
    """Return the operators that multiply weights with this many rows."""
    ids = torch.randint(1, 97, (rows, 1))
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(ids, use_cache=False)
    names = {event.name for event in profile.events()}
    return names & {"aten::linear", "torch_foo::_linear"}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_products_of_few_rows(dtype):
    model = make().to(dtype)
    ids = torch.randint(1, 97, (16, 1))
    expected = model(ids).logits
    patch(model)
    assert products(model, 17) == {"aten::linear"}
    assert products(model, 16) == {"torch_foo::_linear"}
    tolerance = {} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(model(ids).logits, expected, **tolerance)


def test_products_with_a_gradient():
    """Train on a single token, where few rows need gradients."""
    model = make()
    inputs = {"input_ids": torch.tensor([[5]]), "labels": torch.tensor([[7]])}
    inputs["shift_labels"] = inputs["labels"]
    expected = results(model, inputs)
    patch(model)
    check_close(results(model, inputs), expected, 2e-6)


def test_state_dict_and_saving(tmp_path):
    model, inputs = make(), batch()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    patch(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    expected = results(model, inputs)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert patch(loaded)
    check_close(results(loaded.eval(), inputs), expected, 0)


def test_a_copy_is_patched_too():
    model, inputs = make(), batch()
    patch(model)
    twin = copy.deepcopy(model)
    check_close(results(twin, inputs), results(model, inputs), 0)
    changes = unpatch(twin)
    assert changes == unpatch(model)


def test_gradient_checkpointing():
    model, inputs = make().train(), batch()
    expected = results(model, inputs)
    patch(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    check_close(results(model, inputs), expected, 2e-6)


def kept_bytes(model: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """Return the bytes that a forward keeps: saved tensors and logits."""
    with torch.profiler.profile(profile_memory=True) as profile:
        output = model(**inputs)
    kept = sum(e.self_cpu_memory_usage for e in profile.key_averages())
    output.loss.backward()
    return kept


def test_the_backward_needs_less_memory():
    model, inputs = make().train(), batch()
    before = kept_bytes(model, inputs)
    patch(model)
    assert kept_bytes(model, inputs) < 0.75 * before


def test_gradient_checkpointing_keeps_as_little_as_before():
    model, inputs = make().train(), batch()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    before = kept_bytes(model, inputs)
    patch(model)
    assert kept_bytes(model, inputs) <= before


def test_a_norm_that_a_hook_changes():
    """A norm's output that changed in place cannot be recomputed."""
    model, inputs = make(), batch()
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(
            lambda module, arguments, output: output.mul_(2)
        )
        layer.input_layernorm.register_forward_hook(
            lambda module, arguments, output: output + 1
        )
    expected = results(model, inputs)
    patch(model)
    check_close(results(model, inputs), expected, 2e-6)


def test_second_derivatives():
    model, inputs = make().double(), batch(padded=False)
    weight = model.model.layers[0].mlp.up_proj.weight

    def second() -> torch.Tensor:
        loss = model(**inputs).loss
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        (result,) = torch.autograd.grad(first.square().sum(), weight)
        return result

    model.set_attn_implementation("eager")
    expected = second()
    patch(model)
    torch.testing.assert_close(second(), expected)


def test_compile():
    model, inputs = make(), batch(padded=False)
    expected = results(model, inputs)
    patch(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = results(compiled, inputs)
    got = {k.removeprefix("_orig_mod."): v for k, v in got.items()}
    check_close(got, expected, 2e-6)


@pytest.mark.parametrize("rows", [1, 20])
def test_compile_for_generation(rows):
    model, ids = make(), torch.randint(1, 97, (rows, 1))
    with torch.no_grad():
        expected = model(ids).logits
        patch(model)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids).logits, expected)


def test_autocast():
    model, inputs = make(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected = results(model, inputs)
        patch(model)
        check_close(results(model, inputs), expected, 0.05)


def test_training_lowers_the_loss_the_same():
    losses = []
    for patched in (False, True):
        model, inputs = make().train(), batch()
        if patched:
            patch(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0] < 3


# --- the loss ---------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"num_items_in_batch": 7},
        {"num_items_in_batch": torch.tensor(7)},
        {"ignore_index": 5},
        {"shift_labels": torch.arange(22).view(2, 11)},
    ],
    ids=["items", "items in a tensor", "ignore_index", "shift_labels"],
)
def test_options_of_the_loss(options):
    model, inputs = make(), batch()
    inputs["labels"][1, 3:6] = 5
    if "ignore_index" in options:
        inputs["labels"] = inputs["labels"].clamp(min=0)
    expected = model(**inputs, **options).loss
    patch(model)
    torch.testing.assert_close(model(**inputs, **options).loss, expected)


def test_the_loss_is_nan_as_before_if_all_labels_are_ignored():
    model, inputs = make(), batch()
    inputs["labels"].fill_(-100)
    assert model(**inputs).loss.isnan()
    patch(model)
    assert model(**inputs).loss.isnan()


def test_a_loss_of_the_users_own_is_left_alone():
    model = make()

    def my_loss(logits, labels, **_):
        return logits.sum()

    model.loss_function = my_loss
    report = patch(model)
    assert report.left == {
        (
            "LlamaForCausalLM",
            "its loss function is my_loss, expected ForCausalLMLoss",
        ): 1
    }
    unpatch(model)
    assert model.loss_function is my_loss


# --- classes ----------------------------------------------------------------


def test_patching_a_class_patches_all_its_models():
    cls = transformers.LlamaForCausalLM
    old, inputs, other = make(), batch(), make("mistral")
    expected = results(old, inputs)
    before = results(other, inputs)
    try:
        report = patch(cls)
        assert {op for op, _ in report.replaced} == {
            "rms_norm",
            "mlp",
            "rope",
            "cross_entropy",
        }
        assert patch(cls).replaced == report.replaced
        new = make()
        for model in (old, new):
            got = results(model, inputs)
            check_close(got, expected, 2e-6)
            assert not torch.equal(
                got["lm_head.weight"], expected["lm_head.weight"]
            )
        assert torch.equal(results(other, inputs)["logits"], before["logits"])
        assert make(hidden_act="relu")(**inputs).loss.isfinite()
    finally:
        unpatch(cls)
    assert torch.equal(results(old, inputs)["logits"], expected["logits"])
    assert old.loss_function.__name__ == "ForCausalLMLoss"


# --- torch_foo.nn beside the modules of transformers ------------------------


def test_rms_norm_module_is_a_drop_in():
    model, inputs = make(), batch()
    expected = results(model, inputs)
    weights = copy.deepcopy(model.state_dict())
    for name, norm in list(model.named_modules()):
        if isinstance(norm, llama.LlamaRMSNorm):
            ours = torch_foo.nn.RMSNorm(len(norm.weight), norm.variance_epsilon)
            model.set_submodule(name, ours)
    assert model.state_dict().keys() == weights.keys()
    model.load_state_dict(weights)
    check_close(results(model, inputs), expected, 2e-6)
    make(seed=1).load_state_dict(model.state_dict())


class FeedForward(nn.Module):
    """LlamaMLP with the gates of torch_foo.nn."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(32, 48, bias=False)
        self.up_proj = nn.Linear(32, 48, bias=False)
        self.down_proj = nn.Linear(48, 32, bias=False)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_proj(x), self.up_proj(x)))


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("silu", torch_foo.nn.SwiGLU()),
        ("gelu", torch_foo.nn.GeGLU()),
        ("gelu_pytorch_tanh", torch_foo.nn.GeGLU("tanh")),
    ],
    ids=str,
)
def test_gates_make_a_feed_forward_block(name, act):
    theirs = make(hidden_act=name).model.layers[0].mlp
    ours = FeedForward(act)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())


def test_rotary_embedding_module_rotates_the_same():
    config = make().config
    theirs = llama.LlamaRotaryEmbedding(config)
    ours = torch_foo.nn.RotaryEmbedding(8, config.max_position_embeddings)
    assert ours.state_dict() == theirs.state_dict() == {}
    q, k = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 2, 8)
    positions = torch.tensor([[0, 1, 2], [61, 62, 63]])
    expected = llama.apply_rotary_pos_emb(
        q, k, *theirs(q, positions), unsqueeze_dim=2
    )
    for x, rotated in zip((q, k), expected, strict=True):
        torch.testing.assert_close(
            ours(x, positions), rotated, rtol=1e-5, atol=1e-5
        )


# --- what is left alone, and wrong arguments --------------------------------


def test_patching_twice_changes_nothing():
    model = make()
    first = patch(model)
    assert patch(model) == first
    unpatch(model)
    with pytest.warns(UserWarning, match="LlamaForCausalLM is not patched"):
        assert unpatch(model) == 0


def test_an_unknown_model_is_left_alone():
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=2)
    )
    before = {name: vars(m).copy() for name, m in model.named_modules()}
    with pytest.warns(UserWarning, match="GPT2LMHeadModel") as caught:
        report = patch(model)
    assert not report
    assert "left alone:   1 x GPT2MLP" in str(caught[0].message)
    after = {name: vars(m).copy() for name, m in model.named_modules()}
    assert str(after) == str(before)


def test_other_norms_and_attention_are_left_alone():
    report = patch(make("olmo2"))
    norm = "it does not compute what LlamaRMSNorm does"
    assert report.left == {
        ("Olmo2Attention", "its apply_rotary_pos_emb is not Llama's"): LAYERS,
        ("Olmo2RMSNorm", norm): 4 * LAYERS + 1,
    }
    assert ("GemmaRMSNorm", norm) in patch(make("gemma")).left


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        # transformers 5 has one module for all experts, 4 has one for each.
        (
            "mixtral",
            "MixtralExperts|MixtralBlockSparseTop2MLP",
            "does not compute what LlamaMLP does",
        ),
        ("deepseek_v2", "DeepseekV2Attention", "does not call apply_rotary"),
        ("gptj", "GPTJAttention", "apply_rotary_pos_emb is not Llama's"),
        ("gpt2", "Conv1D", "it is not a torch.nn.Linear"),
        ("gpt2", "GPT2LMHeadModel", "it has no loss_type"),
        ("bert", "BertLMHeadModel", "it has no loss_type"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch_foo")  # nothing is replaced
def test_the_report_names_what_it_leaves(family, name, reason):
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(family)
        config.num_hidden_layers = 2
        model = transformers.AutoModelForCausalLM.from_config(config)
    left = patch(model).left
    reasons = [r for n, r in left if n in name.split("|")]
    assert any(reason in r for r in reasons), left


def test_a_rotation_by_the_other_sign(monkeypatch):
    """Only a function that apply_rotary_pos_emb calls differs from Llama's."""

    def rotate_half(x):
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat((x2, -x1), dim=-1)

    rotate = inspect.unwrap(llama.apply_rotary_pos_emb)
    other = with_global(rotate, "rotate_half", rotate_half)
    monkeypatch.setattr(llama, "apply_rotary_pos_emb", other)
    model, inputs = make(), batch()
    expected = results(model, inputs)
    reason = "its rotate_half is not Llama's"
    assert patch(model).left == {
        ("LlamaAttention", reason): LAYERS,
        ("LlamaDecoderLayer", "its LlamaAttention is left alone"): LAYERS,
    }
    check_close(results(model, inputs), expected, 2e-6)


def test_a_norm_that_another_library_replaced(monkeypatch):
    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", lambda self, x: 2 * x)
    reason = "it does not compute what LlamaRMSNorm does"
    assert patch(make()).left == {
        ("LlamaRMSNorm", reason): 2 * LAYERS + 1,
        ("LlamaDecoderLayer", "its LlamaRMSNorm is left alone"): LAYERS,
    }


EQUIVALENCE = """
import torch

LIMIT = 2

def helper(x, scale=1.0, *, offset=0):
    return x * scale + offset

def decorator(function):
    factor = 5
    def inner(*args):
        return function(*args) * factor
    return inner

class Base:
    constant = 3

    @property
    def size(self):
        return 7

    @staticmethod
    def twice(x):
        return 2 * x

    def forward(self, x):
        return x

class Module(Base):
    @decorator
    def forward(self, x):
        y = [helper(v, LIMIT) for v in (x,)]
        z = self.twice(super().forward(y[0])) * self.constant + self.size
        return torch.relu(helper(z))
"""


def equivalence(old: str, new: str) -> str | None:
    classes = []
    for source in (EQUIVALENCE, EQUIVALENCE.replace(old, new)):
        scope = {"__name__": "somewhere"}
        exec(source, scope)
        classes.append(scope["Module"])
    assert old in EQUIVALENCE
    functions = [cls.forward for cls in classes]
    return difference(*functions, tuple(classes))


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("LIMIT = 2", "LIMIT = 2.0", "LIMIT"),
        ("x * scale", "scale * x", "helper"),
        ("scale=1.0", "scale=2.0", "helper"),
        ("offset=0", "offset=-0.0", "offset"),
        ("scale=1.0, *", "scale=1.0, q=1, *", "helper"),
        ("factor = 5", "factor = 6", ""),
        ("(*args) * factor", "(*args) + factor", ""),
        ("    @decorator\n", "", ""),
        ("constant = 3", "constant = 4", "constant"),
        ("return 7", "return 8", "size"),
        ("return 2 * x", "return 3 * x", "twice"),
        ("        return x\n", "        return -x\n", "forward"),
        ("torch.relu", "torch.sigmoid", ""),
        ("import torch", "import torch.nn.functional as torch", "torch"),
        ("(self, x):\n        y", "(self, x, w=1):\n        y", ""),
        ("(x,)", "(x, x)", ""),
    ],
)
def test_what_differs(old, new, name):
    assert equivalence(old, new) == name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("twice(x):\n", 'twice(x):\n        "A docstring."\n'),
        ("return x * scale", '"A docstring."\n    return x * scale'),
        ("        y = [", "        a: int\n        y = ["),
        ("y[0]", "y [0]"),
        ("def twice(x)", "def twice(x: int) -> int"),
    ],
)
def test_what_does_not_differ(old, new):
    assert equivalence(old, new) is None


def test_gemma_has_gelu():
    model, inputs = make("gemma"), batch()
    expected = results(model, inputs)
    patch(model)
    check_close(results(model, inputs), expected, 2e-6)


def test_unknown_activation():
    report = patch(make(hidden_act="relu"))
    reason = "its activation is ReLU, expected SiLU or GELU"
    assert report.left == {
        ("LlamaMLP", reason): LAYERS,
        ("LlamaDecoderLayer", "its LlamaMLP is left alone"): LAYERS,
    }


def test_odd_head_dim():
    model = make()  # transformers 5 refuses to make one
    for layer in model.model.layers:
        layer.self_attn.head_dim = 7
    reason = "its head_dim is 7, expected an even number"
    assert patch(model).left == {
        ("LlamaAttention", reason): LAYERS,
        ("LlamaDecoderLayer", "its LlamaAttention is left alone"): LAYERS,
    }


def test_weights_that_are_not_plain_tensors():
    class Special(nn.Parameter):
        pass

    model = make()
    model.model.norm.weight = Special(model.model.norm.weight.data)
    model.lm_head.weight = Special(model.lm_head.weight.data)
    reason = "its weight is a Special, expected a plain tensor"
    assert patch(model).left == {
        ("LlamaRMSNorm", reason): 1,
        ("Linear", reason): 1,
    }


def test_linear_of_another_class():
    class Adapted(nn.Linear):
        """Like the classes that add a low-rank product."""

    model = make()
    model.lm_head.__class__ = Adapted
    patch(model)
    assert "forward" not in vars(model.lm_head)


def test_meta_model():
    with torch.device("meta"):
        model = make()
    assert patch(model)
    assert model.to_empty(device="cpu")(**batch()).logits.shape == (2, 11, 97)


def test_tied_weights():
    model, inputs = make(tie_word_embeddings=True), batch()
    expected = results(model, inputs)
    patch(model)
    check_close(results(model, inputs), expected, 2e-6)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_quantized_model():
    model, inputs = make(), batch()
    quantized = torch.ao.quantization.quantize_dynamic(
        model, {nn.Linear}, torch.qint8
    )
    expected = quantized(**inputs)
    assert patch(quantized)
    torch.testing.assert_close(
        quantized(**inputs).logits, expected.logits, rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("function", [patch, unpatch])
@pytest.mark.parametrize("wrong", ["model", None, int])
def test_wrong_argument(function, wrong):
    with pytest.raises(TypeError) as caught:
        function(wrong)
    assert str(caught.value) == (
        f"torch_foo.integrations.transformers.{function.__name__}: "
        f"model_or_class is {wrong!r}, expected a torch.nn.Module or a class "
        "of them"
    )


def test_the_report_as_text():
    assert str(patch(make(hidden_act="relu"))) == (
        "LlamaForCausalLM:\n"
        "  cross_entropy in   1 x LlamaForCausalLM\n"
        "  rope          in   2 x LlamaAttention\n"
        "  linear        in  15 x Linear\n"
        "  rms_norm      in   5 x LlamaRMSNorm\n"
        "  left alone:   2 x LlamaDecoderLayer: its LlamaMLP is left alone\n"
        "  left alone:   2 x LlamaMLP: its activation is ReLU, expected SiLU "
        "or GELU"
    )
