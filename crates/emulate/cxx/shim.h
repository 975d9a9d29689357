// What CUDA C++ means on the host: a block's threads are fibers that run one after the other from barrier to barrier.
//
// A barrier, a shuffle or a vote that some thread of the block or lane of the warp never comes to is found and named,
// and so is any access outside a tensor's or the block's shared memory (pages that cannot be touched lie next to it).
#pragma once
#include <math.h>
#include <string.h>

#include <string>
#include <tuple>
#include <utility>

#define EMULATED
#define __global__
#define __device__
#define __launch_bounds__(...)

struct Dim3 {
  unsigned int x, y, z;
};
extern thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;
// The block's shared memory: its last byte is the page's.
extern unsigned char* shared_memory;

namespace emulate {
// Waits until all threads of the block came to a barrier.
void barrier();
// Gives this lane's 8 bytes and gets those of all lanes of its warp. `what` names the operation.
void exchange(const char* what, unsigned int mask, unsigned long long mine, unsigned long long* all);
int lane();

template <typename T>
unsigned long long bits(T x) {
  static_assert(sizeof(T) <= 8, "a register or two");
  unsigned long long out = 0;
  memcpy(&out, &x, sizeof(T));
  return out;
}
template <typename T>
T of(unsigned long long bits) {
  T out;
  memcpy(&out, &bits, sizeof(T));
  return out;
}

typedef void (*Body)(void** args);
void enter(const char* name, void (*call)(void (*)(), void**), void (*kernel)(), int args);

template <typename F>
struct Caller;
template <typename... A>
struct Caller<void (*)(A...)> {
  template <size_t... I>
  static void spread(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(args[I])...);
  }
  static void call(void (*kernel)(), void** args) {
    spread(reinterpret_cast<void (*)(A...)>(kernel), args, std::index_sequence_for<A...>{});
  }
};
struct Register {
  template <typename... A>
  Register(const char* name, void (*kernel)(A...)) {
    enter(name, Caller<void (*)(A...)>::call, reinterpret_cast<void (*)()>(kernel), sizeof...(A));
  }
};
}  // namespace emulate

#define EXPORT(name) static emulate::Register register_##name(#name, name);

inline void __syncthreads() { emulate::barrier(); }
inline float __uint_as_float(unsigned int x) { return emulate::of<float>(x); }
inline unsigned int __float_as_uint(float x) { return (unsigned int)emulate::bits(x); }
inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
// one thread runs at a time
template <typename T>
T atomicAdd(T* at, T x) {
  T old = *at;
  *at = old + x;
  return old;
}

template <typename T>
T __shfl_sync(unsigned int mask, T x, int from) {
  unsigned long long all[32];
  emulate::exchange("__shfl_sync", mask, emulate::bits(x), all);
  return emulate::of<T>(all[from % 32]);
}
template <typename T>
T __shfl_xor_sync(unsigned int mask, T x, int apart) {
  unsigned long long all[32];
  emulate::exchange("__shfl_xor_sync", mask, emulate::bits(x), all);
  return emulate::of<T>(all[emulate::lane() ^ apart]);
}
template <typename T>
T __shfl_up_sync(unsigned int mask, T x, int apart) {
  unsigned long long all[32];
  emulate::exchange("__shfl_up_sync", mask, emulate::bits(x), all);
  int from = emulate::lane() - apart;
  return from < 0 ? x : emulate::of<T>(all[from]);
}
inline unsigned int __ballot_sync(unsigned int mask, bool x) {
  unsigned long long all[32];
  emulate::exchange("__ballot_sync", mask, x, all);
  unsigned int votes = 0;
  for (int i = 0; i < 32; i++) votes |= (unsigned int)all[i] << i;
  return votes;
}
