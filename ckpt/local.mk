# What is built in ckpt/.
noinst_LTLIBRARIES += ckpt/libhf.la

# Hugging Face models: config.json and safetensors; needs no HDF5.
ckpt_libhf_la_SOURCES = \
	ckpt/file.c ckpt/file.h \
	ckpt/hf_config.c ckpt/hf_config.h \
	ckpt/hf_tensors.c ckpt/hf_tensors.h \
	ckpt/safetensors.c ckpt/safetensors.h \
	ckpt/safetensors_header.c ckpt/safetensors_header.h \
	ckpt/safetensors_writer.c
ckpt_libhf_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
ckpt_libhf_la_LIBADD = core/libcore.la $(JANSSON_LIBS)

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
