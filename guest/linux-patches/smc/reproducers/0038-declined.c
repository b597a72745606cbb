// SPDX-License-Identifier: GPL-2.0
/* The client of a first contact declines as out of sync. Without 0038 the server waits for itself for ever, without 0040 it ends
 * the connection with the link group, and not all go on as TCP. It needs a kernel with 0038-delay.diff, which has the client
 * decline: without that nothing is wrong here.
 */
#include "repro.h"

#define OUT_OF_SYNC 7 /* the priority of sockets that 0038-delay.diff has decline */

static void declined(int protocol, char *result)
{
	struct sockaddr_in address;
	int listener, at, good = 0;

	listener = repro_listen(protocol, &address);
	for (at = 0; at < 20; at++) {
		int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
		struct pollfd readable = { .fd = client, .events = POLLIN };
		int accepted;
		char data = 'x';

		NEED(repro_set(client, SOL_SOCKET, SO_PRIORITY, OUT_OF_SYNC));
		NEED(repro_connect(client, &address));
		accepted = repro_accept(listener);
		if (accepted >= 0 && send(accepted, &data, 1, MSG_NOSIGNAL) == 1 && poll(&readable, 1, 1000) == 1 &&
		    recv(client, &data, 1, 0) == 1)
			good++;
		close(accepted);
		close(client);
	}
	sprintf(result, "%d of 20", good);
}

static const struct repro_case cases[] = {
	{ "connections that are declined as out of sync work as TCP", "20 of 20", NULL, declined, 60 },
};

REPRO_MAIN(cases)
