// Choice of a token for each sequence from its row of logits, and the choice's log-probability.
//
//   z = by * logits    p = softmax(z)    logprob = log p[token], of all tokens, not of those that filters leave
//   kept: of the top_k most likely, the fewest most likely whose probabilities reach top_p of theirs (ties: in order)
//   token: the first kept one at which the running sum of probabilities, in order of tokens, passes u of the kept sum
//
// logits [.., n] in fp32 or bf16; picks [rows] int32 names a row of the logits; by [rows] fp32 is one over the
// temperature, 0 is greedy (the first of the most likely); top_k [rows] int32, 0 is all; top_p [rows] fp32, 1 is all;
// draws [rows] uint64, uniform. tokens [rows] int32, -1 where logits are not numbers; logprobs [rows] fp32.
//
// Probabilities are whole numbers of 2^-44 of the greatest, so sums are exact in any order, a filter and a draw are
// exact on them, and no rounding carries a draw past the end. n is at most 2^19. A block of 512 threads has a row. A
// filter is a search for its last value by digits of a key that orders floats (radix select).
#include "common.cuh"

typedef unsigned long long u64;

#define THREADS 512

// Orders as the floats do; every number is above 0.
__device__ inline unsigned int key_of(float z) {
  unsigned int bits = __float_as_uint(z);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float of_key(unsigned int key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
__device__ inline u64 weight(float z, float most) { return (u64)(expf(z - most) * 17592186044416.0f); }

// Shared by the block.
struct Shared {
  u64 histogram[256];
  u64 sums[32];
  u64 found_above;
  unsigned int found_digit;
  int ties[32];
};

__device__ inline u64 block_total(u64 x, Shared* shared) {
  for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared->sums[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int w = 0; w < THREADS / 32; w++) x += shared->sums[w];
  return x;
}

// A row of logits as the searches see it: the tokens with keys above `floor`, and `ties` of those with this key.
template <typename T>
struct Row {
  const T* x;
  int n;
  float by, most;
  unsigned int floor;
  u64 ties;

  __device__ float z(int i) const { return to_float(x[i]) * by; }
};

// The greatest key at which the amounts (one each, or weights) of tokens with this key or a greater one reach `target`,
// which is at least 1 and at most the whole amount; `above` is the amount of those greater.
template <typename T>
__device__ inline unsigned int select(const Row<T>& row, bool weigh, u64 target, u64* above, Shared* shared) {
  unsigned int prefix = 0, mask = 0;
  *above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += THREADS) shared->histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.n; i += THREADS) {
      float z = row.z(i);
      unsigned int key = key_of(z);
      if (key > row.floor && (key & mask) == prefix)
        atomicAdd(&shared->histogram[(key >> shift) & 255], weigh ? weight(z, row.most) : (u64)1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      if (row.ties > 0 && (row.floor & mask) == prefix)
        shared->histogram[(row.floor >> shift) & 255] +=
            row.ties * (weigh ? weight(of_key(row.floor), row.most) : (u64)1);
      int digit = 255;
      while (digit > 0 && *above + shared->histogram[digit] < target) *above += shared->histogram[digit--];
      shared->found_digit = digit;
      shared->found_above = *above;
    }
    __syncthreads();
    prefix |= shared->found_digit << shift;
    mask |= 255u << shift;
    *above = shared->found_above;
  }
  return prefix;
}

// Of the tokens with keys above the row's floor.
template <typename T>
__device__ inline u64 weight_above(const Row<T>& row, Shared* shared) {
  u64 sum = 0;
  for (int i = threadIdx.x; i < row.n; i += THREADS)
    if (key_of(row.z(i)) > row.floor) sum += weight(row.z(i), row.most);
  return block_total(sum, shared);
}

