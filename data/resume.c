#include "data/resume.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { FORMAT_VERSION = 1, FILE_BYTES_MOST = 1 << 16 };

/* --- the digest --------------------------------------------------------------------------------*/

/* With its end, so that "ab", "c" is not "a", "bc". */
static void add_text(XXH3_state_t *state, const char *text)
{
    XXH3_128bits_update(state, text, strlen(text) + 1);
}

/* The content of a regular file; anything else adds nothing. */
static int add_file(XXH3_state_t *state, const char *path, struct error *error)
{
    char bytes[64 << 10];
    struct stat status;
    FILE *stream;
    size_t size;
    int result = 0;

    if (stat(path, &status) < 0 || !S_ISREG(status.st_mode))
        return 0;
    stream = fopen(path, "rb");
    if (!stream)
        return error_set_errno(error, "%s: cannot open", path);
    add_text(state, path);
    while ((size = fread(bytes, 1, sizeof(bytes), stream)) > 0)
        XXH3_128bits_update(state, bytes, size);
    if (ferror(stream))
        result = error_set_errno(error, "%s: cannot read", path);
    fclose(stream);
    return result;
}

/* Of a model's directory; a tokenizer.json by itself is read with its neighbours. */
static int add_tokenizer_files(XXH3_state_t *state, const char *directory, struct error *error)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer.model",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "chat_template.jinja",
                                        "added_tokens.json",
                                        "vocab.json"};
    int result = 0;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && result == 0; i++) {
        char *path;

        if (asprintf(&path, "%s/%s", directory, names[i]) < 0)
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        result = add_file(state, path, error);
        free(path);
    }
    return result;
}

/* What is there: whatever reads it has found out whether that is enough. */
static int add_path(XXH3_state_t *state, const char *path, struct error *error)
{
    struct stat status;
    char *copy;
    int result;

    if (stat(path, &status) < 0)
        return 0;
    if (S_ISDIR(status.st_mode))
        return add_tokenizer_files(state, path, error);
    if (add_file(state, path, error) < 0)
        return -1;
    copy = strdup(path);
    if (!copy)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    result = add_tokenizer_files(state, dirname(copy), error);
    free(copy);
    return result;
}

static int add_input(XXH3_state_t *state, const char *path, struct error *error)
{
    struct stat status;
    int64_t about[3];

    if (stat(path, &status) < 0)
        return error_set_errno(error, "%s: cannot read", path);
    about[0] = status.st_size;
    about[1] = status.st_mtim.tv_sec;
    about[2] = status.st_mtim.tv_nsec;
    add_text(state, path);
    XXH3_128bits_update(state, about, sizeof(about));
    return 0;
}

static bool is_among(const char *name, const char *const *names)
{
    for (; *names; names++)
        if (strcmp(name, *names) == 0)
            return true;
    return false;
}

static int add_request(XXH3_state_t *state, const struct resume_request *request,
                       struct error *error)
{
    const struct option_entry *options = request->command->options;

    add_text(state, MTLLM_VERSION);
    for (int i = 0; options[i].name; i++) {
        if (is_among(options[i].name, request->without))
            continue;
        add_text(state, options[i].name);
        add_text(state, request->values[i] ? request->values[i] : "unset");
    }
    for (int i = 0; i < request->file_count; i++)
        if (request->files[i] && add_path(state, request->files[i], error) < 0)
            return -1;
    for (int i = 0; i < request->input_count; i++)
        if (add_input(state, request->inputs[i], error) < 0)
            return -1;
    return 0;
}

int resume_digest(char digest[RESUME_DIGEST_SIZE], const struct resume_request *request,
                  struct error *error)
{
    XXH3_state_t *state = XXH3_createState();
    XXH128_hash_t hash;
    int result;

