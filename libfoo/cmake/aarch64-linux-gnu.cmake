# Builds for 64-bit Arm with the compilers that CC and CXX name, those of
# conda-forge's gxx_linux-aarch64 or Debian's g++-aarch64-linux-gnu, and runs
# with qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER $ENV{CC})
set(CMAKE_CXX_COMPILER $ENV{CXX})

# The folder whose lib/ has the C library for Arm.
set(loader ld-linux-aarch64.so.1)
execute_process(
  COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${loader}
  OUTPUT_VARIABLE loader
  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
cmake_path(NORMAL_PATH loader)
cmake_path(GET loader PARENT_PATH root)
cmake_path(GET root PARENT_PATH root)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L ${root})

# The build machine's own libraries are for another processor.
set(CMAKE_FIND_ROOT_PATH ${root})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