template <typename T>
__device__ inline void sample(const T* logits, const int* picks, const float* bys, const int* top_ks,
                              const float* top_ps, const u64* draws, int* tokens, float* logprobs, int n) {
  Shared* shared = reinterpret_cast<Shared*>(shared_memory);
  int of = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  bool greedy = bys[of] == 0.0f;
  Row<T> row;
  row.x = logits + (long long)picks[of] * n;
  row.n = n;
  row.by = greedy ? 1.0f : bys[of];
  row.most = minus_infinity();
  row.floor = 0;
  row.ties = 0;

  // the greatest, as a key; a NaN or an infinite logit is not to be sampled from
  unsigned int most = 0;
  u64 wrong = 0;
  for (int i = threadIdx.x; i < n; i += THREADS) {
    float z = row.z(i);
    if (z != z || z == -minus_infinity()) wrong = 1;
    unsigned int key = key_of(z);
    most = key > most ? key : most;
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    unsigned int other = __shfl_xor_sync(ALL_LANES, most, apart);
    most = other > most ? other : most;
  }
  if (lane == 0) shared->ties[warp] = (int)most;
  wrong = block_total(wrong, shared);
  for (int w = 0; w < THREADS / 32; w++) {
    unsigned int other = (unsigned int)shared->ties[w];
    most = other > most ? other : most;
  }
  row.most = of_key(most);
  if (wrong || row.most == minus_infinity()) {
    if (threadIdx.x == 0) {
      tokens[of] = -1;
      logprobs[of] = __uint_as_float(0x7fffffffu);
    }
    return;
  }
  u64 total = weight_above(row, shared), kept = total;
  float log_total = (float)(log((double)total) - 44.0 * 0.69314718055994530942);

  u64 target = 0;
  if (greedy) {
    // the first of the most likely: only they are kept, and the draw is 0
    row.floor = most;
    row.ties = 1;
    kept = weight(row.most, row.most);
  } else {
    u64 above;
    if (top_ks[of] > 0 && top_ks[of] < n) {
      row.floor = select(row, false, (u64)top_ks[of], &above, shared);
      row.ties = (u64)top_ks[of] - above;
      kept = weight_above(row, shared) + row.ties * weight(of_key(row.floor), row.most);
    }
    if (top_ps[of] < 1.0f) {
      u64 reach = (u64)ceil((double)top_ps[of] * (double)kept);
      reach = reach < 1 ? 1 : reach > kept ? kept : reach;
      unsigned int floor = select(row, true, reach, &above, shared);
      u64 each = weight(of_key(floor), row.most);
      row.floor = floor;
      row.ties = (reach - above + each - 1) / each;
      kept = above + row.ties * each;
    }
    target = __umul64hi(draws[of], kept);
  }

  // every warp sums a stretch of its own; the one that the draw falls into looks for it
  u64 tie = row.ties > 0 ? weight(of_key(row.floor), row.most) : 0;
  int stretch = ((n + THREADS / 32 - 1) / (THREADS / 32) + 31) / 32 * 32;
  int begin = warp * stretch, end = begin + stretch < n ? begin + stretch : n;
  u64 sum = 0;
  int ties = 0;
  for (int i = begin + lane; i < end; i += 32) {
    float z = row.z(i);
    unsigned int key = key_of(z);
    if (key > row.floor) sum += weight(z, row.most);
    ties += key == row.floor;
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    sum += __shfl_xor_sync(ALL_LANES, sum, apart);
    ties += __shfl_xor_sync(ALL_LANES, ties, apart);
  }
  __syncthreads();
  if (lane == 0) {
    shared->sums[warp] = sum;
    shared->ties[warp] = ties;
  }
  __syncthreads();
  u64 before = 0, left = row.ties;
  for (int w = 0; w < warp; w++) {
    u64 taken = (u64)shared->ties[w] < left ? (u64)shared->ties[w] : left;
    before += shared->sums[w] + taken * tie;
    left -= taken;
  }
  u64 own = sum + ((u64)ties < left ? (u64)ties : left) * tie;
  if (target < before || target >= before + own) return;
  for (int base = begin; base < end; base += 32) {
    int i = base + lane;
    float z = i < end ? row.z(i) : 0.0f;
    unsigned int key = i < end ? key_of(z) : 0;
    unsigned int equal = __ballot_sync(ALL_LANES, i < end && key == row.floor);
    u64 rank = __popc(equal & ((1u << lane) - 1));
    bool keep = i < end && (key > row.floor || (key == row.floor && rank < left));
    u64 upto = keep ? weight(z, row.most) : 0;
    for (int apart = 1; apart < 32; apart *= 2) {
      u64 other = __shfl_up_sync(ALL_LANES, upto, apart);
      if (lane >= apart) upto += other;
    }
    unsigned int passed = __ballot_sync(ALL_LANES, before + upto > target);
    if (passed) {
      if (lane == __popc((passed & (0u - passed)) - 1)) {
        tokens[of] = i;
        logprobs[of] = z - row.most - log_total;
      }
      return;
    }
    before += __shfl_sync(ALL_LANES, upto, 31);
    u64 here = (u64)__popc(equal);
    left -= here < left ? here : left;
  }
}

#define SAMPLE(T, NAME)                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
      sample_##NAME(const T* logits, const int* picks, const float* bys, const int* top_ks, const float* top_ps,      \
                    const u64* draws, int* tokens, float* logprobs, int n) {                                          \
    sample<T>(logits, picks, bys, top_ks, top_ps, draws, tokens, logprobs, n);                                        \
  }                                                                                                                   \
  EXPORT(sample_##NAME)

SAMPLE(float, f32)
SAMPLE(bf16, bf16)
