// Half sets as bit masks over the half lists, then row by row the expanded sets, and once these are all there the dot
// products, each for both of its rows, and the weights. Each of these three steps is also an op of its own.
// Operations: N k1 (k1 + k1_half) compares and about N k1 / 2 canonical dot products of d; the rows they read are mostly
// in the cache, since neighbours take their turn one after the other. Scratch: N words of k1_half + 1 bits, 4 N bytes,
// 12 bytes for each stored position, and 8 N bytes per thread. The sets alone need the same without dot products, the
// dot products alone d multiply-adds and the weights alone one exp for each stored position, in the order of the rows.
#include "../ops/k_reciprocal_encoding.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "../canonical/fixed_point.h"
#include "csr_builder.h"
#include "dots_check.h"
#include "features.h"
#include "neighbor_order.h"

namespace dmic {
namespace {

constexpr int64_t kRowsPerChunk = 64;

bool contains(const int32_t* list, int64_t length, int32_t value) {
  int found = 0;  // no early exit: the loop vectorises
  for (int64_t t = 0; t < length; ++t) found |= list[t] == value;
  return found != 0;
}

// Calls append(row, worker, chunk) for the rows in this order; returns the chunks.
template <class MakeWorker, class Append>
std::vector<CsrChunk<int32_t>> collect_rows(Progress& progress, const std::vector<int32_t>& order,
                                            const MakeWorker& make_worker, const Append& append) {
  const int64_t rows = static_cast<int64_t>(order.size());
  std::vector<CsrChunk<int32_t>> chunks((rows + kRowsPerChunk - 1) / kRowsPerChunk);
  for_each_chunk(progress, rows, kRowsPerChunk, make_worker, [&](int64_t begin, int64_t end, auto& worker) {
    CsrChunk<int32_t> chunk;
    for (int64_t t = begin; t < end && !progress.stopped(); ++t) {
      append(order[t], worker, chunk);
      progress.poll();
    }
    chunk.shrink();
    chunks[begin / kRowsPerChunk] = std::move(chunk);
    progress.add(end - begin);
  });
  return chunks;
}

struct SetWorker {
  explicit SetWorker(int64_t rows) : in_reciprocal(rows), in_expanded(rows) {}
  std::vector<int32_t> in_reciprocal, in_expanded;  // the row (plus one) that last put the sample into its set
  std::vector<int32_t> reciprocal, members;
};

// Expands the k-reciprocal set of any row, once all half sets are marked.
class ReciprocalSets {
 public:
  ReciprocalSets(const char* op, const int32_t* neighbor_idx, int64_t rows, int64_t k1, int64_t k1_half)
      : op_(op),
        neighbor_idx_(neighbor_idx),
        rows_(rows),
        k1_(k1),
        half_(k1_half + 1),
        words_((half_ + 63) / 64),
        half_mask_(rows * words_) {}

  void mark_half_sets(Progress& progress, const std::vector<int32_t>& order) {
    for_each_chunk(progress, rows_, kRowsPerChunk, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end && !progress.stopped(); ++t) {
        mark_half_set(order[t]);
        progress.poll();
      }
      progress.add(end - begin);
    });
  }

  // worker.members = the expanded k-reciprocal set of i, ascending.
  void expand(int64_t i, SetWorker& worker) const {
    const int32_t stamp = static_cast<int32_t>(i) + 1;
    worker.reciprocal.clear();
    for (int64_t t = 0; t < k1_; ++t) {
      const int32_t j = neighbors(i)[t];
      DMIC_CHECK(worker.in_expanded[j] != -stamp, op_, ": neighbor_idx must hold distinct indices in a row, got ", j,
                 " twice in row ", i);
      worker.in_expanded[j] = -stamp;
      if (!contains(neighbors(j), k1_, static_cast<int32_t>(i))) continue;
      worker.in_reciprocal[j] = stamp;
      worker.reciprocal.push_back(j);
    }
    worker.members.clear();
    const auto insert = [&](int32_t j) {
      if (worker.in_expanded[j] == stamp) return;
      worker.in_expanded[j] = stamp;
      worker.members.push_back(j);
    };
    for (const int32_t q : worker.reciprocal) insert(q);
    for (const int32_t q : worker.reciprocal) {
      int64_t size = 0, shared = 0;
      for_each_half_member(q, [&](int32_t j) {
        ++size;
        shared += worker.in_reciprocal[j] == stamp;
      });
      if (shared < size && 3 * shared > 2 * size) for_each_half_member(q, insert);
    }
    std::sort(worker.members.begin(), worker.members.end());
  }

