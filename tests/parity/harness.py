"""What the comparisons with transformers share: tiny models, token files, our programs."""

import os
import pathlib
import struct
import subprocess
import tempfile
import unittest

import h5py
import numpy
import safetensors.torch
import torch
import transformers

SOURCE = pathlib.Path(os.environ["srcdir"])
BUILD = pathlib.Path(os.environ["builddir"])

# No settings of the site's, and mpirun as tests/common.bash has it.
ENVIRONMENT = {**os.environ, "MTLLM_CONF": "/dev/null",
               "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_btl": "self,vader", "OMPI_MCA_btl_vader_single_copy_mechanism": "none"}

# The models are so small that more threads would only wait for one another.
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

# MHA and GQA, tied and untied, heads of another width than hidden / heads, one key/value head with
# a vocabulary that nothing divides.
SHAPES = {
    "mha": dict(num_attention_heads=4, num_key_value_heads=4),
    "mha-tied": dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True),
    "gqa": dict(num_attention_heads=6, num_key_value_heads=2, hidden_size=96),
    "gqa-tied": dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                     rms_norm_eps=1e-6),
    "head-dim": dict(num_attention_heads=4, num_key_value_heads=2, hidden_size=64, head_dim=32,
                     rope_theta=500000.0),
    "mqa-odd": dict(num_attention_heads=4, num_key_value_heads=1, vocab_size=307,
                    rope_theta=1000000.0),
}
SEQ_LENGTH = 48
BATCH = 3


