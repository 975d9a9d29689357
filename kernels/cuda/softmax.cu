// Log-probability of one token and entropy, from a chunk of logits, in one pass; and the logits' gradient.
//
//   z = by * logits    logp = z[t] - lse    entropy = lse - sum p z    lse = log sum exp z,  p = exp(z - lse)
//   d logits = by * (dlogp * ([j = t] - p) - dentropy * p * (z - lse + entropy)), in place
//
// logits [rows, n] in fp32 or bf16; targets [rows] int64; logp, entropy, lse and their gradients [rows] fp32.
// `by` is one over the temperature. Reference: kernels::Softmax. A block has a row. With m the greatest z so far, a
// thread carries s = sum exp(z - m) and q = sum exp(z - m) (z - m); then lse = m + log s, entropy = log s - q / s.
#include "common.cuh"

struct Online {
  float m, s, q;
};

__device__ inline Online nothing() {
  Online x;
  x.m = minus_infinity();
  x.s = x.q = 0.0f;
  return x;
}

// The same sums relative to a greater maximum.
__device__ inline void raise(Online& x, float m) {
  if (x.s > 0.0f) {
    float apart = x.m - m, scale = expf(apart);
    x.q = scale * (x.q + apart * x.s);
    x.s *= scale;
  }
  x.m = m;
}

__device__ inline Online both(Online a, Online b) {
  float m = a.m > b.m ? a.m : b.m;
  raise(a, m);
  raise(b, m);
  a.s += b.s;
  a.q += b.q;
  return a;
}

// Over a warp, the same in every lane: the order of `both` is made the same on both sides.
__device__ inline Online warp_both(Online x) {
  for (int apart = 16; apart > 0; apart /= 2) {
    Online y;
    y.m = __shfl_xor_sync(ALL_LANES, x.m, apart);
    y.s = __shfl_xor_sync(ALL_LANES, x.s, apart);
    y.q = __shfl_xor_sync(ALL_LANES, x.q, apart);
    x = (threadIdx.x & apart) ? both(y, x) : both(x, y);
  }
  return x;
}

// `entropy` may be null. Shared memory: 3 * 32 floats.
template <typename T, int V>
__device__ inline void softmax_forward(const T* logits, const long long* targets, float* logp, float* entropy,
                                       float* lse, int n, float by) {
  long long row = blockIdx.x;
  const T* x = logits + row * n;
  Online sum = nothing();
  for (int p = threadIdx.x; p < n / V; p += blockDim.x) {
    Pack<T, V> a = load<T, V>(x, p);
    float z[V], most = minus_infinity();
    bool nan = false;
    for (int v = 0; v < V; v++) {
      z[v] = to_float(a.at[v]) * by;
      nan |= z[v] != z[v];
      most = z[v] > most ? z[v] : most;
    }
    if (most > sum.m) raise(sum, most);
    for (int v = 0; v < V; v++) {
      // a logit of minus infinity has no part in either sum
      float apart = z[v] - sum.m, e = expf(apart);
      if (z[v] > minus_infinity()) {
        sum.s += e;
        sum.q += e * apart;
      }
    }
    if (nan) sum.s += __uint_as_float(0x7fffffffu);
  }
  float* scratch = reinterpret_cast<float*>(shared_memory);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  sum = warp_both(sum);
  if (lane == 0) {
    scratch[warp] = sum.m;
    scratch[32 + warp] = sum.s;
    scratch[64 + warp] = sum.q;
  }
  __syncthreads();
  if (warp != 0) return;
  sum = nothing();
  if (lane < warps) {
    sum.m = scratch[lane];
    sum.s = scratch[32 + lane];
    sum.q = scratch[64 + lane];
  }
  sum = warp_both(sum);
  if (lane == 0) {
    float log_sum = logf(sum.s);
    logp[row] = to_float(x[targets[row]]) * by - sum.m - log_sum;
    if (entropy) entropy[row] = log_sum - sum.q / sum.s;
    lse[row] = sum.m + log_sum;
  }
}

// `d_entropy` may be null, and `entropy` with it.
template <typename T, int V>
__device__ inline void softmax_backward(T* logits, const long long* targets, const float* lse, const float* entropy,
                                        const float* d_logp, const float* d_entropy, int n, float by) {
  long long row = blockIdx.x;
  T* x = logits + row * n;
  long long target = targets[row];
  float normal = lse[row], dl = d_logp[row] * by;
  float de = d_entropy ? d_entropy[row] * by : 0.0f, mean = d_entropy ? entropy[row] : 0.0f;
  for (int p = threadIdx.x; p < n / V; p += blockDim.x) {
    Pack<T, V> a = load<T, V>(x, p);
    for (int v = 0; v < V; v++) {
      float log_p = to_float(a.at[v]) * by - normal, prob = expf(log_p);
      float d = -dl * prob;
      if (de != 0.0f && prob > 0.0f) d -= de * prob * (log_p + mean);
      if ((long long)p * V + v == target) d += dl;
      a.at[v] = from_float<T>(d);
    }
    store<T, V>(x, p, a);
  }
}

#define SOFTMAX(T, V, NAME)                                                                                           \
  extern "C" __global__ void __launch_bounds__(512) softmax_forward_##NAME(                                           \
      const T* logits, const long long* targets, float* logp, float* entropy, float* lse, int n, float by) {          \
    softmax_forward<T, V>(logits, targets, logp, entropy, lse, n, by);                                                \
  }                                                                                                                   \
  EXPORT(softmax_forward_##NAME)                                                                                      \
  extern "C" __global__ void __launch_bounds__(512)                                                                   \
      softmax_backward_##NAME(T* logits, const long long* targets, const float* lse, const float* entropy,            \
                              const float* d_logp, const float* d_entropy, int n, float by) {                         \
    softmax_backward<T, V>(logits, targets, lse, entropy, d_logp, d_entropy, n, by);                                  \
  }                                                                                                                   \
  EXPORT(softmax_backward_##NAME)

SOFTMAX(float, 4, f32)
SOFTMAX(float, 1, f32_odd)
SOFTMAX(bf16, 8, bf16)
SOFTMAX(bf16, 1, bf16_odd)
