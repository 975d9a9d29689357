"""Rates of TRL, transformers and vLLM on the work of `cargo xtask bench`, as JSON lines.

usage: peers.py NAME THREADS SECONDS     NAME: sft, dpo, grpo, generate, generate-transformers

The same tiny Qwen3 in fp32 on the CPU, random weights. Each line: `rate_median` and `rate_best` over
`repeats` steps after two for warming up, in the unit of the benchmark of that name. `cargo xtask bench
--peers` installs the pinned versions and runs this beside our own benchmarks.
"""

import json
import os
import statistics
import sys
import tempfile
import time

VOCAB = 660
CONFIG = dict(
    vocab_size=VOCAB, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
    num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=4096,
    rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=True, hidden_act="silu",
    initializer_range=0.02,
)


def model():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    return Qwen3ForCausalLM(Qwen3Config(**CONFIG, bos_token_id=None, eos_token_id=VOCAB - 1, pad_token_id=VOCAB - 2))


def tokenizer():
    """One word a token: `t7` is token 7."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(words, unk_token="t0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=f"t{VOCAB - 1}", pad_token=f"t{VOCAB - 2}")


def tokens(count, salt):
    return [(i * 7 + i * i * 3 + salt * 131) % (VOCAB - 2) for i in range(count)]


def text(count, salt):
    return " ".join(f"t{i}" for i in tokens(count, salt))


def clock(seconds):
    """A TRL callback that takes the time of each step and stops after so many seconds."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        times, began, first = [], 0.0, None

        def on_step_begin(self, args, state, control, **_):
            self.began = time.perf_counter()
            self.first = self.first or self.began

        def on_step_end(self, args, state, control, **_):
            now = time.perf_counter()
            self.times.append(now - self.began)
            control.should_training_stop = len(self.times) >= 6 and now - self.first > seconds
            return control

    return Clock()


def settings(out):
    return dict(
        output_dir=out, use_cpu=True, bf16=False, fp16=False, max_steps=100000, report_to=[], logging_steps=100000,
        save_strategy="no", learning_rate=1e-5, disable_tqdm=True, dataloader_pin_memory=False,
    )


def train(make, units, seconds):
    with tempfile.TemporaryDirectory() as out:
        watch = clock(seconds)
        trainer = make(settings(out), watch)
        trainer.train()
    times = watch.times[2:]
    return times, units


def sft(seconds):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"input_ids": tokens(256, i)} for i in range(512)])

    def make(common, watch):
        config = SFTConfig(**common, per_device_train_batch_size=8, max_length=256, packing=False)
        return SFTTrainer(model(), args=config, train_dataset=rows, processing_class=tokenizer(), callbacks=[watch])

    return train(make, 8 * 256, seconds)


def dpo(seconds):
    """Reference log-probabilities known beforehand, as in our benchmark."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def row(i):
        return {"prompt": text(15, i), "chosen": " " + text(14 + i % 3, 1000 + 2 * i), "rejected": " " + text(14 + (i + 1) % 3, 1001 + 2 * i)}

    rows = Dataset.from_list([row(i) for i in range(512)])

    def make(common, watch):
        config = DPOConfig(**common, per_device_train_batch_size=16, max_length=64, precompute_ref_log_probs=True)
        return DPOTrainer(model(), args=config, train_dataset=rows, processing_class=tokenizer(), callbacks=[watch])

    return train(make, 16, seconds)


def grpo(seconds):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = Dataset.from_list([{"prompt": text(26, i)} for i in range(512)])

    def reward(completion_ids, **_):
        return [sum(t < 64 for t in ids) / 58 for ids in completion_ids]

    def make(common, watch):
        config = GRPOConfig(
            **common, per_device_train_batch_size=32, num_generations=8, max_completion_length=58, beta=0.0,
            temperature=1.0, generation_kwargs={"min_new_tokens": 58},
        )
        return GRPOTrainer(
            model(), reward_funcs=reward, args=config, train_dataset=rows, processing_class=tokenizer(), callbacks=[watch]
        )

    return train(make, 32, seconds)


def repeat(once, seconds):
    times = []
    begin = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        once(len(times))
        times.append(time.perf_counter() - start)
    return times[1:]


def generate_transformers(seconds):
    import torch

    net = model().eval()

    def once(run):
        prompts = torch.tensor([tokens(32, run * 64 + i) for i in range(64)])
        with torch.inference_mode():
            out = net.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=128, min_new_tokens=128,
                pad_token_id=VOCAB - 2,
            )
        assert out.shape == (64, 160)

    return repeat(once, seconds), 64 * 128


def generate_vllm(seconds):
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as home:
        model().save_pretrained(home)
        tokenizer().save_pretrained(home)
        engine = LLM(home, dtype="float32", max_model_len=512, enable_prefix_caching=False, disable_log_stats=True)
        sampling = SamplingParams(temperature=1.0, max_tokens=128, ignore_eos=True, detokenize=False)

        def once(run):
            prompts = [{"prompt_token_ids": tokens(32, run * 64 + i)} for i in range(64)]
            out = engine.generate(prompts, sampling, use_tqdm=False)
            assert all(len(o.outputs[0].token_ids) == 128 for o in out)

        return repeat(once, seconds), 64 * 128


PEERS = {
    "sft": ("trl", sft), "dpo": ("trl", dpo), "grpo": ("trl", grpo),
    "generate-transformers": ("transformers", generate_transformers), "generate": ("vllm", generate_vllm),
}


def main():
    name, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    package, run = PEERS[name]
    times, amount = run(seconds)
    import importlib.metadata

    version = importlib.metadata.version("vllm-cpu" if package == "vllm" else package)
    line = {
        "peer": f"{package} {version}", "bench": name, "rate_median": amount / statistics.median(times),
        "rate_best": amount / min(times), "repeats": len(times), "threads": threads, "torch": torch.__version__,
    }
    print("PEER " + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
