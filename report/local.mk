# What is built in report/.
noinst_LTLIBRARIES += report/libreport.la
report_libreport_la_SOURCES = \
	report/chart.c report/chart.h \
	report/charts.c report/charts.h \
	report/downsample.c report/downsample.h \
	report/history.c report/history.h \
	report/markup.c report/markup.h \
	report/page.c report/page.h \
	report/plot.c report/plot.h \
	report/restarts.c report/restarts.h \
	report/run.c report/run.h \
	report/ticks.c report/ticks.h
report_libreport_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
report_libreport_la_LIBADD = ckpt/libckpt.la core/libcore.la $(JANSSON_LIBS) -lm

bin_PROGRAMS += mtllm-report
mtllm_report_SOURCES = report/mtllm_report.c
mtllm_report_LDADD = report/libreport.la

if HAVE_CMOCKA
check_PROGRAMS += report/test_report
TESTS += report/test_report
report_test_report_SOURCES = report/test_report.c
report_test_report_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
report_test_report_LDADD = report/libreport.la $(CMOCKA_LIBS) -lm
endif

TESTS += tests/report.bats
EXTRA_DIST += tests/report.bats
