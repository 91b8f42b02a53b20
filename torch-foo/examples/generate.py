"""Generate text with a language model, as it is and with torch_foo's RMSNorm.

Loads a model from a GGUF file with transformers, makes a second one that shares
its weights and has torch_foo.nn.RMSNorm in place of its own, lets both answer a
prompt by greedy decoding in float32, and prints the two texts, the tokens per
second of both and where the time went. Exit status 1 if the texts differ.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch_foo
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PROMPT = "Write a short story about a lighthouse keeper and a lost whale."


def is_rms_norm(module: nn.Module) -> bool:
    """Whether it is the RMSNorm of any of transformers' Llama-like models."""
    return type(module).__name__.endswith("RMSNorm")


def with_torch_foo(model: nn.Module) -> nn.Module:
    """A copy that shares the weights and computes RMSNorm with torch_foo."""
    shared = {id(weight): weight for weight in model.parameters()}
    patched = copy.deepcopy(model, shared)
    for name, norm in list(patched.named_modules()):
        if is_rms_norm(norm):
            replacement = torch_foo.nn.RMSNorm(
                norm.weight.numel(), eps=norm.variance_epsilon
            )
            replacement.weight = norm.weight
            patched.set_submodule(name, replacement)
    return patched


class Stopwatch:
    """Adds up the time that a model spends in its modules, by kind."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.handles = []
        for module in model.modules():
            if isinstance(module, nn.Linear):
                self.watch(module, "matrix products")
            elif is_rms_norm(module):
                self.watch(module, "RMSNorm")

    def watch(self, module: nn.Module, kind: str) -> None:
        start = 0.0

        def before(*_: object) -> None:
            nonlocal start
            start = time.perf_counter()

        def after(*_: object) -> None:
            self.seconds[kind] += time.perf_counter() - start

        self.handles += [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="*", help=f"default: {PROMPT!r}")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="a GGUF file"
    )
    parser.add_argument(
        "--tokens", type=int, default=96, help="at most (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="timed runs of each model, in turns (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        parser.error(f"--model: there is no file {arguments.model}")
    if arguments.tokens < 1 or arguments.rounds < 1:
        parser.error("--tokens and --rounds must be at least 1")
    prompt = " ".join(arguments.prompt) or PROMPT

    print(f"loading {arguments.model.name} ...", flush=True)
    start = time.perf_counter()
    logging.disable_progress_bar()
    source = {
        "pretrained_model_name_or_path": str(arguments.model.parent),
        "gguf_file": arguments.model.name,
        "local_files_only": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    eager = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    models = {"as it is": eager.eval(), "torch_foo": with_torch_foo(eager)}
    norms = sum(map(is_rms_norm, eager.modules()))
    print(
        f"loaded in {time.perf_counter() - start:.0f} s:"
        f" {type(eager).__name__}, {eager.num_parameters() / 1e6:.0f} M"
        f" parameters, {norms} RMSNorm modules\n\nprompt: {prompt}\n",
        flush=True,
    )
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    length = inputs["input_ids"].shape[1]

    def answer(model: nn.Module) -> tuple[torch.Tensor, float]:
        """The tokens of the answer, and the seconds that it took."""
        start = time.perf_counter()
        tokens = model.generate(
            **inputs, max_new_tokens=arguments.tokens, do_sample=False
        )[0, length:]
        return tokens, time.perf_counter() - start

    tokens = {}
    for name, model in models.items():
        tokens[name], _ = answer(model)
        text = tokenizer.decode(tokens[name], skip_special_tokens=True)
        print(f"--- {name} ---\n{text.strip()}\n", flush=True)

    times = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, model in models.items():
            times[name].append(answer(model)[1])
    for name, model in models.items():
        median = statistics.median(times[name])
        stopwatch = Stopwatch(model)
        _, total = answer(model)
        stopwatch.remove()
        shares = dict(stopwatch.seconds)
        shares["the rest"] = total - sum(shares.values())
        print(
            f"{name:9s} {len(tokens[name]) / median:6.1f} tokens/s; time in "
            + ", ".join(f"{k} {v / total:.0%}" for k, v in shares.items())
        )
    ratio = statistics.median(times["as it is"]) / statistics.median(
        times["torch_foo"]
    )
    same = torch.equal(*tokens.values())
    print(
        f"torch_foo / as it is: {ratio:.2f} x the speed;"
        f" {len(tokens['torch_foo'])} tokens,"
        f" {'all the same' if same else 'NOT the same'}"
        f" (torch {torch.__version__}, {torch.get_num_threads()} threads)"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
