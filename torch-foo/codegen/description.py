"""Reads the classes of torch_foo/operators, and says what is wrong in them.

Schemas are parsed by torchgen, which comes with PyTorch. Native code is neither
needed nor loaded: the classes are tried with their reference formulas.
"""

import ast
import builtins
import importlib
import inspect
import keyword
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

with mock.patch.dict(os.environ, TORCH_DEVICE_BACKEND_AUTOLOAD="0"):
    import torch  # without the torch_foo that is installed
from torchgen.model import Argument, FunctionSchema, OptionalType, Type

# The types that LibTorch's stable ABI has from torch 2.10 on, as C++ sees them.
TYPES = {
    "Tensor": "Tensor",
    "int": "std::int64_t",
    "float": "double",
    "bool": "bool",
    "str": "std::string",
}
STANDARD_FINDERS = [BuiltinImporter, FrozenImporter, PathFinder]
# What has another meaning in the generated functions, or in torch_foo.
RESERVED = ("is_recorded", "out")
TAKEN = ("build_info", "cmake_prefix_path", *dir(builtins))


class DescriptionError(Exception):
    """Everything that is wrong with the operators, one line each."""


class AttributeMistakeError(Exception):
    """One thing that is wrong, and the attribute of the class where."""


def refuse(attribute: str, message: str) -> NoReturn:
    raise AttributeMistakeError(attribute, " ".join(message.split()))


def base_type(type_: Type) -> str:
    """The name of a type without its question mark."""
    return str(type_.elem if isinstance(type_, OptionalType) else type_)


@dataclass(frozen=True)
class Operator:
    """An operator's class and what follows from it."""

    cls: Any
    schema: FunctionSchema

    @property
    def name(self) -> str:
        return str(self.schema.name)

    @property
    def kernel(self) -> str:
        """The name of the C++ function."""
        return self.name.removeprefix("_")

    @property
    def has_out(self) -> bool:
        return "out" in self.cls.variants

    @property
    def has_gradients(self) -> bool:
        return self.cls.backward is not None

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
    def results(self) -> list[str]:
        return [r.name or "result" for r in self.schema.returns]

    @cached_property
    def doc(self) -> dict[str, str]:
        """The docstring's sections; "" is the summary with what follows it."""
        text = inspect.cleandoc(self.cls.__doc__ or "")
        text, arrow, example = text.partition(">>> ")
        heading = r"^(Args|Returns|Source):\s"
        first, *others = re.split(heading, text, flags=re.MULTILINE)
        sections = dict(zip(others[::2], others[1::2], strict=True))
        sections |= {"": first, "Example": arrow + example}
        return {name: part.strip("\n") for name, part in sections.items()}

    @property
    def parameters(self) -> dict[str, str]:
        """The docstring's text about each parameter."""
        entry = r"^    (\w+): (.*(?:\n {8}.*)*)"
        text = self.doc.get("Args", "")
        found = re.findall(entry, text, flags=re.MULTILINE)
        return {name: " ".join(part.split()) for name, part in found}

    def names(self) -> Iterator[str]:
        """All names that it takes in the dispatcher."""
        yield self.name
        if self.has_gradients:
            yield f"_{self.name}"
        if self.has_out:
            yield f"_{self.name}_out"
        if self.cls.inplace:
            yield f"{self.name}_"
            yield f"_{self.name}_"


def load(package: Path) -> list[Operator]:
    """Read the operators of a folder torch_foo."""
    base, classes = _import(package)
    operators, wrong = [], []
    taken: dict[str, str] = {}
    for cls in classes:
        file = Path(cls.file).relative_to(package)
        try:
            operator = _operator(cls, base)
            if operator.name in (*TAKEN, *(p.stem for p in package.iterdir())):
                refuse("", f"torch_foo.{operator.name} is something else")
            here = f"{file}:{_line(cls)}"
            for name in operator.names():
                place = taken.setdefault(name, here)
                if place != here:
                    refuse("", f"the name {name} is taken in {place}")
            _try_samples(operator)
            operators.append(operator)
        except AttributeMistakeError as error:
            attribute, message = error.args
            line = _line(cls, attribute)
            wrong.append(f"{file}:{line}: {cls.__name__}: {message}")
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
    # An editable torch_foo has a finder of its own, which would come first.
    finders, sys.meta_path[:] = sys.meta_path[:], STANDARD_FINDERS
    try:
        importlib.import_module("torch_foo.operators")
        base = sys.modules["torch_foo.operators.base"].Operator
        return base, sorted(base.defined, key=lambda o: (o.file, o.line))
    except Exception as error:
        places = [
            (f.filename, f.lineno)
            for f in traceback.extract_tb(error.__traceback__)
        ]
        if isinstance(error, SyntaxError):
            places.append((error.filename or "", error.lineno))
        file, line = [p for p in places if p[0].startswith(str(package))][-1]
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DescriptionError(
            f"{Path(file).relative_to(package)}:{line}: {message}"
        ) from error
    finally:
        sys.dont_write_bytecode = writes
        sys.meta_path[:] = finders
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


