"""GGUF files: models whose weights stay in the file, and hostile files."""

import copy
import math
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
import torch_foo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

transformers = pytest.importorskip("transformers")

# These imports would fail without transformers.
import tiny_models  # noqa: E402
from tiny_models import LAYERS, count_steps  # noqa: E402
from torch_foo.integrations import gguf  # noqa: E402
from torch_foo.integrations.gguf import _load, _reader  # noqa: E402
from torch_foo.integrations.transformers import (  # noqa: E402
    _join,
    patch,
)
from torch_foo.nn import QuantizedEmbedding, QuantizedLinear  # noqa: E402

NUMBERS = {kind.name: number for number, kind in _reader.TYPES.items()}


# --- writing files -----------------------------------------------------------


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(x: object) -> bytes:
    if isinstance(x, str):
        return struct.pack("<I", 8) + string(x)
    if isinstance(x, list):
        items = b"".join(map(string, x))
        return struct.pack("<IIQ", 9, 8, len(x)) + items
    if isinstance(x, float):
        return struct.pack("<If", 6, x)
    return struct.pack("<II", 4, x)


def written(
    metadata: dict[str, object],
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]],
    alignment: int = 32,
) -> bytes:
    """Return a file; tensors are (type, shape, bytes) by name."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, x in metadata.items():
        header += string(key) + value(x)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        data += bytes(-len(data) % alignment)
        header += string(name) + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        header += struct.pack("<IQ", NUMBERS[kind], len(data))
        data += content
    return header + bytes(-len(header) % alignment) + data


def content(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


FAMILIES = ["llama", "qwen2", "qwen3"]


def make(family: str = "llama", **options: object) -> nn.Module:
    """Make a tiny model with random weights."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "tie_word_embeddings": False,
    }
    model = tiny_models.make(family, **sizes | options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:  # so large that it matters what tokens attend to
                parameter.normal_(0, 0.15)
    return model


def names(model: nn.Module) -> dict[str, str]:
    """Return the name in files of each parameter."""
    result = {}
    parts = {**_load._LAYER, **_load._MODEL}
    for name, _ in model.named_parameters():
        module, _, kind = name.rpartition(".")
        for part, other in parts.items():
            if module == other:
                result[name] = f"{part}.{kind}"
            elif module.endswith(f".{other}") and "layers" in module:
                number = module.split(".")[2]
                result[name] = f"blk.{number}.{part}.{kind}"
    return result


def save(model: nn.Module, path: Path, kinds: object = "q8_0") -> nn.Module:
    """Write a model as llama.cpp does; return one with the same numbers.

    kinds: the type of matrices, or a function of the name in the file.
    """
    config, twin = model.config, copy.deepcopy(model)
    a = config.model_type
    metadata = {
        "general.architecture": a,
        f"{a}.context_length": config.max_position_embeddings,
        f"{a}.block_count": config.num_hidden_layers,
        f"{a}.feed_forward_length": config.intermediate_size,
        f"{a}.embedding_length": config.hidden_size,
        f"{a}.attention.key_length": config.head_dim,
        f"{a}.rope.freq_base": 10000.0,
        f"{a}.attention.head_count": config.num_attention_heads,
        f"{a}.attention.head_count_kv": config.num_key_value_heads,
        f"{a}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "tokenizer.ggml.tokens": ["a", "bc", ""],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
    }
    tensors = {}
    for name, file_name in names(model).items():
        parameter = twin.get_parameter(name)
        kind = kinds(file_name) if callable(kinds) else kinds
        kind = kind if parameter.dim() == 2 else "f32"
        with torch.no_grad():
            rows = parameter.detach().clone()
            heads = {
                "attn_q": config.num_attention_heads,
                "attn_k": config.num_key_value_heads,
            }.get(file_name.split(".")[-2])
            if kind in torch_foo.operators.blocks.FORMATS:
                blocks = torch_foo.quantize(rows, kind)
                parameter.copy_(torch_foo.dequantize(blocks, kind))
            else:
                blocks = rows.to(_reader.FLOATS[kind])
                parameter.copy_(blocks)
            if a == "llama" and heads:  # neighbours, not halves of a head
                blocks = blocks.unflatten(0, (heads, 2, -1))
                blocks = blocks.transpose(1, 2).flatten(0, 2)
        tensors[file_name] = kind, tuple(rows.shape), content(blocks)
    path.write_bytes(written(metadata, tensors))
    return twin


def logits(model: nn.Module, seq: int = 30) -> torch.Tensor:
    ids = torch.arange(1, seq + 1).view(1, -1)
    with torch.no_grad():
        return model(ids).logits


def check_same(model: nn.Module, other: nn.Module) -> None:
    """Compare with a float model: activations are rounded to 8 bits."""
    exact = logits(copy.deepcopy(other).double())
    for seq in (30, 3):
        error = logits(model, seq) - exact[:, :seq]
        assert error.norm() / exact[:, :seq].norm() < 0.05


# --- models ------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models(family, kind, tied, tmp_path):
    path = tmp_path / "model.gguf"
    twin = save(make(family, tie_word_embeddings=tied), path, kind)
    model = gguf.load(path)
    assert type(model) is type(twin)
    assert not model.training
    check_same(model, twin)
    report = model.torch_foo_report
    assert not report.left
    layer = type(model.model.layers[0]).__name__
    assert report.replaced["decode", layer] == LAYERS
    assert type(model.lm_head) is QuantizedLinear
    assert type(model.model.embed_tokens) is QuantizedEmbedding
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    for layer in model.model.layers:  # one product for all of them
        attention, mlp = layer.self_attn, layer.mlp
        linears = [attention.q_proj, attention.k_proj, attention.v_proj]
        if family == "llama":
            weights = [linear.weight for linear in linears]
            assert _join.adjoin(weights)
        weights = [mlp.gate_proj.weight, mlp.up_proj.weight]
        assert _join.adjoin(weights)
    config = model.config
    assert (config.bos_token_id, config.eos_token_id) == (1, None)
    assert "tokenizer" not in str(report)


def test_k_quants_of_several_formats(tmp_path):
    path = tmp_path / "model.gguf"
    model = make(hidden_size=256, intermediate_size=512, head_dim=64)
    # Of two formats with rows of one size, behind each other in the file.
    kinds = {"attn_v": "q6_k", "output": "q6_k", "ffn_gate": "q4_0"}
    twin = save(
        model, path, lambda name: kinds.get(name.split(".")[-2], "q4_k")
    )
    model = gguf.load(path)
    check_same(model, twin)
    assert model.lm_head.format == "q6_k"
    ids = torch.randint(1, 97, (2, 9))
    model.generate(ids, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_floats(kind, tmp_path):
    path = tmp_path / "model.gguf"
    twin = save(make(tie_word_embeddings=True), path, kind)
    model = gguf.load(path)
    torch.testing.assert_close(logits(model), logits(twin))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert type(model.lm_head) is nn.Linear
    model(torch.ones(1, 4).long()).logits.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype, tmp_path):
    path = tmp_path / "model.gguf"
    twin = save(make("qwen2"), path)
    model = gguf.load(path, dtype=dtype)
    assert logits(model).dtype == dtype
    assert model.dtype == dtype
    expected = logits(twin)
    assert (logits(model) - expected).norm() / expected.norm() < 0.06


def test_same_tokens_as_of_quantized_weights(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    twin = save(make(), path)
    patch(twin, weights="q8_0")
    model = gguf.load(path)
    steps = count_steps(monkeypatch)
    ids = torch.randint(1, 97, (2, 20))
    options = {"max_new_tokens": 10, "do_sample": False}
    expected = twin.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options), expected)
    assert len(steps) == 2 * 9 * LAYERS


