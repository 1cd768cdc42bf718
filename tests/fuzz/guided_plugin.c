/*
 * The plugin's own source under libFuzzer: one call of it for each input, in one process.
 *
 * An input is a byte of flags, then texts that each end with a zero byte: a value for each of the variables below, the
 * name of the program and standard input; what is left is the daemon's answer. All that the plugin asks of the kernel
 * is played here, so that a call costs microseconds: reads and writes come in pieces, the clock goes on by itself, and
 * an exit is a jump back. The run ends with a trap if standard output is not what a runtime can decode.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { SOCKET = 50, BOOT_ID, SPOOL, KEPT };
enum { TINY_PIECES = 1, INTERRUPTED = 2, NOBODY_LISTENS = 4, NO_SPOOL = 8, SPOOL_BREAKS = 16, DEAF = 32 };

struct part {
    const char *at;
    size_t len;
};

static const char *const variables[] = {
    "CNI_COMMAND",  "CNI_CONTAINERID", "CNI_NETNS",       "CNI_IFNAME", "CNI_ARGS", "CNI_PATH",
    "IPAMD_SOCKET", "IPAMD_TIMEOUT",   "IPAMD_CONNECT_TIMEOUT", "IPAMD_SPOOL_DIR",
};
enum { VARIABLES = sizeof variables / sizeof *variables };

static const char *values[VARIABLES];
static int flags, exit_code;
static unsigned turn;
static int64_t clock_ns;
static struct part standard_input, daemons_answer;
static size_t written, kept, printed;
static char output[1 << 17];
static bool renamed, own_words;
static jmp_buf ended;

static _Noreturn void play_exit(int code)
{
    exit_code = code;
    own_words = true;
    longjmp(ended, 1);
}

static char *play_getenv(const char *name)
{
    for (size_t i = 0; i < VARIABLES; i++)
        if (strcmp(name, variables[i]) == 0)
            return (char *)values[i];
    return NULL;
}

static int play_clock(clockid_t clock, struct timespec *t)
{
    (void)clock;
    clock_ns += 1000000;
    *t = (struct timespec){clock_ns / 1000000000, clock_ns % 1000000000};
    return 0;
}

static int play_poll(struct pollfd *p, nfds_t count, int wait)
{
    clock_ns += 1000000;
    if (count == 0 || p->fd != STDIN_FILENO || (flags & DEAF) != 0)
        clock_ns += wait * (int64_t)1000000;
    if (count == 0)
        clock_ns += 3600 * (int64_t)1000000000; /* a wait of a day has few turns */
    else
        p->revents = (flags & DEAF) != 0 ? POLLIN : POLLIN | POLLOUT;
    return (int)count;
}

/* How many of the bytes this call gives or takes; -1 now and then, if it is to be interrupted. */
static ssize_t piece(size_t len)
{
    turn++;
    if ((flags & INTERRUPTED) != 0 && turn % 3 == 0) {
        errno = turn % 2 == 0 ? EAGAIN : EINTR;
        return -1;
    }
    return (ssize_t)((flags & TINY_PIECES) != 0 && len > turn % 7 + 1 ? turn % 7 + 1 : len);
}

static ssize_t take(struct part *from, void *at, size_t len)
{
    ssize_t got = piece(len < from->len ? len : from->len);
    if (got <= 0)
        return got;
    memcpy(at, from->at, (size_t)got);
    from->at += got;
    from->len -= (size_t)got;
    return got;
}

static ssize_t play_read(int fd, void *at, size_t len)
{
    static const char boot[] = "01234567-89ab-cdef-0123-456789abcdef";
    if (fd == STDIN_FILENO)
        return take(&standard_input, at, len);
    if (fd != BOOT_ID || len != sizeof boot - 1)
        __builtin_trap();
    memcpy(at, boot, len);
    return (ssize_t)len;
}

static ssize_t play_write(int fd, const void *at, size_t len)
{
    ssize_t taken = piece(len);
    if (taken < 0)
        return taken;
    for (ssize_t i = 0; i < taken; i++) /* each byte must be there */
        if (fd == STDOUT_FILENO && printed < sizeof output)
            output[printed++] = ((const char *)at)[i];
        else
            written += ((const unsigned char *)at)[i];
    kept += fd == KEPT ? (size_t)taken : 0;
    return taken;
}

static int play_open(const char *path, int how, ...)
{
    (void)how;
    if (strcmp(path, "/proc/sys/kernel/random/boot_id") == 0)
        return BOOT_ID;
    errno = ENOENT;
    return (flags & NO_SPOOL) != 0 ? -1 : SPOOL;
}

