#!/usr/bin/env python3
"""What tokenizing costs: mtllm-data tokenize on one thread against Hugging Face's tokenizers on one
thread, the same texts, by turns.

usage: VENV/bin/python tests/bench/tokenize.py [BUILD_DIRECTORY [MEGABYTES]]

VENV is the environment of make check-hf. The texts are what Debian's packages have put below
/usr/share/doc and into Perl's and Python's libraries (30 MB). Prints rates and their ratio (bar 1.5)
and compares every id.
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"

import glob
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy
import tokenizers

PLACES = ["/usr/share/doc/**/copyright", "/usr/share/perl/**/*.p[ml]", "/usr/lib/python3*/**/*.py"]
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "tokenizers"


def read_texts(most):
    texts, size = [], 0
    for path in sorted(path for place in PLACES for path in glob.glob(place, recursive=True)):
        try:
            text = pathlib.Path(path).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            texts.append(text)
            size += len(text.encode())
        if size >= most:
            break
    return texts, size


def seconds(work):
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def compare(kind, build, texts, size, directory):
    path = GOLDEN / kind / "tokenizer.json"
    peer = tokenizers.Tokenizer.from_file(str(path))
    output = f"{directory}/tokens"
    theirs, encodings = seconds(lambda: peer.encode_batch(texts, add_special_tokens=False))
    ours, _ = seconds(lambda: subprocess.run(
        [build / "data" / "mtllm-data", "tokenize", f"--tokenizer={path}", "--eod=no",
         "--threads=1", f"--output={output}", f"{directory}/texts.jsonl"],
        check=True, stdout=subprocess.DEVNULL))
    expected = numpy.concatenate([numpy.asarray(each.ids) for each in encodings])
    same = numpy.array_equal(expected, numpy.fromfile(f"{output}.bin", dtype="<u2"))
    print(f"{kind:8} {size / ours / 1e6:6.2f} MB/s, tokenizers {size / theirs / 1e6:5.2f} MB/s, "
          f"ratio {theirs / ours:5.2f} (bar 1.5), ids {'equal' if same else 'DIFFER'}")
    return same and theirs >= 1.5 * ours


def main():
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    texts, size = read_texts(1e6 * float(sys.argv[2] if len(sys.argv) > 2 else 30))
    print(f"{len(texts)} texts, {size / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/texts.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        good = [compare(kind, build, texts, size, directory)
                for kind in ("gpt2", "falcon", "llama3", "qwen", "llama2")]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
