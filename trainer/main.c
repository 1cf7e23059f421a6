/* mtllm-train: one process a rank. See mtllm-train(1). */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "core/log.h"
#include "core/settings.h"
#include "core/standard_streams.h"
#include "trainer/metric_host.h"
#include "trainer/training.h"
#include "trainer/wandb_directory.h"

static bool has_word(int argc, char *const *argv, const char *word)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], word) == 0)
            return true;
    return false;
}

static void write_help(void)
{
    puts("usage: mtllm-train [--NAME=VALUE]...\n"
         "\n"
         "Trains a Llama-family language model. Start one process a rank, with srun --mpi=pmix or\n"
         "mpirun, or a single one. Every setting can also come from the environment\n"
         "(MTLLM_NAME), from --config=FILE, from the model preset or from mtllm.conf(5); under\n"
         "sbatch many are options too (--llm-NAME).\n"
         "\n"
         "  --help, --version, --print-settings");
    settings_write_help(stdout);
}

static int read_settings(struct settings *settings, int argc, char **argv, struct error *error)
{
    if (settings_read_command_line(settings, argc, argv, error) < 0 ||
        settings_read_environment(settings, error) < 0)
        return -1;
    if (settings_read_layers(settings, error) < 0)
        return -1;
    wandb_read_environment(settings);
    return 0;
}

/* What main() does once it knows its rank. Returns the exit status. */
static int run(int argc, char **argv, const struct world *world, struct stop *stop)
{
    struct settings *settings = settings_create();
    struct training training = {0};
    struct error error = {0};
    int status = -1;

    log_set_enabled(world->rank == 0);
    if (!settings)
        error_set(&error, EXIT_STATUS_SYSTEM, "out of memory");
    /* Every rank reads the same files, so one of them says what is wrong. No fence of our own comes
     * before MPI's: with Slurm's PMIx 22.05 Open MPI then crashed in 2 of 75 starts. */
    else if (read_settings(settings, argc, argv, &error) < 0 && world->rank != 0)
        error.text[0] = '\0';
    if (error.status == 0) {
        stop_set_time_limit(stop, stop_job_end_time(settings),
                            setting_integer(settings, SETTING_MARGIN));
        status = training_open(&training, settings, world, stop, &error);
        if (status == 0)
            status = training_run(&training, &error);
    }
    if (status < 0) {
        status = error.status ? error.status : EXIT_STATUS_BUG;
        if (error.text[0])
            error_print(&error);
    }
    training_close(&training);
    settings_destroy(settings);
    return status;
}

static int print_settings(int argc, char **argv)
{
    struct settings *settings = settings_create();
    struct error error = {0};
    char *rest[256];
    int count = 0, status = 0;

    for (int i = 0; i < argc && count < 256; i++)
        if (strcmp(argv[i], "--print-settings") != 0)
            rest[count++] = argv[i];
    if (!settings)
        return EXIT_STATUS_SYSTEM;
    if (read_settings(settings, count, rest, &error) < 0)
        status = error_print(&error);
    else if (settings_write(settings, stdout) < 0)
        status = EXIT_STATUS_IO;
    settings_destroy(settings);
    return status;
}

int main(int argc, char **argv)
{
    struct world world = {0};
    struct stop *stop = NULL;
    struct error error = {0};
    int status;

    standard_streams_open();
    if (argc == 3 && strcmp(argv[1], METRIC_HOST_OPTION) == 0)
        return metric_host(argv[2]);
    if (has_word(argc, argv, "--help")) {
        write_help();
        return 0;
    }
    if (has_word(argc, argv, "--version")) {
        puts("mtllm " MTLLM_VERSION);
        return 0;
    }
    if (has_word(argc, argv, "--print-settings"))
        return print_settings(argc, argv);
    signal(SIGPIPE, SIG_IGN); /* tee may be gone: what it read is no reason to stop */
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is then an error of write() */
    signal(SIGCHLD, SIG_DFL); /* ignored by who started this, nobody would see how children end */
    /* Signals are blocked before PMIx, OpenMP and BLAS start threads that would catch them. */
    if (stop_open(&stop, &error) < 0 || world_open(&world, &error) < 0) {
        status = error_print(&error);
    } else {
        status = run(argc, argv, &world, stop);
    }
    world_close(&world);
    stop_close(stop);
    return status;
}
