// Attention of single rows over paged keys and values (decoding), split over the sequence; and writing to the cache.
//
//   out[h] = sum_t softmax_t(scale q[h] . k[t, h / group]) v[t, h / group],  t in max(0, length - window) .. length
//
// q, out [rows, heads, d] in fp32 or bf16; keys, values [slots, kv_heads, d] alike; tables [rows, width] int32 are the
// blocks of 16 slots of each row's sequence; lengths [rows] int32 count the row itself, 0 gives zeros; window 0 is all.
// d is a multiple of 8 up to the template's D. Reference: rollout's gathered attention.
//
// A block of four warps has G query heads of one key head, one row and PART positions, so that what a row gives does
// not depend on its batch. Eight lanes share a position: each has D / 8 elements of it, and sixteen positions are under
// way in a block. Each eight lanes carry their own maximum m, sum l and weighted values (online softmax); these are
// brought together at the end, and over parts by a second kernel.
#include "common.cuh"

#define SLOTS 16
#define PART 256
#define WARPS 4

__device__ inline int first_seen(int length, int window) {
  return window > 0 && length > window ? length - window : 0;
}

// acc [rows, heads, parts, d] and ml [rows, heads, parts, 2], fp32. gridDim = (rows, heads / G, parts).
template <typename T, int D, int G>
__device__ inline void paged_attention(const T* q, const T* keys, const T* values, const int* tables,
                                       const int* lengths, float* acc, float* ml, int heads, int kv_heads, int d,
                                       int width, int window, float scale) {
  constexpr int E = D / 8;
  constexpr int V = 16 / (int)sizeof(T) < E ? 16 / (int)sizeof(T) : E;
  constexpr int J = E / V;
  long long row = blockIdx.x;
  int head = blockIdx.y * G, kv = head / (heads / kv_heads), part = blockIdx.z;
  int length = lengths[row], from = first_seen(length, window);
  int start = part * PART, end = start + PART < length ? start + PART : length;
  if (start < from) start = from;
  if (start >= end) return;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, strand = lane / 8, at = lane % 8;
  const int* table = tables + row * width;

  float qs[G][E], sum[G][E], m[G], l[G];
#pragma unroll
  for (int g = 0; g < G; g++) {
    m[g] = minus_infinity();
    l[g] = 0.0f;
#pragma unroll
    for (int j = 0; j < J; j++) {
      int e = (j * 8 + at) * V;
#pragma unroll
      for (int v = 0; v < V; v++) {
        qs[g][j * V + v] = e < d ? to_float(q[(row * heads + head + g) * d + e + v]) * scale : 0.0f;
        sum[g][j * V + v] = 0.0f;
      }
    }
  }
  // the same number of turns in every lane of a warp: all take part in the sums
  for (int base = start + warp * 4; base < end; base += WARPS * 4) {
    int t = base + strand;
    bool seen = t < end;
    long long slot = seen ? (long long)table[t / SLOTS] * SLOTS + t % SLOTS : 0;
    const T* key = keys + (slot * kv_heads + kv) * d;
    const T* value = values + (slot * kv_heads + kv) * d;
    Pack<T, V> ks[J], vs[J];
#pragma unroll
    for (int j = 0; j < J; j++) {
      if (seen && (j * 8 + at) * V < d) {
        ks[j] = load<T, V>(key, j * 8 + at);
        vs[j] = load<T, V>(value, j * 8 + at);
      } else {
#pragma unroll
        for (int v = 0; v < V; v++) ks[j].at[v] = vs[j].at[v] = from_float<T>(0.0f);
      }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
      float score = 0.0f;
#pragma unroll
      for (int j = 0; j < J; j++)
#pragma unroll
        for (int v = 0; v < V; v++) score += qs[g][j * V + v] * to_float(ks[j].at[v]);
      for (int apart = 4; apart > 0; apart /= 2) score += __shfl_xor_sync(ALL_LANES, score, apart);
      if (seen) {
        float most = score > m[g] ? score : m[g], keep = expf(m[g] - most), p = expf(score - most);
        m[g] = most;
        l[g] = l[g] * keep + p;
#pragma unroll
        for (int j = 0; j < J; j++)
#pragma unroll
          for (int v = 0; v < V; v++) sum[g][j * V + v] = sum[g][j * V + v] * keep + p * to_float(vs[j].at[v]);
      }
    }
  }

  // the four strands of a warp, then the warps: WARPS * G * (D + 2) floats of shared memory
  float* warp_sum_of = reinterpret_cast<float*>(shared_memory);
  float* warp_ml = warp_sum_of + WARPS * G * D;
#pragma unroll
  for (int g = 0; g < G; g++) {
    float most = m[g];
    for (int apart = 8; apart < 32; apart *= 2) {
      float other = __shfl_xor_sync(ALL_LANES, most, apart);
      most = other > most ? other : most;
    }
    float keep = l[g] > 0.0f ? expf(m[g] - most) : 0.0f, total = l[g] * keep;
    for (int apart = 8; apart < 32; apart *= 2) total += __shfl_xor_sync(ALL_LANES, total, apart);
#pragma unroll
    for (int i = 0; i < E; i++) {
      float x = sum[g][i] * keep;
      for (int apart = 8; apart < 32; apart *= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
      if (strand == 0) warp_sum_of[(warp * G + g) * D + (i / V * 8 + at) * V + i % V] = x;
    }
    if (lane == 0) {
      warp_ml[(warp * G + g) * 2] = most;
      warp_ml[(warp * G + g) * 2 + 1] = total;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < G * D; i += blockDim.x) {
    int g = i / D, e = i % D;
    float most = minus_infinity(), total = 0.0f, x = 0.0f;
    for (int w = 0; w < WARPS; w++) {
      float other = warp_ml[(w * G + g) * 2];
      most = other > most ? other : most;
    }
    for (int w = 0; w < WARPS; w++) {
      float of_warp = warp_ml[(w * G + g) * 2 + 1];
      float keep = of_warp > 0.0f ? expf(warp_ml[(w * G + g) * 2] - most) : 0.0f;
      total += of_warp * keep;
      x += warp_sum_of[(w * G + g) * D + e] * keep;
    }
    long long to = (row * heads + head + g) * gridDim.z + part;
    if (e < d) acc[to * d + e] = x;
    if (e == 0) {
      ml[to * 2] = most;
      ml[to * 2 + 1] = total;
    }
  }
}

// gridDim = (rows, heads), one thread for each element.
template <typename T>
__device__ inline void paged_combine(const float* acc, const float* ml, const int* lengths, T* out, int heads, int d,
                                     int parts, int window) {
  long long of = (long long)blockIdx.x * heads + blockIdx.y;
  int length = lengths[blockIdx.x];
  int begin = first_seen(length, window) / PART, end = (length + PART - 1) / PART;
  float most = minus_infinity();
  for (int p = begin; p < end; p++) {
    float other = ml[(of * parts + p) * 2];
    most = other > most ? other : most;
  }
  for (int e = threadIdx.x; e < d; e += blockDim.x) {
    float total = 0.0f, x = 0.0f;
    for (int p = begin; p < end; p++) {
      float keep = expf(ml[(of * parts + p) * 2] - most);
      total += ml[(of * parts + p) * 2 + 1] * keep;
      x += acc[(of * parts + p) * d + e] * keep;
    }
    out[of * d + e] = from_float<T>(total > 0.0f ? x / total : 0.0f);
  }
}

// k, v [rows, width] to slots [rows] int64 of the cache; a negative slot is left out. A block has a row.
template <typename T, int V>
__device__ inline void cache_write(const T* k, const T* v, const long long* slots, T* keys, T* values, int width) {
  long long row = blockIdx.x, slot = slots[row];
  if (slot < 0) return;
  for (int p = threadIdx.x; p < width / V; p += blockDim.x) {
    store<T, V>(keys + slot * width, p, load<T, V>(k + row * width, p));
    store<T, V>(values + slot * width, p, load<T, V>(v + row * width, p));
  }
}

#define ATTENTION(T, D, G, NAME)                                                                                      \
  extern "C" __global__ void __launch_bounds__(128) paged_attention_##NAME##_d##D##_g##G(                             \
      const T* q, const T* keys, const T* values, const int* tables, const int* lengths, float* acc, float* ml,       \
      int heads, int kv_heads, int d, int width, int window, float scale) {                                           \
    paged_attention<T, D, G>(q, keys, values, tables, lengths, acc, ml, heads, kv_heads, d, width, window, scale);    \
  }                                                                                                                   \
  EXPORT(paged_attention_##NAME##_d##D##_g##G)

#define ATTENTIONS(T, NAME)                                                                                           \
  ATTENTION(T, 64, 1, NAME)                                                                                           \
  ATTENTION(T, 64, 2, NAME)                                                                                           \
  ATTENTION(T, 64, 4, NAME)                                                                                           \
  ATTENTION(T, 128, 1, NAME)                                                                                          \
  ATTENTION(T, 128, 2, NAME)                                                                                          \
  ATTENTION(T, 128, 4, NAME)                                                                                          \
  ATTENTION(T, 256, 1, NAME)

ATTENTIONS(float, f32)
ATTENTIONS(bf16, bf16)

#define CACHE(T, V, NAME)                                                                                             \
  extern "C" __global__ void __launch_bounds__(256) cache_write_##NAME(                                               \
      const T* k, const T* v, const long long* slots, T* keys, T* values, int width) {                                \
    cache_write<T, V>(k, v, slots, keys, values, width);                                                              \
  }                                                                                                                   \
  EXPORT(cache_write_##NAME)

CACHE(float, 4, f32)
CACHE(float, 1, f32_odd)
CACHE(bf16, 8, bf16)
CACHE(bf16, 1, bf16_odd)

#define COMBINE(T, NAME)                                                                                              \
  extern "C" __global__ void __launch_bounds__(128)                                                                   \
      paged_combine_##NAME(const float* acc, const float* ml, const int* lengths, T* out, int heads, int d,           \
                           int parts, int window) {                                                                   \
    paged_combine<T>(acc, ml, lengths, out, heads, d, parts, window);                                                 \
  }                                                                                                                   \
  EXPORT(paged_combine_##NAME)

COMBINE(float, f32)
COMBINE(bf16, bf16)
