// SPDX-License-Identifier: GPL-2.0
/* A connection that ends because its peer's system does not answer (0019) has buffers, which the next one could use. */
#include "repro.h"

static void ended(int protocol, char *result)
{
	int ends[2];
	char data;

	repro_own_network();
	repro_pair(protocol, ends);
	/* SMC's handshake has to be acknowledged, or its retransmissions take the place of probes */
	usleep(500000);
	repro_keep_alive(ends[1]);
	repro_loopback(0);
	repro_add(result, repro_value(recv(ends[1], &data, 1, 0)));
	close(ends[0]);
	close(ends[1]);
	usleep(300000);
	sprintf(result + strlen(result), ", %ld bytes in use", repro_buffers_in_use());
}

static const struct repro_case cases[] = {
	{ "memory in use after a connection has timed out", "ETIMEDOUT, 0 bytes in use", NULL, ended, 20 },
};

REPRO_MAIN(cases)
