"""Make a model of transformers from a GGUF file."""

# mypy: allow-untyped-calls
# (parts of torch and transformers have no types)

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import ggml

from torch_foo.integrations.gguf._reader import (
    FLOATS,
    File,
    GGUFError,
    Stored,
)
from torch_foo.integrations.transformers import patch
from torch_foo.integrations.transformers._join import side_by_side
from torch_foo.nn import QuantizedEmbedding, QuantizedLinear
from torch_foo.operators.base import DTYPES
from torch_foo.operators.blocks import FORMATS
from torch_foo.ops import dequantize

# The architectures whose tensors have these names and are as transformers has
# them, and whether pairs of a rotary embedding are neighbours in the rows.
_ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_FREQUENCIES = "rope_freqs.weight"  # factors of the rotary embedding

_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str = torch.float32,
    strict: bool = True,
) -> PreTrainedModel:
    """Return a patched model of transformers with the weights of a GGUF file.

    Weights in blocks stay the bytes of the mapped file, in
    :class:`torch_foo.nn.QuantizedLinear` and
    :class:`torch_foo.nn.QuantizedEmbedding`. For Llama's architecture, the rows
    of queries and keys have another order in the file, so those of queries,
    keys and values are copied. A mapped file must not be changed.

    The tokenizer comes from transformers:
    ``AutoTokenizer.from_pretrained(folder, gguf_file=name)``.

    Args:
        path: A file of version 2 or 3, of the architecture llama (to which
            Mistral and SmolLM2 belong), qwen2 or qwen3.
        dtype: That of computation, and of the weights that are not in blocks;
            or its name, such as "bfloat16".
        strict: Whether to refuse tensors that the model does not have, and
            weights in formats that torch_foo does not compute with. Otherwise
            the former are left out, and the latter dequantized by the package
            gguf. Notes in the report tell which.

    Returns:
        The model, in evaluation mode. Its attribute ``torch_foo_report`` is
        what :func:`torch_foo.integrations.transformers.patch` returned.

    Raises:
        GGUFError: The file is damaged, or is refused as told above. The message
            names what was found.
        OSError: There is no such file.
        ValueError: `dtype` is none that torch_foo computes with.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        names = ", ".join(str(known) for known in DTYPES)
        raise ValueError(
            f"torch_foo.integrations.gguf.load: dtype is {dtype!r}, expected "
            f"one of {names}, or its name"
        )
    dtype = found
    file = File(path)
    config = _config(file)
    model: Any
    try:
        with torch.device("meta"):  # without memory
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:  # of many types
        raise _error(file, f"transformers refuses it: {error}") from error
    loader = _Loader(file, model, dtype, strict)
    loader.fill()
    model.eval()
    report = patch(model)
    report.notes += loader.notes
    model.torch_foo_report = report
    result: PreTrainedModel = model
    return result


def _error(file: File, what: str) -> GGUFError:
    return GGUFError(f"torch_foo: cannot load {file.path}: {what}")


def _config(file: File) -> Any:
    """Make transformers' configuration, by its own mapping of the keys."""
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise _error(
            file,
            f"its architecture is {architecture!r:.80}, expected one of "
            f"{known}",
        )
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise _error(
            file,
            f"{architecture}.rope.scaling.type is {scaling!r}, expected 'none'",
        )
    settings: dict[str, Any] = {}
    mappings: Any = ggml.GGUF_CONFIG_MAPPING
    for key, name in mappings[architecture].items():
        value = metadata.get(f"{architecture}.{key}")
        if name is not None and value is not None:
            settings[name] = value
    head_dim = metadata.get(f"{architecture}.attention.key_length")
    if head_dim is not None:
        settings["head_dim"] = head_dim
    settings |= {name: metadata.get(key) for name, key in _TOKENS.items()}
    if "token_embd.weight" not in file.tensors:
        raise _error(file, "it has no tensor 'token_embd.weight'")
    settings["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    _check_sizes(file, settings)
    settings["tie_word_embeddings"] = "output.weight" not in file.tensors
    if architecture == "llama":
        settings["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    try:
        return AutoConfig.for_model(architecture, **settings)
    except Exception as error:  # of many types
        raise _error(file, f"transformers refuses it: {error}") from error


def _check_sizes(file: File, settings: dict[str, Any]) -> None:
    """Refuse what no model has, before one is made."""
    limits = {"num_hidden_layers": len(file.tensors)}
    limits |= dict.fromkeys(_TOKENS, settings["vocab_size"])
    for name, value in settings.items():
        if value is None and name in _TOKENS:
            continue
        least: float = 0 if name in _TOKENS else 1
        most: float = limits.get(name, 2**31)
        if type(value) is float:
            least, most = 0, float("inf")
        if type(value) not in (int, float) or not least <= value < most:
            raise _error(
                file,
                f"{name} is {value!r:.80}, expected a number from {least} to "
                f"{most}",
            )
    heads = settings.get("num_attention_heads", 1)
    sharing = settings.get("num_key_value_heads", heads)
    head_dim = settings.get("head_dim", 2)
    if heads % sharing or head_dim % 2:
        raise _error(
            file,
            f"{heads} heads share {sharing} keys of {head_dim} numbers, "
            "expected a multiple of them, and an even number",
        )


class _Loader:
    """Fills a model without memory with the tensors of a file."""

    def __init__(
        self, file: File, model: Any, dtype: torch.dtype, strict: bool
    ) -> None:
        self.file = file
        self.model = model
        self.dtype = dtype
        self.strict = strict
        self.notes: list[str] = []

    def fill(self) -> None:
        model = self.model
        targets = dict(model.named_parameters())
        names = {name: _parameter(name) for name in self.file.tensors}
        unknown = [
            name
            for name, target in names.items()
            if target not in targets and name != _FREQUENCIES
        ]
        self._refuse("tensors that the model does not have", unknown)
        sources = {target: name for name, target in names.items()}
        missing = [target for target in targets if target not in sources]
        if missing:
            raise self._error(f"it lacks the tensors of {_list(missing)}")
        stored = {t: self.file.tensors[sources[t]] for t in targets}
        for target, tensor in stored.items():
            shape = tuple(targets[target].shape)
            if tensor.shape != shape:
                raise self._error(
                    f"the tensor {tensor.name!r} has shape {tensor.shape}, "
                    f"expected {shape}"
                )
        foreign = [
            f"{tensor.name} ({tensor.type.name})"
            for tensor in stored.values()
            if tensor.type.name not in FLOATS | FORMATS
        ]
        self._refuse("weights in formats without kernels", foreign)
        self._rotate()
        for name, module in list(model.named_modules()):
            if type(module) in (nn.Linear, nn.Embedding):
                weight = stored.get(f"{name}.weight")
                if weight is not None:
                    self._set_weight(name, module, weight)
        for target, tensor in stored.items():
            module, _, name = target.rpartition(".")
            parent = model.get_submodule(module)
            parameter = getattr(parent, name)
            if parameter is not None and parameter.is_meta:
                floats = nn.Parameter(self._floats(tensor))
                setattr(parent, name, floats)
        self._join()
        if model.config.tie_word_embeddings:
            self._tie()

    def _error(self, what: str) -> GGUFError:
        return _error(self.file, what)

    def _refuse(self, what: str, names: list[str]) -> None:
        if names and self.strict:
            raise self._error(
                f"it has {what}: {_list(names)} (strict=False goes on without)"
            )
        if names:
            self.notes.append(f"{what}: {_list(names)}")

    # --- tensors -------------------------------------------------------------

    def _floats(self, tensor: Stored) -> Tensor:
        """Return a tensor in the model's dtype, in memory of its own."""
        kind, data = tensor.type.name, self.file.bytes(tensor)
        if kind in FLOATS:
            floats = data.view(FLOATS[kind])
        elif kind in FORMATS:
            floats = dequantize(data, kind)
        else:
            floats = _dequantize(self.file, tensor, data)
        floats = floats.reshape(tensor.shape).to(self.dtype, copy=True)
        return self._ordered(tensor.name, floats)

    def _ordered(self, name: str, rows: Tensor) -> Tensor:
        """Bring rows of queries and keys to the order of transformers."""
        config = self.model.config
        if not _ARCHITECTURES[config.model_type]:
            return rows
        heads = {
            "attn_q": config.num_attention_heads,
            "attn_k": config.num_key_value_heads,
        }.get(name.split(".")[-2])
        if heads is None:
            return rows
        pairs: Tensor = rows.unflatten(0, (heads, -1, 2))
        return pairs.transpose(1, 2).flatten(0, 2)

    def _set_weight(self, name: str, module: Any, tensor: Stored) -> None:
        """Replace a module by one whose weight is the blocks of the file."""
        kind = tensor.type.name
        if kind not in FORMATS:
            return
        blocks = self._ordered(tensor.name, self.file.bytes(tensor))
        if isinstance(module, nn.Linear):
            new: Any = QuantizedLinear(blocks, kind, module.bias)
        else:
            new = QuantizedEmbedding(
                blocks, kind, module.padding_idx, self.dtype
            )
        self.model.set_submodule(name, new)

    def _join(self) -> None:
        """Copy values behind queries and keys, which were copied already."""
        if not _ARCHITECTURES[self.model.config.model_type]:
            return
        for layer in self.model.model.layers:
            attention = layer.self_attn
            linears = [attention.q_proj, attention.k_proj, attention.v_proj]
            if len({getattr(linear, "format", None) for linear in linears}) > 1:
                continue
            parts = side_by_side([linear.weight.detach() for linear in linears])
            for linear, part in zip(linears, parts, strict=True):
                linear.weight.data = part

    def _tie(self) -> None:
        """Let the head have the weight of the embedding."""
        model = self.model
        table = model.get_input_embeddings()
        if type(table) is QuantizedEmbedding:
            head = QuantizedLinear(table.weight, table.format)
            model.set_output_embeddings(head)
        else:
            model.lm_head.weight = table.weight

    def _rotate(self) -> None:
        """Compute the rotary embedding's frequencies, which no file has."""
        model = self.model.model
        rotary = model.rotary_emb = type(model.rotary_emb)(self.model.config)
        tensor = self.file.tensors.get(_FREQUENCIES)
        if tensor is None:
            return
        if tensor.type.name not in FLOATS or tensor.shape != tuple(
            rotary.inv_freq.shape
        ):
            raise self._error(
                f"the tensor {_FREQUENCIES!r} is {tensor.type.name} of shape "
                f"{tensor.shape}, expected floats of shape "
                f"{tuple(rotary.inv_freq.shape)}"
            )
        factors = self.file.bytes(tensor).view(FLOATS[tensor.type.name])
        rotary.inv_freq /= factors.float()
        rotary.original_inv_freq = rotary.inv_freq.clone()
        self.notes.append(
            f"the rotary embedding's frequencies are divided by {_FREQUENCIES}"
        )


def _parameter(name: str) -> str | None:
    """Translate the name of a tensor to that of transformers."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None:
        return None
    number, part, kind = found.groups()
    if number is None:
        return f"{_MODEL[part]}.{kind}" if part in _MODEL else None
    if part not in _LAYER:
        return None
    return f"model.layers.{number}.{_LAYER[part]}.{kind}"


def _list(names: list[str], most: int = 10) -> str:
    rest = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *rest])


def _dequantize(file: File, tensor: Stored, data: Tensor) -> Tensor:
    """Dequantize a format that torch_foo does not have."""
    try:
        import gguf  # type: ignore[import-not-found,unused-ignore] # optional
    except ModuleNotFoundError:
        raise _error(
            file,
            f"the package gguf, which dequantizes {tensor.type.name}, is not "
            "installed here: `pip install gguf` or `conda install gguf`",
        ) from None
    numbers = gguf.dequantize(
        data.numpy(), gguf.GGMLQuantizationType(tensor.number)
    )
    return torch.from_numpy(numbers)
