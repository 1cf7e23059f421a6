"""Guards: fine-tuning a model of any family is what plain PyTorch does with the same samples,
optimizer and schedule: in fp32 every loss and gradient norm of the first 50 steps is within 1e-4
relative, and so are the logits at the end."""

import json
import math
import unittest

import numpy
import torch

import harness
from harness import load, run

STEPS = 50
GLOBAL_BATCH = 2 * harness.BATCH
SEED = 77

# None of these is the default, so that none can be left out unnoticed.
SETTINGS = dict(lr=4e-3, min_lr=4e-4, lr_warmup_steps=5, lr_decay_steps=45, weight_decay=0.3,
                adam_beta1=0.85, adam_beta2=0.98, adam_eps=1e-5)

# Where some gradients are clipped and some are not.
CLIP_GRAD = {"falcon": 1.2}
CLIP_GRAD_OTHERS = 2.0


def make_documents(vocabulary):
    """Text that can be learned: each document counts in steps of its own, with some noise."""
    random = numpy.random.default_rng(3)
    documents = []
    for length in random.integers(20, 400, 120):
        counted = random.integers(vocabulary) + random.integers(1, 3) * numpy.arange(length)
        noise = random.random(length) < 0.05
        documents.append(numpy.where(noise, random.integers(0, vocabulary, length),
                                     counted % vocabulary))
    return documents


def order_samples(documents, count):
    """Megatron's order within an epoch: documents shuffled and strung together, cut into samples
    that share one token with the next, samples shuffled."""
    length = harness.SEQ_LENGTH
    random = numpy.random.RandomState(SEED)
    order = numpy.arange(len(documents))
    random.shuffle(order)
    text = numpy.concatenate([documents[i] for i in order])
    samples = numpy.arange((len(text) - 1) // length)
    random.shuffle(samples)
    assert count <= len(samples)
    return torch.tensor(numpy.stack([text[i * length:i * length + length + 1]
                                     for i in samples[:count]]))


def learning_rate(step, lr, min_lr, lr_warmup_steps, lr_decay_steps, **_):
    """Of the step after `step` ones: warm-up, then half a cosine."""
    if step <= lr_warmup_steps:
        return lr * step / lr_warmup_steps
    if step >= lr_decay_steps:
        return min_lr
    done = (step - lr_warmup_steps) / (lr_decay_steps - lr_warmup_steps)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2


def train_here(model, samples, settings):
    """Loss, gradient norm before clipping and learning rate of each step."""
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [each for each in weights if each.dim() == 2],
          "weight_decay": settings["weight_decay"]},
         {"params": [each for each in weights if each.dim() == 1], "weight_decay": 0.0}],
        betas=(settings["adam_beta1"], settings["adam_beta2"]), eps=settings["adam_eps"])
    rows = []
    model.train()
    for step, batch in enumerate(samples.split(GLOBAL_BATCH)):
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, settings["clip_grad"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, **settings)
        optimizer.step()
        rows.append((loss.item(), norm.item(), group["lr"]))
    model.eval()
    return torch.tensor(rows, dtype=torch.float64)


class Training(harness.Parity):

    def compare(self, name, config):
        """STEPS steps, here and there."""
        directory = self.directory
        clip = CLIP_GRAD.get(config.model_type, CLIP_GRAD_OTHERS)
        settings = {**SETTINGS, "clip_grad": clip}
        harness.make_model(config, seed=len(name)).save_pretrained(directory / "hf")
        documents = make_documents(config.vocab_size)
        harness.write_tokens(directory / "corpus", documents)
        weights = harness.initial_weights(directory / "hf")
        harness.train(directory / "corpus", f"--init={weights}", f"--steps={STEPS}",
                      f"--seed={SEED}", f"--global-batch-size={GLOBAL_BATCH}",
                      *(f"--{key.replace('_', '-')}={value}" for key, value in settings.items()),
                      f"--run-dir={directory / 'run'}")
        with open(directory / "run" / "metrics.jsonl") as lines:
            rows = [json.loads(line) for line in lines]
        self.assertEqual([row["step"] for row in rows], list(range(1, STEPS + 1)))
        found = torch.tensor([[row["loss"], row["grad_norm"], row["lr"]] for row in rows],
                             dtype=torch.float64)

        model = load(directory / "hf")
        expected = train_here(model, order_samples(documents, STEPS * GLOBAL_BATCH), settings)
        self.assertTrue(torch.allclose(found[:, 2], expected[:, 2], rtol=1e-6, atol=0))
        loss, norm = ((found - expected).abs() / expected).amax(0)[:2].tolist()
        first, last = expected[0, 0].item(), expected[-1, 0].item()
        print(f"{name}: loss {loss:.2e}, gradient norm {norm:.2e} relative at most "
              f"(loss {first:.2f} to {last:.2f})")
        self.assertLess(last, 0.8 * first)
        self.assertGreater(expected[:, 1].max().item(), clip)
        self.assertLess(expected[:, 1].min().item(), clip)
        self.assertLessEqual(loss, 1e-4)
        self.assertLessEqual(norm, 1e-4)

        run("h5-to-hf", directory / "run", directory / "trained")
        tokens = torch.arange(harness.SEQ_LENGTH).unsqueeze(0) * 3 % config.vocab_size
        with torch.no_grad():
            self.assert_close(f"{name}: after it", model(tokens).logits,
                              load(directory / "trained")(tokens).logits)


def add_test(name, config):
    setattr(Training, "test_" + name.replace("-", "_"), lambda self: self.compare(name, config))


for each in harness.every_config():
    if each[0] == "gqa" or each[0] in harness.FAMILIES:
        add_test(*each)

if __name__ == "__main__":
    unittest.main()
