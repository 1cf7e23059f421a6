/* Every weight of a model, and the part of each that one rank holds.
 *
 * The table is the one place that knows names, shapes, how a tensor is split over tensor-parallel
 * ranks, where it lives in the pipeline, how it starts and whether it decays. Allocation,
 * initialisation, optimizer and checkpoints are derived from it.
 *
 * A rank's weights are one flat array of elements; gradients, moments and master weights are
 * arrays of the same shape. Tensors that one product uses (q, k and v; gate and up) lie one
 * behind the other, which makes them one matrix.
 */
#ifndef MTLLM_TRAINER_PARAMETER_H
#define MTLLM_TRAINER_PARAMETER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/layout.h"
#include "core/model.h"
#include "kernels/kernels.h"

enum parameter_role {
    PARAMETER_EMBEDDING,
    PARAMETER_INPUT_NORM,
    PARAMETER_Q,
    PARAMETER_K,
    PARAMETER_V,
    PARAMETER_O,
    PARAMETER_POST_NORM,
    PARAMETER_GATE,
    PARAMETER_UP,
    PARAMETER_DOWN,
    PARAMETER_FINAL_NORM,
    PARAMETER_HEAD,
    PARAMETER_ROLES
};

struct parameter {
    char name[96]; /* Hugging Face's */
    enum parameter_role role;
    int64_t layer; /* -1: not of a layer */
    int dimensions;
    int64_t shape[2];  /* of the whole tensor, [out, in]; [n, 1] for vectors */
    struct tile local; /* this rank's rectangle of it; rows may be 0 */
    int64_t offset;    /* of its first element in the rank's arrays */
    int64_t count;     /* elements here: local.rows * local.columns */
    double init_std;   /* normal distribution; norms start at 1 instead */
    bool decay;        /* weight decay applies */
    bool replicated;   /* every tensor-parallel rank holds the same */
    bool copy;         /* the tied embedding's second home, on the last stage */
    uint64_t random;   /* key of its initial values */
};

struct parameters {
    struct parameter *list; /* of this rank, in the order of their offsets */
    size_t count;
    int64_t elements; /* of the rank's arrays, gaps for alignment included */
};

/* The part of `model` that the rank at `place` holds. Error: EXIT_STATUS_SYSTEM (memory). */
int parameters_create(struct parameters *parameters, const struct model *model,
                      const struct layout *layout, struct layout_place place, struct error *error);
void parameters_destroy(struct parameters *parameters);

/* The parameter of a role in a layer (-1 outside layers), or NULL when it is not on this rank. */
const struct parameter *parameters_find(const struct parameters *parameters,
                                        enum parameter_role role, int64_t layer);

/* Rows of the vocabulary on tensor-parallel rank `tp`: [*first, *first + *count). */
void vocabulary_shard(const struct model *model, const struct layout *layout, int tp,
                      int64_t *first, int64_t *count);

#endif
