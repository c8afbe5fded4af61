#!/usr/bin/env python3
"""One pass of a peer over a corpus: tokenizer_peer.py hf|tiktoken TOKENIZER THREADS FILE.docs…; prints what mt_tokenize_bench prints.

`hf` is Hugging Face's tokenizers with a tokenizer.json; `tiktoken` reads NAME.tiktoken and the pattern of the tokenizer.json beside it.
"""
import json
import os
import pathlib
import sys
import time

kind, tokenizer, threads, files = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
os.environ["RAYON_NUM_THREADS"] = str(threads)
os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


def documents():
    for file in files:
        data, at = pathlib.Path(file).read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at:at + 8], "little")
            yield data[at + 8:at + 8 + size].decode()
            at += 8 + size


def encoder():
    """A function from texts to the number of their ids."""
    if kind == "hf":
        import tokenizers

        hugging_face = tokenizers.Tokenizer.from_file(str(tokenizer))
        hugging_face.encode_special_tokens = True
        return lambda texts: sum(len(e.ids) for e in hugging_face.encode_batch_fast(texts, add_special_tokens=False))
    import tiktoken.load

    stages = json.loads(tokenizer.with_name("tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    encoding = tiktoken.Encoding(tokenizer.stem, pat_str=stages[0]["pattern"]["Regex"], special_tokens={},
                                 mergeable_ranks=tiktoken.load.load_tiktoken_bpe(str(tokenizer)))
    if threads == 1:
        return lambda texts: sum(len(encoding.encode_ordinary(text)) for text in texts)
    return lambda texts: sum(map(len, encoding.encode_ordinary_batch(texts, num_threads=threads)))


texts = list(documents())
encode = encoder()
tokens = 0
wall, processor = time.perf_counter(), time.process_time()
for first in range(0, len(texts), 256):
    tokens += encode(texts[first:first + 256])
wall, processor = time.perf_counter() - wall, time.process_time() - processor
print(json.dumps({"bytes": sum(len(text.encode()) for text in texts), "documents": len(texts), "tokens": tokens,
                  "threads": threads, "seconds": round(wall, 4), "cpu_seconds": round(processor, 4)}))
