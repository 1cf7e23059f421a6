/* Checkpoints on disk: sharded HDF5, whole tensors by their Hugging Face names.
 *
 * RUN/ckpt/step-NNNNNNNN/ holds index.h5, one shard-RRRRR.h5 a writing rank and manifest.json;
 * mtllm-checkpoint(5) is the authority on the format. This library knows files, not ranks: who
 * writes which shard when, and when all of them are done, is the caller's business.
 *
 * Writing, by every rank:   checkpoint_write_shard()          (any thread, one at a time)
 *         then by one rank: checkpoint_commit()               (after all shards were written)
 * Reading: checkpoint_find() the newest good one, checkpoint_open() it, checkpoint_read() pieces.
 * A checkpoint is complete or absent: readers trust nothing whose checksum they have not seen hold.
 */
#ifndef MTLLM_CKPT_CHECKPOINT_H
#define MTLLM_CKPT_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"

/* What of a tensor is stored. MASTER is absent where the weights are fp32 themselves. */
enum checkpoint_kind {
    CHECKPOINT_WEIGHT,
    CHECKPOINT_MASTER,
    CHECKPOINT_EXP_AVG,
    CHECKPOINT_EXP_AVG_SQ,
    CHECKPOINT_KINDS
};

/* "weight", "master", "exp_avg", "exp_avg_sq" */
const char *checkpoint_kind_name(enum checkpoint_kind kind);

/* A rectangle of a whole tensor. Vectors have extent[1] == 1 and start[1] == 0. */
struct checkpoint_piece {
    const char *tensor; /* Hugging Face name */
    enum checkpoint_kind kind;
    enum dtype dtype;
    int dimensions;   /* 1 or 2 */
    int64_t shape[2]; /* of the whole tensor, [out, in]; [n, 1] for vectors */
    int64_t start[2], extent[2];
    const void *data; /* host memory, extent[0] * extent[1] elements, row-major, contiguous */
};

/* A file kept in the checkpoint as it is (tokenizer.model, ...). */
struct checkpoint_file {
    char *name; /* without directories */
    void *bytes;
    size_t size;
};

/* Everything that is not a tensor. Text members are UTF-8. */
struct checkpoint_state {
    int64_t step;                 /* updates made */
    int64_t samples;              /* consumed */
    int64_t tokens;               /* consumed */
    int64_t skipped;              /* steps without an update */
    int64_t trained_samples;      /* consumed by updates made */
    double loss_scale;            /* of fp16; 1 otherwise */
    int64_t scale_clean_steps;    /* updates without an overflow since the scale last grew */
    int64_t scale_overflows_left; /* overflows until it shrinks */
    char *config;                 /* the model as Hugging Face's config.json */
    char *settings;               /* the run's settings, as settings_write() prints them */
    char *run_id;                 /* names the run across requeues */
    char layout[32];              /* of the writer, "tp2 pp2 dp1" */
    struct checkpoint_file *files;
    size_t file_count;
};

/* Write shard `number` of the checkpoint of `step` under `root` (RUN/ckpt): reserve the space,
 * write, checksum, fsync. The temporary directory is made when missing. On failure this shard's
 * file is removed. Error: EXIT_STATUS_IO, naming file and bytes needed. */
int checkpoint_write_shard(const char *root, int64_t step, int number,
                           const struct checkpoint_piece *pieces, size_t count,
                           struct error *error);

/* Make the checkpoint of `shards` shards complete: index, manifest, fsyncs, rename, `latest`.
 * Called by one process after every shard was written. Refuses pieces that do not tile their
 * tensors exactly (EXIT_STATUS_BUG), naming the tensor. A complete checkpoint of the same step is
 * replaced atomically. On failure the attempt's files are removed, all shards among them, except
 * when the failure came after the checkpoint was in its place. */
int checkpoint_commit(const char *root, int shards, const struct checkpoint_state *state,
                      struct error *error);

