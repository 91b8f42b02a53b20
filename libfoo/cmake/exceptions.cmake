# Fails if the flags of this directory switch exceptions off. A parent project
# may have set them, by CMAKE_CXX_FLAGS or add_compile_options.
function(foo_core_check_exceptions)
  get_directory_property(options COMPILE_OPTIONS)
  add_library(foo_core_flags INTERFACE IMPORTED)
  target_compile_options(foo_core_flags INTERFACE ${options})
  set(CMAKE_TRY_COMPILE_CONFIGURATION ${CMAKE_BUILD_TYPE})
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  try_compile(
    works
    SOURCE_FROM_CONTENT exceptions.cc "void f() { try { throw 1; } catch (int) {} }"
    LINK_LIBRARIES foo_core_flags
    OUTPUT_VARIABLE output
    NO_CACHE)
  if(NOT works)
    message(FATAL_ERROR "foo_core reports errors by C++ exceptions, but does not "
                        "compile with them. Remove -fno-exceptions from the "
                        "flags of the project that adds it.\n${output}")
  endif()
endfunction()
