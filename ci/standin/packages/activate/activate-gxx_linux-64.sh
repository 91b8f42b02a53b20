# shellcheck shell=sh
# Variables of conda-forge's gxx_linux-64.
_host="${PREFIX:-$CONDA_PREFIX}"
_tool="$CONDA_PREFIX/bin/x86_64-conda-linux-gnu"
_flags="-fvisibility-inlines-hidden -fmessage-length=0 -march=nocona"
_flags="$_flags -mtune=haswell -ftree-vectorize -fPIC"
_flags="$_flags -fstack-protector-strong -fno-plt -O2 -ffunction-sections"
export CXX="$_tool-c++" GXX="$_tool-g++"
export CXXFLAGS="$_flags -pipe -isystem $_host/include"
unset _host _tool _flags
