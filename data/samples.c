#include "data/samples.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "data/packing.h"

const char *const samples_set_names[] = {"training", "validation", "test"};

/* The arrays of running text. */
enum { RUNNING_DOCUMENTS, RUNNING_CUTS, RUNNING_SHUFFLE };

/* The documents of a set. */
struct documents {
    int32_t *list;
    int64_t count;
};

static int no_memory(const struct data_part *part, struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory for the order of samples",
                     token_file_prefix(part->tokens));
}

/* --- which documents ------------------------------------------------------------------------- */

static int find_bounds(int64_t bounds[4], const struct data_part *part, enum dataset_split which,
                       const struct dataset_options *options, struct error *error)
{
    int64_t count = token_file_sequences(part->tokens);

    if (count > INT32_MAX)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: %lld documents, at most %d can be put in order",
                         token_file_prefix(part->tokens), (long long)count, INT32_MAX);
    if (options->split)
        return dataset_split_bounds(options->split, options->nonempty_splits, count, bounds, error);
    for (int i = 0; i < 4; i++)
        bounds[i] = i > (int)which ? count : 0;
    return 0;
}

int64_t samples_documents(const struct data_part *part, enum dataset_split which,
                          const struct dataset_options *options, struct error *error)
{
    int64_t bounds[4];

    if (find_bounds(bounds, part, which, options, error) < 0)
        return -1;
    return bounds[which + 1] - bounds[which];
}

static int list_documents(struct documents *documents, const struct data_part *part, int64_t first,
                          int64_t last, struct error *error)
{
    documents->count = last - first;
    documents->list = malloc((size_t)documents->count * sizeof(*documents->list) + 1);
    if (!documents->list)
        return no_memory(part, error);
    for (int64_t i = first; i < last; i++)
        documents->list[i - first] = (int32_t)i;
    return 0;
}

/* All conversations; a set is a part of a permutation of them, from which the generator goes on. */
static int list_conversations(struct documents *documents, const struct data_part *part,
                              const struct dataset_options *options, struct random_state *random,
                              struct error *error)
{
    if (list_documents(documents, part, 0, token_file_sequences(part->tokens), error) < 0)
        return -1;
    if (options->split)
        random_shuffle_i32(random, documents->list, documents->count);
    return 0;
}

static int no_documents(const struct data_part *part, enum dataset_split which,
                        const struct dataset_options *options, struct error *error)
{
    return error_set(error, EXIT_STATUS_DATA,
                     "%s: split \"%s\" gives %s none of %lld documents; give it a larger share",
                     token_file_prefix(part->tokens), options->split ? options->split : "1",
                     samples_set_names[which], (long long)token_file_sequences(part->tokens));
}

/* --- their order ------------------------------------------------------------------------------ */

static int too_few(const struct data_part *part, enum dataset_split which, const int64_t bounds[4],
                   int64_t tokens, const struct dataset_options *options, struct error *error)
{
    return error_set(error, EXIT_STATUS_DATA,
                     "%s: split \"%s\" gives %s %lld of %lld documents with %lld tokens, but one"
                     " sample takes %lld (sequence length %lld and one more); give it a larger"
                     " share, use shorter sequences, more text, or documents that divide better"
                     " (mtllm-data tokenize --split-documents)",
                     token_file_prefix(part->tokens), options->split ? options->split : "1",
                     samples_set_names[which], (long long)(bounds[which + 1] - bounds[which]),
                     (long long)token_file_sequences(part->tokens), (long long)tokens,
                     (long long)options->seq_length + 1, (long long)options->seq_length);
}

