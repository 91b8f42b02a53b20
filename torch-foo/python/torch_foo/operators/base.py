"""The base class of operators, their samples, and what their rules share."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

#: The dtype of a sample's `other` tensor. In float64, where gradients are
#: compared with finite differences, it is the same.
OTHER = {
    torch.float32: torch.bfloat16,
    torch.float64: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


def every_other(tensor: Tensor) -> Tensor:
    """The same values in every other column of a wider tensor."""
    return tensor.repeat_interleave(2, -1)[..., ::2]


def transposed(tensor: Tensor) -> Tensor:
    """The same values with the dimensions in opposite order in memory."""
    order = range(tensor.dim() - 1, -1, -1)
    return tensor.permute(*order).contiguous().permute(*order)


def integers(*values: int) -> Callable[[torch.dtype], Tensor]:
    return lambda _: torch.tensor(values)


def shuffled(limit: int, *shape: int) -> Callable[[torch.dtype], Tensor]:
    """Return a maker of integers below a limit, in no order."""
    count = torch.Size(shape).numel()
    return lambda _: (torch.arange(count) * 7 % limit).view(shape)


class Sample:
    """Arguments of an operator, for tests and measurements.

    Args:
        name: what distinguishes it from the operator's other samples.
        args: the positional arguments. A tuple is the shape of a random
            tensor, which gradients are asked for where the operator has them.
            A function makes a tensor, called with the sample's dtype.
        layout: changes the layout of the random tensors.
        other: the position of the random tensor that has another dtype, or
            several.
        dtypes: that dtype for each dtype of the sample; by default its own.
        named: the keyword arguments.
    """

    def __init__(
        self,
        name: str,
        *args: Any,
        layout: Callable[[Tensor], Tensor] = unchanged,
        other: int | tuple[int, ...] | None = None,
        dtypes: Mapping[torch.dtype, torch.dtype] = OTHER,
        **named: Any,
    ) -> None:
        if any(isinstance(a, list) for a in args):
            raise TypeError(f"sample {name!r}: write a shape as a tuple")
        self.name = name
        self.arguments = args
        self.layout = layout
        self.other = other
        self.dtypes = dtypes
        self.named = named

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the random tensors."""
        return [a for a in self.arguments if isinstance(a, tuple)]

    @property
    def is_large(self) -> bool:
        """Whether kernels share the work among threads."""
        return any(torch.Size(s).numel() > 2**17 for s in self.shapes)

    def args(
        self,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        requires_grad: bool = False,
    ) -> tuple[Any, ...]:
        """Make the positional arguments."""
        others = self.other if isinstance(self.other, tuple) else (self.other,)

        def make(i: int, argument: Any) -> Any:
            if isinstance(argument, tuple):
                values = torch.randn(argument, dtype=torch.float64)
                own = self.dtypes.get(dtype, dtype) if i in others else dtype
                tensor = self.layout(values).to(device, own)
                return tensor.requires_grad_(requires_grad)
            return (
                argument(dtype).to(device) if callable(argument) else argument
            )

        return tuple(make(i, a) for i, a in enumerate(self.arguments))


