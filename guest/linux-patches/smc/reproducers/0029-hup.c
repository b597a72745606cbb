// SPDX-License-Identifier: GPL-2.0
/* poll() of a connection that the peer has reset. */
#include "repro.h"

static void reset(int protocol, char *result)
{
	int ends[2];
	char data;

	repro_pair(protocol, ends);
	repro_no_linger(ends[0]);
	close(ends[0]);
	usleep(300000);
	repro_add(result, repro_poll(ends[1], 0));
	repro_add(result, repro_value(recv(ends[1], &data, 1, 0)));
	repro_add(result, repro_poll(ends[1], 0));
}

static const struct repro_case cases[] = {
	{ "poll(), recv() and poll() after a reset", "IN OUT ERR HUP RDHUP, ECONNRESET, IN OUT HUP RDHUP", NULL, reset, 0 },
};

REPRO_MAIN(cases)
