# Compares the SONAME of LIBRARY, by READELF, and what it exports, by NM, with
# the list in EXPECTED.
execute_process(
  COMMAND ${NM} --dynamic --demangle --defined-only --format=posix ${LIBRARY}
  OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX REPLACE " [A-Za-z] [0-9a-f]+ [0-9a-f]*\n" "\n" output "${output}")
string(REGEX REPLACE "\n$" "" output "${output}")
string(REPLACE "\n" ";" actual "${output}")
list(REMOVE_DUPLICATES actual)
list(LENGTH actual count)
execute_process(COMMAND ${READELF} --dynamic --wide ${LIBRARY}
                OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCH "\\(SONAME\\)[^[]*\\[([^]]*)\\]" match "${output}")
list(PREPEND actual "SONAME ${CMAKE_MATCH_1}")
file(STRINGS ${EXPECTED} expected)

set(missing ${expected})
list(REMOVE_ITEM missing ${actual})
set(extra ${actual})
list(REMOVE_ITEM extra ${expected})
# Indented lines are not wrapped, so that they can be pasted.
if(missing)
  list(JOIN missing "\n  " lines)
  message(SEND_ERROR "no longer exported:\n  ${lines}")
endif()
if(extra)
  list(JOIN extra "\n  " lines)
  message(SEND_ERROR "exported, but not in ${EXPECTED}; if that is meant, "
                     "add:\n  ${lines}")
endif()
# The layout of a std:: type depends on the standard library and on how the
# caller was compiled. (That the exceptions are derived from the standard ones
# shows in no signature.)
set(standard ${actual})
list(FILTER standard INCLUDE REGEX "std::")
if(standard)
  list(JOIN standard "\n  " lines)
  message(SEND_ERROR "std:: type in an exported signature:\n  ${lines}")
endif()
message(STATUS "${count} symbols exported")
