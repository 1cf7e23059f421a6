#!/usr/bin/env python3
"""Every id, and every text that comes back, against Hugging Face's tokenizers: on much text and on
many strings of characters from all of Unicode, for each kind of tokenizer.json.

usage: VENV/bin/python tests/parity/corpus.py [--build=DIR] [--megabytes=100] [--strings=1000000]
                                              [--kind=KIND]... [PLACE...]

VENV is the environment of make check-hf. The text is what Debian's packages have put below /usr, or
below each PLACE: plain, .gz, of every language there. Prints what was compared and what differs;
the exit status is 0 if nothing does.
"""

import argparse
import gzip
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import tokenizers

import tokenizer_kinds
from test_tokenizers import RANGES, WORDS

PLACES = ["/usr/share/doc", "/usr/share/man", "/usr/share/dict", "/usr/share/perl", "/usr/share",
          "/usr/lib/python3"]
KINDS = ("gpt2", "falcon", "llama3", "qwen2", "llama2")
# What mtllm-data takes for white space, and a document of it for none.
BLANK = " \t\n\v\f\r"
CHUNK = 2000
DOCUMENT = 200_000  # of a longer file only so many characters a document


def read_file(path):
    """The text of a file, None if it is no text."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8")
    except (OSError, EOFError, ValueError):
        return None
    return text if text.strip(BLANK) and "\0" not in text else None


def read_texts(places, most):
    """Documents of `most` bytes together; no file twice."""
    size, seen = 0, set()
    for place in places:
        for path in sorted(pathlib.Path(place).rglob("*")):
            if not path.is_file() or path.is_symlink() or path.stat().st_size > 20_000_000:
                continue
            text = read_file(path)
            if text is None or hash(text) in seen:
                continue
            seen.add(hash(text))
            for begin in range(0, len(text), DOCUMENT):
                part = text[begin:begin + DOCUMENT]
                if part.strip(BLANK):
                    size += len(part.encode())
                    yield part
            if size >= most:
                return


def random_strings(count, seed):
    generator = random.Random(seed)
    while count > 0:
        text = "".join(
            generator.choice(WORDS) if generator.random() < 0.2 else
            chr(generator.randint(*generator.choice(RANGES)))
            for _ in range(generator.randrange(1, 24)))
        if text.strip(BLANK):
            count -= 1
            yield text


def tokens_of(prefix, count):
    """The ids of each document; all are uint16."""
    index = pathlib.Path(f"{prefix}.idx").read_bytes()
    assert int.from_bytes(index[18:26], "little") == count, "documents are missing"
    lengths = memoryview(index[34:34 + 4 * count]).cast("i")
    data = memoryview(pathlib.Path(f"{prefix}.bin").read_bytes()).cast("H")
    at = 0
    for length in lengths:
        yield data[at:at + length].tolist()
        at += length


def in_chunks(texts):
    chunk = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def compare(what, tokenizer, build, directory, texts_path, count):
    path, prefix = f"{directory}/tokenizer.json", f"{directory}/tokens"
    tokenizer.save(path)
    subprocess.run([build / "data/mtllm-data", "tokenize", f"--tokenizer={path}", "--eod=no",
                    "--strict", f"--output={prefix}", texts_path], check=True,
                   stdout=subprocess.DEVNULL)
    decoder = subprocess.Popen([build / "tests/decode_tokens", path, prefix],
                               stdout=subprocess.PIPE)
    found = tokens_of(prefix, count)
    ids = different = texts_different = 0
    with open(texts_path, encoding="utf-8") as lines:
        for chunk in in_chunks(json.loads(line)["text"] for line in lines):
            expected = [each.ids for each in
                        tokenizer.encode_batch_fast(chunk, add_special_tokens=False)]
            back = tokenizer.decode_batch(expected, skip_special_tokens=False)
            for text, theirs, their_text in zip(chunk, expected, back):
                ours, our_text = next(found), json.loads(decoder.stdout.readline())
                ids += len(theirs)
                different += ours != theirs
                texts_different += our_text != their_text
                if (ours != theirs or our_text != their_text) and different + texts_different < 5:
                    print(f"    {text[:200]!a}:\n    theirs {theirs[:40]} {their_text[:200]!a}\n"
                          f"    ours   {ours[:40]} {our_text[:200]!a}")
    assert decoder.wait() == 0
    print(f"{what}: {count} texts, {ids} ids, {different} texts with other ids, "
          f"{texts_different} that come back otherwise", flush=True)
    return different + texts_different == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("places", nargs="*")
    arguments = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as directory:
        sources = {"text": read_texts(arguments.places or PLACES, 1e6 * arguments.megabytes),
                   "strings": random_strings(arguments.strings, 1)}
        files = {}
        for name, texts in sources.items():
            path, count, size = f"{directory}/{name}.jsonl", 0, 0
            with open(path, "w", encoding="utf-8") as stream:
                for text in texts:
                    stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    count += 1
                    size += len(text.encode())
            files[name] = path, count
            print(f"{name}: {count} documents, {size / 1e6:.1f} MB", flush=True)
        for kind in arguments.kind or KINDS:
            tokenizer, _ = tokenizer_kinds.train(kind)
            for name, (path, count) in files.items():
                start = time.monotonic()
                if count > 0:
                    good &= compare(f"{kind}, {name}", tokenizer, arguments.build.resolve(),
                                    directory, path, count)
                print(f"    {time.monotonic() - start:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
