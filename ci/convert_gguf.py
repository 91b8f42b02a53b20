"""`convert_gguf.py FILE FOLDER`: a model, as transformers saves it in float32.

Which loads in a second, where a GGUF file takes 16. demo.py runs this in its
environment, with examples/ on the path.
"""

import sys
from pathlib import Path

import common

file, folder = map(Path, sys.argv[1:])
tokenizer, model = common.load(file)
# transformers saves no model that came from a GGUF file: save one with the same
# weights.
del model.config.quantization_config
copy = type(model)(model.config)
copy.load_state_dict(model.state_dict())
copy.generation_config = model.generation_config
copy.save_pretrained(folder)
tokenizer.save_pretrained(folder)