def test_weights_stay_in_the_file(tmp_path):
    path = tmp_path / "model.gguf"
    save(make(), path)
    model = gguf.load(path)
    rows = Path("/proc/self/maps").read_text().splitlines()
    ranges = [
        [int(end, 16) for end in row.split()[0].split("-")]
        for row in rows
        if row.endswith(str(path))
    ]
    assert ranges
    patch(model)
    for layer in model.model.layers:
        linears = layer.mlp.up_proj, layer.mlp.down_proj, layer.self_attn.o_proj
        for linear in linears:
            pointer = linear.weight.data_ptr()
            assert any(first <= pointer < last for first, last in ranges)
    before = path.read_bytes()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert path.read_bytes() == before


def test_copies(tmp_path):
    path = tmp_path / "model.gguf"
    save(make(), path, "q4_1")
    model = gguf.load(path)
    expected = logits(model)
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    del model
    path.unlink()
    for twin in twins:
        assert torch.equal(logits(twin), expected)


def test_names_of_dtypes(tmp_path):
    path = tmp_path / "model.gguf"
    save(make(), path)
    model = gguf.load(path, dtype="bfloat16")
    assert model.model.norm.weight.dtype == torch.bfloat16
    for wrong in ("auto", "float3", torch.int8, None):
        with pytest.raises(ValueError, match=r"dtype is .*, expected"):
            gguf.load(path, dtype=wrong)


