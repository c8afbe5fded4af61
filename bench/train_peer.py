#!/usr/bin/env python3
"""The peer: the model that mt-bench trains, written in plain PyTorch as its users would, timed the same way.

One step is forward, backward, clipping of the gradient norm at 1.0 and AdamW. Tokens come from a raw file of uint16 ids. With
--weights FOLDER the run starts from the weights that `mt-bench --weights-out` wrote, so that the two print the same losses: that
they compute the same thing is part of the comparison. Weights and states are float32; --dtype bf16 computes under autocast,
--pure-bf16 keeps weights and states in bf16 too. The last line is JSON.

--ceilings measures instead what this device's memory and matrix units give PyTorch: a copy of 1 GiB, a bf16 product of 8192^3.
"""
import argparse
import array
import json
import math
import os
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


class Rotary:
    """cos and sin of p * theta^(-2j/d) for the half-split rotation."""

    def __init__(self, positions, head_dim, theta):
        inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), inverse)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()

    def to(self, device, dtype):
        self.cos, self.sin = self.cos.to(device, dtype), self.sin.to(device, dtype)

    def __call__(self, x):  # (B, H, T, d)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * self.cos - second * self.sin, second * self.cos + first * self.sin), dim=-1)


class DecoderBlock(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.hidden // shape.heads
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.qkv_proj = nn.Linear(shape.hidden, query + 2 * key, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.gate_up_proj = nn.Linear(shape.hidden, 2 * shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def attention(self, x, rotary):
        batch, tokens, _ = x.shape
        heads = self.qkv_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        group = self.heads // self.kv_heads
        q, k = rotary(q), rotary(k)
        if x.is_cuda:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(batch, tokens, -1))

    def forward(self, x, rotary):
        x = x + self.attention(self.input_layernorm(x), rotary)
        gate, up = self.gate_up_proj(self.post_attention_layernorm(x)).chunk(2, dim=-1)
        return x + self.down_proj(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(DecoderBlock(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.rotary = Rotary(shape.seq, shape.hidden // shape.heads, 10000.0)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.layers) if residual else 0.02)

    def forward(self, ids, targets):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.rotary)
        return F.cross_entropy(self.lm_head(self.norm(x)).float().flatten(0, 1), targets.flatten())


def read_array(path, kind):
    values = array.array(kind)
    with open(path, "rb") as file:
        values.frombytes(file.read())
    return values


def load_weights(model, folder):
    """manifest.txt has a line per tensor: name, offset in elements, sizes; data.bin holds them as float32."""
    data = torch.frombuffer(bytearray(open(os.path.join(folder, "data.bin"), "rb").read()), dtype=torch.float32)
    tensors = {}
    for line in open(os.path.join(folder, "manifest.txt")):
        name, offset, *sizes = line.split()
        sizes = [int(size) for size in sizes]
        tensors[name] = data[int(offset):int(offset) + math.prod(sizes)].view(sizes)

    def value(name):
        layer, _, part = name.rpartition("layers.")[2].partition(".")
        at = "model.layers." + layer + "."
        if part == "qkv_proj.weight":
            return torch.cat([tensors[at + "self_attn." + x + "_proj.weight"] for x in "qkv"])
        if part == "gate_up_proj.weight":
            return torch.cat([tensors[at + "mlp." + x + "_proj.weight"] for x in ("gate", "up")])
        if part in ("o_proj.weight", "down_proj.weight"):
            return tensors[at + ("self_attn." if part[0] == "o" else "mlp.") + part]
        return tensors[name if name.startswith("lm_head") else "model." + name]

    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(value(name))


def median_seconds(run, repeats=20):
    run()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(4):
            run()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / 4)
    return statistics.median(seconds)


def ceilings():
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() * source.element_size() / median_seconds(lambda: target.copy_(source))
    del source, target
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * 8192**3 / median_seconds(lambda: torch.matmul(a, b.t()))
    print(json.dumps({"program": "torch " + torch.__version__, "device": torch.cuda.get_device_name(),
                      "copy_gbytes": round(copy / 1e9), "bf16_tflops": round(flops / 1e12)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = dict(layers=8, hidden=512, heads=8, kv_heads=4, ffn=1408, vocab=8192, seq=512, micro_batch=4, steps=15, warmup=5,
                 threads=2)
    for name, default in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--tokens")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--pure-bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ceilings", action="store_true")
    shape = parser.parse_args()
    if shape.ceilings:
        return ceilings()
    if not shape.tokens:
        parser.error("--tokens FILE is needed")
    torch.manual_seed(1)
    torch.set_num_threads(shape.threads)
    on_gpu = shape.device == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = True

    with torch.device(shape.device):
        model = Model(shape)
    if shape.weights:
        load_weights(model, shape.weights)
    autocast = torch.autocast(shape.device, torch.bfloat16, enabled=shape.dtype == "bf16" and not shape.pure_bf16)
    model = model.to(shape.device, torch.bfloat16 if shape.pure_bf16 else torch.float32)
    model.rotary.to(shape.device, torch.bfloat16 if shape.pure_bf16 or shape.dtype == "bf16" else torch.float32)
    run = torch.compile(model) if shape.compile else model
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    tokens = torch.tensor(read_array(shape.tokens, "H"), dtype=torch.int64)

    samples = len(tokens) // (shape.seq + 1)
    tokens = tokens[:samples * (shape.seq + 1)].view(samples, shape.seq + 1).to(shape.device)
    seconds, losses = [], []
    for step in range(shape.steps):
        rows = [(step * shape.micro_batch + i) % samples for i in range(shape.micro_batch)]
        start = time.perf_counter()
        batch = tokens[rows]
        with autocast:
            loss = run(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[shape.warmup:])
    precision = "pure-bf16" if shape.pure_bf16 else shape.dtype
    print(json.dumps({"program": "torch " + torch.__version__, "device": torch.cuda.get_device_name() if on_gpu else "cpu",
                      "precision": precision, "compile": shape.compile, "threads": shape.threads,
                      "memory_bytes": torch.cuda.max_memory_reserved() if on_gpu else 0, "step_seconds": round(median, 6),
                      "tokens_per_second": round(shape.micro_batch * shape.seq / median, 1),
                      "losses": [round(loss, 6) for loss in losses]}))


if __name__ == "__main__":
    main()
