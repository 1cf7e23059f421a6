"""Small tokenizers of the kinds that published models have, and the texts they are tried on."""

import json
import pathlib
import shutil

import sentencepiece
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
import transformers

import harness

GOLDEN = harness.SOURCE / "tests/golden/tokenizers/sentencepiece"
with open(GOLDEN / "golden.jsonl") as lines:
    GOLDEN_TEXTS = [json.loads(line)["text"] for line in lines]

CODE = ["int main(void)\n{\n\treturn 0; /* done */\n}\n",
        "def f(x):\n    if x:\n        return {'a': [1, 2]}\n\n\n    # end\n",
        "<div class=\"a\">&nbsp;</div>\r\n", "a->b[i++] += ~c ^ 0xFFu;", "\\documentclass{article}"]
SPACES = ["", " ", "  ", "   ", "\n", "\n\n\n", "\t", " \n ", "\u00a0", "\u3000", " one", "  two",
          "   three spaces first", "last ", "last  ", "in  the   middle", " \u3053", "\u2581",
          "a\u2581b", "\u2581 \u2581"]
UNICODE = ["Grüße, señor; œuvre", "Ελληνικά και Кириллица", "עברית", "ไทย", "👩‍💻👍🏽🇩🇪",
           "e\u0301 and é", "ﬀ ½ Å", "\u200b\ufeff\u202e", "\U0010ffff", "日本語と 中文"]
# What tokenizers of some kinds take for special tokens, and others for text.
SPECIAL = ["<s>", "</s>", "a</s>", "</s>b", "one</s>two", "one </s> two", "<s></s>", " <s> x",
           "<unk>", "a<unk>b", "<|endoftext|>", "x<|im_start|>user\nhi<|im_end|>", "<0x0A>",
           "a<tool> b", "an extra_word here"]
PLAIN_TEXTS = CODE + SPACES + UNICODE + [text for text in GOLDEN_TEXTS if "<s>" not in text]
SPECIAL_TEXTS = SPECIAL + [text for text in GOLDEN_TEXTS if "<s>" in text]
TEXTS = PLAIN_TEXTS + SPECIAL_TEXTS

CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"

# The splits of Llama 3 and Qwen2; they differ in how many digits stay together.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
         r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split_bytes(digits):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT % digits), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "falcon": lambda: pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(), pre_tokenizers.Split(tokenizers.Regex("[0-9][0-9][0-9]"),
                                                      "isolated")]),
    "llama3": lambda: split_bytes("{1,3}"),
    "qwen2": lambda: split_bytes(""),
}
# Kind: the family that has it, and the class that its tokenizer_config.json names.
KINDS = {"gpt2": ("Llama", "GPT2Tokenizer"), "falcon": ("Falcon", "PreTrainedTokenizerFast"),
         "llama3": ("Llama", "PreTrainedTokenizerFast"), "qwen2": ("Qwen2", "Qwen2Tokenizer"),
         "llama2": ("Llama", "LlamaTokenizer"), "unigram": ("Mistral", "PreTrainedTokenizerFast")}


def train_byte_level(kind):
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(PLAIN_TEXTS, trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|endoftext|>", "<|begin_of_text|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if kind == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 1)])
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>"}


def train_byte_fallback():
    """As Llama 2's was converted: the bytes are pieces like others."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True,
                                                fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"),
                                                 normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(PLAIN_TEXTS, trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"] + bytes_, show_progress=False,
        limit_alphabet=200, max_token_length=12))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    text = json.loads(tokenizer.to_str())
    text["added_tokens"] = text["added_tokens"][:3]
    return (tokenizers.Tokenizer.from_str(json.dumps(text)),
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def train_unigram():
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    ascii_texts = [text for text in PLAIN_TEXTS if text.isascii()]
    tokenizer.train_from_iterator(ascii_texts, trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
        show_progress=False))
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def train(kind):
    """A tokenizer and the names of its special tokens; with tokens behind its vocabulary."""
    if kind == "llama2":
        tokenizer, special = train_byte_fallback()
    elif kind == "unigram":
        tokenizer, special = train_unigram()
    else:
        tokenizer, special = train_byte_level(kind)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([tokenizers.AddedToken("extra_word", normalized=False),
                          tokenizers.AddedToken("<tool>", lstrip=True, rstrip=True,
                                                normalized=False)])
    return tokenizer, special


def make_model(family, directory, dtype=torch.float32, **changes):
    """A small model of the family in a Hugging Face directory."""
    fields = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                  max_position_embeddings=harness.SEQ_LENGTH, bos_token_id=1, eos_token_id=2)
    if family != "Falcon":
        fields.update(intermediate_size=48, num_key_value_heads=2)
    fields.update(changes)
    config = getattr(transformers, f"{family}Config")(**fields)
    model = harness.make_model(config, seed=9).to(dtype)
    model.save_pretrained(directory)
    return model


# How tokenizer.json is described: not at all, or by the files that this version of transformers
# writes. Version 4 names every added token in tokenizer_config.json, version 5 none.
FORMS = ("alone", "version 4", "version 5")


def describe(tokenizer, special, directory, name, form):
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT, clean_up_tokenization_spaces=False,
        model_max_length=512, **special).save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "tokenizer_class": name}
    if form == "version 4":
        tokens = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
        config["added_tokens_decoder"] = {str(token.pop("id")): token for token in tokens}
        (directory / "special_tokens_map.json").write_text(json.dumps(special))
    path.write_text(json.dumps(config, indent=2))
    if name in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        tokenizer.model.save(str(directory))


def make_directory(kind, directory, form, dtype=torch.float32, **changes):
    """A model with a tokenizer of the kind, in one of the FORMS. Returns the tokenizer."""
    family, name = KINDS[kind]
    tokenizer, special = train(kind)
    ids = {f"{key}_id": tokenizer.token_to_id(special[key]) for key in ("bos_token", "eos_token")}
    make_model(family, directory, dtype,
               **{"vocab_size": next_id(tokenizer), **ids, **changes})
    if form == "alone":
        tokenizer.save(str(directory / "tokenizer.json"))
    else:
        describe(tokenizer, special, directory, name, form)
    return tokenizer


def next_id(tokenizer):
    """One beyond the greatest id that it knows."""
    return max(tokenizer.get_vocab().values()) + 1


def make_sentencepiece_directory(family, directory, **changes):
    """A model that has a SentencePiece model and nothing else of a tokenizer. Returns that."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / "tokenizer.model"))
    make_model(family, directory, **{"vocab_size": processor.vocab_size(), **changes})
    shutil.copyfile(GOLDEN / "tokenizer.model", pathlib.Path(directory) / "tokenizer.model")
    return processor


def encode(tokenizer, text):
    """Of a tokenizer of transformers: without what it puts around a text."""
    return tokenizer(text, add_special_tokens=False).input_ids
