/* A fuzzer (clang's libFuzzer) over everything that reads a Hugging Face model, or text and tokens:
 *
 *     readers --target=TARGET [--accept] [LIBFUZZER'S OPTION]... CORPUS...
 *
 *   safetensors  a file's header: safetensors_open(), then every tensor is read
 *   index        model.safetensors.index.json beside two shards: safetensors_open_model()
 *   config       config.json: hf_config_read(), and what is written of it is read again
 *   tokenizer    tokenizer.model, tokenizer.json, and generation_config.json's token ids
 *   encoder      tokenizer.json as mtllm-data reads it: texts are encoded, ids decoded
 *   chat         a chat template, a NUL, and a line of JSON: the tokens of a conversation
 *   import       config.json, a NUL, and a file's header: the whole of hf-to-h5
 *   tokens, corpus, resume    of mtllm-data, see corpora.c
 *   order        a file that keeps the order of samples
 *   rows         options and token files, also with roles: a few samples are read
 *
 * Beyond crashes, what is accepted must keep its promises, and what is refused must name its file
 * and leave nothing. A header comes as 8 bytes of the file's size (little-endian) and the file's
 * beginning; the tensors are a hole as long as the size asks for. Half of the mutations are made
 * on the parsed JSON: random bytes hardly get past a JSON parser.
 *
 * --accept: an input that is refused is a failure; for seeds.
 */
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>
#include <oniguruma.h>

#include "ckpt/added_tokens.h"
#include "ckpt/disk.h"
#include "ckpt/hf_config.h"
#include "ckpt/hf_import.h"
#include "ckpt/hf_tensors.h"
#include "ckpt/hf_tokenizer.h"
#include "ckpt/safetensors.h"
#include "data/tokenizer_kind.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

enum header_layout { SIZE_FIELD = 8, HEADER_FIELD = 8, BEFORE_HEADER = SIZE_FIELD + HEADER_FIELD };

/* Below FUZZ_DIRECTORY, which the script makes and removes. */
char model_directory[200], run_directory[200];
static char file_path[300], config_path[300];
static const struct target *target;
static bool must_accept;
static uint64_t inputs, accepted;

void check_refusal(const struct error *error, const char *path)
{
    if (error->status != EXIT_STATUS_DATA || strncmp(error->text, path, strlen(path)) != 0)
        fprintf(stderr, "status %d: %s\n", error->status, error->text);
    check(error->status == EXIT_STATUS_DATA);
    check(strncmp(error->text, path, strlen(path)) == 0);
    for (const char *at = error->text; *at; at++)
        check((unsigned char)*at >= ' ' && *at != 0x7f);
}

void write_file(const char *path, const void *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");

    check(stream && fwrite(bytes, 1, size, stream) == size);
    check(fclose(stream) == 0);
}

/* The file that a header's input stands for. */
static void write_tensors(const char *path, const uint8_t *data, size_t size)
{
    uint64_t length = 0;

    memcpy(&length, data, size < SIZE_FIELD ? size : SIZE_FIELD);
    length = le64toh(length) & 0xffffffffff; /* a TiB */
    data += size < SIZE_FIELD ? size : SIZE_FIELD;
    size -= size < SIZE_FIELD ? size : SIZE_FIELD;
    write_file(path, data, size);
    /* A header of megabytes of nothing takes long and tells nothing. */
    if (size >= HEADER_FIELD) {
        uint64_t header_bytes;

        memcpy(&header_bytes, data, HEADER_FIELD);
        header_bytes = le64toh(header_bytes);
        if (header_bytes > size && length > 2 * size)
            length = 2 * size;
    }
    check(truncate(path, (off_t)length) == 0);
}