 private:
  const int32_t* neighbors(int64_t i) const { return neighbor_idx_ + i * k1_; }

  void mark_half_set(int64_t q) {
    for (int64_t t = 0; t < half_; ++t)
      if (contains(neighbors(neighbors(q)[t]), half_, static_cast<int32_t>(q)))
        half_mask_[q * words_ + t / 64] |= 1ull << (t % 64);
  }

  template <class Visit>
  void for_each_half_member(int64_t q, const Visit& visit) const {
    for (int64_t word = 0; word < words_; ++word)
      for (uint64_t bits = half_mask_[q * words_ + word]; bits; bits &= bits - 1)
        visit(neighbors(q)[word * 64 + std::countr_zero(bits)]);
  }

  const char* op_;
  const int32_t* neighbor_idx_;
  const int64_t rows_, k1_, half_, words_;
  std::vector<uint64_t> half_mask_;  // [rows, words]: which of the half list are in the half set
};

// Appends a row: softmax of 2 dot - 2 over the members in fixed point. `weights` is scratch.
void append_weights(const int32_t* members, const double* dots, int64_t count, std::vector<uint64_t>& weights,
                    CsrChunk<int32_t>& chunk) {
  weights.resize(count);
  double largest = -HUGE_VAL;
  for (int64_t t = 0; t < count; ++t) largest = std::max(largest, dots[t]);
  uint64_t total = 0;
  for (int64_t t = 0; t < count; ++t) total += weights[t] = fixed_weight(dots[t], largest);
  ShareRow row(chunk);
  for (int64_t t = 0; t < count; ++t) row.push(members[t], fixed_share(weights[t], total));
  row.finish();
}

// row_ptr and col_idx of the expanded sets of rows [begin, end), which are computed in this order (counted from begin).
std::tuple<Tensor, Tensor> expand_sets(Progress& progress, const Tensor& like, ReciprocalSets& sets, int64_t rows,
                                       int64_t begin, const std::vector<int32_t>& all,
                                       const std::vector<int32_t>& order) {
  sets.mark_half_sets(progress, all);
  std::vector<CsrChunk<int32_t>> chunks = collect_rows(
      progress, order, [&] { return SetWorker(rows); },
      [&](int64_t t, SetWorker& worker, CsrChunk<int32_t>& chunk) {
        sets.expand(begin + t, worker);
        chunk.cols.insert(chunk.cols.end(), worker.members.begin(), worker.members.end());
        chunk.lengths.push_back(static_cast<int32_t>(worker.members.size()));
      });
  progress.check();
  return assemble_columns(progress, like, order, chunks);
}

// The dot products of each row with its members. What row i computes for j serves row j too, if i is a member there:
// whichever comes first computes it, both at once give the same bits.
class SharedDots {
 public:
  SharedDots(const float* features, int64_t d, const int64_t* row_ptr, const int32_t* members, int64_t count)
      : features_(features), d_(d), row_ptr_(row_ptr), members_(members), dots_(count, kMissing) {}

  struct Worker {
    explicit Worker(int64_t d) : wide(d + kDotLanes) {}
    std::vector<double> wide, dots;
    std::vector<int32_t> missing;
  };

  // worker.dots = all dot products of row i, in the order of its members.
  void of_row(int64_t i, Worker& worker) {
    const int64_t first = row_ptr_[i], last = row_ptr_[i + 1];
    worker.missing.clear();
    for (int64_t t = first; t < last; ++t)
      if (std::isnan(at(t).load(std::memory_order_relaxed))) worker.missing.push_back(members_[t]);
    const int64_t count = static_cast<int64_t>(worker.missing.size());
    worker.dots.resize(count);
    simd().dots(features_ + i * d_, features_, d_, worker.missing.data(), count, worker.wide.data(), worker.dots.data());
    int64_t t = first;
    for (int64_t m = 0; m < count; ++m) {
      const int32_t j = worker.missing[m];
      while (members_[t] != j) ++t;
      at(t).store(worker.dots[m], std::memory_order_relaxed);
      const int32_t *begin = members_ + row_ptr_[j], *end = members_ + row_ptr_[j + 1];
      const int32_t* mirrored = std::lower_bound(begin, end, static_cast<int32_t>(i));
      if (mirrored < end && *mirrored == i) at(mirrored - members_).store(worker.dots[m], std::memory_order_relaxed);
    }
    worker.dots.resize(last - first);
    for (t = first; t < last; ++t) worker.dots[t - first] = at(t).load(std::memory_order_relaxed);
  }

