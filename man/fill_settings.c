/* Puts the tables of settings and of metrics into a man page, so that a new one of either stays one
 * entry:
 *
 *     fill_settings < PAGE.in > PAGE
 *
 * A line @OPTIONS@ becomes a list of --NAME=VALUE with what each means, for mtllm-train(1); a line
 * @KEYS@ a list of the keys of ini files with what values they take, for mtllm.conf(5); a line
 * @METRICS@ a list of the keys of metrics.jsonl, by group. */
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/settings.h"
#include "trainer/metrics.h"

/* mdoc text in a line of its own, as a sentence. */
static void write_sentence(const char *text)
{
    size_t length = strlen(text);

    if (*text == '.' || *text == '\'')
        fputs("\\&", stdout);
    putchar(toupper((unsigned char)*text));
    for (size_t i = 1; i < length; i++)
        if (text[i] == '\\')
            fputs("\\e", stdout);
        else
            putchar(text[i]);
    if (length > 0 && text[length - 1] != '.')
        putchar('.');
    putchar('\n');
}

static void write_default(const struct setting *setting)
{
    if (*setting->default_value)
        printf("The default is\n.Ql %s .\n", setting->default_value);
}

static void write_option(const struct setting *setting)
{
    printf(".It Fl -%s Ns = Ns Ar \"%s\"\n", setting->name, setting->unit);
    write_sentence(setting->help);
    write_default(setting);
}

static void write_number_kind(const struct setting *setting, const char *kind)
{
    printf("%s, %.16g to %.16g", kind, setting->minimum, setting->maximum);
}

/* What a value looks like. */
static void write_kind(const struct setting *setting)
{
    const char *word = setting->choices;

    switch (setting->type) {
    case SETTING_TYPE_INTEGER:
        write_number_kind(setting, "A whole number");
        break;
    case SETTING_TYPE_REAL:
        write_number_kind(setting, "A number");
        break;
    case SETTING_TYPE_DURATION:
        write_number_kind(setting, "A time in seconds, or with s, m or h behind it");
        break;
    case SETTING_TYPE_BOOLEAN:
        fputs("yes or no", stdout);
        break;
    case SETTING_TYPE_TEXT:
        printf("Text: %s", setting->unit);
        break;
    case SETTING_TYPE_PATH:
        fputs("A path", stdout);
        break;
    case SETTING_TYPE_PATHS:
        fputs("A path, or weights and paths by turns", stdout);
        break;
    case SETTING_TYPE_CHOICE:
        fputs("One of: ", stdout);
        for (; *word; word++)
            if (*word == '|')
                fputs(", ", stdout);
            else
                putchar(*word);
        break;
    }
    puts(".");
}

static void write_key(const struct setting *setting)
{
    printf(".It Ic %s\n", setting->name);
    write_sentence(setting->help);
    write_kind(setting);
    write_default(setting);
    if (!setting->submit)
        puts("No option of\n.Xr sbatch 1 .");
}

static void write_list(void (*write_item)(const struct setting *))
{
    for (int group = 0; group < SETTING_GROUP_COUNT; group++) {
        printf(".Ss %s\n.Bl -tag -width Ds\n", setting_group_title((enum setting_group)group));
        for (int i = 0; i < SETTING_COUNT; i++)
            if ((int)setting_table[i].group == group)
                write_item(&setting_table[i]);
        puts(".El");
    }
}

/* Returns -1 for a metric of a group that has no title here. */
static int write_metrics(void)
{
    static const struct {
        const char *name, *title;
    } groups[] = {{"train", "Learning"}, {"data", "Data"}, {"perf", "Speed"}, {"mem", "Memory"}};
    static const struct {
        const char *name, *group, *unit, *help;
    } metrics[] = {
#define METRIC(id, name, group, unit, decimals, over_steps, help) {name, group, unit, help},
        METRICS(METRIC)
#undef METRIC
    };
    size_t count = sizeof(metrics) / sizeof(*metrics), written = 0;

    for (size_t g = 0; g < sizeof(groups) / sizeof(*groups); g++) {
        printf(".Ss %s\n.Bl -tag -width Ds\n", groups[g].title);
        for (size_t i = 0; i < count; i++) {
            if (strcmp(metrics[i].group, groups[g].name) != 0)
                continue;
            printf(".It Cm %s%s%s\n", metrics[i].name, *metrics[i].unit ? " Pq " : "",
                   metrics[i].unit);
            write_sentence(metrics[i].help);
            written++;
        }
        puts(".El");
    }
    return written == count ? 0 : -1;
}

int main(void)
{
    char line[4096];
    bool failed = false;

    while (fgets(line, sizeof(line), stdin)) {
        if (strcmp(line, "@OPTIONS@\n") == 0)
            write_list(write_option);
        else if (strcmp(line, "@KEYS@\n") == 0)
            write_list(write_key);
        else if (strcmp(line, "@METRICS@\n") == 0)
            failed |= write_metrics() < 0;
        else
            fputs(line, stdout);
    }
    return failed || ferror(stdin) || fflush(stdout) != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
