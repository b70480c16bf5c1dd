// Exact nearest neighbours by a blocked product that only proposes candidates.
//
// Each tile of X X^T is computed once in float32 and serves its rows and its columns. A score that cannot be among the
// k1 nearest, given a rigorous bound on its rounding error and the row's running threshold, is dropped on the spot; the
// rare survivors are appended to the row's list. Lists that fill up are compacted, and where ties or tiny differences
// keep them full, re-scored exactly. At the end every list is re-scored with the canonical float64 distance and sorted
// by (distance, index): the result does not depend on tiles, threads or instruction set.
//
// Where the processor multiplies shorter values faster (bfloat16 with AMX, int16 with VNNI), tiles are products of rows
// rounded to those, and the bound has what rounding took from the rows; unless a sample of pairs shows that this would
// propose too many.
//
// With m directions a tile is first compared by sketches of m + 1 numbers, whose products bound x.y from above; the few
// pairs that this does not settle get their canonical distance at once, and a tile with too many of them is computed as
// above. The neighbours among sketches, searched first, are what lists start with. Directions that suit the features
// badly cost time and change no bit.
//
// With a split, tiles are of one side's rows and the other's columns, and lists start empty; thresholds that the caller
// gives take the place of the neighbours among sketches.
//
// Operations: N^2 d multiply-adds / 2 and 256 N d for first thresholds, plus about 1.1 k1 N canonical dot products of d;
// with directions N^2 (m + 1) + N d m, plus k1 N canonical dot products and one for each pair that only the bound
// proposes; with a split, the product of its sides for N^2 / 2. Scratch: 8 (2 k1 + 32) N + 36 N bytes, with directions
// 4 (m + 1 + k1) N more, 2 KB x d for a while, and about 3 MB + 4 KB x d per thread.
#include "../ops/knn_graph.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "../canonical/dot.h"
#include "features.h"
#include "neighbor_order.h"
#include "parallel.h"
#include "simd.h"

namespace dmic {
namespace {

constexpr int64_t kTileRows = 252, kTileCols = 512;  // panels of both and their scores stay in a 2 MB L2 cache
constexpr int64_t kSharedColTiles = 4, kManyRows = 1 << 14;  // so many tiles share rows that are rounded once,
constexpr int64_t kDeepCols = 1024;                  // if those have one step of depth; else each tile rounds them anew
constexpr int64_t kLineFloats = 16;                  // of a cache line
constexpr int64_t kMaxTile = 2048;                   // of either side, whatever block_rows asks for
constexpr int64_t kRowTilesPerItem = 8;              // packed columns serve this many tiles each
constexpr int64_t kRowsPerLock = 256;
constexpr int64_t kRowsPerChunk = 32;
constexpr int64_t kDotCost = 6;                      // of a canonical dot product, in multiply-adds of a tile, per column
constexpr int64_t kSeedCheck = 4;                    // at most one in so many pairs is looked up among the seeds
constexpr int64_t kSketchRoom = 4;                   // entries beyond k1 after which a list of exact distances is cut
constexpr double kMaxSkew = 1.0 / 16;                // of directions that are not quite orthonormal
constexpr double kRounding = 0x1p-24;                // unit roundoff of float32
constexpr int64_t kSampleRows = 32, kSampleCols = 1024, kSamplePlace = 8;  // decide whether rounded rows will do,
constexpr int64_t kMostPassed = 4;                   // which lets pass at most so many pairs in place of one
constexpr double kMostShare = 1.0 / 16;              // of half of the rows that rounding may take, see SimdKernels::bounds
constexpr int64_t kFirstCols = 256, kFirstFrom = 4096;  // samples that give the first thresholds, from so many rows on
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

float float_below(double value) {
  const float rounded = static_cast<float>(value);
  return rounded > value ? std::nextafter(rounded, -kInfinity) : rounded;
}

float float_above(double value) { return -float_below(-value); }

struct FreeAligned {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
template <typename T>
using Aligned = std::unique_ptr<T[], FreeAligned>;  // on a cache line, not initialised

template <typename T>
Aligned<T> new_aligned(int64_t count) {
  return Aligned<T>(static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t(64))));
}

// Copies rows [first, first + count) and columns [depth_begin, depth_begin + depth) into panels of `panel` rows:
// out[p][k][r], zero beyond the end, multiplied by a power of two (exact, or rounded below the scaled underflow).
void pack(const float* features, int64_t d, int64_t first, int64_t count, int64_t panel, int64_t depth_begin,
          int64_t depth, double scale, float* out) {
  constexpr int64_t kLine = 16;  // floats of a cache line: read whole lines of each row
  for (int64_t p = 0; p < count; p += panel, out += panel * depth) {
    const int64_t rows = std::min(panel, count - p);
    for (int64_t k = 0; k < depth; k += kLine) {
      const int64_t line = std::min(kLine, depth - k);
      for (int64_t r = 0; r < rows; ++r) {
        const float* source = features + (first + p + r) * d + depth_begin + k;
        for (int64_t t = 0; t < line; ++t) out[(k + t) * panel + r] = static_cast<float>(source[t] * scale);
      }
      for (int64_t r = rows; r < panel; ++r)
        for (int64_t t = 0; t < line; ++t) out[(k + t) * panel + r] = 0.0f;
    }
  }
}

class Search {
 public:
  Search(const float* features, int64_t rows, int64_t d, int64_t k1, int64_t block_rows, const float* directions,
         int64_t num_directions, int64_t split, const float* farthest, bool approximate = false)
      : kernels_(simd()),
        features_(features),
        directions_(directions),
        farthest_(farthest),
        rows_(rows),
        split_(split),
        d_(d),
        k1_(k1),
        width_(num_directions ? num_directions + 1 : 0),
        capacity_(std::min(rows, 2 * k1 + 32)),
        room_(width_ ? std::min(capacity_, k1 + kSketchRoom) : capacity_),
        approximate_(approximate),
        rounded_(kernels_.rounded),
        tile_rows_(round_up(block_rows ? std::min(block_rows, kMaxTile) : kTileRows,
                            rounded_ ? rounded_->panel_rows : kernels_.panel_rows)),
        tile_cols_(round_up(block_rows ? std::min(block_rows, kMaxTile) : rounded_ && is_deep() ? kDeepCols : kTileCols,
                            kernels_.panel_cols)),
        col_tiles_(!rounded_ || is_deep() ? 1 : rows < kManyRows ? kSharedColTiles / 2 : kSharedColTiles),
        stride_(tile_cols_ + kLineFloats),
        norm_sq_(rows),
        length_(rows),
        reach_(rows),
        norm_(rows),
        limit_(rows, -kInfinity),
        count_(rows, 0),
        exact_(rows, 0),
        keys_(new float[rows * capacity_]),
        idx_(new int32_t[rows * capacity_]),
        locks_((rows + kRowsPerLock - 1) / kRowsPerLock) {}