 private:
  static constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();  // no sum of products of finite floats is

  std::atomic_ref<double> at(int64_t t) { return std::atomic_ref<double>(dots_[t]); }

  const float* features_;
  const int64_t d_;
  const int64_t* row_ptr_;
  const int32_t* members_;
  std::vector<double> dots_;
};

CsrTensors k_reciprocal_encoding_cpu(const Tensor& features_in, const Tensor& neighbor_idx, int64_t k1_half) {
  check_k_reciprocal_encoding_args(features_in, neighbor_idx, k1_half);
  const int64_t rows = features_in.size(0), d = features_in.size(1), k1 = neighbor_idx.size(1);
  const Tensor dense = torch::stable::contiguous(features_in), lists = torch::stable::contiguous(neighbor_idx);
  const float* features = dense.const_data_ptr<float>();
  const int32_t* neighbors = lists.const_data_ptr<int32_t>();
  Progress progress("k_reciprocal_encoding", 3 * rows);
  std::vector<CsrChunk<int32_t>> chunks;
  std::vector<int32_t> order;
  if (rows > 0) {
    check_finite(progress, "k_reciprocal_encoding", features, rows, d);
    check_index_range(progress, "k_reciprocal_encoding", neighbors, rows, k1, rows);
    order = order_by_neighbors(neighbors, rows, k1);
    const auto [set_ptr, set_members] = [&] {
      ReciprocalSets sets("k_reciprocal_encoding", neighbors, rows, k1, k1_half);
      return expand_sets(progress, features_in, sets, rows, 0, order, order);
    }();
    const int64_t* ptr = set_ptr.const_data_ptr<int64_t>();
    const int32_t* members = set_members.const_data_ptr<int32_t>();
    SharedDots dots(features, d, ptr, members, ptr[rows]);
    struct Worker {
      SharedDots::Worker dots;
      std::vector<uint64_t> weights;
    };
    chunks = collect_rows(
        progress, order, [&] { return Worker{SharedDots::Worker(d), {}}; },
        [&](int64_t i, Worker& worker, CsrChunk<int32_t>& chunk) {
          dots.of_row(i, worker.dots);
          append_weights(members + ptr[i], worker.dots.dots.data(), ptr[i + 1] - ptr[i], worker.weights, chunk);
        });
  }
  progress.check();
  CsrTensors encoding = assemble_csr(progress, features_in, order, chunks, ScalarType::Int);
  progress.finish();
  return encoding;
}

std::tuple<Tensor, Tensor> k_reciprocal_sets_cpu(const Tensor& neighbor_idx, int64_t k1_half, int64_t begin,
                                                 int64_t end) {
  check_k_reciprocal_sets_args(neighbor_idx, k1_half, begin, end);
  const int64_t rows = neighbor_idx.size(0), k1 = neighbor_idx.size(1);
  const Tensor lists = torch::stable::contiguous(neighbor_idx);
  const int32_t* neighbors = lists.const_data_ptr<int32_t>();
  Progress progress("k_reciprocal_sets", rows + end - begin);
  check_index_range(progress, "k_reciprocal_sets", neighbors, rows, k1, rows);
  const std::vector<int32_t> all = order_by_neighbors(neighbors, rows, k1);
  std::vector<int32_t> order;  // of the wanted rows, counted from `begin`
  for (const int32_t i : all)
    if (begin <= i && i < end) order.push_back(static_cast<int32_t>(i - begin));
  ReciprocalSets half_sets("k_reciprocal_sets", neighbors, rows, k1, k1_half);
  std::tuple<Tensor, Tensor> sets = expand_sets(progress, neighbor_idx, half_sets, rows, begin, all, order);
  progress.finish();
  return sets;
}

