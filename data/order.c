#include "data/order.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <xxhash.h>

#include "core/log.h"

/* A file: this, then the arrays, each at the next multiple of its size. */
struct header {
    char magic[8];
    struct order_key key;
    int64_t bytes[ORDER_ARRAYS];
    uint64_t content; /* XXH3 of all behind the header */
    uint64_t header;  /* XXH3 of all before this */
};

static const char magic[8] = "MTORDER1";
enum { ALIGNMENT = 64, STALE_S = 24 * 3600 };
static_assert(sizeof(struct header) == ALIGNMENT, "the arrays begin behind the header");

void order_destroy(struct order *order)
{
    if (order->map)
        munmap(order->map, order->map_bytes);
    else
        for (int i = 0; i < ORDER_ARRAYS; i++)
            free(order->arrays[i]);
    *order = (struct order){0};
}

struct order_key order_key_of(const char *text)
{
    XXH128_hash_t hash = XXH3_128bits(text, strlen(text));

    return (struct order_key){{hash.high64, hash.low64}};
}

static int path_of(char path[PATH_MAX], const char *directory, const struct order_key *key)
{
    int length = snprintf(path, PATH_MAX, "%s/%016llx%016llx.order", directory,
                          (unsigned long long)key->words[0], (unsigned long long)key->words[1]);

    return length > 0 && length < PATH_MAX ? 0 : -1;
}

static size_t aligned(int64_t bytes)
{
    return ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Whether the file says what it is, and its size goes with it. */
static bool check(const struct header *header, size_t size, const struct order_key *key)
{
    size_t expected = sizeof(*header);

    if (size < sizeof(*header) || memcmp(header->magic, magic, sizeof(magic)) != 0 ||
        memcmp(&header->key, key, sizeof(*key)) != 0 ||
        header->header != XXH3_64bits(header, offsetof(struct header, header)))
        return false;
    for (int i = 0; i < ORDER_ARRAYS; i++) {
        if (header->bytes[i] < 0 || (size_t)header->bytes[i] > size)
            return false;
        expected += aligned(header->bytes[i]);
    }
    return size == expected && header->content == XXH3_64bits(header + 1, size - sizeof(*header));
}

bool order_load(struct order *order, const char *directory, const struct order_key *key)
{
    char path[PATH_MAX], *at;
    const struct header *header;
    struct stat status;
    void *map = MAP_FAILED;
    int fd;

    *order = (struct order){0};
    if (path_of(path, directory, key) < 0 || (fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        return false;
    if (fstat(fd, &status) == 0 && status.st_size > 0)
        map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED || !check(map, (size_t)status.st_size, key)) {
        log_warning("%s: damaged; the order of samples is made anew", path);
        if (map != MAP_FAILED)
            munmap(map, (size_t)status.st_size);
        return false;
    }
    header = map;
    order->map = map;
    order->map_bytes = (size_t)status.st_size;
    at = (char *)map + sizeof(*header);
    for (int i = 0; i < ORDER_ARRAYS; i++) {
        order->arrays[i] = at;
        order->bytes[i] = header->bytes[i];
        at += aligned(header->bytes[i]);
    }
    return true;
}

/* What was being written when its writer died. */
static void remove_stale(const char *directory)
{
    DIR *stream = opendir(directory);
    time_t now = time(NULL);
    const struct dirent *entry;
    struct stat status;

    while (stream && (entry = readdir(stream)))
        if (strstr(entry->d_name, ".order.partial-") &&
            fstatat(dirfd(stream), entry->d_name, &status, 0) == 0 &&
            now - status.st_mtime > STALE_S)
            unlinkat(dirfd(stream), entry->d_name, 0);
    if (stream)
        closedir(stream);
}

/* Hash or write the arrays with their padding. */
static int walk(const struct order *order, XXH3_state_t *hash, FILE *stream)
{
    static const char padding[ALIGNMENT];

    for (int i = 0; i < ORDER_ARRAYS; i++) {
        size_t bytes = (size_t)order->bytes[i], rest = aligned(order->bytes[i]) - bytes;

        if (hash && bytes > 0)
            XXH3_64bits_update(hash, order->arrays[i], bytes);
        if (hash)
            XXH3_64bits_update(hash, padding, rest);
        if (stream && ((bytes > 0 && fwrite(order->arrays[i], 1, bytes, stream) != bytes) ||
                       fwrite(padding, 1, rest, stream) != rest))
            return -1;
    }
    return 0;
}

static int write_order(const struct order *order, const struct order_key *key, FILE *stream)
{
    XXH3_state_t *hash = XXH3_createState();
    struct header header = {.key = *key};

    if (!hash) {
        errno = ENOMEM;
        return -1;
    }
    XXH3_64bits_reset(hash);
    (void)walk(order, hash, NULL);
    memcpy(header.magic, magic, sizeof(magic));
    memcpy(header.bytes, order->bytes, sizeof(header.bytes));
    header.content = XXH3_64bits_digest(hash);
    header.header = XXH3_64bits(&header, offsetof(struct header, header));
    XXH3_freeState(hash);
    if (fwrite(&header, sizeof(header), 1, stream) != 1 || walk(order, NULL, stream) < 0)
        return -1;
    return fflush(stream) == 0 && fsync(fileno(stream)) == 0 ? 0 : -1;
}

static int store(const struct order *order, const char *directory, const struct order_key *key)
{
    char path[PATH_MAX], *partial = NULL;
    FILE *stream = NULL;
    int fd = -1, result = -1, saved;

    if (mkdir(directory, 0777) < 0 && errno != EEXIST)
        return -1;
    remove_stale(directory);
    if (path_of(path, directory, key) < 0 || asprintf(&partial, "%s.partial-XXXXXX", path) < 0)
        return -1;
    fd = mkostemp(partial, O_CLOEXEC);
    if (fd >= 0 && fchmod(fd, 0644) == 0)
        stream = fdopen(fd, "w");
    if (stream && write_order(order, key, stream) == 0 && rename(partial, path) == 0)
        result = 0;
    saved = errno;
    if (stream)
        fclose(stream);
    else if (fd >= 0)
        close(fd);
    if (result < 0 && fd >= 0)
        unlink(partial);
    free(partial);
    errno = saved;
    return result;
}

void order_store(const struct order *order, const char *directory, const struct order_key *key)
{
    static atomic_flag said = ATOMIC_FLAG_INIT; /* parts are opened by several threads */

    if (store(order, directory, key) < 0 && !atomic_flag_test_and_set(&said))
        log_warning("%s: cannot keep the order of samples: %s; every start makes it anew",
                    directory, strerror(errno));
}