class Operator:
    """Base class of all operators; a subclass is named after its operator.

    The docstring of a subclass is that of the Python function: a summary,
    ``Args:``, ``Returns:``, ``Source:`` and an example. That of a private
    operator is a summary.
    """

    #: As in PyTorch's native_functions.yaml.
    schema: ClassVar[str]
    #: "out": there also is NAME.out, which writes its result to ``out``.
    variants: ClassVar[tuple[str, ...]] = ()
    #: If not empty, there also is NAME_, which writes each result (key) to an
    #: argument (value). The result of an operator without names is "result".
    inplace: ClassVar[dict[str, str]] = {}
    #: Of torch.Tag, beside flexible_layout, which all operators have.
    tags: ClassVar[tuple[str, ...]] = ()
    #: "promote": inside autocast regions, :meth:`promote` the arguments.
    autocast: ClassVar[str] = ""
    #: The last results, which the Python function does not return.
    internal_results: ClassVar[tuple[str, ...]] = ()
    #: Other ways to the result, for the benchmark: "eager" is what models
    #: write (default: the reference), "built-in" one function of torch.
    #: "built-in out" also takes ``out``.
    peers: ClassVar[dict[str, Callable[..., Any]]] = {}
    #: (rows, columns) of the benchmark.
    sizes: ClassVar[tuple[tuple[int, int], ...]] = tuple(
        (rows, 4096) for rows in (1, 16, 512, 4096)
    )
    #: Whether the benchmark also times the gradients.
    times_gradients: ClassVar[bool] = True

    @staticmethod
    def reference(*args: Any, **named: Any) -> Any:
        """Compute the result in plain PyTorch: the definition.

        Arithmetic is in float32 (float64 for float64), rounded once at the end.
        """
        raise NotImplementedError

    @staticmethod
    def promote(*args: Any) -> Sequence[Any]:
        """Bring floating-point arguments to the widest of their dtypes.

        An operator that takes several dtypes leaves those alone. Trailing
        arguments may be missing, and any may be wrong.
        """
        return promoted_alike(*args)

    @staticmethod
    def fake(*args: Any) -> Any:
        """Return empty results from all arguments, whose sizes may be symbolic.

        Impossible arguments are refused by :func:`expect` and its kin; the
        message that users see tells the arguments too.
        """
        raise NotImplementedError

    #: setup_context(ctx, inputs, output) and backward(ctx, *grads), as in
    #: torch.autograd.Function: backward returns one gradient per argument.
    setup_context: ClassVar[Callable[..., None] | None] = None
    backward: ClassVar[Callable[..., Any] | None] = None

    #: vmap(op, info, in_dims, *args), as in torch.library.register_vmap, with
    #: all arguments; ``op`` takes them all by position.
    vmap: ClassVar[Callable[..., Any]]

    @staticmethod
    def samples() -> Iterator[Sample]:
        """Yield arguments for every test, the typical ones first."""
        raise NotImplementedError

    #: The dimensions that ranks may share, for DTensor, such as
    #: "...N, N -> ...N" for arguments that are tensors and the results; or a
    #: function of all arguments that returns it. A tensor that has a dimension
    #: is split along it, a result that lacks it is a sum over it. Dimensions in
    #: upper case stay whole, as do all if this is "".
    dims: ClassVar[str | Callable[..., str]] = ""
    #: Groups of arguments, such as ("a b",), in each of which together the
    #: operator is linear. Operators of gradients are, in what begins with grad.
    linear_in: ClassVar[tuple[str, ...]] = ()

    #: flops(*arguments, **_) with shapes in place of tensors, as in
    #: torch.utils.flop_counter.register_flop_formula: for products of matrices,
    #: since torch counts no others.
    flops: ClassVar[Callable[..., int] | None] = None

    #: benchmark(rows, columns) returns a sample of that size.
    benchmark: ClassVar[Callable[..., Sample] | None] = None

    @staticmethod
    def peer_arguments(*args: Any) -> tuple[Any, ...]:
        """Return what peers take in place of the benchmark's arguments.

        Gradients are asked for random tensors, so these stay as they are.
        """
        return args

    # --- not for subclasses to change ---------------------------------------

    defined: ClassVar[list[type["Operator"]]] = []
    file: ClassVar[str]
    line: ClassVar[int]
    #: Set by registration, and called with all arguments by position: the
    #: documented operator, the one without derivatives, and the fastest that
    #: has them.
    documented: ClassVar[Callable[..., Any]]
    raw: ClassVar[Callable[..., Any]]
    apply: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls, family: bool = False) -> None:
        """Remember the operator, and where it is defined.

        With ``family=True`` the class only holds what several operators share.
        """
        if family:
            return
        frame = sys._getframe(1)
        cls.file, cls.line = frame.f_code.co_filename, frame.f_lineno
        # Without the native library, the formula that autograd can derive.
        cls.apply = staticmethod(cls.reference)
        Operator.defined.append(cls)

    @classmethod
    def is_public(cls) -> bool:
        return not cls.__name__.startswith("_")

    @classmethod
    def call(cls, *args: Any) -> Any:
        """Call from another operator's backward or vmap, with all arguments.

        Under create_graph the result can be differentiated again; operators
        without derivatives of their own are their reference formula then.
        """
        return cls.apply(*args) if torch.is_grad_enabled() else cls.raw(*args)


# --- for reference formulas ---------------------------------------------------


def widen(x: Tensor) -> Tensor:
    """Bring x to the type of computation."""
    return x if x.dtype == torch.float64 else x.float()


# --- for autocast -------------------------------------------------------------


