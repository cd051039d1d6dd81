// exp, reciprocal, GELU and SiLU on 16 lanes, of operations that are the same on all instruction sets.
#ifndef NEXTSCALE_VECTOR_MATHEMATICS_H_
#define NEXTSCALE_VECTOR_MATHEMATICS_H_

namespace nextscale {
namespace NEXTSCALE_ISA {
namespace {

// e^x of x up to 88, to two units in the last place; below -87 as of -87. x / ln 2 is rounded by adding 1.5 * 2^23,
// whose low bits then are the exponent to add.
inline F exp(F x) {
  x = max(x, splat(-87.0f));
  const F magic = splat(12582912.0f);
  const F shifted = fma(x, splat(1.44269504f), magic);
  const F n = shifted - magic;
  F r = fnma(n, splat(0.693359375f), x);
  r = fnma(n, splat(-2.12194440e-4f), r);
  F p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(r * r, p, r + splat(1.0f));
  return from_bits(bits(p) + shift_left<23>(bits(shifted)));
}

// 1 / x of x from 2^-100 to 2^100, to a few units in the last place. Processors differ in their own approximation, so
// that the first guess is a subtraction of exponents; each step of Newton's squares its error of an eighth.
inline F reciprocal(F x) {
  F r = from_bits(splat(0x7ef311c7) - bits(x));
  r = fma(r, fnma(x, r, splat(1.0f)), r);
  r = fma(r, fnma(x, r, splat(1.0f)), r);
  return fma(r, fnma(x, r, splat(1.0f)), r);
}

// x / (1 + e^-x) in two stages: the second takes what the first gave.
inline F exp_of_minus(F x) { return exp(min(splat(0.0f) - x, splat(60.0f))); }
inline F silu_of(F x, F exp_of_minus_x) { return x * reciprocal(splat(1.0f) + exp_of_minus_x); }

// x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3): GELU in the form with tanh.
inline F gelu_tanh(F x) {
  const F minus_2u = x * fma(x * x, splat(-2 * 0.7978845608f * 0.044715f), splat(-2 * 0.7978845608f));
  return x * reciprocal(splat(1.0f) + exp(min(minus_2u, splat(60.0f))));
}

// Codes clip(round(x / s) + z, 0, qmax): `inverse` is 1 / s, `least` is -z and `most` is qmax - z.
inline I quantize(F x, F inverse, F least, F most, I zero_point) {
  return nearest(min(max(x * inverse, least), most)) + zero_point;
}

}  // namespace
}  // namespace NEXTSCALE_ISA
}  // namespace nextscale

#endif  // NEXTSCALE_VECTOR_MATHEMATICS_H_
