#include "ckpt/table.h"

#include <stdlib.h>
#include <string.h>

#include "ckpt/checksum.h"

static const char *const kind_names[CHECKPOINT_KINDS] = {
    [CHECKPOINT_WEIGHT] = "weight",
    [CHECKPOINT_MASTER] = "master",
    [CHECKPOINT_EXP_AVG] = "exp_avg",
    [CHECKPOINT_EXP_AVG_SQ] = "exp_avg_sq",
};

const char *checkpoint_kind_name(enum checkpoint_kind kind)
{
    return kind_names[kind];
}

static int no_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "no memory for the table of tensors");
}

/* The slot that holds `name`, or the empty one where it belongs. */
static uint32_t *slot_of(const struct table *table, const char *name)
{
    size_t i = checksum(name, strlen(name)) & (table->slot_count - 1);

    while (table->slots[i] && strcmp(table->tensors[table->slots[i] - 1].name, name) != 0)
        i = (i + 1) & (table->slot_count - 1);
    return &table->slots[i];
}

static int grow_slots(struct table *table)
{
    size_t count = table->slot_count ? 2 * table->slot_count : 64;
    uint32_t *slots = calloc(count, sizeof(*slots));

    if (!slots)
        return -1;
    free(table->slots);
    table->slots = slots;
    table->slot_count = count;
    for (size_t i = 0; i < table->tensor_count; i++)
        *slot_of(table, table->tensors[i].name) = (uint32_t)i + 1;
    return 0;
}

/* Room for one more than `count`: the array, perhaps elsewhere now, or NULL. */
static void *grow(void *array, size_t *capacity, size_t count, size_t size)
{
    size_t larger = *capacity ? 2 * *capacity : 64;
    void *grown;

    if (count < *capacity)
        return array;
    grown = reallocarray(array, larger, size);
    if (grown)
        *capacity = larger;
    return grown;
}

/* Names become names of HDF5 links, where '/' separates groups and "." is the group itself. */
static int check_name(const char *name, struct error *error)
{
    size_t length = strlen(name);

    if (length == 0 || length > TABLE_NAME_LIMIT || strchr(name, '/') || strcmp(name, ".") == 0)
        return error_set(error, EXIT_STATUS_BUG,
                         "\"%.*s\" cannot name a tensor; use 1 to %d bytes without '/'",
                         TABLE_NAME_LIMIT, name, TABLE_NAME_LIMIT);
    return 0;
}

int64_t table_add_tensor(struct table *table, const char *name, int dimensions,
                         const int64_t shape[2], struct error *error)
{
    struct table_tensor *tensor, *tensors;
    uint32_t *slot;

    if (check_name(name, error) < 0)
        return -1;
    if (dimensions < 1 || dimensions > 2 || shape[0] < 1 || shape[1] < 1 ||
        (dimensions == 1 && shape[1] != 1) || shape[0] > INT64_MAX / 16 / shape[1])
        return error_set(error, EXIT_STATUS_BUG,
                         "tensor %s: %d dimensions of %lld x %lld; use 1 or 2, all at least 1",
                         name, dimensions, (long long)shape[0], (long long)shape[1]);
    if (2 * table->tensor_count >= table->slot_count && grow_slots(table) < 0)
        return no_memory(error);
    slot = slot_of(table, name);
    if (*slot) {
        tensor = &table->tensors[*slot - 1];
        if (tensor->dimensions != dimensions || tensor->shape[0] != shape[0] ||
            tensor->shape[1] != shape[1])
            return error_set(error, EXIT_STATUS_BUG,
                             "tensor %s: %d dimensions of %lld x %lld for one piece, %d of %lld x "
                             "%lld for another",
                             name, tensor->dimensions, (long long)tensor->shape[0],
                             (long long)tensor->shape[1], dimensions, (long long)shape[0],
                             (long long)shape[1]);
        return *slot - 1;
    }
    if (table->tensor_count >= UINT32_MAX - 1)
        return no_memory(error);
    tensors = grow(table->tensors, &table->tensor_capacity, table->tensor_count, sizeof(*tensors));
    if (!tensors)
        return no_memory(error);
    table->tensors = tensors;
    tensor = &table->tensors[table->tensor_count];
    *tensor = (struct table_tensor){
        .name = strdup(name), .dimensions = dimensions, .shape = {shape[0], shape[1]}};
    if (!tensor->name)
        return no_memory(error);
    memset(tensor->dtype, TABLE_ABSENT, sizeof(tensor->dtype));
    *slot = (uint32_t)++table->tensor_count;
    return *slot - 1;
}

int table_add_piece(struct table *table, const struct table_piece *piece, struct error *error)
{
    struct table_tensor *tensor = &table->tensors[piece->tensor];
    int8_t *dtype = &tensor->dtype[piece->kind];
    struct table_piece *pieces;

    for (int i = 0; i < 2; i++)
        if (piece->start[i] < 0 || piece->extent[i] < 1 || piece->start[i] > tensor->shape[i] ||
            piece->extent[i] > tensor->shape[i] - piece->start[i])
            return error_set(error, EXIT_STATUS_BUG,
                             "tensor %s (%s): shard %u has %lld from %lld on of its %lld %s",
                             tensor->name, kind_names[piece->kind], piece->shard,
                             (long long)piece->extent[i], (long long)piece->start[i],
                             (long long)tensor->shape[i], i == 0 ? "rows" : "columns");
    if (*dtype != TABLE_ABSENT && *dtype != piece->dtype)
        return error_set(error, EXIT_STATUS_BUG, "tensor %s (%s): %s in one piece, %s in shard %u",
                         tensor->name, kind_names[piece->kind], dtype_name((enum dtype) * dtype),
                         dtype_name((enum dtype)piece->dtype), piece->shard);
    pieces = grow(table->pieces, &table->piece_capacity, table->piece_count, sizeof(*pieces));
    if (!pieces)
        return no_memory(error);
    table->pieces = pieces;
    *dtype = (int8_t)piece->dtype;
    table->pieces[table->piece_count++] = *piece;
    return 0;
}

