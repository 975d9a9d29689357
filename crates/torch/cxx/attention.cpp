// libtorch's flash attention over sequences of several lengths laid end to end, which tch has no call for. A GPU's; on
// the CPU libtorch refuses it.
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>

#include "guard.h"

namespace {
// Backward sums in a fixed order while this lives: the same inputs give the same bits.
struct Deterministic {
  at::Context& context = at::globalContext();
  bool was = context.deterministicAlgorithms(), warned = context.deterministicAlgorithmsWarnOnly();
  bool filled = context.deterministicFillUninitializedMemory();
  Deterministic() {
    context.setDeterministicAlgorithms(true, false);
    context.setDeterministicFillUninitializedMemory(false);
  }
  ~Deterministic() {
    context.setDeterministicAlgorithms(was, warned);
    context.setDeterministicFillUninitializedMemory(filled);
  }
};

std::optional<int64_t> left(int64_t window) { return window > 0 ? std::optional<int64_t>(window - 1) : std::nullopt; }
std::optional<int64_t> right(int64_t window) { return window > 0 ? std::optional<int64_t>(0) : std::nullopt; }
}  // namespace

extern "C" {

// results: output, logarithm of the softmax's sums, two of the generator's state. window 0 is all before a row.
char* rt_flash_forward(at::Tensor* q, at::Tensor* k, at::Tensor* v, at::Tensor* ends_q, at::Tensor* ends_k, int64_t max_q,
                       int64_t max_k, double scale, int64_t window, at::Tensor** results) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto [out, lse, rng, unused, mask] =
        at::_flash_attention_forward(*q, *k, *v, *ends_q, *ends_k, max_q, max_k, /*dropout_p=*/0.0, /*is_causal=*/true,
                                     /*return_debug_mask=*/false, scale, left(window), right(window));
    const at::Tensor all[4] = {out, lse, rng, unused};
    for (int i = 0; i < 4; i++) results[i] = new at::Tensor(all[i]);
  });
}

// `kept` are the forward's results; results: gradients of q, k, v.
char* rt_flash_backward(at::Tensor* grad, at::Tensor* q, at::Tensor* k, at::Tensor* v, at::Tensor** kept, at::Tensor* ends_q,
                        at::Tensor* ends_k, int64_t max_q, int64_t max_k, double scale, int64_t window,
                        at::Tensor** results) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    Deterministic deterministic;
    auto [dq, dk, dv] = at::_flash_attention_backward(*grad, *q, *k, *v, *kept[0], *kept[1], *ends_q, *ends_k, max_q, max_k,
                                                      /*dropout_p=*/0.0, /*is_causal=*/true, *kept[2], *kept[3], scale,
                                                      left(window), right(window));
    const at::Tensor all[3] = {dq, dk, dv};
    for (int i = 0; i < 3; i++) results[i] = new at::Tensor(all[i]);
  });
}

}  // extern "C"
