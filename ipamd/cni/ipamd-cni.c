/*
 * ipamd-cni: carries one CNI call to the ipamd daemon and its answer back.
 *
 * The CNI_* variables become headers and standard input becomes the body of one HTTP/1.1 request on the daemon's
 * Unix socket; the body of the answer goes to standard output and its Ipamd-Exit header is the exit code. What the
 * call means is the daemon's business: the plugin knows only VERSION, which it answers itself, and what to say
 * when the daemon cannot be reached, does not answer in time or does not speak the protocol.
 *
 * Order: read standard input, check the environment, connect (again and again, for a daemon may be restarting),
 * send, read the whole answer, and only then write. A half answer never reaches standard output.
 *
 * A DEL that cannot be delivered, or that the daemon has no room for now (503), is kept: the request goes as it is into
 * a file of the spool, which the daemon reads when it can, and the DEL succeeds. No pod hangs in Terminating because the
 * daemon is being upgraded or has too many clients.
 *
 * The runtime runs this on the host and waits for it: static, no stdio, no locale, memory from the heap only for
 * input and answers beyond the buffers below.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h> /* renameat, nothing else of it */
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Error codes of the CNI specification 1.1.0, section "Error". */
enum {
    INVALID_ENVIRONMENT = 4,
    IO_FAILURE = 5,
    INVALID_CONFIGURATION = 7,
    TRY_AGAIN_LATER = 11,
};

enum {
    BODY_LIMIT = 64 << 20, /* bytes of standard input, and of an answer: what is longer is a mistake, not a pod */
    HEAD_LIMIT = 64 << 10, /* bytes of an answer's head */
    CONNECT_MS = 5000,     /* a restart of the daemon takes less */
    CONNECT_DEL_MS = 1000, /* the longest for a DEL, which can be kept instead */
    SPOOL_LIMIT = 10000,   /* DELs kept: more than any node has pods */
    ANSWER_MS = 60000,     /* the longest for the answer, and for standard input before: kubelet gives up on the whole
                              sandbox after two minutes or more */
    LOOK_US = 500,         /* how long to look for the answer before sleeping until it comes */
    FIRST_WAIT_MS = 5,
    LONGEST_WAIT_MS = 100,
    EXCERPT = 200, /* bytes of a foreign answer quoted in an error */
};

#define DEFAULT_SOCKET "/run/ipamd/ipamd.sock"
#define DEFAULT_SPOOL "/var/lib/ipamd/del.d"
#define DEFAULT_VERSION "1.1.0"
#define SUPPORTED_VERSIONS "[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]"

/* Bytes that grow: the first `room` are static, so that an ordinary call asks the heap for nothing. */
struct buffer {
    char *at;
    size_t len, room;
    bool on_heap;
};

/* A piece of somebody else's bytes; `at` is NULL where nothing was found. */
struct slice {
    const char *at;
    size_t len;
};

/* What the plugin itself reads of the network configuration. */
struct configuration {
    struct slice version;
    struct slice socket;
    bool socket_unusable; /* ipam.socket is there, but is not a string without escapes */
};

/* What the head of an answer says. */
struct reply {
    size_t head, body; /* lengths in bytes; `head` includes the empty line */
    int exit_code;
    bool not_now; /* status 503 */
};

static char input_room[64 << 10], head_room[8 << 10], answer_room[64 << 10];
static struct buffer input = {input_room, 0, sizeof input_room, false};
static struct buffer head = {head_room, 0, sizeof head_room, false};
static struct buffer answer = {answer_room, 0, sizeof answer_room, false};
static struct configuration config;
static bool is_del; /* and its request is built: it can be kept */
static int64_t began; /* when the plugin was started, by CLOCK_BOOTTIME in ns */

#define FAIL(code, details, ...) fail(code, details, (const char *const[]){__VA_ARGS__, NULL})
static _Noreturn void fail(int code, const char *details, const char *const *words);

/* ---- time, bytes, text ---- */

