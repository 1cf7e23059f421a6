/* hf-to-h5: a Hugging Face model directory becomes a checkpoint; hf-to-h5(1). */
#include <getopt.h>
#include <stdio.h>

#include "ckpt/hf_import.h"
#include "ckpt/hf_options.h"
#include "core/error.h"
#include "core/standard_streams.h"

static const char usage[] =
    "Usage: hf-to-h5 [OPTION]... HF_DIR OUT\n"
    "Convert a Hugging Face model directory to a checkpoint of mtllm.\n"
    "\n"
    "The checkpoint is OUT/ckpt/step-00000000: OUT can be given to mtllm-train as\n"
    "--init, or be a new run's directory.\n"
    "\n"
    "  --dtype=fp32|bf16|fp16   type of the weights; as in HF_DIR if not given\n"
    "  --add-tokens=TOKEN,...   new tokens, or @FILE with one a line\n"
    "  --allow-nonfinite=yes|no take over NaN and infinity (no)\n"
    "  --force                  replace a step-00000000 that is there\n"
    "  --help                   print this and exit\n"
    "  --version                print the version and exit\n";

enum {
    OPTION_DTYPE = 1,
    OPTION_ADD_TOKENS,
    OPTION_NONFINITE,
    OPTION_FORCE,
    OPTION_HELP,
    OPTION_VERSION
};

static const struct option options[] = {
    {"dtype", required_argument, NULL, OPTION_DTYPE},
    {"add-tokens", required_argument, NULL, OPTION_ADD_TOKENS},
    {"allow-nonfinite", required_argument, NULL, OPTION_NONFINITE},
    {"force", no_argument, NULL, OPTION_FORCE},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

/* 1 when help or version was asked for and printed. */
static int parse(int argc, char **argv, struct hf_import *import, struct error *error)
{
    int option, rc = 0;

    opterr = 0;
    while (rc == 0 && (option = getopt_long(argc, argv, ":", options, NULL)) != -1)
        switch (option) {
        case OPTION_DTYPE:
            rc = hf_option_dtype(optarg, &import->dtype, error);
            break;
        case OPTION_ADD_TOKENS:
            import->add_tokens = optarg;
            break;
        case OPTION_NONFINITE:
            rc = hf_option_boolean("--allow-nonfinite", optarg, &import->allow_nonfinite, error);
            break;
        case OPTION_FORCE:
            import->force = true;
            break;
        case OPTION_HELP:
            fputs(usage, stdout);
            return 1;
        case OPTION_VERSION:
            puts("hf-to-h5 (mtllm) " MTLLM_VERSION);
            return 1;
        default:
            rc = hf_option_refuse(option, argv, optind, error);
        }
    if (rc < 0)
        return -1;
    return hf_operands(argc, argv, optind, "HF_DIR and OUT", &import->directory,
                       &import->run_directory, error);
}

int main(int argc, char **argv)
{
    struct hf_import import = {.dtype = -1};
    struct error error = {0};
    int rc;

    standard_streams_open();
    rc = parse(argc, argv, &import, &error);
    if (rc == 0)
        rc = hf_import(&import, &error);
    return rc < 0 ? error_print(&error) : EXIT_STATUS_OK;
}