def promoted_alike(*args: Any) -> Sequence[Any]:
    """Bring floating-point tensors among the arguments to one dtype.

    Inside an autocast region activations are float16 or bfloat16 while
    parameters stay float32, so dtypes are mixed, as they may be for
    torch.addcmul; outside of it that is an error.
    """
    known = [isinstance(a, Tensor) and a.dtype in DTYPES for a in args]
    dtypes = {
        a.dtype for a, is_known in zip(args, known, strict=True) if is_known
    }
    if len(dtypes) < 2:
        return args
    widest = reduce(torch.promote_types, dtypes)
    return [
        a.to(widest) if is_known else a
        for a, is_known in zip(args, known, strict=True)
    ]


# --- for fake kernels ---------------------------------------------------------


class RefusalError(RuntimeError):
    """Arguments that a fake kernel refuses.

    Args:
        expected: what it takes instead, with a ``{}`` for each value.
        values: tensors, which stand for their names, and anything else.
    """

    def __init__(self, expected: str, *values: Any) -> None:
        super().__init__(expected)
        self.expected, self.values = expected, values


def expect(condition: Any, expected: str, *values: Any) -> None:
    """Refuse the arguments unless the condition holds.

    A condition on sizes that nobody knows yet becomes a check at run time.
    """
    try:
        torch._check(condition)
    except RuntimeError as error:
        # Its subclasses belong to symbolic shapes.
        if type(error) is not RuntimeError:
            raise
        raise RefusalError(expected, *values) from None


def expect_rows(tensor: Tensor) -> None:
    expect(tensor.dim() > 0, "{} of at least 1 dimension", tensor)


def expect_shape(tensor: Tensor, *sizes: Any) -> None:
    expected = "{} of shape {}", tensor, sizes
    expect(tensor.dim() == len(sizes), *expected)
    for have, want in zip(tensor.shape, sizes, strict=True):
        expect(have == want, *expected)


def expect_dtype(tensor: Tensor, *dtypes: torch.dtype) -> None:
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    *first, last = names
    text = f"{', '.join(first)} or {last}" if first else last
    expect(tensor.dtype in dtypes, "{} of dtype {}", tensor, text)


def expect_same_dtype(*tensors: Tensor | None) -> None:
    """Refuse dtypes that are not supported, or not the same."""
    given = [t for t in tensors if t is not None]
    for tensor in given:
        expect_dtype(tensor, *DTYPES)
    for other in given[1:]:
        same = other.dtype == given[0].dtype
        expect(same, "{} and {} of one dtype", given[0], other)


def broadcast_shape(a: Tensor, b: Tensor) -> Any:
    """Return the shape that a and b broadcast to, or refuse them."""
    try:
        return torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        raise RefusalError("shapes of {} and {} that broadcast", a, b) from None


# --- for vmap -----------------------------------------------------------------


def batched(tensor: Any, dim: int | None, info: Any) -> Any:
    """Move the batch to the front, repeating what has none."""
    if not isinstance(tensor, Tensor):
        return tensor
    if dim is None:
        return tensor.expand(info.batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)


def batch_first(tensor: Tensor, dim: int | None, ndim: int) -> Tensor:
    """Move the batch to the front of ndim other dimensions.

    A tensor without a batch broadcasts as it is.
    """
    if dim is None:
        return tensor
    tensor = tensor.movedim(dim, 0)
    missing = ndim - (tensor.dim() - 1)
    return tensor.reshape(tensor.shape[:1] + (1,) * missing + tensor.shape[1:])


def one_by_one(
    op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[Any, Any]:
    """Call the kernel for each example.

    This is for operators that sum over rows, which must not mix examples, as
    gradients do: torch.vmap over torch.autograd.grad, which makes Jacobians,
    comes here.
    """

    def example(i: int) -> tuple[Any, ...]:
        results = op(
            *(
                arg if dim is None else arg.select(dim, i)
                for arg, dim in zip(args, in_dims, strict=True)
            )
        )
        return results if isinstance(results, tuple) else (results,)

    if info.batch_size == 0:  # results have a shape all the same
        args = tuple(
            arg
            if dim is None
            else arg.new_zeros(arg.movedim(dim, 0).shape[1:]).unsqueeze(dim)
            for arg, dim in zip(args, in_dims, strict=True)
        )
    examples = [example(i) for i in range(max(info.batch_size, 1))]
    results = tuple(
        None if column[0] is None else torch.stack(column)[: info.batch_size]
        for column in zip(*examples, strict=True)
    )
    dims = tuple(None if r is None else 0 for r in results)
    return (results[0], dims[0]) if len(results) == 1 else (results, dims)
