/* The plugin's promises, callback by callback, against the Slurm of fake_slurm.c:
 *
 *   - a job without any --llm-* option sees nothing: no call, no variable, no message;
 *   - what cannot work is refused in sbatch and srun, with the option's name in the message;
 *   - in slurmstepd nothing fails before task_init, and no file is opened;
 *   - every ordinary task gets what was given, and nothing else does;
 *   - status 75 requeues exactly this job, or this task of an array, once, and within the limit.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/settings.h"
#include "spank/fake_slurm.h"

#define LENGTH(array) (sizeof(array) / sizeof(*(array)))

extern const char plugin_name[], plugin_type[];

/* --- helpers ---------------------------------------------------------------------------------- */

static char train[] = "/opt/bin/mtllm-train", hostname[] = "hostname";
static char *train_command[] = {train, NULL}, *other_command[] = {hostname, NULL};

/* A process of Slurm in `context` that has loaded the plugin. */
static void begin(spank_context_t context)
{
    static const char *const names[] = {"SLURM_JOB_ID",
                                        "SLURM_SUBMIT_DIR",
                                        "SLURM_HET_SIZE",
                                        "SLURM_MPI_TYPE",
                                        "SLURM_MTLLM_JOB_END_TIME",
                                        "SLURM_MTLLM_RESTART_COUNT",
                                        "SLURM_MTLLM_REQUEUE_LIMIT",
                                        "SLURM_MTLLM_REFUSED",
                                        "MTLLM_TP",
                                        "MTLLM_MAX_REQUEUE"};
    char models[4096];

    for (size_t i = 0; i < LENGTH(names); i++)
        unsetenv(names[i]);
    snprintf(models, sizeof(models), "%s/etc/models", getenv("srcdir") ? getenv("srcdir") : ".");
    setenv("MTLLM_MODELS", models, 1);
    setenv("MTLLM_CONF", "/dev/null", 1);
    slurm = (struct slurm){
        .context = context,
        .job_id = 12,
        .world = 4,
        .argc = 1,
        .argv = train_command,
        .job_count = 1,
        .jobs = {{.job_id = 12, .end_time = 1000, .restart_cnt = 2, .array_task_id = NO_VAL}},
    };
    assert_int_equal(slurm_spank_init(NULL, 0, NULL), 0);
}

static void end(void)
{
    assert_int_equal(slurm_spank_exit(NULL, 0, NULL), 0);
    slurm.argv = NULL; /* the test's own, which end with it */
}

/* As Slurm does it when it meets --NAME=TEXT. */
static int give(const char *name, const char *text)
{
    for (int i = 0; i < slurm.option_count; i++)
        if (strcmp(slurm.names[i], name) == 0)
            return slurm.options[i].cb(slurm.options[i].val, text, slurm.context == S_CTX_REMOTE);
    fail_msg("--%s is not registered", name);
    return -1;
}

static int post_opt(void)
{
    return slurm_spank_init_post_opt(NULL, 0, NULL);
}

static void assert_said(const char *text)
{
    if (!strstr(slurm.messages, text))
        fail_msg("\"%s\" is not in \"%s\"", text, slurm.messages);
}