/* Every byte of every tensor must be there to be read, unless there are too many of them. */
static void check_tensors(const struct safetensors *set)
{
    static char bytes[65536];

    for (size_t i = 0; i < safetensors_count(set); i++) {
        const struct safetensors_tensor *tensor = safetensors_get(set, i);
        struct error error = {0};
        char text[64];
        int64_t most = (int64_t)sizeof(bytes);
        int64_t last = tensor->bytes < most ? tensor->bytes : most;

        check(safetensors_find(set, tensor->name) == tensor);
        check(i == 0 || strcmp(safetensors_get(set, i - 1)->name, tensor->name) < 0);
        check(tensor->bytes >= 0 && tensor->elements >= 0 && tensor->offset >= HEADER_FIELD);
        if (tensor->dtype >= 0)
            check(tensor->bytes ==
                  tensor->elements * (int64_t)dtype_bytes((enum dtype)tensor->dtype));
        safetensors_shape_text(tensor, text, sizeof(text));
        hf_tensor_is_buffer(tensor->name);
        check(safetensors_read(set, tensor, 0, last, bytes, &error) == 0);
        check(safetensors_read(set, tensor, tensor->bytes - last, last, bytes, &error) == 0);
        check(safetensors_read(set, tensor, 1, tensor->bytes, bytes, &error) < 0);
    }
}

static bool run_safetensors(const uint8_t *data, size_t size)
{
    struct safetensors *set;
    struct error error = {0};

    write_tensors(file_path, data, size);
    if (safetensors_open(&set, file_path, &error) < 0) {
        check(!set);
        check_refusal(&error, file_path);
        return false;
    }
    check_tensors(set);
    safetensors_close(set);
    return true;
}

static bool run_index(const uint8_t *data, size_t size)
{
    struct safetensors *set;
    struct error error = {0};

    write_file(file_path, data, size);
    if (safetensors_open_model(&set, model_directory, &error) < 0) {
        check(!set);
        check_refusal(&error, model_directory);
        return false;
    }
    check_tensors(set);
    safetensors_close(set);
    return true;
}

/* A text that was written for others is read as the same model. Takes `text`. */
static void check_written(char *text, const struct model *model)
{
    struct error error = {0};
    struct model back;

    check(text);
    if (hf_config_read(&back, text, strlen(text), "written", &error) < 0)
        fprintf(stderr, "%s: %s\n", error.text, text);
    check(error.status == 0);
    check(!model_difference(model, &back));
    check(model->bos_token == back.bos_token && model->eos_token == back.eos_token);
    free(text);
}

static bool run_config(const uint8_t *data, size_t size)
{
    struct model model;
    struct error error = {0};
    struct hf_tensor tensor;
    char *text, *plain;

    if (hf_config_read(&model, (const char *)data, size, "dir/config.json", &error) < 0) {
        check_refusal(&error, "dir/config.json");
        return false;
    }
    hf_tensor_get(&model, hf_tensor_count(&model) - 1, &tensor);
    check(tensor.shape[0] > 0 && tensor.shape[1] > 0);
    plain = hf_config_write(&model, DTYPE_BF16);
    check(plain);
    text = hf_config_take_token_ids(plain, (const char *)data, size, HF_TOKEN_IDS_ALL);
    check_written(plain, &model);
    check_written(text, &model);
    plain = hf_generation_config_write(&model);
    check(plain);
    free(plain);
    return true;
}

/* A text that was written for others is JSON. Takes it. */
static void check_json(char *text)
{
    json_t *json = text ? json_loads(text, 0, NULL) : NULL;

    check(json_is_object(json));
    json_decref(json);
    free(text);
}

/* New tokens, in a file that may be anything. What comes out is JSON again, and has them. */
static void add_tokens(const char *name, const uint8_t *data, size_t size)
{
    struct kept_files files = {0};
    struct added_tokens tokens;
    struct error error = {0};
    const struct checkpoint_file *added;
    void *bytes = malloc(size + 1);

    check(bytes);
    memcpy(bytes, data, size);
    check(kept_files_put(&files, name, bytes, size, &error) == 0);
    check(added_tokens_parse(&tokens, "<n>,a", &error) == 0);
    if (added_tokens_enter(&tokens, &files, 100, &error) == 0) {
        check(tokens.list[0].id >= 0 && tokens.list[0].id != tokens.list[1].id);
        added = kept_files_find(&files, "added_tokens.json");
        if (!added)
            added = kept_files_find(&files, "tokenizer.json");
        check_json(strndup(added->bytes, added->size));
    } else {
        check(error.status == EXIT_STATUS_DATA && strstr(error.text, name));
    }
    added_tokens_destroy(&tokens);
    kept_files_destroy(&files);
}

