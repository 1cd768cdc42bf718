/*
 * Asks a daemon as fast as it answers, over connections that stay open, and times every request.
 *
 *   load SOCKET CONNECTIONS VERBS PREFIX COUNT CONFIG
 *
 * COUNT containers, named PREFIX0.., go through VERBS (ADD, DEL, or ADD,DEL) one after another; each connection takes
 * the next container when it is done with one, so CONNECTIONS requests are under way at any time. The connections
 * are made before the clock starts. CONFIG is the file with the network configuration.
 *
 * Prints the nanoseconds from the first request to the last answer, and then for each request its verb and its
 * nanoseconds. An answer that is not a success ends everything: its time must not get among those of successes.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

enum { CONNECTIONS = 1024, VERBS = 2, ROOM = 8192 };

struct client {
    int fd, container, verb;
    int64_t sent;
    size_t length;
    char answer[ROOM];
};

static struct client clients[CONNECTIONS];
static char *verbs[VERBS];
static int verb_count, next_container, container_count;
static const char *prefix;
static char config[ROOM];
static size_t config_length;
static int64_t *times[VERBS];

static void connect_to(struct client *client, const char *path)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof where.sun_path)
        die("cannot connect: %s is too long", path);
    strcpy(where.sun_path, path);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0 || connect(client->fd, (const struct sockaddr *)&where, sizeof where) != 0)
        die("cannot connect to %s: %s", path, strerror(errno));
}

/* What the plugin sends, on a connection that stays open. */
static void ask(struct client *client)
{
    char request[2 * ROOM];
    struct timespec boot;
    clock_gettime(CLOCK_BOOTTIME, &boot);
    int length = snprintf(request, sizeof request,
                          "POST /v1/cni HTTP/1.1\r\nHost: ipamd\r\nCni-Command: %s\r\nCni-Containerid: %s%d\r\n"
                          "Cni-Netns: /var/run/netns/cni-%d\r\nCni-Ifname: eth0\r\n"
                          "Cni-Args: IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-%d\r\n"
                          "Cni-Path: /opt/cni/bin\r\nIpamd-Plugin: calico-ipam\r\nIpamd-Started: %" PRId64 "\r\n"
                          "Content-Length: %zu\r\n\r\n%s",
                          verbs[client->verb], prefix, client->container, client->container, client->container,
                          (int64_t)boot.tv_sec * 1000000000 + boot.tv_nsec, config_length, config);
    client->length = 0;
    client->sent = now();
    if (send(client->fd, request, (size_t)length, MSG_NOSIGNAL) != length)
        die("cannot send a request: %s", strerror(errno));
}

/* Takes in what has arrived; 1 if the answer is whole, and it is a success. */
static int answered(struct client *client)
{
    ssize_t got = recv(client->fd, client->answer + client->length, ROOM - 1 - client->length, 0);
    if (got <= 0)
        die("the daemon closed a connection");
    client->length += (size_t)got;
    client->answer[client->length] = '\0';
    const char *end = strstr(client->answer, "\r\n\r\n"), *body = strstr(client->answer, "Content-Length: ");
    if (end == NULL)
        return 0;
    size_t whole = (size_t)(end + 4 - client->answer) + (body == NULL ? 0 : strtoul(body + 16, NULL, 10));
    if (client->length < whole)
        return 0;
    if (strstr(client->answer, "Ipamd-Exit: 0\r\n") == NULL)
        die("%s was refused: %s", verbs[client->verb], client->answer);
    return 1;
}

/* The next request of a connection, if there is any. */
static int proceed(struct client *client)
{
    if (client->sent != 0 && ++client->verb < verb_count) {
        ask(client);
        return 1;
    }
    if (next_container == container_count)
        return 0;
    client->container = next_container++;
    client->verb = 0;
    ask(client);
    return 1;
}

static int64_t converse(int connections, int poller)
{
    struct epoll_event ready[64];
    int busy = 0;
    int64_t began = now();
    for (int i = 0; i < connections; i++)
        busy += proceed(&clients[i]);
    while (busy > 0) {
        int count = epoll_wait(poller, ready, 64, 10000);
        if (count == 0)
            die("no answer in 10 s");
        for (int i = 0; i < count; i++) {
            struct client *client = ready[i].data.ptr;
            if (!answered(client))
                continue;
            times[client->verb][client->container] = now() - client->sent;
            busy -= !proceed(client);
        }
    }
    return now() - began;
}

int main(int argc, char **argv)
{
    if (argc != 7)
        die("usage: load SOCKET CONNECTIONS VERBS PREFIX COUNT CONFIG");
    int connections = atoi(argv[2]), poller = epoll_create1(EPOLL_CLOEXEC);
    prefix = argv[4];
    container_count = atoi(argv[5]);
    FILE *file = fopen(argv[6], "re");
    if (file == NULL || connections < 1 || connections > CONNECTIONS || container_count < 1)
        die("cannot begin: look at CONNECTIONS, COUNT and CONFIG");
    config_length = fread(config, 1, sizeof config - 1, file);
    for (char *verb = strtok(argv[3], ","); verb != NULL && verb_count < VERBS; verb = strtok(NULL, ",")) {
        times[verb_count] = calloc((size_t)container_count, sizeof **times);
        verbs[verb_count++] = verb;
    }
    for (int i = 0; i < connections; i++) {
        connect_to(&clients[i], argv[1]);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
        epoll_ctl(poller, EPOLL_CTL_ADD, clients[i].fd, &event);
    }
    printf("%" PRId64 "\n", converse(connections, poller));
    for (int verb = 0; verb < verb_count; verb++)
        for (int i = 0; i < container_count; i++)
            printf("%s %" PRId64 "\n", verbs[verb], times[verb][i]);
    return 0;
}
