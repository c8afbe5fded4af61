"""Makes the golden folders: one small model per architecture, in float32 on the CPU, by Hugging Face transformers.

  python3 -m venv VENV && VENV/bin/pip install -r tests/golden/requirements.txt
  VENV/bin/python tests/golden/make_golden.py tests/golden [CASE...]

A folder is what save_pretrained writes (config.json, model.safetensors, generation_config.json), and expected.safetensors:

  tokens           I32 (batches * batch, sequence + 1): batches that take turns
  logits           F32 (batch, sequence, vocabulary) of the first batch
  losses           F32: one per step of torch.optim.AdamW (lr 1e-2, betas 0.9 and 0.95, eps 1e-8; decay 0.1, none on norms, biases
                   and sinks)
  gradient.<name>  F32: of the first step, by the name the weight has in model.safetensors

CASE packed/NAME adds packed.safetensors to the folder NAME: the same model on samples of several documents, in which a token sees only
its own document, positions begin anew with each, and some labels have no loss:

  tokens           as above
  document_start   I32 (batches * batch, sequence): where the document of an input token begins
  loss_mask        I32 (batches * batch, sequence): whether a label has a loss; a batch's loss is the mean over those
  losses, gradient.<name>

The same is computed once more in float64. If that tells another loss or gradient, or another choice of experts, the case would test
luck: then, and where a choice is nearly a tie, the script fails, and the case needs another seed.
"""
import copy
import json
import pathlib
import shutil
import sys

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

STEPS, BATCHES, BATCH, SEQUENCE, VOCABULARY = 10, 2, 4, 16, 61
LOSS_TOLERANCE, GRADIENT_TOLERANCE, MARGIN = 1e-6, 4e-6, 1e-4  # margin: of logits; of probabilities for sigmoid
MTP_COEFFICIENT = 0.1

COMMON = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0,
              tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)
# A base so small that a short sequence already turns the slow dimensions.
YARN = dict(rope_type="yarn", factor=4.0, beta_fast=4.0, beta_slow=1.0, original_max_position_embeddings=64)
DEEPSEEK = dict(num_key_value_heads=4, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=8,
                n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16, first_k_dense_replace=1,
                rms_norm_eps=1e-6, rope_theta=100.0)

CASES = {
    "llama": ("Llama", 1, dict(rope_theta=500000.0)),
    "llama_tied": ("Llama", 102, dict(tie_word_embeddings=True)),
    # Wavelengths of head_dim 8: 6 stays, 63 is blended, 628 and 6283 are stretched.
    "llama_scaled": ("Llama", 3, dict(attention_bias=True, mlp_bias=True, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64))),
    "qwen2": ("Qwen2", 104, dict(num_hidden_layers=3, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5,
                               max_window_layers=1)),
    "qwen3": ("Qwen3", 5, dict(head_dim=16, rope_theta=100.0, rope_scaling=YARN)),
    "mistral": ("Mistral", 106, dict(head_dim=16, sliding_window=6, rope_scaling=dict(rope_type="linear", factor=2.0))),
    "gpt2": ("GPT2", 7, dict(n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=VOCABULARY, resid_pdrop=0.0,
                             embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=1)),
    "mixtral": ("Mixtral", 8, dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen3_moe": ("Qwen3Moe", 209, dict(head_dim=16, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=16,
                                      norm_topk_prob=True)),
    "deepseek_v2": ("DeepseekV2", 210, DEEPSEEK | dict(
        num_hidden_layers=3, q_lora_rank=24, n_shared_experts=2, topk_method="group_limited_greedy", n_group=4, topk_group=2,
        routed_scaling_factor=2.0, rope_scaling=YARN | dict(mscale=0.707, mscale_all_dim=0.707))),
    "deepseek_v2_lite": ("DeepseekV2", 11, DEEPSEEK | dict(rms_norm_eps=1e-3, q_lora_rank=None, n_shared_experts=1, topk_method="greedy")),
    "deepseek_v3": ("DeepseekV3", 412, DEEPSEEK | dict(
        num_hidden_layers=3, q_lora_rank=24, n_shared_experts=1, n_group=4, topk_group=2, routed_scaling_factor=2.5,
        norm_topk_prob=True, rope_scaling=YARN | dict(mscale=1.0, mscale_all_dim=0.8))),
    "deepseek_v3_mtp": ("DeepseekV3", 413, DEEPSEEK | dict(
        q_lora_rank=24, n_shared_experts=1, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        routed_scaling_factor=1.0, norm_topk_prob=False, num_nextn_predict_layers=1)),
    "gpt_oss": ("GptOss", 14, dict(head_dim=8, num_local_experts=4, num_experts_per_tok=2, intermediate_size=24,
                                   sliding_window=4, rope_theta=100.0, rope_scaling=YARN | dict(truncate=False))),
}
# Samples of several documents, of these lengths; models whose attention or positions differ.
PACKED = {"llama": 21, "qwen3": 22, "gpt2": 23, "deepseek_v3": 30, "gpt_oss": 25}
DOCUMENTS = [[16], [5, 11], [1, 7, 8], [3, 3, 3, 7], [10, 6], [1, 1, 1, 13], [6, 5, 5], [15, 1]]


