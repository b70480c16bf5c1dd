// Checks of values on the device. It only finds out that something is wrong; then the arguments go to the CPU, whose own
// checks say what, in the same words. All tensors are contiguous; every check waits for the stream.
#pragma once

#include "../cpu/csr_builder.h"
#include "../cpu/features.h"
#include "kernels/input_checks.cuh"
#include "launch.h"

namespace dmic {

// A word on the device in which kernels report.
class WrongFlag {
 public:
  explicit WrongFlag(const Tensor& like) : flag_(full_int64(like, 1, 0)) {}
  unsigned long long* data() { return static_cast<unsigned long long*>(flag_.mutable_data_ptr()); }
  bool is_set() const { return read_int64(flag_) != 0; }

 private:
  Tensor flag_;
};

// Calls check(progress), which must raise: a kernel has found something wrong.
template <class Check>
[[noreturn]] void raise_on_cpu(const char* op, int64_t work, const Check& check) {
  Progress progress(op, work);
  check(progress);
  progress.check();  // interrupted before it came to what is wrong
  throw std::logic_error(concat(op, ": the GPU found wrong arguments and the CPU did not; this is a bug in dmic"));
}

inline void check_finite_on_device(const char* op, const Tensor& features, void* stream,
                                   const char* name = "features") {
  const int64_t rows = features.size(0), d = features.size(1);
  if (rows * d == 0) return;
  WrongFlag wrong(features);
  check_launch(op, dmic_launch_check_finite(features.const_data_ptr<float>(), rows * d, wrong.data(), stream));
  if (!wrong.is_set()) return;
  const Tensor copy = to_cpu(features);
  raise_on_cpu(op, rows, [&](Progress& progress) {
    check_finite(progress, op, copy.const_data_ptr<float>(), rows, d, name);
  });
}

inline void check_distinct(Progress& progress, const char* op, const int32_t* neighbor_idx, int64_t k,
                           int64_t distinct_columns, int64_t first_row, int64_t last_row) {
  for_each_chunk(progress, last_row - first_row, kRowsPerStructureCheck, [&](int64_t begin, int64_t end) {
    for (int64_t i = first_row + begin; i < first_row + end; ++i)
      for (int64_t t = 0; t < distinct_columns; ++t) {
        const int32_t* list = neighbor_idx + i * k;
        DMIC_CHECK(std::find(list, list + t, list[t]) == list + t, op,
                   ": neighbor_idx must hold distinct indices in a row, got ", list[t], " twice in row ", i);
      }
  });
}

// Every index in [0, samples), and the first `distinct_columns` distinct in each of rows [first_row, last_row).
inline void check_neighbors_on_device(const char* op, const Tensor& neighbor_idx, int64_t samples,
                                      int64_t distinct_columns, int64_t first_row, int64_t last_row, void* stream) {
  const int64_t rows = neighbor_idx.size(0), k = neighbor_idx.size(1);
  if (rows * k == 0) return;
  WrongFlag wrong(neighbor_idx);
  check_launch(op, dmic_launch_check_neighbors(neighbor_idx.const_data_ptr<int32_t>(), rows, k, samples,
                                               distinct_columns, first_row, last_row, wrong.data(), stream));
  if (!wrong.is_set()) return;
  const Tensor copy = to_cpu(neighbor_idx);
  raise_on_cpu(op, rows, [&](Progress& progress) {
    check_index_range(progress, op, copy.const_data_ptr<int32_t>(), rows, k, samples);
    check_distinct(progress, op, copy.const_data_ptr<int32_t>(), k, distinct_columns, first_row, last_row);
  });
}

// What check_csr_structure asks, and with values what check_encoding does.
inline void check_rows_on_device(const char* op, const Tensor& row_ptr, int64_t num_cols, const Tensor& col_idx,
                                 const Tensor* values, void* stream) {
  const int64_t rows = row_ptr.size(0) - 1, nnz = col_idx.size(0);
  WrongFlag wrong(row_ptr);
  check_launch(op, dmic_launch_check_row_ptr(row_ptr.const_data_ptr<int64_t>(), rows, nnz, wrong.data(), stream));
  bool bad = wrong.is_set();
  if (!bad && nnz > 0) {  // row_ptr can be trusted from here on
    check_launch(op, dmic_launch_check_rows(row_ptr.const_data_ptr<int64_t>(), rows, num_cols,
                                            col_idx.const_data_ptr<int32_t>(),
                                            values ? values->const_data_ptr<int32_t>() : nullptr, wrong.data(),
                                            stream));
    bad = wrong.is_set();
  }
  if (!bad) return;
  const Tensor row_ptr_copy = to_cpu(row_ptr), col_idx_copy = to_cpu(col_idx);
  raise_on_cpu(op, rows, [&](Progress& progress) {
    const int64_t* ptr = row_ptr_copy.const_data_ptr<int64_t>();
    const int32_t* cols = col_idx_copy.const_data_ptr<int32_t>();
    if (values) check_encoding(progress, op, ptr, rows, num_cols, cols, to_cpu(*values).const_data_ptr<int32_t>(), nnz);
    else check_csr_structure(progress, op, ptr, rows, num_cols, cols, nnz);
  });
}

inline void check_csr_structure_on_device(const char* op, const Tensor& row_ptr, int64_t num_cols,
                                          const Tensor& col_idx, void* stream) {
  check_rows_on_device(op, row_ptr, num_cols, col_idx, nullptr, stream);
}

inline void check_encoding_on_device(const char* op, const Tensor& row_ptr, int64_t num_cols, const Tensor& col_idx,
                                     const Tensor& values, void* stream) {
  check_rows_on_device(op, row_ptr, num_cols, col_idx, &values, stream);
}

}  // namespace dmic