static int play_openat(int directory, const char *path, int how, ...)
{
    (void)directory;
    (void)how;
    return *path == '.' ? KEPT : -1;
}

static int play_fstat(int fd, struct stat *about)
{
    (void)fd;
    *about = (struct stat){.st_uid = 1};
    return 0;
}

static ssize_t play_sendmsg(int fd, const struct msghdr *message, int how)
{
    (void)fd;
    (void)how;
    size_t len = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++)
        for (size_t k = 0; k < message->msg_iov[i].iov_len; k++, len++)
            written += ((const unsigned char *)message->msg_iov[i].iov_base)[k];
    return piece(len);
}

static ssize_t play_recv(int fd, void *at, size_t len, int how)
{
    (void)fd;
    (void)how;
    return take(&daemons_answer, at, len);
}

static int play_connect(int fd, const struct sockaddr *where, socklen_t len)
{
    (void)fd;
    if (len != sizeof(struct sockaddr_un) || memchr(((const struct sockaddr_un *)where)->sun_path, 0, 108) == NULL)
        __builtin_trap();
    errno = turn % 2 == 0 ? ENOENT : EACCES;
    return (flags & NOBODY_LISTENS) != 0 ? -1 : 0;
}

static int play_renameat(int from, const char *old, int to, const char *new)
{
    (void)from;
    (void)to;
    renamed = strcmp(old + 1, new) == 0;
    return (flags & SPOOL_BREAKS) != 0 ? -1 : 0;
}

#define main plugin_main
#define exit play_exit
#define _exit play_exit
#define getenv play_getenv
#define clock_gettime play_clock
#define poll(...) play_poll(__VA_ARGS__)
#define read play_read
#define write play_write
#define open play_open
#define openat play_openat
#define fstat play_fstat
#define socket(...) SOCKET
#define connect play_connect
#define sendmsg play_sendmsg
#define recv play_recv
#define renameat play_renameat
#define close(fd) 0
#define dup(fd) (fd)
#define fsync(fd) 0
#define fchown(...) 0
#define unlinkat(...) (void)0
#define isatty(fd) 0
#define signal(...) (void)0
#define fdopendir(fd) ((DIR *)&spool_file)
#define readdir(listing) NULL
#define closedir(listing) (void)(listing)
#include "ipamd-cni.c"
#undef main

/* Small at first, on the heap: growing is the rule here, and what lies behind is watched. */
static void empty(struct buffer *b)
{
    if (b->on_heap)
        free(b->at);
    *b = (struct buffer){malloc(8), 0, 8, true};
}

/* The plugin's own words: an object of plain ASCII, whatever was quoted in it. */
static void check_own_words(void)
{
    static const char opening[] = "{\"cniVersion\":\"";
    bool quoted = false;
    if (exit_code == 0 ? printed != 0 || !renamed : exit_code != 1 || printed < sizeof opening)
        __builtin_trap();
    if (exit_code == 0)
        return;
    if (memcmp(output, opening, sizeof opening - 1) != 0 || memcmp(output + printed - 3, "\"}\n", 3) != 0)
        __builtin_trap();
    for (size_t i = 0; i + 1 < printed; i++) {
        if (output[i] < 0x20 || output[i] > 0x7e)
            __builtin_trap();
        if (quoted && output[i] == '\\')
            i++;
        else if (output[i] == '"')
            quoted = !quoted;
    }
    if (quoted)
        __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *texts = malloc(size + VARIABLES + 4), *at = texts, *end, *name;
    if (size == 0) {
        free(texts);
        return 0;
    }
    memcpy(texts, data + 1, size - 1);
    memset(texts + size - 1, 0, VARIABLES + 4);
    end = texts + size - 1;
    flags = *data;
    for (size_t i = 0; i < VARIABLES; i++, at = at < end ? at + strlen(at) + 1 : at)
        values[i] = *at == '\x1f' ? NULL : at;
    name = at;
    at = at < end ? at + strlen(at) + 1 : at;
    standard_input = (struct part){at, strlen(at)};
    at = at < end ? at + strlen(at) + 1 : at;
    daemons_answer = (struct part){at, at < end ? (size_t)(end - at) : 0};
    turn = 0;
    clock_ns = 1000000000;
    kept = printed = 0;
    renamed = own_words = is_del = false;
    config = (struct configuration){0};
    empty(&input);
    empty(&head);
    empty(&answer);
    if (setjmp(ended) == 0)
        exit_code = plugin_main(1, (char *[]){name, NULL});
    if (own_words && printed < sizeof output)
        check_own_words();
    if (exit_code < 0 || exit_code > 255)
        __builtin_trap();
    free(texts);
    return 0;
}
