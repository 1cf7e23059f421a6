#include "trainer/contact.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "core/log.h"

enum {
    CONNECT_MS = 3000, /* an address that does not answer */
    HELLO_MS = 10000,  /* a rank that does not, once connected */
    SILENCE_S = 15,    /* a node that does not: three questions, so many seconds */
};

/* What who connects sends; the answer is `from`. */
struct hello {
    unsigned char to[CONTACT_TOKEN_BYTES], from[CONTACT_TOKEN_BYTES];
};

static int64_t now_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* --- addresses ---------------------------------------------------------------------------------*/

static struct in6_addr mapped(struct in_addr address)
{
    struct in6_addr result = {.s6_addr = {[10] = 0xff, [11] = 0xff}};

    memcpy(&result.s6_addr[12], &address, sizeof(address));
    return result;
}

static void add_address(struct contact *contact, const struct sockaddr *address)
{
    struct in6_addr *to = &contact->addresses[contact->count];

    if (contact->count == CONTACT_ADDRESSES)
        return;
    if (address->sa_family == AF_INET) {
        struct sockaddr_in four;

        memcpy(&four, address, sizeof(four));
        *to = mapped(four.sin_addr);
        contact->count++;
    } else if (address->sa_family == AF_INET6) {
        struct sockaddr_in6 six;

        memcpy(&six, address, sizeof(six));
        *to = six.sin6_addr;
        contact->count += !IN6_IS_ADDR_LINKLOCAL(to); /* it would need the other's interface */
    }
}

/* Those of real interfaces, IPv4 first; this host's own for itself last. */
static void list_addresses(struct contact *contact)
{
    static const int families[] = {AF_INET, AF_INET6};
    struct sockaddr_in loopback = {.sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct ifaddrs *interfaces = NULL;

    if (getifaddrs(&interfaces) == 0) {
        for (int i = 0; i < 2; i++)
            for (const struct ifaddrs *at = interfaces; at; at = at->ifa_next)
                if (at->ifa_addr && at->ifa_addr->sa_family == families[i] &&
                    (at->ifa_flags & IFF_UP) && !(at->ifa_flags & IFF_LOOPBACK) &&
                    contact->count < CONTACT_ADDRESSES - 1)
                    add_address(contact, at->ifa_addr);
        freeifaddrs(interfaces);
    }
    add_address(contact, (const struct sockaddr *)&loopback);
}

static socklen_t socket_address(struct sockaddr_storage *to, const struct in6_addr *address,
                                uint32_t port)
{
    *to = (struct sockaddr_storage){0};
    if (IN6_IS_ADDR_V4MAPPED(address)) {
        struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

        memcpy(&four.sin_addr, &address->s6_addr[12], sizeof(four.sin_addr));
        memcpy(to, &four, sizeof(four));
        return sizeof(four);
    }
    memcpy(to,
           &(struct sockaddr_in6){
               .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = *address},
           sizeof(struct sockaddr_in6));
    return sizeof(struct sockaddr_in6);
}

/* On every address and a port of the kernel's choice, for IPv6 too where there is any. */
static int listen_somewhere(uint32_t *port)
{
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    struct sockaddr_storage bound;
    socklen_t length = sizeof(bound);
    int no = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no)) < 0 ||
        bind(fd, (const struct sockaddr *)&six, sizeof(six)) < 0) {
        close_fd(&fd);
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd >= 0 && bind(fd, (const struct sockaddr *)&four, sizeof(four)) < 0)
            close_fd(&fd);
    }
    if (fd < 0 || listen(fd, 8) < 0 || getsockname(fd, (struct sockaddr *)&bound, &length) < 0) {
        close_fd(&fd);
        return -1;
    }
    /* The port is in the same place in both. */
    memcpy(&four, &bound, sizeof(four));
    *port = ntohs(four.sin_port);
    return fd;
}

