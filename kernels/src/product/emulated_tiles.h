// The tiles of AMX in plain C++, so that code for them can be tested on any processor.
#ifndef NEXTSCALE_PRODUCT_EMULATED_TILES_H_
#define NEXTSCALE_PRODUCT_EMULATED_TILES_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

struct Tile {
  uint8_t bytes[16][64];
};
thread_local Tile emulated[8];

class Tiles {
 public:
  // What is in a tile before it is loaded must not matter.
  Tiles() { std::memset(static_cast<void*>(emulated), 0x5a, sizeof emulated); }
};

inline void tile_load(Tile& t, const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(t.bytes[i], static_cast<const uint8_t*>(from) + i * stride, 64);
}
inline void tile_store(const Tile& t, void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<uint8_t*>(to) + i * stride, t.bytes[i], 64);
}
inline void tile_product(Tile& c, const Tile& a, const Tile& b) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) {
      int32_t total;
      std::memcpy(&total, &c.bytes[i][4 * j], 4);
      for (int k = 0; k < 64; ++k)
        total += static_cast<int32_t>(a.bytes[i][k]) * static_cast<int8_t>(b.bytes[k / 4][4 * j + k % 4]);
      std::memcpy(&c.bytes[i][4 * j], &total, 4);
    }
}
// Numbers below the normal ones are nothing to tiles.
inline float normal(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x; }
inline float bf16_at(const Tile& t, int row, int column) {
  uint16_t half;
  std::memcpy(&half, &t.bytes[row][2 * column], 2);
  const uint32_t whole = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &whole, 4);
  return normal(x);
}
// As Intel's manual has it: even and odd numbers have a sum each, which begins with nothing, and both are added to what is
// there. A product of two halves of a float is exact.
inline void tile_product_bf16(Tile& c, const Tile& a, const Tile& b) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) {
      float sums[2] = {}, total;
      for (int k = 0; k < 32; ++k)
        sums[k % 2] = normal(sums[k % 2] + bf16_at(a, i, k) * bf16_at(b, k / 2, 2 * j + k % 2));
      std::memcpy(&total, &c.bytes[i][4 * j], 4);
      total = normal(total + normal(sums[0] + sums[1]));
      std::memcpy(&c.bytes[i][4 * j], &total, 4);
    }
}

#define NEXTSCALE_TILE_ZERO(t) std::memset(static_cast<void*>(&emulated[t]), 0, sizeof(Tile))
#define NEXTSCALE_TILE_LOAD(t, from, stride) tile_load(emulated[t], from, stride)
#define NEXTSCALE_TILE_STORE(t, to, stride) tile_store(emulated[t], to, stride)
#define NEXTSCALE_TILE_PRODUCT(c, a, b) tile_product(emulated[c], emulated[a], emulated[b])
#define NEXTSCALE_TILE_PRODUCT_BF16(c, a, b) tile_product_bf16(emulated[c], emulated[a], emulated[b])

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_PRODUCT_EMULATED_TILES_H_