Tensor sampled_dots_cpu(const Tensor& rows_in, const Tensor& others_in, const Tensor& row_ptr_in,
                        const Tensor& col_idx_in, bool check) {
  check_sampled_dots_args(rows_in, others_in, row_ptr_in, col_idx_in);
  const Tensor row_tensor = torch::stable::contiguous(rows_in), other_tensor = torch::stable::contiguous(others_in);
  const Tensor row_ptr = torch::stable::contiguous(row_ptr_in), col_idx = torch::stable::contiguous(col_idx_in);
  const int64_t num_rows = rows_in.size(0), num_others = others_in.size(0), d = rows_in.size(1);
  const float *rows = row_tensor.const_data_ptr<float>(), *others = other_tensor.const_data_ptr<float>();
  const int64_t* ptr = row_ptr.const_data_ptr<int64_t>();
  const int32_t* cols = col_idx.const_data_ptr<int32_t>();
  Progress progress("sampled_dots", num_rows);
  if (check) {
    check_finite(progress, "sampled_dots", rows, num_rows, d, "rows");
    check_finite(progress, "sampled_dots", others, num_others, d, "others");
  }
  check_csr_structure(progress, "sampled_dots", ptr, num_rows, num_others, cols, col_idx.size(0));
  Tensor dots = new_tensor(rows_in, {col_idx.size(0)}, ScalarType::Double);
  double* out = dots.mutable_data_ptr<double>();
  for_each_chunk(
      progress, num_rows, kRowsPerChunk, [&] { return std::vector<double>(d + kDotLanes); },
      [&](int64_t begin, int64_t end, std::vector<double>& wide) {
        for (int64_t i = begin; i < end && !progress.stopped(); ++i) {
          simd().dots(rows + i * d, others, d, cols + ptr[i], ptr[i + 1] - ptr[i], wide.data(), out + ptr[i]);
          progress.poll();
        }
        progress.add(end - begin);
      });
  progress.finish();
  return dots;
}

CsrTensors k_reciprocal_weights_cpu(const Tensor& row_ptr_in, const Tensor& col_idx_in, const Tensor& dots_in) {
  check_k_reciprocal_weights_args(row_ptr_in, col_idx_in, dots_in);
  const Tensor row_ptr = torch::stable::contiguous(row_ptr_in), col_idx = torch::stable::contiguous(col_idx_in);
  const Tensor dot_tensor = torch::stable::contiguous(dots_in);
  const int64_t rows = row_ptr.size(0) - 1;
  const int64_t* ptr = row_ptr.const_data_ptr<int64_t>();
  const int32_t* cols = col_idx.const_data_ptr<int32_t>();
  const double* dots = dot_tensor.const_data_ptr<double>();
  Progress progress("k_reciprocal_weights", rows);
  check_csr_structure(progress, "k_reciprocal_weights", ptr, rows, kMaxSamples, cols, col_idx.size(0));
  check_dots(progress, "k_reciprocal_weights", ptr, rows, dots);
  std::vector<int32_t> order(rows);
  std::iota(order.begin(), order.end(), 0);
  std::vector<CsrChunk<int32_t>> chunks = collect_rows(
      progress, order, [] { return std::vector<uint64_t>(); },
      [&](int64_t i, std::vector<uint64_t>& weights, CsrChunk<int32_t>& chunk) {
        append_weights(cols + ptr[i], dots + ptr[i], ptr[i + 1] - ptr[i], weights, chunk);
      });
  progress.check();
  CsrTensors encoding = assemble_csr(progress, row_ptr_in, order, chunks, ScalarType::Int);
  progress.finish();
  return encoding;
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, CPU, m) {
  m.impl("k_reciprocal_encoding", TORCH_BOX(&dmic::k_reciprocal_encoding_cpu));
  m.impl("k_reciprocal_sets", TORCH_BOX(&dmic::k_reciprocal_sets_cpu));
  m.impl("sampled_dots", TORCH_BOX(&dmic::sampled_dots_cpu));
  m.impl("k_reciprocal_weights", TORCH_BOX(&dmic::k_reciprocal_weights_cpu));
}
