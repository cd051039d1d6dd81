// Codes of numbers, in known ranges or in those of the numbers at hand.
#ifndef NEXTSCALE_KERNELS_QUANTIZE_H_
#define NEXTSCALE_KERNELS_QUANTIZE_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

constexpr float kLeastScale = 7.888609052210118e-31f;  // 2^-100, of a range in which all is zero
constexpr int32_t kFineSteps = 128;                    // of fine codes in one of the codes
constexpr int32_t kFineZero = kFineSteps / 2;          // the code of nothing left over
constexpr int64_t kTaskNumbers = 1 << 14;              // of a task: some microseconds

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Codes in one range.
struct Quantizer {
  F inverse, least, most;
  I zero_point;
  Quantizer(QParams q, int32_t qmax)
      : inverse(splat(1.0f / q.scale)),
        least(splat(static_cast<float>(-q.zero_point))),
        most(splat(static_cast<float>(qmax - q.zero_point))),
        zero_point(splat(q.zero_point)) {}
  I operator()(F x) const { return quantize(x, inverse, least, most, zero_point); }
};

// Codes of 8 bits in one range, and those of what they leave over: (code - 64) / 128 of the range's scale.
struct FineQuantizer {
  Quantizer codes, fine;
  F scale;
  explicit FineQuantizer(QParams q)
      : codes(q, 255), fine({q.scale / kFineSteps, kFineZero}, 255), scale(splat(q.scale)) {}
  I left_over(F x, I code) const { return fine(x - scale * to_float(code - codes.zero_point)); }
};

// The least and largest of numbers and zero.
struct Extremes {
  F low = splat(0.0f), high = splat(0.0f);
  void add(F x) {
    low = min(x, low);
    high = max(x, high);
  }
};

// The least and largest numbers that a task found, in memory.
struct Ends {
  float low, high;
  void add(float least, float most) {
    low = least < low ? least : low;
    high = most > high ? most : high;
  }
};

// The range from `low` to `high`, which hold zero between them (Eq. 1 to 3).
inline QParams range_of(Ends ends, int32_t qmax) {
  const float wide = (ends.high - ends.low) / static_cast<float>(qmax);
  const float scale = wide > kLeastScale ? wide : kLeastScale;
  const float zero = rintf(-ends.low / scale);
  return {scale, zero < static_cast<float>(qmax) ? static_cast<int32_t>(zero) : qmax};
}

// The range around a fixed zero point.
inline QParams token_range(Ends ends, int32_t zero_point, int32_t qmax) {
  const float above = ends.high / static_cast<float>(qmax - zero_point);
  const float below = -ends.low / static_cast<float>(zero_point);
  const float wide = above > below ? above : below;
  return {wide > kLeastScale ? wide : kLeastScale, zero_point};
}

// Numbers as the functions below ask for them: the 16 from i on, or the n that are left and then zeros.
struct InMemory {
  const float* x;
  F operator()(int64_t i) const { return load(x + i); }
  F operator()(int64_t i, int64_t n) const { return load(x + i, n); }
};

template <class X>
inline Ends ends_of(const X& x, int64_t n) {
  Extremes one, two;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    one.add(x(i));
    two.add(x(i + kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) one.add(x(i));
  if (i < n) one.add(x(i, n - i));
  return {minimum(min(one.low, two.low)), maximum(max(one.high, two.high))};
}

template <class X>
inline void quantize_span(const X& x, int64_t n, const Quantizer& q, uint8_t* codes) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    store_bytes(codes + i, q(x(i)), q(x(i + kLanes)), q(x(i + 2 * kLanes)), q(x(i + 3 * kLanes)));
  for (; i + kLanes <= n; i += kLanes) store_bytes(codes + i, q(x(i)));
  if (i < n) store_bytes(codes + i, q(x(i, n - i)), n - i);
}

// Two codes of each of n numbers, as two(i) and two(i, n) give them, which ask for numbers as above.
struct TwoCodes {
  I first, second;
};
template <class Two>
inline void quantize_twice(int64_t n, Two two, uint8_t* first, uint8_t* second) {
  constexpr int kVectors = 4;
  int64_t i = 0;
  for (; i + kVectors * kLanes <= n; i += kVectors * kLanes) {
    TwoCodes of[kVectors];
    each_of<kVectors>([&](int v) { of[v] = two(i + v * kLanes); });
    store_bytes(first + i, of[0].first, of[1].first, of[2].first, of[3].first);
    store_bytes(second + i, of[0].second, of[1].second, of[2].second, of[3].second);
  }
  for (; i < n; i += kLanes) {
    const TwoCodes of = two(i, n - i);
    store_bytes(first + i, of.first, n - i);
    store_bytes(second + i, of.second, n - i);
  }
}

// Codes of the row without the class, and of the difference that the class makes.
template <class X>
inline void quantize_pairs(const X& with, const X& without, int64_t n, const Quantizer& u, const Quantizer& d,
                           uint8_t* u_codes, uint8_t* d_codes) {
  const auto two = [&](auto... at) {
    const F x = without(at...);
    return TwoCodes{u(x), d(with(at...) - x)};
  };
  quantize_twice(n, two, u_codes, d_codes);
}

