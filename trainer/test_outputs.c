/* Guards: bytes that TensorBoard is known to read; that a run which is cut off at any byte
 * and goes on has every step once in every place, with the numbers of metrics.jsonl; that a place
 * which cannot be written says so once and changes nothing else.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trainer/metrics_outputs.h"
#include "trainer/metrics_scalars.h"
#include "trainer/protobuf.h"
#include "trainer/test_bytes.h"
#include "trainer/wandb_file.h"

static void remove_tree(const char *path)
{
    char command[256];

    snprintf(command, sizeof(command), "rm -rf %s", path);
    assert_int_equal(system(command), 0);
}

/* The only file that fits the pattern. */
static void find_file(const char *pattern, char *path, size_t size)
{
    glob_t found;

    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    snprintf(path, size, "%s", found.gl_pathv[0]);
    globfree(&found);
}

/* --- runs ------------------------------------------------------------------------------------ */

static struct settings *make_settings(const char *names)
{
    struct settings *settings = settings_create();
    const char *const values[][2] = {
        {"tensorboard", "yes"}, {"wandb", "yes"}, {"tensorboard-names", names}, {"lr", "1e-5"}};
    struct error error = {0};

    assert_non_null(settings);
    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++)
        assert_int_equal(settings_set(settings, (enum setting_id)setting_find(values[i][0]),
                                      values[i][1], SETTING_SOURCE_COMMAND_LINE, "test", "test",
                                      &error),
                         0);
    return settings;
}

static struct metrics_outputs *open_outputs(const struct settings *settings, int64_t resume_step)
{
    static const char *const again[] = {"valid", NULL};
    struct metrics_outputs_options options = {
        .settings = settings,
        .run_directory = "run",
        .metrics = "run/metrics.jsonl",
        .settings_text = "lr = 1e-5\n",
        .model_config = "{\"hidden_size\":8}",
        .resume = {resume_step, again},
    };
    struct metrics_outputs *outputs;
    struct error error = {0};

    if (metrics_outputs_open(&outputs, &options, &error) < 0)
        fail_msg("%s", error.text);
    return outputs;
}

static double random_number(void)
{
    static const double scales[] = {1e-9, 1e-3, 1, 1e5, 1e12};
    double value = (double)rand() / RAND_MAX;

    return rand() % 20 == 0 ? NAN : value * scales[rand() % 5];
}

static void write_row(struct metrics_outputs *outputs, int64_t step, const char *eval)
{
    static const struct metrics_dataset datasets[] = {{"/data/web", 1e9, 0.25}, {"books", 3, 1.5}};
    struct metrics_custom custom[] = {{"site_score", random_number()}, {"other", 0.1}};
    struct metrics_row row = {.eval = eval};

    for (int id = 0; id < METRIC_COUNT; id++)
        if (rand() % 4 != 0)
            metrics_set(&row, (enum metric_id)id, rand() % 20 ? random_number() : INFINITY);
    metrics_set(&row, METRIC_STEP, (double)step);
    metrics_set(&row, METRIC_TIME, 1.7e9 + (double)step + random_number() * 1e-13);
    row.values[METRIC_TIME] = isnan(row.values[METRIC_TIME]) ? 1.7e9 : row.values[METRIC_TIME];
    if (!eval && step % 3 == 0) {
        row.datasets = datasets;
        row.dataset_count = 2;
    }
    if (eval) {
        row.custom = custom;
        row.custom_count = 2;
    }
    metrics_outputs_write(outputs, &row);
}

enum { STEPS = 12, EVAL_INTERVAL = 4 };

/* As a training goes: it validates where it begins, if it is time. */
static void write_steps(struct metrics_outputs *outputs, int64_t from, int64_t to)
{
    for (int64_t step = from;; step++) {
        if (step > 0 && step % EVAL_INTERVAL == 0)
            for (int set = 0; set < 2; set++)
                write_row(outputs, step, set ? "valid" : "code");
        if (step >= to)
            break;
        write_row(outputs, step + 1, NULL);
    }
}

/* What a place holds: a scalar a step and name. */
struct found {
    int64_t step;
    char name[METRICS_NAME_SIZE];
    double value;
};

struct place {
    struct found *found;
    size_t count;
};