static int order_running(struct order *order, const struct data_part *part,
                         enum dataset_split which, const int64_t bounds[4],
                         const struct dataset_options *options, struct error *error)
{
    int64_t count = token_file_sequences(part->tokens), tokens = 0;
    int32_t *lengths = malloc((size_t)count * sizeof(*lengths) + 1);
    struct sample_index index;
    int result;

    if (!lengths)
        return no_memory(part, error);
    for (int64_t i = 0; i < count; i++)
        lengths[i] = token_file_length(part->tokens, i);
    for (int64_t i = bounds[which]; i < bounds[which + 1]; i++)
        tokens += lengths[i];
    if (tokens <= options->seq_length)
        result = too_few(part, which, bounds, tokens, options, error);
    else
        result =
            sample_index_build(&index, lengths, bounds[which], bounds[which + 1],
                               options->samples[which], options->seq_length, options->seed, error);
    free(lengths);
    if (result < 0)
        return -1;
    *order = (struct order){
        .arrays = {index.documents, index.samples, index.shuffle},
        .bytes = {index.document_count * (int64_t)sizeof(*index.documents),
                  2 * (index.sample_count + 1) * (int64_t)sizeof(*index.samples),
                  index.sample_count * (int64_t)sizeof(*index.shuffle)},
    };
    return 0;
}

/* Megatron-LLM's order of conversations: permutations of the set, one after the other, cut to what
 * is wanted. The sets are drawn in turn from one generator. */
static int order_conversations(struct order *order, const struct data_part *part,
                               enum dataset_split which, const int64_t bounds[4],
                               const struct dataset_options *options, struct error *error)
{
    int64_t samples = options->samples[which] > 0 ? options->samples[which] : 1;
    int64_t *starts = malloc((size_t)(samples + 1) * sizeof(*starts));
    struct piece *pieces = malloc((size_t)samples * sizeof(*pieces));
    struct documents all = {0}, set = {0};
    struct random_state random;
    int result = -1;

    random_seed(&random, options->seed);
    if (!starts || !pieces) {
        no_memory(part, error);
        goto out;
    }
    if (list_conversations(&all, part, options, &random, error) < 0 ||
        list_documents(&set, part, 0, all.count, error) < 0)
        goto out;
    for (int s = options->split ? DATASET_TRAIN : (int)which; s <= (int)which; s++) {
        int64_t first = options->split ? bounds[s] : 0;
        int64_t last = options->split ? bounds[s + 1] : all.count;
        int64_t wanted = s == (int)which ? samples : options->samples[s];

        for (int64_t done = 0; done < wanted && last > first; done += last - first) {
            int64_t count = wanted - done < last - first ? wanted - done : last - first;

            memcpy(set.list, all.list + first, (size_t)(last - first) * sizeof(*set.list));
            random_shuffle_i32(&random, set.list, last - first);
            for (int64_t i = 0; s == (int)which && i < count; i++)
                pieces[done + i] = (struct piece){set.list[i], 0};
        }
    }
    for (int64_t i = 0; i <= samples; i++)
        starts[i] = i;
    *order = (struct order){
        .arrays = {[ROW_STARTS] = starts, [ROW_PIECES] = pieces},
        .bytes = {[ROW_STARTS] = (samples + 1) * (int64_t)sizeof(*starts),
                  [ROW_PIECES] = samples * (int64_t)sizeof(*pieces)},
    };
    starts = NULL;
    pieces = NULL;
    result = 0;
out:
    free(starts);
    free(pieces);
    free(all.list);
    free(set.list);
    return result;
}

static int order_packed(struct order *order, const struct data_part *part, enum dataset_split which,
                        const int64_t bounds[4], const struct dataset_options *options,
                        struct error *error)
{
    int64_t first = part->roles ? 0 : bounds[which];
    int64_t most = dataset_sequences_most(options->seq_length);
    struct documents documents = {0};
    struct random_state random;
    int result;

    random_seed(&random, options->seed);
    if (part->roles)
        result = list_conversations(&documents, part, options, &random, error);
    else
        result = list_documents(&documents, part, bounds[which], bounds[which + 1], error);
    /* One sequence of a row is for what is left of it. */
    if (result == 0)
        result = packing_build(order, part, documents.list + bounds[which] - first,
                               bounds[which + 1] - bounds[which], options->samples[which],
                               options->seq_length, most > 1 ? most - 1 : 1, &random, error);
    free(documents.list);
    return result;
}

