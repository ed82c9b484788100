/* What injection.py preloads into the processes of a trial: at the n-th file operation of a kind, below a folder, the
 * process is killed, stopped, interrupted or refused. Until `fault_arm` is called everything passes through. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BEFORE, INSIDE, AFTER };
static char root[4096], glob[4096];
static int nth, when, with_signal, with_error, trace = -1;
static long clock_shift;
static _Atomic int seen;

/* glob: of an operation as `what` writes it, such as "rename checkpoints/epoch_*.pt", below `folder`.
 * An error is that of this operation and of all later ones; trace: a file for every operation, or -1. */
void fault_arm(const char *folder, const char *pattern, int n, int moment, int number, int error, long shift, int to)
{
    snprintf(root, sizeof root, "%s/", folder);
    snprintf(glob, sizeof glob, "%s", pattern);
    nth = n, when = moment, with_signal = number, with_error = error, clock_shift = shift, trace = to, seen = 0;
}

/* Whether something is to happen at this operation on `path`, or on `path` in the folder `fd`, or on the file `fd`. */
static int struck(const char *what, int fd, const char *path)
{
    char link[64], full[8192] = "", text[8300];
    ssize_t length = 0;
    if (!root[0]) return 0;
    if (fd != AT_FDCWD && (!path || path[0] != '/')) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        if ((length = readlink(link, full, 4095)) < 0) return 0;
        if (path) full[length++] = '/';
    }
    snprintf(full + length, 4096, "%s", path ? path : "");
    if (strncmp(full, root, strlen(root))) return 0;
    snprintf(text, sizeof text, "%s %s", what, full + strlen(root));
    if (trace >= 0) dprintf(trace, "%s\n", text);
    if (with_error && seen >= nth) return with_error != ENOSPC || !strchr("ru", *what); /* these free space */
    if (fnmatch(glob, text, 0) || ++seen != nth) return 0;
    dprintf(2, "fault: %s\n", text);
    return 1;
}

static void strike(int now, int moment)
{
    int kept = errno;
    /* To stop, this very thread takes the signal: taken by another one, it would go on for a while. */
    if (now && moment == when && with_signal) with_signal == SIGSTOP ? raise(SIGSTOP) : kill(getpid(), with_signal);
    errno = kept;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);
#define OPERATION(type, name, parameters, arguments, what, fd, path) \
    type name parameters                                             \
    {                                                                \
        REAL(name)                                                   \
        int now = struck(what, fd, path);                            \
        if (now && with_error) return errno = with_error, -1;        \
        strike(now, BEFORE);                                         \
        type result = real arguments;                                \
        strike(now, AFTER);                                          \
        return result;                                               \
    }
#define OPENING(name)                                                                               \
    int name(const char *path, int flags, ...)                                                      \
    {                                                                                               \
        va_list rest;                                                                               \
        va_start(rest, flags);                                                                      \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                     \
        va_end(rest);                                                                               \
        REAL(name)                                                                                  \
        int now = flags & (O_CREAT | O_TRUNC) ? struck("open", AT_FDCWD, path) : 0;                 \
        if (now && with_error) return errno = with_error, -1;                                       \
        strike(now, BEFORE);                                                                        \
        int result = real(path, flags, mode);                                                       \
        strike(now, AFTER);                                                                         \
        return result;                                                                              \
    }

OPENING(open)
OPENING(open64)
OPERATION(int, fsync, (int fd), (fd), "sync", fd, NULL)
OPERATION(int, ftruncate64, (int fd, off64_t n), (fd, n), "truncate", fd, NULL)
OPERATION(ssize_t, sendfile64, (int out, int in, off64_t *at, size_t n), (out, in, at, n), "copy", out, NULL)
OPERATION(int, rename, (const char *a, const char *b), (a, b), "rename", AT_FDCWD, b)
OPERATION(int, link, (const char *a, const char *b), (a, b), "link", AT_FDCWD, b)
OPERATION(int, linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f), "link", e, b)
OPERATION(int, unlink, (const char *path), (path), "unlink", AT_FDCWD, path)
OPERATION(int, unlinkat, (int fd, const char *path, int f), (fd, path, f), "unlink", fd, path)
OPERATION(int, rmdir, (const char *path), (path), "rmdir", AT_FDCWD, path)
OPERATION(int, mkdir, (const char *path, mode_t mode), (path, mode), "mkdir", AT_FDCWD, path)

ssize_t write(int fd, const void *bytes, size_t n)
{
    REAL(write)
    int now = struck("write", fd, NULL);
    if (now && with_error) return errno = with_error, -1;
    strike(now, BEFORE);
    if (now && when == INSIDE) real(fd, bytes, n / 2), strike(now, INSIDE);
    ssize_t result = real(fd, bytes, n);
    strike(now, AFTER);
    return result;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(clock_gettime)
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += clock_shift;
    return result;
}
