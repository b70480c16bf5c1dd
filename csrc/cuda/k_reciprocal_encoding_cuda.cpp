// Bit masks of who has whom in return, then the expanded sets in two passes (sizes, members), sorted, their dot
// products and their weights. Each of the last three is also an op of its own.
// Scratch: N words of k1 and of k1_half + 1 bits, N / 4 bytes for each warp of the expansion, 8 bytes a member.
#include "../ops/k_reciprocal_encoding.h"

#include <algorithm>

#include "../cpu/dots_check.h"
#include "input_checks.h"
#include "kernels/k_reciprocal_encoding.cuh"
#include "row_chunks.h"

namespace dmic {
namespace {

constexpr int64_t kSetBytes = tuned(1 << 28, 512);  // of the sets of samples, if one block has enough with that
constexpr int64_t kSortCapacity = tuned(2048, 24);  // columns that are sorted in shared memory
constexpr int64_t kSetStages = 3;                   // after the marking: sizes, members, sorting
constexpr int64_t kStages = 6;                      // of an encoding

// Of a tensor of int32 whose bits are all that counts.
uint32_t* words_of(Tensor& tensor) { return reinterpret_cast<uint32_t*>(tensor.mutable_data_ptr<int32_t>()); }

// row_ptr and col_idx of the expanded k-reciprocal sets of rows [first, last), at least one; the lists are checked.
class ReciprocalSets {
 public:
  ReciprocalSets(const char* op, const Tensor& neighbor_idx, int64_t k1_half, int64_t first, int64_t last, void* stream)
      : op_(op),
        neighbor_idx_(neighbor_idx),
        lists_(neighbor_idx.const_data_ptr<int32_t>()),
        rows_(neighbor_idx.size(0)),
        k1_(neighbor_idx.size(1)),
        half_(k1_half + 1),
        first_(first),
        wanted_(last - first),
        stream_(stream),
        reciprocal_mask_(new_tensor(neighbor_idx, {rows_, mask_words(k1_)}, ScalarType::Int)),
        half_mask_(new_tensor(neighbor_idx, {rows_, mask_words(half_)}, ScalarType::Int)) {}

  std::tuple<Tensor, Tensor> run(Progress& progress) {
    mark(progress);
    return expand(progress);
  }

 private:
  void mark(Progress& progress) {
    launch_in_chunks(progress, op_, neighbor_idx_, rows_, k1_ * k1_, [&](int64_t begin, int64_t end) {
      return dmic_launch_mark_reciprocal(lists_, begin, end, k1_, half_, words_of(reciprocal_mask_),
                                         words_of(half_mask_), stream_);
    });
  }

  std::tuple<Tensor, Tensor> expand(Progress& progress) {
    const int64_t words_of_block = kExpandWarps * 2 * mask_words(rows_);
    const int64_t blocks = std::min({(wanted_ + kExpandWarps - 1) / kExpandWarps, dmic_expand_reciprocal_blocks(),
                                     std::max<int64_t>(1, kSetBytes / sizeof(uint32_t) / words_of_block)});
    Tensor lengths = new_tensor(neighbor_idx_, {wanted_}, ScalarType::Int);
    const auto expand_rows = [&](const int64_t* row_ptr, int32_t* col_idx) {
      // Of each pass anew: what it has to write goes first where memory is short
      Tensor sets = new_scratch(neighbor_idx_, blocks, words_of_block, ScalarType::Int);
      torch::stable::zero_(sets);
      launch_in_chunks(progress, op_, neighbor_idx_, wanted_, k1_ * half_, [&](int64_t begin, int64_t end) {
        return dmic_launch_expand_reciprocal(lists_, rows_, first_ + begin, first_ + end, k1_, half_,
                                             words_of(reciprocal_mask_), words_of(half_mask_), words_of(sets),
                                             sets.size(0), lengths.mutable_data_ptr<int32_t>() + begin,
                                             row_ptr ? row_ptr + begin : nullptr, col_idx, stream_);
      });
    };
    expand_rows(nullptr, nullptr);
    Tensor row_ptr = row_ptr_of(lengths);
    const int64_t nnz = read_int64(row_ptr, wanted_);
    Tensor col_idx = new_tensor(neighbor_idx_, {nnz}, ScalarType::Int);
    expand_rows(row_ptr.const_data_ptr<int64_t>(), col_idx.mutable_data_ptr<int32_t>());
    launch_in_chunks(progress, op_, neighbor_idx_, wanted_, nnz / wanted_, [&](int64_t begin, int64_t end) {
      return dmic_launch_sort_rows(row_ptr.const_data_ptr<int64_t>(), begin, end, kSortCapacity,
                                   col_idx.mutable_data_ptr<int32_t>(), stream_);
    });
    return {row_ptr, col_idx};
  }