/* A tokenizer.json, or the reason why there is none. */
static void check_sentencepiece(const void *pieces, size_t size,
                                const struct hf_sentencepiece *about, const char *added,
                                size_t added_size)
{
    const char *trouble;
    char *json = hf_sentencepiece_json(pieces, size, about, added, added_size, &trouble);

    check(!json == !!trouble);
    if (json)
        check_json(json);
}

static bool run_tokenizer(const uint8_t *data, size_t size)
{
    /* <unk>, <s>, </s> and "a"; BPE; spaces as they are. */
    static const char pieces[] = "\x0a\x09\x0a\x05<unk>\x18\x02\x0a\x07\x0a\x03<s>\x18\x03"
                                 "\x0a\x08\x0a\x04</s>\x18\x03\x0a\x03\x0a\x01"
                                 "a"
                                 "\x12\x02\x18\x02\x1a\x02\x20\x00";
    static const char plain[] = "{\"eos_token_id\": 2}";
    const char *bytes = (const char *)data;
    struct hf_sentencepiece tokenizer;
    bool is_model = hf_sentencepiece_read(&tokenizer, data, size) == 0;

    if (is_model) {
        check_sentencepiece(data, size, &tokenizer, NULL, 0);
        check_json(hf_sentencepiece_config(&tokenizer, bytes, size, false, 128));
    }
    check(hf_sentencepiece_read(&tokenizer, pieces, sizeof(pieces) - 1) == 0);
    check_sentencepiece(pieces, sizeof(pieces) - 1, &tokenizer, bytes, size);
    check_json(hf_tokenizer_json_config(bytes, size, 1, 2, 128));
    add_tokens("tokenizer.json", data, size);
    add_tokens("tokenizer.model", data, size);
    add_tokens("added_tokens.json", data, size);
    check_json(hf_config_take_token_ids(plain, bytes, size, HF_TOKEN_IDS_ALL));
    check_json(hf_config_take_token_ids(plain, bytes, size, HF_TOKEN_IDS_EOS_LISTS));
    return is_model || (size > 0 && *data == '{');
}

/* What speaks C++ is not among the parts. */
int sentencepiece_open(struct tokenizer **tokenizer, const char *path, struct error *error)
{
    *tokenizer = NULL;
    return error_set(error, EXIT_STATUS_BUG, "%s", path);
}

static void encode_and_decode(const struct tokenizer *tokenizer, const char *text, size_t bytes)
{
    struct token_list list = {0};
    struct error error = {0};
    char *back = NULL;
    size_t length;

    if (tokenizer_encode(tokenizer, text, bytes, &list, &error) < 0) {
        check(error.status == EXIT_STATUS_DATA); /* a pattern that gives up */
    } else {
        for (int64_t i = 0; i < list.count; i++)
            check(list.ids[i] >= 0 && list.ids[i] < tokenizer_vocab_size(tokenizer));
        if (tokenizer_decode(tokenizer, list.ids, list.count, &back, &length, &error) < 0)
            check(error.status == EXIT_STATUS_DATA);
        else
            check(back && strlen(back) <= length);
    }
    free(list.ids);
    free(back);
}

