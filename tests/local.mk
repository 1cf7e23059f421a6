# What is built in tests/.
golden_models = codellama llama-gqa-tied llama-mha
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

EXTRA_DIST += tests/slurm/cluster.sh
