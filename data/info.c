/* mtllm-data info: what is in a token file. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/commands.h"
#include "data/source.h"
#include "data/token_set.h"

enum {
    BINS = 64, /* bin 0: no token; bin k: from 2^(k-1), below 2^k */
    BAR_COLUMNS = 40,
    ROLES = 3,
};

struct summary {
    int64_t least, most; /* tokens of a document */
    double mean;
    int64_t bins[BINS]; /* documents by tokens */
    int64_t roles[ROLES], other_roles;
};

static int64_t document_length(const struct token_file *file, int64_t document)
{
    int64_t tokens = 0;

    for (int64_t i = token_file_document(file, document);
         i < token_file_document(file, document + 1); i++)
        tokens += token_file_length(file, i);
    return tokens;
}

static int bin_of(int64_t length)
{
    int bin = 0;

    for (; length > 0; length >>= 1)
        bin++;
    return bin;
}

static void measure_documents(const struct token_file *file, struct summary *summary)
{
    int64_t documents = token_file_documents(file);

    for (int64_t i = 0; i < documents; i++) {
        int64_t length = document_length(file, i);

        if (i == 0 || length < summary->least)
            summary->least = length;
        if (length > summary->most)
            summary->most = length;
        summary->bins[bin_of(length)]++;
    }
    if (documents > 0)
        summary->mean = (double)token_file_tokens(file) / (double)documents;
}

static void count_roles(const struct token_file *file, struct summary *summary)
{
    int32_t roles[4096];
    const int64_t most = sizeof(roles) / sizeof(roles[0]);

    for (int64_t i = 0; i < token_file_sequences(file); i++) {
        int64_t length = token_file_length(file, i);

        for (int64_t done = 0, count; done < length; done += count) {
            count = length - done < most ? length - done : most;
            token_file_read(file, i, done, count, roles);
            for (int64_t k = 0; k < count; k++)
                if (roles[k] >= 0 && roles[k] < ROLES)
                    summary->roles[roles[k]]++;
                else
                    summary->other_roles++;
        }
    }
}

static int64_t bin_begin(int bin)
{
    return (int64_t)((UINT64_C(1) << bin) >> 1);
}

static int64_t bin_last(int bin)
{
    return (int64_t)((UINT64_C(1) << bin) - 1);
}

/* A line for each bin from the shortest document's to the longest's. */
static void print_bins(const struct summary *summary)
{
    int first = bin_of(summary->least), last = bin_of(summary->most);
    int64_t most = 0;

    for (int i = first; i <= last; i++)
        most = summary->bins[i] > most ? summary->bins[i] : most;
    if (most == 0)
        return;
    printf("\n%23s  documents\n", "length in tokens");
    for (int i = first; i <= last; i++) {
        int64_t documents = summary->bins[i];
        /* What is there is seen. */
        int columns = (int)((double)documents / (double)most * BAR_COLUMNS + 0.5);
        char bar[BAR_COLUMNS + 1] = {0};

        memset(bar, '#', (size_t)(documents > 0 && columns == 0 ? 1 : columns));
        printf("%10lld - %10lld  %9lld%s%s\n", (long long)bin_begin(i), (long long)bin_last(i),
               (long long)documents, *bar ? "  " : "", bar);
    }
}

static double percent(int64_t part, int64_t whole)
{
    return whole > 0 ? 100.0 * (double)part / (double)whole : 0;
}

