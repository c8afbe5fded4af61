#!/usr/bin/env python3
"""Conversations as transformers' apply_chat_template renders and encodes them: golden.json and the tokenizers of this folder.

  python3 make.py FOLDER    (transformers 4.57.1, tokenizers: see ../requirements.txt)

The templates are the published ones of the families written again, without tools and without what depends on the day; what
the model says is marked with `generation`, from which transformers makes its mask of assistant tokens. The tokenizers are trained
here, on this file, and have the special tokens of all families: a byte-level one, which encodes all templates; and two that write
spaces as SentencePiece does, which encode those that have text of others before an answer. Of these prepend.json puts a space
before every text, has bytes for what it does not know and drops a space where it decodes, as Llama 2's; metaspace.json has
the space at the very first text only, NFC, and an unknown token.
"""
import json
import sys

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

GEN, END = "{% generation %}", "{% endgeneration %}"
IM = "{{ '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}" + GEN + \
     "{{ message.content + '<|im_end|>' }}" + END + "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
CHATML = "{% for message in messages %}" + IM + "{% endfor %}"
HEADER = "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}{% if message.role == 'assistant' %}" + GEN + \
         "{{ message.content | trim + '<|eot_id|>' }}" + END + "{% else %}{{ message.content | trim + '<|eot_id|>' }}{% endif %}"
TURNS = "{% if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}{{ raise_exception('roles must alternate') }}{% endif %}"
SYSTEM_FIRST = "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}" \
               "{% else %}{% set system = none %}{% set rest = messages %}{% endif %}"

TEMPLATES = {
    "chatml": CHATML,
    "qwen": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a "
            "helpful assistant.<|im_end|>\\n' }}{% endif %}" + CHATML,
    "qwen3": """
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
{%- if ns.searching and message.role == 'user' and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set ns.searching = false %}
{%- set ns.last = messages|length - 1 - loop.index0 %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role != 'assistant' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- else %}
{%- set content = message.content %}
{%- set thoughts = '' %}
{%- if message.reasoning_content is string %}
{%- set thoughts = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}
{%- if loop.index0 > ns.last and (loop.last or thoughts) %}
{{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}
{{- content }}
{%- endif %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- endif %}
{%- endfor %}""",
    "llama3": "{{ '<|begin_of_text|>' }}{% for message in messages %}" + HEADER + "{% endfor %}",
    "llama3.1": SYSTEM_FIRST + "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023"
                "\\nToday Date: 26 Jul 2024\\n\\n' + (system or '') | trim + '<|eot_id|>' }}{% for message in rest %}" + HEADER + "{% endfor %}",
    "mistral": SYSTEM_FIRST + "{{ '<s>' }}{% set last = (rest | selectattr('role', 'equalto', 'user') | list)[-1] %}{% for message in rest %}" + TURNS +
               "{% if message.role == 'user' %}{{ '[INST] ' + ((system + '\\n\\n') if message == last and system is not none else '') "
               "+ message.content + '[/INST]' }}{% else %}{{ ' ' }}" + GEN + "{{ message.content + '</s>' }}" + END + "{% endif %}{% endfor %}",
    "mistral-v7": "{{ '<s>' }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}"
                  "{% elif message.role == 'system' %}{{ '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}{% else %}" + GEN +
                  "{{ message.content + '</s>' }}" + END + "{% endif %}{% endfor %}",
    "deepseek": "{{ '<｜begin▁of▁sentence｜>' + (messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n\\n')) }}"
                "{% for message in messages %}{% if message.role == 'user' %}{{ '<｜User｜>' + message.content }}"
                "{% elif message.role == 'assistant' %}{{ '<｜Assistant｜>' }}" + GEN + "{{ message.content + '<｜end▁of▁sentence｜>' }}" + END +
                "{% endif %}{% endfor %}",
    "deepseek-v2": "{{ '<｜begin▁of▁sentence｜>' }}{% for message in messages %}{% if message.role == 'user' %}{{ 'User: ' + message.content + '\\n\\n' }}"
                   "{% elif message.role == 'assistant' %}{{ 'Assistant: ' }}" + GEN + "{{ message.content + '<｜end▁of▁sentence｜>' }}" + END +
                   "{% else %}{{ message.content + '\\n\\n' }}{% endif %}{% endfor %}",
    "harmony": SYSTEM_FIRST + "{% if system is not none %}{{ '<|start|>developer<|message|># Instructions\\n\\n' + system + '\\n\\n<|end|>' }}{% endif %}"
               "{% for message in rest %}{% if message.role == 'user' %}{{ '<|start|>user<|message|>' + message.content + '<|end|>' }}"
               "{% elif message.role == 'system' %}{{ raise_exception('system first') }}{% else %}{{ '<|start|>assistant' }}" + GEN +
               "{% if loop.last and message.reasoning_content is string %}{{ '<|channel|>analysis<|message|>' + message.reasoning_content + "
               "'<|end|><|start|>assistant' }}{% endif %}{{ '<|channel|>final<|message|>' + message.content }}"
               "{% if loop.last %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}" + END + "{% endif %}{% endfor %}",
    "plain": "{% for message in messages %}{% if message.role == 'user' %}{{ 'User: ' + message.content + '\\n\\n' }}"
             "{% elif message.role == 'assistant' %}{{ 'Assistant: ' }}" + GEN + "{{ message.content + '<|endoftext|>' }}" + END +
             "{% else %}{{ 'System: ' + message.content + '\\n\\n' }}{% endif %}{% endfor %}",
}

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
            "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<｜begin▁of▁sentence｜>", "<｜User｜>",
            "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
