"""Orders and samples as megatron-core makes them: what make_golden.py keeps and compare.py compares with."""
import logging
import pathlib
import random
import warnings

import numpy
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.datasets.utils import compile_helpers

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
EOD = 50


class Tokenizer:
    """What GPTDataset asks for. Without `pad`, so that no id of the data is taken for padding."""
    vocab_size, eod, unique_identifiers = EOD + 1, EOD, {"class": "none"}


class Refused(Exception):
    pass


class Dataset(GPTDataset):
    """Without Megatron's endless loop over epochs of no tokens."""
    def _get_num_epochs(self, num_tokens_per_epoch):
        if num_tokens_per_epoch == 0:
            raise Refused("a share without tokens")
        return super()._get_num_epochs(num_tokens_per_epoch)


def helpers():
    try:
        import megatron.core.datasets.helpers_cpp  # noqa: F401
    except ImportError:
        compile_helpers()


def tokens(number, lengths):
    """The documents of dataset `number`; not all of them end with an end of document."""
    k = 0
    for length in lengths:
        document = [(7 * (k + i) + 31 * number) % EOD for i in range(length)]
        k += length
        if length and (length + number) % 3 != 0:
            document[-1] = EOD
        yield document


def write(prefix, number, lengths):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(EOD + 1))
    for document in tokens(number, lengths):
        builder.add_document(numpy.array(document, dtype=numpy.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")


def blend(folder, sources):
    if not sources:
        return None
    weights = [w for _, w in sources]
    return [str(pathlib.Path(folder) / p) for p, _ in sources], (None if not any(weights) else weights)


def order(folder, case):
    """The arrays of sample_order.h. Refused, AssertionError, IndexError: Megatron does not go on."""
    train, validation, test = (blend(folder, case.get(key)) for key in ("train", "validation", "test"))
    common = dict(random_seed=case["seed"], sequence_length=case["sequence_length"], path_to_cache=None,
                  tokenizer=Tokenizer(), reset_position_ids=True, reset_attention_mask=False,
                  eod_mask_loss=case["mask_eod"], create_attention_mask=False)
    # The share that is asked for alone: Megatron builds all of them, and fails for one that is empty.
    alone = lambda shares: [s if i == case["share"] else None for i, s in enumerate(shares)]
    if validation or test:
        config = GPTDatasetConfig(blend_per_split=alone([train, validation, test]), **common)
    else:
        config = GPTDatasetConfig(blend=train, split=case["split"] or "1,0,0", **common)
        config.split_matrix = alone(config.split_matrix)
    samples = [None if not case["samples"] else case["samples"]] * 3
    if not any(config.blend_per_split or config.split_matrix):
        raise Refused("a share that is not there")
    dataset = BlendedMegatronDatasetBuilder(Dataset, samples, lambda: True, config).build()[case["share"]]
    out = {}
    parts = dataset.datasets if isinstance(dataset, BlendedDataset) else [dataset]
    for i, part in enumerate(parts):
        out[f"{i}.document"] = part.document_index.tolist()
        out[f"{i}.sample"] = part.sample_index.reshape(-1).tolist()
        out[f"{i}.shuffle"] = part.shuffle_index.tolist()
    if isinstance(dataset, BlendedDataset):
        out["blend.dataset"] = dataset.dataset_index.tolist()
        out["blend.sample"] = dataset.dataset_sample_index.tolist()
    for k in range(case["read"]):
        sample = dataset[k]
        out.setdefault("tokens", []).extend(sample["tokens"].tolist() + sample["labels"][-1:].tolist())
        assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
        out.setdefault("loss_mask", []).extend(int(x) for x in sample["loss_mask"].tolist())
        out.setdefault("positions", []).extend(sample["position_ids"].tolist())
    return out


def lengths(rng):
    """Of a dataset: few or many documents, short or long, some of them empty."""
    count = rng.choice([1, 2, 3, 7, 20, 60, 200])
    longest = rng.choice([1, 3, 9, 40, 300])
    drawn = [rng.randint(0, longest) for _ in range(count)]
    drawn[rng.randrange(count)] = rng.randint(1, longest)
    return drawn


def case(rng, names, tokens_of):
    """A case on some of the datasets; `tokens_of`: of each name. May be one that Megatron or mt refuses."""
    sources = lambda: [[n, 0.0] for n in rng.sample(names, rng.choice([1, 1, 2, 3, min(len(names), 9)]))]
    def weighted(s):
        if rng.random() < 0.6:
            return [[n, round(rng.uniform(0.01, 3), rng.choice([1, 3, 12])) or 1.0] for n, _ in s]
        return s
    c = dict(train=weighted(sources()), validation=[], test=[], split="", share=0, seed=rng.choice([0, 1, 1234, rng.getrandbits(32)]),
             sequence_length=rng.choice([1, 2, 5, 8, 16, 33]), eod=EOD, mask_eod=rng.random() < 0.5, read=4)
    if rng.random() < 0.3:
        c["validation"], c["share"] = weighted(sources()), rng.choice([0, 1])
        if rng.random() < 0.5:
            c["test"], c["share"] = weighted(sources()), rng.choice([0, 1, 2])
    elif rng.random() < 0.6:
        c["split"] = rng.choice(["1,0,0", "969,30,1", "99,1", "1,1,1", "0.9,0.05,0.05", "3,2,0", "10,1,1", "0,1,0"])
        c["share"] = rng.choice([0, 0, 1, 2])
    read_from = [c["train"], c["validation"], c["test"]][c["share"]] or c["train"]
    epoch = max(1, sum(tokens_of[n] for n, _ in read_from) // c["sequence_length"])
    c["samples"] = max(1, int(epoch * rng.choice([0.1, 0.5, 0.95, 1.0, 1.3, 1.9, 2.05, 3.7, 9.1]))) + rng.randint(0, 3)
    c["read"] = min(4, c["samples"])
    return c


def datasets(folder, rng, count, first=0):
    """Writes datasets and returns {name: {number, lengths}}."""
    made = {}
    for number in range(first, first + count):
        drawn = lengths(rng)
        write(pathlib.Path(folder) / f"d{number}", number, drawn)
        made[f"d{number}"] = dict(number=number, lengths=drawn)
    return made


def generator(seed):
    return random.Random(seed)
