#include "report/ticks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Of 1, 2, 5 and 10 times a power of ten the one nearest to `value`, by ratio. */
static double round_number(double value)
{
    double power = pow(10, floor(log10(value))), digits = value / power;

    return power * (digits < sqrt(2) ? 1 : digits < sqrt(10) ? 2 : digits < sqrt(50) ? 5 : 10);
}

static void move_apart(double *least, double *most)
{
    double margin = fabs(*least) * 1e-9;

    if (*most - *least > margin && *most - *least > 1e-300)
        return;
    margin = *least == 0 ? 1 : fabs(*least) * 0.1;
    *least -= margin;
    *most += margin;
}

static void add_ticks(struct axis *axis)
{
    double first = ceil(axis->least / axis->step - 1e-6);

    for (axis->count = 0; axis->count < TICKS_MOST; axis->count++) {
        double tick = (first + axis->count) * axis->step;

        if (tick > axis->most + 1e-6 * axis->step)
            break;
        axis->ticks[axis->count] = fmin(fmax(tick, axis->least), axis->most);
    }
}

struct axis axis_linear(double least, double most, int wanted, bool whole, bool nice)
{
    struct axis axis;

    move_apart(&least, &most);
    axis = (struct axis){.least = least, .most = most};
    axis.step = round_number((most - least) / wanted);
    if (whole && axis.step < 1)
        axis.step = 1;
    if (nice) {
        axis.least = floor(least / axis.step + 1e-6) * axis.step;
        axis.most = ceil(most / axis.step - 1e-6) * axis.step;
    }
    add_ticks(&axis);
    return axis;
}

struct axis axis_logarithmic(double least, double most, int wanted)
{
    static const double finest[] = {1, 1.5, 2, 3, 4, 5, 7}, fine[] = {1, 2, 5}, coarse[] = {1};
    struct axis axis = {.logarithmic = true};
    const double *factors = coarse;
    int factor_count = 1, first, last, stride;

    if (most < least * 1.01) {
        least /= 1.1;
        most *= 1.1;
    }
    first = (int)floor(log10(least) + 1e-9);
    last = (int)ceil(log10(most) - 1e-9);
    if (most < 12 * least) {
        factors = finest;
        factor_count = 7;
    } else if (most < 300 * least) {
        factors = fine;
        factor_count = 3;
    }
    stride = factor_count > 1 ? 1 : (last - first + wanted - 1) / wanted;
    axis.least = least;
    axis.most = most;
    for (int power = first; power <= last; power += stride < 1 ? 1 : stride)
        for (int i = 0; i < factor_count && axis.count < TICKS_MOST; i++) {
            double tick = factors[i] * pow(10, power);

            if (tick >= least * (1 - 1e-9) && tick <= most * (1 + 1e-9))
                axis.ticks[axis.count++] = fmin(fmax(tick, least), most);
        }
    return axis;
}

struct axis axis_duration(double length, int wanted)
{
    static const double steps[] = {1,      2,      5,      10,      30,      60,     120,   300,
                                   600,    1800,   3600,   7200,    14400,   21600,  43200, 86400,
                                   172800, 432000, 864000, 1728000, 4320000, 8640000};
    struct axis axis = {.most = length};
    size_t i = 0;

    if (length < wanted)
        return axis_linear(0, fmax(length, 1e-3), wanted, false, false);
    while (i + 1 < sizeof(steps) / sizeof(*steps) && steps[i] * wanted < length)
        i++;
    axis.step = fmax(steps[i], length / (TICKS_MOST - 1));
    add_ticks(&axis);
    return axis;
}

double axis_place(const struct axis *axis, double value)
{
    if (axis->logarithmic)
        return log(value / axis->least) / log(axis->most / axis->least);
    return (value - axis->least) / (axis->most - axis->least);
}

static const struct {
    double unit;
    const char *letter;
} magnitudes[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}, {1, ""}};

/* "3e-04" as "3e-4" */
static const char *scientific_text(double value, int decimals, char text[NUMBER_SIZE])
{
    char *exponent;
    int power;

    snprintf(text, NUMBER_SIZE, "%.*e", decimals, value);
    exponent = strchr(text, 'e') + 1;
    power = atoi(exponent);
    snprintf(exponent, NUMBER_SIZE - (size_t)(exponent - text), "%d", power);
    return text;
}

