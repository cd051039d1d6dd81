// exp, reciprocal, GELU and SiLU on 16 lanes, of operations that are the same on all instruction sets.
#ifndef NEXTSCALE_VECTOR_MATHEMATICS_H_
#define NEXTSCALE_VECTOR_MATHEMATICS_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// Functions of N vectors take each step of all before the next: a step's result is asked for some cycles later.
template <int N, class Step>
inline void each_of(Step step) {
  NEXTSCALE_UNROLL
  for (int i = 0; i < N; ++i) step(i);
}

// e^x as numbers from sqrt(1/2) to sqrt(2) and powers of two, of x from -87 to 88. x / ln 2 is rounded by adding
// 1.5 * 2^23 + 127, whose low bits then are the exponent's. One product takes x's multiple n of ln 2 away, with an error
// of 1.9e-9 n: less than a unit in the last place of all but the largest results. The polynomial is the best of degree 6.
template <int N>
inline void exp_of_bounded(const F (&x)[N], F (&number)[N], F (&two_to)[N]) {
  constexpr float kPolynomial[] = {8.3687451e-3f, 4.1668391e-2f, 1.6666520e-1f, 4.9999993e-1f, 1.0f, 1.0f};
  const F magic = splat(12583039.0f);
  F r[N];
  each_of<N>([&](int i) { two_to[i] = fma(x[i], splat(1.44269504f), magic); });
  each_of<N>([&](int i) { r[i] = fnma(two_to[i] - magic, splat(0.693147182f), x[i]); });
  each_of<N>([&](int i) { two_to[i] = from_bits(shift_left<23>(bits(two_to[i]))); });
  each_of<N>([&](int i) { number[i] = splat(1.3814540e-3f); });
  NEXTSCALE_UNROLL
  for (const float next : kPolynomial) each_of<N>([&](int i) { number[i] = fma(number[i], r[i], splat(next)); });
}

// e^x of x up to 88; below -87 as of -87.
template <int N>
inline void exp(F (&x)[N]) {
  F number[N], two_to[N];
  each_of<N>([&](int i) { x[i] = max(x[i], splat(-87.0f)); });
  exp_of_bounded(x, number, two_to);
  each_of<N>([&](int i) { x[i] = number[i] * two_to[i]; });
}
inline F exp(F x) {
  F of[1] = {x};
  exp(of);
  return of[0];
}

// 1 / x of x from 2^-100 to 2^100. Processors differ in their own approximation, so that the first guess is a
// subtraction of exponents, with an error of a twentieth, which one step cubes and the other squares.
template <int N>
inline void reciprocal(const F (&x)[N], F (&y)[N]) {
  const F one = splat(1.0f);
  F error[N];
  each_of<N>([&](int i) { y[i] = from_bits(splat(0x7ef311c7) - bits(x[i])); });
  each_of<N>([&](int i) { error[i] = fnma(x[i], y[i], one); });
  each_of<N>([&](int i) { error[i] = fma(error[i], error[i], error[i]); });
  each_of<N>([&](int i) { y[i] = fma(y[i], error[i], y[i]); });
  each_of<N>([&](int i) { error[i] = fnma(x[i], y[i], one); });
  each_of<N>([&](int i) { y[i] = fma(y[i], error[i], y[i]); });
}
inline F reciprocal(F x) {
  const F of[1] = {x};
  F y[1];
  reciprocal(of, y);
  return y[0];
}

// x / (1 + e^-x) in two stages: the second takes what the first gave.
inline F exp_of_minus(F x) { return exp(min(splat(0.0f) - x, splat(60.0f))); }
inline F silu_of(F x, F exp_of_minus_x) { return x * reciprocal(splat(1.0f) + exp_of_minus_x); }

// x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3): GELU in the form with tanh.
template <int N>
inline void gelu_tanh(F (&x)[N]) {
  const F linear = splat(-2 * 0.7978845608f), cubic = splat(-2 * 0.7978845608f * 0.044715f);
  F y[N], number[N], two_to[N];
  each_of<N>([&](int i) { y[i] = x[i] * fma(x[i] * x[i], cubic, linear); });
  each_of<N>([&](int i) { y[i] = min(max(y[i], splat(-87.0f)), splat(60.0f)); });
  exp_of_bounded(y, number, two_to);
  each_of<N>([&](int i) { number[i] = fma(number[i], two_to[i], splat(1.0f)); });
  reciprocal(number, y);
  each_of<N>([&](int i) { x[i] = x[i] * y[i]; });
}

// Codes clip(round(x / s) + z, 0, qmax): `inverse` is 1 / s, `least` is -z and `most` is qmax - z.
inline I quantize(F x, F inverse, F least, F most, I zero_point) {
  return nearest(min(max(x * inverse, least), most)) + zero_point;
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_VECTOR_MATHEMATICS_H_
