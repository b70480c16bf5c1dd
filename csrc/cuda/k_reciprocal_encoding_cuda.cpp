// Bit masks of who has whom in return, then the expanded sets in two passes (sizes, members), sorted, and weights.
// Scratch: N words of k1 and of k1_half + 1 bits, N / 4 bytes for each warp of the expansion, 8 bytes a member.
#include "../ops/k_reciprocal_encoding.h"

#include <algorithm>

#include "input_checks.h"
#include "kernels/k_reciprocal_encoding.cuh"
#include "row_chunks.h"

namespace dmic {
namespace {

constexpr const char* kOp = "k_reciprocal_encoding";
constexpr int64_t kSetBytes = tuned(1 << 28, 512);  // of the sets of samples, if one block has enough with that
constexpr int64_t kSortCapacity = tuned(2048, 24);  // columns that are sorted in shared memory
constexpr int64_t kStages = 5;

class Encoder {
 public:
  Encoder(const Tensor& features, const Tensor& neighbor_idx, int64_t k1_half, void* stream)
      : features_(features),
        neighbor_idx_(neighbor_idx),
        lists_(neighbor_idx.const_data_ptr<int32_t>()),
        rows_(features.size(0)),
        d_(features.size(1)),
        k1_(neighbor_idx.size(1)),
        half_(k1_half + 1),
        stream_(stream),
        reciprocal_mask_(new_tensor(features, {rows_, mask_words(k1_)}, ScalarType::Int)),
        half_mask_(new_tensor(features, {rows_, mask_words(half_)}, ScalarType::Int)),
        lengths_(new_tensor(features, {rows_}, ScalarType::Int)) {}

  CsrTensors run() {
    Progress progress(kOp, kStages * rows_);
    check_finite_on_device(kOp, features_, stream_);
    check_neighbors_on_device(kOp, neighbor_idx_, rows_, k1_, stream_);
    mark(progress);
    CsrTensors encoding = expand(progress);
    weigh(progress, encoding);
    progress.finish();
    return encoding;
  }

 private:
  // Of a tensor of int32 whose bits are all that counts.
  static uint32_t* words_of(Tensor& tensor) { return reinterpret_cast<uint32_t*>(tensor.mutable_data_ptr<int32_t>()); }

  void mark(Progress& progress) {
    launch_in_chunks(progress, kOp, features_, rows_, k1_ * k1_, [&](int64_t begin, int64_t end) {
      return dmic_launch_mark_reciprocal(lists_, begin, end, k1_, half_, words_of(reciprocal_mask_),
                                         words_of(half_mask_), stream_);
    });
  }

  // The rows of the expanded sets, ascending, without values.
  CsrTensors expand(Progress& progress) {
    const int64_t words_of_block = kExpandWarps * 2 * mask_words(rows_);
    const int64_t blocks = std::min({(rows_ + kExpandWarps - 1) / kExpandWarps, dmic_expand_reciprocal_blocks(),
                                     std::max<int64_t>(1, kSetBytes / sizeof(uint32_t) / words_of_block)});
    Tensor sets = new_scratch(features_, blocks, words_of_block, ScalarType::Int);
    torch::stable::zero_(sets);
    const auto expand_rows = [&](const int64_t* row_ptr, int32_t* col_idx) {
      launch_in_chunks(progress, kOp, features_, rows_, k1_ * half_, [&](int64_t begin, int64_t end) {
        return dmic_launch_expand_reciprocal(lists_, rows_, begin, end, k1_, half_, words_of(reciprocal_mask_),
                                             words_of(half_mask_), words_of(sets), sets.size(0),
                                             lengths_.mutable_data_ptr<int32_t>(), row_ptr, col_idx, stream_);
      });
    };
    expand_rows(nullptr, nullptr);
    Tensor row_ptr = row_ptr_of(lengths_);
    const int64_t nnz = read_int64(row_ptr, rows_);
    Tensor col_idx = new_tensor(features_, {nnz}, ScalarType::Int);
    expand_rows(row_ptr.const_data_ptr<int64_t>(), col_idx.mutable_data_ptr<int32_t>());
    launch_in_chunks(progress, kOp, features_, rows_, nnz / rows_, [&](int64_t begin, int64_t end) {
      return dmic_launch_sort_rows(row_ptr.const_data_ptr<int64_t>(), begin, end, kSortCapacity,
                                   col_idx.mutable_data_ptr<int32_t>(), stream_);
    });
    return {row_ptr, col_idx, new_tensor(features_, {nnz}, ScalarType::Int)};
  }

  void weigh(Progress& progress, CsrTensors& encoding) {
    auto& [row_ptr, col_idx, values] = encoding;
    const int64_t nnz = col_idx.size(0);
    Tensor scratch = new_tensor(features_, {nnz}, ScalarType::Double);
    launch_in_chunks(progress, kOp, features_, rows_, nnz / rows_ * d_, [&](int64_t begin, int64_t end) {
      return dmic_launch_weigh_members(features_.const_data_ptr<float>(), begin, end, d_,
                                       row_ptr.const_data_ptr<int64_t>(), col_idx.const_data_ptr<int32_t>(),
                                       scratch.mutable_data_ptr<double>(), values.mutable_data_ptr<int32_t>(),
                                       lengths_.mutable_data_ptr<int32_t>(), stream_);
    });
    Tensor kept_ptr = row_ptr_of(lengths_);
    const int64_t kept = read_int64(kept_ptr, rows_);
    if (kept == nnz) return;
    Tensor kept_idx = new_tensor(features_, {kept}, ScalarType::Int);
    Tensor kept_values = new_tensor(features_, {kept}, ScalarType::Int);
    check_launch(kOp, dmic_launch_drop_zeros(row_ptr.const_data_ptr<int64_t>(), col_idx.const_data_ptr<int32_t>(),
                                             values.const_data_ptr<int32_t>(), 0, rows_,
                                             kept_ptr.const_data_ptr<int64_t>(), kept_idx.mutable_data_ptr<int32_t>(),
                                             kept_values.mutable_data_ptr<int32_t>(), stream_));
    encoding = {kept_ptr, kept_idx, kept_values};
  }

  const Tensor features_, neighbor_idx_;
  const int32_t* lists_;
  const int64_t rows_, d_, k1_, half_;
  void* stream_;
  Tensor reciprocal_mask_, half_mask_, lengths_;
};

CsrTensors k_reciprocal_encoding_cuda(const Tensor& features, const Tensor& neighbor_idx, int64_t k1_half) {
  check_k_reciprocal_encoding_args(features, neighbor_idx, k1_half);
  const CurrentDevice device(features);
  if (features.size(0) == 0) {
    Progress(kOp, 0).finish();
    return {full_int64(features, 1, 0), new_tensor(features, {0}, ScalarType::Int),
            new_tensor(features, {0}, ScalarType::Int)};
  }
  return Encoder(as_dense(features), as_dense(neighbor_idx), k1_half, device.stream())
      .run();
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, DMIC_CUDA_KEY, m) {
  m.impl("k_reciprocal_encoding", TORCH_BOX(&dmic::k_reciprocal_encoding_cuda));
}
