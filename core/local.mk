# The plugin brings its own inih.
noinst_LTLIBRARIES += core/libcore.la core/libcore_without_inih.la

core_libcore_without_inih_la_SOURCES = \
	core/batch_ramp.c core/batch_ramp.h \
	core/clock.h \
	core/dtype.c core/dtype.h \
	core/error.c core/error.h \
	core/layout.c core/layout.h \
	core/log.c core/log.h \
	core/model.c core/model.h \
	core/rope.c core/rope.h \
	core/settings.c core/settings.def core/settings.h \
	core/standard_streams.c core/standard_streams.h \
	core/token_names.c core/token_names.h \
	core/utf8.c core/utf8.h
core_libcore_without_inih_la_CFLAGS = $(AM_CFLAGS) $(INIH_CFLAGS)
core_libcore_la_SOURCES =
core_libcore_la_LIBADD = core/libcore_without_inih.la $(INIH_LIBS) -lm

if HAVE_CMOCKA
check_PROGRAMS += core/test_core
TESTS += core/test_core
core_test_core_SOURCES = core/test_core.c
core_test_core_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
core_test_core_LDADD = core/libcore.la $(CMOCKA_LIBS)
endif