static void print_info(const struct token_set *set, const char *prefix,
                       const struct summary *summary)
{
    const struct token_file *file = set->files[0];
    int64_t tokens = token_file_tokens(file), bytes = 0;

    for (int i = 0; i < set->count; i++)
        bytes += token_file_size_bytes(set->files[i]);
    printf("prefix     %s\n", prefix);
    printf("documents  %lld\n", (long long)token_file_documents(file));
    printf("sequences  %lld\n", (long long)token_file_sequences(file));
    printf("tokens     %lld\n", (long long)tokens);
    printf("dtype      %s\n", token_file_dtype_name(file));
    printf("shortest   %lld tokens\n", (long long)summary->least);
    printf("mean       %.1f tokens\n", summary->mean);
    printf("longest    %lld tokens\n", (long long)summary->most);
    printf("size       %lld bytes\n", (long long)bytes);
    if (set->count == 2) {
        printf("system     %.2f %% of the tokens\n", percent(summary->roles[ROLE_SYSTEM], tokens));
        printf("user       %.2f %%\n", percent(summary->roles[ROLE_USER], tokens));
        printf("trained    %.2f %% (%lld tokens)\n",
               percent(summary->roles[ROLE_ASSISTANT], tokens),
               (long long)summary->roles[ROLE_ASSISTANT]);
        if (summary->other_roles > 0)
            printf("no role    %.2f %%\n", percent(summary->other_roles, tokens));
    }
    print_bins(summary);
}

static json_t *bins_json(const struct summary *summary)
{
    json_t *bins = json_array();

    for (int i = 0; i < BINS; i++)
        if (summary->bins[i] > 0)
            json_array_append_new(bins,
                                  json_pack("{s:I, s:I, s:I}", "least", (json_int_t)bin_begin(i),
                                            "most", (json_int_t)bin_last(i), "documents",
                                            (json_int_t)summary->bins[i]));
    return bins;
}

static int print_json(const struct token_set *set, const char *prefix,
                      const struct summary *summary, struct error *error)
{
    const struct token_file *file = set->files[0];
    json_t *object, *roles = NULL;
    int64_t bytes = 0;
    int result = 0;

    for (int i = 0; i < set->count; i++)
        bytes += token_file_size_bytes(set->files[i]);
    if (set->count == 2)
        roles = json_pack("{s:I, s:I, s:I, s:I}", "system", (json_int_t)summary->roles[ROLE_SYSTEM],
                          "user", (json_int_t)summary->roles[ROLE_USER], "trained",
                          (json_int_t)summary->roles[ROLE_ASSISTANT], "other",
                          (json_int_t)summary->other_roles);
    object = json_pack("{s:s, s:I, s:I, s:I, s:s, s:I, s:f, s:I, s:I, s:o, s:o*}", "prefix", prefix,
                       "documents", (json_int_t)token_file_documents(file), "sequences",
                       (json_int_t)token_file_sequences(file), "tokens",
                       (json_int_t)token_file_tokens(file), "dtype", token_file_dtype_name(file),
                       "min_length", (json_int_t)summary->least, "mean_length", summary->mean,
                       "max_length", (json_int_t)summary->most, "size_bytes", (json_int_t)bytes,
                       "lengths", bins_json(summary), "roles", roles);
    if (!object || json_dumpf(object, stdout, JSON_REAL_PRECISION(12)) < 0)
        result = error_set(error, EXIT_STATUS_IO,
                           "%s: cannot be printed as JSON (a name that is no UTF-8?)", prefix);
    else
        printf("\n");
    json_decref(object);
    return result;
}

static int run(const struct command *command, const char *const *values, char *const *operands,
               int operand_count, struct error *error)
{
    struct summary summary = {.least = 0};
    struct token_set set;
    int result = 0;
    (void)operand_count;

    if (token_set_open(&set, operands[0], error) < 0)
        return -1;
    measure_documents(set.files[0], &summary);
    if (set.count == 2)
        count_roles(set.files[1], &summary);
    if (option_value(command, values, "json"))
        result = print_json(&set, operands[0], &summary, error);
    else
        print_info(&set, operands[0], &summary);
    token_set_close(&set);
    return result;
}

static const struct option_entry options[] = {
    {"json", NULL, NULL, NULL, "as one JSON object"},
    {NULL, NULL, NULL, NULL, NULL},
};

const struct command command_info = {
    .name = "info",
    .operands = "PREFIX",
    .least_operands = 1,
    .most_operands = 1,
    .help = "Check a token file, or a pair PREFIX-text and PREFIX-role, and say what it holds.",
    .options = options,
    .run = run,
};
