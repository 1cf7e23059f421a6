#!/usr/bin/env python3
"""What tokenizing costs: mtllm-data tokenize on one thread against spm_encode, against itself with
a thread on every core, and against Hugging Face's tokenizers on one thread: the same texts, by turns.

usage: VENV/bin/python tests/bench/tokenize.py [BUILD_DIRECTORY [MEGABYTES [ROUNDS]]]

VENV is the environment of make check-hf. The texts are what Debian's packages have put below
/usr/share/doc and into Perl's and Python's libraries (30 MB). Prints rates, the best of some ROUNDS
(3), and their ratios: bars are 0.95 for spm_encode, 0.9 of the number of threads, and 1.5 for
tokenizers. Every id is compared.
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
    ours, _ = seconds(
        lambda: tokenize(build, path, output, f"{directory}/texts.jsonl", "--threads=1"))
    expected = numpy.concatenate([numpy.asarray(each.ids) for each in encodings])
    same = numpy.array_equal(expected, numpy.fromfile(f"{output}.bin", dtype="<u2"))
    print(f"{kind:8} {size / ours / 1e6:6.2f} MB/s, tokenizers {size / theirs / 1e6:5.2f} MB/s, "
          f"ratio {theirs / ours:5.2f} (bar 1.5), ids {'equal' if same else 'DIFFER'}")
    return same and theirs >= 1.5 * ours


def tokenize(build, model, output, path, *options):
    subprocess.run([build / "data" / "mtllm-data", "tokenize", f"--tokenizer={model}", "--eod=no",
                    f"--output={output}", *options, path], check=True, stdout=subprocess.DEVNULL)


def compare_sentencepiece(build, texts, rounds, directory):
    """Lines, which are spm_encode's documents, on one thread; the same with a thread on each core."""
    model = GOLDEN / "sentencepiece" / "tokenizer.model"
    cores = len(os.sched_getaffinity(0))
    path, ids = f"{directory}/lines.txt", f"{directory}/ids"
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    with open(path, "w", encoding="utf-8") as stream:
        stream.writelines(line.replace("\r", " ") + "\n" for line in lines)
    size = os.path.getsize(path)
    works = {
        "spm_encode": lambda: subprocess.run(
            ["spm_encode", f"--model={model}", "--output_format=id", f"--output={ids}", path],
            check=True),
        "one thread": lambda: tokenize(build, model, f"{directory}/one", path, "--threads=1",
                                       "--split-documents=line"),
        "all threads": lambda: tokenize(build, model, f"{directory}/all", path,
                                        f"--threads={cores}", "--split-documents=line"),
    }
    best = {name: float("inf") for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            best[name] = min(best[name], seconds(work)[0])
    with open(ids, encoding="ascii") as stream:
        theirs = numpy.fromstring(stream.read(), dtype="<u2", sep=" ")
    same = all(numpy.array_equal(theirs, numpy.fromfile(f"{directory}/{name}.bin", dtype="<u2"))
               for name in ("one", "all"))
    ratio = best["spm_encode"] / best["one thread"]
    scale = best["one thread"] / best["all threads"]
    print(f"SentencePiece, {size / 1e6:.1f} MB: {size / best['one thread'] / 1e6:.2f} MB/s, "
          f"spm_encode {size / best['spm_encode'] / 1e6:.2f} MB/s, ratio {ratio:.2f} (bar 0.95); "
          f"{cores} threads {scale:.2f} times one (bar {0.9 * cores:.2f}); "
          f"ids {'equal' if same else 'DIFFER'}", flush=True)
    return same and ratio >= 0.95 and scale >= 0.9 * cores


def main():
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    texts, size = read_texts(1e6 * float(sys.argv[2] if len(sys.argv) > 2 else 30))
    print(f"{len(texts)} texts, {size / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/texts.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
        good = [compare_sentencepiece(build, texts, rounds, directory)]
        good += [compare(kind, build, texts, size, directory)
                 for kind in ("gpt2", "falcon", "llama3", "qwen", "llama2")]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
