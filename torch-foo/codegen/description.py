"""ops.yaml as Python objects, and what can be wrong with it.

Schemas are parsed by torchgen, which comes with PyTorch. Nothing here imports
torch or torch_foo: functions that ops.yaml names are looked up in the source.
"""

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import yaml
from torchgen.model import (
    Argument,
    FunctionSchema,
    OptionalType,
    Return,
    Type,
)

# The types in use that LibTorch's stable ABI has from torch 2.10 on.
TYPES = ("Tensor", "int", "float", "bool", "str")
DEVICES = ("CPU", "CUDA")
KEYS = (
    "func",
    "dispatch",
    "variants",
    "inplace",
    "tags",
    "fake",
    "derivatives",
    "output_differentiability",
    "internal_results",
    "vmap",
    "autocast",
    "doc",
)


class DescriptionError(Exception):
    """All that is wrong with ops.yaml, a line each, with what to do."""


class _EntryError(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Derivative:
    """The gradients of some arguments, computed by one expression."""

    arguments: tuple[str, ...]
    formula: str
    """The expression, as a backward function has it."""
    tensors: tuple[str, ...]
    """The arguments and results whose elements it needs."""
    shapes: tuple[str, ...]
    """The tensors of which it needs the shape."""
    values: tuple[str, ...]
    """The other arguments that it needs."""


@dataclass(frozen=True)
class Doc:
    """What users read about an operator. Empty where nothing is to be said."""

    summary: str
    args: dict[str, str]
    out: str
    returns: str
    source: str
    example: str


@dataclass(frozen=True)
class Operator:
    """One entry of ops.yaml."""

    line: int
    schema: FunctionSchema
    dispatch: dict[str, str]
    """For each dispatch key the kernel, a C++ function."""
    has_out: bool
    inplace: dict[str, str]
    """For each argument that NAME_ writes to the result that goes there."""
    tags: tuple[str, ...]
    fake: str
    """A call of a function in _fake.py."""
    derivatives: tuple[Derivative, ...]
    differentiable: tuple[bool, ...]
    """For each result whether it has a gradient."""
    internal_results: tuple[str, ...]
    """The results that the Python function keeps to itself."""
    vmap: str
    autocast: str
    doc: Doc | None

    @property
    def name(self) -> str:
        return str(self.schema.name)

    @property
    def public(self) -> bool:
        return not self.name.startswith("_")

    @property
    def arguments(self) -> tuple[Argument, ...]:
        return self.schema.arguments.flat_non_out

    @property
    def tensors(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.type.is_tensor_like())

    @property
    def results(self) -> tuple[Return, ...]:
        return self.schema.returns

    def names(self) -> Iterator[str]:
        """All names that it takes in the dispatcher."""
        yield self.name
        if self.inplace:
            yield f"{self.name}_"


def load(path: Path, package: Path) -> list[Operator]:
    """Read ops.yaml; `package` has the Python modules that it refers to."""
    modules = {
        name: _functions(package / f"{name}.py")
        for name in ("_fake", "_derivatives", "_vmap")
    }
    operators: list[Operator] = []
    wrong: list[_EntryError] = []
    lines: dict[str, int] = {}
    try:
        for node in _entries(path.read_text()):
            try:
                operator = _operator(_Mapping(node, "an operator"), modules)
                for name in operator.names():
                    first = lines.setdefault(name, operator.line)
                    if first != operator.line:
                        raise _EntryError(
                            operator.line,
                            f"func: {name} is described in line {first} "
                            "already; remove one of them",
                        )
                operators.append(operator)
            except _EntryError as error:
                wrong.append(error)
    except _EntryError as error:
        wrong.append(error)
    if wrong:
        raise DescriptionError(
            "\n".join(f"{path.name}:{e.line}: {e}" for e in wrong)
        )
    return operators


def base_type(type_: Type) -> str:
    """The name of a type without its question mark."""
    return str(type_.elem if isinstance(type_, OptionalType) else type_)


# --- YAML with line numbers -------------------------------------------------


def _entries(text: str) -> list[yaml.Node]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise _EntryError(line, f"this is not YAML: {error.problem}") from error
    if not isinstance(root, yaml.SequenceNode):
        raise _EntryError(1, "expected a list of operators, `- func: ...`")
    return root.value


class _Mapping:
    """A mapping whose values are read with checks."""

    def __init__(self, node: yaml.Node, what: str) -> None:
        self.line = node.start_mark.line + 1
        self.what = what
        if not isinstance(node, yaml.MappingNode):
            raise _EntryError(
                self.line, f"{what} is to be written as `key: value`"
            )
        self._nodes: dict[str, yaml.Node] = {}
        self._lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in self._nodes:
                raise _EntryError(line, f"{name} is there twice in {what}")
            self._nodes[name], self._lines[name] = value, line

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def only(self, keys: Collection[str], kind: str = "key") -> None:
        for key in self:
            if key not in keys:
                raise _EntryError(
                    self.line_of(key),
                    f"unknown {kind} {key} in {self.what}; "
                    f"use one of {', '.join(keys)}",
                )

    def line_of(self, key: str) -> int:
        return self._lines.get(key, self.line)

    def mapping(self, key: str) -> "_Mapping":
        if key not in self:
            raise _EntryError(
                self.line, f"{key} is missing in {self.what}; add it"
            )
        return _Mapping(self._nodes[key], key)

    def text(self, key: str, default: str | None = None) -> str:
        if key not in self and default is not None:
            return default
        if key not in self:
            raise _EntryError(
                self.line, f"{key} is missing in {self.what}; add it"
            )
        node = self._nodes[key]
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise _EntryError(self.line_of(key), f"{key} is to be a text")
        return str(node.value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of words, or one."""
        if key not in self:
            return ()
        node = self._nodes[key]
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(n, yaml.ScalarNode) for n in nodes):
            raise _EntryError(
                self.line_of(key), f"{key} is to be a list of words"
            )
        return tuple(str(n.value) for n in nodes)

    def choices(self, key: str, allowed: Collection[str]) -> tuple[str, ...]:
        for word in (words := self.texts(key)):
            if word not in allowed:
                raise _EntryError(
                    self.line_of(key),
                    f"{key}: there is no {word}; "
                    f"use one of {', '.join(allowed)}",
                )
        return words


# --- one operator -----------------------------------------------------------


def _operator(entry: _Mapping, modules: dict[str, tuple[str, ...]]) -> Operator:
    entry.only(KEYS)
    schema = _schema(entry.text("func"), entry.line_of("func"))
    name, results = str(schema.name), schema.returns
    arguments = {a.name: a for a in schema.arguments.flat_non_out}
    has_tensors = any(a.type.is_tensor_like() for a in arguments.values())
    has_out = "out" in entry.choices("variants", ["out"])
    if has_out and len(results) != 1:
        raise _EntryError(
            entry.line_of("variants"),
            f"variants: out is for one result, {name} has {len(results)}",
        )

    flags = entry.choices("output_differentiability", ["true", "false"])
    if flags and len(flags) != len(results):
        raise _EntryError(
            entry.line_of("output_differentiability"),
            f"output_differentiability: {len(flags)} values, but {name} has "
            f"{len(results)} results",
        )
    differentiable = tuple(f == "true" for f in flags) or (True,) * len(results)

    fake = ""
    if "fake" in entry:
        line = entry.line_of("fake")
        call = _call(entry.text("fake"), modules, "_fake", line)
        for word in _names(call):
            if word not in arguments:
                raise _EntryError(line, f"fake: {name} has no argument {word}")
        fake = ast.unparse(call)
    elif has_tensors:
        raise _EntryError(
            entry.line,
            f"{name} has no fake kernel, without which torch.compile cannot "
            "trace it; add `fake: FUNCTION(...)`, a function of _fake.py",
        )
    if "derivatives" in entry and "vmap" not in entry:
        raise _EntryError(
            entry.line_of("derivatives"),
            f"derivatives: {name} has no vmap rule, which torch.func needs "
            "for gradients too; add `vmap: FUNCTION`, of _vmap.py",
        )
    return Operator(
        line=entry.line,
        schema=schema,
        dispatch=_dispatch(entry, name),
        has_out=has_out,
        inplace=_inplace(entry, arguments, results),
        tags=entry.choices("tags", _all_tags()),
        fake=fake,
        derivatives=_derivatives(entry, schema, differentiable, modules),
        differentiable=differentiable,
        internal_results=entry.choices(
            "internal_results", [str(r.name) for r in results]
        ),
        vmap="".join(entry.choices("vmap", modules["_vmap"])),
        autocast="".join(entry.choices("autocast", ["promote"])),
        doc=_doc(entry, name, arguments, has_out),
    )


def _schema(text: str, line: int) -> FunctionSchema:
    try:
        schema = FunctionSchema.parse(text)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise _EntryError(
            line,
            f"func: torchgen cannot parse {text!r}"
            + (f" ({reason})" if reason else "")
            + "; write it as in native_functions.yaml, "
            "`name(Tensor x, float eps=1e-6) -> Tensor`",
        ) from error
    values = (*schema.arguments.flat_non_out, *schema.returns)
    written = any(v.annotation is not None for v in values)
    if written or schema.arguments.out or str(schema.name).count("."):
        raise _EntryError(
            line,
            f"func: {schema.name} is a variant; describe the operator that "
            "returns new tensors, and add `variants: out` or `inplace: ...`",
        )
    for value in values:
        if base_type(value.type) not in TYPES:
            raise _EntryError(
                line,
                f"func: {value.name or 'the result'} is a {value.type}, which "
                "cannot cross the stable ABI; use one of "
                f"{', '.join(TYPES)}, or that with a question mark",
            )
    if len(schema.returns) > 1 and not all(r.name for r in schema.returns):
        raise _EntryError(
            line,
            "func: give the results names, as in "
            "`-> (Tensor first, Tensor second)`",
        )
    return schema


def _dispatch(entry: _Mapping, name: str) -> dict[str, str]:
    if "dispatch" not in entry:
        return dict.fromkeys(DEVICES, name)
    mapping = entry.mapping("dispatch")
    mapping.only((*DEVICES, "CompositeExplicitAutograd"), "dispatch key")
    for key in mapping:
        if not re.fullmatch(r"[A-Za-z]\w*", mapping.text(key)):
            raise _EntryError(
                mapping.line_of(key),
                f"dispatch: {mapping.text(key)!r} is no C++ function's name",
            )
    return {key: mapping.text(key) for key in mapping}


def _inplace(
    entry: _Mapping, arguments: Collection[str], results: Iterable[Return]
) -> dict[str, str]:
    if "inplace" not in entry:
        return {}
    mapping = entry.mapping("inplace")
    names = [r.name or "result" for r in results]
    mapping.only(names, "result")
    for result in names:
        if mapping.text(result) not in arguments:
            raise _EntryError(
                mapping.line_of(result),
                f"inplace: there is no argument {mapping.text(result)}; use "
                f"one of {', '.join(arguments)}",
            )
    return {mapping.text(result): result for result in names}


def _doc(
    entry: _Mapping, name: str, arguments: Collection[str], has_out: bool
) -> Doc | None:
    if "doc" not in entry and name.startswith("_"):
        return None
    doc = entry.mapping("doc")
    doc.only(["summary", "args", "out", "returns", "source", "example"])
    args = doc.mapping("args")
    args.only(arguments, "argument")
    return Doc(
        summary=doc.text("summary"),
        args={a: args.text(a) for a in arguments},
        out=doc.text("out", None if has_out else ""),
        returns=doc.text("returns", "A new contiguous tensor."),
        source=doc.text("source"),
        example=doc.text("example"),
    )


# --- expressions ------------------------------------------------------------


def _call(
    text: str, modules: dict[str, tuple[str, ...]], module: str, line: int
) -> ast.Call:
    """Parse a call of a function of a module."""
    key = module.removeprefix("_")
    try:
        expression = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise _EntryError(line, f"{key}: {text!r} is not Python") from error
    called = isinstance(expression, ast.Call) and ast.unparse(expression.func)
    if called not in modules[module]:
        raise _EntryError(
            line,
            f"{key}: {text!r} does not call a function of {module}.py; use "
            f"one of {', '.join(modules[module])}, or add one there",
        )
    assert isinstance(expression, ast.Call)
    return expression


def _names(call: ast.Call) -> Iterator[str]:
    """The variables in the arguments of a call."""
    for argument in (*call.args, *(k.value for k in call.keywords)):
        for node in ast.walk(argument):
            if isinstance(node, ast.Name):
                yield node.id


def _derivatives(
    entry: _Mapping,
    schema: FunctionSchema,
    differentiable: tuple[bool, ...],
    modules: dict[str, tuple[str, ...]],
) -> tuple[Derivative, ...]:
    if "derivatives" not in entry:
        return ()
    mapping = entry.mapping("derivatives")
    tensors = {
        a.name: a
        for a in schema.arguments.flat_non_out
        if a.type.is_tensor_like()
    }
    derivatives: list[Derivative] = []
    seen: set[str] = set()
    for key in mapping:
        line = mapping.line_of(key)
        arguments = tuple(a.strip() for a in key.split(","))
        for argument in arguments:
            if argument not in tensors:
                raise _EntryError(
                    line,
                    f"derivatives: {schema.name} has no tensor {argument}; "
                    f"use one of {', '.join(tensors)}",
                )
            if argument in seen:
                raise _EntryError(
                    line, f"derivatives: {argument} is there twice"
                )
            seen.add(argument)
        call = _call(mapping.text(key), modules, "_derivatives", line)
        derivatives.append(
            _derivative(arguments, call, schema, differentiable, line)
        )
    return tuple(derivatives)


def _derivative(
    arguments: tuple[str, ...],
    call: ast.Call,
    schema: FunctionSchema,
    differentiable: tuple[bool, ...],
    line: int,
) -> Derivative:
    inputs = {a.name: a.type for a in schema.arguments.flat_non_out}
    results = [r.name or "result" for r in schema.returns]
    given = {f"wants_{name}" for name in inputs}
    if len(results) == 1:
        given.add("grad")
    else:
        pairs = zip(results, differentiable, strict=True)
        given |= {f"grad_{name}" for name, has in pairs if has}
    tensors, shapes, values = [], [], []

    class Saved(ast.NodeTransformer):
        """Replaces what the forward function keeps in ctx."""

        def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
            name = ast.unparse(node.value)
            if node.attr != "shape" or name not in (*inputs, *results):
                raise _EntryError(
                    line,
                    f"derivatives: `{ast.unparse(node)}`; of a tensor only "
                    "its .shape can be used, the rest in _derivatives.py",
                )
            shapes.append(name)
            return ast.parse(f"ctx.{name}_shape", mode="eval").body

        def visit_Name(self, node: ast.Name) -> ast.AST:
            name = node.id
            if name in given:
                return node
            if name in results or (
                name in inputs and inputs[name].is_tensor_like()
            ):
                tensors.append(name)
                return node
            if name in inputs:
                values.append(name)
                return ast.parse(f"ctx.{name}", mode="eval").body
            raise _EntryError(
                line,
                f"derivatives: {name} is unknown; use "
                f"{', '.join((*inputs, *results, *sorted(given)))}",
            )

    saved = Saved()
    call.args = [saved.visit(a) for a in call.args]
    for keyword in call.keywords:
        keyword.value = saved.visit(keyword.value)
    return Derivative(
        arguments,
        ast.unparse(call),
        tuple(dict.fromkeys(tensors)),
        tuple(dict.fromkeys(shapes)),
        tuple(dict.fromkeys(values)),
    )


# --- what there is to refer to ----------------------------------------------


def _functions(source: Path) -> tuple[str, ...]:
    tree = ast.parse(source.read_text())
    return tuple(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    )


def _all_tags() -> tuple[str, ...]:
    spec = util.find_spec("torchgen")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    text = (root / "packaged/ATen/native/tags.yaml").read_text()
    return tuple(entry["tag"] for entry in yaml.safe_load(text))
