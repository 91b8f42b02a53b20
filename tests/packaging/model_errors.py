"""Errors of a model against float64, as it is and patched with torch_foo.

`model_errors.py MODEL TEXT` loads a folder as transformers saves it and takes
the text's first tokens. Prints JSON: by dtype, by name (as it is, patched),
the relative error of the logits and of each parameter's gradient.
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
    """A copy with the same weights that computes in float64.

    transformers' norms and loss compute in float32, whatever their input. So do
    its cosines and sines, which are an input of what torch_foo replaces.
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
    """The logits, and the gradient of each parameter by its name."""
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
