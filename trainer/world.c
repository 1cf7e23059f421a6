/* The world, as PMIx tells it.
 *
 * Launchers differ in what they publish. Slurm (22.05 to 25.11) has no per-rank node id that can
 * be trusted and hides its maps, but PMIX_ANL_MAP holds the whole placement in one string; others
 * lack that and answer PMIx_Resolve_peers(). Types of the same key vary as well. Every question
 * carries PMIX_OPTIONAL: without it a miss becomes a request to the other nodes, which Slurm
 * rejects noisily (openpmix issue 3320).
 */
#include "trainer/world.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <pmix.h>

/* A job-level value; PMIX_SUCCESS makes it the caller's to release. */
static pmix_status_t get_value(const pmix_proc_t *self, const char *key, pmix_value_t **value)
{
    pmix_proc_t everyone;
    pmix_info_t optional;
    bool yes = true;
    pmix_status_t status;

    PMIX_PROC_LOAD(&everyone, self->nspace, PMIX_RANK_WILDCARD);
    PMIX_INFO_LOAD(&optional, PMIX_OPTIONAL, &yes, PMIX_BOOL);
    status = PMIx_Get(&everyone, key, &optional, 1, value);
    PMIX_INFO_DESTRUCT(&optional);
    return status;
}

static bool get_integer(const pmix_proc_t *self, const char *key, int64_t *number)
{
    pmix_value_t *value;
    bool known = true;

    if (get_value(self, key, &value) != PMIX_SUCCESS)
        return false;
    switch (value->type) {
    case PMIX_UINT32:
        *number = value->data.uint32;
        break;
    case PMIX_INT32:
        *number = value->data.int32;
        break;
    case PMIX_UINT64:
        *number = (int64_t)value->data.uint64;
        break;
    case PMIX_INT64:
        *number = value->data.int64;
        break;
    case PMIX_UINT16:
        *number = value->data.uint16;
        break;
    case PMIX_INT:
        *number = value->data.integer;
        break;
    case PMIX_UINT:
        *number = value->data.uint;
        break;
    case PMIX_SIZE:
        *number = (int64_t)value->data.size;
        break;
    case PMIX_PROC_RANK:
        *number = value->data.rank;
        break;
    default:
        known = false;
    }
    PMIX_VALUE_RELEASE(value);
    return known;
}

/* The caller's to free; NULL when there is no such text. */
static char *get_text(const pmix_proc_t *self, const char *key)
{
    pmix_value_t *value;
    char *text = NULL;

    if (get_value(self, key, &value) != PMIX_SUCCESS)
        return NULL;
    if (value->type == PMIX_STRING && value->data.string)
        text = strdup(value->data.string);
    PMIX_VALUE_RELEASE(value);
    return text;
}

/* Calls visit(node) for every rank in turn. Ranks beyond `size` are counted, not visited. */
static int64_t walk_map(const char *map, int size, int *nodes_of_ranks)
{
    const char *at = strstr(map, "vector");
    int64_t rank = 0;

    if (!at)
        return -1;
    at += strlen("vector");
    while (*at == ',') {
        int first, nodes, each, length = 0;

        if (sscanf(at, ",(%d,%d,%d)%n", &first, &nodes, &each, &length) != 3 || length == 0 ||
            first < 0 || nodes < 1 || each < 1)
            return -1;
        for (int node = 0; node < nodes; node++) {
            for (int i = 0; i < each; i++, rank++) {
                if (rank == size)
                    return -1;
                nodes_of_ranks[rank] = first + node;
            }
        }
        at += length;
    }
    return strcmp(at, ")") == 0 ? rank : -1;
}

