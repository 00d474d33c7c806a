# SPDX-License-Identifier: Apache-2.0
# cmake -DBINARY_DIR= -DPREFIX= -DKVX_SOURCE= -P install.cmake

file(REMOVE_RECURSE "${PREFIX}")
execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BINARY_DIR}" --prefix "${PREFIX}"
    OUTPUT_VARIABLE output ERROR_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)

file(GLOB_RECURSE in_tree RELATIVE "${KVX_SOURCE}/include" "${KVX_SOURCE}/include/kvx/*.hpp" "${KVX_SOURCE}/include/kvx/*.cuh")
file(GLOB_RECURSE installed RELATIVE "${PREFIX}/include" "${PREFIX}/include/*")
list(SORT in_tree)
list(SORT installed)
if(NOT in_tree STREQUAL installed)
    message(FATAL_ERROR "the installed headers are not those of the tree:\n  tree: ${in_tree}\n  installed: ${installed}")
endif()
if(NOT EXISTS "${PREFIX}/share/licenses/kvx/LICENSE")
    message(FATAL_ERROR "the licence is not installed")
endif()
file(GLOB_RECURSE package "${PREFIX}/*.cmake")
foreach(file IN LISTS package)
    file(READ "${file}" text)
    string(FIND "${text}" "${KVX_SOURCE}" position)
    if(NOT position EQUAL -1)
        message(FATAL_ERROR "${file} names the source tree: the package could not be moved")
    endif()
endforeach()
