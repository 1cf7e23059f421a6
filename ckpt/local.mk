# What is built in ckpt/.
noinst_LTLIBRARIES += ckpt/libdisk.la ckpt/libhf.la

ckpt_libdisk_la_SOURCES = ckpt/disk.c ckpt/disk.h
ckpt_libdisk_la_LIBADD = core/libcore.la

# Hugging Face models: config.json and safetensors; needs no HDF5.
ckpt_libhf_la_SOURCES = \
	ckpt/hf_config.c ckpt/hf_config.h ckpt/hf_config_write.c ckpt/hf_family.h \
	ckpt/hf_tensors.c ckpt/hf_tensors.h \
	ckpt/json_text.c ckpt/json_text.h \
	ckpt/safetensors.c ckpt/safetensors.h \
	ckpt/safetensors_header.c ckpt/safetensors_header.h \
	ckpt/safetensors_writer.c
ckpt_libhf_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
ckpt_libhf_la_LIBADD = ckpt/libdisk.la core/libcore.la $(JANSSON_LIBS)

if HAVE_CMOCKA
hf_tests = ckpt/test_hf_config ckpt/test_safetensors
check_PROGRAMS += $(hf_tests)
TESTS += $(hf_tests)
ckpt_test_hf_config_SOURCES = ckpt/test_hf_config.c
ckpt_test_hf_config_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(JANSSON_CFLAGS)
ckpt_test_hf_config_LDADD = ckpt/libhf.la core/libcore.la $(CMOCKA_LIBS) $(JANSSON_LIBS)
ckpt_test_safetensors_SOURCES = ckpt/test_safetensors.c
ckpt_test_safetensors_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
ckpt_test_safetensors_LDADD = ckpt/libhf.la core/libcore.la $(CMOCKA_LIBS)
endif

# Sharded checkpoints, ckpt/checkpoint.h.
noinst_LTLIBRARIES += ckpt/libckpt.la

ckpt_libckpt_la_SOURCES = \
	ckpt/checkpoint.h ckpt/checksum.h \
	ckpt/commit.c \
	ckpt/directory.c ckpt/directory.h \
	ckpt/format.h \
	ckpt/h5.c ckpt/h5.h \
	ckpt/h5_table.c ckpt/h5_table.h \
	ckpt/index.h ckpt/index_compose.c ckpt/index_parse.c \
	ckpt/listing.c ckpt/listing.h \
	ckpt/manifest.c ckpt/manifest.h \
	ckpt/open.c \
	ckpt/read.c ckpt/reader.h \
	ckpt/shard.c \
	ckpt/sidecar.c ckpt/sidecar.h \
	ckpt/table.c ckpt/table.h \
	ckpt/verify.c
ckpt_libckpt_la_CFLAGS = $(AM_CFLAGS) -pthread $(HDF5_CFLAGS) $(JANSSON_CFLAGS) $(XXHASH_CFLAGS)
ckpt_libckpt_la_LIBADD = ckpt/libdisk.la core/libcore.la $(HDF5_LIBS) $(JANSSON_LIBS) $(XXHASH_LIBS) -lpthread

bin_PROGRAMS += mtllm-ckpt
mtllm_ckpt_SOURCES = \
	ckpt/command.c ckpt/command.h \
	ckpt/command_diff.c \
	ckpt/command_list.c \
	ckpt/command_prune.c \
	ckpt/command_show.c \
	ckpt/command_verify.c \
	ckpt/mtllm-ckpt.c
mtllm_ckpt_CFLAGS = $(AM_CFLAGS) $(HDF5_CFLAGS) $(JANSSON_CFLAGS)
mtllm_ckpt_LDADD = ckpt/libckpt.la core/libcore.la $(JANSSON_LIBS) -lm

if HAVE_CMOCKA
checkpoint_tests = ckpt/test_checkpoint ckpt/test_damage ckpt/test_fault
check_PROGRAMS += $(checkpoint_tests)
TESTS += $(checkpoint_tests)
checkpoint_test_cflags = $(AM_CFLAGS) -pthread $(CMOCKA_CFLAGS) $(HDF5_CFLAGS)
checkpoint_test_ldadd = ckpt/libckpt.la core/libcore.la $(CMOCKA_LIBS) $(HDF5_LIBS)

ckpt_test_checkpoint_SOURCES = ckpt/test_checkpoint.c ckpt/test_fixture.c ckpt/test_fixture.h
ckpt_test_checkpoint_CFLAGS = $(checkpoint_test_cflags)
ckpt_test_checkpoint_LDADD = $(checkpoint_test_ldadd)

