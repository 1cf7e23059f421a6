#include "spank/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Static because SPANK hands an option's callback nothing to find its plugin's data by. */
static char *option_texts[SETTING_COUNT + 1];

/* The one option that is no setting: it keeps the job from being submitted. */
enum { DRY_RUN = SETTING_COUNT };

static int option_given(int id, const char *text, int remote)
{
    char *copy;

    (void)remote;
    if (id < 0 || id > DRY_RUN || !text)
        return -1;
    copy = strdup(text);
    if (!copy)
        return -1;
    free(option_texts[id]);
    option_texts[id] = copy;
    return 0;
}

static int register_option(spank_t spank, struct spank_option *option)
{
    spank_err_t status = spank_option_register(spank, option);

    if (status == ESPANK_SUCCESS)
        return 0;
    slurm_error("mtllm: cannot register --%s: %s", option->name, spank_strerror(status));
    return -1;
}

static int register_dry_run(spank_t spank)
{
    char name[] = "llm-dry-run", unit[] = "N",
         help[] =
             "submit nothing; print the layouts for N devices, as mtllm-plan does (FIRST:LAST: "
             "the best for each power of two)";
    struct spank_option option = {
        .name = name,
        .arginfo = unit,
        .usage = help,
        .has_arg = 1,
        .val = DRY_RUN,
        .cb = option_given,
    };

    return register_option(spank, &option);
}

int options_register(spank_t spank)
{
    for (int id = 0; id < SETTING_COUNT; id++) {
        const struct setting *setting = &setting_table[id];
        char name[64], unit[64], help[SPANK_OPTION_MAXLEN * 4];
        struct spank_option option = {
            .name = name,
            .arginfo = unit,
            .usage = help,
            .has_arg = 1, /* always: Slurm passes options without a value on as "(null)" */
            .val = id,
            .cb = option_given,
        };
        if (!setting->submit)
            continue;
        snprintf(name, sizeof(name), "llm-%s", setting->name);
        /* Slurm cuts the column of "--NAME=UNIT" off; a long list of words stands in the text. */
        if (strlen(setting->unit) > 16) {
            snprintf(unit, sizeof(unit), "WORD");
            snprintf(help, sizeof(help), "%s: %s", setting->help, setting->unit);
        } else {
            snprintf(unit, sizeof(unit), "%s", setting->unit);
            snprintf(help, sizeof(help), "%s", setting->help);
        }
        if (register_option(spank, &option) < 0)
            return -1;
    }
    return register_dry_run(spank);
}

void options_clear(void)
{
    for (int id = 0; id <= DRY_RUN; id++) {
        free(option_texts[id]);
        option_texts[id] = NULL;
    }
}

bool options_given(void)
{
    for (int id = 0; id <= DRY_RUN; id++)
        if (option_texts[id])
            return true;
    return false;
}

const char *option_text(enum setting_id id)
{
    return option_texts[id];
}

const char *option_dry_run(void)
{
    return option_texts[DRY_RUN];
}

/* Some settings of type TEXT are a word or a path. */
static bool is_path(enum setting_id id, const char *text)
{
    if (id == SETTING_MODEL)
        return strchr(text, '/');
    if (id == SETTING_RESUME)
        return strcmp(text, "auto") != 0 && strcmp(text, "never") != 0;
    return setting_table[id].type == SETTING_TYPE_PATH ||
           setting_table[id].type == SETTING_TYPE_PATHS;
}

/* Whether a text begins with a number: then it is a mixture, numbers and paths by turns. */
static bool is_mixture(const char *text)
{
    char *end;

    strtod(text, &end);
    return end != text && (*end == ' ' || *end == '\t');
}

/* A mixture with each of its paths made absolute. */
static int mixture_value(const char *text, const char *directory, char *value, size_t size)
{
    size_t used = 0;
    bool number = true;

    for (text += strspn(text, " \t"); *text; number = !number) {
        size_t word = strcspn(text, " \t");
        bool relative = !number && *text != '/' && *directory;
        int length = snprintf(value + used, size - used, "%s%s%s%.*s", used ? " " : "",
                              relative ? directory : "", relative ? "/" : "", (int)word, text);

        if (length < 0 || (size_t)length >= size - used)
            return -1;
        used += (size_t)length;
        text += word;
        text += strspn(text, " \t");
    }
    return 0;
}

int option_value(enum setting_id id, const char *directory, char *value, size_t size)
{
    const char *text = option_texts[id];
    int length;

    if (setting_table[id].type == SETTING_TYPE_PATHS && is_mixture(text))
        return mixture_value(text, directory, value, size);
    if (is_path(id, text) && *text && *text != '/' && *directory)
        length = snprintf(value, size, "%s/%s", directory, text);
    else
        length = snprintf(value, size, "%s", text);
    return length >= 0 && (size_t)length < size ? 0 : -1;
}

void option_name(enum setting_id id, char *name, size_t size)
{
    snprintf(name, size, "--llm-%s", setting_table[id].name);
}
