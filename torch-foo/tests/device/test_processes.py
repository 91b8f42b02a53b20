"""The device in other processes: fork, spawn, workers, gloo, and enabling it.

Each Python of its own takes seconds to import torch, so one does several
things.
"""

import os
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch
import torch_foo.__main__
from torch import multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset


def run(code, **environment):
    """Run code in a Python of its own, without the device at first."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        timeout=120,
    )


def output(code, **environment):
    done = run(code, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout.strip()


# --- enabling ---------------------------------------------------------------


@pytest.mark.parametrize("autoload", ["0", "1"])
def test_environment_variable(autoload):
    code = """
        import torch
        x = torch.ones(2, device="foo")
        print((x + x).tolist(), x.device)
    """
    if autoload == "0":
        code = code.replace("import torch", "import torch_foo, torch")
    environment = {
        "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload,
        "TORCH_FOO_DEVICE": "1",
    }
    assert output(code, **environment) == "[2.0, 2.0] foo:0"


def test_nothing_happens_before_enabling():
    assert output(
        """
        import torch, torch_foo
        print(hasattr(torch, "foo"), torch_foo.device.is_enabled())
        print(torch._C._get_privateuse1_backend_name())
        before = torch.ones(2)
        torch.manual_seed(5)
        torch_foo.device.enable()
        print(torch.foo.initial_seed(), (before.foo() + 1).tolist())
        try:
            torch.utils.rename_privateuse1_backend("bar")
        except RuntimeError as error:
            print(error)
        """
    ) == (
        "False False\nprivateuseone\n5 [2.0, 2.0]\n"
        "torch.register_privateuse1_backend() has already been set! "
        "Current backend: foo"
    )


def test_another_backend_comes_first():
    """An entry point of torch.backends goes before ours."""
    code = """
        import importlib.metadata, types, sys
        from importlib.metadata import EntryPoint, EntryPoints
        def bar():
            import torch
            torch.utils.rename_privateuse1_backend("bar")
        sys.modules["bar"] = types.SimpleNamespace(load=bar)
        found = importlib.metadata.entry_points
        def entry_points(group):
            first = EntryPoint("a", "bar:load", group)
            return EntryPoints([first, *found(group=group)])
        importlib.metadata.entry_points = entry_points
        import torch
        print(torch.ones(2).sum().item())
        import torch_foo
    """
    done = run(code, TORCH_FOO_DEVICE="1", TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert done.stdout.strip() == "2.0", done.stderr
    warning, error = done.stderr.split("Traceback (most recent call last)")
    reason = (
        "torch_foo.device.enable: this process has another device of the kind "
        'PrivateUse1, "bar", and PyTorch can have one'
    )
    assert f"could not be loaded: {reason}\n" in warning
    assert error.strip().endswith(f"RuntimeError: {reason}")


def test_torch_is_too_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    assert torch_foo.device.obstacle() == (
        "needs torch >= 2.11, whose backends can be written in Python, but "
        "torch 2.10.1+cpu is installed"
    )


def test_report(monkeypatch, capsys):
    """`python -m torch_foo` tells of the device and tests operators on it."""
    tested = []
    monkeypatch.setattr(sys, "argv", ["torch_foo"])
    monkeypatch.setattr(
        torch_foo.__main__, "failure", lambda _, device: tested.append(device)
    )
    assert torch_foo.__main__.main() == 0
    assert tested.count("foo") == tested.count("cpu") > 5
    assert "device foo:       enabled" in capsys.readouterr().out


# --- fork and spawn ---------------------------------------------------------


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(context):
    """The parent has tensors on foo, and the worker makes more."""
    on_foo = TensorDataset(torch.arange(4, device="foo"))
    loader = DataLoader(
        on_foo, 2, num_workers=1, multiprocessing_context=context
    )
    batches = [batch for (batch,) in loader]
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert all(batch.is_foo for batch in batches)


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_that_make_tensors(context, monkeypatch):
    monkeypatch.setenv("TORCH_FOO_DEVICE", "1")
    loader = DataLoader(
        range(2),
        2,
        collate_fn=partial(torch.tensor, device="foo"),
        num_workers=1,
        multiprocessing_context=context,
    )
    assert [batch.tolist() for batch in loader] == [[0, 1]]


def test_workers_with_pinned_memory():
    cpu = DataLoader(torch.arange(4.0), 2, num_workers=1, pin_memory=True)
    assert [batch.is_pinned() for batch in cpu] == [True, True]


def test_fork_with_live_tensors():
    x = torch.arange(4.0, device="foo", requires_grad=True)
    x.square().sum().backward()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            with torch.no_grad():
                x += 1
            os.write(write, f"{x.tolist()} ".encode())
            # PyTorch's rule for all accelerators.
            x.square().sum().backward()
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read().startswith(
            "[1.0, 2.0, 3.0, 4.0] Unable to handle autograd's threading in "
            "combination with fork-based multiprocessing."
        )
    os.waitpid(child, 0)
    assert x.tolist() == [0, 1, 2, 3]


def double(inbox, outbox):
    module = inbox.get()
    assert module.alias is module.weight
    with torch.no_grad():
        module.weight *= 2
    outbox.put((module.weight, torch.empty(0, 3, device="foo")))


def test_tensors_are_sent_as_copies():
    module = nn.Linear(2, 2).to("foo")
    module.alias = module.weight
    before = module.weight.tolist()
    context = multiprocessing.get_context("fork")
    inbox, outbox = context.Queue(), context.Queue()
    process = context.Process(target=double, args=(inbox, outbox))
    process.start()
    inbox.put(module)
    doubled, empty = outbox.get(timeout=60)
    process.join()
    assert doubled.is_foo
    assert doubled.tolist() == [[2 * v for v in row] for row in before]
    assert module.weight.tolist() == before
    assert empty.is_foo
    assert empty.shape == (0, 3)


# --- torch.distributed ------------------------------------------------------

COLLECTIVES = """
    import sys
    import torch, torch_foo
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch_foo.device.enable()
    rank = int(sys.argv[1])
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2
    )
    x = torch.full((2,), rank + 1.0, device="foo")
    total = x.clone()
    work = dist.all_reduce(total, async_op=True)
    work.wait()
    assert total.tolist() == [3, 3], total
    gathered = [torch.zeros(2, device="foo") for _ in range(2)]
    dist.all_gather(gathered, x)
    assert [g.tolist() for g in gathered] == [[1, 1], [2, 2]]
    dist.gather(x, gathered if rank == 0 else None)
    out = torch.zeros(2, device="foo")
    dist.scatter(out, gathered if rank == 0 else None)
    assert out.tolist() == x.tolist()
    dist.broadcast(x, 0)
    assert x.tolist() == [1, 1]
    if rank == 0:
        dist.send(x + 4, 1)
    else:
        dist.recv(x, 0)
        assert x.tolist() == [5, 5]
    objects = [None, None]
    dist.all_gather_object(objects, {"rank": rank})
    assert objects[1] == {"rank": 1}
    dist.barrier()

    def gradients(device, data):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        model = model.to(device)
        if data.shape[0] == 2:
            model = DistributedDataParallel(model)
        model(data.to(device)).square().mean().backward()
        return [p.grad.cpu() for p in model.parameters()]

    data = torch.arange(12.0).view(4, 3) / 12
    parallel = gradients("foo", data[2 * rank : 2 * rank + 2])
    for ours, expected in zip(parallel, gradients("cpu", data)):
        torch.testing.assert_close(ours, expected)

    from torch.distributed.fsdp import fully_shard
    torch.manual_seed(0)
    model = nn.Linear(4, 2).to("foo")
    expected = model(torch.ones(1, 4, device="foo")).detach()
    sharded = fully_shard(model)
    got = sharded(torch.ones(1, 4, device="foo"))
    torch.testing.assert_close(got.detach(), expected)
    try:
        got.sum().backward()
    except RuntimeError as error:  # FSDP frees storages, which foo cannot
        assert "UntypedStorage.resize_: a storage on foo has" in str(error)
    else:
        raise AssertionError("FSDP works now: say so in the documentation")
    dist.destroy_process_group()
"""


def test_gloo_and_distributed_data_parallel(tmp_path):
    code = textwrap.dedent(COLLECTIVES)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed
