"""Patch every model of transformers that generates, and compare.

Each class is made with a tiny config. Its logits, loss and gradients must be
the same with and without patch(), and so must be the tokens of those with a
decode step. What cannot be made tiny, or computes nothing
from tokens alone, is counted and named in the warnings at the end.

All of it takes a bit more than a minute of CPU time. Some of it by hand:
`pytest torch-foo/tests/test_transformers_models.py -k "llama or qwen"`.
"""

import importlib
import inspect
import itertools
import pkgutil
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

# These imports would fail without transformers.
from torch_foo.integrations.transformers import (  # noqa: E402
    patch,
    unpatch,
)
from transformers import models  # noqa: E402

FAMILIES = [
    module.name
    for module in pkgutil.iter_modules(models.__path__)
    if module.ispkg
]
GROUPS = 8  # tests, which pytest-xdist distributes
VOCABULARY = 128

# The largest value of a number in a config: the first pattern decides that its
# name contains.
SIZES = {
    "vocab|codebook_size|num_embeddings": VOCABULARY,
    "position|max_.*length|window|n_ctx|context": 128,
    "per_tok|top_?k|shared_expert|n_group|moe_k": 2,
    r"expert\w*(size|dim)|moe\w*(size|dim)": 32,
    "expert": 4,
    "key_value|kv_heads|groups": 2,
    "heads|n_head$": 4,
    "layers?$|n_layer|depth$|num_blocks": 4,
    "rope_head_dim|rotary_dim|pe_dim": 8,
    "head_dim|head_size": 16,
    r"(hidden|embed\w*|model)_(size|dim)$|d_model|n_embd|width|^dim$": 64,
    "intermediate|ffn|d_ff|n_inner": 96,
    "(?<!patch)(?<!kernel)(?<!conv)_(size|dim|rank|channels)$": 64,
}
HIDDEN = next(pattern for pattern in SIZES if "d_model" in pattern)

# What is tried in turn: as many heads for keys as for queries; the sections of
# a rotation in three dimensions.
ATTEMPTS = [
    {},
    {"key_value|kv_heads|groups": 4},
    {HIDDEN: 512, "head_dim|head_size": 128},
]

# For what is None in a config that its own model does not take.
MISSING = {
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_key_value_heads": 4,
}


class Tiny:
    """Makes small configs.

    Args:
        sizes: What differs from SIZES.
        fill: Whether to set the values in MISSING.
    """

    def __init__(self, sizes: dict[str, int], fill: bool) -> None:
        self.sizes = {**SIZES, **sizes}
        self.fill = fill

    def value(self, name: object, value: Any) -> Any:
        """Shrink a value by its name."""
        if not isinstance(name, str) or isinstance(value, bool):
            return value
        if isinstance(value, transformers.PretrainedConfig):
            return self.config(type(value))
        if value is None:
            return MISSING.get(name) if self.fill else None
        if isinstance(value, int):
            if name.endswith("_id"):
                return min(value, 5)
            found = (n for p, n in self.sizes.items() if re.search(p, name))
            return min(value, next(found, value))
        if isinstance(value, dict):
            return {k: self.value(k, v) for k, v in value.items()}
        if isinstance(value, list) and len(value) > 4 and "layer" in name:
            kinds = [v for i, v in enumerate(value) if v not in value[:i]]
            return (4 * kinds)[:4]  # as many as there are layers
        return value

    def config(self, cls: Any) -> Any:
        """Make a config, whose own code derives what depends on sizes."""
        values = vars(cls())
        given = {
            name: self.value(name, values[name])
            for name in inspect.signature(cls).parameters
            if name in values
        }
        changed = {n: v for n, v in given.items() if v is not values[n]}
        return cls(**changed | {"pad_token_id": 0, "decoder_start_token_id": 1})

    def changed_config(self, cls: Any) -> Any:
        """Change a config that cannot be made with small sizes."""
        config = cls()
        for name, value in list(vars(config).items()):
            if isinstance(value, transformers.PretrainedConfig):
                setattr(config, name, self.changed_config(type(value)))
            elif not name.startswith("_"):
                setattr(config, name, self.value(name, value))
        config.pad_token_id, config.decoder_start_token_id = 0, 1
        return config


