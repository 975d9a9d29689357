// Root mean square norm of rows, with the residual stream's addition before it.
//
//   h = x + r (h = x without r)    rstd = 1 / sqrt(mean(h^2) + eps)    y = h * rstd * w
//   dx = dr = dh + rstd * (g - xhat * mean(g * xhat)),  g = dy * w,  xhat = h * rstd    dw = sum over rows of dy * xhat
//
// x, r, h, y, dy, dh, dx [rows, n] and w, dw [n] in fp32 or bf16; rstd [rows] fp32. All arithmetic is fp32; h is
// rounded before it is normed, as without fusion. Reference: kernels::cpu::rms_norm.
//
// A row belongs to a warp (narrow) or to a block (wide). dw is summed in two steps of fixed order: blocks over their
// rows, in shared memory that every thread has its own part of, then columns over blocks.
#include "common.cuh"

template <typename T, int V, bool WIDE>
__device__ inline void rms_norm_forward(const T* x, const T* r, const T* w, T* h, T* y, float* rstd, int rows, int n,
                                        float eps) {
  int at = WIDE ? threadIdx.x : threadIdx.x % 32, step = WIDE ? blockDim.x : 32;
  int row = WIDE ? blockIdx.x : blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;  // a whole warp, or a whole block
  long long start = (long long)row * n;
  int packs = n / V;
  float squares = 0.0f;
  for (int p = at; p < packs; p += step) {
    Pack<T, V> a = load<T, V>(x + start, p);
    if (r) {
      Pack<T, V> b = load<T, V>(r + start, p);
      for (int v = 0; v < V; v++) a.at[v] = from_float<T>(to_float(a.at[v]) + to_float(b.at[v]));
      store<T, V>(h + start, p, a);
    }
    for (int v = 0; v < V; v++) squares += to_float(a.at[v]) * to_float(a.at[v]);
  }
  squares = WIDE ? block_sum(squares, reinterpret_cast<float*>(shared_memory)) : warp_sum(squares);
  float scale = 1.0f / sqrtf(squares / n + eps);
  if (at == 0) rstd[row] = scale;
  const T* from = r ? h : x;  // a thread reads what it wrote itself
  for (int p = at; p < packs; p += step) {
    Pack<T, V> a = load<T, V>(from + start, p), b = load<T, V>(w, p);
    for (int v = 0; v < V; v++) a.at[v] = from_float<T>(to_float(a.at[v]) * scale * to_float(b.at[v]));
    store<T, V>(y + start, p, a);
  }
}

// `sums` [gridDim.x, n] fp32. Shared memory: 32 floats, then `slots` floats for each warp (narrow) or once (wide).
template <typename T, int V, bool WIDE>
__device__ inline void rms_norm_backward(const T* h, const T* w, const float* rstd, const T* dy, const T* dh, T* dx,
                                         float* sums, int rows, int n) {
  int at = WIDE ? threadIdx.x : threadIdx.x % 32, step = WIDE ? blockDim.x : 32;
  int groups = WIDE ? 1 : blockDim.x / 32, group = WIDE ? 0 : threadIdx.x / 32;
  int packs = n / V, slots = (packs + step - 1) / step * step * V;
  float* scratch = reinterpret_cast<float*>(shared_memory);
  float* mine = scratch + 32 + group * slots;
  // column (j * step + at) * V + v of this group lies at (j * V + v) * step + at: no two lanes in one bank
  for (int s = at; s < slots; s += step) mine[s] = 0.0f;
  for (int row = blockIdx.x * groups + group; row < rows; row += gridDim.x * groups) {
    long long start = (long long)row * n;
    float scale = rstd[row], dot = 0.0f;
    for (int p = at, j = 0; p < packs; p += step, j++) {
      Pack<T, V> a = load<T, V>(h + start, p), b = load<T, V>(w, p), d = load<T, V>(dy + start, p);
      for (int v = 0; v < V; v++) {
        float xhat = to_float(a.at[v]) * scale, g = to_float(d.at[v]);
        dot += g * to_float(b.at[v]) * xhat;
        mine[(j * V + v) * step + at] += g * xhat;
      }
    }
    dot = (WIDE ? block_sum(dot, scratch) : warp_sum(dot)) / n;
    for (int p = at; p < packs; p += step) {
      Pack<T, V> a = load<T, V>(h + start, p), b = load<T, V>(w, p), d = load<T, V>(dy + start, p), e, out;
      if (dh) e = load<T, V>(dh + start, p);
      for (int v = 0; v < V; v++) {
        float xhat = to_float(a.at[v]) * scale;
        float sum = scale * (to_float(d.at[v]) * to_float(b.at[v]) - xhat * dot);
        out.at[v] = from_float<T>(dh ? sum + to_float(e.at[v]) : sum);
      }
      store<T, V>(dx + start, p, out);
    }
  }
  __syncthreads();
  for (int s = threadIdx.x; s < slots; s += blockDim.x) {
    int column = (s / (step * V) * step + s % step) * V + s / step % V;
    float sum = 0.0f;
    for (int g = 0; g < groups; g++) sum += scratch[32 + g * slots + s];
    if (column < n) sums[(long long)blockIdx.x * n + column] = sum;
  }
}

// dw [n] from `sums` [parts, n]. A block of 256 threads has 32 columns and eight strands of parts.
template <typename T>
__device__ inline void rms_norm_columns(const float* sums, T* dw, int parts, int n) {
  int column = blockIdx.x * 32 + threadIdx.x % 32, strand = threadIdx.x / 32;
  float* scratch = reinterpret_cast<float*>(shared_memory);
  float sum = 0.0f;
  if (column < n)
    for (int p = strand; p < parts; p += 8) sum += sums[(long long)p * n + column];
  scratch[threadIdx.x] = sum;
  __syncthreads();
  if (strand == 0 && column < n) {
    for (int s = 1; s < 8; s++) sum += scratch[s * 32 + threadIdx.x];
    dw[column] = from_float<T>(sum);
  }
}

#define RMS_NORM(T, V, WIDE, NAME)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_##NAME(                                          \
      const T* x, const T* r, const T* w, T* h, T* y, float* rstd, int rows, int n, float eps) {                      \
    rms_norm_forward<T, V, WIDE>(x, r, w, h, y, rstd, rows, n, eps);                                                  \
  }                                                                                                                   \
  EXPORT(rms_norm_forward_##NAME)                                                                                     \
  extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_##NAME(                                         \
      const T* h, const T* w, const float* rstd, const T* dy, const T* dh, T* dx, float* sums, int rows, int n) {     \
    rms_norm_backward<T, V, WIDE>(h, w, rstd, dy, dh, dx, sums, rows, n);                                             \
  }                                                                                                                   \
  EXPORT(rms_norm_backward_##NAME)

RMS_NORM(float, 4, false, f32_narrow)
RMS_NORM(float, 1, false, f32_narrow_odd)
RMS_NORM(float, 4, true, f32_wide)
RMS_NORM(float, 1, true, f32_wide_odd)
RMS_NORM(bf16, 8, false, bf16_narrow)
RMS_NORM(bf16, 1, false, bf16_narrow_odd)
RMS_NORM(bf16, 8, true, bf16_wide)
RMS_NORM(bf16, 1, true, bf16_wide_odd)

#define COLUMNS(T, NAME)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                                             \
      rms_norm_columns_##NAME(const float* sums, T* dw, int parts, int n) {                                     \
    rms_norm_columns<T>(sums, dw, parts, n);                                                                    \
  }                                                                                                             \
  EXPORT(rms_norm_columns_##NAME)

COLUMNS(float, f32)
COLUMNS(bf16, bf16)
