# shellcheck shell=sh
# Variables of conda-forge's gxx_linux-64, after those of gcc_linux-64.
export CXX="${CC%cc}c++" GXX="${CC%cc}g++"
_flags="-fvisibility-inlines-hidden -fmessage-length=0"
# CFLAGS is no misspelt _flags.
# shellcheck disable=SC2153
export CXXFLAGS="$_flags $CFLAGS"
unset _flags
