/* make_tokens PREFIX VOCABULARY DOCUMENTS SEED: a small corpus that can be learned, for tests.
 *
 * Every token is followed by one of two others, so a model that learns brings its loss from
 * ln(VOCABULARY) towards ln 2. */
#include <stdio.h>
#include <stdlib.h>

#include "data/token_file.h"

static uint64_t random_next(uint64_t *state)
{
    /* SplitMix64 (Steele, Lea, Flood 2014) */
    uint64_t z = (*state += 0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

int main(int argc, char **argv)
{
    struct token_writer *writer = NULL;
    struct error error = {0};
    uint64_t state;
    int32_t vocabulary, tokens[512];
    int result = 0;

    if (argc != 5) {
        fprintf(stderr, "usage: make_tokens PREFIX VOCABULARY DOCUMENTS SEED\n");
        return EXIT_STATUS_USAGE;
    }
    vocabulary = atoi(argv[2]);
    state = strtoull(argv[4], NULL, 10);
    result = token_writer_open(&writer, argv[1], vocabulary, &error);
    for (int document = 0; result == 0 && document < atoi(argv[3]); document++) {
        int64_t length = 40 + (int64_t)(random_next(&state) % 400);
        int32_t token = (int32_t)(random_next(&state) % (uint64_t)vocabulary);

        for (int64_t i = 0; i < length; i++) {
            tokens[i] = token;
            token = (token * 5 + 7 + (int32_t)(random_next(&state) % 2) * 11) % vocabulary;
        }
        result = token_writer_add(writer, tokens, length, &error);
    }
    if (result == 0)
        result = token_writer_commit(writer, &error);
    token_writer_close(writer);
    return result == 0 ? 0 : error_print(&error);
}
