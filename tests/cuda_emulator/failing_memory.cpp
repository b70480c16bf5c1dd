// Memory that runs out on demand. Preloaded, it stands in for posix_memalign, with which torch's CPU allocator makes every
// tensor: allocations that were armed fail, and so do those beyond a limit; what is not freed afterwards is counted.
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>

extern "C" {

void* __libc_memalign(size_t alignment, size_t size);  // glibc's own
void __libc_free(void* block);

#define EXPORT __attribute__((visibility("default")))

namespace {

constexpr int64_t kMost = 1 << 14;  // allocations that are watched
std::mutex mutex;                   // the emulator's workers and torch's threads allocate too
bool armed = false;
int64_t first = 0, last = 0, count = 0;
size_t sizes[kMost];

struct Block {
  void* address;
  int64_t size;
};
Block held[kMost];
int64_t num_held = 0, held_bytes = 0, most_held_bytes = 0, limit_bytes = 0;

}  // namespace

EXPORT int posix_memalign(void** block, size_t alignment, size_t size) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (armed) {
    const int64_t number = count++;
    if (number < kMost) sizes[number] = size;
    if (first <= number && number < last) return ENOMEM;
    if (held_bytes + static_cast<int64_t>(size) > limit_bytes) return ENOMEM;
  }
  *block = __libc_memalign(alignment, size);
  if (!*block) return ENOMEM;
  if (armed && num_held < kMost) {
    held[num_held++] = {*block, static_cast<int64_t>(size)};
    held_bytes += static_cast<int64_t>(size);
    most_held_bytes = std::max(most_held_bytes, held_bytes);
  }
  return 0;
}

EXPORT void free(void* block) {
  if (num_held > 0) {
    const std::lock_guard<std::mutex> lock(mutex);
    Block* const end = held + num_held;
    Block* const found = std::find_if(held, end, [&](const Block& other) { return other.address == block; });
    if (found != end) {
      held_bytes -= found->size;
      *found = held[--num_held];
    }
  }
  __libc_free(block);
}

// From here on the allocations numbered first .. last - 1, from 0, fail, and those that would hold more than so many bytes.
EXPORT void failing_memory_arm(int64_t first_to_fail, int64_t end, int64_t most_bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  armed = true;
  first = first_to_fail;
  last = end;
  limit_bytes = most_bytes;
  count = num_held = held_bytes = most_held_bytes = 0;
}

// The most bytes that were held at a time since this was asked last.
EXPORT int64_t failing_memory_peak() {
  const std::lock_guard<std::mutex> lock(mutex);
  return std::exchange(most_held_bytes, held_bytes);
}

// Returns how many allocations were asked for.
EXPORT int64_t failing_memory_disarm() {
  const std::lock_guard<std::mutex> lock(mutex);
  armed = false;
  return count;
}

EXPORT int64_t failing_memory_size(int64_t number) { return number < kMost ? static_cast<int64_t>(sizes[number]) : -1; }
EXPORT int64_t failing_memory_held() { return num_held; }  // allocated while armed and still not freed
}
