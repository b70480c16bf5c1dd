// Two passes over the samples: half sets as bit masks over the half lists, then the expanded set and its weights.
// Operations: N k1 (k1 + k1_half) compares and about N k1 canonical dot products of d; the rows they read are mostly in
// the cache, since neighbours take their turn one after the other. Scratch: N words of k1_half + 1 bits, 4 N bytes, and
// 8 N bytes per thread.
#include "../ops/k_reciprocal_encoding.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "../canonical/fixed_point.h"
#include "csr_builder.h"
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

struct Worker {
  Worker(int64_t rows, int64_t d) : in_reciprocal(rows), in_expanded(rows), wide(d + kDotLanes) {}
  std::vector<int32_t> in_reciprocal, in_expanded;  // the row (plus one) that last put the sample into its set
  std::vector<int32_t> reciprocal, members;
  std::vector<double> wide, dots;
  std::vector<uint64_t> weights;
};

class Encoder {
 public:
  Encoder(const float* features, const int32_t* neighbor_idx, int64_t rows, int64_t d, int64_t k1, int64_t k1_half)
      : features_(features),
        neighbor_idx_(neighbor_idx),
        rows_(rows),
        d_(d),
        k1_(k1),
        half_(k1_half + 1),
        words_((half_ + 63) / 64),
        half_mask_(rows * words_) {}

  // The rows in this order.
  std::vector<CsrChunk<int32_t>> run(Progress& progress, const std::vector<int32_t>& order) {
    for_each_chunk(progress, rows_, kRowsPerChunk, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end && !progress.stopped(); ++t) {
        mark_half_set(order[t]);
        progress.poll();
      }
      progress.add(end - begin);
    });
    std::vector<CsrChunk<int32_t>> chunks((rows_ + kRowsPerChunk - 1) / kRowsPerChunk);
    for_each_chunk(
        progress, rows_, kRowsPerChunk, [&] { return Worker(rows_, d_); },
        [&](int64_t begin, int64_t end, Worker& worker) {
          CsrChunk<int32_t> chunk;
          for (int64_t t = begin; t < end && !progress.stopped(); ++t) {
            expand(order[t], worker);
            weigh(order[t], worker, chunk);
            progress.poll();
          }
          chunk.shrink();
          chunks[begin / kRowsPerChunk] = std::move(chunk);
          progress.add(end - begin);
        });
    return chunks;
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

  // worker.members = the expanded k-reciprocal set of i, ascending.
  void expand(int64_t i, Worker& worker) const {
    const int32_t stamp = static_cast<int32_t>(i) + 1;
    worker.reciprocal.clear();
    for (int64_t t = 0; t < k1_; ++t) {
      const int32_t j = neighbors(i)[t];
      DMIC_CHECK(worker.in_expanded[j] != -stamp, "k_reciprocal_encoding: neighbor_idx must hold distinct indices in a row, got ",
                 j, " twice in row ", i);
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
      if (3 * shared > 2 * size) for_each_half_member(q, insert);
    }
    std::sort(worker.members.begin(), worker.members.end());
  }

  // Appends the row: softmax of 2 x_i.x_j - 2 over the members in fixed point.
  void weigh(int64_t i, Worker& worker, CsrChunk<int32_t>& chunk) const {
    const int64_t count = static_cast<int64_t>(worker.members.size());
    worker.dots.resize(count);
    worker.weights.resize(count);
    simd().dots(features_ + i * d_, features_, d_, worker.members.data(), count, worker.wide.data(),
                worker.dots.data());
    double largest = -HUGE_VAL;
    for (double& t : worker.dots) largest = std::max(largest, t = 2.0 * t - 2.0);
    uint64_t total = 0;
    for (int64_t t = 0; t < count; ++t) total += worker.weights[t] = fixed_exp(worker.dots[t] - largest);
    ShareRow row(chunk);
    for (int64_t t = 0; t < count; ++t) row.push(worker.members[t], fixed_share(worker.weights[t], total));
    row.finish();
  }

  const float* features_;
  const int32_t* neighbor_idx_;
  const int64_t rows_, d_, k1_, half_, words_;
  std::vector<uint64_t> half_mask_;  // [rows, words]: which of the half list are in the half set
};

CsrTensors k_reciprocal_encoding_cpu(const Tensor& features, const Tensor& neighbor_idx, int64_t k1_half) {
  check_k_reciprocal_encoding_args(features, neighbor_idx, k1_half);
  const int64_t rows = features.size(0), d = features.size(1), k1 = neighbor_idx.size(1);
  const Tensor dense = torch::stable::contiguous(features), lists = torch::stable::contiguous(neighbor_idx);
  Progress progress("k_reciprocal_encoding", 2 * rows);
  std::vector<CsrChunk<int32_t>> chunks;
  std::vector<int32_t> order;
  if (rows > 0) {
    check_finite(progress, "k_reciprocal_encoding", dense.const_data_ptr<float>(), rows, d);
    check_index_range(progress, "k_reciprocal_encoding", lists.const_data_ptr<int32_t>(), rows, k1, rows);
    order = order_by_neighbors(lists.const_data_ptr<int32_t>(), rows, k1);
    chunks = Encoder(dense.const_data_ptr<float>(), lists.const_data_ptr<int32_t>(), rows, d, k1, k1_half)
                 .run(progress, order);
  }
  progress.check();
  CsrTensors encoding = assemble_csr(progress, features, order, chunks, ScalarType::Int);
  progress.finish();
  return encoding;
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, CPU, m) {
  m.impl("k_reciprocal_encoding", TORCH_BOX(&dmic::k_reciprocal_encoding_cpu));
}
