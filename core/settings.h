/* The settings table and resolved values.
 *
 * A value comes from the first of: command line, MTLLM_* environment, --config file, model
 * preset, site configuration, built-in default. Every value remembers where it came from.
 */
#ifndef MTLLM_CORE_SETTINGS_H
#define MTLLM_CORE_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "core/error.h"

enum setting_id {
#define SETTING(id, ...) SETTING_##id,
#include "core/settings.def"
#undef SETTING
    SETTING_COUNT
};

enum setting_type {
    SETTING_TYPE_INTEGER,
    SETTING_TYPE_REAL,
    SETTING_TYPE_BOOLEAN,
    SETTING_TYPE_TEXT,
    SETTING_TYPE_PATH,
    SETTING_TYPE_PATHS,
    SETTING_TYPE_CHOICE,
    SETTING_TYPE_DURATION,
};

enum setting_group {
    SETTING_GROUP_JOB,
    SETTING_GROUP_MODEL,
    SETTING_GROUP_DATA,
    SETTING_GROUP_TRAINING,
    SETTING_GROUP_OPTIMIZER,
    SETTING_GROUP_EVALUATION,
    SETTING_GROUP_CHECKPOINT,
    SETTING_GROUP_LOGGING,
    SETTING_GROUP_PLAN,
    SETTING_GROUP_COUNT
};

struct setting {
    const char *name; /* "micro-batch-size" */
    enum setting_group group;
    enum setting_type type;
    const char *unit;          /* what stands for the value in help */
    const char *default_value; /* "" when there is none */
    double minimum, maximum;   /* INTEGER, REAL and DURATION only */
    const char *choices;       /* CHOICE only: words separated by | */
    bool submit;               /* an option of sbatch, salloc and srun too */
    const char *help;
};

extern const struct setting setting_table[SETTING_COUNT];

/* Where a value came from, the strongest last. */
enum setting_source {
    SETTING_SOURCE_DEFAULT,
    SETTING_SOURCE_SITE,
    SETTING_SOURCE_PRESET,
    SETTING_SOURCE_CONFIG,
    SETTING_SOURCE_ENVIRONMENT,
    SETTING_SOURCE_COMMAND_LINE,
};

struct settings;

/* All settings at their defaults. NULL only when memory runs out. */
struct settings *settings_create(void);
void settings_destroy(struct settings *settings);

/* The id of `name`, with or without a leading "llm-", '-' and '_' alike; -1 if there is none. */
int setting_find(const char *name);

/* The table's name most like `name`, for "did you mean". Never NULL. */
const char *setting_nearest(const char *name);

/* Check `text` against type, range and choices without setting anything. `spelled` is how the
 * user wrote the setting ("--llm-tp", "tp in FILE:3"); it begins the message.
 * Error: EXIT_STATUS_USAGE. */
int setting_check(enum setting_id id, const char *text, const char *spelled, struct error *error);

/* Set one value unless a stronger source already has. `origin` says where it stands ("command
 * line", "/etc/mtllm/mtllm.conf:12"). Errors as setting_check(). */
int settings_set(struct settings *settings, enum setting_id id, const char *text,
                 enum setting_source source, const char *origin, const char *spelled,
                 struct error *error);

/* Read KEY = VALUE lines of an ini file; section names group them for readers and mean nothing.
 * Error: EXIT_STATUS_USAGE, naming file, line and key. */
int settings_read_file(struct settings *settings, const char *path, enum setting_source source,
                       struct error *error);

/* Read every MTLLM_NAME of the process environment. Unknown names are left alone. */
int settings_read_environment(struct settings *settings, struct error *error);

/* Read --NAME=VALUE and --NAME VALUE from argv[1..]. A BOOLEAN may stand alone for yes.
 * Error: EXIT_STATUS_USAGE. */
int settings_read_command_line(struct settings *settings, int argc, char *const *argv,
                               struct error *error);

/* Read what the values themselves point to, after command line and environment: --config, the
 * preset of --model (searched as a path, then in $MTLLM_MODELS, then in the installed directory)
 * and the site configuration ($MTLLM_CONF, or the installed one, which may be missing).
 * Error: EXIT_STATUS_USAGE for a preset nobody has (the text lists those there are). */
int settings_read_layers(struct settings *settings, struct error *error);

/* Find the file of a model preset; `path` takes at most `size` bytes. */
int settings_preset_path(const char *model, char *path, size_t size, struct error *error);

bool setting_is_set(const struct settings *settings, enum setting_id id);      /* default or not */
const char *setting_text(const struct settings *settings, enum setting_id id); /* "" if unset */
int64_t setting_integer(const struct settings *settings,
                        enum setting_id id); /* INTEGER, DURATION (s) */
double setting_real(const struct settings *settings, enum setting_id id);
bool setting_boolean(const struct settings *settings, enum setting_id id);
enum setting_source setting_source(const struct settings *settings, enum setting_id id);
const char *setting_origin(const struct settings *settings, enum setting_id id);

/* "MTLLM_MICRO_BATCH_SIZE"; `size` of 64 is always enough. */
void setting_environment_name(enum setting_id id, char *name, size_t size);

/* Every set value as an ini file, each with its origin as a comment behind it: what
 * --print-settings shows and RUN/settings.ini holds. Can be read back by settings_read_file(). */
int settings_write(const struct settings *settings, FILE *stream);

/* "Optimizer and schedule". */
const char *setting_group_title(enum setting_group group);

/* The option list of --help, grouped. */
void settings_write_help(FILE *stream);

/* "a, b, c" of the ini files in a directory, sorted; "none" where there is none. */
void settings_list_names(const char *directory, char *names, size_t size);

#endif
