// One row at a time: integer sums in a dense accumulator, and a two-level bit set of the columns touched, which gives
// them back in ascending order without a sort.
// Operations: M k2 |S| integer multiply-adds, M k2^2 / 2 compares, one division per stored value. Scratch: 4 M + 8 N
// bytes, 16 N more while ids are numbered, 4 N more for a part of a gallery, and 8.2 num_cols and 4 a camera per thread.
#include "../ops/invariant_expansion.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#include "../canonical/fixed_point.h"
#include "csr_builder.h"
#include "neighbor_order.h"
#include "parallel.h"

namespace dmic {
namespace {

constexpr int64_t kRowsPerChunk = 32;

// A set of columns that lists its members in ascending order and empties itself on the way.
class ColumnSet {
 public:
  explicit ColumnSet(int64_t columns) : words_((columns + 63) / 64), summary_((words_.size() + 63) / 64) {}

  // Columns that are inserted must be within these.
  void widen(int64_t first, int64_t last) {
    first_ = std::min(first_, first / 4096);
    last_ = std::max(last_, last / 4096);
  }

  void insert(int64_t column) {
    words_[column / 64] |= 1ull << (column % 64);
    summary_[column / 4096] |= 1ull << (column / 64 % 64);
  }

  template <class Visit>
  void drain(const Visit& visit) {
    for (int64_t s = first_; s <= last_; ++s) {  // one word per 4,096 columns
      for (uint64_t outer = summary_[s]; outer; outer &= outer - 1) {
        const int64_t word = s * 64 + std::countr_zero(outer);
        for (uint64_t bits = words_[word]; bits; bits &= bits - 1) visit(word * 64 + std::countr_zero(bits));
        words_[word] = 0;
      }
      summary_[s] = 0;
    }
    first_ = kNone;
    last_ = -1;
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::vector<uint64_t> words_, summary_;
  int64_t first_ = kNone, last_ = -1;
};

// Samples by modality and camera, both numbered from 0; a camera that sees two modalities is two.
struct Groups {
  std::vector<int32_t> camera, modality;  // [N]
  int64_t cameras = 0, modalities = 0;    // how many there are

  // Ids may be null: all are the same.
  Groups(const int64_t* camera_ids, const int64_t* modality_ids, int64_t samples) {
    const auto id = [](const int64_t* ids, int64_t j) { return ids ? ids[j] : 0; };
    modalities = number(modality, samples, [&](int64_t j) { return id(modality_ids, j); });
    cameras = number(camera, samples, [&](int64_t j) { return std::pair(modality[j], id(camera_ids, j)); });
  }

