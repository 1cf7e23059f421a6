/* JSON that somebody else wrote, looked at before memory is spent on it.
 *
 * A parsed value takes up to 250 bytes where its text takes two or three: files of a few megabytes
 * that are nothing but brackets would fill a machine's memory.
 */
#ifndef MTLLM_CKPT_JSON_TEXT_H
#define MTLLM_CKPT_JSON_TEXT_H

#include <stddef.h>

#include <jansson.h>

/* How many values (objects, arrays, members, elements) a text may hold. A tensor is nine of a
 * header's and one of an index's: 233,000 tensors, two and a half times DeepSeek-V3's. The
 * largest tokenizers have two million. */
#define JSON_CONFIG_VALUES    ((size_t)1 << 18) /* at most 64 MiB when parsed */
#define JSON_TENSORS_VALUES   ((size_t)1 << 21) /* 512 MiB */
#define JSON_TOKENIZER_VALUES ((size_t)1 << 22) /* 1 GiB */

/* As json_loadb(); a text that could hold more than `most` values is refused unparsed, and a key
 * that stands twice is named. jansson itself refuses more than 2048 levels. */
json_t *json_text_parse(const char *text, size_t length, size_t most, size_t flags,
                        json_error_t *reason);

/* As json_dumps(), indented and with a line end; the caller frees it. NULL when memory runs out, or
 * for NULL. */
char *json_text_dump(const json_t *json, size_t flags);

#endif