ckpt_test_damage_SOURCES = ckpt/test_damage.c ckpt/test_fixture.c ckpt/test_fixture.h
ckpt_test_damage_CFLAGS = $(checkpoint_test_cflags)
ckpt_test_damage_LDADD = $(checkpoint_test_ldadd)

# Every call of the library that changes a file goes to the test first.
ckpt_test_fault_SOURCES = ckpt/test_fault.c ckpt/test_fixture.c ckpt/test_fixture.h
ckpt_test_fault_CFLAGS = $(checkpoint_test_cflags)
ckpt_test_fault_LDADD = $(checkpoint_test_ldadd)
ckpt_test_fault_LDFLAGS = -Wl,--wrap=open,--wrap=mkdir,--wrap=fallocate,--wrap=pwrite \
	-Wl,--wrap=fsync,--wrap=close,--wrap=rename,--wrap=renameat2,--wrap=symlink \
	-Wl,--wrap=unlink,--wrap=rmdir
endif

check_PROGRAMS += ckpt/make_checkpoint
ckpt_make_checkpoint_SOURCES = ckpt/make_checkpoint.c ckpt/test_fixture.c ckpt/test_fixture.h
ckpt_make_checkpoint_LDADD = ckpt/libckpt.la core/libcore.la
TESTS += ckpt/test_mtllm_ckpt.bats
EXTRA_DIST += ckpt/test_mtllm_ckpt.bats

# Run by tests/bench.
check_PROGRAMS += ckpt/bench_shard
ckpt_bench_shard_SOURCES = ckpt/bench_shard.c
ckpt_bench_shard_LDADD = ckpt/libckpt.la core/libcore.la

# Conversion.
noinst_LTLIBRARIES += ckpt/libconvert.la
ckpt_libconvert_la_SOURCES = \
	ckpt/added_tokens.c ckpt/added_tokens.h \
	ckpt/special_tokens.c ckpt/special_tokens.h \
	ckpt/hf_directory.c ckpt/hf_directory.h \
	ckpt/hf_export.c ckpt/hf_export.h \
	ckpt/hf_import.c ckpt/hf_import.h \
	ckpt/hf_options.c ckpt/hf_options.h \
	ckpt/hf_sentencepiece.c ckpt/hf_sentencepiece.h ckpt/hf_sentencepiece_json.c \
	ckpt/hf_source.c ckpt/hf_source.h \
	ckpt/hf_tokenizer.c ckpt/hf_tokenizer.h \
	ckpt/kept_files.c ckpt/kept_files.h \
	ckpt/progress.c ckpt/progress.h \
	ckpt/tensor_check.c ckpt/tensor_check.h \
	ckpt/weights.c ckpt/weights.h
ckpt_libconvert_la_CFLAGS = $(AM_CFLAGS) -pthread $(JANSSON_CFLAGS)
ckpt_libconvert_la_LIBADD = ckpt/libckpt.la ckpt/libhf.la

if HAVE_CMOCKA
check_PROGRAMS += ckpt/test_hf_convert ckpt/test_hf_tokenizer ckpt/test_special_tokens
TESTS += ckpt/test_hf_convert ckpt/test_hf_tokenizer ckpt/test_special_tokens
ckpt_test_special_tokens_SOURCES = ckpt/test_special_tokens.c
ckpt_test_special_tokens_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
ckpt_test_special_tokens_LDADD = ckpt/libconvert.la $(CMOCKA_LIBS)
ckpt_test_hf_tokenizer_SOURCES = ckpt/test_hf_tokenizer.c ckpt/test_sentencepiece.h
ckpt_test_hf_tokenizer_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(JANSSON_CFLAGS)
ckpt_test_hf_tokenizer_LDADD = ckpt/libconvert.la $(CMOCKA_LIBS) $(JANSSON_LIBS)
ckpt_test_hf_convert_SOURCES = ckpt/test_hf_convert.c ckpt/test_sentencepiece.h
ckpt_test_hf_convert_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(JANSSON_CFLAGS)
ckpt_test_hf_convert_LDADD = ckpt/libconvert.la $(CMOCKA_LIBS) $(JANSSON_LIBS)
endif

bin_PROGRAMS += h5-to-hf hf-to-h5
h5_to_hf_SOURCES = ckpt/h5-to-hf.c
h5_to_hf_LDADD = ckpt/libconvert.la
hf_to_h5_SOURCES = ckpt/hf-to-h5.c
hf_to_h5_LDADD = ckpt/libconvert.la