static void assert_task_has(const char *name, const char *value)
{
    const struct variable *variable = variable_find(name);

    if (!variable)
        fail_msg("the task has no %s", name);
    else
        assert_string_equal(variable->value, value);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void registers_the_table(void **state)
{
    static const spank_context_t contexts[] = {S_CTX_LOCAL, S_CTX_REMOTE, S_CTX_ALLOCATOR};
    int expected = 1; /* --llm-dry-run */

    (void)state;
    for (int id = 0; id < SETTING_COUNT; id++)
        expected += setting_table[id].submit;
    assert_string_equal(plugin_name, "mtllm");
    assert_string_equal(plugin_type, "spank");
    for (size_t i = 0; i < LENGTH(contexts); i++) {
        begin(contexts[i]);
        assert_int_equal(slurm.option_count, expected);
        for (int j = 0; j < slurm.option_count; j++) {
            int id = setting_find(slurm.names[j]);

            assert_int_equal(strncmp(slurm.names[j], "llm-", 4), 0);
            assert_true(strcmp(slurm.names[j], "llm-dry-run") == 0 ||
                        (id >= 0 && setting_table[id].submit));
            assert_int_equal(slurm.options[j].has_arg, 1);
            assert_true(strlen(slurm.names[j]) <= SPANK_OPTION_MAXLEN);
        }
        end();
    }
    begin(S_CTX_SLURMD);
    assert_int_equal(slurm.option_count, 0);
    begin(S_CTX_JOB_SCRIPT);
    assert_int_equal(slurm.option_count, 0);
}

static void failed_registration(void **state)
{
    (void)state;
    for (int context = S_CTX_LOCAL; context <= S_CTX_ALLOCATOR; context++) {
        slurm =
            (struct slurm){.context = (spank_context_t)context, .register_status = ESPANK_ERROR};
        assert_int_equal(slurm_spank_init(NULL, 0, NULL), context == S_CTX_REMOTE ? 0 : -1);
        assert_said("mtllm: cannot register --llm-model");
    }
}

/* Every callback in every context, and not one call into Slurm. A plugin argument that makes no
 * sense is no reason to disturb them either. */
static void nothing_without_options(void **state)
{
    char wrong[] = "nonsense", *words[] = {wrong, NULL};

    (void)state;
    for (int context = S_CTX_LOCAL; context <= S_CTX_JOB_SCRIPT; context++) {
        begin((spank_context_t)context);
        unsetenv("MTLLM_MODELS");
        setenv("SLURM_JOB_ID", "12", 1);
        setenv("MTLLM_TP", "nonsense", 1);
        slurm.exit_status = 75 << 8;
        assert_int_equal(slurm_spank_init_post_opt(NULL, 1, words), 0);
        assert_int_equal(slurm_spank_local_user_init(NULL, 1, words), 0);
        assert_int_equal(slurm_spank_task_init(NULL, 1, words), 0);
        assert_int_equal(slurm_spank_task_exit(NULL, 1, words), 0);
        assert_int_equal(slurm_spank_exit(NULL, 1, words), 0);
        assert_int_equal(slurm.calls, 0);
        assert_int_equal(slurm.files, 0);
        assert_int_equal(slurm.variables, 0);
        assert_null(getenv("SLURM_MPI_TYPE"));
        assert_null(getenv("MTLLM_MODELS"));
    }
}

static void last_value_wins(void **state)
{
    (void)state;
    begin(S_CTX_REMOTE);
    assert_int_equal(give("llm-tp", "2"), 0);
    assert_int_equal(give("llm-tp", "2"), 0);
    assert_int_equal(give("llm-tp", "4"), 0);
    assert_int_equal(give("llm-tp", NULL), -1);
    assert_int_equal(post_opt(), 0);
    assert_int_equal(slurm_spank_task_init(NULL, 0, NULL), 0);
    assert_task_has("MTLLM_TP", "4");
    end();
}

static void submission_is_refused(void **state)
{
    static const struct {
        const char *options[4][2];
        const char *message;
    } cases[] = {
        {{{"llm-model", "codellama-34b"}, {"llm-tp", "3"}},
         "mtllm: --llm-tp=3: codellama-34b has 8 key/value heads, which 3 does not divide; use 1, "
         "2, 4, 8, 16, 32 or 64"},
        {{{"llm-model", "llama-tiny"}, {"llm-pp", "5"}}, "mtllm: --llm-pp=5: llama-tiny has 4"},
        {{{"llm-model", "gpt-9"}}, "mtllm: --llm-model=gpt-9: unknown model; known in "},
        {{{"llm-model", "./gpt-9.ini"}}, "gpt-9.ini: No such file"},
        {{{"llm-tp", "two"}}, "mtllm: --llm-tp=two: not a whole number"},
        {{{"llm-tp", "-1"}}, "mtllm: --llm-tp=-1: out of range"},
        {{{"llm-lr-schedule", "sawtooth"}}, "mtllm: --llm-lr-schedule=sawtooth: unknown"},
        {{{"llm-margin", "soon"}}, "mtllm: --llm-margin=soon: not a time"},
        {{{"llm-run-dir", ""}}, "mtllm: --llm-run-dir: the value is empty"},
        {{{"llm-config", "/nonexistent.ini"}}, "mtllm: /nonexistent.ini: cannot read settings"},
        {{{"llm-micro-batch-size", "4"}, {"llm-global-batch-size", "6"}},
         "mtllm: --llm-global-batch-size=6: not a multiple"},
        {{{"llm-dp", "2"}, {"llm-global-batch-size", "3"}},
         "mtllm: --llm-global-batch-size=3: not a multiple"},
        {{{"llm-dp", "4"}, {"llm-global-batch-size", "16"}, {"llm-batch-size-ramp", "4 2 80"}},
         "mtllm: --llm-batch-size-ramp=4 2 80: on it is a batch of 6, not a multiple"},
        {{{"llm-steps", "4"}, {"llm-train-samples", "16"}},
         "mtllm: --llm-train-samples=16: --llm-steps=4 says how long"},
    };
    static const spank_context_t contexts[] = {S_CTX_ALLOCATOR, S_CTX_LOCAL};

    (void)state;
    for (size_t c = 0; c < LENGTH(contexts); c++)
        for (size_t i = 0; i < LENGTH(cases); i++) {
            begin(contexts[c]);
            for (int j = 0; j < 4 && cases[i].options[j][0]; j++)
                assert_int_equal(give(cases[i].options[j][0], cases[i].options[j][1]), 0);
            assert_int_equal(post_opt(), -1);
            assert_said(cases[i].message);
            assert_null(getenv("SLURM_MPI_TYPE"));
            end();
        }
}

static void submission_is_accepted(void **state)
{
    (void)state;
    begin(S_CTX_ALLOCATOR);
    give("llm-model", "codellama-34b");
    give("llm-tp", "8");
    assert_int_equal(post_opt(), 0);
    assert_string_equal(slurm.messages, "");
    assert_string_equal(getenv("SLURM_MPI_TYPE"), "pmix");
    end();

    /* Without a model, its sizes may come later. */
    begin(S_CTX_ALLOCATOR);
    setenv("SLURM_MPI_TYPE", "pmi2", 1);
    give("llm-tp", "3");
    assert_int_equal(post_opt(), 0);
    assert_string_equal(getenv("SLURM_MPI_TYPE"), "pmi2");
    end();
}

/* The status with which srun tells the tasks of a step to end at once; 0 for go on. */
static int srun(int world, int argc, char **argv)
{
    const char *status;

    slurm.world = (uint32_t)world;
    slurm.argc = argc;
    slurm.argv = argv;
    slurm.messages[0] = '\0';
    unsetenv("SLURM_MTLLM_REFUSED");
    assert_int_equal(slurm_spank_local_user_init(NULL, 0, NULL), 0);
    status = getenv("SLURM_MTLLM_REFUSED");
    return status ? (int)strtol(status, NULL, 10) : 0;
}

static void heterogeneous_jobs_are_refused(void **state)
{
    (void)state;
    begin(S_CTX_ALLOCATOR);
    give("llm-tp", "2");
    assert_int_equal(post_opt(), 0);
    assert_int_equal(post_opt(), -1);
    assert_said("mtllm: a run cannot be spread over the components of a heterogeneous job");
    end();

    begin(S_CTX_LOCAL);
    setenv("SLURM_JOB_ID", "12", 1);
    setenv("SLURM_HET_SIZE", "2", 1);
    give("llm-tp", "2");
    assert_int_equal(post_opt(), 0);
    assert_int_equal(srun(4, 1, other_command), 0);
    assert_int_equal(srun(4, 1, train_command), 78);
    end();
}

static void plugin_arguments(void **state)
{
    char conf[] = "conf=/site/mtllm.conf", models[] = "models=/site/models";
    char relative[] = "conf=mtllm.conf", unknown[] = "model=/x";
    char *good[] = {conf, models}, *bad[] = {relative}, *odd[] = {models, unknown};

    (void)state;
    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    assert_int_equal(slurm_spank_init_post_opt(NULL, 2, good), 0);
    assert_int_equal(slurm_spank_task_init(NULL, 2, good), 0);
    assert_task_has("MTLLM_CONF", "/site/mtllm.conf");
    assert_task_has("MTLLM_MODELS", "/site/models");
    end();

    /* A user's own value stays, and a mistake of the site's ends no task. */
    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    assert_int_equal(spank_setenv(NULL, "MTLLM_MODELS", "/home/me", 1), ESPANK_SUCCESS);
    assert_int_equal(slurm_spank_init_post_opt(NULL, 2, odd), 0);
    assert_int_equal(slurm_spank_task_init(NULL, 2, odd), 0);
    assert_task_has("MTLLM_MODELS", "/home/me");
    end();

    begin(S_CTX_ALLOCATOR);
    give("llm-tp", "2");
    assert_int_equal(slurm_spank_init_post_opt(NULL, 2, odd), -1);
    assert_said("mtllm: plugstack.conf: model=/x: unknown argument");
    end();
    begin(S_CTX_LOCAL);
    give("llm-tp", "2");
    assert_int_equal(slurm_spank_init_post_opt(NULL, 1, bad), -1);
    assert_said("mtllm: plugstack.conf: conf=mtllm.conf: not an absolute path");
    end();

    /* The presets are looked for where the site says. */
    begin(S_CTX_ALLOCATOR);
    unsetenv("MTLLM_CONF");
    unsetenv("MTLLM_MODELS");
    give("llm-model", "llama-tiny");
    assert_int_equal(slurm_spank_init_post_opt(NULL, 2, good), -1);
    assert_string_equal(getenv("MTLLM_CONF"), "/site/mtllm.conf");
    assert_string_equal(getenv("MTLLM_MODELS"), "/site/models");
    end();
}

static void world_size_is_checked(void **state)
{
    char tp[] = "--tp=4", limit[] = "--max-requeue=7", no[] = "--requeue=no", help[] = "--help";
    char *with_tp[] = {train, tp, limit, NULL}, *with_no[] = {train, no, NULL};
    char *with_help[] = {train, help, NULL};

    (void)state;
    begin(S_CTX_LOCAL);
    setenv("SLURM_JOB_ID", "12", 1);
    give("llm-model", "llama-tiny");
    give("llm-tp", "2");
    give("llm-pp", "2");
    assert_int_equal(post_opt(), 0);
    assert_int_equal(srun(8, 1, train_command), 0);
    assert_string_equal(getenv("SLURM_MTLLM_REQUEUE_LIMIT"), "1000");
    assert_int_equal(srun(6, 1, train_command), 78);
    assert_said("mtllm: --llm-tp=2 --llm-pp=2: one replica takes 2 x 2 = 4 ranks, which does not "
                "divide the 6 that were started");
    /* An srun of something else is none of our business. */
    assert_int_equal(srun(6, 1, other_command), 0);
    /* The trainer's own command line counts for more. */
    assert_int_equal(srun(4, 3, with_tp), 78);
    assert_said("mtllm: --tp=4 --pp=2: one replica takes 4 x 2 = 8 ranks");
    assert_int_equal(srun(8, 3, with_tp), 0);
    assert_string_equal(getenv("SLURM_MTLLM_REQUEUE_LIMIT"), "7");
    assert_int_equal(srun(4, 2, with_no), 0);
    assert_string_equal(getenv("SLURM_MTLLM_REQUEUE_LIMIT"), "0");
    /* What only the trainer understands is left to it. */
    assert_int_equal(srun(6, 2, with_help), 0);
    end();
}

/* Inside a job, srun judges the values it was given and no file until it sees the trainer. */
static void srun_inside_a_job(void **state)
{
    (void)state;
    begin(S_CTX_LOCAL);
    setenv("SLURM_JOB_ID", "12", 1);
    give("llm-model", "gpt-9");
    assert_int_equal(post_opt(), 0);
    assert_int_equal(slurm.files, 0);
    assert_int_equal(srun(4, 1, other_command), 0);
    give("llm-tp", "two");
    assert_int_equal(post_opt(), -1);
    end();
}

static void job_facts_are_exported(void **state)
{
    (void)state;
    begin(S_CTX_LOCAL);
    give("llm-tp", "2");
    /* Asked for job 12, which is also the number of an array, slurmctld tells of its tasks too. */
    slurm.jobs[1] = slurm.jobs[0];
    slurm.jobs[0] = (slurm_job_info_t){.job_id = 13, .end_time = 5, .restart_cnt = 9};
    slurm.job_count = 2;
    assert_int_equal(srun(4, 1, train_command), 0);
    assert_string_equal(getenv("SLURM_MTLLM_JOB_END_TIME"), "1000");
    assert_string_equal(getenv("SLURM_MTLLM_RESTART_COUNT"), "2");
    end();

    /* The run is worth more than the knowledge. */
    begin(S_CTX_LOCAL);
    give("llm-tp", "2");
    slurm.load_errno = ETIMEDOUT;
    assert_int_equal(srun(4, 1, train_command), 0);
    assert_said("will not stop by itself before its time limit");
    assert_null(getenv("SLURM_MTLLM_JOB_END_TIME"));
    end();
}

static void tasks_get_the_environment(void **state)
{
    (void)state;
    begin(S_CTX_REMOTE);
    give("llm-tp", "not even a number");
    give("llm-run-dir", "run");
    give("llm-data", "/data/text");
    give("llm-model", "llama-tiny");
    give("llm-resume", "auto");
    assert_int_equal(post_opt(), 0);
    spank_setenv(NULL, "SLURM_SUBMIT_DIR", "/home/me", 1);
    spank_setenv(NULL, "SLURM_MTLLM_JOB_END_TIME", "1000", 1);
    spank_setenv(NULL, "SLURM_MTLLM_RESTART_COUNT", "3", 1);
    spank_setenv(NULL, "MTLLM_TP", "1", 1);
    assert_int_equal(slurm_spank_task_init(NULL, 0, NULL), 0);
    assert_task_has("MTLLM_TP", "not even a number");
    assert_task_has("MTLLM_RUN_DIR", "/home/me/run");
    assert_task_has("MTLLM_DATA", "/data/text");
    assert_task_has("MTLLM_MODEL", "llama-tiny");
    assert_task_has("MTLLM_RESUME", "auto");
    assert_task_has("MTLLM_JOB_END_TIME", "1000");
    assert_task_has("MTLLM_RESTART_COUNT", "3");
    assert_null(variable_find("MTLLM_PP"));
    assert_null(variable_find("MTLLM_CONF"));
    assert_int_equal(slurm.files, 0);
    end();

    begin(S_CTX_REMOTE);
    give("llm-model", "models/mine.ini");
    give("llm-resume", "../old");
    give("llm-data", " 0.5 text/a  2 /data/b");
    spank_setenv(NULL, "SLURM_SUBMIT_DIR", "/home/me", 1);
    assert_int_equal(slurm_spank_task_init(NULL, 0, NULL), 0);
    assert_task_has("MTLLM_DATA", "0.5 /home/me/text/a 2 /data/b");
    assert_task_has("MTLLM_MODEL", "/home/me/models/mine.ini");
    assert_task_has("MTLLM_RESUME", "/home/me/../old");
    end();
}

static void other_steps_get_nothing(void **state)
{
    static const uint32_t steps[] = {SLURM_BATCH_SCRIPT, SLURM_EXTERN_CONT, SLURM_INTERACTIVE_STEP};

    (void)state;
    for (size_t i = 0; i < LENGTH(steps); i++) {
        begin(S_CTX_REMOTE);
        give("llm-tp", "2");
        slurm.step_id = steps[i];
        slurm.exit_status = 75 << 8;
        assert_int_equal(post_opt(), 0);
        assert_int_equal(slurm_spank_task_init(NULL, 0, NULL), 0);
        assert_int_equal(slurm_spank_task_exit(NULL, 0, NULL), 0);
        assert_int_equal(slurm.variables, 0);
        assert_int_equal(slurm.requeues, 0);
        end();
    }
}

static void a_task_without_environment_fails(void **state)
{
    static char directory[9000];

    (void)state;
    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    slurm.setenv_status = ESPANK_NOSPACE;
    assert_int_equal(slurm_spank_task_init(NULL, 0, NULL), -1);
    assert_said("mtllm: cannot set MTLLM_TP");
    end();

    begin(S_CTX_REMOTE);
    memset(directory, 'x', sizeof(directory) - 1);
    directory[0] = '/';
    give("llm-run-dir", directory);
    assert_int_equal(slurm_spank_task_init(NULL, 0, NULL), -1);
    assert_said("mtllm: --llm-run-dir: the value is too long");
    end();
}

static void a_refused_step_ends_at_once(void **state)
{
    static const struct {
        const char *value;
        int status;
    } cases[] = {{"78", 78}, {"0", 0}, {"-1", 0}, {"256", 0}, {"x", 0}};

    (void)state;
    for (size_t i = 0; i < LENGTH(cases); i++) {
        pid_t task;
        int status;

        begin(S_CTX_REMOTE);
        give("llm-tp", "2");
        spank_setenv(NULL, "SLURM_MTLLM_REFUSED", cases[i].value, 1);
        task = fork();
        assert_true(task >= 0);
        if (task == 0)
            _exit(slurm_spank_task_init(NULL, 0, NULL));
        assert_int_equal(waitpid(task, &status, 0), task);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), cases[i].status);
        end();
    }
}

