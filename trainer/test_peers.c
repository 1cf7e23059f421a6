/* Ranks that end at different moments, for tests/peers.bats, under mpirun.
 *
 * test_peers staggered: one after the other, all of them in order.
 * test_peers stuck: rank 1 has failed alone and waits to close the communication, the others wait
 * for it in the middle of their work.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "trainer/comm.h"
#include "trainer/peers.h"
#include "trainer/team.h"
#include "trainer/world.h"

static void work(const struct world *world, struct peers *peers, const char *how)
{
    if (strcmp(how, "staggered") == 0)
        usleep((unsigned)world->rank * 300000);
    else if (world->rank == 1)
        peers_goodbye(peers);
    while (strcmp(how, "stuck") == 0)
        pause();
}

int main(int argc, char **argv)
{
    const struct kernels *kernels = kernels_cpu(1);
    struct world world;
    struct comm_groups groups = {0};
    struct team team = {0};
    struct peers *peers = NULL;
    struct error error = {0};

    if (argc != 2 || world_open(&world, &error) < 0)
        return error_print(&error);
    if (comm_open(&groups, &world, &(struct layout){.tp = 1, .pp = 1, .dp = world.size, .cp = 1},
                  kernels, &error) < 0 ||
        team_create(&team, groups.world, kernels, &error) < 0 ||
        peers_open(&peers, &world, &team, &error) < 0)
        world_abort(&world, error_print(&error));
    if (!peers) {
        fprintf(stderr, "test_peers: nothing is watched\n");
        world_abort(&world, 1);
    }
    work(&world, peers, argv[1]);
    peers_goodbye(peers);
    team_destroy(&team);
    comm_close(&groups);
    peers_close(peers);
    world_close(&world);
    return 0;
}
