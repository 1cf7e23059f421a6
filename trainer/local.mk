noinst_LTLIBRARIES += trainer/libtrainer.la
include_HEADERS = trainer/mtllm-metric.h

trainer_libtrainer_la_SOURCES = \
	trainer/appended_file.c trainer/appended_file.h \
	trainer/comm.c trainer/comm.h trainer/comm_backend.h trainer/comm_nccl.c \
	trainer/comm_window.c trainer/comm_window.h \
	trainer/metric_host.c trainer/metric_host.h \
	trainer/job_comment.c trainer/job_comment.h \
	trainer/metrics.c trainer/metrics.h trainer/metrics_file.c \
	trainer/metrics_outputs.c trainer/metrics_outputs.h \
	trainer/metrics_scalars.c trainer/metrics_scalars.h \
	trainer/outlier.c trainer/outlier.h \
	trainer/pipeline_order.c trainer/pipeline_order.h \
	trainer/protobuf.c trainer/protobuf.h \
	trainer/replacement.c trainer/replacement.h \
	trainer/schedule.c trainer/schedule.h \
	trainer/stop.c trainer/stop.h \
	trainer/tensorboard.c trainer/tensorboard.h \
	trainer/wandb.c trainer/wandb.h \
	trainer/wandb_directory.c trainer/wandb_directory.h \
	trainer/wandb_file.c trainer/wandb_file.h \
	trainer/world.c trainer/world.h
if HAVE_MPI
trainer_libtrainer_la_SOURCES += trainer/comm_mpi.c
endif
trainer_libtrainer_la_CFLAGS = $(AM_CFLAGS) $(PMIX_CFLAGS) $(MPI_CFLAGS) $(JANSSON_CFLAGS)
trainer_libtrainer_la_LIBADD = kernels/libkernels.la ckpt/libdisk.la core/libcore.la $(PMIX_LIBS) $(MPI_LIBS) $(JANSSON_LIBS) -lpthread -lm

# The second has MPI messages so short that every path of long ones is taken.
EXTRA_DIST += trainer/test_comm.sh
if HAVE_MPI
check_PROGRAMS += trainer/test_comm trainer/test_comm_pieces
TESTS += trainer/test_comm.sh
trainer_test_comm_SOURCES = trainer/test_comm.c
trainer_test_comm_LDADD = trainer/libtrainer.la
trainer_test_comm_pieces_SOURCES = trainer/test_comm.c trainer/comm_mpi.c
trainer_test_comm_pieces_CFLAGS = $(AM_CFLAGS) $(MPI_CFLAGS) -DMESSAGE_BYTES=1000
trainer_test_comm_pieces_LDADD = trainer/libtrainer.la
endif

if HAVE_CMOCKA
trainer_unit_tests = trainer/test_job_comment trainer/test_metrics trainer/test_outputs \
	trainer/test_pipeline_order trainer/test_protobuf trainer/test_schedule trainer/test_stop \
	trainer/test_world
check_PROGRAMS += $(trainer_unit_tests)
TESTS += $(trainer_unit_tests)
trainer_test_job_comment_SOURCES = trainer/test_job_comment.c
trainer_test_job_comment_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_job_comment_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS)
trainer_test_metrics_SOURCES = trainer/test_metrics.c
trainer_test_metrics_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(JANSSON_CFLAGS)
trainer_test_metrics_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS) $(JANSSON_LIBS) -lm
trainer_test_outputs_SOURCES = trainer/test_outputs.c trainer/test_bytes.h
trainer_test_outputs_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_outputs_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS) -lm
trainer_test_pipeline_order_SOURCES = trainer/test_pipeline_order.c
trainer_test_pipeline_order_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_pipeline_order_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS)
trainer_test_protobuf_SOURCES = trainer/test_protobuf.c trainer/test_bytes.h
trainer_test_protobuf_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_protobuf_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS)
trainer_test_schedule_SOURCES = trainer/test_schedule.c
trainer_test_schedule_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_schedule_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS)
trainer_test_stop_SOURCES = trainer/test_stop.c
trainer_test_stop_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_stop_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS)
trainer_test_world_SOURCES = trainer/test_world.c
trainer_test_world_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_world_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS)
endif

