/* What people see of a run while it trains: lines on standard output or, where standard error is a
 * terminal, a bar there that shows how far the run is. Lines go on where standard output is none.
 */
#ifndef MTLLM_TRAINER_CONSOLE_H
#define MTLLM_TRAINER_CONSOLE_H

#include "trainer/metrics.h"

/* For rank 0; once a process, because messages (core/log.h) take the bar away for their line. No
 * bar with TERM=dumb, no colour with NO_COLOR. `steps`: of the whole training. */
void console_open(int64_t steps);
/* Takes the bar away. Nothing when none was opened. */
void console_close(void);

/* A step has been made: draws the bar, a few times a second at most. */
void console_step(const struct metrics_row *row);
/* The line of several steps, or of a validation. */
void console_line(const struct metrics_row *row);

#endif
