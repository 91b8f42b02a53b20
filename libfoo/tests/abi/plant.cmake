# Shows that CHECK, one of the two scripts beside this one, can fail: it edits a
# copy of the headers by CHANGE, and passes only if the check then fails with
# the right words. The other variables are handed on to the check.
set(copy ${WORK}/headers)
file(REMOVE_RECURSE ${copy})
file(COPY ${HEADERS}/ DESTINATION ${copy})

set(function "FOO_CORE_EXPORT std::int64_t item_size(DType dtype) noexcept;")
set(old "${function}")
set(changed "The ABI changed")
if(CHANGE STREQUAL "nothing")
  set(new "${function}")
  set(check_abi "")
  set(check_exports "")
elseif(CHANGE STREQUAL "added_function")
  set(new "${function}\nFOO_CORE_EXPORT void planted();")
  set(check_abi "planted.*The ABI grew")
  set(check_exports "but not exported:[ \n]*foo_core::planted")
elseif(CHANGE STREQUAL "removed_function")
  set(new "")
  set(check_abi "item_size.*${changed}")
  set(check_exports "does not declare:[ \n]*foo_core::item_size")
elseif(CHANGE STREQUAL "added_member")
  set(old "const std::int64_t* strides;")
  set(new "const std::int64_t* strides; int planted;")
  set(check_abi "${changed}")
elseif(CHANGE STREQUAL "changed_return_type") # which no symbol tells
  set(new "FOO_CORE_EXPORT double item_size(DType dtype) noexcept;")
  set(check_abi "${changed}")
elseif(CHANGE STREQUAL "changed_enumerator")
  set(old "kInt8 = 4")
  set(new "kInt8 = 6")
  set(check_abi "${changed}")
elseif(CHANGE STREQUAL "std_argument")
  set(new "${function}\nFOO_CORE_EXPORT void planted(const std::exception&);")
  set(check_abi "std:: type")
endif()

file(READ ${copy}/tensor.h text)
string(FIND "${text}" "${old}" found)
if(found EQUAL -1)
  message(FATAL_ERROR "tensor.h no longer has: ${old}")
endif()
string(REPLACE "${old}" "${new}" text "${text}")
file(WRITE ${copy}/tensor.h "#include <exception>\n${text}")

set(variables "")
foreach(name ABIDIFF ABIDW CXX EXPECTED GENERATED LIBRARY NM PROJECT_SOURCE
        READELF RENEW SONAME WORK)
  list(APPEND variables -D "${name}=${${name}}")
endforeach()
execute_process(
  COMMAND ${CMAKE_COMMAND} ${variables} -D HEADERS=${copy} -P
          ${CMAKE_CURRENT_LIST_DIR}/${CHECK}.cmake
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)
message(STATUS "${CHECK} with ${CHANGE}:\n${output}")
set(words "${${CHECK}}")
if(words STREQUAL "")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "the check fails without a reason")
  endif()
elseif(result EQUAL 0 OR NOT output MATCHES "${words}")
  message(FATAL_ERROR "the check does not see it, or does not say so")
endif()
