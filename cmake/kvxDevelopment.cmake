# SPDX-License-Identifier: Apache-2.0
# What tests, benches and examples share. Not installed.

set(KVX_TEST_TIMEOUT_SECONDS 120 CACHE STRING "Time limit of one test program")

# Warnings stay out of kvx::kvx: a consumer chooses its own.
add_library(kvx_warnings INTERFACE)
target_compile_options(kvx_warnings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall$<SEMICOLON>-Wextra$<SEMICOLON>-Wconversion$<SEMICOLON>-Wsign-conversion$<SEMICOLON>-Wshadow>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${KVX_WARNINGS_AS_ERRORS}>>:-Werror>)

# kvx_direct_includes(<var> <file>): what the file's #include lines name, remembered per file.
function(kvx_direct_includes out file)
    get_property(known GLOBAL PROPERTY "kvx_includes:${file}" SET)
    if(NOT known)
        file(STRINGS "${file}" lines REGEX "^[ \t]*#[ \t]*include[ \t]*[<\"]")
        set(names "")
        foreach(line IN LISTS lines)
            if(line MATCHES "[<\"]([^>\"]+)[>\"]")
                list(APPEND names "${CMAKE_MATCH_1}")
            endif()
        endforeach()
        set_property(GLOBAL PROPERTY "kvx_includes:${file}" "${names}")
    endif()
    get_property(names GLOBAL PROPERTY "kvx_includes:${file}")
    set(${out} "${names}" PARENT_SCOPE)
endfunction()

# kvx_third_party(<var> <file> [<dir>...]): every header outside the tree that the file reaches. Includes are followed in
# the file's own directory, in kvx's include directory and in the directories given.
function(kvx_third_party out file)
    set(found "")
    set(seen "${file}")
    set(todo "${file}")
    while(todo)
        list(POP_FRONT todo current)
        kvx_direct_includes(names "${current}")
        cmake_path(GET current PARENT_PATH here)
        foreach(name IN LISTS names)
            set(resolved "")
            foreach(dir IN ITEMS "${here}" "${kvx_include_dir}" ${ARGN})
                if(EXISTS "${dir}/${name}")
                    cmake_path(APPEND dir "${name}" OUTPUT_VARIABLE resolved)
                    cmake_path(NORMAL_PATH resolved)
                    break()
                endif()
            endforeach()
            if(NOT resolved)
                list(APPEND found "${name}")
            elseif(NOT resolved IN_LIST seen)
                list(APPEND seen "${resolved}")
                list(APPEND todo "${resolved}")
            endif()
        endforeach()
    endwhile()
    list(REMOVE_DUPLICATES found)
    set(${out} "${found}" PARENT_SCOPE)
endfunction()

# kvx_requirements(<targets> <missing> <file> [<dir>...]): what the file has to link, and which of it this machine lacks.
function(kvx_requirements out_targets out_missing file)
    kvx_third_party(names "${file}" ${ARGN})
    set(targets kvx::kvx)
    set(missing "")
    foreach(component IN LISTS kvx_components)
        foreach(name IN LISTS names)
            if(name MATCHES "^(${kvx_${component}_include})$")
                if(TARGET kvx::${component})
                    list(APPEND targets kvx::${component})
                else()
                    list(APPEND missing "${kvx_${component}_hint}")
                endif()
                break()
            endif()
        endforeach()
    endforeach()
    set(${out_targets} "${targets}" PARENT_SCOPE)
    set(${out_missing} "${missing}" PARENT_SCOPE)
endfunction()

# kvx_add_program(<target> <source> [<dir>...]): an executable with the tree's warnings and whatever components its
# includes ask for. The target does not exist afterwards where one of them is missing.
function(kvx_add_program target source)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
    kvx_requirements(targets missing "${source}" ${ARGN})
    if(missing)
        list(JOIN missing ", " missing)
        message(STATUS "kvx: ${target} is not built, it needs ${missing}")
        return()
    endif()
    add_executable(${target} "${source}")
    target_link_libraries(${target} PRIVATE ${targets} kvx_warnings)
    target_include_directories(${target} PRIVATE ${ARGN})
    set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
endfunction()

# kvx_add_device_code(<target> <source.cu>): an object library of kernels that programs link.
function(kvx_add_device_code target source)
    add_library(${target} OBJECT "${source}")
    target_link_libraries(${target} PUBLIC kvx::cuda)
    # By hand: CMake 3.25 does not know that nvcc 13 can.
    target_compile_options(${target} PRIVATE -std=c++20)
    set_target_properties(${target} PROPERTIES CUDA_STANDARD_REQUIRED OFF)
endfunction()
