// Weights of the members of each row, then the rows in two passes (sizes, entries): in shared memory those that fit, in
// global scratch the others. Scratch: 8 M k2 bytes, M words of k2 bits, a table for each block that takes longer rows.
#include "../ops/invariant_expansion.h"

#include <algorithm>

#include "input_checks.h"
#include "kernels/invariant_expansion.cuh"
#include "row_chunks.h"

namespace dmic {
namespace {

constexpr const char* kOp = "invariant_expansion";
constexpr int kMergeThreads = tuned(128, 64);
constexpr int64_t kSharedSlots = tuned(2048, 32);         // of a table in shared memory
constexpr int64_t kTableBytes = tuned(1 << 28, 1 << 13);  // of the tables of longer rows, if one needs no more
constexpr int64_t kStages = 3;
constexpr int64_t kMaskBits = 32;

void check_not_negative_on_device(const char* name, const std::optional<Tensor>& ids) {
  if (!ids || ids->size(0) == 0) return;
  std::array<StableIValue, 1> stack{torch::stable::detail::from(*ids)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::min", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor least = to_cpu(torch::stable::detail::to<Tensor>(stack[0]));
  if (*least.const_data_ptr<int64_t>() >= 0) return;
  const Tensor on_cpu = to_cpu(*ids);
  check_not_negative(name, on_cpu.const_data_ptr<int64_t>(), on_cpu.size(0));
}

class Expander {
 public:
  Expander(const CsrTensors& encoding, const Tensor& neighbor_idx, int64_t k2, const std::optional<Tensor>& camera_ids,
           const std::optional<Tensor>& modality_ids, int64_t num_cols, void* stream)
      : row_ptr_(std::get<0>(encoding)),
        col_idx_(std::get<1>(encoding)),
        values_(std::get<2>(encoding)),
        neighbor_idx_(neighbor_idx),
        camera_ids_(camera_ids),
        modality_ids_(modality_ids),
        encoded_(row_ptr_.size(0) - 1),
        rows_(neighbor_idx.size(0)),
        num_cols_(num_cols < 0 ? encoded_ : num_cols),
        whole_(num_cols < 0 && rows_ == encoded_),
        k1_(neighbor_idx.size(1)),
        k2_(k2),
        stream_(stream) {}

  CsrTensors run() {
    Progress progress(kOp, kStages * rows_);
    check_encoding_on_device(kOp, row_ptr_, num_cols_, col_idx_, values_, stream_);
    check_neighbors_on_device(kOp, neighbor_idx_, encoded_, 0, 0, rows_, stream_);
    check_not_negative_on_device("camera_ids", camera_ids_);
    check_not_negative_on_device("modality_ids", modality_ids_);
    if (whole_ && k2_ == 1) {
      progress.finish();  // outputs never alias inputs
      return {copy_of(row_ptr_), copy_of(col_idx_), copy_of(values_)};
    }
    if (rows_ == 0) {
      progress.finish();
      return {full_int64(row_ptr_, 1, 0), new_tensor(row_ptr_, {0}, ScalarType::Int),
              new_tensor(row_ptr_, {0}, ScalarType::Int)};
    }
    check_neighbors_on_device(kOp, neighbor_idx_, encoded_, k2_, 0, rows_, stream_);
    weigh(progress);
    CsrTensors expanded = merge(progress);
    progress.finish();
    return expanded;
  }

 private:
  static const int64_t* data_of(const std::optional<Tensor>& ids) {
    return ids ? ids->const_data_ptr<int64_t>() : nullptr;
  }
  static unsigned long long* unsigned_of(const Tensor& tensor) {
    return static_cast<unsigned long long*>(tensor.mutable_data_ptr());
  }

  void weigh(Progress& progress) {
    numerators_ = new_tensor(row_ptr_, {rows_, k2_}, ScalarType::Long);
    totals_ = new_tensor(row_ptr_, {rows_}, ScalarType::Long);
    bounds_ = new_tensor(row_ptr_, {rows_}, ScalarType::Long);
    const Tensor camera_mask = new_tensor(row_ptr_, {rows_, (k2_ + kMaskBits - 1) / kMaskBits}, ScalarType::Int);
    launch_in_chunks(progress, kOp, row_ptr_, rows_, k2_ * k2_, [&](int64_t begin, int64_t end) {
      return dmic_launch_weigh_neighbors(
          row_ptr_.const_data_ptr<int64_t>(), neighbor_idx_.const_data_ptr<int32_t>(), num_cols_, begin, end, k1_, k2_,
          data_of(camera_ids_), data_of(modality_ids_), static_cast<uint32_t*>(camera_mask.mutable_data_ptr()),
          unsigned_of(numerators_), unsigned_of(totals_), bounds_.mutable_data_ptr<int64_t>(), stream_);
    });
  }

  CsrTensors merge(Progress& progress) {
    const int64_t work = k2_ * (col_idx_.size(0) / encoded_ + 1);
    const int64_t slots = table_slots(read_int64(torch::stable::amax(bounds_, 0, true)));
    const int64_t blocks = std::min(rows_, dmic_merge_blocks());
    const Tensor lengths = new_tensor(row_ptr_, {rows_}, ScalarType::Int);
    const auto merge_rows = [&](const int64_t* row_ptr, int32_t* col_idx, int32_t* values) {
      Tensor tables;  // of each pass anew: what it has to write goes first where memory is short
      if (slots > kSharedSlots)
        tables = new_scratch(row_ptr_, std::min(blocks, std::max<int64_t>(1, kTableBytes / (slots * kSlotBytes))),
                             slots * kSlotBytes, ScalarType::Byte);
      launch_in_chunks(progress, kOp, row_ptr_, rows_, work, [&](int64_t begin, int64_t end) {
        const auto launch = [&](void* memory, int64_t num_blocks) {
          return dmic_launch_merge_neighbors(
              row_ptr_.const_data_ptr<int64_t>(), col_idx_.const_data_ptr<int32_t>(),
              values_.const_data_ptr<int32_t>(), neighbor_idx_.const_data_ptr<int32_t>(), begin, end, k1_, k2_,
              unsigned_of(numerators_), unsigned_of(totals_), bounds_.const_data_ptr<int64_t>(), kSharedSlots, memory,
              num_blocks, kMergeThreads, slots, lengths.mutable_data_ptr<int32_t>(), row_ptr, col_idx, values, stream_);
        };
        const char* error = launch(nullptr, std::min(blocks, end - begin));
        return error || slots <= kSharedSlots ? error : launch(tables.mutable_data_ptr(), tables.size(0));
      });
    };
    merge_rows(nullptr, nullptr, nullptr);
    const Tensor row_ptr = row_ptr_of(lengths);
    const int64_t nnz = read_int64(row_ptr, rows_);
    const Tensor col_idx = new_tensor(row_ptr_, {nnz}, ScalarType::Int);
    const Tensor values = new_tensor(row_ptr_, {nnz}, ScalarType::Int);
    merge_rows(row_ptr.const_data_ptr<int64_t>(), col_idx.mutable_data_ptr<int32_t>(),
               values.mutable_data_ptr<int32_t>());
    return {row_ptr, col_idx, values};
  }

  const Tensor row_ptr_, col_idx_, values_, neighbor_idx_;
  const std::optional<Tensor> camera_ids_, modality_ids_;
  const int64_t encoded_, rows_;  // of the encoding and of the result
  const int64_t num_cols_;
  const bool whole_;  // list i is that of row i
  const int64_t k1_, k2_;
  void* stream_;
  Tensor numerators_, totals_, bounds_;
};

CsrTensors invariant_expansion_cuda(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                                    const Tensor& neighbor_idx, int64_t k2, const std::optional<Tensor>& camera_ids,
                                    const std::optional<Tensor>& modality_ids, int64_t num_cols) {
  check_invariant_expansion_args(row_ptr, col_idx, values, neighbor_idx, k2, camera_ids, modality_ids, num_cols);
  const CurrentDevice device(row_ptr);
  return Expander({as_dense(row_ptr), as_dense(col_idx), as_dense(values)}, as_dense(neighbor_idx), k2,
                  as_dense(camera_ids), as_dense(modality_ids), num_cols, device.stream())
      .run();
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, DMIC_CUDA_KEY, m) {
  m.impl("invariant_expansion", TORCH_BOX(&dmic::invariant_expansion_cuda));
}