# What the training itself is made of.
noinst_LTLIBRARIES += trainer/libtraining.la
trainer_libtraining_la_SOURCES = \
	trainer/batch.c trainer/batch.h \
	trainer/block.c trainer/ends.c \
	trainer/contact.c trainer/contact.h \
	trainer/console.c trainer/console.h \
	trainer/context_parallel.c \
	trainer/dump.c trainer/dump.h trainer/logits.c trainer/logits.h \
	trainer/metrics_plugin.c trainer/metrics_plugin.h \
	trainer/data.c \
	trainer/default_layout.c \
	trainer/device.c trainer/device.h \
	trainer/dropout.c \
	trainer/evaluate.c \
	trainer/feed.c trainer/feed.h \
	trainer/gradients.c \
	trainer/loss_scale.c trainer/loss_scale.h \
	trainer/norm.c \
	trainer/optimizer.c trainer/optimizer.h \
	trainer/parameter.c trainer/parameter.h \
	trainer/peers.c trainer/peers.h \
	trainer/pipeline.c trainer/pipeline.h \
	trainer/plan.c trainer/plan.h trainer/plan_device.c trainer/plan_list.c \
	trainer/products.c trainer/products.h \
	trainer/profile.c trainer/profile.h trainer/profile_clock.c trainer/profile_file.c \
	trainer/restore.c trainer/restore.h \
	trainer/run_directory.c trainer/run_directory.h \
	trainer/saver.c trainer/saver.h \
	trainer/stage.c trainer/stage.h \
	trainer/step_list.c trainer/step_list.h \
	trainer/timeline.c trainer/timeline.h \
	trainer/team.c trainer/team.h \
	trainer/tensor_parallel.c \
	trainer/train.c trainer/training.c trainer/training.h
trainer_libtraining_la_CFLAGS = $(AM_CFLAGS) $(HDF5_CFLAGS) $(JANSSON_CFLAGS)
trainer_libtraining_la_LIBADD = trainer/libtrainer.la kernels/libkernels.la ckpt/libconvert.la \
	data/libdata.la core/libcore.la $(HDF5_LIBS) $(JANSSON_LIBS)

bin_PROGRAMS += mtllm-train
mtllm_train_SOURCES = trainer/main.c
mtllm_train_LDADD = trainer/libtraining.la

bin_PROGRAMS += mtllm-plan
mtllm_plan_SOURCES = trainer/mtllm_plan.c
mtllm_plan_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
mtllm_plan_LDADD = trainer/libtraining.la $(JANSSON_LIBS)

if HAVE_CMOCKA
check_PROGRAMS += trainer/test_model trainer/test_loss_scale
trainer_test_loss_scale_SOURCES = trainer/test_loss_scale.c
trainer_test_loss_scale_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_loss_scale_LDADD = trainer/libtraining.la $(CMOCKA_LIBS)
check_PROGRAMS += trainer/test_profile
trainer_test_profile_SOURCES = trainer/test_profile.c
trainer_test_profile_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_profile_LDADD = trainer/libtraining.la $(CMOCKA_LIBS)
check_PROGRAMS += trainer/test_plan
trainer_test_plan_SOURCES = trainer/test_plan.c
trainer_test_plan_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_plan_LDADD = trainer/libtraining.la $(CMOCKA_LIBS) -lm
TESTS += trainer/test_model trainer/test_loss_scale trainer/test_profile trainer/test_plan
trainer_test_model_SOURCES = trainer/test_model.c
trainer_test_model_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS)
trainer_test_model_LDADD = trainer/libtraining.la $(CMOCKA_LIBS)
endif

# Also on a GPU; see check-gpu.
check_PROGRAMS += trainer/test_packing
TESTS += trainer/test_packing
trainer_test_packing_SOURCES = trainer/test_packing.c
trainer_test_packing_LDADD = trainer/libtraining.la

# For tests/peers.bats; with little patience.
if HAVE_MPI
check_PROGRAMS += trainer/test_peers
trainer_test_peers_SOURCES = trainer/test_peers.c trainer/peers.c
trainer_test_peers_CFLAGS = $(AM_CFLAGS) -DPEERS_PATIENCE_S=2
trainer_test_peers_LDADD = trainer/libtraining.la
endif

# On a GPU; see check-gpu.
check_PROGRAMS += trainer/test_comm_nccl
trainer_test_comm_nccl_SOURCES = trainer/test_comm_nccl.c
trainer_test_comm_nccl_LDADD = trainer/libtrainer.la
