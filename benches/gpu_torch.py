"""The jobs of `actloom device bench` in PyTorch and transformers, on the same card, with random weights of the same shapes.

What does not run is told in a line and the next job goes on. The exit status is 1 where a job failed for another reason than memory."""

import gc
import sys
import time

try:
    import torch
    import transformers
    from transformers import Qwen3Config, Qwen3ForCausalLM
except ImportError as error:
    print(f"left out: no PyTorch with transformers here ({error})")
    sys.exit(0)

DEVICE = "cuda"
VOCABULARY = 151936
SHAPES = {
    "0.6B": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, tie_word_embeddings=True),
    "8B": dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, tie_word_embeddings=False),
}
CONTEXT, STEPS = 1024, 32
BATCHES = (1, 64, 256)
SFT, LORA, SCORED = 2048, 4096, 4096
GROUP, RESPONSE = 8, 128
PROMPT = 3 * RESPONSE
failed = []


def model(name):
    config = Qwen3Config(
        vocab_size=VOCABULARY, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rope_theta=1e6, **SHAPES[name]
    )
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def tokens(*shape):
    return torch.randint(0, VOCABULARY, shape, device=DEVICE)


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
    """Whether it ran to its end; else a line says why not."""
    done = True
    try:
        job()
    except Exception as error:
        done = False
        first = (str(error).splitlines() or [""])[0]
        print(f"{what}: {type(error).__name__}: {first}", flush=True)
        if not isinstance(error, torch.cuda.OutOfMemoryError):
            failed.append(what)
    gc.collect()
    try:
        torch.cuda.empty_cache()
    except Exception:
        pass  # after an error of the device everything fails, as the jobs that follow will tell
    return done


def decode(name, net):
    for batch in BATCHES:
        what = f"torch {name}: decoding {batch} sequences after {CONTEXT} tokens"

        @torch.no_grad()
        def job():
            # one prompt is read and its keys and values copied, for only what follows is timed
            out = net(tokens(1, CONTEXT), use_cache=True, logits_to_keep=1)
            past, last = out.past_key_values, out.logits[:, -1:].argmax(-1).repeat(batch, 1)
            if batch > 1:
                past.batch_repeat_interleave(batch)

            def rounds(steps, last):
                for _ in range(steps):
                    out = net(last, past_key_values=past, use_cache=True)
                    probabilities = torch.softmax(out.logits[:, -1].float(), -1)
                    last = torch.multinomial(probabilities, 1)
                torch.cuda.synchronize()
                return last

            last = rounds(4, last)
            began = time.perf_counter()
            rounds(STEPS, last)
            line(what, batch * STEPS / (time.perf_counter() - began))

        attempt(what, job)


def log_probabilities(logits, ids):
    """log p of each id (b, t) under logits (b, t, v)."""
    return torch.log_softmax(logits.float(), -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def score(name, net):
    what = f"torch {name}: log-probabilities of {SCORED} tokens"
    ids = tokens(1, SCORED)

    @torch.no_grad()
    def job():
        return log_probabilities(net(ids, use_cache=False).logits[:, :-1], ids[:, 1:])

    attempt(what, lambda: line(what, SCORED / best(job)))


def stepper(parameters, loss):
    """A whole update: forward, backward, clipping, AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def job():
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return job


def updates(what, net, parameters, count, loss):
    """Updates with all of the forward kept, or where that does not fit with blocks computed again."""

    def timed(what):
        net.zero_grad(set_to_none=True)
        return attempt(what, lambda: line(what, count / best(stepper(parameters, loss))))

    before = len(failed)
    if not timed(what) and len(failed) == before:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        timed(f"{what}, recomputing")
        net.gradient_checkpointing_disable()
    net.zero_grad(set_to_none=True)


def packed(net, n):
    ids = tokens(1, n)
    return lambda: net(ids, labels=ids, use_cache=False).loss


def policy(net):
    """A group of responses in rows of their own, each behind the prompt that they share, as TRL makes its batches."""
    ids = torch.cat([tokens(1, PROMPT).repeat(GROUP, 1), tokens(GROUP, RESPONSE)], 1)

    def loss():
        logits = net(ids, use_cache=False, logits_to_keep=RESPONSE + 1).logits[:, :-1]
        return -1e-4 * log_probabilities(logits, ids[:, -RESPONSE:]).sum()

    return loss


def adapt(net):
    """Freezes a model and puts factors of rank 16 on its linear layers, but the head."""
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    factors = []
    for module in [m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]:
        a = torch.nn.Parameter(torch.randn(16, module.in_features, device=DEVICE, dtype=torch.bfloat16) * 0.01)
        b = torch.nn.Parameter(torch.zeros(module.out_features, 16, device=DEVICE, dtype=torch.bfloat16))
        factors += [a, b]
        plain = module.forward
        module.forward = lambda x, plain=plain, a=a, b=b: plain(x) + (x @ a.T) @ b.T * 2.0
    return factors


def jobs(name):
    net = model(name)
    net.eval()
    decode(name, net)
    score(name, net)
    net.train()
    if name == "0.6B":
        what = f"torch {name}: supervised update, all weights (bf16 states), {SFT} tokens"
        updates(what, net, list(net.parameters()), SFT, packed(net, SFT))
    factors = adapt(net)
    updates(f"torch {name}: update of adapters of rank 16, {LORA} tokens", net, factors, LORA, packed(net, LORA))
    what = f"torch {name}: policy update, {GROUP} responses of {RESPONSE}, repeated prompts of {PROMPT}"
    updates(what, net, factors, GROUP * RESPONSE, policy(net))


def main():
    if not torch.cuda.is_available():
        print(f"left out: torch {torch.__version__} finds no CUDA here")
        return
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, on {torch.cuda.get_device_name()}", flush=True)
    for name in SHAPES:
        attempt(f"torch {name}", lambda: jobs(name))
    sys.exit(1 if failed else 0)


main()