def test_saved_weights_are_not_the_whole_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.gguf"
    save(make(vocab_size=2000, tie_word_embeddings=True), path)
    model = gguf.load(path)
    assert len(pickle.dumps(model)) < 1.5 * path.stat().st_size
    layer = model.model.layers[0].mlp.up_proj
    torch.save(layer.state_dict(), tmp_path / "layer")
    assert (tmp_path / "layer").stat().st_size < layer.weight.nbytes + 10_000
    safetensors.save_model(model, str(tmp_path / "model"))
    patch(model)  # does not copy what is mapped
    twin = gguf.load(path)
    safetensors.load_model(twin, str(tmp_path / "model"))
    assert torch.equal(logits(twin), logits(model))


def test_factors_of_frequencies(tmp_path):
    path = tmp_path / "model.gguf"
    model = make()
    save(model, path)
    factors = torch.linspace(1, 8, 8)
    raw = added(path.read_bytes(), "rope_freqs.weight", factors)
    path.write_bytes(raw)
    loaded = gguf.load(path)
    rotary = model.model.rotary_emb.inv_freq
    torch.testing.assert_close(
        loaded.model.rotary_emb.inv_freq, rotary / factors
    )
    assert "rope_freqs" in str(loaded.torch_foo_report)
    path.write_bytes(added(raw, "rope_freqs.weight", factors[1:], replace=True))
    with pytest.raises(gguf.GGUFError, match=r"f32 of shape \(7,\), expected"):
        gguf.load(path)


# --- files that are refused --------------------------------------------------


def parsed(raw: bytes, path: Path) -> tuple[dict, dict]:
    """Return what `written` takes, of a file that it wrote."""
    path.write_bytes(raw)
    file = _reader.File(path)
    tensors = {
        name: (t.type.name, t.shape, raw[t.begin : t.begin + t.nbytes])
        for name, t in file.tensors.items()
    }
    metadata = dict(file.metadata)
    metadata["tokenizer.ggml.tokens"] = ["a", "bc", ""]
    return metadata, tensors


def added(
    raw: bytes, name: str, tensor: torch.Tensor, replace: bool = False
) -> bytes:
    path = Path(os.environ["PYTEST_TEMPORARY_GGUF"])
    metadata, tensors = parsed(raw, path)
    assert (name in tensors) is replace
    tensors[name] = "f32", tuple(tensor.shape), content(tensor)
    return written(metadata, tensors)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_TEMPORARY_GGUF", str(tmp_path / "scratch.gguf"))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    save(make(), path, "q4_0")
    return path.read_bytes()


def refused(raw: bytes, tmp_path: Path, strict: bool = True) -> str:
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(gguf.GGUFError) as raised:
        gguf.load(path, strict=strict)
    assert str(path) in str(raised.value)
    return str(raised.value)


@pytest.fixture
def never_mapped(monkeypatch):
    def from_file(*_: object, **__: object) -> None:
        raise AssertionError("a damaged file was mapped")

    monkeypatch.setattr(torch, "from_file", from_file)


def test_other_files(tmp_path, never_mapped):
    assert "does not begin with 'GGUF'" in refused(b"PK\3\4" * 99, tmp_path)
    assert "it ends at byte 0" in refused(b"", tmp_path)
    assert "it ends at byte 4" in refused(b"GGUF", tmp_path)
    for version in (1, 4, 3 << 24):
        raw = b"GGUF" + struct.pack("<IQQ", version, 0, 0)
        assert f"version {version}" in refused(raw, tmp_path)
    with pytest.raises(FileNotFoundError):
        gguf.load(tmp_path / "none.gguf")
    with pytest.raises(IsADirectoryError):
        gguf.load(tmp_path)