def _line(cls: Any, attribute: str = "") -> int:
    """The line of a class, or of an attribute that it has."""
    for node in ast.walk(ast.parse(Path(cls.file).read_text())):
        # What Python calls the line of a class depends on its version.
        if not isinstance(node, ast.ClassDef) or not (
            node.lineno <= cls.line <= (node.end_lineno or 0)
        ):
            continue
        for item in node.body:
            for target in getattr(item, "targets", [item]):
                if attribute == getattr(
                    target, "id", getattr(target, "name", 0)
                ):
                    return item.lineno
        return node.lineno
    return int(cls.line)


# --- one operator -----------------------------------------------------------


def _operator(cls: Any, base: Any) -> Operator:
    # What its family has is for the family to know.
    for name in vars(cls).keys() - {n for c in cls.__mro__[1:] for n in dir(c)}:
        if name not in base.__annotations__ and not name.startswith("_"):
            refuse(name, f"unknown attribute {name}; see class Operator")
    for name, why in [
        ("schema", "write it as in native_functions.yaml"),
        ("reference", "it defines the operator"),
        ("fake", "without it torch.compile cannot trace the operator"),
        ("vmap", "torch.func needs it for gradients, too"),
        ("samples", "tests take their arguments from it"),
    ]:
        if getattr(cls, name, None) is getattr(base, name, None):
            refuse("", f"{name} is missing: {why}")
    if (cls.backward is None) != (cls.setup_context is None):
        refuse("backward", "setup_context and backward go together")
    operator = Operator(cls, _schema(cls))
    _check_choices(operator)
    _check_doc(operator)
    return operator


def _schema(cls: Any) -> FunctionSchema:
    name = cls.schema.partition("(")[0]
    if name != cls.__name__:
        refuse("schema", f"the schema is of {name}, not {cls.__name__}")
    if name.endswith("_") or re.search(r"Tensor\([a-z]", cls.schema):
        refuse("schema", f"{name} is a variant; use `variants` or `inplace`")
    try:
        schema = FunctionSchema.parse(cls.schema)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        refuse(
            "schema",
            f"torchgen cannot parse {cls.schema!r} ({error}); an example is "
            "`name(Tensor x, float eps=1e-6) -> Tensor`",
        )
    values = (*schema.arguments.flat_non_out, *schema.returns)
    for value in values:
        if base_type(value.type) not in TYPES:
            refuse(
                "schema",
                f"{value.name or 'the result'} is a {value.type}, which cannot "
                f"cross the stable ABI; use one of {', '.join(TYPES)}, or that "
                "with a question mark",
            )
    if not schema.returns:
        refuse("schema", "it returns nothing; let it return a new tensor")
    names = [v.name for v in values if v.name]
    if len(schema.returns) > 1 and not all(r.name for r in schema.returns):
        refuse(
            "schema", "several results need names: `-> (Tensor a, Tensor b)`"
        )
    for word in names:
        if keyword.iskeyword(word):
            refuse("schema", f"{word!r} is a keyword of Python")
        if word in RESERVED:
            refuse("schema", f"{word!r} has a meaning in generated code")
        if names.count(word) > 1:
            refuse("schema", f"{word!r} occurs twice")
    for argument in schema.arguments.flat_non_out:
        try:
            ast.literal_eval(argument.default or "None")
        except (SyntaxError, ValueError):
            refuse("schema", f"{argument.default} is not a literal of Python")
    return schema


def _check_choices(operator: Operator) -> None:
    cls, results = operator.cls, operator.results
    tensors = [a.name for a in operator.tensors]
    for attribute, given, allowed in [
        ("variants", cls.variants, ["out"]),
        ("autocast", [cls.autocast], ["", "promote"]),
        ("linear_in", " ".join(cls.linear_in).split(), tensors),
        ("tags", cls.tags, [t for t in dir(torch.Tag) if t[0].isalpha()]),
        ("internal_results", cls.internal_results, results[1:]),
        ("inplace", cls.inplace, results),
        ("inplace", cls.inplace.values(), tensors),
        ("peers", cls.peers, ["eager", "built-in", "built-in out"]),
    ]:
        if isinstance(given, str):
            refuse(attribute, f"{given!r} is a str, expected a tuple of them")
        for word in given:
            if word not in allowed:
                choices = ", ".join(map(repr, allowed))
                refuse(attribute, f"{word!r} is none of {choices}")
    if cls.variants and [str(r.type) for r in operator.schema.returns] != [
        "Tensor"
    ]:
        refuse("variants", "out is for operators with one result, a Tensor")
    if cls.inplace and set(cls.inplace) != set(results):
        refuse("inplace", f"name an argument for each of {', '.join(results)}")


