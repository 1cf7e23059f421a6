"""Guards: hf-to-h5 and then h5-to-hf give every tensor and every config field of a model that
transformers wrote back, whatever the type and the number of files; what is written loads without a
complaint, with the tokenizer that came along."""

import json
import shutil
import unittest
import warnings

import sentencepiece
import torch
import transformers

import harness
from harness import FAMILIES, SHAPES, load, run

TEXT = ["In the beginning God created the heaven and the earth.",
        "And God said, Let there be light: and there was light.",
        "The numbers 0123456789, and a tab\there; naïve café, 日本語."] * 40


class RoundTrip(harness.Parity):

    def test_types_and_files(self):
        directory = self.directory
        for shape, changes in SHAPES.items():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for size in ("5GB", "100KB"):
                    with self.subTest(shape=shape, dtype=dtype, size=size):
                        for name in ("hf", "run", "out"):
                            shutil.rmtree(directory / name, ignore_errors=True)
                        model = harness.make_model(harness.make_config(**changes), seed=7)
                        model.to(dtype).save_pretrained(directory / "hf", max_shard_size=size)
                        run("hf-to-h5", directory / "hf", directory / "run")
                        run("h5-to-hf", directory / "run", directory / "out",
                            f"--max-shard-size={size}")
                        self.assert_same_tensors(directory / "hf", directory / "out")
                        self.assert_same_config(directory / "hf", directory / "out")
                        loaded = load(directory / "out", "auto")
                        self.assertEqual(loaded.dtype, dtype)
                        for name, weight in model.named_parameters():
                            found = loaded.get_parameter(name)
                            self.assertTrue(torch.equal(weight, found), name)

    def test_families(self):
        """What is written is the same model to transformers: config, weights, and so logits."""
        directory = self.directory
        tokens = torch.arange(200).reshape(2, 100) * 7 % 256
        for name in FAMILIES:
            for dtype in (torch.float32, torch.bfloat16):
                with self.subTest(family=name, dtype=dtype):
                    for each in ("hf", "run", "out"):
                        shutil.rmtree(directory / each, ignore_errors=True)
                    model = harness.make_model(harness.make_family_config(name), seed=7).to(dtype)
                    model.save_pretrained(directory / "hf")
                    run("hf-to-h5", directory / "hf", directory / "run")
                    run("h5-to-hf", directory / "run", directory / "out")
                    self.assert_same_tensors(directory / "hf", directory / "out")
                    self.assert_same_config(directory / "hf", directory / "out")
                    loaded = load(directory / "out", "auto")
                    self.assertIs(type(loaded), type(model))
                    with torch.no_grad():
                        expected = load(directory / "hf", "auto")(tokens).logits
                        self.assertTrue(torch.equal(expected, loaded(tokens).logits))

    def test_special_tokens(self):
        config = harness.make_config(**SHAPES["mha"])
        config.eos_token_id = [2, 5, 7]
        config.pad_token_id = 0
        model = harness.make_model(config, seed=1)
        model.save_pretrained(self.directory / "hf")
        run("hf-to-h5", self.directory / "hf", self.directory / "run")
        run("h5-to-hf", self.directory / "run", self.directory / "out")
        self.assert_same_config(self.directory / "hf", self.directory / "out")
        generation = transformers.GenerationConfig.from_pretrained(self.directory / "out")
        self.assertEqual(generation.eos_token_id, [2, 5, 7])
        self.assertEqual(generation.pad_token_id, 0)

    def test_sentencepiece_tokenizer(self):
        """A checkpoint that has a SentencePiece model and nothing else of a tokenizer."""
        directory = self.directory
        harness.make_model(harness.make_config(vocab_size=400), seed=1).save_pretrained(
            directory / "hf")
        corpus = directory / "text"
        corpus.write_text("\n".join(TEXT))
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(directory / "hf" / "tokenizer"), vocab_size=400,
            model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, character_coverage=0.99, minloglevel=2)
        run("hf-to-h5", directory / "hf", directory / "run")
        printed = run("h5-to-hf", directory / "run", directory / "out")
        self.assertEqual(printed, "")
        processor = sentencepiece.SentencePieceProcessor(
            model_file=str(directory / "out" / "tokenizer.model"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory / "out")
        self.assertEqual(len(tokenizer), 400)
        for text in TEXT[:3] + ["two  spaces", "a\nline", "unseen: ЖЖ 👍"]:
            expected = processor.encode(text)
            self.assertEqual(tokenizer(text, add_special_tokens=False).input_ids, expected)
            self.assertEqual(tokenizer(text).input_ids, [1] + expected)
            self.assertEqual(tokenizer.decode(expected), text)
        self.assertEqual((tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token),
                         ("<s>", "</s>", "<unk>"))
        tokens = load(directory / "out").generate(
            **tokenizer("In the beginning", return_tensors="pt"), max_new_tokens=5)
        self.assertGreater(tokens.shape[1], 5)

    def test_sentencepiece_of_another_kind_is_warned_about(self):
        directory = self.directory
        harness.make_model(harness.make_config(vocab_size=400), seed=1).save_pretrained(
            directory / "hf")
        corpus = directory / "text"
        corpus.write_text("\n".join(TEXT))
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(directory / "hf" / "tokenizer"), vocab_size=350,
            model_type="unigram", byte_fallback=True, hard_vocab_limit=False, minloglevel=2)
        run("hf-to-h5", directory / "hf", directory / "run")
        self.assertIn("is not a BPE model", run("h5-to-hf", directory / "run", directory / "out"))

    def test_tokenizer_json(self):
        """A byte-level tokenizer that has only a tokenizer.json is used as it is."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        directory = self.directory
        harness.make_model(harness.make_config(vocab_size=400), seed=1).save_pretrained(
            directory / "hf")
        original = tokenizers.Tokenizer(models.BPE())
        original.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        original.decoder = decoders.ByteLevel()
        original.train_from_iterator(TEXT, trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<unk>", "<bos>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        original.save(str(directory / "hf" / "tokenizer.json"))
        run("hf-to-h5", directory / "hf", directory / "run")
        run("h5-to-hf", directory / "run", directory / "out")
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory / "out")
        for text in TEXT[:3] + [" two  spaces"]:
            self.assertEqual(tokenizer(text).input_ids, original.encode(text).ids)
            self.assertEqual(tokenizer.decode(tokenizer(text).input_ids), text)
        self.assertEqual((tokenizer.bos_token, tokenizer.eos_token), ("<bos>", "<eos>"))

    def test_version_4_spelling(self):
        """The written config.json has what version 4 reads: it would silently use a rope theta of
        10000 otherwise."""
        directory = self.directory
        model = harness.make_model(harness.make_config(**SHAPES["head-dim"]), seed=1)
        model.save_pretrained(directory / "hf")
        run("hf-to-h5", directory / "hf", directory / "run")
        run("h5-to-hf", directory / "run", directory / "out")
        config = json.loads((directory / "out" / "config.json").read_text())
        self.assertEqual(config["rope_theta"], 500000.0)
        self.assertIsInstance(config["rope_theta"], float)
        self.assertIsNone(config["rope_scaling"])
        self.assertEqual(config["torch_dtype"], "float32")
        # And a directory that is spelled so is read.
        run("hf-to-h5", directory / "out", directory / "again")
        run("h5-to-hf", directory / "again", directory / "out2")
        self.assert_same_config(directory / "out", directory / "out2")


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    unittest.main()
