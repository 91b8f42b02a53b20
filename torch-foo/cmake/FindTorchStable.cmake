# Find the stable ABI of LibTorch: its headers and the one library to link.
#
#   find_package(Python REQUIRED COMPONENTS Interpreter)
#   find_package(TorchStable 2.10 REQUIRED)
#   target_link_libraries(my_operators PRIVATE torch::stable)
#
# This finds the torch that ${Python_EXECUTABLE} would import, without importing
# it. TorchStable_ROOT, the path of a torch package, overrides that. Unlike
# find_package(Torch), this looks for no CUDA toolkit and sets no global flags.
#
# Sets TorchStable_VERSION, TorchStable_INCLUDE_DIR, TorchStable_LIBRARY.

if(NOT TorchStable_ROOT)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import importlib.util, os
spec = importlib.util.find_spec('torch')
if spec: print(os.path.dirname(spec.origin))"
    OUTPUT_VARIABLE TorchStable_ROOT
    OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()

# find_path and find_library would only search the roots that conda's CMAKE_ARGS
# set, so each path is tested by itself.
set(TorchStable_INCLUDE_DIR "${TorchStable_ROOT}/include")
set(TorchStable_LIBRARY
  "${TorchStable_ROOT}/lib/libtorch${CMAKE_SHARED_LIBRARY_SUFFIX}")
set(_reason "")
if(NOT TorchStable_ROOT)
  set(_reason "There is no torch in ${Python_EXECUTABLE}: install it there, \
or build without --no-build-isolation.")
else()
  file(STRINGS "${TorchStable_ROOT}/version.py" _line REGEX "^__version__")
  string(REGEX MATCH "[0-9]+\\.[0-9]+(\\.[0-9]+)?" TorchStable_VERSION
    "${_line}")
  if(TorchStable_VERSION VERSION_LESS TorchStable_FIND_VERSION)
    set(_reason "torch ${TorchStable_VERSION} in ${TorchStable_ROOT} is too \
old: install torch ${TorchStable_FIND_VERSION} or later.")
  elseif(NOT EXISTS "${TorchStable_INCLUDE_DIR}/torch/csrc/stable/library.h")
    set(_reason "torch ${TorchStable_VERSION} in ${TorchStable_ROOT} has no \
headers.")
  elseif(NOT EXISTS "${TorchStable_LIBRARY}")
    set(_reason "There is no ${TorchStable_LIBRARY}.")
  endif()
endif()
if(_reason)
  unset(TorchStable_LIBRARY)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TorchStable
  REQUIRED_VARS TorchStable_LIBRARY TorchStable_INCLUDE_DIR
  VERSION_VAR TorchStable_VERSION
  REASON_FAILURE_MESSAGE "${_reason}")

if(TorchStable_FOUND AND NOT TARGET torch::stable)
  add_library(torch::stable SHARED IMPORTED)
  set_target_properties(torch::stable PROPERTIES
    IMPORTED_LOCATION "${TorchStable_LIBRARY}"
    IMPORTED_SONAME "libtorch.so"
    INTERFACE_INCLUDE_DIRECTORIES "${TorchStable_INCLUDE_DIR}")
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    # libtorch.so defines no symbols; it loads the libraries that do. The linker
    # must keep it although nothing seems to use it, and must not require its
    # dependencies, which may be missing at build time.
    target_link_options(torch::stable INTERFACE
      LINKER:--no-as-needed LINKER:--allow-shlib-undefined)
  endif()
endif()
