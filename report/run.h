/* One run, as its directory tells of it. Nothing there is changed, and nothing has to be there
 * but one of metrics.jsonl, settings.ini and ckpt/: a run may be young, going on, or broken. */
#ifndef MTLLM_REPORT_RUN_H
#define MTLLM_REPORT_RUN_H

#include <stdbool.h>

#include "ckpt/listing.h"
#include "report/history.h"

/* A line of settings.ini; values longer than that are cut. */
struct run_setting {
    char name[64], value[512], origin[256];
};

/* The trainer began, anew or from a checkpoint. */
struct run_start {
    double time, step; /* seconds since 1970; updates made before */
    size_t record;     /* the first that the trainer wrote then; their count: none */
    char job[64];      /* "" if unknown */
    char layout[64];   /* "tp2 cp1 pp1 dp4"; "" if unknown */
};

struct run {
    char *path;
    char *name; /* the last part of the path, or all of it where others have the same */
    struct history history;
    struct run_setting *settings;
    size_t setting_count;
    struct run_start *starts; /* in order of time; the first is no restart */
    size_t start_count;
    bool starts_guessed; /* from gaps between records: there was no starts.jsonl */
    struct listing_row *checkpoints;
    size_t checkpoint_count;
    /* Derived from the training records, [count] each. */
    double *elapsed; /* seconds since the run began; NULL without times */
};

/* Error: EXIT_STATUS_DATA when the path is no run; EXIT_STATUS_IO. */
int run_load(struct run *run, const char *path, struct error *error);
void run_free(struct run *run);

/* "" where the run has no such setting. */
const char *run_setting(const struct run *run, const char *name);
/* When it began: the first start, or the first record; NAN when unknown. */
double run_begin_time(const struct run *run);

#endif
