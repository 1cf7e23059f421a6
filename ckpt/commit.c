/* Making a checkpoint complete, and putting complete ones away.
 *
 * Until the rename of the temporary directory nothing of a checkpoint can be seen; everything in it
 * was fsynced before. mtllm-checkpoint(5), "Durability", has the order of steps and what a crash
 * after each of them leaves.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "ckpt/checkpoint.h"
#include "ckpt/checksum.h"
#include "ckpt/directory.h"
#include "ckpt/disk.h"
#include "ckpt/format.h"
#include "ckpt/index.h"
#include "ckpt/manifest.h"
#include "ckpt/sidecar.h"

struct commit {
    const char *root;
    const struct checkpoint_state *state;
    char step_name[FORMAT_NAME_SIZE];
    char temporary[DISK_PATH_SIZE], final[DISK_PATH_SIZE];
    struct index index;
    struct manifest manifest;
};

/* Take one shard's pieces and checksums over into the index. */
static int join_shard(struct commit *commit, int number, struct error *error)
{
    struct table *table = &commit->index.table;
    struct index_shard *shard = &commit->index.shards[number];
    char shard_path[DISK_PATH_SIZE], sidecar_path[DISK_PATH_SIZE];
    char shard_name[FORMAT_NAME_SIZE], sidecar_name[FORMAT_NAME_SIZE];
    struct sidecar sidecar = {0};
    struct stat status;
    int64_t *numbers = NULL;
    int result = -1;

    format_shard_name(shard_name, number);
    format_sidecar_name(sidecar_name, number);
    if (disk_path(shard_path, error, "%s/%s", commit->temporary, shard_name) < 0 ||
        disk_path(sidecar_path, error, "%s/%s", commit->temporary, sidecar_name) < 0 ||
        sidecar_read(sidecar_path, &sidecar, error) < 0)
        return -1;
    if (stat(shard_path, &status) < 0) {
        error_set_errno(error, "%s", shard_path);
        goto out;
    }
    if (sidecar.step != commit->state->step || sidecar.number != number ||
        (uint64_t)status.st_size != sidecar.size) {
        error_set(error, EXIT_STATUS_DATA, "%s: is not the shard that %s describes", shard_path,
                  sidecar_name);
        goto out;
    }
    numbers = calloc(sidecar.table.tensor_count + 1, sizeof(*numbers));
    if (!numbers) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory", shard_path);
        goto out;
    }
    for (size_t i = 0; i < sidecar.table.tensor_count; i++) {
        const struct table_tensor *tensor = &sidecar.table.tensors[i];

        numbers[i] =
            table_add_tensor(table, tensor->name, tensor->dimensions, tensor->shape, error);
        if (numbers[i] < 0)
            goto out;
    }
    for (size_t i = 0; i < sidecar.table.piece_count; i++) {
        struct table_piece piece = sidecar.table.pieces[i];

        piece.tensor = (uint32_t)numbers[piece.tensor];
        if (table_add_piece(table, &piece, error) < 0)
            goto out;
    }
    *shard = (struct index_shard){.size = sidecar.size, .blocks = sidecar.blocks};
    sidecar.blocks = NULL;
    result = 0;
out:
    free(numbers);
    sidecar_free(&sidecar);
    return result;
}

static int join_shards(struct commit *commit, int shards, struct error *error)
{
    commit->index.shards = calloc((size_t)shards + 1, sizeof(*commit->index.shards));
    commit->manifest.shards = calloc((size_t)shards + 1, sizeof(*commit->manifest.shards));
    if (!commit->index.shards || !commit->manifest.shards)
        return error_set(error, EXIT_STATUS_SYSTEM, "no memory for %d shards", shards);
    commit->index.shard_count = commit->manifest.shard_count = (size_t)shards;
    for (int i = 0; i < shards; i++) {
        if (join_shard(commit, i, error) < 0)
            return -1;
        commit->manifest.shards[i] =
            (struct manifest_part){.size = commit->index.shards[i].size,
                                   .checksum = index_shard_checksum(&commit->index.shards[i])};
    }
    return table_finish(&commit->index.table, error);
}

static int write_descriptions(struct commit *commit, struct error *error)
{
    struct manifest *manifest = &commit->manifest;
    char index_path[DISK_PATH_SIZE], manifest_path[DISK_PATH_SIZE];
    time_t now = time(NULL);
    struct tm utc;
    void *bytes = NULL;
    size_t size;
    int result;

    gmtime_r(&now, &utc);
    strftime(manifest->created, sizeof(manifest->created), "%Y-%m-%dT%H:%M:%SZ", &utc);
    snprintf(manifest->producer, sizeof(manifest->producer), "mtllm %s", MTLLM_VERSION);
    snprintf(manifest->layout, sizeof(manifest->layout), "%s", commit->state->layout);
    manifest->step = commit->state->step;
    if (disk_path(index_path, error, "%s/%s", commit->temporary, FORMAT_INDEX) < 0 ||
        disk_path(manifest_path, error, "%s/%s", commit->temporary, FORMAT_MANIFEST) < 0 ||
        index_compose(&commit->index, commit->state, manifest->created, &bytes, &size, error) < 0)
        return -1;
    manifest->index = (struct manifest_part){.size = size, .checksum = checksum(bytes, size)};
    result = disk_write_file(index_path, bytes, size, error);
    if (result == 0)
        result = manifest_write(manifest, manifest_path, error);
    free(bytes);
    return result;
}

