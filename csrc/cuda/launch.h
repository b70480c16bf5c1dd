// The torch side of a launch: device guard, current stream, error check, scratch memory, and the dispatch key of the
// wrappers. Needs no CUDA header.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>

#include <array>

#include "../ops/checks.h"

// The wrappers implement the CUDA key of torch.ops.dmic. With DMIC_EMU defined they are the CPU key of
// torch.ops.dmic_emu, and their kernels run in the emulator of tests/cuda_emulator: no devices, no streams.
#ifdef DMIC_EMU
#define DMIC_CUDA_KEY CPU
#else
#define DMIC_CUDA_KEY CUDA
#endif

namespace dmic {

#ifdef DMIC_EMU
class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
};
#else
// Makes the tensor's device current for its lifetime and names its current stream.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    using CurrentStream = int32_t (*)(int32_t, void**);
    static const auto current_stream = [] {  // libtorch_cuda is loaded wherever a CUDA tensor exists
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return library ? reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    if (!current_stream || current_stream(tensor.get_device_index(), &stream_) != 0)
      throw std::runtime_error("dmic: this torch cannot name its current CUDA stream");
  }

  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};
#endif

// `error` is what a launch returned.
inline void check_launch(const char* op, const char* error) {
  if (error) throw std::runtime_error(concat(op, ": CUDA launch failed: ", error));
}

// A size that kernels keep in shared memory or in a chunk: tiny in the emulator, so that small inputs take every path that
// large ones take on a GPU.
constexpr int64_t tuned([[maybe_unused]] int64_t on_device, [[maybe_unused]] int64_t emulated) {
#ifdef DMIC_EMU
  return emulated;
#else
  return on_device;
#endif
}

// As many of `count` rows of `row_size` values as memory has room for after halving often enough, at least `least`; for
// scratch whose size is only a matter of speed. Raises what the allocation raises if not even that fits.
inline Tensor new_scratch(const Tensor& like, int64_t count, int64_t row_size, ScalarType type, int64_t least = 1) {
  for (;; count = count / 2 > least ? count / 2 : least) {
    try {
      return new_tensor(like, {count, row_size}, type);
    } catch (const std::exception&) {
      if (count <= least) throw;
    }
  }
}

// Waits for the stream and reads one int64 of a tensor on any device.
inline int64_t read_int64(const Tensor& tensor, int64_t at = 0) {
  const Tensor entry = torch::stable::select(tensor, 0, at);
  return *torch::stable::to(entry, std::nullopt, std::nullopt, torch::stable::Device("cpu")).const_data_ptr<int64_t>();
}

inline Tensor to_cpu(const Tensor& tensor) {
  return torch::stable::contiguous(
      torch::stable::to(tensor, std::nullopt, std::nullopt, torch::stable::Device("cpu")));
}

inline Tensor full_int64(const Tensor& like, int64_t count, int64_t value) {
  return torch::stable::full({count}, static_cast<double>(value), ScalarType::Long, std::nullopt, like.device());
}

// row_ptr int64 [n + 1] of rows with these lengths, int32 or int64 [n].
inline Tensor row_ptr_of(const Tensor& lengths) {
  using torch::stable::detail::from;
  Tensor row_ptr = full_int64(lengths, lengths.size(0) + 1, 0);
  std::array<StableIValue, 3> stack{from(lengths), from(int64_t{0}), from(std::optional<ScalarType>(ScalarType::Long))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack.data(), TORCH_ABI_VERSION));
  Tensor sums = torch::stable::detail::to<Tensor>(stack[0]);
  Tensor ends = torch::stable::narrow(row_ptr, 0, 1, lengths.size(0));
  torch::stable::copy_(ends, sums);
  return row_ptr;
}

}  // namespace dmic
