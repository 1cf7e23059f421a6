noinst_LTLIBRARIES += kernels/libkernels.la

kernels_libkernels_la_SOURCES = \
	kernels/attention_workspace.h kernels/kernels.h kernels/nccl.h kernels/normal.h kernels/peer_memory.h \
	kernels/philox.h \
	kernels/module.c kernels/module.h \
	kernels/cpu/attention.c kernels/cpu/attention.h kernels/cpu/attention_backward.c \
	kernels/cpu/bias.c \
	kernels/cpu/cpu.c kernels/cpu/cpu.h \
	kernels/cpu/cross_entropy.c \
	kernels/cpu/embedding.c \
	kernels/cpu/dropout.c \
	kernels/cpu/gelu.c \
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
kernels_tests = kernels/test_kernels kernels/test_norm kernels/test_optimizer kernels/test_vocabulary
check_PROGRAMS += $(kernels_tests)
TESTS += $(kernels_tests)
kernels_test_kernels_SOURCES = kernels/test_kernels.c \
	kernels/test_reference.c kernels/test_reference.h
kernels_test_kernels_CFLAGS = $(AM_CFLAGS) $(OPENMP_CFLAGS) $(CMOCKA_CFLAGS)
kernels_test_kernels_LDADD = kernels/libkernels.la core/libcore.la $(CMOCKA_LIBS) -lm
kernels_test_norm_SOURCES = kernels/test_norm.c \
	kernels/test_reference.c kernels/test_reference.h
kernels_test_norm_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
kernels_test_norm_LDADD = kernels/libkernels.la core/libcore.la $(CMOCKA_LIBS) -lm
kernels_test_optimizer_SOURCES = kernels/test_optimizer.c \
	kernels/test_reference.c kernels/test_reference.h
kernels_test_optimizer_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
kernels_test_optimizer_LDADD = kernels/libkernels.la core/libcore.la $(CMOCKA_LIBS) -lm
kernels_test_vocabulary_SOURCES = kernels/test_vocabulary.c \
	kernels/test_reference.c kernels/test_reference.h
kernels_test_vocabulary_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
kernels_test_vocabulary_LDADD = kernels/libkernels.la core/libcore.la $(CMOCKA_LIBS) -lm
endif

# The CUDA backend: a shared object beside the programs' other files, built by nvcc for A100 (sm_80)
# and H100/H200 (sm_90a), with PTX for what comes after them.
cuda_sources = \
	kernels/cuda/attention.cu \
	kernels/cuda/attention_mma.cu kernels/cuda/attention_mma_backward.cu \
	kernels/cuda/attention_simt.cu \
	kernels/cuda/attention_wgmma.cu kernels/cuda/attention_wgmma_backward.cu \
	kernels/cuda/bias.cu \
	kernels/cuda/cross_entropy.cu \
	kernels/cuda/elementwise.cu \
	kernels/cuda/embedding.cu \
	kernels/cuda/dropout.cu \
	kernels/cuda/gelu.cu \
	kernels/cuda/linear.cu \
	kernels/cuda/module.cu \
	kernels/cuda/nccl.cu \
	kernels/cuda/norm.cu \
	kernels/cuda/optimizer.cu \
	kernels/cuda/peer_memory.cu \
	kernels/cuda/rope.cu \
	kernels/cuda/swiglu.cu
cuda_headers = \
	kernels/cuda/attention.h kernels/cuda/attention_mma.h \
	kernels/cuda/columns.h \
	kernels/cuda/cuda.h \
	kernels/cuda/memory.h \
	kernels/cuda/mma.h \
	kernels/cuda/wgmma.h
cudnn_sources = kernels/cuda/attention_cudnn.cu kernels/cuda/cudnn_graph.cu
gpu_scripts = tests/gpu/check.sh tests/gpu/common.sh tests/gpu/layouts.sh tests/gpu/peer.py \
	tests/gpu/peer_attention.py tests/gpu/slurm.sh tests/gpu/training.sh tests/bench/gpu.sh
EXTRA_DIST += $(cuda_sources) $(cuda_headers) $(cudnn_sources) kernels/cuda/cudnn_graph.h \
	$(gpu_scripts) kernels/cuda/NOTES.md

