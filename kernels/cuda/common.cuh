// What all kernels share: element types, vectors of elements, sums over a warp and a block.
//
// The same sources are compiled by NVRTC for a GPU, and as C++ for the host by tests, which run every block's
// threads one after the other between barriers (crates/emulate). So they use nothing but what is declared here:
// no header of CUDA, which the NVRTC wheel does not have either.
#pragma once

#ifndef EMULATED
// Bytes that the launch asked for.
extern __shared__ __align__(16) unsigned char shared_memory[];
// The emulator's register of kernels needs a line for each; a GPU's module has them by name.
#define EXPORT(name)
#endif

#define ALL_LANES 0xffffffffu

// A bfloat16: the upper half of a float.
struct bf16 {
  unsigned short bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned int)x.bits << 16); }

// Rounds to nearest, ties to even; a NaN stays one.
template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  bf16 y;
#ifdef EMULATED
  unsigned int bits = __float_as_uint(x);
  y.bits = x != x ? (unsigned short)0x7fff : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
  return y;
}

// V neighbouring elements, moved at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <typename T, int V>
__device__ inline Pack<T, V> load(const T* from, long long pack) {
  return reinterpret_cast<const Pack<T, V>*>(from)[pack];
}
template <typename T, int V>
__device__ inline void store(T* to, long long pack, const Pack<T, V>& x) {
  reinterpret_cast<Pack<T, V>*>(to)[pack] = x;
}

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }

// Sum over the 32 lanes, the same bits in every lane.
__device__ inline float warp_sum(float x) {
  for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
  return x;
}

// Sum over the block, the same bits in every thread. All threads call it; `scratch` is 32 floats of shared memory.
__device__ inline float block_sum(float x, float* scratch) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = warp_sum(x);
  __syncthreads();  // the sum before may still be read
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}
