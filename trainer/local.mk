noinst_LTLIBRARIES += trainer/libtrainer.la

trainer_libtrainer_la_SOURCES = \
	trainer/comm.c trainer/comm.h trainer/comm_backend.h \
	trainer/metrics.c trainer/metrics.h trainer/metrics_file.c \
	trainer/schedule.c trainer/schedule.h \
	trainer/stop.c trainer/stop.h \
	trainer/world.c trainer/world.h
if HAVE_MPI
trainer_libtrainer_la_SOURCES += trainer/comm_mpi.c
endif
trainer_libtrainer_la_CFLAGS = $(AM_CFLAGS) $(PMIX_CFLAGS) $(MPI_CFLAGS) $(JANSSON_CFLAGS)
trainer_libtrainer_la_LIBADD = core/libcore.la $(PMIX_LIBS) $(MPI_LIBS) $(JANSSON_LIBS) -lpthread -lm

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
trainer_unit_tests = trainer/test_metrics trainer/test_schedule trainer/test_stop trainer/test_world
check_PROGRAMS += $(trainer_unit_tests)
TESTS += $(trainer_unit_tests)
trainer_test_metrics_SOURCES = trainer/test_metrics.c
trainer_test_metrics_CFLAGS = $(AM_CFLAGS) $(CMOCKA_CFLAGS) $(JANSSON_CFLAGS)
trainer_test_metrics_LDADD = trainer/libtrainer.la $(CMOCKA_LIBS) $(JANSSON_LIBS) -lm
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