static int make_order(struct samples *samples, enum dataset_split which, const int64_t bounds[4],
                      const struct dataset_options *options, struct error *error)
{
    if (samples->running)
        return order_running(&samples->order, samples->part, which, bounds, options, error);
    if (bounds[which + 1] == bounds[which])
        return no_documents(samples->part, which, options, error);
    if (options->packing)
        return order_packed(&samples->order, samples->part, which, bounds, options, error);
    return order_conversations(&samples->order, samples->part, which, bounds, options, error);
}

/* All that the order follows from, and nothing else: the bounds and not the split that they are
 * from, and what is wanted of another set only where that is drawn first. */
static struct order_key key_of(const struct samples *samples, enum dataset_split which,
                               const int64_t bounds[4], const struct dataset_options *options)
{
    bool in_turn = samples->part->roles && !options->packing && options->split;
    int64_t wanted[3] = {0};
    char text[512];

    for (int s = in_turn ? DATASET_TRAIN : (int)which; s <= (int)which; s++)
        wanted[s] = options->samples[s];
    snprintf(text, sizeof(text),
             "samples 2 %016llx %s %s %s %d of %lld %lld %lld %lld length %lld most %lld seed %u "
             "samples %lld %lld %lld",
             (unsigned long long)token_file_index_hash(samples->part->tokens),
             samples->part->roles ? "roles" : "text", options->packing ? "packed" : "",
             options->split ? "divided" : "whole", (int)which, (long long)bounds[0],
             (long long)bounds[1], (long long)bounds[2], (long long)bounds[3],
             (long long)options->seq_length, (long long)dataset_sequences_most(options->seq_length),
             options->seed, (long long)wanted[0], (long long)wanted[1], (long long)wanted[2]);
    return order_key_of(text);
}

/* Conversations that do not fit are not what was meant, mostly. */
static void warn_of_long(const struct data_part *part, int64_t seq_length)
{
    int64_t count = 0;

    for (int64_t i = 0; i < token_file_sequences(part->tokens); i++)
        count += token_file_length(part->tokens, i) > seq_length + 1;
    if (count > 0)
        log_warning("%s: %lld of %lld conversations are longer than a row of %lld tokens and are "
                    "cut off",
                    token_file_prefix(part->tokens), (long long)count,
                    (long long)token_file_sequences(part->tokens), (long long)seq_length);
}

/* How much there is of what samples_epochs() counts. A conversation is one piece. */
static double measure_epoch(const struct samples *samples, const int64_t bounds[4],
                            enum dataset_split which)
{
    const struct data_part *part = samples->part;
    int64_t measure = 0;

    if (part->roles && !samples->running)
        return (double)(bounds[which + 1] - bounds[which]);
    for (int64_t i = bounds[which]; i < bounds[which + 1]; i++) {
        int32_t tokens = token_file_length(part->tokens, i);

        measure += samples->running ? tokens : tokens > 0 ? tokens - 1 : 0;
    }
    return (double)measure;
}

int samples_open(struct samples *samples, const struct data_part *part, enum dataset_split which,
                 const struct dataset_options *options, struct error *error)
{
    struct order_key key;
    int64_t bounds[4];

    *samples = (struct samples){.part = part, .running = !part->roles && !options->packing};
    if (find_bounds(bounds, part, which, options, error) < 0)
        return -1;
    key = key_of(samples, which, bounds, options);
    if (!options->cache || !order_load(&samples->order, options->cache, &key)) {
        if (make_order(samples, which, bounds, options, error) < 0)
            return -1;
        if (options->cache)
            order_store(&samples->order, options->cache, &key);
    }
    samples->count = samples->running
                         ? samples->order.bytes[RUNNING_SHUFFLE] / (int64_t)sizeof(int64_t)
                         : samples->order.bytes[ROW_STARTS] / (int64_t)sizeof(int64_t) - 1;
    samples->epoch = measure_epoch(samples, bounds, which);
    if (part->roles)
        warn_of_long(part, options->seq_length);
    return 0;
}

void samples_close(struct samples *samples)
{
    order_destroy(&samples->order);
    *samples = (struct samples){0};
}

/* --- rows ------------------------------------------------------------------------------------- */

