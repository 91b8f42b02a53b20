"""Reads the classes of torch_foo/operators, and says what is wrong in them.

Schemas are parsed by torchgen, which comes with PyTorch. Native code is neither
needed nor loaded: the classes are tried with their reference formulas.
"""

import ast
import importlib
import inspect
import keyword
import os
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # it may be half-built
import torch
from torchgen.model import Argument, FunctionSchema, OptionalType, Return, Type

# The types that LibTorch's stable ABI has from torch 2.10 on, as C++ sees them.
TYPES = {
    "Tensor": "Tensor",
    "int": "std::int64_t",
    "float": "double",
    "bool": "bool",
    "str": "std::string",
}
# What the generated functions call something else.
RESERVED = ("is_special", "out")
SECTIONS = ("Args", "Returns", "Source")


class DescriptionError(Exception):
    """Everything that is wrong with the operators, one line each."""


class Wrong(Exception):
    """One thing that is wrong, and the attribute where."""

    def __init__(self, attribute: str, message: str) -> None:
        super().__init__(message)
        self.attribute = attribute


def base_type(type_: Type) -> str:
    """The name of a type without its question mark."""
    return str(type_.elem if isinstance(type_, OptionalType) else type_)


@dataclass(frozen=True)
class Operator:
    """An operator's class, its parsed schema and its docstring in sections."""

    definition: Any
    schema: FunctionSchema
    doc: dict[str, str]
    """The sections; "" is the summary with what follows it."""

    @property
    def name(self) -> str:
        return str(self.schema.name)

    @property
    def is_public(self) -> bool:
        return bool(self.definition.is_public())

    @property
    def kernel(self) -> str:
        """The name of the C++ function."""
        return self.name.removeprefix("_")

    @property
    def has_out(self) -> bool:
        return "out" in self.definition.variants

    @property
    def inplace(self) -> dict[str, str]:
        """The argument that each result is written to by NAME_, if it is."""
        return dict(self.definition.inplace)

    @property
    def has_gradients(self) -> bool:
        return self.definition.backward is not None

    @property
    def arguments(self) -> tuple[Argument, ...]:
        return self.schema.arguments.flat_non_out

    @property
    def keywords(self) -> set[str]:
        return {a.name for a in self.schema.arguments.flat_kwarg_only}

    @property
    def tensors(self) -> list[Argument]:
        return [a for a in self.arguments if a.type.is_tensor_like()]

    @property
    def results(self) -> tuple[Return, ...]:
        return self.schema.returns

    @property
    def public_results(self) -> list[Return]:
        internal = self.definition.internal_results
        return [r for r in self.results if r.name not in internal]


def load(package: Path) -> list[Operator]:
    """Read the operators of a folder torch_foo."""
    base, classes = _import(package)
    operators, wrong = [], []
    taken: dict[str, Any] = {}
    for cls in classes:
        name, place = cls.__name__, f"{_relative(cls.file, package)}:"
        try:
            operator = _operator(cls, base)
            for each in names(operator):
                if first := taken.get(each):
                    where = f"{_relative(first.file, package)}:{first.line}"
                    raise Wrong("", f"the name {each} is taken in {where}")
            taken.update(dict.fromkeys(names(operator), cls))
            _try_samples(operator)
            operators.append(operator)
        except Wrong as error:
            line = _line(cls, error.attribute)
            text = " ".join(str(error).split())
            wrong.append(f"{place}{line}: {name}: {text}")
    if wrong:
        raise DescriptionError("\n".join(wrong))
    return operators


def _import(package: Path) -> tuple[Any, list[Any]]:
    """Import torch_foo.operators without torch_foo, which loads native code."""

    def ours() -> list[str]:
        return [n for n in sys.modules if n.partition(".")[0] == "torch_foo"]

    before = {name: sys.modules.pop(name) for name in ours()}
    stub = types.ModuleType("torch_foo")
    stub.__path__ = [str(package)]
    sys.modules["torch_foo"] = stub
    importlib.invalidate_caches()
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        base = importlib.import_module("torch_foo.operators.base").Operator
        importlib.import_module("torch_foo.operators")
        return base, sorted(base.defined, key=lambda o: (o.file, o.line))
    except Exception as error:
        raise DescriptionError(_import_message(error, package)) from error
    finally:
        sys.dont_write_bytecode = writes
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


def _import_message(error: Exception, package: Path) -> str:
    place = str(package / "operators")
    if isinstance(error, SyntaxError):
        place = f"{_relative(error.filename or place, package)}:{error.lineno}"
    else:
        trace = error.__traceback__
        while trace:
            file = trace.tb_frame.f_code.co_filename
            if file.startswith(str(package)):
                place = f"{_relative(file, package)}:{trace.tb_lineno}"
            trace = trace.tb_next
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"


def _relative(file: str, package: Path) -> str:
    path = Path(file)
    return str(path.relative_to(package) if path.is_absolute() else path)


