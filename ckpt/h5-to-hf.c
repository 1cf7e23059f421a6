/* h5-to-hf: a checkpoint becomes a Hugging Face model directory; h5-to-hf(1). */
#include <getopt.h>
#include <stdio.h>

#include "ckpt/hf_export.h"
#include "ckpt/hf_options.h"
#include "core/error.h"
#include "core/standard_streams.h"

static const char usage[] =
    "Usage: h5-to-hf [OPTION]... CHECKPOINT OUT_DIR\n"
    "Convert a checkpoint of mtllm to a Hugging Face model directory.\n"
    "\n"
    "CHECKPOINT is a run directory, its ckpt/ or one step's directory; of several\n"
    "steps the newest good one is taken. OUT_DIR appears when all is written.\n"
    "\n"
    "  --dtype=fp32|bf16|fp16  type of the tensors; as in the checkpoint if not given\n"
    "  --max-shard-size=SIZE   most bytes of tensors a file (5GB)\n"
    "  --force                 replace the model that is in OUT_DIR\n"
    "  --help                  print this and exit\n"
    "  --version               print the version and exit\n";

enum { OPTION_DTYPE = 1, OPTION_SHARD_SIZE, OPTION_FORCE, OPTION_HELP, OPTION_VERSION };

static const struct option options[] = {
    {"dtype", required_argument, NULL, OPTION_DTYPE},
    {"max-shard-size", required_argument, NULL, OPTION_SHARD_SIZE},
    {"force", no_argument, NULL, OPTION_FORCE},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

/* 1 when help or version was asked for and printed. */
static int parse(int argc, char **argv, struct hf_export *export, struct error *error)
{
    int option, rc = 0;

    opterr = 0;
    while (rc == 0 && (option = getopt_long(argc, argv, ":", options, NULL)) != -1)
        switch (option) {
        case OPTION_DTYPE:
            rc = hf_option_dtype(optarg, &export->dtype, error);
            break;
        case OPTION_SHARD_SIZE:
            rc = hf_option_size("--max-shard-size", optarg, &export->shard_bytes, error);
            break;
        case OPTION_FORCE:
            export->force = true;
            break;
        case OPTION_HELP:
            fputs(usage, stdout);
            return 1;
        case OPTION_VERSION:
            puts("h5-to-hf (mtllm) " MTLLM_VERSION);
            return 1;
        default:
            rc = hf_option_refuse(option, argv, optind, error);
        }
    if (rc < 0)
        return -1;
    return hf_operands(argc, argv, optind, "CHECKPOINT and OUT_DIR", &export->checkpoint,
                       &export->directory, error);
}

int main(int argc, char **argv)
{
    struct hf_export export = {.dtype = -1, .shard_bytes = 5000000000};
    struct error error = {0};
    int rc;

    standard_streams_open();
    rc = parse(argc, argv, &export, &error);
    if (rc == 0)
        rc = hf_export(&export, &error);
    return rc < 0 ? error_print(&error) : EXIT_STATUS_OK;
}
