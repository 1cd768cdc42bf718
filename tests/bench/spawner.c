/*
 * Starts CNI plugins as a container runtime does, and times each from before its start until after its end.
 *
 * A plan comes on standard input, one step a line, and is carried out in order by this one thread:
 *
 *   lane PROGRAM NAME CONFIG     a plugin, the name it is called by, the file that goes to its standard input
 *   env KEY=VALUE                one more variable of the last lane's environment
 *   run LANE VERB CONTAINER      start lane number LANE (from 0) once and wait for its end
 *   burst LANE VERB PREFIX N     start it N times without waiting, for containers PREFIX0.., then wait for all
 *
 * Each run and burst is answered by a line with its nanoseconds, at the end or, with the argument "converse", at once.
 * A plugin that fails ends the whole plan: the time of a refusal must not get among those of successes. In C, so that
 * what is timed is the plugin and not the harness.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

enum { LANES = 16, VARIABLES = 32, AT_ONCE = 1000, TEXT = 1 << 16 };

struct lane {
    char *program, *name, *config;
    size_t config_length;
    char *environment[VARIABLES + 1];
    int variables; /* without the two below, which are the first ones */
};

struct child {
    pid_t pid;
    int output;
};

static struct lane lanes[LANES];
static int lane_count;
static char verb_variable[64] = "CNI_COMMAND=", container_variable[1200] = "CNI_CONTAINERID=";

static char *copy(const char *text)
{
    char *made = strdup(text);
    if (made == NULL)
        die("cannot keep the plan: out of memory");
    return made;
}

static void add_lane(const char *program, const char *name, const char *config)
{
    static char text[TEXT];
    if (lane_count == LANES)
        die("cannot take lane %s: there are %d already", name, LANES);
    struct lane *lane = &lanes[lane_count++];
    FILE *file = fopen(config, "re");
    if (file == NULL)
        die("cannot read %s: %s", config, strerror(errno));
    lane->config_length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[lane->config_length] = '\0';
    *lane = (struct lane){copy(program), copy(name), copy(text), lane->config_length, {NULL}, 2};
    lane->environment[0] = verb_variable;
    lane->environment[1] = container_variable;
}

static void add_variable(const char *assignment)
{
    struct lane *lane = &lanes[lane_count - 1];
    if (lane_count == 0 || lane->variables == VARIABLES)
        die("cannot take env %s: no lane, or too many variables", assignment);
    lane->environment[lane->variables++] = copy(assignment);
}

static struct lane *lane_at(int number)
{
    if (number < 0 || number >= lane_count)
        die("cannot run lane %d: there are %d", number, lane_count);
    return &lanes[number];
}

/* The configuration fits in the pipe's buffer, so it is all there before the plugin starts to read. */
static struct child start(const struct lane *lane, const char *verb, const char *container)
{
    int input[2], output[2];
    struct child child;
    posix_spawn_file_actions_t actions;

    snprintf(verb_variable, sizeof verb_variable, "CNI_COMMAND=%s", verb);
    snprintf(container_variable, sizeof container_variable, "CNI_CONTAINERID=%s", container);
    if (pipe2(input, O_CLOEXEC) != 0 || pipe2(output, O_CLOEXEC) != 0)
        die("cannot make a pipe: %s", strerror(errno));
    if (write(input[1], lane->config, lane->config_length) != (ssize_t)lane->config_length)
        die("cannot hand over the configuration of %s", lane->name);
    close(input[1]);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output[1], STDOUT_FILENO);
    int problem = posix_spawn(&child.pid, lane->program, &actions, NULL, (char *[]){lane->name, NULL},
                              (char **)lane->environment);
    if (problem != 0)
        die("cannot start %s: %s", lane->program, strerror(problem));
    posix_spawn_file_actions_destroy(&actions);
    close(input[0]);
    close(output[1]);
    child.output = output[0];
    return child;
}

/* Reads what the plugin prints until it ends; a failure of it is the end of the plan. */
static void finish(const struct lane *lane, struct child child, const char *verb)
{
    static char text[TEXT];
    size_t length = 0;
    int status;
    for (;;) {
        ssize_t got = read(child.output, text + length, sizeof text - 1 - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    close(child.output);
    while (wait4(child.pid, &status, 0, NULL) < 0)
        if (errno != EINTR)
            die("cannot wait for %s: %s", lane->name, strerror(errno));
    text[length] = '\0';
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        die("%s of %s failed with status %d: %s", verb, lane->program, status, text);
    if (strcmp(verb, "ADD") == 0 && strstr(text, "\"address\"") == NULL)
        die("ADD of %s answered without an address: %s", lane->program, text);
}

static int64_t run(const struct lane *lane, const char *verb, const char *container)
{
    int64_t began = now();
    finish(lane, start(lane, verb, container), verb);
    return now() - began;
}

static int64_t burst(const struct lane *lane, const char *verb, const char *prefix, int count)
{
    static struct child children[AT_ONCE];
    char container[1100];
    if (count < 1 || count > AT_ONCE)
        die("cannot start %d at once: 1 to %d", count, AT_ONCE);
    int64_t began = now();
    for (int i = 0; i < count; i++) {
        snprintf(container, sizeof container, "%s%d", prefix, i);
        children[i] = start(lane, verb, container);
    }
    for (int i = 0; i < count; i++)
        finish(lane, children[i], verb);
    return now() - began;
}

int main(int argc, char **argv)
{
    static char line[4096], a[1024], b[1024], c[1024];
    int lane, count;
    struct rlimit files;

    if (argc == 2 && strcmp(argv[1], "converse") == 0)
        setvbuf(stdout, NULL, _IOLBF, 0);
    /* A burst holds a descriptor for each child. */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "env ", 4) == 0)
            add_variable(line + 4);
        else if (sscanf(line, "lane %1023s %1023s %1023s", a, b, c) == 3)
            add_lane(a, b, c);
        else if (sscanf(line, "run %d %1023s %1023s", &lane, a, b) == 3)
            printf("%" PRId64 "\n", run(lane_at(lane), a, b));
        else if (sscanf(line, "burst %d %1023s %1023s %d", &lane, a, b, &count) == 4)
            printf("%" PRId64 "\n", burst(lane_at(lane), a, b, count));
        else
            die("cannot understand the plan: %s", line);
    }
    return 0;
}
