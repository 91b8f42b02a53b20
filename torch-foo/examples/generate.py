"""Let a language model answer, as it is and with torch_foo.

The example loads a model with transformers, patches it with
torch_foo.integrations.transformers and streams its answer to a prompt, by
greedy decoding in float32. It streams those of the model as it is and of two
models with quantized weights, too: of Q8_0, and of Q4_1 or of a GGUF file. Then
it measures the time and the memory of the first tokens of all in turns, in one
process, and their perplexity on a text. The exit status is 1 if the answers in
float32 differ.

"first token" is the time from the prompt to the first token, "decode" the
median of those of the tokens after it.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import common
import torch
from common import AS_IT_IS, PATCHED, Figures
from torch_foo.integrations import gguf
from torch_foo.integrations.transformers import patch, unpatch
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

TIMED = 24  # tokens of a timed answer
READ = 512  # tokens of the text for the perplexity
PROMPT = "Write a short story about a lighthouse keeper and a lost whale."
TEXT = Path(__file__).parent.parent / "README.md"
LLAMA_CPP = "llama.cpp"

Answer = Callable[..., torch.Tensor]
Times = dict[str, list[tuple[float, float]]]  # by name, one per round


class Variant:
    """A model that answers, and the seconds that it took to make.

    The model as it is and the one that is patched are the same.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        start = time.perf_counter()
        self.name = name
        self.model = make()
        self.seconds = time.perf_counter() - start

    @contextmanager
    def ready(self) -> Iterator[Any]:
        if self.name == PATCHED:
            common.patched(self.model)
        yield self.model
        if self.name == PATCHED:
            unpatch(self.model)

    def size(self) -> float:
        """Return the size of the weights in MiB."""
        return sum(p.nbytes for p in self.model.parameters()) / 2**20


def prompt_of(tokenizer: Any, prompt: str) -> Any:
    """Return the arguments of generate() for a prompt."""
    if not tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


def quantized(model: Any, format: str) -> Any:
    twin = copy.deepcopy(model)
    patch(twin, weights=format)
    return twin


def variants(model: Any, file: Path | None) -> list[Variant]:
    """Return the model in all its forms."""
    result = [Variant(name, lambda: model) for name in (AS_IT_IS, PATCHED)]
    result.append(Variant("Q8_0", lambda: quantized(model, "q8_0")))
    if file is None:
        result.append(Variant("Q4_1", lambda: quantized(model, "q4_1")))
    else:
        result.append(Variant("GGUF", lambda: gguf.load(file)))
        print(f"{file.name} loaded in {result[-1].seconds:.1f} s\n")
    return result


class Clock(BaseStreamer):
    """Record when the prompt and each token of the answer arrived."""

    def __init__(self) -> None:
        self.notes: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.notes.append(time.perf_counter())

    def end(self) -> None:
        pass

    def times(self) -> tuple[float, float]:
        """Return the time of the first token and the median of the others."""
        first, *decode = (b - a for a, b in pairwise(self.notes))
        return first, statistics.median(decode)


def measure(
    forms: list[Variant], inputs: Any, tokens: int, rounds: int
) -> tuple[Times, Figures]:
    """Return the times of each round, and peaks of memory in MiB.

    Other models are in the same process: a peak is the weights of one, and what
    is added while it answers.
    """
    times: Times = {form.name: [] for form in forms}
    memory = dict.fromkeys(times, 0.0)
    for done in range(rounds):
        print(f"round {done + 1} of {rounds} ...", flush=True)
        for form in random.sample(forms, len(forms)):
            with form.ready() as model:
                before = common.forget_peak()
                clock = Clock()
                answer(model, inputs, tokens, clock)
                added = common.peak() - before
            times[form.name].append(clock.times())
            memory[form.name] = max(memory[form.name], form.size() + added)
    return times, memory


def answer(model: Any, inputs: Any, tokens: int, streamer: Any) -> torch.Tensor:
    length = inputs["input_ids"].shape[1]
    result: torch.Tensor = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, streamer=streamer
    )
    return result[0, length:]


