#include <fstream>

#include "nextscale.hpp"

int main(int, char** argv) {  // BUNDLE CLASS OUT.ppm
  const nextscale::Generator generator(argv[1]);
  nextscale::Request request;
  request.class_labels = {generator.bundle().class_label(argv[2])};
  request.seed = 7;
  nextscale::Edit edit;
  edit.image = generator.generate(request).images;  // or your own picture of that size
  nextscale::Mask mask = {edit.image.height, edit.image.width, {}};
  for (std::size_t i = 0; i < mask.height * mask.width; ++i) {
    mask.pixels.push_back(i % mask.width >= mask.width / 2);  // the right half
  }
  edit.mask = mask;
  request.seed = 8;
  const nextscale::Images images = generator.edit(edit, request).images;
  std::ofstream file(argv[3], std::ios::binary);
  file << "P6\n" << images.width << ' ' << images.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(images.image(0)), static_cast<std::streamsize>(images.bytes_per_image()));
}