/* A step of job 12 whose task ended with `exit_status` (as of wait()). */
static void ended(int exit_status)
{
    slurm.exit_status = exit_status;
    assert_int_equal(slurm_spank_task_exit(NULL, 0, NULL), 0);
}

static void unfinished_jobs_are_requeued(void **state)
{
    static const int others[] = {0, 1 << 8, 64 << 8, 76 << 8, 15, 9, 75, 75 | 0x80};

    (void)state;
    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    assert_int_equal(post_opt(), 0);
    for (size_t i = 0; i < LENGTH(others); i++)
        ended(others[i]);
    assert_int_equal(slurm.requeues, 0);
    ended(75 << 8);
    ended(75 << 8);
    assert_int_equal(slurm.requeues, 1);
    assert_string_equal(slurm.requeued, "12");
    assert_int_equal(slurm.requeue_flags, 0);
    assert_said("mtllm: job 12 stopped unfinished and goes back to the queue (restart 3)");
    end();

    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    post_opt();
    slurm.node = 1;
    ended(75 << 8);
    assert_int_equal(slurm.requeues, 0);
    end();
}

/* The other ranks would wait for it for ever; steps of other commands are none of our business. */
static void a_rank_that_dies_ends_its_step(void **state)
{
    char *trainer[] = {"/usr/bin/mtllm-train", NULL}, *other[] = {"hostname", NULL};

    (void)state;
    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    assert_int_equal(post_opt(), 0);
    slurm.argc = 1;
    slurm.argv = other;
    ended(9);
    assert_int_equal(slurm.kills, 0);
    slurm.argv = trainer;
    ended(0);
    ended(74 << 8);
    ended(75 << 8);
    assert_int_equal(slurm.kills, 0);
    ended(11);
    assert_int_equal(slurm.kills, 1);
    end();
}