@pytest.mark.parametrize("count", [2**32, 2**61, 2**64 - 1])
def test_counts_that_overflow(count, good, tmp_path, never_mapped):
    for place in (8, 16):
        raw = bytearray(good)
        struct.pack_into("<Q", raw, place, count)
        assert "it ends at byte" in refused(raw, tmp_path)
    # The length of the first key, and of an array.
    array = good.index(b"tokenizer.ggml.tokens") + 21 + 8
    for place in (24, array):
        raw = bytearray(good)
        struct.pack_into("<Q", raw, place, count)
        assert "it ends at byte" in refused(raw, tmp_path)


def entry(raw: bytes, name: str) -> int:
    """Return where the number of dimensions of a tensor is."""
    return raw.index(string(name)) + 8 + len(name)


def test_places_outside_of_the_file(good, tmp_path, never_mapped):
    place = entry(good, "output.weight")
    cases = {
        (place, "I", 5): "has 5 dimensions, expected at most 4",
        (place, "I", 2**32 - 1): "dimensions, expected at most 4",
        (place + 4, "Q", 2**63): "ends at byte",
        (place + 4, "Q", 65): "rows of 65 numbers, expected a multiple of 32",
        (place + 12, "Q", 2**64 - 1): "ends at byte",
        (place + 20, "I", 77): "unknown type 77",
        (place + 20, "I", 2**32 - 1): "unknown type",
        (place + 20, "I", 4): "unknown type 4",  # was removed from ggml
        (place + 24, "Q", 2**64 - 32): "ends at byte",
        (place + 24, "Q", 2**40): "ends at byte",
        (place + 24, "Q", 33): "is at 33, expected a multiple of 32",
    }
    for (where, code, number), message in cases.items():
        raw = bytearray(good)
        struct.pack_into("<" + code, raw, where, number)
        assert message in refused(raw, tmp_path)


def test_every_truncation(good, tmp_path, never_mapped):
    header = good.index(string("output.weight")) + 100
    for size in [*range(0, header, 7), header, len(good) - 1]:
        refused(good[:size], tmp_path)


def test_metadata_that_is_wrong(good, tmp_path, never_mapped):
    metadata, tensors = parsed(good, tmp_path / "scratch.gguf")
    cases = {
        "general.architecture": ("gpt9", "expected one of llama, qwen2, qwen3"),
        "general.alignment": (12, "expected a multiple of 8"),
        "llama.block_count": (2**31, "num_hidden_layers is 2147483648"),
        "llama.embedding_length": (0, "hidden_size is 0"),
        "llama.attention.head_count": (0, "num_attention_heads is 0"),
        "llama.attention.head_count_kv": (3, "4 heads share 3 keys"),
        "llama.attention.key_length": (15, "of 15 numbers"),
        "llama.feed_forward_length": ("wide", "intermediate_size is 'wide'"),
        "llama.rope.freq_base": (math.nan, "rope_theta is nan"),
        "llama.context_length": (2**32 - 1, "max_position_embeddings is 42949"),
        "llama.rope.scaling.type": ("yarn", "is 'yarn', expected 'none'"),
        "tokenizer.ggml.padding_token_id": (97, "pad_token_id is 97"),
    }
    for key, (x, message) in cases.items():
        raw = written({**metadata, key: x}, tensors)
        assert message in refused(raw, tmp_path)
    for wrong in (7, ["llama"]):
        raw = written({**metadata, "general.architecture": wrong}, tensors)
        assert "expected one of llama, qwen2" in refused(raw, tmp_path)
    numbers = bytearray(written({**metadata, "own.key": 2**31}, tensors))
    place = numbers.index(string("own.key")) + 15
    struct.pack_into("<IIQ", numbers, place, 9, 9, 1)  # an array of arrays
    assert "'own.key' is an array of the unknown type 9" in refused(
        bytes(numbers), tmp_path
    )
    numbers = bytearray(good)  # an array of numbers in place of a string
    place = numbers.index(b"general.architecture") + 20
    struct.pack_into("<IIQ", numbers, place, 9, 0, 1)
    refused(bytes(numbers), tmp_path)
    twice = written({**metadata, "general.architecturf": "llama"}, tensors)
    twice = twice.replace(b"architecturf", b"architecture")
    assert "is there twice" in refused(twice, tmp_path)
    kind = good.index(b"llama.block_count") + 17
    for number in (13, 2**32 - 1):
        raw = bytearray(good)
        struct.pack_into("<I", raw, kind, number)
        assert f"'llama.block_count' has the unknown type {number}" in refused(
            raw, tmp_path
        )


