// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dlfcn.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

namespace kvx::cuda {

// What libcufile's functions take and return, as cufile.h 1.15 lays it out: the header comes with a package of its own,
// the library with most drivers' toolkits, and neither is needed to build.

/// CUfileError_t.
/// Shape   err: 0, or a CUfileOpError from 5001 on; cu_err: the driver's code where err is 5011
struct cufile_error {
  int err = 0;
  int cu_err = 0;
};
static_assert(sizeof(cufile_error) == 8 && offsetof(cufile_error, cu_err) == 4);

inline constexpr int cufile_base_error = 5000;           // CUFILEOP_BASE_ERR
inline constexpr int cufile_driver_already_open = 5026;  // CU_FILE_DRIVER_ALREADY_OPEN

/// CUfileDescr_t of a file descriptor.
struct cufile_descriptor {
  unsigned type = 1;  // CU_FILE_HANDLE_TYPE_OPAQUE_FD
  union {
    void* other = nullptr;
    int fd;
  } handle;
  const void* fs_ops = nullptr;
};
static_assert(sizeof(cufile_descriptor) == 24 && offsetof(cufile_descriptor, handle) == 8 &&
              offsetof(cufile_descriptor, fs_ops) == 16);

/// CUfileDrvProps_t, and room for what later versions may append.
struct cufile_properties {
  struct {
    unsigned major_version = 0;
    unsigned minor_version = 0;
    std::size_t poll_thresh_size = 0;
    std::size_t max_direct_io_size = 0;
    unsigned dstatusflags = 0;
    unsigned dcontrolflags = 0;
  } nvfs;
  unsigned fflags = 0;
  unsigned max_device_cache_size = 0;
  unsigned per_buffer_cache_size = 0;
  unsigned max_device_pinned_mem_size = 0;
  unsigned max_batch_io_size = 0;
  unsigned max_batch_io_timeout_msecs = 0;
  unsigned appended[50] = {};

  /// Neither the kernel module nor peer-to-peer access to drives: cuFile then reads into memory of the host and copies.
  [[nodiscard]] bool compatibility_mode() const noexcept {
    constexpr unsigned nvme_p2p_supported = 11;  // CU_FILE_NVME_P2P_SUPPORTED, a bit's number
    return nvfs.major_version == 0 && nvfs.minor_version == 0 && (nvfs.dstatusflags >> nvme_p2p_supported & 1U) == 0;
  }
};
static_assert(sizeof(std::size_t) != 8 ||
              (offsetof(cufile_properties, nvfs.poll_thresh_size) == 8 &&
               offsetof(cufile_properties, nvfs.dstatusflags) == 24 && offsetof(cufile_properties, fflags) == 32 &&
               offsetof(cufile_properties, max_batch_io_timeout_msecs) == 52 &&
               offsetof(cufile_properties, appended) == 56));

struct cufile_library;

/// The functions of libcufile that kvx calls. Whoever links the library fills the table from its header, with
/// `reinterpret_cast<decltype(cufile_api::read)>(&cuFileRead)` and so on.
/// Thread  any, concurrently
/// Source  cufile.h
struct cufile_api {
  cufile_error (*driver_open)() = nullptr;
  cufile_error (*driver_get_properties)(cufile_properties* to) = nullptr;
  cufile_error (*handle_register)(void** handle, cufile_descriptor* file) = nullptr;
  void (*handle_deregister)(void* handle) = nullptr;
  cufile_error (*buf_register)(const void* base, std::size_t bytes, int flags) = nullptr;
  cufile_error (*buf_deregister)(const void* base) = nullptr;
  /// Bytes read; -1: errno says why; below: minus a CUfileOpError.
  ::ssize_t (*read)(void* handle, void* base, std::size_t bytes, ::off_t file_offset, ::off_t base_offset) = nullptr;

  /// Finds the library at run time; it is never unloaded.
  /// Cost    a few milliseconds, the driver is not opened
  [[nodiscard]] static cufile_library load(const char* name = "libcufile.so.0");
};

struct cufile_library {
  std::optional<cufile_api> api;
  std::string text;  ///< why there is none, and what helps
};

inline cufile_library cufile_api::load(const char* name) {
  void* const library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = ::dlerror();
    return {std::nullopt, std::string("cuFile: ") + (why != nullptr ? why : name) +
                              "; install libcufile of the CUDA Toolkit (GPUDirect Storage), or read through the host"};
  }
  cufile_api found;
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, symbol));
    if (function == nullptr && missing == nullptr) missing = symbol;
  };
  find(found.driver_open, "cuFileDriverOpen");
  find(found.driver_get_properties, "cuFileDriverGetProperties");
  find(found.handle_register, "cuFileHandleRegister");
  find(found.handle_deregister, "cuFileHandleDeregister");
  find(found.buf_register, "cuFileBufRegister");
  find(found.buf_deregister, "cuFileBufDeregister");
  find(found.read, "cuFileRead");
  if (missing != nullptr) {
    return {std::nullopt, std::string("cuFile: ") + name + " has no " + missing +
                              "; install libcufile of CUDA 12 or newer, or read through the host"};
  }
  return {found, {}};
}

/// A code of cuFile's with its meaning, where that is one that operators meet.
[[nodiscard]] inline std::string cufile_text(const cufile_error& code) {
  const auto meaning = [&]() -> const char* {
    switch (code.err) {
      case 5001:
        return "nvidia-fs is not loaded, and cufile.json does not allow compatibility mode";
      case 5004:
      case 5005:
        return "another version of nvidia-fs is loaded";
      case 5007:
        return "GPUDirect Storage is not supported on this platform";
      case 5008:
        return "not supported on this file";
      case 5009:
        return "not supported on this GPU";
      case 5011:
        return "the CUDA driver failed";
      case 5018:
        return "unsupported type of file";
      case 5019:
        return "unsupported flags of the open file";
      case 5020:
        return "the file is not open for direct I/O";
      case 5025:
        return "permission denied";
      case 5027:
        return "the file is not registered, as on file systems that cuFile does not take";
      case 5030:
        return "internal error";
      case 5033:
        return "nvidia-fs cannot be set up";
      case 5034:
        return "cufile.json forbids it for this file";
      default:
        return "see CUfileOpError in cufile.h";
    }
  }();
  std::string text = "error " + std::to_string(code.err) + ": " + meaning;
  if (code.cu_err != 0) text += ", CUresult " + std::to_string(code.cu_err);
  return text;
}

}  // namespace kvx::cuda
