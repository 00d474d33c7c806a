# SPDX-License-Identifier: Apache-2.0
# The optional components: one row each, read by the build, by the installed package and by tools/lint/layers.py.
#
#   kvx_component(NAME <target kvx::NAME> PACKAGE <find_package arguments> LINK <imported targets>
#                 INCLUDE <regex of the third-party headers it brings> HINT <what to install>)
#
# A header, test, bench or example that reaches, through its includes, a header matching INCLUDE is built with
# kvx::NAME, and left out with a message where the package is not found.

set(kvx_components "")

macro(kvx_component)
    cmake_parse_arguments(_kvx "" "NAME;INCLUDE;HINT" "PACKAGE;LINK" ${ARGN})
    list(APPEND kvx_components ${_kvx_NAME})
    set(kvx_${_kvx_NAME}_package ${_kvx_PACKAGE})
    set(kvx_${_kvx_NAME}_link ${_kvx_LINK})
    set(kvx_${_kvx_NAME}_include "${_kvx_INCLUDE}")
    set(kvx_${_kvx_NAME}_hint "${_kvx_HINT}")
endmacro()

kvx_component(NAME uring
    PACKAGE LibUring
    LINK LibUring::LibUring
    INCLUDE "liburing\\.h"
    HINT "liburing-dev (Debian, Ubuntu) or liburing-devel (Fedora)")

kvx_component(NAME openssl
    PACKAGE OpenSSL 1.1.1
    LINK OpenSSL::Crypto
    INCLUDE "openssl/.*"
    HINT "libssl-dev (Debian, Ubuntu) or openssl-devel (Fedora)")

kvx_component(NAME cuda
    PACKAGE CUDAToolkit 12.8
    LINK CUDA::cudart
    INCLUDE "cuda_runtime(_api)?\\.h"
    HINT "the runtime of the CUDA Toolkit, 12.8 or newer: cuda-cudart-dev of NVIDIA's repository (no driver and no nvcc)")

# Finds the component's package and defines kvx::<name>; sets kvx_<name>_FOUND. Extra arguments go to find_package.
macro(kvx_find_component name)
    find_package(${kvx_${name}_package} QUIET ${ARGN})
    set(kvx_${name}_FOUND TRUE)
    foreach(_kvx_target IN LISTS kvx_${name}_link)
        if(NOT TARGET ${_kvx_target})
            set(kvx_${name}_FOUND FALSE)
        endif()
    endforeach()
    unset(_kvx_target)
    if(kvx_${name}_FOUND AND NOT TARGET kvx::${name})
        add_library(kvx::${name} INTERFACE IMPORTED)
        set_property(TARGET kvx::${name} PROPERTY INTERFACE_LINK_LIBRARIES kvx::kvx ${kvx_${name}_link})
    endif()
endmacro()
