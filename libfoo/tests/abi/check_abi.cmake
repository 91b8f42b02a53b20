# Compares the ABI that the public headers in HEADERS declare with the reviewed
# dump EXPECTED. RENEW is the command that writes EXPECTED anew.
include(${CMAKE_CURRENT_LIST_DIR}/stub.cmake)
set(actual ${WORK}/foo_core.abi)
foo_core_build_stub()
foo_core_dump_abi(${actual})
foo_core_list_exports(${WORK}/${SONAME} exports)
foo_core_refuse_std("${exports}")

file(STRINGS ${EXPECTED} paths REGEX "='/")
if(paths)
  message(SEND_ERROR "${EXPECTED} has absolute paths: ${paths}")
endif()

execute_process(COMMAND ${ABIDIFF} --no-added-syms ${EXPECTED} ${actual}
                RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(
    FATAL_ERROR
      "The ABI changed (above): programs built with the old headers would "
      "break.\n"
      "Raise VERSION in CMakeLists.txt to a new minor version (from 1.0 on, a "
      "new major version), which has a new SONAME, unless that version is not "
      "released yet. Then renew the dump:\n  ${RENEW}")
endif()
execute_process(COMMAND ${ABIDIFF} --harmless ${EXPECTED} ${actual}
                RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "The ABI grew (above); old programs still work, and the "
                      "version may stay. Renew the dump:\n  ${RENEW}")
endif()
