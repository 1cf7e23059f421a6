/* Guards: alone is a world of one; tasks that a launcher started without PMIx are refused with
 * status 78 and what to do; jobs are named as users know them; the map of a PMIx server is read
 * right for block, cyclic and uneven placements. (Several ranks: test_comm.sh.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "trainer/world.h"

static int clear_environment(void **state)
{
    static const char *const names[] = {
        "PMIX_NAMESPACE",       "PMI_SIZE",           "SLURM_JOB_ID",
        "SLURM_NTASKS",         "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
        "SLURM_STEP_NUM_TASKS",
    };
    (void)state;

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        unsetenv(names[i]);
    return 0;
}

static void test_alone(void **state)
{
    struct world world;
    struct error error = {0};
    (void)state;

    assert_int_equal(world_open(&world, &error), 0);
    assert_int_equal(world.rank, 0);
    assert_int_equal(world.size, 1);
    assert_int_equal(world.local_rank, 0);
    assert_int_equal(world.local_size, 1);
    assert_int_equal(world.node, 0);
    assert_int_equal(world.nodes, 1);
    assert_string_equal(world.job, "");
    world_close(&world);
    world_close(&world);
}

static void test_job_name(void **state)
{
    struct world world;
    struct error error = {0};
    (void)state;

    setenv("SLURM_JOB_ID", "123", 1);
    setenv("SLURM_NTASKS", "4", 1); /* of the job; this step has one */
    setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    assert_int_equal(world_open(&world, &error), 0);
    assert_string_equal(world.job, "123");
    setenv("SLURM_ARRAY_JOB_ID", "120", 1);
    setenv("SLURM_ARRAY_TASK_ID", "4", 1);
    assert_int_equal(world_open(&world, &error), 0);
    assert_string_equal(world.job, "120_4");
}

static void test_without_pmix(void **state)
{
    static const struct {
        const char *name, *message;
    } cases[] = {
        {"SLURM_STEP_NUM_TASKS", "srun started 4 tasks without PMIx"},
        {"SLURM_NTASKS", "the job has 4 tasks, but this process was started without srun"},
        {"PMI_SIZE", "a launcher started 4 tasks with PMI, not PMIx"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct world world;
        struct error error = {0};

        clear_environment(state);
        setenv(cases[i].name, "4", 1);
        assert_int_equal(world_open(&world, &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_CONFIGURATION);
        assert_non_null(strstr(error.text, cases[i].message));
        assert_non_null(strstr(error.text, "use srun --mpi=pmix"));
        world_close(&world);
    }
}

/* A namespace that no server knows: the step is over, or not ours. In a child, because PMIx cleans
 * up badly after itself there. */
static void test_no_server(void **state)
{
    pid_t child = fork();
    int status;
    (void)state;

    if (child == 0) {
        struct world world;
        struct error error = {0};
        int result;

        setenv("PMIX_NAMESPACE", "nobody", 1);
        result = world_open(&world, &error);
        world_close(&world);
        _exit(result < 0 ? error.status : 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_STATUS_SYSTEM);
}

static void test_map(void **state)
{
    static const struct {
        const char *map;
        int size, rank, node, nodes, local_rank, local_size;
    } cases[] = {
        {"(vector,(0,1,1))", 1, 0, 0, 1, 0, 1},
        {"(vector,(0,2,2))", 4, 2, 1, 2, 0, 2},
        {"(vector,(0,2,2))", 4, 1, 0, 2, 1, 2},
        {"(vector,(0,2,1),(0,2,1))", 4, 2, 0, 2, 1, 2}, /* cyclic */
        {"(vector,(0,1,3),(1,1,1))", 4, 3, 1, 2, 0, 1}, /* uneven */
        {"(vector,(0,1,3),(1,1,1))", 4, 2, 0, 2, 2, 3},
    };
    static const char *const wrong[] = {
        "",
        "(vector",
        "(vector,(0,2,2)",
        "(vector,(0,1,2))",
        "(vector,(0,3,2))",
        "(0,1,1,1)",
        "(vector,(0,-2,2))",
        "(vector,(0,2,2)),junk",
    };
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct world world = {.rank = cases[i].rank, .size = cases[i].size};

        assert_int_equal(world_place_from_map(&world, cases[i].map), 0);
        assert_int_equal(world.node, cases[i].node);
        assert_int_equal(world.nodes, cases[i].nodes);
        assert_int_equal(world.local_rank, cases[i].local_rank);
        assert_int_equal(world.local_size, cases[i].local_size);
    }
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        struct world world = {.rank = 1, .size = 4};

        assert_int_equal(world_place_from_map(&world, wrong[i]), -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_alone, clear_environment),
        cmocka_unit_test_setup(test_job_name, clear_environment),
        cmocka_unit_test_setup(test_without_pmix, clear_environment),
        cmocka_unit_test_setup(test_no_server, clear_environment),
        cmocka_unit_test_setup(test_map, clear_environment),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