static int compare_tensors(const void *a, const void *b)
{
    const struct table_tensor *one = *(const struct table_tensor *const *)a,
                              *other = *(const struct table_tensor *const *)b;

    return strverscmp(one->name, other->name);
}

/* Layer 10 comes after layer 9, and the order does not tell which rank wrote what. */
static int sort_tensors(struct table *table)
{
    size_t count = table->tensor_count;
    struct table_tensor **order = calloc(count + 1, sizeof(*order));
    struct table_tensor *sorted = calloc(count + 1, sizeof(*sorted));
    uint32_t *number = calloc(count + 1, sizeof(*number));
    int result = -1;

    if (!order || !sorted || !number)
        goto out;
    for (size_t i = 0; i < count; i++)
        order[i] = &table->tensors[i];
    qsort(order, count, sizeof(*order), compare_tensors);
    for (size_t i = 0; i < count; i++) {
        number[order[i] - table->tensors] = (uint32_t)i;
        sorted[i] = *order[i];
    }
    for (size_t i = 0; i < table->piece_count; i++)
        table->pieces[i].tensor = number[table->pieces[i].tensor];
    free(table->tensors);
    table->tensors = sorted;
    table->tensor_capacity = count + 1;
    memset(table->slots, 0, table->slot_count * sizeof(*table->slots));
    for (size_t i = 0; i < count; i++)
        *slot_of(table, sorted[i].name) = (uint32_t)i + 1;
    sorted = NULL;
    result = 0;
out:
    free(order);
    free(sorted);
    free(number);
    return result;
}

static int compare_pieces(const void *a, const void *b)
{
    const struct table_piece *one = a, *other = b;

    if (one->tensor != other->tensor)
        return one->tensor < other->tensor ? -1 : 1;
    if (one->kind != other->kind)
        return one->kind < other->kind ? -1 : 1;
    for (int i = 0; i < 2; i++)
        if (one->start[i] != other->start[i])
            return one->start[i] < other->start[i] ? -1 : 1;
    return one->shard < other->shard ? -1 : one->shard > other->shard;
}

/* Rectangles inside a rectangle tile it when no two overlap and their areas add up to it. */
static int check_tiling(const struct table *table, const struct table_tensor *tensor, int kind,
                        struct error *error)
{
    const struct table_piece *pieces = &table->pieces[tensor->first[kind]];
    size_t count = tensor->count[kind];
    int64_t all = tensor->shape[0] * tensor->shape[1], sum = 0;

    for (size_t i = 0; i < count; i++) {
        const struct table_piece *one = &pieces[i];

        for (size_t j = i + 1; j < count && pieces[j].start[0] < one->start[0] + one->extent[0];
             j++) {
            const struct table_piece *other = &pieces[j];

            if (other->start[1] < one->start[1] + one->extent[1] &&
                one->start[1] < other->start[1] + other->extent[1])
                return error_set(
                    error, EXIT_STATUS_BUG,
                    "tensor %s (%s): shards %u and %u both hold row %lld, column %lld",
                    tensor->name, kind_names[kind], one->shard, other->shard,
                    (long long)other->start[0],
                    (long long)(other->start[1] > one->start[1] ? other->start[1] : one->start[1]));
        }
        sum += one->extent[0] * one->extent[1]; /* no overlap so far: never above `all` */
    }
    if (sum != all)
        return error_set(error, EXIT_STATUS_BUG,
                         "tensor %s (%s): %lld of its %lld elements are in no shard", tensor->name,
                         kind_names[kind], (long long)(all - sum), (long long)all);
    return 0;
}

int table_finish(struct table *table, struct error *error)
{
    if (table->tensor_count && sort_tensors(table) < 0)
        return no_memory(error);
    if (table->piece_count)
        qsort(table->pieces, table->piece_count, sizeof(*table->pieces), compare_pieces);
    for (size_t i = 0; i < table->piece_count; i++) {
        const struct table_piece *piece = &table->pieces[i];
        struct table_tensor *tensor = &table->tensors[piece->tensor];

        if (tensor->count[piece->kind]++ == 0)
            tensor->first[piece->kind] = i;
    }
    for (size_t i = 0; i < table->tensor_count; i++) {
        const struct table_tensor *tensor = &table->tensors[i];

        if (tensor->count[CHECKPOINT_WEIGHT] == 0)
            return error_set(error, EXIT_STATUS_BUG, "tensor %s: its weights are in no shard",
                             tensor->name);
        for (int kind = 0; kind < CHECKPOINT_KINDS; kind++)
            if (tensor->count[kind] && check_tiling(table, tensor, kind, error) < 0)
                return -1;
    }
    return 0;
}

int64_t table_find(const struct table *table, const char *name)
{
    if (table->tensor_count == 0)
        return -1;
    return (int64_t)*slot_of(table, name) - 1;
}

void table_free(struct table *table)
{
    for (size_t i = 0; i < table->tensor_count; i++)
        free(table->tensors[i].name);
    free(table->tensors);
    free(table->pieces);
    free(table->slots);
    *table = (struct table){0};
}
