"""The path of Megatron-LM's tools/preprocess_data.py, which the megatron-core package does not have: lines of a JSONL file through
multiprocessing.Pool.imap (chunks of 32) to an encoder, in order into megatron-core's IndexedDatasetBuilder. Prints one line of JSON."""
import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")


class Encoder:
    tokenizer = None

    def __init__(self, arguments):
        self.arguments = arguments

    def initializer(self):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from tokenizers import Tokenizer

        Encoder.tokenizer = Tokenizer.from_file(self.arguments.tokenizer)

    def encode(self, line):
        text = json.loads(line)["text"]
        ids = Encoder.tokenizer.encode(text, add_special_tokens=False).ids
        if ids:
            ids.append(self.arguments.eod)
        return ids, len(line)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True)
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json")
    parser.add_argument("--eod", type=int, required=True)
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    import torch
    from megatron.core.datasets import indexed_dataset

    started = time.time()
    encoder = Encoder(arguments)
    documents = tokens = size = 0
    with open(arguments.input, encoding="utf-8") as lines, multiprocessing.Pool(
        arguments.workers, initializer=encoder.initializer
    ) as pool:
        builder = indexed_dataset.IndexedDatasetBuilder(
            arguments.output + ".bin",
            dtype=indexed_dataset.DType.optimal_dtype(arguments.vocab),
            multimodal=False,
        )
        for ids, length in pool.imap(encoder.encode, lines, 32):
            size += length
            if ids:
                builder.add_document(torch.IntTensor(ids), [len(ids)])
                documents += 1
                tokens += len(ids)
        builder.finalize(arguments.output + ".idx")
    seconds = time.time() - started
    print(json.dumps({"program": "preprocess_data.py path", "documents": documents, "tokens": tokens, "seconds": round(seconds, 2)}))


if __name__ == "__main__":
    sys.exit(main())
