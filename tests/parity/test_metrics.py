"""Guards: loss, perplexity, accuracy, instruct accuracy and counts of a validation are what plain
numpy makes of the dumped logits and of the data's tokens and roles, chats of several turns
included, on any layout, with and without a loss on what the user said."""

import json
import random
import re
import unittest

import h5py
import numpy

import harness
from harness import run

ADDED = "<|im_start|>,<|im_end|>"
TOKENIZER = harness.SOURCE / "tests/golden/tokenizers/sentencepiece"
TEMPLATE = harness.SOURCE / "etc/templates/chatml.ini"
# <unk>, <s>, </s>, and what ADDED names.
SPECIAL = [0, 1, 2, 3000, 3001]
LENGTH, BATCH = 96, 8
MODEL = ["--family=llama", "--layers=2", "--hidden-size=64", "--ffn-size=96", "--heads=4",
         "--vocab-size=3000", f"--max-positions={LENGTH}", f"--tokenizer={TOKENIZER}",
         f"--add-tokens={ADDED}", f"--global-batch-size={BATCH}", f"--seq-length={LENGTH}",
         "--device=cpu", "--threads=1"]
LAYOUTS = [[], ["--tp=2"], ["--pp=2", "--micro-batch-size=2"], ["--tp=2", "--dp=2"]]
NAMES = {"lm loss value": "loss", "lm loss PPL": "perplexity", "lm accuracy value": "accuracy",
         "instruct accuracy value": "instruct_accuracy",
         "count loss mask value": "count_loss_mask",
         "count instruct mask value": "count_instruct_mask"}


def make_chats(count):
    """Sums, in one to four turns, some of them behind a system message."""
    source = random.Random(5)
    for i in range(count):
        messages = [{"role": "system", "content": "Be short."}] if i % 2 else []
        for _ in range(1 + i % 4):
            a, b = source.randrange(9), source.randrange(9)
            messages += [{"role": "user", "content": f"What is {a} plus {b}?"},
                         {"role": "assistant", "content": f"It is {a + b}."}]
        yield {"messages": messages}


def find_document(documents, row):
    """The number of the one that is in a row: the longest that the row begins with."""
    inputs = [document[:-1][:LENGTH] for document in documents]
    return max((i for i, each in enumerate(inputs) if each == row[:len(each)].tolist()),
               key=lambda i: len(documents[i]))


def measure(path, prefix, others):
    """Metrics of a dumped batch. Targets and masks come from the data's files alone."""
    texts = harness.read_tokens(f"{prefix}-text")
    roles = harness.read_tokens(f"{prefix}-role")
    loss = weights = tokens = right = answers = right_answers = 0
    with h5py.File(path) as file:
        for row, logits in zip(file["tokens"][:], file["logits"][:].astype(numpy.float64)):
            document = find_document(texts, row)
            for t, (token, role) in enumerate(zip(texts[document][1:LENGTH + 1],
                                                  roles[document][1:])):
                weight = 1.0 if role == 2 else others
                if weight == 0:
                    continue
                top = logits[t].max()
                loss += weight * (top + numpy.log(numpy.exp(logits[t] - top).sum())
                                  - logits[t][token])
                hit = int(logits[t].argmax() == token)
                answer = role == 2 and token not in SPECIAL
                weights += weight
                tokens += 1
                right += hit
                answers += answer
                right_answers += hit and answer
    return {"loss": loss / weights, "perplexity": numpy.exp(loss / weights),
            "accuracy": right / tokens, "instruct_accuracy": right_answers / answers,
            "count_loss_mask": tokens / BATCH, "count_instruct_mask": answers / BATCH}


def read_console(text, name):
    line, = re.findall(rf"^ validation loss at iteration .* set: {name} \|.*$", text, re.M)
    return {NAMES[label.strip()]: float(value)
            for label, value in re.findall(r"\|([^|:]+): ([0-9.E+-]+)(?= \|)", line)}


class Metrics(harness.Parity):

    def setUp(self):
        super().setUp()
        self.data = self.directory / "chat"
        lines = self.directory / "chat.jsonl"
        lines.write_text("".join(json.dumps(chat) + "\n" for chat in make_chats(120)))
        run("data/mtllm-data", "tokenize", f"--tokenizer={TOKENIZER}", f"--chat-template={TEMPLATE}",
            f"--add-tokens={ADDED}", f"--output={self.data}", lines)

    def train(self, *arguments):
        ranks = 1
        for argument in arguments:
            if re.match("--(tp|pp|dp)=", str(argument)):
                ranks *= int(argument.split("=")[1])
        launcher = ["mpirun", "--quiet", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
        return run("mtllm-train", *MODEL, f"--data={self.data}", *arguments, launcher=launcher)

    def test_validation(self):
        self.train("--steps=60", "--lr=1e-2", f"--run-dir={self.directory / 'run'}")
        for others in (0.0, 0.25):
            for layout in LAYOUTS:
                with self.subTest(others=others, layout=layout):
                    dump = self.directory / "dump.h5"
                    text = self.train(f"--valid-data=chat={self.data} again={self.data}",
                                      "--eval-only", "--eval-steps=1", f"--dump-logits={dump}",
                                      f"--loss-mask-weight={others}",
                                      f"--resume={self.directory / 'run'}",
                                      f"--run-dir={self.directory / 'eval'}", *layout)
                    expected, found = measure(dump, self.data, others), read_console(text, "chat")
                    self.assertEqual(sorted(expected), sorted(found))
                    self.assertEqual(found, read_console(text, "again"))
                    for name, value in expected.items():
                        # Seven digits are on the console.
                        self.assertLessEqual(abs(found[name] - value), 1e-6 * abs(value), name)
                    # What tells the metrics from one another.
                    self.assertGreater(found["accuracy"], 0.1)
                    self.assertLess(found["count_instruct_mask"], found["count_loss_mask"])
                    self.assertNotEqual(found["accuracy"], found["instruct_accuracy"])

    def test_dump(self):
        """What the dump says of targets and masks is what the data's files say."""
        dump = self.directory / "dump.h5"
        self.train(f"--valid-data={self.data}", "--eval-only", "--eval-steps=1",
                   f"--dump-logits={dump}", "--loss-mask-weight=0.25", "--tp=2", "--dp=2",
                   f"--run-dir={self.directory / 'eval'}")
        texts = harness.read_tokens(f"{self.data}-text")
        roles = harness.read_tokens(f"{self.data}-role")
        with h5py.File(dump) as file:
            self.assertEqual(sorted(file), ["answers", "logits", "targets", "tokens", "weights"])
            for i, row in enumerate(file["tokens"][:]):
                document = find_document(texts, row)
                targets = texts[document][1:LENGTH + 1]
                role = roles[document][1:LENGTH + 1]
                pad = [0] * (LENGTH - len(targets))
                self.assertEqual(file["targets"][i].tolist(), targets + [-1] * len(pad))
                self.assertEqual(file["weights"][i].tolist(),
                                 [1 if each == 2 else 0.25 for each in role] + pad)
                self.assertEqual(file["answers"][i].tolist(),
                                 [int(r == 2 and t not in SPECIAL)
                                  for r, t in zip(role, targets)] + pad)


if __name__ == "__main__":
    unittest.main()
