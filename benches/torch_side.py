"""The PyTorch side of benches/side_by_side.sh: the jobs of ops/examples/bench_model.rs on transformers' Qwen3.

usage: torch_side.py JOB [--model A|B] [--batch N] [--length N] [--vocab N] [--runs N] [--warm N] [--threads N]
JOB is sft, score, grpo, gen or decode1. Random weights, float32, eager mode, AdamW at 1e-4; prints one JSON object.
A response's prompt is computed with every response in grpo: transformers has no shared prefixes in training.
"""
import argparse
import json
import os
import resource
import statistics
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("job", choices=["sft", "score", "grpo", "gen", "decode1"])
parser.add_argument("--model", default="A", choices=["A", "B"])
for name in ["batch", "length", "vocab"]:
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--warm", type=int, default=1)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

# threads that spin at barriers would be counted as work on a machine that others use
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["OMP_NUM_THREADS"] = str(args.threads)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import torch
    from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM
except ImportError as error:
    print(f"torch_side.py needs torch and transformers: {error}", file=sys.stderr)
    sys.exit(3)

torch.set_num_threads(args.threads)
torch.manual_seed(0)
shape = {
    "A": dict(vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2),
    "B": dict(vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4),
}[args.model]
if args.vocab:
    shape["vocab_size"] = args.vocab
config = Qwen3Config(**shape, head_dim=64, max_position_embeddings=32768, rope_theta=1e6, tie_word_embeddings=True)
config._attn_implementation = "sdpa"
model = Qwen3ForCausalLM(config).float()
vocab = shape["vocab_size"]


def logps(ids, first):
    """Log-probabilities of the tokens from `first` on."""
    logits = model(ids, use_cache=False).logits[:, first - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, ids[:, first:, None]).squeeze(-1)


if args.job in ("sft", "grpo"):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
else:
    model.eval()

if args.job == "sft":
    batch, length = args.batch or 8, args.length or 512
    ids = torch.randint(0, vocab, (batch, length))
    tokens = batch * length

    def run():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

elif args.job == "score":
    batch, length = args.batch or 8, args.length or 512
    ids = torch.randint(0, vocab, (batch, length))
    tokens = batch * length

    def run():
        with torch.inference_mode():
            logps(ids, 1)

elif args.job == "grpo":
    batch, prompt, response = args.batch or 8, args.length or 512, 64
    ids = torch.cat([torch.randint(0, vocab, (1, prompt)).expand(batch, -1), torch.randint(0, vocab, (batch, response))], 1)
    with torch.no_grad():
        old = logps(ids, prompt)
        old = old + 0.01 * torch.randn_like(old)
    advantages = torch.randn(batch, 1)
    tokens = batch * (prompt + response)

    def run():
        ratio = torch.exp(logps(ids, prompt) - old)
        loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

else:
    one = args.job == "decode1"
    batch, prompt = args.batch or (1 if one else 32), args.length or (32 if one else 256)
    ids = torch.randint(0, vocab, (batch, prompt))
    tokens = batch * 128

    def run():
        with torch.inference_mode():
            cache, x = DynamicCache(config=config), ids
            for _ in range(128):
                logits = model(x, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                x = logits.argmax(-1, keepdim=True) if one else torch.multinomial(torch.softmax(logits, -1), 1)


def processor():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


for _ in range(args.warm):
    run()
walls, processors = [], []
for _ in range(args.runs):
    cpu, wall = processor(), time.perf_counter()
    run()
    walls.append(time.perf_counter() - wall)
    processors.append(processor() - cpu)
print(json.dumps({
    "side": "torch", "job": args.job, "model": args.model, "tokens": tokens, "runs": args.runs, "threads": args.threads,
    "tokens_per_processor_second": tokens * args.runs / sum(processors),
    "wall_best": min(walls), "wall_median": statistics.median(walls),
    "processor_best": min(processors), "processor_median": statistics.median(processors),
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "load": os.getloadavg()[0],
}))
