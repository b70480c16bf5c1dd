// A sparse join that emits only the pairs within max_distance, exactly.
//
// Rows take turns in an order in which those that scan the same lists follow each other. A row scans the inverted lists
// of its columns by falling weight, and only rows with later turns. What is left in it after the scanned columns bounds
// what any pair can still gain: once it is below the overlap that max_distance asks for, no new candidate can qualify,
// and candidates that cannot reach it with what is left are dropped. As soon as summing the few that remain over their
// whole rows is cheaper than scanning on, that is done. All integers: bounds need no slack.
// Operations: list entries scanned (a tenth to all of sum over columns of list length^2 / 2) plus survivors x row length.
// Scratch: 8 bytes per stored value (the inverted lists), 8 N + 12 num_cols bytes per thread, 12 N + 16 num_cols, 8 bytes
// per emitted pair. With partners the lists hold those alone, and one entry more each.
#include "../ops/jaccard_distance.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "../canonical/jaccard.h"
#include "csr_builder.h"
#include "parallel.h"
#include "simd.h"

namespace dmic {
namespace {

constexpr int64_t kRowsPerChunk = 32;
constexpr size_t kColumnsPerStep = 16;     // scanned between two looks at the candidates
constexpr int64_t kColumnsPerPiece = 128;  // of a candidate's row, summed between two looks at what it can still reach
constexpr double kSumCost = 2;             // of a value of a candidate's row, in list entries

struct Entry {  // of an inverted list
  int32_t turn, value;
};

struct Row {
  const int32_t *col_idx, *values;
  int64_t length;
};

struct Rows {
  const int64_t* row_ptr;
  const int32_t* col_idx;
  const int32_t* values;
  int64_t count, nnz;

  Rows(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values)
      : row_ptr(row_ptr.const_data_ptr<int64_t>()),
        col_idx(col_idx.const_data_ptr<int32_t>()),
        values(values.const_data_ptr<int32_t>()),
        count(row_ptr.size(0) - 1),
        nnz(col_idx.size(0)) {}

  Row operator[](int64_t i) const { return {col_idx + row_ptr[i], values + row_ptr[i], row_ptr[i + 1] - row_ptr[i]}; }
};

struct Encoding {
  Rows joined;           // the rows that look for partners
  Rows partners;         // among these: the same rows, or others, which are numbered from joined.count on
  bool apart;            // whether they are others
  int64_t num_cols;
  const int32_t* order;  // order[turn] is the row

