"""The jobs of `actloom device bench` in PyTorch and transformers, on the same card, with random weights of the same shapes."""

import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

SHAPES = {
    "0.6B": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, tie_word_embeddings=True),
    "8B": dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, tie_word_embeddings=False),
}


def model(name):
    config = Qwen3Config(
        vocab_size=151936, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rope_theta=1e6, **SHAPES[name]
    )
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        made = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return made


def best(job):
    """Seconds of one round, the best of three after one to warm up."""
    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        began = time.perf_counter()
        job()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def line(what, value, unit="tok/s"):
    print(f"{what:<78} {value:>10.0f} {unit}", flush=True)


def attempt(what, job):
    try:
        job()
    except torch.cuda.OutOfMemoryError:
        print(f"{what}: does not fit")
    torch.cuda.empty_cache()


def decode(name, net):
    for batch in (1, 64):
        def job():
            ids = torch.randint(0, 1000, (batch, 1024), device="cuda")
            with torch.no_grad():
                out = net(ids, use_cache=True, logits_to_keep=1)
                past, last = out.past_key_values, out.logits[:, -1:].argmax(-1)
                torch.cuda.synchronize()
                began = time.perf_counter()
                steps = 32
                for _ in range(steps):
                    out = net(last, past_key_values=past, use_cache=True)
                    probabilities = torch.softmax(out.logits[:, -1].float(), -1)
                    last = torch.multinomial(probabilities, 1)
                torch.cuda.synchronize()
            line(f"torch {name}: decoding {batch} sequences after 1024 tokens", batch * steps / (time.perf_counter() - began))

        attempt(f"torch {name}: decoding {batch}", job)


def update(name, net, tokens, what, parameters):
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    ids = torch.randint(0, 1000, (1, tokens), device="cuda")

    def job():
        loss = net(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    attempt(what, lambda: line(f"torch {name}: {what}, packed to {tokens} tokens", tokens / best(job)))


def main():
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
    for name in ("0.6B", "8B"):
        net = model(name)
        net.eval()
        decode(name, net)
        net.train()
        if name == "0.6B":
            update(name, net, 2048, "supervised update, all weights (bf16 states)", list(net.parameters()))
        else:
            for parameter in net.parameters():
                parameter.requires_grad_(False)
            factors = []
            for module in [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features != 151936]:
                a = torch.nn.Parameter(torch.randn(16, module.in_features, device="cuda", dtype=torch.bfloat16) * 0.01)
                b = torch.nn.Parameter(torch.zeros(module.out_features, 16, device="cuda", dtype=torch.bfloat16))
                factors += [a, b]
                plain = module.forward
                module.forward = lambda x, plain=plain, a=a, b=b: plain(x) + (x @ a.T) @ b.T * 2.0
            net.gradient_checkpointing_enable()
            update(name, net, 4096, "update of adapters of rank 16, recomputing", factors)
        del net
        torch.cuda.empty_cache()


main()
