// Waves of tiles, each as wide as all before it, so that thresholds are tight when most tiles are compared, on both sides
// of a split. Scratch: 2 N d bytes for the rounded features, 8 N capacity for the lists, 33 N.
#include "../ops/knn_graph.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "../canonical/half.h"
#include "../cpu/parallel.h"
#include "input_checks.h"
#include "kernels/knn_graph.cuh"
#include "kernels/round_features.cuh"
#include "launch.h"

namespace dmic {
namespace {

constexpr int64_t kRoundedAlignment = 8;       // columns of float16 in a 16-byte copy
constexpr int64_t kMaxCapacity = tuned(6144, 200);     // of a list: it must fit the shared memory of a block
constexpr int64_t kMaxWaveTiles = 1 << 17;     // of one launch: less than 0.1 s, so that Ctrl-C is heard
constexpr int64_t kRedoEntries = tuned(1 << 26, 2048); // float32 distances that are held at a time
constexpr int64_t kFinishWeight = 16;          // progress units of finishing a row, in tiles per block of rows

// Room for what survives a wave, which offers a row about k1 more than the k1 and a few that it has.
int64_t capacity_for(int64_t k1) { return 3 * k1 + 64; }

class Search {
 public:
  Search(const Tensor& features, int64_t k1, int64_t block_rows, int64_t split, const std::optional<Tensor>& farthest,
         void* stream)
      : features_(features),
        x_(features.const_data_ptr<float>()),
        farthest_(farthest ? farthest->const_data_ptr<float>() : nullptr),
        rows_(features.size(0)),
        split_(split),
        d_(features.size(1)),
        k1_(k1),
        stream_(stream),
        large_tiles_((block_rows ? block_rows >= dmic_knn_graph_block(true) : tuned(1, 0)) &&
                     dmic_knn_graph_large_tiles_fit()),
        block_(dmic_knn_graph_block(large_tiles_)),
        fewer_(std::min(blocks_of(split ? split : rows_), blocks_of(rows_ - split))),
        more_(std::max(blocks_of(split ? split : rows_), blocks_of(rows_ - split))),
        shifts_(split == 0 ? more_ / 2 + 1 : fewer_ > 0 ? more_ : 0),
        capacity_(std::max(block_, capacity_for(k1))),
        norm_sq_(new_tensor(features, {rows_}, ScalarType::Double)),
        neighbor_idx_(new_tensor(features, {rows_, k1}, ScalarType::Int)),
        neighbor_dist_(new_tensor(features, {rows_, k1}, ScalarType::Float)),
        redo_(new_tensor(features, {rows_}, ScalarType::Int)),
        num_redone_(full_int64(features, 1, 0)) {}

  std::tuple<Tensor, Tensor, Tensor> run() {
    Progress progress("knn_graph", tiles() + finish_work());
    measure(progress);
    if (capacity_for(k1_) <= kMaxCapacity) propose_and_finish(progress);
    else redo_everything(progress);
    redo(progress);
    progress.finish();
    return {neighbor_idx_, neighbor_dist_, num_redone_};
  }

 private:
  // Units of progress: pairs of blocks, and what finishing the rows is worth in them.
  int64_t tiles() const { return fewer_ * shifts_; }
  int64_t finish_work() const { return blocks_of(rows_) * kFinishWeight; }

  int64_t blocks_of(int64_t rows) const { return (rows + block_ - 1) / block_; }

  // As many shifts as show a row no more than what it has seen, or one block until thresholds can come of it.
  int64_t next_shifts(int64_t shift) const {
    const auto blocks = [&](int64_t seen) { return seen * block_ < std::max(2 * block_, k1_) ? 1 : seen; };
    if (split_ == 0) return shift == 0 ? 1 : std::max<int64_t>(1, blocks(2 * shift - 1) / 2);
    return std::min(blocks(shift), blocks(shift * fewer_ / more_) * more_ / fewer_);
  }

  template <class T>
  static T* data(Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
  }