  const char* op_;
  const Tensor neighbor_idx_;
  const int32_t* lists_;
  const int64_t rows_, k1_, half_, first_, wanted_;
  void* stream_;
  Tensor reciprocal_mask_, half_mask_;
};

// The dot products of a sound pattern with at least one row.
Tensor dots_of(Progress& progress, const char* op, const Tensor& rows, const Tensor& others, const Tensor& row_ptr,
               const Tensor& col_idx, void* stream) {
  const int64_t num_rows = rows.size(0), d = rows.size(1), nnz = col_idx.size(0);
  Tensor dots = new_tensor(rows, {nnz}, ScalarType::Double);
  launch_in_chunks(progress, op, rows, num_rows, nnz / num_rows * d, [&](int64_t begin, int64_t end) {
    return dmic_launch_sampled_dots(rows.const_data_ptr<float>(), others.const_data_ptr<float>(), begin, end, d,
                                    row_ptr.const_data_ptr<int64_t>(), col_idx.const_data_ptr<int32_t>(),
                                    dots.mutable_data_ptr<double>(), stream);
  });
  return dots;
}

// The weights of a sound pattern with at least one row.
CsrTensors weights_of(Progress& progress, const char* op, const Tensor& row_ptr, const Tensor& col_idx,
                      const Tensor& dots, void* stream) {
  const int64_t rows = row_ptr.size(0) - 1, nnz = col_idx.size(0);
  Tensor values = new_tensor(row_ptr, {nnz}, ScalarType::Int), lengths = new_tensor(row_ptr, {rows}, ScalarType::Int);
  WrongFlag wrong(row_ptr);
  launch_in_chunks(progress, op, row_ptr, rows, nnz / rows, [&](int64_t begin, int64_t end) {
    return dmic_launch_weigh_members(begin, end, row_ptr.const_data_ptr<int64_t>(), dots.const_data_ptr<double>(),
                                     values.mutable_data_ptr<int32_t>(), lengths.mutable_data_ptr<int32_t>(),
                                     wrong.data(), stream);
  });
  if (wrong.is_set()) {
    const Tensor row_ptr_copy = to_cpu(row_ptr), dots_copy = to_cpu(dots);
    raise_on_cpu(op, rows, [&](Progress& checking) {
      check_dots(checking, op, row_ptr_copy.const_data_ptr<int64_t>(), rows, dots_copy.const_data_ptr<double>());
    });
  }
  Tensor kept_ptr = row_ptr_of(lengths);
  const int64_t kept = read_int64(kept_ptr, rows);
  Tensor kept_idx = new_tensor(row_ptr, {kept}, ScalarType::Int);
  Tensor kept_values = new_tensor(row_ptr, {kept}, ScalarType::Int);
  check_launch(op, dmic_launch_drop_zeros(row_ptr.const_data_ptr<int64_t>(), col_idx.const_data_ptr<int32_t>(),
                                          values.const_data_ptr<int32_t>(), 0, rows,
                                          kept_ptr.const_data_ptr<int64_t>(), kept_idx.mutable_data_ptr<int32_t>(),
                                          kept_values.mutable_data_ptr<int32_t>(), stream));
  return {kept_ptr, kept_idx, kept_values};
}

CsrTensors no_rows(const Tensor& like) {
  return {full_int64(like, 1, 0), new_tensor(like, {0}, ScalarType::Int), new_tensor(like, {0}, ScalarType::Int)};
}

CsrTensors k_reciprocal_encoding_cuda(const Tensor& features_in, const Tensor& neighbor_idx_in, int64_t k1_half) {
  const char* op = "k_reciprocal_encoding";
  check_k_reciprocal_encoding_args(features_in, neighbor_idx_in, k1_half);
  const CurrentDevice device(features_in);
  const Tensor features = as_dense(features_in), neighbor_idx = as_dense(neighbor_idx_in);
  const int64_t rows = features.size(0);
  Progress progress(op, kStages * rows);
  CsrTensors encoding = no_rows(features);
  if (rows > 0) {
    check_finite_on_device(op, features, device.stream());
    check_neighbors_on_device(op, neighbor_idx, rows, neighbor_idx.size(1), 0, rows, device.stream());
    const auto [row_ptr, col_idx] = ReciprocalSets(op, neighbor_idx, k1_half, 0, rows, device.stream()).run(progress);
    const Tensor dots = dots_of(progress, op, features, features, row_ptr, col_idx, device.stream());
    encoding = weights_of(progress, op, row_ptr, col_idx, dots, device.stream());
  }
  progress.finish();
  return encoding;
}

std::tuple<Tensor, Tensor> k_reciprocal_sets_cuda(const Tensor& neighbor_idx_in, int64_t k1_half, int64_t begin,
                                                  int64_t end) {
  const char* op = "k_reciprocal_sets";
  check_k_reciprocal_sets_args(neighbor_idx_in, k1_half, begin, end);
  const CurrentDevice device(neighbor_idx_in);
  const Tensor neighbor_idx = as_dense(neighbor_idx_in);
  Progress progress(op, neighbor_idx.size(0) + kSetStages * (end - begin));
  check_neighbors_on_device(op, neighbor_idx, neighbor_idx.size(0), neighbor_idx.size(1), begin, end, device.stream());
  std::tuple<Tensor, Tensor> sets{full_int64(neighbor_idx, 1, 0), new_tensor(neighbor_idx, {0}, ScalarType::Int)};
  if (begin < end) sets = ReciprocalSets(op, neighbor_idx, k1_half, begin, end, device.stream()).run(progress);
  progress.finish();
  return sets;
}

Tensor sampled_dots_cuda(const Tensor& rows_in, const Tensor& others_in, const Tensor& row_ptr_in,
                         const Tensor& col_idx_in, bool check) {
  const char* op = "sampled_dots";
  check_sampled_dots_args(rows_in, others_in, row_ptr_in, col_idx_in);
  const CurrentDevice device(rows_in);
  const Tensor rows = as_dense(rows_in), others = as_dense(others_in);
  const Tensor row_ptr = as_dense(row_ptr_in), col_idx = as_dense(col_idx_in);
  Progress progress(op, rows.size(0));
  if (check) {
    check_finite_on_device(op, rows, device.stream(), "rows");
    check_finite_on_device(op, others, device.stream(), "others");
  }
  check_csr_structure_on_device(op, row_ptr, others.size(0), col_idx, device.stream());
  Tensor dots = new_tensor(rows, {0}, ScalarType::Double);
  if (rows.size(0) > 0) dots = dots_of(progress, op, rows, others, row_ptr, col_idx, device.stream());
  progress.finish();
  return dots;
}

CsrTensors k_reciprocal_weights_cuda(const Tensor& row_ptr_in, const Tensor& col_idx_in, const Tensor& dots_in) {
  const char* op = "k_reciprocal_weights";
  check_k_reciprocal_weights_args(row_ptr_in, col_idx_in, dots_in);
  const CurrentDevice device(row_ptr_in);
  const Tensor row_ptr = as_dense(row_ptr_in), col_idx = as_dense(col_idx_in), dots = as_dense(dots_in);
  const int64_t rows = row_ptr.size(0) - 1;
  Progress progress(op, rows);
  check_csr_structure_on_device(op, row_ptr, kMaxSamples, col_idx, device.stream());
  CsrTensors encoding = no_rows(row_ptr);
  if (rows > 0) encoding = weights_of(progress, op, row_ptr, col_idx, dots, device.stream());
  progress.finish();
  return encoding;
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, DMIC_CUDA_KEY, m) {
  m.impl("k_reciprocal_encoding", TORCH_BOX(&dmic::k_reciprocal_encoding_cuda));
  m.impl("k_reciprocal_sets", TORCH_BOX(&dmic::k_reciprocal_sets_cuda));
  m.impl("sampled_dots", TORCH_BOX(&dmic::sampled_dots_cuda));
  m.impl("k_reciprocal_weights", TORCH_BOX(&dmic::k_reciprocal_weights_cuda));
}
