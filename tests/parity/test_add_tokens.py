"""Guards: hf-to-h5 --add-tokens gives new tokens the ids behind all that the tokenizer knows, and
rows of embedding and head that are the mean of the rows before them; every other id, row and tensor
stays as it was, and text is split as before except where a new token stands."""

import json
import shutil
import unittest

import torch
import transformers

import harness
import tokenizer_kinds
from harness import bits, load, load_tensors, run
from tokenizer_kinds import KINDS, TEXTS, encode, next_id

NEW = ["<|tool|>", "zq_new", "<αβ>"]
# They match before text is split, wherever they stand.
AROUND = ["{}", "a{}b", " {} ", "one {}{} two", "\n{}\n"]
ROWS = {"Llama": ("model.embed_tokens.weight", "lm_head.weight"),
        "Falcon": ("transformer.word_embeddings.weight", "lm_head.weight")}


class AddTokens(harness.Parity):

    def convert(self, *options):
        """There and back; both ways anew."""
        directory = self.directory
        for name in ("run", "out"):
            shutil.rmtree(directory / name, ignore_errors=True)
        run("hf-to-h5", *options, directory / "hf", directory / "run")
        run("h5-to-hf", directory / "run", directory / "out")
        return directory / "out"

    def check_ids(self, old, first):
        """`old`: the tokenizer of the same model without new tokens."""
        new = transformers.AutoTokenizer.from_pretrained(self.directory / "out")
        ids = list(range(first, first + len(NEW)))
        expected = {**old.get_vocab(), **dict(zip(NEW, ids))}
        found = new.get_vocab()
        self.assertEqual({token: (expected.get(token), found.get(token))
                          for token in {**expected, **found}
                          if expected.get(token) != found.get(token)}, {})
        for text in TEXTS:
            self.assertEqual(new(text).input_ids, old(text).input_ids, text)
        for token, number in zip(NEW, ids):
            self.assertEqual(encode(new, token), [number])
            self.assertEqual(new.decode([number]), token)
            for around in AROUND:
                text = around.replace("{}", token)
                self.assertEqual(encode(new, text).count(number), text.count(token), text)

    def check_rows(self, first, vocab_size):
        """First id of the new tokens, and how many rows there have to be."""
        config = transformers.AutoConfig.from_pretrained(self.directory / "hf")
        falcon = config.model_type == "falcon"
        rows = ROWS["Falcon" if falcon else "Llama"]
        old, new = (load_tensors(self.directory / name) for name in ("hf", "out"))
        self.assertEqual(sorted(old), sorted(new))
        self.assertEqual(rows[1] in old, not config.tie_word_embeddings)
        most = 0.0
        for name in old:
            if name not in rows:
                self.assertTrue(torch.equal(bits(old[name]), bits(new[name])), name)
                continue
            end = first + len(NEW)
            self.assertEqual(new[name].shape, (vocab_size, old[name].shape[1]))
            self.assertTrue(torch.equal(bits(new[name][:first]), bits(old[name][:first])), name)
            self.assertTrue(torch.equal(bits(new[name][end:]), bits(old[name][end:])), name)
            mean = old[name][:first].double().mean(0).float()
            self.assertGreater(mean.abs().max().item(), 1e-3)
            if old[name].dtype == torch.float32:
                difference = (new[name][first:end] - mean).abs().max().item()
                most = max(most, difference)
                self.assertLessEqual(difference, 1e-6)
            else:
                expected = mean.to(old[name].dtype).expand(len(NEW), -1)
                self.assertTrue(torch.equal(bits(new[name][first:end]), bits(expected)), name)
        written = json.loads((self.directory / "out" / "config.json").read_text())
        self.assertEqual(written["vocab_size"], vocab_size)
        print(f"new rows {most:.1e} from the mean, tied {config.tie_word_embeddings}")

    def check_model(self, first):
        """transformers computes the same logits for what was there before."""
        old, new = (load(self.directory / name) for name in ("hf", "out"))
        tokens = torch.arange(24).unsqueeze(0) * 7
        with torch.no_grad():
            old, new = (model(tokens).logits[..., :first] for model in (old, new))
        self.assertLessEqual((old - new).abs().max().item(), 1e-6)

    def check(self, first, vocab_size):
        """Add the tokens to the model in hf, and look at everything."""
        old = transformers.AutoTokenizer.from_pretrained(self.convert())
        self.convert(f"--add-tokens={','.join(NEW)}")
        self.check_ids(old, first)
        self.check_rows(first, vocab_size)
        self.check_model(first)

    def compare(self, kind, form, dtype=torch.float32, padding=0, **changes):
        hf = self.directory / "hf"
        shutil.rmtree(hf, ignore_errors=True)
        tokenizer = tokenizer_kinds.make_directory(kind, hf, form, dtype, **changes)
        first = next_id(tokenizer)
        rows = first + padding
        if padding:
            tokenizer_kinds.make_model(KINDS[kind][0], hf, dtype, vocab_size=rows, **changes)
        print(f"{kind}, {form}, {dtype}, {padding} rows more than tokens:", end=" ")
        self.check(first, max(rows, first + len(NEW)))

    def compare_kind(self, kind):
        """Every kind of tokenizer.json, alone and described by files of both versions."""
        for form in tokenizer_kinds.FORMS:
            with self.subTest(form=form):
                self.compare(kind, form)

    def test_tied(self):
        """The embedding is the head."""
        self.compare("qwen2", "version 4", tie_word_embeddings=True)

    def test_falcon_untied(self):
        """Embedding and head have other names, and rows of their own."""
        self.compare("falcon", "version 4", tie_word_embeddings=False)

    def test_bf16(self):
        """The mean is rounded once."""
        for tied in (False, True):
            self.compare("llama3", "version 4", torch.bfloat16, tie_word_embeddings=tied)

    def test_more_rows_than_tokens(self):
        """The new tokens take rows that are there already; the table grows by what is missing."""
        for padding in (1, len(NEW), 61):
            for tied in (False, True):
                with self.subTest(padding=padding, tied=tied):
                    self.compare("llama3", "version 4", padding=padding, tie_word_embeddings=tied)
        self.compare("qwen2", "alone", torch.bfloat16, padding=61)

    def test_vocab_json(self):
        """The files of a byte-level tokenizer from before tokenizer.json."""
        for kind in ("gpt2", "qwen2"):
            with self.subTest(kind=kind):
                hf = self.directory / "hf"
                shutil.rmtree(hf, ignore_errors=True)
                first = next_id(tokenizer_kinds.make_directory(kind, hf, "version 4"))
                (hf / "tokenizer.json").unlink()
                self.check(first, first + len(NEW))

    def compare_sentencepiece(self, family):
        """A SentencePiece model, which itself cannot be added to."""
        processor = tokenizer_kinds.make_sentencepiece_directory(family, self.directory / "hf")
        first = processor.vocab_size()
        self.check(first, first + len(NEW))

    def test_tokens_that_sentencepiece_has_already(self):
        """added_tokens.json names tokens behind the pieces, as the chat models of 2023 have it."""
        directory = self.directory
        processor = tokenizer_kinds.make_sentencepiece_directory("Llama", directory / "hf",
                                                                 vocab_size=3002)
        (directory / "hf" / "added_tokens.json").write_text('{"[PAD]": 3000, "[SEP]": 3001}')
        self.assertEqual(processor.vocab_size(), 3000)
        old = transformers.AutoTokenizer.from_pretrained(self.convert())
        self.assertEqual(encode(old, "[SEP]"), [3001])
        self.check(3002, 3005)

    def test_file_of_tokens(self):
        """@FILE has one a line; a comma is then part of a token. A token that is there keeps its
        id and gets no row."""
        directory = self.directory
        tokenizer = tokenizer_kinds.make_directory("llama3", directory / "hf", "version 4")
        first = next_id(tokenizer)
        (directory / "tokens").write_text("<a,b>\n<|im_start|>\nlast one\n")
        self.convert(f"--add-tokens=@{directory / 'tokens'}")
        new = transformers.AutoTokenizer.from_pretrained(directory / "out")
        self.assertEqual(encode(new, "<a,b>"), [first])
        self.assertEqual(encode(new, "last one"), [first + 1])
        self.assertEqual(encode(new, "<|im_start|>"), [tokenizer.token_to_id("<|im_start|>")])
        config = transformers.AutoConfig.from_pretrained(directory / "out")
        self.assertEqual(config.vocab_size, first + 2)

    def test_without_a_tokenizer(self):
        """Ids go on behind the rows that there are."""
        tokenizer_kinds.make_model("Llama", self.directory / "hf", vocab_size=300)
        self.convert(f"--add-tokens={','.join(NEW)}")
        self.check_rows(300, 303)

    def test_trainer(self):
        """mtllm-train does what hf-to-h5 does, each rank for its part of the rows."""
        directory = self.directory
        tokenizer = tokenizer_kinds.make_directory("llama3", directory / "hf", "version 4")
        first = next_id(tokenizer)
        old = transformers.AutoTokenizer.from_pretrained(self.convert())
        shutil.rmtree(directory / "out")
        harness.train(self.corpus(first), f"--init={harness.initial_weights(directory / 'hf')}",
                      f"--add-tokens={','.join(NEW)}", "--steps=0", "--tp=2",
                      f"--run-dir={directory / 'trained'}", ranks=2)
        run("h5-to-hf", directory / "trained", directory / "out")
        self.check_ids(old, first)
        self.check_rows(first, first + len(NEW))

    def test_training_keeps_them(self):
        """What --init takes has the new tokens, and the trained model has their rows."""
        directory = self.directory
        tokenizer = tokenizer_kinds.make_directory("llama3", directory / "hf", "version 4")
        size = next_id(tokenizer) + len(NEW)
        self.convert(f"--add-tokens={','.join(NEW)}")
        old = transformers.AutoTokenizer.from_pretrained(directory / "out")
        weights = harness.initial_weights(directory / "out")
        harness.train(self.corpus(size), f"--init={weights}", "--steps=1", "--lr=1e-3",
                      "--lr-schedule=constant", f"--run-dir={directory / 'trained'}")
        run("h5-to-hf", directory / "trained", directory / "back")
        new = transformers.AutoTokenizer.from_pretrained(directory / "back")
        self.assertEqual(new.get_vocab(), old.get_vocab())
        left, right = (load_tensors(directory / name)["model.embed_tokens.weight"]
                       for name in ("out", "back"))
        self.assertEqual(right.shape, left.shape)
        self.assertEqual(len(right), size)
        self.assertFalse(torch.equal(left[-1], right[-1]))

    def test_refused(self):
        """Names that cannot be tokens, before anything is written."""
        tokenizer_kinds.make_model("Llama", self.directory / "hf", vocab_size=300)
        for tokens in ("", "a,,b", "a,b,a"):
            output = run("hf-to-h5", f"--add-tokens={tokens}", self.directory / "hf",
                         self.directory / "run", status=64)
            self.assertIn("add-tokens", output)
            self.assertFalse((self.directory / "run" / "ckpt").exists())


def add_test(name, method, argument):
    setattr(AddTokens, f"test_{name}_{argument.lower()}",
            lambda self: getattr(self, method)(argument))


for each in KINDS:
    add_test("kind", "compare_kind", each)
for each in ("Llama", "Mistral", "Qwen2"):
    add_test("sentencepiece", "compare_sentencepiece", each)

if __name__ == "__main__":
    unittest.main()
