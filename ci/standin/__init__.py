"""The stand-in for pixi and conda-forge: see ci/pixi --help."""
