# A library with foo_core's ABI and no kernels. The types and symbols of an ABI
# are those of the public headers, so giving each exported declaration an empty
# body makes a library that callers cannot tell from the real one. It compiles
# in a second, and its symbols and ABI dump hold nothing private.

# Builds the stub in the folder WORK, from the headers in HEADERS and version.h
# below GENERATED.
function(foo_core_build_stub)
  file(REMOVE_RECURSE ${WORK}/foo_core)
  file(COPY ${HEADERS}/ DESTINATION ${WORK}/foo_core)
  file(GLOB files ${WORK}/foo_core/*.h)
  list(REMOVE_ITEM files ${WORK}/foo_core/export.h)
  foreach(file IN LISTS files)
    file(READ ${file} text)
    # A default argument may be {}.
    string(REGEX REPLACE "(FOO_CORE_EXPORT ([^;{]|{})*);"
                         "\\1 { __builtin_trap(); }" text "${text}")
    file(WRITE ${file} "${text}")
  endforeach()
  file(WRITE ${WORK}/foo_core.cc "#include \"foo_core/foo_core.h\"\n")
  file(COPY ${PROJECT_SOURCE}/src/error.cc DESTINATION ${WORK}) # the classes

  # Relative names make the dump the same wherever it is made.
  execute_process(
    COMMAND
      ${CXX} -std=c++17 -g -fPIC -fvisibility=hidden
      -fvisibility-inlines-hidden -I. -I${GENERATED} foo_core.cc error.cc
      -shared -Wl,-soname,${SONAME}
      -Wl,--version-script=${PROJECT_SOURCE}/cmake/exports.map -o ${SONAME}
    WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# Writes the stub's ABI to the file `dump`.
function(foo_core_dump_abi dump)
  execute_process(
    COMMAND
      ${ABIDW} --headers-dir foo_core --exported-interfaces-only
      --no-comp-dir-path --no-corpus-path --no-elf-needed --no-parameter-names
      --no-show-locs --type-id-style hash --out-file ${dump} ${SONAME}
    WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# Sets `result` to the SONAME and the demangled symbols that `library` exports.
# A constructor is one signature and several symbols, and is listed so often.
function(foo_core_list_exports library result)
  execute_process(
    COMMAND ${NM} --dynamic --demangle --defined-only --format=posix ${library}
    OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX REPLACE " [A-Za-z] [0-9a-f]+ [0-9a-f]*\n" ";" exports
                       "${output}")
  list(REMOVE_ITEM exports "")
  list(SORT exports)
  execute_process(COMMAND ${READELF} --dynamic --wide ${library}
                  OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCH "\\(SONAME\\)[^[]*\\[([^]]*)\\]" match "${output}")
  set(${result} "SONAME ${CMAKE_MATCH_1}" ${exports} PARENT_SCOPE)
endfunction()

# Fails if a signature in `exports` has a std:: type, whose layout depends on
# the standard library and on the caller's compiler flags. (The exceptions'
# standard base classes appear in no signature.)
function(foo_core_refuse_std exports)
  list(FILTER exports INCLUDE REGEX "std::")
  if(exports)
    list(JOIN exports "\n  " lines)
    message(SEND_ERROR "std:: type in an exported signature:\n  ${lines}")
  endif()
endfunction()
