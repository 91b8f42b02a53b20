# Compiles the public headers in INCLUDE and GENERATED with CXX: each alone, and
# all of them in a few pseudo-random orders.
set(flags -fsyntax-only -Wall -Wextra -Wpedantic -Werror -I${INCLUDE}
          -I${GENERATED})
set(orders 5)

file(GLOB headers RELATIVE ${INCLUDE} ${INCLUDE}/foo_core/*.h)
list(APPEND headers foo_core/version.h)
file(REMOVE_RECURSE ${WORK})

# Writes a source that includes the headers of ARGN.
function(write_source name)
  list(TRANSFORM ARGN REPLACE "(.+)" "#include \"\\1\"\n")
  list(JOIN ARGN "" text)
  file(WRITE ${WORK}/${name}.cc "${text}")
endfunction()

foreach(header IN LISTS headers)
  get_filename_component(name ${header} NAME_WE)
  write_source(alone_${name} ${header})
endforeach()

# foo_core.h includes all others, so no order would be left after it.
list(REMOVE_ITEM headers foo_core/foo_core.h)
set(seed 1)
foreach(number RANGE 1 ${orders})
  set(left ${headers})
  set(order "")
  while(left)
    list(LENGTH left count)
    math(EXPR seed "(${seed} * 1103515245 + 12345) % 2147483648")
    math(EXPR index "(${seed} >> 16) % ${count}")
    list(GET left ${index} header)
    list(REMOVE_AT left ${index})
    list(APPEND order ${header})
  endwhile()
  write_source(order_${number} ${order})
endforeach()

file(GLOB sources RELATIVE ${WORK} ${WORK}/*.cc)
foreach(standard 17 20)
  execute_process(COMMAND ${CXX} -std=c++${standard} ${flags} ${sources}
                  WORKING_DIRECTORY ${WORK} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(SEND_ERROR "the headers do not compile as C++${standard} by ${CXX}")
  endif()
endforeach()
list(LENGTH sources count)
message(STATUS "${count} sources in ${WORK}")