def _line(cls: Any, attribute: str) -> int:
    """The line of a class's attribute, or of the class if it has none."""
    for node in ast.walk(ast.parse(Path(cls.file).read_text())):
        if not isinstance(node, ast.ClassDef) or node.lineno != cls.line:
            continue
        for item in node.body:
            targets = getattr(item, "targets", [item])
            names = [getattr(t, "id", getattr(t, "name", "")) for t in targets]
            if attribute in names:
                return item.lineno
    return int(cls.line)


# --- one operator -----------------------------------------------------------


def _operator(cls: Any, base: Any) -> Operator:
    known = {name for name in vars(base) if not name.startswith("__")}
    known |= set(base.__annotations__)
    for name in vars(cls):
        if not name.startswith("_") and name not in known:
            raise Wrong(name, f"unknown attribute {name}; see class Operator")
    for name, why in [
        ("schema", "write it as in native_functions.yaml"),
        ("reference", "it defines the operator"),
        ("fake", "without it torch.compile cannot trace the operator"),
        ("vmap", "torch.func needs it for gradients, too"),
        ("samples", "tests take their arguments from it"),
    ]:
        if name not in vars(cls):
            raise Wrong("", f"{name} is missing: {why}")
    if (cls.backward is None) != (cls.setup_context is None):
        raise Wrong(
            "backward" if cls.setup_context is None else "setup_context",
            "setup_context and backward go together",
        )
    operator = Operator(cls, _schema(cls), _sections(cls))
    _check_choices(operator)
    _check_doc(operator)
    return operator


def _schema(cls: Any) -> FunctionSchema:
    text = cls.schema
    name = text.partition("(")[0]
    if "." in name or name.endswith("_") or re.search(r"Tensor\([a-z]", text):
        raise Wrong(
            "schema",
            f"{name} is a variant; describe the operator that returns new "
            'tensors, and add variants = ("out",) or inplace = {...}',
        )
    try:
        schema = FunctionSchema.parse(text)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise Wrong(
            "schema",
            f"torchgen cannot parse {text!r}"
            + (f" ({reason})" if reason else "")
            + "; an example is `name(Tensor x, float eps=1e-6) -> Tensor`",
        ) from error
    if name != cls.__name__:
        raise Wrong("schema", f"the schema is of {name}, not {cls.__name__}")
    values = (*schema.arguments.flat_non_out, *schema.returns)
    for value in values:
        if base_type(value.type) not in TYPES:
            raise Wrong(
                "schema",
                f"{value.name or 'the result'} is a {value.type}, which cannot "
                f"cross the stable ABI; use one of {', '.join(TYPES)}, or that "
                "with a question mark",
            )
    if not schema.returns:
        raise Wrong("schema", "it returns nothing; let it return a new tensor")
    names = [v.name for v in values if v.name]
    if len(schema.returns) > 1 and not all(r.name for r in schema.returns):
        raise Wrong(
            "schema", "several results need names: `-> (Tensor a, ...)`"
        )
    for word in names:
        if keyword.iskeyword(word):
            raise Wrong("schema", f"{word!r} is a keyword of Python")
        if word in RESERVED:
            raise Wrong("schema", f"{word!r} has a meaning in generated code")
        if names.count(word) > 1:
            raise Wrong("schema", f"{word!r} occurs twice")
    for argument in schema.arguments.flat_non_out:
        if argument.default is None:
            continue
        try:
            ast.literal_eval(argument.default)
        except (SyntaxError, ValueError):
            raise Wrong(
                "schema",
                f"the default of {argument.name}, {argument.default}, is not "
                "a literal of Python",
            ) from None
    return schema


def _check_choices(operator: Operator) -> None:
    cls = operator.definition
    results = [r.name or "result" for r in operator.results]
    arguments = [a.name for a in operator.tensors]
    for attribute, given, allowed in [
        ("variants", cls.variants, ["out"]),
        ("autocast", [cls.autocast] if cls.autocast else [], ["promote"]),
        ("tags", cls.tags, [t for t in dir(torch.Tag) if t.islower()]),
        ("internal_results", cls.internal_results, results[1:]),
        ("inplace", cls.inplace, results),
        ("inplace", cls.inplace.values(), arguments),
        ("peers", cls.peers, ["eager", "built-in", "built-in out"]),
    ]:
        for word in given:
            if word not in allowed:
                raise Wrong(
                    attribute,
                    f"{attribute}: {word!r} is none of {', '.join(allowed)}",
                )
    if cls.variants and [str(r.type) for r in operator.results] != ["Tensor"]:
        raise Wrong(
            "variants", "out is for operators with one result, a Tensor"
        )
    if cls.inplace and set(cls.inplace) != set(results):
        raise Wrong(
            "inplace", f"name an argument for each of {', '.join(results)}"
        )


# --- its docstring ----------------------------------------------------------


