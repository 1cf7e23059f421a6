/* What the site wrote behind "mtllm.so" in plugstack.conf. */
#ifndef MTLLM_SPANK_ARGUMENTS_H
#define MTLLM_SPANK_ARGUMENTS_H

#include "core/error.h"

struct arguments {
    const char *conf;   /* conf=FILE: the site's settings; NULL for the installed mtllm.conf */
    const char *models; /* models=DIR: the presets; NULL for the installed ones */
};

/* Split KEY=VALUE words; the strings of `arguments` are parts of `words`. The first word that is
 * not understood is an error (EXIT_STATUS_CONFIGURATION); the others are taken all the same. */
int arguments_parse(struct arguments *arguments, int count, char *const *words,
                    struct error *error);

#endif
