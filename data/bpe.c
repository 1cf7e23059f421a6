#include "data/bpe.h"

#include <stdlib.h>
#include <string.h>

/* Up to so many symbols, the best pair is looked for among all of them; beyond, in a heap. */
enum { SCAN_SYMBOLS = 48 };

/* Pieces that are remembered, and how long they and their ids may be. */
enum { CACHE_ENTRIES = 1 << 14, CACHE_BYTES = 27, CACHE_IDS = 8 };

struct entry {
    const char *text; /* NULL: free */
    uint32_t bytes;
    int32_t id;
};

struct pair {
    uint64_t key; /* left << 32 | right; UINT64_MAX: free */
    int32_t rank, id;
};

struct bpe {
    char *blob; /* all strings */
    struct entry *entries;
    size_t entry_mask;
    struct entry *by_id; /* [vocab_size] */
    int64_t vocab_size;
    struct pair *pairs;
    size_t pair_mask;
    int32_t byte_ids[256]; /* of <0xNN>; [0] is -1 where they are not used */
    int32_t unk;
    bool fuse_unk, ignore_merges;
};

struct symbol {
    int32_t id, previous, next; /* places of its neighbours; -1 at the ends */
    uint32_t bytes;             /* of text */
};

/* A pair that stood at `place` when it was put into the heap. */
struct candidate {
    int32_t rank, place, id;
};

struct cached {
    uint8_t bytes, ids; /* ids 0: free */
    char text[CACHE_BYTES + 1];
    int32_t id[CACHE_IDS];
};

struct bpe_scratch {
    struct symbol *symbols;
    struct candidate *heap;
    size_t room, count, waiting;
    struct cached *cache;
};

/* --- tables ----------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t value)
{
    value ^= value >> 32;
    value *= 0x9e3779b97f4a7c15u;
    return value ^ value >> 29;
}

static uint64_t hash(const char *text, size_t bytes)
{
    uint64_t value = bytes, word;

    for (; bytes >= 8; text += 8, bytes -= 8) {
        memcpy(&word, text, 8);
        value = mix(value ^ word);
    }
    word = 0;
    memcpy(&word, text, bytes);
    return mix(value ^ word);
}

static struct entry *find_entry(const struct bpe *bpe, const char *text, size_t bytes)
{
    size_t at = hash(text, bytes) & bpe->entry_mask;

    while (bpe->entries[at].text &&
           (bpe->entries[at].bytes != bytes || memcmp(bpe->entries[at].text, text, bytes) != 0))
        at = (at + 1) & bpe->entry_mask;
    return &bpe->entries[at];
}

int32_t bpe_find(const struct bpe *bpe, const char *text, size_t bytes)
{
    const struct entry *entry = find_entry(bpe, text, bytes);

    return entry->text ? entry->id : -1;
}

static struct pair *find_pair(const struct bpe *bpe, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)left << 32 | (uint32_t)right;
    size_t at = mix(key) & bpe->pair_mask;

    while (bpe->pairs[at].key != key && bpe->pairs[at].key != UINT64_MAX)
        at = (at + 1) & bpe->pair_mask;
    return &bpe->pairs[at];
}

/* A power of two, more than twice as much. */
static size_t table_size(size_t entries)
{
    size_t size = 16;

    while (size < 2 * entries + 1)
        size *= 2;
    return size;
}

/* --- reading ---------------------------------------------------------------------------------- */

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

static int refuse(struct error *error, const char *text)
{
    return error_set(error, EXIT_STATUS_DATA, "model: %s", text);
}