int world_place_from_map(struct world *world, const char *map)
{
    int *nodes = malloc((size_t)world->size * sizeof(*nodes));
    int result = -1;

    if (nodes && walk_map(map, world->size, nodes) == world->size) {
        int mine = nodes[world->rank];

        world->node = mine;
        world->nodes = 0;
        world->local_rank = 0;
        world->local_size = 0;
        for (int rank = 0; rank < world->size; rank++) {
            if (nodes[rank] >= world->nodes)
                world->nodes = nodes[rank] + 1;
            if (nodes[rank] != mine)
                continue;
            world->local_size++;
            if (rank < world->rank)
                world->local_rank++;
        }
        result = 0;
    }
    free(nodes);
    return result;
}

/* The same, node by node: for launchers without a map. */
static int place_from_peers(struct world *world, const pmix_proc_t *self)
{
    char *nodes = NULL, *rest, *name;
    bool found = false;

    if (PMIx_Resolve_nodes(self->nspace, &nodes) != PMIX_SUCCESS || !nodes)
        return -1;
    world->nodes = 0;
    rest = nodes;
    while ((name = strsep(&rest, ","))) {
        pmix_proc_t *peers = NULL;
        size_t count = 0;
        int lower = 0;
        bool mine = false;

        if (PMIx_Resolve_peers(name, self->nspace, &peers, &count) != PMIX_SUCCESS)
            break;
        for (size_t i = 0; i < count; i++) {
            if (peers[i].rank < self->rank)
                lower++;
            mine = mine || peers[i].rank == self->rank;
        }
        if (mine) {
            world->node = world->nodes;
            world->local_rank = lower;
            world->local_size = (int)count;
            found = true;
        }
        PMIX_PROC_FREE(peers, count);
        world->nodes++;
    }
    free(nodes);
    return found && !name ? 0 : -1;
}

static int place(struct world *world, const pmix_proc_t *self, struct error *error)
{
    char *map = get_text(self, PMIX_ANL_MAP);
    int result = map ? world_place_from_map(world, map) : -1;

    free(map);
    if (result < 0 && place_from_peers(world, self) < 0)
        return error_set(error, EXIT_STATUS_SYSTEM,
                         "the PMIx server does not say which ranks share a node "
                         "(neither PMIX_ANL_MAP nor PMIx_Resolve_peers)");
    return 0;
}

static int environment_integer(const char *name)
{
    const char *text = getenv(name);

    return text ? atoi(text) : 0;
}

/* Without a PMIx server this is the only process, unless the environment says otherwise. */
static int check_alone(struct error *error)
{
    int step = environment_integer("SLURM_STEP_NUM_TASKS");
    int job = environment_integer("SLURM_NTASKS");
    int other = environment_integer("PMI_SIZE");

    if (step > 1)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "srun started %d tasks without PMIx, so that they cannot find each "
                         "other; use srun --mpi=pmix (srun --mpi=list shows what this site has)",
                         step);
    if (step == 0 && job > 1)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "the job has %d tasks, but this process was started without srun; use "
                         "srun --mpi=pmix (or srun -n 1 for a single rank)",
                         job);
    if (other > 1)
        return error_set(error, EXIT_STATUS_CONFIGURATION,
                         "a launcher started %d tasks with PMI, not PMIx; use srun --mpi=pmix, "
                         "or Open MPI's mpirun",
                         other);
    return 0;
}

/* "123", "120_4" or "". */
static void name_job(char *name, size_t size)
{
    const char *array = getenv("SLURM_ARRAY_JOB_ID"), *task = getenv("SLURM_ARRAY_TASK_ID");
    const char *job = getenv("SLURM_JOB_ID");

    if (array && *array && task && *task)
        snprintf(name, size, "%s_%s", array, task);
    else
        snprintf(name, size, "%s", job ? job : "");
}

