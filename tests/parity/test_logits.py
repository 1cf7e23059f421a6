"""Guards: a model that transformers wrote has the same logits here, and a model that was trained
here has the same logits there, within 1e-4 in fp32; config and tensors survive both ways."""

import unittest

import torch

import harness
from harness import SHAPES, load, run


class Logits(harness.Parity):

    def compare(self, shape):
        config = harness.make_config(**SHAPES[shape])
        model = harness.make_model(config, seed=len(shape))
        data = self.corpus(config.vocab_size)
        directory = self.directory
        model.save_pretrained(directory / "hf")

        # There and back.
        run("hf-to-h5", directory / "hf", directory / "imported")
        run("h5-to-hf", directory / "imported", directory / "back", "--max-shard-size=60KB")
        self.assertTrue((directory / "back" / "model.safetensors.index.json").exists())
        self.assert_same_tensors(directory / "hf", directory / "back")
        self.assert_same_config(directory / "hf", directory / "back")

        # The imported model computes the same here.
        tokens, logits = harness.dump_logits(data, directory / "imported",
                                             directory / "imported.h5", directory / "eval-1")
        self.assertEqual(tokens.shape, (harness.BATCH, harness.SEQ_LENGTH))
        self.assertGreater(len(tokens.unique()), 50)
        with torch.no_grad():
            self.assert_close(f"{shape}: imported", model(tokens).logits, logits)
            self.assert_close(f"{shape}: sent back", load(directory / "back")(tokens).logits,
                              logits)

        # A model that was trained here computes the same there, and is another one than before.
        harness.train(data, f"--init={directory / 'imported'}", "--steps=4", "--lr=1e-3",
                      "--lr-schedule=constant", f"--run-dir={directory / 'run'}")
        run("h5-to-hf", directory / "run", directory / "trained")
        self.assert_same_config(directory / "hf", directory / "trained")
        tokens, logits = harness.dump_logits(data, directory / "run", directory / "trained.h5",
                                             directory / "eval-2")
        with torch.no_grad():
            self.assert_close(f"{shape}: trained", load(directory / "trained")(tokens).logits,
                              logits)
            self.assertGreater((model(tokens).logits - logits).abs().max().item(), 0.01)


def add_test(shape):
    setattr(Logits, "test_" + shape.replace("-", "_"), lambda self: self.compare(shape))


for name in SHAPES:
    add_test(name)

if __name__ == "__main__":
    unittest.main()
