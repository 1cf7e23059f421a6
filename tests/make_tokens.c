/* make_tokens PREFIX VOCABULARY DOCUMENTS SEED [natural | chat MEAN]: a small corpus that can be
 * learned, for tests.
 *
 * Every token is followed by one of two others, so a model that learns brings its loss from
 * ln(VOCABULARY) towards ln 2. With "natural" it falls as it does for text: how often a token comes
 * follows Zipf's law with Mandelbrot's correction, and every other one is one of a few that are
 * usual after the one before it. With "chat" documents are conversations, PREFIX-text and
 * PREFIX-role, of MEAN tokens in the mean and at most six times that. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/source.h"

enum { USUAL_SUCCESSORS = 8 };

static uint64_t random_next(uint64_t *state)
{
    /* SplitMix64 (Steele, Lea, Flood 2014) */
    uint64_t z = (*state += 0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int32_t random_below(uint64_t *state, int32_t bound)
{
    return (int32_t)(random_next(state) % (uint64_t)bound);
}

/* frequencies[i] = how often one of the tokens 0 to i comes, in all. */
static double *zipf_frequencies(int32_t vocabulary)
{
    double *frequencies = malloc((size_t)vocabulary * sizeof(*frequencies)), sum = 0;

    for (int32_t i = 0; frequencies && i < vocabulary; i++)
        frequencies[i] = sum += 1 / (i + 2.7);
    return frequencies;
}

static int32_t zipf_token(const double *frequencies, int32_t vocabulary, uint64_t *state)
{
    double wanted = frequencies[vocabulary - 1] * (double)(random_next(state) >> 11) * 0x1p-53;
    int32_t low = 0, high = vocabulary - 1;

    while (low < high) {
        int32_t middle = (low + high) / 2;

        if (frequencies[middle] > wanted)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static int32_t natural_successor(int32_t token, const double *frequencies, int32_t vocabulary,
                                 uint64_t *state)
{
    uint64_t usual = (uint64_t)token * USUAL_SUCCESSORS;

    if (random_next(state) % 2)
        return zipf_token(frequencies, vocabulary, state);
    usual += random_next(state) % USUAL_SUCCESSORS; /* always the same few for a token */
    return zipf_token(frequencies, vocabulary, &usual);
}

/* What the words of the command line ask for. */
struct corpus {
    const char *prefix;
    int32_t vocabulary, documents;
    bool natural;
    int32_t mean;        /* of a conversation; 0: none */
    double *frequencies; /* [vocabulary] */
    uint64_t state;
};

static int parse(struct corpus *corpus, int argc, char **argv)
{
    *corpus = (struct corpus){0};
    if (argc < 5)
        return -1;
    corpus->prefix = argv[1];
    corpus->vocabulary = atoi(argv[2]);
    corpus->documents = atoi(argv[3]);
    corpus->state = strtoull(argv[4], NULL, 10);
    if (argc == 6 && strcmp(argv[5], "natural") == 0)
        corpus->natural = true;
    else if (argc == 7 && strcmp(argv[5], "chat") == 0)
        corpus->mean = atoi(argv[6]);
    else if (argc != 5)
        return -1;
    if (corpus->vocabulary < 1 || (argc == 7 && corpus->mean < 2))
        return -1;
    corpus->frequencies = zipf_frequencies(corpus->vocabulary);
    return corpus->frequencies ? 0 : -1;
}

/* Half as long as the mean in most cases, to six times that. */
static int64_t chat_length(struct corpus *corpus)
{
    int32_t most = random_below(&corpus->state, 10) ? corpus->mean : 6 * corpus->mean;
    int64_t length = most / 5 + random_below(&corpus->state, most - most / 5 + 1);

    return length < 2 ? 2 : length;
}

static void fill_document(struct corpus *corpus, int32_t *tokens, int32_t *roles, int64_t length)
{
    int32_t vocabulary = corpus->vocabulary, token = random_below(&corpus->state, vocabulary);

    for (int64_t i = 0; i < length; i++) {
        tokens[i] = token;
        roles[i] = i % 20 < 8 ? ROLE_USER : ROLE_ASSISTANT;
        token =
            corpus->natural
                ? natural_successor(token, corpus->frequencies, vocabulary, &corpus->state)
                : (token * 5 + 7 + (int32_t)(random_next(&corpus->state) % 2) * 11) % vocabulary;
    }
}

static int write_corpus(struct corpus *corpus, struct error *error)
{
    int32_t most = corpus->mean > 0 ? 6 * corpus->mean : 440;
    int32_t *tokens = calloc((size_t)most + 2, sizeof(*tokens));
    int32_t *roles = calloc((size_t)most + 2, sizeof(*roles));
    struct token_writer *writer = NULL, *role_writer = NULL;
    char text[4096], role[4096];
    int result = tokens && roles ? 0 : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");

    snprintf(text, sizeof(text), "%s%s", corpus->prefix, corpus->mean > 0 ? "-text" : "");
    snprintf(role, sizeof(role), "%s-role", corpus->prefix);
    if (result == 0)
        result = token_writer_open(&writer, text, corpus->vocabulary, error);
    if (result == 0 && corpus->mean > 0)
        result = token_writer_open(&role_writer, role, ROLE_ASSISTANT + 1, error);
    for (int32_t i = 0; result == 0 && i < corpus->documents; i++) {
        int64_t length =
            corpus->mean > 0 ? chat_length(corpus) : 40 + random_below(&corpus->state, 400);

        fill_document(corpus, tokens, roles, length);
        result = token_writer_add(writer, tokens, length, error);
        if (result == 0 && role_writer)
            result = token_writer_add(role_writer, roles, length, error);
    }
    if (result == 0)
        result = token_writer_commit(writer, error);
    if (result == 0 && role_writer)
        result = token_writer_commit(role_writer, error);
    token_writer_close(writer);
    token_writer_close(role_writer);
    free(tokens);
    free(roles);
    return result;
}

int main(int argc, char **argv)
{
    struct error error = {0};
    struct corpus corpus;
    int result;

    if (parse(&corpus, argc, argv) < 0) {
        fprintf(stderr, "usage: make_tokens PREFIX VOCABULARY DOCUMENTS SEED"
                        " [natural | chat MEAN]\n");
        return EXIT_STATUS_USAGE;
    }
    result = write_corpus(&corpus, &error);
    free(corpus.frequencies);
    return result == 0 ? 0 : error_print(&error);
}
