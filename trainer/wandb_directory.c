#include "trainer/wandb_directory.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "core/log.h"
#include "trainer/replacement.h"

enum { ID_LENGTH = 8 };

bool wandb_environment_is_true(const char *name)
{
    const char *value = getenv(name);

    return value && (strcasecmp(value, "true") == 0 || strcasecmp(value, "yes") == 0 ||
                     strcasecmp(value, "on") == 0 || strcmp(value, "1") == 0);
}

bool wandb_is_wanted(const struct settings *settings)
{
    const char *mode = getenv("WANDB_MODE");

    if (!setting_boolean(settings, SETTING_WANDB))
        return false;
    if (!(mode && strcmp(mode, "disabled") == 0) && !wandb_environment_is_true("WANDB_DISABLED"))
        return true;
    log_info("wandb=yes: nothing is written, since WANDB_MODE or WANDB_DISABLED says so");
    return false;
}

static const struct {
    enum setting_id id;
    const char *name;
} setting_variables[] = {
    {SETTING_WANDB_PROJECT, "WANDB_PROJECT"}, {SETTING_WANDB_ENTITY, "WANDB_ENTITY"},
    {SETTING_WANDB_NAME, "WANDB_NAME"},       {SETTING_WANDB_GROUP, "WANDB_RUN_GROUP"},
    {SETTING_WANDB_TAGS, "WANDB_TAGS"},       {SETTING_WANDB_NOTES, "WANDB_NOTES"},
};

/* What the variable `i` says of its setting; NULL: nothing that counts. */
static const char *variable_value(const struct settings *settings, size_t i)
{
    const char *value = getenv(setting_variables[i].name);
    bool counts = setting_source(settings, setting_variables[i].id) < SETTING_SOURCE_ENVIRONMENT;

    return value && *value && counts ? value : NULL;
}

void wandb_read_environment(struct settings *settings)
{
    for (size_t i = 0; i < sizeof(setting_variables) / sizeof(*setting_variables); i++) {
        const char *value = variable_value(settings, i), *name = setting_variables[i].name;
        struct error error; /* a line break in notes, for instance */

        if (value && setting_boolean(settings, SETTING_WANDB))
            (void)settings_set(settings, setting_variables[i].id, value, SETTING_SOURCE_ENVIRONMENT,
                               name, name, &error);
    }
}

const char *wandb_setting(const struct settings *settings, enum setting_id id)
{
    const char *value = NULL;

    for (size_t i = 0; i < sizeof(setting_variables) / sizeof(*setting_variables); i++)
        if (setting_variables[i].id == id)
            value = variable_value(settings, i);
    return value ? value : setting_text(settings, id);
}

/* The directory in which runs are: a hidden one is used where there is one. */
static int find_root(char root[DISK_PATH_SIZE], const char *parent, struct error *error)
{
    if (disk_path(root, error, "%s/.wandb", parent) < 0)
        return -1;
    if (disk_is_directory(root))
        return 0;
    if (disk_path(root, error, "%s/wandb", parent) < 0)
        return -1;
    return disk_make_directory(root, error);
}

static int make_id(char id[ID_LENGTH + 1], struct error *error)
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    unsigned char bytes[ID_LENGTH];

    if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
        return error_set_errno(error, "no random bytes for the id of the W&B run");
    for (int i = 0; i < ID_LENGTH; i++)
        id[i] = digits[bytes[i] % 36];
    id[ID_LENGTH] = '\0';
    return 0;
}

/* offline-run-YYYYMMDD_HHMMSS-ID; NULL for another name. */
static const char *id_of_name(const char *path)
{
    static const char pattern[] = "offline-run-00000000_000000-";
    const char *name = strrchr(path, '/');

    name = name ? name + 1 : path;
    return strlen(name) > strlen(pattern) && strncmp(name, pattern, 12) == 0
               ? name + strlen(pattern)
               : NULL;
}

/* Is it the run with this id that goes on? */
static bool id_is_wanted(const char *id)
{
    const char *wanted = getenv("WANDB_RUN_ID"), *resume = getenv("WANDB_RESUME");

    if (wanted && *wanted)
        return strcmp(id, wanted) == 0;
    return !resume || strcmp(resume, "never") != 0;
}

/* The directory that ROOT/latest-run names, whether it is still there or not. */
static bool follow_link(struct wandb_directory *directory, const char *root)
{
    const char *id;
    char link[DISK_PATH_SIZE], target[DISK_PATH_SIZE];
    struct error unused;
    ssize_t length;

    if (disk_path(link, &unused, "%s/latest-run", root) < 0)
        return false;
    length = readlink(link, target, sizeof(target) - 1);
    if (length <= 0)
        return false;
    target[length] = '\0';
    id = id_of_name(target);
    if (!id || !id_is_wanted(id))
        return false;
    if ((size_t)snprintf(directory->id, sizeof(directory->id), "%s", id) >= sizeof(directory->id))
        return false;
    return disk_path(directory->path, &unused, "%s%s%s", target[0] == '/' ? "" : root,
                     target[0] == '/' ? "" : "/", target) == 0;
}

/* The name of a new directory. */
static int name_directory(struct wandb_directory *directory, const char *root, struct error *error)
{
    const char *wanted = getenv("WANDB_RUN_ID");
    char stamp[32] = "";
    time_t now = time(NULL);
    struct tm local;

    if (wanted && *wanted) {
        if (strlen(wanted) >= sizeof(directory->id) || strpbrk(wanted, "/\\#?%: \t\n"))
            return error_set(error, EXIT_STATUS_USAGE,
                             "WANDB_RUN_ID=%s: not an id; use at most %zu letters and digits",
                             wanted, sizeof(directory->id) - 1);
        snprintf(directory->id, sizeof(directory->id), "%s", wanted);
    } else if (make_id(directory->id, error) < 0) {
        return -1;
    }
    if (localtime_r(&now, &local))
        strftime(stamp, sizeof(stamp), "%Y%m%d_%H%M%S", &local);
    return disk_path(directory->path, error, "%s/offline-run-%s-%s", root, stamp, directory->id);
}

