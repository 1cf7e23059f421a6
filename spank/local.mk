# What is built in spank/: the plugin, of one file that Slurm calls and a library that tests can
# link too. Slurm's own functions come from the program that loads it.
if HAVE_SLURM
slurmplugindir = $(slurm_plugindir)
slurmplugin_LTLIBRARIES = mtllm.la
noinst_LTLIBRARIES += spank/libspank.la

spank_libspank_la_SOURCES = \
	spank/arguments.c spank/arguments.h \
	spank/dispatch.c \
	spank/job.c spank/job.h \
	spank/options.c spank/options.h \
	spank/requeue.c spank/requeue.h \
	spank/slurm.h \
	spank/submit.c spank/submit.h \
	spank/task.c spank/task.h
spank_libspank_la_CPPFLAGS = $(AM_CPPFLAGS) $(SLURM_CFLAGS)

# In few segments, without a read-only one for relocations: each is a system call and a page fault
# or two in every sbatch (tests/bench/plugin.sh).
mtllm_la_SOURCES =
mtllm_la_LIBADD = spank/libspank.la core/libcore_without_inih.la $(PLUGIN_INIH_LIBS) -lm
mtllm_la_LDFLAGS = -module -avoid-version -shared -Wl,--as-needed \
	-Wl,-z,noseparate-code -Wl,-z,norelro \
	-Wl,--version-script=$(srcdir)/spank/mtllm.map
EXTRA_mtllm_la_DEPENDENCIES = spank/mtllm.map

# Slurm looks at every file there; libtool's own is of no use to it.
install-exec-hook:
	rm -f $(DESTDIR)$(slurmplugindir)/mtllm.la
uninstall-hook:
	rm -f $(DESTDIR)$(slurmplugindir)/mtllm.so
endif
EXTRA_DIST += spank/mtllm.map

# The plugin's directory belongs to Slurm; a build that is only tried goes somewhere else.
AM_DISTCHECK_CONFIGURE_FLAGS = --with-slurm-plugindir='$${libdir}/slurm'

if HAVE_SLURM
if HAVE_CMOCKA
check_PROGRAMS += spank/test_spank
TESTS += spank/test_spank
spank_test_spank_SOURCES = spank/test_spank.c spank/fake_slurm.c spank/fake_slurm.h
spank_test_spank_CPPFLAGS = $(AM_CPPFLAGS) $(SLURM_CFLAGS)
spank_test_spank_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
spank_test_spank_LDFLAGS = -Wl,--wrap=fopen -Wl,--wrap=access
spank_test_spank_LDADD = spank/libspank.la core/libcore.la $(CMOCKA_LIBS)
endif
endif
