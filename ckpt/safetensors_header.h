/* Parsing of what a safetensors file says about itself; the readers' inside. */
#ifndef MTLLM_CKPT_SAFETENSORS_HEADER_H
#define MTLLM_CKPT_SAFETENSORS_HEADER_H

#include <stddef.h>
#include <stdint.h>

#include "ckpt/safetensors.h"
#include "core/error.h"

/* Parse and check a header of `length` bytes in a file whose data area has `data_bytes` bytes and
 * begins at `data_offset`. *tensors (with count) is the caller's, names too: free with
 * safetensors_tensors_destroy(). `path` is kept in the tensors and must outlive them. */
int safetensors_header_parse(const char *text, size_t length, int64_t data_offset,
                             int64_t data_bytes, const char *path, int file,
                             struct safetensors_tensor **tensors, size_t *count,
                             struct error *error);
void safetensors_tensors_destroy(struct safetensors_tensor *tensors, size_t count);

/* One line of a weight_map. */
struct safetensors_mapping {
    char *tensor;
    int file; /* index into the index's files */
};

struct safetensors_index {
    char **files; /* names without directories */
    size_t file_count;
    struct safetensors_mapping *mappings; /* in the order of the tensors' names */
    size_t mapping_count;
};

/* Parse model.safetensors.index.json. File names that could leave the directory are refused. */
int safetensors_index_parse(struct safetensors_index *index, const char *text, size_t length,
                            const char *path, struct error *error);
void safetensors_index_destroy(struct safetensors_index *index);

#endif
