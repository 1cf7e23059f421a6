# How the tests are run, alone and by tests/run.sh.

# Every test of a bats file counts by itself, with the time that it took.
BATS_LOG_DRIVER = env AM_TAP_AWK='$(AWK)' $(SHELL) $(top_srcdir)/tap-driver.sh
AM_BATS_LOG_DRIVER_FLAGS = --ignore-exit
AM_BATS_LOG_FLAGS = --tap --timing --print-output-on-failure

# The tests that need no daemons: what runs under the sanitizers, and first.
check-unit: check-programs
	@$(MAKE) $(AM_MAKEFLAGS) check TESTS="`$(MAKE) -s --no-print-directory show-unit-tests | tr '\n' ' '`"
# One after the other: two makes at once would build the same objects.
check-programs: all
	@$(MAKE) $(AM_MAKEFLAGS) $(check_PROGRAMS) $(check_SCRIPTS)
show-tests:
	@printf '%s\n' $(TESTS)
show-unit-tests:
	@for name in $(TESTS); do case $$name in *.bats) ;; *) echo $$name ;; esac; done

# For tests/hygiene.sh: one flag a line, fit for any C file; and every man page.
show-compiler-flags:
	@printf '%s\n' -std=gnu11 $(DEFS) -I$(abs_top_builddir) -I$(abs_top_srcdir) $(AM_CPPFLAGS) \
		$(CPPFLAGS) $(INIH_CFLAGS) $(PMIX_CFLAGS) $(HDF5_CFLAGS) $(JANSSON_CFLAGS) \
		$(XXHASH_CFLAGS) $(BLAS_CFLAGS) $(OPENMP_CFLAGS) $(MPI_CFLAGS) $(CMOCKA_CFLAGS) \
		$(SLURM_CFLAGS)
show-man-pages: $(dist_man_MANS) $(nodist_man_MANS)
	@for page in $(dist_man_MANS); do echo $(abs_top_srcdir)/$$page; done
	@for page in $(nodist_man_MANS); do echo $(abs_top_builddir)/$$page; done
check-hygiene:
	@for look in format cppcheck clang-tidy man scripts; do \
		$(abs_top_srcdir)/tests/hygiene.sh $$look . || exit 1; \
	done
.PHONY: check-unit check-programs check-hygiene show-tests show-unit-tests show-compiler-flags \
	show-man-pages

EXTRA_DIST += .clang-tidy .ci/run tests/cppcheck.txt tests/hygiene.sh tests/packages.sh \
	tests/packages.txt tests/run.sh

# The scripts that people meet first.
TESTS += tests/quickstart.bats
EXTRA_DIST += tests/quickstart.bats examples/quickstart.sh
examplesdir = $(pkgdatadir)/examples
dist_examples_SCRIPTS = examples/train.sh
dist_examples_DATA = examples/metric.c

TESTS += tests/bad_input.bats tests/data.bats
EXTRA_DIST += tests/bad_input.bats tests/data.bats