/* "1.50" as "1.5", "3.00" as "3" */
static void strip_zeros(char *text)
{
    char *end = text + strlen(text);

    if (!strchr(text, '.'))
        return;
    while (end[-1] == '0')
        *--end = '\0';
    if (end[-1] == '.')
        end[-1] = '\0';
}

static const char *scaled_text(double value, int decimals_of_one, char text[NUMBER_SIZE])
{
    size_t i = 0;
    int decimals;

    while (i + 1 < sizeof(magnitudes) / sizeof(*magnitudes) &&
           fabs(value) <
               magnitudes[i].unit * (i + 2 < sizeof(magnitudes) / sizeof(*magnitudes) ? 1 : 10))
        i++;
    decimals = decimals_of_one + (int)lround(log10(magnitudes[i].unit));
    snprintf(text, NUMBER_SIZE, "%.*f",
             decimals < 0   ? 0
             : decimals > 9 ? 9
                            : decimals,
             value / magnitudes[i].unit);
    strip_zeros(text);
    strncat(text, magnitudes[i].letter, NUMBER_SIZE - strlen(text) - 1);
    return text;
}

const char *tick_text(const struct axis *axis, double value, char text[NUMBER_SIZE])
{
    double greatest = fmax(fabs(axis->least), fabs(axis->most)), step = axis->step;

    if (axis->logarithmic)
        return number_text(value, text);
    if (value == 0)
        return strcpy(text, "0");
    if (greatest < 2e-3 || greatest >= 1e15) {
        int digits = (int)(floor(log10(fabs(value)) + 1e-9) - floor(log10(step) + 1e-9));

        return scientific_text(value, digits < 0 ? 0 : digits > 9 ? 9 : digits, text);
    }
    return scaled_text(value, -(int)floor(log10(step) + 1e-9), text);
}

const char *number_text(double value, char text[NUMBER_SIZE])
{
    double magnitude = fabs(value);

    if (!isfinite(value))
        return strcpy(text, "not finite");
    if (value == 0)
        return strcpy(text, "0");
    if (magnitude < 1e-3 || magnitude >= 1e15)
        return scientific_text(value, 2, text);
    return scaled_text(value, 3 - (int)floor(log10(magnitude)), text);
}

const char *count_text(double value, char text[NUMBER_SIZE])
{
    char digits[NUMBER_SIZE];
    size_t length, out = 0;

    if (!(fabs(value) < 1e16))
        return number_text(value, text);
    length = (size_t)snprintf(digits, sizeof(digits), "%.0f", value);
    for (size_t i = 0; i < length; i++) {
        text[out++] = digits[i];
        if (digits[i] != '-' && i + 1 < length && (length - 1 - i) % 3 == 0)
            text[out++] = ',';
    }
    text[out] = '\0';
    return text;
}

const char *duration_text(double seconds, char text[NUMBER_SIZE])
{
    static const struct {
        double seconds;
        const char *name, *next;
        double next_seconds;
    } units[] = {{86400, "d", "h", 3600}, {3600, "h", "min", 60}, {60, "min", "s", 1}};

    if (!isfinite(seconds))
        return strcpy(text, "unknown");
    if (seconds >= 59.5)
        seconds = round(seconds);
    for (size_t i = 0; i < 3; i++) {
        double whole = floor(seconds / units[i].seconds);
        double rest = floor((seconds - whole * units[i].seconds) / units[i].next_seconds);

        if (whole < 1)
            continue;
        if (rest > 0)
            snprintf(text, NUMBER_SIZE, "%.0f %s %.0f %s", whole, units[i].name, rest,
                     units[i].next);
        else
            snprintf(text, NUMBER_SIZE, "%.0f %s", whole, units[i].name);
        return text;
    }
    snprintf(text, NUMBER_SIZE, "%.3g s", seconds);
    return text;
}

const char *bytes_text(double bytes, char text[NUMBER_SIZE])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;

    for (; bytes >= 1024 && unit < 5; unit++)
        bytes /= 1024;
    snprintf(text, NUMBER_SIZE, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}

const char *time_text(double time, char text[NUMBER_SIZE])
{
    time_t whole = (time_t)time;
    struct tm parts;

    /* Years of more than four digits are no times of a run. */
    if (!(fabs(time) < 2.5e11) || !gmtime_r(&whole, &parts) ||
        strftime(text, NUMBER_SIZE, "%Y-%m-%d %H:%M UTC", &parts) == 0)
        return strcpy(text, "unknown");
    return text;
}