def _check_doc(operator: Operator) -> None:
    if not operator.doc[""]:
        refuse("", "the docstring is missing")
    if not operator.cls.is_public():
        return
    expected = [a.name for a in operator.arguments] + ["out"] * operator.has_out
    if list(operator.parameters) != expected:
        found = ", ".join(operator.parameters)
        refuse(
            "", f"the docstring's Args: {found}; expected {', '.join(expected)}"
        )
    for section in ("Returns", "Source", "Example"):
        if not operator.doc.get(section):
            refuse("", f"the docstring has no {section}")


# --- its samples ------------------------------------------------------------


class _Context:
    """What setup_context and backward see in place of autograd's context."""

    def __init__(self, args: list[Any]) -> None:
        self.needs_input_grad = [isinstance(a, torch.Tensor) for a in args]
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Any) -> None:
        pass


def _try_samples(operator: Operator) -> None:
    """Try the reference, the fake kernel and the gradients on each sample."""
    samples = _call("samples", "", lambda: list(operator.cls.samples()))
    names = [sample.name for sample in samples]
    if not names or len(set(names)) < len(names):
        refuse("samples", f"expected samples of different names, found {names}")
    for sample in samples:
        if not sample.is_large:
            _try_sample(operator, sample)


def _call(attribute: str, where: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        refuse(
            attribute,
            f"{where}{attribute} raises {type(error).__name__}: {text}",
        )


def _try_sample(operator: Operator, sample: Any) -> None:
    cls, where = operator.cls, f"sample {sample.name!r}: "
    args = [*_call("samples", where, lambda: sample.args(torch.float64))]
    defaults = {
        a.name: ast.literal_eval(a.default)
        for a in operator.arguments
        if a.default is not None
    }
    named = defaults | sample.named
    rest = [a.name for a in operator.arguments[len(args) :]]
    args += [named[name] for name in rest if name in named]
    if len(args) != len(operator.arguments):
        missing = ", ".join(name for name in rest if name not in named)
        what = f"{missing} is missing" if missing else "too many arguments"
        refuse("samples", where + what)

    def check(
        attribute: str, found: tuple[Any, ...], of: list[str], wanted: Any
    ) -> None:
        if len(found) != len(of):
            refuse(
                attribute,
                f"{where}{attribute} returns {len(found)} values, expected "
                f"{len(of)}: {', '.join(of)}",
            )
        for name, value, want in zip(of, found, wanted, strict=False):
            if value is not None and _describe(value) != _describe(want):
                what = f"returns {_describe(value)} for {name}"
                expected = f"expected {_describe(want)}"
                refuse(attribute, f"{where}{attribute} {what}, {expected}")

    _check_dims(operator, where, args)
    results = _tuple(_call("reference", where, lambda: cls.reference(*args)))
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
    fakes = _tuple(_call("fake", where, lambda: cls.fake(*meta)))
    check("fake", fakes, operator.results, results)
    if not operator.has_gradients:
        return
    internal = fakes[len(results) :]  # which the formula does not have
    results += tuple(torch.zeros_like(f, device="cpu") for f in internal)
    output = results if len(results) > 1 else results[0]
    context = _Context(args)
    _call(
        "setup_context", where, lambda: cls.setup_context(context, args, output)
    )
    grads = [torch.ones_like(r) for r in results]
    found = _tuple(
        _call("backward", where, lambda: cls.backward(context, *grads))
    )
    check("backward", found, [a.name for a in operator.arguments], args)


def _check_dims(operator: Operator, where: str, args: list[Any]) -> None:
    """Check that the dimensions for DTensor are those of the tensors."""
    text = operator.cls.dims
    if not isinstance(text, str):
        text = _call("dims", where, lambda: operator.cls.dims(*args))
    if not text:
        return
    left, _, right = text.partition("->")
    tensors = [a.name for a in operator.tensors]
    for terms, of in (left, tensors), (right, operator.results):
        if terms.count(",") + 1 != len(of):
            expected = f"expected a term for each of {', '.join(of)}"
            refuse("dims", f"{where}dims are {text!r}, {expected}")
    given = dict(zip((a.name for a in operator.arguments), args, strict=True))
    for name, term in zip(tensors, left.split(","), strict=True):
        if given[name] is None:
            continue
        letters, ndim = len(term.strip(" .")), given[name].dim()
        if letters > ndim or (0 < letters < ndim and "..." not in term):
            refuse(
                "dims",
                f"{where}dims are {text!r}, but {name} has {ndim} dimensions",
            )


def _tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
