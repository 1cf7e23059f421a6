#include "ckpt/manifest.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/checksum.h"
#include "ckpt/disk.h"
#include "ckpt/format.h"

/* How every manifest ends: the digits stand between these two. */
#define CHECKSUM_BEFORE ",\n  \"xxh3\": \""
#define CHECKSUM_AFTER  "\"\n}\n"
enum { DIGITS = 16 };

/* 100,000 shards need a tenth of this. */
enum { MANIFEST_LIMIT = 1 << 27 };

static json_t *describe_part(const char *name, const struct manifest_part *part)
{
    char digits[DIGITS + 1];

    snprintf(digits, sizeof(digits), "%016llx", (unsigned long long)part->checksum);
    return json_pack("{s:s, s:I, s:s}", "name", name, "size", (json_int_t)part->size, "xxh3",
                     digits);
}

static json_t *describe(const struct manifest *manifest)
{
    json_t *files = json_array();
    bool good = json_array_append_new(files, describe_part(FORMAT_INDEX, &manifest->index)) == 0;

    for (size_t i = 0; good && i < manifest->shard_count; i++) {
        char name[FORMAT_NAME_SIZE];

        format_shard_name(name, (int)i);
        good = json_array_append_new(files, describe_part(name, &manifest->shards[i])) == 0;
    }
    if (!good) {
        json_decref(files);
        return NULL;
    }
    return json_pack("{s:s, s:i, s:I, s:s, s:s, s:s, s:o}", "format", FORMAT_NAME, "version",
                     FORMAT_VERSION, "step", (json_int_t)manifest->step, "created",
                     manifest->created, "producer", manifest->producer, "layout", manifest->layout,
                     "files", files);
}

/* The text of `json` with the checksum as its last member. */
static char *seal(const json_t *json, size_t *size)
{
    char *body = json_dumps(json, JSON_INDENT(2)), *text = NULL;
    size_t length = body ? strlen(body) : 0;
    char digits[DIGITS + 1];
    int written;

    /* "\n}" makes way for the last member. */
    if (length > 2)
        written = asprintf(&text, "%.*s" CHECKSUM_BEFORE "%0*d" CHECKSUM_AFTER, (int)(length - 2),
                           body, DIGITS, 0);
    else
        written = -1;
    free(body);
    if (written < 0)
        return NULL;
    *size = (size_t)written;
    snprintf(digits, sizeof(digits), "%016llx", (unsigned long long)checksum(text, *size));
    memcpy(text + *size - strlen(CHECKSUM_AFTER) - DIGITS, digits, DIGITS);
    return text;
}

int manifest_write(const struct manifest *manifest, const char *path, struct error *error)
{
    json_t *json = describe(manifest);
    size_t size;
    char *text = json ? seal(json, &size) : NULL;
    int result;

    if (text)
        result = disk_write_file(path, text, size, error);
    else
        result = error_set(error, EXIT_STATUS_SYSTEM, "%s: no memory to write it", path);
    free(text);
    json_decref(json);
    return result;
}

/* Does the checksum hold? The digits are zeros afterwards. */
static bool unseal(char *text, size_t size)
{
    size_t after = strlen(CHECKSUM_AFTER), before = strlen(CHECKSUM_BEFORE);
    char found[DIGITS], expected[DIGITS + 1], *digits;

    if (size < before + DIGITS + after)
        return false;
    digits = text + size - after - DIGITS;
    if (memcmp(digits + DIGITS, CHECKSUM_AFTER, after) != 0 ||
        memcmp(digits - before, CHECKSUM_BEFORE, before) != 0)
        return false;
    memcpy(found, digits, DIGITS);
    memset(digits, '0', DIGITS);
    snprintf(expected, sizeof(expected), "%016llx", (unsigned long long)checksum(text, size));
    return memcmp(found, expected, DIGITS) == 0;
}

static bool read_part(const json_t *json, const char *expected, struct manifest_part *part)
{
    const char *name, *digits;
    json_int_t size;
    char *end;

    if (json_unpack((json_t *)json, "{s:s, s:I, s:s}", "name", &name, "size", &size, "xxh3",
                    &digits) < 0 ||
        strcmp(name, expected) != 0 || size < 0 || strlen(digits) != DIGITS)
        return false;
    part->size = (uint64_t)size;
    part->checksum = strtoull(digits, &end, 16);
    return *end == '\0';
}

static bool read_files(const json_t *files, struct manifest *manifest)
{
    size_t count = json_array_size(files);
    bool good;

    if (count < 1 || count > FORMAT_MAX_SHARDS + 1)
        return false;
    manifest->shard_count = count - 1;
    manifest->shards = calloc(count, sizeof(*manifest->shards));
    good = manifest->shards && read_part(json_array_get(files, 0), FORMAT_INDEX, &manifest->index);
    for (size_t i = 0; good && i < manifest->shard_count; i++) {
        char name[FORMAT_NAME_SIZE];

        format_shard_name(name, (int)i);
        good = read_part(json_array_get(files, i + 1), name, &manifest->shards[i]);
    }
    return good;
}

static int read_members(const json_t *json, struct manifest *manifest, const char *path,
                        struct error *error)
{
    const char *format, *created, *producer, *layout;
    json_t *files;
    json_int_t step;
    int version;

    if (json_unpack((json_t *)json, "{s:s, s:i}", "format", &format, "version", &version) < 0 ||
        strcmp(format, FORMAT_NAME) != 0)
        return error_set(error, EXIT_STATUS_DATA, "%s: is not the manifest of an mtllm checkpoint",
                         path);
    if (version != FORMAT_VERSION)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: format version %d, this program reads version %d; use the mtllm that "
                         "wrote it or a newer one",
                         path, version, FORMAT_VERSION);
    if (json_unpack((json_t *)json, "{s:I, s:s, s:s, s:s, s:o}", "step", &step, "created", &created,
                    "producer", &producer, "layout", &layout, "files", &files) < 0 ||
        step < 0 || !read_files(files, manifest))
        return error_set(error, EXIT_STATUS_DATA, "%s: lacks what a manifest holds", path);
    manifest->step = step;
    snprintf(manifest->created, sizeof(manifest->created), "%s", created);
    snprintf(manifest->producer, sizeof(manifest->producer), "%s", producer);
    snprintf(manifest->layout, sizeof(manifest->layout), "%s", layout);
    return 0;
}

int manifest_read(struct manifest *manifest, const char *path, struct error *error)
{
    void *text = NULL;
    json_t *json = NULL;
    json_error_t where;
    size_t size;
    int result = -1;

    *manifest = (struct manifest){0};
    if (disk_read_file(path, MANIFEST_LIMIT, &text, &size, error) < 0)
        return -1;
    if (!unseal(text, size)) {
        error_set(error, EXIT_STATUS_DATA, "%s: its checksum does not hold; it was altered or cut",
                  path);
        goto out;
    }
    json = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
    if (!json) {
        error_set(error, EXIT_STATUS_DATA, "%s:%d: %s", path, where.line, where.text);
        goto out;
    }
    result = read_members(json, manifest, path, error);
out:
    if (result < 0)
        manifest_free(manifest);
    json_decref(json);
    free(text);
    return result;
}

void manifest_free(struct manifest *manifest)
{
    free(manifest->shards);
    *manifest = (struct manifest){0};
}
