/* Settings: the table, the values and the places values come from. */
#include "core/settings.h"

#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <ini.h>

#define SUBMIT  true
#define TRAINER false
const struct setting setting_table[SETTING_COUNT] = {
#define SETTING(id, name, group, type, unit, value, minimum, maximum, choices, submit, help)       \
    [SETTING_##id] = {name,                                                                        \
                      SETTING_GROUP_##group,                                                       \
                      SETTING_TYPE_##type,                                                         \
                      unit,                                                                        \
                      value,                                                                       \
                      minimum,                                                                     \
                      maximum,                                                                     \
                      choices,                                                                     \
                      submit,                                                                      \
                      help},
#include "core/settings.def"
#undef SETTING
};
#undef SUBMIT
#undef TRAINER

static const char *const group_titles[SETTING_GROUP_COUNT] = {
    [SETTING_GROUP_JOB] = "Job and layout",
    [SETTING_GROUP_MODEL] = "Model (normally from the preset)",
    [SETTING_GROUP_DATA] = "Data",
    [SETTING_GROUP_TRAINING] = "Training",
    [SETTING_GROUP_OPTIMIZER] = "Optimizer and schedule",
    [SETTING_GROUP_EVALUATION] = "Validation",
    [SETTING_GROUP_CHECKPOINT] = "Checkpoints",
    [SETTING_GROUP_LOGGING] = "Logging",
    [SETTING_GROUP_PLAN] = "Planning a layout",
};

struct value {
    char *text;
    char *origin;
    enum setting_source source;
};

struct settings {
    struct value values[SETTING_COUNT];
};

struct settings *settings_create(void)
{
    return calloc(1, sizeof(struct settings));
}

void settings_destroy(struct settings *settings)
{
    if (!settings)
        return;
    for (int i = 0; i < SETTING_COUNT; i++) {
        free(settings->values[i].text);
        free(settings->values[i].origin);
    }
    free(settings);
}

/* Names are equal when they differ in case, or in '-' and '_', only. */
static bool names_equal(const char *a, const char *b)
{
    for (; *a && *b; a++, b++) {
        int x = *a == '_' ? '-' : tolower((unsigned char)*a);
        int y = *b == '_' ? '-' : tolower((unsigned char)*b);
        if (x != y)
            return false;
    }
    return *a == *b;
}

int setting_find(const char *name)
{
    if (strncmp(name, "llm-", 4) == 0)
        name += 4;
    for (int i = 0; i < SETTING_COUNT; i++)
        if (names_equal(name, setting_table[i].name))
            return i;
    return -1;
}

