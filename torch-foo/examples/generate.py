"""Let a language model answer, as it is and patched with torch_foo.

The example loads a model with transformers, patches it with
torch_foo.integrations.transformers and streams its answer to a prompt, by
greedy decoding in float32. It streams the answer of the model as it is, too.
Then it measures the time and the peak memory of the first tokens of both in
turns, in one process, by patching and unpatching the same model. The exit
status is 1 if the answers differ.

"prefill" is the time from the prompt to the first token, "decode" the median of
those of the tokens after it.
"""

from __future__ import annotations

import operator
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import common
import torch
from common import AS_IT_IS, NAMES, PATCHED, Figures, Time
from torch import nn
from torch.nn import functional
from torch_foo.integrations.transformers import unpatch
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

PHASES = ["prefill", "decode"]
TIMED = 24  # tokens of a timed answer
PROMPT = "Write a short story about a lighthouse keeper and a lost whale."

Answer = Callable[..., torch.Tensor]
Clocks = dict[str, list["Clock"]]  # by name, one per round


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
        """Return the time of the prefill and the median of decoded tokens."""
        prefill, *decode = (
            Time(*map(operator.sub, after, before))
            for before, after in pairwise(self.notes)
        )
        return {"prefill": prefill, "decode": common.median(decode)}

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
) -> tuple[Clocks, Clocks, Figures]:
    """Return clocks, clocks with the time in products, and peaks of memory.

    Timing the products takes time too, hence two runs per name and round.
    """
    plain: Clocks = {name: [] for name in NAMES}
    watched: Clocks = {name: [] for name in NAMES}
    memory = dict.fromkeys(NAMES, 0.0)
    for done in range(rounds):
        print(f"round {done + 1} of {rounds} ...", flush=True)
        for name in random.sample(NAMES, len(NAMES)):
            if name == PATCHED:
                common.patched(model)
            common.forget_peak()
            plain[name].append(Clock())
            answer(tokens, plain[name][-1])
            memory[name] = max(memory[name], common.peak())
            watched[name].append(Clock())
            with watched[name][-1].watching(model):
                answer(tokens, watched[name][-1])
            if name == PATCHED:
                unpatch(model)
    return plain, watched, memory


def medians(clocks: Clocks) -> dict[str, dict[str, Time]]:
    """Return the medians by phase and name."""
    return {
        phase: {
            name: common.median(
                [clock.phases()[phase] for clock in clocks[name]]
            )
            for name in NAMES
        }
        for phase in PHASES
    }


def speed_ups(clocks: Clocks, phase: str) -> list[float]:
    """Return how much faster the patched model was in each round."""
    return [
        as_it_is.phases()[phase].total / patched.phases()[phase].total
        for as_it_is, patched in zip(*clocks.values(), strict=True)
    ]


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
        default=3,
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
    print(f"prompt: {prompt}\n")
    print(common.patched(model), end="\n\n")
    answers = {}
    for name in (PATCHED, AS_IT_IS):
        if name == AS_IT_IS:
            unpatch(model)
        print(f"--- {name} ---", flush=True)
        streamer = TextStreamer(
            tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        answers[name] = answer(arguments.tokens, streamer)
        print()
    same = torch.equal(*answers.values())
    tokens = len(answers[PATCHED])
    print(f"{tokens} tokens, {'all the same' if same else 'NOT the same'}\n")
    if tokens < 2:
        sys.exit("nothing to time: the answer has fewer than two tokens")

    tokens = min(tokens, TIMED)
    plain, watched, memory = measure(model, answer, tokens, arguments.rounds)
    charts = {}
    spread = []
    for (phase, times), count in zip(
        medians(plain).items(), (length, 1), strict=True
    ):
        rates = {name: count / times[name].total for name in NAMES}
        ratio = rates[PATCHED] / rates[AS_IT_IS]
        charts[f"{phase}, tokens per second: {ratio:.2f}× faster"] = rates
        ratios = speed_ups(plain, phase)
        spread.append(f"{phase} {min(ratios):.2f}× to {max(ratios):.2f}×")
    ratio = memory[PATCHED] / memory[AS_IT_IS]
    charts[f"peak memory, MiB: {ratio:.2f}×"] = memory
    print()
    for title, values in charts.items():
        print(common.bars(title, values), end="\n\n")
    for phase, times in medians(watched).items():
        print(common.bars_of_times(phase, times))
        print(common.shares(times), end="\n\n")
    print(
        f"Medians of {arguments.rounds} rounds; in single rounds,"
        f" {' and '.join(spread)} faster. Prompt: {length} tokens, timed"
        f" answer: {tokens}. Matrix products are those of nn.Linear and"
        " scaled_dot_product_attention, timed in separate runs.\n"
        f"{common.versions()}"
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