class MultiTokenPrediction(torch.nn.Module):
    """DeepSeek-V3's layer behind the last (arXiv 2412.19437, section 2.2), which transformers does not load."""

    def __init__(self, config):
        super().__init__()
        self.enorm = v3.DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = v3.DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = v3.DeepseekV3DecoderLayer(config, config.num_hidden_layers)
        self.norm = v3.DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, main, hidden, following):
        x = self.eh_proj(torch.cat([self.enorm(main.model.embed_tokens(following)), self.hnorm(hidden)], dim=-1))
        positions = torch.arange(x.shape[1])[None]
        mask = torch.full((x.shape[1], x.shape[1]), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]
        x = self.block(x, attention_mask=mask, position_ids=positions,
                       position_embeddings=main.model.rotary_emb(x, positions))
        return main.lm_head(self.norm(x[0] if isinstance(x, tuple) else x))

    def hub_name(self, name, layers):
        name = name.removeprefix("block.")
        return f"model.layers.{layers}." + ("shared_head." + name if name == "norm.weight" else name)


def scale_softmax(model):
    """DeepSeek-V2's own code scales the softmax as V3's does; transformers' V2 class leaves it out."""
    config = model.config
    if config.model_type == "deepseek_v2" and config.rope_scaling:
        mscale = v3.yarn_get_mscale(config.rope_scaling["factor"], config.rope_scaling["mscale_all_dim"])
        for layer in model.model.layers:
            layer.self_attn.scaling *= mscale * mscale


def build(kind, settings):
    config = getattr(transformers, kind + "Config")(**(settings if kind == "GPT2" else COMMON | settings))
    config._attn_implementation = "eager"
    model = getattr(transformers, kind + ("LMHeadModel" if kind == "GPT2" else "ForCausalLM"))(config).float().train()
    scale_softmax(model)
    mtp = MultiTokenPrediction(config) if getattr(config, "num_nextn_predict_layers", 0) else None
    return model, mtp


def randomise(model, mtp):
    with torch.no_grad():
        parameters = list(model.named_parameters()) + (list(mtp.named_parameters()) if mtp else [])
        for name, p in parameters:
            # Norms away from one, biases away from zero and larger matrices than usual: every term of a gradient then matters.
            if is_norm(name):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif name.endswith("gate_up_proj_bias"):
                p.copy_(4 * torch.randn_like(p))  # some gates and ups beyond gpt-oss' limit
            elif not decays(name, p):
                p.copy_(0.3 * torch.randn_like(p))
            else:
                p.copy_(0.15 * torch.randn_like(p))
        for module in [*model.modules(), *(mtp.modules() if mtp else [])]:
            if hasattr(module, "e_score_correction_bias"):
                module.e_score_correction_bias.copy_(0.1 * torch.rand_like(module.e_score_correction_bias))
            if isinstance(module, v3.DeepseekV3TopkRouter) or type(module).__name__ in ("DeepseekV2MoEGate", "GptOssTopKRouter"):
                module.weight.mul_(2)  # choices further apart


def is_norm(name):
    parts = name.split(".")
    return parts[-1] == "weight" and any("norm" in part or part.startswith("ln_") for part in parts)


def decays(name, p):
    return p.dim() > 1 and not name.endswith("_bias")


