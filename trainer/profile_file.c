/* The trace format: "Trace Event Format", Google, 2016; complete events ("X") with times in
 * microseconds, and metadata ("M") that names ranks and lanes. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "trainer/profile.h"
#include "trainer/replacement.h"

static const struct {
    const char *category, *lane;
} lanes[] = {
    [PROFILE_HOST] = {"host", "host"},
    [PROFILE_COMPUTE] = {"compute", "stream: compute"},
    [PROFILE_REDUCTIONS] = {"reductions", "stream: gradients and weights of replicas"},
    [PROFILE_SUMS] = {"sums", "stream: tensor parallel, sums"},
    [PROFILE_GATHERS] = {"gathers", "stream: tensor parallel, gathers"},
};

/* Names are literals and hosts' names, without anything to escape. */
static void write_metadata(FILE *stream, const struct profile_part *part)
{
    int count = part->device ? PROFILE_LANES : 1;

    fprintf(
        stream,
        "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"args\":{\"name\":\"%s\"}},\n"
        "{\"ph\":\"M\",\"name\":\"process_sort_index\",\"pid\":%d,\"args\":{\"sort_index\":%d}},"
        "\n{\"ph\":\"M\",\"name\":\"process_labels\",\"pid\":%d,\"args\":{\"labels\":"
        "\"clock within %.1f us\"}}",
        part->rank, part->name, part->rank, part->rank, part->rank,
        1e-3 * (double)part->clock_error_ns);
    for (int lane = 0; lane < count; lane++)
        fprintf(stream,
                ",\n{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%d,\"tid\":%d,"
                "\"args\":{\"name\":\"%s\"}}",
                part->rank, lane, lanes[lane].lane);
}

static void write_event(FILE *stream, const struct profile_part *part,
                        const struct profile_span *span, int lane, int64_t start_ns, int64_t end_ns)
{
    fprintf(stream,
            ",\n{\"ph\":\"X\",\"name\":\"%s\",\"cat\":\"%s\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,"
            "\"dur\":%.3f,\"args\":{\"step\":%lld",
            span->name, lanes[span->lane].category, part->rank, lane,
            1e-3 * (double)(start_ns - part->origin_ns), 1e-3 * (double)(end_ns - start_ns),
            (long long)span->step);
    if (span->microbatch >= 0)
        fprintf(stream, ",\"microbatch\":%lld,\"chunk\":%d", (long long)span->microbatch,
                span->chunk);
    fputs("}}", stream);
}

/* Closes the stream, and says whether all of it was written. */
static int finish(FILE *stream, const char *path, struct error *error)
{
    bool failed = ferror(stream);

    if (fclose(stream) != 0 || failed)
        return error_set_errno(error, "%s", path);
    return 0;
}

int profile_write_part(const struct profile_part *part, const char *path, struct error *error)
{
    FILE *stream = fopen(path, "we");

    if (!stream)
        return error_set_errno(error, "%s", path);
    write_metadata(stream, part);
    for (size_t i = 0; i < part->count; i++) {
        const struct profile_span *span = &part->spans[i];

        write_event(stream, part, span, PROFILE_HOST, span->start_ns, span->end_ns);
        if (span->from)
            write_event(stream, part, span, span->lane, span->device_start_ns, span->device_end_ns);
    }
    return finish(stream, path, error);
}

static int append_part(FILE *stream, const char *path, struct error *error)
{
    FILE *part = fopen(path, "re");
    char buffer[65536];
    size_t count;
    bool failed;

    if (!part)
        return error_set_errno(error, "%s", path);
    while ((count = fread(buffer, 1, sizeof(buffer), part)) > 0)
        if (fwrite(buffer, 1, count, stream) != count)
            break;
    failed = ferror(part);
    (void)fclose(part);
    return failed ? error_set_errno(error, "%s", path) : 0;
}

int profile_join_parts(const char *path, const char *prefix, int ranks, struct error *error)
{
    char part[PATH_MAX];
    struct replacement file;
    int result = replacement_open(&file, path, NULL, error);

    if (file.stream)
        fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", file.stream);
    for (int rank = 0; rank < ranks; rank++) {
        snprintf(part, sizeof(part), "%s%d", prefix, rank);
        if (result == 0 && rank > 0)
            fputs(",\n", file.stream);
        if (result == 0)
            result = append_part(file.stream, part, error);
        (void)unlink(part);
    }
    if (!file.stream)
        return -1;
    fputs("\n]}\n", file.stream);
    return replacement_close(&file, result, false, error);
}
