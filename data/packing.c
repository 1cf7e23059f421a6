#include "data/packing.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* One epoch's work. Pieces are counted, then numbered from 0. */
struct packing {
    int64_t seq_length, most;
    struct piece *pieces; /* [count] */
    int32_t *places;      /* [count] */
    int64_t count;
    int32_t *turns;  /* [count] pieces in the order in which they are placed */
    int32_t *row_of; /* [count] */
    int64_t rows;
    /* Free places of rows, and of the row of each subtree that has most: node n has the children
     * 2 n and 2 n + 1, row r is leaf leaves + r. */
    int32_t *room;
    int32_t *held; /* [leaves] pieces of each row */
    int64_t leaves;
};

int64_t piece_tokens(const struct data_part *part, const struct piece *piece, int64_t seq_length)
{
    int64_t left = token_file_length(part->tokens, piece->document) - piece->offset;

    return left > seq_length + 1 ? seq_length + 1 : left;
}

/* The pieces of a document: one, or, of text longer than a row, so many that none of its targets is
 * lost. With pieces NULL they are only counted. */
static int64_t divide(const struct data_part *part, int32_t document, int64_t seq_length,
                      struct piece *pieces)
{
    int64_t places = (int64_t)token_file_length(part->tokens, document) - 1, count = 0;

    for (int64_t offset = 0; offset < places; offset += seq_length) {
        if (pieces)
            pieces[count] = (struct piece){document, (int32_t)offset};
        count++;
        if (part->roles)
            break;
    }
    return count;
}

/* Stable, by falling number of places. */
static int sort_by_places(struct packing *packing, const int32_t *shuffled)
{
    int64_t *ends = calloc((size_t)packing->seq_length + 2, sizeof(*ends));

    if (!ends)
        return -1;
    for (int64_t i = 0; i < packing->count; i++)
        ends[packing->seq_length - packing->places[i] + 1]++;
    for (int64_t p = 1; p <= packing->seq_length + 1; p++)
        ends[p] += ends[p - 1];
    for (int64_t i = 0; i < packing->count; i++)
        packing->turns[ends[packing->seq_length - packing->places[shuffled[i]]]++] = shuffled[i];
    free(ends);
    return 0;
}

static void set_room(struct packing *packing, int64_t row, int32_t room)
{
    int64_t node = packing->leaves + row;

    packing->room[node] = room;
    for (node /= 2; node > 0; node /= 2) {
        int32_t a = packing->room[2 * node], b = packing->room[2 * node + 1];

        packing->room[node] = a > b ? a : b;
    }
}

/* The first row with that much room. */
static int64_t find_row(const struct packing *packing, int32_t places)
{
    int64_t node = 1;

    while (node < packing->leaves)
        node = packing->room[2 * node] >= places ? 2 * node : 2 * node + 1;
    return node - packing->leaves;
}

static void place_pieces(struct packing *packing)
{
    packing->rows = 0;
    memset(packing->held, 0, (size_t)packing->leaves * sizeof(*packing->held));
    for (int64_t i = 1; i < 2 * packing->leaves; i++)
        packing->room[i] = (int32_t)packing->seq_length;
    for (int64_t i = 0; i < packing->count; i++) {
        int32_t piece = packing->turns[i];
        int64_t row = find_row(packing, packing->places[piece]);
        bool full = ++packing->held[row] == packing->most;

        packing->row_of[piece] = (int32_t)row;
        set_room(packing, row,
                 full ? 0 : packing->room[packing->leaves + row] - packing->places[piece]);
        if (row >= packing->rows)
            packing->rows = row + 1;
    }
}

/* Append the rows of the epoch, in the order of `rows`. */
static int append_rows(struct order *order, const struct packing *packing, const int32_t *rows)
{
    int64_t old_rows = order->bytes[ROW_STARTS] / (int64_t)sizeof(int64_t) - 1;
    int64_t old_pieces = order->bytes[ROW_PIECES] / (int64_t)sizeof(struct piece);
    int64_t *starts, *next;
    struct piece *pieces;

    assert(packing->rows > 0);
    order->bytes[ROW_STARTS] += packing->rows * (int64_t)sizeof(int64_t);
    order->bytes[ROW_PIECES] += packing->count * (int64_t)sizeof(struct piece);
    starts = realloc(order->arrays[ROW_STARTS], (size_t)order->bytes[ROW_STARTS]);
    if (starts)
        order->arrays[ROW_STARTS] = starts;
    pieces = realloc(order->arrays[ROW_PIECES], (size_t)order->bytes[ROW_PIECES]);
    if (pieces)
        order->arrays[ROW_PIECES] = pieces;
    next = calloc((size_t)packing->rows, sizeof(*next));
    if (!starts || !pieces || !next) {
        free(next);
        return -1;
    }
    starts[old_rows] = old_pieces;
    for (int64_t i = 0; i < packing->rows; i++) {
        next[rows[i]] = starts[old_rows + i];
        starts[old_rows + i + 1] = starts[old_rows + i] + packing->held[rows[i]];
    }
    for (int64_t i = 0; i < packing->count; i++)
        pieces[next[packing->row_of[packing->turns[i]]]++] = packing->pieces[packing->turns[i]];
    free(next);
    return 0;
}