static int check_settings(const json_t *model, struct error *error)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = json_string_value(json_object_get(model, "type"));

    if (!json_is_object(model))
        return refuse(error, "is missing");
    if (type && strcmp(type, "BPE") != 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "model: type %.100s is not supported; mtllm "
                         "knows BPE",
                         type);
    for (int i = 0; i < 2; i++) {
        const char *affix = json_string_value(json_object_get(model, affixes[i]));

        if (affix && *affix)
            return error_set(error, EXIT_STATUS_DATA, "model: %s is not supported", affixes[i]);
    }
    if (json_number_value(json_object_get(model, "dropout")) > 0)
        return refuse(error, "dropout is not supported");
    if (!json_is_object(json_object_get(model, "vocab")) ||
        !json_is_array(json_object_get(model, "merges")))
        return refuse(error, "has no vocab or no merges");
    return 0;
}

/* How much room the strings need, and the greatest id. */
static int measure(struct bpe *bpe, json_t *vocab, size_t *bytes, struct error *error)
{
    const char *text;
    json_t *value;

    *bytes = 0;
    json_object_foreach(vocab, text, value)
    {
        json_int_t id = json_integer_value(value);

        if (!json_is_integer(value) || id < 0 || id >= TOKENIZER_IDS_MOST)
            return error_set(error, EXIT_STATUS_DATA,
                             "model: \"%.100s\" has no id, or one beyond "
                             "%d",
                             text, TOKENIZER_IDS_MOST);
        *bytes += strlen(text);
        if (id >= bpe->vocab_size)
            bpe->vocab_size = id + 1;
    }
    return 0;
}

static int read_vocabulary(struct bpe *bpe, json_t *vocab, struct error *error)
{
    size_t bytes, size = table_size(json_object_size(vocab));
    const char *text;
    json_t *value;
    char *to;

    if (measure(bpe, vocab, &bytes, error) < 0)
        return -1;
    bpe->blob = to = malloc(bytes + 1);
    bpe->entries = calloc(size, sizeof(*bpe->entries));
    bpe->by_id = calloc((size_t)bpe->vocab_size + 1, sizeof(*bpe->by_id));
    bpe->entry_mask = size - 1;
    if (!bpe->blob || !bpe->entries || !bpe->by_id)
        return out_of_memory(error);
    json_object_foreach(vocab, text, value)
    {
        size_t length = strlen(text);
        struct entry *entry;

        memcpy(to, text, length);
        entry = find_entry(bpe, to, length);
        *entry = (struct entry){to, (uint32_t)length, (int32_t)json_integer_value(value)};
        bpe->by_id[entry->id] = *entry;
        to += length;
    }
    return 0;
}

/* The id of two strings in one; -1: it is none. */
static int32_t find_joined(const struct bpe *bpe, const char *left, size_t left_bytes,
                           const char *right, size_t right_bytes)
{
    char *joined = malloc(left_bytes + right_bytes + 1);
    int32_t id;

    if (!joined)
        return -1;
    memcpy(joined, left, left_bytes);
    memcpy(joined + left_bytes, right, right_bytes);
    id = bpe_find(bpe, joined, left_bytes + right_bytes);
    free(joined);
    return id;
}

/* "left right" or ["left", "right"] */
static int read_merge(const struct bpe *bpe, const json_t *merge, int32_t rank)
{
    const char *left = json_string_value(merge), *right = left ? strchr(left, ' ') : NULL;
    size_t left_bytes = right ? (size_t)(right++ - left) : 0;
    int32_t left_id, right_id, id;

    if (json_is_array(merge) && json_array_size(merge) == 2) {
        left = json_string_value(json_array_get(merge, 0));
        right = json_string_value(json_array_get(merge, 1));
        left_bytes = left ? strlen(left) : 0;
    }
    if (!left || !right)
        return -1;
    left_id = bpe_find(bpe, left, left_bytes);
    right_id = bpe_find(bpe, right, strlen(right));
    id = find_joined(bpe, left, left_bytes, right, strlen(right));
    if (left_id < 0 || right_id < 0 || id < 0)
        return -1;
    /* Of a pair that is there twice, the last counts: a map is what it is read into. */
    *find_pair(bpe, left_id, right_id) =
        (struct pair){(uint64_t)left_id << 32 | (uint32_t)right_id, rank, id};
    return 0;
}

