#include <fstream>

#include "nextscale.hpp"

int main(int, char** argv) {  // BUNDLE CLASS OUT.ppm
  const nextscale::Generator generator(argv[1]);
  nextscale::Request request;
  request.class_labels = {generator.bundle().class_label(argv[2])};
  request.seed = 7;
  const nextscale::Images images = generator.generate(request).images;
  std::ofstream file(argv[3], std::ios::binary);
  file << "P6\n" << images.width << ' ' << images.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(images.image(0)), static_cast<std::streamsize>(images.bytes_per_image()));
}