def perplexity(model: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return math.exp(model(ids, labels=ids).loss)


def answer_of_llama_cpp(
    file: Path, prompt: list[int], tokens: int, rounds: int, threads: int
) -> tuple[str, list[tuple[float, float]]]:
    """Return the text and the times of the package xllamacpp.

    Call it in a process of its own: beside PyTorch's threads it is slower.
    """
    import xllamacpp  # type: ignore[import-not-found,unused-ignore] # optional

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = 1024
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)

    def complete(count: int, ignore_eos: bool) -> Any:
        return server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": count,
                "temperature": 0,
                "cache_prompt": False,
                "ignore_eos": ignore_eos,
            }
        )

    text = complete(tokens, ignore_eos=False)["choices"][0]["text"]
    times = []
    for _ in range(rounds):
        found = complete(min(tokens, TIMED), ignore_eos=True)["timings"]
        decode = found["predicted_per_token_ms"] / 1e3
        times.append((found["prompt_ms"] / 1e3 + decode, decode))
    return text, times


def parse() -> argparse.Namespace:
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
    parser.add_argument(
        "--gguf",
        type=common.existing,
        metavar="FILE",
        help="a GGUF file of the same model, in place of Q4_1",
    )
    parser.add_argument(
        "--compare-llama-cpp",
        action="store_true",
        help="also run the GGUF file by the package xllamacpp",
    )
    arguments = parser.parse_args()
    words = " ".join(arguments.prompt) if arguments.prompt else PROMPT
    arguments.prompt = words
    if not words.strip():
        parser.error("the prompt is empty")
    if arguments.compare_llama_cpp and arguments.gguf is None:
        parser.error("--compare-llama-cpp needs --gguf")
    if arguments.compare_llama_cpp and not common.installed("xllamacpp"):
        parser.error(
            "--compare-llama-cpp needs xllamacpp, which is not installed here: "
            "`pip install xllamacpp`"
        )
    return arguments


def main() -> int:
    arguments = parse()
    tokenizer, model = common.load(arguments.model)
    model.eval()
    inputs = prompt_of(tokenizer, arguments.prompt)
    forms = variants(model, arguments.gguf)
    text = TEXT.read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :READ]

    print(f"prompt: {arguments.prompt}\n")
    answers, perplexities = {}, {}
    for form in forms:
        with form.ready() as ready:
            if form.name == PATCHED:
                print(patch(ready), end="\n\n")
            print(f"--- {form.name} ---", flush=True)
            streamer = TextStreamer(
                tokenizer, skip_prompt=True, skip_special_tokens=True
            )
            answers[form.name] = answer(
                ready, inputs, arguments.tokens, streamer
            )
            perplexities[form.name] = perplexity(ready, ids)
        print()
    same = torch.equal(answers[AS_IT_IS], answers[PATCHED])
    tokens = len(answers[PATCHED])
    print(f"{tokens} tokens, {'all the same' if same else 'NOT the same'}\n")
    shortest = min(map(len, answers.values()))
    if shortest < 2:
        sys.exit("nothing to time: an answer has fewer than two tokens")

    tokens = min(shortest, TIMED)
    times, memory = measure(forms, inputs, tokens, arguments.rounds)
    if arguments.compare_llama_cpp:
        with ProcessPoolExecutor(1, get_context("spawn")) as own:
            said, times[LLAMA_CPP] = own.submit(
                answer_of_llama_cpp,
                arguments.gguf,
                inputs["input_ids"][0].tolist(),
                arguments.tokens,
                arguments.rounds,
                torch.get_num_threads(),
            ).result()
        print(f"\n--- {LLAMA_CPP} ---\n{said}")
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in times.items()
    }
    rates = {name: 1 / decode for name, (_, decode) in medians.items()}
    charts = {
        f"decode, tokens per second: {rates[PATCHED] / rates[AS_IT_IS]:.2f}×"
        " faster in float32": rates,
        "first token, ms": {
            n: 1e3 * first for n, (first, _) in medians.items()
        },
        "peak memory, MiB": memory,
        "perplexity": perplexities,
    }
    print()
    for title, values in charts.items():
        print(common.bars(title, values), end="\n\n")
    ratios = [
        before / after
        for (_, before), (_, after) in zip(
            times[AS_IT_IS], times[PATCHED], strict=True
        )
    ]
    print(
        f"Medians of {arguments.rounds} rounds; in single rounds, decode"
        f" {min(ratios):.2f}× to {max(ratios):.2f}× faster in float32. Prompt:"
        f" {inputs['input_ids'].shape[1]} tokens, timed answer: {tokens},"
        f" perplexity on {ids.shape[1]} tokens of {TEXT.name}.\n"
        f"{common.versions()}"
    )
    if arguments.plot:
        figure = common.figure(f"{arguments.model.name}: generation", 12)
        for axis, (title, values) in zip(
            figure.subplots(1, len(charts)), charts.items(), strict=True
        ):
            common.draw_bars(axis, title, values)
        common.save(figure, arguments.plot)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