static void add_found(struct place *place, int64_t step, const char *name, double value)
{
    struct found *found = realloc(place->found, (place->count + 1) * sizeof(*found));

    assert_non_null(found);
    place->found = found;
    found += place->count++;
    *found = (struct found){.step = step, .value = value};
    snprintf(found->name, sizeof(found->name), "%s", name);
}

static int order_found(const void *a, const void *b)
{
    const struct found *one = a, *other = b;

    return one->step != other->step ? (one->step < other->step ? -1 : 1)
                                    : strcmp(one->name, other->name);
}

static void copy_text(const struct protobuf_field *field, char *text, size_t size)
{
    snprintf(text, size, "%.*s", (int)field->length, (const char *)field->bytes);
}

static void read_event(struct place *place, const unsigned char *event, size_t length)
{
    struct protobuf_field summary, value, field;
    const unsigned char *at, *end;
    int64_t step = protobuf_find(event, length, 2, &field) ? (int64_t)field.value : 0;

    if (!protobuf_find(event, length, 5, &summary))
        return;
    for (at = summary.bytes, end = at + summary.length; protobuf_next(&at, end, &value);) {
        char name[METRICS_NAME_SIZE];
        uint32_t bits;
        float number;

        if (!protobuf_find(value.bytes, value.length, 2, &field))
            continue;
        bits = (uint32_t)field.value;
        memcpy(&number, &bits, sizeof(number));
        assert_true(protobuf_find(value.bytes, value.length, 1, &field));
        copy_text(&field, name, sizeof(name));
        add_found(place, step, name, (double)number);
    }
}

