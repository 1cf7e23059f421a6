/* Every weight of a model, and the part of each that one rank holds.
 *
 * Names, shapes and where a role's matrix lies in a stored tensor come from ckpt/hf_tensors.h. Here
 * is how a tensor is split over tensor-parallel ranks, where it lives in the pipeline, how it
 * starts and whether it decays. Allocation, initialisation, optimizer and checkpoints are derived
 * from it.
 *
 * A rank's weights are one flat array of elements; gradients, moments and master weights are
 * arrays of the same shape. Tensors that one product uses (q, k and v; gate and up) lie one
 * behind the other, which makes them one matrix; so do their biases. A matrix whose rows do not
 * stand together in the stored tensor (Falcon's q, k and v, by groups of heads) is several
 * parameters of the same role, one behind the other.
 */
#ifndef MTLLM_TRAINER_PARAMETER_H
#define MTLLM_TRAINER_PARAMETER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ckpt/hf_tensors.h"
#include "core/layout.h"
#include "core/model.h"
#include "kernels/kernels.h"

struct parameter {
    char name[96]; /* Hugging Face's */
    enum tensor_role role;
    int64_t layer; /* -1: not of a layer */
    int dimensions;
    int64_t shape[2];  /* of the whole stored tensor, [out, in]; [n, 1] for vectors */
    struct tile local; /* this rank's rectangle of it; rows may be 0 */
    int64_t offset;    /* of its first element in the rank's arrays */
    int64_t count;     /* elements here: local.rows * local.columns */
    double init_std;   /* of matrices: normal distribution */
    double init_value; /* of vectors */
    bool decay;        /* weight decay applies */
    bool counts;       /* of the ranks that hold the same, this is the one that counts */
    uint64_t random;   /* key of its initial values */
};

/* Elements [first, first + count) of the rank's arrays, whose gradients are summed over replicas,
 * and whose weights are gathered from them, at one time: the embedding, a layer, the final norm
 * with the head, the tied embedding's second home. Replicas share each evenly. */
struct bucket {
    int64_t first, count;
};

struct parameters {
    struct parameter *list; /* of this rank, in the order of their offsets */
    size_t count;
    struct bucket *buckets; /* in that order too */
    size_t bucket_count;
    int64_t elements; /* of the rank's arrays, gaps for alignment included */
};

/* A rectangle of a parameter that one replica keeps the optimizer's state of, and updates. */
struct piece {
    const struct parameter *parameter;
    struct tile tile; /* of the whole stored tensor */
    int64_t offset;   /* in the rank's weights and gradients */
    int64_t state;    /* in its arrays of optimizer state */
    int64_t count;
};

/* The part of `model` that the rank at `place` holds. Error: EXIT_STATUS_SYSTEM (memory). */
int parameters_create(struct parameters *parameters, const struct model *model,
                      const struct layout *layout, struct layout_place place, struct error *error);
void parameters_destroy(struct parameters *parameters);

/* What replica `replica` of `replicas` updates: its share of every bucket, of which its arrays of
 * state hold parameters->elements / replicas. One of one: all parameters, whole. The list is to be
 * freed. Error: EXIT_STATUS_SYSTEM (memory). */
int parameters_share(const struct parameters *parameters, int replica, int replicas,
                     struct piece **pieces, size_t *count, struct error *error);

/* The first parameter of a role in a layer (-1 outside layers), where the matrix begins, or NULL
 * when it is not on this rank. */
const struct parameter *parameters_find(const struct parameters *parameters, enum tensor_role role,
                                        int64_t layer);

/* Rows of the vocabulary on tensor-parallel rank `tp`: [*first, *first + *count). */
void vocabulary_shard(const struct model *model, const struct layout *layout, int tp,
                      int64_t *first, int64_t *count);

#endif
