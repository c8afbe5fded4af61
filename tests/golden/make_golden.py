"""Makes the golden files: small Llamas of Hugging Face transformers, in float32 on the CPU.

  python3 -m venv VENV && VENV/bin/pip install -r tests/golden/requirements.txt
  VENV/bin/python tests/golden/make_golden.py tests/golden

Each file holds the sizes of one model, its weights, the tokens of two batches that take turns, and what transformers computes from them:
logits and gradients of the first step's batch, and the losses of ten AdamW steps (torch.optim.AdamW, no decay on norms).

Format, little-endian: "MTGOLDEN", u32 count, then per tensor: u32 name length, name, u32 dimensions, i64 sizes,
float32 values. Token ids and sizes are stored as float32 too (they are small).
"""
import struct
import sys

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

STEPS, BATCHES, BATCH, SEQUENCE = 10, 2, 4, 16


def write(path, tensors):
    with open(path, "wb") as f:
        f.write(b"MTGOLDEN" + struct.pack("<I", len(tensors)))
        for name, value in tensors.items():
            value = np.ascontiguousarray(value, dtype=np.float32)
            f.write(struct.pack("<I", len(name)) + name.encode())
            f.write(struct.pack(f"<I{value.ndim}q", value.ndim, *value.shape))
            f.write(value.tobytes())


def make(path, seed, tied, theta):
    torch.manual_seed(seed)
    sizes = dict(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=61)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=sizes["vocab"], hidden_size=sizes["hidden"], intermediate_size=sizes["ffn"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"], max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=theta,
        tie_word_embeddings=tied, attention_bias=False, mlp_bias=False, attn_implementation="eager")).float()
    tensors = {"sizes": [*sizes.values(), SEQUENCE, BATCH, STEPS], "rope_theta": [theta], "tied": [float(tied)]}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms away from one and larger matrices than usual: every term of a gradient then matters.
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter) if parameter.dim() == 1
                            else 0.15 * torch.randn_like(parameter))
            tensors["weight." + name] = parameter.numpy().copy()
    tokens = torch.randint(0, sizes["vocab"], (BATCHES * BATCH, SEQUENCE + 1))
    tensors["tokens"] = tokens.numpy()

    optimizer = torch.optim.AdamW([
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ], lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(STEPS):
        batch = tokens[step % BATCHES * BATCH:][:BATCH]
        logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, sizes["vocab"]), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            tensors["logits"] = logits.detach().numpy()
            for name, parameter in model.named_parameters():
                tensors["gradient." + name] = parameter.grad.numpy().copy()
        optimizer.step()
        losses.append(loss.item())
    tensors["losses"] = losses
    write(path, tensors)
    print(path, losses)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(sys.argv[1] + "/llama.golden", seed=1, tied=False, theta=500000.0)
    make(sys.argv[1] + "/llama_tied.golden", seed=2, tied=True, theta=10000.0)
