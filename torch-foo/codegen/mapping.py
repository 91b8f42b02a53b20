"""YAML with line numbers, read with checks."""

from collections.abc import Collection, Iterator

import yaml


class EntryError(Exception):
    """What is wrong in a line, and what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def entries(text: str) -> list[yaml.Node]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        reason = error.problem
    except yaml.reader.ReaderError as error:
        line, reason = text.count("\n", 0, error.position), error.reason
    else:
        if isinstance(root, yaml.SequenceNode):
            return root.value
        raise EntryError(1, "expected a list of operators, `- func: ...`")
    raise EntryError(
        line + 1, f"this is not YAML: {reason}; correct it there or above"
    )


class Mapping:
    """A mapping whose values are read with checks."""

    def __init__(self, node: yaml.Node, what: str, line: int) -> None:
        self.line = line
        self.what = what
        if not isinstance(node, yaml.MappingNode):
            raise EntryError(
                self.line, f"{what} is to be written as `key: value`"
            )
        self._nodes: dict[str, yaml.Node] = {}
        self._lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in self._nodes:
                raise EntryError(line, f"{name} is there twice in {what}")
            self._nodes[name], self._lines[name] = value, line

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def only(self, keys: Collection[str], kind: str = "key") -> None:
        for key in self:
            if key not in keys:
                raise EntryError(
                    self.line_of(key),
                    f"unknown {kind} {key} in {self.what}; "
                    f"use one of {', '.join(keys)}",
                )

    def line_of(self, key: str) -> int:
        return self._lines.get(key, self.line)

    def mapping(self, key: str) -> "Mapping":
        if key not in self:
            raise EntryError(
                self.line, f"{key} is missing in {self.what}; add it"
            )
        return Mapping(self._nodes[key], key, self.line_of(key))

    def text(self, key: str, default: str | None = None) -> str:
        if key not in self and default is not None:
            return default
        if key not in self:
            raise EntryError(
                self.line, f"{key} is missing in {self.what}; add it"
            )
        node = self._nodes[key]
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise EntryError(self.line_of(key), f"{key} is to be a text")
        return str(node.value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of words, or one."""
        if key not in self:
            return ()
        node = self._nodes[key]
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(n, yaml.ScalarNode) for n in nodes):
            raise EntryError(
                self.line_of(key), f"{key} is to be a list of words"
            )
        return tuple(str(n.value) for n in nodes)

    def choices(self, key: str, allowed: Collection[str]) -> tuple[str, ...]:
        for word in (words := self.texts(key)):
            if word not in allowed:
                raise EntryError(
                    self.line_of(key),
                    f"{key}: there is no {word!r}; "
                    f"use one of {', '.join(allowed)}",
                )
        return words

    def choice(self, key: str, allowed: Collection[str]) -> str:
        """One of these words, or nothing."""
        if len(words := self.choices(key, allowed)) > 1:
            raise EntryError(self.line_of(key), f"{key} is to be one word")
        return "".join(words)
