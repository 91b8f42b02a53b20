"""Let a language model answer, as it is and patched with torch_foo.

The example loads a model with transformers and streams its answer to a prompt,
by greedy decoding in float32. It patches the model with
torch_foo.integrations.transformers and streams the answer again. Then it times
both in turns, in one process, by patching and unpatching the same model, and
measures the peak memory of each in a separate process. The exit status is 1 if
the answers differ.

"prefill" is the time from the prompt to the first token, "decode" that of each
token after it.
"""

from __future__ import annotations

import operator
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import common
import torch
from common import AS_IT_IS, NAMES, PATCHED, Time
from torch import nn
from torch.nn import functional
from torch_foo.integrations.transformers import unpatch
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

PROMPT = "Write a short story about a lighthouse keeper and a lost whale."

Answer = Callable[..., torch.Tensor]


def answerer(model: Any, tokenizer: Any, prompt: str) -> tuple[Answer, int]:
    """Return a function that answers, and the prompt's number of tokens."""
    if tokenizer.chat_template:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    length = inputs["input_ids"].shape[1]

    def answer(tokens: int, streamer: Any = None) -> torch.Tensor:
        return model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, streamer=streamer
        )[0, length:]

    return answer, length


class Clock(BaseStreamer):
    """Record when the prompt and each token of the answer arrived."""

    def __init__(self) -> None:
        self.notes: list[Time] = []
        self.products = 0.0  # grows only while `watching`

    def put(self, value: torch.Tensor) -> None:
        self.notes.append(Time(time.perf_counter(), self.products))

    def end(self) -> None:
        pass

    def phases(self) -> dict[str, Time]:
        """Return the time of the prefill and that of one decoded token."""
        start, first, *_, last = self.notes
        tokens = len(self.notes) - 2
        return {
            "prefill": Time(*map(operator.sub, first, start)),
            "decode": Time(
                *((b - a) / tokens for a, b in zip(first, last, strict=True))
            ),
        }

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            self.products += time.perf_counter() - start
            return result

        return timed_call

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Sum the time in nn.Linear and in attention."""
        attention = functional.scaled_dot_product_attention
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        before = [dict(vars(m)) for m in linears]
        functional.scaled_dot_product_attention = self.timed(attention)
        for linear in linears:
            linear.forward = self.timed(linear.forward)
        yield
        functional.scaled_dot_product_attention = attention
        for linear, attributes in zip(linears, before, strict=True):
            del linear.forward  # a patched module has one of its own, too
            vars(linear).update(attributes)


def measure(
    model: Any, answer: Answer, tokens: int, rounds: int
) -> tuple[dict[str, dict[str, Time]], dict[str, dict[str, Time]]]:
    """Return medians by phase and name: plain, and with the time in products.

    Timing the products takes time too, hence two runs per name and round.
    """
    plain: dict[str, list[Clock]] = {name: [] for name in NAMES}
    watched: dict[str, list[Clock]] = {name: [] for name in NAMES}
    for done in range(rounds):
        print(f"round {done + 1} of {rounds} ...", flush=True)
        for name in random.sample(NAMES, len(NAMES)):
            if name == PATCHED:
                common.patched(model)
            plain[name].append(Clock())
            answer(tokens, plain[name][-1])
            watched[name].append(Clock())
            with watched[name][-1].watching(model):
                answer(tokens, watched[name][-1])
            if name == PATCHED:
                unpatch(model)
    return medians(plain), medians(watched)


def medians(clocks: dict[str, list[Clock]]) -> dict[str, dict[str, Time]]:
    """Return the medians by phase and name."""
    return {
        phase: {
            name: common.median(
                [clock.phases()[phase] for clock in clocks[name]]
            )
            for name in NAMES
        }
        for phase in ["prefill", "decode"]
    }


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("prompt", nargs="*", help=f"default: {PROMPT!r}")
    parser.add_argument(
        "--tokens",
        type=common.at_least(2),
        default=96,
        metavar="N",
        help="maximum length of the answer (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=common.at_least(1),
        default=5,
        metavar="N",
        help="timed runs of each model, in turns (default: %(default)s)",
    )
    arguments = parser.parse_args()
    prompt = " ".join(arguments.prompt) if arguments.prompt else PROMPT
    if not prompt.strip():
        parser.error("the prompt is empty")

    tokenizer, model = common.load(arguments.model)
    model.eval()
    answer, length = answerer(model, tokenizer, prompt)
    if arguments.memory_of:
        if arguments.memory_of == PATCHED:
            common.patched(model)
        common.forget_peak()  # of loading
        answer(arguments.tokens)
        common.print_peak()
        return 0

    print(f"prompt: {prompt}\n")
    answers = {}
    for name in NAMES:
        if name == PATCHED:
            print(common.patched(model), end="\n\n")
        print(f"--- {name} ---", flush=True)
        streamer = TextStreamer(
            tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        answers[name] = answer(arguments.tokens, streamer)
        print()
    unpatch(model)
    same = torch.equal(*answers.values())
    tokens = len(answers[PATCHED])
    print(f"{tokens} tokens, {'all the same' if same else 'NOT the same'}\n")
    if tokens < 2:
        sys.exit("nothing to time: the answer has fewer than two tokens")

    plain, watched = measure(model, answer, tokens, arguments.rounds)
    memory = common.peak_memory()
    charts = {}
    for phase, count in [("prefill", length), ("decode", 1)]:
        rates = {name: count / plain[phase][name].total for name in NAMES}
        ratio = rates[PATCHED] / rates[AS_IT_IS]
        charts[f"{phase}, tokens per second: {ratio:.2f}× faster"] = rates
    ratio = memory[PATCHED] / memory[AS_IT_IS]
    charts[f"peak memory, MiB: {ratio:.2f}×"] = memory
    print()
    for title, values in charts.items():
        print(common.bars(title, values), end="\n\n")
    for phase, times in watched.items():
        print(common.bars_of_times(phase, times))
        print(common.shares(times), end="\n\n")
    print(
        f"Medians of {arguments.rounds} rounds. Prompt: {length} tokens. Matrix"
        " products are those of nn.Linear and scaled_dot_product_attention,"
        f" timed in separate runs.\n{common.versions()}"
    )
    if arguments.plot:
        figure = common.figure(f"{arguments.model.name}: generation", 9)
        for axis, (title, values) in zip(
            figure.subplots(1, len(charts)), charts.items(), strict=True
        ):
            common.draw_bars(axis, title, values)
        common.save(figure, arguments.plot)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
