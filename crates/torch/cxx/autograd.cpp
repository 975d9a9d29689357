// Autograd nodes whose backward is Rust, and vector-Jacobian products (torch.autograd.grad).
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include "guard.h"

using torch::autograd::Edge;
using torch::autograd::Node;
using torch::autograd::variable_list;

extern "C" {
// Fills grad_inputs (null where there is none) from grad_outputs (null where undefined); an error text or null.
typedef char* (*rt_backward)(void* state, at::Tensor** grad_outputs, size_t n_out, at::Tensor** grad_inputs, size_t n_in);
typedef void (*rt_drop)(void* state);
}

namespace {
struct RustNode : public Node {
  void* state;
  rt_backward call;
  rt_drop drop;
  size_t inputs;

  RustNode(void* state, rt_backward call, rt_drop drop, size_t inputs)
      : state(state), call(call), drop(drop), inputs(inputs) {}
  ~RustNode() override { drop(state); }
  std::string name() const override { return "RustNode"; }

  variable_list apply(variable_list&& grads) override {
    std::vector<at::Tensor*> gout(grads.size(), nullptr);
    for (size_t i = 0; i < grads.size(); i++)
      if (grads[i].defined()) gout[i] = new at::Tensor(grads[i]);  // ownership passes to Rust
    std::vector<at::Tensor*> gin(inputs, nullptr);
    if (char* error = call(state, gout.data(), gout.size(), gin.data(), inputs)) {
      std::string text(error);
      std::free(error);
      throw std::runtime_error(text);
    }
    variable_list out(inputs);
    for (size_t i = 0; i < inputs; i++)
      if (gin[i]) {
        out[i] = std::move(*gin[i]);
        delete gin[i];
      }
    return out;
  }
};
}  // namespace

extern "C" {

// `outputs` (computed without a graph) become results of a node over `inputs`; written back as new handles.
char* rt_node(at::Tensor** inputs, size_t n_in, at::Tensor** outputs, size_t n_out, void* state, rt_backward call, rt_drop drop) {
  auto node = std::shared_ptr<RustNode>(new RustNode(state, call, drop, n_in), torch::autograd::deleteNode);
  return guarded([&] {
    std::vector<Edge> edges;
    edges.reserve(n_in);
    for (size_t i = 0; i < n_in; i++) edges.push_back(torch::autograd::impl::gradient_edge(*inputs[i]));
    // An input outside any graph has an invalid edge: its gradient is dropped, as in torch.
    node->set_next_edges(std::move(edges));
    for (size_t i = 0; i < n_out; i++) {
      at::Tensor fresh = outputs[i]->detach();
      auto index = node->add_input_metadata(fresh);
      torch::autograd::impl::set_gradient_edge(fresh, Edge(node, index));
      outputs[i] = new at::Tensor(std::move(fresh));
    }
  });
}

char* rt_vjp(at::Tensor** outputs, at::Tensor** grads, size_t n_out, at::Tensor** inputs, size_t n_in, int retain, at::Tensor** result) {
  return guarded([&] {
    variable_list ys, gs, xs;
    for (size_t i = 0; i < n_out; i++) {
      ys.push_back(*outputs[i]);
      gs.push_back(*grads[i]);
    }
    for (size_t i = 0; i < n_in; i++) xs.push_back(*inputs[i]);
    auto out = torch::autograd::grad(ys, xs, gs, retain != 0, /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < n_in; i++) result[i] = out[i].defined() ? new at::Tensor(std::move(out[i])) : nullptr;
  });
}

int rt_grad_enabled() { return at::GradMode::is_enabled(); }

}  // extern "C"
