/* peer.h: what attack.c and live.c do alike: clocks, numbers, files and connections to a server on this machine. */
#ifndef PEER_H
#define PEER_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FIN 0x80
#define MASKED 0x80
#define CONTROL_LIMIT 125 /* bytes, RFC 6455 §5.5 */
enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

typedef struct {
    uint8_t *data;
    size_t length;
} bytes;

__attribute__((noreturn, format(printf, 1, 2))) static inline void give_up(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static inline void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size ? size : 1);
    if (!memory)
        give_up("out of memory");
    return memory;
}

static inline double seconds_of(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static inline double number(const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most))
        give_up("%s is not a number from %g to %g", text, least, most);
    return value;
}

static inline bytes read_file(const char *path)
{
    FILE *file = fopen(path, "re");
    if (!file || fseek(file, 0, SEEK_END) != 0)
        give_up("%s: %s", path, strerror(errno));
    long length = ftell(file);
    if (length < 0)
        give_up("%s: %s", path, strerror(errno));
    rewind(file);
    bytes content = {.data = allocate(1, (size_t)length), .length = (size_t)length};
    if (fread(content.data, 1, content.length, file) != content.length)
        give_up("%s can't be read", path);
    fclose(file);
    return content;
}

static inline void allow_descriptors(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static inline int make_epoll(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        give_up("epoll_create1: %s", strerror(errno));
    return epoll;
}

/* Returns -1 if that can't be; the connection is reset when it is closed, so that no port waits in TIME_WAIT. */
static inline int start_connecting(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct linger at_once = {.l_onoff = 1};
    int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 || errno == EINPROGRESS)
        return fd;
    close(fd);
    return -1;
}

static inline void watch(int epoll, int operation, int fd, uint32_t events, void *whose)
{
    struct epoll_event event = {.events = events, .data.ptr = whose};
    if (epoll_ctl(epoll, operation, fd, &event) != 0)
        give_up("epoll_ctl: %s", strerror(errno));
}

#endif
