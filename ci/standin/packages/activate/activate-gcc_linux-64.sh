# shellcheck shell=sh
# Variables of conda-forge's gcc_linux-64. While a recipe is built, headers
# and libraries come from $PREFIX and tools from $BUILD_PREFIX.
_host="${PREFIX:-$CONDA_PREFIX}"
_tool="$CONDA_PREFIX/bin/x86_64-conda-linux-gnu"
_cflags="-march=nocona -mtune=haswell -ftree-vectorize -fPIC"
_cflags="$_cflags -fstack-protector-strong -fno-plt -O2 -ffunction-sections"
_ldflags="-Wl,-O2 -Wl,--sort-common -Wl,--as-needed -Wl,-z,relro -Wl,-z,now"
_ldflags="$_ldflags -Wl,--disable-new-dtags -Wl,--gc-sections"
_ldflags="$_ldflags -Wl,--allow-shlib-undefined"

export HOST=x86_64-conda-linux-gnu
export CONDA_TOOLCHAIN_HOST="$HOST" CONDA_TOOLCHAIN_BUILD="$HOST"
export CC="$_tool-cc" GCC="$_tool-gcc" AR="$_tool-ar" AS="$_tool-as"
export LD="$_tool-ld" NM="$_tool-nm" OBJCOPY="$_tool-objcopy"
export OBJDUMP="$_tool-objdump" RANLIB="$_tool-ranlib" STRIP="$_tool-strip"
export CFLAGS="$_cflags -pipe -isystem $_host/include"
export CPPFLAGS="-DNDEBUG -D_FORTIFY_SOURCE=2 -O2 -isystem $_host/include"
export LDFLAGS="$_ldflags -Wl,-rpath,$_host/lib -Wl,-rpath-link,$_host/lib"
export LDFLAGS="$LDFLAGS -L$_host/lib"
export CMAKE_PREFIX_PATH="$_host"

_roots="$_host;$CONDA_PREFIX/x86_64-conda-linux-gnu/sysroot"
_mode="FIND_ROOT_PATH_MODE"
CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release"
for _word in AR="$AR" C_COMPILER_AR="$AR" CXX_COMPILER_AR="$AR" \
  RANLIB="$RANLIB" C_COMPILER_RANLIB="$RANLIB" CXX_COMPILER_RANLIB="$RANLIB" \
  LINKER="$LD" STRIP="$STRIP" FIND_ROOT_PATH="$_roots" \
  "$_mode"_PROGRAM=NEVER "$_mode"_LIBRARY=ONLY "$_mode"_INCLUDE=ONLY; do
  CMAKE_ARGS="$CMAKE_ARGS -DCMAKE_$_word"
done
if [ "${CONDA_BUILD:-0}" = 1 ]; then
  CMAKE_ARGS="$CMAKE_ARGS -DCMAKE_INSTALL_PREFIX=$_host"
  CMAKE_ARGS="$CMAKE_ARGS -DCMAKE_INSTALL_LIBDIR=lib"
  CMAKE_ARGS="$CMAKE_ARGS -DCMAKE_PROGRAM_PATH=$CONDA_PREFIX/bin;$_host/bin"
fi
export CMAKE_ARGS
unset _host _tool _cflags _ldflags _roots _mode _word
