#include "spank/arguments.h"

#include <stddef.h>
#include <string.h>

/* What follows "KEY=" in `word`, or NULL. */
static const char *value_of(const char *word, const char *key)
{
    size_t length = strlen(key);

    return strncmp(word, key, length) == 0 && word[length] == '=' ? word + length + 1 : NULL;
}

int arguments_parse(struct arguments *arguments, int count, char *const *words, struct error *error)
{
    int result = 0;

    *arguments = (struct arguments){NULL, NULL};
    for (int i = 0; i < count; i++) {
        const char *conf = value_of(words[i], "conf"), *models = value_of(words[i], "models");

        if (conf && *conf == '/')
            arguments->conf = conf;
        else if (models && *models == '/')
            arguments->models = models;
        else if (result == 0)
            result =
                error_set(error, EXIT_STATUS_CONFIGURATION,
                          "plugstack.conf: %s: %s; mtllm.so knows conf=FILE and models=DIR",
                          words[i], conf || models ? "not an absolute path" : "unknown argument");
    }
    return result;
}
