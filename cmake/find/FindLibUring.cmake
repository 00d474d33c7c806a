# SPDX-License-Identifier: Apache-2.0
# liburing. Defines LibUring::LibUring, LibUring_FOUND, LibUring_VERSION, LibUring_INCLUDE_DIR, LibUring_LIBRARY.

find_package(PkgConfig QUIET)
if(PKG_CONFIG_FOUND)
    pkg_check_modules(PC_LIBURING QUIET liburing)
endif()

find_path(LibUring_INCLUDE_DIR NAMES liburing.h HINTS ${PC_LIBURING_INCLUDEDIR} ${PC_LIBURING_INCLUDE_DIRS})
find_library(LibUring_LIBRARY NAMES uring HINTS ${PC_LIBURING_LIBDIR} ${PC_LIBURING_LIBRARY_DIRS})
mark_as_advanced(LibUring_INCLUDE_DIR LibUring_LIBRARY)

# The header has carried its version only since 2.3; pkg-config knows older ones.
set(LibUring_VERSION "${PC_LIBURING_VERSION}")
if(NOT LibUring_VERSION AND LibUring_INCLUDE_DIR AND EXISTS "${LibUring_INCLUDE_DIR}/liburing/io_uring_version.h")
    file(STRINGS "${LibUring_INCLUDE_DIR}/liburing/io_uring_version.h" _kvx_lines REGEX "IO_URING_VERSION_(MAJOR|MINOR)")
    string(REGEX REPLACE ".*MAJOR[ \t]+([0-9]+).*MINOR[ \t]+([0-9]+).*" "\\1.\\2" LibUring_VERSION "${_kvx_lines}")
    unset(_kvx_lines)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibUring REQUIRED_VARS LibUring_LIBRARY LibUring_INCLUDE_DIR VERSION_VAR LibUring_VERSION
    REASON_FAILURE_MESSAGE "install liburing-dev (Debian, Ubuntu) or liburing-devel (Fedora)")

if(LibUring_FOUND AND NOT TARGET LibUring::LibUring)
    add_library(LibUring::LibUring UNKNOWN IMPORTED)
    set_target_properties(LibUring::LibUring PROPERTIES
        IMPORTED_LOCATION "${LibUring_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${LibUring_INCLUDE_DIR}")
endif()
