#!/usr/bin/env python3
"""Writes goldens.json: ids by Hugging Face's `tokenizers` of texts that hold what patterns, merges and added tokens turn on.

`special` are the ids with special tokens seen in the text, `ordinary` those of texts where that makes a difference, with
special tokens read as text.
"""
import itertools
import json
import pathlib
import unicodedata

import tokenizers

import make_corpus
import make_tokenizers

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "", " ", "\n", "a", "Hello, world!", "Hello world\n\nThe quick brown fox jumps over the lazy dog.",
    "I'll say: don't, WE'VE, it'S, y'all're, 'twas, 'LL 're 'Re '\u017f x'\u017fy o'clock's",
    "x = 12345 + 0xFF; // 3.14159 and 1,000,000 \u0661\u0662\u0663\u0664 \u00bd \u2163",
    "  leading, trailing  ", "tabs\t\tand\r\nline ends\r\r\n\n  \n mixed \n\n\n", "end with spaces   ", "end with lines \n \n",
    "\n  at the end", "one\n \ntwo \n", "a  b   c    d", "\u00a0no\u00a0break \u2003em\u3000wide\u2028line\u0085next",
    "int main(int argc, char** argv) {\n  return printf(\"%d\\n\", argc) != 0;\n}\n",
    "camelCase XMLHttpRequest HTTPServer iPhone McDonald A1B2 ABCdefGHI \u01c5 \u0130stanbul STRASSE stra\u00dfe",
    "path/to/file.txt https://example.org/?q=1&r=2#x //comment/ !!/\n/",
    "\u65e5\u672c\u8a9e\u3067\u3059\u3002\u30ab\u30bf\u30ab\u30ca\u30fc\u3001\u6f22\u5b57123\u304b\u306a abc\u5b57",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4 \u1112\u1161\u11ab", "\u0645\u0631\u062d\u0628\u0627\u064b \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u061f", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u0e51\u0e52", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u0436 \u041c\u041e\u0421\u041a\u0412\u0410",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5", "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u0532\u0561\u0580\u0565\u0582 \u1230\u120b\u121d \u13a3\u13c2",
    "cafe\u0301 caf\u00e9 \u00c5ngstr\u00f6m A\u030angstro\u0308m \u212bngstr\u00f6m \ufb01ne \u1e9b\u0323", "e\u0301\u0301\u0301 \u0301start 1\u0301 !\u0301 \u0301",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2603\ufe0f!", "\x00\x01\x02 \x7f\u0080\x00a \ufeffbom \u200bzero \ufffd\uffff \U0010ffff \ue000",
    "<|endoftext|>", "text<|endoftext|>more <|im_start|>user\nhi<|im_end|>\n", "<tool_call> a<word> <word> <word>b  <strip>  x",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nHi<|eot_id|>", "<s>[INST] hi [/INST]</s> <unk> <0x41><0xZZ> \u2581\u2581x",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>x<\uff5cUser\uff5c>y<\uff5cend\u2581of\u2581sentence\uff5c>", "<|endoftext|", "|><|return|><|start|>assistant<|message|>", "\u0120\u010a\u00c4",
    "a" * 300, " " * 100 + "x", "\n" * 50, "ab" * 100, "1" * 50, "!" * 60, "\u5b57" * 40, "e\u0301" * 30, "aA" * 40,
    "if (a&&b||!c) { x->y = *p++; z[0] <<= 3; } /* done */ #include <stdio.h>\n\t\t\treturn;\n",
    "\uff01\uff21\uff22\uff23\uff41\uff42\uff43\uff11\uff12\uff1f \u201cquoted\u201d \u2018single\u2019 \u2014 \u3001\u3002", "\u2460\u2461 \u3220 \u00b2\u00b3 \u2080 \U00010140 \U0001d7d8 \u0e50",
    "\U00010570\U00010597 \U0001e030 \U00010d50\U00010d70 \U00011f04 \U0002ebf0 new in 14 to 16", "\u1c89\u1c8a\ua7cb\ua7da \u0897",
]


def main():
    texts = TEXTS + list(itertools.islice(make_corpus.adversarial(seed=11), 30))
    result = {"made_by": f"make_goldens.py, tokenizers {tokenizers.__version__}", "texts": texts, "tokenizers": {}}
    for family in make_tokenizers.FAMILIES:
        name = family.__name__
        tokenizer = tokenizers.Tokenizer.from_file(str(HERE / name / "tokenizer.json"))
        special = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        # Hugging Face runs added tokens through the byte-level decoder too, which breaks those that its alphabet can spell
        # ("\u00c5ngstr\u00f6m"); mt gives such a token as it is.
        decoded = [tokenizer.decode(ids) for ids in special]
        decoded = [unicodedata.normalize("NFC", text) if "\ufffd" in got and "\ufffd" not in text else got
                   for text, got in zip(texts, decoded)]
        tokenizer.encode_special_tokens = True
        ordinary = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        result["tokenizers"][name] = {
            "special": special, "ordinary": {str(i): ids for i, ids in enumerate(ordinary) if ids != special[i]},
            "decoded": {str(i): text for i, text in enumerate(decoded) if text != texts[i]}}
    lines = json.dumps(result, ensure_ascii=True, separators=(",", ":")).replace('"texts"', '\n"texts"').replace('"special"', '\n"special"')
    (HERE / "goldens.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
