// The one door for tensors: a torch tensor or a NumPy array becomes a pointer, a dtype, sizes,
// strides and a device. Nothing is copied, nothing is owned; the caller keeps the object alive.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/types.hpp"

namespace gossamer {

enum class Kind { f32, f64, bf16, u8, boolean, i32, i64, other };

struct Tensor {
  void* data = nullptr;
  Kind kind = Kind::other;
  int rank = 0;
  static constexpr int most_rank = 5;
  std::int64_t shape[most_rank] = {};
  std::int64_t strides[most_rank] = {};  // in elements
  std::string dtype_name;                // only when kind is `other`
  int device = -1;                       // its number; -1 on the CPU

  std::int64_t numel() const noexcept {
    std::int64_t count = 1;
    for (int i = 0; i < rank; ++i) count *= shape[i];
    return count;
  }
  bool contiguous() const noexcept;
  std::string dtype() const;  // as a message shows it
  Matrix matrix() const noexcept { return {data, shape[0], shape[1], strides[0], strides[1]}; }
};

const char* name_of(Kind kind) noexcept;

// The device whose kernels this module holds, "cpu" or "cuda": tensors on another are refused.
extern const char* const module_device;
std::string device_name(int device);

// torch.set_num_threads reaches a Python thread when that thread first asks torch for its number;
// a thread that calls a kernel before any torch operator has not asked yet.
void adopt_torch_threads();

// `who` names the argument in errors. Throws DTypeError (not an array), DeviceError (not on
// module_device), ShapeError (more than `most` dimensions), ArgumentError (read-only, unaligned).
Tensor read_tensor(pybind11::handle object, const char* who, bool writable = false, int most = 2);

// read_tensor and the checks that most arguments share: rank, and a contiguous vector of `kind`.
Tensor read_matrix(pybind11::handle object, const char* who, bool writable = false);
Tensor read_vector(pybind11::handle object, const char* who, Kind kind, bool writable = false);

// A contiguous matrix of a known shape and dtype.
std::string shape_of(std::int64_t rows, std::int64_t cols);
Tensor read_block(pybind11::handle object, const char* who, Kind kind, std::int64_t rows,
                  std::int64_t cols, bool writable = false);

// The floating dtype that a kernel can take. Throws DTypeError.
DType float_dtype(const Tensor& tensor, const char* who);

}  // namespace gossamer
