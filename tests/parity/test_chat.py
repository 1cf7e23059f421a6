"""Guards: conversations become the tokens that transformers' apply_chat_template gives, and those
that are learned are the ones of its assistant mask, whatever the template and the tokenizer."""

import itertools
import json
import random
import re
import unittest

import sentencepiece
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

import harness
import tokenizer_kinds
from harness import run
from tokenizer_kinds import KINDS, TEXTS

# As published, but for the marks around what is learned.
TEMPLATES = {
    "chatml":
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}",
    "llama2":
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}"
        "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{% generation %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
    "llama3":
        "{% for message in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{% set content = message['content'] | trim + '<|eot_id|>' %}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ content }}{% endgeneration %}"
        "{% else %}{{ content }}{% endif %}{% endfor %}",
    # The system message goes into the first message here; there, into the last.
    "mistral":
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
        "{% set loop_messages = messages[1:] %}{% else %}{% set system = '' %}"
        "{% set loop_messages = messages %}{% endif %}{{ bos_token }}"
        "{% for message in loop_messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + (system if loop.first else '') + message['content'] + '[/INST]' }}{% else %}"
        "{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}"
        "{% endif %}{% endfor %}",
    "plain":
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
        "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n' }}{% else %}"
        "{{ 'Assistant:' }}{% generation %}{{ ' ' + m['content'] + eos_token }}{% endgeneration %}"
        "{{ '\n' }}{% endif %}{% endfor %}",
}
HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

WORDS = ["hello", "the", "world", "42", "naïve", "日本", "👩‍💻", "e\u0301", "\u0301x", "…", " ", "  ",
         "\n", "\n\n", "\t", "\u00a0", "\u3000", "<s>", "</s>", "<|im_start|>", "<|im_end|>user",
         "[INST]", "<<SYS>>", "{content}", "{{ bos_token }}", "\\n", "<|eot_id|>", "<tool>", "▁",
         "User:", "<0x0A>", "\u0000", "'s", "=", "]"]


def content(generator):
    if generator.random() < 0.2:
        return generator.choice(TEXTS)
    space = generator.choice(["", " "])
    return space.join(generator.choice(WORDS) for _ in range(generator.randrange(12)))


def conversations(generator, count):
    for _ in range(count):
        messages = [{"role": "system", "content": content(generator)}] * generator.randrange(2)
        for _ in range(generator.randint(1, 4)):
            messages.append({"role": "user", "content": content(generator)})
            messages.append({"role": "assistant", "content": content(generator)})
        if generator.random() < 0.2:
            messages.append({"role": "user", "content": content(generator)})
        yield messages


class Chat(harness.Parity):

    def tokenize(self, tokenizer, template, chats, *options):
        """Of each conversation: ids, and for each whether it is learned."""
        directory = self.directory
        (directory / "chats.jsonl").write_text(
            "".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
        run("data/mtllm-data", "tokenize", f"--tokenizer={tokenizer}", "--strict", *options,
            f"--chat-template={harness.SOURCE / f'etc/templates/{template}.ini'}",
            f"--output={directory / 'out'}", directory / "chats.jsonl")
        ids, roles = (harness.read_tokens(directory / f"out-{name}") for name in ("text", "role"))
        return [(one, [int(role == 2) for role in other]) for one, other in zip(ids, roles)]

    def assert_same(self, what, chats, expected, found):
        self.assertEqual(len(found), len(chats))
        different = [(messages, left, right)
                     for messages, left, right in zip(chats, map(expected, chats), found)
                     if left != right]
        learned = sum(sum(mask) for _, mask in found)
        print(f"{what}: {len(different)} of {len(chats)} conversations differ, "
              f"{sum(len(ids) for ids, _ in found)} tokens, {learned} learned")
        self.assertEqual(different[:2], [])
        self.assertGreater(learned, len(chats))

    def assert_only_of_template(self, what, chats, special, expected, found):
        """Special tokens are those of the same conversation with nothing in its messages; without
        any that look so in the messages, all is as it is else."""
        bare = [[{**message, "content": "x"} for message in messages] for messages in chats]
        plain = 0
        for messages, empty, (ids, mask) in zip(chats, bare, found):
            self.assertEqual([id_ for id_ in ids if id_ in special],
                             [id_ for id_ in expected(empty)[0] if id_ in special], messages)
            if not any(word in message["content"] for message in messages
                       for word in ("<", "[", "extra")):
                plain += 1
                self.assertEqual((ids, mask), expected(messages), messages)
        print(f"{what}: {plain} of {len(chats)} conversations have no special tokens")
        self.assertGreater(plain, 3)

    def compare(self, kind):
        tokenizer, special = tokenizer_kinds.train(kind)
        if kind == "gpt2":  # Mistral has them since version 0.3
            tokenizer.add_special_tokens(["[INST]", "[/INST]"])
        reference = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
        reference.save_pretrained(self.directory / "hf")
        reference.add_tokens(HEADERS, special_tokens=True)

        for name, template in TEMPLATES.items():
            chats = list(conversations(random.Random(f"{kind} {name}"), 300))

            def expected(messages):
                out = reference.apply_chat_template(
                    messages, chat_template=template, tokenize=True, return_dict=True,
                    return_assistant_tokens_mask=True)
                return out["input_ids"], out["assistant_masks"]

            added = f"--add-tokens={','.join(HEADERS)}"
            self.assert_same(f"{kind}, {name}", chats, expected,
                             self.tokenize(self.directory / "hf", name, chats, added))

            found = self.tokenize(self.directory / "hf", name, chats, added,
                                  "--message-tokens=text")
            special = set(reference.all_special_ids) | set(reference.added_tokens_decoder)
            self.assert_only_of_template(f"{kind}, {name}, messages are text", chats, special,
                                         expected, found)

    def test_sentencepiece(self):
        """Only the template's tokens are tokens: what looks like one in a message is text."""
        model = tokenizer_kinds.GOLDEN / "tokenizer.model"
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        tokens = [*HEADERS, "<|im_start|>", "<|im_end|>"]
        ids = itertools.chain([processor.bos_id(), processor.eos_id()],
                              itertools.count(processor.vocab_size()))
        # A character for each token that a template names; no message has it.
        characters = [chr(0xe000 + i) for i in range(len(tokens) + 2)]
        ids = dict(zip(characters, ids))

        def pieces(text):
            """(id, first character, behind the last) of each token."""
            at = 0
            for part in re.split(f"([{''.join(characters)}])", text):
                if part in ids:
                    yield ids[part], at, at + 1
                elif part:
                    for piece in processor.encode(part, out_type="immutable_proto").pieces:
                        yield piece.id, at + piece.begin, at + max(piece.end, piece.begin + 1)
                at += len(part)

        for name, template in TEMPLATES.items():
            chats = list(conversations(random.Random(name), 300))
            for character, token in zip(characters[2:], tokens):
                template = template.replace(token, character)

            def expected(messages):
                text, learned = (result[0] for result in render_jinja_template(
                    [messages], chat_template=template, return_assistant_tokens_mask=True,
                    bos_token=characters[0], eos_token=characters[1]))
                parts = list(pieces(text))
                return ([id_ for id_, _, _ in parts],
                        [int(any(begin < last and end > first for first, last in learned))
                         for _, begin, end in parts])

            self.assert_same(f"SentencePiece, {name}", chats, expected,
                             self.tokenize(model, name, chats, f"--add-tokens={','.join(tokens)}"))


for each in KINDS:
    if each != "unigram":
        setattr(Chat, f"test_{each}", lambda self, kind=each: self.compare(kind))

if __name__ == "__main__":
    unittest.main()
