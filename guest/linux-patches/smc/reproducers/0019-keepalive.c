// SPDX-License-Identifier: GPL-2.0
/* The peer's system does not answer any more: here its packets do not come, because the interface is down. In a network
 * namespace of its own.
 */
#include "repro.h"

static void connected(int protocol, int ends[2])
{
	repro_own_network();
	repro_pair(protocol, ends);
	/* SMC's handshake has to be acknowledged, or its retransmissions take the place of probes */
	usleep(500000);
}

static void waiting(int protocol, char *result)
{
	int ends[2];
	char data;

	connected(protocol, ends);
	repro_keep_alive(ends[0]);
	repro_loopback(0);
	sprintf(result, "recv() %s", repro_value(recv(ends[0], &data, 1, 0)));
	sprintf(result + strlen(result), ", then %s", repro_value(recv(ends[0], &data, 1, 0)));
}

static void accepted(int protocol, char *result)
{
	int ends[2];
	char data;

	connected(protocol, ends);
	repro_keep_alive(ends[1]);
	repro_loopback(0);
	sprintf(result, "recv() %s", repro_value(recv(ends[1], &data, 1, 0)));
}

static void sending(int protocol, char *result)
{
	static char data[8000000];
	int ends[2];

	connected(protocol, ends);
	repro_keep_alive(ends[0]);
	NEED(repro_set(ends[0], IPPROTO_TCP, TCP_USER_TIMEOUT, 3000));
	repro_loopback(0);
	while (send(ends[0], data, sizeof(data), MSG_NOSIGNAL) > 0)
		;
	sprintf(result, "send() %s", repro_error(errno));
}

static void polling(int protocol, char *result)
{
	struct pollfd ended = { .events = POLLIN };
	int ends[2];

	connected(protocol, ends);
	repro_keep_alive(ends[0]);
	repro_loopback(0);
	ended.fd = ends[0];
	sprintf(result, "poll() %s", repro_value(poll(&ended, 1, 30000)));
	sprintf(result + strlen(result), ", SO_ERROR %s", repro_kept_error(ends[0]));
}

/* it must not end a connection whose peer does answer */
static void alive(int protocol, char *result)
{
	int ends[2];
	char data;

	connected(protocol, ends);
	repro_keep_alive(ends[0]);
	sleep(5);
	NEED(send(ends[1], "x", 1, 0));
	sprintf(result, "recv() %s", repro_value(recv(ends[0], &data, 1, 0)));
}

static const struct repro_case cases[] = {
	{ "recv() with keepalive after 1 s, every second, twice", "recv() ETIMEDOUT, then 0", NULL, waiting, 20 },
	{ "the same on the socket that was accepted", "recv() ETIMEDOUT", NULL, accepted, 20 },
	{ "poll() with it", "poll() 1, SO_ERROR ETIMEDOUT", NULL, polling, 20 },
	{ "send() with it and TCP_USER_TIMEOUT of 3 s", "send() ETIMEDOUT", NULL, sending, 20 },
	{ "five seconds with it, and a peer that answers", "recv() 1", NULL, alive, 20 },
};

REPRO_MAIN(cases)
