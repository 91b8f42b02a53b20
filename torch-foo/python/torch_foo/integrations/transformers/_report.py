"""The report that patch() returns."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """What :func:`patch` did to a model, or to a model's class.

    Attributes:
        model: The name of the model's class.
        replaced: Maps (kind, class name) to the number of modules that now
            compute with torch_foo; kinds are named like patch's arguments, that
            of `weights` with the format. For a model's class, each class counts
            once.
        left: Maps (class name, reason) to the number of modules that look
            replaceable but were left alone.
        notes: What else the user should know.
    """

    model: str
    replaced: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.replaced)

    def __str__(self) -> str:
        if not self.replaced and not self.left:
            return f"{self.model}: nothing that torch_foo could replace"
        lines = [f"{self.model}:"]
        for (kind, name), count in self.replaced.items():
            lines.append(f"  {kind:<13} in {count:3d} x {name}")
        for (name, reason), count in self.left.items():
            lines.append(f"  left alone: {count:3d} x {name}: {reason}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