static uint64_t little_endian(const unsigned char *bytes, int count)
{
    uint64_t value = 0;

    for (int i = 0; i < count; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static void check_masked(const unsigned char *bytes, size_t length, uint64_t expected)
{
    uint32_t crc = crc32_castagnoli(bytes, length);

    assert_int_equal((uint32_t)((crc >> 15 | crc << 17) + 0xa282ead8), expected);
}

static void read_tensorboard(struct place *place)
{
    glob_t files;

    assert_int_equal(glob("run/tensorboard/*", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        struct bytes bytes = read_bytes(files.gl_pathv[i]);

        for (size_t at = 0; at < bytes.length;) {
            size_t length = (size_t)little_endian(bytes.data + at, 8);

            assert_true(at + 16 + length <= bytes.length);
            check_masked(bytes.data + at, 8, little_endian(bytes.data + at + 8, 4));
            check_masked(bytes.data + at + 12, length,
                         little_endian(bytes.data + at + 12 + length, 4));
            read_event(place, bytes.data + at + 12, length);
            at += 16 + length;
        }
        free(bytes.data);
    }
    globfree(&files);
}

struct wandb_reader {
    struct place *place;
    int64_t records, last_step;
    bool ended;
};

static bool read_record(void *user, const unsigned char *record, size_t length)
{
    struct wandb_reader *reader = user;
    struct protobuf_field history, step, item, field;
    const unsigned char *at, *end;

    assert_true(protobuf_find(record, length, 1, &field));
    assert_int_equal(field.value, ++reader->records);
    assert_int_equal(protobuf_find(record, length, 17, &field), reader->records == 1);
    reader->ended = protobuf_find(record, length, 22, &field);
    if (!protobuf_find(record, length, 2, &history))
        return true;
    assert_true(protobuf_find(history.bytes, history.length, 2, &step));
    assert_true(protobuf_find(step.bytes, step.length, 1, &step));
    assert_true((int64_t)step.value > reader->last_step);
    reader->last_step = (int64_t)step.value;
    for (at = history.bytes, end = at + history.length; protobuf_next(&at, end, &item);) {
        char name[METRICS_NAME_SIZE], value[64];

        if (item.number != 1)
            continue;
        assert_true(protobuf_find(item.bytes, item.length, 1, &field));
        copy_text(&field, name, sizeof(name));
        assert_true(protobuf_find(item.bytes, item.length, 16, &field));
        copy_text(&field, value, sizeof(value));
        if (name[0] != '_')
            add_found(reader->place, reader->last_step, name, strtod(value, NULL));
    }
    return true;
}

static void read_wandb(struct place *place, const char *path)
{
    struct wandb_reader reader = {.place = place, .last_step = -1};
    struct wandb_file file;
    struct error error = {0};
    struct bytes before = read_bytes(path);

    assert_int_equal(wandb_file_open(&file, path, read_record, &reader, &error), 0);
    /* Nothing of it was torn. */
    assert_int_equal(file.file.size, before.length);
    assert_true(reader.ended);
    wandb_file_close(&file);
    free(before.data);
}

struct expectation {
    struct place *place;
    int64_t step;
};

static void expect_scalar(void *user, const struct metrics_scalar *scalar)
{
    struct expectation *expectation = user;

    add_found(expectation->place, expectation->step, scalar->name, scalar->value);
}

static void expect_row(void *user, const struct metrics_row *row)
{
    struct expectation expectation = {user, (int64_t)row->values[METRIC_STEP]};

    metrics_scalars(row, METRICS_NAMES_MTLLM, expect_scalar, &expectation);
}

static void check_places(struct place *place, struct place *expected, bool floats)
{
    if (!place->found || !expected->found) {
        fail_msg("nothing was found");
        return;
    }
    qsort(place->found, place->count, sizeof(*place->found), order_found);
    qsort(expected->found, expected->count, sizeof(*expected->found), order_found);
    assert_int_equal(place->count, expected->count);
    for (size_t i = 0; i < place->count; i++) {
        double value = expected->found[i].value;

        assert_int_equal(order_found(&place->found[i], &expected->found[i]), 0);
        if (floats)
            value = (double)(float)value;
        assert_true(place->found[i].value == value ||
                    (isnan(place->found[i].value) && isnan(value)));
    }
    free(place->found);
}

static void check_run(const char *wandb_path, int64_t steps)
{
    struct place expected = {0}, tensorboard = {0}, wandb = {0};
    struct error error = {0};

    assert_int_equal(metrics_replay("run/metrics.jsonl", expect_row, &expected, &error), 0);
    read_tensorboard(&tensorboard);
    check_places(&tensorboard, &expected, true);
    read_wandb(&wandb, wandb_path);
    check_places(&wandb, &expected, false);
    assert_int_equal(expected.found[expected.count - 1].step, steps);
    free(expected.found);
}

/* A run of STEPS, as it was when it was killed. */
struct killed {
    char paths[2][512]; /* TensorBoard's file and W&B's */
    struct bytes files[2], metrics;
};

static void make_killed(struct killed *killed, const struct settings *settings)
{
    struct metrics_outputs *outputs;

    remove_tree("run");
    assert_int_equal(mkdir("run", 0777), 0);
    outputs = open_outputs(settings, 0);
    write_steps(outputs, 0, STEPS);
    find_file("run/tensorboard/*", killed->paths[0], sizeof(killed->paths[0]));
    find_file("run/wandb/offline-run-*/*.wandb", killed->paths[1], sizeof(killed->paths[1]));
    for (int i = 0; i < 2; i++)
        killed->files[i] = read_bytes(killed->paths[i]);
    killed->metrics = read_bytes("run/metrics.jsonl");
    metrics_outputs_close(outputs);
}

/* Each file in turn ends at a byte of its; the run goes on from any of its steps, and then, stopped
 * in good order, twice more. */
static void test_cut_anywhere(void **state)
{
    struct settings *settings = make_settings("mtllm");
    struct killed killed = {0};
    (void)state;

    srand(7);
    make_killed(&killed, settings);
    for (int which = 0; which < 2; which++) {
        for (size_t end = 0; end <= killed.files[which].length;) {
            int64_t resume = rand() % (STEPS + 1), stop = resume + rand() % (STEPS + 3 - resume);
            struct metrics_outputs *outputs;

            remove_tree("run/tensorboard/*");
            write_bytes(killed.paths[!which], killed.files[!which].data,
                        killed.files[!which].length);
            write_bytes(killed.paths[which], killed.files[which].data, end);
            write_bytes("run/metrics.jsonl", killed.metrics.data, killed.metrics.length);
            outputs = open_outputs(settings, resume);
            write_steps(outputs, resume, stop);
            metrics_outputs_close(outputs);
            outputs = open_outputs(settings, stop);
            write_steps(outputs, stop, STEPS + 3);
            metrics_outputs_complete(outputs);
            metrics_outputs_close(outputs);
            check_run(killed.paths[1], STEPS + 3);
            /* Every byte near the end, where a kill cuts; elsewhere some. */
            end += killed.files[which].length - end > 40 ? 1 + (size_t)rand() % 500 : 1;
        }
    }
    free(killed.files[0].data);
    free(killed.files[1].data);
    free(killed.metrics.data);
    settings_destroy(settings);
}

/* Asked for when the run is half done: it has all of it. */
static void test_asked_for_later(void **state)
{
    struct settings *settings = make_settings("mtllm"), *none = settings_create();
    struct metrics_outputs *outputs;
    char path[512];
    (void)state;

    remove_tree("run");
    assert_int_equal(mkdir("run", 0777), 0);
    outputs = open_outputs(none, 0);
    write_steps(outputs, 0, 7);
    metrics_outputs_close(outputs);
    assert_int_not_equal(access("run/tensorboard", F_OK), 0);
    assert_int_not_equal(access("run/wandb", F_OK), 0);
    outputs = open_outputs(settings, 6);
    write_steps(outputs, 6, 9);
    metrics_outputs_complete(outputs);
    metrics_outputs_close(outputs);
    find_file("run/wandb/offline-run-*/*.wandb", path, sizeof(path));
    check_run(path, 9);
    settings_destroy(settings);
    settings_destroy(none);
}

static void test_golden_events(void **state)
{
    struct settings *settings = make_settings("megatron");
    struct metrics_outputs *outputs;
    struct metrics_row row = {0};
    struct bytes bytes;
    char path[512];
    size_t version = 40, scalar;
    (void)state;

    remove_tree("run");
    assert_int_equal(mkdir("run", 0777), 0);
    outputs = open_outputs(settings, 0);
    metrics_set(&row, METRIC_STEP, 5);
    metrics_set(&row, METRIC_TIME, 2);
    metrics_set(&row, METRIC_LR, 0.5);
    metrics_outputs_write(outputs, &row);
    metrics_outputs_close(outputs);
    find_file("run/tensorboard/*", path, sizeof(path));
    bytes = read_bytes(path);
    /* All but the time, and the checksum behind it. */
    check_hex(bytes.data, 13, "1800000000000000a37f4b2209");
    check_hex(bytes.data + 21, version - 25, "1a0d627261696e2e4576656e743a32");
    scalar = bytes.length - 51;
    check_hex(bytes.data + scalar, 8, "2300000000000000");
    check_hex(bytes.data + scalar + 12, 35,
              "09000000000000004010052a160a140a0d6c6561726e696e672d72617465150000003f");
    free(bytes.data);
    settings_destroy(settings);
}

/* Says what a process writes to standard error during `act`. */
static char *errors_of(void (*act)(void))
{
    int old = dup(STDERR_FILENO), file = open("errors", O_RDWR | O_CREAT | O_TRUNC, 0666);
    struct bytes bytes;

    dup2(file, STDERR_FILENO);
    close(file);
    act();
    fflush(stderr);
    dup2(old, STDERR_FILENO);
    close(old);
    bytes = read_bytes("errors");
    bytes.data[bytes.length] = '\0';
    return (char *)bytes.data;
}

static int count(const char *text, const char *word)
{
    int found = 0;

    for (; (text = strstr(text, word)); text++)
        found++;
    return found;
}

static void check_metrics(int64_t steps)
{
    struct bytes bytes = read_bytes("run/metrics.jsonl");

    bytes.data[bytes.length] = '\0';
    assert_int_equal(count((char *)bytes.data, "\n"), steps);
    free(bytes.data);
}

static void run_into_limit(void)
{
    struct settings *settings = make_settings("mtllm");
    struct metrics_outputs *outputs = open_outputs(settings, 0);
    struct rlimit limit, old;

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = 6000;
    for (int step = 1; step <= 3; step++)
        write_row(outputs, step, NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (int step = 4; step <= 30; step++) {
        struct metrics_row row = {0};

        metrics_set(&row, METRIC_STEP, step);
        for (int id = METRIC_LOSS; id < METRIC_LOSS + 20; id++)
            metrics_set(&row, (enum metric_id)id, id);
        metrics_outputs_write(outputs, &row);
    }
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    write_row(outputs, 31, NULL);
    metrics_outputs_complete(outputs);
    metrics_outputs_close(outputs);
    settings_destroy(settings);
}

/* Files that may not grow: records are lost whole and counted, each file says so once, and what
 * there is stays readable. */
static void test_full_disk(void **state)
{
    struct settings *settings = make_settings("mtllm");
    struct metrics_outputs *outputs;
    struct place place = {0};
    char path[512], *errors;
    (void)state;

    remove_tree("run");
    assert_int_equal(mkdir("run", 0777), 0);
    errors = errors_of(run_into_limit);
    assert_int_equal(count(errors, "warning"), 3);
    assert_int_equal(count(errors, "metrics.jsonl: cannot write: "), 1);
    assert_int_equal(count(errors, ".0: cannot write: "), 1);
    assert_int_equal(count(errors, ".wandb: cannot write: "), 1);
    assert_int_equal(count(errors, "records were lost"), 3);
    read_tensorboard(&place);
    assert_int_equal(place.found[place.count - 1].step, 31);
    find_file("run/wandb/offline-run-*/*.wandb", path, sizeof(path));
    read_wandb(&place, path);
    assert_int_equal(place.found[place.count - 1].step, 31);
    free(place.found);
    free(errors);
    /* With room again, the next start writes what is missing. */
    outputs = open_outputs(settings, 31);
    write_row(outputs, 32, NULL);
    metrics_outputs_complete(outputs);
    metrics_outputs_close(outputs);
    check_run(path, 32);
    settings_destroy(settings);
}

static void run_with_removal(void)
{
    struct settings *settings = make_settings("mtllm");
    struct metrics_outputs *outputs = open_outputs(settings, 0);

    write_steps(outputs, 0, 3);
    remove_tree("run/wandb");
    write_steps(outputs, 3, 7);
    metrics_outputs_close(outputs);
    settings_destroy(settings);
}

/* The directory is gone while the run goes on: one warning; at the next start it is all there. */
static void test_removed(void **state)
{
    struct settings *settings = make_settings("mtllm");
    struct metrics_outputs *outputs;
    char path[512], *errors;
    (void)state;

    remove_tree("run");
    assert_int_equal(mkdir("run", 0777), 0);
    errors = errors_of(run_with_removal);
    assert_int_equal(count(errors, "warning"), 1);
    assert_int_equal(count(errors, ".wandb: cannot write: No such file or directory"), 1);
    free(errors);
    check_metrics(7 + 2);
    outputs = open_outputs(settings, 7);
    write_steps(outputs, 7, 8);
    metrics_outputs_complete(outputs);
    metrics_outputs_close(outputs);
    find_file("run/wandb/offline-run-*/*.wandb", path, sizeof(path));
    check_run(path, 8);
    settings_destroy(settings);
}

static void run_without_directories(void)
{
    struct settings *settings = make_settings("mtllm");
    struct metrics_outputs *outputs = open_outputs(settings, 0);

    write_steps(outputs, 0, 3);
    metrics_outputs_close(outputs);
    settings_destroy(settings);
}

/* A file where a directory ought to be keeps root out, too. */
static void test_no_directory(void **state)
{
    char *errors;
    (void)state;

    remove_tree("run");
    assert_int_equal(mkdir("run", 0777), 0);
    write_bytes("run/tensorboard", "", 0);
    write_bytes("run/wandb", "", 0);
    errors = errors_of(run_without_directories);
    assert_int_equal(count(errors, "warning"), 2);
    assert_int_equal(count(errors, "warning: tensorboard=yes: run/tensorboard: "), 1);
    assert_int_equal(count(errors, "warning: wandb=yes: run/wandb"), 1);
    free(errors);
    check_metrics(3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_events),   cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_asked_for_later), cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_removed),         cmocka_unit_test(test_no_directory),
    };
    static const char *const variables[] = {"WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME",
                                            "WANDB_MODE", "WANDB_DISABLED"};
    char directory[] = "/tmp/mtllm-test-outputs-XXXXXX", command[64];
    int failed;

    for (size_t i = 0; i < sizeof(variables) / sizeof(*variables); i++)
        unsetenv(variables[i]);
    if (!mkdtemp(directory) || chdir(directory) != 0)
        return 99;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -r %s", directory);
    return system(command) == 0 ? failed : 99;
}
