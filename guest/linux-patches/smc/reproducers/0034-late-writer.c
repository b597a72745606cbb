// SPDX-License-Identifier: GPL-2.0
/* A client confirms so late that the server has given up. What it sends must not be in another connection's buffer.
 * To be late it needs a kernel with 0034-delay.diff: without that nothing is wrong here.
 */
#include "repro.h"

#define LATE 7 /* the priority of sockets that 0034-delay.diff delays */

static struct sockaddr_in address;

static void *late(void *client)
{
	repro_connect(*(int *)client, &address);
	return NULL;
}

static void another(int protocol, char *result)
{
	int listener, warm, client, first, accepted;
	pthread_t thread;
	char data[8];
	long got;

	listener = repro_listen(protocol, &address);
	/* a link group that stays */
	warm = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(repro_connect(warm, &address));
	NEED(accept(listener, NULL, NULL));

	first = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(repro_set(first, SOL_SOCKET, SO_PRIORITY, LATE));
	pthread_create(&thread, NULL, late, &first);
	sleep(7);

	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(repro_connect(client, &address));
	pthread_join(thread, NULL);
	for (;;) {
		struct sockaddr_in6 from, own;
		socklen_t length = sizeof(from);

		accepted = NEED(accept(listener, (struct sockaddr *)&from, &length));
		length = sizeof(own);
		NEED(getsockname(client, (struct sockaddr *)&own, &length));
		if (from.sin6_port == own.sin6_port)
			break;
	}
	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);

	send(first, "late", 4, MSG_NOSIGNAL);
	NEED(fcntl(accepted, F_SETFL, O_NONBLOCK));
	usleep(300000);
	got = recv(accepted, data, sizeof(data), 0);
	sprintf(result, "before anything was sent: %s", repro_value(got));
	got = send(client, "ab", 2, MSG_NOSIGNAL);
	repro_add(result, repro_value(got));
	usleep(300000);
	got = recv(accepted, data, sizeof(data), 0);
	repro_add(result, repro_value(got));
	repro_add(result, got == 2 && !memcmp(data, "ab", 2) ? "right" : "WRONG");
}

static const struct repro_case cases[] = {
	{ "a late client beside another", "before anything was sent: EAGAIN, 2, 2, right", NULL, another, 40 },
};

REPRO_MAIN(cases)
