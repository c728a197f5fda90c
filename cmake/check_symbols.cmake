# Fails when the objects of one ISA define any external symbol but their table.
#
# A weak symbol (an inline function, a template of the standard library) compiled with AVX-512 may
# be the copy that the linker keeps for everybody, and then an older machine dies of it by SIGILL.
# Arguments: NM, OBJECTS (a list), TABLE (the allowed symbol), SANITIZE, STAMP.
execute_process(COMMAND ${NM} --defined-only --extern-only --portability ${OBJECTS}
  OUTPUT_VARIABLE listing RESULT_VARIABLE status ERROR_VARIABLE error)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${NM} failed on ${OBJECTS}: ${error}")
endif()

# A pointer to the C++ personality routine: data, the same in every object, no instruction in it.
set(allowed "^DW\\.ref\\.__gxx_personality_v0$")
if(SANITIZE)
  string(APPEND allowed "|^__odr_asan\\.${TABLE}$")
endif()

string(REPLACE ";" "," listing "${listing}")
string(REPLACE "\n" ";" lines "${listing}")
set(tables 0)
set(leaks)
foreach(line IN LISTS lines)
  if(NOT line MATCHES "^([^ ]+) ([A-Za-z])")  # with several objects nm heads each with "file.o:"
    continue()
  endif()
  set(symbol "${CMAKE_MATCH_1}")
  set(kind "${CMAKE_MATCH_2}")
  if(symbol STREQUAL TABLE)
    math(EXPR tables "${tables} + 1")
  elseif(NOT symbol MATCHES "${allowed}")
    list(APPEND leaks "  ${kind} ${symbol}")
  endif()
endforeach()

if(leaks)
  list(JOIN leaks "\n" leaks)
  message(FATAL_ERROR "These objects may export ${TABLE} alone, but also define\n${leaks}\n"
    "Give each internal linkage (an anonymous namespace, always_inline), or replace the std:: "
    "function by a word of the kernels' own. (`c++filt` prints the name.)")
endif()
if(NOT tables EQUAL 1)
  message(FATAL_ERROR "Expected one definition of ${TABLE}, found ${tables}: "
    "declare it extern \"C\" with default linkage in one source of csrc/*/cpu.")
endif()
file(TOUCH ${STAMP})