static int read_merges(struct bpe *bpe, const json_t *merges, struct error *error)
{
    size_t size = table_size(json_array_size(merges)), i;
    const json_t *merge;

    if (json_array_size(merges) >= INT32_MAX)
        return refuse(error, "has too many merges");
    bpe->pairs = malloc(size * sizeof(*bpe->pairs));
    bpe->pair_mask = size - 1;
    if (!bpe->pairs)
        return out_of_memory(error);
    for (i = 0; i < size; i++)
        bpe->pairs[i].key = UINT64_MAX;
    json_array_foreach(merges, i, merge)
    {
        if (read_merge(bpe, merge, (int32_t)i) < 0)
            return error_set(error, EXIT_STATUS_DATA,
                             "model: merge %zu is no pair of tokens that make a token", i + 1);
    }
    return 0;
}

/* <0x00> to <0xFF>: used when all of them are there. */
static void find_bytes(struct bpe *bpe)
{
    static const char digits[] = "0123456789ABCDEF";

    for (int i = 0; i < 256; i++) {
        const char text[] = {'<', '0', 'x', digits[i >> 4], digits[i & 15], '>'};

        bpe->byte_ids[i] = bpe_find(bpe, text, sizeof(text));
        if (bpe->byte_ids[i] < 0) {
            bpe->byte_ids[0] = -1;
            return;
        }
    }
}

static int read_settings(struct bpe *bpe, const json_t *model, struct error *error)
{
    const char *unk = json_string_value(json_object_get(model, "unk_token"));

    bpe->unk = unk ? bpe_find(bpe, unk, strlen(unk)) : -1;
    if (unk && bpe->unk < 0)
        return refuse(error, "its unk_token is not in the vocabulary");
    bpe->fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    bpe->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    bpe->byte_ids[0] = -1;
    if (json_is_true(json_object_get(model, "byte_fallback")))
        find_bytes(bpe);
    return 0;
}

int bpe_create(struct bpe **bpe, json_t *model, struct error *error)
{
    struct bpe *new = calloc(1, sizeof(*new));

    *bpe = NULL;
    if (!new)
        return out_of_memory(error);
    if (check_settings(model, error) < 0 ||
        read_vocabulary(new, json_object_get(model, "vocab"), error) < 0 ||
        read_merges(new, json_object_get(model, "merges"), error) < 0 ||
        read_settings(new, model, error) < 0) {
        bpe_destroy(new);
        return -1;
    }
    *bpe = new;
    return 0;
}

void bpe_destroy(struct bpe *bpe)
{
    if (!bpe)
        return;
    free(bpe->blob);
    free(bpe->entries);
    free(bpe->by_id);
    free(bpe->pairs);
    free(bpe);
}

int64_t bpe_vocab_size(const struct bpe *bpe)
{
    return bpe->vocab_size;
}

int32_t bpe_unk(const struct bpe *bpe)
{
    return bpe->unk;
}

const char *bpe_text(const struct bpe *bpe, int32_t id, size_t *bytes)
{
    if (id < 0 || id >= bpe->vocab_size)
        return NULL;
    *bytes = bpe->by_id[id].bytes;
    return bpe->by_id[id].text;
}

/* --- encoding --------------------------------------------------------------------------------- */

struct bpe_scratch *bpe_scratch_create(void)
{
    struct bpe_scratch *scratch = calloc(1, sizeof(*scratch));

    if (scratch)
        scratch->cache = calloc(CACHE_ENTRIES, sizeof(*scratch->cache));
    if (scratch && !scratch->cache) {
        free(scratch);
        scratch = NULL;
    }
    return scratch;
}

void bpe_scratch_destroy(struct bpe_scratch *scratch)
{
    if (!scratch)
        return;
    free(scratch->symbols);
    free(scratch->heap);
    free(scratch->cache);
    free(scratch);
}

