/* Guards: whatever system call a save is killed at, fails at or finds the disk full at, the
 * checkpoint before it or the new one is there, whole; nothing crashes, the message names a file of
 * the checkpoint, and the next save works.
 *
 * The library's calls are linked to the wrappers below, which count them and strike at the one that
 * was asked for. A kill also cuts what was written and not yet fsynced, as a power failure would.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ckpt/test_fixture.h"

enum strike { NOTHING, KILL, FULL_DISK, BAD_DISK };

enum { FILES = 64, SHARDS = 2 };

/* Shared with the children that do the saves. */
static struct {
    enum strike strike;
    int at;           /* the call to strike at, from 1 on */
    int calls;        /* so far */
    int no_exchange;  /* as on a file system without it */
    int first_result; /* of the save that was struck */
    int second_result;
    struct error error, second_error;
} * shared;

/* Files written by this process: a descriptor of our own, and whether it holds more than the disk
 * does. */
static struct {
    ino_t inode;
    int fd;
    int dirty;
} files[FILES];

int __real_open(const char *path, int flags, ...);
int __real_mkdir(const char *path, mode_t mode);
int __real_fallocate(int fd, int mode, off_t offset, off_t length);
ssize_t __real_pwrite(int fd, const void *bytes, size_t size, off_t offset);
int __real_fsync(int fd);
int __real_close(int fd);
int __real_rename(const char *from, const char *to);
int __real_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned int flags);
int __real_symlink(const char *target, const char *path);
int __real_unlink(const char *path);
int __real_rmdir(const char *path);

int __wrap_open(const char *path, int flags, ...);
int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length);
ssize_t __wrap_pwrite(int fd, const void *bytes, size_t size, off_t offset);
int __wrap_fsync(int fd);
int __wrap_close(int fd);
int __wrap_rename(const char *from, const char *to);
int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned int flags);
int __wrap_symlink(const char *target, const char *path);
int __wrap_unlink(const char *path);
int __wrap_rmdir(const char *path);

static void power_failure(void)
{
    for (int i = 0; i < FILES; i++) {
        struct stat status;

        if (files[i].dirty && fstat(files[i].fd, &status) == 0 &&
            ftruncate(files[i].fd, status.st_size / 2) < 0)
            abort();
    }
    raise(SIGKILL);
}

/* One call of the library: is it the one? `grows`: a full disk has no room for it. */
static int struck(int grows)
{
    int hit = ++shared->calls == shared->at;

    if (shared->strike == KILL && hit)
        power_failure();
    if (shared->strike == BAD_DISK && hit) {
        errno = EIO;
        return 1;
    }
    if (shared->strike == FULL_DISK && grows && shared->calls >= shared->at) {
        errno = ENOSPC;
        return 1;
    }
    return 0;
}

static void remember(int fd, int dirty)
{
    struct stat status;
    int slot = -1;

    if (shared->strike != KILL)
        return;
    if (fstat(fd, &status) < 0)
        abort();
    for (int i = 0; i < FILES; i++)
        if (files[i].fd > 0 && files[i].inode == status.st_ino) {
            files[i].dirty = dirty;
            return;
        } else if (files[i].fd <= 0 && slot < 0) {
            slot = i;
        }
    if (!dirty)
        return; /* a directory */
    if (slot < 0)
        abort();
    files[slot].inode = status.st_ino;
    files[slot].fd = fcntl(fd, F_DUPFD_CLOEXEC, 100);
    files[slot].dirty = 1;
    if (files[slot].fd < 0)
        abort();
}

int __wrap_open(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;
    int fd;

    if (!(flags & O_CREAT))
        return __real_open(path, flags);
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
    if (struck(1))
        return -1;
    fd = __real_open(path, flags, mode);
    if (fd >= 0)
        remember(fd, 1);
    return fd;
}

int __wrap_mkdir(const char *path, mode_t mode)
{
    return struck(1) ? -1 : __real_mkdir(path, mode);
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t length)
{
    return struck(1) ? -1 : __real_fallocate(fd, mode, offset, length);
}

