// The same join as on the CPU: rows in chunks, whose pairs are kept exactly sized until all are known and mirrored.
// Scratch: 8 bytes per stored value (the inverted lists, of the partners alone if there are any), 24 per value of a
// chunk, 12 per pair, 16 num_cols; while mirroring 16 N and 16 bytes per pair more. Rows that overflow shared memory:
// 8 N bytes for each that is worked on at the same time.
#include "../ops/jaccard_distance.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "../canonical/jaccard.h"
#include "../cpu/parallel.h"
#include "input_checks.h"
#include "kernels/jaccard_distance.cuh"
#include "launch.h"

namespace dmic {
namespace {

constexpr const char* kOp = "jaccard_distance";
constexpr int64_t kFirstRows = tuned(1024, 10);  // a small chunk tells how many pairs to expect of the others
constexpr int64_t kRowsPerChunk = tuned(8192, 40);
constexpr int64_t kValuesPerChunk = tuned(1 << 25, 400);
constexpr int64_t kPairsPerRow = tuned(64, 1);  // expected before any is known
constexpr int64_t kTableCapacity = tuned(8192, 64);  // 80 KB: two blocks on a multiprocessor of 164 KB or more
constexpr int64_t kMaxProbes = tuned(128, 16);       // about two thirds of a table fill before one of them takes more
constexpr int kJoinThreads = tuned(512, 64);
constexpr int64_t kSortCapacity = tuned(4096, 8);
constexpr int kSortThreads = tuned(256, 64);
constexpr int64_t kSpillSlots = tuned(512, 2);
constexpr int64_t kSpillBytes = 1ll << 28;
constexpr int64_t kVerifyCost = 4;  // of looking up 32 values, in scans of 32 list entries

unsigned long long* counters_of(Tensor& tensor) {
  return reinterpret_cast<unsigned long long*>(tensor.mutable_data_ptr<int64_t>());
}

uint64_t* keys_of(Tensor& tensor) { return reinterpret_cast<uint64_t*>(tensor.mutable_data_ptr<int64_t>()); }

struct Rows {
  Tensor row_ptr, col_idx, values;

  int64_t count() const { return row_ptr.size(0) - 1; }
  int64_t nnz() const { return col_idx.size(0); }
  const int64_t* ptr() const { return row_ptr.const_data_ptr<int64_t>(); }
  const int32_t* cols() const { return col_idx.const_data_ptr<int32_t>(); }
  const int32_t* vals() const { return values.const_data_ptr<int32_t>(); }
};

struct Encoding {
  Rows joined;    // the rows that look for partners
  Rows partners;  // among these: the same rows, or others, which are numbered from joined.count() on
  bool apart;     // whether they are others
  int64_t num_cols;

  int64_t first_partner() const { return apart ? joined.count() : 0; }
  int64_t num_rows() const { return first_partner() + partners.count(); }
};

void sort_segments(const int64_t* ptr, int64_t segments, Tensor& keys, void* stream) {
  check_launch(kOp, dmic_launch_jaccard_sort(ptr, segments, keys_of(keys), kSortCapacity, kSortThreads, stream));
}

// The columns of the partners, each a list of its rows in ascending order. There is at least one value.
struct InvertedLists {
  InvertedLists(const Encoding& in, void* stream)
      : ptr(row_ptr_of(count_columns(in, stream))),
        entries(new_tensor(in.partners.row_ptr, {in.partners.nnz()}, ScalarType::Long)) {
    const Rows& rows = in.partners;
    Tensor cursors = copy_of(ptr);
    check_launch(kOp, dmic_launch_jaccard_lists(rows.ptr(), rows.cols(), rows.vals(), rows.count(), in.first_partner(),
                                                counters_of(cursors), keys_of(entries), stream));
    sort_segments(ptr.const_data_ptr<int64_t>(), in.num_cols, entries, stream);
  }

