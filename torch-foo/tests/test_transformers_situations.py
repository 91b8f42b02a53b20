"""What people and other libraries do to a model before and after patch().

peft, accelerate, torchao and optimum-quanto are tried where they are installed.
"""

import functools
import importlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations, parametrize, prune

transformers = pytest.importorskip("transformers")

# These imports would fail without transformers.
from tiny_models import COPIES, make, through_pickle  # noqa: E402
from torch_foo.integrations.transformers import patch, unpatch  # noqa: E402
from transformers.models.llama import modeling_llama as llama  # noqa: E402

IDS = torch.randint(1, 97, (2, 11), generator=torch.Generator().manual_seed(0))
TOKEN = IDS[:1, :1]


def patched(**options: object) -> nn.Module:
    model = make(**options)
    assert patch(model)
    return model


def calls(model: nn.Module, ids: torch.Tensor = TOKEN) -> int:
    """Return how many of torch_foo's operators a forward runs."""
    with torch.profiler.profile() as profile, torch.no_grad():
        model(ids, use_cache=False)
    return sum(e.name.startswith("torch_foo::") for e in profile.events())


ALL_CALLS = 5 + 2 + 2 * 2 + 15  # norms, gates, queries and keys, products


def check_same(
    model: nn.Module, other: nn.Module, tolerance: float = 1e-5
) -> None:
    """Compare logits of a prompt and of one token."""
    with torch.no_grad():
        for ids in (IDS, TOKEN):
            torch.testing.assert_close(
                model(ids).logits,
                other(ids).logits,
                atol=tolerance,
                rtol=tolerance,
            )


def check_no_trace(model: nn.Module) -> None:
    for module in model.modules():
        assert not {"forward", "_torch_foo", "_loss_function"} & set(
            vars(module)
        )
        assert "_replicate_for_data_parallel" not in vars(module)


# --- weights of other libraries ---------------------------------------------


class Quantized(torch.Tensor):
    """A weight as quantizing libraries have it: integers and a scale."""

    @staticmethod
    def __new__(cls, integers, scale):
        return torch.Tensor._make_wrapper_subclass(
            cls, integers.shape, dtype=scale.dtype
        )

    def __init__(self, integers, scale):
        self.integers, self.scale = integers, scale

    @classmethod
    def of(cls, weight):
        scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
        return nn.Parameter(
            cls((weight / scale).round().to(torch.int8), scale),
            requires_grad=False,
        )

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].integers, args[0].scale)
        args = [
            a.integers.to(a.scale.dtype) * a.scale if type(a) is cls else a
            for a in args
        ]
        return function(*args, **kwargs or {})


def replace_weights(model: nn.Module, make_weight) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Linear, llama.LlamaRMSNorm)):
            module.weight = make_weight(module.weight.detach())
    return model