 private:
  template <class Key>
  static int64_t number(std::vector<int32_t>& numbers, int64_t samples, const Key& key) {
    std::vector<decltype(key(0))> distinct(samples);
    for (int64_t j = 0; j < samples; ++j) distinct[j] = key(j);
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    numbers.resize(samples);
    for (int64_t j = 0; j < samples; ++j)
      numbers[j] = std::lower_bound(distinct.begin(), distinct.end(), key(j)) - distinct.begin();
    return static_cast<int64_t>(distinct.size());
  }
};

struct Expansion {
  const int64_t* row_ptr;
  const int32_t* col_idx;
  const int32_t* values;
  const int32_t* neighbor_idx;
  int64_t rows, num_cols, lists, k1, k2;
};

struct Worker {
  Worker(int64_t num_cols, const Groups& groups)
      : sums(num_cols), touched(num_cols), in_camera(groups.cameras), cameras_of(groups.modalities) {}
  std::vector<uint64_t> sums;  // [num_cols], zero between rows
  ColumnSet touched;
  std::vector<int32_t> members;
  std::vector<uint64_t> numerators;
  std::vector<int32_t> in_camera, cameras_of;  // of a row: members in each camera, cameras in each modality; zero between
};

// Numerators of the nested means over the members of row i that have an encoding; returns their sum.
uint64_t weigh_members(const Expansion& in, const Groups& groups, int64_t i, Worker& worker) {
  auto& members = worker.members;
  members.clear();
  uint64_t modalities = 0;
  for (int64_t t = 0; t < in.k2; ++t) {
    const int32_t* list = in.neighbor_idx + i * in.k1;
    const int32_t j = list[t];
    int before = 0;  // no early exit: the loop vectorises
    for (int64_t s = 0; s < t; ++s) before |= list[s] == j;
    DMIC_CHECK(!before, "invariant_expansion: neighbor_idx must hold distinct indices in a row, got ", j,
               " twice in row ", i);
    if (in.row_ptr[j] == in.row_ptr[j + 1]) continue;
    members.push_back(j);
    if (worker.in_camera[groups.camera[j]]++ == 0) modalities += worker.cameras_of[groups.modality[j]]++ == 0;
  }
  worker.numerators.resize(members.size());
  uint64_t total = 0;
  for (size_t t = 0; t < members.size(); ++t) {
    const uint64_t cameras = worker.cameras_of[groups.modality[members[t]]];
    const uint64_t alike = worker.in_camera[groups.camera[members[t]]];
    total += worker.numerators[t] = share_numerator(modalities, cameras, alike);
  }
  for (const int32_t j : members) worker.in_camera[groups.camera[j]] = worker.cameras_of[groups.modality[j]] = 0;
  return total;
}

void expand_row(const Expansion& in, const Groups& groups, int64_t i, Worker& worker, CsrChunk<int32_t>& chunk) {
  const uint64_t total = weigh_members(in, groups, i, worker);
  if (total == 0) {
    chunk.lengths.push_back(0);
    return;
  }
  for (size_t t = 0; t < worker.members.size(); ++t) {
    const int32_t j = worker.members[t];
    const uint64_t numerator = worker.numerators[t];
    const int64_t first = in.row_ptr[j], last = in.row_ptr[j + 1];
    worker.touched.widen(in.col_idx[first], in.col_idx[last - 1]);
    for (int64_t p = first; p < last; ++p) {
      worker.sums[in.col_idx[p]] += numerator * static_cast<uint64_t>(in.values[p]);
      worker.touched.insert(in.col_idx[p]);
    }
  }
  const double reciprocal = 1.0 / static_cast<double>(total);
  ShareRow row(chunk);
  worker.touched.drain([&](int64_t column) {
    row.push(column, divide_share(std::exchange(worker.sums[column], 0), total, reciprocal));
  });
  row.finish();
}

CsrTensors invariant_expansion_cpu(const Tensor& row_ptr_in, const Tensor& col_idx_in, const Tensor& values_in,
                                   const Tensor& neighbor_idx_in, int64_t k2,
                                   const std::optional<Tensor>& camera_ids_in,
                                   const std::optional<Tensor>& modality_ids_in, int64_t num_cols) {
  check_invariant_expansion_args(row_ptr_in, col_idx_in, values_in, neighbor_idx_in, k2, camera_ids_in, modality_ids_in,
                                 num_cols);
  const Tensor row_ptr = torch::stable::contiguous(row_ptr_in), col_idx = torch::stable::contiguous(col_idx_in);
  const Tensor values = torch::stable::contiguous(values_in), neighbor_idx = torch::stable::contiguous(neighbor_idx_in);
  std::optional<Tensor> camera_ids, modality_ids;
  if (camera_ids_in) camera_ids = torch::stable::contiguous(*camera_ids_in);
  if (modality_ids_in) modality_ids = torch::stable::contiguous(*modality_ids_in);
  const Expansion in{row_ptr.const_data_ptr<int64_t>(),
                     col_idx.const_data_ptr<int32_t>(),
                     values.const_data_ptr<int32_t>(),
                     neighbor_idx.const_data_ptr<int32_t>(),
                     row_ptr.size(0) - 1,
                     num_cols < 0 ? row_ptr.size(0) - 1 : num_cols,
                     neighbor_idx.size(0),
                     neighbor_idx.size(1),
                     k2};
  const bool whole = num_cols < 0 && in.lists == in.rows;  // list i is that of row i
  Progress progress("invariant_expansion", in.lists);
  check_encoding(progress, "invariant_expansion", in.row_ptr, in.rows, in.num_cols, in.col_idx, in.values,
                 col_idx.size(0));
  check_index_range(progress, "invariant_expansion", in.neighbor_idx, in.lists, in.k1, in.rows);
  const int64_t* cameras = camera_ids ? camera_ids->const_data_ptr<int64_t>() : nullptr;
  const int64_t* modalities = modality_ids ? modality_ids->const_data_ptr<int64_t>() : nullptr;
  check_not_negative("camera_ids", cameras, in.rows);
  check_not_negative("modality_ids", modalities, in.rows);
  if (whole && k2 == 1) {
    progress.finish();  // outputs never alias inputs
    return {torch::stable::clone(row_ptr), torch::stable::clone(col_idx), torch::stable::clone(values)};
  }
  const std::vector<int32_t> order = whole ? order_by_neighbors(in.neighbor_idx, in.lists, in.k1)
                                           : order_by_neighbors(in.neighbor_idx, in.lists, in.k1, in.rows);
  const Groups groups(cameras, modalities, in.rows);
  std::vector<CsrChunk<int32_t>> chunks((in.lists + kRowsPerChunk - 1) / kRowsPerChunk);
  for_each_chunk(
      progress, in.lists, kRowsPerChunk, [&] { return Worker(in.num_cols, groups); },
      [&](int64_t begin, int64_t end, Worker& worker) {
        CsrChunk<int32_t> chunk;
        for (int64_t t = begin; t < end && !progress.stopped(); ++t) {
          expand_row(in, groups, order[t], worker, chunk);
          progress.poll();
        }
        chunk.shrink();
        chunks[begin / kRowsPerChunk] = std::move(chunk);
        progress.add(end - begin);
      });
  progress.check();
  CsrTensors expanded = assemble_csr(progress, row_ptr_in, order, chunks, ScalarType::Int);
  progress.finish();
  return expanded;
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, CPU, m) {
  m.impl("invariant_expansion", TORCH_BOX(&dmic::invariant_expansion_cpu));
}
