"""Guards: the tokenizer of a model gives the same ids after the way into a checkpoint and back,
whatever its kind and the files that describe it; one of SentencePiece gives SentencePiece's; and
mtllm-data encodes as the tokenizers library does."""

import itertools
import json
import random
import re
import shutil
import subprocess
import unicodedata
import unittest

import sentencepiece
import tokenizers
from tokenizers import normalizers, pre_tokenizers
import transformers

import harness
import tokenizer_kinds
from harness import run
from tokenizer_kinds import KINDS, PLAIN_TEXTS, SPECIAL_TEXTS, TEXTS, encode


class Tokenizers(harness.Parity):

    def back(self, foreign=False):
        """Into a checkpoint and back. A Qwen2 model with a `foreign` tokenizer cannot be loaded by
        AutoTokenizer; h5-to-hf says so, and only then."""
        directory = self.directory
        run("hf-to-h5", directory / "hf", directory / "run")
        output = run("h5-to-hf", directory / "run", directory / "out")
        self.assertEqual("not Qwen's" in output, foreign, output)
        if foreign:
            return transformers.PreTrainedTokenizerFast.from_pretrained(directory / "out")
        return transformers.AutoTokenizer.from_pretrained(directory / "out")

    def assert_same_ids(self, what, texts, expected, found):
        """All texts are tried, so that a failure says how many differ."""
        different = [(text, left, right)
                     for text in texts for left, right in [(expected(text), found(text))]
                     if left != right]
        print(f"{what}: {len(different)} of {len(texts)} texts differ")
        self.assertEqual(different[:5], [])

    def compare_alone(self, kind):
        """tokenizer.json is the whole tokenizer: ids are those of the tokenizers library."""
        original = tokenizer_kinds.make_directory(kind, self.directory / "hf", "alone")
        tokenizer = self.back()
        self.assertEqual(len(tokenizer), original.get_vocab_size())
        self.assert_same_ids(f"{kind} alone", TEXTS,
                             lambda text: original.encode(text, add_special_tokens=False).ids,
                             lambda text: encode(tokenizer, text))
        self.assert_same_ids(f"{kind} alone, special tokens around", TEXTS,
                             lambda text: original.encode(text).ids,
                             lambda text: tokenizer(text).input_ids)

    def compare_described(self, kind):
        """With the files of a published model: everything is as in the original directory."""
        directory = self.directory
        for form in tokenizer_kinds.FORMS[1:]:
            with self.subTest(form=form):
                for name in ("hf", "run", "out"):
                    shutil.rmtree(directory / name, ignore_errors=True)
                tokenizer_kinds.make_directory(kind, directory / "hf", form)
                self.compare_with_original(f"{kind} as {form} writes it")

    def compare_with_original(self, what):
        original = transformers.AutoTokenizer.from_pretrained(self.directory / "hf")
        tokenizer = self.back()
        self.assertIs(type(tokenizer), type(original))
        self.assert_same_ids(what, TEXTS, lambda text: original(text).input_ids,
                             lambda text: tokenizer(text).input_ids)
        self.assertEqual(tokenizer.get_vocab(), original.get_vocab())
        self.assertEqual(tokenizer.special_tokens_map, original.special_tokens_map)
        self.assertEqual(tokenizer.model_max_length, 512)
        chat = [{"role": "user", "content": "hello"}]
        self.assertEqual(tokenizer.apply_chat_template(chat), original.apply_chat_template(chat))

    def test_training_keeps_the_tokenizer(self):
        """Its files come out of a trained run byte for byte."""
        directory = self.directory
        original = tokenizer_kinds.make_directory("llama3", directory / "hf", "version 5")
        data = self.corpus(original.get_vocab_size())
        weights = harness.initial_weights(directory / "hf")
        harness.train(data, f"--init={weights}", "--steps=1", f"--run-dir={directory / 'run'}")
        run("h5-to-hf", directory / "run", directory / "out")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            self.assertEqual((directory / "out" / name).read_bytes(),
                             (directory / "hf" / name).read_bytes(), name)

    def compare_sentencepiece_alone(self, family):
        """Nothing but tokenizer.model: ids are SentencePiece's own."""
        processor = tokenizer_kinds.make_sentencepiece_directory(family, self.directory / "hf")
        tokenizer = self.back(foreign=family == "Qwen2")
        self.assertEqual(len(tokenizer), processor.vocab_size())
        self.assert_same_ids(f"{family}, SentencePiece", PLAIN_TEXTS, processor.encode,
                             lambda text: encode(tokenizer, text))
        self.assert_same_ids(f"{family}, SentencePiece, special tokens around", PLAIN_TEXTS,
                             lambda text: [processor.bos_id()] + processor.encode(text),
                             lambda text: tokenizer(text).input_ids)
        self.assert_same_ids(f"{family}, SentencePiece, decoded", PLAIN_TEXTS,
                             lambda text: processor.decode(processor.encode(text)),
                             lambda text: tokenizer.decode(processor.encode(text)))

    def compare_sentencepiece_special(self, family):
        """Special tokens in a text, which SentencePiece takes for text, are what they say to
        transformers; every piece between them is encoded as SentencePiece does it."""
        processor = tokenizer_kinds.make_sentencepiece_directory(family, self.directory / "hf")
        tokenizer = self.back(foreign=family == "Qwen2")

        def expected(text):
            ids = []
            for part in re.split("(<s>|</s>|<unk>)", text):
                special = processor.piece_to_id(part)
                ids += [special] if part in ("<s>", "</s>", "<unk>") else processor.encode(part)
            return ids

        self.assert_same_ids(f"{family}, SentencePiece, special tokens within", SPECIAL_TEXTS,
                             expected, lambda text: encode(tokenizer, text))

    def tokenize(self, tokenizer, texts):
        """The ids that mtllm-data writes for each text."""
        directory = self.directory
        (directory / "texts.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts))
        run("data/mtllm-data", "tokenize", f"--tokenizer={tokenizer}", "--eod=no",
            f"--output={directory / 'tokens'}", directory / "texts.jsonl")
        return harness.read_tokens(directory / "tokens")

    def compare_data(self, kind):
        """Texts of every kind, and strings of characters from all of Unicode."""
        original, _ = tokenizer_kinds.train(kind)
        original.save(str(self.directory / "tokenizer.json"))
        generator = random.Random(kind)
        texts = [text for text in TEXTS if text.strip()]
        texts += [random_text(generator) for _ in range(5000)]
        found = dict(zip(texts, self.tokenize(self.directory / "tokenizer.json", texts)))
        self.assertEqual(len(found), len(set(texts)))
        self.assert_same_ids(f"{kind}, mtllm-data", texts,
                             lambda text: original.encode(text, add_special_tokens=False).ids,
                             found.get)


    def found_spans(self, tokenizer, texts):
        output = subprocess.run([harness.BUILD / "tests/token_spans", tokenizer], check=True,
                                input="".join(json.dumps(text) + "\n" for text in texts),
                                text=True, stdout=subprocess.PIPE).stdout
        return dict(zip(texts, map(json.loads, output.splitlines())))

    def compare_spans(self, kind):
        """What each token comes from in the text; with normalizers and prefixes of others, too."""
        original, _ = tokenizer_kinds.train(kind)
        generator = random.Random(f"spans {kind}")
        texts = TEXTS + [random_text(generator) for _ in range(2000)]
        texts = list(filter(has_marks_in_order, texts))
        for name, change in VARIATIONS.items():
            tokenizer = tokenizers.Tokenizer.from_str(original.to_str())
            change(tokenizer)
            tokenizer.save(str(self.directory / "tokenizer.json"))
            self.assert_same_ids(f"{kind}, spans {name}", texts,
                                 lambda text, it=tokenizer: spans(it, text),
                                 self.found_spans(self.directory / "tokenizer.json", texts).get)

    def test_sentencepiece_spans(self):
        model = tokenizer_kinds.GOLDEN / "tokenizer.model"
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        generator = random.Random("spans")
        texts = TEXTS + [random_text(generator) for _ in range(2000)]

        def expected(text):
            # Counted in characters there.
            places = [0, *itertools.accumulate(len(character.encode()) for character in text)]
            return [[piece.id, places[piece.begin], places[piece.end]]
                    for piece in processor.encode(text, out_type="immutable_proto").pieces]

        self.assert_same_ids("SentencePiece, spans", texts, expected,
                             self.found_spans(model, texts).get)


def has_marks_in_order(text):
    """Where a normal form sorts them, tokenizers does not say what comes from where."""
    return unicodedata.normalize("NFKD", text) == "".join(
        unicodedata.normalize("NFKD", character) for character in text)


def normalize(*steps):
    def change(tokenizer):
        tokenizer.normalizer = normalizers.Sequence(list(steps))
    return change


def prefix(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [step for step in (pre_tokenizers.Metaspace(), tokenizer.pre_tokenizer) if step])


VARIATIONS = {"as it is": lambda tokenizer: None, "NFC": normalize(normalizers.NFC()),
              "NFD": normalize(normalizers.NFD()), "NFKD": normalize(normalizers.NFKD()),
              "NFKC, replaced": normalize(normalizers.NFKC(), normalizers.Replace("an", "\u00e4x"),
                                          normalizers.Prepend("\u2581\u2581")),
              "Metaspace": prefix}


def spans(tokenizer, text):
    """[id, begin, end] of each token, in bytes of UTF-8."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    places = [0, *itertools.accumulate(len(character.encode()) for character in text)]
    return [[id_, places[begin], places[end]]
            for id_, (begin, end) in zip(encoding.ids, encoding.offsets)]


RANGES = [(0x20, 0x7e)] * 5 + [(0, 0x1f), (0xa0, 0x36f), (0x370, 0xfff), (0x1000, 0x2fff),
                              (0x3000, 0xd7ff), (0xe000, 0xffff), (0x10000, 0x323af),
                              (0xe0000, 0xe01ef)]
WORDS = [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "123", "\u0301", "\u2581", "<|im_start|>",
         "<|endoftext|>", "extra_word", " <tool> ", "<s>"]


def random_text(generator):
    """Never blank: mtllm-data leaves blank documents out."""
    return "x" + "".join(
        generator.choice(WORDS) if generator.random() < 0.2 else
        chr(generator.randint(*generator.choice(RANGES)))
        for _ in range(generator.randrange(40)))


def add_test(name, method, argument):
    setattr(Tokenizers, f"test_{name}_{argument.lower()}",
            lambda self: getattr(self, method)(argument))


for each in KINDS:
    if each != "unigram":
        add_test("data", "compare_data", each)
        add_test("spans", "compare_spans", each)
    add_test("alone", "compare_alone", each)
    add_test("described", "compare_described", each)
for each in ("Llama", "Mistral", "Qwen2"):
    add_test("sentencepiece_alone", "compare_sentencepiece_alone", each)
    add_test("sentencepiece_special", "compare_sentencepiece_special", each)

if __name__ == "__main__":
    unittest.main()
