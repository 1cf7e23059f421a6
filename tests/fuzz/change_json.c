/* Mutations of JSON that are JSON again: what a random byte makes of it no reader looks at twice.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tests/fuzz/fuzz.h"

static json_t *odd_value(void)
{
    static const json_int_t integers[] = {0,         1,         -1,        2,         7,
                                          255,       INT32_MAX, 1LL << 32, 1LL << 40, 1LL << 53,
                                          1LL << 62, INT64_MAX, INT64_MIN};
    static const char *const strings[] = {"",
                                          "F32",
                                          "BF16",
                                          "F16",
                                          "F4",
                                          "I64",
                                          "one",
                                          "two",
                                          "..",
                                          "a/b",
                                          "default",
                                          "llama",
                                          "full_attention",
                                          "silu",
                                          "\033[2J\n",
                                          "model.layers.0.mlp.up_proj.weight"};
    static const double reals[] = {0, -1, 0.5, 1e-300, 1e300, 1e-5, 4.9e-324};

    switch (rand() % 8) {
    case 0:
        return json_null();
    case 1:
        return json_boolean(rand() % 2);
    case 2:
        return json_array();
    case 3:
        return json_object();
    case 4:
        return json_real(reals[(size_t)rand() % (sizeof(reals) / sizeof(*reals))]);
    case 5:
        return json_string(strings[(size_t)rand() % (sizeof(strings) / sizeof(*strings))]);
    default:
        return json_integer(integers[(size_t)rand() % (sizeof(integers) / sizeof(*integers))]);
    }
}

/* Count the containers below `json`, itself too; the one that brings *left to zero is the answer.
 */
static json_t *nth_container(json_t *json, int *left)
{
    json_t *value, *found = NULL;
    const char *key;
    size_t i;

    if (!json_is_object(json) && !json_is_array(json))
        return NULL;
    if ((*left)-- == 0)
        return json;
    json_object_foreach(json, key, value)
    {
        if (!found)
            found = nth_container(value, left);
    }
    json_array_foreach(json, i, value)
    {
        if (!found)
            found = nth_container(value, left);
    }
    return found;
}

static json_t *random_container(json_t *root)
{
    int left = rand() % 64;
    json_t *found = nth_container(root, &left);

    if (!found && left < 64) { /* fewer than that: left has been counted down by their number */
        left = rand() % 8;
        found = nth_container(root, &left);
    }
    return found ? found : root;
}

static const char *random_key(json_t *object)
{
    void *at = json_object_iter(object);

    for (size_t i = (size_t)rand() % json_object_size(object); i > 0; i--)
        at = json_object_iter_next(object, at);
    return json_object_iter_key(at);
}

static json_t *random_value(json_t *root)
{
    json_t *container = random_container(root), *value = NULL;

    if (json_object_size(container) > 0)
        value = json_object_get(container, random_key(container));
    else if (json_array_size(container) > 0)
        value = json_array_get(container, (size_t)rand() % json_array_size(container));
    return value ? json_deep_copy(value) : odd_value();
}

/* A neighbour of an integer, another value of the same text, or anything at all. */
static json_t *other_value(json_t *root, const json_t *value)
{
    json_int_t integer = json_integer_value(value);

    if (json_is_integer(value) && rand() % 2) {
        static const int steps[] = {1, -1, 2, 4, 8, -4};

        if (rand() % 4 == 0 && integer > -(1LL << 60) && integer < 1LL << 60)
            return json_integer(integer * 2);
        if (integer > INT64_MIN + 8 && integer < INT64_MAX - 8)
            return json_integer(integer + steps[rand() % 6]);
    }
    return rand() % 2 ? odd_value() : random_value(root);
}

/* What the readers ask for and the seeds do not have. */
static const char *rare_key(void)
{
    static const char *const keys[] = {
        "layer_types",           "quantization_config", "rope_scaling",   "type",
        "partial_rotary_factor", "full_attention",      "attention_bias", "max_sequence_length",
        "__metadata__",          "lm_head.weight",      "dtype",          "eos_token_id"};

    return keys[(size_t)rand() % (sizeof(keys) / sizeof(*keys))];
}

static void change_object(json_t *root, json_t *object)
{
    const char *key = json_object_size(object) > 0 ? random_key(object) : "a";
    const char *other = json_object_size(object) > 0 ? random_key(object) : "b";
    json_t *value = json_object_get(object, key);
    char name[64];

    switch (rand() % 7) {
    case 0:
        json_object_del(object, key);
        break;
    case 3:
        json_object_set_new(object, rare_key(), rand() % 2 ? odd_value() : random_value(root));
        break;
    case 1: /* another name */
        snprintf(name, sizeof(name), "%.50s%d", key, rand() % 10);
        json_object_set(object, name, value ? value : json_null());
        if (rand() % 2)
            json_object_del(object, key);
        break;
    case 2: /* another member's value */
        json_object_set_new(object, key, json_deep_copy(json_object_get(object, other)));
        break;
    default:
        json_object_set_new(object, key, other_value(root, value));
        break;
    }
}

static void change_array(json_t *root, json_t *array)
{
    size_t count = json_array_size(array), i = count ? (size_t)rand() % count : 0;

    if (count == 0 || rand() % 5 == 0)
        json_array_append_new(array, random_value(root));
    else if (rand() % 5 == 0)
        json_array_remove(array, i);
    else
        json_array_set_new(array, i, other_value(root, json_array_get(array, i)));
}

size_t change_json(uint8_t *data, size_t size, size_t room)
{
    json_t *root = json_loadb((const char *)data, size, 0, NULL), *container;
    size_t length;
    char *text;

    if (!root)
        return LLVMFuzzerMutate(data, size, room);
    for (int changes = 1 + rand() % 3; changes > 0; changes--) {
        container = random_container(root);
        if (json_is_object(container))
            change_object(root, container);
        else
            change_array(root, container);
    }
    text = json_dumps(root, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(root);
    length = text ? strlen(text) : room + 1;
    if (length <= room)
        memcpy(data, text, length);
    free(text);
    return length <= room ? length : size;
}