static int pack_epoch(struct order *order, struct packing *packing, struct random_state *random)
{
    int32_t *numbers = malloc((size_t)packing->count * sizeof(*numbers));
    int result = -1;

    if (!numbers)
        return -1;
    for (int64_t i = 0; i < packing->count; i++)
        numbers[i] = (int32_t)i;
    random_shuffle_i32(random, numbers, packing->count);
    if (sort_by_places(packing, numbers) == 0) {
        place_pieces(packing);
        for (int64_t i = 0; i < packing->rows; i++) /* no more rows than pieces */
            numbers[i] = (int32_t)i;
        random_shuffle_i32(random, numbers, packing->rows);
        result = append_rows(order, packing, numbers);
    }
    free(numbers);
    return result;
}

/* First-fit leaves no two rows that are both less than half full, but for those that have as many
 * pieces as they may. */
static int64_t rows_bound(const struct packing *packing)
{
    int64_t places = 0, bound;

    for (int64_t i = 0; i < packing->count; i++)
        places += packing->places[i];
    bound = 2 * places / packing->seq_length + packing->count / packing->most + 2;
    return bound < packing->count ? bound : packing->count;
}

/* List the pieces and take the memory. */
static int prepare(struct packing *packing, const struct data_part *part, const int32_t *documents,
                   int64_t count)
{
    int64_t bound;

    for (int64_t i = 0; i < count; i++)
        packing->count += divide(part, documents[i], packing->seq_length, NULL);
    if (packing->count == 0 || packing->count > INT32_MAX)
        return 0;
    packing->pieces = calloc((size_t)packing->count, sizeof(*packing->pieces));
    packing->places = calloc((size_t)packing->count, sizeof(*packing->places));
    packing->turns = calloc((size_t)packing->count, sizeof(*packing->turns));
    packing->row_of = calloc((size_t)packing->count, sizeof(*packing->row_of));
    if (!packing->pieces || !packing->places || !packing->turns || !packing->row_of)
        return -1;
    for (int64_t i = 0, at = 0; i < count; i++)
        at += divide(part, documents[i], packing->seq_length, packing->pieces + at);
    for (int64_t i = 0; i < packing->count; i++)
        packing->places[i] =
            (int32_t)piece_tokens(part, &packing->pieces[i], packing->seq_length) - 1;
    bound = rows_bound(packing);
    for (packing->leaves = 1; packing->leaves < bound; packing->leaves *= 2)
        ;
    packing->room = malloc(2 * (size_t)packing->leaves * sizeof(*packing->room));
    packing->held = malloc((size_t)packing->leaves * sizeof(*packing->held));
    return packing->room && packing->held ? 0 : -1;
}

int packing_build(struct order *order, const struct data_part *part, const int32_t *documents,
                  int64_t count, int64_t samples, int64_t seq_length, int64_t most,
                  struct random_state *random, struct error *error)
{
    struct packing packing = {.seq_length = seq_length, .most = most};
    const char *prefix = token_file_prefix(part->tokens);
    int result = prepare(&packing, part, documents, count);

    *order = (struct order){.bytes = {[ROW_STARTS] = sizeof(int64_t)}};
    order->arrays[ROW_STARTS] = calloc(1, sizeof(int64_t));
    if (result == 0 && packing.count > INT32_MAX)
        result = error_set(error, EXIT_STATUS_DATA, "%s: %lld pieces, at most %d can be packed",
                           prefix, (long long)packing.count, INT32_MAX);
    else if (result == 0 && packing.count == 0)
        result =
            error_set(error, EXIT_STATUS_DATA,
                      "%s: none of %lld documents has two tokens, so there is nothing to learn",
                      prefix, (long long)count);
    else if (result < 0 || !order->arrays[ROW_STARTS])
        result = error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", prefix);
    while (result == 0 &&
           order->bytes[ROW_STARTS] / (int64_t)sizeof(int64_t) - 1 < (samples > 0 ? samples : 1))
        if (pack_epoch(order, &packing, random) < 0)
            result =
                error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory for packed rows", prefix);
    free(packing.pieces);
    free(packing.places);
    free(packing.turns);
    free(packing.row_of);
    free(packing.room);
    free(packing.held);
    if (result < 0)
        order_destroy(order);
    return result;
}
