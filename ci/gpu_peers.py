"""What people would use instead, measured on the same GPU in the same hour: JSON lines on standard output.

    gpu_peers.py sft cuda|cpu      plain PyTorch: Qwen3 shapes, bf16 weights with fp32 masters, flash SDPA, fused AdamW,
                                   eager and torch.compile
    gpu_peers.py decode cuda|cpu   transformers' generation where transformers is installed, else a plain PyTorch loop over
                                   a static KV cache, which the line says

The model is written out here, as transformers may be absent; `cpu` is tiny and shows that the script runs.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

QWEN3 = dict(vocab=151936, hidden=1024, inner=3072, layers=28, heads=16, kv_heads=8, d=128)
TINY = dict(vocab=97, hidden=32, inner=48, layers=2, heads=4, kv_heads=2, d=8)


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.q, self.o = linear(c["hidden"], c["heads"] * c["d"]), linear(c["heads"] * c["d"], c["hidden"])
        self.k, self.v = linear(c["hidden"], c["kv_heads"] * c["d"]), linear(c["hidden"], c["kv_heads"] * c["d"])
        self.gate, self.up = linear(c["hidden"], c["inner"]), linear(c["hidden"], c["inner"])
        self.down = linear(c["inner"], c["hidden"])
        self.norm1, self.norm2 = nn.RMSNorm(c["hidden"], eps=1e-6), nn.RMSNorm(c["hidden"], eps=1e-6)
        self.q_norm, self.k_norm = nn.RMSNorm(c["d"], eps=1e-6), nn.RMSNorm(c["d"], eps=1e-6)

    def forward(self, x, cos, sin, cache=None, at=None):
        b, t, _ = x.shape
        y = self.norm1(x)
        split = lambda z: z.view(b, t, -1, self.c["d"]).transpose(1, 2)
        q, k, v = self.q_norm(split(self.q(y))), self.k_norm(split(self.k(y))), split(self.v(y))
        q, k = rope(q, cos, sin).to(v.dtype), rope(k, cos, sin).to(v.dtype)
        if cache is not None:
            keys, values = cache
            keys[:, :, at:at + t], values[:, :, at:at + t] = k, v
            k, v = keys[:, :, :at + t], values[:, :, :at + t]
        z = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1, enable_gqa=True)
        x = x + self.o(z.transpose(1, 2).reshape(b, t, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c["vocab"], c["hidden"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = nn.RMSNorm(c["hidden"], eps=1e-6)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, caches=None, at=0):
        positions = torch.arange(at, at + ids.shape[1], device=ids.device, dtype=torch.float32)
        d = self.c["d"]
        angles = positions[:, None] / 1e6 ** (torch.arange(0, d, 2, device=ids.device).float() / d)
        cos, sin = angles.cos(), angles.sin()
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, caches and caches[i], at)
        return F.linear(self.norm(x), self.embed.weight)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def sft(device):
    c, batch, repeats = (QWEN3, 8192, 5) if device == "cuda" else (TINY, 64, 1)
    for compiled in [False, True] if device == "cuda" else [False]:
        for length in [batch // 2, batch]:
            torch.manual_seed(1)
            model = Model(c).to(device, torch.bfloat16)
            weights = list(model.parameters())
            masters = [p.detach().float() for p in weights]
            optimizer = torch.optim.AdamW(masters, lr=1e-6, fused=True)
            forward = torch.compile(model) if compiled else model
            ids = torch.randint(c["vocab"], (2, batch // length, length), device=device)

            def step():
                for part in ids:
                    logits = forward(part)
                    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten()) / 2
                    loss.backward()
                for master, p in zip(masters, weights):
                    master.grad, p.grad = p.grad.float(), None
                nn.utils.clip_grad_norm_(masters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                with torch.no_grad():
                    torch._foreach_copy_(weights, masters)

            out = dict(measure="sft", peer="PyTorch " + ("compiled" if compiled else "eager"), length=length,
                       torch=torch.__version__, tokens=2 * batch, microbatch_tokens=batch)
            try:
                step(), step()
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                times = []
                for _ in range(repeats):
                    wait(device)
                    start = time.perf_counter()
                    step()
                    wait(device)
                    times.append(time.perf_counter() - start)
                out["tokens_per_second"] = 2 * batch / statistics.median(times)
                out["peak_bytes"] = torch.cuda.max_memory_allocated() if device == "cuda" else None
            except (RuntimeError, torch.OutOfMemoryError) as why:
                out["failed"] = str(why).splitlines()[0]
            print(json.dumps(out), flush=True)
            del model, optimizer, forward, weights, masters
            if device == "cuda":
                torch.cuda.empty_cache()
            torch._dynamo.reset()


def plain_decode(device, c, rows, prompt, new):
    """Greedy sampling by the model above over a static cache, one call of the model a token."""
    model = Model(c).to(device, torch.bfloat16).eval()
    ids = torch.randint(c["vocab"], (rows, prompt), device=device)
    size = (rows, c["kv_heads"], prompt + new, c["d"])
    caches = [tuple(torch.empty(size, device=device, dtype=torch.bfloat16) for _ in range(2)) for _ in range(c["layers"])]

    def head(part):
        """Prompts in parts of few rows: their logits are not all needed."""
        views = [(k[part], v[part]) for k, v in caches]
        return model(ids[part], views, 0)[:, -1].argmax(-1, keepdim=True)

    with torch.inference_mode():
        def run():
            token = torch.cat([head(slice(i, i + 8)) for i in range(0, rows, 8)])
            for at in range(prompt, prompt + new - 1):
                token = model(token, caches, at)[:, -1].argmax(-1, keepdim=True)
            wait(device)
        run()
        start = time.perf_counter()
        run()
    return time.perf_counter() - start


def transformers_decode(device, rows, prompt, new):
    """transformers' generate_batch (continuous batching) on random weights; raises where this version has none."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
    config = Qwen3Config(vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
                         num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
                         max_position_embeddings=40960)
    model = Qwen3ForCausalLM(config).to(device, torch.bfloat16).eval()
    ids = torch.randint(config.vocab_size, (rows, prompt)).tolist()
    how = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    model.generate_batch(inputs=ids[:8], generation_config=how)
    start = time.perf_counter()
    model.generate_batch(inputs=ids, generation_config=how)
    return time.perf_counter() - start


def decode(device):
    c, rows, prompt, new = (QWEN3, 256, 512, 512) if device == "cuda" else (TINY, 3, 20, 5)
    out = dict(measure="decode", sequences=rows, prompt=prompt, new=new, torch=torch.__version__)
    ways = [("plain PyTorch loop over a static KV cache", lambda: plain_decode(device, c, rows, prompt, new))]
    if device == "cuda":
        ways.append(("transformers, continuous batching", lambda: transformers_decode(device, rows, prompt, new)))
    for name, run in ways:
        line = out | {"peer": name}
        try:
            seconds = run()
            line |= {"seconds": seconds, "tokens_per_second": rows * new / seconds}
        except Exception as why:  # whatever a peer cannot do here is its line's content
            line["failed"] = f"{type(why).__name__}: {why}".splitlines()[0]
        print(json.dumps(line), flush=True)


{"sft": sft, "decode": decode}[sys.argv[1]](sys.argv[2])
