# Compares the ABI that the headers in HEADERS declare with the dump EXPECTED,
# and the symbols with the list EXPORTS, by stub.cmake; RENEW is the command
# that writes EXPECTED anew.
include(${CMAKE_CURRENT_LIST_DIR}/stub.cmake)
set(actual ${WORK}/foo_core.abi)
foo_core_dump_abi(${HEADERS} ${actual})

# What is compared is the ABI of the library only if the stub has its symbols.
execute_process(
  COMMAND
    ${CMAKE_COMMAND} -D NM=${NM} -D READELF=${READELF}
    -D LIBRARY=${WORK}/${SONAME} -D EXPECTED=${EXPORTS} -P
    ${PROJECT_SOURCE}/tests/unit/check_exports.cmake
  RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(SEND_ERROR "The symbols are not those of ${EXPORTS}.")
endif()

file(STRINGS ${EXPECTED} paths REGEX "='/")
if(paths)
  message(SEND_ERROR "${EXPECTED} has absolute paths: ${paths}")
endif()

execute_process(COMMAND ${ABIDIFF} --no-added-syms ${EXPECTED} ${actual}
                RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(
    FATAL_ERROR
      "The ABI changed (above): programs that were built with the old headers "
      "would break.\n"
      "While the major version is 0, this needs a new minor version, which is "
      "a new SONAME, later a new major version: see VERSION in "
      "CMakeLists.txt. Where it has one that is not released yet, or if the "
      "SONAME is all that changed, renew the dump:\n  ${RENEW}")
endif()
execute_process(COMMAND ${ABIDIFF} --harmless ${EXPECTED} ${actual}
                RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "The ABI grew (above), and old programs go on working. "
                      "The version may stay; renew the dump:\n  ${RENEW}")
endif()