def make(cls: Any, config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(config).parameters())
    if count > 10e6:
        raise ValueError(f"a small one has {count / 1e6:.0f}M parameters")
    torch.manual_seed(0)
    model = cls(config).eval()
    for name, p in model.named_parameters():
        if "norm" in name and p.dim() == 1:
            p.data.uniform_(0.5, 1.5)
        elif not p.isfinite().all() or p.abs().max() > 100:  # uninitialized
            p.data.normal_(0, 0.02)
    return model


def results(model: torch.nn.Module, labels: bool) -> dict[str, torch.Tensor]:
    """Return the logits, the loss, and the gradients of all parameters."""
    torch.manual_seed(0)  # some models draw numbers
    ids = torch.randint(6, VOCABULARY, (2, 9))
    inputs = {"input_ids": ids} | ({"labels": ids} if labels else {})
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    model.zero_grad()
    output = model(**inputs)
    logits = output.logits if "logits" in output else output[0]
    loss = output.loss if labels else logits.float().square().mean()
    loss.backward()
    return {"logits": logits.detach(), "loss": loss.detach()} | {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def tiny(cls: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor], bool]:
    """Return a model, its results, and whether it takes labels."""
    errors: list[str] = []
    for fill, sizes in itertools.product([False, True], ATTEMPTS):
        maker = Tiny(sizes, fill)
        for config in (maker.config, maker.changed_config):
            # A model that lacks a library, an image or code fails in any way.
            try:
                model = make(cls, config(cls.config_class))
                try:
                    return model, results(model, True), True
                except (TypeError, NotImplementedError, AttributeError):
                    return model, results(model, False), False
            except Exception as error:
                errors.append(" ".join(str(error).split())[:80])
        if len(errors) > 2 and len(set(errors[-4:])) == 1:
            break  # it does not depend on sizes
    raise ValueError(errors[0])


def classes(family: str) -> Iterator[Any]:
    """Yield the classes of models that generate."""
    package = importlib.import_module(f"transformers.models.{family}")
    for file in pkgutil.iter_modules(package.__path__):
        if not file.name.startswith("modeling_"):
            continue
        try:
            module = importlib.import_module(f"{package.__name__}.{file.name}")
        except ImportError:  # it needs another library
            continue
        for value in list(vars(module).values()):
            if (
                isinstance(value, type)
                and issubclass(value, transformers.PreTrainedModel)
                and issubclass(value, transformers.GenerationMixin)
                and value.__module__ == module.__name__
            ):
                yield value


def error(actual: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest difference, relative to a tensor's largest number."""
    assert actual.keys() == expected.keys()
    worst = 0.0
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        if value.numel() and value.isfinite().all():
            scale = value.abs().max().clamp(min=1e-3)
            difference = (actual[name] - value).abs().max() / scale
            worst = max(worst, difference.nan_to_num(torch.inf).item())
    return worst


def tokens(model: torch.nn.Module) -> torch.Tensor:
    """Generate a few, from prompts of two lengths."""
    ids = torch.randint(6, VOCABULARY, (2, 9), generator=torch.Generator())
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False
    )


@pytest.mark.filterwarnings("default:left out")  # the first one decides
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_model(group):
    transformers.logging.set_verbosity_error()
    errors, left_out, other_tokens = {}, {}, []
    for family in FAMILIES[group::GROUPS]:
        for cls in classes(family):
            try:
                model, expected, labels = tiny(cls)
            except ValueError as reason:
                left_out[cls.__name__] = str(reason)
                continue
            report = patch(model)
            errors[cls.__name__] = error(results(model, labels), expected)
            if any(kind == "decode" for kind, _ in report.replaced):
                unpatch(model)
                try:
                    generated = tokens(model)
                except KeyError:  # CSM's depth decoder is part of a model
                    continue
                patch(model)
                if not torch.equal(tokens(model), generated):
                    other_tokens.append(cls.__name__)
    wrong = {name: value for name, value in errors.items() if value > 1e-4}
    assert not wrong
    assert not other_tokens
    assert len(left_out) < len(errors)
    reasons = "".join(f"\n  {n}: {left_out[n]}" for n in left_out)
    warnings.warn(
        f"left out {len(left_out)} of {len(errors) + len(left_out)}{reasons}",
        stacklevel=1,
    )
