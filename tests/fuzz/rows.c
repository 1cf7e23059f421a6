/* Targets: what a run reads its samples from. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "ckpt/disk.h"
#include "core/log.h"
#include "data/dataset.h"
#include "data/order.h"
#include "tests/fuzz/fuzz.h"

static const struct order_key order_key = {{1, 2}};

/* What is read must be in the file, to the last byte. */
static bool load_order(const char *path, const uint8_t *data, size_t size)
{
    struct order order;
    uint64_t sum = 0;

    write_file(path, data, size);
    if (!order_load(&order, model_directory, &order_key)) {
        check(!order.map && !order.arrays[0]);
        return false;
    }
    for (int i = 0; i < ORDER_ARRAYS; i++) {
        const char *array = order.arrays[i];

        check(order.bytes[i] >= 0 && array >= (char *)order.map);
        check(array + order.bytes[i] <= (char *)order.map + order.map_bytes);
        sum += XXH3_64bits(array, (size_t)order.bytes[i]);
    }
    order_destroy(&order);
    return sum != 1; /* used */
}

/* The file as it is; then with the right key and hashes, which no chance brings about. */
bool run_order(const uint8_t *data, size_t size)
{
    enum { KEY = 8, CONTENT = 48, HEADER = 56, ALL = 64 };
    char path[300];
    uint8_t *sealed;
    XXH64_hash_t hash;
    bool was_accepted;

    log_set_enabled(false);
    snprintf(path, sizeof(path), "%s/%016x%016x.order", model_directory, 1, 2);
    was_accepted = load_order(path, data, size);
    if (size < ALL)
        return was_accepted;
    sealed = malloc(size);
    check(sealed);
    memcpy(sealed, data, size);
    memcpy(sealed, "MTORDER1", KEY);
    memcpy(sealed + KEY, &order_key, sizeof(order_key));
    hash = XXH3_64bits(sealed + ALL, size - ALL);
    memcpy(sealed + CONTENT, &hash, sizeof(hash));
    hash = XXH3_64bits(sealed, HEADER);
    memcpy(sealed + HEADER, &hash, sizeof(hash));
    was_accepted |= load_order(path, sealed, size);
    free(sealed);
    return was_accepted;
}

enum { SEQ_LENGTH_MOST = 256, VOCABULARY = 32000 };

static int32_t tokens[SEQ_LENGTH_MOST], targets[SEQ_LENGTH_MOST], positions[SEQ_LENGTH_MOST],
    starts[SEQ_LENGTH_MOST];
static float weights[SEQ_LENGTH_MOST];

static void check_row(const struct dataset_row *row, int64_t seq_length)
{
    check(row->start_count >= 1 && row->start_count <= dataset_sequences_most(seq_length));
    check(row->starts[0] == 0);
    for (int64_t i = 1; i < row->start_count; i++)
        check(row->starts[i] > row->starts[i - 1] && row->starts[i] < seq_length);
    for (int64_t t = 0; t < seq_length; t++) {
        check(row->tokens[t] >= 0 && row->tokens[t] < VOCABULARY);
        check(row->targets[t] >= -1 && row->targets[t] < VOCABULARY);
        check(row->targets[t] >= 0 || row->weights[t] == 0);
        check(row->positions[t] >= 0 && row->positions[t] < seq_length);
    }
}

/* Digest of the first rows and the last; 0 when one is refused. */
static uint64_t read_rows(const struct data_source *source, enum dataset_split which,
                          const struct dataset_options *options)
{
    struct dataset_row row = {tokens, targets, weights, positions, starts, 0};
    struct dataset *dataset;
    struct error error = {0};
    uint64_t digest = 1;

    if (dataset_open(&dataset, source, which, options, &error) < 0) {
        check(!dataset && error.status == EXIT_STATUS_DATA);
        return 0;
    }
    check(dataset_samples(dataset) >= options->samples[which]);
    for (int64_t i = 0; i < dataset_samples(dataset) && digest; i += i < 8 ? 1 : 1 + i / 2) {
        if (dataset_read(dataset, i, &row, &error) < 0) {
            check(error.status == EXIT_STATUS_DATA);
            digest = 0;
        } else {
            check_row(&row, options->seq_length);
            digest = (digest ^ XXH3_64bits(tokens, sizeof(tokens[0]) * options->seq_length)) | 1;
        }
    }
    dataset_close(dataset);
    return digest;
}

/* The next file of the input: a length of two bytes, and so much. */
static void take_file(const char *name, const uint8_t **data, size_t *size)
{
    size_t length = *size < 2 ? 0 : (*data)[0] | (size_t)(*data)[1] << 8;
    char path[300];

    *data += *size < 2 ? *size : 2;
    *size -= *size < 2 ? *size : 2;
    length = length < *size ? length : *size;
    snprintf(path, sizeof(path), "%s/%s", model_directory, name);
    write_file(path, *data, length);
    *data += length;
    *size -= length;
}

/* Bits of options, the sequence length less 1, samples wanted; then index and tokens, and index and
 * roles. */
bool run_rows(const uint8_t *data, size_t size)
{
    enum { ROLES = 1, PACKING = 2, NONEMPTY = 4, SPLIT = 8, ENDS = 16, CACHE = 32, VALID = 64 };
    int bits = size > 0 ? data[0] : 0;
    struct dataset_options options = {.vocab_size = VOCABULARY, .eod = bits & ENDS ? 2 : -1};
    enum dataset_split which = bits & VALID ? DATASET_VALID : DATASET_TRAIN;
    struct data_source source;
    struct error error = {0};
    char prefix[300];
    uint64_t digest;

    log_set_enabled(false);
    if (size < 3)
        return false;
    options.seq_length = data[1] + 1;
    for (int s = 0; s < 3; s++)
        options.samples[s] = data[2];
    options.packing = bits & PACKING;
    options.nonempty_splits = bits & NONEMPTY;
    options.split = bits & SPLIT ? "8,1,1" : NULL;
    options.eod_mask_loss = options.reset_positions = options.reset_attention = bits & ENDS;
    data += 3;
    size -= 3;
    take_file(bits & ROLES ? "pair-text.idx" : "plain.idx", &data, &size);
    take_file(bits & ROLES ? "pair-text.bin" : "plain.bin", &data, &size);
    take_file("pair-role.idx", &data, &size);
    take_file("pair-role.bin", &data, &size);
    snprintf(prefix, sizeof(prefix), "%s/%s", model_directory, bits & ROLES ? "pair" : "plain");
    if (data_source_open(&source, prefix, &error) < 0) {
        check(!source.parts && error.status == EXIT_STATUS_DATA);
        check(strncmp(error.text, prefix, strlen(prefix)) == 0);
        return false;
    }
    digest = read_rows(&source, which, &options);
    if (bits & CACHE) {
        options.cache = run_directory;
        check(read_rows(&source, which, &options) == digest); /* kept */
        check(read_rows(&source, which, &options) == digest); /* found */
        check(disk_remove_tree(run_directory, &error) == 0 || access(run_directory, F_OK) < 0);
    }
    data_source_close(&source);
    return digest != 0;
}
