# What is built in ckpt/.
noinst_LTLIBRARIES += ckpt/libhf.la

# Hugging Face models: config.json and safetensors; needs no HDF5.
ckpt_libhf_la_SOURCES = \
	ckpt/hf_config.c ckpt/hf_config.h
ckpt_libhf_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
ckpt_libhf_la_LIBADD = core/libcore.la $(JANSSON_LIBS)

if HAVE_CMOCKA
hf_tests = ckpt/test_hf_config
check_PROGRAMS += $(hf_tests)
TESTS += $(hf_tests)
ckpt_test_hf_config_SOURCES = ckpt/test_hf_config.c
ckpt_test_hf_config_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(JANSSON_CFLAGS)
ckpt_test_hf_config_LDADD = ckpt/libhf.la core/libcore.la $(CMOCKA_LIBS) $(JANSSON_LIBS)
endif
