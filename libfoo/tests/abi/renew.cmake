# Writes the dump EXPECTED.
include(${CMAKE_CURRENT_LIST_DIR}/stub.cmake)
foo_core_build_stub()
foo_core_dump_abi(${EXPECTED})