def test_weights_that_another_library_replaces():
    expected = replace_weights(make(), Quantized.of)
    model = replace_weights(patched(), Quantized.of)
    assert calls(model) == 2 + 2 * 2  # gates, queries and keys
    with torch.no_grad():
        for ids in (IDS, TOKEN):
            torch.testing.assert_close(model(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_of_other_dtypes(dtype):
    model = patched()
    norm, linear = model.model.norm, model.lm_head
    for module in (norm, linear):
        module.weight = nn.Parameter(module.weight.to(dtype), False)
    x = torch.randn(1, 32)
    for module in (norm, linear):

        def outcome(forward):
            try:
                return forward(x)
            except RuntimeError as error:  # torch's own
                return str(error)

        expected = outcome(functools.partial(type(module).forward, module))
        actual = outcome(module)
        assert type(actual) is type(expected)
        if isinstance(expected, str):
            assert actual == expected
        else:
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("x", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_norm_of_two_dtypes(x, weight, autocast):
    norm = patched().model.norm.to(weight)
    norm.weight.data.uniform_(0.5, 1.5)
    values = torch.randn(3, 32, dtype=x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = llama.LlamaRMSNorm.forward(norm, values)
        actual = norm(values)
    torch.testing.assert_close(actual, expected)  # and so is the dtype


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_autocast_keeps_dtypes(family):
    """Queries and keys are float32 there, as the tables are."""
    model, seen = make(family), []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, *args, **kwargs):
        seen.append((q.dtype, k.dtype, v.dtype))
        return attention(q, k, v, *args, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            torch.nn.functional, "scaled_dot_product_attention", spy
        )
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            expected = model(IDS).logits
            before, seen[:] = list(seen), []
            patch(model)
            actual = model(IDS).logits
    assert before == seen != []
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0.02)


def test_to_another_dtype_and_back():
    model = patched().to(torch.bfloat16).to(torch.float32)
    other = make().to(torch.bfloat16).to(torch.float32)
    assert calls(model) == ALL_CALLS
    check_same(model, other)


def test_meta_device():
    model = patched().to("meta")
    assert model(IDS.to("meta")).logits.shape == (2, 11, 97)


def test_quantized_after_patch():
    quantize = functools.partial(
        torch.ao.quantization.quantize_dynamic, qconfig_spec={nn.Linear}
    )
    model, other = quantize(patched()), quantize(make())
    assert "DynamicQuantized" in repr(model)
    check_same(model, other, 0.05)


def test_torchao_after_patch():
    quantization = pytest.importorskip("torchao.quantization")
    model, other = patched().bfloat16(), make().bfloat16()
    for each in (model, other):
        quantization.quantize_(each, quantization.Int8WeightOnlyConfig())
    check_same(model, other, 2e-2)


def test_quanto_after_patch():
    quanto = pytest.importorskip("optimum.quanto")
    model, other = patched(), make()
    for each in (model, other):
        quanto.quantize(each, weights=quanto.qint8)
        quanto.freeze(each)
    check_same(model, other, 2e-2)


class Linear4bit(nn.Linear):
    """Like those of bitsandbytes."""

    def forward(self, x):
        return super().forward(x) + 1


def test_linears_of_another_class():
    def swap(model):
        model.lm_head.__class__ = Linear4bit
        return model

    check_same(swap(patched()), swap(make()))
    model = swap(make())
    report = patch(model)
    assert report.left["Linear4bit", "it is not a torch.nn.Linear"] == 1
    check_same(model, swap(make()))


# --- weights that are computed ----------------------------------------------


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, weight):
        self.count += 1
        return 2 * weight


@pytest.mark.parametrize("ids", [IDS, TOKEN], ids=["prompt", "token"])
def test_parametrizations(ids):
    def change(model):
        for module in (model.lm_head, model.model.norm):
            parametrize.register_parametrization(module, "weight", Doubled())
        return model

    model, other = change(patched()), change(make())
    counted = [m for m in model.modules() if isinstance(m, Doubled)]
    before = [m.count for m in counted]
    torch.testing.assert_close(model(ids).logits, other(ids).logits)
    # A parametrization may keep a state, as spectral_norm's does.
    assert [m.count for m in counted] == [n + 1 for n in before]
    for module in (model.lm_head, model.model.norm):
        parametrize.remove_parametrizations(module, "weight")
    assert calls(model) == ALL_CALLS
    unpatch(model)
    check_no_trace(model)


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        torch.nn.utils.weight_norm,
        functools.partial(prune.l1_unstructured, name="weight", amount=0.5),
    ],
    ids=[
        "weight_norm",
        "spectral_norm",
        "orthogonal",
        "old weight_norm",
        "prune",
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_reparametrized_weights(change):
    def changed(model):
        torch.manual_seed(0)
        change(model.model.layers[0].mlp.up_proj)
        return model

    check_same(changed(patched()), changed(make()))
    model = changed(make())
    patch(model)
    check_same(model, changed(make()))


# --- hooks ------------------------------------------------------------------


def test_hooks_on_every_module_are_called_as_before():
    def record(model, patches):
        names = {m: n for n, m in model.named_modules()}
        called = []
        for module in model.modules():
            module.register_forward_hook(
                lambda m, a, o: called.append(names[m])
            )
        if patches:
            patch(model)
        model(IDS)
        return called

    assert record(make(), True) == record(make(), False)


def test_a_hook_on_all_modules_changes_what_it_did_before():
    model = make()

    def observed():
        seen = []

        def double(module, inputs, output):
            seen.append(type(module).__name__)
            return 2 * output if type(module) is type(activation) else None

        hook = nn.modules.module.register_module_forward_hook(double)
        try:
            return model(IDS).logits, seen
        finally:
            hook.remove()

    activation = model.model.layers[0].mlp.act_fn
    expected, names = observed()
    patch(model)
    actual, seen = observed()
    assert seen == names
    torch.testing.assert_close(actual, expected)


# --- saved, copied, sent to other processes ---------------------------------


def data_parallel_replica(model):
    """Copy a model as torch.nn.DataParallel does, on one device."""
    modules = list(model.modules())
    copies = {m: m._replicate_for_data_parallel() for m in modules}
    for module, twin in copies.items():
        for name, child in module._modules.items():
            twin._modules[name] = copies.get(child)
        for name, parameter in module._parameters.items():
            twin._parameters[name] = None
            setattr(twin, name, parameter)
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(False)
    return copies[model]


@pytest.mark.parametrize("way", [*COPIES, data_parallel_replica])
def test_copies_are_patched(way):
    model = patched()
    twin = way(model)
    model.lm_head.weight = nn.Parameter(torch.zeros(97, 32))
    assert calls(twin) == ALL_CALLS
    if way is not data_parallel_replica:  # which shares its parameters
        check_same(twin, make())
        assert patch(twin).left == {}
        assert unpatch(twin) == 28
        check_no_trace(twin)
        assert calls(model) == ALL_CALLS
    else:
        own = [
            m.forward.__self__ is m
            for m in twin.modules()
            if "forward" in vars(m)
        ]
        assert own == [True] * 27


def test_a_copy_of_an_unpatched_copy():
    model = patched()
    unpatch(model)
    assert calls(through_pickle(model)) == 0


IN_ANOTHER_PROCESS = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
with torch.profiler.profile() as profile, torch.no_grad():
    model(torch.tensor([[5]]), use_cache=False)
print(sum(e.name.startswith("torch_foo::") for e in profile.events()))
"""


def test_another_process(tmp_path):
    """torch_foo is imported by loading."""
    torch.save(patched(), tmp_path / "model.pt")

    def run(code):
        return subprocess.run(
            [sys.executable, "-c", code, tmp_path / "model.pt"],
            capture_output=True,
            text=True,
            env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        )

    assert run(IN_ANOTHER_PROCESS).stdout == f"{ALL_CALLS}\n"
    missing = run(
        "import sys; sys.modules['torch_foo'] = None" + IN_ANOTHER_PROCESS
    )
    assert "ModuleNotFoundError: No module named 'torch_foo" in missing.stderr


def test_spawn(monkeypatch):
    # Under a name by which the other process finds this file.
    monkeypatch.syspath_prepend(Path(__file__).parent)
    module = importlib.import_module(Path(__file__).stem)
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        assert pool.submit(module.calls, patched()).result() == ALL_CALLS


def test_a_module_of_another_version(monkeypatch):
    """A class that computes something else by now keeps its own forward."""
    data = pickle.dumps(patched().model.norm)

    def forward(self, hidden_states):
        return hidden_states + 1

    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", forward)
    norm = pickle.loads(data)
    assert torch.equal(norm(torch.zeros(32)), torch.ones(32))


def test_saved_and_loaded_weights(tmp_path):
    model = patched()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    check_no_trace(loaded)
    assert patch(loaded)
    check_same(loaded, make())


def test_tied_weights():
    model, other = (
        patched(tie_word_embeddings=True),
        make(tie_word_embeddings=True),
    )
    check_same(model, other)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    twin = through_pickle(model)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight


# --- wrapped by others ------------------------------------------------------


def wrap(module):
    """Replace a module's forward as decorators do, with functools.wraps."""
    inner = module.forward

    @functools.wraps(inner)
    def forward(*args, **kwargs):
        return inner(*args, **kwargs) * 2

    module.forward = forward
    return inner


def test_unpatch_leaves_what_others_put_around_it():
    model, other = patched(), make()
    inner = wrap(model.model.norm)
    wrap(other.model.norm)
    check_same(model, other)
    assert calls(model) == ALL_CALLS
    assert unpatch(model) == 28
    assert calls(model) == 0
    check_same(model, other)
    with pytest.warns(UserWarning, match="is not patched"):
        assert unpatch(model) == 0
    # patch() knows its own work again below that of others.
    assert patch(model).left == {}
    assert calls(model) == ALL_CALLS
    model.model.norm.forward = inner  # the others leave
    check_same(model, make())
    assert unpatch(model) == 28
    check_no_trace(model)


def test_what_others_put_there_before_patch_stays():
    model, other = make(), make()
    wrap(model.model.norm)
    wrap(other.model.norm)
    reason = "its forward was already replaced by another library"
    assert patch(model).left == {("LlamaRMSNorm", reason): 1}
    check_same(model, other)
    unpatch(model)
    check_same(model, other)


def test_a_class_that_others_wrap():
    norm = llama.LlamaRMSNorm
    original = norm.forward
    model, other = make(), make()
    try:
        patch(transformers.LlamaForCausalLM)
        wrap(norm)
        assert calls(model) == ALL_CALLS - 15
        unpatch(transformers.LlamaForCausalLM)
        assert calls(model) == 0
    finally:
        norm.forward = original
        if "_torch_foo" in vars(norm):
            del norm._torch_foo
    check_same(model, other)


@pytest.mark.parametrize("order", ["patch first", "hooks first"])
def test_accelerate(order, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, other = make(), make()
    if order == "patch first":
        patch(model)
    accelerate.disk_offload(model, tmp_path, torch.device("cpu"))
    if order == "hooks first":
        patch(model)
    check_same(model, other)
    unpatch(model)
    check_same(model, other)
    assert all(
        hasattr(m, "_hf_hook")
        for m in model.modules()
        if isinstance(m, nn.Linear)
    )
    patch(model)
    check_same(model, other)
    accelerate.hooks.remove_hook_from_submodules(model)


def test_peft_keeps_no_trace():
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        target_modules=["q_proj", "up_proj"], init_lora_weights=False
    )
    model, other = patched(), make()
    results = []
    for each in (model, other):
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(each, settings).eval()
        if each is model:
            assert patch(wrapped).left == {}
        logits = wrapped(IDS).logits
        loss = wrapped(IDS, labels=IDS).loss
        loss.backward()
        merged = wrapped.merge_and_unload()
        results.append((logits, loss, merged(TOKEN).logits))
        if each is model:
            assert "_loss_function" not in vars(wrapped)
            unpatch(merged)
            check_no_trace(merged)
            check_no_trace(wrapped)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


# --- torch.func, torch.compile, checkpointing, FSDP -------------------------


def of_parameters(model):
    def loss(parameters):
        named = {"labels": IDS, "use_cache": False}
        return torch.func.functional_call(model, parameters, (IDS,), named).loss

    return loss, {n: p.detach() for n, p in model.named_parameters()}


def test_gradients_of_torch_func():
    expected, actual = (
        torch.func.grad(loss)(parameters)
        for loss, parameters in map(of_parameters, (make(), patched()))
    )
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-5, rtol=1e-4)