/* Levenshtein distance of names of at most 63 characters. */
static int edit_distance(const char *a, const char *b)
{
    int row[64], columns = (int)strnlen(b, 63);

    for (int j = 0; j <= columns; j++)
        row[j] = j;
    for (int i = 1; a[i - 1] && i < 64; i++) {
        int diagonal = row[0];

        row[0] = i;
        for (int j = 1; j <= columns; j++) {
            int above = row[j], best = diagonal + (a[i - 1] != b[j - 1]);

            if (above + 1 < best)
                best = above + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[columns];
}

const char *setting_nearest(const char *name)
{
    int best = 0, best_distance = INT_MAX;

    if (strncmp(name, "llm-", 4) == 0)
        name += 4;
    for (int i = 0; i < SETTING_COUNT; i++) {
        int distance = edit_distance(name, setting_table[i].name);
        if (distance < best_distance) {
            best = i;
            best_distance = distance;
        }
    }
    return setting_table[best].name;
}

/* One word of "a|b|c". */
static bool choice_contains(const char *choices, const char *word)
{
    size_t length = strlen(word);

    while (*choices) {
        size_t n = strcspn(choices, "|");
        if (n == length && strncmp(choices, word, n) == 0)
            return true;
        choices += n + (choices[n] == '|');
    }
    return false;
}

/* -1 for neither yes nor no. */
static int boolean_from_text(const char *text)
{
    if (!strcasecmp(text, "yes") || !strcasecmp(text, "true") || !strcmp(text, "1"))
        return 1;
    if (!strcasecmp(text, "no") || !strcasecmp(text, "false") || !strcmp(text, "0"))
        return 0;
    return -1;
}

/* A number with nothing behind it but, for durations, s, m or h. */
static bool number_from_text(enum setting_type type, const char *text, double *number)
{
    char *end;

    if (!*text || isspace((unsigned char)*text))
        return false;
    *number = strtod(text, &end);
    if (end == text || !isfinite(*number))
        return false;
    if (type == SETTING_TYPE_DURATION && *end && !end[1]) {
        switch (*end) {
        case 'h':
            *number *= 60; /* fall through */
        case 'm':
            *number *= 60; /* fall through */
        case 's':
            end++;
        }
    }
    if (type != SETTING_TYPE_REAL && *number != floor(*number))
        return false;
    return *end == '\0';
}

int setting_check(enum setting_id id, const char *text, const char *spelled, struct error *error)
{
    const struct setting *setting = &setting_table[id];
    double number;

    switch (setting->type) {
    case SETTING_TYPE_INTEGER:
    case SETTING_TYPE_REAL:
    case SETTING_TYPE_DURATION:
        if (!number_from_text(setting->type, text, &number))
            return error_set(error, EXIT_STATUS_USAGE, "%s=%s: not %s", spelled, text,
                             setting->type == SETTING_TYPE_INTEGER ? "a whole number"
                             : setting->type == SETTING_TYPE_REAL
                                 ? "a number"
                                 : "a time; give seconds, or for example 90s, 5m or 2h");
        if (number < setting->minimum || number > setting->maximum)
            return error_set(error, EXIT_STATUS_USAGE, "%s=%s: out of range; use %.16g to %.16g",
                             spelled, text, setting->minimum, setting->maximum);
        return 0;
    case SETTING_TYPE_BOOLEAN:
        if (boolean_from_text(text) < 0)
            return error_set(error, EXIT_STATUS_USAGE, "%s=%s: use yes or no", spelled, text);
        return 0;
    case SETTING_TYPE_CHOICE:
        if (!choice_contains(setting->choices, text))
            return error_set(error, EXIT_STATUS_USAGE, "%s=%s: unknown; use one of %s", spelled,
                             text, setting->choices);
        return 0;
    case SETTING_TYPE_TEXT:
    case SETTING_TYPE_PATH:
    case SETTING_TYPE_PATHS:
        if (!*text)
            return error_set(error, EXIT_STATUS_USAGE, "%s: the value is empty", spelled);
        if (strpbrk(text, "\n\r"))
            return error_set(error, EXIT_STATUS_USAGE, "%s: the value holds a line break", spelled);
        return 0;
    }
    return 0;
}

int settings_set(struct settings *settings, enum setting_id id, const char *text,
                 enum setting_source source, const char *origin, const char *spelled,
                 struct error *error)
{
    struct value *value = &settings->values[id];
    char *new_text, *new_origin;

    if (setting_check(id, text, spelled, error) < 0)
        return -1;
    if (value->text && value->source > source)
        return 0;
    new_text = strdup(text);
    new_origin = strdup(origin);
    if (!new_text || !new_origin) {
        free(new_text);
        free(new_origin);
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    }
    free(value->text);
    free(value->origin);
    value->text = new_text;
    value->origin = new_origin;
    value->source = source;
    return 0;
}

struct file_reader {
    struct settings *settings;
    FILE *stream;
    const char *path;
    int line;
    enum setting_source source;
    struct error *error;
};

/* Lines for inih, which neither says where it is nor takes lines of any length. */
static char *read_line(char *text, int size, void *user)
{
    struct file_reader *reader = user;
    char *line;

    if (reader->error->status)
        return NULL;
    line = fgets(text, size, reader->stream);
    reader->line++;
    if (line && (int)strlen(line) == size - 1 && line[size - 2] != '\n' && !feof(reader->stream)) {
        error_set(reader->error, EXIT_STATUS_USAGE, "%s:%d: a line of more than %d characters",
                  reader->path, reader->line, size - 2);
        return NULL;
    }
    for (const char *c = line; c && *c; c++)
        if (iscntrl((unsigned char)*c) && !isspace((unsigned char)*c)) {
            error_set(reader->error, EXIT_STATUS_USAGE, "%s:%d: not a text file", reader->path,
                      reader->line);
            return NULL;
        }
    return line;
}

/* inih calls this for every key. */
static int read_key(void *user, const char *section, const char *name, const char *text)
{
    struct file_reader *reader = user;
    char origin[PATH_MAX + 32], spelled[PATH_MAX + 128];
    int id = setting_find(name);

    (void)section;
    snprintf(origin, sizeof(origin), "%s:%d", reader->path, reader->line);
    snprintf(spelled, sizeof(spelled), "%s: %s", origin, name);
    if (id < 0) {
        error_set(reader->error, EXIT_STATUS_USAGE, "%s: unknown setting; did you mean %s?",
                  spelled, setting_nearest(name));
        return 0;
    }
    return settings_set(reader->settings, (enum setting_id)id, text, reader->source, origin,
                        spelled, reader->error) == 0;
}

int settings_read_file(struct settings *settings, const char *path, enum setting_source source,
                       struct error *error)
{
    struct file_reader reader = {settings, fopen(path, "r"), path, 0, source, error};
    int line;

    if (!reader.stream) {
        error_set_errno(error, "%s: cannot read settings", path);
        error->status = EXIT_STATUS_USAGE;
        return -1;
    }
    error->status = 0;
    line = ini_parse_stream(read_line, &reader, read_key, &reader);
    fclose(reader.stream);
    if (error->status)
        return -1;
    if (line != 0)
        return error_set(error, line < 0 ? EXIT_STATUS_SYSTEM : EXIT_STATUS_USAGE,
                         "%s:%d: not a section, a comment or a line of the form NAME = VALUE", path,
                         line);
    return 0;
}

void setting_environment_name(enum setting_id id, char *name, size_t size)
{
    snprintf(name, size, "MTLLM_%s", setting_table[id].name);
    for (; *name; name++)
        *name = *name == '-' ? '_' : (char)toupper((unsigned char)*name);
}

int settings_read_environment(struct settings *settings, struct error *error)
{
    for (int i = 0; i < SETTING_COUNT; i++) {
        char name[64];
        const char *text;

        setting_environment_name((enum setting_id)i, name, sizeof(name));
        text = getenv(name);
        if (text && *text &&
            settings_set(settings, (enum setting_id)i, text, SETTING_SOURCE_ENVIRONMENT, name, name,
                         error) < 0)
            return -1;
    }
    return 0;
}

int settings_read_command_line(struct settings *settings, int argc, char *const *argv,
                               struct error *error)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i], *text;
        char name[64], spelled[80];
        size_t length;
        int id;

        if (strncmp(word, "--", 2) != 0)
            return error_set(error, EXIT_STATUS_USAGE,
                             "%s: not an option; options are --NAME=VALUE (see --help)", word);
        length = strcspn(word + 2, "=");
        snprintf(name, sizeof(name), "%.*s", (int)(length < 63 ? length : 63), word + 2);
        snprintf(spelled, sizeof(spelled), "--%s", name);
        id = setting_find(name);
        if (id < 0 || length > 63)
            return error_set(error, EXIT_STATUS_USAGE,
                             "%s: unknown setting; did you mean --%s? (--help lists all)", spelled,
                             setting_nearest(name));
        if (word[2 + length] == '=')
            text = word + 2 + length + 1;
        else if (setting_table[id].type == SETTING_TYPE_BOOLEAN &&
                 (i + 1 == argc || boolean_from_text(argv[i + 1]) < 0))
            text = "yes";
        else if (i + 1 < argc)
            text = argv[++i];
        else
            return error_set(error, EXIT_STATUS_USAGE, "%s: the value is missing", spelled);
        if (settings_set(settings, (enum setting_id)id, text, SETTING_SOURCE_COMMAND_LINE,
                         "command line", spelled, error) < 0)
            return -1;
    }
    return 0;
}