  void check(const char* error) const { check_launch("knn_graph", error); }

  // Norms, the check that every feature is finite, and the scale that brings the longest row into [2^14, 2^15).
  void measure(Progress& progress) {
    Tensor largest_bits = full_int64(features_, 1, 0);
    check(dmic_launch_knn_graph_norms(x_, rows_, d_, data<double>(norm_sq_), data<unsigned long long>(largest_bits),
                                      stream_));
    const double largest = std::bit_cast<double>(read_int64(largest_bits));
    if (!std::isfinite(largest)) check_finite_on_device("knn_graph", features_, stream_);
    int exponent = 15;
    if (largest > 0.0) std::frexp(std::sqrt(largest), &exponent);
    scale_ = std::ldexp(1.0, 15 - exponent);
    progress.poll();
  }

  void propose_and_finish(Progress& progress) {
    Tensor bounds = new_tensor(features_, {rows_, 4}, ScalarType::Float);
    Tensor limit = new_tensor(features_, {rows_}, ScalarType::Float);
    Tensor reach = new_tensor(features_, {rows_}, ScalarType::Float);
    Tensor count = new_tensor(features_, {rows_}, ScalarType::Int);
    Tensor overflowed = new_zeros(features_, rows_, ScalarType::Byte);
    Tensor lists = new_tensor(features_, {rows_, capacity_}, ScalarType::Long);
    {
      Tensor rounded = new_tensor(features_, {rows_, d_}, ScalarType::Half);
      Tensor residual_norm = new_tensor(features_, {rows_}, ScalarType::Float);
      Tensor bad_row = full_int64(features_, 1, rows_);  // stays so: no value is above its row's norm
      check(dmic_launch_round_features(x_, rows_, d_, scale_, data<uint16_t>(rounded), data<float>(residual_norm),
                                       data<unsigned long long>(bad_row), stream_));
      check(dmic_launch_knn_graph_start(data<double>(norm_sq_), data<float>(residual_norm), rows_, d_, scale_,
                                        split_ ? 0 : fewer_, farthest_, data<float>(bounds), data<int32_t>(count),
                                        data<float>(limit), data<float>(reach), stream_));
      const int64_t longest = std::max<int64_t>(1, kMaxWaveTiles / (2 * std::max<int64_t>(1, fewer_)));
      for (int64_t shift = 0; shift < shifts_;) {
        const int64_t shifts = std::min({next_shifts(shift), longest, shifts_ - shift});
        check(dmic_launch_knn_graph_compare(data<uint16_t>(rounded), rows_, d_, split_, large_tiles_, shift, shifts,
                                            data<float>(bounds), data<float>(limit), data<uint64_t>(lists), capacity_,
                                            data<int32_t>(count), stream_));
        check(dmic_launch_knn_graph_compact(data<double>(norm_sq_), scale_, rows_, k1_, data<float>(bounds),
                                            data<uint64_t>(lists), capacity_, data<int32_t>(count), data<float>(limit),
                                            data<float>(reach), data<uint8_t>(overflowed), stream_));
        shift += shifts;
        if (shifts == longest) read_int64(num_redone_);  // waits, so that a stop is not queued behind minutes of work
        progress.add(shifts * fewer_);
        progress.poll();
        progress.check();
      }
    }
    check(dmic_launch_knn_graph_finish(x_, data<double>(norm_sq_), rows_, d_, k1_, data<uint64_t>(lists), capacity_,
                                       data<int32_t>(count), data<float>(reach), data<uint8_t>(overflowed), farthest_,
                                       data<int32_t>(neighbor_idx_), data<float>(neighbor_dist_), data<int32_t>(redo_),
                                       data<unsigned long long>(num_redone_), stream_));
  }

