/* numpy's legacy random numbers (numpy.random.RandomState): what Megatron's sample order is drawn
 * from, so that the same seed gives the same order here and there. */
#ifndef MTLLM_DATA_RANDOM_H
#define MTLLM_DATA_RANDOM_H

#include <stdint.h>

/* Matsumoto and Nishimura, "Mersenne Twister" (1998), MT19937. */
enum { RANDOM_STATE_WORDS = 624 };

struct random_state {
    uint32_t words[RANDOM_STATE_WORDS];
    int next; /* words already used */
};

/* RandomState(seed). */
void random_seed(struct random_state *state, uint32_t seed);

/* 32 random bits. */
uint32_t random_next(struct random_state *state);

/* Uniform in [0, last], by masked rejection. */
uint64_t random_interval(struct random_state *state, uint64_t last);

/* RandomState.shuffle() of an array of one dimension. */
void random_shuffle_i32(struct random_state *state, int32_t *values, int64_t count);
void random_shuffle_i64(struct random_state *state, int64_t *values, int64_t count);

#endif