if HAVE_CUDA
modulesdir = $(pkglibdir)
modules_DATA = mtllm-cuda.so
cuda_objects = $(cuda_sources:.cu=.o)
if HAVE_CUDNN
cuda_objects += $(cudnn_sources:.cu=.o)
endif
CLEANFILES += mtllm-cuda.so $(cuda_objects)
NVCCFLAGS = -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden,-Wall \
	-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
	-gencode arch=compute_90,code=compute_90
$(cuda_objects): $(cuda_headers) kernels/cuda/cudnn_graph.h kernels/attention_workspace.h kernels/kernels.h kernels/module.h kernels/nccl.h kernels/normal.h kernels/peer_memory.h kernels/philox.h core/error.h
SUFFIXES = .cu
.cu.o:
	$(AM_V_GEN)$(MKDIR_P) $(@D) && $(NVCC) $(NVCCFLAGS) -I$(top_srcdir) -c -o $@ $<
link_cuda = $(NVCC) -shared -cudart static -o $@
cuda_libraries = core/.libs/libcore_without_inih.a -L$(cuda_directory)/lib64 -lcublasLt \
	-Xlinker -rpath=$(cuda_directory)/lib64 -Xlinker --exclude-libs=ALL \
	-Xlinker -z -Xlinker defs
mtllm-cuda.so: $(cuda_objects) core/libcore_without_inih.la
	$(AM_V_GEN)$(link_cuda) $(cuda_objects) $(cuda_libraries)

# The same for racecheck; see tests/gpu/check.sh.
racecheck_objects = $(cuda_objects:_mma_backward.o=_mma_backward.racecheck.o)
CLEANFILES += racecheck/mtllm-cuda.so kernels/cuda/attention_mma_backward.racecheck.o
kernels/cuda/attention_mma_backward.racecheck.o: kernels/cuda/attention_mma_backward.cu $(cuda_headers)
	$(AM_V_GEN)$(NVCC) $(NVCCFLAGS) -DBARRIERS_ARE_WAITED_AT=true -I$(top_srcdir) -c -o $@ $<
racecheck/mtllm-cuda.so: $(racecheck_objects) core/libcore_without_inih.la
	$(AM_V_GEN)$(MKDIR_P) $(@D) && $(link_cuda) $(racecheck_objects) $(cuda_libraries)

# What needs a GPU: make check-gpu, and tests/bench/gpu.sh for the rates.
gpu_programs = kernels/cuda/test_attention kernels/cuda/test_linear kernels/cuda/test_memory \
	kernels/cuda/bench_attention kernels/cuda/bench_memory
check_PROGRAMS += $(gpu_programs)
gpu_libs = kernels/libkernels.la core/libcore.la -lm
test_device = kernels/cuda/test_device.c kernels/cuda/test_device.h
kernels_cuda_test_attention_SOURCES = kernels/cuda/test_attention.c $(test_device)
kernels_cuda_test_attention_LDADD = $(gpu_libs)
kernels_cuda_test_linear_SOURCES = kernels/cuda/test_linear.c $(test_device)
kernels_cuda_test_linear_LDADD = $(gpu_libs)
kernels_cuda_test_memory_SOURCES = kernels/cuda/test_memory.c kernels/cuda/test_memory.h \
	kernels/cuda/test_memory_norm.c kernels/cuda/test_memory_optimizer.c $(test_device)
kernels_cuda_test_memory_LDADD = $(gpu_libs)
kernels_cuda_bench_attention_SOURCES = kernels/cuda/bench_attention.c $(test_device)
kernels_cuda_bench_attention_LDADD = $(gpu_libs)
kernels_cuda_bench_memory_SOURCES = kernels/cuda/bench_memory.c $(test_device)
kernels_cuda_bench_memory_LDADD = $(gpu_libs)
check-gpu: all racecheck/mtllm-cuda.so $(check_PROGRAMS)
	$(top_srcdir)/tests/gpu/check.sh . || [ $$? = 77 ]
.PHONY: check-gpu
else
EXTRA_DIST += kernels/cuda/test_attention.c kernels/cuda/test_linear.c \
	kernels/cuda/test_memory.c kernels/cuda/test_memory.h \
	kernels/cuda/test_memory_norm.c kernels/cuda/test_memory_optimizer.c \
	kernels/cuda/bench_attention.c kernels/cuda/bench_memory.c \
	kernels/cuda/test_device.c kernels/cuda/test_device.h
endif
