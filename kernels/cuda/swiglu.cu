// Gated activation.
//
//   y = silu(g) * u,  silu(g) = g s,  s = 1 / (1 + exp(-g))    dg = dy u s (1 + g (1 - s))    du = dy g s
//
// All [n] in fp32 or bf16; arithmetic in fp32. Reference: kernels::cpu::swiglu. A thread has V neighbours; `n` is
// counted in elements and a multiple of V.
#include "common.cuh"

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T, int V>
__device__ inline void swiglu_forward(const T* g, const T* u, T* y, long long n) {
  long long p = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= n / V) return;
  Pack<T, V> a = load<T, V>(g, p), b = load<T, V>(u, p);
  for (int v = 0; v < V; v++) {
    float x = to_float(a.at[v]);
    a.at[v] = from_float<T>(x * sigmoid(x) * to_float(b.at[v]));
  }
  store<T, V>(y, p, a);
}

template <typename T, int V>
__device__ inline void swiglu_backward(const T* g, const T* u, const T* dy, T* dg, T* du, long long n) {
  long long p = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= n / V) return;
  Pack<T, V> a = load<T, V>(g, p), b = load<T, V>(u, p), d = load<T, V>(dy, p);
  for (int v = 0; v < V; v++) {
    float x = to_float(a.at[v]), s = sigmoid(x), grad = to_float(d.at[v]);
    a.at[v] = from_float<T>(grad * to_float(b.at[v]) * s * (1.0f + x * (1.0f - s)));
    b.at[v] = from_float<T>(grad * x * s);
  }
  store<T, V>(dg, p, a);
  store<T, V>(du, p, b);
}

#define SWIGLU(T, V, NAME)                                                                                       \
  extern "C" __global__ void __launch_bounds__(256)                                                              \
      swiglu_forward_##NAME(const T* g, const T* u, T* y, long long n) {                                         \
    swiglu_forward<T, V>(g, u, y, n);                                                                            \
  }                                                                                                              \
  EXPORT(swiglu_forward_##NAME)                                                                                  \
  extern "C" __global__ void __launch_bounds__(256)                                                              \
      swiglu_backward_##NAME(const T* g, const T* u, const T* dy, T* dg, T* du, long long n) {                   \
    swiglu_backward<T, V>(g, u, dy, dg, du, n);                                                                  \
  }                                                                                                              \
  EXPORT(swiglu_backward_##NAME)

SWIGLU(float, 4, f32)
SWIGLU(float, 1, f32_odd)
SWIGLU(bf16, 8, bf16)
SWIGLU(bf16, 1, bf16_odd)
