/* Opening a checkpoint: nothing is parsed by libhdf5 whose checksum was not seen to hold. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt/checksum.h"
#include "ckpt/directory.h"
#include "ckpt/format.h"
#include "ckpt/reader.h"

/* A report that is counted and passed on. */
struct report {
    checkpoint_complaint complain;
    void *user;
    int count;
};

static void say(struct report *report, const struct error *reason)
{
    report->count++;
    if (report->complain)
        report->complain(report->user, reason->text);
}

/* The name of a part of a checkpoint and what the manifest says of it; i 0 is the index. */
static const struct manifest_part *part_of(const struct manifest *manifest, size_t i,
                                           char name[FORMAT_NAME_SIZE])
{
    if (i == 0) {
        snprintf(name, FORMAT_NAME_SIZE, "%s", FORMAT_INDEX);
        return &manifest->index;
    }
    format_shard_name(name, (int)i - 1);
    return &manifest->shards[i - 1];
}

/* Is every file there, with its size? Returns whether the index is. */
static bool check_sizes(const struct checkpoint *checkpoint, struct report *report)
{
    bool index_there = true;

    for (size_t i = 0; i <= checkpoint->manifest.shard_count; i++) {
        char name[FORMAT_NAME_SIZE];
        const struct manifest_part *part = part_of(&checkpoint->manifest, i, name);
        struct error reason = {0};
        struct stat status;

        if (fstatat(checkpoint->directory_fd, name, &status, 0) < 0) {
            if (errno == ENOENT)
                error_set(&reason, EXIT_STATUS_DATA, "%s/%s: is missing", checkpoint->directory,
                          name);
            else
                error_set_errno(&reason, "%s/%s", checkpoint->directory, name);
        } else if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size != part->size) {
            error_set(&reason, EXIT_STATUS_DATA, "%s/%s: has %lld bytes, not the %llu written",
                      checkpoint->directory, name, (long long)status.st_size,
                      (unsigned long long)part->size);
        }
        if (reason.status) {
            say(report, &reason);
            index_there = index_there && i != 0;
        }
    }
    return index_there;
}

static int compare_index(const struct checkpoint *checkpoint, const char *path, struct error *error)
{
    for (size_t i = 0; i < checkpoint->manifest.shard_count; i++)
        if (index_shard_checksum(&checkpoint->index.shards[i]) !=
            checkpoint->manifest.shards[i].checksum)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s: its checksums of shard %zu are not those that the manifest means",
                             path, i);
    if (checkpoint->state.step != checkpoint->manifest.step)
        return error_set(error, EXIT_STATUS_DATA, "%s: of step %lld, the manifest of step %lld",
                         path, (long long)checkpoint->state.step,
                         (long long)checkpoint->manifest.step);
    return 0;
}

static int read_index(struct checkpoint *checkpoint, struct error *error)
{
    const struct manifest *manifest = &checkpoint->manifest;
    char path[DISK_PATH_SIZE];
    void *bytes = NULL;
    size_t size;
    int result = -1;

    if (disk_path(path, error, "%s/%s", checkpoint->directory, FORMAT_INDEX) < 0 ||
        disk_read_file(path, manifest->index.size, &bytes, &size, error) < 0)
        return -1;
    if (size != manifest->index.size || checksum(bytes, size) != manifest->index.checksum) {
        error_set(error, EXIT_STATUS_DATA, "%s: its checksum does not hold; it was altered", path);
        goto out;
    }
    checkpoint->index.shards = calloc(manifest->shard_count + 1, sizeof(struct index_shard));
    checkpoint->shard_fds = calloc(manifest->shard_count + 1, sizeof(int));
    if (!checkpoint->index.shards || !checkpoint->shard_fds) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to read it", path);
        goto out;
    }
    checkpoint->index.shard_count = manifest->shard_count;
    for (size_t i = 0; i < manifest->shard_count; i++) {
        checkpoint->index.shards[i].size = manifest->shards[i].size;
        checkpoint->shard_fds[i] = -1;
    }
    if (index_parse(&checkpoint->index, &checkpoint->state, bytes, size, path, error) == 0)
        result = compare_index(checkpoint, path, error);
out:
    free(bytes);
    return result;
}