/* The ids are the same with what they come from, which follows the text. */
static void encode_spans(const struct tokenizer *tokenizer, const char *text, size_t bytes)
{
    struct token_list plain = {0}, list = {0};
    struct token_span *spans = NULL;
    struct error error = {0};

    if (tokenizer_encode(tokenizer, text, bytes, &plain, &error) == 0) {
        check(tokenizer_encode_spans(tokenizer, text, bytes, NULL, &list, &spans, &error) == 0);
        check(list.count == plain.count);
        check(list.count == 0 ||
              memcmp(list.ids, plain.ids, (size_t)list.count * sizeof(*list.ids)) == 0);
    }
    for (int64_t i = 0; i < list.count; i++)
        check(spans[i].begin <= spans[i].end && spans[i].end <= bytes &&
              (i == 0 || spans[i].begin >= spans[i - 1].begin));
    free(plain.ids);
    free(list.ids);
    free(spans);
}

static bool run_encoder(const uint8_t *data, size_t size)
{
    static const char mixed[] = "The end, 123 <x> \xe2\x96\x81"
                                "ab  \n\xc3\x85\xcc\x81 \xff\xc3 a";
    static const char marks[] =
        "e\xcc\x81 \xef\xac\x83 <x> \xec\xa2\x87\xcc\xa3\xcc\x84 o\xcc\x84\xcc\xa3";
    static const char same[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab";
    struct tokenizer *tokenizer;
    struct error error = {0};

    write_file(file_path, data, size);
    if (tokenizer_open(&tokenizer, file_path, &error) < 0) {
        check_refusal(&error, file_path);
        return false;
    }
    onig_set_retry_limit_in_search(10000); /* patience for slow patterns is not the question here */
    for (int i = 0; i < 2; i++) {
        encode_and_decode(tokenizer, mixed, sizeof(mixed)); /* with its NUL */
        encode_and_decode(tokenizer, same, sizeof(same) - 1);
        encode_spans(tokenizer, marks, sizeof(marks)); /* with its NUL */
        encode_spans(tokenizer, same, sizeof(same) - 1);
    }
    tokenizer_close(tokenizer);
    return true;
}

static bool run_chat(const uint8_t *data, size_t size)
{
    return chat_accepts(model_directory, file_path, data, size);
}

static bool run_import(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, '\0', size);
    size_t config = end ? (size_t)(end - data) : size, rest = end ? config + 1 : size;
    const struct hf_import import = {
        .directory = model_directory, .run_directory = run_directory, .dtype = -1};
    struct error error = {0};

    write_file(config_path, data, config);
    write_tensors(file_path, data + rest, size - rest);
    if (hf_import(&import, &error) < 0) {
        check_refusal(&error, model_directory);
        check(access(run_directory, F_OK) < 0);
        return false;
    }
    check(disk_remove_tree(run_directory, &error) == 0);
    return true;
}

/* --- mutation -------------------------------------------------------------------------------- */

struct span {
    size_t begin, end;
};

static struct span whole(const uint8_t *data, size_t size)
{
    (void)data;
    return (struct span){0, size};
}

static struct span nothing(const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    return (struct span){0, 0};
}

static struct span header_after(const uint8_t *data, size_t size, size_t begin)
{
    uint64_t length;

    if (size - begin < BEFORE_HEADER)
        return (struct span){size, size};
    memcpy(&length, data + begin + SIZE_FIELD, HEADER_FIELD);
    length = le64toh(length);
    begin += BEFORE_HEADER;
    return (struct span){begin, length < size - begin ? begin + (size_t)length : size};
}

static struct span header(const uint8_t *data, size_t size)
{
    return header_after(data, size, 0);
}

static struct span behind_template(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, '\0', size);

    return (struct span){end && rand() % 2 ? (size_t)(end - data) + 1 : size, size};
}

static struct span config_or_header(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, '\0', size);

    if (!end || rand() % 2)
        return (struct span){0, end ? (size_t)(end - data) : size};
    return header_after(data, size, (size_t)(end - data) + 1);
}

