/* Arrays that decide the order of samples: made in memory, or mapped from a file that keeps them.
 *
 * A file is named by a key: a hash of everything that the arrays follow from, the content of an
 * index and settings, not the names of files. It appears whole or not at all, and is checked before
 * it is used; several processes may keep the same order at once.
 */
#ifndef MTLLM_DATA_ORDER_H
#define MTLLM_DATA_ORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ORDER_ARRAYS = 3 };

struct order {
    void *arrays[ORDER_ARRAYS]; /* malloc()ed, or in the map */
    int64_t bytes[ORDER_ARRAYS];
    void *map;
    size_t map_bytes;
};

void order_destroy(struct order *order); /* all zeros is nothing */

struct order_key {
    uint64_t words[2];
};

/* A hash of `text`, which names all that matters. */
struct order_key order_key_of(const char *text);

/* Map what `directory` keeps under that key. False: nothing, or something damaged, which is said.
 */
bool order_load(struct order *order, const char *directory, const struct order_key *key);
/* Keep it; the directory is made when it is missing. That it cannot be is said, once, and no error.
 */
void order_store(const struct order *order, const char *directory, const struct order_key *key);

#endif
