"""Tiny models of transformers, and ways to copy them, for several tests."""

import copy
import io
import pickle

import torch
import transformers
from torch import nn
from torch_foo.integrations.transformers import _decode

LAYERS = 2


def make(
    family: str = "llama", seed: int = 0, **options: object
) -> transformers.PreTrainedModel:
    """Make a tiny model with random weights."""
    settings = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    config = transformers.AutoConfig.for_model(family, **settings | options)
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def count_steps(monkeypatch) -> list[torch.Tensor | None]:
    """Collect a mask for each layer that the decode step computes."""
    masks, call = [], _decode._Plan.__call__

    def counted(plan, x, rooms, mask, rotation):
        masks.extend([mask] * len(rooms))
        return call(plan, x, rooms, mask, rotation)

    monkeypatch.setattr(_decode._Plan, "__call__", counted)
    return masks


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, through_pickle, through_torch]
