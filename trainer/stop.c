#include "trainer/stop.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "core/log.h"

struct stop {
    atomic_int reason;    /* an enum stop_reason, STOP_NONE until a signal came */
    int64_t latest;       /* seconds since 1970; 0: no time limit */
    int signals, closing; /* file descriptors the thread waits on */
    pthread_t thread;
};

static enum stop_reason reason_of(uint32_t signal_number)
{
    return signal_number == SIGINT    ? STOP_SIGINT
           : signal_number == SIGUSR2 ? STOP_SIGUSR2
                                      : STOP_SIGTERM;
}

/* As if SIGINT had never been caught, so that a shell sees the process die of it. */
static void die_of_sigint(void)
{
    sigset_t interrupt;

    signal(SIGINT, SIG_DFL);
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &interrupt, NULL);
    raise(SIGINT);
}

static void *wait_for_signals(void *argument)
{
    struct stop *stop = argument;
    struct pollfd wanted[] = {{.fd = stop->signals, .events = POLLIN},
                              {.fd = stop->closing, .events = POLLIN}};
    int interrupts = 0;

    for (;;) {
        struct signalfd_siginfo info;
        int none = STOP_NONE;

        if (poll(wanted, 2, -1) < 0 && errno != EINTR)
            return NULL;
        if (wanted[1].revents)
            return NULL;
        if (read(stop->signals, &info, sizeof(info)) != (ssize_t)sizeof(info))
            continue;
        if (info.ssi_signo == SIGINT && ++interrupts == 2)
            die_of_sigint();
        atomic_compare_exchange_strong(&stop->reason, &none, (int)reason_of(info.ssi_signo));
    }
}

static void wanted_signals(sigset_t *signals)
{
    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGUSR2);
    sigaddset(signals, SIGINT);
}

/* In a thread that does not block the signals, because a library started it before main(), as some
 * builds of OpenBLAS do: from now on it does, and the signal goes to the process again, until it
 * waits for the thread that reads it. */
static void pass_on(int number, siginfo_t *info, void *context)
{
    sigset_t signals;

    (void)info;
    wanted_signals(&signals);
    sigorset(&((ucontext_t *)context)->uc_sigmask, &((ucontext_t *)context)->uc_sigmask, &signals);
    (void)kill(getpid(), number);
}

static int handle(const sigset_t *signals)
{
    struct sigaction action = {.sa_sigaction = pass_on, .sa_flags = SA_SIGINFO | SA_RESTART};

    action.sa_mask = *signals;
    if (sigaction(SIGTERM, &action, NULL) < 0 || sigaction(SIGUSR2, &action, NULL) < 0 ||
        sigaction(SIGINT, &action, NULL) < 0)
        return errno;
    return pthread_sigmask(SIG_BLOCK, signals, NULL);
}

int stop_open(struct stop **result, struct error *error)
{
    struct stop *stop = calloc(1, sizeof(*stop));
    sigset_t signals;
    int code;

    *result = NULL;
    if (!stop)
        return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
    wanted_signals(&signals);
    stop->closing = -1;
    stop->signals = -1;
    code = handle(&signals);
    if (code == 0) {
        stop->signals = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
        stop->closing = eventfd(0, EFD_CLOEXEC);
        if (stop->signals < 0 || stop->closing < 0)
            code = errno;
    }
    if (code == 0)
        code = pthread_create(&stop->thread, NULL, wait_for_signals, stop);
    if (code != 0) {
        if (stop->signals >= 0)
            close(stop->signals);
        if (stop->closing >= 0)
            close(stop->closing);
        free(stop);
        return error_set(error, EXIT_STATUS_SYSTEM, "cannot start the thread for signals: %s",
                         strerror(code));
    }
    *result = stop;
    return 0;
}

void stop_close(struct stop *stop)
{
    static const uint64_t one = 1;

    if (!stop)
        return;
    /* An eventfd of 0 always takes 1. */
    if (write(stop->closing, &one, sizeof(one)) == (ssize_t)sizeof(one))
        pthread_join(stop->thread, NULL);
    close(stop->signals);
    close(stop->closing);
    free(stop);
}

void stop_set_time_limit(struct stop *stop, int64_t end_time, int64_t margin)
{
    stop->latest = end_time == 0 ? 0 : end_time > margin ? end_time - margin : 1;
}

enum stop_reason stop_requested(const struct stop *stop)
{
    enum stop_reason reason = (enum stop_reason)atomic_load(&stop->reason);

    if (reason == STOP_NONE && stop->latest != 0 && time(NULL) >= stop->latest)
        return STOP_TIME_LIMIT;
    return reason;
}

const char *stop_reason_text(enum stop_reason reason)
{
    switch (reason) {
    case STOP_TIME_LIMIT:
        return "the job's time limit";
    case STOP_SIGINT:
        return "SIGINT";
    case STOP_SIGUSR2:
        return "SIGUSR2";
    case STOP_SIGTERM:
        return "SIGTERM";
    case STOP_NONE:
        break;
    }
    return "nothing";
}

int64_t stop_job_end_time(const struct settings *settings)
{
    const char *text = getenv("SLURM_JOB_END_TIME");
    char *end;
    long long number;

    if (setting_is_set(settings, SETTING_JOB_END_TIME))
        return setting_integer(settings, SETTING_JOB_END_TIME);
    if (!text || !*text)
        return 0;
    number = strtoll(text, &end, 10);
    if (*end || number < 0) {
        log_warning("SLURM_JOB_END_TIME=%s is not a time; the job's end is not known", text);
        return 0;
    }
    return number;
}
