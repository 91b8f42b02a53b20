"""Read the header of a GGUF file, and map its tensors.

Files come from anywhere. Every size and offset is compared with the size of the
file before anything is read, allocated or mapped.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack


class GGUFError(ValueError):
    """A file that is no GGUF, or one that cannot be used."""


class Type(NamedTuple):
    """How tensors are stored: blocks of elements, in so many bytes."""

    name: str
    elements: int
    bytes: int


# By the numbers in ggml.h.
TYPES = {
    0: Type("f32", 1, 4),
    1: Type("f16", 1, 2),
    2: Type("q4_0", 32, 18),
    3: Type("q4_1", 32, 20),
    6: Type("q5_0", 32, 22),
    7: Type("q5_1", 32, 24),
    8: Type("q8_0", 32, 34),
    9: Type("q8_1", 32, 36),
    10: Type("q2_k", 256, 84),
    11: Type("q3_k", 256, 110),
    12: Type("q4_k", 256, 144),
    13: Type("q5_k", 256, 176),
    14: Type("q6_k", 256, 210),
    15: Type("q8_k", 256, 292),
    16: Type("iq2_xxs", 256, 66),
    17: Type("iq2_xs", 256, 74),
    18: Type("iq3_xxs", 256, 98),
    19: Type("iq1_s", 256, 50),
    20: Type("iq4_nl", 32, 18),
    21: Type("iq3_s", 256, 110),
    22: Type("iq2_s", 256, 82),
    23: Type("iq4_xs", 256, 136),
    24: Type("i8", 1, 1),
    25: Type("i16", 1, 2),
    26: Type("i32", 1, 4),
    27: Type("i64", 1, 8),
    28: Type("f64", 1, 8),
    29: Type("iq1_m", 256, 56),
    30: Type("bf16", 1, 2),
    34: Type("tq1_0", 256, 54),
    35: Type("tq2_0", 256, 66),
    39: Type("mxfp4", 32, 17),
}

FLOATS = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}

# Metadata values of a fixed size, by the numbers in the specification.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # as in ggml
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Stored:
    """A tensor of a file."""

    name: str
    shape: tuple[int, ...]  # in the order of torch
    type: Type
    number: int  # of the type
    begin: int  # in the file
    nbytes: int


class File:
    """The metadata and the tensors of a GGUF file, which is not mapped yet.

    Attributes:
        metadata: Values by key. Of an array of strings there is the length.
        tensors: By name, in the order of the file.

    Raises:
        GGUFError: The file is not a GGUF of version 2 or 3, or is damaged.
        OSError: There is no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self.path.open("rb") as stream:
            self._read(_Header(self.path, stream))
        self._memory: Tensor | None = None

    def _read(self, header: _Header) -> None:
        if header.take(4) != b"GGUF":
            raise header.error("it does not begin with 'GGUF'")
        version = header.number("I")
        if version not in (2, 3):
            raise header.error(
                f"it has version {version}, expected 2 or 3 with the lowest "
                "byte first"
            )
        tensors, values = header.number("Q"), header.number("Q")
        # The least bytes of each: a name, its type, and its value or place.
        header.expect_room(tensors, 24, "tensors")
        header.expect_room(values, 13, "metadata values")
        self.metadata: dict[str, Any] = {}
        for _ in range(values):
            key = header.string("a key")
            if key in self.metadata:
                raise header.error(f"the key {key!r} is there twice")
            self.metadata[key] = header.value(key)
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            raise header.error(
                f"general.alignment is {alignment!r}, expected a multiple of 8"
            )
        entries = [header.entry() for _ in range(tensors)]
        data = -(-header.position // alignment) * alignment
        self.tensors: dict[str, Stored] = {}
        for name, shape, number, offset in entries:
            if name in self.tensors:
                raise header.error(f"the tensor {name!r} is there twice")
            self.tensors[name] = _stored(
                header, name, shape, number, offset, data, alignment
            )

    def bytes(self, tensor: Stored) -> Tensor:
        """Return the bytes of a tensor, (..., bytes), in the mapped file.

        Changes of them are not written to the file.
        """
        if self._memory is None:
            size = max(t.begin + t.nbytes for t in self.tensors.values())
            self._memory = torch.from_file(
                str(self.path), shared=False, size=size, dtype=torch.uint8
            )
        *rows, last = tensor.shape or (1,)
        size = last // tensor.type.elements * tensor.type.bytes
        part = self._memory.narrow(0, tensor.begin, tensor.nbytes)
        # With a storage of its own: pickle saves whole storages.
        flat = from_dlpack(part)
        return flat.view(*rows, size)


def _stored(
    header: _Header,
    name: str,
    shape: tuple[int, ...],
    number: int,
    offset: int,
    data: int,
    alignment: int,
) -> Stored:
    """Check where a tensor is."""
    if number not in TYPES:
        raise header.error(f"the tensor {name!r} has the unknown type {number}")
    kind = TYPES[number]
    if shape and shape[-1] % kind.elements:
        raise header.error(
            f"the tensor {name!r} has rows of {shape[-1]} numbers, expected a "
            f"multiple of {kind.elements} for {kind.name}"
        )
    nbytes = math.prod(shape) // kind.elements * kind.bytes
    if offset % alignment:
        raise header.error(
            f"the tensor {name!r} is at {offset}, expected a multiple of "
            f"{alignment}"
        )
    if data + offset + nbytes > header.size:
        raise header.error(
            f"the tensor {name!r} ends at byte {data + offset + nbytes} of "
            f"{header.size}"
        )
    return Stored(name, shape, kind, number, data + offset, nbytes)


class _Header:
    """Reads what comes before the tensors."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.position = 0

    def error(self, what: str) -> GGUFError:
        what = what if len(what) < 500 else what[:500] + " ..."  # long names
        return GGUFError(f"torch_foo: cannot read {self.path}: {what}")

    def expect_room(self, count: int, size: int, what: str) -> None:
        """Refuse what is larger than the rest of the file."""
        if count > (self.size - self.position) // size:
            raise self.error(
                f"it ends at byte {self.size}, within {what!r} at byte "
                f"{self.position}"
            )

    def take(self, size: int, what: str = "the header") -> bytes:
        self.expect_room(size, 1, what)
        taken = self.stream.read(size)
        if len(taken) < size:
            raise self.error("it became shorter while it was read")
        self.position += size
        return taken

    def number(self, code: str, what: str = "the header") -> Any:
        (value,) = struct.unpack("<" + code, self.take(_size(code), what))
        return value

    def string(self, what: str) -> str:
        length = self.number("Q", what)
        return self.take(length, what).decode("utf-8", "replace")

    def value(self, key: str) -> Any:
        kind = self.number("I", key)
        if kind != _ARRAY:
            return self._single(kind, key)
        kind, count = self.number("I", key), self.number("Q", key)
        if kind == _STRING:
            self.expect_room(count, 8, key)
            for _ in range(count):
                self.take(self.number("Q", key), key)
            return count
        if kind not in _SCALARS:
            raise self.error(f"{key!r} is an array of the unknown type {kind}")
        code = _SCALARS[kind]
        self.expect_room(count, _size(code), key)
        values = self.take(count * _size(code), key)
        return list(struct.unpack(f"<{count}{code}", values))

    def _single(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind not in _SCALARS:
            raise self.error(f"{key!r} has the unknown type {kind}")
        return self.number(_SCALARS[kind], key)

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return a tensor's name, shape, type and offset."""
        name = self.string("the name of a tensor")
        dimensions = self.number("I", name)
        if dimensions > _MOST_DIMENSIONS:
            raise self.error(
                f"the tensor {name!r} has {dimensions} dimensions, expected "
                f"at most {_MOST_DIMENSIONS}"
            )
        shape = [self.number("Q", name) for _ in range(dimensions)]
        number, offset = self.number("I", name), self.number("Q", name)
        return name, tuple(reversed(shape)), number, offset


def _size(code: str) -> int:
    return struct.calcsize("<" + code)
