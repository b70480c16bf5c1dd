// As much of torch's stable interface as the CPU ops use, on one thread: torch itself takes minutes under valgrind.
#pragma once

#include <any>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#define TORCH_SUCCESS 0
#define TORCH_ABI_VERSION 0

using StableIValue = uint64_t;

namespace torch::headeronly {

enum class ScalarType { Byte, Int, Long, Half, Float, Double, Bool, BFloat16 };

using IntHeaderOnlyArrayRef = std::vector<int64_t>;

inline size_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
    case ScalarType::Bool: return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16: return 2;
    case ScalarType::Int:
    case ScalarType::Float: return 4;
    default: return 8;
  }
}

}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;

// Contiguous and on the CPU, always; copies share the data.
class Tensor {
 public:
  Tensor(std::vector<int64_t> shape, ScalarType type) : shape_(std::move(shape)), type_(type) {
    num_bytes_ = bytes_of(type);
    for (const int64_t size : shape_) num_bytes_ *= static_cast<size_t>(size);
    data_ = std::make_unique_for_overwrite<std::byte[]>(num_bytes_);
  }

  int64_t dim() const { return static_cast<int64_t>(shape_.size()); }
  int64_t size(int64_t axis) const { return shape_[axis]; }
  const std::vector<int64_t>& shape() const { return shape_; }
  ScalarType scalar_type() const { return type_; }
  int device() const { return 0; }
  bool is_cuda() const { return false; }
  int get_device_index() const { return 0; }
  size_t num_bytes() const { return num_bytes_; }
  void* mutable_data_ptr() const { return data_.get(); }

  template <class Value>
  Value* mutable_data_ptr() const {
    return reinterpret_cast<Value*>(data_.get());
  }

  template <class Value>
  const Value* const_data_ptr() const {
    return reinterpret_cast<const Value*>(data_.get());
  }

 private:
  std::vector<int64_t> shape_;
  ScalarType type_;
  size_t num_bytes_;
  std::shared_ptr<std::byte[]> data_;
};

inline Tensor contiguous(const Tensor& tensor) { return tensor; }

inline Tensor clone(const Tensor& tensor) {
  Tensor copy(tensor.shape(), tensor.scalar_type());
  std::memcpy(copy.mutable_data_ptr(), tensor.mutable_data_ptr(), tensor.num_bytes());
  return copy;
}

namespace detail {

inline StableIValue from(const Tensor&) { return 0; }
inline StableIValue from(const std::vector<int64_t>& shape) { return reinterpret_cast<StableIValue>(&shape); }
inline StableIValue from(std::optional<ScalarType> type) { return static_cast<StableIValue>(*type); }
inline StableIValue from(std::nullopt_t) { return 0; }

template <class T>
T to(StableIValue value) {
  const std::unique_ptr<T> owned(reinterpret_cast<T*>(value));
  return *owned;
}

}  // namespace detail

inline Tensor new_zeros(const Tensor&, std::initializer_list<int64_t> shape, ScalarType type) {
  Tensor tensor(shape, type);
  std::memset(tensor.mutable_data_ptr(), 0, tensor.num_bytes());
  return tensor;
}

inline int64_t get_num_threads() { return 1; }

template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t, const Body& body) {
  body(begin, end);
}

// What STABLE_TORCH_LIBRARY_IMPL registers: function pointers by name of the op.
struct Library {
  std::map<std::string, std::any> functions;

  template <class Function>
  void impl(const char* name, Function* function) {
    functions[name] = function;
  }
};

inline Library& library() {
  static Library ops;
  return ops;
}

struct Registration {
  explicit Registration(void (*add)(Library&)) { add(library()); }
};

}  // namespace torch::stable

// Of aten::new_empty, the only one that is called.
inline int torch_call_dispatcher(const char*, const char*, StableIValue* stack, uint64_t) {
  const auto& shape = *reinterpret_cast<const std::vector<int64_t>*>(stack[1]);
  stack[0] = reinterpret_cast<StableIValue>(
      new torch::stable::Tensor(shape, static_cast<torch::stable::ScalarType>(stack[2])));
  return TORCH_SUCCESS;
}

#define TORCH_BOX(function) function
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m)                    \
  static void register_ops(torch::stable::Library& m);             \
  static const torch::stable::Registration registered(register_ops); \
  static void register_ops(torch::stable::Library& m)
