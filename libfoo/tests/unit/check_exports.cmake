# Compares what LIBRARY exports, by NM, with the list in EXPECTED.
execute_process(
  COMMAND ${NM} --dynamic --demangle --defined-only --format=posix ${LIBRARY}
  OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX REPLACE " [A-Za-z] [0-9a-f]+ [0-9a-f]*\n" "\n" output "${output}")
string(REGEX REPLACE "\n$" "" output "${output}")
string(REPLACE "\n" ";" actual "${output}")
list(REMOVE_DUPLICATES actual)
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
list(LENGTH actual count)
message(STATUS "${count} symbols exported")
