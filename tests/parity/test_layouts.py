"""Guards: a model that is taken into any layout of tensor parallel ranks, pipeline stages and
replicas, trained for no step, and sent back, has every bit of every tensor and its config."""

import shutil
import unittest

import torch

import harness
from harness import run

# (tensor parallel ranks, pipeline stages, replicas)
ONE_KIND = [(2, 1, 1), (1, 2, 1), (1, 1, 2)]
LAYERS = dict(num_hidden_layers=4)


def family(name, **changes):
    return harness.make_family_config(name, **LAYERS, **changes)


class Layouts(harness.Parity):

    def compare(self, config, layouts, dtype=torch.float32):
        directory = self.directory
        data = self.corpus(config.vocab_size)
        harness.make_model(config, seed=5).to(dtype).save_pretrained(directory / "hf")
        weights = harness.initial_weights(directory / "hf")
        for tp, pp, dp in layouts:
            with self.subTest(tp=tp, pp=pp, dp=dp):
                for name in ("run", "out"):
                    shutil.rmtree(directory / name, ignore_errors=True)
                harness.train(data, f"--init={weights}", "--steps=0", f"--tp={tp}", f"--pp={pp}",
                              f"--dp={dp}", f"--run-dir={directory / 'run'}", ranks=tp * pp * dp)
                # CPUs train in fp32, which holds every value of the narrower types.
                narrow = ["--dtype=bf16"] if dtype == torch.bfloat16 else []
                run("h5-to-hf", *narrow, directory / "run", directory / "out")
                self.assert_same_tensors(directory / "hf", directory / "out")
                self.assert_same_config(directory / "hf", directory / "out")

    def test_each_kind_of_parallelism(self):
        """Llama, key/value heads that are shared."""
        self.compare(harness.make_config(**harness.SHAPES["gqa"], **LAYERS), ONE_KIND)

    def test_tied_embeddings(self):
        """First and last stage both hold the embedding; nothing divides the vocabulary."""
        shape = {**harness.SHAPES["mqa-odd"], "tie_word_embeddings": True}
        self.compare(harness.make_config(**shape, **LAYERS), [(2, 2, 2), (1, 4, 1)])

    def test_vocabulary_that_nothing_divides(self):
        """The last rank's part of an untied embedding and head is smaller."""
        self.compare(harness.make_config(**harness.SHAPES["mqa-odd"], **LAYERS), [(2, 2, 1)])

    def test_all_biases(self):
        """Those that are cut and those that every rank holds."""
        config = family("llama-attention-bias", mlp_bias=True)
        self.compare(config, [(2, 2, 1), (4, 1, 2)])

    def test_qwen2(self):
        """Biases of query, key and value, of heads that neighbours share; tied."""
        self.compare(family("qwen2"), [(4, 2, 1)])

    def test_mistral_in_bf16(self):
        """Back to the narrower type without a change."""
        self.compare(family("mistral-window"), [(2, 2, 2)], torch.bfloat16)

    def test_falcon_with_one_head_of_keys_and_values(self):
        """Like Falcon-7B: all ranks share it."""
        self.compare(family("falcon-mqa"), [(2, 2, 1)])

    def test_falcon_with_two_norms(self):
        """Like Falcon-40B: more tensor parallel ranks than key/value heads, in a fused tensor that
        is cut by groups of heads."""
        self.compare(family("falcon-gqa"), ONE_KIND + [(4, 2, 1), (8, 1, 1)])

    def test_falcon_with_one_norm(self):
        """The newer decoder with one norm, untied."""
        self.compare(family("falcon-one-norm"), [(2, 2, 2)])


if __name__ == "__main__":
    unittest.main()