/* A directory that was given another step's name would be taken for that step. */
static int check_step(const struct checkpoint *checkpoint, struct error *error)
{
    const char *slash = strrchr(checkpoint->directory, '/');
    int64_t step = directory_step(slash ? slash + 1 : checkpoint->directory);

    if (step >= 0 && step != checkpoint->manifest.step)
        return error_set(error, EXIT_STATUS_DATA, "%s/%s: is of step %lld", checkpoint->directory,
                         FORMAT_MANIFEST, (long long)checkpoint->manifest.step);
    return 0;
}

int reader_check(struct checkpoint *checkpoint, const char *directory, bool *index_good,
                 checkpoint_complaint complain, void *user, struct error *error)
{
    struct report report = {complain, user, 0};
    char path[DISK_PATH_SIZE];
    struct error reason = {0};
    size_t length;

    *index_good = false;
    checkpoint->directory_fd = -1;
    pthread_mutex_init(&checkpoint->lock, NULL);
    if (disk_path(checkpoint->directory, error, "%s", directory) < 0)
        return -1;
    for (length = strlen(checkpoint->directory);
         length > 1 && checkpoint->directory[length - 1] == '/'; length--)
        checkpoint->directory[length - 1] = '\0';
    if (disk_path(path, error, "%s/%s", checkpoint->directory, FORMAT_MANIFEST) < 0)
        return -1;
    checkpoint->directory_fd = open(checkpoint->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (checkpoint->directory_fd < 0) {
        bool missing = errno == ENOENT || errno == ENOTDIR;

        error_set_errno(error, "%s: cannot open this checkpoint", checkpoint->directory);
        if (missing)
            error->status = EXIT_STATUS_DATA;
        return -1;
    }
    if (manifest_read(&checkpoint->manifest, path, &reason) < 0 ||
        check_step(checkpoint, &reason) < 0) {
        say(&report, &reason);
        return report.count;
    }
    if (!check_sizes(checkpoint, &report))
        return report.count;
    *index_good = read_index(checkpoint, &reason) == 0;
    if (!*index_good && reason.status == EXIT_STATUS_SYSTEM) {
        *error = reason;
        return -1;
    }
    if (!*index_good)
        say(&report, &reason);
    return report.count;
}

void reader_release(struct checkpoint *checkpoint)
{
    for (size_t i = 0; checkpoint->shard_fds && i < checkpoint->manifest.shard_count; i++)
        if (checkpoint->shard_fds[i] >= 0)
            close(checkpoint->shard_fds[i]);
    for (size_t i = 0; i < checkpoint->cache_blocks; i++)
        free(checkpoint->cache[i].bytes);
    free(checkpoint->cache);
    if (checkpoint->directory_fd >= 0)
        close(checkpoint->directory_fd);
    pthread_mutex_destroy(&checkpoint->lock);
    free(checkpoint->shard_fds);
    free(checkpoint->tensors);
    index_free(&checkpoint->index);
    index_state_free(&checkpoint->state);
    manifest_free(&checkpoint->manifest);
}

/* The first complaint of several is the one to report. */
static void keep_first(void *user, const char *text)
{
    struct error *first = user;

    if (first->status == 0)
        error_set(first, EXIT_STATUS_DATA, "%s", text);
}

bool checkpoint_is_one(const char *path)
{
    static const char *const signs[] = {FORMAT_MANIFEST, FORMAT_INDEX};
    char inside[DISK_PATH_SIZE], *real;
    struct error ignored;
    bool named;

    for (int i = 0; i < 2; i++)
        if (disk_path(inside, &ignored, "%s/%s", path, signs[i]) == 0 && access(inside, F_OK) == 0)
            return true;
    real = realpath(path, NULL);
    named = real && directory_step(strrchr(real, '/') + 1) >= 0;
    free(real);
    return named;
}

struct passed_over {
    checkpoint_complaint complain;
    void *user;
    struct error first;
};

static void pass_on(void *user, const char *text)
{
    struct passed_over *passed = user;

    keep_first(&passed->first, text);
    if (passed->complain)
        passed->complain(passed->user, text);
}

void checkpoint_root(const char *path, char *root, size_t size)
{
    char inside[DISK_PATH_SIZE];
    struct error ignored;

    if (disk_path(inside, &ignored, "%s/ckpt", path) == 0 && disk_is_directory(inside))
        snprintf(root, size, "%s", inside);
    else
        snprintf(root, size, "%s", path);
}

int checkpoint_resolve(const char *path, char *directory, size_t size,
                       checkpoint_complaint complain, void *user, struct error *error)
{
    struct passed_over passed = {complain, user, {0}};
    char root[DISK_PATH_SIZE];
    int found;

    if (!disk_is_directory(path))
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: no such directory; name a run, its ckpt/ or one checkpoint in it",
                         path);
    if (checkpoint_is_one(path)) {
        snprintf(directory, size, "%s", path);
        return 0;
    }
    checkpoint_root(path, root, sizeof(root));
    found = checkpoint_find(root, false, directory, size, pass_on, &passed, error);
    if (found == 0 && passed.first.status)
        error_set(error, EXIT_STATUS_DATA, "%s: no good checkpoint in it; the newest: %.1500s",
                  root, passed.first.text);
    else if (found == 0)
        error_set(error, EXIT_STATUS_DATA,
                  "%s: neither a checkpoint (manifest.json) nor a directory of some (step-*)",
                  root);
    return found == 1 ? 0 : -1;
}