  int64_t first_partner() const { return apart ? joined.count : 0; }
  int64_t num_rows() const { return first_partner() + partners.count; }
  Row row(int64_t i) const { return i < joined.count ? joined[i] : partners[i - joined.count]; }
};

// An order of the rows of either side in which those that scan the same lists follow each other: each row brings along
// all whose heaviest column it has.
std::vector<int32_t> order_by_columns(const Encoding& in, Progress& progress) {
  std::vector<int32_t> order, by_column(in.num_rows()), heaviest(in.num_rows());
  order.reserve(in.num_rows());
  std::vector<bool> taken(in.num_rows());
  const int64_t split = in.first_partner();
  for (const auto& [begin, end] : {std::pair(int64_t{0}, split), std::pair(split, in.num_rows())}) {
    std::vector<int64_t> first(in.num_cols + 3);  // rows without a column come last
    for (int64_t i = begin; i < end; ++i) {
      const Row row = in.row(i);
      heaviest[i] = row.length ? row.col_idx[std::max_element(row.values, row.values + row.length) - row.values]
                               : static_cast<int32_t>(in.num_cols);
      progress.poll();
      ++first[int64_t{heaviest[i]} + 2];
    }
    std::partial_sum(first.begin(), first.end(), first.begin());
    for (int64_t i = begin; i < end; ++i) by_column[first[int64_t{heaviest[i]} + 1]++] = static_cast<int32_t>(i);
    const auto take = [&](int32_t i) {
      if (!taken[i]) order.push_back(i);
      taken[i] = true;
    };
    std::vector<bool> done(in.num_cols);
    for (int64_t i = begin; i < end; ++i) {
      progress.poll();
      if (taken[i]) continue;
      take(i);
      const Row row = in.row(i);
      for (int64_t t = 0; t < row.length; ++t) {
        const int32_t column = row.col_idx[t];
        if (done[column]) continue;
        done[column] = true;
        for (int64_t u = first[column]; u < first[column + 1]; ++u) take(by_column[u]);
      }
    }
    progress.check();
  }
  return order;
}

// The columns of the partners, each a list of the turns of its rows, ascending. A scan starts at the back and ends with
// its own turn; where partners are other rows no list has it, so each begins with an entry of turn -1. Lists lie in the
// order in which the rows come to need them.
class InvertedLists {
 public:
  InvertedLists(const Encoding& in, Progress& progress) : num_ends_(in.apart), lists_(in.num_cols) {
    // Workers own ranges of rows; offsets by (range, column) make the fill independent of the order of workers.
    const int64_t first = in.first_partner(), rows = in.partners.count;
    const int64_t ranges = std::min<int64_t>(num_workers(rows), 16);
    std::vector<std::vector<int64_t>> next(ranges, std::vector<int64_t>(in.num_cols));
    const auto for_each_stored = [&](const auto& visit) {
      for_each_item(progress, ranges, [] { return NoState{}; }, [&](int64_t range, NoState&) {
        const int64_t last = first + rows * (range + 1) / ranges;
        for (int64_t turn = first + rows * range / ranges; turn < last && !progress.stopped(); ++turn) {
          const Row row = in.row(in.order[turn]);
          for (int64_t t = 0; t < row.length; ++t) visit(range, turn, row.col_idx[t], row.values[t]);
          progress.poll();
        }
      });
    };
    for_each_stored([&](int64_t range, int64_t, int32_t column, int32_t) { ++next[range][column]; });
    int64_t total = 0;
    std::vector<bool> placed(in.num_cols);
    const auto place = [&](int64_t column) {
      if (placed[column]) return;
      placed[column] = true;
      lists_[column].begin = total;
      total += num_ends_;
      for (auto& offsets : next) {
        const int64_t count = offsets[column];
        offsets[column] = total;
        total += count;
      }
      lists_[column].end = total;
    };
    for (int64_t turn = 0; turn < in.num_rows(); ++turn) {
      const Row row = in.row(in.order[turn]);
      for (int64_t t = 0; t < row.length; ++t) place(row.col_idx[t]);
      progress.poll();
    }
    progress.check();
    entries_.reset(new Entry[total]);
    for (int64_t column = 0; num_ends_ > 0 && column < in.num_cols; ++column)
      if (placed[column]) entries_[lists_[column].begin] = {-1, 0};
    for_each_stored([&](int64_t range, int64_t turn, int32_t column, int32_t value) {
      entries_[next[range][column]++] = {static_cast<int32_t>(turn), value};
    });
  }

  int64_t length(int64_t column) const { return lists_[column].end - lists_[column].begin - num_ends_; }

  const Entry* end(int64_t column) const { return entries_.get() + lists_[column].end; }

  // The back of a list, where a scan begins; the processor finds the rest itself.
  void prefetch(int64_t column) const {
    const Entry* back = end(column);
    for (int64_t t = 1; t <= std::min<int64_t>(length(column), 128); t += 8) __builtin_prefetch(back - t);
  }

