/* TCP connections between ranks, which tell each other by other ways how they can be reached.
 *
 * All connections are nonblocking and closed in programs that this one starts. A connection whose
 * other end says nothing because its node is no more ends by itself, within 15 seconds.
 */
#ifndef MTLLM_TRAINER_CONTACT_H
#define MTLLM_TRAINER_CONTACT_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

enum { CONTACT_TOKEN_BYTES = 16, CONTACT_ADDRESSES = 8 };

/* How a rank is reached. A value that can be sent as it is. */
struct contact {
    unsigned char token[CONTACT_TOKEN_BYTES]; /* known to the ranks of this run alone */
    char node[64];
    uint32_t port; /* 0: not at all */
    uint32_t count;
    struct in6_addr addresses[CONTACT_ADDRESSES]; /* IPv4 as mapped ones */
};

/* Listen, and say in `self` where. Returns the file descriptor; -1 with errno when nobody can
 * connect to this rank, and `self` says so too. */
int contact_listen(struct contact *self);

/* A connection to that rank, which calls contact_accept(): a file descriptor, or -1 with errno. */
int contact_connect(const struct contact *self, const struct contact *it);
/* The connection that waits, if it is that rank's; -1 for any other. */
int contact_accept(int listening, const struct contact *self, const struct contact *it);

/* A few bytes; where next to nothing was sent before they always fit. -1: the connection is over.
 */
int contact_send(int fd, const void *bytes, size_t size);
/* 0 when all of it came in time, -1 with errno otherwise. */
int contact_receive(int fd, void *buffer, size_t size, int milliseconds);

#endif
