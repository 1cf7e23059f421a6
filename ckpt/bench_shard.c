/* bench_shard DIR MEGABYTES [ROUNDS]: how fast checkpoint_write_shard() is, over plain write and
 * fsync of the same bytes to the same directory, taking turns; the median of the ratios. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/checkpoint.h"
#include "ckpt/disk.h"
#include "core/clock.h"

enum { PIECES = 64, MOST_ROUNDS = 99, CHUNK = 1 << 20 };

static double plain_s(const char *directory, const char *bytes, size_t size, struct error *error)
{
    char path[DISK_PATH_SIZE];
    double begun;
    int fd;

    if (disk_path(path, error, "%s/plain", directory) < 0)
        return -1;
    begun = clock_now_s(CLOCK_MONOTONIC);
    fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0666);
    if (fd < 0)
        return error_set_errno(error, "%s", path);
    for (size_t done = 0; done < size;) {
        ssize_t written = write(fd, bytes + done, size - done < CHUNK ? size - done : CHUNK);

        if (written <= 0) {
            close(fd);
            return error_set_errno(error, "%s", path);
        }
        done += (size_t)written;
    }
    if (fsync(fd) < 0 || close(fd) < 0)
        return error_set_errno(error, "%s", path);
    begun = clock_now_s(CLOCK_MONOTONIC) - begun;
    return unlink(path) < 0 ? error_set_errno(error, "%s", path) : begun;
}

/* Pieces of different sizes, most of them without a multiple of anything. */
static double shard_s(const char *directory, const char *bytes, size_t size, struct error *error)
{
    static char names[PIECES][16];
    struct checkpoint_piece pieces[PIECES];
    size_t used = 0;
    double begun;

    for (int i = 0; i < PIECES; i++) {
        size_t elements = i == PIECES - 1 ? (size - used) / 4 : size / 4 / PIECES / (1 + i % 3);

        snprintf(names[i], sizeof(names[i]), "t%d", i);
        pieces[i] = (struct checkpoint_piece){.tensor = names[i],
                                              .kind = (enum checkpoint_kind)(i % CHECKPOINT_KINDS),
                                              .dtype = DTYPE_F32,
                                              .dimensions = 1,
                                              .shape = {(int64_t)elements, 1},
                                              .extent = {(int64_t)elements, 1},
                                              .data = bytes + used};
        used += elements * 4;
    }
    begun = clock_now_s(CLOCK_MONOTONIC);
    if (checkpoint_write_shard(directory, 1, 0, pieces, PIECES, error) < 0)
        return -1;
    begun = clock_now_s(CLOCK_MONOTONIC) - begun;
    return checkpoint_clean(directory, error) < 0 ? -1 : begun;
}

static int compare(const void *a, const void *b)
{
    double one = *(const double *)a, other = *(const double *)b;

    return one < other ? -1 : one > other;
}

int main(int argc, char **argv)
{
    size_t size = argc > 2 ? (size_t)atol(argv[2]) << 20 : 0;
    int rounds = argc > 3 ? atoi(argv[3]) : 5;
    double ratio[MOST_ROUNDS], plain[MOST_ROUNDS], shard[MOST_ROUNDS];
    struct error error = {0};
    char *bytes;

    if (argc < 3 || argc > 4 || size == 0 || rounds < 1 || rounds > MOST_ROUNDS) {
        fprintf(stderr, "usage: %s DIRECTORY MEGABYTES [ROUNDS]\n", argv[0]);
        return EXIT_STATUS_USAGE;
    }
    bytes = malloc(size);
    if (!bytes) {
        error_set(&error, EXIT_STATUS_SYSTEM, "no memory for %zu bytes", size);
        return error_print(&error);
    }
    for (size_t i = 0; i < size; i++)
        bytes[i] = (char)(i * 2654435761u >> 13);
    if (disk_make_directory(argv[1], &error) < 0)
        goto out;
    for (int i = -1; i < rounds; i++) { /* the first pair warms up */
        /* Each goes first every other time. */
        double first = i % 2 == 0 ? plain_s(argv[1], bytes, size, &error) : 0;
        double written = shard_s(argv[1], bytes, size, &error);

        if (i % 2 != 0)
            first = plain_s(argv[1], bytes, size, &error);
        if (first < 0 || written < 0)
            goto out;
        if (i < 0)
            continue;
        plain[i] = (double)size / first * 1e-6;
        shard[i] = (double)size / written * 1e-6;
        ratio[i] = shard[i] / plain[i];
        printf("round %d: plain %.0f MB/s, shard %.0f MB/s, ratio %.2f\n", i + 1, plain[i],
               shard[i], ratio[i]);
    }
    qsort(ratio, (size_t)rounds, sizeof(*ratio), compare);
    qsort(plain, (size_t)rounds, sizeof(*plain), compare);
    qsort(shard, (size_t)rounds, sizeof(*shard), compare);
    printf("shard_over_plain %.3f (median of %d; plain %.0f MB/s, shard %.0f MB/s)\n",
           ratio[rounds / 2], rounds, plain[rounds / 2], shard[rounds / 2]);
out:
    free(bytes);
    return error.status ? error_print(&error) : 0;
}