ssize_t __wrap_pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
    remember(fd, 1);
    if (shared->calls + 1 >= shared->at && shared->strike != NOTHING && size > 1 &&
        shared->calls < shared->at) {
        /* the half that still made it */
        if (__real_pwrite(fd, bytes, size / 2, offset) < 0)
            abort();
    }
    return struck(1) ? -1 : __real_pwrite(fd, bytes, size, offset);
}

int __wrap_fsync(int fd)
{
    int result;

    if (struck(1)) /* with delayed allocation, a full disk shows here too */
        return -1;
    result = __real_fsync(fd);
    if (result == 0)
        remember(fd, 0);
    return result;
}

int __wrap_close(int fd)
{
    int hit = struck(0);
    int saved = errno, result = __real_close(fd);

    if (hit)
        errno = saved;
    return hit ? -1 : result;
}

int __wrap_rename(const char *from, const char *to)
{
    return struck(1) ? -1 : __real_rename(from, to);
}

int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned int flags)
{
    if (shared->no_exchange) {
        errno = EINVAL;
        return -1;
    }
    return struck(1) ? -1 : __real_renameat2(from_fd, from, to_fd, to, flags);
}

int __wrap_symlink(const char *target, const char *path)
{
    return struck(1) ? -1 : __real_symlink(target, path);
}

int __wrap_unlink(const char *path)
{
    return struck(0) ? -1 : __real_unlink(path);
}

int __wrap_rmdir(const char *path)
{
    return struck(0) ? -1 : __real_rmdir(path);
}

/* What is saved over what: checkpoint (step, seed 2) where (1, seed 1) is. */
struct scenario {
    const char *name;
    int64_t step;
    int no_exchange;
};

static int save(const char *root, int64_t step, struct error *error)
{
    if (fixture_write(root, step, SHARDS, 2, error) < 0)
        return -1;
    return checkpoint_prune(root, 1, error);
}

static void complain(void *user, const char *text)
{
    snprintf(user, 2048, "%s", text);
}

/* The seed of the newest good checkpoint, all of it compared; 0 when there is none. `said` gets
 * what is wrong with any other or with this one. */
static uint64_t newest(const char *root, int64_t *step, char said[2048])
{
    char path[FIXTURE_PATH];
    struct checkpoint *checkpoint;
    struct error error = {0};
    const char *difference;
    uint64_t seed;
    int found = checkpoint_find(root, true, path, sizeof(path), complain, said, &error);

    if (found == 0)
        return 0;
    if (found < 0 || checkpoint_open(&checkpoint, path, &error) < 0) {
        complain(said, error.text);
        return 0;
    }
    seed = fixture_seed(checkpoint);
    *step = checkpoint_get_state(checkpoint)->step;
    difference = fixture_compare(checkpoint, seed);
    if (difference)
        complain(said, difference);
    checkpoint_close(checkpoint);
    return seed;
}

/* Is the old one or the new one there, good, and nothing else that claims to be? */
static int old_or_new(const char *root, const struct scenario *scenario)
{
    char said[2048] = "";
    int64_t step = -1;
    uint64_t seed = newest(root, &step, said);

    if (((seed == 1 && step == 1) || (seed == 2 && step == scenario->step)) && !*said)
        return 1;
    fprintf(stderr, "found seed %llu, step %lld; %s\n", (unsigned long long)seed, (long long)step,
            said);
    return 0;
}