/* Point ROOT/latest-run at a directory; if that is inside, by its name, so that both can be moved.
 */
static int link_latest(const char *root, const char *directory, struct error *error)
{
    char whole[PATH_MAX], link[DISK_PATH_SIZE];
    const char *name = strrchr(directory, '/') + 1;
    bool inside;

    if (!realpath(root, whole))
        return error_set_errno(error, "%s: cannot find", root);
    inside = strncmp(whole, directory, strlen(whole)) == 0 && directory + strlen(whole) + 1 == name;
    if (disk_path(link, error, "%s/latest-run", root) < 0)
        return -1;
    return disk_link(inside ? name : directory, link, error);
}

int wandb_directory_open(struct wandb_directory *directory, const char *run_directory,
                         struct error *error)
{
    const char *parent = getenv("WANDB_DIR");
    char own_root[DISK_PATH_SIZE], root[DISK_PATH_SIZE], files[DISK_PATH_SIZE], whole[PATH_MAX];

    if (!parent || !*parent)
        parent = run_directory;
    if (find_root(own_root, run_directory, error) < 0 || find_root(root, parent, error) < 0)
        return -1;
    if (!follow_link(directory, own_root) && name_directory(directory, root, error) < 0)
        return -1;
    if (disk_path(files, error, "%s/files", directory->path) < 0 ||
        disk_make_directory(files, error) < 0)
        return -1;
    if (!realpath(directory->path, whole))
        return error_set_errno(error, "%s: cannot find", directory->path);
    if (disk_path(directory->path, error, "%s", whole) < 0 ||
        disk_path(directory->file, error, "%s/run-%s.wandb", whole, directory->id) < 0)
        return -1;
    if (link_latest(root, whole, error) < 0)
        return -1;
    return link_latest(own_root, whole, error);
}

int wandb_directory_write(const struct wandb_directory *directory, const char *name,
                          const char *text, struct error *error)
{
    char path[DISK_PATH_SIZE + 32];
    struct replacement file;

    snprintf(path, sizeof(path), "%s/files/%s", directory->path, name);
    if (replacement_open(&file, path, NULL, error) < 0)
        return -1;
    fputs(text, file.stream);
    return replacement_close(&file, 0, false, error);
}

/* JSON is YAML, but for numbers such as 1e-5 and 1.5e20, which YAML 1.1 takes for text: it wants a
 * point and a sign. */
static void put_yaml(FILE *stream, const char *json)
{
    bool text = false, number = false, fraction = false;

    for (; *json; json++) {
        bool exponent = *json == 'e' && number;

        if (*json == '"')
            text = !text;
        fputs(exponent && !fraction ? ".0" : "", stream);
        fputc(*json, stream);
        fputs(exponent && json[1] != '-' ? "+" : "", stream);
        if (text && *json == '\\')
            fputc(*++json, stream);
        number = !text && ((*json >= '0' && *json <= '9') || (*json == '.' && number));
        fraction = number && (*json == '.' || fraction);
    }
}

static char *config_text(json_t *config)
{
    char *text = NULL;
    const char *name;
    json_t *value;
    size_t size;
    FILE *stream = open_memstream(&text, &size);

    if (!stream)
        return NULL;
    json_object_foreach(config, name, value)
    {
        char *json = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));

        fprintf(stream, "%s:\n    value: ", name);
        put_yaml(stream, json ? json : "null");
        fputc('\n', stream);
        free(json);
    }
    if (fclose(stream) == 0)
        return text;
    free(text);
    return NULL;
}

static char *metadata_text(void)
{
    static const char *const variables[] = {
        "SLURM_JOB_ID",       "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_NAME",
        "SLURM_JOB_NODELIST", "SLURM_NNODES",       "SLURM_NTASKS",        "SLURM_CLUSTER_NAME"};
    char host[256] = "", stamp[64] = "", *text;
    time_t now = time(NULL);
    struct tm utc;
    json_t *metadata, *slurm = json_object();

    (void)gethostname(host, sizeof(host) - 1);
    if (gmtime_r(&now, &utc))
        strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%SZ", &utc);
    for (size_t i = 0; i < sizeof(variables) / sizeof(*variables); i++)
        if (getenv(variables[i])) {
            char name[64];

            snprintf(name, sizeof(name), "%s", variables[i] + strlen("SLURM_"));
            for (char *c = name; *c; c++)
                if (*c >= 'A' && *c <= 'Z')
                    *c = (char)(*c - 'A' + 'a');
            json_object_set_new(slurm, name, json_string(getenv(variables[i])));
        }
    metadata = json_pack("{s:s, s:s, s:s, s:s, s:o}", "program", "mtllm-train", "version",
                         MTLLM_VERSION, "host", host, "startedAt", stamp, "slurm", slurm);
    text = json_dumps(metadata, JSON_INDENT(2));
    json_decref(metadata);
    return text;
}

int wandb_directory_describe(const struct wandb_directory *directory, json_t *config,
                             struct error *error)
{
    char *texts[] = {config_text(config), metadata_text()};
    static const char *const names[] = {"config.yaml", "wandb-metadata.json"};
    int result = 0;

    for (int i = 0; i < 2; i++) {
        if (result == 0)
            result = texts[i] ? wandb_directory_write(directory, names[i], texts[i], error)
                              : error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        free(texts[i]);
    }
    return result;
}
