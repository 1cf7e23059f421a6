/* How ranks share a model: tensor (tp), pipeline (pp) and data (dp) parallelism; and its sequences:
 * context parallelism (cp).
 *
 * Ranks run with tp fastest, then cp, then dp, then pp: without context parallelism
 * tp = r mod TP, dp = (r / TP) mod DP, pp = r / (TP * DP).
 */
#ifndef MTLLM_CORE_LAYOUT_H
#define MTLLM_CORE_LAYOUT_H

#include "core/error.h"
#include "core/model.h"
#include "core/settings.h"

struct layout {
    int tp, pp, dp, cp;
    int chunks; /* of the model, that each of several pipeline stages holds; 0 is 1 too */
};

struct layout_place {
    int tp, pp, dp, cp; /* coordinates of one rank */
};

static inline int layout_world(const struct layout *layout)
{
    return layout->tp * layout->pp * layout->dp * layout->cp;
}

/* Ranks with the same weights, among which their gradients are summed. */
static inline int layout_replicas(const struct layout *layout)
{
    return layout->dp * layout->cp;
}

static inline int layout_replica(const struct layout *layout, struct layout_place place)
{
    return place.dp * layout->cp + place.cp;
}

struct layout_place layout_place(const struct layout *layout, int rank);
int layout_rank(const struct layout *layout, struct layout_place place);

/* Tensor-parallel ranks that hold the same key/value head: 1, or more where there are more ranks
 * than heads. */
int layout_kv_sharing(const struct layout *layout, const struct model *model);

static inline int layout_chunks(const struct layout *layout)
{
    return layout->pp > 1 && layout->chunks > 1 ? layout->chunks : 1;
}

/* Pieces that the layers are divided into. Chunk c of pipeline stage s is the virtual stage
 * c * pp + s, so that a microbatch goes through all stages once for each chunk. */
static inline int layout_virtual_stages(const struct layout *layout)
{
    return layout->pp * layout_chunks(layout);
}

/* Layers [layout_first_layer(stage), layout_first_layer(stage + 1)) are those of virtual stage
 * `stage`: so divided that the one with most work, the head counted with the last one's, has least;
 * what does not divide is the later ones', which keep fewer microbatches in flight. */
int64_t layout_first_layer(const struct layout *layout, const struct model *model, int stage);

/* Whether the model can be shared so: every tensor-parallel rank has whole heads and columns, every
 * virtual stage a layer. Error: EXIT_STATUS_CONFIGURATION with the values that would do. */
int layout_check(const struct layout *layout, const struct settings *settings,
                 const struct model *model, const char *prefix, struct error *error);

/* The layout that the settings ask for in a world of `world` ranks; `world` 0 where it is not
 * known yet (sbatch): dp is then as set, or 1. `model` may be NULL where it is not known.
 * `prefix` is how options are spelled ("--" or "--llm-").
 * Error: EXIT_STATUS_CONFIGURATION with the arithmetic and the values that would do. */
int layout_from_settings(struct layout *layout, const struct settings *settings,
                         const struct model *model, int world, const char *prefix,
                         struct error *error);

#endif