/* A save in a child, struck; then one more that is not. Returns the child's wait status. */
static int save_in_child(const char *root, const struct scenario *scenario, enum strike strike,
                         int at)
{
    int status;
    pid_t child;

    memset(shared, 0, sizeof(*shared));
    shared->no_exchange = scenario->no_exchange;
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(60); /* a hang is a failure too */
        shared->strike = strike;
        shared->at = at;
        shared->first_result = save(root, scenario->step, &shared->error);
        shared->strike = NOTHING;
        if (strike != NOTHING && !old_or_new(root, scenario))
            _exit(1);
        if (strike != NOTHING)
            shared->second_result = save(root, scenario->step, &shared->second_error);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void begin(const char *root)
{
    struct error error = {0};

    memset(shared, 0, sizeof(*shared));
    fixture_remove(root);
    if (fixture_write(root, 1, 1, 1, &error) < 0)
        fail_msg("%s", error.text);
}

static void strike_everywhere(const char *root, const struct scenario *scenario, enum strike strike)
{
    int calls;

    begin(root);
    assert_int_equal(save_in_child(root, scenario, NOTHING, 0), 0);
    assert_int_equal(shared->first_result, 0);
    calls = shared->calls;
    assert_true(calls > 25);
    for (int at = 1; at <= calls; at++) {
        struct error error = {0};
        char said[2048] = "";
        int64_t step = -1;
        int status;

        begin(root);
        status = save_in_child(root, scenario, strike, at);
        if (strike == KILL) {
            assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
            /* Between the two renames of the way without exchange only checkpoint_clean() helps;
             * a trainer calls it before it looks. */
            if (!scenario->no_exchange && !old_or_new(root, scenario))
                fail_msg("%s, killed at call %d", scenario->name, at);
            memset(shared, 0, sizeof(*shared));
            if (checkpoint_clean(root, &error) < 0)
                fail_msg("%s", error.text);
            if (!old_or_new(root, scenario))
                fail_msg("%s, killed at call %d, cleaned", scenario->name, at);
            if (save(root, scenario->step, &error) < 0)
                fail_msg("%s, call %d: the next save: %s", scenario->name, at, error.text);
        } else {
            if (status != 0)
                fail_msg("%s, call %d: crashed or lost it, wait status %d", scenario->name, at,
                         status);
            if (shared->first_result < 0 &&
                (!strstr(shared->error.text, root) || shared->error.status != EXIT_STATUS_IO))
                fail_msg("%s, call %d: \"%s\"", scenario->name, at, shared->error.text);
            if (shared->second_result < 0)
                fail_msg("%s, call %d: the next save: %s", scenario->name, at,
                         shared->second_error.text);
        }
        assert_int_equal(newest(root, &step, said), 2);
        assert_int_equal(step, scenario->step);
        assert_string_equal(said, "");
    }
}

static const struct scenario new_step = {"a new step", 2, 0};
static const struct scenario same_step = {"the same step", 1, 0};
static const struct scenario two_renames = {"the same step in two renames", 1, 1};

static void test_killed(void **state)
{
    strike_everywhere(*state, &new_step, KILL);
    strike_everywhere(*state, &same_step, KILL);
    strike_everywhere(*state, &two_renames, KILL);
}

static void test_full_disk(void **state)
{
    strike_everywhere(*state, &new_step, FULL_DISK);
    strike_everywhere(*state, &same_step, FULL_DISK);
}

static void test_bad_disk(void **state)
{
    strike_everywhere(*state, &new_step, BAD_DISK);
    strike_everywhere(*state, &two_renames, BAD_DISK);
}

/* The message of a full disk says how much room was asked for and how much there was. */
static void test_full_disk_message(void **state)
{
    struct error error = {0};

    begin(*state);
    shared->strike = FULL_DISK;
    shared->at = 1;
    assert_int_equal(fixture_shard(*state, 2, 0, 1, 1, &error), -1);
    memset(shared, 0, sizeof(*shared));
    assert_non_null(strstr(error.text, "bytes needed"));
    assert_non_null(strstr(error.text, "available"));
}

static int set_up(void **state)
{
    char *root = malloc(FIXTURE_PATH);

    assert_non_null(root);
    fixture_directory(root);
    *state = root;
    return 0;
}

static int tear_down(void **state)
{
    fixture_remove(*state);
    free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_killed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full_disk_message, set_up, tear_down),
    };

    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        abort();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
