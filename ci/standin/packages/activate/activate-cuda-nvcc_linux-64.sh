# shellcheck shell=sh
# Variables of conda-forge's cuda-nvcc_linux-64.
_host_compiler="$CONDA_PREFIX/bin/x86_64-conda-linux-gnu-c++"
export NVCC_PREPEND_FLAGS="-ccbin=$_host_compiler"
unset _host_compiler