  static Tensor count_columns(const Encoding& in, void* stream) {
    Tensor counts = new_zeros(in.partners.row_ptr, in.num_cols, ScalarType::Int);
    check_launch(kOp, dmic_launch_jaccard_count(in.partners.cols(), in.partners.nnz(),
                                                counts.mutable_data_ptr<int32_t>(), stream));
    return counts;
  }

  Tensor ptr, entries;
};

struct Pairs {  // of a chunk of rows, in no order
  Tensor partners, distances;  // int32 [P or more, 2] with i < j, float32 [P, 1]

  // Room for as many of `wanted` pairs as memory allows.
  static Pairs with_room_for(const Tensor& like, int64_t wanted) {
    const Tensor partners = new_scratch(like, wanted, 2, ScalarType::Int);
    return {partners, new_scratch(like, partners.size(0), 1, ScalarType::Float)};
  }

  int64_t size() const { return distances.size(0); }

  void shrink_to(int64_t count) {
    for (Tensor* tensor : {&partners, &distances})
      if (tensor->size(0) > count) *tensor = copy_of(torch::stable::narrow(*tensor, 0, 0, count));
  }
};

// Joins rows a chunk at a time.
class Join {
 public:
  Join(const Encoding& in, int32_t threshold, void* stream)
      : in_(in),
        lists_(in, stream),
        counters_(new_zeros(in.joined.row_ptr, kJaccardCounters, ScalarType::Long)),
        threshold_(threshold),
        stream_(stream) {}

  // The scans of rows [first, last), which have `values` stored values, at least one.
  void plan(int64_t first, int64_t last, int64_t base, int64_t values) {
    const Rows& rows = in_.joined;
    Tensor keys = new_tensor(rows.row_ptr, {values}, ScalarType::Long);
    plan_ = new_tensor(rows.row_ptr, {values, 2}, ScalarType::Long);
    tiles_ = new_tensor(rows.row_ptr, {last - first}, ScalarType::Long);
    spilled_rows_ = new_tensor(rows.row_ptr, {last - first}, ScalarType::Int);
    first_ = first;
    check_launch(kOp, dmic_launch_jaccard_weigh(rows.cols() + base, rows.vals() + base, values, keys_of(keys),
                                                stream_));
    if (threshold_ > 1)  // with a threshold of 1 every column is scanned, in any order
      sort_segments(rows.ptr() + first, last - first, keys, stream_);
    check_launch(kOp, dmic_launch_jaccard_plan(rows.ptr(), first, last - first, keys_of(keys),
                                               lists_.ptr.const_data_ptr<int64_t>(), keys_of(lists_.entries),
                                               static_cast<JaccardScan*>(plan_->mutable_data_ptr()),
                                               tiles_->mutable_data_ptr<int64_t>(), stream_));
  }

  // Joins the planned rows and returns how many pairs they have. If those are more than `pairs` has room for, call it
  // again with enough.
  int64_t run(Pairs& pairs) {
    torch::stable::zero_(counters_);
    const Rows &rows = in_.joined, &partners = in_.partners;
    const int64_t row_tiles = (partners.nnz() / partners.count() + 31) / 32;
    const JaccardJoin join{rows.ptr(),
                           rows.cols(),
                           rows.vals(),
                           partners.ptr(),
                           partners.cols(),
                           partners.vals(),
                           in_.first_partner(),
                           keys_of(lists_.entries),
                           static_cast<const JaccardScan*>(plan_->mutable_data_ptr()),
                           tiles_->const_data_ptr<int64_t>(),
                           first_,
                           tiles_->size(0),
                           threshold_,
                           kVerifyCost * row_tiles,
                           spilled_rows_->mutable_data_ptr<int32_t>(),
                           pairs.partners.mutable_data_ptr<int32_t>(),
                           pairs.distances.mutable_data_ptr<float>(),
                           pairs.size(),
                           counters_of(counters_)};
    check_launch(kOp, dmic_launch_jaccard_join(&join, kTableCapacity, kMaxProbes, kJoinThreads, stream_));
    const int64_t spilled = read_int64(counters_, kJaccardSpilled);
    if (spilled > 0) {
      if (!spill_) make_room_for_spilled_rows();
      const int64_t slots = spill_->size(0);
      int32_t* overlaps = spill_->mutable_data_ptr<int32_t>();
      check_launch(kOp, dmic_launch_jaccard_join_spilled(&join, spilled, overlaps, overlaps + slots * in_.num_rows(),
                                                         std::min(spilled, slots), in_.num_rows(), kJoinThreads,
                                                         stream_));
    }
    return read_int64(counters_, kJaccardPairs);
  }

