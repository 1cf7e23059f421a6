noinst_LTLIBRARIES += data/libdata.la

data_libdata_la_SOURCES = \
	data/blend.c data/blend.h \
	data/dataset.c data/dataset.h \
	data/order.c data/order.h \
	data/packing.c data/packing.h \
	data/random.c data/random.h \
	data/sample_index.c \
	data/samples.c data/samples.h \
	data/source.c data/source.h \
	data/token_file.c data/token_file.h data/token_format.h \
	data/token_writer.c
data_libdata_la_CFLAGS = $(AM_CFLAGS) -pthread $(XXHASH_CFLAGS)
data_libdata_la_LIBADD = core/libcore.la $(XXHASH_LIBS) -lpthread -lm

# SentencePiece is C++; only what tokenizes is linked with it.
noinst_LTLIBRARIES += data/libtokenizer.la
tokenizer_sources = \
	data/chat.c data/chat.h \
	data/chat_pattern.c data/chat_pattern.h \
	data/chat_template.c data/chat_template.h \
	data/new_tokens.c \
	data/tokenizer.c data/tokenizer.h data/tokenizer_kind.h
data_libtokenizer_la_SOURCES = $(tokenizer_sources) data/tokenizer_missing.c
data_libtokenizer_la_CFLAGS = $(AM_CFLAGS) -pthread $(JANSSON_CFLAGS) $(INIH_CFLAGS)
data_libtokenizer_la_LIBADD = core/libcore.la $(JANSSON_LIBS)
sentencepiece_sources = data/sentencepiece.cc
tokenizer_json_sources = \
	data/added_set.c data/added_set.h \
	data/bpe.c data/bpe.h \
	data/decoder.c data/decoder.h \
	data/normal_form.c data/normal_form.h \
	data/pieces.c data/pieces.h \
	data/steps.c data/steps.h \
	data/tokenizer_json.c \
	data/unicode.c data/unicode.h
EXTRA_DIST += $(sentencepiece_sources) $(tokenizer_json_sources)
if HAVE_SENTENCEPIECE
data_libtokenizer_la_SOURCES += $(sentencepiece_sources)
data_libtokenizer_la_CXXFLAGS = $(AM_CXXFLAGS) $(SENTENCEPIECE_CFLAGS)
data_libtokenizer_la_LIBADD += $(SENTENCEPIECE_LIBS)
endif
if HAVE_TOKENIZER_JSON
data_libtokenizer_la_SOURCES += $(tokenizer_json_sources)
data_libtokenizer_la_CFLAGS += $(ONIGURUMA_CFLAGS) $(UTF8PROC_CFLAGS)
data_libtokenizer_la_LIBADD += $(ONIGURUMA_LIBS) $(UTF8PROC_LIBS) $(JANSSON_LIBS) -lpthread
endif

bin_PROGRAMS += data/mtllm-data
data_mtllm_data_SOURCES = \
	data/commands.h \
	data/corpus.c data/corpus.h \
	data/encoder.c data/encoder.h \
	data/info.c \
	data/input.c data/input.h \
	data/merge.c \
	data/mtllm_data.c \
	data/options.c data/options.h \
	data/outputs.c data/outputs.h \
	data/progress.c data/progress.h \
	data/resume.c data/resume.h \
	data/show.c \
	data/split.c \
	data/streams.c data/streams.h \
	data/token_set.c data/token_set.h \
	data/tokenize.c
nodist_EXTRA_data_mtllm_data_SOURCES = data/links_with_cxx.cc
data_mtllm_data_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(XXHASH_CFLAGS) $(ZLIB_CFLAGS) \
	$(ZSTD_CFLAGS) -pthread
data_mtllm_data_LDADD = data/libdata.la data/libtokenizer.la $(JANSSON_LIBS) $(ZLIB_LIBS) \
	$(ZSTD_LIBS) -lpthread -lm

if HAVE_CMOCKA
check_PROGRAMS += data/test_data
TESTS += data/test_data
data_test_data_SOURCES = data/test_data.c
data_test_data_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
data_test_data_LDADD = data/libdata.la $(CMOCKA_LIBS)

check_PROGRAMS += data/test_dataset data/test_samples data/test_source
TESTS += data/test_dataset data/test_samples data/test_source
test_rows_sources = data/test_rows.c data/test_rows.h
data_test_dataset_SOURCES = data/test_dataset.c $(test_rows_sources) \
	data/test_sha256.c data/test_sha256.h
data_test_dataset_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
data_test_dataset_LDADD = data/libdata.la $(CMOCKA_LIBS)
data_test_samples_SOURCES = data/test_samples.c $(test_rows_sources)
data_test_samples_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
data_test_samples_LDADD = data/libdata.la $(CMOCKA_LIBS)
data_test_source_SOURCES = data/test_source.c $(test_rows_sources)
data_test_source_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
data_test_source_LDADD = data/libdata.la $(CMOCKA_LIBS)

check_PROGRAMS += data/test_tokenizer
TESTS += data/test_tokenizer
data_test_tokenizer_SOURCES = data/test_tokenizer.c
nodist_EXTRA_data_test_tokenizer_SOURCES = data/links_with_cxx.cc
data_test_tokenizer_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(JANSSON_CFLAGS)
data_test_tokenizer_LDADD = data/libtokenizer.la $(CMOCKA_LIBS) $(JANSSON_LIBS)

check_PROGRAMS += data/test_chat
TESTS += data/test_chat
data_test_chat_SOURCES = data/test_chat.c
nodist_EXTRA_data_test_chat_SOURCES = data/links_with_cxx.cc
data_test_chat_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(JANSSON_CFLAGS)
data_test_chat_LDADD = data/libtokenizer.la $(CMOCKA_LIBS) $(JANSSON_LIBS)
endif

TESTS += data/test_conversations.bats data/test_mtllm_data.bats
EXTRA_DIST += data/test_conversations.bats data/test_mtllm_data.bats \
	tests/golden/tokenizers/sentencepiece/golden.jsonl \
	tests/golden/tokenizers/sentencepiece/tokenizer.model \
	tests/golden/tokenizers/falcon/golden.jsonl tests/golden/tokenizers/falcon/tokenizer.json \
	tests/golden/tokenizers/gpt2/golden.jsonl tests/golden/tokenizers/gpt2/tokenizer.json \
	tests/golden/tokenizers/llama2/golden.jsonl tests/golden/tokenizers/llama2/tokenizer.json \
	tests/golden/tokenizers/llama3/golden.jsonl tests/golden/tokenizers/llama3/tokenizer.json \
	tests/golden/tokenizers/qwen/golden.jsonl tests/golden/tokenizers/qwen/tokenizer.json