static const struct target {
    const char *name;
    bool (*run)(const uint8_t *data, size_t size); /* was it accepted? */
    struct span (*json)(const uint8_t *data, size_t size);
    const char *file; /* in the model's directory */
} targets[] = {
    {"safetensors", run_safetensors, header, "model.safetensors"},
    {"index", run_index, whole, "model.safetensors.index.json"},
    {"config", run_config, whole, "config.json"},
    {"tokenizer", run_tokenizer, whole, "tokenizer.json"},
    {"encoder", run_encoder, whole, "tokenizer.json"},
    {"chat", run_chat, behind_template, "template.ini"},
    {"import", run_import, config_or_header, "model.safetensors"},
    {"tokens", run_tokens, nothing, "tokens"},
    {"corpus", run_corpus, nothing, "text"},
    {"resume", run_resume, whole, "out.resume"},
    {"order", run_order, nothing, "order"},
    {"rows", run_rows, nothing, "rows"},
};

static void add_to_field(uint8_t *field, uint64_t more)
{
    uint64_t value;

    memcpy(&value, field, sizeof(value));
    value = htole64(le64toh(value) + more);
    memcpy(field, &value, sizeof(value));
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct span json;
    size_t length, longest;
    uint8_t *text;

    srand(seed);
    json = target->json(data, size);
    if (json.begin == json.end || rand() % 4 == 0)
        return LLVMFuzzerMutate(data, size, room);
    longest = json.end - json.begin + (room - size);
    text = malloc(longest);
    check(text);
    memcpy(text, data + json.begin, json.end - json.begin);
    length = json.end - json.begin;
    length =
        rand() % 4 ? change_json(text, length, longest) : LLVMFuzzerMutate(text, length, longest);
    memmove(data + json.begin + length, data + json.end, size - json.end);
    memcpy(data + json.begin, text, length);
    free(text);
    /* A header's own length and the file's follow, most of the time. */
    if (target->json != whole && target->json != behind_template && json.begin >= BEFORE_HEADER &&
        rand() % 16) {
        uint64_t more = (uint64_t)length - (json.end - json.begin);

        add_to_field(data + json.begin - BEFORE_HEADER, more);
        add_to_field(data + json.begin - HEADER_FIELD, more);
    }
    return size - (json.end - json.begin) + length;
}

/* --- the fuzzer's own ------------------------------------------------------------------------ */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool was_accepted = target->run(data, size);

    check(was_accepted || !must_accept);
    inputs++;
    accepted += was_accepted;
    return 0;
}

static void finish(void)
{
    fprintf(stderr, "%s: %" PRIu64 " inputs, %" PRIu64 " accepted\n", target->name, inputs,
            accepted);
}

/* A shard for the index to name. */
static void write_shard(const char *name, const char *header_text, size_t data)
{
    uint64_t length = htole64(strlen(header_text));
    char path[300], bytes[256] = {0};

    memcpy(bytes, &length, HEADER_FIELD);
    strcpy(bytes + HEADER_FIELD, header_text);
    snprintf(path, sizeof(path), "%s/%s", model_directory, name);
    write_file(path, bytes, HEADER_FIELD + strlen(header_text) + data);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *directory = getenv("FUZZ_DIRECTORY");

    for (int i = 1; i < *argc; i++) {
        if (strcmp((*argv)[i], "--accept") == 0)
            must_accept = true;
        for (size_t j = 0; j < sizeof(targets) / sizeof(*targets); j++)
            if (strncmp((*argv)[i], "--target=", 9) == 0 &&
                strcmp((*argv)[i] + 9, targets[j].name) == 0)
                target = &targets[j];
    }
    if (!target || !directory) {
        fprintf(stderr, "usage: see the top of readers.c\n");
        exit(64);
    }
    snprintf(model_directory, sizeof(model_directory), "%s/model", directory);
    snprintf(run_directory, sizeof(run_directory), "%s/run", directory);
    snprintf(file_path, sizeof(file_path), "%s/%s", model_directory, target->file);
    snprintf(config_path, sizeof(config_path), "%s/config.json", model_directory);
    check(mkdir(model_directory, 0777) == 0 || errno == EEXIST);
    write_shard("one", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}", 16);
    write_shard("two", "{\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]}}", 6);
    atexit(finish);
    return 0;
}