def test_vmap_of_gradients():
    """Per-sample gradients."""

    def per_sample(model):
        parameters = {n: p.detach() for n, p in model.named_parameters()}

        def loss(parameters, ids):
            logits = torch.func.functional_call(
                model, parameters, (ids[None],), {"use_cache": False}
            ).logits
            return logits.square().mean()

        model.set_attn_implementation("eager")
        return torch.vmap(torch.func.grad(loss), (None, 0))(parameters, IDS)

    expected, actual = per_sample(make()), per_sample(patched())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-5, rtol=1e-4)


def test_forward_mode_derivatives():
    def derivative(model):
        model.set_attn_implementation("eager")
        loss, parameters = of_parameters(model)
        torch.manual_seed(0)
        tangents = {n: torch.randn_like(p) for n, p in parameters.items()}
        return torch.func.jvp(loss, (parameters,), (tangents,))

    torch.testing.assert_close(derivative(patched()), derivative(make()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    def gradients(model):
        model.train().gradient_checkpointing_enable(
            {"use_reentrant": reentrant}
        )
        model.enable_input_require_grads()
        with torch.profiler.profile(profile_memory=True) as profile:
            loss = model(IDS, labels=IDS).loss
        kept = sum(e.self_cpu_memory_usage for e in profile.key_averages())
        loss.backward()
        return kept, {n: p.grad for n, p in model.named_parameters()}

    (most, expected), (kept, actual) = map(gradients, (make(), patched()))
    assert kept <= most
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_layers_compiled_alone_share_their_code():
    """A patched layer must not be compiled again for each of its siblings."""
    model = patched()
    counter = CompileCounter()
    torch.compiler.reset()
    for layer in model.model.layers:
        layer.compile(backend=counter, fullgraph=True)
    check_same(model, make())
    alone = counter.frame_count
    torch.compiler.reset()
    other, counter = make(), CompileCounter()
    for layer in other.model.layers:
        layer.compile(backend=counter, fullgraph=True)
    check_same(other, make())
    assert alone == counter.frame_count


def test_patch_and_unpatch_a_compiled_model():
    model = make()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    check_same(compiled, make())
    assert patch(compiled)
    assert calls(compiled) > 0
    check_same(compiled, make())
    assert unpatch(compiled) == 28
    assert calls(compiled) == 0
    check_no_trace(model)


def test_export():
    program = torch.export.export(
        patched().model.layers[0].mlp, (torch.randn(2, 3, 32),), strict=False
    )
    names = {str(node.target) for node in program.graph.nodes}
    assert any("torch_foo" in name for name in names)


@pytest.fixture
def mesh(tmp_path):
    """A mesh of one process."""
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    store = distributed.FileStore(f"{tmp_path}/store", 1)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_fully_shard(mesh):
    from torch.distributed.fsdp import fully_shard

    model, other = patched(), make()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    check_same(model, other)
    model(IDS, labels=IDS).loss.backward()
    assert unpatch(model) == 28
    check_no_trace(model)
    check_same(model, other)


def test_weights_and_inputs_of_tensor_parallelism(mesh):
    from torch.distributed.tensor import Replicate, distribute_tensor

    model = patched()
    x = distribute_tensor(torch.randn(1, 32), mesh, [Replicate()])
    for module in (model.lm_head, model.model.norm, model.model.layers[0].mlp):
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                value = distribute_tensor(
                    parameter.detach(), mesh, [Replicate()]
                )
                setattr(part, name, nn.Parameter(value))
        torch.testing.assert_close(module(x), type(module).forward(module, x))


def test_types_stay():
    """Other libraries look for the types of modules, and their names."""
    model = patched()
    assert [type(m) for m in model.modules()] == [
        type(m) for m in make().modules()
    ]
    assert repr(model) == repr(make())
