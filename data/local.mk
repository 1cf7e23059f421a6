noinst_LTLIBRARIES += data/libdata.la

data_libdata_la_SOURCES = \
	data/dataset.c data/dataset.h \
	data/random.c data/random.h \
	data/sample_index.c \
	data/token_file.c data/token_file.h data/token_format.h \
	data/token_writer.c
data_libdata_la_LIBADD = core/libcore.la -lm

if HAVE_CMOCKA
check_PROGRAMS += data/test_data
TESTS += data/test_data
data_test_data_SOURCES = data/test_data.c data/test_sha256.c data/test_sha256.h
data_test_data_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
data_test_data_LDADD = data/libdata.la $(CMOCKA_LIBS)
endif