def _sections(cls: Any) -> dict[str, str]:
    """Split a docstring at its headings; what is not indented has none."""
    text = inspect.cleandoc(cls.__doc__ or "")
    heading = rf"^({'|'.join(SECTIONS)}):[ \n]"
    parts = re.split(heading, text, flags=re.MULTILINE)
    sections = {"": parts[0]}
    sections.update(zip(parts[1::2], parts[2::2], strict=True))
    last = list(sections)[-1]
    sections[last], arrow, example = sections[last].partition(">>> ")
    sections["Example"] = arrow + example
    return {name: part.strip("\n") for name, part in sections.items()}


def parameters(operator: Operator) -> dict[str, str]:
    """The text about each parameter, in the docstring's order."""
    text = operator.doc.get("Args", "")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(part.split()) for name, part in found}


def _check_doc(operator: Operator) -> None:
    doc = operator.doc
    if not doc[""]:
        raise Wrong("", "the docstring is missing")
    if not operator.is_public:
        return
    wanted = [a.name for a in operator.arguments]
    if operator.has_out:
        wanted.append("out")
    if list(parameters(operator)) != wanted:
        raise Wrong(
            "",
            f"the docstring's Args are {', '.join(parameters(operator))}, "
            f"expected {', '.join(wanted)}",
        )
    needed = ["Source", "Example"] + ["Returns"] * (not operator.has_out)
    for section in needed:
        if not doc.get(section):
            raise Wrong("", f"the docstring has no {section}")


# --- its samples ------------------------------------------------------------


class _Context:
    """What setup_context and backward see in place of autograd's context."""

    def __init__(self, args: list[Any]) -> None:
        self.needs_input_grad = [isinstance(a, torch.Tensor) for a in args]
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        pass


def _try_samples(operator: Operator) -> None:
    """Try the reference, the fake kernel and the gradients on each sample."""
    samples = _called(
        "samples", "", lambda: list(operator.definition.samples())
    )
    if not samples:
        raise Wrong("samples", "there is none")
    for sample in samples:
        if not sample.is_large:
            _try_sample(operator, sample)


def _called(attribute: str, sample: str, function: Any) -> Any:
    try:
        return function()
    except Exception as error:
        text = str(error).split("\n")[0]
        raise Wrong(
            attribute,
            f"{sample}{attribute} raises {type(error).__name__}: {text}",
        ) from error


def _try_sample(operator: Operator, sample: Any) -> None:
    cls, where = operator.definition, f"sample {sample.name!r}: "
    made = _called("samples", where, lambda: sample.args(torch.float64))
    args = [*made]
    for argument in operator.arguments[len(made) :]:
        if argument.name in sample.named:
            args.append(sample.named[argument.name])
        elif argument.default is not None:
            args.append(ast.literal_eval(argument.default))
    if len(args) != len(operator.arguments):
        raise Wrong(
            "samples",
            f"{where}{len(args)} arguments, but the schema has "
            f"{len(operator.arguments)}",
        )
    expected = _tuple(_called("reference", where, lambda: cls.reference(*args)))
    fakes = _tuple(
        _called("fake", where, lambda: cls.fake(*map(_to_meta, args)))
    )
    if len(fakes) != len(operator.results):
        raise Wrong(
            "fake",
            f"{where}{len(fakes)} results, but the schema has "
            f"{len(operator.results)}",
        )
    for fake, real in zip(fakes, expected, strict=False):
        if _describe(fake) != _describe(real):
            raise Wrong(
                "fake",
                f"{where}fake returns {_describe(fake)}, but reference "
                f"{_describe(real)}",
            )
    if not operator.has_gradients:
        return
    results = list(expected) + [
        torch.zeros_like(f, device="cpu") for f in fakes
    ]
    del results[len(expected) : 2 * len(expected)]
    output = results[0] if len(results) == 1 else tuple(results)
    context = _Context(args)
    _called(
        "setup_context", where, lambda: cls.setup_context(context, args, output)
    )
    grads = [torch.ones_like(r) for r in results]
    found = _tuple(
        _called("backward", where, lambda: cls.backward(context, *grads))
    )
    if len(found) != len(args):
        raise Wrong(
            "backward",
            f"{where}backward returns {len(found)} gradients, expected "
            f"{len(args)}: one for each argument",
        )
    for argument, value, grad in zip(
        operator.arguments, args, found, strict=True
    ):
        if grad is not None and _describe(grad) != _describe(value):
            raise Wrong(
                "backward",
                f"{where}the gradient of {argument.name} is {_describe(grad)}, "
                f"but {argument.name} is {_describe(value)}",
            )


def _tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} {tuple(value.shape)}"


def names(operator: Operator) -> Iterator[str]:
    """All names that an operator takes in the dispatcher."""
    yield operator.name
    if operator.is_public and operator.has_gradients:
        yield f"_{operator.name}"
    if operator.has_out:
        yield f"_{operator.name}_out"
    if operator.inplace:
        yield f"{operator.name}_"
        yield f"_{operator.name}_"