/* Copy tokens [offset, offset + count) of a document. */
static int read_tokens(const struct data_part *part, int64_t document, int64_t offset,
                       int64_t count, int64_t vocab_size, int32_t *tokens, struct error *error)
{
    token_file_read(part->tokens, document, offset, count, tokens);
    for (int64_t k = 0; k < count; k++)
        if (tokens[k] < 0 || tokens[k] >= vocab_size)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s.bin: document %lld has token %d at position %lld, but the model's"
                             " vocabulary is %lld (0 to %lld); was it tokenized for another model?",
                             token_file_prefix(part->tokens), (long long)document, tokens[k],
                             (long long)offset + k, (long long)vocab_size,
                             (long long)vocab_size - 1);
    return 0;
}

/* What follows an end of document, where the options ask for it. */
static void apply_ends(const struct dataset_options *options, struct dataset_row *row)
{
    int64_t most = dataset_sequences_most(options->seq_length);
    int32_t position = 0;

    row->start_count = 1;
    row->starts[0] = 0;
    for (int64_t t = 0; t < options->seq_length; t++) {
        bool end = options->eod >= 0 && row->tokens[t] == options->eod;

        row->positions[t] = position++;
        row->weights[t] = end && options->eod_mask_loss ? 0 : 1;
        if (end && options->reset_positions)
            position = 0;
        if (end && options->reset_attention && t + 1 < options->seq_length &&
            row->start_count < most)
            row->starts[row->start_count++] = (int32_t)t + 1;
    }
}

static int read_running(const struct samples *samples, int64_t i,
                        const struct dataset_options *options, struct dataset_row *row,
                        struct error *error)
{
    const struct data_part *part = samples->part;
    const int32_t *documents = samples->order.arrays[RUNNING_DOCUMENTS];
    const int64_t *cuts = samples->order.arrays[RUNNING_CUTS];
    const int64_t *shuffle = samples->order.arrays[RUNNING_SHUFFLE];
    int64_t position = cuts[2 * shuffle[i]], offset = cuts[2 * shuffle[i] + 1];

    while (offset == token_file_length(part->tokens, documents[position])) {
        position++; /* an empty document */
        offset = 0;
    }
    /* The first token is no target and the last is nothing else. */
    if (read_tokens(part, documents[position], offset++, 1, options->vocab_size, row->tokens,
                    error) < 0)
        return -1;
    for (int64_t t = 0; t < options->seq_length; offset = 0) {
        int32_t document = documents[position++];
        int64_t count = token_file_length(part->tokens, document) - offset;

        if (count > options->seq_length - t)
            count = options->seq_length - t;
        if (read_tokens(part, document, offset, count, options->vocab_size, row->targets + t,
                        error) < 0)
            return -1;
        t += count;
    }
    memcpy(row->tokens + 1, row->targets, (size_t)(options->seq_length - 1) * sizeof(*row->tokens));
    if (row->answers)
        memset(row->answers, 0, (size_t)options->seq_length);
    apply_ends(options, row);
    return 0;
}

/* Which of `count` targets at place `t`, with these roles, are answers. */
static void mark_answers(const struct dataset_options *options, const struct dataset_row *row,
                         const int32_t *roles, int64_t t, int64_t count)
{
    const uint8_t *of = options->template_tokens;
    int hidden = of ? of[row->tokens[t]] : 0;

    for (int64_t k = 0; k < count; k++) {
        if (hidden > 0)
            hidden--;
        if (of && of[row->targets[t + k]] > hidden)
            hidden = of[row->targets[t + k]];
        row->answers[t + k] = roles[k] == ROLE_ASSISTANT && hidden == 0;
    }
}

/* Weights of `count` targets at place `t` from their roles, and which are answers. */
static int read_weights(const struct data_part *part, const struct piece *piece, int64_t t,
                        int64_t count, const struct dataset_options *options,
                        struct dataset_row *row, struct error *error)
{
    int32_t *room = row->positions + t; /* not yet in use */
    float *weights = row->weights + t;