 private:
  void make_room_for_spilled_rows() {
    const int64_t slots = std::clamp<int64_t>(kSpillBytes / (8 * in_.num_rows()), 1, kSpillSlots);
    spill_ = new_scratch(in_.joined.row_ptr, slots, 2 * in_.num_rows(), ScalarType::Int);
    torch::stable::zero_(*spill_);
  }

  const Encoding& in_;
  InvertedLists lists_;
  Tensor counters_;
  const int32_t threshold_;
  void* const stream_;
  int64_t first_ = 0;
  std::optional<Tensor> plan_, tiles_, spilled_rows_;  // of rows first_ and on
  std::optional<Tensor> spill_;  // overlaps, then candidates, of every slot, once there are rows that spill
};

CsrTensors no_distances(const Encoding& in) {
  const Tensor& like = in.joined.row_ptr;
  return {full_int64(like, in.num_rows() + 1, 0), new_tensor(like, {0}, ScalarType::Int),
          new_tensor(like, {0}, ScalarType::Float)};
}

// Rows in full: the mirrored pairs, the diagonal (unless partners are apart), the pairs. There is at least one of them.
CsrTensors mirror(Progress& progress, const Encoding& in, std::vector<Pairs>& chunks, void* stream) {
  const Tensor& like = in.joined.row_ptr;
  const int64_t rows = in.num_rows();
  const int64_t* diagonal = in.apart ? nullptr : in.joined.ptr();
  Tensor lengths = new_tensor(like, {rows}, ScalarType::Int);
  check_launch(kOp,
               dmic_launch_jaccard_diagonal_lengths(diagonal, rows, lengths.mutable_data_ptr<int32_t>(), stream));
  for (const Pairs& chunk : chunks)
    check_launch(kOp, dmic_launch_jaccard_count(chunk.partners.const_data_ptr<int32_t>(), 2 * chunk.size(),
                                                lengths.mutable_data_ptr<int32_t>(), stream));
  const Tensor row_ptr = row_ptr_of(lengths);
  const int64_t total = read_int64(row_ptr, rows);
  progress.poll();
  Tensor keys = new_tensor(like, {total}, ScalarType::Long);
  Tensor cursors = new_tensor(like, {rows}, ScalarType::Long);
  check_launch(kOp, dmic_launch_jaccard_diagonal(diagonal, row_ptr.const_data_ptr<int64_t>(), rows,
                                                 counters_of(cursors), keys_of(keys), stream));
  for (const Pairs& chunk : chunks)
    check_launch(kOp, dmic_launch_jaccard_mirror(chunk.partners.const_data_ptr<int32_t>(),
                                                 chunk.distances.const_data_ptr<float>(), chunk.size(),
                                                 counters_of(cursors), keys_of(keys), stream));
  chunks.clear();
  sort_segments(row_ptr.const_data_ptr<int64_t>(), rows, keys, stream);
  Tensor col_idx = new_tensor(like, {total}, ScalarType::Int);
  Tensor values = new_tensor(like, {total}, ScalarType::Float);
  check_launch(kOp, dmic_launch_jaccard_unpack(keys_of(keys), total, col_idx.mutable_data_ptr<int32_t>(),
                                               values.mutable_data_ptr<float>(), stream));
  return {row_ptr, col_idx, values};
}

CsrTensors jaccard_distance_cuda(const Tensor& row_ptr_in, const Tensor& col_idx_in, const Tensor& values_in,
                                 double max_distance, int64_t max_pairs, const OptionalTensor& partner_row_ptr_in,
                                 const OptionalTensor& partner_col_idx_in, const OptionalTensor& partner_values_in,
                                 int64_t num_cols) {
  check_jaccard_distance_args(row_ptr_in, col_idx_in, values_in, max_distance, partner_row_ptr_in, partner_col_idx_in,
                              partner_values_in, num_cols);
  const CurrentDevice device(row_ptr_in);
  const bool apart = partner_row_ptr_in.has_value();
  const Rows joined{as_dense(row_ptr_in), as_dense(col_idx_in), as_dense(values_in)};
  const Rows partners = apart ? Rows{as_dense(*partner_row_ptr_in), as_dense(*partner_col_idx_in),
                                     as_dense(*partner_values_in)}
                              : joined;
  const Encoding in{joined, partners, apart, num_cols < 0 ? joined.count() : num_cols};
  Progress progress(kOp, joined.count());
  const auto check = [&](const char* name, const Rows& rows) {
    check_encoding_on_device(name, rows.row_ptr, in.num_cols, rows.col_idx, rows.values, device.stream());
  };
  check(kOp, joined);
  if (apart) check("jaccard_distance: partners", partners);
  if (joined.nnz() == 0 || partners.nnz() == 0) {  // nothing that looks, or nothing to look among
    progress.finish();
    return no_distances(in);
  }
  const Tensor row_ptr_here = to_cpu(joined.row_ptr);  // chunks are cut by their size
  const int64_t* ptr = row_ptr_here.const_data_ptr<int64_t>();
  std::vector<Pairs> chunks;
  {
    Join join(in, smallest_overlap_within(static_cast<float>(max_distance)), device.stream());
    int64_t pairs_found = 0, pairs_per_row = kPairsPerRow;
    for (int64_t first = 0, last; first < joined.count(); first = last) {
      const int64_t most = std::min(joined.count(), first + (first == 0 ? kFirstRows : kRowsPerChunk));
      for (last = first + 1; last < most && ptr[last + 1] - ptr[first] <= kValuesPerChunk;) ++last;
      if (ptr[last] > ptr[first]) {
        join.plan(first, last, ptr[first], ptr[last] - ptr[first]);
        std::optional<Pairs> pairs = Pairs::with_room_for(joined.row_ptr, pairs_per_row * (last - first));
        const int64_t found = join.run(*pairs);
        pairs_found += found;
        DMIC_CHECK(max_pairs < 0 || pairs_found <= max_pairs, kOp, ": more than max_pairs=", max_pairs,
                   " pairs are within max_distance=", max_distance, "; lower max_distance or allow more");
        if (found > pairs->size()) {
          pairs.reset();  // its memory may be what the right size needs
          pairs = Pairs{new_tensor(joined.row_ptr, {found, 2}, ScalarType::Int),
                        new_tensor(joined.row_ptr, {found, 1}, ScalarType::Float)};
          join.run(*pairs);
        }
        pairs_per_row = std::max(kPairsPerRow, 2 * found / (last - first));
        if (found > 0) {
          pairs->shrink_to(found);
          chunks.push_back(std::move(*pairs));
        }
      }
      progress.add(last - first);
      progress.poll();
      progress.check();
    }
  }
  const bool found_any = !apart || !chunks.empty();
  CsrTensors distance = found_any ? mirror(progress, in, chunks, device.stream()) : no_distances(in);
  progress.finish();
  return distance;
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, DMIC_CUDA_KEY, m) {
  m.impl("jaccard_distance", TORCH_BOX(&dmic::jaccard_distance_cuda));
}
