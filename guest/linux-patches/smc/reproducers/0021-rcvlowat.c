// SPDX-License-Identifier: GPL-2.0
/* poll() with SO_RCVLOWAT. */
#include "repro.h"

static int readable(int fd, int milliseconds)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN };

	return NEED(poll(&polled, 1, milliseconds));
}

static void pieces(int protocol, char *result)
{
	static char data[1000];
	int ends[2], sent;

	repro_pair(protocol, ends);
	NEED(repro_set(ends[1], SOL_SOCKET, SO_RCVLOWAT, 4000));
	for (sent = 1000; sent <= 4000; sent += 1000) {
		NEED(send(ends[0], data, sizeof(data), 0));
		sprintf(result + strlen(result), "%d: %d ", sent, readable(ends[1], 200));
	}
}

static void more_than_fits(int protocol, char *result)
{
	static char data[1 << 20];
	ssize_t all = 0, done;
	int ends[2];

	repro_pair(protocol, ends);
	/* what was read, and not told to the peer yet, must not be in the way either */
	NEED(send(ends[0], data, 1000, 0));
	NEED(recv(ends[1], data, sizeof(data), 0));
	NEED(repro_set(ends[1], SOL_SOCKET, SO_RCVLOWAT, 1 << 30));
	NEED(fcntl(ends[0], F_SETFL, O_NONBLOCK));
	while (all < 64 << 20 && (done = send(ends[0], data, sizeof(data), 0)) > 0)
		all += done;
	sprintf(result, "%d", readable(ends[1], 1000));
}

static void the_end(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	NEED(repro_set(ends[1], SOL_SOCKET, SO_RCVLOWAT, 4000));
	NEED(send(ends[0], "short", 5, 0));
	NEED(shutdown(ends[0], SHUT_WR));
	sprintf(result, "%d", readable(ends[1], 1000));
}

static const struct repro_case cases[] = {
	{ "SO_RCVLOWAT of 4000, sent in pieces of 1000: poll()", "1000: 0 2000: 0 3000: 0 4000: 1 ", NULL, pieces, 0 },
	{ "more than fits into the buffer", "1", NULL, more_than_fits, 0 },
	{ "less than that, and the end", "1", NULL, the_end, 0 },
};

REPRO_MAIN(cases)
