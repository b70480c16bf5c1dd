// Collects the rows of a Csr chunk by chunk in any order, then lays them out; and checks one that a user brings.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "../canonical/fixed_point.h"
#include "../ops/checks.h"
#include "parallel.h"

namespace dmic {

// One chunk of consecutive rows. Workers fill `cols` and `values` row after row and push the length of each.
template <class Value>
struct CsrChunk {
  std::vector<int32_t> cols, lengths;
  std::vector<Value> values;
};

// Sizes are known only after the rows are computed, so chunks are kept exactly sized and freed as they are laid out.
template <class Value>
CsrTensors assemble_csr(const Tensor& like, int64_t rows, std::vector<CsrChunk<Value>>& chunks, ScalarType type) {
  Tensor row_ptr = new_tensor(like, {rows + 1}, ScalarType::Long);
  int64_t* ptr = row_ptr.mutable_data_ptr<int64_t>();
  int64_t total = 0, row = 0;
  ptr[0] = 0;
  for (const auto& chunk : chunks)
    for (const int32_t length : chunk.lengths) ptr[++row] = total += length;
  Tensor col_idx = new_tensor(like, {total}, ScalarType::Int);
  Tensor values = new_tensor(like, {total}, type);
  int32_t* cols_out = col_idx.mutable_data_ptr<int32_t>();
  Value* values_out = static_cast<Value*>(values.mutable_data_ptr());
  for (auto& chunk : chunks) {
    cols_out = std::copy(chunk.cols.begin(), chunk.cols.end(), cols_out);
    values_out = std::copy(chunk.values.begin(), chunk.values.end(), values_out);
    chunk = {};
  }
  return {row_ptr, col_idx, values};
}

// The structure of a Csr with one row per sample: monotone row_ptr, ascending columns in [0, cols).
inline void check_csr_structure(const char* op, const int64_t* row_ptr, int64_t rows, const int32_t* col_idx,
                                int64_t nnz, int64_t cols) {
  DMIC_CHECK(row_ptr[0] == 0, op, ": row_ptr must start at 0, got ", row_ptr[0]);
  DMIC_CHECK(row_ptr[rows] == nnz, op, ": row_ptr must end at the number of stored values (", nnz, "), got ",
             row_ptr[rows]);
  for (int64_t i = 0; i < rows; ++i)  // all of it, before any of it is trusted
    DMIC_CHECK(row_ptr[i] <= row_ptr[i + 1], op, ": row_ptr must not decrease, got ", row_ptr[i], " then ",
               row_ptr[i + 1], " at row ", i);
  for (int64_t i = 0; i < rows; ++i) {
    int64_t previous = -1;
    for (int64_t t = row_ptr[i]; t < row_ptr[i + 1]; previous = col_idx[t++]) {
      DMIC_CHECK(col_idx[t] >= 0 && col_idx[t] < cols, op, ": col_idx must be in [0, N), got ", col_idx[t],
                 " in row ", i, " with N=", cols);
      DMIC_CHECK(col_idx[t] > previous, op, ": col_idx must ascend inside a row, got ", previous, " then ", col_idx[t],
                 " in row ", i);
    }
  }
}

// The same, and what makes it an encoding: positive values, every non-empty row summing to exactly 2^30.
inline void check_encoding(const char* op, const int64_t* row_ptr, int64_t rows, const int32_t* col_idx,
                           const int32_t* values, int64_t nnz) {
  check_csr_structure(op, row_ptr, rows, col_idx, nnz, rows);
  for (int64_t i = 0; i < rows; ++i) {
    int64_t sum = 0;
    for (int64_t t = row_ptr[i]; t < row_ptr[i + 1]; ++t) {
      DMIC_CHECK(values[t] > 0, op, ": encoding values must be positive, got ", values[t], " in row ", i);
      sum += values[t];
    }
    DMIC_CHECK(sum == 0 || sum == kOne, op, ": encoding rows must sum to 2^30 or be empty, got ", sum, " in row ", i);
  }
}

inline void check_index_range(const char* op, const int32_t* neighbor_idx, int64_t rows, int64_t k1) {
  for (int64_t t = 0; t < rows * k1; ++t)
    DMIC_CHECK(neighbor_idx[t] >= 0 && neighbor_idx[t] < rows, op, ": neighbor_idx must be in [0, N), got ",
               neighbor_idx[t], " at row ", t / k1, ", column ", t % k1, " with N=", rows);
}

}  // namespace dmic
