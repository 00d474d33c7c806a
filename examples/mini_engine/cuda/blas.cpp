// SPDX-License-Identifier: Apache-2.0
#include "blas.hpp"

#include <dlfcn.h>
#include <library_types.h>

#include <stdexcept>
#include <string>

namespace mini_engine::cuda {
namespace {

// cuBLAS's C interface, as far as it is used; its header need not be there.
using handle = struct cublasContext*;
using status = int;
constexpr int plain = 0, transposed = 1;  // cublasOperation_t
constexpr int sums_in_float32 = 68;       // CUBLAS_COMPUTE_32F
constexpr int any_algorithm = -1;         // CUBLAS_GEMM_DEFAULT
constexpr std::size_t workspace_bytes = std::size_t{64} << 20;

void require(status result, const char* what) {
  if (result != 0) throw std::runtime_error(std::string(what) + ": cuBLAS error " + std::to_string(result));
}

}  // namespace

struct blas::library {
  library() {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
      file = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (file != nullptr) break;
    }
    if (file == nullptr) {
      throw std::runtime_error(
          "--device cuda needs cuBLAS 12 or 13, which was not found; install it (libcublas) or name its "
          "directory in LD_LIBRARY_PATH");
    }
    find(create, "cublasCreate_v2");
    find(destroy, "cublasDestroy_v2");
    find(set_stream, "cublasSetStream_v2");
    find(set_workspace, "cublasSetWorkspace_v2");
    find(multiply, "cublasGemmEx");
  }
  // The file stays open: what it registered with the CUDA runtime outlives it.
  ~library() {
    if (context != nullptr) destroy(context);
  }
  library(const library&) = delete;
  library& operator=(const library&) = delete;

  template <class Function>
  void find(Function& to, const char* name) {
    to = reinterpret_cast<Function>(::dlsym(file, name));
    if (to == nullptr) throw std::runtime_error(std::string("cuBLAS has no ") + name);
  }

  void* file = nullptr;
  status (*create)(handle*) = nullptr;
  status (*destroy)(handle) = nullptr;
  status (*set_stream)(handle, cudaStream_t) = nullptr;
  status (*set_workspace)(handle, void*, std::size_t) = nullptr;
  status (*multiply)(handle, int, int, int, int, int, const void*, const void*, cudaDataType, int, const void*,
                     cudaDataType, int, const void*, void*, cudaDataType, int, int, int) = nullptr;
  handle context = nullptr;
};

blas::blas(cudaStream_t stream) : library_(std::make_unique<library>()), workspace_(workspace_bytes) {
  require(library_->create(&library_->context), "cuBLAS cannot start");
  require(library_->set_stream(library_->context, stream), "cuBLAS does not take the stream");
  require(library_->set_workspace(library_->context, workspace_.data(), workspace_.bytes()),
          "cuBLAS does not take its workspace");
}

blas::~blas() = default;

void blas::multiply(const __nv_bfloat16* x, std::size_t rows, const __nv_bfloat16* w, std::size_t outputs,
                    std::size_t inputs, __nv_bfloat16* y, bool accumulate) {
  multiply(x, rows, w, outputs, inputs, y, CUDA_R_16BF, accumulate ? 1.0f : 0.0f);
}

void blas::multiply(const __nv_bfloat16* x, std::size_t rows, const __nv_bfloat16* w, std::size_t outputs,
                    std::size_t inputs, float* y) {
  multiply(x, rows, w, outputs, inputs, y, CUDA_R_32F, 0.0f);
}

// cuBLAS counts columns first: to it x is [inputs, rows], and so on.
void blas::multiply(const void* x, std::size_t rows, const void* w, std::size_t outputs, std::size_t inputs, void* y,
                    int type, float before) {
  const float one = 1.0f;
  const int m = static_cast<int>(outputs), n = static_cast<int>(rows), k = static_cast<int>(inputs);
  require(library_->multiply(library_->context, transposed, plain, m, n, k, &one, w, CUDA_R_16BF, k, x, CUDA_R_16BF, k,
                             &before, y, static_cast<cudaDataType>(type), m, sums_in_float32, any_algorithm),
          "a matrix product failed");
}

}  // namespace mini_engine::cuda