static int connect_world(struct world *world, struct error *error)
{
    pmix_proc_t self;
    int64_t size;
    pmix_status_t status = PMIx_Init(&self, NULL, 0);

    if (status != PMIX_SUCCESS)
        return error_set(error, EXIT_STATUS_SYSTEM,
                         "the PMIx server of this job step does not answer: %s; was this process "
                         "started by the launcher itself, and is it the same PMIx?",
                         PMIx_Error_string(status));
    world->connected = true;
    snprintf(world->space, sizeof(world->space), "%s", self.nspace);
    if (!get_integer(&self, PMIX_JOB_SIZE, &size) || size < 1 || size > INT32_MAX ||
        self.rank >= size)
        return error_set(error, EXIT_STATUS_SYSTEM,
                         "the PMIx server does not say how many ranks there are");
    world->rank = (int)self.rank;
    world->size = (int)size;
    return place(world, &self, error);
}

int world_open(struct world *world, struct error *error)
{
    *world = (struct world){.size = 1, .local_size = 1, .nodes = 1};
    name_job(world->job, sizeof(world->job));
    /* Every PMIx launcher sets this; asking PMIx without it costs a search for servers. */
    if (!getenv("PMIX_NAMESPACE"))
        return check_alone(error);
    if (connect_world(world, error) < 0) {
        world_close(world);
        return -1;
    }
    return 0;
}

static pmix_status_t put(const char *key, const void *bytes, size_t size)
{
    pmix_byte_object_t object = {.bytes = (char *)bytes, .size = size}; /* copied, not changed */
    pmix_value_t value;
    pmix_status_t status;

    PMIX_VALUE_LOAD(&value, &object, PMIX_BYTE_OBJECT);
    status = PMIx_Put(PMIX_GLOBAL, key, &value);
    PMIX_VALUE_DESTRUCT(&value);
    return status == PMIX_SUCCESS ? PMIx_Commit() : status;
}

/* Waits for every rank; what they have put is then on every node. */
static pmix_status_t fence(void)
{
    pmix_info_t collect;
    bool yes = true;
    pmix_status_t status;

    PMIX_INFO_LOAD(&collect, PMIX_COLLECT_DATA, &yes, PMIX_BOOL);
    status = PMIx_Fence(NULL, 0, &collect, 1);
    PMIX_INFO_DESTRUCT(&collect);
    return status;
}

static pmix_status_t get_from_first(const struct world *world, const char *key, void *bytes,
                                    size_t size)
{
    pmix_proc_t first;
    pmix_value_t *value;
    pmix_status_t status;

    PMIX_PROC_LOAD(&first, world->space, 0);
    status = PMIx_Get(&first, key, NULL, 0, &value);
    if (status != PMIX_SUCCESS)
        return status;
    if (value->type == PMIX_BYTE_OBJECT && value->data.bo.size == size)
        memcpy(bytes, value->data.bo.bytes, size);
    else
        status = PMIX_ERR_TYPE_MISMATCH;
    PMIX_VALUE_RELEASE(value);
    return status;
}

int world_share(const struct world *world, void *bytes, size_t size, struct error *error)
{
    /* What was put under a name once is remembered, so that every time has a name of its own. */
    static unsigned times;
    pmix_status_t status = PMIX_SUCCESS;
    char key[32];

    if (world->size == 1)
        return 0;
    snprintf(key, sizeof(key), "mtllm.%u", times++);
    if (world->rank == 0)
        status = put(key, bytes, size);
    if (status == PMIX_SUCCESS)
        status = fence();
    if (status == PMIX_SUCCESS && world->rank != 0)
        status = get_from_first(world, key, bytes, size);
    if (status != PMIX_SUCCESS)
        return error_set(error, EXIT_STATUS_SYSTEM,
                         "rank %d cannot exchange anything with the others through PMIx: %s",
                         world->rank, PMIx_Error_string(status));
    return 0;
}

void world_close(struct world *world)
{
    if (world->connected)
        PMIx_Finalize(NULL, 0);
    world->connected = false;
}

void world_abort(const struct world *world, int status)
{
    fflush(NULL);
    if (world->connected)
        PMIx_Abort(status, "a rank failed", NULL, 0);
    _exit(status);
}
