/* The ring, and the thread that watches it.
 *
 * Every rank listens, tells the others where through the collectives that are there already, and
 * connects to the rank after it; the rank before it connects to this one. From then on a connection
 * carries single bytes, most of them never: GOODBYE, and GONE, the news that some rank died, which
 * goes round the ring and ends everyone whom it reaches. The kernel ends the connections of a
 * process that dies, and those to a node that vanished.
 *
 * The thread ends the process with _exit(): the main thread may be inside MPI, NCCL or CUDA and
 * cannot be asked to end.
 */
#include "trainer/peers.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "core/log.h"
#include "trainer/contact.h"

enum {
    NEWS_MS = 500,    /* the way of news round the ring */
    LINGER_MS = 1000, /* the other side's goodbye */
};

enum word { GOODBYE = 'b', GONE = 'g' };

struct link {
    int rank;  /* the other end's */
    int fd;    /* -1: over, or not yet there */
    bool left; /* it said goodbye */
};

enum phase { PHASE_MEETING, PHASE_WATCHING, PHASE_LEAVING, PHASE_ENDING };

struct peers {
    int rank, size;
    struct contact *contacts; /* [size] */
    int listening, wake;      /* file descriptors; `wake` tells the thread to look at `phase` */
    atomic_int phase;         /* an enum phase, which only grows; the main thread's to set */
    struct link before, after;

    pthread_t thread;
    bool running;

    /* The thread's. */
    bool said_goodbye;
    int64_t deadline_ms; /* when patience ends; 0: nobody has left */
};

static int64_t now_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* --- watching ----------------------------------------------------------------------------------*/

static struct link *other_link(struct peers *peers, const struct link *link)
{
    return link == &peers->before ? &peers->after : &peers->before;
}

static void tell(const struct link *link, enum word word)
{
    char byte = (char)word;

    if (link->fd >= 0)
        (void)contact_send(link->fd, &byte, 1); /* who cannot be told will see the end itself */
}

/* Whether the news comes round the ring from the rank behind the dead one, which says it. */
static bool said_elsewhere(const struct link *link)
{
    char byte = 0;

    return link->fd >= 0 && contact_receive(link->fd, &byte, 1, NEWS_MS) == 0 && byte == GONE;
}

/* Standard error is not locked here: the main thread may hold it for ever. */
static __attribute__((noreturn)) void give_up(const struct peers *peers, const struct link *link,
                                              const char *what)
{
    dprintf(STDERR_FILENO,
            "%s: rank %d on node %s %s; no rank can go on without it, the run can from its newest "
            "checkpoint\n",
            program_invocation_short_name, link->rank, peers->contacts[link->rank].node, what);
    _exit(EXIT_STATUS_IO);
}

static __attribute__((noreturn)) void lose(struct peers *peers, const struct link *link)
{
    const struct link *other = other_link(peers, link);

    /* Both neighbours of a rank that died see it. One voice is enough, if it can be heard. */
    if (link == &peers->after && said_elsewhere(other))
        _exit(EXIT_STATUS_IO);
    tell(other, GONE);
    give_up(peers, link, "is gone");
}

static void hear(struct peers *peers, struct link *link)
{
    char byte;
    ssize_t n = recv(link->fd, &byte, 1, 0);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n == 1 && byte == GOODBYE) {
        link->left = true;
        if (peers->deadline_ms == 0)
            peers->deadline_ms = now_ms() + (int64_t)PEERS_PATIENCE_S * 1000;
    } else if (n == 1) {
        tell(other_link(peers, link), GONE);
        _exit(EXIT_STATUS_IO);
    } else if (link->left) {
        close_fd(&link->fd);
    } else {
        lose(peers, link);
    }
}

static __attribute__((noreturn)) void lose_patience(struct peers *peers)
{
    tell(&peers->before, GONE);
    tell(&peers->after, GONE);
    give_up(peers, peers->before.left ? &peers->before : &peers->after,
            "has ended, and this one still waits for it");
}

static void say_goodbye(struct peers *peers)
{
    if (!peers->said_goodbye) {
        tell(&peers->before, GOODBYE);
        tell(&peers->after, GOODBYE);
    }
    peers->said_goodbye = true;
}

/* A connection that is closed with something unread in it is cut off, and what was said last may be
 * lost with it: so both sides hear each other out, for a while. */
static void end_links(struct peers *peers)
{
    int64_t deadline = now_ms() + LINGER_MS;
    struct link *links[] = {&peers->before, &peers->after};

    say_goodbye(peers);
    for (int i = 0; i < 2; i++)
        if (links[i]->fd >= 0)
            (void)shutdown(links[i]->fd, SHUT_WR);
    for (int i = 0; i < 2; i++) {
        char byte;

        while (links[i]->fd >= 0 && now_ms() < deadline &&
               contact_receive(links[i]->fd, &byte, 1, (int)(deadline - now_ms())) == 0)
            ;
        close_fd(&links[i]->fd);
    }
}

