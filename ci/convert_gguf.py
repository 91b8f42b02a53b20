"""Convert a GGUF file to a folder as transformers saves it, in float32.

usage: convert_gguf.py FILE FOLDER

The folder loads in a second, a GGUF file in 16. demo.py runs this in its
environment, with examples/ on the path.
"""

import sys
from pathlib import Path

import common

file, folder = map(Path, sys.argv[1:])
tokenizer, model = common.load(file)
# transformers does not save a model that came from a GGUF file, so save another
# model with the same weights.
del model.config.quantization_config
copy = type(model)(model.config)
copy.load_state_dict(model.state_dict())
copy.generation_config = model.generation_config
copy.save_pretrained(folder)
tokenizer.save_pretrained(folder)
