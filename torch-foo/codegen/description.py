"""ops.yaml as Python objects, and what can be wrong with it.

Schemas are parsed by torchgen, which comes with PyTorch. Nothing here imports
torch or torch_foo: functions that ops.yaml names are looked up in the source.
"""

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import util
from keyword import iskeyword
from pathlib import Path

import yaml
from mapping import EntryError, Mapping, entries
from torchgen.model import (
    Argument,
    FunctionSchema,
    OptionalType,
    Return,
    Type,
)

# The types in use that LibTorch's stable ABI has from torch 2.10 on, with what
# their defaults may be.
TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": (),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
}
# What the generated functions call something else.
RESERVED = ("ctx", "inputs", "is_special", "out", "output", "result")
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
        if self.derivatives:
            yield f"_{self.name}"
        if self.has_out:
            yield f"_{self.name}_out"
        if self.inplace:
            yield f"{self.name}_"
            yield f"_{self.name}_"


def load(path: Path, package: Path) -> list[Operator]:
    """Read ops.yaml; `package` has the Python modules that it refers to."""
    modules = {
        name: _functions(package / f"{name}.py")
        for name in ("_fake", "_derivatives", "_vmap")
    }
    operators: list[Operator] = []
    wrong: list[EntryError] = []
    lines: dict[str, int] = {}
    try:
        for node in entries(path.read_text()):
            try:
                line = node.start_mark.line + 1
                entry = Mapping(node, "an operator", line)
                operator = _operator(entry, modules)
                for name in operator.names():
                    first = lines.setdefault(name, operator.line)
                    if first != operator.line:
                        raise EntryError(
                            operator.line,
                            f"func: {operator.name} needs the name {name}, "
                            f"which is taken in line {first}; rename or remove "
                            "one of them",
                        )
                operators.append(operator)
            except EntryError as error:
                wrong.append(error)
    except EntryError as error:
        wrong.append(error)
    if wrong:
        messages = [" ".join(str(error).split()) for error in wrong]
        raise DescriptionError(
            "\n".join(
                f"{path.name}:{error.line}: {message}"
                for error, message in zip(wrong, messages, strict=True)
            )
        )
    return operators


def base_type(type_: Type) -> str:
    """The name of a type without its question mark."""
    return str(type_.elem if isinstance(type_, OptionalType) else type_)


# --- one operator -----------------------------------------------------------


