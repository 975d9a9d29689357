// Operators and facts that tch does not wrap.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/version.h>

#include "guard.h"

extern "C" {

char* rt_fused_adamw(at::Tensor** params, at::Tensor** grads, at::Tensor** m, at::Tensor** v, at::Tensor** steps, size_t n,
                     double lr, double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    auto list = [n](at::Tensor** from) {
      std::vector<at::Tensor> out;
      out.reserve(n);
      for (size_t i = 0; i < n; i++) out.push_back(*from[i]);
      return out;
    };
    at::NoGradGuard no_grad;
    auto p = list(params), g = list(grads), a = list(m), b = list(v), s = list(steps);
    at::_fused_adamw_(p, g, a, b, {}, s, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, {}, {});
  });
}

// Calls body(state, begin, end) on libtorch's intra-op threads over parts of 0..n. The body must not throw.
void rt_parallel_for(int64_t n, int64_t grain, void* state, void (*body)(void*, int64_t, int64_t)) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(state, begin, end); });
}

uint64_t rt_tensor_version(at::Tensor* tensor) { return tensor->_version(); }

char* rt_storage_resize(at::Tensor* tensor, size_t bytes) {
  return guarded([&] {
    // the storage's own allocator, so that this serves every device; contents are not kept
    auto* storage = tensor->storage().unsafeGetStorageImpl();
    const c10::DeviceGuard guard(tensor->device());
    storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
    storage->set_nbytes(bytes);
  });
}

char* rt_cpu_capability() { return message(at::get_cpu_capability()); }
char* rt_version() { return message(TORCH_VERSION); }

}  // extern "C"
