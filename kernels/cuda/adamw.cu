// AdamW over many tensors in one launch, with the bf16 weights written on the way; and the sum of squares of gradients.
//
//   g = scale * grad    m += (1 - b1) (g - m)    v = b2 v + (1 - b2) g^2
//   p -= lr decay p     p -= (lr / (1 - b1^t)) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//
// p, grad, m, v [n] fp32; weight [n] bf16 or none. Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).
// Reference: torch::fused::adamw. A block has up to 4096 neighbouring elements of one tensor, which it finds by the
// blocks before each tensor. `scale` clips: gradients are read once, not scaled in memory first.
#include "common.cuh"

#define ELEMENTS 4096

// A line of the table: eight words.
struct Tensor {
  float* p;
  const float* grad;
  float* m;
  float* v;
  bf16* weight;  // or null
  long long n;
  long long decays;  // 0 or 1
  long long before;  // blocks of the tensors before it
};

// The tensor that the block works on: the last whose first block is not after it.
__device__ inline int own_tensor(const Tensor* table, int tensors) {
  int low = 0, high = tensors - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (table[middle].before <= (long long)blockIdx.x)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

__device__ inline bool divides(const void* pointer, unsigned long long bytes) {
  return ((unsigned long long)pointer & (bytes - 1)) == 0;
}

struct Adam {
  float lr, b1, b2, eps, decay, step, root;
};

__device__ inline void adam(float& p, float grad, float& m, float& v, const Adam& with) {
  p -= with.lr * with.decay * p;
  m += (1.0f - with.b1) * (grad - m);
  v = with.b2 * v + (1.0f - with.b2) * grad * grad;
  p -= with.step * m / (sqrtf(v) / with.root + with.eps);
}

// `step` is lr / (1 - b1^t), `root` is sqrt(1 - b2^t).
extern "C" __global__ void __launch_bounds__(256)
    adamw(const Tensor* table, int tensors, float scale, float lr, float b1, float b2, float eps, float decay,
          float step, float root) {
  Tensor t = table[own_tensor(table, tensors)];
  Adam with = {lr, b1, b2, eps, t.decays ? decay : 0.0f, step, root};
  long long first = ((long long)blockIdx.x - t.before) * ELEMENTS;
  bool whole = divides(t.p, 16) && divides(t.grad, 16) && divides(t.m, 16) && divides(t.v, 16) && divides(t.weight, 8);
  for (int i = threadIdx.x * 4; i < ELEMENTS; i += blockDim.x * 4) {
    long long at = first + i;
    if (whole && at + 4 <= t.n) {
      Pack<float, 4> p = load<float, 4>(t.p, at / 4), g = load<float, 4>(t.grad, at / 4);
      Pack<float, 4> m = load<float, 4>(t.m, at / 4), v = load<float, 4>(t.v, at / 4);
      Pack<bf16, 4> w;
      for (int k = 0; k < 4; k++) {
        adam(p.at[k], g.at[k] * scale, m.at[k], v.at[k], with);
        w.at[k] = from_float<bf16>(p.at[k]);
      }
      store<float, 4>(t.p, at / 4, p);
      store<float, 4>(t.m, at / 4, m);
      store<float, 4>(t.v, at / 4, v);
      if (t.weight) store<bf16, 4>(t.weight, at / 4, w);
    } else {
      for (long long k = at; k < at + 4 && k < t.n; k++) {
        adam(t.p[k], t.grad[k] * scale, t.m[k], t.v[k], with);
        if (t.weight) t.weight[k] = from_float<bf16>(t.p[k]);
      }
    }
  }
}
EXPORT(adamw)

// sums [gridDim.x] fp32: of the squares of a block's gradients.
extern "C" __global__ void __launch_bounds__(256) squares(const Tensor* table, int tensors, float* sums) {
  Tensor t = table[own_tensor(table, tensors)];
  long long first = ((long long)blockIdx.x - t.before) * ELEMENTS;
  bool whole = divides(t.grad, 16);
  float sum = 0.0f;
  for (int i = threadIdx.x * 4; i < ELEMENTS; i += blockDim.x * 4) {
    long long at = first + i;
    if (whole && at + 4 <= t.n) {
      Pack<float, 4> g = load<float, 4>(t.grad, at / 4);
      for (int k = 0; k < 4; k++) sum += g.at[k] * g.at[k];
    } else {
      for (long long k = at; k < at + 4 && k < t.n; k++) sum += t.grad[k] * t.grad[k];
    }
  }
  sum = block_sum(sum, reinterpret_cast<float*>(shared_memory));
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
EXPORT(squares)

// total [1] fp64: of `sums` [n], by one block of 256 threads.
extern "C" __global__ void __launch_bounds__(256) squares_total(const float* sums, double* total, int n) {
  double* scratch = reinterpret_cast<double*>(shared_memory);
  double sum = 0.0;
  for (int i = threadIdx.x; i < n; i += 256) sum += sums[i];
  scratch[threadIdx.x] = sum;
  for (unsigned int apart = 128; apart > 0; apart /= 2) {
    __syncthreads();
    if (threadIdx.x < apart) scratch[threadIdx.x] += scratch[threadIdx.x + apart];
  }
  if (threadIdx.x == 0) *total = scratch[0];
}
EXPORT(squares_total)
