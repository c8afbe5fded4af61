#!/usr/bin/env python3
"""Which Unicode do the engines that define ids have? Compares, for every code point, the classes that patterns speak of in
Hugging Face's `tokenizers` and tiktoken with unicode_classes.inc, and what Digits and Punctuation split at with char_split.cc's
exceptions. Run it when either package is updated; a difference is a change of ids.
"""
import pathlib
import re
import sys

import tiktoken
from tokenizers import Regex, pre_tokenizers

SOURCE = pathlib.Path(__file__).parents[3] / "worker" / "data" / "tokenize"
POINTS = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
TEXT = "".join(chr(point) + "\x01" for point in POINTS)  # U+0001 is of no class: it keeps matches apart
GROUPS = {r"\p{Lu}": [1], r"\p{Ll}": [2], r"\p{Lt}": [3], r"\p{Lm}": [4], r"\p{Lo}": [5], r"\p{M}": [6], r"\p{N}": [7, 8],
          r"\p{No}": [8], r"\p{P}": [9, 10], r"\p{Pc}": [10], r"\p{S}": [11], r"\s": [12], r"\p{L}": [1, 2, 3, 4, 5]}


def our_classes():
    words = re.findall(r"0x([0-9a-f]+),", (SOURCE / "unicode_classes.inc").read_text())
    runs = [(int(word, 16) >> 4, int(word, 16) & 15) for word in words] + [(0x110000, 0)]
    classes = {}
    for (first, here), (end, _) in zip(runs, runs[1:]):
        classes.update(dict.fromkeys(range(first, end), here))
    return classes


def removed_by(stage):
    """The code points at which a pre-tokenizer that removes its matches removes them."""
    left = set()
    for piece, _ in stage.pre_tokenize_str(TEXT):
        left.update(piece)
    return {point for point in POINTS if chr(point) not in left}


def tiktoken_matches(pattern):
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={})
    return {ord(c) for c in encoding.decode_bytes(encoding.encode_ordinary(TEXT)).decode()}


def exceptions(name):
    table = re.search(name + r"\[\] = \{(.*?)\};", (SOURCE / "char_split.cc").read_text(), re.S).group(1)
    points = set()
    for first, last in re.findall(r"\{0x([0-9a-f]+), 0x([0-9a-f]+)\}", table):
        points.update(range(int(first, 16), int(last, 16) + 1))
    return points


def main():
    classes, failed = our_classes(), False

    def check(what, theirs, ours):
        nonlocal failed
        failed |= theirs != ours
        print(f"{what}: {len(theirs)} code points, {len(theirs ^ ours)} differ {[hex(c) for c in sorted(theirs ^ ours)[:8]]}")

    for pattern, members in GROUPS.items():
        ours = {point for point in POINTS if classes[point] in members}
        check(f"tokenizers {pattern}", removed_by(pre_tokenizers.Split(Regex(pattern), "removed")), ours)
        check(f"tiktoken {pattern}", tiktoken_matches(pattern), ours)
    numbers = {point for point in POINTS if classes[point] in (7, 8)}
    single = {piece for piece, _ in pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(TEXT) if len(piece) == 1}
    check("tokenizers Digits", {ord(c) for c in single} - {1}, numbers | exceptions("kNumbersSince16"))
    marks = {point for point in POINTS if classes[point] in (9, 10)} | set(map(ord, "$+<=>^`|~"))
    check("tokenizers Punctuation", removed_by(pre_tokenizers.Punctuation("removed")),
          (marks - exceptions("kPunctuationSince8")) | exceptions("kPunctuationUntil8"))
    sys.exit(failed)


if __name__ == "__main__":
    main()