  // Lists of this length fit no shared memory: they count as overflowed, and all rows are redone.
  void redo_everything(Progress& progress) {
    progress.add(tiles());
    const Tensor count = new_zeros(features_, rows_, ScalarType::Int);
    Tensor overflowed = new_tensor(features_, {rows_}, ScalarType::Byte);
    torch::stable::fill_(overflowed, 1.0);
    check(dmic_launch_knn_graph_finish(x_, data<double>(norm_sq_), rows_, d_, k1_, nullptr, 1,
                                       count.const_data_ptr<int32_t>(), nullptr, data<uint8_t>(overflowed), farthest_,
                                       data<int32_t>(neighbor_idx_), data<float>(neighbor_dist_), data<int32_t>(redo_),
                                       data<unsigned long long>(num_redone_), stream_));
  }

  void redo(Progress& progress) {
    const int64_t num_redo = read_int64(num_redone_);
    if (num_redo == 0) {
      progress.add(finish_work());
      return;
    }
    const int64_t at_once = std::clamp<int64_t>(kRedoEntries / rows_, 1, num_redo);
    const int64_t row_bytes = k1_ * sizeof(uint64_t) + rows_ * sizeof(float);
    Tensor scratch = new_scratch(features_, at_once, row_bytes, ScalarType::Byte);
    const int64_t chunk = scratch.size(0);
    uint64_t* keys = data<uint64_t>(scratch);
    float* distances = reinterpret_cast<float*>(keys + chunk * k1_);
    for (int64_t first = 0; first < num_redo; first += chunk) {
      check(dmic_launch_knn_graph_redo(x_, data<double>(norm_sq_), rows_, d_, k1_, split_, farthest_,
                                       data<int32_t>(redo_) + first, std::min(chunk, num_redo - first),
                                       distances, keys, data<int32_t>(neighbor_idx_), data<float>(neighbor_dist_),
                                       stream_));
      const int64_t done = std::min(num_redo, first + chunk);
      progress.add(finish_work() * done / num_redo - finish_work() * first / num_redo);
      progress.poll();
      progress.check();
    }
  }

  const Tensor& features_;
  const float* x_;
  const float* farthest_;  // or null
  const int64_t rows_, split_, d_, k1_;
  void* const stream_;
  const bool large_tiles_;
  const int64_t block_, fewer_, more_;  // blocks of the two sides; without a split both are all
  const int64_t shifts_, capacity_;
  double scale_ = 1.0;
  Tensor norm_sq_, neighbor_idx_, neighbor_dist_, redo_, num_redone_;
};

// Contiguous, with zero columns up to the alignment, which change no bit of a distance.
Tensor aligned(const Tensor& features) {
  const int64_t rows = features.size(0), d = features.size(1);
  const int64_t aligned_d = (d + kRoundedAlignment - 1) / kRoundedAlignment * kRoundedAlignment;
  if (aligned_d == d) return as_dense(features);
  Tensor wider = new_tensor(features, {rows, aligned_d}, features.scalar_type());
  torch::stable::zero_(wider);
  Tensor same = torch::stable::narrow(wider, 1, 0, d);
  torch::stable::copy_(same, features);
  return wider;
}

std::tuple<Tensor, Tensor, Tensor> knn_graph_cuda(const Tensor& features, int64_t k1, int64_t block_rows,
                                                  const std::optional<Tensor>& directions, int64_t split,
                                                  const std::optional<Tensor>& farthest) {
  check_knn_graph_args(features, k1, block_rows, directions, split, farthest);
  if (features.size(0) == 0)
    return {new_tensor(features, {0, k1}, ScalarType::Int), new_tensor(features, {0, k1}, ScalarType::Float),
            full_int64(features, 1, 0)};
  const CurrentDevice device(features);
  const Tensor dense = aligned(features);
  const std::optional<Tensor> limits = as_dense(farthest);
  if (limits) check_farthest(to_cpu(*limits).const_data_ptr<float>(), features.size(0));
  return Search(dense, k1, block_rows, split, limits, device.stream()).run();
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, DMIC_CUDA_KEY, m) { m.impl("knn_graph", TORCH_BOX(&dmic::knn_graph_cuda)); }
