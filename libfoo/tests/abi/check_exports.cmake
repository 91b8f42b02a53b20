# Compares the symbols and the SONAME of LIBRARY with those of the stub that
# stub.cmake makes from the public headers in HEADERS: what they declare with
# FOO_CORE_EXPORT is exported, and nothing else.
include(${CMAKE_CURRENT_LIST_DIR}/stub.cmake)
foo_core_build_stub()
foo_core_list_exports(${WORK}/${SONAME} missing) # until it is found
foo_core_list_exports(${LIBRARY} actual)
list(LENGTH actual count)
foo_core_refuse_std("${actual}")

set(extra "")
foreach(symbol IN LISTS actual)
  list(FIND missing "${symbol}" index)
  if(index EQUAL -1)
    list(APPEND extra "${symbol}")
  else()
    list(REMOVE_AT missing ${index}) # one of several
  endif()
endforeach()
# CMake does not wrap indented lines.
if(missing)
  list(JOIN missing "\n  " lines)
  message(SEND_ERROR "declared in foo_core.h, but not exported:\n  ${lines}")
endif()
if(extra)
  list(JOIN extra "\n  " lines)
  message(SEND_ERROR "exported, but foo_core.h does not declare:\n  ${lines}")
endif()
message(STATUS "${count} exports")
