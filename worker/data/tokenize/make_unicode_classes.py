#!/usr/bin/env python3
"""Writes unicode_classes.inc: the class of every code point, as runs. Needs PyPI's unicodedata2 of the version below.

The version is that of the regex engines which define the ids: Oniguruma in Hugging Face tokenizers 0.22 and Rust's
regex in tiktoken 0.14 agree on Unicode 16.0.0 for every code point and class used here (tests/golden/tokenizers/classes.py
compares them). A later version is a change of ids: change it only with them.
"""
import pathlib

import unicodedata2

VERSION = "16.0.0"
WHITE_SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
NAMES = ["other", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "No", "P", "Pc", "S", "space"]  # the order of UnicodeClass


def class_of(code_point):
    if code_point in WHITE_SPACE:
        return NAMES.index("space")
    category = unicodedata2.category(chr(code_point))
    return NAMES.index(next((name for name in (category, category[0]) if name in NAMES), "other"))


def main():
    assert unicodedata2.unidata_version == VERSION, unicodedata2.unidata_version
    runs = []
    for code_point in range(0x110000):
        here = class_of(code_point)
        if not runs or runs[-1][1] != here:
            runs.append((code_point, here))
    words = [f"0x{start << 4 | here:x}" for start, here in runs]
    lines = [f"// Unicode {VERSION}; made by make_unicode_classes.py. Each entry: first code point of a run << 4 | its class."]
    line = ""
    for word in words:
        if len(line) + len(word) + 1 > 100:
            lines.append(line)
            line = ""
        line += word + ","
    lines.append(line)
    pathlib.Path(__file__).with_name("unicode_classes.inc").write_text("\n".join(lines) + "\n")
    print(f"{len(runs)} runs")


main()
