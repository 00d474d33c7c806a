# SPDX-License-Identifier: Apache-2.0
# Configures, builds and runs one consumer from scratch; with REFUSAL, expects find_package to fail with that message.
# Lists come with commas.

string(REPLACE "," ";" COMPONENTS "${COMPONENTS}")
string(REPLACE "," ";" HEADERS "${HEADERS}")
file(REMOVE_RECURSE "${BUILD}")
file(MAKE_DIRECTORY "${BUILD}")
separate_arguments(flags UNIX_COMMAND "${FLAGS}")

if(HOW STREQUAL "include_only")
    execute_process(COMMAND ${LAUNCHER} "${COMPILER}" ${flags} -std=c++20 "-I${KVX_SOURCE}/include" "-I${XXHASH_INCLUDE_DIR}"
        -c "${MAIN}" -o "${BUILD}/main.o" COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND "${COMPILER}" ${flags} "${BUILD}/main.o" -pthread -o "${BUILD}/consumer" COMMAND_ERROR_IS_FATAL ANY)
else()
    set(options "")
    if(HIDE)
        list(APPEND options "-DCMAKE_DISABLE_FIND_PACKAGE_${HIDE}=ON")
    endif()
    execute_process(
        COMMAND "${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_LIST_DIR}/${HOW}" -B "${BUILD}" -G "${GENERATOR}"
            "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_FLAGS=${FLAGS}" "-DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER}"
            "-DCMAKE_PREFIX_PATH=${PREFIX}" "-DMAIN=${MAIN}" "-DKVX_SOURCE=${KVX_SOURCE}" "-DWANTED=${WANTED}"
            "-DCOMPONENTS=${COMPONENTS}" "-DHEADERS=${HEADERS}" ${options}
        RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(REFUSAL)
        string(REGEX REPLACE "[ \n]+" " " output "${output}")
        string(FIND "${output}" "${REFUSAL}" position)
        if(result EQUAL 0 OR position EQUAL -1)
            message(FATAL_ERROR "expected find_package to fail with '${REFUSAL}', result ${result}:\n${output}")
        endif()
        return()
    endif()
    if(NOT result EQUAL 0)
        message(FATAL_ERROR "the consumer does not configure:\n${output}")
    endif()
    execute_process(COMMAND "${CMAKE_COMMAND}" --build "${BUILD}" COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(COMMAND "${BUILD}/consumer" WORKING_DIRECTORY "${BUILD}" COMMAND_ERROR_IS_FATAL ANY)
