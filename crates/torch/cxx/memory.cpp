// Counts the bytes of CPU tensors: an allocator around libtorch's own.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <malloc.h>

#include <atomic>
#include <cstring>

#include "guard.h"

namespace {

std::atomic<int64_t> live{0};
std::atomic<int64_t> highest{0};

void release(void* data) {
  if (data == nullptr) return;
  live -= static_cast<int64_t>(malloc_usable_size(data));
  c10::free_cpu(data);
}

struct Counting final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : c10::alloc_cpu(bytes);
    if (data != nullptr) {
      int64_t now = live += static_cast<int64_t>(malloc_usable_size(data));
      int64_t before = highest;
      while (now > before && !highest.compare_exchange_weak(before, now)) {
      }
    }
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Counting counting;

}  // namespace

extern "C" {

void rt_memory_count() { c10::SetCPUAllocator(&counting, /*priority=*/255); }
int64_t rt_memory_live() { return live; }
// The most since the last call.
int64_t rt_memory_peak() { return highest.exchange(live); }
// The same of a device's tensors, by its own allocator.
char* rt_memory_device_peak(int32_t kind, int32_t index, int64_t* out) {
  return guarded([&] {
    auto* allocator = c10::getDeviceAllocator(static_cast<c10::DeviceType>(kind));
    *out = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(index))
               .allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
               .peak;
    allocator->resetPeakStats(static_cast<c10::DeviceIndex>(index));
  });
}

}  // extern "C"
