"""Guards: a model of any family that transformers wrote has the same logits here, and a model that
was trained here has the same logits there, within 1e-4 in fp32; config and tensors survive both
ways."""

import copy
import unittest

import torch

import harness
from harness import load, run


class Logits(harness.Parity):

    def compare(self, name, config):
        """Imported, sent back, trained and sent back."""
        model = harness.make_model(config, seed=len(name))
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
        weights = harness.initial_weights(directory / "hf")
        tokens, logits = harness.dump_logits(data, weights, directory / "imported.h5",
                                             directory / "eval-1")
        _, converted = harness.dump_logits(data, directory / "imported",
                                           directory / "converted.h5", directory / "eval-2")
        self.assertTrue(torch.equal(logits, converted))
        self.assertEqual(tokens.shape, (harness.BATCH, harness.SEQ_LENGTH))
        self.assertGreater(len(tokens.unique()), 50)
        with torch.no_grad():
            self.assert_close(f"{name}: imported", model(tokens).logits, logits)
            self.assert_close(f"{name}: sent back", load(directory / "back")(tokens).logits,
                              logits)

        # A model that was trained here computes the same there, and is another one than before.
        harness.train(data, f"--init={weights}", "--steps=4", "--lr=1e-3",
                      "--lr-schedule=constant", f"--run-dir={directory / 'run'}")
        run("h5-to-hf", directory / "run", directory / "trained")
        self.assert_same_config(directory / "hf", directory / "trained")
        tokens, logits = harness.dump_logits(data, directory / "run", directory / "trained.h5",
                                             directory / "eval-3")
        with torch.no_grad():
            self.assert_close(f"{name}: trained", load(directory / "trained")(tokens).logits,
                              logits)
            self.assertGreater((model(tokens).logits - logits).abs().max().item(), 0.01)

    def test_windows_and_scaling_are_seen(self):
        """The comparisons would notice a window or a scaling that is left out."""
        tokens = torch.arange(harness.SEQ_LENGTH).unsqueeze(0) * 7 % 256
        for name, config in harness.every_config():
            rope = dict(config.rope_parameters)
            plain = copy.deepcopy(config)
            if rope["rope_type"] != "default":
                plain.rope_parameters = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
            elif getattr(config, "sliding_window", None) is not None:
                plain.sliding_window = None
                plain.layer_types = ["full_attention"] * config.num_hidden_layers
            else:
                continue
            with self.subTest(name), torch.no_grad():
                logits = [harness.make_model(each, seed=1)(tokens).logits
                          for each in (config, plain)]
                self.assertGreater((logits[0] - logits[1]).abs().max().item(), 1e-3)


def add_test(name, config):
    setattr(Logits, "test_" + name.replace("-", "_"), lambda self: self.compare(name, config))


for each in harness.every_config():
    add_test(*each)

if __name__ == "__main__":
    unittest.main()
