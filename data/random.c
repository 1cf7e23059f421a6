#include "data/random.h"

enum { MIDDLE = 397 };

void random_seed(struct random_state *state, uint32_t seed)
{
    for (int i = 0; i < RANDOM_STATE_WORDS; i++) {
        state->words[i] = seed;
        seed = UINT32_C(1812433253) * (seed ^ (seed >> 30)) + (uint32_t)i + 1;
    }
    state->next = RANDOM_STATE_WORDS;
}

static void refill(struct random_state *state)
{
    uint32_t *words = state->words;

    for (int i = 0; i < RANDOM_STATE_WORDS; i++) {
        uint32_t joined = (words[i] & UINT32_C(0x80000000)) |
                          (words[(i + 1) % RANDOM_STATE_WORDS] & UINT32_C(0x7fffffff));

        words[i] = words[(i + MIDDLE) % RANDOM_STATE_WORDS] ^ (joined >> 1) ^
                   (joined & 1 ? UINT32_C(0x9908b0df) : 0);
    }
    state->next = 0;
}

uint32_t random_next(struct random_state *state)
{
    uint32_t word;

    if (state->next == RANDOM_STATE_WORDS)
        refill(state);
    word = state->words[state->next++];
    word ^= word >> 11;
    word ^= (word << 7) & UINT32_C(0x9d2c5680);
    word ^= (word << 15) & UINT32_C(0xefc60000);
    return word ^ (word >> 18);
}

uint64_t random_interval(struct random_state *state, uint64_t last)
{
    uint64_t mask = last, value;

    if (last == 0)
        return 0; /* numpy draws nothing here */
    for (int shift = 1; shift < 64; shift *= 2)
        mask |= mask >> shift;
    do {
        value = random_next(state);
        if (last > UINT32_MAX)
            value = value << 32 | random_next(state);
        value &= mask;
    } while (value > last);
    return value;
}

void random_shuffle_i32(struct random_state *state, int32_t *values, int64_t count)
{
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t j = (int64_t)random_interval(state, (uint64_t)i);
        int32_t value = values[i];

        values[i] = values[j];
        values[j] = value;
    }
}

void random_shuffle_i64(struct random_state *state, int64_t *values, int64_t count)
{
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t j = (int64_t)random_interval(state, (uint64_t)i);
        int64_t value = values[i];

        values[i] = values[j];
        values[j] = value;
    }
}
