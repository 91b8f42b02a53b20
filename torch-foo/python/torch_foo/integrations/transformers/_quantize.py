"""Quantize the weights of a model, and bring the float ones back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from torch_foo.integrations.transformers._recognize import MARK
from torch_foo.integrations.transformers._replace import restore_forward
from torch_foo.integrations.transformers._report import Report
from torch_foo.nn import QuantizedEmbedding, QuantizedLinear
from torch_foo.operators.base import DTYPES
from torch_foo.operators.blocks import FORMATS
from torch_foo.ops import quantize

#: Formats by pattern of module names, or one for all.
Rule = str | Mapping[str, str]

_QUANTIZED = (QuantizedLinear, QuantizedEmbedding)


def quantize_weights(
    model: nn.Module, rule: Rule, keep: bool, report: Report
) -> None:
    """Replace the linear layers and embeddings that a rule is for."""
    patterns = _patterns(rule)
    modules = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | nn.Embedding)
    ]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name, _ in modules):
            raise ValueError(
                f"torch_foo.integrations.transformers.patch: {pattern!r} in "
                "weights is the name of no linear layer or embedding"
            )
    # Those that share a weight, as embeddings and heads do, share the blocks.
    # A parametrization makes a new one whenever it is asked.
    weights = {module: module.weight for _, module in modules}
    formats: dict[int, str] = {}
    matched: set[str] = set()
    named: dict[int, str] = {}  # the module that a pattern is for
    for name, module in modules:
        found = [f for p, f in patterns.items() if _matches(name, p)]
        if not found:
            continue
        key = id(weights[module])
        if formats.setdefault(key, found[0]) != found[0]:
            raise ValueError(
                "torch_foo.integrations.transformers.patch: weights has "
                f"{formats[key]} for {named[key]} and {found[0]} for {name}, "
                "which have the same weight"
            )
        named.setdefault(key, name)
        matched.add(name)
    blocks: dict[int, Any] = {}
    done: dict[nn.Module, nn.Module | None] = {}
    for path, module in modules:
        key = id(weights[module])
        if key not in formats or module in done:
            continue
        done[module] = None
        format = formats[key]
        (original,) = getattr(module, "original", ()) or (module,)
        name = type(original).__name__
        reason = _refuse(module, original, format)
        if reason:
            report.left[name, reason] += 1
            continue
        if getattr(module, "format", None) != format:
            restore_forward(original)
            if key not in blocks:
                blocks[key] = quantize(original.weight.detach(), format)
            new: Any = _quantized(original, blocks[key], format)
            done[module] = new
            blocks[key] = new.weight
            if keep:
                new.original = (original,)
        report.replaced[f"weights {format}", name] += 1
        if path not in matched:
            report.notes.append(
                f"{path} is {format} too, because it has the weight of "
                f"{named[key]}"
            )
    _put(model, {old: new for old, new in done.items() if new is not None})
    if not keep and any(done.values()):
        report.notes.append(
            "the float weights are gone: unpatch() cannot bring them back "
            "(keep=True keeps them)"
        )


def _patterns(rule: Rule) -> dict[str, str]:
    """Return the formats by pattern, or refuse the rule."""
    function = "torch_foo.integrations.transformers.patch"
    patterns = {"*": rule} if isinstance(rule, str) else rule
    if not isinstance(patterns, Mapping) or not all(
        isinstance(text, str) for item in patterns.items() for text in item
    ):
        raise TypeError(
            f"{function}: weights is {rule!r}, expected a format, such as "
            "'q8_0', or a dict of formats by name of module"
        )
    if not patterns:
        raise ValueError(
            f"{function}: weights is empty, expected a format by name of "
            "module, or None to quantize nothing"
        )
    for format in patterns.values():
        if format not in FORMATS:
            names = ", ".join(map(repr, FORMATS))
            raise ValueError(
                f"{function}: weights has the format {format!r}, expected one "
                f"of {names}"
            )
    return dict(patterns)


def restore_weights(model: nn.Module) -> tuple[int, int]:
    """Bring back what was kept; return the numbers of those and of others."""
    modules: list[Any] = [m for m in model.modules() if type(m) in _QUANTIZED]
    kept = {m: m.original[0] for m in modules if m.original}
    for module, original in kept.items():
        original.train(module.training)
    _put(model, kept)
    return len(kept), len(modules) - len(kept)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern is for a module, whose last names may be enough."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _refuse(module: Any, original: Any, format: str) -> str | None:
    """Return why a module cannot be quantized to a format, or None."""
    if type(module) in _QUANTIZED and (
        module.format == format or original is not module
    ):
        return None
    if type(module) in _QUANTIZED:
        return (
            f"its weight is {module.format} already, and the float one is gone"
        )
    cls = nn.Linear if isinstance(module, nn.Linear) else nn.Embedding
    if type(module) is not cls:
        return f"it is not a torch.nn.{cls.__name__}"
    weight = module.weight
    if type(weight) is not nn.Parameter or weight.dtype not in DTYPES:
        dtype = str(weight.dtype).removeprefix("torch.")
        return (
            f"its weight is a {type(weight).__name__} of {dtype}, expected a "
            "plain parameter of floating point"
        )
    if not weight.is_cpu:
        return f"its weight is on {weight.device.type}, expected the CPU"
    elements = FORMATS[format].elements
    if weight.shape[-1] % elements:
        return (
            f"its rows have {weight.shape[-1]} numbers, expected a multiple of "
            f"{elements} for {format}"
        )
    if getattr(module, "max_norm", None) is not None:
        return f"its max_norm is {module.max_norm}, expected None"
    mark = vars(module).get(MARK)
    if "forward" in vars(module) and (mark is None or not mark.is_in_place()):
        return "its forward was already replaced by another library"
    if any(
        hooks for name, hooks in vars(module).items() if name.endswith("_hooks")
    ):
        return "it has hooks"
    return None


def _quantized(module: Any, blocks: Tensor, format: str) -> Any:
    """Return a module like another, with a weight of blocks."""
    new: nn.Module
    if isinstance(module, nn.Linear):
        new = QuantizedLinear(blocks, format, module.bias)
    else:
        dtype = module.weight.dtype
        new = QuantizedEmbedding(blocks, format, module.padding_idx, dtype)
    return new.train(module.training)


def _put(model: nn.Module, replacements: dict[Any, Any]) -> None:
    """Replace modules wherever they are in a model."""
    for parent in list(model.modules()):
        for name, child in _children(parent):
            if child in replacements:
                setattr(parent, name, replacements[child])


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in list(module._modules.items()):
        if child is not None:
            yield name, child
