"""Storages, and all that goes through them: saving, pickling, sharing."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")

MADE = {
    "size": lambda: torch.UntypedStorage(8, device="foo"),
    "nothing": lambda: torch.UntypedStorage(device="foo"),
    "zero": lambda: torch.UntypedStorage(0, device=torch.device("foo")),
    "bytes": lambda: torch.UntypedStorage([1, 2, 3], device="foo:0"),
    "typed": lambda: torch.TypedStorage(8, dtype=torch.int32, device="foo"),
    "shared": lambda: torch.UntypedStorage._new_shared(8, device="foo"),
    "new": lambda: torch.ones(3, device="foo").untyped_storage().new(),
    "clone": lambda: torch.ones(3, device="foo").untyped_storage().clone(),
    "copied": lambda: copy.copy(torch.ones(3, device="foo").untyped_storage()),
    "deepcopied": lambda: copy.deepcopy(
        torch.ones(3, device="foo").untyped_storage()
    ),
    "moved": lambda: torch.ones(3).untyped_storage().to(device="foo"),
    "moved by name": lambda: torch.ones(3).untyped_storage().foo(),
    "moved typed": lambda: torch.ones(3).storage().foo(),
    "cast": lambda: torch.ones(3, device="foo").storage().double(),
    "shared memory": lambda: (
        torch.ones(3, device="foo").untyped_storage().share_memory_()
    ),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_new_storages(make):
    storage = make()
    assert storage.device == torch.device("foo", 0)
    assert len(list(storage)) == storage.size()
    str(storage)


def test_contents():
    storage = torch.UntypedStorage([1, 2, 3], device="foo")
    assert storage.tolist() == storage.cpu().tolist() == [1, 2, 3]
    storage[0] = 7
    storage.copy_(torch.UntypedStorage([4, 5, 6]))
    cpu = torch.UntypedStorage(3).copy_(storage)
    assert cpu.tolist() == storage.tolist() == [4, 5, 6]
    assert storage.fill_(1).tolist() == [1, 1, 1]


def test_storages_of_other_devices_are_as_before():
    assert torch.UntypedStorage(3).device.type == "cpu"
    assert torch.UntypedStorage([1, 2], device="cpu").tolist() == [1, 2]
    assert torch.UntypedStorage(8, device="meta").device.type == "meta"
    assert torch.ones(2).untyped_storage().resize_(100).nbytes() == 100
    assert torch.ones(2).untyped_storage().new().nbytes() == 0


def test_resizing():
    x = torch.arange(4, device="foo")
    storage = x.untyped_storage()
    assert storage.resize_(32) is storage
    for size in (0, 64):
        with pytest.raises(RuntimeError, match=f"has 32 bytes.*{size} were"):
            storage.resize_(size)
    x.resize_(100)
    assert x[:4].tolist() == [0, 1, 2, 3]
    assert x.untyped_storage().nbytes() == 800


LEGACY = {
    "new with a size": lambda x: x.new(3),
    "new with values": lambda x: x.new([3.0, 4.0]),
    "new": lambda x: x.new(),
    "new with a storage": lambda x: x.new(x.untyped_storage()),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "type": lambda x: torch.ones(3).type("torch.foo.FloatTensor"),
    "resize_": lambda x: x.resize_(0).resize_(9),
    "set_": lambda x: x.set_(torch.ones(5, device="foo").untyped_storage()),
    "data": lambda x: setattr(x, "data", torch.ones(5, device="foo")) or x,
}


@pytest.mark.parametrize("make", LEGACY.values(), ids=LEGACY)
def test_legacy_constructors(make):
    tensor = make(torch.ones(3, device="foo"))
    assert tensor.type() == "torch.foo.FloatTensor"
    str(tensor)


REFUSED = {
    "legacy class": (lambda x: torch.foo.FloatTensor(3), "no attribute"),
    "legacy constructor": (
        lambda x: torch.Tensor([1.0], device="foo"),
        "legacy constructor expects device type: cpu",
    ),
    "set_ to CPU": (lambda x: x.set_(torch.ones(3)), "device"),
    "CPU set_ to foo": (
        lambda x: torch.ones(3).set_(x.untyped_storage()),
        "devices must match",
    ),
    "data of meta": (
        lambda x: setattr(x, "data", torch.ones(3, device="meta")),
        "set_data",
    ),
    "numpy": (lambda x: x.numpy(), r"can't convert foo:0.*Tensor\.cpu\(\)"),
    "cuda array": (lambda x: x.__cuda_array_interface__, "non-CUDA tensor"),
    "dlpack": (lambda x: torch.from_dlpack(x), "foo"),
    "cuda": (lambda x: x.to("mps"), "MPS|mps"),
}


@pytest.mark.parametrize(("attempt", "words"), REFUSED.values(), ids=REFUSED)
def test_clear_refusals(attempt, words):
    with pytest.raises(Exception, match=words):
        attempt(torch.ones(3, device="foo"))


# --- saving, pickling, copying ----------------------------------------------


def saved(content: object, **how: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, **how)
    file.seek(0)
    return file


@pytest.mark.parametrize("zip_", [True, False])
@pytest.mark.parametrize("source", ["cpu", "foo"])
@pytest.mark.parametrize("target", ["cpu", "foo", None])
@pytest.mark.parametrize("weights_only", [True, False])
def test_save_and_load(zip_, source, target, weights_only):
    content = {
        "x": torch.arange(6.0, device=source).view(2, 3).t(),
        "w": nn.Parameter(torch.ones(2, device=source)),
        "z": torch.ones(2, dtype=torch.complex64, device=source).conj(),
        "empty": torch.empty(0, 3, device=source),
    }
    content["alias"] = content["x"][0]
    file = saved(content, _use_new_zipfile_serialization=zip_)
    loaded = torch.load(file, map_location=target, weights_only=weights_only)
    for name, expected in content.items():
        got = loaded[name]
        assert got.device.type == target or source
        assert torch.equal(got.cpu(), expected.cpu())
        assert got.stride() == expected.stride()
    assert loaded["w"].requires_grad
    loaded["x"][0, 0] = 9
    assert loaded["alias"][0] == 9


def test_load_with_mmap_and_map_locations(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(torch.ones(3, device="foo"), path)
    assert torch.load(path, mmap=True).device.type == "foo"
    for where in ({"foo:0": "cpu"}, torch.device("cpu"), lambda s, _: s):
        loaded = torch.load(path, map_location=where)
        assert loaded.device.type == "cpu"
    with pytest.raises(RuntimeError, match="device_count"):
        torch.load(path, map_location="foo:1")


def test_pickle_and_deepcopy():
    x = torch.arange(4.0, device="foo", requires_grad=True)
    for copied in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert copied.device == x.device
        assert copied.requires_grad
        assert copied.data_ptr() != x.data_ptr()
        assert copied.tolist() == x.tolist()
    module = nn.Linear(2, 2).to("foo")
    module.alias = module.weight
    for copied in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert copied.alias is copied.weight
        assert torch.equal(copied.weight, module.weight)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    safetensors.save_file({"x": torch.ones(3, device="foo")}, path)
    loaded = safetensors.load_file(path)["x"].to("foo")
    assert loaded.tolist() == [1, 1, 1]
    # The library has a list of devices.
    with pytest.raises(Exception, match="device foo is invalid"):
        safetensors.load_file(path, device="foo")


# --- pinned memory ----------------------------------------------------------


def test_pinned_memory():
    x = torch.arange(3)
    assert not x.is_pinned()
    pinned = x.pin_memory()
    assert pinned.is_pinned()
    assert pinned[1:].is_pinned()
    assert pinned.untyped_storage().is_pinned()
    assert pinned.pin_memory() is pinned
    assert torch.equal(pinned.to("foo", non_blocking=True).cpu(), x)
    assert not x.is_pinned()
    x = torch.arange(3, device="foo")
    for moved in (x.to("cpu", non_blocking=True), x.cpu()):
        assert moved.tolist() == [0, 1, 2]
    target = torch.zeros(3).copy_(x, non_blocking=True)
    assert target.tolist() == [0, 1, 2]
    assert x.to(torch.float64, non_blocking=True).dtype is torch.float64
    assert not torch.ones(3, device="foo").is_pinned()