void settings_list_names(const char *directory, char *names, size_t size)
{
    struct dirent **entries;
    int count = scandir(directory, &entries, NULL, alphasort);
    size_t used = 0;

    snprintf(names, size, "none");
    for (int i = 0; i < count; i++) {
        size_t length = strlen(entries[i]->d_name);

        if (length > 4 && strcmp(entries[i]->d_name + length - 4, ".ini") == 0 && used < size)
            used += (size_t)snprintf(names + used, size - used, "%s%.*s", used ? ", " : "",
                                     (int)length - 4, entries[i]->d_name);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
}

int settings_preset_path(const char *model, char *path, size_t size, struct error *error)
{
    const char *directory = getenv("MTLLM_MODELS");
    char names[1024];

    if (!directory || !*directory)
        directory = MTLLM_MODELS_DIR;
    if (strchr(model, '/'))
        snprintf(path, size, "%s", model);
    else
        snprintf(path, size, "%s/%s.ini", directory, model);
    if (access(path, R_OK) == 0)
        return 0;
    if (errno != ENOENT || strchr(model, '/')) {
        error_set_errno(error, "model=%s: cannot read %s", model, path);
        error->status = EXIT_STATUS_USAGE;
        return -1;
    }
    settings_list_names(directory, names, sizeof(names));
    return error_set(error, EXIT_STATUS_USAGE,
                     "model=%s: unknown model; known in %s: %s (or give the path of an ini file)",
                     model, directory, names);
}

int settings_read_layers(struct settings *settings, struct error *error)
{
    const char *site = getenv("MTLLM_CONF"), *model;
    char path[PATH_MAX];

    if (setting_is_set(settings, SETTING_CONFIG) &&
        settings_read_file(settings, setting_text(settings, SETTING_CONFIG), SETTING_SOURCE_CONFIG,
                           error) < 0)
        return -1;
    /* The site's file may name the default model, so it is read before the preset. */
    if (!site || !*site)
        site = access(MTLLM_CONF_FILE, F_OK) == 0 ? MTLLM_CONF_FILE : NULL;
    if (site && settings_read_file(settings, site, SETTING_SOURCE_SITE, error) < 0)
        return -1;
    model = setting_text(settings, SETTING_MODEL);
    if (!*model)
        return 0;
    if (settings_preset_path(model, path, sizeof(path), error) < 0)
        return -1;
    return settings_read_file(settings, path, SETTING_SOURCE_PRESET, error);
}

bool setting_is_set(const struct settings *settings, enum setting_id id)
{
    return *setting_text(settings, id) != '\0';
}

const char *setting_text(const struct settings *settings, enum setting_id id)
{
    const char *text = settings->values[id].text;

    return text ? text : setting_table[id].default_value;
}

int64_t setting_integer(const struct settings *settings, enum setting_id id)
{
    double number = 0;

    assert(setting_table[id].type == SETTING_TYPE_INTEGER ||
           setting_table[id].type == SETTING_TYPE_DURATION);
    number_from_text(setting_table[id].type, setting_text(settings, id), &number);
    return (int64_t)number;
}

double setting_real(const struct settings *settings, enum setting_id id)
{
    double number = 0;

    assert(setting_table[id].type == SETTING_TYPE_REAL);
    number_from_text(SETTING_TYPE_REAL, setting_text(settings, id), &number);
    return number;
}

bool setting_boolean(const struct settings *settings, enum setting_id id)
{
    assert(setting_table[id].type == SETTING_TYPE_BOOLEAN);
    return boolean_from_text(setting_text(settings, id)) == 1;
}

enum setting_source setting_source(const struct settings *settings, enum setting_id id)
{
    return settings->values[id].text ? settings->values[id].source : SETTING_SOURCE_DEFAULT;
}

const char *setting_origin(const struct settings *settings, enum setting_id id)
{
    return settings->values[id].origin ? settings->values[id].origin : "default";
}

int settings_write(const struct settings *settings, FILE *stream)
{
    for (int group = 0; group < SETTING_GROUP_COUNT; group++) {
        fprintf(stream, "%s; %s\n", group ? "\n" : "", group_titles[group]);
        for (int i = 0; i < SETTING_COUNT; i++) {
            enum setting_id id = (enum setting_id)i;
            int width;

            if ((int)setting_table[i].group != group || !setting_is_set(settings, id))
                continue;
            width = fprintf(stream, "%s = %s", setting_table[i].name, setting_text(settings, id));
            fprintf(stream, "%*s ; %s\n", width < 39 ? 39 - width : 0, "",
                    setting_origin(settings, id));
        }
    }
    return ferror(stream) ? -1 : 0;
}

const char *setting_group_title(enum setting_group group)
{
    return group_titles[group];
}

void settings_write_help(FILE *stream)
{
    for (int group = 0; group < SETTING_GROUP_COUNT; group++) {
        fprintf(stream, "\n%s:\n", group_titles[group]);
        for (int i = 0; i < SETTING_COUNT; i++) {
            const struct setting *setting = &setting_table[i];
            char option[128];

            if ((int)setting->group != group)
                continue;
            snprintf(option, sizeof(option), "--%s=%s", setting->name, setting->unit);
            fprintf(stream, "  %-32s %s%s", option, strlen(option) > 32 ? "\n" : "",
                    strlen(option) > 32 ? "                                   " : "");
            fprintf(stream, "%s", setting->help);
            if (*setting->default_value)
                fprintf(stream, " [%s]", setting->default_value);
            fputc('\n', stream);
        }
    }
}