def test_tensors_that_do_not_fit_the_model(good, tmp_path):
    metadata, tensors = parsed(good, tmp_path / "scratch.gguf")
    for name in ("token_embd.weight", "blk.1.ffn_up.weight"):
        fewer = {n: t for n, t in tensors.items() if n != name}
        assert "it " in refused(written(metadata, fewer), tmp_path)
    message = refused(
        written({**metadata, "llama.embedding_length": 128}, tensors), tmp_path
    )
    assert "has shape (97, 64), expected (97, 128)" in message
    heads = {**metadata, "llama.attention.key_length": 2**30}
    assert "has shape" in refused(written(heads, tensors), tmp_path)
    layers = {**metadata, "llama.block_count": 5}
    assert "it lacks the tensors of" in refused(
        written(layers, tensors), tmp_path
    )


def test_unknown_tensors(good, tmp_path):
    raw = added(good, "blk.0.novelty.weight", torch.ones(3))
    message = refused(raw, tmp_path)
    assert "does not have: blk.0.novelty.weight" in message
    assert "strict=False" in message
    path = tmp_path / "more.gguf"
    path.write_bytes(raw)
    model = gguf.load(path, strict=False)
    assert "blk.0.novelty.weight" in str(model.torch_foo_report)
    other = tmp_path / "good.gguf"
    other.write_bytes(good)
    assert torch.equal(logits(model), logits(gguf.load(other)))


def test_unknown_formats(good, tmp_path):
    metadata, tensors = parsed(good, tmp_path / "scratch.gguf")
    name = "blk.0.ffn_up.weight"
    rows, columns = tensors[name][1]
    tensors[name] = "q5_0", (rows, columns), bytes(rows * columns // 32 * 22)
    raw = written(metadata, tensors)
    message = refused(raw, tmp_path)
    assert "formats without kernels: blk.0.ffn_up.weight (q5_0)" in message
    path = tmp_path / "q5_0.gguf"
    path.write_bytes(raw)
    try:
        import gguf as package  # noqa: F401  only asked for
    except ModuleNotFoundError:
        assert "pip install gguf" in refused(raw, tmp_path, strict=False)
        return
    model = gguf.load(path, strict=False)
    assert "(q5_0)" in str(model.torch_foo_report)
    assert not model.model.layers[0].mlp.up_proj.weight.any()


def check_load(path: Path) -> None:
    """Load a model, or get a GGUFError that can be read."""
    message = ""
    try:
        gguf.load(path)
    except gguf.GGUFError as error:
        message = str(error)
    assert len(message) < 2000


BYTES = st.lists(
    st.tuples(st.integers(0, 2**31), st.integers(0, 255)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=400)
@given(changes=BYTES)
def test_damaged_headers(changes, good, tmp_path):
    """Change bytes before the data: a model, or GGUFError."""
    end = entry(good, "output.weight") + 40
    raw = bytearray(good)
    for place, byte in changes:
        raw[4 + place % (end - 4)] = byte
    path = tmp_path / "damaged.gguf"
    path.write_bytes(raw)
    check_load(path)


@settings(max_examples=200)
@given(
    place=st.integers(0, 2**31),
    number=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]),
)
def test_extreme_numbers_in_headers(place, number, good, tmp_path):
    end = entry(good, "output.weight") + 40
    raw = bytearray(good)
    struct.pack_into("<Q", raw, 4 + place % (end - 12), number)
    path = tmp_path / "extreme.gguf"
    path.write_bytes(raw)
    check_load(path)
