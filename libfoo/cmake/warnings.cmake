# Sets the warnings of one of our targets, and of nobody else's.
function(foo_core_set_warnings target)
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    target_compile_options(
      ${target}
      PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow>
              $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # GCC 12 for NEON warns of tiles beyond what was gathered, but LoadN reads
      # no more of them than it is told.
      target_compile_options(
        ${target}
        PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
    endif()
    if(FOO_CORE_WERROR)
      target_compile_options(
        ${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                          $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
    endif()
  endif()
endfunction()