/* Nanoseconds since boot, suspension included: the daemon compares the start of an ADD with its own reading. */
static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Milliseconds from now to `deadline`, rounded up so that a poll never ends just before it. */
static int left_until(int64_t deadline)
{
    int64_t left = deadline - now();
    return left <= 0 ? 0 : (int)((left + 999999) / 1000000);
}

/* All of the bytes, whatever the descriptor is; false if nobody takes them. */
static bool write_all(int fd, const char *at, size_t len)
{
    while (len > 0) {
        ssize_t sent = write(fd, at, len);
        if (sent >= 0) {
            at += sent;
            len -= (size_t)sent;
        } else if (errno == EAGAIN) {
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

/* Makes room for `more` bytes. Without memory even the error object could not be built: it is a constant here. */
static void ensure(struct buffer *b, size_t more)
{
    static const char no_memory[] = "{\"cniVersion\":\"" DEFAULT_VERSION "\",\"code\":11,\"msg\":\"cannot hold the "
                                    "request: out of memory; free memory on this node\",\"details\":\"\"}\n";
    if (b->room - b->len >= more)
        return;
    size_t room = b->len + more > 2 * b->room ? b->len + more : 2 * b->room;
    char *at = realloc(b->on_heap ? b->at : NULL, room);
    if (at == NULL) {
        write_all(STDOUT_FILENO, no_memory, sizeof no_memory - 1);
        _exit(1);
    }
    if (!b->on_heap)
        memcpy(at, b->at, b->len);
    b->at = at;
    b->room = room;
    b->on_heap = true;
}

static void put(struct buffer *b, const char *at, size_t len)
{
    ensure(b, len);
    memcpy(b->at + b->len, at, len);
    b->len += len;
}

static void put_text(struct buffer *b, const char *text)
{
    put(b, text, strlen(text));
}

static void put_number(struct buffer *b, uint64_t number)
{
    char digits[20];
    size_t first = sizeof digits;
    do {
        digits[--first] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    put(b, digits + first, sizeof digits - first);
}

/* The inside of a JSON string. Bytes beyond ASCII are written one by one as U+0080 to U+00FF: nobody promises
   that a path or a foreign answer is UTF-8, and the object must decode whatever is quoted in it. */
static void put_json(struct buffer *b, const char *text)
{
    static const char hex[] = "0123456789abcdef";
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            put(b, (char[]){'\\', (char)c}, 2);
        else if (c < 0x20 || c >= 0x7f)
            put(b, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
        else
            put(b, text, 1);
    }
}

/* The configuration's version if it looks like one (then it needs no escaping), else the newest. */
static void put_version(struct buffer *b)
{
    static const char allowed[] = "0123456789.-+abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    struct slice v = config.version;
    bool plain = v.at != NULL && v.len > 0 && v.len <= 64;
    for (size_t i = 0; plain && i < v.len; i++)
        plain = memchr(allowed, v.at[i], sizeof allowed - 1) != NULL;
    if (plain)
        put(b, v.at, v.len);
    else
        put_text(b, DEFAULT_VERSION);
}

static const char *keep_request(void);

/* Ends the process with a CNI error object whose `msg` is the words one after another; or, if it is only that the
   daemon cannot take a DEL now, with success. */
static _Noreturn void fail(int code, const char *details, const char *const *words)
{
    if (is_del && code == TRY_AGAIN_LATER) {
        const char *why_not = keep_request();
        if (why_not == NULL)
            exit(0);
        details = why_not;
    }
    head.len = 0;
    put_text(&head, "{\"cniVersion\":\"");
    put_version(&head);
    put_text(&head, "\",\"code\":");
    put_number(&head, (uint64_t)code);
    put_text(&head, ",\"msg\":\"");
    for (; *words != NULL; words++)
        put_json(&head, *words);
    put_text(&head, "\",\"details\":\"");
    put_json(&head, details);
    put_text(&head, "\"}\n");
    write_all(STDOUT_FILENO, head.at, head.len);
    exit(1);
}

/* Digits and nothing else, at most `limit`; -1 for all other text. */
static int64_t number_in(struct slice text, int64_t limit)
{
    int64_t number = 0;
    for (size_t i = 0; i < text.len; i++) {
        if (text.at[i] < '0' || text.at[i] > '9')
            return -1;
        number = number * 10 + (text.at[i] - '0');
        if (number > limit)
            return -1;
    }
    return text.len == 0 ? -1 : number;
}

static bool is(struct slice s, const char *text)
{
    return s.at != NULL && s.len == strlen(text) && memcmp(s.at, text, s.len) == 0;
}

/* ---- the configuration on standard input ---- */

/* Until the end of it, or the deadline: a runtime that died may leave the other end open with somebody else. */
static void read_configuration(int64_t deadline)
{
    for (;;) {
        int count = poll(&(struct pollfd){.fd = STDIN_FILENO, .events = POLLIN}, 1, left_until(deadline));
        if (count == 0)
            FAIL(IO_FAILURE, "", "cannot read the network configuration from standard input: it did not end in time"
                 "; run the plugin as a container runtime does, or raise IPAMD_TIMEOUT");
        ensure(&input, 1);
        ssize_t got = count < 0 ? -1 : read(STDIN_FILENO, input.at + input.len, input.room - input.len);
        if (got == 0)
            return;
        if (got > 0)
            input.len += (size_t)got;
        else if (errno != EAGAIN && errno != EINTR)
            FAIL(IO_FAILURE, "", "cannot read the network configuration from standard input: ", strerror(errno),
                 "; run the plugin as a container runtime does");
        if (input.len > BODY_LIMIT)
            FAIL(INVALID_CONFIGURATION, "", "cannot send the network configuration to ipamd: it is longer than 64 MiB"
                 "; look at what the runtime passes");
    }
}

/* The string whose opening quote is before `p`; `*p` moves past the closing one, or to `end` if there is none. */
static struct slice string_at(const char **p, const char *end)
{
    struct slice s = {*p, 0};
    while (*p < end && **p != '"')
        *p += **p == '\\' && end - *p > 1 ? 2 : 1;
    s.len = (size_t)(*p - s.at);
    if (*p < end)
        ++*p;
    return s;
}

/* True if the socket's path can be used as it stands: no escapes to decode, nothing that is not text. */
static bool is_plain(struct slice s)
{
    for (size_t i = 0; i < s.len; i++)
        if (s.at[i] == '\\' || (unsigned char)s.at[i] < 0x20)
            return false;
    return true;
}

/* Finds `cniVersion` and `ipam.socket` by following strings and nesting only. What is not JSON is left for the
   daemon to refuse: the plugin must reach it in any case. As for JSON decoders, the last of equal keys wins. */
static void scan_configuration(const char *p, const char *end)
{
    struct slice key = {NULL, 0};
    bool in_ipam = false;
    int depth = 0;

    while (p < end) {
        char c = *p++;
        if (c == '{' || c == '[') {
            if (++depth == 2)
                in_ipam = is(key, "ipam");
        } else if (c == '}' || c == ']') {
            if (--depth <= 0)
                return;
        } else if (c == ',') {
            key.at = NULL;
        } else if (c == '"') {
            struct slice s = string_at(&p, end);
            while (p < end && strchr(" \t\r\n", *p) != NULL && *p != '\0')
                p++;
            if (p < end && *p == ':') {
                key = s;
                p++;
                if (depth == 2 && in_ipam && is(key, "socket"))
                    config.socket_unusable = true;
            } else if (depth == 1 && is(key, "cniVersion")) {
                config.version = s;
            } else if (depth == 2 && in_ipam && is(key, "socket")) {
                config.socket = s;
                config.socket_unusable = !is_plain(s);
            }
        }
    }
}

/* ---- the environment ---- */

/* A control character could end a header and begin another: refused here, where the variable's name is known. */
static void refuse_control_characters(const char *value, const char *name)
{
    for (const char *c = value; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            FAIL(INVALID_ENVIRONMENT, "", "cannot send ", name,
                 " to ipamd: there is a control character in it; leave that out");
}

/* -1 if it is no number. */
static int64_t milliseconds_in(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);
    if (text == NULL || *text == '\0')
        return otherwise;
    return number_in((struct slice){text, strlen(text)}, 24 * 3600 * 1000);
}

static int64_t milliseconds_of(const char *name, int64_t otherwise)
{
    int64_t ms = milliseconds_in(name, otherwise);
    if (ms < 0)
        FAIL(INVALID_ENVIRONMENT, "", "cannot use ", name, "=", getenv(name),
             ": not a number of milliseconds up to a day; give it digits only, or unset it");
    return ms;
}

static struct sockaddr_un socket_address(void)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    const char *from_environment = getenv("IPAMD_SOCKET");
    struct slice path = {DEFAULT_SOCKET, sizeof DEFAULT_SOCKET - 1};

    if (config.socket_unusable)
        FAIL(INVALID_CONFIGURATION, "", "cannot use ipam.socket of the network configuration: it is not a string "
             "without escapes; write the path of ipamd's socket there, or leave it out");
    if (from_environment != NULL && *from_environment != '\0')
        path = (struct slice){from_environment, strlen(from_environment)};
    if (config.socket.at != NULL && config.socket.len > 0)
        path = config.socket;
    if (path.len >= sizeof where.sun_path) {
        memcpy(where.sun_path, path.at, sizeof where.sun_path - 1);
        FAIL(INVALID_CONFIGURATION, "", "cannot reach ipamd at ", where.sun_path,
             "...: the path of a Unix socket has at most 107 bytes; choose a shorter one");
    }
    memcpy(where.sun_path, path.at, path.len);
    return where;
}

/* ---- the request ---- */

static void build_head(const char *plugin, int64_t started)
{
    static const struct {
        const char *variable, *header;
    } carried[] = {
        {"CNI_COMMAND", "Cni-Command: "}, {"CNI_CONTAINERID", "Cni-Containerid: "}, {"CNI_NETNS", "Cni-Netns: "},
        {"CNI_IFNAME", "Cni-Ifname: "},   {"CNI_ARGS", "Cni-Args: "},               {"CNI_PATH", "Cni-Path: "},
    };

    put_text(&head, "POST /v1/cni HTTP/1.1\r\nHost: ipamd\r\nConnection: close\r\n");
    for (size_t i = 0; i < sizeof carried / sizeof *carried; i++) {
        const char *value = getenv(carried[i].variable);
        if (value == NULL)
            continue;
        refuse_control_characters(value, carried[i].variable);
        put_text(&head, carried[i].header);
        put_text(&head, value);
        put_text(&head, "\r\n");
    }
    refuse_control_characters(plugin, "the plugin's file name");
    put_text(&head, "Ipamd-Plugin: ");
    put_text(&head, plugin);
    put_text(&head, "\r\nIpamd-Started: ");
    put_number(&head, (uint64_t)started);
    put_text(&head, "\r\nContent-Length: ");
    put_number(&head, input.len);
    put_text(&head, "\r\n\r\n");
}

/* ---- the spool ---- */

static char spool_file[128]; /* the name of the kept request, after the dot that hides it while it is written */

/* ".<boot id>.<start>.<process>": in one boot the order of the names is the order of the DELs. */
static bool name_file(void)
{
    char boot[36], number[20];
    int64_t start = began;
    struct buffer name = {spool_file, 0, sizeof spool_file, false};
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    bool known = fd >= 0 && read(fd, boot, sizeof boot) == (ssize_t)sizeof boot;

    if (fd >= 0)
        close(fd);
    for (size_t i = sizeof number; i-- > 0; start /= 10)
        number[i] = (char)('0' + start % 10);
    put_text(&name, ".");
    put(&name, boot, sizeof boot);
    put_text(&name, ".");
    put(&name, number, sizeof number);
    put_text(&name, ".");
    put_number(&name, (uint64_t)getpid());
    put(&name, "", 1);
    return known;
}

static bool is_full(int directory)
{
    int count = 0, own = dup(directory);
    DIR *listing = own < 0 ? NULL : fdopendir(own);
    if (listing == NULL)
        return true;
    while (count < SPOOL_LIMIT && readdir(listing) != NULL)
        count++;
    closedir(listing);
    return count >= SPOOL_LIMIT;
}

/* Writes the request to a file of the spool, whole or not at all; NULL, or the reason why it cannot. The file is the
   daemon's, whoever runs the plugin: it has the owner of the directory, which the daemon makes when it starts. */
static const char *keep_request(void)
{
    const char *spool = getenv("IPAMD_SPOOL_DIR");
    struct stat owner;

    if (!name_file())
        return "the DEL could not be kept: the boot id of this host cannot be read";
    int directory = open(spool != NULL && *spool != '\0' ? spool : DEFAULT_SPOOL, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (directory < 0 || fstat(directory, &owner) != 0)
        return "the DEL could not be kept: ipamd's spool (IPAMD_SPOOL_DIR) cannot be opened";
    if (is_full(directory))
        return "the DEL could not be kept: ipamd's spool is full";
    int fd = openat(directory, spool_file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return "the DEL could not be kept: ipamd's spool cannot be written";
    bool kept = write_all(fd, head.at, head.len) && write_all(fd, input.at, input.len) && fsync(fd) == 0 &&
                (owner.st_uid == geteuid() || fchown(fd, owner.st_uid, owner.st_gid) == 0) && close(fd) == 0 &&
                renameat(directory, spool_file, directory, spool_file + 1) == 0 && fsync(directory) == 0;
    if (!kept)
        unlinkat(directory, spool_file, 0);
    return kept ? NULL : "the DEL could not be kept: ipamd's spool cannot be written";
}

/* What `fd` is ready for; ends the process at the deadline. */
static short ready(int fd, short events, int64_t deadline, const char *path)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        int left = left_until(deadline);
        if (left == 0)
            FAIL(TRY_AGAIN_LATER, "", "cannot get an answer from ipamd at ", path,
                 ": it took the request and did not answer in time; look at its log, or raise IPAMD_TIMEOUT");
        int count = poll(&p, 1, left);
        if (count > 0)
            return p.revents;
        if (count < 0 && errno != EINTR)
            FAIL(IO_FAILURE, "", "cannot wait for ipamd at ", path, ": ", strerror(errno), "; try again");
    }
}

/* Sends the request as far as the daemon takes it. One that answers early (a refusal) or goes away stops the
   sending: what it had to say is then in the answer, or there is none. */
static void send_request(int fd, int64_t deadline, const char *path)
{
    struct iovec parts[2] = {{head.at, head.len}, {input.at, input.len}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

    while (parts[0].iov_len + parts[1].iov_len > 0) {
        ssize_t sent = sendmsg(fd, &message, 0);
        if (sent < 0 && errno == EAGAIN && (ready(fd, POLLIN | POLLOUT, deadline, path) & POLLIN) != 0)
            return;
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
            return;
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            FAIL(TRY_AGAIN_LATER, "", "cannot send the request to ipamd at ", path, ": ", strerror(errno),
                 "; free memory on this node");
        for (size_t i = 0; i < 2 && sent > 0; i++) {
            size_t taken = (size_t)sent < parts[i].iov_len ? (size_t)sent : parts[i].iov_len;
            parts[i].iov_base = (char *)parts[i].iov_base + taken;
            parts[i].iov_len -= taken;
            sent -= (ssize_t)taken;
        }
    }
}

/* ---- the answer ---- */

/* Looks whether the answer comes at once, as it mostly does. To sleep meanwhile lets the core sleep as well, and waking
   it takes a good part of what the answer takes. Between two looks whoever else wants the core has it. */
static void look_for_answer(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int64_t until = now() + LOOK_US * 1000;

    while (poll(&p, 1, 0) == 0 && now() < until)
        sched_yield();
}

/* Reads "Name: value" into the reply, if it is one of the two that matter; false if it cannot be right. */
static bool read_header(struct slice line, struct slice *length, struct slice *exit_code)
{
    const char *colon = memchr(line.at, ':', line.len);
    if (colon == NULL)
        return false;
    struct slice name = {line.at, (size_t)(colon - line.at)};
    struct slice value = {colon + 1, line.len - name.len - 1};
    while (value.len > 0 && (*value.at == ' ' || *value.at == '\t'))
        value = (struct slice){value.at + 1, value.len - 1};
    while (value.len > 0 && (value.at[value.len - 1] == ' ' || value.at[value.len - 1] == '\t'))
        value.len--;

    struct slice *found = NULL;
    if (name.len == 14 && strncasecmp(name.at, "Content-Length", 14) == 0)
        found = length;
    if (name.len == 10 && strncasecmp(name.at, "Ipamd-Exit", 10) == 0)
        found = exit_code;
    if (found == NULL)
        return true;
    if (found->at != NULL)
        return false; /* twice: which one is meant? */
    *found = value;
    return true;
}

/* Reads the head of the answer, `head` bytes up to and with the empty line; false if it is not ipamd's. */
static bool read_head(const char *at, size_t length_of_head, struct reply *reply)
{
    const char *end = at + length_of_head - 2; /* without the empty line, with the line end before it */
    struct slice length = {NULL, 0}, exit_code = {NULL, 0};

    for (const char *line = (const char *)memmem(at, length_of_head, "\r\n", 2) + 2; line < end;) {
        const char *stop = memmem(line, (size_t)(end - line), "\r\n", 2);
        if (!read_header((struct slice){line, (size_t)(stop - line)}, &length, &exit_code))
            return false;
        line = stop + 2;
    }
    int64_t body = number_in(length, BODY_LIMIT), code = number_in(exit_code, 255);
    bool not_now = length_of_head > 13 && memcmp(at + 8, " 503 ", 5) == 0; /* after "HTTP/1.1" */
    *reply =
        (struct reply){.head = length_of_head, .body = (size_t)body, .exit_code = (int)code, .not_now = not_now};
    return body >= 0 && code >= 0;
}

static _Noreturn void fail_foreign(const char *path)
{
    char excerpt[EXCERPT + 1] = {0};
    memcpy(excerpt, answer.at, answer.len < EXCERPT ? answer.len : EXCERPT);
    FAIL(IO_FAILURE, excerpt, "cannot understand the answer from ", path,
         ": it is not ipamd's; see that ipamd listens on this socket and is of the plugin's version");
}

/* Reads one whole answer. False if the daemon closed the connection before its first byte. */
static bool receive(int fd, int64_t deadline, const char *path, struct reply *reply)
{
    static const char opening[] = "HTTP/1.";
    *reply = (struct reply){0};
    answer.len = 0;
    while (reply->head == 0 || answer.len - reply->head < reply->body) {
        ensure(&answer, reply->head == 0 ? 1 : reply->head + reply->body - answer.len);
        ready(fd, POLLIN, deadline, path);
        ssize_t got = recv(fd, answer.at + answer.len, answer.room - answer.len, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (got <= 0 && answer.len == 0)
            return false;
        if (got <= 0)
            FAIL(TRY_AGAIN_LATER, "", "cannot read the answer from ipamd at ", path,
                 ": it closed the connection half-way; is the daemon restarting? Look at its log");
        answer.len += (size_t)got;
        if (reply->head != 0)
            continue;
        if (memcmp(answer.at, opening, answer.len < 7 ? answer.len : 7) != 0)
            fail_foreign(path);
        const char *empty = memmem(answer.at, answer.len, "\r\n\r\n", 4);
        if (empty == NULL ? answer.len > HEAD_LIMIT
                          : !read_head(answer.at, (size_t)(empty - answer.at) + 4, reply))
            fail_foreign(path);
    }
    return true;
}

/* ---- one attempt, and as many as the time allows ---- */

/* NULL with the answer read, or the reason why to try again. Every request may be sent twice: the daemon answers
   a repeated ADD with the same address. */
static const char *attempt(const struct sockaddr_un *where, int64_t answer_ms, struct reply *reply)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        FAIL(IO_FAILURE, "", "cannot open a Unix socket: ", strerror(errno), "; look at the runtime's limits");
    if (fd == STDOUT_FILENO)
        exit(1); /* standard output is closed: nobody would learn of the address */
    if (connect(fd, (const struct sockaddr *)where, sizeof *where) != 0) {
        int why = errno;
        close(fd);
        if (why == EACCES || why == EPERM)
            FAIL(IO_FAILURE, "", "cannot reach ipamd at ", where->sun_path, ": ", strerror(why),
                 "; run the plugin as root, or allow its user to write to the socket");
        if (why != ENOENT && why != ECONNREFUSED && why != EAGAIN && why != EINTR)
            FAIL(IO_FAILURE, "", "cannot reach ipamd at ", where->sun_path, ": ", strerror(why),
                 "; set ipam.socket or IPAMD_SOCKET to the path of ipamd's socket");
        return strerror(why);
    }
    int64_t deadline = now() + answer_ms * 1000000;
    send_request(fd, deadline, where->sun_path);
    look_for_answer(fd);
    bool answered = receive(fd, deadline, where->sun_path, reply);
    close(fd);
    return answered ? NULL : "it closed the connection without an answer";
}

static int answer_version(void)
{
    put_text(&head, "{\"cniVersion\":\"");
    put_version(&head);
    put_text(&head, "\",\"supportedVersions\":" SUPPORTED_VERSIONS "}\n");
    return write_all(STDOUT_FILENO, head.at, head.len) ? 0 : 1;
}

static int ask_daemon(const char *command, const char *plugin, int64_t started)
{
    int64_t connect_ms = milliseconds_of("IPAMD_CONNECT_TIMEOUT", CONNECT_MS);
    int64_t answer_ms = milliseconds_of("IPAMD_TIMEOUT", ANSWER_MS);
    struct sockaddr_un where = socket_address();
    struct reply reply = {0};
    const char *why;

    build_head(plugin, started);
    began = started;
    is_del = strcmp(command, "DEL") == 0;
    if (is_del && connect_ms > CONNECT_DEL_MS)
        connect_ms = CONNECT_DEL_MS;
    int64_t window = started + connect_ms * 1000000;
    for (int wait = FIRST_WAIT_MS; (why = attempt(&where, answer_ms, &reply)) != NULL; wait *= 2) {
        int left = left_until(window);
        if (left == 0)
            FAIL(TRY_AGAIN_LATER, "", "cannot reach ipamd at ", where.sun_path, ": ", why,
                 "; is the daemon running? Its state and log on this node say more");
        if (wait > LONGEST_WAIT_MS)
            wait = LONGEST_WAIT_MS;
        poll(NULL, 0, wait < left ? wait : left);
    }
    if (is_del && reply.not_now && keep_request() == NULL)
        return 0;
    if (!write_all(STDOUT_FILENO, answer.at + reply.head, reply.body) && reply.exit_code == 0)
        return 1;
    return reply.exit_code;
}

int main(int argc, char **argv)
{
    int64_t started = now(), input_ms = milliseconds_in("IPAMD_TIMEOUT", ANSWER_MS);
    int64_t deadline = started + (input_ms < 0 ? ANSWER_MS : input_ms) * 1000000; /* no number: refused below */
    const char *command = getenv("CNI_COMMAND");
    const char *plugin = argc > 0 ? argv[0] : "";
    const char *slash = strrchr(plugin, '/');

    signal(SIGPIPE, SIG_IGN); /* a peer that went away is an error with words, on the socket and on stdout */
    if (command == NULL || *command == '\0') {
        if (!isatty(STDIN_FILENO)) /* somebody who tries the program by hand gets the error at once */
            read_configuration(deadline);
        scan_configuration(input.at, input.at + input.len);
        FAIL(INVALID_ENVIRONMENT, "", "cannot tell what to do: CNI_COMMAND is not set; this program is run by a "
             "container runtime as the CNI specification says");
    }
    read_configuration(deadline);
    scan_configuration(input.at, input.at + input.len);
    if (strcmp(command, "VERSION") == 0)
        return answer_version();
    return ask_daemon(command, slash == NULL ? plugin : slash + 1, started);
}
