// Tensors that the wrappers make. What grows with the input is allocated by new_tensor, whose error says that memory ran
// out, and filled in place: torch's own error may not say why a call failed, and says at length where.
#pragma once

#include <torch/csrc/stable/device.h>

#include <array>

#include "../ops/checks.h"

namespace dmic {

// As many of `count` rows, at least one, of `row_size` values as memory has room for after halving often enough; for
// scratch whose size is only a matter of speed. If not even one row fits, the error says how many bytes it takes.
inline Tensor new_scratch(const Tensor& like, int64_t count, int64_t row_size, ScalarType type) {
  for (;; count /= 2) {
    try {
      return new_tensor(like, {count, row_size}, type);
    } catch (const OutOfMemory& error) {
      if (count > 1) continue;
      const int64_t bytes = row_size * static_cast<int64_t>(new_tensor(like, {0}, type).element_size());
      throw OutOfMemory(concat(error.what(), ": it takes at least ", bytes, " bytes"));
    }
  }
}

inline Tensor new_zeros(const Tensor& like, int64_t count, ScalarType type) {
  Tensor zeros = new_tensor(like, {count}, type);
  return torch::stable::zero_(zeros);
}

inline Tensor full_int64(const Tensor& like, int64_t count, int64_t value) {
  return torch::stable::fill_(new_tensor(like, {count}, ScalarType::Long), static_cast<double>(value));
}

// A contiguous copy of a tensor with one or two axes.
inline Tensor copy_of(const Tensor& tensor) {
  Tensor copy = tensor.dim() == 1 ? new_tensor(tensor, {tensor.size(0)}, tensor.scalar_type())
                                  : new_tensor(tensor, {tensor.size(0), tensor.size(1)}, tensor.scalar_type());
  return torch::stable::copy_(copy, tensor);
}

inline Tensor as_dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : copy_of(tensor); }

inline std::optional<Tensor> as_dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(as_dense(*tensor)) : std::nullopt;
}

inline Tensor to_cpu(const Tensor& tensor) {
  return as_dense(torch::stable::to(tensor, std::nullopt, std::nullopt, torch::stable::Device("cpu")));
}

// Waits for the stream and reads one int64 of a tensor on any device.
inline int64_t read_int64(const Tensor& tensor, int64_t at = 0) {
  return *to_cpu(torch::stable::select(tensor, 0, at)).const_data_ptr<int64_t>();
}

// row_ptr int64 [n + 1] of rows with these lengths, int32 or int64 [n].
inline Tensor row_ptr_of(const Tensor& lengths) {
  using torch::stable::detail::from;
  Tensor row_ptr = full_int64(lengths, lengths.size(0) + 1, 0);
  Tensor ends = torch::stable::narrow(row_ptr, 0, 1, lengths.size(0));
  torch::stable::copy_(ends, lengths);
  std::array<StableIValue, 3> stack{from(ends), from(int64_t{0}), from(std::optional<ScalarType>())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum_", "", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the call returns a second handle of `ends`
  return row_ptr;
}

}  // namespace dmic
