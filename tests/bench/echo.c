/*
 * Answers every CNI request on a Unix socket with the same words: the least that a daemon can do, hence the floor.
 *
 *   echo SOCKET
 *
 * One thread, one connection at a time, each closed after its answer, as the plugin asks. It looks for the end of the
 * request and at its verb, and decides, remembers and writes down nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char add_answer[] =
    "{\n    \"cniVersion\": \"1.0.0\",\n    \"ips\": [\n        {\n            \"address\": \"192.168.120.64/26\"\n"
    "        }\n    ],\n    \"routes\": [\n        {\n            \"dst\": \"192.168.120.64/26\"\n        }\n    ]\n}";

/* Reads one request to its end; false if the client went away. */
static int read_request(int fd, char *text, size_t room)
{
    size_t length = 0;
    for (;;) {
        ssize_t got = recv(fd, text + length, room - 1 - length, 0);
        if (got <= 0)
            return 0;
        length += (size_t)got;
        text[length] = '\0';
        const char *end = strstr(text, "\r\n\r\n"), *body = strstr(text, "Content-Length: ");
        if (end != NULL && body != NULL && length >= (size_t)(end + 4 - text) + strtoul(body + 16, NULL, 10))
            return 1;
    }
}

int main(int argc, char **argv)
{
    static char request[1 << 16], answer[1024];
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    if (argc != 2 || strlen(argv[1]) >= sizeof where.sun_path)
        return 2;
    strcpy(where.sun_path, argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (const struct sockaddr *)&where, sizeof where) != 0 || listen(listener, 512) != 0) {
        perror("cannot listen");
        return 1;
    }
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        if (read_request(fd, request, sizeof request)) {
            const char *body = strstr(request, "Cni-Command: ADD") != NULL ? add_answer : "";
            int length = snprintf(answer, sizeof answer,
                                  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
                                  "Content-Length: %zu\r\nIpamd-Exit: 0\r\n\r\n%s",
                                  strlen(body), body);
            send(fd, answer, (size_t)length, MSG_NOSIGNAL);
        }
        close(fd);
    }
}