 private:
  const int64_t num_ends_;  // entries of turn -1 in every list
  struct List {
    int64_t begin, end;
  };
  std::vector<List> lists_;
  std::unique_ptr<Entry[]> entries_;
};

struct Pairs {  // of a chunk of turns: partners, which have their turns later, with their overlaps
  std::vector<int32_t> partners, overlaps, lengths;
};

struct Worker {
  explicit Worker(const Encoding& in) : overlap(in.num_rows()), dense(in.num_cols), candidates(in.num_rows() + 1) {}
  std::vector<int32_t> overlap;     // [turns] of the candidates, zero between rows
  std::vector<int32_t> dense;       // [num_cols] the row spread out, zero between rows
  std::vector<int32_t> candidates;  // the first num_candidates; one more is room for a branch-free append
  int64_t num_candidates = 0;
  std::vector<uint64_t> columns;  // value and column, the heaviest first
};

// Adds a column to every row of its list with a later turn; rows seen for the first time become candidates. The row
// itself is in the list, or turn -1, and ends the scan, which starts at the back.
void scan_and_append(const Entry* entry, int32_t turn, int32_t value, Worker& worker) {
  int32_t* overlap = worker.overlap.data();
  int32_t* candidates = worker.candidates.data();
  int64_t count = worker.num_candidates;
  while ((--entry)->turn > turn) {
    const int32_t before = overlap[entry->turn];
    candidates[count] = entry->turn;
    count += before == 0;
    overlap[entry->turn] = before + std::min(value, entry->value);
  }
  worker.num_candidates = count;
}

// The same for candidates alone: a row that is none, or was dropped, stays at zero.
void scan_candidates(const Entry* entry, int32_t turn, int32_t value, Worker& worker) {
  int32_t* overlap = worker.overlap.data();
  while ((--entry)->turn > turn) {
    const int32_t before = overlap[entry->turn];
    overlap[entry->turn] = before + (before == 0 ? 0 : std::min(value, entry->value));
  }
}

void drop_candidates_below(int32_t overlap, Worker& worker) {
  int64_t kept = 0;
  for (int64_t t = 0; t < worker.num_candidates; ++t) {
    const int32_t j = worker.candidates[t];
    const bool keep = worker.overlap[j] >= overlap;
    worker.candidates[kept] = j;
    kept += keep;
    if (!keep) worker.overlap[j] = 0;
  }
  worker.num_candidates = kept;
}

// The overlap of a row with the one spread out in `dense`, or less than the threshold if it is below: the rest of the
// row cannot add more than its mass.
int32_t whole_overlap(const Row& row, int32_t threshold, const SimdKernels& kernels, const int32_t* dense) {
  int32_t overlap = 0, left = kOne;
  for (int64_t t = 0; t < row.length && overlap + left >= threshold; t += kColumnsPerPiece) {
    const int64_t end = std::min(row.length, t + kColumnsPerPiece);
    overlap += static_cast<int32_t>(kernels.overlap(dense, row.col_idx + t, row.values + t, end - t));
    for (int64_t u = t; u < end; ++u) left -= row.values[u];
  }
  return overlap;
}

void join_row(const Encoding& in, const InvertedLists& lists, int64_t turn, int32_t threshold, const SimdKernels& kernels,
              Worker& worker, Pairs& out) {
  const Row row = in.joined[in.order[turn]];
  auto& columns = worker.columns;
  columns.clear();
  int64_t unscanned = 0;  // list entries of the columns that are not yet scanned
  for (int64_t t = 0; t < row.length; ++t) {
    columns.push_back(static_cast<uint64_t>(kOne - row.values[t]) << 32 | row.col_idx[t]);
    unscanned += lists.length(row.col_idx[t]);
  }
  if (unscanned == 0) {
    out.lengths.push_back(0);
    return;
  }
  const double num_partners = static_cast<double>(in.partners.count);
  const double later = in.apart ? 1 : (num_partners - static_cast<double>(turn)) / num_partners;
  const double row_length = static_cast<double>(in.partners.nnz) / num_partners;
  int32_t left = row.length ? kOne : 0;  // mass of row i that is not yet scanned
  worker.num_candidates = 0;
  const auto column_at = [&](size_t c) { return static_cast<int64_t>(columns[c] & 0xffffffff); };
  size_t sorted = 0;  // columns that are not lighter than any behind them
  for (size_t c = 0; c < columns.size(); ++c) {
    if (c % kColumnsPerStep == 0 && left < threshold) {
      drop_candidates_below(threshold - left, worker);
      if (kSumCost * static_cast<double>(worker.num_candidates) * row_length <= static_cast<double>(unscanned) * later) break;
    }
    if (c == sorted && threshold > 1) {  // with a threshold of 1 every column is scanned, in any order
      sorted = std::min(columns.size(), 2 * sorted + kColumnsPerStep);
      std::nth_element(columns.begin() + c, columns.begin() + (sorted - 1), columns.end());
    }
    if (c + 1 < columns.size()) lists.prefetch(column_at(c + 1));
    const int64_t column = column_at(c);
    const Entry* end = lists.end(column);
    const int32_t value = kOne - static_cast<int32_t>(columns[c] >> 32);
    if (left >= threshold) scan_and_append(end, static_cast<int32_t>(turn), value, worker);
    else scan_candidates(end, static_cast<int32_t>(turn), value, worker);
    left -= value;
    unscanned -= lists.length(column);
  }
  drop_candidates_below(std::max(1, threshold - left), worker);
  std::sort(worker.candidates.begin(), worker.candidates.begin() + worker.num_candidates);
  const bool partial = left > 0 && worker.num_candidates > 0;
  if (partial)
    for (int64_t t = 0; t < row.length; ++t) worker.dense[row.col_idx[t]] = row.values[t];
  const size_t before = out.partners.size();
  for (int64_t t = 0; t < worker.num_candidates; ++t) {
    const int32_t j = in.order[worker.candidates[t]];
    int32_t overlap = std::exchange(worker.overlap[worker.candidates[t]], 0);
    if (partial) overlap = whole_overlap(in.row(j), threshold, kernels, worker.dense.data());
    if (overlap < threshold) continue;
    out.partners.push_back(j);
    out.overlaps.push_back(overlap);
  }
  if (partial)
    for (int64_t t = 0; t < row.length; ++t) worker.dense[row.col_idx[t]] = 0;
  out.lengths.push_back(static_cast<int32_t>(out.partners.size() - before));
}

// Rows in full: the pairs of both directions and (unless partners are apart) the diagonal, in ascending columns.
CsrTensors mirror(Progress& progress, const Tensor& like, const Encoding& in, std::vector<Pairs>& chunks) {
  const int64_t rows = in.num_rows();
  Tensor row_ptr = new_tensor(like, {rows + 1}, ScalarType::Long);
  int64_t* ptr = row_ptr.mutable_data_ptr<int64_t>();
  std::vector<int64_t> next(rows);  // first the lengths, then where each row continues
  const auto has_diagonal = [&](int64_t i) { return !in.apart && in.joined[i].length > 0; };
  const int32_t* row = in.order;
  for (const Pairs& chunk : chunks) {
    for (const int32_t length : chunk.lengths) next[*row++] += length;
    for (const int32_t j : chunk.partners) ++next[j];
    progress.poll();
  }
  ptr[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    ptr[i + 1] = ptr[i] + next[i] + has_diagonal(i);
    next[i] = ptr[i];
  }
  Tensor col_idx = new_tensor(like, {ptr[rows]}, ScalarType::Int);
  Tensor values = new_tensor(like, {ptr[rows]}, ScalarType::Float);
  int32_t* cols_out = col_idx.mutable_data_ptr<int32_t>();
  float* values_out = values.mutable_data_ptr<float>();
  const auto put = [&](int64_t i, int64_t j, float value) {
    cols_out[next[i]] = static_cast<int32_t>(j);
    values_out[next[i]++] = value;
  };
  row = in.order;
  for (Pairs& chunk : chunks) {
    size_t t = 0;
    for (const int32_t length : chunk.lengths) {
      const int32_t i = *row++;
      if (has_diagonal(i)) put(i, i, 0.0f);
      for (const size_t end = t + length; t < end; ++t) {
        const float distance = jaccard_from_overlap(chunk.overlaps[t]);
        put(i, chunk.partners[t], distance);
        put(chunk.partners[t], i, distance);
      }
    }
    chunk = {};
    progress.poll();
  }
  for_each_chunk(
      progress, rows, kRowsPerChunk, [] { return std::vector<std::pair<int32_t, float>>(); },
      [&](int64_t begin, int64_t end, std::vector<std::pair<int32_t, float>>& sorted) {
        for (int64_t i = begin; i < end; ++i) {
          sorted.clear();
          for (int64_t t = ptr[i]; t < ptr[i + 1]; ++t) sorted.emplace_back(cols_out[t], values_out[t]);
          std::sort(sorted.begin(), sorted.end());
          for (int64_t t = ptr[i]; t < ptr[i + 1]; ++t) std::tie(cols_out[t], values_out[t]) = sorted[t - ptr[i]];
        }
      });
  return {row_ptr, col_idx, values};
}

CsrTensors jaccard_distance_cpu(const Tensor& row_ptr_in, const Tensor& col_idx_in, const Tensor& values_in,
                                double max_distance, int64_t max_pairs, const OptionalTensor& partner_row_ptr_in,
                                const OptionalTensor& partner_col_idx_in, const OptionalTensor& partner_values_in,
                                int64_t num_cols) {
  check_jaccard_distance_args(row_ptr_in, col_idx_in, values_in, max_distance, partner_row_ptr_in, partner_col_idx_in,
                              partner_values_in, num_cols);
  using torch::stable::contiguous;
  const bool apart = partner_row_ptr_in.has_value();
  const Tensor row_ptr = contiguous(row_ptr_in), col_idx = contiguous(col_idx_in), values = contiguous(values_in);
  const Tensor partner_row_ptr = apart ? contiguous(*partner_row_ptr_in) : row_ptr;
  const Tensor partner_col_idx = apart ? contiguous(*partner_col_idx_in) : col_idx;
  const Tensor partner_values = apart ? contiguous(*partner_values_in) : values;
  const Rows joined(row_ptr, col_idx, values), partners(partner_row_ptr, partner_col_idx, partner_values);
  Encoding in{joined, partners, apart, num_cols < 0 ? joined.count : num_cols, nullptr};
  Progress progress("jaccard_distance", joined.count);
  const auto check = [&](const char* name, const Rows& rows) {
    check_encoding(progress, name, rows.row_ptr, rows.count, in.num_cols, rows.col_idx, rows.values, rows.nnz);
  };
  check("jaccard_distance", joined);
  if (apart) check("jaccard_distance: partners", partners);
  const int32_t threshold = smallest_overlap_within(static_cast<float>(max_distance));
  const SimdKernels& kernels = simd();
  const std::vector<int32_t> order = order_by_columns(in, progress);
  in.order = order.data();
  std::vector<Pairs> chunks((joined.count + kRowsPerChunk - 1) / kRowsPerChunk);
  {
    const InvertedLists lists(in, progress);
    std::atomic<int64_t> pairs_found{0};
    for_each_chunk(
        progress, joined.count, kRowsPerChunk, [&] { return Worker(in); },
        [&](int64_t begin, int64_t end, Worker& worker) {
          Pairs pairs;
          for (int64_t turn = begin; turn < end && !progress.stopped(); ++turn) {
            join_row(in, lists, turn, threshold, kernels, worker, pairs);
            progress.poll();  // a row can take a while: thousands of values in lists of thousands
          }
          pairs.partners.shrink_to_fit();
          pairs.overlaps.shrink_to_fit();
          const int64_t found = static_cast<int64_t>(pairs.partners.size());
          DMIC_CHECK(max_pairs < 0 || pairs_found.fetch_add(found) + found <= max_pairs,
                     "jaccard_distance: more than max_pairs=", max_pairs, " pairs are within max_distance=", max_distance,
                     "; lower max_distance or allow more");
          chunks[begin / kRowsPerChunk] = std::move(pairs);
          progress.add(end - begin);
        });
  }
  progress.check();
  CsrTensors distance = mirror(progress, row_ptr_in, in, chunks);
  progress.finish();
  return distance;
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, CPU, m) {
  m.impl("jaccard_distance", TORCH_BOX(&dmic::jaccard_distance_cpu));
}
