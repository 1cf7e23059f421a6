#include "trainer/step_list.h"

#include <errno.h>
#include <stdlib.h>

/* A number from 1 at *text, which is moved behind it. */
static bool parse_step(const char **text, int64_t *step)
{
    char *end;

    if (**text < '0' || **text > '9')
        return false;
    errno = 0;
    *step = strtoll(*text, &end, 10);
    *text = end;
    return errno == 0 && *step > 0;
}

static bool parse_range(const char **text, struct step_range *range)
{
    if (!parse_step(text, &range->first))
        return false;
    range->last = range->first;
    if (**text != '-')
        return true;
    (*text)++;
    return parse_step(text, &range->last) && range->first <= range->last;
}

int step_list_parse(struct step_list *list, const char *text, const char *name, struct error *error)
{
    const char *at = text;

    *list = (struct step_list){0};
    do {
        struct step_range *ranges =
            realloc(list->ranges, (list->count + 1) * sizeof(*list->ranges));

        if (!ranges) {
            step_list_destroy(list);
            return error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", name);
        }
        list->ranges = ranges;
        if (!parse_range(&at, &ranges[list->count++]) || (*at && *at != ',')) {
            step_list_destroy(list);
            return error_set(error, EXIT_STATUS_USAGE,
                             "%s=%s: not a list of steps and ranges of them, such as 3,7,10-12",
                             name, text);
        }
    } while (*at++);
    return 0;
}

void step_list_destroy(struct step_list *list)
{
    free(list->ranges);
    *list = (struct step_list){0};
}

bool step_list_contains(const struct step_list *list, int64_t step)
{
    for (size_t i = 0; i < list->count; i++)
        if (step >= list->ranges[i].first && step <= list->ranges[i].last)
            return true;
    return false;
}
