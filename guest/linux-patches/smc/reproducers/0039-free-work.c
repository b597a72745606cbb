// SPDX-License-Identifier: GPL-2.0
/* The last connection of a link group is closed while another one's handshake ends the link group. To meet each other they
 * need a kernel with 0038-delay.diff, and CONFIG_DEBUG_OBJECTS_TIMERS to see what is left: without these nothing is wrong here.
 */
#include "repro.h"

#define OUT_OF_SYNC 7 /* the priority of sockets that 0038-delay.diff has decline */

static struct sockaddr_in address;

static void *out_of_sync(void *client)
{
	/* after close() has looked whether the link group ends, which 0038-delay.diff gives 300 ms */
	usleep(100000);
	repro_connect(*(int *)client, &address);
	return NULL;
}

static void closed(int protocol, char *result)
{
	long before = repro_complaints();
	int listener, at;

	listener = repro_listen(protocol, &address);
	for (at = 0; at < 10; at++) {
		int last = NEED(socket(AF_INET, SOCK_STREAM, protocol));
		int other = NEED(socket(AF_INET, SOCK_STREAM, protocol));
		pthread_t thread;

		NEED(repro_connect(last, &address));
		if (protocol == IPPROTO_SMC)
			repro_insist_on_smcd(last);
		NEED(repro_set(other, SOL_SOCKET, SO_PRIORITY, OUT_OF_SYNC));
		pthread_create(&thread, NULL, out_of_sync, &other);
		repro_no_linger(last);
		close(last);
		close(repro_accept(listener));
		pthread_join(thread, NULL);
		close(repro_accept(listener));
		close(other);
	}
	sprintf(result, "the kernel complains: %s", repro_complaints() != before ? "yes" : "no");
}

static const struct repro_case cases[] = {
	{ "close() while the link group ends", "the kernel complains: no", NULL, closed, 60 },
};

REPRO_MAIN(cases)
