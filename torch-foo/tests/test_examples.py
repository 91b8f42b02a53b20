"""The examples: whole runs on a tiny model, and errors of wrong input."""

import importlib
import os
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

if path := os.environ.get("TRANSFORMERS_PATH"):
    sys.path.insert(0, path)
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

EXAMPLES = Path(__file__).parents[1] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("examples/ is not beside tests/", allow_module_level=True)
if not Path("/proc/self/clear_refs").exists():
    pytest.skip("the examples need Linux", allow_module_level=True)

ANSWER = ["--tokens", "8", "--rounds", "1"]
STEPS = ["--steps", "3", "--sequence", "32"]
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights and one token per byte."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokens = ["<s>", "</s>", *sorted(byte_level.alphabet())]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, [])
    )
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text"
    file.write_text("The quick brown fox jumps over the lazy dög.\n" * 5)
    return file


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that both examples import."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    yield importlib.import_module("common")
    del sys.modules["common"]


def run(
    monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object
) -> object:
    """Run a script in this process; return its exit status or message."""
    file = str(EXAMPLES / script)
    if path:
        monkeypatch.setenv("PYTHONPATH", path, prepend=os.pathsep)
    monkeypatch.setattr(sys, "argv", [file, *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(file, run_name="__main__")
    return exit_.value.code


def plot_in(folder: Path) -> list[object]:
    """Return the arguments for a plot, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    return ["--plot", folder / "plot.png"]


def check(plot: list[object], output: str) -> None:
    if plot:
        assert f"plot: {plot[1]}" in output
        assert plot[1].read_bytes().startswith(b"\x89PNG")
    for title in ("peak memory, MiB", "##"):
        assert title in output
    assert "rms_norm      in   5 x LlamaRMSNorm" in output


@pytest.mark.usefixtures("common")
@pytest.mark.parametrize(
    ("template", "prompt"), [("", "hi"), (TEMPLATE, "[user] hi ")]
)
def test_generate(
    template: str,
    prompt: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(model, tmp_path / "model")
    if template:
        (tmp_path / "model/chat_template.jinja").write_text(template)
    plot = plot_in(tmp_path)
    words = ["hi", "--model", tmp_path / "model", *ANSWER, *plot]
    assert run(monkeypatch, "generate.py", *words) == 0
    output = capsys.readouterr().out
    check(plot, output)
    assert "8 tokens, all the same" in output
    for name in ("as it is", "torch_foo", "Q8_0", "Q4_1"):
        assert f"--- {name} ---" in output
        # In the charts of decode, first token, memory and perplexity.
        assert len(re.findall(f"^  {name} +#* +[0-9]", output, re.M)) == 4
    assert f"Prompt: {len(prompt)} tokens" in output


@pytest.mark.usefixtures("common")
def test_train(
    model: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plot = plot_in(tmp_path)
    words = ["--model", model, "--text", text, text, *STEPS, *plot]
    assert run(monkeypatch, "train.py", *words) == 0
    output = capsys.readouterr().out
    check(plot, output)
    assert "training on 448 tokens" in output  # 2 x (5 x 46 + 1), cut to 32s
    assert "relative: rounding" in output
    assert "step, seconds" in output
    assert "# in matrix products" in output


@pytest.mark.parametrize("script", ["generate.py", "train.py"])
def test_differences_are_reported(
    model: Path,
    text: Path,
    script: str,
    common: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def scale(model: torch.nn.Module, factor: float) -> str:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(factor)
        return "spoilt"

    monkeypatch.setattr(common, "patched", lambda model: scale(model, -20))
    monkeypatch.setattr(
        "torch_foo.integrations.transformers.unpatch",
        lambda model: scale(model, -1 / 20),
    )
    more = ANSWER if script == "generate.py" else ["--text", text, *STEPS]
    assert run(monkeypatch, script, "--model", model, *more) == 1
    output = capsys.readouterr().out
    assert "NOT the same" in output or "MORE than rounding" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate.py", "the following arguments are required: --model"),
        ("generate.py --model MISSING", "there is no file or folder MISSING"),
        ("generate.py --model MODEL --tokens 0", "at least 2"),
        ("generate.py --model MODEL --tokens x", "'x', expected a whole"),
        ("generate.py --model MODEL --rounds 0", "at least 1"),
        ("generate.py --model MODEL BLANK", "the prompt is empty"),
        ("generate.py --model MODEL --gguf NONE", "no file or folder NONE"),
        ("generate.py --model MODEL --compare-llama-cpp", "needs --gguf"),
        ("generate.py --model MODEL --plot a.svg", "does not end in .png"),
        ("generate.py --model MODEL --plot no/a.png", "there is no folder no"),
        ("train.py --model MODEL", "are required: --text"),
        ("train.py --model MODEL --text MISSING", "MISSING: No such file"),
        ("train.py --model MODEL --text MODEL", "Is a directory"),
        ("train.py --model MODEL --text EMPTY", "EMPTY is empty"),
        ("train.py --model MODEL --text LATIN1", "LATIN1 is not UTF-8 (byte 1"),
        ("train.py --model MODEL --text TEXT --steps 1", "at least 2"),
        ("train.py --model MODEL --text TEXT --sequence 1", "at least 2"),
        ("train.py --model MODEL --text TEXT --batch -1", "at least 1"),
        ("train.py --model MODEL --text TEXT --learning-rate nan", "above 0"),
    ],
)
@pytest.mark.usefixtures("common")
def test_wrong_arguments(
    arguments: str,
    message: str,
    model: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").write_text(" \n")
    Path("LATIN1").write_bytes("dög".encode("latin-1"))
    known = {"MODEL": model, "TEXT": text, "BLANK": " "}
    script, *words = (known.get(word, word) for word in arguments.split())
    assert run(monkeypatch, script, *words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("common")
def test_plot_without_matplotlib(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["--model", model, "--plot", "plot.png"]
    assert run(monkeypatch, "generate.py", *words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "needs matplotlib, which is not installed" in last


@pytest.mark.usefixtures("common")
def test_short_text(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", model, "--text", text, "--sequence", 232]
    said = run(monkeypatch, "train.py", *words)
    assert "231 tokens, fewer than one sequence of 232" in said


@pytest.mark.usefixtures("common")
def test_loss_that_is_not_finite(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", model, "--text", text, *STEPS]
    said = run(monkeypatch, "train.py", *words, "--learning-rate", 1e30)
    assert "is not finite" in said


@pytest.mark.parametrize("kind", ["folder", "file", "truncated", "empty"])
@pytest.mark.usefixtures("common")
def test_not_a_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong"
    if kind == "folder":
        wrong.mkdir()
    else:
        content = {"file": b"text" * 99, "truncated": b"GGUF\3\0\0\0"}
        wrong.write_bytes(content.get(kind, b""))
    said = run(monkeypatch, "generate.py", "--model", wrong)
    assert f"cannot load {wrong}: " in said
    assert "\n" not in said
