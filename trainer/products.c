#include "trainer/products.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/log.h"
#include "trainer/replacement.h"

enum { PATH_BYTES = PATH_MAX + 64, MOST_BYTES = 1 << 20 };

static void record_path(char *path, const struct run_directory *run, int rank)
{
    snprintf(path, PATH_BYTES, "%s/products/%05d.txt", run->path, rank);
}

/* The record, to be freed; NULL when there is none. */
static char *read_record(const char *path)
{
    FILE *file = fopen(path, "r");
    char *text = file ? calloc(MOST_BYTES, 1) : NULL;

    if (text && fread(text, 1, MOST_BYTES - 1, file) == 0) {
        free(text);
        text = NULL;
    }
    if (file)
        fclose(file);
    return text;
}

void products_adopt(const struct kernels *kernels, const struct run_directory *run, int rank)
{
    char path[PATH_BYTES], *text;

    record_path(path, run, rank);
    text = read_record(path);
    if (text && !kernels->products_adopt(text))
        log_warning_any_rank("%s: written with another device or library; products are measured "
                             "anew, and the run goes on with other roundings",
                             path);
    free(text);
}

static int write_record(const char *path, const char *text, struct error *error)
{
    struct replacement file;

    if (replacement_open(&file, path, NULL, error) < 0)
        return -1;
    fputs(text, file.stream);
    return replacement_close(&file, 0, true, error);
}

int products_record(const struct kernels *kernels, const struct run_directory *run, int rank,
                    struct error *error)
{
    char path[PATH_BYTES], directory[PATH_BYTES];
    char *text = kernels->products_text(), *before;
    int result = 0;

    if (!text)
        return 0;
    record_path(path, run, rank);
    snprintf(directory, sizeof(directory), "%s/products", run->path);
    before = read_record(path);
    if (before && strcmp(before, text) == 0)
        result = 0;
    else if (mkdir(directory, 0777) < 0 && errno != EEXIST)
        result = error_set_errno(error, "cannot make %s", directory);
    else
        result = write_record(path, text, error);
    free(before);
    free(text);
    return result;
}
