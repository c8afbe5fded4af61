#!/usr/bin/env python3
"""Makes the corpus of the proofs about tokenizers: make_corpus.py FOLDER.

From Debian packages (downloaded into FOLDER/deb, unless they are there): English text, source code, text in many scripts; and
adversarial strings, made here by seed. Each part is FOLDER/<part>.docs: documents, each as its length (u64, little-endian) and
its bytes, which are UTF-8. The same packages give the same bytes.
"""
import gzip
import pathlib
import random
import subprocess
import sys
import tarfile
import unicodedata

LANGUAGES = "bg br cs de eo es fr ga it ja pl pt ru zh".split()
PACKAGES = (
    ["linux-source-6.1", "unicode-cldr-core", "iso-codes", "installation-guide-amd64", "bible-kjv-text", "fortunes", "manpages",
     "manpages-dev", "maint-guide-vi", "display-dhammapada", "developers-reference-ja", "developers-reference-ru"]
    + [f"debian-reference-{language}" for language in "de en es fr it ja pt zh-cn zh-tw".split()]
    + [f"fortunes-{language}" for language in "bg br cs de eo es ga it pl ru zh".split()]
    + [f"manpages-{language}" for language in "de el fr ja pl ru tr uk vi zh".split()])
MEGABYTE = 1 << 20
SHARES = {"text": 60 * MEGABYTE, "code": 90 * MEGABYTE, "scripts": 100 * MEGABYTE}


def documents(folder):
    """(part, text) in a fixed order."""
    for archive in sorted((folder / "unpacked").rglob("linux-source-*.tar.xz")):
        with tarfile.open(archive) as tar:
            for member in tar:
                suffix = pathlib.PurePath(member.name).suffix
                if not member.isfile() or suffix not in (".c", ".h", ".S", ".rst", ".txt", ".py", ".sh", ".rs", ".yaml", ".dts"):
                    continue
                yield "text" if suffix in (".rst", ".txt") else "code", tar.extractfile(member).read()
    foreign = []
    for path in sorted((folder / "unpacked").rglob("*")):
        if not path.is_file() or path.is_symlink() or path.suffix in (".xz", ".dat", ".pdf", ".mo", ".png", ".deb"):
            continue
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        if "manpages/" in str(path) or "-en" in str(path) or "bible" in str(path):
            yield "text", data
        else:
            foreign.append((-sum(byte >= 0x80 for byte in data[:20000]) / max(1, len(data[:20000])), path, data))
    for _, _, data in sorted(foreign):  # those with the least ASCII first
        yield "scripts", data


SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u3000", " \n ", "\n\n\n"]
WORDS = ["a", "the", "Hello", "WORLD", "camelCaseXMLHttp", "don't", "I'LL", "we'Ve", "'\u017f", "'S", "''d", "\u0130stanbul", "\u01c5", "na\u00efve",
         "na\u0131\u0308ve", "\u0301\u0301", "e\u0301", "\u5b57", "\u65e5\u672c\u8a9e\u3067\u3059", "\u30a2\u30fc\u30f3", "\uac00\uac01", "\u0e20\u0e32\u0e29\u0e32", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0627\u0644\u0639\u064e\u0631\u064e\u0628",
         "\u05e2\u05b4\u05d1", "1", "12", "1234567", "\u0661\u0662\u0663", "\u00bd\u00b2", "\u2163", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2603\ufe0f", "!", "?!", "...", "--", "//",
         "/*", "\\n", "$", "\u20ac", "\u00ab\u00bb", "\u2026", "_", "__init__", "\x00", "\x01\x02", "\x7f", "\u200b", "\ufeff", "\ufffd", "\uffff", "\U0010ffff",
         "\ue000", "<|endoftext|>", "<|im_start|>", "<s>", "</s>", "<0x41>", "\u0120", "\u2581", "\u00c5", "A\u030a", "\u212b", "\ufb03", "\u1e9b\u0323", "\u1100\u1161\u11a8", "\U0001d15e"]


def adversarial(seed):
    draw = random.Random(seed)
    for _ in range(20000):  # mixtures of what patterns look at
        yield "".join(draw.choice(draw.choice((SPACES, WORDS))) for _ in range(draw.randint(1, 60)))
    for _ in range(4000):  # any characters at all, of any plane, assigned or not
        top = draw.choice((0x80, 0x800, 0x10000, 0x110000))
        points = (draw.randrange(top) for _ in range(draw.randint(1, 120)))
        yield "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    for point in range(0x110000):  # every character where patterns decide: first, after a space, an apostrophe, a letter, a number
        if 0xD800 <= point < 0xE000 or (point > 0x3FFFF and point % 997) or unicodedata.category(chr(point)) == "Cn" and point % 31:
            continue
        c = chr(point)
        if point % 8 and unicodedata.category(c) == "Lo" and 0x3400 <= point:
            continue
        yield f"{c} {c}'{c}x{c}1{c}\n{c}{c} \n {c}!{c}A{c}b{c}"
    for unit in ("a", "A", " ", "\n", " \n", "'", "'s", "1", "!", "\u5b57", "\u0301", "e\u0301", "ab", "aA", "\U0001f600", "\x00", "\t ", "/\n"):
        for count in (1, 2, 3, 7, 8, 9, 15, 16, 17, 100, 20000):  # runs, also longer than any cache or word of eight bytes
            yield unit * count
            yield "x" + unit * count + "y"
    draw.shuffle(WORDS)
    yield "".join(WORDS) * 200


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    (folder / "deb").mkdir(parents=True, exist_ok=True)
    missing = [name for name in PACKAGES if not list((folder / "deb").glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", "-q", *missing], cwd=folder / "deb", check=True)
    if not (folder / "unpacked").exists():
        for name in PACKAGES:
            deb = max((folder / "deb").glob(f"{name}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", deb, folder / "unpacked"], check=True)
    sizes = dict.fromkeys([*SHARES, "adversarial"], 0)
    files = {part: open(folder / f"{part}.docs.partial", "wb") for part in sizes}

    def write(part, data):
        files[part].write(len(data).to_bytes(8, "little") + data)
        sizes[part] += len(data)

    for part, data in documents(folder):
        if sizes[part] >= SHARES[part] or not data:
            continue
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        write(part, data)
    for text in adversarial(seed=5):
        write("adversarial", text.encode())
    for part, file in files.items():
        file.close()
        (folder / f"{part}.docs.partial").rename(folder / f"{part}.docs")
    print(", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in sizes.items()))


if __name__ == "__main__":
    main()