  // Work of the whole search in the units of its progress: scores, and rows to finish.
  int64_t work() const {
    int64_t scores = 0;
    for (int64_t col = split_; col < rows_; col += item_cols()) {
      const int64_t end = std::min(rows_, col + item_cols());
      scores += (end - col) * rows_before(end);
    }
    return (scores + rows_ * kFinishWeight) * (width_ && !farthest_ ? 2 : 1);
  }

  void run(Progress& progress, int32_t* neighbor_idx, float* neighbor_dist) {
    measure(progress);
    if (width_) {
      sketch(progress);
      if (!farthest_) seed(progress);
    }
    compare(progress);
    finish(progress, neighbor_idx, neighbor_dist);
  }

 private:
  static constexpr int64_t kFinishWeight = 512;  // progress units of finishing a row, in scores

  struct Block {  // consecutive rows
    int64_t begin, count;
  };

  struct Matrix {  // whose rows are multiplied with each other, times scale
    const float* rows;
    int64_t width;
    double scale;
    const RoundedKernels* rounded = nullptr;  // null: they stay float32
    float unit = 1;                           // of a product of rounded values
  };

  // Whether tiles have several steps of depth.
  bool is_deep() const { return (width_ ? width_ : d_) > kTileDepth; }

  // Columns that are packed at a time, in tiles.
  int64_t item_cols() const { return tile_cols_ * col_tiles_; }

  // The rows that a block of columns is compared with: those before its end, or the other side.
  int64_t rows_before(int64_t col_end) const { return split_ ? split_ : col_end; }

  // The most samples that the list of a row can hold.
  int64_t most_neighbors(int64_t i) const { return split_ == 0 ? rows_ : i < split_ ? rows_ - split_ : split_; }

  // Rows of a tile as either product pads them.
  int64_t padded_tile_rows() const { return round_up(tile_rows_, kernels_.panel_rows); }

  // Bytes of packed panels of so many rows or columns.
  static int64_t panel_bytes(const RoundedKernels* rounded, int64_t count, int64_t depth) {
    return rounded ? count * round_up(depth, rounded->step) * rounded->value_bytes
                   : count * depth * static_cast<int64_t>(sizeof(float));
  }

  struct Scratch {  // one per worker
    std::vector<double> wide, dots;
    std::vector<float> lower, upper;
    std::vector<uint64_t> ranked;
    std::vector<int32_t> pending;
  };

  Scratch new_scratch() const {
    Scratch scratch;
    scratch.wide.resize(d_ + kDotLanes);
    scratch.dots.resize(std::max(capacity_, tile_cols_));
    scratch.lower.resize(capacity_);
    scratch.upper.resize(capacity_);
    scratch.ranked.resize(capacity_);
    scratch.pending.resize(tile_cols_);
    return scratch;
  }

  // Norms, and the power of two that brings the longest row into [1/2, 1): products then neither overflow nor lose
  // more than kTileUnderflow.
  void measure(Progress& progress) {
    canonical_norms(progress, features_, rows_, d_, norm_sq_.data());
    const bool finite = std::all_of(norm_sq_.begin(), norm_sq_.end(), [](double norm_sq) { return std::isfinite(norm_sq); });
    if (!finite) check_finite(progress, "knn_graph", features_, rows_, d_);  // squares of float32 do not overflow float64
    const double largest = rows_ ? *std::max_element(norm_sq_.begin(), norm_sq_.end()) : 0.0;
    int exponent = 0;
    std::frexp(std::sqrt(largest), &exponent);
    scale_ = std::ldexp(1.0, -exponent);
    scale_sq_ = scale_ * scale_;
    for (int64_t i = 0; i < rows_; ++i) {
      const double norm_sq = norm_sq_[i] * scale_sq_, length = std::sqrt(norm_sq) * (1 + kRounding);
      length_[i] = float_above(length);
      norm_[i] = float_below(norm_sq * (1 - 16 * kRounding) - 4 * kTileUnderflow);
    }
    full_ = {features_, d_, scale_};
    if (rounded_ && largest > 0 && std::isnormal(static_cast<float>(scale_ * rounded_->factor))) round_rows(progress);
    if (!full_.rounded && !approximate_) error_ = tile_error(d_);
    error_ += 8 * kRounding;  // of the float32 arithmetic of the filter
    for (int64_t i = 0; i < rows_; ++i) reach_[i] = float_above(2 * error_ * length_[i]);
  }

  Matrix as_rounded(const Matrix& matrix) const {
    const float factor = rounded_->factor;
    return {matrix.rows, matrix.width, matrix.scale * factor, rounded_, 1 / (factor * factor)};
  }

