noinst_LTLIBRARIES += kernels/libkernels.la

kernels_libkernels_la_SOURCES = \
	kernels/kernels.h kernels/philox.h \
	kernels/module.c kernels/module.h \
	kernels/cpu/attention.c kernels/cpu/attention.h kernels/cpu/attention_backward.c \
	kernels/cpu/cpu.c kernels/cpu/cpu.h \
	kernels/cpu/cross_entropy.c \
	kernels/cpu/embedding.c \
	kernels/cpu/linear.c \
	kernels/cpu/norm.c \
	kernels/cpu/optimizer.c \
	kernels/cpu/random.c \
	kernels/cpu/rope.c \
	kernels/cpu/swiglu.c \
	kernels/cpu/vector.h
# Square roots and conditional loads vectorize only when errno and exception flags do not matter.
kernels_libkernels_la_CFLAGS = $(AM_CFLAGS) $(OPENMP_CFLAGS) $(BLAS_CFLAGS) \
	-O3 -fno-math-errno -fno-trapping-math
kernels_libkernels_la_LDFLAGS = $(OPENMP_CFLAGS)
kernels_libkernels_la_LIBADD = $(BLAS_LIBS) -lm

check_PROGRAMS += kernels/bench_kernels
kernels_bench_kernels_SOURCES = kernels/bench_kernels.c
kernels_bench_kernels_CFLAGS = $(AM_CFLAGS) $(OPENMP_CFLAGS) $(BLAS_CFLAGS)
kernels_bench_kernels_LDADD = kernels/libkernels.la core/libcore.la $(BLAS_LIBS) -lm

if HAVE_CMOCKA
kernels_tests = kernels/test_kernels kernels/test_optimizer kernels/test_vocabulary
check_PROGRAMS += $(kernels_tests)
TESTS += $(kernels_tests)
kernels_test_kernels_SOURCES = kernels/test_kernels.c \
	kernels/test_reference.c kernels/test_reference.h
kernels_test_kernels_CFLAGS = $(AM_CFLAGS) $(OPENMP_CFLAGS) $(CMOCKA_CFLAGS)
kernels_test_kernels_LDADD = kernels/libkernels.la core/libcore.la $(CMOCKA_LIBS) -lm
kernels_test_optimizer_SOURCES = kernels/test_optimizer.c \
	kernels/test_reference.c kernels/test_reference.h
kernels_test_optimizer_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
kernels_test_optimizer_LDADD = kernels/libkernels.la core/libcore.la $(CMOCKA_LIBS) -lm
kernels_test_vocabulary_SOURCES = kernels/test_vocabulary.c \
	kernels/test_reference.c kernels/test_reference.h
kernels_test_vocabulary_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
kernels_test_vocabulary_LDADD = kernels/libkernels.la core/libcore.la $(CMOCKA_LIBS) -lm
endif
