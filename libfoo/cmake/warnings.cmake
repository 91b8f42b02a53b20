# Our own targets' warnings; nobody else's.
function(foo_core_set_warnings target)
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # Taken for read: tiles beyond what was gathered, of which LoadN takes no
      # more than it is told (GCC 12 for NEON).
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
    endif()
    if(FOO_CORE_WERROR)
      target_compile_options(${target} PRIVATE -Werror)
    endif()
  endif()
endfunction()
