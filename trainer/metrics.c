/* The table, and rows as text. */
#include "trainer/metrics.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

const struct metric metric_table[METRIC_COUNT] = {
#define METRIC(id, name, group, unit, decimals, over_steps, help)                                  \
    [METRIC_##id] = {name, group, unit, decimals, over_steps, help},
    METRICS(METRIC)
#undef METRIC
};

void metrics_interval_add(struct metrics_interval *interval, const struct metrics_row *row)
{
    interval->steps++;
    for (int id = 0; id < METRIC_COUNT; id++) {
        double value = row->values[id], weight = 1;

        if (!row->present[id])
            continue;
        interval->counts[id]++;
        switch (metric_table[id].over_steps) {
        case METRIC_LAST:
            interval->sums[id] = value;
            interval->weights[id] = 1;
            continue;
        case METRIC_SUM:
            interval->weights[id] = 1;
            interval->sums[id] += value;
            continue;
        case METRIC_RATE:
            weight = row->present[METRIC_STEP_S] ? row->values[METRIC_STEP_S] : 1;
            break;
        case METRIC_MEAN:
            break;
        }
        if (isfinite(value)) {
            interval->sums[id] += weight * value;
            interval->weights[id] += weight;
        }
    }
}

void metrics_interval_take(struct metrics_interval *interval, struct metrics_row *row)
{
    *row = (struct metrics_row){0};
    for (int id = 0; id < METRIC_COUNT; id++)
        if (interval->counts[id] > 0)
            metrics_set(row, (enum metric_id)id,
                        interval->weights[id] > 0 ? interval->sums[id] / interval->weights[id]
                                                  : NAN);
    *interval = (struct metrics_interval){0};
}

void metrics_format_number(double value, int decimals, char *text, size_t size)
{
    if (!isfinite(value)) {
        snprintf(text, size, "null");
        return;
    }
    /* Beyond this a double has no decimals, and JSON readers no whole numbers. */
    if (decimals >= 0 && fabs(value) < 1e16) {
        snprintf(text, size, "%.*f", decimals, value);
        return;
    }
    /* The shortest that is the same number: 15 digits if it has no more, 17 always. */
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, size, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
}

double metrics_round(double value, int decimals)
{
    char text[32];

    if (!isfinite(value))
        return NAN;
    if (decimals < 0)
        return value;
    metrics_format_number(value, decimals, text, sizeof(text));
    return strtod(text, NULL);
}

/* Text that grows in a buffer of fixed size; what does not fit is cut off. */
struct text {
    char *bytes;
    size_t size, used;
};

static void append(struct text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void append(struct text *text, const char *format, ...)
{
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(text->bytes + text->used, text->size - text->used, format, arguments);
    va_end(arguments);
    if (length > 0)
        text->used += (size_t)length;
    if (text->used >= text->size)
        text->used = text->size - 1;
}

/* JSON has UTF-8 alone; paths may be anything. */
static void append_string(struct text *text, const char *string)
{
    bool is_text = utf8_is_text(string);

    append(text, "\"");
    for (; *string; string++) {
        if (*string == '"' || *string == '\\')
            append(text, "\\%c", *string);
        else if ((unsigned char)*string < 0x20)
            append(text, "\\u%04x", (unsigned)*string);
        else
            append(text, "%c", is_text || (unsigned char)*string < 0x80 ? *string : '?');
    }
    append(text, "\"");
}

static void append_datasets(struct text *text, const struct metrics_row *row, const char *comma)
{
    if (row->dataset_count == 0)
        return;
    append(text, "%s\"datasets\":{", comma);
    for (int i = 0; i < row->dataset_count; i++) {
        const struct metrics_dataset *dataset = &row->datasets[i];
        char tokens[32], epochs[32];

        append(text, "%s", i > 0 ? "," : "");
        append_string(text, dataset->name);
        metrics_format_number(dataset->tokens, 0, tokens, sizeof(tokens));
        metrics_format_number(dataset->epochs, 6, epochs, sizeof(epochs));
        append(text, ":{\"tokens\":%s,\"epochs\":%s}", tokens, epochs);
    }
    append(text, "}");
}

void metrics_format_json(const struct metrics_row *row, char *bytes, size_t size)
{
    struct text text = {bytes, size, 0};
    const char *comma = "";
    char number[32];

    append(&text, "{");
    if (row->eval) {
        append(&text, "\"eval\":\"%s\"", row->eval);
        comma = ",";
    }
    for (int id = 0; id < METRIC_COUNT; id++) {
        if (!row->present[id])
            continue;
        metrics_format_number(row->values[id], metric_table[id].decimals, number, sizeof(number));
        append(&text, "%s\"%s\":%s", comma, metric_table[id].name, number);
        comma = ",";
    }
    for (int i = 0; i < row->custom_count; i++) {
        metrics_format_number(row->custom[i].value, -1, number, sizeof(number));
        append(&text, "%s\"%s\":%s", comma, row->custom[i].name, number);
        comma = ",";
    }
    append_datasets(&text, row, comma);
    append(&text, "}");
}

size_t metrics_json_size(const struct metrics_row *row)
{
    size_t size = 64 + (row->eval ? strlen(row->eval) : 0) + METRIC_COUNT * 64;

    for (int i = 0; i < row->custom_count; i++)
        size += strlen(row->custom[i].name) + 40;
    for (int i = 0; i < row->dataset_count; i++)
        size += 6 * strlen(row->datasets[i].name) + 96; /* a character is \u0000 at most */
    return size;
}

/* A metric on the console; `scale` turns its unit into the label's. */
struct field {
    enum metric_id id;
    const char *format;
    double scale;
};

/* Of a training step, in order. */
static const struct field step_fields[] = {
    {METRIC_SAMPLES, " consumed samples: %12.0f |", 1},
    {METRIC_STEP_S, " elapsed time per iteration (ms): %.1f |", 1000},
    {METRIC_TOKENS_PER_S, " rate (tokens/sec): %.2f |", 1},
    {METRIC_TFLOPS, " TFLOP/s per rank: %.2f |", 1},
    {METRIC_MFU, " MFU: %.1f%% |", 100},
    {METRIC_LR, " learning rate: %.3E |", 1},
    {METRIC_BATCH_SIZE, " global batch size: %5.0f |", 1},
    {METRIC_LOSS, " lm loss: %.6E |", 1},
    {METRIC_LOSS_SCALE, " loss scale: %.1f |", 1},
    {METRIC_GRAD_NORM, " grad norm: %.3f |", 1},
    {METRIC_SKIPPED, " number of skipped iterations: %3.0f |", 1},
    {METRIC_NONFINITE, " number of nan iterations: %3.0f |", 1},
};

static const struct field evaluation_fields[] = {
    {METRIC_LOSS, " lm loss value: %.6E |", 1},
    {METRIC_PERPLEXITY, " lm loss PPL: %.6E |", 1},
    {METRIC_ACCURACY, " lm accuracy value: %.6E |", 1},
    {METRIC_INSTRUCT_ACCURACY, " instruct accuracy value: %.6E |", 1},
    {METRIC_COUNT_LOSS_MASK, " count loss mask value: %.6E |", 1},
    {METRIC_COUNT_INSTRUCT_MASK, " count instruct mask value: %.6E |", 1},
};

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void append_fields(struct text *text, const struct field *fields, size_t count,
                          const struct metrics_row *row)
{
    for (size_t i = 0; i < count; i++)
        if (row->present[fields[i].id])
            append(text, fields[i].format, row->values[fields[i].id] * fields[i].scale);
}
#pragma GCC diagnostic pop

void metrics_format_duration(double seconds, char *text, size_t size)
{
    long long whole = seconds < 1e12 ? (long long)(seconds + 0.5) : (long long)1e12;
    long long minutes = whole / 60, hours = minutes / 60;

    if (whole < 60)
        snprintf(text, size, "%llds", whole);
    else if (hours == 0)
        snprintf(text, size, "%lldm%02llds", minutes, whole % 60);
    else if (hours < 24)
        snprintf(text, size, "%lldh%02lldm", hours, minutes % 60);
    else
        snprintf(text, size, "%lldd%02lldh", hours / 24, hours % 24);
}

void metrics_format_console(const struct metrics_row *row, int64_t steps, char *bytes, size_t size)
{
    struct text text = {bytes, size, 0};
    char left[32];

    if (row->eval) {
        append(&text, " validation loss at iteration %.0f |", row->values[METRIC_STEP]);
        if (strcmp(row->eval, "valid") != 0)
            append(&text, " set: %s |", row->eval);
        append_fields(&text, evaluation_fields,
                      sizeof(evaluation_fields) / sizeof(*evaluation_fields), row);
        for (int i = 0; i < row->custom_count; i++)
            append(&text, " %s: %.6E |", row->custom[i].name, row->custom[i].value);
        return;
    }
    append(&text, " iteration %8.0f/%8lld |", row->values[METRIC_STEP], (long long)steps);
    append_fields(&text, step_fields, sizeof(step_fields) / sizeof(*step_fields), row);
    if (row->present[METRIC_ETA_S]) {
        metrics_format_duration(row->values[METRIC_ETA_S], left, sizeof(left));
        append(&text, " time left: %s |", left);
    }
}
