"""The other side of ops/tests/python.rs: transformers and peft, one process for many folders.

models.py forward DIR   every folder in DIR holds a model, perhaps with an adapter, and ids.json: writes theirs.safetensors
models.py write DIR     writes random models of every family into DIR, with ids.json and theirs.safetensors
models.py text DIR      every folder in DIR holds a tokenizer and ask.json: writes answer.json
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    Olmo3Config,
    Qwen2Config,
    Qwen3Config,
)

GREEDY = 12


@torch.no_grad()
def forward(model, folder):
    """Logits of each sequence alone, and its likeliest continuation with the smallest lead of the winner."""
    model.eval()
    out = {}
    for i, ids in enumerate(json.loads((folder / "ids.json").read_text())):
        ids = torch.tensor([ids])
        out[f"logits.{i}"] = model(ids).logits[0].float().contiguous()
        new, lead = [], float("inf")
        for _ in range(GREEDY):
            best = model(ids).logits[0, -1].float().topk(2)
            lead = min(lead, (best.values[0] - best.values[1]).item())
            new.append(best.indices[0].item())
            ids = torch.cat([ids, best.indices[:1][None]], 1)
        out[f"greedy.{i}"] = torch.tensor(new)
        out[f"lead.{i}"] = torch.tensor([lead])
    save_file(out, folder / "theirs.safetensors")


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder / "adapter") if (folder / "adapter").exists() else model


def fill(model, seed):
    """Weights in which a forgotten norm or bias shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name:
            p.data.copy_(1 + 0.1 * noise)
        else:
            p.data.copy_((0.3 if name.endswith("bias") else 0.15) * noise)


def old_spelling(folder):
    """config.json as transformers 4 wrote it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    full = rope.get("full_attention", rope)
    config["rope_theta"] = full.pop("rope_theta")
    config["rope_scaling"] = full if full["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 64, "rope_theta": 500.0}
SIZES = {"vocab_size": 97, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

# name, config, type of the stored weights, largest shard, spelling of transformers 4
MODELS = [
    ("qwen3", Qwen3Config(**SIZES, **THETA, head_dim=16, tie_word_embeddings=True), F32, None, False),
    ("qwen3-untied-sharded-bf16", Qwen3Config(**SIZES, **THETA, head_dim=8, tie_word_embeddings=False), BF16, "20KB", True),
    ("qwen3-yarn", Qwen3Config(**SIZES, rope_parameters=dict(YARN), head_dim=16, tie_word_embeddings=True), F16, None, False),
    ("qwen2-bf16", Qwen2Config(**SIZES, **THETA, tie_word_embeddings=True), BF16, None, False),
    ("qwen2-untied-sharded-f16", Qwen2Config(**SIZES, **THETA, tie_word_embeddings=False), F16, "20KB", True),
    ("qwen2-sliding", Qwen2Config(**SIZES, **THETA, use_sliding_window=True, sliding_window=7, max_window_layers=2), F32, None, False),
    ("llama", LlamaConfig(**SIZES, rope_parameters=dict(LLAMA3), head_dim=12, tie_word_embeddings=True), BF16, None, False),
    ("llama-untied-sharded", LlamaConfig(**SIZES, rope_parameters=dict(LLAMA3), tie_word_embeddings=False), F32, "30KB", True),
    ("llama-biased", LlamaConfig(**SIZES, **THETA, attention_bias=True, mlp_bias=True), F16, None, True),
    ("olmo3", Olmo3Config(**SIZES, sliding_window=9, rope_parameters={
        "full_attention": dict(YARN), "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}), F32, None, False),
    ("olmo3-sharded-bf16", Olmo3Config(**SIZES, sliding_window=5, rope_parameters={
        "full_attention": dict(YARN), "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}), BF16, "20KB", True),
    ("olmo3-plain", Olmo3Config(**SIZES, sliding_window=9, rope_parameters={
        "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}, tie_word_embeddings=True), F16, None, False),
]
# name, its model in the list above, settings of the adapter
ADAPTERS = [
    ("lora-qwen3", 0, {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    ("lora-qwen2-all", 3, {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}),
    ("lora-llama-rs", 6, {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["o_proj", "down_proj", "gate_proj"]}),
    ("lora-olmo3-ranks", 9, {"r": 2, "lora_alpha": 4, "target_modules": ["k_proj", "up_proj"],
                             "rank_pattern": {"k_proj": 5}, "alpha_pattern": {"up_proj": 7}}),
]


def write(root):
    generator = torch.Generator().manual_seed(5)
    for i, (name, config, dtype, shard, old) in enumerate(MODELS):
        folder = root / name
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fill(model, i)
        model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        sharded = (folder / "model.safetensors.index.json").exists()
        assert sharded == bool(shard), f"{name}: sharded {sharded}"
        ids = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in (1, 30, 90)]
        (folder / "ids.json").write_text(json.dumps(ids))
        forward(load(folder), folder)
        if old:
            old_spelling(folder)
    for i, (name, base, settings) in enumerate(ADAPTERS):
        folder, source = root / name, root / MODELS[base][0]
        model = load(source)
        model.save_pretrained(folder)
        torch.manual_seed(i)
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, lora_dropout=0.0, **settings))
        tuned.save_pretrained(folder / "adapter")
        (folder / "ids.json").write_text((source / "ids.json").read_text())
        forward(load(folder), folder)


def text(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ask = json.loads((folder / "ask.json").read_text())
    answer = {
        "ids": [tokenizer.encode(t, add_special_tokens=False) for t in ask["texts"]],
        "chats": [],
    }
    answer["texts"] = [tokenizer.decode(i, skip_special_tokens=False) for i in answer["ids"]]
    for chat in ask["chats"]:
        try:
            said = tokenizer.apply_chat_template(
                chat["messages"], tokenize=False, add_generation_prompt=chat["prompt"], **chat.get("variables", {})
            )
        except Exception as error:
            said = {"error": str(error)}
        answer["chats"].append(said)
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    what, root = sys.argv[1], pathlib.Path(sys.argv[2])
    torch.manual_seed(0)
    if what == "write":
        write(root)
    else:
        for folder in sorted(root.iterdir()):
            forward(load(folder), folder) if what == "forward" else text(folder)
