# SPDX-License-Identifier: Apache-2.0
# cmake -DCOMPILER= -DFLAGS= -DINCLUDE_DIRS= -DSOURCE= -P compile_fail.cmake

# FATAL_ERROR wraps its text, which the self tests could then not match.
function(fail)
    message(NOTICE ${ARGV})
    message(FATAL_ERROR "compile_fail")
endfunction()

file(STRINGS "${SOURCE}" first LIMIT_COUNT 1)
if(NOT first MATCHES "^// expect: (.+)$")
    fail("${SOURCE} must start with a line '// expect: <regex of the compiler's message>'")
endif()
set(expected "${CMAKE_MATCH_1}")

set(command "${COMPILER}")
separate_arguments(flags UNIX_COMMAND "${FLAGS}")
list(APPEND command ${flags} -std=c++20 -fsyntax-only)
foreach(dir IN LISTS INCLUDE_DIRS)
    list(APPEND command "-I${dir}")
endforeach()

execute_process(COMMAND ${command} "${SOURCE}" RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
    fail("${SOURCE} does not compile without KVX_COMPILE_FAIL:\n${output}")
endif()

execute_process(COMMAND ${command} -DKVX_COMPILE_FAIL "${SOURCE}"
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(result EQUAL 0)
    fail("${SOURCE} compiles with KVX_COMPILE_FAIL, and must not")
endif()
if(NOT output MATCHES "${expected}")
    fail("${SOURCE} fails for another reason than '${expected}':\n${output}")
endif()
