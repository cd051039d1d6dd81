// Memory of a mapped file that is not needed any more.
#ifndef NEXTSCALE_FILE_PAGES_H_
#define NEXTSCALE_FILE_PAGES_H_

#include <cstddef>

namespace nextscale {

// Gives the whole pages among these bytes back to the system if a file has all of them: read again, they come from there.
// ONNX Runtime maps a bundle's weights and keeps them mapped, also those that a kernel has packed into a copy of its own.
void drop_file_pages(const void* begin, size_t bytes);

}  // namespace nextscale

#endif  // NEXTSCALE_FILE_PAGES_H_