class Choices:
    """Which experts every router call chose, and how near the nearest of them was to being another one."""

    def __init__(self, model, mtp):
        self.chosen, self.margin = [], float("inf")
        for module in [*model.modules(), *(mtp.modules() if mtp else [])]:
            kind = type(module).__name__
            if kind in ("MixtralSparseMoeBlock", "Qwen3MoeSparseMoeBlock"):
                module.gate.register_forward_hook(lambda m, i, logits, top_k=module.top_k: self.add(logits, top_k))
            elif kind == "GptOssTopKRouter":
                module.register_forward_hook(lambda m, i, o: self.add(F.linear(i[0].flatten(0, -2), m.weight, m.bias), m.top_k))
            elif kind == "DeepseekV2MoEGate":
                module.register_forward_hook(lambda m, i, o: self.add(
                    F.linear(i[0].flatten(0, -2), m.weight), m.top_k,
                    (m.num_group, m.topk_group, 1) if m.topk_method != "greedy" else None))
            elif kind == "DeepseekV3TopkRouter":
                module.register_forward_hook(lambda m, i, o: self.add(
                    F.linear(i[0].flatten(0, -2), m.weight).sigmoid() + m.e_score_correction_bias, m.top_k,
                    (m.n_group, m.topk_group, 2)))

    def near(self, scores, k):
        if k < scores.shape[-1]:
            best = scores.topk(k + 1, dim=-1).values
            self.margin = min(self.margin, (best[:, k - 1] - best[:, k]).min().item())
        return scores.topk(k, dim=-1).indices

    def add(self, scores, top_k, groups=None):
        scores = scores.detach()
        if groups and groups[1] < groups[0]:
            number, top, best = groups
            grouped = scores.view(len(scores), number, -1)
            kept = self.near(grouped.topk(best, dim=-1).values.sum(-1), top)
            mask = torch.zeros(len(scores), number, dtype=torch.bool).scatter_(1, kept, True)
            scores = grouped.masked_fill(~mask[..., None], float("-inf")).flatten(1)
        chosen = self.near(scores, top_k)
        self.chosen.append(chosen.sort(-1).values)


def packed_inputs(model, starts):
    """What makes a model see the documents that begin at `starts` (batch, sequence): positions, and a mask for every layer."""
    at = torch.arange(SEQUENCE)
    distance = at[:, None] - at[None, :]
    seen = (distance >= 0) & (at[None, None, :] >= starts[:, :, None])
    kind = next(model.parameters()).dtype

    def mask(visible):
        return torch.zeros(visible.shape, dtype=kind).masked_fill(~visible, torch.finfo(kind).min)[:, None]

    masks = mask(seen)
    if model.config.model_type == "gpt_oss":
        masks = {"full_attention": masks, "sliding_attention": mask(seen & (distance < model.config.sliding_window))}
    return {"position_ids": at[None] - starts, "attention_mask": masks}


