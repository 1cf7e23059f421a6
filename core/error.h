/* Errors that a user, a file or a peer can cause.
 *
 * A function that can fail takes a `struct error *`, fills it once, where the failure is
 * known best, and returns -1 (or NULL). Callers pass it up unchanged or put their own words
 * in front with error_prefix(); main() prints it and exits with its status. Nothing is
 * printed on the way, so nothing is printed twice.
 */
#ifndef MTLLM_CORE_ERROR_H
#define MTLLM_CORE_ERROR_H

/* The exit statuses of every program, after sysexits.h. */
enum exit_status {
    EXIT_STATUS_OK = 0,
    EXIT_STATUS_USAGE = 64,         /* unknown option or malformed value */
    EXIT_STATUS_DATA = 65,          /* bad input data or checkpoint */
    EXIT_STATUS_BUG = 70,           /* an internal error */
    EXIT_STATUS_SYSTEM = 71,        /* the operating system refused something */
    EXIT_STATUS_IO = 74,            /* reading or writing failed */
    EXIT_STATUS_UNFINISHED = 75,    /* stopped with a durable checkpoint and more to do */
    EXIT_STATUS_CONFIGURATION = 78, /* settings that cannot work together */
};

struct error {
    int status;      /* an enum exit_status; 0 while nothing went wrong */
    char text[2048]; /* one message without program name or newline */
};

/* Fill `error` with `status` and the formatted text. Always returns -1. */
int error_set(struct error *error, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As error_set() with EXIT_STATUS_IO, and ": strerror(errno)" appended. Always returns -1. */
int error_set_errno(struct error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Put words in front of the text already there. Always returns -1. */
int error_prefix(struct error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Print "PROGRAM: TEXT" on standard error and return the status, for `return error_print(&e)`
 * at the end of main(). */
int error_print(const struct error *error);

#ifdef __clang_analyzer__
/* What the analyzer cannot see from other files: these return -1. */
#define error_set(...)       (error_set(__VA_ARGS__), -1)
#define error_set_errno(...) (error_set_errno(__VA_ARGS__), -1)
#define error_prefix(...)    (error_prefix(__VA_ARGS__), -1)
#endif

#endif
