"""Errors of a model against float64, as it is and patched with torch_foo.

usage: model_errors.py MODEL TEXT

It loads MODEL, a folder saved by transformers, and runs it on the first tokens
of TEXT. It prints JSON: by dtype and by name ("as it is", "patched"), the
relative error of the logits and of the gradient of each parameter.
"""

import copy
import functools
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_foo.integrations.transformers import patch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

TOKENS = 128


def float64(model: nn.Module) -> nn.Module:
    """Return a copy with the same weights that computes in float64.

    The norms and the loss of transformers compute in float32 for any input, so
    they are replaced. Its cosines and sines stay float32, because torch_foo
    replaces only what takes them as input.
    """
    result = copy.deepcopy(model).double()
    for module in result.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = functools.partial(
                functional.rms_norm,
                normalized_shape=module.weight.shape,
                weight=module.weight,
                eps=module.variance_epsilon,
            )
    result.loss_function = lambda logits, labels, **_: functional.cross_entropy(
        logits[0, :-1], labels[0, 1:]
    )
    return result


def results(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Return the logits, and the gradient of each parameter by name."""
    output = model(tokens, labels=tokens, use_cache=False)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()  # sets p.grad to None
    return {"logits": output.logits.detach(), **gradients}


def errors(
    actual: dict[str, Tensor], exact: dict[str, Tensor]
) -> dict[str, float]:
    return {
        name: ((actual[name].double() - value).norm() / value.norm()).item()
        for name, value in exact.items()
    }


def main() -> None:
    folder, text = map(Path, sys.argv[1:])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text.read_text(encoding="utf-8")).input_ids
    tokens = torch.tensor([ids[:TOKENS]])
    answer = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        exact = results(float64(model), tokens)
        as_it_is = errors(results(model, tokens), exact)
        other = copy.deepcopy(model)
        patch(other)
        patched = errors(results(other, tokens), exact)
        answer[str(dtype).removeprefix("torch.")] = {
            "as it is": as_it_is,
            "patched": patched,
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
