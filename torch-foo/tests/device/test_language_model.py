"""A Llama on the device: the same text and loss as on the CPU.

SmolLM2-135M, which the demo fetches, is compared too, if its folder is named:
``FOO_DEVICE_MODEL=build/demo/SmolLM2-135M-Instruct`` (a minute, 3.1 GiB).
"""

import os

import pytest
import torch

transformers = pytest.importorskip("transformers")

# This import would fail without transformers.
from torch_foo.integrations.transformers import patch  # noqa: E402


@pytest.fixture(scope="module")
def tiny():
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def results(model, device, ids, learning_rate):
    """Return texts, greedy and sampled, and the losses of two steps."""
    model.to(device)
    ids = ids.to(device)
    texts = []
    for named in ({"do_sample": False}, {"do_sample": True, "top_k": 20}):
        torch.manual_seed(0)
        ids_and_mask = {"input_ids": ids, "attention_mask": ids.new_ones(1, 16)}
        text = model.generate(**ids_and_mask, max_new_tokens=24, **named)
        assert text.device == ids.device
        texts.append(text.tolist())
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return texts, losses


def compare(model, ids, learning_rate):
    state = {name: x.clone() for name, x in model.state_dict().items()}
    text, losses = results(model, "cpu", ids, learning_rate)
    model.load_state_dict(state)
    got_text, got_losses = results(model, "foo", ids, learning_rate)
    model.to("cpu")
    model.load_state_dict(state)
    model.zero_grad()
    assert got_text == text
    torch.testing.assert_close(got_losses, losses, rtol=1e-5, atol=1e-5)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("is_patched", [False, True])
def test_tiny(tiny, is_patched):
    if is_patched:
        assert patch(tiny)
    compare(tiny, torch.arange(16)[None], 0.1)


def test_smollm2():
    folder = os.environ.get("FOO_DEVICE_MODEL")
    if not folder:
        pytest.skip("FOO_DEVICE_MODEL does not name the demo's model")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(
        "The Aurora Borealis, or northern lights, is a display of light in the "
        "sky, seen above the Arctic Circle.",
        return_tensors="pt",
    ).input_ids[:, :16]
    compare(model, ids, 0.001)