def make_config(**changes):
    fields = dict(vocab_size=256, hidden_size=64, intermediate_size=112, num_hidden_layers=3,
                  max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
    fields.update(changes)
    theta = fields.pop("rope_theta", 10000.0)
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return transformers.LlamaConfig(**fields)


def make_model(config, seed):
    """A random model whose norms are away from 1, so that none can be left out unnoticed."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32,
                                                          attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            else:
                weight.mul_(4)
    return model.eval()


# What SHAPES have not: the other families, biases, and scaled rotary embeddings. SEQ_LENGTH is
# beyond every sliding window and beyond every context that is stretched.
SCALED = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32},
}
FALCON = dict(num_attention_heads=8, hidden_size=64, bos_token_id=11, eos_token_id=11)
FAMILIES = {
    "mistral-window": ("Mistral", dict(num_key_value_heads=2, sliding_window=24)),
    "mistral-full": ("Mistral", dict(num_key_value_heads=2, sliding_window=None, head_dim=32)),
    "qwen2": ("Qwen2", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "qwen2-window": ("Qwen2", dict(num_key_value_heads=2, use_sliding_window=True,
                                   sliding_window=24, max_window_layers=0)),
    "falcon-mqa": ("Falcon", dict(FALCON, num_attention_heads=4)),
    "falcon-gqa": ("Falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2)),
    "falcon-one-norm": ("Falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=4,
                                       num_ln_in_parallel_attn=1, tie_word_embeddings=False,
                                       ffn_hidden_size=96)),
    "llama-attention-bias": ("Llama", dict(attention_bias=True)),
    "llama-mlp-bias": ("Llama", dict(mlp_bias=True)),
    "llama-yarn-in-full": ("Llama", dict(rope_parameters={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 2.0, "mscale_all_dim": 0.5,
        "truncate": False, "rope_theta": 500000.0})),
    "llama-yarn-attention-factor": ("Llama", dict(rope_parameters={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        "attention_factor": 1.25, "rope_theta": 10000.0})),
    **{f"llama-{kind}": ("Llama", dict(rope_parameters={
        "rope_type": kind, "rope_theta": 10000.0, **numbers})) for kind, numbers in SCALED.items()},
}
# These two have no other number for the context before stretching.
for kind in ("linear", "dynamic"):
    FAMILIES[f"llama-{kind}"][1]["max_position_embeddings"] = 32


def make_family_config(name, **more):
    family, changes = FAMILIES[name]
    fields = dict(vocab_size=256, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                  max_position_embeddings=128,
                  rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    if family == "Falcon":
        fields.update(layer_norm_epsilon=1e-5)
    else:
        fields.update(intermediate_size=112, rms_norm_eps=1e-5)
    fields.update({**changes, **more})
    return getattr(transformers, f"{family}Config")(**fields)


def every_config():
    """Name and config of all SHAPES and FAMILIES."""
    for name, changes in SHAPES.items():
        yield name, make_config(**changes)
    for name in FAMILIES:
        yield name, make_family_config(name)


def write_tokens(prefix, documents):
    """Megatron's PREFIX.bin and PREFIX.idx, 32-bit tokens."""
    sizes = [len(document) for document in documents]
    with open(f"{prefix}.bin", "wb") as stream:
        for document in documents:
            stream.write(numpy.asarray(document, dtype="<i4").tobytes())
    with open(f"{prefix}.idx", "wb") as stream:
        stream.write(b"MMIDIDX\0\0" + struct.pack("<QB", 1, 4))
        stream.write(struct.pack("<QQ", len(sizes), len(sizes) + 1))
        stream.write(numpy.asarray(sizes, dtype="<i4").tobytes())
        starts = numpy.cumsum([0] + sizes[:-1]) * 4
        stream.write(starts.astype("<i8").tobytes())
        stream.write(numpy.arange(len(sizes) + 1, dtype="<i8").tobytes())


def read_tokens(prefix):
    """The documents of PREFIX.bin and PREFIX.idx."""
    index = pathlib.Path(f"{prefix}.idx").read_bytes()
    dtype = {4: "<i4", 8: "<u2"}[index[17]]
    count, = struct.unpack_from("<Q", index, 18)
    sizes = numpy.frombuffer(index, dtype="<i4", count=count, offset=34)
    tokens = numpy.fromfile(f"{prefix}.bin", dtype=dtype)
    return [part.tolist() for part in numpy.split(tokens, numpy.cumsum(sizes)[:-1])]


def run(program, *arguments, status=0, launcher=()):
    done = subprocess.run([*launcher, str(BUILD / program), *map(str, arguments)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
                          env=ENVIRONMENT)
    if done.returncode != status:
        raise AssertionError(f"{program} {' '.join(map(str, arguments))}: exit status "
                             f"{done.returncode}, expected {status}\n{done.stdout}")
    return done.stdout


def initial_weights(directory):
    """What --init takes for the model in a Hugging Face directory."""
    return directory


def train(data, *arguments, ranks=1, **options):
    launcher = ()
    if ranks > 1:
        launcher = ("mpirun", "--quiet", "--oversubscribe", "-n", str(ranks))
    return run("mtllm-train", f"--data={data}", f"--valid-data={data}", "--device=cpu",
               f"--seq-length={SEQ_LENGTH}", f"--micro-batch-size={BATCH}",
               "--threads=1", *arguments, launcher=launcher, **options)


def dump_logits(data, weights, path, run_directory):
    """The tokens and logits that mtllm-train computes."""
    train(data, f"--init={weights}", "--eval-only", f"--dump-logits={path}",
          f"--run-dir={run_directory}")
    with h5py.File(path) as file:
        return torch.from_numpy(file["tokens"][:]).long(), torch.from_numpy(file["logits"][:])


def load(directory, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager").eval()


def load_tensors(directory):
    tensors = {}
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        tensors.update(safetensors.torch.load_file(path))
    return tensors


def bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


class Parity(unittest.TestCase):
    """Each test has an empty directory of its own."""

    def setUp(self):
        self.place = tempfile.TemporaryDirectory()
        self.addCleanup(self.place.cleanup)
        self.directory = pathlib.Path(self.place.name)

    def corpus(self, vocabulary, seed=0):
        generator = numpy.random.default_rng(seed)
        prefix = self.directory / "corpus"
        write_tokens(prefix, [generator.integers(0, vocabulary, 200) for _ in range(20)])
        return prefix

    def assert_same_tensors(self, left, right):
        left, right = load_tensors(left), load_tensors(right)
        self.assertEqual(sorted(left), sorted(right))
        for name in left:
            self.assertEqual(left[name].dtype, right[name].dtype, name)
            self.assertEqual(left[name].shape, right[name].shape, name)
            self.assertTrue(torch.equal(bits(left[name]), bits(right[name])), name)

    def assert_same_config(self, left, right):
        """As transformers understands the two files; what it records about itself aside."""
        ignored = {"transformers_version", "_name_or_path", "dtype"}
        left, right = (
            {key: value
             for key, value in transformers.AutoConfig.from_pretrained(path).to_dict().items()
             if key not in ignored} for path in (left, right))
        self.assertEqual(left, right)

    def assert_close(self, what, expected, found, bound=1e-4):
        self.assertEqual(expected.shape, found.shape)
        difference = (expected - found).abs().max().item()
        print(f"{what}: max abs difference {difference:.2e} "
              f"(logits up to {expected.abs().max().item():.2f})")
        self.assertLessEqual(difference, bound)