    if (!state)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    XXH3_128bits_reset(state);
    result = add_request(state, request, error);
    hash = XXH3_128bits_digest(state);
    snprintf(digest, RESUME_DIGEST_SIZE, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
    XXH3_freeState(state);
    return result;
}

/* --- the file ----------------------------------------------------------------------------------*/

/* A member that is a whole number not below zero. */
static bool get(const json_t *object, const char *name, int64_t *value)
{
    const json_t *member = json_object_get(object, name);

    *value = json_integer_value(member);
    return json_is_integer(member) && *value >= 0;
}

static bool get_bool(const json_t *object, const char *name, bool *value)
{
    const json_t *member = json_object_get(object, name);

    *value = json_is_true(member);
    return json_is_boolean(member);
}

static bool get_marks(struct resume *resume, const json_t *streams)
{
    for (int i = 0; i < resume->streams; i++) {
        const json_t *stream = json_array_get(streams, (size_t)i);
        struct token_writer_mark *mark = &resume->marks[i];

        if (!get(stream, "tokens", &mark->tokens) || !get(stream, "sequences", &mark->sequences) ||
            !get(stream, "open_tokens", &mark->open_tokens))
            return false;
    }
    return true;
}

static bool get_position(struct corpus_position *position, const json_t *json)
{
    return get(json, "input", &position->input) && get(json, "offset", &position->offset) &&
           get(json, "line", &position->line) && get(json, "text_bytes", &position->text_bytes) &&
           get(json, "file_bytes", &position->file_bytes) &&
           get_bool(json, "document_begun", &position->document_begun);
}

bool resume_read(struct resume *resume, const char *path, const char *digest, int streams)
{
    FILE *stream = fopen(path, "rb");
    char text[FILE_BYTES_MOST];
    const char *found;
    json_t *json;
    int64_t version;
    size_t size;
    bool good;

    if (!stream)
        return false;
    size = fread(text, 1, sizeof(text), stream);
    fclose(stream);
    json = json_loadb(text, size, 0, NULL);
    found = json_string_value(json_object_get(json, "digest"));
    *resume = (struct resume){.streams = streams};
    good = get(json, "version", &version) && version == FORMAT_VERSION && found &&
           strcmp(found, digest) == 0 &&
           json_array_size(json_object_get(json, "streams")) == (size_t)streams &&
           get_marks(resume, json_object_get(json, "streams")) &&
           get_position(&resume->position, json_object_get(json, "position")) &&
           get_bool(json, "dropping", &resume->dropping) && get(json, "empty", &resume->empty) &&
           get(json, "bad", &resume->bad);
    json_decref(json);
    return good;
}

/* Where the next record is written; NULL: no memory. */
static char *partial_path(const char *path)
{
    char *partial;

    return asprintf(&partial, "%s.partial", path) < 0 ? NULL : partial;
}

void resume_tidy(const char *path)
{
    char *partial = partial_path(path);

    if (partial)
        unlink(partial);
    free(partial);
}

static json_t *to_json(const struct resume *resume, const char *digest)
{
    const struct corpus_position *position = &resume->position;
    json_t *streams = json_array(), *place;

    for (int i = 0; i < resume->streams; i++)
        json_array_append_new(
            streams, json_pack("{s:I, s:I, s:I}", "tokens", (json_int_t)resume->marks[i].tokens,
                               "sequences", (json_int_t)resume->marks[i].sequences, "open_tokens",
                               (json_int_t)resume->marks[i].open_tokens));
    place =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:b}", "input", (json_int_t)position->input, "offset",
                  (json_int_t)position->offset, "line", (json_int_t)position->line, "text_bytes",
                  (json_int_t)position->text_bytes, "file_bytes", (json_int_t)position->file_bytes,
                  "document_begun", (int)position->document_begun);
    return json_pack("{s:i, s:s, s:o, s:o, s:b, s:I, s:I}", "version", FORMAT_VERSION, "digest",
                     digest, "streams", streams, "position", place, "dropping",
                     (int)resume->dropping, "empty", (json_int_t)resume->empty, "bad",
                     (json_int_t)resume->bad);
}

/* Everything on the disk, under a name that nobody reads. */
static int write_text(const char *path, const char *text, struct error *error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666), result = 0;
    size_t size = strlen(text);

    if (fd < 0)
        return error_set_errno(error, "%s: cannot create", path);
    if (write(fd, text, size) != (ssize_t)size || fsync(fd) < 0)
        result = error_set_errno(error, "%s: cannot write", path);
    if (close(fd) < 0 && result == 0)
        result = error_set_errno(error, "%s: cannot write", path);
    return result;
}

int resume_write(const struct resume *resume, const char *path, const char *digest,
                 struct error *error)
{
    json_t *json = to_json(resume, digest);
    char *text = json_dumps(json, JSON_COMPACT), *partial = partial_path(path);
    int result;

    if (!text || !partial) {
        result = error_set(error, EXIT_STATUS_SYSTEM, "%s: out of memory", path);
    } else {
        result = write_text(partial, text, error);
        if (result == 0 && rename(partial, path) < 0)
            result = error_set_errno(error, "%s: cannot rename to %s", partial, path);
        if (result < 0)
            unlink(partial);
    }
    json_decref(json);
    free(text);
    free(partial);
    return result;
}

int resume_remove(const char *path, struct error *error)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_NOFOLLOW | O_CLOEXEC);
    int failed;

    if (fd < 0)
        return errno == ENOENT ? 0 : error_set_errno(error, "%s: cannot remove", path);
    failed = fsync(fd) < 0 || unlink(path) < 0;
    close(fd);
    return failed ? error_set_errno(error, "%s: cannot remove", path) : 0;
}
