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

#endif  // NEXTSCALE_COMPILER_H_