static int prepare(struct checkpoint *checkpoint, struct error *error)
{
    const struct table *table = &checkpoint->index.table;
    size_t blocks = 2 * checkpoint->manifest.shard_count;

    if (blocks < READER_LEAST_BLOCKS)
        blocks = READER_LEAST_BLOCKS;
    if (blocks > READER_MOST_BLOCKS)
        blocks = READER_MOST_BLOCKS;
    checkpoint->tensors = calloc(table->tensor_count + 1, sizeof(*checkpoint->tensors));
    checkpoint->cache = calloc(blocks, sizeof(*checkpoint->cache));
    if (!checkpoint->tensors || !checkpoint->cache)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to open it",
                         checkpoint->directory);
    checkpoint->cache_blocks = blocks;
    for (size_t i = 0; i < table->tensor_count; i++) {
        const struct table_tensor *from = &table->tensors[i];
        struct checkpoint_tensor *to = &checkpoint->tensors[i];

        *to = (struct checkpoint_tensor){.name = from->name,
                                         .dimensions = from->dimensions,
                                         .shape = {from->shape[0], from->shape[1]}};
        for (int kind = 0; kind < CHECKPOINT_KINDS; kind++)
            if (from->count[kind]) {
                to->present[kind] = true;
                to->dtype[kind] = (enum dtype)from->dtype[kind];
            }
    }
    return 0;
}

int checkpoint_open(struct checkpoint **opened, const char *path, struct error *error)
{
    struct checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    char directory[DISK_PATH_SIZE];
    struct error first = {0};
    bool index_good;
    int faults;

    *opened = NULL;
    if (!checkpoint)
        return error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to open it", path);
    if (checkpoint_resolve(path, directory, sizeof(directory), NULL, NULL, error) < 0) {
        free(checkpoint);
        return -1;
    }
    faults = reader_check(checkpoint, directory, &index_good, keep_first, &first, error);
    if (faults > 0)
        *error = first;
    if (faults != 0 || prepare(checkpoint, error) < 0) {
        reader_release(checkpoint);
        free(checkpoint);
        return -1;
    }
    *opened = checkpoint;
    return 0;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    reader_release(checkpoint);
    free(checkpoint);
}

const char *checkpoint_directory(const struct checkpoint *checkpoint)
{
    return checkpoint->directory;
}

const struct checkpoint_state *checkpoint_get_state(const struct checkpoint *checkpoint)
{
    return &checkpoint->state;
}

size_t checkpoint_tensor_count(const struct checkpoint *checkpoint)
{
    return checkpoint->index.table.tensor_count;
}

const struct checkpoint_tensor *checkpoint_get_tensor(const struct checkpoint *checkpoint, size_t i)
{
    return &checkpoint->tensors[i];
}

const struct checkpoint_tensor *checkpoint_find_tensor(const struct checkpoint *checkpoint,
                                                       const char *name)
{
    int64_t number = table_find(&checkpoint->index.table, name);

    return number < 0 ? NULL : &checkpoint->tensors[number];
}