/* Does this file belong to the checkpoint, now that it is described? */
static bool belongs(const struct commit *commit, const char *name)
{
    char expected[FORMAT_NAME_SIZE];
    int number;

    if (strcmp(name, FORMAT_INDEX) == 0 || strcmp(name, FORMAT_MANIFEST) == 0)
        return true;
    if (sscanf(name, "shard-%d", &number) != 1 || number < 0 ||
        (size_t)number >= commit->manifest.shard_count)
        return false;
    format_shard_name(expected, number);
    return strcmp(name, expected) == 0;
}

/* The sidecars, and what an earlier attempt with more shards may have left. */
static int remove_strangers(const struct commit *commit, struct error *error)
{
    struct disk_names names;
    int result = 0;

    if (disk_list(commit->temporary, &names, error) < 0)
        return -1;
    for (size_t i = 0; i < names.count && result == 0; i++) {
        char path[DISK_PATH_SIZE];

        if (belongs(commit, names.names[i]))
            continue;
        result = disk_path(path, error, "%s/%s", commit->temporary, names.names[i]);
        if (result == 0)
            result = disk_remove_tree(path, error);
    }
    disk_names_free(&names);
    return result;
}

/* Put the finished directory in its place; one that is there goes, but never before. */
static int publish(const struct commit *commit, struct error *error)
{
    char aside[DISK_PATH_SIZE];
    int exchanged;

    if (!disk_is_directory(commit->final))
        return disk_rename(commit->temporary, commit->final, error);
    exchanged = disk_exchange(commit->temporary, commit->final, error);
    if (exchanged != 0)
        return exchanged < 0 ? -1 : 0;
    /* Two renames where the file system knows no exchange; checkpoint_clean() mends a crash between
     * them. */
    if (disk_path(aside, error, "%s/" DIRECTORY_REPLACED "%s", commit->root, commit->step_name) <
            0 ||
        disk_remove_tree(aside, error) < 0 || disk_rename(commit->final, aside, error) < 0)
        return -1;
    if (disk_rename(commit->temporary, commit->final, error) < 0) {
        struct error second;

        (void)disk_rename(aside, commit->final, &second);
        return -1;
    }
    return 0;
}

/* What was replaced, under either name that publish() may have given it. It is in nobody's way, so
 * a failure is not the commit's. */
static void remove_replaced(const struct commit *commit)
{
    char aside[DISK_PATH_SIZE];
    struct error ignored;

    (void)disk_remove_tree(commit->temporary, &ignored);
    if (disk_path(aside, &ignored, "%s/" DIRECTORY_REPLACED "%s", commit->root,
                  commit->step_name) == 0)
        (void)disk_remove_tree(aside, &ignored);
}

static int move_latest(const struct commit *commit, struct error *error)
{
    char path[DISK_PATH_SIZE];

    if (disk_path(path, error, "%s/%s", commit->root, FORMAT_LATEST) < 0 ||
        disk_link(commit->step_name, path, error) < 0)
        return -1;
    return disk_sync_directory(commit->root, error);
}

int checkpoint_commit(const char *root, int shards, const struct checkpoint_state *state,
                      struct error *error)
{
    struct commit *commit = calloc(1, sizeof(*commit));
    bool published = false;
    int result = -1;

    if (!commit)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to commit a checkpoint", root);
    commit->root = root;
    commit->state = state;
    format_step_name(commit->step_name, state->step);
    if (disk_path(commit->temporary, error, "%s/.%s.tmp", root, commit->step_name) < 0 ||
        disk_path(commit->final, error, "%s/%s", root, commit->step_name) < 0)
        goto out;
    if (join_shards(commit, shards, error) < 0 || write_descriptions(commit, error) < 0 ||
        remove_strangers(commit, error) < 0 || disk_sync_directory(commit->temporary, error) < 0 ||
        publish(commit, error) < 0)
        goto out;
    published = true;
    if (disk_sync_directory(root, error) < 0 || move_latest(commit, error) < 0)
        goto out;
    result = 0;
out:
    if (result == 0) {
        remove_replaced(commit);
    } else if (!published) {
        /* An abandoned attempt gives its room back; the next one starts afresh. */
        struct error ignored;

        (void)disk_remove_tree(commit->temporary, &ignored);
        error_prefix(error, "checkpoint of step %lld: ", (long long)state->step);
    }
    index_free(&commit->index);
    manifest_free(&commit->manifest);
    free(commit);
    return result;
}