/* scancel is a SIGTERM to the tasks too. */
static void a_cancelled_job_is_not_requeued(void **state)
{
    (void)state;
    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    assert_int_equal(post_opt(), 0);
    slurm.jobs[0].job_state = JOB_CANCELLED | JOB_COMPLETING;
    ended(75 << 8);
    assert_int_equal(slurm.requeues, 0);
    end();
}

/* The environment belongs to the user, so it names no job: one could name somebody else's. */
static void an_array_task_is_requeued_alone(void **state)
{
    (void)state;
    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    post_opt();
    slurm.jobs[0].array_job_id = 12;
    slurm.jobs[0].array_task_id = 0;
    slurm.jobs[1] = (slurm_job_info_t){.job_id = 13, .array_job_id = 12, .array_task_id = 1};
    slurm.job_count = 2;
    spank_setenv(NULL, "SLURM_JOB_ID", "99", 1);
    spank_setenv(NULL, "SLURM_ARRAY_JOB_ID", "99", 1);
    ended(75 << 8);
    assert_string_equal(slurm.requeued, "12_0");
    end();
}

static void requeue_limits(void **state)
{
    static const struct {
        const char *option, *value, *from_srun;
        int requeues;
    } cases[] = {
        {"llm-requeue", "yes", NULL, 1},   {"llm-requeue", "no", NULL, 0},
        {"llm-max-requeue", "3", NULL, 1}, {"llm-max-requeue", "2", NULL, 0},
        {"llm-max-requeue", "0", NULL, 0}, {"llm-requeue", "yes", "0", 0},
        {"llm-requeue", "no", "5", 1},     {"llm-tp", "2", "2", 0},
        {"llm-tp", "2", "nonsense", 1},    {"llm-requeue", "perhaps", NULL, 1},
    };

    (void)state;
    for (size_t i = 0; i < LENGTH(cases); i++) {
        begin(S_CTX_REMOTE);
        give(cases[i].option, cases[i].value);
        assert_int_equal(post_opt(), 0);
        if (cases[i].from_srun)
            spank_setenv(NULL, "SLURM_MTLLM_REQUEUE_LIMIT", cases[i].from_srun, 1);
        ended(75 << 8);
        assert_int_equal(slurm.requeues, cases[i].requeues);
        assert_int_equal(slurm.files, 0);
        end();
    }
    begin(S_CTX_REMOTE);
    give("llm-max-requeue", "2");
    post_opt();
    ended(75 << 8);
    assert_said("mtllm: job 12 stopped unfinished and is not requeued: it was 2 times");
    end();
}

