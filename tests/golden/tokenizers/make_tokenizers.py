#!/usr/bin/env python3
"""Trains the tokenizers of this folder: make_tokenizers.py CORPUS [--vocabulary 2000] [--out FOLDER].

Each has the traits of one published family, and none of its vocabulary: they are trained by Hugging Face's `tokenizers` on a
slice of the corpus (make_corpus.py). bench/tokenize.sh makes larger ones with the same traits.
"""
import argparse
import base64
import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK_V3 = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
# The cased letters of an older Unicode, in ranges, as DeepSeek's first tokenizers have them.
DEEPSEEK_V2 = [
    "[\r\n]",
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    "\\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
]


def slices(corpus, megabytes):
    """Training text: the same number of bytes of each part, from documents spread over it."""
    for part in ("text", "code", "scripts"):
        data = memoryview((corpus / f"{part}.docs").read_bytes())
        documents, at = [], 0
        while at < len(data):
            size = int.from_bytes(data[at:at + 8], "little")
            documents.append((at + 8, size))
            at += 8 + size
        taken = 0
        for start, size in documents[::max(1, len(documents) // 400)]:
            if taken > megabytes << 20:
                break
            text = bytes(data[start:start + size])[:40000].decode("utf-8", "ignore")
            taken += len(text)
            yield text


def splits(*patterns):
    stages = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return stages, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_level(patterns, more=(), normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    stages, bytes_stage = splits(*patterns)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*stages, *more, bytes_stage])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def train(tokenizer, texts, vocabulary, specials=(), alphabet=None):
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(specials), show_progress=False, max_token_length=24,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet,
        limit_alphabet=600)
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())


def added(spec, content, special=True, **traits):
    """At the end of the vocabulary, as Hugging Face's files have added tokens."""
    token = {"id": 0, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": not special, "special": special, **traits}
    taken = [*spec["model"]["vocab"].values(), *(t["id"] for t in spec["added_tokens"])]
    token["id"] = max(taken) + 1
    spec["added_tokens"].append(token)


def legacy_merges(spec):
    spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]


def gpt2(texts, vocabulary):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    spec = train(tokenizer, texts, vocabulary)
    legacy_merges(spec)
    added(spec, "<|endoftext|>")
    return spec


def llama3(texts, vocabulary):
    spec = train(byte_level([LLAMA3]), texts, vocabulary)
    # Words that no merge makes any more, which ignore_merges finds all the same.
    merges = spec["model"]["merges"]
    spec["model"]["merges"] = [merge for i, merge in enumerate(merges) if i < 200 or i % 7]
    spec["model"]["ignore_merges"] = True
    for content in ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        added(spec, content)
    return spec


def qwen(texts, vocabulary):
    spec = train(byte_level([QWEN2], normalizer=normalizers.NFC()), texts, vocabulary)
    legacy_merges(spec)
    for content in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        added(spec, content)
    added(spec, "<tool_call>", special=False, normalized=False)
    added(spec, "\u00c5ngstr\u00f6m", special=False, normalized=True)
    added(spec, "<word>", special=False, single_word=True, normalized=False)
    added(spec, "<strip>", special=True, lstrip=True, rstrip=True)
    return spec


def deepseek_v3(texts, vocabulary):
    spec = train(byte_level(DEEPSEEK_V3), texts, vocabulary)
    for content in ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>"):
        added(spec, content)
    return spec


def deepseek_v2(texts, vocabulary):
    spec = train(byte_level(DEEPSEEK_V2, more=[pre_tokenizers.Digits(individual_digits=True)]), texts, vocabulary)
    for content in ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"):
        added(spec, content)
    return spec


def byte_of():
    """The byte that each character of the byte-level alphabet stands for."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(0x100 + i): byte for i, byte in enumerate(moved)}


def gpt_oss(texts, vocabulary):
    """As the converted tiktoken vocabularies: id = rank, and every way to make a token from two others is a merge."""
    spec = train(byte_level([O200K]), texts, vocabulary)
    bytes_of = byte_of()
    learned = ["".join(merge) for merge in spec["model"]["merges"]]
    tokens = sorted(bytes_of, key=bytes_of.get) + [t for i, t in enumerate(learned) if t not in learned[:i]]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token in tokens[256:]:
        ways = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
        merges += sorted(ways, key=lambda way: (vocab[way[0]], vocab[way[1]]))
    spec["model"].update(vocab=vocab, merges=[list(merge) for merge in merges])
    for content in ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|message|>"):
        added(spec, content)
    return spec


def tiktoken_file(spec):
    bytes_of = byte_of()
    lines = (base64.b64encode(bytes(bytes_of[c] for c in token)).decode() + f" {rank}\n"
             for token, rank in spec["model"]["vocab"].items())
    return "".join(lines)


def llama2(texts, vocabulary):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")  # to train; the file has none
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(content=" ", left=1, right=0)])
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    spec = train(tokenizer, texts, vocabulary, specials, alphabet=[])
    spec["added_tokens"] = spec["added_tokens"][:3]
    spec["pre_tokenizer"] = None
    spec["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    legacy_merges(spec)
    return spec


FAMILIES = [gpt2, llama3, qwen, deepseek_v3, deepseek_v2, gpt_oss, llama2]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("--vocabulary", type=int, default=1500)
    parser.add_argument("--megabytes", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    texts = list(slices(arguments.corpus, arguments.megabytes))
    for family in FAMILIES:
        name = family.__name__
        if arguments.only and name not in arguments.only:
            continue
        spec = family(texts, arguments.vocabulary)
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
        Tokenizer.from_str(text)  # a file that Hugging Face reads
        (folder / "tokenizer.json").write_text(text + "\n")
        if family is gpt_oss:
            (folder / "o200k_small.tiktoken").write_text(tiktoken_file(spec))
        print(name, len(spec["model"]["vocab"]), len(spec["model"]["merges"]), len(text), flush=True)


if __name__ == "__main__":
    main()
