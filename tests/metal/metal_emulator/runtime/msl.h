// The Metal Shading Language as far as kernels of mx.fast.metal_kernel use it, for clang >= 18.
//
// What the parts define keeps Metal's names; helpers start with mtl_. The keywords come last: after
// this file `device`, `thread`, ... are macros.
#pragma once
#include "msl_atomic.h"
#include "msl_math.h"
#include "msl_matrix.h"
#include "msl_simd.h"
#include "msl_types.h"
using namespace metal;

// ---- what MLX puts before a kernel; one that brings its own is compiled with MTL_NO_MLX_UTILS
#ifndef MTL_NO_MLX_UTILS
template <typename I>
MTL_I I ceildiv(I a, I b) {
  return (a + b - 1) / b;
}
template <typename I = int64_t>
MTL_I I elem_to_loc(I element, const int* shape, const int64_t* strides, int ndim) {
  I location = 0;
  for (int i = ndim - 1; i >= 0 && element > 0; --i) {
    location += (element % shape[i]) * I(strides[i]);
    element /= shape[i];
  }
  return location;
}
#endif

// ---- keywords
#define as_type mtl_as_type
#define kernel
#define thread
#define METAL_FUNC inline __attribute__((__always_inline__))
#ifdef MTL_SPACES  // type check only: as in Metal, pointers of different spaces do not mix
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant const
#define threadgroup
#endif

// ---- constructors: a vector type before a parenthesis calls one, anywhere else it stays a type
#define float2(...) ::mtl::make<::float2>(__VA_ARGS__)
#define float3(...) ::mtl::make<::float3>(__VA_ARGS__)
#define float4(...) ::mtl::make<::float4>(__VA_ARGS__)
#define half2(...) ::mtl::make<::half2>(__VA_ARGS__)
#define half3(...) ::mtl::make<::half3>(__VA_ARGS__)
#define half4(...) ::mtl::make<::half4>(__VA_ARGS__)
#define bfloat2(...) ::mtl::make<::bfloat2>(__VA_ARGS__)
#define bfloat3(...) ::mtl::make<::bfloat3>(__VA_ARGS__)
#define bfloat4(...) ::mtl::make<::bfloat4>(__VA_ARGS__)
#define int2(...) ::mtl::make<::int2>(__VA_ARGS__)
#define int3(...) ::mtl::make<::int3>(__VA_ARGS__)
#define int4(...) ::mtl::make<::int4>(__VA_ARGS__)
#define uint2(...) ::mtl::make<::uint2>(__VA_ARGS__)
#define uint3(...) ::mtl::make<::uint3>(__VA_ARGS__)
#define uint4(...) ::mtl::make<::uint4>(__VA_ARGS__)
#define short2(...) ::mtl::make<::short2>(__VA_ARGS__)
#define short3(...) ::mtl::make<::short3>(__VA_ARGS__)
#define short4(...) ::mtl::make<::short4>(__VA_ARGS__)
#define ushort2(...) ::mtl::make<::ushort2>(__VA_ARGS__)
#define ushort3(...) ::mtl::make<::ushort3>(__VA_ARGS__)
#define ushort4(...) ::mtl::make<::ushort4>(__VA_ARGS__)
#define char2(...) ::mtl::make<::char2>(__VA_ARGS__)
#define char3(...) ::mtl::make<::char3>(__VA_ARGS__)
#define char4(...) ::mtl::make<::char4>(__VA_ARGS__)
#define uchar2(...) ::mtl::make<::uchar2>(__VA_ARGS__)
#define uchar3(...) ::mtl::make<::uchar3>(__VA_ARGS__)
#define uchar4(...) ::mtl::make<::uchar4>(__VA_ARGS__)
#define long2(...) ::mtl::make<::long2>(__VA_ARGS__)
#define long3(...) ::mtl::make<::long3>(__VA_ARGS__)
#define long4(...) ::mtl::make<::long4>(__VA_ARGS__)
#define ulong2(...) ::mtl::make<::ulong2>(__VA_ARGS__)
#define ulong3(...) ::mtl::make<::ulong3>(__VA_ARGS__)
#define ulong4(...) ::mtl::make<::ulong4>(__VA_ARGS__)
