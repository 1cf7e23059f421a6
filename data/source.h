/* What --data names: token files, each with its weight in the mixture.
 *
 * A file with roles is a pair as Megatron-LLM writes it, PREFIX-text and PREFIX-role: the same
 * sequences twice, tokens and the role of each. It is named by PREFIX.
 */
#ifndef MTLLM_DATA_SOURCE_H
#define MTLLM_DATA_SOURCE_H

#include "core/error.h"
#include "data/token_file.h"

/* Roles of tokens. */
enum { ROLE_SYSTEM = 0, ROLE_USER = 1, ROLE_ASSISTANT = 2 };

struct data_part {
    struct token_file *tokens;
    struct token_file *roles; /* NULL: every token is to be learned */
    double weight;            /* positive; all of a source add up to 1 */
};

struct data_source {
    struct data_part *parts; /* [count] */
    int count;
};

/* PREFIX.bin and PREFIX.idx, or where they are missing the pair PREFIX-text and PREFIX-role, which
 * must have the same sequences. The weight stays 0. Error: as token_file_open(). */
int data_part_open(struct data_part *part, const char *prefix, struct error *error);
void data_part_close(struct data_part *part); /* all zeros is nothing */

/* `text` is one PREFIX, or weights and prefixes by turns, separated by white space: "3 A 1 B".
 * Error: EXIT_STATUS_USAGE (not such a text), else as token_file_open(). */
int data_source_open(struct data_source *source, const char *text, struct error *error);
void data_source_close(struct data_source *source); /* all zeros is nothing */

#endif