/* Room for as many symbols as there are bytes, and for the pairs of a heap of them. */
static int reserve(struct bpe_scratch *scratch, size_t bytes)
{
    size_t room = scratch->room ? scratch->room : 256;
    struct symbol *symbols;
    struct candidate *heap;

    if (bytes <= scratch->room)
        return 0;
    if (bytes >= INT32_MAX)
        return -1;
    while (room < bytes)
        room *= 2;
    symbols = realloc(scratch->symbols, room * sizeof(*symbols));
    if (symbols)
        scratch->symbols = symbols;
    /* Every pair there is, and two new ones for each that is joined. */
    heap = realloc(scratch->heap, 3 * room * sizeof(*heap));
    if (heap)
        scratch->heap = heap;
    if (!symbols || !heap)
        return -1;
    scratch->room = room;
    return 0;
}

static void add_symbol(struct bpe_scratch *scratch, int32_t id, size_t bytes)
{
    int32_t at = (int32_t)scratch->count++;

    scratch->symbols[at] = (struct symbol){id, at - 1, at + 1, (uint32_t)bytes};
}

static size_t character_bytes(const char *text, size_t bytes)
{
    size_t length = 1;

    while (length < bytes && (text[length] & 0xc0) == 0x80)
        length++;
    return length;
}

static void split_characters(const struct bpe *bpe, struct bpe_scratch *scratch, const char *text,
                             size_t bytes)
{
    bool unknown = false; /* the last symbol stands for characters that are unknown */

    scratch->count = 0;
    for (size_t at = 0, length; at < bytes; at += length) {
        int32_t id;

        length = character_bytes(text + at, bytes - at);
        id = bpe_find(bpe, text + at, length);
        if (id >= 0) {
            add_symbol(scratch, id, length);
        } else if (bpe->byte_ids[0] >= 0) {
            for (size_t i = 0; i < length; i++)
                add_symbol(scratch, bpe->byte_ids[(unsigned char)text[at + i]], 1);
        } else if (bpe->unk >= 0) {
            if (!unknown || !bpe->fuse_unk)
                add_symbol(scratch, bpe->unk, length);
            else
                scratch->symbols[scratch->count - 1].bytes += (uint32_t)length;
            unknown = true;
            continue;
        }
        unknown = false;
    }
    if (scratch->count > 0)
        scratch->symbols[scratch->count - 1].next = -1;
}

/* The pair that begins at a place; NULL when it cannot be joined. */
static const struct pair *pair_at(const struct bpe *bpe, const struct bpe_scratch *scratch,
                                  int32_t place)
{
    const struct symbol *left = &scratch->symbols[place];
    const struct pair *pair;

    if (left->next < 0)
        return NULL;
    pair = find_pair(bpe, left->id, scratch->symbols[left->next].id);
    return pair->key == UINT64_MAX ? NULL : pair;
}

/* The symbol at `place` becomes `id` and takes in the one behind it, whose id becomes -1. */
static void join(struct bpe_scratch *scratch, int32_t place, int32_t id)
{
    struct symbol *left = &scratch->symbols[place], *right = &scratch->symbols[left->next];

    left->id = id;
    left->bytes += right->bytes;
    left->next = right->next;
    right->id = -1;
    if (left->next >= 0)
        scratch->symbols[left->next].previous = place;
}

static void join_by_scanning(const struct bpe *bpe, struct bpe_scratch *scratch)
{
    for (;;) {
        const struct pair *best = NULL;
        int32_t place = -1;

        for (int32_t at = 0; at >= 0; at = scratch->symbols[at].next) {
            const struct pair *pair = pair_at(bpe, scratch, at);

            if (pair && (!best || pair->rank < best->rank)) {
                best = pair;
                place = at;
            }
        }
        if (!best)
            return;
        join(scratch, place, best->id);
    }
}

