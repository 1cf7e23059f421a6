/* make_tokens PREFIX VOCABULARY DOCUMENTS SEED [natural]: a small corpus that can be learned, for
 * tests.
 *
 * Every token is followed by one of two others, so a model that learns brings its loss from
 * ln(VOCABULARY) towards ln 2. With "natural" it falls as it does for text: how often a token comes
 * follows Zipf's law with Mandelbrot's correction, and every other one is one of a few that are
 * usual after the one before it. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/token_file.h"

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

int main(int argc, char **argv)
{
    struct token_writer *writer = NULL;
    struct error error = {0};
    bool natural = argc == 6 && strcmp(argv[5], "natural") == 0;
    int32_t vocabulary = argc > 2 ? atoi(argv[2]) : 0, tokens[512];
    uint64_t state;
    double *frequencies;
    int result = 0;

    if ((argc != 5 && !natural) || vocabulary < 1) {
        fprintf(stderr, "usage: make_tokens PREFIX VOCABULARY DOCUMENTS SEED [natural]\n");
        return EXIT_STATUS_USAGE;
    }
    state = strtoull(argv[4], NULL, 10);
    frequencies = zipf_frequencies(vocabulary);
    if (!frequencies)
        return EXIT_STATUS_SYSTEM;
    result = token_writer_open(&writer, argv[1], vocabulary, &error);
    for (int document = 0; result == 0 && document < atoi(argv[3]); document++) {
        int64_t length = 40 + random_below(&state, 400);
        int32_t token = random_below(&state, vocabulary);

        for (int64_t i = 0; i < length; i++) {
            tokens[i] = token;
            token = natural
                        ? natural_successor(token, frequencies, vocabulary, &state)
                        : (token * 5 + 7 + (int32_t)(random_next(&state) % 2) * 11) % vocabulary;
        }
        result = token_writer_add(writer, tokens, length, &error);
    }
    if (result == 0)
        result = token_writer_commit(writer, &error);
    token_writer_close(writer);
    free(frequencies);
    return result == 0 ? 0 : error_print(&error);
}
