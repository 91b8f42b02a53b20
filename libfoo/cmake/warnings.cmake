# Sets the warnings of one of our targets, and of nobody else's.
function(foo_core_set_warnings target)
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # GCC 12 for NEON warns of tiles beyond what was gathered, but LoadN reads
      # no more of them than it is told.
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
    endif()
    if(FOO_CORE_WERROR)
      target_compile_options(${target} PRIVATE -Werror)
    endif()
  endif()
endfunction()
