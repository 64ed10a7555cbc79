/* Faults at the system's door, for `tests.torture`: loaded before all else, armed later.

   Calls that write below one folder are counted. From the chosen one on, all fail with
   a number such as ENOSPC; or the process is killed there; or each one takes longer.
   What C's stdio writes by itself (such as OpenCV's files) does not pass here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char under[PATH_MAX];
static volatile long count, at = -1;
static int fault, lock_fault; /* errno; -1 kills */
static long delay_us;

void torture_arm(const char *folder, int fault_, long at_, long delay_us_, int lock_)
{
    strncpy(under, folder, sizeof under - 1);
    fault = fault_;
    at = at_;
    delay_us = delay_us_;
    lock_fault = lock_;
    count = 0;
}

long torture_count(void) { return count; }

static int is_below(const char *path)
{
    if (!under[0] || !path) return 0;
    if (path[0] != '/') {
        char whole[PATH_MAX];
        return realpath(path, whole) && !strncmp(whole, under, strlen(under));
    }
    return !strncmp(path, under, strlen(under));
}

static int is_fd_below(int fd)
{
    char link[64], path[PATH_MAX];
    if (!under[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_below(path);
}

static void wait_for_it(void)
{
    if (delay_us) {
        struct timespec t = {delay_us / 1000000, delay_us % 1000000 * 1000};
        nanosleep(&t, NULL);
    }
}

/* Whether this call fails; it may also be the process's last. */
static int fails(void)
{
    wait_for_it();
    long n = __sync_fetch_and_add(&count, 1);
    if (at < 0 || n < at || !fault) return 0;
    if (fault == -1) kill(getpid(), SIGKILL);
    errno = fault;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FD(type, name, args, ...)                     \
    type name args                                       \
    {                                                    \
        static __typeof__(&name) real;                   \
        if (!real) real = REAL(name);                    \
        if (is_fd_below(fd) && fails()) return -1;       \
        return real(__VA_ARGS__);                        \
    }
#define ON_PATH(type, name, args, ...)                   \
    type name args                                       \
    {                                                    \
        static __typeof__(&name) real;                   \
        if (!real) real = REAL(name);                    \
        if (is_below(path) && fails()) return -1;        \
        return real(__VA_ARGS__);                        \
    }

ON_FD(ssize_t, write, (int fd, const void *b, size_t n), fd, b, n)
ON_FD(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), fd, b, n, o)
ON_FD(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), fd, b, n, o)
ON_FD(ssize_t, writev, (int fd, const struct iovec *v, int n), fd, v, n)
ON_FD(int, ftruncate, (int fd, off_t n), fd, n)
ON_FD(int, ftruncate64, (int fd, off64_t n), fd, n)
ON_FD(ssize_t, copy_file_range,
      (int in, off64_t *a, int fd, off64_t *b, size_t n, unsigned f), in, a, fd, b, n, f)
ON_FD(ssize_t, sendfile, (int fd, int in, off_t *o, size_t n), fd, in, o, n)
ON_FD(ssize_t, sendfile64, (int fd, int in, off64_t *o, size_t n), fd, in, o, n)
ON_FD(int, fsync, (int fd), fd)
ON_FD(int, fdatasync, (int fd), fd)
ON_PATH(int, rename, (const char *path, const char *to), path, to)
ON_PATH(int, renameat, (int a, const char *path, int b, const char *to), a, path, b, to)
ON_PATH(int, mkdir, (const char *path, mode_t m), path, m)

/* These return the number of the error. */
int posix_fallocate(int fd, off_t o, off_t n)
{
    if (is_fd_below(fd) && fails()) return errno;
    return REAL(posix_fallocate)(fd, o, n);
}

int posix_fallocate64(int fd, off64_t o, off64_t n)
{
    if (is_fd_below(fd) && fails()) return errno;
    return REAL(posix_fallocate64)(fd, o, n);
}

/* Only a new file needs space; deleting one can be the last thing that happens. */
static int open_fails(const char *path, int flags)
{
    if (!is_below(path)) return 0;
    if (!(flags & O_CREAT)) {
        wait_for_it();
        return 0;
    }
    return access(path, F_OK) && fails();
}

#define OPEN(name)                                       \
    int name(const char *path, int flags, ...)           \
    {                                                    \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        mode_t mode = va_arg(rest, int);                 \
        va_end(rest);                                    \
        if (open_fails(path, flags)) return -1;          \
        return ((int (*)(const char *, int, ...))REAL(name))(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                     \
    int name(int at_, const char *path, int flags, ...)  \
    {                                                    \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        mode_t mode = va_arg(rest, int);                 \
        va_end(rest);                                    \
        if (open_fails(path, flags)) return -1;          \
        return ((int (*)(int, const char *, int, ...))REAL(name))(at_, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

int unlink(const char *path)
{
    if (is_below(path) && fault <= 0) fails(); /* a full disk has room for that */
    return REAL(unlink)(path);
}

/* One thread, whatever the machine: with more, COLMAP adds up in an order that differs. */
int get_nprocs(void) { return 1; }

int flock(int fd, int how)
{
    if (lock_fault && is_fd_below(fd)) {
        errno = lock_fault;
        return -1;
    }
    return REAL(flock)(fd, how);
}
