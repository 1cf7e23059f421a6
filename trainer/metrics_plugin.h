/* A site's own metrics of a validation (mtllm-metric.h), which run in a process of their own
 * (metric_host.h): an object that crashes, takes too long, returns what is no number or was built
 * for something else is named in a warning and switched off, and the training goes on.
 */
#ifndef MTLLM_TRAINER_METRICS_PLUGIN_H
#define MTLLM_TRAINER_METRICS_PLUGIN_H

#include "trainer/metrics.h"
#include "trainer/metric_host.h"
#include "trainer/team.h"

struct metrics_plugin;

/* Collective. Ranks that `observe` give tokens to the object, `capacity` at most at one time, for
 * which it may take `patience_s`.
 * *plugin is NULL where `path` is NULL or the object is switched off, which a warning says. Error,
 * the same on every rank: EXIT_STATUS_CONFIGURATION when there is no such file. */
int metrics_plugin_open(struct metrics_plugin **plugin, const char *path, struct team *team,
                        bool observes, int64_t capacity, int64_t vocabulary, int64_t patience_s,
                        struct error *error);
void metrics_plugin_close(struct metrics_plugin *plugin); /* NULL is nothing */

/* Whether a metric of it wants logits; of NULL, none does. */
bool metrics_plugin_wants_logits(const struct metrics_plugin *plugin);

/* Before the first tokens of a validation. */
void metrics_plugin_begin(struct metrics_plugin *plugin);
/* On ranks that observe. */
void metrics_plugin_add(struct metrics_plugin *plugin, const struct mtllm_metric_tokens *tokens);
/* Collective: after the last. On rank 0 values[*count], which stay until the next. When it has been
 * switched off *plugin is closed and NULL, on every rank. */
int metrics_plugin_end(struct metrics_plugin **plugin, const struct metrics_custom **values,
                       int *count, struct error *error);

#endif