int contact_listen(struct contact *self)
{
    const char *node = getenv("SLURMD_NODENAME");
    char host[HOST_NAME_MAX + 1] = "";

    *self = (struct contact){0};
    if (!node && gethostname(host, sizeof(host) - 1) == 0)
        node = host;
    snprintf(self->node, sizeof(self->node), "%s", node ? node : "?");
    list_addresses(self);
    if (getrandom(self->token, sizeof(self->token), 0) != sizeof(self->token))
        return -1;
    return listen_somewhere(&self->port);
}

/* --- connections -------------------------------------------------------------------------------*/

int contact_receive(int fd, void *buffer, size_t size, int milliseconds)
{
    int64_t deadline = now_ms() + milliseconds;
    char *at = buffer;

    while (size > 0) {
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        int64_t left = deadline - now_ms();
        ssize_t n;

        if (left <= 0 || (poll(&readable, 1, (int)left) <= 0 && errno != EINTR)) {
            errno = ETIMEDOUT;
            return -1;
        }
        n = recv(fd, at, size, 0);
        if (n == 0)
            errno = ECONNRESET;
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return -1;
        if (n > 0) {
            at += n;
            size -= (size_t)n;
        }
    }
    return 0;
}

/* A few bytes into a connection that has carried next to nothing always fit. */
int contact_send(int fd, const void *bytes, size_t size)
{
    return send(fd, bytes, size, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

/* Have the kernel find out when the other node is no more. */
static void keep_alive(int fd)
{
    int yes = 1, seconds = SILENCE_S / 3, times = 2, milliseconds = SILENCE_S * 1000;

    if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof(yes)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof(seconds)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof(seconds)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof(times)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)) < 0)
        log_warning_any_rank("the loss of a node may go unnoticed: %s", strerror(errno));
}

/* A connection to one of its addresses, where something answers; -1 with errno otherwise. */
static int connect_to(const struct in6_addr *address, uint32_t port)
{
    struct sockaddr_storage to;
    socklen_t size = socket_address(&to, address, port);
    int code = 0, fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t length = sizeof(code);

    if (fd < 0)
        return -1;
    if (connect(fd, (const struct sockaddr *)&to, size) < 0) {
        struct pollfd connected = {.fd = fd, .events = POLLOUT};

        code = errno;
        if (code == EINPROGRESS) {
            code = ETIMEDOUT;
            if (poll(&connected, 1, CONNECT_MS) > 0 &&
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length) < 0)
                code = errno;
        }
    }
    if (code != 0) {
        close_fd(&fd);
        errno = code;
    }
    return fd;
}

/* Some of its addresses may be of this node too, or lead nowhere: it is the one that knows both
 * tokens. */
int contact_connect(const struct contact *self, const struct contact *it)
{
    struct hello hello;
    int code = EADDRNOTAVAIL;

    memcpy(hello.to, it->token, sizeof(hello.to));
    memcpy(hello.from, self->token, sizeof(hello.from));
    for (uint32_t i = 0; i < it->count && it->port != 0; i++) {
        unsigned char answer[CONTACT_TOKEN_BYTES];
        int fd = connect_to(&it->addresses[i], it->port);

        if (fd >= 0 && contact_send(fd, &hello, sizeof(hello)) == 0 &&
            contact_receive(fd, answer, sizeof(answer), HELLO_MS) == 0) {
            if (memcmp(answer, self->token, sizeof(answer)) == 0) {
                keep_alive(fd);
                return fd;
            }
            errno = ECONNREFUSED;
        }
        code = errno;
        close_fd(&fd);
    }
    errno = code;
    return -1;
}

int contact_accept(int listening, const struct contact *self, const struct contact *it)
{
    struct hello hello;
    int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0 && contact_receive(fd, &hello, sizeof(hello), HELLO_MS / 2) == 0 &&
        memcmp(hello.to, self->token, sizeof(hello.to)) == 0 &&
        memcmp(hello.from, it->token, sizeof(hello.from)) == 0 &&
        contact_send(fd, it->token, sizeof(it->token)) == 0)
        keep_alive(fd);
    else
        close_fd(&fd);
    return fd;
}
