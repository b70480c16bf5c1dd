// The torch side of a launch: device guard, current stream, error check, and the dispatch key of the wrappers. Needs no
// CUDA header.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>

#include "tensors.h"

// The wrappers implement the CUDA key of torch.ops.dmic. With DMIC_EMU defined they are the CPU key of
// torch.ops.dmic_emu, and their kernels run in the emulator of tests/cuda_emulator: no devices, and a stream for each op.
#ifdef DMIC_EMU
#define DMIC_CUDA_KEY CPU
#else
#define DMIC_CUDA_KEY CUDA
#endif

namespace dmic {

#ifdef DMIC_EMU
extern "C" void* dmic_emulator_set_stream(void* stream);  // of this thread; returns the one before

// Makes a stream of its own current for its lifetime: the emulator refuses a launch on any other.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor&) : before_(dmic_emulator_set_stream(this)) {}
  CurrentDevice(const CurrentDevice&) = delete;
  ~CurrentDevice() { dmic_emulator_set_stream(before_); }

  void* stream() const { return const_cast<CurrentDevice*>(this); }

 private:
  void* const before_;
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

}  // namespace dmic