    if (!part->roles) {
        for (int64_t k = 0; k < count; k++)
            weights[k] = 1;
        if (row->answers)
            memset(row->answers + t, 0, (size_t)count);
        return 0;
    }
    token_file_read(part->roles, piece->document, (int64_t)piece->offset + 1, count, room);
    for (int64_t k = 0; k < count; k++) {
        if (room[k] < ROLE_SYSTEM || room[k] > ROLE_ASSISTANT)
            return error_set(error, EXIT_STATUS_DATA,
                             "%s.bin: document %d has role %d at position %lld; there are 0"
                             " (system), 1 (user) and 2 (assistant)",
                             token_file_prefix(part->roles), piece->document, room[k],
                             (long long)(piece->offset + 1 + k));
        weights[k] = room[k] == ROLE_ASSISTANT ? 1 : (float)options->loss_mask_weight;
    }
    if (row->answers)
        mark_answers(options, row, room, t, count);
    return 0;
}

/* Put a piece at place `t`; returns the places it took, -1 for an error. */
static int64_t put_piece(const struct data_part *part, const struct piece *piece, int64_t t,
                         const struct dataset_options *options, struct dataset_row *row,
                         struct error *error)
{
    int64_t count = piece_tokens(part, piece, options->seq_length) - 1;

    if (count < 1)
        return 0;
    if (read_tokens(part, piece->document, piece->offset, 1, options->vocab_size, row->tokens + t,
                    error) < 0 ||
        read_tokens(part, piece->document, (int64_t)piece->offset + 1, count, options->vocab_size,
                    row->targets + t, error) < 0 ||
        read_weights(part, piece, t, count, options, row, error) < 0)
        return -1;
    memcpy(row->tokens + t + 1, row->targets + t, (size_t)(count - 1) * sizeof(*row->tokens));
    for (int64_t k = 0; k < count; k++)
        row->positions[t + k] = (int32_t)k;
    return count;
}

static int read_pieces(const struct samples *samples, int64_t i,
                       const struct dataset_options *options, struct dataset_row *row,
                       struct error *error)
{
    const int64_t *starts = samples->order.arrays[ROW_STARTS];
    const struct piece *pieces = samples->order.arrays[ROW_PIECES];
    int64_t t = 0, places;

    row->start_count = 0;
    for (int64_t p = starts[i]; p < starts[i + 1]; p++) {
        places = put_piece(samples->part, &pieces[p], t, options, row, error);
        if (places < 0)
            return -1;
        if (places > 0)
            row->starts[row->start_count++] = (int32_t)t;
        t += places;
    }
    /* What is left attends to itself, where rows can have several sequences. */
    if (t < options->seq_length && (options->packing || row->start_count == 0))
        row->starts[row->start_count++] = (int32_t)t;
    for (int32_t k = 0; t < options->seq_length; t++, k++) {
        row->tokens[t] = 0;
        row->targets[t] = -1;
        row->weights[t] = 0;
        row->positions[t] = options->packing ? k : (int32_t)t;
        if (row->answers)
            row->answers[t] = 0;
    }
    return 0;
}

int64_t samples_places(const struct samples *samples, int64_t i, int64_t seq_length)
{
    const int64_t *starts = samples->order.arrays[ROW_STARTS];
    const struct piece *pieces = samples->order.arrays[ROW_PIECES];
    int64_t places = 0;

    if (samples->running)
        return seq_length;
    for (int64_t p = starts[i]; p < starts[i + 1]; p++) {
        int64_t tokens = piece_tokens(samples->part, &pieces[p], seq_length);

        places += tokens > 0 ? tokens - 1 : 0;
    }
    return places;
}

double samples_epochs(const struct samples *samples, int64_t i, int64_t seq_length)
{
    const int64_t *starts = samples->order.arrays[ROW_STARTS];
    double share = samples->part->roles && !samples->running
                       ? (double)(starts[i + 1] - starts[i])
                       : (double)samples_places(samples, i, seq_length);

    return share / samples->epoch;
}

int samples_read(const struct samples *samples, int64_t i, const struct dataset_options *options,
                 struct dataset_row *row, struct error *error)
{
    return samples->running ? read_running(samples, i, options, row, error)
                            : read_pieces(samples, i, options, row, error);
}
