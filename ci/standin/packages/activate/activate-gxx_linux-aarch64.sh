# shellcheck shell=sh
# Variables of conda-forge's gcc_linux-aarch64 and gxx_linux-aarch64.
export CC="$CONDA_PREFIX/bin/aarch64-conda-linux-gnu-cc"
export CXX="$CONDA_PREFIX/bin/aarch64-conda-linux-gnu-c++"
