// Rotary position embedding of queries and keys, in one launch.
//
//   a' = a cos - b sin    b' = b cos + a sin    (a, b) = elements (i, i + d/2) of a head; sin is negated for backward
//
// q [rows, q_heads, d] and k [rows, k_heads, d] in fp32 or bf16; cos, sin [rows, d/2] fp32. Reference:
// kernels::cpu::rope. A block has a row; a thread turns V pairs at a time.
#include "common.cuh"

template <typename T, int V>
__device__ inline void rope(const T* q, const T* k, const float* cos, const float* sin, T* q_out, T* k_out,
                            int q_heads, int k_heads, int half, float sign) {
  long long row = blockIdx.x;
  int packs = half / V;
  for (int i = threadIdx.x; i < (q_heads + k_heads) * packs; i += blockDim.x) {
    int head = i / packs, p = i % packs;
    bool query = head < q_heads;
    long long start = (query ? row * q_heads + head : row * k_heads + (head - q_heads)) * (2 * half);
    const T* from = (query ? q : k) + start;
    T* to = (query ? q_out : k_out) + start;
    Pack<T, V> a = load<T, V>(from, p), b = load<T, V>(from + half, p);
    for (int v = 0; v < V; v++) {
      float c = cos[row * half + p * V + v], s = sign * sin[row * half + p * V + v];
      float x = to_float(a.at[v]), y = to_float(b.at[v]);
      a.at[v] = from_float<T>(x * c - y * s);
      b.at[v] = from_float<T>(y * c + x * s);
    }
    store<T, V>(to, p, a);
    store<T, V>(to + half, p, b);
  }
}

#define ROPE(T, V, NAME)                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      rope_##NAME(const T* q, const T* k, const float* cos, const float* sin, T* q_out, T* k_out, int q_heads,        \
                  int k_heads, int half, float sign) {                                                                \
    rope<T, V>(q, k, cos, sin, q_out, k_out, q_heads, k_heads, half, sign);                                           \
  }                                                                                                                   \
  EXPORT(rope_##NAME)

ROPE(float, 4, f32)
ROPE(float, 1, f32_odd)
ROPE(bf16, 8, bf16)
ROPE(bf16, 1, bf16_odd)
