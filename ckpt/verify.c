/* Checking every byte of a checkpoint. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/format.h"
#include "ckpt/reader.h"

struct verification {
    struct checkpoint *checkpoint;
    checkpoint_complaint complain;
    void *user;
};

/* Whose bytes lie in [first, last] of a shard: the first tensor, and how many more. */
static void name_tensors(const struct checkpoint *checkpoint, uint32_t shard, uint64_t first,
                         uint64_t last, char *text, size_t size)
{
    const struct table *table = &checkpoint->index.table;
    const struct table_piece *found = NULL;
    size_t more = 0;
    int length;

    for (size_t i = 0; i < table->piece_count; i++) {
        const struct table_piece *piece = &table->pieces[i];

        if (piece->shard != shard || piece->offset > last ||
            piece->offset + table_piece_bytes(piece) <= first)
            continue;
        if (found)
            more++;
        else
            found = piece;
    }
    if (!found) {
        snprintf(text, size, "the shard's own description");
        return;
    }
    length = snprintf(text, size, "%s (%s)", table->tensors[found->tensor].name,
                      checkpoint_kind_name((enum checkpoint_kind)found->kind));
    if (more && length > 0 && (size_t)length < size)
        snprintf(text + length, size - (size_t)length, " and %zu more", more);
}

static void report(const struct verification *verification, uint32_t shard, uint64_t first_block,
                   uint64_t last_block, int number)
{
    const struct checkpoint *checkpoint = verification->checkpoint;
    uint64_t first = first_block * FORMAT_BLOCK,
             last =
                 last_block * FORMAT_BLOCK + reader_block_size(checkpoint, shard, last_block) - 1;
    char name[FORMAT_NAME_SIZE], tensors[1200];
    struct error reason;

    if (!verification->complain)
        return;
    format_shard_name(name, (int)shard);
    name_tensors(checkpoint, shard, first, last, tensors, sizeof(tensors));
    if (number)
        error_set(&reason, EXIT_STATUS_DATA, "%.500s/%s: bytes %llu to %llu cannot be read: %s: %s",
                  checkpoint->directory, name, (unsigned long long)first, (unsigned long long)last,
                  strerror(number), tensors);
    else
        error_set(&reason, EXIT_STATUS_DATA,
                  "%.500s/%s: bytes %llu to %llu differ from their checksum: %s",
                  checkpoint->directory, name, (unsigned long long)first, (unsigned long long)last,
                  tensors);
    verification->complain(verification->user, reason.text);
}

/* Neighbouring bad blocks that are bad in the same way are one fault. */
static int verify_shard(const struct verification *verification, uint32_t shard, char *buffer)
{
    uint64_t blocks = format_block_count(verification->checkpoint->index.shards[shard].size);
    uint64_t since = 0;
    int faults = 0, state = 0, before = 0; /* 0 good, -1 differs, else errno */

    if (reader_shard_fd(verification->checkpoint, shard) < 0 && errno == ENOENT)
        return 0; /* reported as missing */
    for (uint64_t i = 0; i <= blocks; i++, before = state) {
        int result =
            i == blocks ? 0 : reader_read_block(verification->checkpoint, shard, i, buffer);

        state = result < 0 ? errno : -result;
        if (state == before)
            continue;
        if (before != 0) {
            report(verification, shard, since, i - 1, before < 0 ? 0 : before);
            faults++;
        }
        since = i;
    }
    return faults;
}

int checkpoint_verify(const char *path, checkpoint_complaint complain, void *user,
                      struct error *error)
{
    struct checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    struct verification verification = {checkpoint, complain, user};
    char *buffer = malloc(FORMAT_BLOCK);
    char directory[DISK_PATH_SIZE];
    bool index_good = false;
    int faults = -1;

    if (!checkpoint || !buffer) {
        error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to verify it", path);
        goto out;
    }
    if (checkpoint_resolve(path, directory, sizeof(directory), complain, user, error) < 0)
        goto out;
    faults = reader_check(checkpoint, directory, &index_good, complain, user, error);
    for (uint32_t i = 0; index_good && i < checkpoint->manifest.shard_count; i++)
        faults += verify_shard(&verification, i, buffer);
    reader_release(checkpoint);
out:
    free(buffer);
    free(checkpoint);
    return faults;
}
