# Shows that check_abi.cmake can fail: edits a copy of the headers by CHANGE,
# and fails unless the check then does, with the right words. Variables are
# handed on to the check.
set(copy ${WORK}/headers)
file(REMOVE_RECURSE ${copy})
file(COPY ${HEADERS}/ DESTINATION ${copy})

set(function "FOO_CORE_EXPORT std::int64_t item_size(DType dtype) noexcept;")
if(CHANGE STREQUAL "nothing")
  set(old "${function}")
  set(new "${function}")
  set(words "")
elseif(CHANGE STREQUAL "added_function")
  set(old "${function}")
  set(new "${function}\nFOO_CORE_EXPORT void planted();")
  set(words "in [^;]*exports.txt.*planted.*The ABI grew")
elseif(CHANGE STREQUAL "removed_function")
  set(old "${function}")
  set(new "")
  set(words "no longer exported:[ \n]*foo_core::item_size.*The ABI changed")
elseif(CHANGE STREQUAL "added_member")
  set(old "const std::int64_t* strides;")
  set(new "const std::int64_t* strides; int planted;")
  set(words "The ABI changed")
elseif(CHANGE STREQUAL "changed_return_type") # which no symbol tells
  set(old "${function}")
  set(new "FOO_CORE_EXPORT double item_size(DType dtype) noexcept;")
  set(words "The ABI changed")
elseif(CHANGE STREQUAL "changed_enumerator")
  set(old "kInt8 = 4")
  set(new "kInt8 = 6")
  set(words "The ABI changed")
elseif(CHANGE STREQUAL "std_argument")
  set(old "${function}")
  set(new "${function}\nFOO_CORE_EXPORT void planted(const std::exception&);")
  set(words "std:: type")
endif()

file(READ ${copy}/tensor.h text)
string(FIND "${text}" "${old}" found)
if(found EQUAL -1)
  message(FATAL_ERROR "tensor.h no longer has: ${old}")
endif()
string(REPLACE "${old}" "${new}" text "${text}")
file(WRITE ${copy}/tensor.h "#include <exception>\n${text}")

set(variables "")
foreach(name ABIDIFF ABIDW CXX EXPECTED EXPORTS GENERATED NM PROJECT_SOURCE
        READELF RENEW SONAME WORK)
  list(APPEND variables -D "${name}=${${name}}")
endforeach()
execute_process(
  COMMAND ${CMAKE_COMMAND} ${variables} -D HEADERS=${copy} -P
          ${CMAKE_CURRENT_LIST_DIR}/check_abi.cmake
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)
message(STATUS "with ${CHANGE}:\n${output}")
if(words STREQUAL "")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "the check fails without a reason")
  endif()
elseif(result EQUAL 0 OR NOT output MATCHES "${words}")
  message(FATAL_ERROR "the check does not see it, or does not say so")
endif()
