// Launches over rows, a bounded amount of work each, so that progress and interrupts are heard between them.
#pragma once

#include <algorithm>

#include "../cpu/parallel.h"
#include "launch.h"

namespace dmic {

constexpr int64_t kChunkWork = tuned(1ll << 36, 1 << 14);  // operations of one launch: some 0.1 s

// launch(begin, end) covers rows [begin, end) and returns what a launcher returns; `work` is that of one row. Waits for
// the stream of `like` between launches: what is only queued is not progress.
template <class Launch>
void launch_in_chunks(Progress& progress, const char* op, const Tensor& like, int64_t rows, int64_t work,
                      const Launch& launch) {
  const int64_t chunk = std::max<int64_t>(1, kChunkWork / std::max<int64_t>(1, work));
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    if (begin > 0) read_int64(full_int64(like, 1, 0));
    progress.poll();
    progress.check();
    const int64_t end = std::min(rows, begin + chunk);
    check_launch(op, launch(begin, end));
    progress.add(end - begin);
  }
}

}  // namespace dmic