/* Remove what an interrupted or abandoned attempt left (.step-*.tmp, .trash-*), and give a
 * checkpoint whose replacement was interrupted its name back. Only while nobody writes; before
 * checkpoint_find() when a run starts. */
int checkpoint_clean(const char *root, struct error *error);

/* Remove complete checkpoints beyond the newest `keep` good ones; never the newest that is good,
 * nor one that is newer than the one `latest` names: a run that fell back goes on behind it. */
int checkpoint_prune(const char *root, int keep, struct error *error);

/* Why a checkpoint was passed over. */
typedef void (*checkpoint_complaint)(void *user, const char *text);

/* The steps of complete-looking checkpoints under `root`, newest first; *steps is the caller's to
 * free. A missing root is an empty list. */
int checkpoint_list(const char *root, int64_t **steps, size_t *count, struct error *error);

/* Directory of the newest checkpoint whose manifest and index hold and whose shards are there with
 * the right sizes; with `deep`, every byte's checksum too. Those passed over are reported to
 * `complain` (may be NULL) with file and reason. Returns 1 and fills `path`, 0 when there is none.
 */
int checkpoint_find(const char *root, bool deep, char *path, size_t size,
                    checkpoint_complaint complain, void *user, struct error *error);

/* The directory of `step` under `root`. */
void checkpoint_path(const char *root, int64_t step, char *path, size_t size);

/* The directory of one checkpoint that a user's `path` means: itself, or the newest good one of a
 * run directory or its ckpt/, as checkpoint_open() takes it; those passed over are reported.
 * Error: EXIT_STATUS_DATA. */
int checkpoint_resolve(const char *path, char *directory, size_t size,
                       checkpoint_complaint complain, void *user, struct error *error);

/* Is this directory one checkpoint, whole or not, rather than a run or its ckpt/? */
bool checkpoint_is_one(const char *path);

/* The directory of checkpoints that a run directory, or that directory itself, means. */
void checkpoint_root(const char *path, char *root, size_t size);

struct checkpoint; /* open for reading */

struct checkpoint_tensor {
    const char *name;
    int dimensions;
    int64_t shape[2];
    bool present[CHECKPOINT_KINDS];
    enum dtype dtype[CHECKPOINT_KINDS];
};

/* Open a complete checkpoint directory: manifest and index are verified, shards must be there with
 * the right sizes. `path` may also be a run directory or its ckpt/: the newest good one is taken.
 * Error: EXIT_STATUS_DATA, naming the file. */
int checkpoint_open(struct checkpoint **checkpoint, const char *path, struct error *error);
void checkpoint_close(struct checkpoint *checkpoint);

const char *checkpoint_directory(const struct checkpoint *checkpoint);
const struct checkpoint_state *checkpoint_get_state(const struct checkpoint *checkpoint);
size_t checkpoint_tensor_count(const struct checkpoint *checkpoint);
const struct checkpoint_tensor *checkpoint_get_tensor(const struct checkpoint *checkpoint,
                                                      size_t i);
const struct checkpoint_tensor *checkpoint_find_tensor(const struct checkpoint *checkpoint,
                                                       const char *name);

/* Read the rectangle start, extent of one kind of a tensor into data[extent[0] * extent[1]],
 * converted to `dtype`. The checksum of every byte used is verified; only the blocks needed are
 * read. Thread-safe on one open checkpoint. Error: EXIT_STATUS_DATA, naming shard, tensor and
 * byte. */
int checkpoint_read(struct checkpoint *checkpoint, const char *name, enum checkpoint_kind kind,
                    const int64_t start[2], const int64_t extent[2], enum dtype dtype, void *data,
                    struct error *error);

/* Check every byte of every file. Each thing found is reported to `complain`; returns how many, or
 * -1 with `error` when the checkpoint cannot be looked at at all. */
int checkpoint_verify(const char *path, checkpoint_complaint complain, void *user,
                      struct error *error);

#endif
