"""`python -m standin ARGS`: what ci/pixi starts in its own environment."""

from standin.cli import main

raise SystemExit(main())
