"""Fine-tune a language model on text, as it is and patched with torch_foo.

The example trains two copies of a model, one of them patched with
torch_foo.integrations.transformers, in one process with AdamW in float32. Both
start from the same weights, see the same batches and take their steps in turns,
so their losses and times compare. The peak memory of each is measured before,
in two steps without the other one. The exit status is 1 if the losses differ by
more than rounding explains.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common
import torch
from common import AS_IT_IS, NAMES, PATCHED, Figures, Time
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = 1e-3  # relative, of the losses: AdamW amplifies rounding
BAR = 20  # width of the losses' bars, in characters
WATCHED = 3  # steps in which matrix products are timed
aten = torch.ops.aten
PRODUCTS = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}
Series = dict[str, list[float]]  # by name


def text(file: str) -> str:
    """Return the content of a text file; an argument type."""
    try:
        content = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"{file} is not UTF-8 (byte {error.start})"
        ) from error
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from error
    if not content.strip():
        raise argparse.ArgumentTypeError(f"{file} is empty")
    return content


def positive(value: str) -> float:
    """Return a positive number; an argument type."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{value!r}, expected a number above 0"
        )
    return number


def sequences(tokenizer: Any, texts: list[str], length: int) -> torch.Tensor:
    """Concatenate the tokens of all texts and cut them into sequences."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens = [
        token for text in texts for token in [*tokenizer(text).input_ids, *end]
    ]
    count = len(tokens) // length
    if count == 0:
        sys.exit(
            f"{sys.argv[0]}: the text has {len(tokens)} tokens, fewer than one"
            f" sequence of {length} (--sequence)"
        )
    return torch.tensor(tokens[: count * length]).view(count, length)


class Trainer:
    def __init__(self, model: Any, learning_rate: float) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

    def step(self, batch: torch.Tensor) -> float:
        """Take a step; return the loss before it."""
        loss = self.model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def peak_memory(trainer: Trainer, batches: list[torch.Tensor]) -> float:
    """Return the peak memory of this process in two steps, in MiB."""
    common.forget_peak()
    for batch in batches[:2]:
        trainer.step(batch)
    return common.peak()


class Stopwatch(TorchDispatchMode):
    """Sum the time in matrix products, forward and backward.

    It costs some microseconds per operator, which count as all else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            self.products += time.perf_counter() - start
        return result


def train(
    trainers: dict[str, Trainer], batches: list[torch.Tensor]
) -> tuple[Series, Series]:
    """Return the losses and the seconds of each step."""
    losses: Series = {name: [] for name in NAMES}
    seconds: Series = {name: [] for name in NAMES}
    print("step  " + "  ".join(f"{f'loss {name}':>22}" for name in NAMES))
    for i, batch in enumerate(batches):
        for name in random.sample(NAMES, len(NAMES)):
            start = time.perf_counter()
            losses[name].append(trainers[name].step(batch))
            seconds[name].append(time.perf_counter() - start)
        if not math.isfinite(sum(losses[name][i] for name in NAMES)):
            sys.exit(f"{sys.argv[0]}: the loss of step {i + 1} is not finite")
        columns = (
            f"{losses[name][i]:12.5f} {seconds[name][i]:7.2f} s"
            for name in NAMES
        )
        height = min(losses[PATCHED][i] / losses[PATCHED][0], 2)
        bar = "#" * round(BAR * height)
        print(f"{i + 1:4d}  {'  '.join(columns)}  {bar}", flush=True)
    return losses, seconds


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--text",
        type=text,
        nargs="+",
        required=True,
        metavar="FILE",
        help="UTF-8 files to train on, repeated if they are too short",
    )
    parser.add_argument(
        "--steps",
        type=common.at_least(2),
        default=12,
        metavar="N",
        help="training steps; the first is not timed (default: %(default)s)",
    )
    parser.add_argument(
        "--sequence",
        type=common.at_least(2),
        default=1024,
        metavar="N",
        help="tokens per sequence (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=common.at_least(1),
        default=1,
        metavar="N",
        help="sequences per step (default: %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive,
        default=1e-4,
        metavar="X",
        help="learning rate of AdamW (default: %(default)s)",
    )
    arguments = parser.parse_args()
    tokenizer, model = common.load(arguments.model)
    data = sequences(tokenizer, arguments.text, arguments.sequence)
    # A text that is too short starts again.
    rows = torch.arange(arguments.steps * arguments.batch) % len(data)
    batches = list(data[rows].split(arguments.batch))
    memory = {}
    for name in NAMES:
        print(f"measuring the peak memory, {name} ...", flush=True)
        if name == PATCHED:
            common.patched(model)
        trainer = Trainer(model, arguments.learning_rate)
        memory[name] = peak_memory(trainer, batches)
        # These steps changed the weights.
        del model, trainer
        _, model = common.load(arguments.model)

    other = copy.deepcopy(model)
    print(common.patched(other), end="\n\n")
    trainers = {
        AS_IT_IS: Trainer(model, arguments.learning_rate),
        PATCHED: Trainer(other, arguments.learning_rate),
    }
    print(
        f"training on {data.numel()} tokens, {arguments.batch} x"
        f" {arguments.sequence} in each step"
    )
    losses, times = train(trainers, batches)
    print(f"timing matrix products in {WATCHED} steps of each", flush=True)
    watched: dict[str, list[Time]] = {name: [] for name in NAMES}
    for _ in range(WATCHED):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            with Stopwatch() as stopwatch:
                trainer.step(batches[-1])
            total = time.perf_counter() - start
            watched[name].append(Time(total, stopwatch.products))
    split = {name: common.median(times) for name, times in watched.items()}
    seconds: Figures = {
        name: statistics.median(times[name][1:]) for name in NAMES
    }
    pairs = list(zip(*losses.values(), strict=True))
    same = all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in pairs)
    difference = max(abs(a - b) / a for a, b in pairs)
    print(
        f"\nlosses differ by {difference:.1e} at most, relative:"
        f" {'rounding' if same else 'MORE than rounding explains'}\n"
    )
    speed_up = seconds[AS_IT_IS] / seconds[PATCHED]
    step = f"step, seconds: {speed_up:.2f}× faster"
    ratio = memory[PATCHED] / memory[AS_IT_IS]
    peak = f"peak memory, MiB: {ratio:.2f}×"
    print(common.bars(step, seconds), end="\n\n")
    print(common.bars(peak, memory), end="\n\n")
    print(common.bars_of_times("step", split))
    print(common.shares(split))
    print(
        f"\nMedians of {arguments.steps - 1} steps. Matrix products are those"
        " of nn.Linear and of attention, forward and backward, timed in"
        f" separate steps.\n{common.versions()}"
    )
    if arguments.plot:
        figure = common.figure(
            f"{arguments.model.name}: AdamW, {arguments.batch} x"
            f" {arguments.sequence} tokens",
            11,
        )
        curves, *others = figure.subplots(1, 3, width_ratios=[2, 1, 1])
        for name, style in [(AS_IT_IS, "C7-"), (PATCHED, "C0--")]:
            numbers = range(1, arguments.steps + 1)
            curves.plot(numbers, losses[name], style, label=name)
        curves.set_title("loss by step", fontsize=10)
        curves.locator_params(axis="x", integer=True)
        curves.legend()
        for axis, title, values in zip(
            others, (step, peak), (seconds, memory), strict=True
        ):
            common.draw_bars(axis, title, values)
        common.save(figure, arguments.plot)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