def _operator(entry: Mapping, modules: dict[str, tuple[str, ...]]) -> Operator:
    entry.only(KEYS)
    schema = _schema(entry.text("func"), entry.line_of("func"))
    name, results = str(schema.name), schema.returns
    arguments = {a.name: a for a in schema.arguments.flat_non_out}
    has_tensors = any(a.type.is_tensor_like() for a in arguments.values())
    has_out = bool(entry.choice("variants", ["out"]))
    if has_out and [str(r.type) for r in results] != ["Tensor"]:
        raise EntryError(
            entry.line_of("variants"),
            "variants: out is for one result, a Tensor, but "
            f"{name} has {', '.join(str(r.type) for r in results)}; "
            "remove it, or use `inplace`",
        )
    if has_out and not has_tensors:
        raise EntryError(
            entry.line_of("variants"),
            f"variants: {name} takes no tensor to compare out with; remove it",
        )

    flags = entry.choices("output_differentiability", ["true", "false"])
    if flags and len(flags) != len(results):
        raise EntryError(
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
                raise EntryError(
                    line,
                    f"fake: {name} has no argument {word}; use "
                    f"{', '.join(arguments)}",
                )
        fake = ast.unparse(call)
    elif has_tensors:
        raise EntryError(
            entry.line,
            f"{name} has no fake kernel, without which torch.compile cannot "
            "trace it; add `fake: FUNCTION(...)`, a function of _fake.py",
        )
    if "derivatives" in entry and "vmap" not in entry:
        raise EntryError(
            entry.line_of("derivatives"),
            f"derivatives: {name} has no vmap rule, which torch.func needs "
            "for gradients too; add `vmap: FUNCTION`, of _vmap.py",
        )
    return Operator(
        line=entry.line,
        schema=schema,
        dispatch=_dispatch(entry, name),
        has_out=has_out,
        inplace=_inplace(entry, arguments.values(), results),
        internal_results=_internal_results(entry, results),
        tags=entry.choices("tags", _all_tags()),
        fake=fake,
        derivatives=_derivatives(entry, schema, differentiable, modules),
        differentiable=differentiable,
        vmap=entry.choice("vmap", modules["_vmap"]),
        autocast=entry.choice("autocast", ["promote"]),
        doc=_doc(entry, name, arguments, has_out),
    )


def _schema(text: str, line: int) -> FunctionSchema:
    name = text.partition("(")[0]
    if "." in name or name.endswith("_") or re.search(r"Tensor\([a-z]", text):
        raise EntryError(
            line,
            f"func: {name} is a variant; describe the operator that "
            "returns new tensors, and add `variants: out` or `inplace: ...`",
        )
    try:
        schema = FunctionSchema.parse(text)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise EntryError(
            line,
            f"func: torchgen cannot parse {text!r}"
            + (f" ({reason})" if reason else "")
            + "; write it as in native_functions.yaml, "
            "`name(Tensor x, float eps=1e-6) -> Tensor`",
        ) from error
    values = (*schema.arguments.flat_non_out, *schema.returns)
    for value in values:
        if base_type(value.type) not in TYPES:
            raise EntryError(
                line,
                f"func: {value.name or 'the result'} is a {value.type}, which "
                "cannot cross the stable ABI; use one of "
                f"{', '.join(TYPES)}, or that with a question mark",
            )
    if not schema.returns:
        raise EntryError(
            line, f"func: {name} returns nothing; let it return a new tensor"
        )
    if len(schema.returns) > 1 and not all(r.name for r in schema.returns):
        raise EntryError(
            line,
            "func: give the results names, as in "
            "`-> (Tensor first, Tensor second)`",
        )
    names = [v.name for v in values if v.name]
    for word in (name, *names):
        if (
            not re.fullmatch(r"[A-Za-z_]\w*", word)
            or iskeyword(word)
            or word in RESERVED
            or names.count(word) > 1
        ):
            raise EntryError(
                line,
                f"func: {word!r} is no name, is there twice or has another "
                "meaning in the generated Python; choose another",
            )
    _check_defaults(schema, line)
    return schema


def _check_defaults(schema: FunctionSchema, line: int) -> None:
    """Check that they mean the same in Python, where nobody else looks."""
    previous = ""
    for argument in schema.arguments.flat_non_out:
        if argument in schema.arguments.flat_kwarg_only:
            previous = ""
        if argument.default is None:
            if previous:
                raise EntryError(
                    line,
                    f"func: {argument.name} comes after {previous}, which has "
                    "a default; give it one too, or put it first",
                )
            continue
        previous = argument.name
        try:
            value = ast.literal_eval(argument.default)
        except (SyntaxError, ValueError):
            value = ...
        types = TYPES[base_type(argument.type)]
        if isinstance(argument.type, OptionalType):
            types = (*types, type(None))
        if type(value) not in types:
            raise EntryError(
                line,
                f"func: {argument.default} is no default for "
                f"{argument.type} {argument.name}; write one as in Python",
            )


def _dispatch(entry: Mapping, name: str) -> dict[str, str]:
    if "dispatch" not in entry:
        return dict.fromkeys(DEVICES, name)
    mapping = entry.mapping("dispatch")
    mapping.only((*DEVICES, "CompositeExplicitAutograd"), "dispatch key")
    for key in mapping:
        if not re.fullmatch(r"[A-Za-z]\w*", mapping.text(key)):
            raise EntryError(
                mapping.line_of(key),
                f"dispatch: {mapping.text(key)!r} is no C++ function's name",
            )
    return {key: mapping.text(key) for key in mapping}


def _inplace(
    entry: Mapping, arguments: Iterable[Argument], results: Iterable[Return]
) -> dict[str, str]:
    if "inplace" not in entry:
        return {}
    mapping = entry.mapping("inplace")
    names = [r.name or "result" for r in results]
    mapping.only(names, "result")
    tensors = [a.name for a in arguments if str(a.type) == "Tensor"]
    written: dict[str, str] = {}
    for result in names:
        argument = mapping.text(result)
        if argument not in tensors or argument in written:
            raise EntryError(
                mapping.line_of(result),
                f"inplace: {argument} is no Tensor argument, or is written "
                f"twice; use each of {', '.join(tensors)} at most once",
            )
        written[argument] = result
    return written


def _internal_results(
    entry: Mapping, results: Iterable[Return]
) -> tuple[str, ...]:
    names = [str(r.name) for r in results]
    internal = entry.choices("internal_results", names)
    if internal and list(internal) != names[1:][-len(internal) :]:
        raise EntryError(
            entry.line_of("internal_results"),
            f"internal_results are to be the last of {', '.join(names)}, in "
            "this order, and not all",
        )
    return internal


def _doc(
    entry: Mapping, name: str, arguments: Collection[str], has_out: bool
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
        raise EntryError(
            line, f"{key}: {text!r} is not Python; write FUNCTION(...)"
        ) from error
    called = isinstance(expression, ast.Call) and ast.unparse(expression.func)
    if called not in modules[module]:
        raise EntryError(
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
    entry: Mapping,
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
    groups = {key: [a.strip() for a in key.split(",")] for key in mapping}
    given = {f"wants_{name}" for group in groups.values() for name in group}
    if len(schema.returns) == 1:
        given.add("grad")
    else:
        pairs = zip(schema.returns, differentiable, strict=True)
        given |= {f"grad_{result.name}" for result, has in pairs if has}
    derivatives: list[Derivative] = []
    seen: set[str] = set()
    for key, arguments in groups.items():
        line = mapping.line_of(key)
        for argument in arguments:
            if argument not in tensors:
                raise EntryError(
                    line,
                    f"derivatives: {schema.name} has no tensor {argument}; "
                    f"use one of {', '.join(tensors)}",
                )
            if argument in seen:
                raise EntryError(
                    line, f"derivatives: {argument} is there twice"
                )
            if tensors[argument] in schema.arguments.flat_kwarg_only:
                raise EntryError(
                    line,
                    f"derivatives: torch.library has none for {argument}, a "
                    "keyword-only tensor; put it before the * in func",
                )
            seen.add(argument)
        call = _call(mapping.text(key), modules, "_derivatives", line)
        derivatives.append(
            _derivative(tuple(arguments), call, schema, given, line)
        )
    return tuple(derivatives)


def _derivative(
    arguments: tuple[str, ...],
    call: ast.Call,
    schema: FunctionSchema,
    given: set[str],
    line: int,
) -> Derivative:
    inputs = {a.name: a.type for a in schema.arguments.flat_non_out}
    results = [r.name or "result" for r in schema.returns]
    if both := given & {*inputs, *results}:
        raise EntryError(
            line,
            f"derivatives: an argument or result is called {min(both)}, as a "
            "gradient is here; rename it",
        )
    tensors, shapes, values = [], [], []

    class Saved(ast.NodeTransformer):
        """Replaces what the forward function keeps in ctx."""

        def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
            name = ast.unparse(node.value)
            if node.attr != "shape" or name not in (*inputs, *results):
                raise EntryError(
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
            raise EntryError(
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


@cache
def _all_tags() -> tuple[str, ...]:
    spec = util.find_spec("torchgen")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    text = (root / "packaged/ATen/native/tags.yaml").read_text()
    return tuple(entry["tag"] for entry in yaml.safe_load(text))
