// Streams and events by c10's generic interface: what a device lacks it refuses when called, and no CUDA header is
// needed to build.
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "guard.h"

namespace {
struct StreamId {
  int64_t id;
  int32_t device;
  int32_t type;
};

c10::Stream stream(const StreamId* s) {
  return c10::Stream::unpack3(s->id, static_cast<c10::DeviceIndex>(s->device), static_cast<c10::DeviceType>(s->type));
}
c10::Device device(int32_t type, int32_t index) {
  return c10::Device(static_cast<c10::DeviceType>(type), static_cast<c10::DeviceIndex>(index));
}
StreamId id(const c10::Stream& s) {
  auto packed = s.pack3();
  return {packed.stream_id, static_cast<int32_t>(packed.device_index), static_cast<int32_t>(packed.device_type)};
}
}  // namespace

extern "C" {

char* rt_device_select(int32_t type, int32_t index) {
  return guarded([&] { c10::impl::VirtualGuardImpl(device(type, index).type()).setDevice(device(type, index)); });
}
char* rt_stream_current(int32_t type, int32_t index, StreamId* out) {
  return guarded([&] {
    auto on = device(type, index);
    *out = id(c10::impl::VirtualGuardImpl(on.type()).getStream(on));
  });
}
// one of a few that libtorch keeps, of high priority
char* rt_stream_side(int32_t type, int32_t index, StreamId* out) {
  return guarded([&] {
    auto on = device(type, index);
    *out = id(c10::impl::VirtualGuardImpl(on.type()).getStreamFromGlobalPool(on, true));
  });
}
char* rt_stream_native(const StreamId* s, void** out) {
  return guarded([&] { *out = stream(s).native_handle(); });
}
char* rt_stream_record(const StreamId* s, int timed, c10::Event** out) {
  return guarded([&] {
    auto flag = timed ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT;
    auto event = std::make_unique<c10::Event>(static_cast<c10::DeviceType>(s->type), flag);
    event->record(stream(s));
    *out = event.release();
  });
}
char* rt_stream_wait(const StreamId* s, const c10::Event* event) {
  return guarded([&] { event->block(stream(s)); });
}
char* rt_event_ended(const c10::Event* event, int* out) {
  return guarded([&] { *out = event->query(); });
}
char* rt_event_synchronize(const c10::Event* event) {
  return guarded([&] { event->synchronize(); });
}
// milliseconds; both are timed and have been reached
char* rt_event_between(const c10::Event* from, const c10::Event* to, double* out) {
  return guarded([&] { *out = from->elapsedTime(*to); });
}
void rt_event_free(c10::Event* event) { delete event; }
}
