# A library with foo_core's ABI and nothing in it, for abidw: the types and
# symbols of an ABI are those of the public headers, so that every declaration
# of an exported function, given an empty body, makes the same library as far
# as callers can tell. It compiles in a second, and what happens to be inside
# the real one stays out of the dump.

# Builds it in the folder WORK, from the headers in the folder `headers` and
# version.h below GENERATED, and writes its dump to `dump`.
function(foo_core_dump_abi headers dump)
  file(REMOVE_RECURSE ${WORK}/foo_core)
  file(COPY ${headers}/ DESTINATION ${WORK}/foo_core)
  file(GLOB files ${WORK}/foo_core/*.h)
  list(REMOVE_ITEM files ${WORK}/foo_core/export.h)
  foreach(file IN LISTS files)
    file(READ ${file} text)
    string(REGEX REPLACE "(FOO_CORE_EXPORT [^;{]*);"
                         "\\1 { __builtin_trap(); }" text "${text}")
    file(WRITE ${file} "${text}")
  endforeach()
  file(WRITE ${WORK}/foo_core.cc "#include \"foo_core/foo_core.h\"\n")
  file(COPY ${PROJECT_SOURCE}/src/error.cc DESTINATION ${WORK}) # the classes

  # Relative names, so that the dump is the same wherever it is made.
  execute_process(
    COMMAND
      ${CXX} -std=c++17 -g -fPIC -fvisibility=hidden
      -fvisibility-inlines-hidden -I. -I${GENERATED} foo_core.cc error.cc
      -shared -Wl,-soname,${SONAME}
      -Wl,--version-script=${PROJECT_SOURCE}/cmake/exports.map -o ${SONAME}
    WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
  execute_process(
    COMMAND
      ${ABIDW} --headers-dir foo_core --exported-interfaces-only
      --no-comp-dir-path --no-corpus-path --no-elf-needed --no-parameter-names
      --no-show-locs --type-id-style hash --out-file ${dump} ${SONAME}
    WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
