"""`python -m standin ARGS`: what ci/pixi starts in its own environment."""

import os
import sys

from standin.cli import main

status = main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # rattler may crash when Python shuts down
