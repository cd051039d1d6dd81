// What compilers call differently.
#ifndef NEXTSCALE_COMPILER_H_
#define NEXTSCALE_COMPILER_H_

#if defined(__clang__)
#define NEXTSCALE_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define NEXTSCALE_UNROLL _Pragma("GCC unroll 16")
#else
#define NEXTSCALE_UNROLL
#endif

#define NEXTSCALE_IN_REGISTER(v) __asm__("" : "+x"(v))

// Of a function with all registers to itself: inlined, its caller's values would push some of its own out.
#if defined(__GNUC__)
#define NEXTSCALE_ALONE __attribute__((noinline))
#else
#define NEXTSCALE_ALONE __declspec(noinline)
#endif

// Of a function that does nothing but fetch: GCC would take it for one without an effect, and drop it.
#if defined(__GNUC__)
#define NEXTSCALE_INLINED inline __attribute__((always_inline))
#else
#define NEXTSCALE_INLINED inline
#endif

// Brings a line into the first or the second cache; any address will do.
#if defined(__GNUC__)
#define NEXTSCALE_FETCH(p) __builtin_prefetch(p)
#define NEXTSCALE_FETCH_FAR(p) __builtin_prefetch(p, 0, 2)
#else
#define NEXTSCALE_FETCH(p) static_cast<void>(p)
#define NEXTSCALE_FETCH_FAR(p) static_cast<void>(p)
#endif

#endif  // NEXTSCALE_COMPILER_H_
