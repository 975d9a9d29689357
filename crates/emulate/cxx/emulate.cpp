// Launches of emulated kernels, and memory whose neighbourhood cannot be touched.
#include "shim.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

// the kernels
#include "common.cuh"
#include "adamw.cu"
#include "paged_attention.cu"
#include "rms_norm.cu"
#include "rope.cu"
#include "sample.cu"
#include "softmax.cu"
#include "swiglu.cu"

// A kernel that is wrong for all but whole blocks: tests look for the emulator's complaint.
extern "C" __global__ void emulate_divergent(int threads) {
  if (threadIdx.x < (unsigned)threads) __syncthreads();
}
EXPORT(emulate_divergent)

thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;
unsigned char* shared_memory;

namespace emulate {
namespace {

constexpr size_t PAGE = 4096, STACK = 128 << 10;

struct Entry {
  void (*call)(void (*)(), void**);
  void (*kernel)();
  int args;
};
std::map<std::string, Entry>& entries() {
  static std::map<std::string, Entry> all;
  return all;
}

enum class State { ready, barrier, exchange, done };
struct Fiber {
  ucontext_t first;
  jmp_buf at;
  bool started = false;
  State state = State::ready;
  Dim3 index;
  const char* what = "";
};
struct Warp {
  unsigned long long mine[32], all[2][32];
  unsigned int arrived = 0;
  int turn = 0;
  const char* what = "";
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<unsigned char*> stacks;
int current;
jmp_buf scheduler;
sigjmp_buf fault;
volatile void* fault_address;
volatile bool launched;
std::string problem;
const Entry* entry;
void** arguments;

void yield() {
  if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}

void start() {
  entry->call(entry->kernel, arguments);
  fibers[current].state = State::done;
  _longjmp(scheduler, 1);
}

void resume(int i) {
  Fiber& f = fibers[i];
  current = i;
  threadIdx = f.index;
  if (_setjmp(scheduler)) return;
  if (f.started) _longjmp(f.at, 1);
  f.started = true;
  setcontext(&f.first);
}

std::string thread_text(int i) {
  return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) +
         "), thread " + std::to_string(i);
}

void on_fault(int, siginfo_t* info, void*) {
  if (!launched) {
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  fault_address = info->si_addr;
  siglongjmp(fault, 1);
}

// `bytes` at the end of pages (or at their beginning), between pages that cannot be touched; all bits set, which is a
// NaN in every floating type.
unsigned char* guarded(size_t bytes, bool at_end, void** whole, size_t* size) {
  size_t pages = (bytes + PAGE - 1) / PAGE + 1;
  *size = (pages + 2) * PAGE;
  auto* base = static_cast<unsigned char*>(mmap(nullptr, *size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED) return nullptr;
  mprotect(base + PAGE, pages * PAGE, PROT_READ | PROT_WRITE);
  memset(base + PAGE, 0xff, pages * PAGE);
  *whole = base;
  return at_end ? base + (pages + 1) * PAGE - bytes : base + PAGE;
}

// Runs all threads of a block to their ends; false and a problem if they get stuck.
bool run_block(int threads, const std::vector<int>& order) {
  fibers.assign(threads, Fiber());
  warps.assign((threads + 31) / 32, Warp());
  for (int i = 0; i < threads; i++) {
    Fiber& f = fibers[i];
    getcontext(&f.first);
    f.first.uc_stack.ss_sp = stacks[i];
    f.first.uc_stack.ss_size = STACK;
    f.first.uc_link = nullptr;
    makecontext(&f.first, start, 0);
    f.index = {(unsigned)i, 0, 0};
  }
  for (;;) {
    bool progress = false;
    int done = 0, waiting = 0;
    for (int i : order) {
      if (fibers[i].state == State::ready) {
        resume(i);
        progress = true;
        if (!problem.empty()) return false;
      }
      done += fibers[i].state == State::done;
      waiting += fibers[i].state == State::barrier;
    }
    if (done == threads) return true;
    if (waiting == threads) {
      for (Fiber& f : fibers) f.state = State::ready;
      progress = true;
    }
    if (!progress) {
      for (int i = 0; i < threads; i++)
        if (fibers[i].state == State::barrier || fibers[i].state == State::exchange) {
          problem = thread_text(i) + " waits at " + fibers[i].what + ", which other threads never come to";
          return false;
        }
    }
  }
}

}  // namespace

void enter(const char* name, void (*call)(void (*)(), void**), void (*kernel)(), int args) {
  entries()[name] = {call, kernel, args};
}

int lane() { return current % 32; }

void barrier() {
  fibers[current].what = "__syncthreads";
  fibers[current].state = State::barrier;
  yield();
}

void exchange(const char* what, unsigned int mask, unsigned long long mine, unsigned long long* all) {
  int self = current;
  Warp& warp = warps[self / 32];
  if (mask != 0xffffffffu) problem = thread_text(self) + ": " + what + " of some lanes only";
  if (warp.arrived && strcmp(warp.what, what))
    problem = thread_text(self) + " comes to " + what + " while lanes of its warp wait at " + warp.what;
  warp.what = what;
  warp.mine[self % 32] = mine;
  warp.arrived |= 1u << (self % 32);
  int turn = warp.turn;
  if (warp.arrived == 0xffffffffu) {
    memcpy(warp.all[turn], warp.mine, sizeof warp.mine);
    warp.arrived = 0;
    warp.turn = 1 - turn;
    for (int i = self / 32 * 32; i < self / 32 * 32 + 32; i++)
      if (fibers[i].state == State::exchange) fibers[i].state = State::ready;
  } else {
    fibers[self].what = what;
    fibers[self].state = State::exchange;
    yield();
  }
  memcpy(all, warps[self / 32].all[turn], sizeof warp.mine);
}

}  // namespace emulate

extern "C" {

// Guarded memory for a tensor; `whole` and `size` are for emulate_free.
void* emulate_memory(size_t bytes, int at_end, void** whole, size_t* size) {
  return emulate::guarded(bytes, at_end, whole, size);
}
void emulate_free(void* whole, size_t size) { munmap(whole, size); }

// Runs a kernel; null, or a malloc'ed text of what is wrong. `order`: 0 runs threads and blocks from first to last, 1
// from last to first, others shuffle them. Not to be called by two threads at once.
char* emulate_launch(const char* name, const unsigned int* grid, unsigned int threads, unsigned int shared_bytes,
                     void** args, int count, unsigned int order) {
  using namespace emulate;
  auto found = entries().find(name);
  if (found == entries().end()) return strdup((std::string("no kernel ") + name).c_str());
  if (count != found->second.args)
    return strdup((std::string(name) + " takes " + std::to_string(found->second.args) + " arguments").c_str());
  if (threads == 0 || threads % 32 || threads > 1024) return strdup("threads are whole warps, at most 1024");
  entry = &found->second;
  arguments = args;
  problem.clear();
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads, 1, 1};
  while (stacks.size() < threads) {
    void* whole;
    size_t size;
    stacks.push_back(guarded(STACK, false, &whole, &size));
  }
  // 16 bytes aligned, as on a GPU
  size_t bytes = (shared_bytes + 15) / 16 * 16, size;
  void* whole;
  shared_memory = guarded(bytes, true, &whole, &size);

  std::mt19937 random(order);
  std::vector<int> threads_order(threads), blocks((size_t)grid[0] * grid[1] * grid[2]);
  for (unsigned i = 0; i < threads; i++) threads_order[i] = order == 1 ? threads - 1 - i : i;
  for (size_t i = 0; i < blocks.size(); i++) blocks[i] = order == 1 ? blocks.size() - 1 - i : i;
  if (order > 1) std::shuffle(blocks.begin(), blocks.end(), random);

  struct sigaction mine = {}, old;
  mine.sa_sigaction = on_fault;
  mine.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  static unsigned char* alternate = static_cast<unsigned char*>(malloc(64 << 10));
  stack_t signals = {}, old_signals;
  signals.ss_sp = alternate;
  signals.ss_size = 64 << 10;
  sigaltstack(&signals, &old_signals);
  sigaction(SIGSEGV, &mine, &old);
  launched = true;
  if (sigsetjmp(fault, 1)) {
    problem = thread_text(current) + " reads or writes outside of any tensor, at " +
              std::to_string((unsigned long long)fault_address);
  } else {
    for (int b : blocks) {
      blockIdx = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
      if (order > 1) std::shuffle(threads_order.begin(), threads_order.end(), random);
      if (bytes) memset(shared_memory, 0xff, bytes);
      if (!run_block(threads, threads_order)) break;
    }
  }
  launched = false;
  sigaction(SIGSEGV, &old, nullptr);
  sigaltstack(&old_signals, nullptr);
  munmap(whole, size);
  if (problem.empty()) return nullptr;
  return strdup((std::string(name) + ": " + problem).c_str());
}

}  // extern "C"
