// Collects the rows of a Csr chunk by chunk in any order, then lays them out; and checks one that a user brings.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../canonical/fixed_point.h"
#include "../ops/checks.h"
#include "parallel.h"

namespace dmic {

// One chunk of rows. Workers fill `cols` and `values` row after row and push the length of each.
template <class Value>
struct CsrChunk {
  std::vector<int32_t> cols, lengths;
  std::vector<Value> values;

  void shrink() {
    cols.shrink_to_fit();
    values.shrink_to_fit();
  }
};

// Builds one row of an encoding: shares in ascending columns, zeros left out, and what they lack of 2^30 goes to the
// largest, lowest column first.
class ShareRow {
 public:
  explicit ShareRow(CsrChunk<int32_t>& chunk) : chunk_(chunk), first_(chunk.cols.size()), largest_at_(first_) {}

  void push(int64_t column, int32_t share) {
    if (share == 0) return;
    if (share > largest_) {
      largest_ = share;
      largest_at_ = chunk_.cols.size();
    }
    rest_ -= share;
    chunk_.cols.push_back(static_cast<int32_t>(column));
    chunk_.values.push_back(share);
  }

  void finish() {
    if (chunk_.cols.size() > first_) chunk_.values[largest_at_] += rest_;
    chunk_.lengths.push_back(static_cast<int32_t>(chunk_.cols.size() - first_));
  }

 private:
  CsrChunk<int32_t>& chunk_;
  const size_t first_;
  size_t largest_at_;
  int32_t largest_ = 0, rest_ = kOne;
};

// Moves one part of the chunks, the columns or the values, to where row_ptr has their rows.
template <class Value, class Part>
Tensor lay_out(Progress& progress, const Tensor& row_ptr, const std::vector<int32_t>& order,
               std::vector<CsrChunk<Value>>& chunks, std::vector<Part> CsrChunk<Value>::* part, ScalarType type) {
  const int64_t* ptr = row_ptr.const_data_ptr<int64_t>();
  Tensor laid_out = new_tensor(row_ptr, {ptr[order.size()]}, type);
  Part* out = static_cast<Part*>(laid_out.mutable_data_ptr());
  auto row = order.begin();
  for (auto& chunk : chunks) {
    auto from = (chunk.*part).begin();
    for (const int32_t length : chunk.lengths) {
      std::copy_n(from, length, out + ptr[*row++]);
      from += length;
    }
    chunk.*part = {};
    progress.poll();
  }
  return laid_out;
}

// row_ptr and col_idx. Sizes are known only after the rows are computed, so chunks are kept exactly sized and freed as
// they are laid out. order[t] is the row that was computed t-th.
template <class Value>
std::tuple<Tensor, Tensor> assemble_columns(Progress& progress, const Tensor& like, const std::vector<int32_t>& order,
                                            std::vector<CsrChunk<Value>>& chunks) {
  const int64_t rows = static_cast<int64_t>(order.size());
  Tensor row_ptr = new_tensor(like, {rows + 1}, ScalarType::Long);
  int64_t* ptr = row_ptr.mutable_data_ptr<int64_t>();
  ptr[0] = 0;
  auto row = order.begin();
  for (const auto& chunk : chunks)
    for (const int32_t length : chunk.lengths) ptr[*row++ + 1] = length;
  std::partial_sum(ptr, ptr + rows + 1, ptr);
  return {row_ptr, lay_out(progress, row_ptr, order, chunks, &CsrChunk<Value>::cols, ScalarType::Int)};
}

template <class Value>
CsrTensors assemble_csr(Progress& progress, const Tensor& like, const std::vector<int32_t>& order,
                        std::vector<CsrChunk<Value>>& chunks, ScalarType type) {
  const auto [row_ptr, col_idx] = assemble_columns(progress, like, order, chunks);
  return {row_ptr, col_idx, lay_out(progress, row_ptr, order, chunks, &CsrChunk<Value>::values, type)};
}

constexpr int64_t kRowsPerStructureCheck = 4096;

// The structure of a Csr: monotone row_ptr, ascending columns in [0, num_cols).
inline void check_csr_structure(Progress& progress, const char* op, const int64_t* row_ptr, int64_t rows,
                                int64_t num_cols, const int32_t* col_idx, int64_t nnz) {
  DMIC_CHECK(row_ptr[0] == 0, op, ": row_ptr must start at 0, got ", row_ptr[0]);
  DMIC_CHECK(row_ptr[rows] == nnz, op, ": row_ptr must end at the number of stored values (", nnz, "), got ",
             row_ptr[rows]);
  for (int64_t i = 0; i < rows; ++i)  // all of it, before any of it is trusted
    DMIC_CHECK(row_ptr[i] <= row_ptr[i + 1], op, ": row_ptr must not decrease, got ", row_ptr[i], " then ",
               row_ptr[i + 1], " at row ", i);
  for_each_chunk(progress, rows, kRowsPerStructureCheck, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t previous = -1;
      for (int64_t t = row_ptr[i]; t < row_ptr[i + 1]; previous = col_idx[t++]) {
        DMIC_CHECK(col_idx[t] >= 0 && col_idx[t] < num_cols, op, ": col_idx must be in [0, ", num_cols, "), got ",
                   col_idx[t], " in row ", i);
        DMIC_CHECK(col_idx[t] > previous, op, ": col_idx must ascend inside a row, got ", previous, " then ",
                   col_idx[t], " in row ", i);
      }
    }
  });
}

// The same, and what makes it an encoding: positive values, every non-empty row summing to exactly 2^30.
inline void check_encoding(Progress& progress, const char* op, const int64_t* row_ptr, int64_t rows, int64_t num_cols,
                           const int32_t* col_idx, const int32_t* values, int64_t nnz) {
  check_csr_structure(progress, op, row_ptr, rows, num_cols, col_idx, nnz);
  for_each_chunk(progress, rows, kRowsPerStructureCheck, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t sum = 0;
      for (int64_t t = row_ptr[i]; t < row_ptr[i + 1]; ++t) {
        DMIC_CHECK(values[t] > 0, op, ": encoding values must be positive, got ", values[t], " in row ", i);
        sum += values[t];
      }
      DMIC_CHECK(sum == 0 || sum == kOne, op, ": encoding rows must sum to 2^30 or be empty, got ", sum, " in row ", i);
    }
  });
}

// Every index of neighbor_idx [rows, k1] in [0, samples).
inline void check_index_range(Progress& progress, const char* op, const int32_t* neighbor_idx, int64_t rows, int64_t k1,
                              int64_t samples) {
  for_each_chunk(progress, rows, kRowsPerStructureCheck, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * k1; t < end * k1; ++t)
      DMIC_CHECK(neighbor_idx[t] >= 0 && neighbor_idx[t] < samples, op, ": neighbor_idx must be in [0, N), got ",
                 neighbor_idx[t], " at row ", t / k1, ", column ", t % k1, " with N=", samples);
  });
}

}  // namespace dmic
