#include <csignal>
#include <fstream>
#include <iostream>

#include "nextscale.hpp"

std::atomic<bool> interrupted = false;

void write_ppm(const char* path, const nextscale::Images& images) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << images.width << ' ' << images.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(images.image(0)), static_cast<std::streamsize>(images.bytes_per_image()));
}

int main(int, char** argv) {  // BUNDLE CLASS OUT.ppm
  for (const int number : {SIGINT, SIGTERM}) std::signal(number, [](int) { interrupted = true; });
  try {
    const nextscale::Generator generator(argv[1]);
    generator.load({nextscale::Graph::stage, nextscale::Graph::decoder});  // at the program's start, not at first use
    nextscale::Request request;
    request.class_labels = {generator.bundle().class_label(argv[2])};
    request.seed = 7;
    const auto show = [&](const nextscale::StageResult& stage) {
      std::cout << "stage " << stage.stage + 1 << " of " << stage.num_stages << std::endl;
      write_ppm(argv[3], stage.preview());
      return true;  // false cancels
    };
    write_ppm(argv[3], generator.generate(request, show, &interrupted).images);
    return 0;
  } catch (const nextscale::Cancelled& cancelled) {
    std::cerr << cancelled.what() << '\n';
    return 130;
  } catch (const nextscale::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}