static void a_requeue_that_fails_is_told(void **state)
{
    static const struct {
        int code;
        const char *message;
    } cases[] = {
        {ESLURM_JOB_PENDING, ""},
        {ESLURM_DISABLED, "mtllm: job 12 stopped unfinished and cannot be requeued: it was "
                          "submitted with --no-requeue"},
        {ESLURM_BATCH_ONLY, "mtllm: job 12 stopped unfinished; only jobs of sbatch can be"},
        {ESLURM_ACCESS_DENIED, "scontrol requeue 12 does it by hand"},
    };

    (void)state;
    for (size_t i = 0; i < LENGTH(cases); i++)
        for (int in_answer = 0; in_answer < 2; in_answer++) {
            begin(S_CTX_REMOTE);
            give("llm-tp", "2");
            post_opt();
            slurm.requeue_errno = in_answer ? 0 : cases[i].code;
            slurm.requeue_code = in_answer ? (uint32_t)cases[i].code : 0;
            ended(75 << 8);
            assert_int_equal(slurm.requeues, 1);
            assert_said(cases[i].message);
            if (!*cases[i].message)
                assert_string_equal(slurm.messages, "");
            end();
        }
    begin(S_CTX_REMOTE);
    give("llm-tp", "2");
    post_opt();
    slurm.load_errno = ETIMEDOUT;
    ended(75 << 8);
    assert_int_equal(slurm.requeues, 0);
    assert_said("scontrol requeue 12 does it by hand");
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registers_the_table),
        cmocka_unit_test(failed_registration),
        cmocka_unit_test(nothing_without_options),
        cmocka_unit_test(last_value_wins),
        cmocka_unit_test(submission_is_refused),
        cmocka_unit_test(submission_is_accepted),
        cmocka_unit_test(heterogeneous_jobs_are_refused),
        cmocka_unit_test(plugin_arguments),
        cmocka_unit_test(world_size_is_checked),
        cmocka_unit_test(srun_inside_a_job),
        cmocka_unit_test(job_facts_are_exported),
        cmocka_unit_test(tasks_get_the_environment),
        cmocka_unit_test(other_steps_get_nothing),
        cmocka_unit_test(a_task_without_environment_fails),
        cmocka_unit_test(a_refused_step_ends_at_once),
        cmocka_unit_test(unfinished_jobs_are_requeued),
        cmocka_unit_test(a_rank_that_dies_ends_its_step),
        cmocka_unit_test(a_cancelled_job_is_not_requeued),
        cmocka_unit_test(an_array_task_is_requeued_alone),
        cmocka_unit_test(requeue_limits),
        cmocka_unit_test(a_requeue_that_fails_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