def train(model, mtp, tokens, starts=None, loss_mask=None):
    """Logits and gradients of the first batch, and the losses of all steps."""
    named = list(model.named_parameters())
    if mtp:
        named += [(mtp.hub_name(n, model.config.num_hidden_layers), p) for n, p in mtp.named_parameters()]
    optimizer = torch.optim.AdamW([
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": 0.1},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ], lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    choices = Choices(model, mtp)
    losses = []
    for step in range(STEPS):
        samples = slice(step % BATCHES * BATCH, (step % BATCHES + 1) * BATCH)
        batch = tokens[samples].long()
        labels = batch[:, 1:] if loss_mask is None else batch[:, 1:].masked_fill(loss_mask[samples] == 0, -100)
        inner = model.transformer if hasattr(model, "transformer") else model.model
        documents = {} if starts is None else packed_inputs(model, starts[samples].long())
        hidden = inner(input_ids=batch[:, :-1], use_cache=False, **documents).last_hidden_state
        logits = model.lm_head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if mtp:  # the last position has a next token but none after it
            second = mtp(model, hidden, batch[:, 1:])
            loss = loss + MTP_COEFFICIENT * F.cross_entropy(second[:, :-1].flatten(0, 1), batch[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        # torch leaves a parameter without a gradient alone; here weight decay goes on.
        assert all(p.grad is not None for _, p in named), "an expert was not chosen once"
        if step == 0:
            first_logits = logits.detach().clone()
            gradients = {n: p.grad.clone() for n, p in named}
        optimizer.step()
        losses.append(loss.item())
    return first_logits, gradients, losses, choices


def widened(model, mtp):
    for module in [*model.modules(), *(mtp.modules() if mtp else [])]:
        if isinstance(module, v3.DeepseekV3TopkRouter):  # which sums its experts in its weights' type
            module.register_forward_hook(lambda m, i, o: (o[0], o[1].double()))
    return model.double(), mtp.double() if mtp else None


def check(name, single, double):
    (_, gradients, losses, choices), (_, exact, exact_losses, exact_choices) = single, double
    assert all(torch.equal(a, b) for a, b in zip(choices.chosen, exact_choices.chosen, strict=True)), f"{name}: other experts"
    assert choices.margin > MARGIN, f"{name}: a choice of experts has the margin {choices.margin}"
    worst = max(abs(a - b) / b for a, b in zip(losses, exact_losses))
    assert worst < LOSS_TOLERANCE, f"{name}: losses differ by {worst} from float64's"
    off = {n: ((g - exact[n]).abs().max() / exact[n].abs().max().clamp_min(1e-30)).item() for n, g in gradients.items()}
    gradient = max(off.values())
    assert gradient < GRADIENT_TOLERANCE, f"{name}: gradient of {max(off, key=off.get)} differs by {gradient}"
    assert losses[-1] < 0.9 * losses[0], f"{name}: {losses}"
    print(f"{name}: losses {losses[0]:.4f} to {losses[-1]:.4f}, off by {worst:.1e}; gradients by {gradient:.1e}; "
          f"margin {choices.margin:.1e}, {len(exact)} tensors, {sum(g.numel() for g in exact.values())} parameters")


def save(folder, model, mtp):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("transformers_version", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
    if mtp:  # as the published folder has it, with copies of embedding and head
        tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
        layers = model.config.num_hidden_layers
        for n, t in mtp.state_dict().items():
            tensors[mtp.hub_name(n, layers)] = t.detach().clone()
        tensors[f"model.layers.{layers}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"model.layers.{layers}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def make(folder, name):
    kind, seed, settings = CASES[name]
    torch.manual_seed(seed)
    model, mtp = build(kind, settings)
    randomise(model, mtp)
    tokens = torch.randint(0, VOCABULARY, (BATCHES * BATCH, SEQUENCE + 1), dtype=torch.int32)
    save(folder / name, model, mtp)
    exact = copy.deepcopy((model, mtp))
    single = train(model, mtp, tokens)
    check(name, single, train(*widened(*exact), tokens))
    logits, gradients, losses, _ = single
    expected = {"tokens": tokens, "logits": logits.contiguous(), "losses": torch.tensor(losses)}
    expected |= {"gradient." + n: g.contiguous() for n, g in gradients.items()}
    save_file(expected, folder / name / "expected.safetensors", {"format": "pt"})


def check_documents(model, tokens, starts):
    """The masks do what they are for: a document of a sample has the hidden states that it has alone."""
    inner = model.transformer if hasattr(model, "transformer") else model.model
    with torch.no_grad():
        packed = inner(input_ids=tokens[:, :-1].long(), use_cache=False, **packed_inputs(model, starts.long())).last_hidden_state
        for sample, lengths in enumerate(DOCUMENTS):
            for begin, length in zip([sum(lengths[:i]) for i in range(len(lengths))], lengths):
                alone = inner(input_ids=tokens[sample:sample + 1, begin:begin + length].long(), use_cache=False).last_hidden_state
                torch.testing.assert_close(packed[sample, begin:begin + length], alone[0], rtol=1e-4, atol=1e-5)


def make_packed(folder, name):
    torch.manual_seed(PACKED[name])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / name, attn_implementation="eager").float().train()
    scale_softmax(model)
    tokens = torch.randint(0, VOCABULARY, (BATCHES * BATCH, SEQUENCE + 1), dtype=torch.int32)
    starts = torch.tensor([[sum(lengths[:i]) for i, length in enumerate(lengths) for _ in range(length)]
                           for lengths in DOCUMENTS], dtype=torch.int32)
    # No loss where the label is another document's first token, and here and there.
    mask = (torch.rand(starts.shape) > 0.2) & (F.pad(starts[:, 1:], (0, 1)) <= torch.arange(SEQUENCE))
    mask = mask.int()
    check_documents(model, tokens, starts)
    exact = copy.deepcopy((model, None))
    single = train(model, None, tokens, starts, mask)
    check("packed/" + name, single, train(*widened(*exact), tokens, starts, mask))
    _, gradients, losses, _ = single
    expected = {"tokens": tokens, "document_start": starts, "loss_mask": mask, "losses": torch.tensor(losses)}
    expected |= {"gradient." + n: g.contiguous() for n, g in gradients.items()}
    save_file(expected, folder / name / "packed.safetensors", {"format": "pt"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[2:] or [*CASES, *("packed/" + name for name in PACKED)]:
        packed = case.removeprefix("packed/")
        (make if packed == case else make_packed)(pathlib.Path(sys.argv[1]), packed)