  // Bounds of |x - x'|, in scaled units, of each row x' of `count` rounded values. What is too little for its square to
  // be a float32 is made up for.
  std::vector<double> lost_to_rounding(Progress& progress, const Matrix& matrix, int64_t count) const {
    std::vector<double> lost(rows_);
    for_each_chunk(progress, rows_, kRowsPerChunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* row = matrix.rows + i * matrix.width;
        const double squares = matrix.rounded->residual(row, count, static_cast<float>(matrix.scale)) * matrix.unit;
        lost[i] = 1.001 * std::sqrt(squares) + kRounding * length_[i] + 0x1p-50;
      }
    });
    progress.check();
    return lost;
  }

  // With |x - x'| <= e l and |x| <= l for all rows and their lengths l, x.y is off by at most (2 e + e^2) times both
  // lengths, and the product of the rounded rows by its own error.
  static double error_of_rounded(const RoundedKernels& rounded, double e, int64_t count) {
    return 1.02 * (1 + e) * (1 + e) * rounded.tile_error(count) + e * (2 + e);
  }

  // Takes rounded rows where they will do. With e, the share that rounding takes from half of the rows at most, a row from
  // which it takes more counts as longer: integers are as coarse for short rows as for long ones.
  void round_rows(Progress& progress) {
    const Matrix rounded = as_rounded(full_);
    if (!approximate_) {
      const std::vector<double> lost = lost_to_rounding(progress, rounded, d_);
      std::vector<double> share;
      for (int64_t i = 0; i < rows_; ++i)
        if (length_[i] > 0) share.push_back(lost[i] / length_[i]);
      const auto middle = share.begin() + static_cast<int64_t>(share.size() / 2);
      std::nth_element(share.begin(), middle, share.end());
      const double e = *middle, error = error_of_rounded(*rounded_, e, d_);
      std::vector<float> length = length_;
      for (int64_t i = 0; i < rows_; ++i) length[i] = std::max(length[i], float_above(lost[i] / e));
      if (e > kMostShare || !rounding_will_do(progress, error, length)) return;
      error_ = error;
      length_ = std::move(length);
    }
    full_ = rounded;
  }

  // Whether the error of rounding lets so few pairs pass that it is faster: a sample shows how many more of them are as
  // near as the k1-th nearest but for the error, or as the kSamplePlace-th of the sample where that is farther.
  bool rounding_will_do(Progress& progress, double error, const std::vector<float>& length) const {
    if (rows_ <= capacity_) return true;
    const int64_t queries = std::min(rows_, kSampleRows), others = std::min(rows_, kSampleCols);
    const int64_t place = std::min(others - 1, std::max(kSamplePlace, k1_ * others / rows_));
    std::vector<int32_t> idx(others);
    for (int64_t t = 0; t < others; ++t) idx[t] = static_cast<int32_t>(t * rows_ / others);
    std::vector<int64_t> passed(queries);
    struct Worker {
      std::vector<double> wide, dots, dist;
    };
    const auto new_worker = [&] {
      return Worker{std::vector<double>(d_ + kDotLanes), std::vector<double>(others), std::vector<double>(others)};
    };
    for_each_chunk(progress, queries, 1, new_worker, [&](int64_t query, int64_t, Worker& worker) {
      const int64_t i = query * rows_ / queries;
      kernels_.dots(features_ + i * d_, features_, d_, idx.data(), others, worker.wide.data(), worker.dots.data());
      for (int64_t t = 0; t < others; ++t)
        worker.dist[t] = idx[t] == i ? HUGE_VAL : scaled_norm(i) + scaled_norm(idx[t]) - 2 * scale_sq_ * worker.dots[t];
      std::vector<double> sorted = worker.dist;
      std::nth_element(sorted.begin(), sorted.begin() + (place - 1), sorted.end());
      for (int64_t t = 0; t < others; ++t)
        passed[query] += worker.dist[t] <= sorted[place - 1] + 4 * error * length[i] * length[idx[t]];
    });
    progress.check();
    const int64_t pairs = std::accumulate(passed.begin(), passed.end(), int64_t{0});
    return pairs <= kMostPassed * queries * place;
  }

  double scaled_norm(int64_t i) const { return norm_sq_[i] * scale_sq_; }

  // |V V^T - 1|, as the root of the sum of squares: what the directions lack in being orthonormal.
  double skew(Progress& progress) const {
    const int64_t m = width_ - 1;
    std::vector<double> squares(m, 0.0);
    for_each_chunk(
        progress, m, 1, [&] { return std::pair(std::vector<double>(d_ + kDotLanes), std::vector<double>(m)); },
        [&](int64_t a, int64_t, auto& scratch) {
          std::vector<int32_t> every(m);
          std::iota(every.begin(), every.end(), 0);
          kernels_.dots(directions_ + a * d_, directions_, d_, every.data(), m, scratch.first.data(),
                        scratch.second.data());
          for (int64_t b = 0; b < m; ++b) squares[a] += std::pow(scratch.second[b] - (a == b), 2);
        });
    progress.check();
    return std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0)) + 1e-12 * m;
  }

  // The sketch of x is (p, r): p = V x along the directions and r >= |x - V^T p|, the length of what is left. With V V^T
  // = 1 + E and p = V x + e, x.y = p.q + p E q + p V (y - V^T q) + q V (x - V^T p) + (x - V^T p)(y - V^T q), so that
  // |x.y - p.q| <= r s + 3 |E| |p| |q| + |p| |e_y| + |q| |e_x|: the product of two sketches is at least x.y but for
  // `error` |x| |y|. Absolute errors of underflow are made up for by r >= 2^-40.
  void sketch(Progress& progress) {
    const int64_t m = width_ - 1, padded = round_up(m, kernels_.panel_cols);
    const double skew_of_all = skew(progress), along = tile_error(d_) * std::sqrt(m * (1 + skew_of_all));
    DMIC_CHECK(skew_of_all <= kMaxSkew, "knn_graph: directions must be orthonormal rows, got V V^T that is ", skew_of_all,
               " from 1");
    const double error_along = 3.3 * skew_of_all + 2.2 * along + 8 * kRounding;
    sketches_.reset(new float[rows_ * width_]);
    sketch_reach_.resize(rows_);
    std::vector<float> packed(padded * d_);
    for (int64_t k = 0; k < d_; k += kTileDepth)
      pack(directions_, d_, 0, m, kernels_.panel_cols, k, std::min(kTileDepth, d_ - k), 1.0, packed.data() + padded * k);
    struct Worker {
      std::vector<float> rows, scores;
    };
    const auto new_worker = [&] {
      return Worker{std::vector<float>(padded_tile_rows() * std::min(d_, kTileDepth)),
                    std::vector<float>(padded_tile_rows() * padded)};
    };
    for_each_chunk(progress, rows_, tile_rows_, new_worker, [&](int64_t begin, int64_t end, Worker& worker) {
      const int64_t rows = end - begin;
      for (int64_t k = 0; k < d_; k += kTileDepth) {
        const int64_t depth = std::min(kTileDepth, d_ - k);
        pack(features_, d_, begin, rows, kernels_.panel_rows, k, depth, scale_, worker.rows.data());
        kernels_.tile(worker.rows.data(), packed.data() + padded * k, round_up(rows, kernels_.panel_rows), padded, depth,
                      k == 0, worker.scores.data(), padded);
      }
      for (int64_t i = begin; i < end; ++i) {
        const float* p = &worker.scores[(i - begin) * padded];
        const double norm_sq = scaled_norm(i), length = std::sqrt(norm_sq);
        double sum = 0;
        for (int64_t k = 0; k < m; ++k) sum += static_cast<double>(p[k]) * p[k];
        const double left = norm_sq * (1 + 1e-12) - sum * (1 - 1e-12 - skew_of_all) + 2 * std::sqrt(sum) * along * length;
        std::copy_n(p, m, &sketches_[i * width_]);
        const float rest = float_above(std::sqrt(std::max(left, 0.0) + 0x1p-80) * (1 + 1e-12));
        sketches_[i * width_ + m] = full_.rounded ? full_.rounded->above(rest) : rest;
      }
    });
    progress.check();
    sketch_ = {sketches_.get(), width_, 1.0};
    double rounding = tile_error(width_);
    if (full_.rounded) {
      sketch_ = as_rounded(sketch_);
      std::vector<double> lost = lost_to_rounding(progress, sketch_, m);
      for (int64_t i = 0; i < rows_; ++i) lost[i] /= length_[i];
      rounding = error_of_rounded(*rounded_, *std::max_element(lost.begin(), lost.end()), m);
    }
    for (int64_t i = 0; i < rows_; ++i) sketch_reach_[i] = float_above(2 * (1.1 * rounding + error_along) * length_[i]);
  }

  // Bounds of the scaled distances of sample i to samples idx[t], `keys` being n_j - 2 x_i.y_j.
  void bounds(int64_t i, const float* keys, const int32_t* idx, int64_t count, float* lower, float* upper) const {
    kernels_.bounds(keys, idx, count, length_.data(), static_cast<float>(scaled_norm(i)), reach_[i], lower, upper);
    for (int64_t t = 0; t < count; ++t) upper[t] = std::max(0.0f, upper[t]);
  }

  // The largest scaled distance that may still round to the float32 of `upper`: at equal float32 distances the lower
  // index wins, so nothing up to here may be dropped.
  double inclusive(double upper) const {
    const float rounded = float_above(std::max(0.0, upper / scale_sq_));
    const float next = std::nextafter(rounded, kInfinity);
    return std::isinf(next) ? HUGE_VAL : next * scale_sq_;
  }

  // Starts every list with the k1 samples whose sketches seem nearest, at their canonical distances; with all of the
  // other side if it is shorter.
  void seed(Progress& progress) {
    seeds_.reset(new int32_t[rows_ * k1_]);
    {
      const std::unique_ptr<float[]> dist(new float[rows_ * k1_]);
      Search search(sketches_.get(), rows_, width_, k1_, 0, nullptr, 0, split_, nullptr, /*approximate=*/true);
      search.measure(progress);
      search.compare(progress);
      search.finish(progress, seeds_.get(), dist.get());
    }
    progress.check();
    score_seeds(progress);
    for_each_chunk(
        progress, rows_, kRowsPerChunk, [&] { return std::vector<float>(k1_); },
        [&](int64_t begin, int64_t end, std::vector<float>& distance) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t found = num_seeds(i);
            std::copy_n(&keys_[i * capacity_], found, distance.begin());
            start_list(i);
            for (int64_t t = 0; t < found; ++t) {
              if (seeds_[i * k1_ + t] == i) continue;
              keys_[i * capacity_ + count_[i]] = distance[t];
              idx_[i * capacity_ + count_[i]++] = seeds_[i * k1_ + t];
            }
            exact_[i] = count_[i];
            if (found == k1_) tighten(i, inclusive(*std::max_element(distance.begin(), distance.end()) * scale_sq_));
          }
        });
    progress.check();
  }

  int64_t num_seeds(int64_t i) const { return std::min(k1_, most_neighbors(i)); }

  // keys_[i, t] = canonical distance of seed t. Two samples that are seeds of each other are compared once, by whichever
  // has its turn first; by both at once with equal bits.
  void score_seeds(Progress& progress) {
    constexpr float kMissing = std::numeric_limits<float>::quiet_NaN();
    const auto key = [&](int64_t i, int64_t t) { return std::atomic_ref<float>(keys_[i * capacity_ + t]); };
    for (int64_t i = 0; i < rows_; ++i) std::fill_n(&keys_[i * capacity_], num_seeds(i), kMissing);
    const std::vector<int32_t> order = order_by_neighbors(seeds_.get(), rows_, k1_);
    struct Worker {
      std::vector<double> wide, dots;
      std::vector<int32_t> missing, places;
    };
    const auto new_worker = [&] { return Worker{std::vector<double>(d_ + kDotLanes), std::vector<double>(k1_), {}, {}}; };
    for_each_chunk(progress, rows_, kRowsPerChunk, new_worker, [&](int64_t begin, int64_t end, Worker& worker) {
      for (int64_t turn = begin; turn < end && !progress.stopped(); ++turn) {
        const int64_t i = order[turn];
        worker.missing.clear();
        worker.places.clear();
        for (int32_t t = 0; t < num_seeds(i); ++t) {
          if (!std::isnan(key(i, t).load(std::memory_order_relaxed))) continue;
          worker.missing.push_back(seeds_[i * k1_ + t]);
          worker.places.push_back(t);
        }
        const int64_t count = static_cast<int64_t>(worker.missing.size());
        kernels_.dots(features_ + i * d_, features_, d_, worker.missing.data(), count, worker.wide.data(),
                      worker.dots.data());
        for (int64_t m = 0; m < count; ++m) {
          const int32_t j = worker.missing[m];
          const float distance = static_cast<float>(squared_distance(norm_sq_[i], norm_sq_[j], worker.dots[m]));
          key(i, worker.places[m]).store(distance, std::memory_order_relaxed);
          const int32_t *first = &seeds_[j * k1_], *last = first + num_seeds(j), *mirrored = std::find(first, last, i);
          if (mirrored < last) key(j, mirrored - first).store(distance, std::memory_order_relaxed);
        }
        progress.poll();
      }
    });
    progress.check();
  }

  // A sample is at distance zero of itself, and not of the other side.
  void start_list(int64_t i) {
    if (split_) return;
    keys_[i * capacity_] = 0.0f;
    idx_[i * capacity_] = static_cast<int32_t>(i);
    count_[i] = exact_[i] = 1;
  }

  void tighten(int64_t i, double threshold) {
    if (std::isinf(threshold)) return;
    const double norm_sq = scaled_norm(i);
    limit_[i] = std::max(limit_[i], float_below(norm_sq - threshold - 16 * kRounding * (norm_sq + threshold)));
  }

  struct Locked {  // holds the locks of rows [begin, end), taken in ascending order
    Locked(std::vector<std::mutex>& locks, int64_t begin, int64_t end)
        : locks(locks), first(begin / kRowsPerLock), last((end - 1) / kRowsPerLock) {
      for (int64_t s = first; s <= last; ++s) locks[s].lock();
    }
    ~Locked() {
      for (int64_t s = first; s <= last; ++s) locks[s].unlock();
    }
    std::vector<std::mutex>& locks;
    int64_t first, last;
  };

  // Keeps what may be among the k1 nearest. Entries [0, exact) hold exact distances, the others n_j - 2 x_i.y_j.
  void compact(int64_t i, Scratch& scratch) {
    const int32_t count = count_[i], exact = exact_[i];
    float* keys = &keys_[i * capacity_];
    int32_t* idx = &idx_[i * capacity_];
    if (count < k1_) return;
    float *lower = scratch.lower.data(), *upper = scratch.upper.data();
    for (int32_t t = 0; t < exact; ++t) {
      lower[t] = float_below(keys[t] * scale_sq_);
      upper[t] = float_above(keys[t] * scale_sq_);
    }
    bounds(i, keys + exact, idx + exact, count - exact, lower + exact, upper + exact);
    const double threshold = inclusive(kernels_.select(upper, count, k1_));
    tighten(i, threshold);
    int32_t kept = 0, kept_exact = 0;
    for (int32_t t = 0; t < count; ++t) {
      const bool keep = lower[t] <= threshold;
      keys[kept] = keys[t];
      idx[kept] = idx[t];
      kept += keep;
      kept_exact += keep && t < exact;
    }
    count_[i] = kept;
    exact_[i] = kept_exact;
  }

  // Replaces every entry by its exact distance and keeps the k1 nearest, sorted.
  void resolve(int64_t i, Scratch& scratch) {
    const int32_t count = count_[i], exact = exact_[i];
    float* keys = &keys_[i * capacity_];
    int32_t* idx = &idx_[i * capacity_];
    kernels_.dots(features_ + i * d_, features_, d_, idx + exact, count - exact, scratch.wide.data(),
                  scratch.dots.data());
    for (int32_t t = exact; t < count; ++t)
      keys[t] = static_cast<float>(squared_distance(norm_sq_[i], norm_sq_[idx[t]], scratch.dots[t - exact]));
    uint64_t* ranked = scratch.ranked.data();  // distances are at least 0: their bits are in their order
    for (int32_t t = 0; t < count; ++t)
      ranked[t] = uint64_t{std::bit_cast<uint32_t>(keys[t])} << 32 | static_cast<uint32_t>(idx[t]);
    const int32_t kept = static_cast<int32_t>(std::min<int64_t>(count, k1_));
    if (kept < count) std::nth_element(ranked, ranked + kept, ranked + count);
    std::sort(ranked, ranked + kept);
    for (int32_t t = 0; t < kept; ++t) {
      keys[t] = std::bit_cast<float>(static_cast<uint32_t>(ranked[t] >> 32));
      idx[t] = static_cast<int32_t>(ranked[t]);
    }
    count_[i] = exact_[i] = kept;
    if (kept == k1_) tighten(i, inclusive(keys[kept - 1] * scale_sq_));
  }

  void append(int64_t i, int64_t j, float key, Scratch& scratch) {
    if (count_[i] >= room_) {
      compact(i, scratch);
      if (count_[i] > (k1_ + room_) / 2) resolve(i, scratch);
    }
    keys_[i * capacity_ + count_[i]] = key;
    idx_[i * capacity_ + count_[i]++] = static_cast<int32_t>(j);
  }

  void append_exact(int64_t i, int64_t j, float distance, Scratch& scratch) {
    if (scaled_norm(i) - distance * scale_sq_ < limit_[i]) return;
    append(i, j, distance, scratch);
    const int64_t first = i * capacity_, last = first + count_[i] - 1, place = first + exact_[i]++;
    std::swap(keys_[place], keys_[last]);
    std::swap(idx_[place], idx_[last]);
  }

  // The pairs i < j of a tile that `filter` cannot rule out.
  int64_t survivors(const float* scores, const Block& rows, const Block& cols, const TileFilter& filter,
                    TileHit* hits) const {
    int64_t found = 0;
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t begin = std::max<int64_t>(0, rows.begin + r + 1 - cols.begin);
      if (begin < cols.count)
        found += kernels_.filter(scores + r * stride_, static_cast<int32_t>(r), begin, cols.count, filter,
                                 hits + found);
    }
    return found;
  }

  // Drops hits that no list needs, since it started with them.
  int64_t without_seeds(const Block& rows, const Block& cols, TileHit* hits, int64_t found) const {
    const auto is_seed = [&](int64_t i, int64_t j) {
      const int32_t* list = &seeds_[i * k1_];
      int same = 0;  // no early exit: the loop vectorises
      for (int64_t t = 0; t < k1_; ++t) same |= list[t] == j;
      return same != 0;
    };
    int64_t kept = 0;
    for (int64_t t = 0; t < found; ++t) {
      TileHit hit = hits[t];
      const int64_t i = rows.begin + hit.row, j = cols.begin + hit.col;
      hit.for_row = hit.for_row && !is_seed(i, j);
      hit.for_col = hit.for_col && !is_seed(j, i);
      if (hit.for_row || hit.for_col) hits[kept++] = hit;
    }
    return kept;
  }

  // Replaces the scores of hits, which are in order of rows, by canonical distances.
  void score(const Block& rows, const Block& cols, TileHit* hits, int64_t found, Scratch& scratch) const {
    for (int64_t begin = 0, end; begin < found; begin = end) {
      const int64_t i = rows.begin + hits[begin].row;
      for (end = begin; end < found && hits[end].row == hits[begin].row; ++end)
        scratch.pending[end - begin] = static_cast<int32_t>(cols.begin + hits[end].col);
      kernels_.dots(features_ + i * d_, features_, d_, scratch.pending.data(), end - begin, scratch.wide.data(),
                    scratch.dots.data());
      for (int64_t t = begin; t < end; ++t)
        hits[t].row_score = static_cast<float>(
            squared_distance(norm_sq_[i], norm_sq_[cols.begin + hits[t].col], scratch.dots[t - begin]));
    }
  }

  // Rows of a matrix as panels of columns, one step of depth after the other.
  void pack_columns(const Matrix& matrix, const Block& cols, std::byte* out) const {
    const auto [values, width, scale, rounded, unit] = matrix;
    const int64_t padded = round_up(cols.count, kernels_.panel_cols);
    for (int64_t k = 0; k < width; k += kTileDepth) {
      const int64_t depth = std::min(kTileDepth, width - k);
      std::byte* panels = out + panel_bytes(rounded, padded, k);
      if (rounded)
        rounded->pack_cols(values, width, cols.begin, cols.count, k, depth, static_cast<float>(scale), panels);
      else
        pack(values, width, cols.begin, cols.count, kernels_.panel_cols, k, depth, scale, reinterpret_cast<float*>(panels));
    }
  }

  // scores[r, c] = row . column, of columns that are packed; and so may be the rows, if they have one step of depth.
  void multiply(const Matrix& matrix, const Block& rows, const Block& cols, const std::byte* packed_cols,
                std::byte* packed_rows, bool rows_are_packed, float* scores) const {
    const auto [values, width, scale, rounded, unit] = matrix;
    const int64_t padded_cols = round_up(cols.count, kernels_.panel_cols);
    for (int64_t k = 0; k < width; k += kTileDepth) {
      const int64_t depth = std::min(kTileDepth, width - k);
      const std::byte* packed = packed_cols + panel_bytes(rounded, padded_cols, k);
      const bool pack_rows = !rows_are_packed || width > kTileDepth;
      if (rounded) {
        if (pack_rows)
          rounded->pack_rows(values, width, rows.begin, rows.count, k, depth, static_cast<float>(scale), packed_rows);
        rounded->tile(packed_rows, packed, round_up(rows.count, rounded->panel_rows), padded_cols,
                      round_up(depth, rounded->step), k == 0, unit, scores, stride_);
      } else {
        auto* out = reinterpret_cast<float*>(packed_rows);
        if (pack_rows) pack(values, width, rows.begin, rows.count, kernels_.panel_rows, k, depth, scale, out);
        kernels_.tile(out, reinterpret_cast<const float*>(packed), round_up(rows.count, kernels_.panel_rows), padded_cols,
                      depth, k == 0, scores, stride_);
      }
    }
  }

  // First thresholds: the k1-th nearest of a few samples from all over is no nearer than that of all. Lists that start
  // without one take in whole tiles and are compacted again and again.
  void set_first_limits(Progress& progress) {
    if (split_ || d_ == 0 || rows_ < kFirstFrom || 4 * k1_ > kFirstCols || tile_cols_ < kFirstCols) return;
    std::vector<float> samples(kFirstCols * d_);
    std::vector<int32_t> number(kFirstCols);
    std::vector<float> norm(kFirstCols);
    for (int64_t c = 0; c < kFirstCols; ++c) {
      number[c] = static_cast<int32_t>(c * rows_ / kFirstCols);
      norm[c] = norm_[number[c]];
      std::copy_n(features_ + int64_t{number[c]} * d_, d_, &samples[c * d_]);
    }
    const Block cols{0, kFirstCols};
    const Aligned<std::byte> packed =
        new_aligned<std::byte>(panel_bytes(full_.rounded, round_up(kFirstCols, kernels_.panel_cols), d_));
    Matrix sampled = full_;
    sampled.rows = samples.data();
    pack_columns(sampled, cols, packed.get());
    struct Worker {
      Aligned<std::byte> rows;
      Aligned<float> scores;
      std::vector<float> lower, upper;
    };
    const auto new_worker = [&] {
      return Worker{new_aligned<std::byte>(panel_bytes(full_.rounded, padded_tile_rows(), std::min(d_, kTileDepth))),
                    new_aligned<float>(padded_tile_rows() * stride_), std::vector<float>(kFirstCols),
                    std::vector<float>(kFirstCols)};
    };
    for_each_chunk(progress, rows_, tile_rows_, new_worker, [&](int64_t begin, int64_t end, Worker& worker) {
      multiply(full_, {begin, end - begin}, cols, packed.get(), worker.rows.get(), false, worker.scores.get());
      for (int64_t i = begin; i < end; ++i) {
        float* keys = &worker.scores[(i - begin) * stride_];
        for (int64_t c = 0; c < kFirstCols; ++c) keys[c] = norm[c] - 2 * keys[c];
        bounds(i, keys, number.data(), kFirstCols, worker.lower.data(), worker.upper.data());
        tighten(i, inclusive(kernels_.select(worker.upper.data(), kFirstCols, k1_)));
      }
    });
    progress.check();
  }

  // Some column tiles against kRowTilesPerItem row tiles.
  struct Item {
    int64_t col_begin, row_begin, row_end;
  };

  // Items are numbered by their columns; first[c] is the first of the c-th ones. Later columns have more rows.
  Item item_at(const std::vector<int64_t>& first, int64_t number) const {
    const int64_t c = std::upper_bound(first.begin(), first.end(), number) - first.begin() - 1;
    const int64_t step = tile_rows_ * kRowTilesPerItem, col = split_ + c * item_cols();
    const int64_t row = (number - first[c]) * step, end = rows_before(std::min(rows_, col + item_cols()));
    return {col, row, std::min(end, row + step)};
  }

  void compare(Progress& progress) {
    for (int64_t i = 0; i < rows_ && !seeds_; ++i) start_list(i);
    if (!seeds_) set_first_limits(progress);
    for (int64_t i = 0; i < rows_ && farthest_; ++i) tighten(i, inclusive(farthest_[i] * scale_sq_));
    std::vector<int64_t> first{0};
    for (int64_t col = split_; col < rows_; col += item_cols()) {
      const int64_t step = tile_rows_ * kRowTilesPerItem, end = rows_before(std::min(rows_, col + item_cols()));
      first.push_back(first.back() + (end + step - 1) / step);
    }
    struct Columns {
      Aligned<std::byte> full, sketch;
      bool packed;
    };
    struct Worker {
      std::vector<Columns> cols;  // of every tile
      Aligned<std::byte> rows, sketch_rows;
      Aligned<float> scores;
      std::unique_ptr<TileHit[]> hits;
      std::vector<float> row_limit, col_limit;
      Scratch scratch;
    };
    const auto new_worker = [&] {
      Worker worker;
      for (int64_t c = 0; c < col_tiles_; ++c)
        worker.cols.push_back({new_aligned<std::byte>(panel_bytes(full_.rounded, tile_cols_, d_)),
                               new_aligned<std::byte>(panel_bytes(sketch_.rounded, tile_cols_, width_)), false});
      const auto new_rows = [&](const RoundedKernels* rounded, int64_t width) {
        return new_aligned<std::byte>(panel_bytes(rounded, padded_tile_rows(), std::min(width, kTileDepth)));
      };
      worker.rows = new_rows(full_.rounded, d_);
      worker.sketch_rows = new_rows(sketch_.rounded, width_);
      worker.scores = new_aligned<float>(padded_tile_rows() * stride_);
      if (d_ == 0) std::fill_n(worker.scores.get(), padded_tile_rows() * stride_, 0.0f);
      worker.hits.reset(new TileHit[tile_rows_ * tile_cols_]);
      worker.scratch = new_scratch();
      return worker;
    };
    for_each_item(progress, first.back(), new_worker, [&](int64_t number, Worker& worker) {
      const Item item = item_at(first, first.back() - 1 - number);  // the longest columns first
      const int64_t col_end = std::min(rows_, item.col_begin + item_cols());
      const auto columns_of = [&](int64_t c) {
        const int64_t begin = item.col_begin + c * tile_cols_;
        return Block{begin, std::min(tile_cols_, col_end - begin)};
      };
      const int64_t col_tiles = (col_end - item.col_begin + tile_cols_ - 1) / tile_cols_;
      for (int64_t c = 0; c < col_tiles; ++c) {
        worker.cols[c].packed = false;
        if (width_) pack_columns(sketch_, columns_of(c), worker.cols[c].sketch.get());
      }
      const int64_t row_tiles = (item.row_end - item.row_begin + tile_rows_ - 1) / tile_rows_;
      bool rows_are_packed = false, sketches_are_packed = false;
      for (int64_t tile = 0; tile < row_tiles * col_tiles && !progress.stopped(); ++tile) {
        const int64_t row = item.row_begin + tile / col_tiles * tile_rows_, c = tile % col_tiles;
        const Block rows{row, std::min(item.row_end, row + tile_rows_) - row}, cols = columns_of(c);
        if (c == 0) rows_are_packed = sketches_are_packed = false;
        Columns& packed = worker.cols[c];
        progress.add(rows.count * cols.count);
        if (split_ == 0 && rows.begin >= cols.begin + cols.count) continue;  // its pairs are in the tile across
        {
          const Locked locked(locks_, rows.begin, rows.begin + rows.count);
          worker.row_limit.assign(&limit_[rows.begin], &limit_[rows.begin] + rows.count);
        }
        {
          const Locked locked(locks_, cols.begin, cols.begin + cols.count);
          worker.col_limit.assign(&limit_[cols.begin], &limit_[cols.begin] + cols.count);
        }
        TileFilter filter{&reach_[rows.begin], &norm_[rows.begin],      worker.row_limit.data(), &length_[rows.begin],
                          &norm_[cols.begin],  worker.col_limit.data(), &length_[cols.begin]};
        TileHit* hits = worker.hits.get();
        const auto is_open = [](float limit) { return limit == -kInfinity; };
        bool settled = width_ && std::none_of(worker.row_limit.begin(), worker.row_limit.end(), is_open) &&
                       std::none_of(worker.col_limit.begin(), worker.col_limit.end(), is_open);
        int64_t found = 0;
        if (settled) {
          multiply(sketch_, rows, cols, packed.sketch.get(), worker.sketch_rows.get(), sketches_are_packed,
                   worker.scores.get());
          sketches_are_packed = true;
          filter.row_reach = &sketch_reach_[rows.begin];
          found = survivors(worker.scores.get(), rows, cols, filter, hits);
          settled = found <= rows.count * cols.count / kSeedCheck;
          if (settled && seeds_) found = without_seeds(rows, cols, hits, found);
          settled = settled && found * kDotCost <= rows.count * cols.count;
        }
        if (settled) {
          score(rows, cols, hits, found, worker.scratch);
        } else {
          if (!packed.packed) pack_columns(full_, cols, packed.full.get());
          packed.packed = true;
          multiply(full_, rows, cols, packed.full.get(), worker.rows.get(), rows_are_packed, worker.scores.get());
          rows_are_packed = true;
          filter.row_reach = &reach_[rows.begin];
          found = survivors(worker.scores.get(), rows, cols, filter, hits);
          if (seeds_) found = without_seeds(rows, cols, hits, found);
        }
        {
          const Locked locked(locks_, rows.begin, rows.begin + rows.count);
          for (int64_t t = 0; t < found; ++t) {
            const int64_t i = rows.begin + hits[t].row, j = cols.begin + hits[t].col;
            if (!hits[t].for_row) continue;
            if (settled) append_exact(i, j, hits[t].row_score, worker.scratch);
            else append(i, j, -hits[t].row_score, worker.scratch);
          }
        }
        {
          const Locked locked(locks_, cols.begin, cols.begin + cols.count);
          for (int64_t t = 0; t < found; ++t) {
            const int64_t i = rows.begin + hits[t].row, j = cols.begin + hits[t].col;
            if (!hits[t].for_col) continue;
            if (settled) append_exact(j, i, hits[t].row_score, worker.scratch);
            else append(j, i, -hits[t].col_score, worker.scratch);
          }
        }
        progress.poll();
      }
    });
  }

  // Leaves in each row of neighbor_idx those that seem nearest, and -1 where a list is shorter.
  void compact_all(Progress& progress, int32_t* neighbor_idx) {
    const auto new_worker = [&] { return new_scratch(); };
    for_each_chunk(progress, rows_, kRowsPerChunk, new_worker, [&](int64_t begin, int64_t end, Scratch& scratch) {
      for (int64_t i = begin; i < end; ++i) {
        compact(i, scratch);
        const float* keys = &keys_[i * capacity_];
        const int32_t count = count_[i], *idx = &idx_[i * capacity_];
        const int64_t kept = std::min<int64_t>(count, k1_);
        float *seeming = scratch.upper.data(), farthest = kInfinity;
        for (int32_t t = 0; t < count; ++t)
          seeming[t] = std::max(0.0f, t < exact_[i] ? static_cast<float>(keys[t] * scale_sq_) : keys[t] + norm_[i]);
        if (kept < count) farthest = kernels_.select(seeming, count, kept);
        int32_t* list = neighbor_idx + i * k1_;
        int64_t taken = 0;
        for (int32_t t = 0; t < count && taken < kept; ++t)
          if (seeming[t] < farthest) list[taken++] = idx[t];
        for (int32_t t = 0; t < count && taken < kept; ++t)
          if (seeming[t] == farthest) list[taken++] = idx[t];
        std::fill(list + taken, list + k1_, -1);
      }
    });
    progress.check();
  }

  void finish(Progress& progress, int32_t* neighbor_idx, float* neighbor_dist) {
    compact_all(progress, neighbor_idx);
    const std::vector<int32_t> order = order_by_neighbors(neighbor_idx, rows_, k1_);
    for_each_chunk(
        progress, rows_, kRowsPerChunk, [&] { return new_scratch(); },
        [&](int64_t begin, int64_t end, Scratch& scratch) {
          for (int64_t turn = begin; turn < end && !progress.stopped(); ++turn) {
            const int64_t i = order[turn];
            resolve(i, scratch);
            const int32_t* idx = &idx_[i * capacity_];
            const float* keys = &keys_[i * capacity_];
            const float end = farthest_ ? farthest_[i] : kInfinity;
            const int64_t found = std::upper_bound(keys, keys + count_[i], end) - keys;
            if (found < k1_ && std::isinf(end) && found < most_neighbors(i))
              throw std::logic_error("knn_graph: a row lost candidates; this is a bug in dmic");
            std::fill_n(std::copy_n(idx, found, neighbor_idx + i * k1_), k1_ - found, -1);
            std::fill_n(std::copy_n(keys, found, neighbor_dist + i * k1_), k1_ - found, kInfinity);
            progress.poll();
          }
          progress.add((end - begin) * kFinishWeight);
        });
  }

  const SimdKernels& kernels_;
  const float* const features_;
  const float* const directions_;       // [width - 1, d], or null
  const float* const farthest_;         // [rows], or null
  const int64_t rows_, split_, d_, k1_, width_, capacity_, room_;
  const bool approximate_;              // products are taken as they are: lists may miss some of the nearest
  const RoundedKernels* const rounded_; // for tiles of rounded rows, or null
  Matrix full_{}, sketch_{};
  const int64_t tile_rows_, tile_cols_, col_tiles_;
  const int64_t stride_;                // of a row of scores; a power of two would crowd few sets of the cache
  double scale_ = 1, scale_sq_ = 1, error_ = 0;
  std::vector<double> norm_sq_;         // canonical, not scaled
  std::vector<float> length_, reach_, norm_, limit_, sketch_reach_;
  std::vector<int32_t> count_, exact_;
  std::unique_ptr<float[]> sketches_;   // [rows, width]
  std::unique_ptr<int32_t[]> seeds_;    // [rows, k1] with directions: what lists started with, and itself; or null
  std::unique_ptr<float[]> keys_;       // [rows, capacity]
  std::unique_ptr<int32_t[]> idx_;      // [rows, capacity]
  std::vector<std::mutex> locks_;
};