WORDS = ["<think>", "</think>"]  # added, but not special, as in Qwen 3
SPACED = ["plain", "mistral", "mistral-v7", "deepseek-v2", "chatml"]  # templates that the other tokenizers encode


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[role], "content": content} for role, content in turns]


CONVERSATIONS = [
    said(("u", "Hello, who are you?"), ("a", "I am a test.")),
    said(("s", "Be brief."), ("u", "2 + 2 = ?"), ("a", "4"), ("u", "And 3 + 3?"), ("a", "It's 6.\n")),
    said(("s", "  Be   kind.\n"), ("u", " \n hi\n\n"), ("a", "\n\n  Indented answer \t\n\n")),
    said(("u", "für Elise — どうぞ 🎹"), ("a", "Ça va? 你好，世界。\u00a0\u3000")),
    said(("u", "nothing?"), ("a", "")),
    said(("u", ""), ("a", " ")),
    said(("u", "sum"), ("a", "<think>\none and\none\n</think>\n\nTwo."), ("u", "sure?"), ("a", "<think>\n\nyes\n\n</think>\n\nYes.")),
    [{"role": "user", "content": "why"}, {"role": "assistant", "reasoning_content": "Because.\n", "content": "\nSo."}],
    said(("u", "a"), ("a", "b"), ("a", "c")),
    said(("a", "I begin."), ("u", "Then I answer."), ("a", "Then I do.")),
    said(("u", "one"), ("s", "from now on, two"), ("u", "three"), ("a", "four")),
    said(("u", "def f(x):\n\treturn x\n"), ("a", "```python\ndef f(x: int) -> int:\n    return x  # as is\n```\n")),
    said(("u", "  cafe\u0301, \u2603 and  e\u0301te\u0301"), ("a", "\U0001f3b9 oui, cafe\u0301 \u2603\u2603")),
    said(("u", " spaced  out "), ("a", "  so  am I "), ("u", "42"), ("a", "4 2")),
    # Ids differ from those of transformers on purpose: what a message spells is no special token.
    said(("u", "say <|im_end|> and </s>[INST]"), ("a", "<|im_end|>\n<|im_start|>system\n<|eot_id|>")),
]


def texts():
    with open(__file__) as text:
        return [text.read()] + [m["content"] for c in CONVERSATIONS for m in c]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens(WORDS)
    return tokenizer


def trained_on_words(tokenizer, more_tokens=()):
    """Of ASCII letters, so that there are characters that it does not know."""
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    specials = ["<unk>"] + SPECIALS + list(more_tokens)
    trainer = trainers.BpeTrainer(vocab_size=len(specials) + 250, special_tokens=specials, limit_alphabet=100, show_progress=False)
    tokenizer.train_from_iterator(["".join(c for c in text if ord(c) < 128) for text in texts()], trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:1 + len(SPECIALS)]
    return spec


def prepend():
    spec = trained_on_words(Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)), [f"<0x{byte:02X}>" for byte in range(256)])
    spec["pre_tokenizer"] = None
    spec["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(content=" ", left=1, right=0)])
    return tokenizer


def metaspace():
    spec = trained_on_words(Tokenizer(models.BPE(unk_token="<unk>")))
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def encodings(tokenizer, names):
    """By template, of each conversation: its text, ids and mask, or why there are none."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    golden = {}
    for name in names:
        results = golden[name] = []
        for number, conversation in enumerate(CONVERSATIONS):
            try:
                text = fast.apply_chat_template(conversation, chat_template=TEMPLATES[name], tokenize=False)
                encoded = fast.apply_chat_template(conversation, chat_template=TEMPLATES[name], return_dict=True, return_assistant_tokens_mask=True)
            except Exception as error:
                results.append({"error": str(error)})
                continue
            results.append({"text": text})
            if number != len(CONVERSATIONS) - 1:
                results[-1].update(ids=encoded["input_ids"], loss=encoded["assistant_masks"])
    return golden


def main(folder):
    tokenizer = byte_level()
    tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
    with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump({"eos_token": "<|endoftext|>"}, file)
    golden = {"conversations": CONVERSATIONS, "templates": encodings(tokenizer, TEMPLATES), "spaced": {}}
    for make in (prepend, metaspace):
        tokenizer = make()
        tokenizer.save(f"{folder}/{make.__name__}.json", pretty=False)
        golden["spaced"][make.__name__] = {
            name: [{key: result[key] for key in ("ids", "loss") if key in result} for result in results]
            for name, results in encodings(tokenizer, SPACED).items()}
    with open(f"{folder}/golden.json", "w") as file:
        json.dump(golden, file, ensure_ascii=True, separators=(",", ":"))


main(sys.argv[1])
