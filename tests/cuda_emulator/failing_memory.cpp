// Memory that runs out on demand. Preloaded, it stands in for posix_memalign, with which torch's CPU allocator makes every
// tensor: allocations that were armed fail, and what is not freed afterwards is counted.
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <mutex>

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
void* held[kMost];
int64_t num_held = 0;

}  // namespace

EXPORT int posix_memalign(void** block, size_t alignment, size_t size) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (armed) {
    const int64_t number = count++;
    if (number < kMost) sizes[number] = size;
    if (first <= number && number < last) return ENOMEM;
  }
  *block = __libc_memalign(alignment, size);
  if (!*block) return ENOMEM;
  if (armed && num_held < kMost) held[num_held++] = *block;
  return 0;
}

EXPORT void free(void* block) {
  if (num_held > 0) {
    const std::lock_guard<std::mutex> lock(mutex);
    void** const end = held + num_held;
    void** const found = std::find(held, end, block);
    if (found != end) *found = held[--num_held];
  }
  __libc_free(block);
}

// From here on the allocations numbered first .. last - 1, from 0, fail.
EXPORT void failing_memory_arm(int64_t first_to_fail, int64_t end) {
  const std::lock_guard<std::mutex> lock(mutex);
  armed = true;
  first = first_to_fail;
  last = end;
  count = num_held = 0;
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
