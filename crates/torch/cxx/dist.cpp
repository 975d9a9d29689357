// c10d without Python: a TCP store and process groups over Gloo.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "guard.h"

using c10d::ProcessGroupGloo;
using Store = c10::intrusive_ptr<c10d::Store>;
using Group = c10::intrusive_ptr<ProcessGroupGloo>;
using Work = c10::intrusive_ptr<c10d::Work>;

namespace {
void finish(const c10::intrusive_ptr<c10d::Work>& work) { work->wait(); }
}  // namespace

extern "C" {

char* rt_store_new(const char* host, uint16_t port, int is_server, int64_t world, int64_t timeout_ms, Store** out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = is_server != 0;
    options.numWorkers = world;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    *out = new Store(c10::make_intrusive<c10d::TCPStore>(std::string(host), options));
  });
}
void rt_store_free(Store* store) { delete store; }
Store* rt_store_share(Store* store) { return new Store(*store); }
char* rt_store_set(Store* store, const char* key, const char* value) {
  return guarded([&] { (*store)->set(std::string(key), std::string(value)); });
}
// *out is null where the key is not there yet
char* rt_store_get(Store* store, const char* key, char** out) {
  return guarded([&] {
    *out = nullptr;
    if (!(*store)->check({std::string(key)})) return;
    auto bytes = (*store)->get(std::string(key));
    *out = message(std::string(bytes.begin(), bytes.end()));
  });
}

char* rt_gloo_new(Store* store, const char* name, const char* hostname, int rank, int size, int64_t timeout_ms, Group** out) {
  return guarded([&] {
    auto options = c10::make_intrusive<ProcessGroupGloo::Options>(std::chrono::milliseconds(timeout_ms));
    options->devices.push_back(*hostname ? ProcessGroupGloo::createDeviceForHostname(hostname, false)
                                         : ProcessGroupGloo::createDefaultDevice(false));
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>(std::string(name), *store);
    *out = new Group(c10::make_intrusive<ProcessGroupGloo>(prefixed, rank, size, options));
  });
}
void rt_gloo_free(Group* group) { delete group; }

char* rt_gloo_all_reduce(Group* group, at::Tensor* tensor, int max) {
  return guarded([&] {
    std::vector<at::Tensor> list{*tensor};
    c10d::AllreduceOptions options;
    if (max) options.reduceOp = c10d::ReduceOp::MAX;
    finish((*group)->allreduce(list, options));
  });
}
char* rt_gloo_broadcast(Group* group, at::Tensor* tensor, int root) {
  return guarded([&] {
    std::vector<at::Tensor> list{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    finish((*group)->broadcast(list, options));
  });
}
char* rt_gloo_all_gather(Group* group, at::Tensor* out, at::Tensor* in) {
  return guarded([&] { finish((*group)->_allgather_base(*out, *in)); });
}
char* rt_gloo_all_gather_start(Group* group, at::Tensor* out, at::Tensor* in, Work** work) {
  return guarded([&] { *work = new Work((*group)->_allgather_base(*out, *in)); });
}
char* rt_gloo_reduce_scatter_start(Group* group, at::Tensor* out, at::Tensor* in, Work** work) {
  return guarded([&] { *work = new Work((*group)->_reduce_scatter_base(*out, *in)); });
}
char* rt_work_wait(Work* work) {
  return guarded([&] { finish(*work); });
}
void rt_work_free(Work* work) { delete work; }
char* rt_gloo_reduce_scatter(Group* group, at::Tensor* out, at::Tensor* in) {
  return guarded([&] { finish((*group)->_reduce_scatter_base(*out, *in)); });
}
char* rt_gloo_all_to_all(Group* group, at::Tensor* out, at::Tensor* in, const int64_t* out_rows, const int64_t* in_rows, size_t n) {
  return guarded([&] {
    std::vector<int64_t> o(out_rows, out_rows + n), i(in_rows, in_rows + n);
    finish((*group)->alltoall_base(*out, *in, o, i));
  });
}
char* rt_gloo_send(Group* group, at::Tensor* tensor, int to, int tag) {
  return guarded([&] {
    std::vector<at::Tensor> list{*tensor};
    finish((*group)->send(list, to, tag));
  });
}
char* rt_gloo_send_start(Group* group, at::Tensor* tensor, int to, int tag, Work** work) {
  return guarded([&] {
    std::vector<at::Tensor> list{*tensor};
    *work = new Work((*group)->send(list, to, tag));
  });
}
char* rt_gloo_recv(Group* group, at::Tensor* tensor, int from, int tag) {
  return guarded([&] {
    std::vector<at::Tensor> list{*tensor};
    finish((*group)->recv(list, from, tag));
  });
}
char* rt_gloo_barrier(Group* group) {
  return guarded([&] { finish((*group)->barrier()); });
}

}  // extern "C"
