#include "file_pages.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#endif

namespace nextscale {

#if defined(__linux__)
namespace {

// What /proc/self/pagemap says of each page (Documentation/admin-guide/mm/pagemap.rst). A page that was written to is no
// longer the file's, even in the file's mapping, and would be lost.
constexpr uint64_t kOfFile = uint64_t{1} << 61, kSwapped = uint64_t{1} << 62, kPresent = uint64_t{1} << 63;

bool all_of_file(uintptr_t begin, uintptr_t end, uintptr_t page) {
  const int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  bool found = true;
  uint64_t entries[512];
  while (found && begin < end) {
    const size_t wanted = std::min<size_t>((end - begin) / page, std::size(entries)) * sizeof *entries;
    const ssize_t got = pread(file, entries, wanted, static_cast<off_t>(begin / page * sizeof *entries));
    found = got == static_cast<ssize_t>(wanted) && std::all_of(entries, entries + wanted / sizeof *entries, [](uint64_t e) {
              return (e & kOfFile) != 0 || (e & (kPresent | kSwapped)) == 0;
            });
    begin += wanted / sizeof *entries * page;
  }
  close(file);
  return found;
}

}  // namespace

void drop_file_pages(const void* begin, size_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + page - 1) / page * page, last = (address + bytes) / page * page;
  if (first < last && all_of_file(first, last, page)) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}
#else
void drop_file_pages(const void*, size_t) {}
#endif

}  // namespace nextscale