static bool comes_first(const struct candidate *a, const struct candidate *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->place < b->place);
}

static void push(const struct bpe *bpe, struct bpe_scratch *scratch, int32_t place)
{
    const struct pair *pair = place >= 0 ? pair_at(bpe, scratch, place) : NULL;
    struct candidate *heap = scratch->heap, new;
    size_t at;

    if (!pair)
        return;
    new = (struct candidate){pair->rank, place, pair->id};
    for (at = scratch->waiting++; at > 0 && comes_first(&new, &heap[(at - 1) / 2]);
         at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = new;
}

static struct candidate pop(struct bpe_scratch *scratch)
{
    struct candidate *heap = scratch->heap, first = heap[0], last = heap[--scratch->waiting];
    size_t at = 0, child;

    while ((child = 2 * at + 1) < scratch->waiting) {
        if (child + 1 < scratch->waiting && comes_first(&heap[child + 1], &heap[child]))
            child++;
        if (!comes_first(&heap[child], &last))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

static void join_by_heap(const struct bpe *bpe, struct bpe_scratch *scratch)
{
    scratch->waiting = 0;
    for (int32_t at = 0; at >= 0; at = scratch->symbols[at].next)
        push(bpe, scratch, at);
    while (scratch->waiting > 0) {
        struct candidate best = pop(scratch);
        const struct pair *pair =
            scratch->symbols[best.place].id < 0 ? NULL : pair_at(bpe, scratch, best.place);

        /* One of the two may have been joined since. */
        if (!pair || pair->id != best.id)
            continue;
        join(scratch, best.place, best.id);
        push(bpe, scratch, scratch->symbols[best.place].previous);
        push(bpe, scratch, best.place);
    }
}

static struct cached *find_cached(struct bpe_scratch *scratch, const char *text, size_t bytes)
{
    return bytes > CACHE_BYTES ? NULL : &scratch->cache[hash(text, bytes) & (CACHE_ENTRIES - 1)];
}

static int append(struct token_list *list, const int32_t *ids, int64_t count)
{
    if (token_list_reserve(list, count) < 0)
        return -1;
    memcpy(list->ids + list->count, ids, (size_t)count * sizeof(*ids));
    list->count += count;
    return 0;
}

int bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *text, size_t bytes,
               struct token_list *list, uint32_t *ends)
{
    /* What is remembered are ids alone. */
    struct cached *cached = ends ? NULL : find_cached(scratch, text, bytes);
    int64_t before = list->count, count;
    uint32_t end = 0;
    int32_t id;

    if (cached && cached->ids > 0 && cached->bytes == bytes &&
        memcmp(cached->text, text, bytes) == 0)
        return append(list, cached->id, cached->ids);
    if (bpe->ignore_merges && (id = bpe_find(bpe, text, bytes)) >= 0) {
        if (ends)
            *ends = (uint32_t)bytes;
        return append(list, &id, 1);
    }
    if (reserve(scratch, bytes) < 0)
        return -1;
    split_characters(bpe, scratch, text, bytes);
    if (scratch->count == 0)
        return 0;
    if (scratch->count <= SCAN_SYMBOLS)
        join_by_scanning(bpe, scratch);
    else
        join_by_heap(bpe, scratch);
    for (int32_t at = 0; at >= 0; at = scratch->symbols[at].next) {
        if (append(list, &scratch->symbols[at].id, 1) < 0)
            return -1;
        if (ends)
            *ends++ = end += scratch->symbols[at].bytes;
    }
    count = list->count - before;
    if (cached && count <= CACHE_IDS) {
        cached->bytes = (uint8_t)bytes;
        cached->ids = (uint8_t)count;
        memcpy(cached->text, text, bytes);
        memcpy(cached->id, list->ids + before, (size_t)count * sizeof(int32_t));
    }
    return 0;
}
