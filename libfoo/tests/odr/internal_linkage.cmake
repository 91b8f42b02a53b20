# Fails if a source among OBJECTS (separated by |) defines a weak symbol of
# foo_core, which another source may define differently, or any symbol in one of
# Highway's namespaces. Definitions in headers are the same for all, and pass.
string(REPLACE "|" ";" objects "${OBJECTS}")
# Without a plugin nm lists machine code, which has line numbers, and not what
# link-time optimization reads.
execute_process(
  COMMAND ${NM} --plugin /dev/null --defined-only --line-numbers ${objects}
  OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "\n[0-9a-f]+ [A-Zu] [^\t\n]+\t[^\n]+\\.cc:[0-9]+" symbols
             "${output}")
if(NOT symbols)
  message(FATAL_ERROR "no symbol has a line number")
endif()
list(FILTER symbols INCLUDE REGEX " [WVu] _ZNK?8foo_core|[0-9]N_[A-Z]")
list(FILTER symbols EXCLUDE REGEX "[CD][0-2][EI]") # GCC gives them wrong lines
if(symbols)
  list(TRANSFORM symbols REPLACE ".* ([^ \t]+)\t(.*)" "\\2: \\1")
  list(JOIN symbols "\n  " lines)
  message(FATAL_ERROR "not internal:\n  ${lines}")
endif()
