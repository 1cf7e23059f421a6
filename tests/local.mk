# What is built in tests/.
golden_models = codellama falcon-40b falcon-7b llama-bias llama-dynamic llama-gqa-tied llama-headdim \
	llama-linear llama-llama3 llama-mha llama-yarn mistral qwen2
EXTRA_DIST += tests/golden/README.md \
	$(golden_models:%=tests/golden/models/%/config.json) \
	$(golden_models:%=tests/golden/models/%/generation_config.json) \
	$(golden_models:%=tests/golden/models/%/golden.json) \
	$(golden_models:%=tests/golden/models/%/golden.safetensors) \
	$(golden_models:%=tests/golden/models/%/model.safetensors)

# bats files run as tests of their own, with srcdir and builddir in their environment.
TEST_EXTENSIONS = .bats
BATS_LOG_COMPILER = bats
AM_TESTS_ENVIRONMENT = srcdir='$(srcdir)'; export srcdir; \
	builddir='$(abs_builddir)'; export builddir;

# The plugin, in Slurm's commands alone and in a private Slurm.
EXTRA_DIST += tests/slurm/cluster.sh tests/slurm/plugin.bash tests/plugin.bats \
	tests/slurm/plugin.bats tests/bench/plugin.sh tests/bench/ckpt.sh tests/bench/convert.sh \
	tests/bench/cpu.sh tests/bench/packing.sh tests/bench/pipeline.sh tests/bench/tokenize.py tests/bench/viewers.sh tests/combinations.sh
if HAVE_SLURM
TESTS += tests/plugin.bats tests/slurm/plugin.bats
tests/plugin.log tests/slurm/plugin.log: mtllm.la
endif

# What the trainer's tests train on.
check_PROGRAMS += tests/make_tokens
tests_make_tokens_SOURCES = tests/make_tokens.c
tests_make_tokens_LDADD = data/libdata.la core/libcore.la

# How long a run waits for its data: make tests/bench/start && tests/bench/start.
EXTRA_PROGRAMS = tests/bench/start
tests_bench_start_SOURCES = tests/bench/start.c
tests_bench_start_LDADD = data/libdata.la core/libcore.la
# What pipeline stages wait for each other: tests/bench/pipeline.sh.
EXTRA_PROGRAMS += tests/bench/pipeline
tests_bench_pipeline_SOURCES = tests/bench/pipeline.c
tests_bench_pipeline_LDADD = trainer/libtraining.la

trainer_bats = tests/combinations.bats tests/init.bats tests/instruct.bats tests/layouts.bats tests/metrics.bats tests/metrics_plugin.bats tests/packing.bats tests/plan.bats tests/peers.bats tests/profile.bats tests/ramp.bats tests/resume.bats tests/slurm/comment.bats tests/slurm/train.bats
TESTS += $(trainer_bats)
EXTRA_DIST += $(trainer_bats) tests/common.bash tests/metric_plugin.c

# Reads with Python packages; needs the network the first time.
TESTS += tests/viewers.bats
EXTRA_DIST += tests/viewers.bats tests/viewers/check.py tests/viewers/requirements.txt tests/viewers/sync.py

# Converters.
TESTS += tests/hf_convert.bats
EXTRA_DIST += tests/hf_convert.bats
check_PROGRAMS += tests/model_tool
tests_model_tool_SOURCES = tests/model_tool.c
tests_model_tool_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tests_model_tool_LDADD = ckpt/libhf.la $(JANSSON_LIBS)

check_PROGRAMS += tests/decode_tokens
tests_decode_tokens_SOURCES = tests/decode_tokens.c
nodist_EXTRA_tests_decode_tokens_SOURCES = data/links_with_cxx.cc
tests_decode_tokens_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tests_decode_tokens_LDADD = data/libdata.la data/libtokenizer.la $(JANSSON_LIBS)

check_PROGRAMS += tests/token_spans
tests_token_spans_SOURCES = tests/token_spans.c
nodist_EXTRA_tests_token_spans_SOURCES = data/links_with_cxx.cc
tests_token_spans_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tests_token_spans_LDADD = data/libtokenizer.la $(JANSSON_LIBS)

# Comparison with transformers; needs the network the first time.
EXTRA_DIST += tests/parity/run.sh tests/parity/requirements.txt tests/parity/harness.py tests/parity/corpus.py \
	tests/parity/tokenizer_kinds.py tests/parity/test_add_tokens.py tests/parity/test_chat.py \
	tests/parity/test_layouts.py tests/parity/test_logits.py tests/parity/test_metrics.py \
	tests/parity/test_round_trip.py \
	tests/parity/test_tokenizers.py tests/parity/test_training.py
.PHONY: check-hf
check-hf: all
	$(AM_V_at)srcdir='$(srcdir)' builddir='$(abs_builddir)' $(SHELL) $(srcdir)/tests/parity/run.sh

# What reads Hugging Face models, under clang's fuzzer: FUZZ_SECONDS for each target.
EXTRA_DIST += tests/fuzz/change_json.c tests/fuzz/conversations.c tests/fuzz/corpora.c tests/fuzz/fuzz.h \
	tests/fuzz/readers.c tests/fuzz/run.sh tests/fuzz/rows.c tests/fuzz/words.dict
.PHONY: check-fuzz show-fuzz-parts
check-fuzz: all
	$(AM_V_at)$(SHELL) $(srcdir)/tests/fuzz/run.sh '$(abs_builddir)'
show-fuzz-parts:
	@printf '%s\n' $(tokenizer_sources) data/corpus.c data/encoder.c data/input.c data/resume.c \
		$(data_libdata_la_SOURCES) $(ZLIB_LIBS) $(ZSTD_LIBS) $(tokenizer_json_sources) \
		$(ckpt_libconvert_la_SOURCES) $(ckpt_libckpt_la_SOURCES) \
		$(ckpt_libhf_la_SOURCES) $(ckpt_libdisk_la_SOURCES) \
		$(core_libcore_without_inih_la_SOURCES) $(INIH_LIBS) $(HDF5_LIBS) $(JANSSON_LIBS) \
		$(XXHASH_LIBS) $(ONIGURUMA_LIBS) $(UTF8PROC_LIBS) -lpthread -lm