// Codes, and what they leave over.
template <class X>
inline void quantize_finely(const X& x, int64_t n, const FineQuantizer& q, uint8_t* codes, uint8_t* fine) {
  const auto two = [&](auto... at) {
    const F number = x(at...);
    const I code = q.codes(number);
    return TwoCodes{code, q.left_over(number, code)};
  };
  quantize_twice(n, two, codes, fine);
}

inline void quantize_pair_span(const float* with, const float* without, int64_t n, const Quantizer& u, const Quantizer& d,
                               uint8_t* u_codes, uint8_t* d_codes) {
  quantize_pairs(InMemory{with}, InMemory{without}, n, u, d, u_codes, d_codes);
}

// Of each image the ends that any of `parts` tables [parts, images] has.
inline Ends merged(const Ends* table, int64_t parts, int64_t images, int64_t image) {
  Ends ends{0.0f, 0.0f};
  for (int64_t p = 0; p < parts; ++p) ends.add(table[p * images + image].low, table[p * images + image].high);
  return ends;
}

// Makes the range of each image, whose ends are known; row r's is QParams{scale[r], zero_point[r]} of the coding.
inline void set_image_ranges(int64_t rows, const Coding& coding, const Ends* table, int64_t parts) {
  const int64_t images = rows / coding.image_rows;
  for (int64_t image = 0; image < images; ++image) {
    const QParams q = range_of(merged(table, parts, images, image), coding.qmax);
    for (int64_t r = image; r < rows; r += images) {
      coding.scale[r] = q.scale;
      coding.zero_point[r] = static_cast<uint8_t>(q.zero_point);
    }
  }
}

// Codes of x [rows, tokens, k] in a range for each image, whose ends are known.
inline void quantize_images(const float* x, int64_t rows, int64_t tokens, int64_t k, const Coding& coding,
                            const Ends* table, int64_t parts, const Parallel& parallel) {
  const int64_t row = tokens * k, per = ceil_div(row, kTaskNumbers);
  set_image_ranges(rows, coding, table, parts);
  parallel(rows * per, [&](int64_t task) {
    const int64_t r = task / per, i = r * row + task % per * kTaskNumbers;
    const Quantizer q({coding.scale[r], coding.zero_point[r]}, coding.qmax);
    quantize_span(InMemory{x + i}, least_of((r + 1) * row - i, kTaskNumbers), q, coding.codes[0] + i);
  });
}

// Codes of one token, of number t of all rows, in a range of its own.
template <class X>
inline void quantize_token(const X& x, int64_t k, int64_t t, const Coding& coding) {
  const QParams q = token_range(ends_of(x, k), coding.token_zero_point, coding.qmax);
  coding.scale[t] = q.scale;
  coding.zero_point[t] = static_cast<uint8_t>(q.zero_point);
  quantize_span(x, k, Quantizer(q, coding.qmax), coding.codes[0] + t * k);
}

inline void quantize(const QuantizeArgs& a, const Parallel& parallel, const Workspace& workspace) {
  const Coding& coding = a.coding;
  const int64_t row = a.tokens * a.k, n = a.rows * row, per = ceil_div(row, kTaskNumbers);
  switch (coding.ranges) {
    case Ranges::kNone:
      break;
    case Ranges::kStatic:
      parallel(ceil_div(n, kTaskNumbers), [&](int64_t task) {
        const int64_t i = task * kTaskNumbers, numbers = least_of(n - i, kTaskNumbers);
        const InMemory x{a.x + i};
        uint8_t* codes = coding.codes[0] + i;
        if (a.fine)
          quantize_finely(x, numbers, FineQuantizer(coding.known[0]), codes, a.fine + i);
        else
          quantize_span(x, numbers, Quantizer(coding.known[0], coding.qmax), codes);
      });
      break;
    case Ranges::kPair:
      parallel(ceil_div(n / 2, kTaskNumbers), [&](int64_t task) {
        const int64_t i = task * kTaskNumbers;
        quantize_pair_span(a.x + i, a.x + n / 2 + i, least_of(n / 2 - i, kTaskNumbers),
                           Quantizer(coding.known[0], coding.qmax), Quantizer(coding.known[1], coding.qmax),
                           coding.codes[0] + i, coding.codes[1] + i);
      });
      break;
    case Ranges::kImage: {
      const int64_t images = a.rows / coding.image_rows, parts = coding.image_rows * per;
      Ends* table = workspace.take<Ends>(parts * images);
      parallel(a.rows * per, [&](int64_t task) {
        const int64_t r = task / per, i = task % per * kTaskNumbers;
        table[((r / images) * per + task % per) * images + r % images] =
            ends_of(InMemory{a.x + r * row + i}, least_of(row - i, kTaskNumbers));
      });
      quantize_images(a.x, a.rows, a.tokens, a.k, coding, table, parts, parallel);
      break;
    }
    case Ranges::kToken: {
      const int64_t together = most_of(1, kTaskNumbers / most_of(1, a.k)), tokens = a.rows * a.tokens;
      parallel(ceil_div(tokens, together), [&](int64_t task) {
        for (int64_t t = task * together; t < least_of(tokens, (task + 1) * together); ++t)
          quantize_token(InMemory{a.x + t * a.k}, a.k, t, coding);
      });
      break;
    }
  }
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_KERNELS_QUANTIZE_H_
