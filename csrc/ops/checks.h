// Argument checks and tensor helpers shared by every op. A user's mistake raises std::invalid_argument, which
// reaches Python as ValueError with exactly the text given here: `<op>: <argument> must be ..., got <value>`.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

namespace dmic {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using CsrTensors = std::tuple<Tensor, Tensor, Tensor>;  // row_ptr, col_idx, values

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

#define DMIC_CHECK(condition, ...) \
  do {                             \
    if (!(condition)) throw std::invalid_argument(::dmic::concat(__VA_ARGS__)); \
  } while (false)

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    default: return "another dtype";
  }
}

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) text << (axis ? ", " : "") << tensor.size(axis);
  text << "]";
  return text.str();
}

inline void check_tensor(const char* op, const char* name, const Tensor& tensor, int64_t dim, ScalarType type) {
  DMIC_CHECK(tensor.dim() == dim, op, ": ", name, " must have ", dim, dim == 1 ? " axis" : " axes", ", got shape ",
             shape_text(tensor));
  DMIC_CHECK(tensor.scalar_type() == type, op, ": ", name, " must be ", dtype_name(type), ", got ",
             dtype_name(tensor.scalar_type()));
}

inline std::string device_text(const Tensor& tensor) {
  return tensor.is_cuda() ? concat("cuda:", tensor.get_device_index()) : "cpu";
}

// A kernel follows the pointers of all its arguments on the device of the first.
inline void check_same_device(const char* op, const char* name, const Tensor& tensor, const char* first_name,
                              const Tensor& first) {
  DMIC_CHECK(tensor.device() == first.device(), op, ": ", name, " must be on ", device_text(first), " like ", first_name,
             ", got ", device_text(tensor));
}

constexpr int64_t kMaxSamples = (1ll << 31) - 1;  // indices are int32

inline void check_features(const char* op, const Tensor& features, const char* name = "features") {
  check_tensor(op, name, features, 2, ScalarType::Float);
  DMIC_CHECK(features.size(0) <= kMaxSamples, op, ": ", name, " must have fewer than 2^31 rows, got ",
             features.size(0));
  DMIC_CHECK(features.size(1) <= 1 << 20, op, ": ", name, " must have at most 2^20 columns, got ", features.size(1));
}

inline void check_neighbor_idx(const char* op, const Tensor& neighbor_idx, int64_t rows) {
  check_tensor(op, "neighbor_idx", neighbor_idx, 2, ScalarType::Int);
  DMIC_CHECK(neighbor_idx.size(0) == rows, op, ": neighbor_idx must have one row per sample (", rows, "), got shape ",
             shape_text(neighbor_idx));
}

// Which entries of a matrix are stored.
inline void check_pattern(const char* op, const Tensor& row_ptr, const Tensor& col_idx) {
  check_tensor(op, "row_ptr", row_ptr, 1, ScalarType::Long);
  check_tensor(op, "col_idx", col_idx, 1, ScalarType::Int);
  check_same_device(op, "col_idx", col_idx, "row_ptr", row_ptr);
  DMIC_CHECK(row_ptr.size(0) >= 1, op, ": row_ptr must have at least one entry, got shape [0]");
  DMIC_CHECK(row_ptr.size(0) - 1 <= kMaxSamples, op, ": row_ptr must describe fewer than 2^31 rows, got ",
             row_ptr.size(0) - 1);
}

inline void check_csr(const char* op, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                      ScalarType value_type, const char* name = "values") {
  check_pattern(op, row_ptr, col_idx);
  check_tensor(op, name, values, 1, value_type);
  check_same_device(op, name, values, "row_ptr", row_ptr);
  DMIC_CHECK(col_idx.size(0) == values.size(0), op, ": col_idx and ", name, " must have the same length, got ",
             col_idx.size(0), " and ", values.size(0));
}

// num_cols -1 stands for one column per row.
inline void check_num_cols(const char* op, int64_t num_cols) {
  DMIC_CHECK(num_cols >= -1 && num_cols <= kMaxSamples, op, ": num_cols must be in [0, 2^31), or -1, got ", num_cols);
}

inline void check_ids(const char* op, const char* name, const std::optional<Tensor>& ids, int64_t rows) {
  if (!ids) return;
  check_tensor(op, name, *ids, 1, ScalarType::Long);
  DMIC_CHECK(ids->size(0) == rows, op, ": ", name, " must have one id per sample (", rows, "), got ", ids->size(0));
}

// Memory ran out. What is only for speed is tried again with less.
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Why the last call of torch by this thread failed, in one line; nullptr before torch 2.13, which does not tell.
inline const char* torch_error() {
  using Message = const char* (*)();
  static const auto message =
      reinterpret_cast<Message>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  return message ? message() : nullptr;
}

// With unknown values, on the device of `like`. Not torch::stable::new_empty, which prints a page for every failure.
inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType type) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(like),         from(shape),        from(std::optional<ScalarType>(type)),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  if (torch_call_dispatcher("aten::new_empty", "", stack.data(), TORCH_ABI_VERSION) == TORCH_SUCCESS)
    return torch::stable::detail::to<Tensor>(stack[0]);
  const char* reason = torch_error();
  std::ostringstream text;
  for (const int64_t size : shape) text << (text.tellp() > 0 ? ", " : "") << size;
  const std::string what = concat(dtype_name(type), " [", text.str(), "]");
  const std::string_view told = reason ? reason : "out of memory";
  for (const char* ran_out : {"out of memory", "not enough memory", "can't allocate memory"})
    if (told.find(ran_out) != told.npos) throw OutOfMemory(concat("out of memory for ", what));
  throw std::runtime_error(concat("cannot allocate ", what, ": ", told.substr(0, told.find('\n'))));
}

}  // namespace dmic
