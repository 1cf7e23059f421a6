/* In what order a stage of a pipeline works: a pure function of the pipeline's shape, that every
 * rank can call for every other. What carries it out is pipeline.c.
 *
 * The model's layers are divided over stages * chunks virtual stages, one behind the other; virtual
 * stage chunk * stages + stage is that chunk of that stage. With more than one chunk a stage takes
 * its chunks by turns, so that filling and emptying the pipeline takes a stage's time over the
 * chunks (interleaved 1F1B: Narayanan et al., 2021).
 */
#ifndef MTLLM_TRAINER_PIPELINE_ORDER_H
#define MTLLM_TRAINER_PIPELINE_ORDER_H

#include <stdbool.h>
#include <stdint.h>

enum pipeline_schedule {
    PIPELINE_FORWARD_ONLY,
    PIPELINE_1F1B,       /* PipeDream-Flush; interleaved with several chunks */
    PIPELINE_ZERO_BUBBLE /* ZB-H1 (Qi et al., 2023): one chunk */
};

struct pipeline_shape {
    int stages, chunks;
    int64_t microbatches;
    enum pipeline_schedule schedule;
};

enum pipeline_work {
    PIPELINE_FORWARD,
    PIPELINE_BACKWARD,       /* gradients of the input and of the weights */
    PIPELINE_INPUT_GRADIENT, /* backward's first part, */
    PIPELINE_WEIGHT_GRADIENT /* and what it left for later */
};

struct pipeline_action {
    enum pipeline_work work;
    int chunk;
    int64_t microbatch;
};

/* What one stage does. Forwards of all stages are in the same order, and so are backwards: a
 * group of microbatches in the first chunk, the same in the next, then the next group. Of one
 * chunk, microbatches are finished in the order in which they were begun. */
struct pipeline_order {
    struct pipeline_action *actions;
    int64_t count, most;
};

/* Memory for the order of that shape, whatever its schedule, and of fewer microbatches. -1: there
 * is none. */
int pipeline_order_create(struct pipeline_order *order, const struct pipeline_shape *shape);
void pipeline_order_set(struct pipeline_order *order, const struct pipeline_shape *shape,
                        int stage);
void pipeline_order_destroy(struct pipeline_order *order); /* of zeros: nothing */

/* The most microbatches of a chunk that are between their forward and the last that needs its
 * activations, both included; forward only: that some other stage may not have taken over yet. */
int64_t pipeline_order_in_flight(const struct pipeline_order *order, int chunk);
/* The most microbatches that are between the two parts of backward, both included. */
int64_t pipeline_order_deferred(const struct pipeline_order *order);

/* Where steps have from `fewest` to `most` microbatches: the number behind that of the shape, up to
 * `most`, that can need more of the above than those before it. They are few. */
int64_t pipeline_next_count(const struct pipeline_shape *shape, int64_t fewest, int64_t most);

/* Gradients that have left a chunk of the stage and have not been taken over yet, at most, besides
 * one a slot: where groups are larger than there are stages, those that wrap round to the last
 * stage are there that much sooner than it has use for them. */
int64_t pipeline_gradients_waiting(const struct pipeline_shape *shape, int stage);

/* Where a message comes from or goes to. */
struct pipeline_end {
    int stage;  /* -1: there is none */
    bool wraps; /* between the last stage and the first */
};

/* From whom an action's input comes, and to whom its result goes. */
struct pipeline_end pipeline_source(const struct pipeline_shape *shape, int stage,
                                    const struct pipeline_action *action);
struct pipeline_end pipeline_target(const struct pipeline_shape *shape, int stage,
                                    const struct pipeline_action *action);

/* Whether a stage may begin to receive what its next action needs before it has sent what the
 * present one gives. Not where a microbatch comes round so soon that the one depends on the
 * other: with several chunks and fewer microbatches than stages. */
bool pipeline_receives_early(const struct pipeline_shape *shape);

/* How long each kind of work takes a stage, in all its chunks together, by any measure. */
struct pipeline_costs {
    double work[PIPELINE_WEIGHT_GRADIENT + 1];
};

/* How long a batch takes when messages take no time. Negative: no memory. */
double pipeline_duration(const struct pipeline_shape *shape, const struct pipeline_costs *costs);

#endif
