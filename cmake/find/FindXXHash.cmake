# SPDX-License-Identifier: Apache-2.0
# xxHash as kvx uses it: the header alone, compiled inline (XXH_INLINE_ALL), no library to link.
# Defines XXHash::headers, XXHash_FOUND, XXHash_VERSION, XXHash_INCLUDE_DIR.

find_package(PkgConfig QUIET)
if(PKG_CONFIG_FOUND)
    pkg_check_modules(PC_XXHASH QUIET libxxhash)
endif()

find_path(XXHash_INCLUDE_DIR NAMES xxhash.h HINTS ${PC_XXHASH_INCLUDEDIR} ${PC_XXHASH_INCLUDE_DIRS})
mark_as_advanced(XXHash_INCLUDE_DIR)

if(XXHash_INCLUDE_DIR)
    set(XXHash_VERSION "")
    foreach(_kvx_part IN ITEMS MAJOR MINOR RELEASE)
        file(STRINGS "${XXHash_INCLUDE_DIR}/xxhash.h" _kvx_line
             REGEX "^#[ \t]*define[ \t]+XXH_VERSION_${_kvx_part}[ \t]+[0-9]+" LIMIT_COUNT 1)
        string(REGEX MATCH "[0-9]+[ \t]*$" _kvx_line "${_kvx_line}")
        string(STRIP "${_kvx_line}" _kvx_line)
        list(APPEND XXHash_VERSION "${_kvx_line}")
    endforeach()
    list(JOIN XXHash_VERSION "." XXHash_VERSION)
    unset(_kvx_line)
    unset(_kvx_part)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(XXHash REQUIRED_VARS XXHash_INCLUDE_DIR VERSION_VAR XXHash_VERSION
    REASON_FAILURE_MESSAGE "install libxxhash-dev (Debian, Ubuntu), xxhash-devel (Fedora), or pass -DXXHash_INCLUDE_DIR=<dir of xxhash.h>")

if(XXHash_FOUND AND NOT TARGET XXHash::headers)
    add_library(XXHash::headers INTERFACE IMPORTED)
    set_target_properties(XXHash::headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${XXHash_INCLUDE_DIR}")
endif()