/* Wait for something to happen; false when the main thread wants to end. */
static bool wait_for(struct peers *peers, struct pollfd *wanted, nfds_t count)
{
    uint64_t times;
    int timeout = -1;

    /* The phase is set before `wake` is written to, so that nothing is slept through. */
    if (atomic_load(&peers->phase) == PHASE_ENDING)
        return false;
    if (peers->deadline_ms != 0) {
        int64_t left = peers->deadline_ms - now_ms();

        if (left <= 0)
            lose_patience(peers);
        timeout = (int)left + 1;
    }
    if (poll(wanted, count, timeout) <= 0)
        for (nfds_t i = 0; i < count; i++)
            wanted[i].revents = 0;
    if (wanted[0].revents)
        (void)!read(peers->wake, &times, sizeof(times)); /* nonblocking, so that it rests */
    return atomic_load(&peers->phase) != PHASE_ENDING;
}

static void *watch(void *argument)
{
    struct peers *peers = argument;

    while (peers->before.fd < 0) {
        struct pollfd wanted[] = {{.fd = peers->wake, .events = POLLIN},
                                  {.fd = peers->listening, .events = POLLIN}};

        if (!wait_for(peers, wanted, 2))
            return NULL;
        if (wanted[1].revents)
            peers->before.fd = contact_accept(peers->listening, &peers->contacts[peers->rank],
                                              &peers->contacts[peers->before.rank]);
    }
    while (atomic_load(&peers->phase) == PHASE_MEETING) {
        struct pollfd wanted[] = {{.fd = peers->wake, .events = POLLIN}};

        wait_for(peers, wanted, 1);
    }
    for (;;) {
        struct pollfd wanted[] = {{.fd = peers->wake, .events = POLLIN},
                                  {.fd = peers->before.fd, .events = POLLIN},
                                  {.fd = peers->after.fd, .events = POLLIN}};

        if (atomic_load(&peers->phase) == PHASE_LEAVING)
            say_goodbye(peers);
        if (!wait_for(peers, wanted, 3))
            break;
        if (wanted[1].revents)
            hear(peers, &peers->before);
        if (wanted[2].revents)
            hear(peers, &peers->after);
    }
    end_links(peers);
    return NULL;
}

/* --- the main thread's part --------------------------------------------------------------------*/

/* Signals are other threads' business. */
static int start_thread(struct peers *peers, struct error *error)
{
    sigset_t all, before;
    int code;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(&peers->thread, NULL, watch, peers);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "cannot start the thread that watches: %s",
                         strerror(code));
    peers->running = true;
    return 0;
}

static void enter(struct peers *peers, enum phase phase)
{
    static const uint64_t one = 1;

    atomic_store(&peers->phase, (int)phase);
    (void)!write(peers->wake, &one, sizeof(one)); /* an eventfd that is read takes it */
}

static void destroy(struct peers *peers)
{
    if (peers->running) {
        enter(peers, PHASE_ENDING);
        pthread_join(peers->thread, NULL);
    }
    close_fd(&peers->before.fd);
    close_fd(&peers->after.fd);
    close_fd(&peers->listening);
    close_fd(&peers->wake);
    free(peers->contacts);
    free(peers);
}

static struct peers *create(const struct world *world, struct contact *self)
{
    struct peers *peers = calloc(1, sizeof(*peers));
    struct contact *contacts = calloc((size_t)world->size, sizeof(*contacts));

    *self = (struct contact){0};
    if (!peers || !contacts) {
        free(peers);
        free(contacts);
        return NULL;
    }
    *peers = (struct peers){
        .rank = world->rank,
        .size = world->size,
        .contacts = contacts,
        .listening = -1,
        .wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
        .before = {.rank = (world->rank + world->size - 1) % world->size, .fd = -1},
        .after = {.rank = (world->rank + 1) % world->size, .fd = -1},
    };
    peers->listening = contact_listen(self);
    return peers;
}

static int meet(struct peers *peers, struct error *error)
{
    const struct contact *self = &peers->contacts[peers->rank];
    const struct contact *after = &peers->contacts[peers->after.rank];

    if (peers->wake < 0 || peers->listening < 0)
        return error_set(error, EXIT_STATUS_SYSTEM, "rank %d on node %s cannot listen: %s",
                         peers->rank, self->node, strerror(errno));
    if (start_thread(peers, error) < 0)
        return -1;
    peers->after.fd = contact_connect(self, after);
    if (peers->after.fd < 0)
        return error_set(error, EXIT_STATUS_SYSTEM,
                         "rank %d on node %s cannot connect to rank %d on node %s: %s", peers->rank,
                         self->node, peers->after.rank, after->node, strerror(errno));
    return 0;
}

int peers_open(struct peers **result, const struct world *world, struct team *team,
               struct error *error)
{
    struct contact self;
    struct peers *peers;
    struct error reason = {0};
    int met;

    *result = NULL;
    if (world->size == 1)
        return 0;
    peers = create(world, &self);
    if (!peers)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    if (team_gather(team, peers->contacts, &self, sizeof(self), error) < 0) {
        destroy(peers);
        return -1;
    }
    met = meet(peers, &reason);
    /* Once every rank has found the one after it, every rank was found. */
    if (team_agree(team, met, &reason) < 0) {
        if (reason.text[0])
            log_warning_any_rank("%s; ranks are not watched: if one dies, the others may wait for "
                                 "it until the job is cancelled",
                                 reason.text);
        destroy(peers);
        return 0;
    }
    enter(peers, PHASE_WATCHING);
    *result = peers;
    return 0;
}

void peers_goodbye(struct peers *peers)
{
    if (peers)
        enter(peers, PHASE_LEAVING);
}

void peers_close(struct peers *peers)
{
    if (peers)
        destroy(peers);
}