std::tuple<Tensor, Tensor, Tensor> knn_graph_cpu(const Tensor& features, int64_t k1, int64_t block_rows,
                                                 const std::optional<Tensor>& directions, int64_t split,
                                                 const std::optional<Tensor>& farthest) {
  check_knn_graph_args(features, k1, block_rows, directions, split, farthest);
  const int64_t rows = features.size(0), d = features.size(1), num_directions = directions ? directions->size(0) : 0;
  const Tensor dense = torch::stable::contiguous(features);
  const Tensor dense_directions = num_directions ? torch::stable::contiguous(*directions) : dense;
  const Tensor dense_farthest = farthest ? torch::stable::contiguous(*farthest) : dense;
  if (farthest) check_farthest(dense_farthest.const_data_ptr<float>(), rows);
  Tensor neighbor_idx = new_tensor(features, {rows, k1}, ScalarType::Int);
  Tensor neighbor_dist = new_tensor(features, {rows, k1}, ScalarType::Float);
  if (rows > 0) {
    Search search(dense.const_data_ptr<float>(), rows, d, k1, block_rows,
                  num_directions ? dense_directions.const_data_ptr<float>() : nullptr, num_directions, split,
                  farthest ? dense_farthest.const_data_ptr<float>() : nullptr);
    Progress progress("knn_graph", search.work());
    search.run(progress, neighbor_idx.mutable_data_ptr<int32_t>(), neighbor_dist.mutable_data_ptr<float>());
    progress.finish();
  }
  return {neighbor_idx, neighbor_dist, torch::stable::new_zeros(features, {1}, ScalarType::Long)};
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, CPU, m) { m.impl("knn_graph", TORCH_BOX(&dmic::knn_graph_cpu)); }
